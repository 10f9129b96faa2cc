"""A submission is cancelled or runs, never both, and everybody hears the same."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor

import pytest
from helpers import LIMIT, AnyFuture, NewService, cancel_all, holding

from boundedexec import Service

# Done-callbacks


def test_a_cancelled_submission_never_runs() -> None:
    ran: list[int] = []
    with Service(1) as service:
        with holding(service):
            futures = [service.submit(ran.append, i) for i in range(10)]
            assert all(future.cancel() for future in futures[::2])
            assert all(future.cancelled() and future.done() for future in futures[::2])
        for future in futures[::2]:
            with pytest.raises(CancelledError):
                future.result(LIMIT)
    assert ran == [1, 3, 5, 7, 9]


def test_what_runs_or_is_over_cannot_be_cancelled() -> None:
    with Service(1) as service:
        entered, release = threading.Event(), threading.Event()

        def body() -> None:
            entered.set()
            release.wait(LIMIT)

        future = service.submit(body)
        assert entered.wait(LIMIT)
        assert future.running() and not future.cancel()
        release.set()
        assert future.result(LIMIT) is None
        assert not future.cancel() and not future.cancelled()
        with pytest.raises(InvalidStateError):
            future.set_result(None)


# cancel


def test_a_queued_submission_can_be_cancelled_and_never_runs(
    busy: tuple[Service, threading.Event],
) -> None:
    service, gate = busy
    ran: list[str] = []
    before = service.submit(ran.append, "before")
    future = service.submit(ran.append, "cancelled")
    after = service.submit(ran.append, "after")
    assert future.cancel() and future.cancel()
    assert future.cancelled() and future.done() and not future.running()
    with pytest.raises(CancelledError):
        future.result(LIMIT)
    with pytest.raises(CancelledError):
        future.exception(LIMIT)
    gate.set()
    assert service.block_till_done(LIMIT)
    assert before.done() and after.done()
    assert ran == ["before", "after"]


def test_cancel_wakes_the_waiters(busy: tuple[Service, threading.Event]) -> None:
    service, _ = busy
    future = service.submit(int)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(future.exception, LIMIT)
        assert future.cancel()
        assert isinstance(waiting.exception(LIMIT), CancelledError)


@pytest.mark.parametrize("bound", [1, 3, 0])
def test_a_submission_is_cancelled_or_runs_and_never_both(
    new_service: NewService, bound: int, often: None
) -> None:
    service = new_service(bound)
    ran: list[int] = []
    cancelled: list[int] = []
    notified: list[AnyFuture] = []
    futures: list[AnyFuture] = []
    for n in range(2000):
        future = service.submit(ran.append, n)
        futures.append(future)
        if n % 2:
            future.add_done_callback(notified.append)
        if future.cancel():
            cancelled.append(n)
    assert service.block_till_done(LIMIT)
    assert sorted(ran + cancelled) == list(range(2000))
    assert [n for n, future in enumerate(futures) if future.cancelled()] == cancelled
    assert Counter(notified) == Counter(futures[1::2])


def test_threads_that_cancel_the_same_future_get_the_same_answer(
    busy: tuple[Service, threading.Event], often: None
) -> None:
    service, gate = busy
    together = threading.Barrier(4)

    def cancel_together(futures: list[Future[None]]) -> list[bool]:
        together.wait(LIMIT)
        return cancel_all(futures)

    notified: list[AnyFuture] = []
    ran: list[int] = []
    futures = [service.submit(ran.append, n) for n in range(500)]
    for future in futures:
        future.add_done_callback(notified.append)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(cancel_together, futures) for _ in range(3)]
        together.wait(LIMIT)
        gate.set()
        heard = [answer.result(LIMIT) for answer in answers]
    assert service.block_till_done(LIMIT)
    assert heard[0] == heard[1] == heard[2] == [future.cancelled() for future in futures]
    assert ran == [n for n, cancelled in enumerate(heard[0]) if not cancelled]
    assert Counter(notified) == Counter(futures)
