"""Fixtures and hooks. What tests call is in `helpers`."""

from __future__ import annotations

import _thread
import gc
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import nullcontext
from queue import SimpleQueue

import pytest

if hasattr(os, "register_at_fork"):
    # Before the package is imported, so that its hooks are called after this one.
    os.register_at_fork(after_in_child=lambda: helpers.say_begun())

import helpers
from helpers import (
    EXECUTORS,
    LIMIT,
    POOLS,
    SERVICES,
    NewService,
    Starts,
)

from boundedexec import Service


def pytest_collection_finish() -> None:
    """What is there before the first test need not be looked through by each collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    """What starts the package's threads in this test. The test's own always start."""
    starts = Starts()
    for name in "start_new_thread", "start_joinable_thread":
        if hasattr(_thread, name):
            start = getattr(_thread, name)
            monkeypatch.setattr(_thread, name, starts.over(start, packages_alone=False))
            # `threading` has it under a name of its own, which all that derives from
            # `threading.Thread` starts by.
            own = starts.over(start, packages_alone=True)
            monkeypatch.setattr(threading, f"_{name}", own, raising=False)
    return starts


@pytest.fixture
def log() -> Iterator[SimpleQueue[logging.LogRecord]]:
    """What is logged on `boundedexec`, as it comes."""
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.put(record)

    handler = Handler()
    logger = logging.getLogger("boundedexec")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture
def new_service() -> Iterator[NewService]:
    """Makes services; when the test is over, those that are open are checked to be sound."""
    made: list[Service] = []

    def make(bound: int, **settings: object) -> Service:
        made.append(Service(bound, daemon=True, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for service in made:
        try:
            service.submit(int)
        except RuntimeError:
            continue  # Shut down, or broken.
        helpers.check_every_slot(service)
        service.shutdown()


@pytest.fixture
def busy(new_service: NewService) -> Iterator[tuple[Service, threading.Event]]:
    """A service whose only slot is held until the event is set."""
    service, gate, held = new_service(1), threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        gate.wait()

    service.submit(hold)
    assert held.wait(LIMIT)
    yield service, gate
    gate.set()


@pytest.fixture(params=[nullcontext, helpers.switching_often], ids=["", "switching often"])
def switching(request: pytest.FixtureRequest) -> Iterator[None]:
    """Once as it is, once with threads that are switched as often as can be."""
    with request.param():
        yield


@pytest.fixture
def often() -> Iterator[None]:
    """Have threads switched as often as can be."""
    with helpers.switching_often():
        yield


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed is freed without the collector of cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def made(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with request.param() as executor:
        yield executor


service = pytest.fixture(params=SERVICES.values(), ids=list(SERVICES))(made)
pool = pytest.fixture(params=POOLS.values(), ids=list(POOLS))(made)
executor = pytest.fixture(params=EXECUTORS.values(), ids=list(EXECUTORS))(made)


@pytest.fixture(params=[None, 1, 2])
def limit(request: pytest.FixtureRequest) -> int | None:
    """How many of a group's submissions are with the executor at once."""
    limit: int | None = request.param
    return limit
