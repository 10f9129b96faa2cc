"""Waits with a timeout, by each of the functions that a body may wait with."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from typing import Any

import pytest
from contract_helpers import LIMIT, MOMENT, Gate

import boundedexec

#: Waits for one future at most so long; True where it was over in time.
Wait = Callable[[Any, float], bool]


def by_result(future: Any, timeout: float) -> bool:
    try:
        future.result(timeout)
    except TimeoutError:
        return False
    return True


def by_exception(future: Any, timeout: float) -> bool:
    try:
        future.exception(timeout)
    except TimeoutError:
        return False
    return True


def by_wait(future: Any, timeout: float) -> bool:
    return bool(boundedexec.wait([future], timeout=timeout).done)


def by_as_completed(future: Any, timeout: float) -> bool:
    try:
        return next(boundedexec.as_completed([future], timeout=timeout)) is future
    except TimeoutError:
        return False


def by_stdlib_wait(future: Any, timeout: float) -> bool:
    return bool(concurrent.futures.wait([future], timeout=timeout).done)


def by_stdlib_as_completed(future: Any, timeout: float) -> bool:
    try:
        return next(concurrent.futures.as_completed([future], timeout=timeout)) is future
    except TimeoutError:
        return False


WAITS = [
    by_result,
    by_exception,
    by_wait,
    by_as_completed,
    by_stdlib_wait,
    by_stdlib_as_completed,
]
every_wait = pytest.mark.parametrize("wait_for", WAITS)


def give_up_while_it_runs(wait_for: Wait, future: Any, gate: Gate) -> None:
    """Wait with a timeout until one ran out while the body of `future`, `gate`, runs."""
    end = time.monotonic() + LIMIT
    while True:
        assert not wait_for(future, 0.02)
        if gate.entered.is_set():
            return
        assert time.monotonic() < end, "nothing was lent"


def by_wait_outside(future: Future[Any]) -> bool:
    """Whether `future` is over within a moment, asked without a wait of a body's."""
    over = threading.Event()
    future.add_done_callback(lambda _: over.set())
    return over.wait(MOMENT / 2)
