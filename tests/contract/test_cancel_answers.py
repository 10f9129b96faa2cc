"""Threads that cancel one submission at once all hear what becomes of it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import ThreadPoolExecutor as StdlibPool
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, check_slots, new_service

from boundedexec import Coalescer

#: Seconds that each race is tried.
SECONDS = 1.0


@pytest.fixture(autouse=True)
def _frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def numbered(executor: Executor) -> Callable[..., Future[Any]]:
    """`submit` of `executor`, called as a Coalescer's: with a key, which is left out."""

    def submit(_: Any, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        return executor.submit(fn, *args)

    return submit


def race(submit: Callable[..., Any], gate: Gate, threads: int, count: int = 200) -> list[str]:
    """Cancel `count` submissions in several threads, beside the worker; what was wrong."""
    ran: list[int] = []
    called: list[Any] = []
    futures = [submit(n, ran.append, n) for n in range(count)]
    for future in futures:
        future.add_done_callback(called.append)
    meeting = threading.Barrier(threads + 1)
    heard: list[list[bool]] = [[] for _ in range(threads)]

    def cancel(number: int) -> None:
        meeting.wait(LIMIT)
        for future in futures:
            heard[number].append(future.cancel())

    cancelling = [threading.Thread(target=cancel, args=(n,), daemon=True) for n in range(threads)]
    for thread in cancelling:
        thread.start()
    meeting.wait(LIMIT)
    gate.open()
    for thread in cancelling:
        thread.join(LIMIT)
    wrong: list[str] = []
    for n, future in enumerate(futures):
        if not future.cancelled():
            future.result(LIMIT)
        answers = [told[n] for told in heard]
        if answers != [future.cancelled()] * threads or (n in ran) == future.cancelled():
            wrong.append(f"{n}: told {answers}, cancelled {future.cancelled()}, ran {n in ran}")
    if len(ran) != len(set(ran)):
        wrong.append("a body ran twice")
    return wrong


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_all_hear_the_same_as_the_futures_end(threads: int, workers: int) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        service = new_service(workers)
        gates = [Gate() for _ in range(workers)]
        for gate in gates:
            service.submit(gate)
            gate.wait_entered()
        for gate in gates[1:]:
            gate.open()
        assert race(numbered(service), gates[0], threads) == []
        check_slots(service, workers)
        service.shutdown()


def test_all_hear_the_same_on_the_stdlibs_pool() -> None:
    with StdlibPool(1) as pool:
        gate = Gate()
        pool.submit(gate)
        gate.wait_entered()
        assert race(numbered(pool), gate, 3) == []


def test_all_hear_the_same_of_a_coalescers_run() -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        service, gate = new_service(1), Gate()
        coalescer: Coalescer[int] = Coalescer(service)
        service.submit(gate)
        gate.wait_entered()
        assert race(coalescer.submit, gate, 2) == []
        check_slots(service, 1)
        assert len(coalescer) == 0
        service.shutdown()


def cancelling(
    futures: list[Any], heard: list[bool], meeting: threading.Barrier
) -> threading.Thread:
    """A thread that cancels each once another has come, and hears what became of it."""

    def cancel() -> None:
        meeting.wait(LIMIT)
        heard.extend([future.cancel() for future in futures])

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    return thread


def test_all_hear_the_same_beside_a_body_that_lends() -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        service = new_service(1)
        ran: list[int] = []
        futures: list[Any] = []
        heard: list[bool] = []
        meeting = threading.Barrier(2)

        def body(
            service: Any = service,
            ran: list[int] = ran,
            futures: list[Any] = futures,
            meeting: threading.Barrier = meeting,
        ) -> None:
            futures.extend(service.submit(ran.append, n) for n in range(100))
            meeting.wait(LIMIT)
            for future in futures:
                if not future.cancelled():
                    concurrent_result(future)

        thread = cancelling(futures, heard, meeting)
        outer = service.submit(body)
        outer.result(LIMIT)
        thread.join(LIMIT)
        assert heard == [future.cancelled() for future in futures]
        assert sorted(ran) == [n for n in range(100) if not futures[n].cancelled()]
        check_slots(service, 1)
        service.shutdown()


def concurrent_result(future: Any) -> None:
    from concurrent.futures import CancelledError  # noqa: PLC0415

    try:
        future.result()
    except CancelledError:
        pass


def test_all_hear_the_same_beside_a_shutdown_that_cancels() -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        service, gate = new_service(1), Gate()
        service.submit(gate)
        gate.wait_entered()
        futures = [service.submit(pow, 2, 3) for _ in range(200)]
        heard: list[bool] = []
        meeting = threading.Barrier(2)
        thread = cancelling(futures[::-1], heard, meeting)
        meeting.wait(LIMIT)
        service.shutdown(wait=False, cancel_futures=True)
        thread.join(LIMIT)
        gate.open()
        assert service.block_till_done(LIMIT)
        assert heard == [future.cancelled() for future in reversed(futures)]
        assert all(heard)


def test_a_cancel_that_says_true_has_cancelled() -> None:
    service = new_service(1)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        future = service.submit(pow, 2, 3)
        if future.cancel():
            assert future.cancelled()
        else:
            assert future.result(LIMIT) == 8
            assert not future.cancelled()
            assert not future.cancel()
    check_slots(service, 1)
