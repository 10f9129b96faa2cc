"""Programs whose bodies wait with a timeout in a full pool end, and lose no slot."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError
from typing import Any

import pytest
from contract_helpers import LIMIT, MOMENT, Gate, check_slots, in_thread, new_service
from contract_waits import (
    WAITS,
    by_result,
    by_wait,
    give_up_while_it_runs,
)

import boundedexec
from boundedexec import DeadlockError, Service


@pytest.mark.parametrize("wait_for", [boundedexec.wait, concurrent.futures.wait])
@pytest.mark.parametrize("timeout", [0.1, 0.001])
def test_a_polling_loop_in_a_full_pool_ends(wait_for: Callable[..., Any], timeout: float) -> None:
    service = new_service(2)
    both = threading.Barrier(2)

    def body() -> int:
        both.wait(LIMIT)
        pending: Any = {service.submit(pow, 2, n) for n in range(5)}
        total = 0
        while pending:
            done, pending = wait_for(pending, timeout=timeout)
            total += sum(future.result() for future in done)
        return total

    futures = [service.submit(body) for _ in range(2)]
    assert [future.result(LIMIT) for future in futures] == [31, 31]
    check_slots(service, 2)


def test_a_polling_loop_by_result_in_a_full_pool_ends() -> None:
    service = new_service(1)

    def body(depth: int) -> int:
        if depth == 0:
            return 0
        future = service.submit(body, depth - 1)
        while True:
            try:
                return future.result(timeout=0.005) + 1
            except TimeoutError:
                pass

    assert service.submit(body, 10).result(LIMIT) == 10
    check_slots(service, 1)


def test_a_timeout_put_everywhere_for_safety_changes_nothing() -> None:
    service = new_service(2)

    def fibonacci(n: int) -> int:
        if n < 2:
            return n
        parts = [service.submit(fibonacci, n - 1), service.submit(fibonacci, n - 2)]
        return sum(part.result(timeout=LIMIT) for part in parts)

    assert service.submit(fibonacci, 8).result(LIMIT) == 21
    check_slots(service, 2)


def test_a_chain_lends_through_a_wait_with_a_timeout_on_another_service() -> None:
    one, two = new_service(1), new_service(1)

    def body() -> Any:
        return two.submit(lambda: one.submit(pow, 2, 3).result()).result(timeout=LIMIT)

    assert one.submit(body).result(LIMIT / 2) == 8
    check_slots(one, 1)
    check_slots(two, 1)


def test_a_circle_with_a_timeout_in_it_ends_by_itself() -> None:
    service = new_service(2)
    both = threading.Barrier(2)
    futures: list[Any] = []

    def impatient() -> str:
        both.wait(LIMIT)
        try:
            futures[1].result(timeout=0.1)
        except DeadlockError:
            return "DeadlockError"
        except TimeoutError:
            return "TimeoutError"
        return "no error"

    def patient() -> Any:
        both.wait(LIMIT)
        return futures[0].result()

    started = Gate()
    hold = [service.submit(started) for _ in range(2)]
    futures += [service.submit(impatient), service.submit(patient)]
    started.open()
    assert [future.result(LIMIT) for future in hold + futures][2:] == ["TimeoutError"] * 2
    check_slots(service, 2)


def test_a_body_whose_slot_is_lent_may_be_waited_for_by_its_borrower() -> None:
    service, go_on = new_service(1), threading.Event()
    lenders: list[Any] = []
    entered = threading.Event()

    def borrower() -> Any:
        entered.set()
        go_on.wait(LIMIT)
        return lenders[0].result()

    def body() -> str:
        future = service.submit(borrower)
        while not entered.is_set():
            by_wait(future, 0.02)
        go_on.set()
        return "lender"

    gate = Gate()
    service.submit(gate)
    lenders.append(service.submit(body))
    gate.open()
    assert lenders[0].result(LIMIT) == "lender"
    check_slots(service, 1)


def test_a_body_whose_slot_is_lent_may_yield_and_lend_again() -> None:
    service, borrower = new_service(1), Gate()

    def body() -> tuple[Any, ...]:
        first = service.submit(borrower, "first")
        give_up_while_it_runs(by_result, first, borrower)
        yielded = service.yield_slot(borrower.open)
        return yielded, first.result(), service.submit(pow, 2, 3).result(LIMIT)

    assert service.submit(body).result(LIMIT) == (None, "first", 8)
    check_slots(service, 1)


def test_without_lending_a_wait_with_a_timeout_keeps_the_slot() -> None:
    service = new_service(1, lending=False)
    ran = threading.Event()

    def body() -> tuple[bool, bool]:
        return by_result(service.submit(ran.set), MOMENT / 2), ran.is_set()

    assert service.submit(body).result(LIMIT) == (False, False)
    assert ran.wait(LIMIT)
    check_slots(service, 1)


def test_a_shutdown_beside_a_slot_that_is_still_lent_waits_for_the_borrower() -> None:
    service, borrower = new_service(1), Gate()

    def body() -> None:
        give_up_while_it_runs(by_result, service.submit(borrower, "over"), borrower)

    service.submit(body).result(LIMIT)
    last = service.submit(pow, 2, 3)
    service.shutdown(wait=False)
    assert not service.block_till_done(0.01)
    borrower.open()
    in_thread(service.shutdown)
    assert last.result(0) == 8


@pytest.mark.parametrize("workers", [1, 3])
def test_timeouts_that_run_out_beside_the_end_of_a_borrower_lose_no_slot(workers: int) -> None:
    service: Service = new_service(workers)

    def inner(turn: int) -> None:
        if turn % 3:
            time.sleep(turn % 5 / 10000)

    def body(turn: int) -> None:
        futures = [service.submit(inner, turn + n) for n in range(2)]
        WAITS[turn % len(WAITS)](futures[0], turn % 7 / 10000)
        WAITS[turn // 7 % len(WAITS)](futures[1], turn % 4 / 10000)

    outer = [service.submit(body, turn) for turn in range(400)]
    for future in outer:
        future.result(LIMIT)
    check_slots(service, workers)
