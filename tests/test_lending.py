"""A body that waits lends its slot to exactly what it waits for, through chains and services.

That a body has begun its wait is shown by a *probe*: one more awaited submission, which
can start only because the waiting body lends its slot.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
)
from typing import Any

import pytest
from helpers import (
    A_WHILE,
    LIMIT,
    WAITS,
    AnyFuture,
    Later,
    NewService,
    Wait,
    every_wait,
    fail,
)

import boundedexec
from boundedexec import Coalescer, Service

# Lending


@every_wait
def test_a_wait_lends_the_slot_to_exactly_what_it_waits_for(
    new_service: NewService, wait: Wait
) -> None:
    service, order = new_service(1), list[str]()

    def body() -> bool:
        decoy = service.submit(order.append, "decoy")
        wait(service.submit(order.append, "awaited"))
        order.append("body")
        return decoy.cancel()

    assert service.submit(body).result(LIMIT), "the decoy started before the body was over"
    assert order == ["awaited", "body"]


def test_the_iterator_of_map_lends_the_slot(new_service: NewService) -> None:
    service, order = new_service(1), list[str]()

    def note(name: str) -> str:
        order.append(name)
        return name.upper()

    def body() -> tuple[list[str], bool]:
        results = service.map(note, ["a", "b"])
        decoy = service.submit(note, "decoy")
        last = service.map(note, ["c"])
        return [*results, *last], decoy.cancel()

    assert service.submit(body).result(LIMIT) == (["A", "B", "C"], True)
    assert order == ["a", "b", "c"]


def test_map_with_a_buffersize_lends_the_slot(new_service: NewService) -> None:
    service = new_service(1)
    body = lambda: list(service.map(str, range(10), buffersize=2))  # noqa: E731
    assert service.submit(body).result(LIMIT) == [str(n) for n in range(10)]


@pytest.mark.parametrize("bound", [1, 2])
def test_the_slot_is_back_before_anything_queued_starts(
    new_service: NewService, bound: int, switching: None
) -> None:
    service = new_service(bound)
    counted, executing = threading.Lock(), 0
    most: list[int] = []

    def count(change: int) -> None:
        nonlocal executing
        with counted:
            executing += change
            most.append(executing)

    def leaf() -> None:
        count(1)
        count(-1)

    def body() -> None:
        count(1)
        for _ in range(3):
            future = service.submit(leaf)
            count(-1)
            future.result()
            count(1)
        count(-1)

    bodies = [service.submit(body) for _ in range(40)]
    for future in bodies:
        future.result(LIMIT)
    assert max(most) <= bound
    assert min(most) == 0


@pytest.mark.parametrize("exception", [ValueError(), SystemExit(), KeyboardInterrupt()])
def test_a_lent_slot_comes_back_from_a_body_that_raises(
    new_service: NewService, exception: BaseException
) -> None:
    service = new_service(1)

    def body() -> tuple[object, bool]:
        awaited: AnyFuture = service.submit(fail, exception)
        decoy = service.submit(int)
        return awaited.exception(), decoy.cancel()

    assert service.submit(body).result(LIMIT) == (exception, True)


def test_waiting_for_what_is_done_keeps_the_slot(new_service: NewService) -> None:
    service = new_service(1)
    over = service.submit(int)
    over.result(LIMIT)

    def body() -> list[bool]:
        queued = service.submit(int)
        for wait in WAITS.values():
            wait(over)
        done, not_done = boundedexec.wait([queued, over], return_when=FIRST_COMPLETED)
        steps = boundedexec.as_completed([queued, over])
        return [done == {over}, not_done == {queued}, next(steps) is over, queued.cancel()]

    assert service.submit(body).result(LIMIT) == [True] * 4


@pytest.mark.parametrize("how", [ALL_COMPLETED, FIRST_EXCEPTION])
def test_several_awaited_run_in_the_order_of_submission(new_service: NewService, how: str) -> None:
    service, order = new_service(1), list[int]()

    def body() -> bool:
        decoy = service.submit(int)
        futures = [service.submit(order.append, n) for n in range(20)]
        done, not_done = boundedexec.wait(futures[::-1], return_when=how)
        return done == set(futures) and not not_done and decoy.cancel()

    assert service.submit(body).result(LIMIT)
    assert order == list(range(20))


def test_each_step_of_as_completed_lends_to_one(new_service: NewService) -> None:
    service, order = new_service(1), list[object]()

    def body() -> bool:
        decoy = service.submit(int)
        futures = [service.submit(order.append, n) for n in range(3)]
        for future in boundedexec.as_completed(futures[::-1]):
            order.append(future)
        assert order == [0, futures[0], 1, futures[1], 2, futures[2]]
        return decoy.cancel()

    assert service.submit(body).result(LIMIT)


def test_a_wait_for_the_first_lends_no_further(new_service: NewService) -> None:
    service, order = new_service(1), list[int]()

    def body() -> bool:
        futures = [service.submit(order.append, n) for n in range(3)]
        done, not_done = boundedexec.wait(set(futures), return_when=FIRST_COMPLETED)
        assert done == {futures[0]} and not_done == set(futures[1:])
        return all(future.cancel() for future in not_done)

    assert service.submit(body).result(LIMIT)
    assert order == [0]


def test_a_wait_for_the_first_exception_lends_until_then(new_service: NewService) -> None:
    service = new_service(1)

    def body() -> bool:
        futures: list[AnyFuture] = [service.submit(int)]
        futures += [service.submit(fail, OSError()), service.submit(int)]
        good, bad, last = futures
        done, not_done = boundedexec.wait(futures[::-1], return_when=FIRST_EXCEPTION)
        assert done == {good, bad} and not_done == {last}
        assert isinstance(bad.exception(), OSError)
        return last.cancel()

    assert service.submit(body).result(LIMIT)


def test_an_awaited_submission_that_is_cancelled_is_passed_over(new_service: NewService) -> None:
    service, order = new_service(1), list[str]()

    def body() -> None:
        futures: list[AnyFuture] = []
        futures.append(service.submit(lambda: futures[1].cancel()))
        futures.append(service.submit(order.append, "cancelled"))
        futures.append(service.submit(order.append, "last"))
        assert boundedexec.wait(futures).done == set(futures)
        order.append("body")

    service.submit(body).result(LIMIT)
    assert order == ["last", "body"]


def test_a_wait_that_is_over_has_its_slot_back_first(new_service: NewService) -> None:
    """The awaited submission that has the slot is not the one that ends the wait."""
    service, order = new_service(1), list[str]()
    foreign: AnyFuture = Future()

    def borrower() -> None:
        foreign.set_result(None)
        time.sleep(A_WHILE)
        order.append("borrower")

    def body() -> bool:
        decoy = service.submit(int)
        awaited: list[AnyFuture] = [service.submit(borrower), foreign]
        boundedexec.wait(awaited, return_when=FIRST_COMPLETED)
        order.append("body")
        return decoy.cancel()

    assert service.submit(body).result(LIMIT)
    assert order == ["borrower", "body"]


def test_the_callbacks_of_what_is_awaited_hold_the_lent_slot(new_service: NewService) -> None:
    service, order = new_service(1), list[str]()

    def body() -> bool:
        decoy, awaited = service.submit(int), service.submit(order.append, "awaited")
        awaited.add_done_callback(lambda _: time.sleep(A_WHILE))
        awaited.add_done_callback(lambda _: order.append("callback"))
        awaited.result()
        order.append("body")
        return decoy.cancel()

    assert service.submit(body).result(LIMIT)
    assert order == ["awaited", "callback", "body"]


def test_a_wait_keeps_nothing_of_what_it_waited_for(new_service: NewService) -> None:
    service = new_service(1)

    def body() -> weakref.ref[AnyFuture]:
        inner = service.submit(int)
        inner.result()
        for wait in WAITS.values():
            wait(inner)
        other = service.submit(int)
        boundedexec.wait([inner, other])
        return weakref.ref(inner)

    gone = service.submit(body).result(LIMIT)
    service.submit(int).result(LIMIT)
    end = time.monotonic() + LIMIT
    while gone() is not None and time.monotonic() < end:
        time.sleep(0.001)
    assert gone() is None


def test_a_shutdown_that_cancels_what_is_awaited_ends_the_wait() -> None:
    service = Service(1, daemon=True)

    def first() -> None:
        service.shutdown(wait=False, cancel_futures=True)

    def body() -> AnyFuture:
        futures: list[AnyFuture] = [service.submit(first), service.submit(int)]
        assert boundedexec.wait(futures).done == set(futures)
        return futures[1]

    assert service.submit(body).result(LIMIT).cancelled()
    service.shutdown()


def test_a_lend_to_a_thread_whose_initializer_fails_breaks_the_service() -> None:
    threads = list[int]()

    def initializer() -> None:
        threads.append(threading.get_ident())
        if len(threads) > 1:
            raise OSError("no second thread")

    service = Service(1, "", initializer, daemon=True)
    future = service.submit(lambda: service.submit(int).result())
    assert isinstance(future.exception(LIMIT), boundedexec.BrokenThreadPool)
    service.shutdown()


def test_a_body_that_waits_for_a_coalesced_run_lends_it_its_slot(new_service: NewService) -> None:
    service = new_service(1)
    coalescer = Coalescer[str](service)

    def body() -> tuple[int, bool]:
        decoy = service.submit(int)
        return coalescer.submit("key", int, "2").result(), decoy.cancel()

    assert service.submit(body).result(LIMIT) == (2, True)


def test_a_body_that_waits_for_an_owed_rerun_lends_once_it_is_queued(
    new_service: NewService,
) -> None:
    service, gate, ran = new_service(2), threading.Event(), threading.Event()
    coalescer = Coalescer[str](service)
    entered = threading.Event()
    coalescer.submit("key", lambda: entered.set() or gate.wait())  # type: ignore[func-returns-value]
    assert entered.wait(LIMIT)

    def body() -> None:
        again = coalescer.submit("key", ran.set)
        # Takes the slot of the run before its re-run can.
        service.submit(ran.wait)
        gate.set()
        again.result()

    service.submit(body).result(LIMIT)


def test_two_bodies_may_wait_for_the_same_submission(
    new_service: NewService, switching: None
) -> None:
    service = new_service(2)
    for _ in range(30):
        shared, both = Later(), threading.Barrier(2)

        def body(both: threading.Barrier = both, shared: Later = shared) -> Any:
            both.wait(LIMIT)
            return shared.get().result()

        bodies = [service.submit(body) for _ in range(2)]
        shared.set(service.submit(int, "6"))
        assert [future.result(LIMIT) for future in bodies] == [6, 6]


def test_lending_beside_cancel_loses_nothing(new_service: NewService, switching: None) -> None:
    service = new_service(1)
    for _ in range(200):
        inner: queue.SimpleQueue[AnyFuture] = queue.SimpleQueue()

        def body(inner: queue.SimpleQueue[AnyFuture] = inner) -> bool:
            future = service.submit(int)
            inner.put(future)
            return future.exception() is None

        outer = service.submit(body)
        cancelled = inner.get(timeout=LIMIT).cancel()
        if cancelled:
            with pytest.raises(CancelledError):
                outer.result(LIMIT)
        else:
            assert outer.result(LIMIT)


def test_lending_beside_a_slot_that_frees_runs_it_once(
    new_service: NewService, switching: None
) -> None:
    service, ran = new_service(2), list[int]()
    for n in range(200):
        meet = threading.Barrier(2)

        def body(n: int = n, meet: threading.Barrier = meet) -> None:
            future = service.submit(ran.append, n)
            meet.wait(LIMIT)
            future.result()

        both: list[AnyFuture] = [service.submit(body), service.submit(meet.wait, LIMIT)]
        for future in both:
            future.result(LIMIT)
    assert ran == list(range(200))


def test_nested_waits_lend_along_a_chain(new_service: NewService) -> None:
    service, order = new_service(1), list[int]()

    def level(n: int) -> int:
        decoy = service.submit(order.append, -n)
        below = service.submit(level, n - 1).result() if n else 0
        order.append(n)
        assert decoy.cancel()
        return below + 1

    assert service.submit(level, 4).result(LIMIT) == 5
    assert order == [0, 1, 2, 3, 4]


def test_a_chain_across_services_lends_when_the_inner_wait_comes_first(
    new_service: NewService,
) -> None:
    one, two, waits = new_service(1), new_service(1), threading.Event()

    def inner(awaited: AnyFuture) -> Any:
        boundedexec.wait([two.submit(waits.set), awaited])
        return awaited.result()

    def outer() -> tuple[Any, bool]:
        decoy, awaited = one.submit(int), one.submit(int, "3")
        link = two.submit(inner, awaited)
        assert waits.wait(LIMIT)
        assert not awaited.done()
        return link.result(), decoy.cancel()

    assert one.submit(outer).result(LIMIT) == (3, True)


def test_a_chain_across_services_lends_when_the_outer_wait_comes_first(
    new_service: NewService,
) -> None:
    one, two, waits = new_service(1), new_service(1), threading.Event()

    def inner(awaited: AnyFuture) -> Any:
        assert waits.wait(LIMIT)
        return awaited.result()

    def outer() -> tuple[Any, bool]:
        decoy, awaited = one.submit(int), one.submit(int, "3")
        link = two.submit(inner, awaited)
        boundedexec.wait([one.submit(waits.set), link])
        return link.result(), decoy.cancel()

    assert one.submit(outer).result(LIMIT) == (3, True)


@every_wait
def test_a_chain_over_many_services_lends(
    new_service: NewService, wait: Wait, switching: None
) -> None:
    services = [new_service(1) for _ in range(4)]
    for _ in range(10):
        last = Later()

        def link(n: int, last: Later = last) -> None:
            if n == 0:
                last.set(services[0].submit(int))
            wait(services[n + 1].submit(link, n + 1) if n + 1 < len(services) else last.get())

        services[0].submit(link, 0).result(LIMIT)


def test_a_chain_lends_past_a_service_that_does_not(new_service: NewService) -> None:
    one, two = new_service(1), new_service(1, lending=False)

    def outer() -> Any:
        awaited = one.submit(int, "4")
        return two.submit(awaited.result).result()

    assert one.submit(outer).result(LIMIT) == 4


def test_two_services_that_call_each_other_finish(new_service: NewService, switching: None) -> None:
    one, two = new_service(1), new_service(1)
    for _ in range(20):
        meet = threading.Barrier(2)

        def body(other: Service, meet: threading.Barrier = meet) -> int:
            meet.wait(LIMIT)
            awaited = other.submit(int, "5")
            meet.wait(LIMIT)
            return awaited.result()

        bodies = [one.submit(body, two), two.submit(body, one)]
        assert [future.result(LIMIT) for future in bodies] == [5, 5]


def test_services_are_stuck_only_when_the_last_holder_waits(new_service: NewService) -> None:
    """One holder of a slot that can still end is enough to wait for; then it waits too."""
    one, two = new_service(1), new_service(2)
    gate, entered, waits = threading.Event(), threading.Barrier(3), threading.Event()

    def outer() -> tuple[Any, list[bool]]:
        entered.wait(LIMIT)
        queued.append(two.submit(str, "on two"))
        entered.wait(LIMIT)
        keeps: list[AnyFuture] = [queued[0], one.submit(waits.set)]
        boundedexec.wait(keeps)
        return queued[0].result(), [future.cancel() for future in queued[1:]]

    def holder(number: int) -> Any:
        entered.wait(LIMIT)
        entered.wait(LIMIT)
        awaited = one.submit(int, number)
        if number:
            assert waits.wait(LIMIT)
            threading.Event().wait(A_WHILE)  # Which lends nothing.
            assert not queued[0].running() and not queued[0].done()
            gate.set()
        return awaited.result()

    queued: list[AnyFuture] = []
    first = one.submit(outer)
    holders = [two.submit(holder, number) for number in range(2)]
    assert gate.wait(LIMIT)
    assert first.result(LIMIT)[0] == "on two"
    assert [future.result(LIMIT) for future in holders] == [0, 1]


def test_services_that_call_each_other_in_a_ring_finish(
    new_service: NewService, switching: None
) -> None:
    services = [new_service(bound) for bound in (1, 2, 3)]

    def level(n: int, depth: int) -> int:
        if not depth:
            return 1
        nested = [services[(n + step) % 3].submit(level, n + step, depth - 1) for step in (1, 2)]
        return sum(future.result() for future in nested)

    for _ in range(3):
        assert [services[n].submit(level, n, 4) for n in range(3)][1].result(LIMIT) == 16
        assert all(service.block_till_done(LIMIT) for service in services)


# Bodies that resume


@pytest.mark.parametrize("early", [False, True])
def test_a_body_that_resumes_is_lent_the_slot_of_one_that_waits_for_it(
    new_service: NewService, early: bool
) -> None:
    service, go, order = new_service(1), threading.Event(), list[str]()

    def yielder() -> str:
        service.yield_slot(go.wait)
        order.append("yielder")
        return "yielded"

    def waiter() -> str:
        if early:
            go.set()
            time.sleep(A_WHILE)  # It asks for its slot before this body waits for it.
        else:
            awaited: list[AnyFuture] = [yielded, service.submit(go.set)]
            boundedexec.wait(awaited)
        result = yielded.result()
        order.append("waiter")
        return result

    yielded = service.submit(yielder)
    future, decoy = service.submit(waiter), service.submit(order.append, "decoy")
    assert future.result(LIMIT) == "yielded"
    decoy.result(LIMIT)
    assert order == ["yielder", "waiter", "decoy"]


@pytest.mark.parametrize("early", [False, True])
def test_a_body_that_resumes_is_lent_a_slot_across_services(
    new_service: NewService, early: bool
) -> None:
    one, two, go = new_service(1), new_service(1), threading.Event()

    def yielder() -> str:
        one.yield_slot(go.wait)
        return "yielded"

    def link() -> str:
        if early:
            go.set()
        return yielded.result()

    def waiter() -> str:
        linked = two.submit(link)
        if not early:
            awaited: list[AnyFuture] = [linked, one.submit(go.set)]
            boundedexec.wait(awaited)
        return linked.result()

    yielded = one.submit(yielder)
    assert one.submit(waiter).result(LIMIT) == "yielded"


def test_a_body_that_yields_while_it_waits_gives_its_slot_to_the_next_in_line(
    new_service: NewService,
) -> None:
    service, order = new_service(1), list[str]()

    def body() -> None:
        before, awaited = service.submit(order.append, "next"), service.submit(order.append, "own")
        service.yield_slot(awaited.result)
        assert before.done()
        order.append("body")

    service.submit(body).result(LIMIT)
    assert order == ["next", "own", "body"]
