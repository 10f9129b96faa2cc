"""The time limit of a part, and the two executors taking turns on the same work."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TypeVar

from boundedexec import Service

from ..screen import Screen

E = TypeVar("E", bound=Executor)

REFRESH = 0.1
"""Seconds between two looks at how far a part is."""

_ROUNDS = 9
# The share of a part's limit for the rounds of its comparison.
_SHARE = 0.5


class Limit:
    """The end of the time limit of a pass, which `stop` brings forward."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def over(self) -> bool:
        """Return whether it has passed."""
        return time.monotonic() >= self._end

    def stop(self) -> None:
        """Let it have passed."""
        self._end = time.monotonic()


@contextmanager
def ending(executor: E, limit: Limit) -> Generator[E]:
    """Use `executor`; at the end cancel what is queued and do not wait for the rest.

    The ``with`` block of an executor would finish everything queued first, and would
    never end for one that is stuck.
    """
    try:
        yield executor
    finally:
        limit.stop()
        executor.shutdown(wait=False, cancel_futures=True)


def new_service(slots: int | None = None) -> Service:
    """Make a service: a read that never returns must not keep the demo from ending."""
    return Service(slots, daemon=True)


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one part: medians of `rounds` rounds. `pool` is None where it got stuck."""

    service: float
    pool: float | None
    rounds: int

    def pool_shown(self) -> str:
        """Return what to print for the pool."""
        return "would hang" if self.pool is None else seconds_shown(self.pool)


def compare(
    screen: Screen,
    seconds: float,
    service: Callable[[], float],
    pool: Callable[[], float] | None,
) -> Times:
    """Alternate the two until the time for it is over; measure each at least once."""
    limit = Limit(seconds * _SHARE)
    of_service: list[float] = []
    of_pool: list[float] = []
    for number in range(_ROUNDS):
        screen.progress(f"   comparing, round {number + 1} of at most {_ROUNDS}")
        turns = [(service, of_service)] + ([(pool, of_pool)] if pool else [])
        # The second finds what the first left: a warm cache, a busy disk.
        for measure, times in turns if number % 2 else reversed(turns):
            gc.collect()
            times.append(measure())
        if limit.over():
            break
    return Times(
        statistics.median(of_service),
        statistics.median(of_pool) if of_pool else None,
        len(of_service),
    )


def seconds_shown(seconds: float) -> str:
    """Return `seconds` with a unit."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
