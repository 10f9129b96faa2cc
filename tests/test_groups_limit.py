"""At most so many of a group's submissions are with the executor; the others wait in order."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
from helpers import (
    LIMIT,
    Executing,
    Inline,
    Manual,
    Passing,
    Wait,
    bound_of,
    every_wait,
    holding,
    wait_until,
)

import boundedexec
from boundedexec import DeadlockError, Service, TaskGroup
from boundedexec._core.graph import graph

# With the executor, and in line


@pytest.mark.parametrize("limit", [1, 3])
def test_at_most_limit_are_with_the_executor(limit: int) -> None:
    executor = Manual()

    def has(count: int) -> bool:
        return len(executor.handed) == count

    with TaskGroup(executor, limit=limit) as group:
        futures = [group.submit(int, str(number)) for number in range(20)]
        for over in range(20):
            wait_until(partial(has, min(limit, 20 - over)))
            assert not any(future.running() for future in futures[over + limit :])
            future, fn, args, kwargs = executor.handed.popleft()
            future.set_result(fn(*args, **kwargs))
    assert group.results() == list(range(20))


def test_a_limit_bounds_what_executes(pool: Executor) -> None:
    executing = Executing()

    def body(_: int) -> None:
        with executing:
            time.sleep(0.0005)

    with TaskGroup(pool, limit=2) as group:
        for number in range(60):
            group.submit(body, number)
    assert executing.peak <= 2


def test_what_waits_in_line_starts_in_order(pool: Executor) -> None:
    order: list[int] = []
    with TaskGroup(pool, limit=1) as group:
        for number in range(100):
            group.submit(order.append, number)
    assert order == list(range(100))


def test_what_waits_in_line_can_be_cancelled(pool: Executor) -> None:
    ran: list[int] = []
    gate = threading.Event()
    with TaskGroup(pool, limit=1) as group:
        group.submit(gate.wait, LIMIT)
        futures = [group.submit(ran.append, number) for number in range(10)]
        assert futures[3].cancel() and futures[3].cancel()
        assert futures[3].cancelled()
        gate.set()
    assert ran == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_an_executor_that_runs_everything_at_once_does_not_nest() -> None:
    with TaskGroup(Inline(), limit=1) as group:

        def many() -> None:
            for _ in range(5000):
                group.submit(int)

        group.submit(many)
    assert len(group.results()) == 5001


# In a body


@every_wait
def test_a_body_that_waits_for_one_in_line_lends_its_place(wait: Wait) -> None:
    def nest(depth: int) -> int:
        if depth:
            futures = [group.submit(nest, depth - 1), group.submit(nest, depth - 1)]
            for future in futures:
                wait(future)
        return depth

    with Service(1) as service:
        with TaskGroup(service, limit=1) as group:
            group.submit(nest, 4)
        assert len(group.results()) == 31


def test_bodies_that_wait_for_all_in_line_lend_their_places() -> None:
    def nest(depth: int) -> None:
        boundedexec.wait([group.submit(nest, depth - 1) for _ in range(3 if depth else 0)])

    with Service(2) as service:
        with TaskGroup(service, limit=2) as group:
            for _ in range(3):
                group.submit(nest, 3)
        assert len(group.results()) == 3 * (1 + 3 + 9 + 27)


@pytest.mark.parametrize("first", [False, True])
def test_waiting_for_members_in_a_full_service_while_others_run(first: bool) -> None:
    """What waits in line is lent the slot once it is with the service."""
    gate = threading.Event()

    def body() -> str:
        with TaskGroup(service, limit=1) as group:
            running = group.submit(gate.wait, LIMIT)
            last = group.submit(str)
            gate.set()
            if first:
                running.result()
            return last.result()

    with Service(2) as service:
        waiting = service.submit(body)
        blocked = [service.submit(waiting.result) for _ in range(3)]
        assert waiting.result(LIMIT) == ""
        assert [future.result(LIMIT) for future in blocked] == [""] * 3


def test_a_body_that_waits_with_a_timeout_for_one_in_line_lends_its_place() -> None:
    def body() -> str:
        return group.submit(str).result(LIMIT)

    with Service(2) as service:
        with TaskGroup(service, limit=1) as group:
            group.submit(body)
            group.submit(int)
        assert group.results() == ["", 0, ""]


def test_what_is_waited_for_through_another_service_goes_past_the_limit() -> None:
    """The body that holds up the line waits for one elsewhere, which waits for one in line."""
    with Service(1) as service, Service(1) as other:

        def body() -> str:
            in_line = group.submit(str)
            return other.submit(in_line.result).result()

        with TaskGroup(service, limit=1) as group:
            group.submit(body)
        assert group.results() == ["", ""]


def test_one_in_line_is_waited_for_by_whom_those_before_it_wait() -> None:
    """A body waits for the last in line while the first begins to wait for what only the slot
    of that body could start."""
    known, waits = threading.Event(), threading.Event()

    def first() -> int:
        assert waits.wait(LIMIT)
        return full.submit(int).result()

    def waiting() -> str:
        assert known.wait(LIMIT)
        service.submit(watch)
        return last.result()

    def watch() -> None:
        wait_until(lambda: bool(full.tasks()[0].waits_for))
        waits.set()

    with Service(1) as full, Service(2) as service:
        with TaskGroup(service, limit=1) as group:
            group.submit(first)
            last = group.submit(str)
            future = full.submit(waiting)
            known.set()
            assert future.result(LIMIT) == ""
        assert group.results() == [0, ""]


def test_bodies_in_line_that_wait_for_each_other_are_an_error() -> None:
    """The first waits for the second, which goes past it and waits for the first."""
    futures: list[Future[Any]] = []
    known = threading.Event()

    def body(other: int) -> Any:
        assert known.wait(LIMIT)
        return futures[other].result()

    with Service(2) as service:
        with pytest.raises(ExceptionGroup) as raised, TaskGroup(service, limit=1) as group:
            futures += [group.submit(body, 1), group.submit(body, 0)]
            known.set()
        assert {type(error) for error in raised.value.exceptions} == {DeadlockError}


def test_one_in_line_goes_past_where_a_wait_with_a_timeout_closes_a_circle_too() -> None:
    """A body waits for one that waits for it with a timeout, and for one in line."""
    go = threading.Event()
    awaited: list[Future[Any]] = []

    def waiting() -> int:
        assert go.wait(LIMIT)
        return len(boundedexec.wait(awaited).done)

    def timed() -> None:
        with pytest.raises(TimeoutError):
            future.result(0.3)

    with Service(3) as service, TaskGroup(service, limit=1) as group:
        future = service.submit(waiting)
        awaited.append(service.submit(timed))
        group.submit(future.result)
        awaited.append(group.submit(int))
        wait_until(lambda: len(graph.waiting) == 2)
        go.set()
        assert future.result(LIMIT) == 2


def test_what_is_being_handed_over_is_not_in_line() -> None:
    """A body waits for one in line while the executor's `submit` takes its time."""
    entered, release = threading.Event(), threading.Event()
    manual = Manual()
    executor = Passing(manual)

    def pause() -> None:
        entered.set()
        assert release.wait(LIMIT)

    def body() -> int:
        return group.submit(int, "2").result()

    executor.before = pause
    with Service(1) as service, TaskGroup(executor, limit=1) as group:
        thread = threading.Thread(target=group.submit, args=(int,))
        thread.start()
        assert entered.wait(LIMIT)
        future = service.submit(body)
        wait_until(lambda: bool(graph.waiting))
        release.set()
        thread.join(LIMIT)
        assert len(manual.handed) == 1
        manual.run_until(future)
        assert future.result(LIMIT) == 2


def test_what_another_group_has_put_in_line_goes_past() -> None:
    """An executor whose `submit` is that of a group: the circle leads through its line."""

    class Through(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return group.submit(fn, *args, **kwargs)

    go = threading.Event()
    last: list[Future[int]] = []

    def waiting() -> int:
        assert go.wait(LIMIT)
        return last[0].result()

    with (
        Service(3) as service,
        TaskGroup(service, limit=1) as group,
        TaskGroup(Through(), limit=5) as outer,
    ):
        future = service.submit(waiting)
        group.submit(future.result)
        last.append(outer.submit(int))
        wait_until(lambda: bool(graph.waiting))
        go.set()
        assert future.result(LIMIT) == 0


def test_what_a_body_submits_waits_until_it_is_over_where_submit_executes() -> None:
    done: list[bool] = []
    with TaskGroup(Inline(), limit=2) as group:
        group.submit(lambda: done.append(group.submit(int).done()))
    assert done == [False]
    assert group.results() == [None, 0]


# What it takes


def test_those_with_the_executor_take_no_thread_of_their_own() -> None:
    gate = threading.Event()
    with Service(2) as service:
        before = threading.active_count()
        with TaskGroup(service, limit=50) as group:
            for _ in range(100):
                group.submit(gate.wait, LIMIT)
            assert threading.active_count() <= before + 2
            gate.set()


def test_a_callback_may_wait_for_the_next_in_line(pool: Executor) -> None:
    gate, seen = threading.Event(), SimpleQueue[int]()
    with TaskGroup(pool, limit=1) as group:
        first = group.submit(gate.wait, LIMIT)
        following = group.submit(int, "7")
        first.add_done_callback(lambda _: seen.put(following.result(LIMIT)))
        gate.set()
    assert seen.get(timeout=LIMIT) == 7


@pytest.mark.parametrize("place", [0, 1])
def test_one_that_is_cancelled_gives_its_place_to_the_next(pool: Executor, place: int) -> None:
    ran: list[int] = []
    with TaskGroup(pool, limit=1) as group:
        with holding(pool, bound_of(pool) or 1):
            futures = [group.submit(ran.append, number) for number in range(3)]
            done = futures[place].cancel()
            assert futures[place].cancelled() is done
            assert done or bound_of(pool) is None  # Where there is no bound it may have run.
    assert ran == [number for number in range(3) if number != place or not done]
    assert not group.cancelled


def test_what_waits_in_line_costs_what_is_queued_does() -> None:
    def pending(submit: Callable[..., object]) -> float:
        tracemalloc.start()
        kept = [submit(int, number) for number in range(5000)]
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return used / len(kept)

    with Service(1) as service, holding(service), TaskGroup(service, limit=1) as group:
        assert pending(group.submit) < 1.6 * pending(service.submit)
        group.cancel()
