"""Measurements of submitting: throughput, memory, cancelling, creating an executor.

A function takes `pool`, which makes an executor of so many workers, and the number of
operations, and returns its figures. It is the same function for the stdlib's pool, the
`Service` and the floor. Each call is made in a process of its own (`child.py`), so one
measurement cannot affect the next. A measurement that takes all results keeps all
futures until then, as such a caller does.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

from ... import Coalescer, Service
from .tools import (
    LOST_AFTER,
    MEGABYTE,
    MICRO,
    Figures,
    NotMeasured,
    Pool,
    available_bytes,
    growth,
    held,
    nothing,
    peak_resident_bytes,
    resident_bytes,
    same,
    set_five_variables,
    start_every_thread,
    thread_count,
    three_arguments,
)

PASSES = 5
"""How often a quick measurement within one process is repeated, for its median."""

CANCELS = 4_000
"""Futures that are cancelled in each pass of `cancel_beside_running`."""


def throughput(pool: Pool, count: int, *, workers: int) -> Figures:
    """Submit bodies that do nothing, keep the futures, take all the results."""
    with pool(workers) as executor:
        start = time.perf_counter()
        futures = [executor.submit(nothing) for _ in range(count)]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def throughput_real(pool: Pool, count: int) -> Figures:
    """Do the same with arguments, in a context that has variables."""
    set_five_variables()
    third = object()
    with pool(8) as executor:
        start = time.perf_counter()
        futures = [executor.submit(three_arguments, 1, "second", third=third) for _ in range(count)]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def submit(pool: Pool, count: int) -> Figures:
    """Submit to an executor whose workers are all blocked."""
    with pool(8) as executor, held(executor, 8):
        start = time.perf_counter()
        futures = [executor.submit(nothing) for _ in range(count)]
        seconds = time.perf_counter() - start
        del futures
    return {"time": seconds / count * MICRO}


def memory(pool: Pool, count: int) -> Figures:
    """Measure the memory of pending submissions whose futures are kept."""
    # The list that keeps the futures belongs to the caller, so it exists before.
    futures: list[Future[None] | None] = [None] * count
    with pool(8) as executor, held(executor, 8):
        before = resident_bytes()
        for index in range(count):
            futures[index] = executor.submit(nothing)
        after = resident_bytes()
    return {"memory": (after - before) / count}


def memory_real(pool: Pool, count: int) -> Figures:
    """Do the same with arguments, in a context that has variables.

    Every submission has the same argument objects: those are the caller's memory.
    """
    set_five_variables()
    third = object()
    futures: list[Future[None] | None] = [None] * count
    with pool(8) as executor, held(executor, 8):
        before = resident_bytes()
        for index in range(count):
            futures[index] = executor.submit(three_arguments, 1, "second", third=third)
        after = resident_bytes()
    return {"memory": (after - before) / count}


def million(pool: Pool, count: int) -> Figures:
    """Queue very many submissions behind blocked bodies, then run them all."""
    available = available_bytes()
    needed = 2_500 * count
    if available is not None and available < needed:
        raise NotMeasured(f"it needs {needed / MEGABYTE:,.0f} MB of free memory")
    threads: list[int] = []

    def count_threads() -> None:
        threads.append(thread_count())

    futures: list[Future[None] | None] = [None] * count
    with pool(8) as executor:
        before = peak_resident_bytes()
        start = time.perf_counter()
        with held(executor, 8):
            for index in range(count):
                futures[index] = executor.submit(nothing if index % 1000 else count_threads)
        for future in futures:
            if future is not None:
                future.result()
        seconds = time.perf_counter() - start
        peak = peak_resident_bytes()
    figures = {"time": seconds, "threads": float(max(threads))}
    if before is not None and peak is not None:
        figures["peak"] = (peak - before) / MEGABYTE
    return figures


def cancel(pool: Pool, count: int) -> Figures:
    """Cancel queued submissions."""
    with pool(8) as executor, held(executor, 8):
        futures = [executor.submit(nothing) for _ in range(count)]
        start = time.perf_counter()
        for future in futures:
            future.cancel()
        seconds = time.perf_counter() - start
        if not all(future.cancelled() for future in futures):
            raise RuntimeError("a queued submission could not be cancelled")
    return {"time": seconds / count * MICRO}


def cancel_beside_running(pool: Pool, count: int) -> Figures:
    """Cancel finished futures of an executor, first idle, then with `count` bodies running.

    The figure is the second processor time divided by the first.
    """
    with pool(count) as executor:
        futures = [executor.submit(nothing) for _ in range(CANCELS)]
        for future in futures:
            future.result()
        _seconds_to_cancel(futures)  # The caches are cold.
        alone = _seconds_to_cancel(futures)
        with held(executor, count):
            beside = _seconds_to_cancel(futures)
    return {"growth": growth(alone, beside)}


def _seconds_to_cancel(futures: Sequence[Future[None]]) -> float:
    passes: list[float] = []
    for _ in range(PASSES):
        start = time.thread_time()
        for future in futures:
            future.cancel()
        passes.append(time.thread_time() - start)
    return statistics.median(passes)


def burst(pool: Pool, count: int) -> Figures:
    """Submit 32 bodies at once to 32 idle workers."""
    seconds = 0.0
    with pool(32) as executor:
        start_every_thread(executor, 32)
        for _ in range(count):
            time.sleep(0.005)  # The workers of the last burst become idle.
            start = time.perf_counter()
            futures = [executor.submit(nothing) for _ in range(32)]
            for future in futures:
                future.result()
            seconds += time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def map_range(pool: Pool, count: int) -> Figures:
    """Map over a range."""
    with pool(8) as executor:
        start = time.perf_counter()
        results = list(executor.map(same, range(count)))
        seconds = time.perf_counter() - start
    if results != list(range(count)):
        raise RuntimeError("map returned other results than it should")
    return {"time": seconds / count * MICRO}


def fresh(pool: Pool, count: int) -> Figures:
    """Create an executor, submit four bodies to it, shut it down."""
    start = time.perf_counter()
    for _ in range(count):
        with pool(4) as executor:
            futures = [executor.submit(nothing) for _ in range(4)]
        del futures
    seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def fresh_results(pool: Pool, count: int) -> Figures:
    """Create an executor, take the results of four bodies, shut it down."""
    start = time.perf_counter()
    for _ in range(count):
        with pool(4) as executor:
            futures = [executor.submit(nothing) for _ in range(4)]
            assert [future.result() for future in futures] == [None] * 4
        del futures
    seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def coalesced_submit(count: int) -> Figures:
    """Submit to a key that is running, again and again."""
    futures: list[Future[None] | None] = [None] * count
    started = threading.Event()
    release = threading.Event()

    def run() -> None:
        started.set()
        release.wait()

    with Service(8) as service:
        coalescer: Coalescer[str] = Coalescer(service)
        coalescer.submit("key", run)
        if not started.wait(LOST_AFTER):
            raise RuntimeError("the first run of a key did not start")
        try:
            # The one re-run that all later submits join.
            coalescer.submit("key", nothing)
            before = _resident_bytes_or_none()
            start = time.perf_counter()
            for index in range(count):
                futures[index] = coalescer.submit("key", nothing)
            seconds = time.perf_counter() - start
            after = _resident_bytes_or_none()
        finally:
            release.set()
    figures = {"time": seconds / count * MICRO}
    if before is not None and after is not None:
        figures["memory"] = max(0, after - before) / count
    return figures


def coalesced_new_keys(count: int) -> Figures:
    """Submit a key that is not in flight each time, keep the futures, take all the results."""
    with Service(8) as service:
        coalescer: Coalescer[int] = Coalescer(service)
        start = time.perf_counter()
        futures = [coalescer.submit(key, nothing) for key in range(count)]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def _resident_bytes_or_none() -> int | None:
    try:
        return resident_bytes()
    except NotMeasured:
        return None
