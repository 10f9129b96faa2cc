"""When a body is over, nothing of it is kept, also while others run, wait or lend."""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, collected, full, is_collected, new_service

import boundedexec
from boundedexec import Coalescer, Service

#: So much stands in the queue behind what is looked at.
BEHIND = 5000


class Thing:
    """What a weak reference can be made of."""

    def __call__(self, *_: Any) -> Thing:
        return Thing()


def same(value: Any) -> Any:
    return value


#: How a body waits for one future; what it returns is the result.
BODY_WAITS: dict[str, Callable[[Any], Any]] = {
    "result": lambda future: future.result(),
    "result with a timeout": lambda future: future.result(LIMIT),
    "exception": lambda future: future.exception() or future.result(),
    "wait": lambda future: boundedexec.wait([future]).done.pop().result(),
    "wait with a timeout": lambda future: boundedexec.wait([future], LIMIT).done.pop().result(),
    "wait first": lambda future: (
        boundedexec.wait([future], return_when=boundedexec.FIRST_COMPLETED).done.pop().result()
    ),
    "as_completed": lambda future: next(boundedexec.as_completed([future])).result(),
    "stdlib wait": lambda future: concurrent.futures.wait([future]).done.pop().result(),
    "stdlib as_completed": lambda future: next(concurrent.futures.as_completed([future])).result(),
}
every_wait = pytest.mark.parametrize("how", BODY_WAITS)


def in_a_body(service: Service, act: Callable[[], Any], behind: int = BEHIND) -> Any:
    """What `act` returns in a body with a long queue behind it."""
    ready = threading.Event()

    def body() -> Any:
        assert ready.wait(LIMIT)
        return act()

    future = service.submit(body)
    for _ in range(behind):
        service.submit(int)
    ready.set()
    return future.result(LIMIT)


@pytest.mark.parametrize("behind", [0, BEHIND])
@every_wait
def test_nothing_is_kept_of_what_was_lent_to_while_the_lender_goes_on(
    how: str, behind: int
) -> None:
    service = new_service(1)
    wait_for = BODY_WAITS[how]

    def act() -> bool:
        references: list[Any] = []
        for _ in range(20):
            fn, argument = Thing(), Thing()
            future = service.submit(fn, argument)
            result = wait_for(future)
            references += [weakref.ref(one) for one in (fn, argument, future, result)]
            del fn, argument, future, result
        return collected(*references)

    assert in_a_body(service, act, behind)


@pytest.mark.parametrize("buffersize", [None, 1, 3])
def test_a_map_in_a_body_keeps_none_of_its_results(buffersize: int | None) -> None:
    service = new_service(1)

    def act() -> bool:
        references: list[Any] = []
        iterator = service.map(same, (Thing() for _ in range(50)), buffersize=buffersize)
        for thing in iterator:
            references.append(weakref.ref(thing))
            del thing
        return collected(*references)

    assert in_a_body(service, act)


@pytest.mark.parametrize("buffersize", [None, 3])
def test_a_map_keeps_no_result_that_it_gave(buffersize: int | None) -> None:
    service = new_service(2)
    iterator = service.map(same, (Thing() for _ in range(50)), buffersize=buffersize)
    references = [weakref.ref(next(iterator)) for _ in range(30)]
    assert collected(*references)
    del iterator


def test_nothing_is_kept_of_one_wait_for_many() -> None:
    service = new_service(1)

    def act() -> bool:
        futures = [service.submit(same, Thing()) for _ in range(100)]
        boundedexec.wait(futures)
        references: list[Any] = [weakref.ref(future.result()) for future in futures]
        references += [weakref.ref(future) for future in futures]
        del futures
        return collected(*references)

    assert in_a_body(service, act)


def test_as_completed_keeps_no_future_that_it_gave() -> None:
    service = new_service(1)

    def act() -> bool:
        references: list[Any] = []
        futures = {service.submit(same, Thing()) for _ in range(20)}
        steps = boundedexec.as_completed(futures)
        for future in steps:
            futures.discard(future)
            references += [weakref.ref(future), weakref.ref(future.result())]
            del future
            if len(references) == 20:
                return collected(*references)
        return False

    assert in_a_body(service, act)


def test_nothing_is_kept_of_what_was_lent_to_in_a_chain() -> None:
    service = new_service(1)

    def nested(depth: int, argument: Any) -> Any:
        return service.submit(nested, depth - 1, argument).result() if depth else argument

    def act() -> bool:
        reference = weakref.ref(service.submit(nested, 10, Thing()).result())
        return collected(reference)

    assert in_a_body(service, act)


def test_nothing_is_kept_of_what_was_lent_to_on_the_way_across_services() -> None:
    service, other = new_service(1), new_service(1)

    def crossing(argument: Any) -> Any:
        return service.submit(same, argument).result()

    def act() -> bool:
        return collected(weakref.ref(other.submit(crossing, Thing()).result()))

    assert in_a_body(service, act)


def test_a_borrower_that_outlasted_its_wait_leaves_nothing() -> None:
    service, gate = new_service(1), Gate()

    def act() -> bool:
        thing = Thing()
        reference = weakref.ref(thing)
        future = service.submit(gate, thing)
        del thing
        while not gate.entered.is_set():
            try:
                future.result(0.02)
            except boundedexec.TimeoutError:
                pass
        gate.open()
        boundedexec.wait([future])
        references: list[Any] = [reference, weakref.ref(future)]
        del future
        return collected(*references)

    assert in_a_body(service, act)


def test_a_lend_that_was_withdrawn_keeps_nothing_once_it_is_cancelled_or_over() -> None:
    service = new_service(1)

    def act() -> Any:
        thing = Thing()
        futures = [service.submit(same, thing) for _ in range(3)]
        for future in futures:
            boundedexec.wait([future], 0)
        boundedexec.wait(futures, 0.0001)
        return weakref.ref(thing)

    reference = service.submit(act).result(LIMIT)
    assert service.block_till_done(LIMIT)
    assert collected(reference)


def test_a_yielded_slots_callable_and_result_are_not_kept() -> None:
    service = new_service(1)

    def act() -> bool:
        fn, argument = Thing(), Thing()
        references = [weakref.ref(one) for one in (fn, argument)]
        references.append(weakref.ref(service.yield_slot(fn, argument)))
        del fn, argument
        return collected(*references)

    assert in_a_body(service, act)


# What runs while others run.


@pytest.mark.parametrize("make", [new_service, boundedexec.ThreadPoolExecutor])
def test_an_idle_thread_keeps_nothing(make: Callable[..., Any]) -> None:
    service = make(2, daemon=True)
    fn, argument = Thing(), Thing()
    future = service.submit(fn, argument)
    references: list[Any] = [weakref.ref(one) for one in (fn, argument, future)]
    references.append(weakref.ref(future.result(LIMIT)))
    del fn, argument, future
    assert collected(*references)


def test_a_body_that_runs_keeps_nothing_of_what_ran_before_on_its_thread() -> None:
    service, gate = new_service(1), Gate()
    fn, argument = Thing(), Thing()
    futures = [service.submit(fn, argument), service.submit(gate)]
    for _ in range(BEHIND):
        service.submit(int)
    gate.wait_entered()
    references: list[Any] = [weakref.ref(one) for one in (fn, argument, futures[0])]
    references.append(weakref.ref(futures[0].result(LIMIT)))
    del fn, argument, futures
    assert collected(*references)
    gate.open()


def test_callbacks_are_not_kept() -> None:
    service, gate = new_service(1), Gate()
    callback = Thing()
    future = service.submit(gate)
    future.add_done_callback(callback)
    gate.open()
    future.result(LIMIT)
    assert service.block_till_done(LIMIT)
    reference = weakref.ref(callback)
    del callback, future
    assert collected(reference)


def test_a_bodys_context_is_not_kept() -> None:
    variable: ContextVar[Any] = ContextVar("variable")
    service = new_service(1)

    def submit() -> Any:
        thing = Thing()
        variable.set(thing)
        service.submit(lambda: variable.set(Thing())).result(LIMIT)
        return weakref.ref(thing)

    reference = copy_context().run(submit)
    assert collected(reference)

    def set_it() -> Any:
        thing = Thing()
        variable.set(thing)
        return weakref.ref(thing)

    assert collected(service.submit(set_it).result(LIMIT))

    def act() -> bool:
        return collected(service.submit(set_it).result())

    assert in_a_body(service, act)


# Failures.


def fail_with(*_: Any) -> None:
    thing = Thing()
    thing.me = thing  # type: ignore[attr-defined]
    raise ValueError(weakref.ref(thing))


@every_wait
def test_a_failed_bodys_locals_go_with_its_exception(how: str) -> None:
    service = new_service(1)

    def act() -> bool:
        argument = Thing()
        references = [weakref.ref(argument)]
        future: Any = service.submit(fail_with, argument)
        references.append(weakref.ref(future))
        del argument
        try:
            BODY_WAITS[how](future)
        except ValueError as error:
            references.append(error.args[0])
        del future
        return collected(*references)

    assert in_a_body(service, act)


def test_an_exception_that_is_kept_keeps_neither_its_future_nor_other_bodies() -> None:
    service = new_service(1)
    future: Any = service.submit(fail_with)
    error = future.exception(LIMIT)
    references = [weakref.ref(future)]
    del future
    for _ in range(3):
        argument, fn = Thing(), Thing()
        references += [weakref.ref(argument), weakref.ref(fn)]
        later: Any = service.submit(fn, argument)
        references += [weakref.ref(later.result(LIMIT)), weakref.ref(later)]
        del argument, fn, later
    assert collected(*references)
    assert error.args[0]() is not None  # A traceback keeps its own body's locals.
    del error


def test_an_exception_that_is_kept_does_not_keep_the_service() -> None:
    service: Any = new_service(1)
    error = service.submit(fail_with).exception(LIMIT)

    def nest(service: Service) -> Any:
        return service.submit(fail_with).exception()

    nested = service.submit(nest, service).result(LIMIT)
    reference = weakref.ref(service)
    del service
    assert collected(reference)
    del error, nested


def test_a_future_that_is_kept_does_not_keep_the_callable_its_arguments_or_the_service() -> None:
    service: Any = new_service(1)
    fn, argument = Thing(), Thing()
    future = service.submit(fn, argument)
    future.result(LIMIT)
    references: list[Any] = [weakref.ref(one) for one in (fn, argument, service)]
    del fn, argument, service
    assert collected(*references)
    assert future.done()


def test_a_kept_iterator_of_map_keeps_no_service() -> None:
    service: Any = new_service(1)
    iterator = service.map(same, range(10))
    next(iterator)
    reference = weakref.ref(service)
    assert service.block_till_done(LIMIT)
    del service
    assert collected(reference)
    assert list(iterator) == list(range(1, 10))


# Coalescer.


def test_a_coalescers_run_leaves_nothing() -> None:
    service = new_service(2)
    coalescer: Coalescer[Any] = Coalescer(service)
    references: list[Any] = []
    for _ in range(20):
        key, fn, argument = Thing(), Thing(), Thing()
        future: Any = coalescer.submit(key, fn, argument)
        references += [weakref.ref(one) for one in (key, fn, argument, future)]
        references.append(weakref.ref(future.result(LIMIT)))
        del key, fn, argument, future
    assert collected(*references)
    assert len(coalescer) == 0


def test_a_coalescers_run_that_was_lent_to_leaves_nothing() -> None:
    service = new_service(1)
    coalescer: Coalescer[Any] = Coalescer(service)

    def act() -> bool:
        references: list[Any] = []
        for _ in range(20):
            key, fn, argument = Thing(), Thing(), Thing()
            future: Any = coalescer.submit(key, fn, argument)
            references += [weakref.ref(one) for one in (key, fn, argument, future)]
            references.append(weakref.ref(future.result()))
            del key, fn, argument, future
        return collected(*references)

    assert in_a_body(service, act)


def test_what_a_later_submit_replaced_is_not_kept() -> None:
    service, gate = new_service(1), Gate()
    coalescer: Coalescer[str] = Coalescer(service)
    coalescer.submit("key", gate)
    gate.wait_entered()
    references: list[Any] = []
    argument = owed = None
    for _ in range(200):
        argument = Thing()
        owed = coalescer.submit("key", same, argument)
        references.append(weakref.ref(argument))
    del argument
    assert collected(*references[:-1])
    assert references[-1]() is not None
    gate.open()
    assert owed is not None
    assert isinstance(owed.result(LIMIT), Thing)


def test_a_chain_of_reruns_keeps_none_of_those_before() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)
    references: list[Any] = []
    gate = Gate()
    future: Any = coalescer.submit("key", gate, Thing())
    for _ in range(10):
        gate.wait_entered()
        following = Gate()
        owed = coalescer.submit("key", following, Thing())
        gate.open()
        references += [weakref.ref(future.result(LIMIT)), weakref.ref(future)]
        future, gate = owed, following
        del owed
    gate.wait_entered()
    assert collected(*references)  # While a run of the key executes.
    gate.open()
    future.result(LIMIT)


def test_a_cancelled_run_leaves_nothing() -> None:
    service = new_service(1)
    coalescer: Coalescer[Any] = Coalescer(service)
    with full(service):
        key, argument = Thing(), Thing()
        future: Any = coalescer.submit(key, same, argument)
        assert future.cancel()
        references = [weakref.ref(one) for one in (key, argument)]
        del key, argument, future
        assert len(coalescer) == 0
    assert service.block_till_done(LIMIT)
    assert collected(*references)


def test_a_failed_run_leaves_nothing() -> None:
    service = new_service(1)
    coalescer: Coalescer[Any] = Coalescer(service)
    key = Thing()
    future: Any = coalescer.submit(key, fail_with)
    error: Any = future.exception(LIMIT)
    references = [weakref.ref(key), weakref.ref(future)]
    inside = error.args[0]
    del key, future
    assert collected(*references)
    del error
    assert collected(inside)


def test_a_service_with_a_coalescer_may_be_collected() -> None:
    service: Any = new_service(1)
    coalescer: Any = Coalescer[str](service)
    assert coalescer.submit("key", pow, 2, 3).result(LIMIT) == 8
    references = [weakref.ref(service), weakref.ref(coalescer)]
    del service, coalescer
    assert collected(*references)


def test_a_finished_wait_leaves_no_reference_in_a_future_that_is_kept() -> None:
    service, gate = new_service(2), Gate()
    running = service.submit(gate)

    def act() -> Any:
        thing = Thing()
        boundedexec.wait([running, service.submit(same, thing)], return_when="FIRST_COMPLETED")
        concurrent.futures.wait([running], 0.01)
        return weakref.ref(thing)

    reference = service.submit(act).result(LIMIT)
    assert collected(reference)
    assert not is_collected(weakref.ref(running))
    gate.open()
