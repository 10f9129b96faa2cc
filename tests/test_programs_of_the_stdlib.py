"""What finishes on the stdlib's pool does the same here, and its documented hangs end."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future
from typing import Any

import pytest
from helpers import LIMIT, AnyFuture, NewService

import boundedexec
from boundedexec import DeadlockError, Service, ThreadPoolExecutor

# The programs of the stdlib's documentation that hang


def test_the_documentations_body_that_waits_for_its_own_submission_finishes(
    new_service: NewService,
) -> None:
    executor = new_service(1)

    def wait_on_future() -> float:
        f = executor.submit(pow, 5, 2)
        return f.result()

    assert executor.submit(wait_on_future).result(LIMIT) == 25


def test_the_documentations_bodies_that_wait_for_each_other_raise(
    new_service: NewService,
) -> None:
    executor, both = new_service(2), threading.Barrier(3)

    def wait_on_b() -> Any:
        both.wait(LIMIT)
        return b.result()

    def wait_on_a() -> Any:
        both.wait(LIMIT)
        return a.result()

    a: AnyFuture = executor.submit(wait_on_b)
    b: AnyFuture = executor.submit(wait_on_a)
    both.wait(LIMIT)
    error = a.exception(LIMIT)
    assert isinstance(error, DeadlockError) and b.exception(LIMIT) is error
    assert "wait_on_a" in str(error) and "wait_on_b" in str(error)


# Programs that finish on the stdlib's pool do the same here


Make = Callable[[int], Executor]

PROGRAMS: list[Callable[[Make], object]] = []


def program(run: Callable[[Make], object]) -> Callable[[Make], object]:
    PROGRAMS.append(run)
    return run


@program
def two_bodies_hand_each_other_what_they_made(make: Make) -> object:
    left: queue.Queue[int] = queue.Queue()
    right: queue.Queue[int] = queue.Queue()

    def ping(out: queue.Queue[int], back: queue.Queue[int]) -> list[int]:
        got: list[int] = []
        for n in range(20):
            out.put(n)
            got.append(back.get(timeout=LIMIT))
        return got

    with make(2) as executor:
        one, two = executor.submit(ping, left, right), executor.submit(ping, right, left)
        return one.result(LIMIT), two.result(LIMIT)


@program
def a_tree_on_a_pool_that_is_wide_enough(make: Make) -> object:
    with make(16) as executor:

        def count(depth: int) -> int:
            if not depth:
                return 1
            children = [executor.submit(count, depth - 1) for _ in range(2)]
            return 1 + sum(child.result() for child in children)

        return executor.submit(count, 3).result(LIMIT)


@program
def a_body_polls_what_another_slot_will_run(make: Make) -> object:
    with make(2) as executor:
        gate = threading.Event()

        def poll() -> int:
            queued = executor.submit(int, "3")
            for _ in range(1_000_000):
                try:
                    return queued.result(timeout=0.001)
                except concurrent.futures.TimeoutError:
                    pass
                finally:
                    gate.set()
            raise AssertionError

        executor.submit(gate.wait)
        return executor.submit(poll).result(LIMIT)


@program
def of_two_that_wait_for_each_other_one_gives_up(make: Make) -> object:
    with make(2) as executor:
        other: queue.Queue[AnyFuture] = queue.Queue()

        def patient() -> Any:
            return other.get(timeout=LIMIT).result()

        def hasty(future: AnyFuture) -> str:
            try:
                future.result(timeout=0.02)
            except concurrent.futures.TimeoutError:
                return "gave up"
            return "never"

        first = executor.submit(patient)
        second = executor.submit(hasty, first)
        other.put(second)
        return first.result(LIMIT), second.result(LIMIT)


@program
def a_body_spawns_whenever_something_ends(make: Make) -> object:
    with make(3) as executor:

        def spawn() -> list[int]:
            pending = {executor.submit(int, n) for n in range(3)}
            seen: list[int] = []
            while pending:
                done, pending = concurrent.futures.wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    seen.append(future.result())
                    if future.result() < 20:
                        pending.add(executor.submit(int, future.result() + 3))
            return sorted(seen)

        return executor.submit(spawn).result(LIMIT)


@program
def bodies_meet_at_a_barrier(make: Make) -> object:
    with make(4) as executor:
        barrier = threading.Barrier(4)
        return sorted(executor.map(barrier.wait, [LIMIT] * 8))


@program
def stages_of_a_pipeline_run_side_by_side(make: Make) -> object:
    with make(3) as executor:
        queues: list[queue.Queue[int | None]] = [queue.Queue(2) for _ in range(2)]

        def source() -> None:
            for n in [*range(30), None]:
                queues[0].put(n, timeout=LIMIT)

        def stage() -> None:
            while (n := queues[0].get(timeout=LIMIT)) is not None:
                queues[1].put(n * n, timeout=LIMIT)
            queues[1].put(None)

        def sink() -> int:
            return sum(iter(lambda: queues[1].get(timeout=LIMIT), None))

        return [executor.submit(each) for each in (source, stage, sink)][2].result(LIMIT)


@program
def a_lock_is_held_while_waiting_for_what_runs(make: Make) -> object:
    with make(2) as executor:
        lock, locked, order = threading.Lock(), threading.Event(), list[str]()

        def runs() -> None:
            assert locked.wait(LIMIT)
            order.append("running")

        def holds() -> None:
            with lock:
                locked.set()
                running.result()
                order.append("holder")

        def wants() -> None:
            with lock:
                order.append("wants")

        running = executor.submit(runs)
        executor.submit(holds)
        executor.submit(wants).result(LIMIT)
        return order


@program
def one_slot_is_a_mutex(make: Make) -> object:
    with make(1) as executor:
        total = 0

        def add() -> None:
            nonlocal total
            before = total
            time.sleep(0)
            total = before + 1

        concurrent.futures.wait([executor.submit(add) for _ in range(200)], LIMIT)
        return total


@program
def a_body_waits_for_what_a_done_callback_sets(make: Make) -> object:
    with make(2) as executor:
        gate, chained = threading.Event(), Future[str]()
        first = executor.submit(gate.wait)
        first.add_done_callback(lambda done: chained.set_result(f"set {done.result()}"))
        second = executor.submit(lambda: chained.result())
        gate.set()
        return second.result(LIMIT)


@program
def a_wait_for_any_is_waited_for_by_one_of_them(make: Make) -> object:
    with make(3) as executor:
        gate, me = threading.Event(), queue.Queue[AnyFuture]()

        def waits_for_any() -> int:
            back = executor.submit(waits_back)
            other = executor.submit(gate.wait)
            threading.Timer(0.01, gate.set).start()
            done, _ = (boundedexec if isinstance(executor, Service) else concurrent.futures).wait(
                [back, other], return_when=FIRST_COMPLETED
            )
            return [back, other].index(done.pop())

        def waits_back() -> Any:
            return me.get(timeout=LIMIT).result()

        future = executor.submit(waits_for_any)
        me.put(future)
        return future.result(LIMIT)


@program
def a_map_in_a_map(make: Make) -> object:
    with make(4) as outer, make(2) as inner:

        def total(n: int) -> int:
            return sum(inner.map(int, range(n)))

        return list(outer.map(total, range(10)))


@program
def a_failure_travels_through_the_waits(make: Make) -> object:
    with make(3) as executor:

        def level(n: int) -> int:
            return executor.submit(level, n - 1).result() if n else int("nothing")

        return repr(executor.submit(level, 2).exception(LIMIT))


@program
def what_is_queued_is_cancelled_by_a_body(make: Make) -> object:
    with make(1) as executor:

        def body() -> list[bool]:
            futures = [executor.submit(int) for _ in range(3)]
            return [future.cancel() for future in futures[::2]]

        return executor.submit(body).result(LIMIT), executor.submit(int).result(LIMIT)


@pytest.mark.parametrize("make", [Service, ThreadPoolExecutor], ids=lambda make: make.__name__)
@pytest.mark.parametrize("run", PROGRAMS, ids=lambda run: run.__name__)
def test_what_finishes_on_the_stdlibs_pool_does_the_same_here(
    run: Callable[[Make], object], make: Make
) -> None:
    assert run(make) == run(concurrent.futures.ThreadPoolExecutor)
