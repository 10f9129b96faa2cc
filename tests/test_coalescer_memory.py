"""A Coalescer keeps what is in flight and nothing else; its failures are logged once."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import sys
import time
import weakref
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import NoReturn

import pytest
from helpers import (
    EXECUTORS,
    LIMIT,
    AnyFuture,
    Manual,
    Passing,
    Thing,
    collected,
    executing,
    fail,
    holding,
    wait_until,
)

from boundedexec import Coalescer, Service

# Nothing fails in silence


def error_logged(log: SimpleQueue[logging.LogRecord]) -> str:
    wait_until(lambda: not log.empty())
    record = log.get()
    assert record.exc_info is not None
    return str(record.exc_info[1])


@pytest.mark.parametrize("make", EXECUTORS.values(), ids=EXECUTORS)
@pytest.mark.parametrize("asked", [False, True], ids=["not asked", "asked"])
def test_an_exception_that_nobody_asked_for_is_logged_once(
    make: Callable[[], Executor], asked: bool, log: SimpleQueue[logging.LogRecord]
) -> None:
    owed: list[AnyFuture] = []

    def run() -> NoReturn:
        # No local name: a log handler may keep this frame, with the traceback.
        owed.append(coalescer.submit("key", fail, ValueError("owed")))
        coalescer.submit("key", fail, ValueError("owed"))
        raise ValueError("run")

    with make() as executor:
        coalescer = Coalescer[str](executor)
        futures = [coalescer.submit("key", run)]
        concurrent.futures.wait(futures, LIMIT)
        concurrent.futures.wait(owed, LIMIT)
        if asked:
            assert [str(future.exception()) for future in futures + owed] == ["run", "owed"]
        gc.collect()
        assert log.empty(), "the futures are still here"
        futures.clear()
        owed.clear()
        if isinstance(executor, Passing):
            executor.executor.shutdown()
    gc.collect()
    if not asked:
        assert {error_logged(log), error_logged(log)} == {"run", "owed"}
        gc.collect()
    assert log.empty()


def test_a_refused_rerun_that_nobody_asked_for_is_logged_once(
    log: SimpleQueue[logging.LogRecord],
) -> None:
    executor = Manual()
    coalescer = Coalescer[str](executor)
    coalescer.submit("key", int)
    coalescer.submit("key", int)
    executor.refusal = OSError("refused")
    executor.run()
    executor.refusal = None
    gc.collect()
    assert error_logged(log) == "refused"
    assert log.empty()


def test_success_and_cancelling_are_not_logged(log: SimpleQueue[logging.LogRecord]) -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            coalescer.submit("queued", fail, ValueError()).cancel()
            coalescer.submit("key", fail, ValueError()).cancel()
            coalescer.submit("key", int)
    gc.collect()
    assert log.empty()


# Memory


@contextmanager
def bounded_memory(limit: int = 2000) -> Generator[None]:
    """The block leaves no more than `limit` things in memory."""
    gc.collect()
    before = sys.getallocatedblocks()
    yield
    gc.collect()
    assert sys.getallocatedblocks() - before < limit


def test_submits_to_a_running_key_cost_one_rerun_and_no_memory(pool: Executor) -> None:
    count = 200_000 if isinstance(pool, Service) and pool.max_workers == 1 else 20_000
    coalescer = Coalescer[str](pool)
    ran: list[int] = []
    with executing(coalescer):
        owed = coalescer.submit("key", ran.append, -1)
        with bounded_memory():
            for n in range(count):
                coalescer.submit("key", ran.append, n)
        assert coalescer.submit("key", ran.append, count) is owed
        assert len(coalescer) == 1
    owed.result(LIMIT)
    assert ran == [count]


def test_submits_to_a_queued_key_cost_one_run_and_no_memory() -> None:
    ran: list[int] = []
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with holding(service):
            coalescer.submit("key", ran.append, -1)
            with bounded_memory():
                for n in range(20_000):
                    coalescer.submit("key", ran.append, n)
        assert service.block_till_done(LIMIT)
    assert ran == [19_999]


def test_submits_to_a_running_key_that_are_cancelled_cost_no_memory(pool: Executor) -> None:
    count = 100_000 if isinstance(pool, Service) and pool.max_workers == 1 else 10_000
    coalescer = Coalescer[str](pool)
    ran: list[int] = []
    with executing(coalescer):
        coalescer.submit("key", ran.append, -1).cancel()
        with bounded_memory():
            for n in range(count):
                assert coalescer.submit("key", ran.append, n).cancel()
        owed = coalescer.submit("key", ran.append, count)
    owed.result(LIMIT)
    assert ran == [count]
    assert not isinstance(pool, Service) or pool.block_till_done(LIMIT)


def test_a_key_that_is_done_leaves_nothing(executor: Executor) -> None:
    coalescer = Coalescer[Thing](executor)
    key, fn, argument = Thing(), Thing(), Thing()
    future = coalescer.submit(key, fn, argument)
    again = coalescer.submit(key, fn, argument)
    results = [future.result(LIMIT), again.result(LIMIT)]
    things = [weakref.ref(thing) for thing in [key, fn, argument]]
    del key, fn, argument
    # Their futures keep results alone.
    assert all(map(collected, things))
    things = [weakref.ref(result) for result in results]
    del results, future, again
    assert all(map(collected, things))
    assert len(coalescer) == 0


def test_a_callable_that_was_superseded_or_cancelled_is_kept_by_nobody(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    fns = [Thing(), Thing()]
    things = [weakref.ref(fn) for fn in fns]
    with executing(coalescer):
        cancelled = coalescer.submit("key", fns.pop())
        assert cancelled.cancel()
        coalescer.submit("key", fns.pop())
        owed = coalescer.submit("key", int)
        assert all(map(collected, things))
    assert owed.result(LIMIT) == 0


def test_keys_that_are_done_leave_nothing_however_many() -> None:
    with Service(2) as service:
        coalescer = Coalescer[int](service)
        coalescer.submit(-1, int).result(LIMIT)
        with bounded_memory():
            for key in range(10_000):
                coalescer.submit(key, int)
            assert service.block_till_done(LIMIT)
    assert len(coalescer) == 0


def test_a_submit_costs_the_same_however_many_keys_are_in_flight() -> None:
    def best_time(keys: Iterable[int]) -> float:
        times: list[float] = []
        for key in keys:
            began = time.perf_counter()
            coalescer.submit(key, int)
            coalescer.submit(key, int)
            times.append(time.perf_counter() - began)
        return min(times)

    with Service(1) as service:
        coalescer = Coalescer[int](service)
        with holding(service):
            first = best_time(range(200))
            best_time(range(200, 5000))
            last = best_time(range(5000, 5200))
    assert last < 10 * first


def test_what_was_submitted_runs_though_its_coalescer_was_dropped(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    with executing(coalescer):
        owed = coalescer.submit("key", str, "again")
        del coalescer
        gc.collect()
    assert owed.result(LIMIT) == "again"


def test_a_service_that_was_dropped_with_its_coalescer_finishes_what_is_owed() -> None:
    coalescer = Coalescer[str](Service(1))
    reference = weakref.ref(coalescer)
    with executing(coalescer) as run:
        owed = coalescer.submit("key", str, "again")
        del coalescer
        gc.collect()
    assert owed.result(LIMIT) == "again"
    assert collected(reference)
    assert run.done()


def test_a_future_does_not_keep_an_unused_service_alive() -> None:
    service = Service(1)
    reference = weakref.ref(service)
    coalescer = Coalescer[str](service)
    futures = [coalescer.submit("key", int), coalescer.submit("key", int)]
    concurrent.futures.wait(futures, LIMIT)
    del service, coalescer
    assert collected(reference)
    assert [future.result() for future in futures] == [0, 0]
