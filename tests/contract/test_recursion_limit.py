"""Near the recursion limit a call works or raises `RecursionError`, and leaves a usable service."""

from __future__ import annotations

import concurrent.futures
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, in_thread, near_the_limit, new_service, slots_fault

import boundedexec
from boundedexec import Coalescer, Service, TaskGroup

#: How many frames are left, about: from too few for anything to enough for all.
SLACKS = [*range(2, 13), *range(14, 41, 2)]

#: Seconds that one body too many is given to start, in each of many checks.
BRIEFLY = 0.005

WORKERS = 2


@pytest.fixture(autouse=True)
def finalizers_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is called at the limit cannot raise, and pytest's hook would need frames."""
    monkeypatch.setattr(sys, "unraisablehook", lambda *_: None)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Case:
    """A call to be made near the limit, and what lets the service end afterwards."""

    def __init__(self, call: Callable[[], Any], *gates: Gate, futures: Any = ()) -> None:
        self.call = call
        self.gates = gates
        self.futures = list(futures)


def used(service: Service) -> Service:
    service.submit(pow, 2, 3).result(LIMIT)
    assert service.block_till_done(LIMIT)
    return service


def busy(service: Service, count: int = WORKERS) -> list[Gate]:
    gates = [Gate() for _ in range(count)]
    for gate in gates:
        service.submit(gate)
        gate.wait_entered()
    return gates


def first_submit(service: Service) -> Case:
    return Case(lambda: service.submit(pow, 2, 3))


def submit_to_an_idle_thread(service: Service) -> Case:
    used(service)
    return Case(lambda: service.submit(pow, 2, 3))


def submit_to_a_queue(service: Service) -> Case:
    gates = busy(service)
    return Case(lambda: service.submit(pow, 2, 3), *gates)


def cancel(service: Service) -> Case:
    gates = busy(service)
    future = service.submit(pow, 2, 3)
    future.add_done_callback(lambda _: None)
    return Case(future.cancel, *gates)


def cancel_of_what_is_over(service: Service) -> Case:
    future = service.submit(pow, 2, 3)
    future.result(LIMIT)
    return Case(future.cancel)


def result(service: Service) -> Case:
    return Case(service.submit(pow, 2, 3).result)


def result_with_a_timeout(service: Service) -> Case:
    return Case(lambda: service.submit(pow, 2, 3).result(LIMIT))


def exception(service: Service) -> Case:
    return Case(service.submit(int, "x").exception)


def wait(service: Service) -> Case:
    futures = [service.submit(pow, 2, n) for n in range(3)]
    return Case(lambda: boundedexec.wait(futures))


def wait_for_first(service: Service) -> Case:
    futures = [service.submit(pow, 2, n) for n in range(3)]
    return Case(lambda: boundedexec.wait(futures, return_when=boundedexec.FIRST_COMPLETED))


def as_completed(service: Service) -> Case:
    futures = [service.submit(pow, 2, n) for n in range(3)]
    return Case(lambda: list(boundedexec.as_completed(futures)))


def map_(service: Service) -> Case:
    return Case(lambda: list(service.map(abs, range(3))))


def map_with_buffersize(service: Service) -> Case:
    return Case(lambda: list(service.map(abs, range(5), buffersize=2)))


def add_done_callback(service: Service) -> Case:
    gates = busy(service, 1)
    future = service.submit(gates[0])
    return Case(lambda: future.add_done_callback(lambda _: None), *gates)


def add_done_callback_to_what_is_over(service: Service) -> Case:
    future = service.submit(pow, 2, 3)
    future.result(LIMIT)
    return Case(lambda: future.add_done_callback(lambda _: None))


def block_till_done(service: Service) -> Case:
    for n in range(3):
        service.submit(pow, 2, n)
    return Case(lambda: service.block_till_done(LIMIT))


def set_larger(service: Service) -> Case:
    gates = busy(service)
    service.submit(pow, 2, 3)

    def call() -> None:
        service.max_workers = WORKERS + 1

    return Case(call, *gates)


def set_smaller(service: Service) -> Case:
    gates = busy(service)

    def call() -> None:
        service.max_workers = 1

    return Case(call, *gates)


def read_everything(service: Service) -> Case:
    gates = busy(service)
    future = service.submit(pow, 2, 3)
    return Case(
        lambda: (
            repr(service),
            service.max_workers,
            service.is_shut_down,
            future.running(),
            future.done(),
            repr(future),
        ),
        *gates,
    )


def coalesce(service: Service) -> Case:
    coalescer: Coalescer[str] = Coalescer(service)
    return Case(lambda: coalescer.submit("key", pow, 2, 3))


def coalesce_joining(service: Service) -> Case:
    gates = busy(service)
    coalescer: Coalescer[str] = Coalescer(service)
    futures = [coalescer.submit("key", pow, 2, 3)]
    return Case(lambda: coalescer.submit("key", pow, 2, 4), *gates, futures=futures)


def coalesce_owing(service: Service) -> Case:
    coalescer, gate = Coalescer[str](service), Gate()
    futures: list[Any] = [coalescer.submit("key", gate)]
    gate.wait_entered()
    return Case(lambda: coalescer.submit("key", pow, 2, 3), gate, futures=futures)


def coalesce_cancel(service: Service) -> Case:
    gates = busy(service)
    return Case(Coalescer[str](service).submit("key", pow, 2, 3).cancel, *gates)


def coalesce_cancel_owed(service: Service) -> Case:
    coalescer, gate = Coalescer[str](service), Gate()
    futures: list[Any] = [coalescer.submit("key", gate)]
    gate.wait_entered()
    return Case(coalescer.submit("key", pow, 2, 3).cancel, gate, futures=futures)


def coalesce_join(service: Service) -> Case:
    coalescer: Coalescer[str] = Coalescer(service)
    return Case(lambda: coalescer.join("key", pow, 2, 3))


CALLS: list[Callable[[Service], Case]] = [
    first_submit,
    submit_to_an_idle_thread,
    submit_to_a_queue,
    cancel,
    cancel_of_what_is_over,
    result,
    result_with_a_timeout,
    exception,
    wait,
    wait_for_first,
    as_completed,
    map_,
    map_with_buffersize,
    add_done_callback,
    add_done_callback_to_what_is_over,
    block_till_done,
    set_larger,
    set_smaller,
    read_everything,
    coalesce,
    coalesce_joining,
    coalesce_owing,
    coalesce_cancel,
    coalesce_cancel_owed,
    coalesce_join,
]


def call_near_the_limit(slack: int, call: Callable[[], Any]) -> bool:
    """Whether it was too deep."""
    try:
        near_the_limit(slack, call)
    except RecursionError:
        return True
    return False


@pytest.mark.parametrize("make", CALLS)
def test_a_call_outside_a_body(make: Callable[[Service], Case]) -> None:
    depths: list[bool] = []
    for slack in SLACKS:
        service = new_service(WORKERS)
        case = make(service)
        depths.append(call_near_the_limit(slack, case.call))
        for gate in case.gates:
            gate.open()
        fault = slots_fault(service, service.max_workers or 0, 3, BRIEFLY)
        assert fault == "", f"slack {slack}: {fault}"
        for future in case.futures:
            assert future.exception(LIMIT) is None, f"slack {slack}"
    assert not depths[-1], "the last is deep enough for the call to work"


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_shutdown(cancel_futures: bool) -> None:
    for slack in SLACKS:
        service = new_service(WORKERS)
        gates = busy(service)
        futures = [service.submit(pow, 2, 3) for _ in range(3)]

        def call(service: Service = service) -> None:
            service.shutdown(wait=False, cancel_futures=cancel_futures)

        call_near_the_limit(slack, call)
        for gate in gates:
            gate.open()
        concurrent.futures.wait(futures, 3)
        assert all(future.done() for future in futures), f"slack {slack}"
        assert service.block_till_done(3), f"slack {slack}"
        service.shutdown(wait=False)
        assert service.block_till_done(3), f"slack {slack}"


# In a body, where waits lend and slots are yielded.


def lends(service: Service) -> Callable[[], Any]:
    return lambda: service.submit(pow, 2, 3).result()


def lends_to_queued(service: Service) -> Callable[[], Any]:
    return service.submit(pow, 2, 3).result


def lends_with_a_timeout(service: Service) -> Callable[[], Any]:
    future = service.submit(pow, 2, 3)
    return lambda: future.result(LIMIT)


def lends_by_exception(service: Service) -> Callable[[], Any]:
    return service.submit(pow, 2, 3).exception


def lends_by_wait(service: Service) -> Callable[[], Any]:
    futures = [service.submit(pow, 2, n) for n in range(3)]
    return lambda: boundedexec.wait(futures)


def lends_by_as_completed(service: Service) -> Callable[[], Any]:
    futures = [service.submit(pow, 2, n) for n in range(3)]
    return lambda: list(boundedexec.as_completed(futures))


def lends_by_map(service: Service) -> Callable[[], Any]:
    return lambda: list(service.map(abs, range(3)))


def lends_by_the_stdlibs_wait(service: Service) -> Callable[[], Any]:
    futures = [service.submit(pow, 2, n) for n in range(3)]
    return lambda: concurrent.futures.wait(futures, 3)


def lends_to_a_run(service: Service) -> Callable[[], Any]:
    return Coalescer[str](service).submit("key", pow, 2, 3).result


def yields(service: Service) -> Callable[[], Any]:
    return lambda: service.yield_slot(pow, 2, 3)


def yields_to_what_is_queued(service: Service) -> Callable[[], Any]:
    future = service.submit(pow, 2, 3)
    return lambda: service.yield_slot(future.result)


def yields_by_with(service: Service) -> Callable[[], Any]:
    def call() -> None:
        with service.slot_yielded():
            pass

    return call


def submits(service: Service) -> Callable[[], Any]:
    return lambda: service.submit(pow, 2, 3)


def resizes(service: Service) -> Callable[[], Any]:
    def call() -> None:
        service.max_workers = WORKERS

    return call


def is_refused(service: Service) -> Callable[[], Any]:
    def call() -> None:
        for act in service.block_till_done, service.shutdown:
            try:
                act()
            except RecursionError:
                raise
            except RuntimeError:
                pass

    return call


BODIES: list[Callable[[Service], Callable[[], Any]]] = [
    lends,
    lends_to_queued,
    lends_with_a_timeout,
    lends_by_exception,
    lends_by_wait,
    lends_by_as_completed,
    lends_by_map,
    lends_by_the_stdlibs_wait,
    lends_to_a_run,
    yields,
    yields_to_what_is_queued,
    yields_by_with,
    submits,
    resizes,
    is_refused,
]


@pytest.mark.parametrize("caught", [True, False])
@pytest.mark.parametrize("make", BODIES)
def test_a_call_in_a_body(make: Callable[[Service], Callable[[], Any]], caught: bool) -> None:
    depths: list[bool] = []
    for slack in SLACKS:
        service = new_service(WORKERS)
        meeting = threading.Barrier(WORKERS)

        def body(
            slack: int = slack,
            service: Service = service,
            meeting: threading.Barrier = meeting,
        ) -> bool:
            meeting.wait(LIMIT)  # The service is full.
            call = make(service)
            if caught:
                return call_near_the_limit(slack, call)
            near_the_limit(slack, call)
            return False

        futures = [service.submit(body) for _ in range(WORKERS)]
        for future in futures:
            try:
                depths.append(future.result(5))
            except RecursionError:
                depths.append(True)
            del future
        fault = slots_fault(service, WORKERS, 3, BRIEFLY)
        assert fault == "", f"slack {slack}: {fault}"
    assert not depths[-1], "the last is deep enough for the call to work"


def test_recursive_bodies_that_submit_until_it_is_too_deep_leave_a_usable_service() -> None:
    service = new_service(WORKERS)

    def deeper(levels: int) -> None:
        service.submit(pow, 2, 3)
        deeper(levels + 1)

    futures = [service.submit(deeper, 0) for _ in range(3)]
    for future in futures:
        assert isinstance(future.exception(LIMIT), RecursionError)
    fault = slots_fault(service, WORKERS)
    assert fault == "", fault


def test_a_callback_near_the_limit_leaves_a_usable_service() -> None:
    for slack in SLACKS:
        service, gate = new_service(1), Gate()
        future = service.submit(gate)

        def callback(_: Any, slack: int = slack, service: Service = service) -> None:
            call_near_the_limit(slack, lambda: service.submit(pow, 2, 3).result())

        future.add_done_callback(callback)
        gate.open()
        fault = slots_fault(service, 1, 3, BRIEFLY)
        assert fault == "", f"slack {slack}: {fault}"


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("what", ["submit", "cancel", "the end"])
def test_a_group_near_the_limit_leaves_no_future_unresolved(
    limit: int | None, what: str, count: int
) -> None:
    for slack in [*SLACKS, *range(42, 71, 4)]:
        service = new_service(1)
        futures: list[Any] = []
        group = TaskGroup(service, limit=limit)
        acts: dict[str, Callable[[], object]] = {
            "submit": partial(group.submit, int),
            "cancel": group.cancel,
            "the end": partial(group.__exit__, None, None, None),
        }
        in_thread(partial(_use_near_the_limit, group, futures, count, acts[what], slack))
        assert all(future.done() for future in futures), f"slack {slack}"
        fault = slots_fault(service, 1, 3, BRIEFLY)
        assert fault == "", f"slack {slack}: {fault}"


def _use_near_the_limit(
    group: TaskGroup, futures: list[Any], count: int, act: Callable[[], object], slack: int
) -> None:
    with group:
        futures += [group.submit(int) for _ in range(count)]
        call_near_the_limit(slack, act)
