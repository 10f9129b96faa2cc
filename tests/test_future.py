"""A future is the stdlib's to all that take one: states, waits, time limits, bare ones."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import (
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
)
from typing import Any

import pytest
from helpers import LIMIT, AnyFuture, Boom, NewService, cancel_all, fail

import boundedexec
from boundedexec import Service


def completed(futures: Iterable[AnyFuture]) -> list[AnyFuture]:
    return list(concurrent.futures.as_completed(futures, LIMIT))


# A Future for the stdlib


def test_submit_returns_a_stdlib_future(new_service: NewService) -> None:
    future = new_service(1).submit(int, "3")
    assert isinstance(future, Future)
    assert isinstance(future, boundedexec.Future)
    assert future.result(LIMIT) == 3
    assert future.exception(LIMIT) is None
    assert future.done() and not future.running() and not future.cancelled()


def test_a_future_takes_attributes_and_weak_references(
    new_service: NewService,
) -> None:
    future: Any = new_service(1).submit(int)
    future.tag = "mine"
    assert {future: future.tag}[future] == "mine"
    assert weakref.ref(future)() is future


def test_a_future_shows_every_state(busy: tuple[Service, threading.Event]) -> None:
    service, gate = busy
    entered, leave = threading.Event(), threading.Event()

    def body() -> None:
        entered.set()
        leave.wait()

    future = service.submit(body)
    assert not future.running() and not future.done() and not future.cancelled()
    gate.set()
    assert entered.wait(LIMIT)
    assert future.running() and not future.done() and not future.cancelled()
    leave.set()
    future.result(LIMIT)
    assert not future.running() and future.done() and not future.cancelled()


def test_stdlib_wait_sees_first_completed_in_a_mix(busy: tuple[Service, threading.Event]) -> None:
    service, _ = busy
    theirs = Future[int]()
    queued = service.submit(int)
    threading.Timer(0.01, theirs.set_result, [1]).start()
    done, not_done = concurrent.futures.wait([queued, theirs], LIMIT, FIRST_COMPLETED)
    assert done == {theirs} and not_done == {queued}


def test_stdlib_wait_sees_first_exception_in_a_mix(
    new_service: NewService,
) -> None:
    service, gate, boom = new_service(3), threading.Event(), threading.Event()
    theirs = Future[bool]()

    def failing() -> None:
        boom.wait()
        raise Boom

    good, bad, held = service.submit(int), service.submit(failing), service.submit(gate.wait)
    threading.Timer(0.01, boom.set).start()
    futures: list[AnyFuture] = [good, bad, held, theirs]
    done, not_done = concurrent.futures.wait(futures, LIMIT, FIRST_EXCEPTION)
    assert bad in done and not_done - {good} == {held, theirs}
    assert isinstance(bad.exception(), Boom)
    gate.set()
    theirs.set_result(True)
    assert concurrent.futures.wait(futures, LIMIT).not_done == set()
    # One that failed before ends it at once.
    futures.append(Future())
    assert bad in concurrent.futures.wait(futures, LIMIT, FIRST_EXCEPTION).done


def test_stdlib_wait_counts_a_cancelled_future_as_done(
    busy: tuple[Service, threading.Event],
) -> None:
    service, _ = busy
    before, meanwhile = service.submit(int), service.submit(int)
    assert before.cancel()
    threading.Timer(0.01, meanwhile.cancel).start()
    done, _ = concurrent.futures.wait([before, meanwhile], LIMIT)
    assert done == {before, meanwhile}


@pytest.mark.parametrize("fast", [False, True])
def test_as_completed_reports_each_future_once_while_bodies_end(
    new_service: NewService, fast: bool, request: pytest.FixtureRequest
) -> None:
    if fast:
        request.getfixturevalue("often")
    service = new_service(3)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(60):
            futures: list[AnyFuture] = []
            for _ in range(12):
                futures.append(service.submit(int))
                futures.append(service.submit(fail, Boom()))
                futures.append(pool.submit(int))
                futures.append(service.submit(time.sleep, 0))
            canceller = threading.Thread(target=cancel_all, args=[futures[::4]])
            canceller.start()
            reported = Counter(concurrent.futures.as_completed(futures, LIMIT))
            canceller.join()
            assert reported == Counter(futures)
            for future in futures:
                assert future.cancelled() or future.exception(LIMIT) or True


def test_two_waiters_both_see_every_future_done(new_service: NewService, often: None) -> None:
    service = new_service(2)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(100):
            futures = [service.submit(int) for _ in range(10)]
            one = pool.submit(concurrent.futures.wait, futures, LIMIT)
            other = pool.submit(completed, futures)
            assert one.result().done == set(futures)
            assert Counter(other.result()) == Counter(futures)


def test_result_returns_in_every_thread_that_waits(
    busy: tuple[Service, threading.Event],
) -> None:
    service, gate = busy
    future = service.submit(int, "7")
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(future.result, LIMIT) for _ in range(4)]
        gate.set()
        assert [result.result(LIMIT) for result in results] == [7] * 4


# Timeouts


@pytest.mark.parametrize("timeout", [0, -1, 0.0, 0.03])
def test_a_wait_with_a_timeout_ends_when_it_says(
    busy: tuple[Service, threading.Event], timeout: float
) -> None:
    service, gate = busy
    future = service.submit(int, "9")
    for wait in (future.result, future.exception):
        start = time.monotonic()
        with pytest.raises(concurrent.futures.TimeoutError):
            wait(timeout)
        assert max(0, timeout) * 0.99 <= time.monotonic() - start < LIMIT
    gate.set()
    assert future.result(LIMIT) == 9
    assert future.result(timeout) == 9, "what is over needs no time"
    assert future.exception(timeout) is None


def test_a_timeout_is_no_failure_of_the_body(busy: tuple[Service, threading.Event]) -> None:
    service, gate = busy
    future: Future[object] = service.submit(fail, TimeoutError("its own"))
    gate.set()
    with pytest.raises(TimeoutError, match="its own"):
        future.result(LIMIT)
    assert isinstance(future.exception(0), TimeoutError)


# A bare future, in the hands of another executor


FutureClass = type[Future[Any]]

both = pytest.mark.parametrize("make", [Future, boundedexec.Future])


@both
def test_a_bare_future_is_set_by_its_maker(make: FutureClass) -> None:
    future = make()
    calls: list[AnyFuture] = []
    future.add_done_callback(calls.append)
    assert not future.done() and not future.running()
    assert future.set_running_or_notify_cancel()
    assert future.running() and not future.cancel()
    future.set_result("x")
    assert future.done() and future.result(0) == "x" and calls == [future]
    failed, boom = make(), Boom()
    failed.set_exception(boom)
    assert failed.exception(0) is boom
    with pytest.raises(Boom):
        failed.result(0)


@both
def test_a_bare_future_is_set_once(make: FutureClass) -> None:
    finished, failed, cancelled = make(), make(), make()
    finished.set_result(1)
    failed.set_exception(Boom())
    assert cancelled.cancel()
    assert not cancelled.set_running_or_notify_cancel()
    for future in (finished, failed, cancelled):
        with pytest.raises(InvalidStateError):
            future.set_result(2)
        with pytest.raises(InvalidStateError):
            future.set_exception(ValueError())
    assert finished.result(0) == 1
    assert isinstance(failed.exception(0), Boom)
    assert cancelled.cancelled()


@both
def test_a_bare_future_starts_once(make: FutureClass) -> None:
    future = make()
    assert future.set_running_or_notify_cancel()
    with pytest.raises(RuntimeError):
        future.set_running_or_notify_cancel()
    assert future.running()


@both
def test_a_bare_future_wakes_its_waiters(make: FutureClass) -> None:
    future, other = make(), make()
    with ThreadPoolExecutor(3) as pool:
        result = pool.submit(future.result, LIMIT)
        wait = pool.submit(concurrent.futures.wait, [future, other], LIMIT)
        steps = pool.submit(completed, [future, other])
        time.sleep(0.01)
        future.set_result(3)
        other.set_exception(Boom())
        assert result.result(LIMIT) == 3
        assert wait.result(LIMIT).done == {future, other}
        assert Counter(steps.result(LIMIT)) == Counter([future, other])
    assert isinstance(other.exception(), Boom)


@both
def test_a_bare_future_can_be_awaited(make: FutureClass) -> None:
    async def main() -> int:
        future = make()
        threading.Timer(0.01, future.set_result, [8]).start()
        result = await asyncio.wait_for(asyncio.wrap_future(future), LIMIT)
        assert isinstance(result, int)
        return result

    assert asyncio.run(main()) == 8


def test_of_many_threads_that_set_a_bare_future_one_succeeds(often: None) -> None:
    together = threading.Barrier(4)
    futures = [boundedexec.Future[int]() for _ in range(300)]
    notified: list[AnyFuture] = []
    for future in futures:
        future.add_done_callback(notified.append)

    def set_all(which: int) -> list[bool]:
        together.wait(LIMIT)
        succeeded: list[bool] = []
        for future in futures:
            if which == 0:
                succeeded.append(future.cancel())
                continue
            try:
                future.set_result(which) if which == 1 else future.set_exception(Boom())
                succeeded.append(True)
            except InvalidStateError:
                succeeded.append(False)
        return succeeded

    with ThreadPoolExecutor(4) as pool:
        parts = [part.result() for part in [pool.submit(set_all, n % 3) for n in range(4)]]
    for future, *successes in zip(futures, *parts, strict=True):
        cancelled, resulted, failed, cancelled_too = successes
        assert [cancelled or cancelled_too, resulted, failed].count(True) == 1
        assert future.cancelled() == (cancelled or cancelled_too)
        if not future.cancelled():
            assert (future.exception(0) is None) == resulted
    assert Counter(notified) == Counter(futures)
