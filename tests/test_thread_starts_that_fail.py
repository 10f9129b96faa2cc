"""A thread that cannot be started loses nothing."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any

import pytest
from helpers import LIMIT, WAITS, Blocking, Ledger, NewService, Starts, holding, sound

from boundedexec import Coalescer, Service

# Starts that fail


def test_where_nothing_runs_submit_raises_and_nothing_was_accepted(starts: Starts) -> None:
    ran: list[int] = []
    for bound in (2, 0):
        with Service(bound) as service:
            starts.fail()
            for _ in range(3):
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    service.submit(ran.append, 1)
                assert service.block_till_done(0)
            starts.fail(False)
            assert service.submit(int, "5").result(LIMIT) == 5
            assert service.block_till_done(LIMIT)
    assert ran == []


def test_where_something_runs_a_submission_waits_for_the_next_submit(starts: Starts) -> None:
    for bound in (3, 0):
        with Service(bound) as service, holding(service):
            starts.fail()
            waiting = [service.submit(int, str(i)) for i in range(5)]
            assert not any(future.done() for future in waiting)
            starts.fail(False)
            # One slot is held all the while: the others are used again.
            last = service.submit(int, "5")
            assert [f.result(LIMIT) for f in [*waiting, last]] == list(range(6))


def test_where_something_runs_a_submission_waits_for_its_slot(starts: Starts) -> None:
    for bound in (3, 0):
        with Service(bound) as service:
            with holding(service):
                starts.fail()
                waiting = [service.submit(int, str(i)) for i in range(5)]
            starts.fail(False)
            # Its thread goes on to them, without a start.
            assert [f.result(LIMIT) for f in waiting] == list(range(5))
            assert service.block_till_done(LIMIT)


def test_a_start_is_tried_again_when_a_slot_is_given_away(starts: Starts) -> None:
    with Service(1) as service:

        def body() -> int:
            starts.fail()
            with service.slot_yielded():
                waiting = service.submit(int, "5")
                starts.fail(False)
                service.submit(int)
                assert waiting.result(LIMIT) == 5
            waiting = service.submit(int, "6")
            # The slot frees here, and the start is tried.
            return service.yield_slot(waiting.result, LIMIT)

        assert service.submit(body).result(LIMIT) == 6


def test_what_no_thread_was_started_for_while_a_body_yields_runs_after_it(
    starts: Starts,
) -> None:
    with Service(1) as service:

        def body() -> Future[int]:
            starts.fail()
            with service.slot_yielded():
                return service.submit(int, "5")

        assert service.submit(body).result(LIMIT).result(LIMIT) == 5
        assert service.block_till_done(LIMIT)


@pytest.mark.parametrize("wait_for", WAITS.values(), ids=WAITS)
def test_a_lend_whose_thread_cannot_be_started_raises_from_the_wait(
    wait_for: Callable[[Future[int]], object], starts: Starts
) -> None:
    with Service(1) as service:

        def body() -> Future[int]:
            starts.fail()
            future = service.submit(int, "5")
            for _ in range(2):
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    wait_for(future)
            # It kept its slot, and nothing is lost.
            later = service.submit(int)
            assert not later.running() and not later.done()
            return future

        assert service.submit(body).result(LIMIT).result(LIMIT) == 5
        starts.fail(False)

        def again() -> int:
            future = service.submit(int, "6")
            wait_for(future)
            return future.result()

        assert service.submit(again).result(LIMIT) == 6
        assert service.block_till_done(LIMIT)


@pytest.mark.parametrize(("bound", "lending"), [(0, True), (2, True), (2, False)])
def test_a_wait_for_what_only_lacks_a_thread_raises_or_tries_again(
    bound: int, lending: bool, starts: Starts
) -> None:
    with Service(bound, lending=lending) as service:

        def body() -> int:
            starts.fail()
            with pytest.raises(RuntimeError, match="can't start new thread"):
                # A slot is free for it: nothing else will ever start it.
                service.submit(int).result()
            starts.fail(False)
            return service.submit(int, "5").result()

        assert service.submit(body).result(LIMIT) == 5
        assert service.block_till_done(LIMIT)


def test_a_wait_in_a_yield_for_what_only_lacks_a_thread_raises(starts: Starts) -> None:
    with Service(1) as service:

        def body() -> int:
            starts.fail()
            future = service.submit(int)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                service.yield_slot(future.result)
            starts.fail(False)
            return service.yield_slot(service.submit(int, "5").result)

        assert service.submit(body).result(LIMIT) == 5
        assert service.block_till_done(LIMIT)


def test_a_submission_that_was_refused_may_be_submitted_again_at_once(starts: Starts) -> None:
    fails = iter([True, False] * 100)
    starts.failing = lambda: next(fails)
    with Service(4, idle_timeout=0) as service:
        for i in range(20):
            try:
                future = service.submit(int, str(i))
            except RuntimeError:
                future = service.submit(int, str(i))
            assert future.result(LIMIT) == i
            assert service.block_till_done(LIMIT)


def test_block_till_done_returns_when_the_last_submission_fails_because_no_thread_starts(
    starts: Starts,
) -> None:
    """1. A submit has the slot, and is to start a thread; 2. another submission is queued
    and relies on that; 3. a thread waits until nothing is outstanding; 4. the start fails."""
    entered, returned = threading.Event(), threading.Event()
    waiting = Blocking()
    futures: list[Future[int]] = []
    done_in_callback: list[bool] = []

    def wait_for_all() -> None:
        waiting.watch()
        service.block_till_done()
        returned.set()

    def failing() -> bool:
        if not entered.is_set():
            entered.set()
            futures.append(service.submit(int))
            futures[0].add_done_callback(
                lambda _: done_in_callback.append(service.block_till_done(0))
            )
            Thread(target=wait_for_all, daemon=True).start()
            waiting.wait()
        return True

    with Service(1) as service:
        starts.failing = failing
        with pytest.raises(RuntimeError, match="can't start new thread"):
            service.submit(int)
        # It was accepted, and there is no caller to raise to.
        assert isinstance(futures[0].exception(0), RuntimeError)
        assert returned.wait(LIMIT)
        assert done_in_callback == [False]


# Lending


def test_of_two_lends_the_one_without_a_thread_raises_from_its_wait(
    new_service: NewService, starts: Starts
) -> None:
    # Whether its lender looks for the thread or the worker that is woken for the first.
    service, meet, refused = new_service(2), threading.Barrier(2), threading.Event()
    threads = itertools.count(1)
    starts.failing = lambda: next(threads) > 3

    def body() -> str:
        meet.wait(LIMIT)
        inner = service.submit(refused.wait, LIMIT)
        meet.wait(LIMIT)
        try:
            return str(inner.result())
        except RuntimeError as error:
            refused.set()
            return str(error)

    for _ in range(50):
        refused.clear()
        both = [service.submit(body) for _ in range(2)]
        results = sorted(future.result(LIMIT) for future in both)
        assert results == ["True", "can't start new thread"]
        assert service.block_till_done(LIMIT)


# Threads that do not start


def use_everything(service: Service, ledger: Ledger) -> None:
    """What may raise because a thread does not start does so, and everything else goes on."""

    def nested() -> None:
        try:
            ledger.submit(next(numbers)).result()
        except RuntimeError:
            pass
        service.yield_slot(int)
        with service.slot_yielded():
            pass

    numbers = itertools.count(1)
    coalescer: Coalescer[int] = Coalescer(service)
    more: list[Future[Any]] = []
    for number in range(4):
        for submit in (
            lambda: ledger.submit(next(numbers)),
            lambda: service.submit(nested),
            lambda number=number: coalescer.submit(number % 2, int),
        ):
            try:
                more.append(submit())
            except RuntimeError:
                pass
    for future in more:
        assert isinstance(future.exception(LIMIT), (RuntimeError, type(None)))
    assert service.block_till_done(LIMIT)
    assert len(coalescer) == 0


@pytest.mark.parametrize("bound", [1, 2, 0])
@pytest.mark.parametrize("idle_timeout", [0, None])
@pytest.mark.parametrize("length", [1, 3, 1000])
def test_a_thread_that_cannot_be_started_loses_nothing(
    starts: Starts, bound: int, idle_timeout: float | None, length: int
) -> None:
    at = 0
    for at in range(1000):
        count = itertools.count()
        failed: list[int] = []

        def failing(at: int = at, count: Any = count, failed: list[int] = failed) -> bool:
            number = next(count)
            if at <= number < at + length:
                failed.append(number)
            return bool(failed) and failed[-1] == number

        with sound(bound, idle_timeout) as (service, ledger):
            starts.failing = failing
            use_everything(service, ledger)
            starts.fail(False)
        if not failed:
            break
    # Idle threads may be reused, or not; at the least the first start has failed.
    assert at >= 1
