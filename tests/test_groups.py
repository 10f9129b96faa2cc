"""A TaskGroup waits for its part of an executor's work, cancels it and collects it."""

# pyright: reportPossiblyUnboundVariable=false
# For what is bound in a block that `pytest.raises` is about.

from __future__ import annotations

import concurrent.futures
import contextvars
import gc
import logging
import threading
import time
import weakref
from concurrent.futures import CancelledError, Executor, Future
from contextlib import nullcontext
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import (
    LIMIT,
    Boom,
    Inline,
    NewService,
    Oops,
    Thing,
    Wait,
    all_gone,
    bound_of,
    every_wait,
    fail,
    forking,
    holding,
    in_child,
    logged,
    switching_often,
    wait_until,
)

from boundedexec import DeadlockError, Service, TaskGroup


def was_cancelled(future: Future[Any]) -> bool:
    """What was cancelled when it was with the executor of a limited group failed so."""
    return future.cancelled() or isinstance(future.exception(), CancelledError)


def failures(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    return list(group.exceptions)


# The block's end waits


def test_the_end_waits_for_all_and_results_are_in_order(pool: Executor, limit: int | None) -> None:
    with TaskGroup(pool, limit=limit) as group:
        futures = [group.submit(pow, number, 2) for number in range(50)]
    assert all(future.done() for future in futures)
    assert group.results() == [number**2 for number in range(50)]
    assert group.results() == [future.result() for future in futures]


def test_keywords_and_any_number_of_arguments_arrive(pool: Executor, limit: int | None) -> None:
    def take(*args: int, **kwargs: int) -> object:
        return args, kwargs

    with TaskGroup(pool, limit=limit) as group:
        for count in range(5):
            group.submit(take, *range(count))
            group.submit(take, *range(count), a=1)
    assert group.results() == [
        (tuple(range(count)), kwargs) for count in range(5) for kwargs in ({}, {"a": 1})
    ]


def test_what_bodies_submit_is_waited_for(pool: Executor, limit: int | None) -> None:
    def nest(depth: int) -> int:
        if depth:
            group.submit(nest, depth - 1)
            group.submit(nest, depth - 1)
        return depth

    with TaskGroup(pool, limit=limit) as group:
        group.submit(nest, 6)
    assert sorted(group.results()) == sorted(
        depth for depth in range(7) for _ in range(2 ** (6 - depth))
    )


def test_only_its_own_part_is_waited_for(new_service: NewService) -> None:
    service = new_service(2)
    with holding(service), TaskGroup(service) as group, TaskGroup(service) as other:
        group.submit(int)
        other.submit(str)
    assert (group.results(), other.results()) == ([0], [""])


def test_processes() -> None:
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        for limit in None, 1, 2:
            with TaskGroup(pool, limit=limit) as group:
                for number in range(5):
                    group.submit(pow, number, 2)
            assert group.results() == [0, 1, 4, 9, 16]
            with pytest.raises(ExceptionGroup) as raised, TaskGroup(pool, limit=limit) as group:
                group.submit(divmod, 1, 0)
            assert [type(error) for error in failures(raised.value)] == [ZeroDivisionError]


def test_a_body_has_the_context_of_its_submitter(limit: int | None) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    with Service(1) as service, TaskGroup(service, limit=limit) as group:
        for number in range(5):
            variable.set(number)
            group.submit(variable.get)
    assert group.results() == list(range(5))


# Failures


def test_the_first_failure_cancels_what_has_not_started(pool: Executor, limit: int | None) -> None:
    ran: list[int] = []
    gate, error = threading.Event(), Boom()

    def body() -> None:
        assert gate.wait(LIMIT)
        raise error

    with pytest.raises(ExceptionGroup) as raised, TaskGroup(pool, limit=limit) as group:
        failing = group.submit(body)
        futures = [group.submit(ran.append, number) for number in range(100)]
        gate.set()
        assert failing.exception(LIMIT) is error
    assert failures(raised.value) == [error]
    assert group.cancelled
    assert all(future.done() for future in futures)
    assert len(ran) + sum(map(was_cancelled, futures)) == 100


def test_a_failure_cancels_what_is_queued_behind_it(limit: int | None) -> None:
    ran: list[int] = []
    futures: list[Future[None]] = []
    with Service(1) as service:
        with pytest.raises(ExceptionGroup), TaskGroup(service, limit=limit) as group:
            gate = threading.Event()
            group.submit(lambda: gate.wait(LIMIT) and fail(Boom()))
            futures += [group.submit(ran.append, number) for number in range(100)]
            gate.set()
        assert all(map(was_cancelled, futures))
        assert ran == []
        with pytest.raises(CancelledError):
            futures[0].result()


def test_what_runs_is_waited_for_and_sees_that_the_group_is_cancelled(
    pool: Executor, limit: int | None
) -> None:
    if limit == 1 or bound_of(pool) == 1:
        pytest.skip("two must run at once")
    started, seen = threading.Event(), threading.Event()

    def body() -> None:
        started.set()
        end = time.monotonic() + LIMIT
        while not group.cancelled:
            assert time.monotonic() < end
            time.sleep(0.001)
        seen.set()

    with pytest.raises(ExceptionGroup), TaskGroup(pool, limit=limit) as group:
        group.submit(body)
        group.submit(lambda: started.wait(LIMIT) and fail(Boom()))
    assert seen.is_set()


def test_all_failures_are_raised_in_order_of_submission() -> None:
    meeting = threading.Barrier(3)
    errors = [Boom(number) for number in range(3)]

    def body(error: Boom) -> None:
        meeting.wait(LIMIT)
        raise error

    with Service(3) as service:
        with pytest.raises(ExceptionGroup) as raised, TaskGroup(service) as group:
            for error in errors:
                group.submit(body, error)
        assert failures(raised.value) == errors


def test_the_exception_of_the_block_cancels_and_is_the_last(new_service: NewService) -> None:
    service = new_service(1)
    own, error = Boom("own"), Boom("body's")
    entered, gate = threading.Event(), threading.Event()

    def body() -> None:
        entered.set()
        while not group.cancelled:
            gate.wait(0.001)
        raise error

    with pytest.raises(ExceptionGroup) as raised, TaskGroup(service) as group:
        group.submit(body)
        queued = group.submit(int)
        assert entered.wait(LIMIT)
        raise own
    assert queued.cancelled()
    assert failures(raised.value) == [error, own]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_some_exceptions_of_the_block_are_raised_bare(
    new_service: NewService, error: BaseException, limit: int | None
) -> None:
    service = new_service(1)
    with holding(service):
        with pytest.raises(type(error)) as raised, TaskGroup(service, limit=limit) as group:
            queued = group.submit(int)
            raise error
    assert raised.value is error
    assert was_cancelled(queued)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_a_body_that_exits_does_so_for_the_block(
    pool: Executor, limit: int | None, error: BaseException
) -> None:
    with pytest.raises(type(error)) as raised, TaskGroup(pool, limit=limit) as group:
        group.submit(fail, error)
    assert raised.value is error


def test_other_base_exceptions_make_a_base_group(new_service: NewService) -> None:
    with pytest.raises(BaseExceptionGroup) as raised, TaskGroup(new_service(1)) as group:
        group.submit(fail, Oops())
    assert not isinstance(raised.value, ExceptionGroup)


def test_the_failure_of_what_is_no_member_is_none_of_the_groups(
    new_service: NewService,
) -> None:
    service = new_service(1)
    with TaskGroup(service) as group:
        assert service.submit(fail, Boom()).exception(LIMIT)
        assert not group.cancelled
        group.submit(int)
    assert group.results() == [0]


def test_a_failure_before_submit_returns_counts() -> None:
    for executor in (Inline(), Service(1)):
        with pytest.raises(ExceptionGroup), TaskGroup(executor) as group:
            with pytest.raises(RuntimeError, match="cancelled"):
                for _ in range(100_000):
                    group.submit(fail, Boom())


def test_a_cancelled_future_is_no_failure(pool: Executor, limit: int | None) -> None:
    with holding(pool, 1):
        with TaskGroup(pool, limit=limit) as group:
            futures = [group.submit(int) for _ in range(10)]
            cancelled = [future.cancel() for future in futures]
    assert [future.cancelled() for future in futures] == cancelled
    assert not group.cancelled


def test_nothing_is_logged_of_what_the_end_raised(
    pool: Executor, limit: int | None, log: SimpleQueue[logging.LogRecord]
) -> None:
    with pytest.raises(ExceptionGroup), TaskGroup(pool, limit=limit) as group:
        group.submit(fail, Boom())
    del group
    gc.collect()
    assert log.empty()


def test_what_the_end_did_not_raise_is_logged(
    pool: Executor, limit: int | None, log: SimpleQueue[logging.LogRecord]
) -> None:
    """Where it raises another bare. (Executors of other packages log nothing themselves.)"""
    if limit == 1 or bound_of(pool) == 1:
        pytest.skip("two must run at once")
    meeting = threading.Barrier(2)

    def body(error: BaseException) -> None:
        meeting.wait(LIMIT)
        fail(error)

    with pytest.raises(SystemExit) as raised, TaskGroup(pool, limit=limit) as group:
        group.submit(body, Boom("lost"))
        group.submit(body, SystemExit(3))
    assert raised.value.code == 3
    del group, raised  # The traceback has the group.
    gc.collect()
    if type(pool) is not concurrent.futures.ThreadPoolExecutor or limit:
        assert "lost" in logged(log).getMessage()
    gc.collect()
    assert log.empty()


# Cancelling


def test_cancel_ends_the_block_quietly(pool: Executor, limit: int | None) -> None:
    gate = threading.Event()
    with TaskGroup(pool, limit=limit) as group:
        running = [group.submit(gate.wait, LIMIT) for _ in range(10)]
        group.cancel()
        group.cancel()
        gate.set()
        with pytest.raises(RuntimeError, match="cancelled"):
            group.submit(int)
    assert group.cancelled
    assert all(future.done() for future in running)


def test_a_refused_submit_ends_the_block_of_a_cancelled_group(pool: Executor) -> None:
    error = Boom()
    with pytest.raises(ExceptionGroup) as raised, TaskGroup(pool) as group:
        group.submit(fail, error).exception(LIMIT)
        group.submit(int)
    assert failures(raised.value) == [error]


def test_what_follows_from_the_cancellation_is_no_failure() -> None:
    waits, cancelled = threading.Event(), threading.Event()
    error = Boom()

    def body() -> None:
        waits.set()
        assert cancelled.wait(LIMIT)
        queued.result()

    def submitting() -> None:
        assert cancelled.wait(LIMIT)
        group.submit(int)

    def failing() -> None:
        assert waits.wait(LIMIT)
        raise error

    with Service(3) as service:
        with pytest.raises(ExceptionGroup) as raised, TaskGroup(service) as group:
            group.submit(body)
            group.submit(submitting)
            fails = group.submit(failing)
            queued = group.submit(int)
            queued.cancel()
            fails.exception(LIMIT)
            cancelled.set()
        assert failures(raised.value) == [error]


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("in_body", [True, False])
def test_cancel_is_quiet_also_through_the_blocks_of_inner_groups(depth: int, in_body: bool) -> None:
    """Their ends raise groups of what follows from the cancellation."""
    started, cancelled = threading.Event(), threading.Event()

    def nest(depth: int) -> None:
        if depth:
            with TaskGroup(service) as inner:
                inner.submit(nest, depth - 1) if in_body else nest(depth - 1)
                nest(depth - 1)
        else:
            started.set()
            assert cancelled.wait(LIMIT)
            outer.submit(int)

    def cancel() -> None:
        assert started.wait(LIMIT)
        outer.cancel()
        cancelled.set()

    with Service(20) as service, TaskGroup(service) as outer:
        canceller = service.submit(cancel)
        outer.submit(nest, depth) if in_body else nest(depth)
    canceller.result()


def test_a_failure_beside_cancellations_is_one() -> None:
    error = ExceptionGroup("", [CancelledError(), ExceptionGroup("", [Boom()])])
    with Service(1) as service, pytest.raises(ExceptionGroup) as raised:
        with TaskGroup(service) as group:
            group.submit(fail, error)
    assert failures(raised.value) == [error]


def test_before_and_after_the_block_nothing_is_accepted(pool: Executor) -> None:
    group = TaskGroup(pool)
    with pytest.raises(RuntimeError, match="entered"):
        group.submit(int)
    with group:
        pass
    with pytest.raises(RuntimeError, match="over"):
        group.submit(int)
    with pytest.raises(RuntimeError, match="once"), group:
        pass


def test_arguments_are_checked() -> None:
    with Service(1) as service:
        with pytest.raises(TypeError, match="submit"):
            TaskGroup(None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="submit"):
            TaskGroup(Service)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="timeout"):
            TaskGroup(service, timeout=True)
        with pytest.raises(ValueError, match="timeout"):
            TaskGroup(service, timeout=10**400)
        with pytest.raises(TypeError, match="limit"):
            TaskGroup(service, limit=True)
        with pytest.raises(TypeError, match="limit"):
            TaskGroup(service, limit="1")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="limit"):
            TaskGroup(service, limit=0)
        with pytest.raises(TypeError, match="timeout"):
            TaskGroup(service, timeout="1")  # type: ignore[arg-type]
        for limit in None, 1:
            with TaskGroup(service, limit=limit) as group, pytest.raises(TypeError):
                group.submit(5)  # type: ignore[arg-type]


def test_an_executor_that_is_shut_down_refuses(pool: Executor) -> None:
    pool.shutdown()
    with pytest.raises(ExceptionGroup) as raised, TaskGroup(pool) as group:
        group.submit(int)
    assert "shutdown" in str(failures(raised.value)[0])
    with pytest.raises(ExceptionGroup) as raised, TaskGroup(pool, limit=1) as group:
        assert "shutdown" in str(group.submit(int).exception(LIMIT))
    assert "shutdown" in str(failures(raised.value)[0])


def test_an_executor_that_is_shut_down_under_a_group_leaves_nothing_unresolved(
    pool: Executor, limit: int | None
) -> None:
    gate, started = threading.Event(), threading.Semaphore(0)

    def body() -> None:
        started.release()
        assert gate.wait(LIMIT)

    futures: list[Future[None]] = []
    try:
        with TaskGroup(pool, limit=limit) as group:
            futures += [group.submit(body) for _ in range(20)]
            for _ in range(min(bound_of(pool) or 20, limit or 20)):
                assert started.acquire(timeout=LIMIT)
            pool.shutdown(wait=False, cancel_futures=True)
            gate.set()
    except* RuntimeError as raised:
        assert "shutdown" in str(raised.exceptions[0])
    assert len(futures) == 20 and all(future.done() for future in futures)


# In a body


@pytest.mark.parametrize("bound", [1, 2])
def test_the_end_lends_the_slot(bound: int, limit: int | None) -> None:
    def nest(depth: int) -> int:
        with TaskGroup(service, limit=limit) as group:
            for _ in range(2 if depth else 0):
                group.submit(nest, depth - 1)
        results: list[int] = group.results()
        return 1 + sum(results)

    with Service(bound) as service:
        assert service.submit(nest, 6).result(LIMIT) == 127


@pytest.mark.parametrize("limit", [2, None])
def test_bodies_that_wait_for_each_other_are_an_error(limit: int | None) -> None:
    futures: list[Future[Any]] = []
    known = threading.Barrier(3)

    def body(other: int) -> Any:
        known.wait(LIMIT)
        return futures[other].result()

    with Service(2) as service:
        with pytest.raises(ExceptionGroup) as raised, TaskGroup(service, limit=limit) as group:
            futures += [group.submit(body, 1), group.submit(body, 0)]
            known.wait(LIMIT)
        assert {type(error) for error in failures(raised.value)} == {DeadlockError}


@every_wait
def test_waiting_for_a_member_in_a_body_lends_the_slot(wait: Wait, limit: int | None) -> None:
    def body() -> list[int]:
        with TaskGroup(service, limit=limit) as group:
            futures = [group.submit(int, str(number)) for number in range(20)]
            wait(futures[-1])
            wait(futures[7])
        return group.results()

    with Service(1) as service:
        assert service.submit(body).result(LIMIT) == list(range(20))


def test_an_end_that_can_never_come_is_an_error(limit: int | None) -> None:
    futures: list[Future[Any]] = []
    known = threading.Event()

    def body() -> None:
        assert known.wait(LIMIT)
        with TaskGroup(service, limit=limit) as group:
            group.submit(futures[0].result)

    with Service(1) as service:
        futures.append(service.submit(body))
        known.set()
        error = futures[0].exception(LIMIT)
    # In the body, or in what it waits for: whichever closed the circle.
    assert [type(one) for one in getattr(error, "exceptions", (error,))] == [DeadlockError]


# Time


def test_a_timeout_cancels_and_does_not_wait_for_what_runs(
    pool: Executor, limit: int | None
) -> None:
    gate = threading.Event()
    started: list[int] = []

    def body(number: int) -> None:
        started.append(number)
        assert gate.wait(LIMIT)

    group = TaskGroup(pool, limit=limit, timeout=0.1)
    futures: list[Future[None]] = []
    with pytest.raises(TimeoutError), group:
        for number in range(3):
            futures.append(group.submit(body, number))
    assert group.cancelled
    if limit is not None:
        wait_until(lambda: sum(not future.done() for future in futures) == len(started))
    # On a slow machine, not even the first has started.
    for number, future in enumerate(futures):
        assert future.done() is (number not in started)
    gate.set()
    concurrent.futures.wait(futures, LIMIT)
    assert all(future.done() for future in futures)


def test_a_timeout_that_does_not_come_changes_nothing(pool: Executor, limit: int | None) -> None:
    with TaskGroup(pool, limit=limit, timeout=LIMIT) as group:
        group.submit(int)
        assert not group.cancelled
    assert group.results() == [0]


def test_when_the_time_is_over_the_block_sees_it(pool: Executor) -> None:
    with pytest.raises(TimeoutError), TaskGroup(pool, timeout=0) as group:
        assert group.cancelled
        with pytest.raises(RuntimeError, match="cancelled"):
            group.submit(int)


@pytest.mark.parametrize("own", [None, Boom()])
def test_a_block_that_overruns_is_out_of_time_though_all_is_over(
    limit: int | None, own: Boom | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late[0])
    monkeypatch.setattr("boundedexec.groups.time", clock)
    with Service(1) as service:
        with pytest.raises((TimeoutError, ExceptionGroup)) as raised:
            with TaskGroup(service, limit=limit, timeout=LIMIT) as group:
                group.submit(int).result()
                late[0] = LIMIT
                if own is not None:
                    raise own
    assert group.cancelled
    found = raised.value
    errors = failures(found) if isinstance(found, ExceptionGroup) else [found]
    assert [type(error) for error in errors] == [Boom, TimeoutError][own is None :]


def test_a_timeout_is_beside_the_failures(new_service: NewService) -> None:
    service, gate, error = new_service(2), threading.Event(), Boom()
    started = threading.Event()

    def running() -> None:
        started.set()
        assert gate.wait(LIMIT)

    with pytest.raises(ExceptionGroup) as raised:
        with TaskGroup(service, timeout=1) as group:
            group.submit(running)
            assert started.wait(LIMIT)
            # Over before the time is, and beside a body that goes on.
            assert group.submit(fail, error).exception(LIMIT) is error
    assert [type(each) for each in failures(raised.value)] == [Boom, TimeoutError]
    gate.set()


# What is kept, and other processes


def test_nothing_is_kept_of_what_is_over_but_its_result(
    pool: Executor, limit: int | None, no_collector: None
) -> None:
    argument, fn, result = Thing(), Thing(), Thing()
    kept = [weakref.ref(argument), weakref.ref(fn)]
    with TaskGroup(pool, limit=limit) as group:
        group.submit(fn, argument).result(LIMIT)
        del fn, argument
        group.submit(lambda: result)
    end = time.monotonic() + LIMIT
    while not all_gone(kept) and time.monotonic() < end:
        time.sleep(0.001)
        gc.collect()
    assert all_gone(kept)
    assert group.results()[1] is result


def test_a_group_that_is_over_is_kept_by_nobody(limit: int | None) -> None:
    with Service(2) as service:
        with TaskGroup(service, limit=limit) as group:
            future = group.submit(int)
        reference = weakref.ref(group)
        del group
        gc.collect()
        assert reference() is None
        assert future.result() == 0


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("entered", [False, True])
def test_in_the_child_of_a_fork_a_group_from_before_accepts(
    limit: int | None, entered: bool
) -> None:
    with Service(1) as service:
        group = TaskGroup(service, limit=limit)
        if entered:
            group.__enter__()

        def check() -> None:
            with nullcontext() if entered else group:
                future = group.submit(pow, 2, 3)
                assert future.result(LIMIT) == 8

        assert in_child(check) == 0
        if entered:
            group.__exit__(None, None, None)


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
def test_in_the_child_of_a_fork_the_end_waits_for_nothing(limit: int | None) -> None:
    gate = threading.Event()
    with Service(1) as service:
        group = TaskGroup(service, limit=limit)
        with group:
            group.submit(gate.wait, LIMIT)
            group.submit(int)

            def check() -> None:
                group.__exit__(None, None, None)
                with TaskGroup(service, limit=limit) as own:
                    own.submit(str)
                assert own.results() == [""]

            assert in_child(check) == 0
            gate.set()
        assert group.results() == [True, 0]


# Races


@pytest.mark.parametrize("often", [False, True])
def test_many_threads_and_one_failure(pool: Executor, limit: int | None, often: bool) -> None:
    error = Boom()
    group = TaskGroup(pool, limit=limit)

    def body(number: int) -> int:
        if number == 40:
            raise error
        try:
            group.submit(int)
        except RuntimeError:
            pass
        return number

    with switching_often() if often else nullcontext():
        with pytest.raises(ExceptionGroup) as raised, group:
            for number in range(80):
                group.submit(body, number)
    assert failures(raised.value) == [error]
    with pytest.raises((Boom, CancelledError)):
        group.results()
