"""Costs that must not grow with what they have nothing to do with. Only processor time counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from contract_helpers import new_service

import boundedexec
from boundedexec import Coalescer, Service, TaskGroup

LIMIT = 50.0

#: What is flat may take so many times as long, on a machine with other work to do.
FLAT = 6.0

FEW, MANY = 20, 2000


@pytest.fixture(autouse=True)
def _small_stacks() -> Iterator[None]:
    before = threading.stack_size(256 * 1024)
    yield
    threading.stack_size(before)


@contextmanager
def waits(count: int) -> Generator[None]:
    """`count` bodies of another service that wait for one of it."""
    elsewhere, gate = Service.unbounded(daemon=True), threading.Event()
    begun = threading.Semaphore(0)
    awaited = elsewhere.submit(gate.wait, LIMIT)

    def body() -> None:
        begun.release()
        awaited.result()

    for _ in range(count):
        elsewhere.submit(body)
    for _ in range(count):
        assert begun.acquire(timeout=LIMIT)
    time.sleep(0.1)  # So that most of them wait; it decides nothing.
    try:
        yield
    finally:
        gate.set()
        assert elsewhere.block_till_done(LIMIT)
        elsewhere.shutdown(wait=False)


def begin_and_wait(begun: threading.Semaphore, gate: threading.Event) -> None:
    begun.release()
    gate.wait(LIMIT)


def seconds(act: Callable[[], Any], count: int) -> float:
    """The least processor time of a few tries, for one of `count`."""
    taken: list[float] = []
    for _ in range(3):
        begin = time.process_time()
        for _ in range(count):
            act()
        taken.append((time.process_time() - begin) / count)
    return min(taken)


def nested_result(service: Service) -> Callable[[], Any]:
    return lambda: service.submit(lambda: service.submit(pow, 2, 3).result()).result(LIMIT)


def nested_wait(service: Service) -> Callable[[], Any]:
    return lambda: service.submit(lambda: boundedexec.wait([service.submit(pow, 2, 3)])).result(
        LIMIT
    )


def nested_timed(service: Service) -> Callable[[], Any]:
    return lambda: service.submit(lambda: service.submit(pow, 2, 3).result(LIMIT)).result(LIMIT)


def coalesced(service: Service) -> Callable[[], Any]:
    coalescer: Coalescer[int] = Coalescer(service)
    return lambda: coalescer.submit(1, pow, 2, 3).result(LIMIT)


def nested_coalesced(service: Service) -> Callable[[], Any]:
    coalescer: Coalescer[int] = Coalescer(service)
    return lambda: service.submit(lambda: coalescer.submit(1, pow, 2, 3).result()).result(LIMIT)


def yielding(service: Service) -> Callable[[], Any]:
    return lambda: service.submit(lambda: service.yield_slot(pow, 2, 3)).result(LIMIT)


def test_a_wait_costs_the_same_beside_many_others() -> None:
    ways = [nested_result, nested_wait, nested_timed, coalesced, nested_coalesced, yielding]
    taken: list[list[float]] = []
    for count in FEW, MANY:
        with waits(count):
            taken.append([seconds(make(new_service(1)), 100) for make in ways])
    slow = [
        f"{make.__name__}: {few * 1e6:.0f} µs beside {FEW}, {many * 1e6:.0f} beside {MANY}"
        for make, few, many in zip(ways, *taken, strict=True)
        if many >= FLAT * few
    ]
    assert slow == []


def test_cancel_of_what_is_over_costs_the_same_beside_many_running_threads() -> None:
    taken: list[float] = []
    for count in 10, 1000:
        service, gate = Service.unbounded(daemon=True), threading.Event()
        done = service.submit(pow, 2, 3)
        done.result(LIMIT)
        begun = threading.Semaphore(0)
        for _ in range(count):
            service.submit(begin_and_wait, begun, gate)
        for _ in range(count):
            assert begun.acquire(timeout=LIMIT)
        taken.append(seconds(done.cancel, 3000))
        gate.set()
        assert service.block_till_done(LIMIT)
    few, many = taken
    assert many < FLAT * few, f"beside 10: {few * 1e9:.0f} ns, beside 1,000: {many * 1e9:.0f}"


def test_cancel_of_what_runs_costs_the_same_beside_many_running_threads() -> None:
    taken: list[float] = []
    for count in 10, 1000:
        service, gate = Service.unbounded(daemon=True), threading.Event()
        begun = threading.Semaphore(0)
        running = [service.submit(begin_and_wait, begun, gate) for _ in range(count)]
        for _ in range(count):
            assert begun.acquire(timeout=LIMIT)
        taken.append(seconds(running[-1].cancel, 3000))
        gate.set()
        assert service.block_till_done(LIMIT)
    few, many = taken
    assert many < FLAT * few, f"beside 10: {few * 1e9:.0f} ns, beside 1,000: {many * 1e9:.0f}"


def chain_of_bodies_that_wait_for_the_next(depth: int, workers: int) -> float:
    service = new_service(workers)

    def body(left: int) -> int:
        return int(service.submit(body, left - 1).result()) + 1 if left else 0

    begin = time.process_time()
    assert service.submit(body, depth).result(LIMIT) == depth
    return time.process_time() - begin


@pytest.mark.parametrize("workers", [1, 8, 0])
def test_a_level_of_a_chain_costs_no_more_in_a_chain_twice_as_deep(workers: int) -> None:
    chain_of_bodies_that_wait_for_the_next(50, workers)
    few = min(chain_of_bodies_that_wait_for_the_next(150, workers) for _ in range(3))
    many = min(chain_of_bodies_that_wait_for_the_next(300, workers) for _ in range(2))
    # In proportion: 2. The square: 4. The cube: 8.
    assert many < 5 * few, f"150 deep: {few:.3f} s, 300 deep: {many:.3f} s"


def chain_of_bodies_that_wait_for_the_one_before(count: int) -> float:
    service, gate = new_service(count + 1), threading.Event()
    started = threading.Semaphore(0)

    def step(before: Any) -> None:
        started.release()
        before.result()

    begin = time.process_time()
    future: Any = service.submit(gate.wait, LIMIT)
    for _ in range(count):
        future = service.submit(step, future)
        assert started.acquire(timeout=LIMIT)
        time.sleep(0.001)  # So that it waits, most likely, before the next one comes.
    taken = time.process_time() - begin
    gate.set()
    future.result(LIMIT)
    assert service.block_till_done(LIMIT)
    return taken


def test_waits_for_the_one_before_cost_in_proportion_to_the_chain_at_most() -> None:
    few = min(chain_of_bodies_that_wait_for_the_one_before(150) for _ in range(2))
    many = min(chain_of_bodies_that_wait_for_the_one_before(300) for _ in range(2))
    # Each wait in proportion to the chain: 4 altogether at most. The cube: 8.
    assert many < 6 * few, f"150: {few:.3f} s, 300: {many:.3f} s"


def test_a_wait_for_many_costs_in_proportion() -> None:
    def taken(count: int) -> float:
        service = new_service(1)

        def body() -> float:
            futures = [service.submit(int) for _ in range(count)]
            begin = time.process_time()
            boundedexec.wait(futures)
            return time.process_time() - begin

        return min(service.submit(body).result(LIMIT) for _ in range(3))

    few, many = taken(500), taken(2000)
    assert many < 4 * FLAT / 2 * few, f"500: {few:.3f} s, 2,000: {many:.3f} s"


def test_a_lend_costs_the_same_with_a_long_queue() -> None:
    taken: list[float] = []
    for queued in 10, 20_000:
        service = new_service(1)

        def body(queued: int = queued, service: Service = service) -> float:
            for _ in range(queued):
                service.submit(int)
            return seconds(lambda: service.submit(pow, 2, 3).result(), 200)

        taken.append(service.submit(body).result(LIMIT))
        service.shutdown(wait=False, cancel_futures=True)
    few, many = taken
    assert many < FLAT * few, f"10 queued: {few * 1e6:.0f} µs, 20,000: {many * 1e6:.0f}"


def test_a_groups_submissions_cost_little_more_than_plain_ones() -> None:
    def plain() -> None:
        with Service(8) as service:
            kept = [service.submit(int) for _ in range(MANY)]
        del kept

    def grouped() -> None:
        with Service(8) as service, TaskGroup(service) as group:
            kept = [group.submit(int) for _ in range(MANY)]
        del kept

    pairs = [(seconds(plain, 1), seconds(grouped, 1)) for _ in range(30)]
    # 1.3 is what is promised, and measured beside nothing else.
    assert min(pair[1] for pair in pairs) < 1.6 * min(pair[0] for pair in pairs)


def test_what_waits_in_line_costs_the_same_however_long_that_is() -> None:
    def run(count: int) -> float:
        def grouped() -> None:
            with Service(1) as service, TaskGroup(service, limit=1) as group:
                last = [group.submit(int) for _ in range(count)][-1]
                service.submit(last.result).result(LIMIT)

        return seconds(grouped, 1) / count

    assert run(MANY) < FLAT * run(FEW)
