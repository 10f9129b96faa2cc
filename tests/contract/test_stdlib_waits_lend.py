"""The stdlib's own `wait` and `as_completed` lend in a body, as boundedexec's do."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Future
from typing import Any

import pytest
from contract_helpers import LIMIT, MOMENT, Gate, check_slots, full, in_thread, new_service

import boundedexec
from boundedexec import DeadlockError

MODULES = [concurrent.futures, boundedexec]
modules = pytest.mark.parametrize("module", MODULES, ids=["stdlib", "boundedexec"])


def fail() -> None:
    raise ValueError("a body that fails")


@modules
@pytest.mark.parametrize("how", [ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION])
@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_wait_lends_in_a_full_service(module: Any, how: str, timeout: float | None) -> None:
    service = new_service(1)

    def body() -> tuple[int, int]:
        futures = [service.submit(pow, 2, n) for n in range(3)]
        done, not_done = module.wait(futures, timeout=timeout, return_when=how)
        return len(done), len(not_done)

    seen = service.submit(body).result(LIMIT)
    assert seen == ((1, 2) if how == FIRST_COMPLETED else (3, 0))
    check_slots(service, 1)


@modules
def test_wait_for_the_first_exception_lends_until_then(module: Any) -> None:
    service = new_service(1)
    ran: list[int] = []

    def body() -> tuple[int, int, list[int]]:
        futures = [
            service.submit(ran.append, 1),
            service.submit(fail),
            service.submit(ran.append, 2),
        ]
        done, not_done = module.wait(futures, return_when=FIRST_EXCEPTION)
        seen = list(ran)
        return len(done), len(not_done), seen

    assert service.submit(body).result(LIMIT) == (2, 1, [1])
    check_slots(service, 1)


@modules
def test_the_awaited_run_in_the_order_of_submission(module: Any) -> None:
    service = new_service(1)
    order: list[int] = []

    def body() -> None:
        futures = [service.submit(order.append, n) for n in range(6)]
        module.wait([futures[n] for n in (5, 1, 3)])
        order.append(-1)

    service.submit(body).result(LIMIT)
    assert service.block_till_done(LIMIT)
    assert order == [1, 3, 5, -1, 0, 2, 4]


@modules
@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_as_completed_lends_in_a_full_service(module: Any, timeout: float | None) -> None:
    service = new_service(1)

    def body() -> list[int]:
        futures = [service.submit(pow, 2, n) for n in range(5)]
        return sorted(future.result() for future in module.as_completed(futures, timeout))

    assert service.submit(body).result(LIMIT) == [1, 2, 4, 8, 16]
    check_slots(service, 1)


@modules
def test_each_step_of_as_completed_lends_to_one(module: Any) -> None:
    service = new_service(1)
    ran: list[int] = []

    def body() -> list[int]:
        futures = [service.submit(ran.append, n) for n in range(3)]
        seen: list[int] = []
        for _ in module.as_completed(futures):
            seen.append(len(ran))
        return seen

    assert service.submit(body).result(LIMIT) == [1, 2, 3]
    check_slots(service, 1)


@modules
@pytest.mark.parametrize("timeout", [0, 0.0, -1])
def test_a_look_lends_nothing(module: Any, timeout: float) -> None:
    service, ran = new_service(1), threading.Event()

    def body() -> tuple[int, bool, bool]:
        future = service.submit(ran.set)
        done, _ = module.wait([future], timeout=timeout)
        try:
            next(module.as_completed([future], timeout=timeout))
        except concurrent.futures.TimeoutError:
            return len(done), ran.wait(MOMENT / 2), future.cancel()
        raise AssertionError("as_completed gave a future that is not done")

    assert service.submit(body).result(LIMIT) == (0, False, True)
    check_slots(service, 1)


@modules
def test_nested_waits_lend_along_a_chain(module: Any) -> None:
    service = new_service(1)

    def body(depth: int) -> int:
        if depth == 0:
            return 0
        future = service.submit(body, depth - 1)
        if depth % 2:
            module.wait([future])
        else:
            list(module.as_completed([future]))
        return int(future.result()) + 1

    assert service.submit(body, 30).result(LIMIT) == 30
    check_slots(service, 1)


@modules
@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_a_chain_across_services_lends(module: Any, timeout: float | None) -> None:
    services = [new_service(1) for _ in range(3)]

    def body(depth: int) -> int:
        if depth == 0:
            return 0
        future = services[depth % 3].submit(body, depth - 1)
        module.wait([future], timeout=timeout)
        return int(future.result(0)) + 1

    assert services[0].submit(body, 10).result(LIMIT) == 10
    for service in services:
        check_slots(service, 1)


@modules
def test_a_wait_for_several_services_futures_and_a_bare_one_lends(module: Any) -> None:
    service, other = new_service(1), new_service(1)
    bare: concurrent.futures.Future[int] = concurrent.futures.Future()

    def body() -> int:
        own = service.submit(lambda: bare.set_result(1))
        done, not_done = module.wait([bare, other.submit(pow, 2, 3), own])
        return len(done) - len(not_done)

    assert service.submit(body).result(LIMIT) == 3
    check_slots(service, 1)


@modules
def test_two_full_services_that_call_each_other_finish(module: Any) -> None:
    services = new_service(1), new_service(1)
    both = threading.Barrier(2)

    def body(number: int) -> int:
        both.wait(LIMIT)
        future = services[1 - number].submit(pow, 2, number)
        module.wait([future])
        return int(future.result())

    futures = [services[n].submit(body, n) for n in range(2)]
    assert [future.result(LIMIT) for future in futures] == [1, 2]
    for service in services:
        check_slots(service, 1)


@modules
def test_a_done_callback_lends(module: Any) -> None:
    service = new_service(1)
    seen: list[int] = []
    over = threading.Event()

    def callback(_: Any) -> None:
        seen.append(len(module.wait([service.submit(pow, 2, 3)]).done))
        over.set()

    with full(service) as release:
        service.submit(pow, 1, 1).add_done_callback(callback)
        release()
    assert over.wait(LIMIT)
    assert seen == [1]
    check_slots(service, 1)


@modules
def test_what_is_over_or_cancelled_meanwhile_ends_the_wait(module: Any) -> None:
    service = new_service(1)

    def body() -> int:
        futures = [service.submit(pow, 2, n) for n in range(3)]
        futures[0].add_done_callback(lambda _: futures[1].cancel())
        return len(module.wait(futures).done)

    assert service.submit(body).result(LIMIT) == 3
    check_slots(service, 1)


@modules
def test_a_thread_that_is_no_body_lends_nothing(module: Any) -> None:
    service, ran = new_service(1), threading.Event()

    def body() -> tuple[int, bool]:
        future = service.submit(ran.set)
        done = in_thread(lambda: module.wait([future], timeout=MOMENT).done)
        return len(done), ran.is_set()

    assert service.submit(body).result(LIMIT) == (0, False)
    assert ran.wait(LIMIT)
    check_slots(service, 1)


@modules
def test_without_lending_the_slot_is_kept(module: Any) -> None:
    service, ran = new_service(1, lending=False), threading.Event()

    def body() -> tuple[int, bool]:
        future = service.submit(ran.set)
        return len(module.wait([future], timeout=MOMENT / 2).done), ran.is_set()

    assert service.submit(body).result(LIMIT) == (0, False)
    check_slots(service, 1)


@modules
def test_waiting_for_what_runs_keeps_the_slot(module: Any) -> None:
    service, gate, third = new_service(2), Gate(), threading.Event()
    running = service.submit(gate)
    gate.wait_entered()
    waiting = Gate()

    def body() -> int:
        waiting.entered.set()
        return len(module.wait([running]).done)

    future = service.submit(body)
    waiting.wait_entered()
    service.submit(third.set)
    assert not third.wait(MOMENT)
    gate.open()
    assert future.result(LIMIT) == 1
    check_slots(service, 2)


def step_to_the_end(module: Any, futures: list[Any]) -> int:
    return len(list(module.as_completed(futures)))


@modules
def test_as_completed_begun_in_a_body_may_be_stepped_elsewhere(module: Any) -> None:
    service, gate = new_service(1), Gate()

    def body() -> Any:
        futures = [service.submit(pow, 2, 3), service.submit(gate)]
        steps = module.as_completed(futures)
        next(steps)
        return steps

    steps = service.submit(body).result(LIMIT)
    gate.wait_entered()
    threading.Timer(0.05, gate.open).start()
    assert in_thread(lambda: len(list(steps))) == 1
    check_slots(service, 1)


# Circles.

CIRCLE_WAITS: list[Callable[[Any, Any], Any]] = [
    lambda module, future: module.wait([future]),
    lambda module, future: module.wait([future], return_when=FIRST_COMPLETED),
    lambda module, future: module.wait([future], return_when=FIRST_EXCEPTION),
    lambda module, future: next(module.as_completed([future])),
]
circle_waits = pytest.mark.parametrize(
    "wait_for", CIRCLE_WAITS, ids=["all", "first", "exception", "as_completed"]
)


@modules
@circle_waits
def test_a_body_that_waits_for_itself_gets_a_deadlock_error(
    module: Any, wait_for: Callable[[Any, Any], Any]
) -> None:
    service = new_service(1)
    futures: list[Future[Any]] = []

    def body() -> Any:
        return wait_for(module, futures[0])

    with full(service):
        futures.append(service.submit(body))
    assert isinstance(futures[0].exception(LIMIT), DeadlockError)
    check_slots(service, 1)


@modules
@circle_waits
def test_of_two_bodies_that_wait_for_each_other_one_gets_a_deadlock_error(
    module: Any, wait_for: Callable[[Any, Any], Any]
) -> None:
    service = new_service(2)
    futures: list[Future[Any]] = []
    both = threading.Barrier(2)

    def body(number: int) -> str:
        both.wait(LIMIT)
        try:
            wait_for(module, futures[1 - number])
        except DeadlockError:
            return "deadlock"
        return "waited"

    with full(service, 2):
        futures += [service.submit(body, n) for n in range(2)]
    assert sorted(future.result(LIMIT) for future in futures) == ["deadlock", "waited"]
    check_slots(service, 2)


@circle_waits
def test_a_circle_through_queued_work_and_through_both_modules(
    wait_for: Callable[[Any, Any], Any],
) -> None:
    service = new_service(1)
    futures: list[Future[Any]] = []

    def inner() -> Any:
        return wait_for(concurrent.futures, futures[0])

    def body() -> Any:
        queued = service.submit(inner)
        boundedexec.wait([queued])
        return type(queued.exception())

    with full(service):
        futures.append(service.submit(body))
    assert futures[0].result(LIMIT) is DeadlockError
    check_slots(service, 1)


@modules
def test_a_wait_for_any_is_no_circle_where_one_can_end(module: Any) -> None:
    service, gate = new_service(2), Gate()
    futures: list[Future[Any]] = []

    def body() -> int:
        done, _ = module.wait([futures[0], outside], return_when=FIRST_COMPLETED)
        return len(done)

    outside = new_service(1).submit(gate, 1)
    with full(service, 2):
        futures.append(service.submit(body))
    threading.Timer(0.05, gate.open).start()
    assert futures[0].result(LIMIT) == 1
    check_slots(service, 2)


@modules
def test_a_wait_for_all_is_a_circle_where_one_cannot_end(module: Any) -> None:
    service, gate = new_service(2), Gate()
    futures: list[Future[Any]] = []

    def body() -> Any:
        return module.wait([futures[0], outside])

    outside = new_service(1).submit(gate)
    with full(service, 2):
        futures.append(service.submit(body))
    try:
        assert isinstance(futures[0].exception(LIMIT), DeadlockError)
    finally:
        gate.open()
    check_slots(service, 2)


@modules
def test_futures_in_a_circle_that_was_refused_can_still_be_waited_for(module: Any) -> None:
    service = new_service(1)
    futures: list[Future[Any]] = []

    def body() -> str:
        with pytest.raises(DeadlockError):
            module.wait([futures[0]])
        with pytest.raises(DeadlockError):
            next(module.as_completed([futures[0]]))
        return "went on"

    with full(service):
        futures.append(service.submit(body))
        assert not futures[0].done()
    assert in_thread(lambda: len(concurrent.futures.wait(futures).done)) == 1
    assert futures[0].result(0) == "went on"
    check_slots(service, 1)
