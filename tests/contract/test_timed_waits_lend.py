"""A wait with a timeout in a body lends its slot, and ends when it says."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError
from typing import Any

import pytest
from contract_helpers import LIMIT, MOMENT, Executing, Gate, check_slots, new_service
from contract_waits import (
    Wait,
    by_result,
    by_wait,
    by_wait_outside,
    every_wait,
    give_up_while_it_runs,
)

import boundedexec


@every_wait
def test_a_wait_with_a_timeout_lends_its_slot(wait_for: Wait) -> None:
    service = new_service(1)
    assert service.submit(lambda: wait_for(service.submit(pow, 2, 3), LIMIT)).result(LIMIT)
    check_slots(service, 1)


def test_a_map_with_a_timeout_lends_its_slot() -> None:
    service = new_service(1)
    assert service.submit(lambda: list(service.map(abs, [-1, -2], timeout=LIMIT))).result(
        LIMIT
    ) == [1, 2]
    check_slots(service, 1)


def test_a_map_whose_timeout_runs_out_raises_it_while_its_call_runs() -> None:
    service, gate = new_service(1), Gate()
    after = Gate()

    def body() -> str:
        while True:
            iterator = service.map(gate, [1], timeout=0.05)
            try:
                next(iterator)
            except TimeoutError:
                if gate.entered.is_set():
                    return str(after())

    future = service.submit(body)
    after.wait_entered()
    after.open()
    assert future.result(LIMIT) == "None"
    gate.open()
    check_slots(service, 1)


@every_wait
@pytest.mark.parametrize("timeout", [0, 0.0, -1])
def test_a_timeout_of_zero_is_a_look_that_lends_nothing(wait_for: Wait, timeout: float) -> None:
    service = new_service(1)
    ran = threading.Event()

    def body() -> tuple[bool, bool, bool]:
        future = service.submit(ran.set)
        looked = wait_for(future, timeout)
        return looked, ran.wait(MOMENT / 2), future.cancel()

    assert service.submit(body).result(LIMIT) == (False, False, True)
    check_slots(service, 1)
    assert not ran.is_set()


@every_wait
def test_the_slot_is_back_before_anything_queued_starts(wait_for: Wait) -> None:
    service = new_service(1)
    executing = Executing()
    order: list[Any] = []

    def note(name: str) -> None:
        with executing:
            order.append(name)

    def body() -> None:
        with executing:
            other = service.submit(note, "queued before")
            awaited = service.submit(note, "awaited")
        assert wait_for(awaited, LIMIT)
        with executing:
            order.append("goes on")
            assert not by_wait_outside(other)

    service.submit(body).result(LIMIT)
    assert service.block_till_done(LIMIT)
    assert order == ["awaited", "goes on", "queued before"]
    assert executing.peak == 1


@every_wait
def test_a_wait_whose_time_runs_out_goes_on_at_once_and_its_slot_comes_back(
    wait_for: Wait,
) -> None:
    service = new_service(1)
    borrower, after, third_ran = Gate(), Gate(), threading.Event()

    def body() -> str:
        give_up_while_it_runs(wait_for, service.submit(borrower), borrower)
        service.submit(third_ran.set)
        after()
        return "lender"

    lender = service.submit(body)
    after.wait_entered()  # It executes, and so does the borrower.
    assert not service.block_till_done(0)
    borrower.open()
    # The slot comes back to the lender, which still executes: nothing else may start.
    assert not third_ran.wait(MOMENT)
    after.open()
    assert lender.result(LIMIT) == "lender"
    assert third_ran.wait(LIMIT)
    check_slots(service, 1)


@every_wait
def test_a_body_may_end_while_its_slot_is_still_lent(wait_for: Wait) -> None:
    service = new_service(1)
    borrower, next_ran = Gate(), threading.Event()

    def body() -> str:
        give_up_while_it_runs(wait_for, service.submit(borrower), borrower)
        return "lender"

    lender = service.submit(body)
    borrower.wait_entered()
    assert lender.result(LIMIT) == "lender"
    queued = service.submit(next_ran.set)
    assert not next_ran.wait(MOMENT)  # The borrower has the only slot.
    assert not service.block_till_done(0.01)
    borrower.open()
    queued.result(LIMIT)
    check_slots(service, 1)


def test_a_body_that_raises_its_timeout_frees_nothing_twice() -> None:
    service = new_service(2)
    gates = [Gate(), Gate()]

    def body(gate: Gate) -> None:
        future = service.submit(gate)
        while True:
            try:
                future.result(0.02)
            except TimeoutError:
                if gate.entered.is_set():
                    raise

    lenders = [service.submit(body, gate) for gate in gates]
    for lender in lenders:
        assert isinstance(lender.exception(LIMIT), TimeoutError)
    blocked = service.submit(pow, 2, 3)
    with pytest.raises(TimeoutError):
        blocked.result(MOMENT)
    gates[0].open()
    assert blocked.result(LIMIT) == 8
    gates[1].open()
    check_slots(service, 2)


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_one_body_more_executes_at_most_for_a_slot_that_is_still_lent(
    timeout: float | None,
) -> None:
    service, executing = new_service(1), Executing()
    borrower = Gate()
    seen: list[str] = []

    def counted(act: Callable[[], Any]) -> Any:
        with executing:
            return act()

    def open_it() -> None:
        seen.append("opened")
        borrower.open()

    def body() -> Any:
        with executing:
            first = service.submit(counted, borrower)
            give_up_while_it_runs(by_result, first, borrower)
            second = service.submit(counted, lambda: seen.append("second"))
            threading.Timer(MOMENT, open_it).start()
        # It has no slot to lend until the borrower is over, and waits for both.
        second.result(timeout)
        return first.result(timeout)

    service.submit(body).result(LIMIT)
    assert seen == ["opened", "second"]
    assert executing.peak == 2
    check_slots(service, 1)


def test_several_bodies_whose_time_ran_out_execute_one_more_each() -> None:
    service, executing = new_service(2), Executing()
    meeting = threading.Barrier(4)

    def borrower(entered: threading.Event) -> None:
        with executing:
            entered.set()
            meeting.wait(LIMIT)

    def body() -> None:
        with executing:
            entered = threading.Event()
            future = service.submit(borrower, entered)
            while not entered.is_set():
                by_wait(future, 0.02)
            meeting.wait(LIMIT)

    lenders = [service.submit(body) for _ in range(2)]
    for lender in lenders:
        lender.result(LIMIT)
    assert executing.peak == 4
    check_slots(service, 2)


# The borrower has not started.


class BlockedThreads:
    """An initializer that holds up every thread but the first."""

    def __init__(self) -> None:
        self.first = threading.Semaphore(1)
        self.opened = threading.Event()

    def __call__(self) -> None:
        if not self.first.acquire(blocking=False):
            assert self.opened.wait(LIMIT)


@every_wait
def test_a_lend_that_has_not_started_is_withdrawn_and_the_submission_can_be_cancelled(
    wait_for: Wait,
) -> None:
    threads = BlockedThreads()
    service = new_service(1, initializer=threads)

    def body() -> tuple[bool, bool, bool]:
        future = service.submit(pow, 2, 3)
        return wait_for(future, 0.05), future.running(), future.cancel()

    try:
        assert service.submit(body).result(LIMIT) == (False, False, True)
    finally:
        threads.opened.set()
    check_slots(service, 1)


@every_wait
def test_a_lend_that_was_withdrawn_starts_nothing_while_the_body_runs(wait_for: Wait) -> None:
    threads, executing = BlockedThreads(), Executing()
    service = new_service(1, initializer=threads)
    order: list[str] = []

    def note(name: str) -> None:
        with executing:
            order.append(name)

    def body() -> None:
        futures = [service.submit(note, name) for name in "ab"]
        assert not wait_for(futures[1], 0.05)
        threads.opened.set()
        with executing:
            assert not by_wait_outside(futures[1])
        order.append("body")

    service.submit(body).result(LIMIT)
    assert service.block_till_done(LIMIT)
    assert order == ["body", "a", "b"]
    assert executing.peak == 1
    check_slots(service, 1)


@pytest.mark.parametrize("wait_for", [boundedexec.wait, concurrent.futures.wait])
def test_of_several_awaited_those_not_started_stay_queued_in_their_order(
    wait_for: Callable[..., Any],
) -> None:
    service, gate = new_service(1), Gate()
    order: list[Any] = []

    def body() -> bool:
        first = service.submit(gate)
        rest = [service.submit(order.append, name) for name in "abc"]
        while not gate.entered.is_set():
            assert len(wait_for([*rest, first], timeout=0.02).not_done) == 4
        order.append("body")
        return rest[1].cancel()

    assert service.submit(body).result(LIMIT)
    assert order == ["body"]
    gate.open()
    assert service.block_till_done(LIMIT)
    assert order == ["body", "a", "c"]
    check_slots(service, 1)
