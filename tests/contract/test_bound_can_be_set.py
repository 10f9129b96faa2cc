"""`max_workers` can be read and set, at any time; what counts as a number of workers."""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future
from typing import Any

import pytest
from contract_helpers import (
    LIMIT,
    MOMENT,
    Executing,
    Gate,
    check_slots,
    full,
    new_service,
    wait_until,
)

import boundedexec
from boundedexec import Coalescer, Service


class Index:
    """A number as numpy's are: no int, but with `__index__`."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def meeting(service: Service, count: int) -> list[Any]:
    barrier = threading.Barrier(count)
    return [service.submit(barrier.wait, LIMIT) for _ in range(count)]


def never_meet(service: Service, count: int) -> bool:
    """Whether `count` bodies do not execute at the same time."""
    barrier = threading.Barrier(count)
    futures = [service.submit(barrier.wait, MOMENT) for _ in range(count)]
    return all(
        isinstance(future.exception(LIMIT), threading.BrokenBarrierError) for future in futures
    )


def test_a_larger_bound_starts_what_is_queued_at_once() -> None:
    service = new_service(1)
    with full(service):
        futures = meeting(service, 3)
        service.max_workers = 4
        for future in futures:
            future.result(LIMIT)
        assert service.max_workers == 4
    check_slots(service, 4)


@pytest.mark.parametrize("bound", [None, 0, -1])
def test_no_bound_starts_what_is_queued_at_once(bound: int | None) -> None:
    service = new_service(1)
    with full(service):
        futures = meeting(service, 20)
        service.max_workers = bound
        for future in futures:
            future.result(LIMIT)
        assert service.max_workers is None
    assert service.block_till_done(LIMIT)


def test_a_smaller_bound_is_reached_as_bodies_end_and_interrupts_nobody() -> None:
    service, executing = new_service(3), Executing()
    gates = [Gate() for _ in range(3)]
    running = [service.submit(gate, n) for n, gate in enumerate(gates)]
    for gate in gates:
        gate.wait_entered()
    started = threading.Event()

    def body() -> None:
        started.set()
        with executing:
            pass

    queued = [service.submit(body) for _ in range(20)]
    service.max_workers = 1
    assert service.max_workers == 1
    gates[0].open()
    gates[1].open()
    assert [running[n].result(LIMIT) for n in range(2)] == [0, 1]
    assert not started.wait(MOMENT)
    assert not running[2].done()
    gates[2].open()
    assert running[2].result(LIMIT) == 2
    for future in queued:
        future.result(LIMIT)
    assert executing.peak == 1
    check_slots(service, 1)


def test_an_idle_service_with_idle_threads_takes_a_smaller_bound() -> None:
    service = new_service(8)
    for future in meeting(service, 8):
        future.result(LIMIT)
    service.max_workers = 2
    assert never_meet(service, 3)
    check_slots(service, 2)


def test_an_unbounded_service_takes_a_bound() -> None:
    service = new_service(0)
    for future in meeting(service, 8):
        future.result(LIMIT)
    with full(service, 4) as release:
        service.max_workers = 2
        future = service.submit(pow, 2, 3)
        with pytest.raises(boundedexec.TimeoutError):
            future.result(MOMENT)
        release()
    check_slots(service, 2)


def test_a_bound_that_shrinks_and_grows_before_a_body_ends_counts_the_running_ones() -> None:
    service = new_service(4)
    with full(service, 4):
        service.max_workers = 1
        service.max_workers = 6
        for future in meeting(service, 2):
            future.result(LIMIT)
        assert never_meet(service, 3)
    check_slots(service, 6)


def test_a_bound_may_grow_by_one_many_times() -> None:
    service = new_service(1)
    with full(service):
        for bound in range(2, 30):
            service.max_workers = bound
        for future in meeting(service, 28):
            future.result(LIMIT)
    check_slots(service, 29)


def test_a_body_may_set_the_bound_of_its_own_service() -> None:
    service = new_service(1)

    def body() -> bool:
        barrier = threading.Barrier(3)
        for _ in range(2):
            service.submit(barrier.wait, LIMIT)
        service.max_workers = 3
        barrier.wait(LIMIT)
        service.max_workers = 1
        return True

    assert service.submit(body).result(LIMIT)
    check_slots(service, 1)


@pytest.mark.parametrize("bound", [1, 2, 5])
def test_the_bound_may_be_set_while_slots_are_lent_and_yielded(bound: int) -> None:
    service = new_service(2)
    lent, yielded = Gate(), Gate()

    def lends() -> Any:
        return service.submit(lent, "lent").result()

    def yields() -> Any:
        return service.yield_slot(yielded, "yielded")

    futures = [service.submit(lends), service.submit(yields)]
    lent.wait_entered()
    yielded.wait_entered()
    service.max_workers = bound
    lent.open()
    yielded.open()
    assert [future.result(LIMIT) for future in futures] == ["lent", "yielded"]
    check_slots(service, bound)


def test_a_larger_bound_lets_a_body_resume() -> None:
    service, gate = new_service(1), Gate()

    def body() -> str:
        service.submit(gate)
        service.yield_slot(gate.wait_entered)  # The slot is taken when it resumes.
        return "resumed"

    future = service.submit(body)
    gate.wait_entered()
    service.max_workers = 2
    assert future.result(LIMIT) == "resumed"
    gate.open()
    check_slots(service, 2)


def test_a_smaller_bound_does_not_keep_a_body_that_resumes_out_for_ever() -> None:
    service, gate = new_service(3), Gate()

    def body() -> Any:
        return service.yield_slot(gate, "resumed")

    futures = [service.submit(body) for _ in range(3)]
    gate.wait_entered()
    service.max_workers = 1
    gate.open()
    assert [future.result(LIMIT) for future in futures] == ["resumed"] * 3
    check_slots(service, 1)


def test_a_bound_that_is_unset_lets_bodies_that_yield_and_lend_end() -> None:
    service, gate = new_service(1), Gate()

    def body() -> Any:
        inner = service.submit(gate, "over")
        return service.yield_slot(inner.result)

    future = service.submit(body)
    gate.wait_entered()
    service.max_workers = 0
    gate.open()
    assert future.result(LIMIT) == "over"
    service.max_workers = 2
    check_slots(service, 2)


def test_resizing_beside_a_load_loses_nothing() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    service = new_service(2)

    def body(depth: int) -> int:
        if depth == 0:
            return 1
        inner = service.submit(body, depth - 1)
        if depth % 2:
            return int(service.yield_slot(inner.result))
        return int(inner.result())

    futures: list[Future[int]] = []
    for turn in range(600):
        futures.append(service.submit(body, turn % 4))
        if turn % 5 == 0:
            service.max_workers = rng.choice([0, 1, 2, 3, 8])
    for future in futures:
        assert future.result(LIMIT) == 1
    service.max_workers = 3
    check_slots(service, 3)


def test_a_body_that_waits_already_lends_when_the_bound_becomes_smaller() -> None:
    ready, threads = threading.Event(), list[int]()

    def initializer() -> None:
        threads.append(1)
        if len(threads) > 1:
            ready.wait(LIMIT)  # It has a slot, and has taken nothing.

    service = new_service(0, initializer=initializer)
    outer = service.submit(lambda: service.submit(pow, 2, 3).result())
    wait_until(lambda: len(threads) > 1)
    wait_until(lambda: any(task.waits_for for task in service.tasks()))
    service.max_workers = 1
    ready.set()
    assert outer.result(LIMIT) == 8
    check_slots(service, 1)


# What is a number of workers.


@pytest.mark.parametrize("wrong", [True, False, 2.5, 2.0, "3", object(), [1], float("inf")])
def test_what_is_no_integer_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError):
        Service(wrong)
    with pytest.raises(TypeError):
        Service.bounded(wrong)
    service = new_service(2)
    with pytest.raises(TypeError):
        service.max_workers = wrong
    assert service.max_workers == 2
    check_slots(service, 2)


@pytest.mark.parametrize("value", [3, -3, 0])
def test_what_has_an_index_is_an_integer(value: int) -> None:
    expected = value if value > 0 else None
    assert new_service(Index(value)).max_workers == expected
    service = new_service(1)
    service.max_workers = Index(value)  # type: ignore[assignment]
    assert service.max_workers == expected
    assert type(service.max_workers) in (int, type(None))


def test_numbers_of_numpy_are_integers() -> None:
    numpy = pytest.importorskip("numpy")
    assert new_service(numpy.int64(3)).max_workers == 3
    with pytest.raises(TypeError):
        Service(numpy.float64(2))
    with pytest.raises(TypeError):
        Service(numpy.bool_(True))


def test_an_index_that_raises_changes_nothing() -> None:
    class Broken:
        def __index__(self) -> int:
            raise KeyError("index")

    service = new_service(2)
    with pytest.raises(KeyError):
        service.max_workers = Broken()  # type: ignore[assignment]
    assert service.max_workers == 2
    check_slots(service, 2)


def test_a_bound_may_be_huge() -> None:
    service = new_service(10**30)
    assert service.max_workers == 10**30
    for future in meeting(service, 10):
        future.result(LIMIT)
    service.max_workers = 1
    check_slots(service, 1)


# The drop-in.


def test_the_drop_in_takes_a_larger_bound_by_either_name() -> None:
    for name in "max_workers", "_max_workers":
        pool = boundedexec.ThreadPoolExecutor(1, daemon=True)
        with full(pool):
            futures = meeting(pool, 3)
            setattr(pool, name, 4)
            for future in futures:
                future.result(LIMIT)
        assert pool._max_workers == pool.max_workers == 4
        check_slots(pool, 4)


def test_a_service_takes_a_larger_bound_by_the_stdlibs_name() -> None:
    service: Any = new_service(1)
    service._max_workers = 3
    assert service.max_workers == 3
    check_slots(service, 3)


@pytest.mark.parametrize("number", [2.5, 2.0, True, float("inf"), 10**30])
def test_the_drop_in_takes_the_numbers_that_the_stdlibs_pool_takes(number: Any) -> None:
    with boundedexec.ThreadPoolExecutor(number, daemon=True) as pool:
        assert list(pool.map(pow, range(5), range(5))) == [1, 1, 4, 27, 256]
        assert type(pool._max_workers) is int
        assert pool._max_workers > 0


def test_the_bound_of_a_coalescers_service_may_be_set() -> None:
    service, gate = new_service(1), Gate()
    coalescer: Coalescer[int] = Coalescer(service)
    with full(service):
        future = coalescer.submit(1, gate, "run")
        service.max_workers = 2
        gate.wait_entered()
        gate.open()
        assert future.result(LIMIT) == "run"
    check_slots(service, 2)
