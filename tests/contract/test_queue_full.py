"""`max_queued` and `QueueFull`; `is_shut_down`."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import Future
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, check_slots, collected, full, new_service

import boundedexec
from boundedexec import Coalescer, Service


class Argument:
    pass


def queue_full() -> type[RuntimeError]:
    error: type[RuntimeError] = boundedexec.QueueFull
    return error


def test_queue_full_is_a_runtime_error_that_can_be_imported() -> None:
    assert issubclass(queue_full(), RuntimeError)
    assert "QueueFull" in boundedexec.__all__
    assert queue_full().__module__ == "boundedexec"


@pytest.mark.parametrize("limit", [0, 1, 2, 10])
def test_a_submit_that_finds_the_queue_full_raises_and_nothing_was_accepted(limit: int) -> None:
    service = new_service(1, max_queued=limit)
    ran: list[Any] = []
    argument = Argument()
    reference = weakref.ref(argument)
    with full(service):
        queued = [service.submit(ran.append, n) for n in range(limit)]
        for _ in range(3):
            with pytest.raises(queue_full()):
                service.submit(ran.append, argument)
        del argument
        gc.collect()
        assert reference() is None
    for future in queued:
        future.result(LIMIT)
    assert service.block_till_done(LIMIT)
    assert ran == list(range(limit))
    assert service.submit(pow, 2, 3).result(LIMIT) == 8
    if limit >= 1:
        check_slots(service, 1)


@pytest.mark.parametrize(("bound", "limit"), [(1, 0), (2, 1), (8, 100)])
def test_a_burst_into_a_fresh_service_finds_the_queue_full(bound: int, limit: int) -> None:
    for _ in range(20):
        service, gate = new_service(bound, max_queued=limit), Gate()
        accepted = [service.submit(gate) for _ in range(bound + limit)]
        with pytest.raises(queue_full()):
            service.submit(gate)
        gate.open()
        for future in accepted:
            future.result(LIMIT)
        service.shutdown()


def test_room_in_the_queue_is_room_again() -> None:
    service = new_service(1, max_queued=1)
    for _ in range(20):
        gate = Gate()
        running = service.submit(gate)
        gate.wait_entered()
        queued = service.submit(pow, 2, 3)
        with pytest.raises(queue_full()):
            service.submit(pow, 2, 3)
        gate.open()
        running.result(LIMIT)
        assert queued.result(LIMIT) == 8
        assert service.block_till_done(LIMIT)


def test_a_cancelled_submission_is_queued_no_longer() -> None:
    service = new_service(1, max_queued=2)
    with full(service):
        futures = [service.submit(pow, 2, 3) for _ in range(2)]
        assert futures[0].cancel()
        future = service.submit(pow, 2, 4)
        with pytest.raises(queue_full()):
            service.submit(pow, 2, 3)
    assert future.result(LIMIT) == 16


def test_with_a_free_slot_nothing_is_refused() -> None:
    service = new_service(4, max_queued=0)
    gates = [Gate() for _ in range(4)]
    futures: list[Future[Any]] = []
    for gate in gates:
        futures.append(service.submit(gate))
        gate.wait_entered()
    with pytest.raises(queue_full()):
        service.submit(pow, 2, 3)
    gates[0].open()
    futures[0].result(LIMIT)
    # It may be a moment until the slot of a future that is over is free.
    for _ in range(1000):
        try:
            futures.append(service.submit(pow, 2, 3))
            break
        except queue_full():
            service.block_till_done(0.005)
    assert futures[-1].result(LIMIT) == 8
    for gate in gates:
        gate.open()


def test_an_unbounded_service_never_refuses() -> None:
    service = new_service(0, max_queued=0)
    gate = Gate()
    futures = [service.submit(gate) for _ in range(20)]
    gate.open()
    for future in futures:
        future.result(LIMIT)


def test_without_max_queued_nothing_is_refused() -> None:
    service = new_service(1)
    with full(service):
        futures = [service.submit(pow, 2, 3) for _ in range(10_000)]
    assert futures[-1].result(LIMIT) == 8


def test_a_larger_bound_makes_room() -> None:
    service = new_service(1, max_queued=1)
    with full(service):
        gate = Gate()
        service.submit(gate)
        service.max_workers = 2
        gate.wait_entered()
        queued = service.submit(pow, 2, 3)
        with pytest.raises(queue_full()):
            service.submit(pow, 2, 3)
        gate.open()
        assert queued.result(LIMIT) == 8
    check_slots(service, 2)


def test_bodies_are_refused_as_others_are_and_may_wait_for_what_they_submitted() -> None:
    service = new_service(1, max_queued=1)

    def body() -> tuple[Any, str]:
        future = service.submit(pow, 2, 3)
        try:
            service.submit(pow, 2, 3)
        except RuntimeError as error:
            return future.result(), type(error).__name__
        return future.result(), "accepted"

    assert service.submit(body).result(LIMIT) == (8, "QueueFull")
    check_slots(service, 1)


def test_an_owed_rerun_is_always_admitted() -> None:
    service = new_service(1, max_queued=1)
    coalescer: Coalescer[str] = Coalescer(service)
    run = Gate()
    first = coalescer.submit("key", run, 1)
    run.wait_entered()
    second_gate = Gate()
    owed = coalescer.submit("key", second_gate, 2)
    queued = service.submit(pow, 2, 3)
    with pytest.raises(queue_full()):
        service.submit(pow, 2, 3)
    assert coalescer.submit("key", second_gate, 3) is owed
    second_gate.open()
    run.open()
    assert [first.result(LIMIT), queued.result(LIMIT), owed.result(LIMIT)] == [1, 8, 3]
    assert service.block_till_done(LIMIT)
    assert len(coalescer) == 0


def test_many_owed_reruns_are_admitted_to_a_queue_without_room() -> None:
    service = new_service(4, max_queued=0)
    coalescer: Coalescer[int] = Coalescer(service)
    gates = [Gate() for _ in range(4)]
    for key, gate in enumerate(gates):
        coalescer.submit(key, gate)
        gate.wait_entered()
    owed = [coalescer.submit(key, pow, 2, key) for key in range(4)]
    for gate in gates:
        gate.open()
    assert [future.result(LIMIT) for future in owed] == [1, 2, 4, 8]
    assert service.block_till_done(LIMIT)


def test_a_new_key_is_refused_where_the_queue_is_full_and_leaves_nothing() -> None:
    service = new_service(1, max_queued=0)
    coalescer: Coalescer[str] = Coalescer(service)
    with full(service):
        for call in coalescer.submit, coalescer.join:
            with pytest.raises(queue_full()):
                call("key", pow, 2, 3)
            assert len(coalescer) == 0
            assert "key" not in coalescer
    assert service.block_till_done(LIMIT)
    assert coalescer.submit("key", pow, 2, 3).result(LIMIT) == 8


def test_submitters_that_race_exceed_it_at_most_by_their_number() -> None:
    service = new_service(1, max_queued=10)
    accepted: list[Future[int]] = []
    meeting = threading.Barrier(4)

    def submitter() -> None:
        meeting.wait(LIMIT)
        for _ in range(50):
            try:
                accepted.append(service.submit(pow, 2, 3))
            except RuntimeError as error:
                assert type(error) is queue_full()

    with full(service):
        threads = [threading.Thread(target=submitter) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert 10 <= len(accepted) <= 14
    for future in accepted:
        assert future.result(LIMIT) == 8


def test_run_in_executor_raises_it() -> None:
    service = new_service(1, max_queued=0)

    async def main() -> None:
        with pytest.raises(queue_full()):
            await asyncio.get_running_loop().run_in_executor(service, pow, 2, 3)

    with full(service):
        asyncio.run(main())
    check_slots(new_service(1, max_queued=1), 1)


def test_after_shutdown_the_error_is_that_of_shutdown() -> None:
    service = new_service(1, max_queued=0)
    with full(service):
        service.shutdown(wait=False)
        with pytest.raises(RuntimeError) as raised:
            service.submit(pow, 2, 3)
        assert type(raised.value) is not queue_full()


def test_what_is_not_callable_is_a_type_error_in_a_full_queue_too() -> None:
    service = new_service(1, max_queued=0)
    with full(service), pytest.raises(TypeError):
        service.submit(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["3", 2.5, object(), True])
def test_what_is_no_integer_is_refused(wrong: Any) -> None:
    # A service that did not know the argument at all would raise TypeError as well.
    assert new_service(1, max_queued=3).max_workers == 1
    with pytest.raises(TypeError):
        Service(1, max_queued=wrong)


@pytest.mark.parametrize("make", [Service.bounded, boundedexec.ThreadPoolExecutor])
def test_it_can_be_given_wherever_a_service_is_made(make: Any) -> None:
    service = make(1, max_queued=0, daemon=True)
    with full(service), pytest.raises(queue_full()):
        service.submit(pow, 2, 3)


# is_shut_down


def new_pool(max_workers: int) -> Service:
    return boundedexec.ThreadPoolExecutor(max_workers, daemon=True)


makers = pytest.mark.parametrize("make", [new_service, new_pool], ids=["Service", "drop-in"])


@makers
@pytest.mark.parametrize("wait", [True, False])
def test_is_shut_down_says_whether_shutdown_was_called(make: Any, wait: bool) -> None:
    service = make(1)
    assert service.is_shut_down is False
    service.submit(pow, 2, 3).result(LIMIT)
    assert service.is_shut_down is False
    service.shutdown(wait=wait)
    assert service.is_shut_down is True
    service.shutdown()
    assert service.is_shut_down is True


@makers
def test_it_is_shut_down_while_bodies_still_run(make: Any) -> None:
    service = make(1)
    with full(service):
        service.shutdown(wait=False)
        assert service.is_shut_down
        assert service._shutdown


@makers
def test_a_shutdown_that_is_refused_has_no_effect(make: Any) -> None:
    service = make(1)
    queued: list[Future[int]] = []

    def body() -> Any:
        with pytest.raises(RuntimeError):
            service.shutdown(wait=True, cancel_futures=True)
        return service.is_shut_down

    with full(service):
        future = service.submit(body)
        queued.append(service.submit(pow, 2, 3))
    assert future.result(LIMIT) is False
    assert queued[0].result(LIMIT) == 8
    check_slots(service, 1)


def test_a_body_sees_it() -> None:
    service, gate = new_service(1), Gate()

    def body() -> bool:
        gate()
        return service.is_shut_down

    future = service.submit(body)
    gate.wait_entered()
    service.shutdown(wait=False)
    gate.open()
    assert future.result(LIMIT) is True


def test_a_service_that_is_not_used_any_more_can_be_collected_after_reading_it() -> None:
    service = new_service(1)
    assert not service.is_shut_down
    reference = weakref.ref(service)
    del service
    assert collected(reference)
