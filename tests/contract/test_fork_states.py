"""After a fork the child's copy of a service is empty and works, whatever the parent was doing."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, fork_and_say, in_thread, new_service, slots_fault

import boundedexec
from boundedexec import Coalescer, Service

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


class State:
    """A service in some state at the fork: its slots, what is unfinished, how it ends."""

    def __init__(self, service: Service, workers: int) -> None:
        self.service = service
        self.workers = workers
        self.unfinished: list[Any] = []
        self.gates: list[Gate] = []
        self.coalescers: list[Any] = []
        self.called: list[str] = []

    def gate(self) -> Gate:
        self.gates.append(Gate())
        return self.gates[-1]

    def pending(self, future: concurrent.futures.Future[Any]) -> Any:
        """`future` is unfinished at the fork; none of its callbacks may run in the child."""
        parent = os.getpid()
        future.add_done_callback(
            lambda _: self.called.append("in the child") if os.getpid() != parent else None
        )
        self.unfinished.append(future)
        return future


def idle() -> State:
    state = State(new_service(2), 2)
    state.service.submit(pow, 2, 3).result(LIMIT)
    return state


def never_used() -> State:
    return State(new_service(2), 2)


def running(workers: int = 1) -> State:
    state = State(new_service(workers), workers)
    for _ in range(workers):
        gate = state.gate()
        state.pending(state.service.submit(gate))
        gate.wait_entered()
    return state


def queued() -> State:
    state = running(2)
    for n in range(10):
        state.pending(state.service.submit(pow, 2, n))
    return state


def lent(timeout: float | None = None) -> State:
    state = State(new_service(1), 1)
    gate = state.gate()

    def body() -> Any:
        return state.pending(state.service.submit(gate)).result(timeout)

    state.pending(state.service.submit(body))
    gate.wait_entered()
    state.pending(state.service.submit(pow, 2, 3))
    return state


def lent_with_a_timeout() -> State:
    return lent(LIMIT)


def lent_after_a_timeout() -> State:
    state = State(new_service(1), 1)
    gate, after = state.gate(), state.gate()

    def body() -> Any:
        future = state.pending(state.service.submit(gate))
        while not gate.entered.is_set():
            try:
                future.result(0.02)
            except boundedexec.TimeoutError:
                pass
        return after()

    state.pending(state.service.submit(body))
    after.wait_entered()
    return state


def yielded() -> State:
    state = State(new_service(1), 1)
    gate = state.gate()
    state.pending(state.service.submit(lambda: state.service.yield_slot(gate)))
    gate.wait_entered()
    other = state.gate()
    state.pending(state.service.submit(other))
    other.wait_entered()
    return state


def resuming() -> State:
    state = State(new_service(1), 1)
    gate = state.gate()

    def body() -> None:
        state.pending(state.service.submit(gate))
        state.service.yield_slot(gate.wait_entered)

    state.pending(state.service.submit(body))
    gate.wait_entered()
    return state


def crosswise() -> State:
    state, other = State(new_service(1), 1), new_service(1)
    gate = state.gate()

    def back() -> Any:
        return state.pending(state.service.submit(gate)).result()

    state.pending(state.service.submit(lambda: state.pending(other.submit(back)).result()))
    gate.wait_entered()
    return state


def coalesced() -> State:
    state = State(new_service(1), 1)
    coalescer: Coalescer[str] = Coalescer(state.service)
    state.coalescers.append(coalescer)
    gate = state.gate()
    state.pending(coalescer.submit("key", gate))
    gate.wait_entered()
    state.pending(coalescer.submit("key", pow, 2, 3))
    state.pending(coalescer.submit("other", pow, 2, 3))
    return state


def resized() -> State:
    state = running(3)
    state.service.max_workers = 1
    state.workers = 1
    state.pending(state.service.submit(pow, 2, 3))
    return state


def enlarged() -> State:
    state = running(1)
    state.service.max_workers = 3
    state.workers = 3
    return state


def in_a_callback() -> State:
    state = State(new_service(1), 1)
    gate, first = state.gate(), state.gate()
    future = state.service.submit(first)
    future.add_done_callback(lambda _: gate())
    first.open()
    gate.wait_entered()
    state.pending(state.service.submit(pow, 2, 3))
    return state


def in_an_initializer() -> State:
    gate = Gate()
    parent = os.getpid()
    state = State(new_service(1, initializer=lambda: os.getpid() == parent and gate()), 1)
    state.gates.append(gate)
    state.pending(state.service.submit(pow, 2, 3))
    gate.wait_entered()
    return state


def drop_in() -> State:
    state = State(boundedexec.ThreadPoolExecutor(2, daemon=True), 2)
    for _ in range(2):
        gate = state.gate()
        state.pending(state.service.submit(gate))
        gate.wait_entered()
    state.pending(state.service.submit(pow, 2, 3))
    return state


STATES: list[Callable[[], State]] = [
    idle,
    never_used,
    running,
    queued,
    lent,
    lent_with_a_timeout,
    lent_after_a_timeout,
    yielded,
    resuming,
    crosswise,
    coalesced,
    resized,
    enlarged,
    in_a_callback,
    in_an_initializer,
    drop_in,
]


def look(state: State) -> list[str]:
    """What is wrong with the service in the child."""
    wrong: list[str] = []
    service = state.service
    for future in state.unfinished:
        if not future.cancelled():
            wrong.append(f"{future!r} is not cancelled")
    if len(concurrent.futures.wait(state.unfinished, 2).not_done):
        wrong.append("a wait for unfinished futures does not end")
    if state.called:
        wrong.append("a callback ran")
    if service.is_shut_down:
        wrong.append("it is shut down")
    wrong += [fault for fault in [slots_fault(service, state.workers, 5)] if fault]
    nested = service.submit(lambda: service.submit(pow, 2, 3).result()).result(5)
    if nested != 8:
        wrong.append("a nested wait does not work")
    yields = service.submit(lambda: service.yield_slot(service.submit(pow, 2, 3).result)).result(5)
    if yields != 8:
        wrong.append("a yielded slot does not work")
    for coalescer in state.coalescers:
        if len(coalescer) or "key" in coalescer:
            wrong.append("the Coalescer is not empty")
        if coalescer.submit("key", pow, 2, 3).result(5) != 8:
            wrong.append("the Coalescer does not work")
    in_thread(service.shutdown, 5)
    return wrong


@pytest.mark.parametrize("make", STATES)
def test_the_childs_copy_is_empty_and_works(make: Callable[[], State]) -> None:
    state = make()
    try:
        assert fork_and_say(lambda: look(state)) == []
    finally:
        for gate in state.gates:
            gate.open()
    # The parent goes on as if nothing had been.
    for future in state.unfinished:
        future.result(LIMIT)
    fault = slots_fault(state.service, state.workers)
    assert fault == "", fault


@pytest.mark.parametrize("wait", [True, False])
def test_a_service_that_was_shut_down_stays_so(wait: bool) -> None:
    service, gate = new_service(1), Gate()
    future = service.submit(gate)
    gate.wait_entered()
    if wait:
        gate.open()
    service.shutdown(wait=wait)

    def child() -> list[Any]:
        said = ""
        try:
            service.submit(pow, 2, 3)
        except RuntimeError as error:
            said = str(error)
        service.shutdown()
        return [service.is_shut_down, said, service.block_till_done(5), future.cancelled()]

    said = fork_and_say(child)
    gate.open()
    assert said == [True, "cannot schedule new futures after shutdown", True, not wait]


# The body that forks.


def use(service: Service, workers: int) -> list[Any]:
    """Use the child's copy of `service` on the thread that forked, and on another."""
    seen = [service.submit(pow, 2, 3).result(5)]
    seen += list(service.map(abs, [-1, -2]))
    seen.append(in_thread(lambda: slots_fault(service, workers, 5), 15))
    return seen


USED = [8, 1, 2, ""]


def forks_plainly(service: Service) -> Any:
    return fork_and_say(lambda: use(service, 1))


def forks_in_yield_slot(service: Service) -> Any:
    return service.yield_slot(forks_plainly, service)


def forks_in_slot_yielded(service: Service) -> Any:
    with service.slot_yielded():
        return forks_plainly(service)


def forks_and_leaves_slot_yielded(service: Service) -> Any:
    def child() -> Any:
        stack.__exit__(None, None, None)
        return use(service, 1)

    stack = service.slot_yielded()
    stack.__enter__()
    said = fork_and_say(child)
    stack.__exit__(None, None, None)
    return said


def forks_and_yields(service: Service) -> Any:
    def child() -> Any:
        try:
            yielded = service.yield_slot(pow, 2, 3)
        except RuntimeError:
            yielded = 8  # The body is not one of the child's service, then.
        return [yielded, *use(service, 1)[1:]]

    return fork_and_say(child)


def forks_while_lent(service: Service) -> Any:
    return service.submit(forks_plainly, service).result()


def forks_with_its_slot_still_lent(service: Service) -> Any:
    gate = Gate()
    future = service.submit(gate)
    while not gate.entered.is_set():
        try:
            future.result(0.02)
        except boundedexec.TimeoutError:
            pass
    said = fork_and_say(lambda: [*use(service, 1), future.cancelled()])
    gate.open()
    return said[:-1] if said[-1] is True else said


def forks_with_others_queued(service: Service) -> Any:
    future = service.submit(pow, 2, 3)
    said = fork_and_say(lambda: [*use(service, 1), future.cancelled()])
    return said[:-1] if said[-1] is True else said


def forks_in_a_callback(service: Service) -> Any:
    said: list[Any] = []
    gate = Gate()
    future = service.submit(gate)
    future.add_done_callback(lambda _: said.append(forks_plainly(service)))
    gate.open()
    boundedexec.wait([future, service.submit(int)])
    return said[0]


FORKS = [
    forks_plainly,
    forks_in_yield_slot,
    forks_in_slot_yielded,
    forks_and_leaves_slot_yielded,
    forks_and_yields,
    forks_while_lent,
    forks_with_its_slot_still_lent,
    forks_with_others_queued,
    forks_in_a_callback,
]


@pytest.mark.parametrize("body", FORKS)
def test_a_body_that_forks_finds_its_service_empty_and_working(
    body: Callable[[Service], Any],
) -> None:
    service = new_service(1)
    assert service.submit(body, service).result(LIMIT * 3) == USED
    fault = slots_fault(service, 1)
    assert fault == "", fault


def test_a_coalescers_run_that_forks_finds_it_empty() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)

    def child() -> list[Any]:
        seen = [len(coalescer), "key" in coalescer]
        return [*seen, coalescer.submit("key", pow, 2, 3).result(5), *use(service, 1)]

    def run() -> Any:
        return fork_and_say(child)

    assert coalescer.submit("key", run).result(LIMIT * 3) == [0, False, 8, *USED]


def test_a_map_that_is_under_way_is_cancelled_in_the_child() -> None:
    service, gate = new_service(1), Gate()

    def body(n: int) -> int:
        return int(gate(n)) if n else n

    iterator = service.map(body, range(5))
    assert next(iterator) == 0
    gate.wait_entered()

    def child() -> str:
        try:
            next(iterator)
        except concurrent.futures.CancelledError:
            return "cancelled"
        return "a result"

    said = fork_and_say(child)
    gate.open()
    assert said == "cancelled"
    assert list(iterator) == [1, 2, 3, 4]


def test_a_child_may_fork_again() -> None:
    state = queued()
    try:
        assert fork_and_say(lambda: fork_and_say(lambda: look(state))) == []
    finally:
        for gate in state.gates:
            gate.open()


def test_max_queued_counts_from_zero_in_the_child() -> None:
    service, gate = new_service(1, max_queued=1), Gate()
    service.submit(gate)
    gate.wait_entered()
    queued_one = service.submit(pow, 2, 3)
    said = fork_and_say(lambda: service.submit(pow, 2, 4).result(5))
    gate.open()
    assert said == 16
    assert queued_one.result(LIMIT) == 8
