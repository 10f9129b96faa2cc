"""Measurements of waiting: for one result, for many, and inside bodies.

The functions are made like those of `submitting`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial

from ... import Coalescer, Service
from .tools import (
    MICRO,
    MILLI,
    Figures,
    Meeting,
    Pool,
    growth,
    held,
    nothing,
    one_processor,
    settle,
    thread_count,
    voluntary_switches,
)

CHAINS = 3
"""Executors for each depth in one measurement, for the median."""

PASSES = 5
WAITS = 200
"""Waits in each of the passes that `_seconds_of_waits` takes the median of."""

Submit = Callable[[Callable[[], None]], Future[None]]


class Stopwatch:
    """Seconds, and the times that threads of this process blocked, since its creation."""

    def __init__(self) -> None:
        self._switches = voluntary_switches()
        self._start = time.perf_counter()

    def figures(self, count: int) -> Figures:
        """Return what one of `count` operations took, in microseconds and switches."""
        seconds = time.perf_counter() - self._start
        switches = voluntary_switches()
        figures = {"time": seconds / count * MICRO}
        if self._switches is not None and switches is not None:
            figures["switches"] = (switches - self._switches) / count
        return figures


def round_trip(pool: Pool, count: int) -> Figures:
    """Submit and wait for the result, again and again."""
    with pool(8) as executor:
        executor.submit(nothing).result()
        stopwatch = Stopwatch()
        for _ in range(count):
            executor.submit(nothing).result()
        return stopwatch.figures(count)


def bare_locks(count: int) -> Figures:
    """Pass the turn to another thread and get it back, with two locks and nothing else.

    Each lock is a signal: the receiver acquires it, the sender releases it.
    """
    there, back = threading.Lock(), threading.Lock()
    there.acquire()
    back.acquire()

    def answer() -> None:
        for _ in range(1 + count):
            there.acquire()
            back.release()

    thread = threading.Thread(target=answer)
    thread.start()
    there.release()
    back.acquire()
    stopwatch = Stopwatch()
    for _ in range(count):
        there.release()
        back.acquire()
    figures = stopwatch.figures(count)
    thread.join()
    return figures


def wait_for_all(pool: Pool, count: int) -> Figures:
    """Submit, and wait for all with the stdlib's `wait`."""
    with pool(8) as executor:
        start = time.perf_counter()
        futures = [executor.submit(nothing) for _ in range(count)]
        concurrent.futures.wait(futures)
        seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def take_as_completed(pool: Pool, count: int) -> Figures:
    """Submit, and take each future from the stdlib's `as_completed`."""
    with pool(8) as executor:
        start = time.perf_counter()
        futures = [executor.submit(nothing) for _ in range(count)]
        for future in concurrent.futures.as_completed(futures):
            future.result()
        seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def nested_service(count: int) -> Figures:
    """Run bodies that each wait for a submission of their own, on 8 slots."""
    return _nested(Service, count, workers=8)


def nested_stdlib(count: int) -> Figures:
    """Do the same on a pool that has a thread for each of them and one for the rest."""
    return _nested(ThreadPoolExecutor, count, workers=count + 1)


def _nested(pool: Pool, count: int, *, workers: int) -> Figures:
    with pool(workers) as executor:

        def outer() -> None:
            executor.submit(nothing).result()

        start = time.perf_counter()
        futures = [executor.submit(outer) for _ in range(count)]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - start
        # Threads stay for some seconds when they are idle, so all of them are still
        # there. To count them in the bodies would take time in proportion to them.
        threads = thread_count() - 1
    return {"time": seconds * MILLI, "threads": float(threads)}


def chain_stdlib(count: int) -> Figures:
    """Run chains on pools that have a thread for each body."""
    return _chains(ThreadPoolExecutor, count)


def chain_service(count: int) -> Figures:
    """Run chains on 8 slots."""
    return _chains(lambda depth: Service(8), count)


def chain_unbounded(count: int) -> Figures:
    """Run chains on unbounded services."""
    return _chains(lambda depth: Service.unbounded(), count)


def _chains(pool: Pool, count: int) -> Figures:
    """Run chains of `count` bodies on new executors, and then again on the same ones.

    `growth` is the cost of a level where a chain of twice as many is run again, divided
    by that in a chain of `count`.
    """
    short = [_seconds_of_chains(pool, count) for _ in range(CHAINS)]
    long = [_seconds_of_chains(pool, 2 * count) for _ in range(CHAINS)]
    first, again = (statistics.median(seconds) for seconds in zip(*short, strict=True))
    _, twice = (statistics.median(seconds) for seconds in zip(*long, strict=True))
    return {
        "first": first * MILLI,
        "again": again * MILLI,
        "growth": growth(again, twice / 2),
    }


def _seconds_of_chains(pool: Pool, depth: int) -> tuple[float, float]:
    """Return the seconds of a chain, and of another one for which the threads exist."""
    with pool(depth) as executor:

        def body(level: int) -> int:
            return level if level == depth else executor.submit(body, level + 1).result()

        start = time.perf_counter()
        executor.submit(body, 1).result()
        between = time.perf_counter()
        reached = executor.submit(body, 1).result()
        end = time.perf_counter()
    if reached != depth:
        raise RuntimeError(f"a chain of {depth} bodies came to an end at {reached}")
    return between - start, end - between


def chain_before(pool: Pool, count: int) -> Figures:
    """Run chains of `count` bodies that all run at once; each waits for the one before it.

    `growth` is the cost of a level, divided by that in chains of half the depth: where the
    cost of a chain is its depth cubed, longer ones would take minutes.
    """
    half = max(1, count // 2)
    short = statistics.median(_seconds_of_chain_before(pool, half) for _ in range(CHAINS))
    long = statistics.median(_seconds_of_chain_before(pool, count) for _ in range(CHAINS))
    return {"time": long * MILLI, "growth": growth(short / half, long / count)}


def _seconds_of_chain_before(pool: Pool, depth: int) -> float:
    meeting = Meeting(depth)

    def body(before: Future[None]) -> None:
        meeting.arrive()
        before.result()

    with pool(depth) as executor:
        start = time.perf_counter()
        future = executor.submit(meeting.body)
        for _ in range(depth - 1):
            future = executor.submit(body, future)
        # The first body ends when the last one is about to wait.
        meeting.wait()
        meeting.end()
        future.result()
        return time.perf_counter() - start


def wait_beside_stdlib(count: int) -> Figures:
    """Submit and wait in a body, beside `count` bodies that wait for a future.

    Those are bodies of another executor. The figure is the processor time divided by that
    beside as many bodies blocked in an event: so many threads alone make it slower by
    half, with either executor.
    """
    with (
        one_processor(),
        ThreadPoolExecutor(2) as executor,
        ThreadPoolExecutor(count + 1) as elsewhere,
    ):
        return {"growth": _growth_beside(executor, executor.submit, elsewhere, count)}


def wait_beside_service(count: int) -> Figures:
    """Do the same with services, and also for a key of a `Coalescer`."""
    with one_processor(), Service(1) as service, Service.unbounded() as elsewhere:
        plain = _growth_beside(service, service.submit, elsewhere, count)
        coalescer: Coalescer[str] = Coalescer(service)
        submit = partial(coalescer.submit, "key")
        return {
            "growth": plain,
            "coalesced": _growth_beside(service, submit, elsewhere, count),
        }


def _growth_beside(executor: Executor, submit: Submit, elsewhere: Executor, count: int) -> float:
    executor.submit(_seconds_of_waits, submit).result()  # The caches are cold.
    with held(elsewhere, count):
        settle()
        blocked = executor.submit(_seconds_of_waits, submit).result()
    with _waiting(elsewhere, count):
        waiting = executor.submit(_seconds_of_waits, submit).result()
    return growth(blocked, waiting)


def _seconds_of_waits(submit: Submit) -> float:
    passes: list[float] = []
    for _ in range(PASSES):
        start = time.process_time()
        for _ in range(WAITS):
            submit(nothing).result()
        passes.append(time.process_time() - start)
    return statistics.median(passes)


@contextlib.contextmanager
def _waiting(executor: Executor, count: int) -> Generator[None]:
    """Have `count` bodies of `executor` wait for a future, until the end of the block."""
    meeting = Meeting(1 + count)
    awaited = executor.submit(meeting.body)

    def body() -> None:
        meeting.arrive()
        awaited.result()

    for _ in range(count):
        executor.submit(body)
    try:
        meeting.wait()
        settle()
        yield
    finally:
        meeting.end()


def yield_slot(count: int) -> Figures:
    """Yield the slot of a body while no other body needs it."""

    def body(service: Service) -> float:
        start = time.perf_counter()
        for _ in range(count):
            service.yield_slot(nothing)
        return time.perf_counter() - start

    with Service(8) as service:
        seconds = service.submit(body, service).result()
    return {"time": seconds / count * MICRO}
