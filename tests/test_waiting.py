"""Waiting inside a body never hangs the pool, and otherwise it is as in the stdlib's.

That a body stands in its wait is shown by a *probe*: one more awaited submission,
which can start only because the waiting body lends its slot.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
)
from typing import Any, NoReturn

import pytest
from conftest import LIMIT, Starts, holding, wait_until

import boundedexec
from boundedexec import Coalescer, DeadlockError, Service, ThreadPoolExecutor
from boundedexec.waiting import Body, Lend, found_slot

AnyFuture = Future[Any]
NewService = Callable[..., Service]

#: Seconds to give something that must not happen; a test is right if it is too short.
A_WHILE = 0.03


@pytest.fixture
def new_service() -> Iterator[NewService]:
    """Makes services; when the test is over all their slots must be usable."""
    made: list[Service] = []

    def make(bound: int, **settings: Any) -> Service:
        made.append(Service(bound, daemon=True, **settings))
        return made[-1]

    yield make
    for service in made:
        assert service.block_till_done(LIMIT), "something is outstanding for ever"
        bound = service.max_workers or 3
        together = threading.Barrier(bound)
        for future in [service.submit(together.wait, LIMIT) for _ in range(bound)]:
            future.result(LIMIT)
        service.shutdown()


@pytest.fixture(params=[None, 1e-6], ids=["", "often"])
def turns(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads take turns as ever, and as often as they can."""
    interval = sys.getswitchinterval()
    if request.param is not None:
        sys.setswitchinterval(request.param)
    yield
    sys.setswitchinterval(interval)


def fail(exception: BaseException) -> NoReturn:
    raise exception


class Later:
    """A future that bodies get to know after they were submitted."""

    def __init__(self) -> None:
        self._future: AnyFuture
        self._known = threading.Event()

    def set(self, future: AnyFuture) -> None:
        self._future = future
        self._known.set()

    def get(self) -> AnyFuture:
        assert self._known.wait(LIMIT)
        return self._future


def submit_knowing(service: Service, body: Callable[[AnyFuture], Any]) -> AnyFuture:
    """Submit `body`, which is given its own future."""
    me = Later()

    @functools.wraps(body)
    def knowing() -> Any:
        return body(me.get())

    me.set(service.submit(knowing))
    return me.get()


# The ways to wait without a timeout for what `submit` returns.

Submit = Callable[[], AnyFuture]
WAITS: dict[str, Callable[[AnyFuture], object]] = {
    "result": lambda future: future.result(),
    "exception": lambda future: future.exception(),
    "wait": lambda future: boundedexec.wait([future]),
    "first completed": lambda future: boundedexec.wait([future], None, FIRST_COMPLETED),
    "first exception": lambda future: boundedexec.wait([future], return_when=FIRST_EXCEPTION),
    "as_completed": lambda future: list(boundedexec.as_completed([future])),
}
TIMED: dict[str, Callable[[AnyFuture, float], object]] = {
    "result": lambda future, timeout: future.result(timeout),
    "exception": lambda future, timeout: future.exception(timeout),
    "as_completed": lambda future, timeout: list(boundedexec.as_completed([future], timeout)),
}
every_wait = pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
every_timed_wait = pytest.mark.parametrize("wait", TIMED.values(), ids=TIMED)


# Lending


@every_wait
def test_a_wait_lends_the_slot_to_exactly_what_it_waits_for(
    new_service: NewService, wait: Callable[[AnyFuture], object]
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
    new_service: NewService, bound: int, turns: None
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


def test_waiting_for_what_is_over_gives_nothing_away(new_service: NewService) -> None:
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


def test_what_is_cancelled_meanwhile_is_passed_over(new_service: NewService) -> None:
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


def test_two_bodies_may_wait_for_the_same_submission(new_service: NewService, turns: None) -> None:
    service = new_service(2)
    for _ in range(30):
        shared, both = Later(), threading.Barrier(2)

        def body(both: threading.Barrier = both, shared: Later = shared) -> Any:
            both.wait(LIMIT)
            return shared.get().result()

        bodies = [service.submit(body) for _ in range(2)]
        shared.set(service.submit(int, "6"))
        assert [future.result(LIMIT) for future in bodies] == [6, 6]


def test_lending_beside_cancel_loses_nothing(new_service: NewService, turns: None) -> None:
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
    new_service: NewService, turns: None
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


def test_a_lend_whose_thread_cannot_be_started_raises_from_the_wait(
    new_service: NewService, starts: Starts
) -> None:
    service = new_service(1)

    def body() -> int:
        awaited = service.submit(int, "3")
        starts.fail()
        with pytest.raises(RuntimeError, match="thread") as caught:
            awaited.result()
        assert not isinstance(caught.value, DeadlockError)
        starts.fail(False)
        return awaited.result()

    assert service.submit(body).result(LIMIT) == 3


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
    new_service: NewService, wait: Callable[[AnyFuture], object], turns: None
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


def test_two_services_that_call_each_other_finish(new_service: NewService, turns: None) -> None:
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
            concurrent.futures.wait([queued[0]], A_WHILE)
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
    new_service: NewService, turns: None
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


# Waits that keep the slot


def keeps_slot(service: Service, begin: Callable[[], object], end: Callable[[], object]) -> None:
    """Check that a body of `service`, all of whose slots are held, keeps it in `begin`."""
    order: list[str] = []
    begins = threading.Event()

    def body() -> None:
        begins.set()
        begin()
        order.append("body")

    future = service.submit(body)
    decoy = service.submit(order.append, "decoy")
    assert begins.wait(LIMIT)
    concurrent.futures.wait([decoy], A_WHILE)
    assert order == []
    end()
    future.result(LIMIT)
    decoy.result(LIMIT)
    assert order == ["body", "decoy"]


@every_wait
@pytest.mark.parametrize("bound", [1, 0])
def test_waiting_for_what_runs_keeps_the_slot(
    new_service: NewService, wait: Callable[[AnyFuture], object], bound: int
) -> None:
    gate, entered, other = threading.Event(), threading.Event(), new_service(bound)
    running = other.submit(lambda: entered.set() or gate.wait())  # type: ignore[func-returns-value]
    assert entered.wait(LIMIT)
    keeps_slot(new_service(1), lambda: wait(running), gate.set)


@every_wait
def test_waiting_for_what_runs_on_its_own_service_keeps_the_slot(
    new_service: NewService, wait: Callable[[AnyFuture], object]
) -> None:
    service, gate, entered = new_service(2), threading.Event(), threading.Event()
    running = service.submit(lambda: entered.set() or gate.wait())  # type: ignore[func-returns-value]
    assert entered.wait(LIMIT)
    order: list[str] = []

    def body() -> None:
        wait(running)
        order.append("body")

    service.submit(body)
    decoy = service.submit(order.append, "decoy")
    concurrent.futures.wait([decoy], A_WHILE)
    assert order == []
    gate.set()
    decoy.result(LIMIT)


@every_wait
def test_waiting_for_another_packages_future_keeps_the_slot(
    new_service: NewService, wait: Callable[[AnyFuture], object]
) -> None:
    foreign: AnyFuture = Future()
    keeps_slot(new_service(1), lambda: wait(foreign), lambda: foreign.set_result(1))


def test_waiting_for_a_bare_future_keeps_the_slot(new_service: NewService) -> None:
    bare = boundedexec.Future[int]()
    keeps_slot(new_service(1), bare.result, lambda: bare.set_result(1))


def test_waiting_for_an_event_keeps_the_slot(new_service: NewService) -> None:
    event = threading.Event()
    keeps_slot(new_service(1), event.wait, event.set)


def test_waiting_for_another_service_keeps_the_slot(new_service: NewService) -> None:
    gate, other = threading.Event(), new_service(1)
    other.submit(gate.wait)
    keeps_slot(new_service(1), other.block_till_done, gate.set)


def test_waiting_for_what_is_queued_elsewhere_keeps_the_slot(new_service: NewService) -> None:
    gate, other = threading.Event(), new_service(1)
    other.submit(gate.wait)
    queued = other.submit(int)
    keeps_slot(new_service(1), queued.result, gate.set)


def test_the_stdlibs_own_wait_keeps_the_slot(new_service: NewService) -> None:
    gate, other = threading.Event(), new_service(1)
    running = other.submit(gate.wait)
    keeps_slot(new_service(1), lambda: concurrent.futures.wait([running]), gate.set)


@every_wait
def test_an_initializer_may_wait(
    new_service: NewService, wait: Callable[[AnyFuture], object]
) -> None:
    other = new_service(1)
    waits = lambda: wait(other.submit(time.sleep, 0.001))  # noqa: E731
    service = new_service(1, initializer=waits)
    assert service.submit(lambda: service.submit(int, "3").result()).result(LIMIT) == 3


def test_a_service_of_one_slot_is_a_serial_queue(new_service: NewService) -> None:
    service, foreign = new_service(1), boundedexec.Future[int]()
    threads: set[int] = set()
    executing: list[int] = []

    def body(n: int) -> None:
        threads.add(threading.get_ident())
        executing.append(n)
        if n == 50:
            foreign.result()
        time.sleep(0)
        assert executing == list(range(n + 1))

    bodies = [service.submit(body, n) for n in range(100)]
    foreign.set_result(1)
    for future in bodies:
        future.result(LIMIT)
    assert executing == list(range(100))
    assert len(threads) == 1, "a body that never gives its slot away needs no second thread"


@every_wait
def test_without_lending_a_wait_keeps_the_slot(
    new_service: NewService, wait: Callable[[AnyFuture], object]
) -> None:
    service, ran = new_service(1, lending=False), list[int]()
    submitted: queue.SimpleQueue[AnyFuture] = queue.SimpleQueue()

    def body() -> None:
        queued = service.submit(ran.append, 1)
        submitted.put(queued)
        try:
            wait(queued)
        except CancelledError:
            pass

    future = service.submit(body)
    queued = submitted.get(timeout=LIMIT)
    concurrent.futures.wait([queued], A_WHILE)
    assert queued.cancel()
    future.result(LIMIT)
    assert ran == []


def test_without_lending_another_slot_serves_as_ever(new_service: NewService) -> None:
    service = new_service(2, lending=False)
    assert service.submit(lambda: service.submit(int, "2").result()).result(LIMIT) == 2


# Waits with a timeout


@every_timed_wait
def test_a_wait_with_a_timeout_keeps_the_slot_and_names_yield_slot(
    new_service: NewService, wait: Callable[[AnyFuture, float], object]
) -> None:
    service = new_service(1)

    def body() -> tuple[bool, bool]:
        decoy, queued = service.submit(int), service.submit(int)
        start = time.monotonic()
        with pytest.raises(concurrent.futures.TimeoutError, match="yield_slot"):
            wait(queued, 0.03)
        assert 0.03 * 0.99 <= time.monotonic() - start < LIMIT
        with pytest.raises(concurrent.futures.TimeoutError, match="yield_slot"):
            wait(queued, 0)
        return queued.cancel(), decoy.cancel()

    assert service.submit(body).result(LIMIT) == (True, True)


def test_map_with_a_timeout_keeps_the_slot_and_names_yield_slot(new_service: NewService) -> None:
    service, ran = new_service(1), list[int]()

    def body() -> None:
        with pytest.raises(concurrent.futures.TimeoutError, match="yield_slot"):
            list(service.map(ran.append, [1, 2], timeout=0.03))

    service.submit(body).result(LIMIT)
    assert ran == []


def test_wait_with_a_timeout_keeps_the_slot(new_service: NewService) -> None:
    service = new_service(1)

    def body() -> bool:
        queued = service.submit(int)
        assert boundedexec.wait([queued], 0.03) == (set(), {queued})
        assert boundedexec.wait([queued], timeout=0, return_when=FIRST_COMPLETED).done == set()
        return queued.cancel()

    assert service.submit(body).result(LIMIT)


@every_timed_wait
def test_a_timeout_on_what_runs_does_not_blame_the_slots(
    new_service: NewService, wait: Callable[[AnyFuture, float], object]
) -> None:
    service, gate, entered = new_service(2), threading.Event(), threading.Event()
    running = service.submit(lambda: entered.set() or gate.wait())  # type: ignore[func-returns-value]
    assert entered.wait(LIMIT)

    def body() -> str:
        with pytest.raises(concurrent.futures.TimeoutError) as caught:
            wait(running, 0.01)
        return str(caught.value)

    message = service.submit(body).result(LIMIT)
    gate.set()
    assert "yield_slot" not in message


@every_timed_wait
def test_a_wait_with_a_timeout_is_served_by_another_slot(
    new_service: NewService, wait: Callable[[AnyFuture, float], object]
) -> None:
    service = new_service(2)
    service.submit(lambda: wait(service.submit(int), LIMIT)).result(LIMIT)


@every_timed_wait
def test_a_circle_with_a_timeout_in_it_ends_by_itself(
    new_service: NewService, wait: Callable[[AnyFuture, float], object]
) -> None:
    service = new_service(2)
    alice, bob = Later(), Later()

    def patient() -> Any:
        return bob.get().result()

    def hasty() -> str:
        with pytest.raises(concurrent.futures.TimeoutError):
            wait(alice.get(), 0.03)
        return "gave up"

    alice.set(service.submit(patient))
    bob.set(service.submit(hasty))
    assert alice.get().result(LIMIT) == "gave up"

    def alone(me: AnyFuture) -> None:
        with pytest.raises(concurrent.futures.TimeoutError):
            wait(me, 0.01)

    submit_knowing(service, alone).result(LIMIT)


def test_nothing_is_lent_through_a_wait_with_a_timeout(new_service: NewService) -> None:
    one, two = new_service(1), new_service(1)

    def inner(awaited: AnyFuture) -> bool:
        with pytest.raises(concurrent.futures.TimeoutError):
            awaited.result(A_WHILE)
        return awaited.cancel()

    def outer() -> bool:
        awaited = one.submit(int)
        return two.submit(inner, awaited).result()

    assert one.submit(outer).result(LIMIT)


# The results of the stdlib's wait and as_completed


@pytest.mark.parametrize("inside", [False, True])
def test_wait_and_as_completed_have_the_stdlibs_results(
    new_service: NewService, inside: bool
) -> None:
    service = new_service(1)
    good: AnyFuture = Future()
    bad: AnyFuture = Future()
    gone: AnyFuture = boundedexec.Future[int]()
    open_: AnyFuture = boundedexec.Future[int]()
    good.set_result(1)
    bad.set_exception(OSError())
    gone.cancel()

    def check() -> None:
        done, not_done = both = boundedexec.wait([good, bad, good, gone])
        assert (done, not_done) == ({good, bad, gone}, set())
        assert both.done is done and both.not_done is not_done
        assert type(both) is type(concurrent.futures.wait([good]))
        assert boundedexec.wait([]) == (set(), set())
        assert boundedexec.wait(iter([good])).done == {good}
        assert boundedexec.wait({bad, open_}, None, FIRST_EXCEPTION) == ({bad}, {open_})
        assert boundedexec.wait({good, open_}, None, FIRST_COMPLETED) == ({good}, {open_})
        assert boundedexec.wait(fs=[open_], timeout=0.01).not_done == {open_}
        with pytest.raises(ValueError):
            boundedexec.wait([good, open_], return_when="SOMETIME")
        none: list[AnyFuture] = []
        assert list(boundedexec.as_completed(none)) == none
        again: list[AnyFuture] = [good, bad, gone, good]
        completed = list(boundedexec.as_completed(iter(again)))
        assert len(completed) == 3 and set(completed) == {good, bad, gone}
        steps = boundedexec.as_completed(fs=[open_, good], timeout=0.01)
        assert next(steps) is good
        with pytest.raises(concurrent.futures.TimeoutError):
            next(steps)

    service.submit(check).result(LIMIT) if inside else check()


def test_as_completed_yields_everything_once_in_a_body(
    new_service: NewService, turns: None
) -> None:
    service, other = new_service(2), new_service(2)

    def body() -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            futures: list[AnyFuture] = [
                executor.submit(int, n) for n in range(10) for executor in (service, other, pool)
            ]
            futures[3].cancel()
            seen = list(boundedexec.as_completed(futures + futures))
        assert len(seen) == len(futures) and set(seen) == set(futures)

    for future in [service.submit(body) for _ in range(20)]:
        future.result(LIMIT)


@pytest.mark.parametrize("first", ["main", "body"])
def test_as_completed_may_be_stepped_by_bodies_and_threads_in_turn(
    new_service: NewService, first: str
) -> None:
    service, gate = new_service(2), threading.Event()

    def step() -> object:
        return next(steps)

    held = service.submit(gate.wait)
    awaited: list[AnyFuture] = [service.submit(str, n) for n in range(4)]
    assert boundedexec.wait(awaited, LIMIT).done
    steps = boundedexec.as_completed([*awaited, held])
    seen: list[object] = []
    for turn in range(4):
        in_body = (turn % 2 == 0) == (first == "body")
        seen.append(service.submit(step).result(LIMIT) if in_body else step())
    threading.Timer(A_WHILE, gate.set).start()
    if first == "main":
        seen.append(service.submit(step).result(LIMIT))
    else:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(step).result(LIMIT))
    assert set(seen) == {*awaited, held} and seen[-1] is held
    assert next(steps, None) is None


def test_a_step_of_as_completed_lends_the_slot_of_the_body_that_makes_it(
    new_service: NewService,
) -> None:
    service = new_service(1)
    over = service.submit(int)
    over.result(LIMIT)

    def body() -> tuple[list[AnyFuture], bool]:
        queued = service.submit(int)
        decoy = service.submit(int)
        steps = boundedexec.as_completed([over, queued])
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert pool.submit(next, steps).result(LIMIT) is over
        assert list(steps) == [queued]
        return [over, queued], decoy.cancel()

    assert service.submit(body).result(LIMIT)[1]


def test_an_abandoned_as_completed_leaves_nothing_behind(new_service: NewService) -> None:
    service = new_service(1)

    def body() -> None:
        futures = [service.submit(int) for _ in range(3)]
        steps = boundedexec.as_completed(futures)
        assert next(steps) in futures
        del steps
        assert boundedexec.wait(futures).not_done == set()

    service.submit(body).result(LIMIT)


# Circles


def test_a_deadlock_error_is_a_runtime_error() -> None:
    assert issubclass(DeadlockError, RuntimeError)


@every_wait
@pytest.mark.parametrize("bound", [1, 2, 0])
def test_a_body_that_waits_for_itself_is_told(
    new_service: NewService, wait: Callable[[AnyFuture], object], bound: int
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
def test_of_two_bodies_that_wait_for_each_other_one_is_told(
    new_service: NewService, bounds: tuple[int, ...], lending: bool, turns: None
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


def test_a_circle_through_a_lent_slot_is_told(new_service: NewService) -> None:
    service = new_service(1)

    def child(parent: AnyFuture) -> str:
        with pytest.raises(DeadlockError, match="parent"):
            parent.result()
        return "goes on"

    def parent(me: AnyFuture) -> Any:
        return service.submit(child, me).result()

    assert submit_knowing(service, parent).result(LIMIT) == "goes on"


def test_a_circle_through_what_is_queued_is_told_when_that_waits(
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
        return "told"

    parent = wait_for_any_while_one_can_end(service, gate, ALL_COMPLETED, child)
    assert sorted(map(str, parent.result(LIMIT))) == ["True", "told"]


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


def test_a_slot_that_comes_back_to_a_lender_that_has_another_is_for_what_is_queued(
    new_service: NewService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A body that has lent its slot goes on, and asks for one; 2. it is given the one
    that is free, before what is queued; 3. its own comes back; 4. it lets go of the lend."""
    service, another = new_service(2), Future[None]()
    hold, lent, end = threading.Event(), threading.Event(), threading.Event()
    started = threading.Event()
    lend_abandoned = Lend.abandon

    def abandon(lend: Lend) -> None:
        service.submit(started.set)
        end.set()
        wait_until(lambda: lend.ended)
        lend_abandoned(lend)

    def borrower() -> None:
        lent.set()
        end.wait(LIMIT)

    def lender() -> bool:
        boundedexec.wait([service.submit(borrower), another], return_when=FIRST_COMPLETED)
        return started.wait(LIMIT)

    monkeypatch.setattr(Lend, "abandon", abandon)
    holding_the_other_slot = service.submit(hold.wait, LIMIT)
    outcome = service.submit(lender)
    assert lent.wait(LIMIT)
    hold.set()
    holding_the_other_slot.result(LIMIT)
    another.set_result(None)
    assert outcome.result(LIMIT)


def test_queues_in_a_circle_are_set_going_beside_what_has_its_slot_already(
    new_service: NewService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait that closes the circle is also for a body that resumes, which was given a
    slot just now and is not awake yet; and a body that waits could lend it another."""
    waits, resumes = dict[object, object](), dict[object, object]()
    monkeypatch.setattr(boundedexec.waiting, "_waits", waits)
    monkeypatch.setattr(boundedexec.waiting, "_resuming", resumes)
    given, awake = threading.Event(), threading.Event()

    def found_late(body: Body) -> None:
        given.set()
        awake.wait(LIMIT)
        found_slot(body)

    one, other, third, apart = (new_service(n) for n in (1, 1, 1, 2))
    gates = [threading.Event() for _ in range(3)]
    bare = Future[None]()
    lender = apart.submit(lambda: boundedexec.wait([bare]))
    resuming = apart.submit(lambda: apart.yield_slot(gates[0].wait, LIMIT))
    filler = apart.submit(gates[1].wait, LIMIT)

    def close() -> object:
        gates[2].wait(LIMIT)
        return boundedexec.wait(set[AnyFuture]([resuming, middle]))

    closing = one.submit(close)
    behind_closing = one.submit(int, "5")
    blocking = other.submit(behind_closing.result)
    behind_blocking = other.submit(int, "6")
    middle = third.submit(behind_blocking.result)
    wait_until(lambda: len(waits) == 3 and filler.running())
    monkeypatch.setattr("boundedexec.slots.found_slot", found_late)
    gates[0].set()
    wait_until(lambda: len(resumes) == 1)
    gates[1].set()
    assert given.wait(LIMIT)
    gates[2].set()
    try:
        assert middle.result(LIMIT / 2) == 6
    finally:
        awake.set()
        bare.set_result(None)
    closing.result(LIMIT)
    assert blocking.result(LIMIT) == 5
    lender.result(LIMIT)


def test_a_body_that_yielded_its_slot_is_told_of_a_circle_too(new_service: NewService) -> None:
    service = new_service(1)

    def yielder(me: AnyFuture) -> bool:
        with pytest.raises(DeadlockError, match="yielder"):
            service.yield_slot(me.result)
        with service.slot_yielded(), pytest.raises(DeadlockError, match="yielder"):
            me.result()
        return service.submit(int).cancel()

    assert submit_knowing(service, yielder).result(LIMIT), "it goes on without its slot"


@pytest.mark.parametrize("bound", [1, 2, 0])
def test_a_run_that_waits_for_the_rerun_that_it_holds_up_is_told(
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


def test_a_run_that_waits_for_who_waits_for_its_rerun_is_told(new_service: NewService) -> None:
    service = new_service(1)
    coalescer = Coalescer[str](service)

    def run() -> Any:
        again = coalescer.submit("key", str, "again")
        return service.submit(lambda: again.exception()).exception()

    assert isinstance(coalescer.submit("key", run).result(LIMIT), DeadlockError)


def test_a_run_that_waits_for_who_already_waits_for_its_rerun_is_told(
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


# Bodies that resume


def test_a_body_that_resumes_is_lent_the_slot_of_one_that_waits_for_it(
    new_service: NewService,
) -> None:
    service, go, order = new_service(1), threading.Event(), list[str]()

    def yielder() -> str:
        service.yield_slot(go.wait)
        order.append("yielder")
        return "yielded"

    def waiter() -> str:
        awaited: list[AnyFuture] = [yielded, service.submit(go.set)]
        boundedexec.wait(awaited)
        order.append("waiter")
        return yielded.result()

    yielded = service.submit(yielder)
    future, decoy = service.submit(waiter), service.submit(order.append, "decoy")
    assert future.result(LIMIT) == "yielded"
    decoy.result(LIMIT)
    assert order == ["yielder", "waiter", "decoy"]


def test_a_body_that_resumed_before_is_lent_the_slot_of_one_that_comes_to_wait_for_it(
    new_service: NewService,
) -> None:
    service, go, order = new_service(1), threading.Event(), list[str]()

    def yielder() -> str:
        service.yield_slot(go.wait)
        order.append("yielder")
        return "yielded"

    def waiter() -> str:
        go.set()
        time.sleep(A_WHILE)
        result = yielded.result()
        order.append("waiter")
        return result

    yielded = service.submit(yielder)
    assert service.submit(waiter).result(LIMIT) == "yielded"
    assert order == ["yielder", "waiter"]


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


def test_a_body_that_yields_while_it_waits_gives_its_slot_to_whoever_is_next(
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


# Done-callbacks are part of the body


def test_a_done_callback_lends_the_slot(new_service: NewService) -> None:
    service, order = new_service(1), list[str]()

    def callback(_: object) -> None:
        decoy = service.submit(int)
        service.submit(order.append, "awaited").result()
        order.append("callback")
        assert decoy.cancel()

    with holding(service):
        service.submit(order.append, "body").add_done_callback(callback)
    assert service.block_till_done(LIMIT)
    assert order == ["body", "awaited", "callback"]


def test_a_done_callback_yields_the_slot(new_service: NewService) -> None:
    service, order, event = new_service(1), list[str](), threading.Event()

    def callback(_: object) -> None:
        service.yield_slot(event.wait)
        order.append("callback")

    with holding(service):
        service.submit(order.append, "body").add_done_callback(callback)
        service.submit(lambda: order.append("next") or event.set())  # type: ignore[func-returns-value]
    assert service.block_till_done(LIMIT)
    assert order == ["body", "next", "callback"]


def test_a_done_callback_that_yields_is_lent_the_slot_of_one_that_waits(
    new_service: NewService,
) -> None:
    """Who waits in vain for a callback's own service would hang both."""
    service, went = new_service(1), threading.Event()
    chained = boundedexec.Future[int]()

    def callback(done: Future[int]) -> None:
        service.yield_slot(went.wait)
        chained.set_result(done.result())

    with holding(service):
        first = service.submit(int, "7")
        first.add_done_callback(callback)
        second = service.submit(lambda: went.set() or first.result())  # type: ignore[func-returns-value]
    assert second.result(LIMIT) == 7
    assert chained.result(LIMIT) == 7


# Depth and width


def test_a_thousand_nested_waits_finish_on_two_slots(new_service: NewService) -> None:
    service = new_service(2)

    def level(n: int) -> int:
        return 1 + service.submit(level, n - 1).result() if n else 0

    assert service.submit(level, 1000).result(LIMIT) == 1000


def test_a_deep_chain_across_two_services_finishes(new_service: NewService) -> None:
    services = [new_service(1), new_service(2)]

    def level(n: int) -> int:
        return 1 + services[n % 2].submit(level, n - 1).result() if n else 0

    assert services[1].submit(level, 300).result(LIMIT) == 300


def test_a_wide_tree_of_waits_finishes_on_few_threads(new_service: NewService) -> None:
    service, threads = new_service(2), set[int]()

    def fibonacci(n: int) -> int:
        threads.add(threading.get_ident())
        if n < 2:
            return n
        children = [service.submit(fibonacci, n - back) for back in (1, 2)]
        return sum(child.result() for child in children)

    assert service.submit(fibonacci, 14).result(LIMIT) == 377
    # Twelve hundred bodies, thirteen waits deep.
    assert len(threads) < 60


def test_a_wait_for_many_own_submissions_is_not_quadratic(new_service: NewService) -> None:
    service = new_service(1)

    def seconds(count: int) -> float:
        futures = [service.submit(int) for _ in range(count)]
        start = time.process_time()  # What other processes do is not asked.
        boundedexec.wait(futures)
        return time.process_time() - start

    def times(count: int) -> list[float]:
        return [service.submit(seconds, count).result(LIMIT) for _ in range(3)]

    # The slowest and the best: without a GIL a wait takes a third of its usual time where
    # its threads happen not to get in each other's way.
    few, many = max(times(1000)), min(times(8000))
    assert many < 30 * few, "eight times as many take eight times as long, not sixty-four"


@pytest.mark.timeout(180)  # Ten seconds, on a machine with nothing else to do.
def test_a_hundred_thousand_bodies_that_wait_need_few_threads(new_service: NewService) -> None:
    service = new_service(4, idle_timeout=None)  # So those ever started are those at once.
    threads: list[str] = []
    seen = threading.local()
    begin = time.monotonic()

    def count() -> None:
        if not hasattr(seen, "after"):
            seen.after = time.monotonic() - begin
            threads.append(f"{threading.current_thread().name} after {seen.after:.2f} s")

    def inner(n: int) -> int:
        count()
        return n

    def outer(n: int) -> int:
        count()
        return service.submit(inner, n).result()

    futures = [service.submit(outer, n) for n in range(100_000)]
    assert service.block_till_done(150)
    assert sum(future.result(0) for future in futures) == sum(range(100_000))
    assert len(threads) <= 16, threads


# The programs of the stdlib's documentation that hang


def test_the_documentations_body_that_waits_for_its_own_submission_finishes(
    new_service: NewService,
) -> None:
    executor = new_service(1)

    def wait_on_future() -> float:
        f = executor.submit(pow, 5, 2)
        return f.result()

    assert executor.submit(wait_on_future).result(LIMIT) == 25


def test_the_documentations_bodies_that_wait_for_each_other_are_told(
    new_service: NewService,
) -> None:
    executor, both = new_service(2), threading.Barrier(3)

    def wait_on_b() -> Any:
        both.wait(LIMIT)
        return b.result()

    def wait_on_a() -> Any:
        both.wait(LIMIT)
        return a.result()

    a: AnyFuture = executor.submit(wait_on_b)
    b: AnyFuture = executor.submit(wait_on_a)
    both.wait(LIMIT)
    error = a.exception(LIMIT)
    assert isinstance(error, DeadlockError) and b.exception(LIMIT) is error
    assert "wait_on_a" in str(error) and "wait_on_b" in str(error)


# Programs that finish on the stdlib's pool do the same here

Make = Callable[[int], Executor]
PROGRAMS: list[Callable[[Make], object]] = []


def program(run: Callable[[Make], object]) -> Callable[[Make], object]:
    PROGRAMS.append(run)
    return run


@program
def two_bodies_hand_each_other_what_they_made(make: Make) -> object:
    left: queue.Queue[int] = queue.Queue()
    right: queue.Queue[int] = queue.Queue()

    def ping(out: queue.Queue[int], back: queue.Queue[int]) -> list[int]:
        got: list[int] = []
        for n in range(20):
            out.put(n)
            got.append(back.get(timeout=LIMIT))
        return got

    with make(2) as executor:
        one, two = executor.submit(ping, left, right), executor.submit(ping, right, left)
        return one.result(LIMIT), two.result(LIMIT)


@program
def a_tree_on_a_pool_that_is_wide_enough(make: Make) -> object:
    with make(16) as executor:

        def count(depth: int) -> int:
            if not depth:
                return 1
            children = [executor.submit(count, depth - 1) for _ in range(2)]
            return 1 + sum(child.result() for child in children)

        return executor.submit(count, 3).result(LIMIT)


@program
def a_body_polls_what_another_slot_will_run(make: Make) -> object:
    with make(2) as executor:
        gate = threading.Event()

        def poll() -> int:
            queued = executor.submit(int, "3")
            for _ in range(1_000_000):
                try:
                    return queued.result(timeout=0.001)
                except concurrent.futures.TimeoutError:
                    gate.set()
            raise AssertionError

        executor.submit(gate.wait)
        return executor.submit(poll).result(LIMIT)


@program
def of_two_that_wait_for_each_other_one_gives_up(make: Make) -> object:
    with make(2) as executor:
        other: queue.Queue[AnyFuture] = queue.Queue()

        def patient() -> Any:
            return other.get(timeout=LIMIT).result()

        def hasty(future: AnyFuture) -> str:
            try:
                future.result(timeout=0.02)
            except concurrent.futures.TimeoutError:
                return "gave up"
            return "never"

        first = executor.submit(patient)
        second = executor.submit(hasty, first)
        other.put(second)
        return first.result(LIMIT), second.result(LIMIT)


@program
def a_body_spawns_whenever_something_ends(make: Make) -> object:
    with make(3) as executor:

        def spawn() -> list[int]:
            pending = {executor.submit(int, n) for n in range(3)}
            seen: list[int] = []
            while pending:
                done, pending = concurrent.futures.wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    seen.append(future.result())
                    if future.result() < 20:
                        pending.add(executor.submit(int, future.result() + 3))
            return sorted(seen)

        return executor.submit(spawn).result(LIMIT)


@program
def bodies_meet_at_a_barrier(make: Make) -> object:
    with make(4) as executor:
        barrier = threading.Barrier(4)
        return sorted(executor.map(barrier.wait, [LIMIT] * 8))


@program
def stages_of_a_pipeline_run_side_by_side(make: Make) -> object:
    with make(3) as executor:
        queues: list[queue.Queue[int | None]] = [queue.Queue(2) for _ in range(2)]

        def source() -> None:
            for n in [*range(30), None]:
                queues[0].put(n, timeout=LIMIT)

        def stage() -> None:
            while (n := queues[0].get(timeout=LIMIT)) is not None:
                queues[1].put(n * n, timeout=LIMIT)
            queues[1].put(None)

        def sink() -> int:
            return sum(iter(lambda: queues[1].get(timeout=LIMIT), None))

        return [executor.submit(each) for each in (source, stage, sink)][2].result(LIMIT)


@program
def a_lock_is_held_while_waiting_for_what_runs(make: Make) -> object:
    with make(2) as executor:
        lock, locked, order = threading.Lock(), threading.Event(), list[str]()

        def runs() -> None:
            assert locked.wait(LIMIT)
            order.append("running")

        def holds() -> None:
            with lock:
                locked.set()
                running.result()
                order.append("holder")

        def wants() -> None:
            with lock:
                order.append("wants")

        running = executor.submit(runs)
        executor.submit(holds)
        executor.submit(wants).result(LIMIT)
        return order


@program
def one_slot_is_a_mutex(make: Make) -> object:
    with make(1) as executor:
        total = 0

        def add() -> None:
            nonlocal total
            before = total
            time.sleep(0)
            total = before + 1

        concurrent.futures.wait([executor.submit(add) for _ in range(200)], LIMIT)
        return total


@program
def a_body_waits_for_what_a_done_callback_sets(make: Make) -> object:
    with make(2) as executor:
        gate, chained = threading.Event(), Future[str]()
        first = executor.submit(gate.wait)
        first.add_done_callback(lambda done: chained.set_result(f"set {done.result()}"))
        second = executor.submit(lambda: chained.result())
        gate.set()
        return second.result(LIMIT)


@program
def a_wait_for_any_is_waited_for_by_one_of_them(make: Make) -> object:
    with make(3) as executor:
        gate, me = threading.Event(), queue.Queue[AnyFuture]()

        def waits_for_any() -> int:
            back = executor.submit(waits_back)
            other = executor.submit(gate.wait)
            threading.Timer(0.01, gate.set).start()
            done, _ = (boundedexec if isinstance(executor, Service) else concurrent.futures).wait(
                [back, other], return_when=FIRST_COMPLETED
            )
            return [back, other].index(done.pop())

        def waits_back() -> Any:
            return me.get(timeout=LIMIT).result()

        future = executor.submit(waits_for_any)
        me.put(future)
        return future.result(LIMIT)


@program
def a_map_in_a_map(make: Make) -> object:
    with make(4) as outer, make(2) as inner:

        def total(n: int) -> int:
            return sum(inner.map(int, range(n)))

        return list(outer.map(total, range(10)))


@program
def a_failure_travels_through_the_waits(make: Make) -> object:
    with make(3) as executor:

        def level(n: int) -> int:
            return executor.submit(level, n - 1).result() if n else int("nothing")

        return repr(executor.submit(level, 2).exception(LIMIT))


@program
def what_is_queued_is_cancelled_by_a_body(make: Make) -> object:
    with make(1) as executor:

        def body() -> list[bool]:
            futures = [executor.submit(int) for _ in range(3)]
            return [future.cancel() for future in futures[::2]]

        return executor.submit(body).result(LIMIT), executor.submit(int).result(LIMIT)


@pytest.mark.parametrize("make", [Service, ThreadPoolExecutor], ids=lambda make: make.__name__)
@pytest.mark.parametrize("run", PROGRAMS, ids=lambda run: run.__name__)
def test_what_finishes_on_the_stdlibs_pool_does_the_same_here(
    run: Callable[[Make], object], make: Make
) -> None:
    assert run(make) == run(concurrent.futures.ThreadPoolExecutor)
