"""A wait that can never end raises `DeadlockError`; one that can end does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future
from typing import Any

import pytest
from helpers import LIMIT, AnyFuture, Later, NewService, Wait, every_wait, submit_knowing

import boundedexec
from boundedexec import Coalescer, DeadlockError, Service


def test_a_deadlock_error_is_a_runtime_error() -> None:
    assert issubclass(DeadlockError, RuntimeError)


@every_wait
@pytest.mark.parametrize("bound", [1, 2, 0])
def test_a_body_that_waits_for_itself_raises(
    new_service: NewService, wait: Wait, bound: int
) -> None:
    def narcissus(me: AnyFuture) -> str:
        with pytest.raises(DeadlockError, match="narcissus"):
            wait(me)
        with pytest.raises(DeadlockError, match="narcissus"):
            wait(me)
        return "goes on"

    assert submit_knowing(new_service(bound), narcissus).result(LIMIT) == "goes on"


@pytest.mark.parametrize("lending", [True, False])
@pytest.mark.parametrize("bounds", [(2,), (0,), (1, 1), (1, 0)], ids=str)
def test_of_two_bodies_that_wait_for_each_other_one_raises(
    new_service: NewService, bounds: tuple[int, ...], lending: bool, switching: None
) -> None:
    services = [new_service(bound, lending=lending) for bound in bounds]
    for _ in range(20):
        meet = threading.Barrier(2)

        def wait_for(other: Later, meet: threading.Barrier = meet) -> Any:
            future = other.get()
            meet.wait(LIMIT)
            try:
                return future.result()
            except DeadlockError as error:
                return [error]

        alice, bob = Later(), Later()
        alice.set(services[0].submit(wait_for, bob))
        bob.set(services[-1].submit(wait_for, alice))
        results = [alice.get().result(LIMIT), bob.get().result(LIMIT)]
        assert results[0] is results[1] and isinstance(results[0][0], DeadlockError)


@pytest.mark.parametrize("shared", [True, False], ids=["one service", "three services"])
def test_the_wait_that_closes_a_circle_raises_and_the_others_go_on(
    new_service: NewService, shared: bool
) -> None:
    services = [new_service(3)] * 3 if shared else [new_service(1) for _ in range(3)]
    futures = [Later() for _ in range(3)]
    waits = [threading.Event() for _ in range(3)]
    running = threading.Barrier(3)

    def step(n: int) -> Any:
        target = futures[(n + 1) % 3].get()
        running.wait(LIMIT)
        if n:
            assert waits[n - 1].wait(LIMIT)
        if n == 2:
            with pytest.raises(DeadlockError) as caught:
                target.result()
            return str(caught.value)
        boundedexec.wait([target, services[n].submit(waits[n].set)])
        return target.result()

    def alice() -> Any:
        return step(0)

    def bob() -> Any:
        return step(1)

    def carol() -> Any:
        return step(2)

    for n, body in enumerate([alice, bob, carol]):
        futures[n].set(services[n].submit(body))
    message = futures[2].get().result(LIMIT)
    assert all(name in message for name in ("alice", "bob", "carol"))
    assert [later.get().result(LIMIT) for later in futures] == [message] * 3


def test_a_circle_through_a_lent_slot_raises(new_service: NewService) -> None:
    service = new_service(1)

    def child(parent: AnyFuture) -> str:
        with pytest.raises(DeadlockError, match="parent"):
            parent.result()
        return "goes on"

    def parent(me: AnyFuture) -> Any:
        return service.submit(child, me).result()

    assert submit_knowing(service, parent).result(LIMIT) == "goes on"


def test_a_circle_through_a_queued_submission_raises_when_that_waits(
    new_service: NewService,
) -> None:
    one, two = new_service(1), new_service(1)

    def parent(me: AnyFuture) -> Any:
        return two.submit(child, me).result()

    def child(parent: AnyFuture) -> Any:
        return one.submit(grandchild, parent).result()

    def grandchild(parent: AnyFuture) -> str:
        with pytest.raises(DeadlockError) as caught:
            parent.result()
        assert all(name in str(caught.value) for name in ("parent", "child", "grandchild"))
        return "goes on"

    assert submit_knowing(one, parent).result(LIMIT) == "goes on"


def wait_for_any_while_one_can_end(
    service: Service, gate: threading.Event, how: str, child: Callable[[AnyFuture], Any]
) -> AnyFuture:
    """Have a body wait for `child`, which is given its future, and for what awaits `gate`."""
    other = Service(1, daemon=True)

    def parent(me: AnyFuture) -> Any:
        done, _ = boundedexec.wait([service.submit(child, me), other.submit(gate.wait)], None, how)
        return [future.result() for future in done]

    return submit_knowing(service, parent)


def test_waiting_for_a_wait_for_any_is_no_circle(new_service: NewService) -> None:
    service, gate = new_service(1), threading.Event()

    def child(parent: AnyFuture) -> Any:
        boundedexec.wait([parent, service.submit(gate.set)])
        return parent.result()

    parent = wait_for_any_while_one_can_end(service, gate, FIRST_COMPLETED, child)
    assert parent.result(LIMIT) == [True]


def test_waiting_for_a_wait_for_all_is_a_circle(new_service: NewService) -> None:
    service, gate = new_service(1), threading.Event()

    def child(parent: AnyFuture) -> str:
        with pytest.raises(DeadlockError):
            parent.result()
        gate.set()
        return "raised"

    parent = wait_for_any_while_one_can_end(service, gate, ALL_COMPLETED, child)
    assert sorted(map(str, parent.result(LIMIT))) == ["True", "raised"]


def test_a_wait_for_any_of_which_none_can_end_is_a_circle(new_service: NewService) -> None:
    service = new_service(3)
    parent, waits = Later(), [threading.Event() for _ in range(2)]
    running = threading.Barrier(3)

    def child(n: int) -> Any:
        running.wait(LIMIT)
        return boundedexec.wait([parent.get(), service.submit(waits[n].set)])

    children = [service.submit(child, n) for n in range(2)]

    def body(kind: str) -> str:
        running.wait(LIMIT)
        assert waits[0].wait(LIMIT) and waits[1].wait(LIMIT)
        with pytest.raises(DeadlockError):
            boundedexec.wait(children, return_when=FIRST_COMPLETED)
        with pytest.raises(DeadlockError):
            next(boundedexec.as_completed(children))
        return "goes on"

    parent.set(service.submit(body, ""))
    assert parent.get().result(LIMIT) == "goes on"
    assert boundedexec.wait(children, LIMIT).done == set(children)


@pytest.mark.parametrize("steps", [False, True], ids=["wait", "as_completed"])
def test_what_can_still_end_a_wait_for_any_is_lent_the_slot_of_the_circle(
    new_service: NewService, steps: bool
) -> None:
    service, order = new_service(1), list[str]()

    def child(parent: AnyFuture) -> None:
        order.append("child")
        parent.result()
        order.append("child ends")

    def parent(me: AnyFuture) -> None:
        first, second = service.submit(child, me), service.submit(order.append, "other child")
        if steps:
            completed = boundedexec.as_completed([first, second])
            assert next(completed) is second
            with pytest.raises(DeadlockError):
                next(completed)
        else:
            done, _ = boundedexec.wait([first, second], return_when=FIRST_COMPLETED)
            assert done == {second}
        order.append("parent")

    submit_knowing(service, parent).result(LIMIT)
    assert service.block_till_done(LIMIT)
    assert order == ["child", "other child", "parent", "child ends"]


def test_a_circle_raises_in_a_body_that_yielded_its_slot_too(new_service: NewService) -> None:
    service = new_service(1)

    def yielder(me: AnyFuture) -> bool:
        with pytest.raises(DeadlockError, match="yielder"):
            service.yield_slot(me.result)
        with service.slot_yielded(), pytest.raises(DeadlockError, match="yielder"):
            me.result()
        return service.submit(int).cancel()

    assert submit_knowing(service, yielder).result(LIMIT), "it goes on without its slot"


@pytest.mark.parametrize("bound", [1, 2, 0])
def test_a_run_that_waits_for_the_rerun_that_it_holds_up_raises(
    new_service: NewService, bound: int
) -> None:
    service = new_service(bound)
    coalescer = Coalescer[str](service)

    def run() -> Future[str]:
        again = coalescer.submit("key", str, "again")
        with pytest.raises(DeadlockError, match="run"):
            again.result()
        return again

    assert coalescer.submit("key", run).result(LIMIT).result(LIMIT) == "again"


def test_a_run_that_waits_for_a_body_that_waits_for_its_rerun_raises_there(
    new_service: NewService,
) -> None:
    service = new_service(1)
    coalescer = Coalescer[str](service)

    def run() -> Any:
        again = coalescer.submit("key", str, "again")
        return service.submit(lambda: again.exception()).exception()

    assert isinstance(coalescer.submit("key", run).result(LIMIT), DeadlockError)


def test_a_run_that_waits_for_a_body_that_already_waits_for_its_rerun_raises(
    new_service: NewService,
) -> None:
    service, begun, owed = new_service(2), threading.Event(), threading.Event()
    coalescer = Coalescer[str](service)
    waiter = Later()

    def run() -> str:
        begun.set()
        assert owed.wait(LIMIT)
        with pytest.raises(DeadlockError, match="run"):
            waiter.get().result()
        return "goes on"

    def waits() -> str:
        again = coalescer.submit("key", str, "again")
        awaited: list[AnyFuture] = [again, service.submit(owed.set)]
        boundedexec.wait(awaited)
        return again.result()

    first = coalescer.submit("key", run)
    assert begun.wait(LIMIT), "or what comes next takes its place"
    waiter.set(service.submit(waits))
    assert first.result(LIMIT) == "goes on"
    assert waiter.get().result(LIMIT) == "again"
