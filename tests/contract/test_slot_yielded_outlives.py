"""Where a `slot_yielded` block outlives its body, it ends without taking a slot."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from contract_helpers import LIMIT, MOMENT, Executing, Gate, check_slots, in_thread, new_service

from boundedexec import Coalescer, Service


def rows(service: Service) -> Iterator[int]:
    with service.slot_yielded():
        yield 1
        yield 2


def begun(service: Service) -> Iterator[int]:
    generator = rows(service)
    next(generator)
    return generator


def close_here(service: Service, generator: Any) -> None:
    generator.close()


def close_in_a_thread(service: Service, generator: Any) -> None:
    in_thread(generator.close)


def close_in_a_body_of_the_service(service: Service, generator: Any) -> None:
    service.submit(generator.close).result(LIMIT)


def close_in_a_body_of_another_service(service: Service, generator: Any) -> None:
    new_service(1).submit(generator.close).result(LIMIT)


def close_while_that_body_yields(service: Service, generator: Any) -> None:
    service.submit(lambda: service.yield_slot(generator.close)).result(LIMIT)


def close_in_a_lent_body(service: Service, generator: Any) -> None:
    service.submit(lambda: service.submit(generator.close).result()).result(LIMIT)


def close_after_another_yield_began(service: Service, generator: Any) -> None:
    def body() -> None:
        with service.slot_yielded():
            generator.close()
        other = begun(service)
        other.close()  # type: ignore[attr-defined]

    service.submit(body).result(LIMIT)


def exhaust(service: Service, generator: Any) -> None:
    assert list(generator) == [2]


def exhaust_in_a_body(service: Service, generator: Any) -> None:
    assert service.submit(list, generator).result(LIMIT) == [2]


def throw(service: Service, generator: Any) -> None:
    with pytest.raises(KeyError):
        generator.throw(KeyError("thrown"))


ENDS = [
    close_here,
    close_in_a_thread,
    close_in_a_body_of_the_service,
    close_in_a_body_of_another_service,
    close_while_that_body_yields,
    close_in_a_lent_body,
    close_after_another_yield_began,
    exhaust,
    exhaust_in_a_body,
    throw,
]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("end", ENDS)
def test_a_generator_that_is_returned_may_end_anywhere(
    end: Callable[[Service, Any], None], workers: int
) -> None:
    service = new_service(workers)
    generator = service.submit(begun, service).result(LIMIT)
    check_slots(service, workers)  # The slot is free though the block is not over.
    end(service, generator)
    check_slots(service, workers)


def test_many_generators_may_end_in_any_order() -> None:
    service = new_service(2)
    generators: list[Any] = [service.submit(begun, service).result(LIMIT) for _ in range(6)]
    for n in (3, 0, 5, 1):
        generators[n].close()
        check_slots(service, 2)
    service.submit(generators[2].close).result(LIMIT)
    del generators
    gc.collect()
    check_slots(service, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_traceback_that_keeps_the_generator_keeps_no_slot(workers: int) -> None:
    service = new_service(workers)

    def body() -> None:
        generator = begun(service)
        raise ValueError(f"the traceback keeps {type(generator).__name__}")

    future: Any = service.submit(body)
    assert isinstance(future.exception(LIMIT), ValueError)
    check_slots(service, workers)
    del future
    gc.collect()
    check_slots(service, workers)


def test_a_generator_in_a_cycle_may_be_collected_in_any_thread() -> None:
    service = new_service(1)

    def body() -> None:
        generator = begun(service)
        cycle: list[Any] = [generator]
        cycle.append(cycle)

    def in_a_body() -> int:
        return service.submit(gc.collect).result(LIMIT)

    gc.disable()
    try:
        for collect in gc.collect, in_a_body:
            service.submit(body).result(LIMIT)
            check_slots(service, 1)
            collect()
            check_slots(service, 1)
    finally:
        gc.enable()


def test_a_generator_of_a_coalescers_run_may_outlive_it() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)
    generator: Any = coalescer.submit("key", begun, service).result(LIMIT)
    check_slots(service, 1)
    generator.close()
    check_slots(service, 1)


def test_a_generator_of_a_lent_body_may_outlive_it() -> None:
    service = new_service(1)

    def body() -> Any:
        generator: Any = service.submit(begun, service).result()
        queued = threading.Event()
        service.submit(queued.set)
        generator.close()
        assert not queued.wait(MOMENT)  # This body holds its slot, and holds it still.
        return True

    assert service.submit(body).result(LIMIT)
    check_slots(service, 1)


def test_a_body_that_closes_anothers_block_keeps_its_own_slot() -> None:
    service, executing = new_service(1), Executing()
    generator: Any = service.submit(begun, service).result(LIMIT)

    def counted() -> None:
        with executing:
            pass

    def body() -> None:
        with executing:
            for _ in range(10):
                service.submit(counted)
            generator.close()
            gc.collect()

    service.submit(body).result(LIMIT)
    assert service.block_till_done(LIMIT)
    assert executing.peak == 1
    check_slots(service, 1)


def test_a_block_that_ends_does_not_wait_for_a_slot() -> None:
    service, gate = new_service(1), Gate()
    generator: Any = service.submit(begun, service).result(LIMIT)
    service.submit(gate)
    gate.wait_entered()
    in_thread(generator.close, 2)  # The only slot is taken.
    gate.open()
    check_slots(service, 1)


def test_a_block_entered_in_one_body_may_be_left_in_another_that_has_one_of_its_own() -> None:
    service = new_service(1)

    def enter() -> Any:
        stack = contextlib.ExitStack()
        stack.enter_context(service.slot_yielded())
        return stack

    stack = service.submit(enter).result(LIMIT)

    def leave() -> Any:
        with service.slot_yielded():
            stack.close()
        return service.submit(pow, 2, 3).result()

    assert service.submit(leave).result(LIMIT) == 8
    check_slots(service, 1)


def test_nested_blocks_may_outlive_their_body_and_end_inside_out() -> None:
    service = new_service(1)

    def body() -> list[Any]:
        return [begun(service), begun(service)]

    for order in ((0, 1), (1, 0)):
        generators = service.submit(body).result(LIMIT)
        for n in order:
            generators[n].close()
            check_slots(service, 1)


def test_a_block_that_ends_in_a_callback_of_its_own_body_is_still_inside_it() -> None:
    service, gate = new_service(1), Gate()
    kept: list[Any] = []

    def body() -> None:
        gate()
        kept.append(begun(service))

    future = service.submit(body)
    future.add_done_callback(lambda _: kept[0].close())
    gate.open()
    future.result(LIMIT)
    check_slots(service, 1)


def test_on_an_unbounded_service_a_block_may_end_anywhere() -> None:
    service = new_service(0)
    generator: Any = service.submit(begun, service).result(LIMIT)
    generator.close()
    assert service.submit(pow, 2, 3).result(LIMIT) == 8


def test_a_block_that_ends_after_shutdown_raises_nothing() -> None:
    service = new_service(1)
    generator: Any = service.submit(begun, service).result(LIMIT)
    in_thread(service.shutdown)
    in_thread(generator.close)
