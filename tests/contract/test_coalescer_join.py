"""`Coalescer.join`: the run in flight will do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures import ThreadPoolExecutor as StdlibPool
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, check_slots, full, new_service

import boundedexec
from boundedexec import Coalescer


def stdlib_pool(max_workers: int = 1) -> StdlibPool:
    return StdlibPool(max_workers)


executors = pytest.mark.parametrize("make", [new_service, stdlib_pool])


def executing(coalescer: Coalescer[Any], key: Any) -> tuple[Any, Gate]:
    gate = Gate()
    future = coalescer.submit(key, gate, "run")
    gate.wait_entered()
    return future, gate


@executors
def test_without_a_run_in_flight_it_is_as_submit(make: Callable[[], Executor]) -> None:
    executor = make()
    coalescer: Coalescer[str] = Coalescer(executor)
    for _ in range(3):
        assert coalescer.join("key", pow, 2, exp=3).result(LIMIT) == 8
    assert len(coalescer) == 0
    executor.shutdown(wait=False)


@executors
def test_it_joins_the_run_that_executes(make: Callable[[], Executor]) -> None:
    executor = make()
    ran: list[Any] = []
    coalescer: Coalescer[str] = Coalescer(executor)
    run, gate = executing(coalescer, "key")
    joined = [coalescer.join("key", ran.append, n) for n in range(3)]
    assert all(future is run for future in joined)
    assert len(coalescer) == 1
    gate.open()
    assert run.result(LIMIT) == "run"
    assert ran == []
    executor.shutdown()
    assert ran == []
    assert len(coalescer) == 0


def test_it_joins_the_run_that_is_queued_and_leaves_it_its_callable() -> None:
    service = new_service(1)
    ran: list[Any] = []
    coalescer: Coalescer[str] = Coalescer(service)
    with full(service):
        run: Future[Any] = coalescer.submit("key", pow, 2, 3)
        assert coalescer.join("key", ran.append, 1) is run
    assert run.result(LIMIT) == 8
    assert service.block_till_done(LIMIT)
    assert ran == []


def test_a_submit_after_a_join_decides_what_a_queued_run_calls() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)
    with full(service):
        run: Any = coalescer.join("key", pow, 2, 3)
        assert coalescer.submit("key", pow, 2, 4) is run
        assert coalescer.join("key", pow, 2, 5) is run
    assert run.result(LIMIT) == 16


def test_it_owes_no_rerun_and_a_submit_does() -> None:
    service = new_service(1)
    ran: list[Any] = []
    coalescer: Coalescer[str] = Coalescer(service)
    run, gate = executing(coalescer, "key")
    assert coalescer.join("key", ran.append, "join") is run
    owed = coalescer.submit("key", ran.append, "submit")
    assert owed is not run
    assert coalescer.join("key", ran.append, "late") in (run, owed)
    gate.open()
    owed.result(LIMIT)
    assert service.block_till_done(LIMIT)
    assert ran == ["submit"]


@pytest.mark.parametrize("outcome", ["returned", "raised", "cancelled"])
def test_after_a_run_is_over_it_starts_a_new_one(outcome: str) -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)
    with full(service):
        before: Any = coalescer.join("key", int, "x" if outcome == "raised" else "1")
        if outcome == "cancelled":
            assert before.cancel()
    if outcome != "cancelled":
        assert (before.exception(LIMIT) is None) == (outcome == "returned")
    assert service.block_till_done(LIMIT)
    assert coalescer.join("key", pow, 2, 3).result(LIMIT) == 8


def test_a_run_that_a_join_and_a_submit_share_cannot_be_cancelled_by_one_of_them() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)
    with full(service):
        run = coalescer.submit("key", pow, 2, 3)
        joined: Any = coalescer.join("key", pow, 2, 4)
        assert not run.cancel()
        assert not joined.cancel()
    assert joined.result(LIMIT) == 8


def test_a_run_that_one_join_asked_for_is_cancelled_as_any_future() -> None:
    service = new_service(1)
    ran: list[Any] = []
    coalescer: Coalescer[str] = Coalescer(service)
    with full(service):
        run = coalescer.join("key", ran.append, 1)
        assert run.cancel()
        assert len(coalescer) == 0
    assert service.block_till_done(LIMIT)
    assert ran == []


def test_a_cache_that_fills_itself_runs_once() -> None:
    service = new_service(4)
    coalescer: Coalescer[str] = Coalescer(service)
    gate = Gate()
    results: list[Any] = []
    first: Any = coalescer.join("key", gate, "value")
    gate.wait_entered()
    meeting = threading.Barrier(8)

    def reader() -> None:
        meeting.wait(LIMIT)
        results.append(coalescer.join("key", pow, 2, 3))

    threads = [threading.Thread(target=reader, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    gate.open()
    assert [future.result(LIMIT) for future in results] == ["value"] * 8
    assert all(future is first for future in results)


def test_joins_that_race_share_runs_and_lose_none() -> None:
    service = new_service(2)
    coalescer: Coalescer[int] = Coalescer(service)
    running = [0] * 3
    overlapped: list[int] = []

    def run(key: int) -> int:
        running[key] += 1
        if running[key] > 1:
            overlapped.append(key)
        running[key] -= 1
        return key

    futures: list[tuple[int, Future[int]]] = []

    def caller(number: int) -> None:
        for turn in range(200):
            key = (turn + number) % 3
            call = coalescer.join if turn % 3 else coalescer.submit
            futures.append((key, call(key, run, key)))

    threads = [threading.Thread(target=caller, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(futures) == 800
    assert all(future.result(LIMIT) == key for key, future in futures)
    assert overlapped == []
    check_slots(service, 2)
    assert len(coalescer) == 0


def test_after_shutdown_it_raises_also_while_a_run_executes() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)
    run, gate = executing(coalescer, "key")
    service.shutdown(wait=False)
    for call in coalescer.join, coalescer.submit:
        for key in "key", "other":
            with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
                call(key, pow, 2, 3)
    gate.open()
    assert run.result(LIMIT) == "run"
    assert service.block_till_done(LIMIT)
    assert len(coalescer) == 0


def test_what_is_not_callable_is_a_type_error_in_flight_or_not() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)
    with pytest.raises(TypeError):
        coalescer.join("key", 3)  # type: ignore[arg-type]
    assert len(coalescer) == 0


def test_a_key_that_cannot_be_hashed_is_a_type_error() -> None:
    service = new_service(1)
    coalescer: Coalescer[Any] = Coalescer(service)
    with pytest.raises(TypeError):
        coalescer.join([], pow, 2, 3)
    check_slots(service, 1)


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_a_body_that_waits_for_a_joined_run_lends_it_its_slot(timeout: float | None) -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)

    def body() -> Any:
        coalescer.submit("key", pow, 2, 3)
        return coalescer.join("key", pow, 2, 4).result(timeout)

    assert service.submit(body).result(LIMIT) == 8
    check_slots(service, 1)


def test_a_run_that_joins_itself_and_waits_gets_a_deadlock_error() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)

    def body() -> Any:
        return coalescer.join("key", pow, 2, 3).result()

    assert isinstance(coalescer.submit("key", body).exception(LIMIT), boundedexec.DeadlockError)
    check_slots(service, 1)


def test_it_may_be_called_in_a_callback_of_its_run() -> None:
    service, gate = new_service(1), Gate()
    coalescer: Coalescer[str] = Coalescer(service)
    again: list[Any] = []
    over = threading.Event()

    def callback(_: Any) -> None:
        again.append(coalescer.join("key", pow, 2, 3))
        over.set()

    run = coalescer.submit("key", gate)
    gate.wait_entered()
    run.add_done_callback(callback)
    gate.open()
    assert over.wait(LIMIT)
    assert service.block_till_done(LIMIT)
    assert again[0].done()
    check_slots(service, 1)


def test_on_an_executor_that_runs_inline_it_returns_what_is_over() -> None:
    class Inline(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future: Future[Any] = Future()
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
            return future

    coalescer: Coalescer[str] = Coalescer(Inline())
    assert coalescer.join("key", pow, 2, 3).result(0) == 8
    nested = coalescer.join("key", lambda: coalescer.join("key", pow, 2, 3))
    inner: Any = nested.result(0)
    assert inner is nested or inner.result(0) == 8
    assert len(coalescer) == 0


def test_a_key_is_in_flight_until_its_joined_run_is_over() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)
    run, gate = executing(coalescer, "key")
    assert "key" in coalescer
    assert not service.block_till_done(0.01)
    coalescer.join("key", pow, 2, 3)
    gate.open()
    assert service.block_till_done(LIMIT)
    assert run.done()
    assert "key" not in coalescer
