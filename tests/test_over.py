"""A service over another executor admits: bounded, in order, and never blocking."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import io
import operator
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextvars import ContextVar
from typing import Any

import pytest
from helpers import (
    LIMIT,
    Boom,
    Executing,
    Inline,
    Manual,
    Passing,
    Thing,
    all_gone,
    ended,
    fail,
    new_seed,
    run_script,
    wait_until,
)

from boundedexec import (
    Coalescer,
    DeadlockError,
    QueueFull,
    Service,
    TaskGroup,
    Trace,
    as_completed,
    wait,
)

AnyFuture = Future[Any]


@pytest.fixture
def manual() -> Manual:
    return Manual()


@pytest.fixture
def over(manual: Manual) -> Iterator[Service]:
    """A service over `manual`, which has two of its submissions at most."""
    service = Service.over(manual, 2)
    yield service
    service.shutdown(wait=False, cancel_futures=True)
    finish(manual, service)
    service.shutdown()


def finish(manual: Manual, service: Service) -> None:
    """Run what is outstanding."""
    while not service.block_till_done(0.001):
        manual.run()


def in_hand(manual: Manual, count: int) -> None:
    """Return once the executor has `count`. (The last is perhaps being handed over still.)"""
    wait_until(lambda: len(manual.handed) == count)


# At most so many in its hands, in order


def test_the_executor_has_at_most_that_many_in_the_order_of_submission(
    manual: Manual, over: Service
) -> None:
    order: list[int] = []
    for i in range(20):
        over.submit(order.append, i)
    while len(order) < 20:
        in_hand(manual, min(2, 20 - len(order)))
        assert over.stats().running == len(manual.handed)
        manual.run()
    assert order == list(range(20))


def test_the_bound_can_be_set(manual: Manual, over: Service) -> None:
    futures = [over.submit(int, i) for i in range(30)]
    in_hand(manual, 2)
    over.max_workers = 5
    in_hand(manual, 5)
    assert over.max_workers == 5
    over.max_workers = 1
    manual.run()
    in_hand(manual, 1)
    assert over.stats().running == 1
    over.max_workers = 3
    in_hand(manual, 3)
    over.max_workers = None
    finish(manual, over)
    assert [future.result() for future in futures] == list(range(30))
    over.max_workers = 0
    more = [over.submit(int) for _ in range(50)]
    in_hand(manual, 50)
    finish(manual, over)
    assert all(future.done() for future in more)


def test_submit_does_not_block_where_the_executors_does() -> None:
    blocking, release = threading.Event(), threading.Event()

    def block() -> None:
        blocking.set()
        assert release.wait(LIMIT)

    executor = Passing(Inline())
    executor.before = block
    with Service.over(executor, 2) as service:
        futures = [service.submit(int, "1")]
        assert blocking.wait(LIMIT)
        futures += [service.submit(int, str(n)) for n in range(2, 1000)]
        assert futures[-1].cancel()
        assert not service.block_till_done(0)
        assert service.stats().queued == 997
        release.set()
        assert sum(future.result(LIMIT) for future in futures[:-1]) == 998 * 999 // 2


def test_max_queued_refuses_at_the_door(manual: Manual) -> None:
    service = Service.over(manual, 2, max_queued=3)
    futures = [service.submit(int) for _ in range(2)]
    in_hand(manual, 2)
    futures += [service.submit(int) for _ in range(3)]
    with pytest.raises(QueueFull):
        service.submit(int)
    finish(manual, service)
    assert all(future.done() for future in futures)
    assert service.stats().refused == 1
    service.shutdown()


def test_map_submits_no_more_ahead_than_its_buffer(manual: Manual, over: Service) -> None:
    taken: list[int] = []

    def count() -> Iterator[int]:
        for i in range(50):
            taken.append(i)
            yield i

    results = over.map(operator.neg, count(), buffersize=4)
    assert len(taken) == 4
    in_hand(manual, 2)
    runner = threading.Thread(target=lambda: finish(manual, over))
    runner.start()
    assert next(results) == 0
    runner.join(LIMIT)
    assert len(taken) == 5
    results.close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def test_an_executor_that_runs_inline_does_not_nest() -> None:
    with Service.over(Inline(), 1) as service:
        futures = [service.submit(int, i) for i in range(5000)]
        assert sum(future.result(LIMIT) for future in futures) == sum(range(5000))


def test_the_arguments_are_checked(manual: Manual) -> None:
    bad: Any
    for bad in (3, None, object()):
        with pytest.raises(TypeError, match="executor must be one"):
            Service.over(bad)
    with pytest.raises(TypeError, match="max_workers"):
        Service.over(manual, bad)
    with pytest.raises(ValueError, match="retries must be 0 or more"):
        Service.over(Manual, retries=-1)
    with pytest.raises(ValueError, match="retries needs a callable that returns an executor"):
        Service.over(manual, retries=1)
    with Service.over(manual) as service:
        with Service() as plain:
            assert service.max_workers == plain.max_workers
        with pytest.raises(TypeError):
            service.submit(bad)
    with Service.over(manual, 0, "jobs") as service:
        assert service.max_workers is None


# Cancelling


def test_cancel_reaches_what_waits_here_and_what_has_not_started_there(
    manual: Manual, over: Service
) -> None:
    futures = [over.submit(int, i) for i in range(4)]
    in_hand(manual, 2)
    beneath = [each[0] for each in manual.handed]
    called: list[AnyFuture] = []
    futures[0].add_done_callback(called.append)
    assert futures[0].cancel() and futures[0].cancelled() and futures[0].done()
    assert called == [futures[0]]
    assert beneath[0].cancelled() and not beneath[1].cancelled()
    assert futures[3].cancel()
    with pytest.raises(CancelledError):
        futures[0].result(0)
    in_hand(manual, 3)  # One of them is cancelled.
    finish(manual, over)
    assert [futures[1].result(), futures[2].result()] == [1, 2]
    now = over.stats()
    assert (now.submitted, now.completed, now.cancelled, now.failed) == (4, 2, 2, 0)


def test_what_has_started_there_is_not_cancelled() -> None:
    started, release = threading.Event(), threading.Event()

    def body() -> str:
        started.set()
        assert release.wait(LIMIT)
        return "done"

    with concurrent.futures.ThreadPoolExecutor(1) as pool, Service.over(pool, 1) as service:
        future = service.submit(body)
        assert started.wait(LIMIT)
        assert not future.cancel() and not future.cancelled() and future.running()
        release.set()
        assert future.result(LIMIT) == "done"
        assert not future.cancel()


def test_what_is_cancelled_there_is_cancelled_here(manual: Manual, over: Service) -> None:
    futures = [over.submit(int) for _ in range(3)]
    in_hand(manual, 2)
    manual.handed[0][0].cancel()
    for future in as_completed(futures[:1], LIMIT):
        assert future.cancelled()
    finish(manual, over)
    assert [future.cancelled() for future in futures] == [True, False, False]
    assert over.stats().cancelled == 1


def test_shutdown_cancels_there_what_has_not_started(manual: Manual) -> None:
    service = Service.over(manual, 2)
    futures = [service.submit(int) for _ in range(10)]
    in_hand(manual, 2)
    service.shutdown(wait=False, cancel_futures=True)
    finish(manual, service)
    service.shutdown()
    # What was being handed over at that moment was not.
    assert [future.cancelled() for future in [*futures[:1], *futures[2:]]] == [True] * 9


# Until nothing is outstanding


def test_block_till_done_waits_for_what_is_here_and_there(manual: Manual, over: Service) -> None:
    futures = [over.submit(int) for _ in range(5)]
    futures[0].add_done_callback(lambda _: futures.append(over.submit(int, "7")))
    assert not over.block_till_done(0)

    async def wait() -> bool:
        return await over.async_block_till_done(0.001)

    assert not asyncio.run(wait())
    waiter = threading.Thread(target=over.block_till_done)
    waiter.start()
    finish(manual, over)
    waiter.join(LIMIT)
    assert not waiter.is_alive()
    assert asyncio.run(wait())
    assert all(future.done() for future in futures)
    assert futures[-1].result() == 7


def test_shutdown_finishes_and_leaves_the_executor_to_its_owner() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        service = Service.over(pool, 3)
        futures = [service.submit(int, i) for i in range(100)]
        service.shutdown()
        assert [future.result(0) for future in futures] == list(range(100))
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            service.submit(int)
        assert not [t for t in threading.enumerate() if t.name.endswith("_feeder")]
        assert pool.submit(int, "5").result(LIMIT) == 5
        service.shutdown()
        assert service.is_shut_down


def test_a_service_that_is_dropped_finishes_what_it_accepted() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        service = Service.over(pool, 1, "dropped")
        kept = weakref.ref(service)
        futures = [service.submit(int, i) for i in range(100)]
        del service
        assert [future.result(LIMIT) for future in futures] == list(range(100))
        gc.collect()
        assert kept() is None
        wait_until(lambda: not [t for t in threading.enumerate() if t.name == "dropped_feeder"])


def test_shutdown_ends_though_several_find_it_at_its_end(switching: None) -> None:
    class Asking(Inline):
        service: Service

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            self.service.shutdown(wait=False)  # So the feeder has something to look at.

    for _ in range(200):
        executor = Asking()
        service = executor.service = Service.over(lambda: executor, 2, daemon=True)  # noqa: B023
        service.submit(int)
        clients = [threading.Thread(target=service.shutdown, daemon=True) for _ in range(4)]
        for client in clients:
            client.start()
        assert all(map(ended, clients))


def test_no_thread_is_there_before_the_first_submission(manual: Manual) -> None:
    with Service.over(manual, 2, "none yet"):
        assert not [t for t in threading.enumerate() if t.name.startswith("none yet")]


def test_nothing_is_kept_of_what_is_over(no_collector: None) -> None:
    blocking, release = threading.Event(), threading.Event()

    def block() -> None:
        blocking.set()
        assert release.wait(LIMIT)

    executor = Passing(Inline())
    with Service.over(executor, 1) as service:
        fn, argument, named = Thing(), Thing(), Thing()
        future = service.submit(fn, argument, named=named)
        result = future.result(LIMIT)
        kept = [weakref.ref(each) for each in (fn, argument, named, future, result)]
        wait_until(lambda: service.stats().running == 0)
        del fn, argument, named, result, future
        executor.before = block
        service.submit(int)
        assert blocking.wait(LIMIT)  # The feeder is in the executor, and has nothing else.
        wait_until(lambda: all_gone(kept))
        release.set()


def test_nothing_is_kept_of_what_the_executor_had_for_a_while(
    manual: Manual, over: Service, no_collector: None
) -> None:
    future = over.submit(Thing)
    over.submit(int)
    in_hand(manual, 2)  # So the first has been handed over, callback included.
    manual.run()
    kept = [weakref.ref(each) for each in (future, future.result(LIMIT))]
    del future
    wait_until(lambda: all_gone(kept))


# Beside the rest of the package


def test_a_key_is_in_flight_once_and_its_rerun_is_fresh(manual: Manual, over: Service) -> None:
    state = {"value": 0}
    builds: Coalescer[str] = Coalescer(over)

    def build() -> int:
        return state["value"]

    first = builds.submit("key", build)
    in_hand(manual, 1)
    state["value"] = 1
    owed = [builds.submit("key", build) for _ in range(10)]
    assert len(set(owed)) == 1 and owed[0] is not first
    assert builds.join("key", build) is first
    assert len(manual.handed) == len(builds) == 1
    assert over.stats().queued == 1
    state["value"] = 2
    finish(manual, over)
    assert first.result(0) == owed[0].result(0) == 2
    assert len(builds) == 0


def test_a_run_in_the_executors_hands_can_be_cancelled_by_who_asked_alone(
    manual: Manual, over: Service
) -> None:
    builds: Coalescer[str] = Coalescer(over)
    alone, shared = builds.submit("alone", int), builds.submit("shared", int)
    in_hand(manual, 2)
    assert builds.join("shared", int) is shared
    assert not shared.cancel()
    following = builds.submit("alone", int, "5")
    assert alone.cancel() and alone.cancelled()
    finish(manual, over)
    assert following.result(0) == 5
    assert len(builds) == 0


def test_a_group_is_waited_for_cancelled_and_collected(manual: Manual, over: Service) -> None:
    runner = threading.Thread(target=lambda: finish(manual, over))
    with TaskGroup(over) as group:
        futures = [group.submit(int, i) for i in range(10)]
        runner.start()
    runner.join(LIMIT)
    assert group.results() == list(range(10))
    runner = threading.Thread(target=lambda: finish(manual, over))
    with TaskGroup(over) as group:
        futures = [group.submit(int) for _ in range(10)]
        in_hand(manual, 2)
        group.cancel()
        runner.start()
    runner.join(LIMIT)
    assert futures[0].cancelled() and futures[-1].cancelled()
    with Service.over(Inline(), 2) as inline:
        with pytest.raises(ExceptionGroup), TaskGroup(inline, limit=1) as group:
            group.submit(fail, Boom())


def test_it_can_be_looked_into(manual: Manual) -> None:
    with Service.over(manual, 2, "jobs") as service:
        with Trace(service) as trace:
            futures = [service.submit(int, str(i)) for i in range(5)]
            futures.append(service.submit(fail, Boom()))
            in_hand(manual, 2)
            now = service.stats()
            assert (now.bound, now.running, now.queued, now.threads) == (2, 2, 4, 1)
            found = service.tasks()
            assert [(task.name, task.arguments, task.state) for task in found[:3]] == [
                ("int", "('0')", "running"),
                ("int", "('1')", "running"),
                ("int", "('2')", "queued"),
            ]
            assert "int" in repr(futures[0])
            file = io.StringIO()
            service.dump(file)
            assert file.getvalue().startswith("jobs: 2 slots, 2 running, 4 queued")
            assert "int('0'): running" in file.getvalue()
            assert "3 of int" in file.getvalue()
            assert "running=2 queued=4 open" in repr(service)
            finish(manual, service)
        now = service.stats()
        assert (now.submitted, now.completed, now.failed) == (6, 5, 1)
        assert now.seconds_since_completion is not None
        svg = trace._repr_svg_()  # pyright: ignore[reportPrivateUsage]
        assert svg.count("int") >= 5
        assert isinstance(futures[-1].exception(), Boom)


def test_what_is_long_in_the_executors_hands_is_logged(
    manual: Manual, caplog: pytest.LogCaptureFixture
) -> None:
    with Service.over(manual, 1, slow_after=0.01) as service:
        service.submit(int)
        wait_until(lambda: any("a body has run" in record.message for record in caplog.records))
        finish(manual, service)


def test_a_context_stays_behind() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="default")
    variable.set("the submitter's")
    with Service.over(Inline(), 1) as service:
        assert service.submit(variable.get).result(LIMIT) == "default"


def test_it_gives_no_slot_away_and_says_why(manual: Manual, over: Service) -> None:
    for give in (lambda: over.yield_slot(int), over.slot_yielded):
        with pytest.raises(RuntimeError, match="execute in another executor"):
            give()


def test_a_callback_that_waits_for_its_own_service_raises(manual: Manual, over: Service) -> None:
    raised: list[BaseException] = []

    def collect(step: Callable[[], object]) -> None:
        try:
            step()
        except BaseException as error:
            raised.append(error)

    def wait_in_line() -> None:
        with TaskGroup(over, limit=1) as group:
            group.submit(int)
            collect(group.submit(int).result)

    def call_back(done: AnyFuture) -> None:
        collect(over.submit(int).result)
        collect(over.block_till_done)
        collect(over.shutdown)
        collect(lambda: list(as_completed([over.submit(int)])))
        collect(lambda: list(as_completed([over.submit(int)], 0.001)))
        collect(wait_in_line)
        collect(lambda: wait([done, Service(1).submit(int)]))

    over.submit(int).add_done_callback(call_back)
    finish(manual, over)
    assert [type(error) for error in raised] == [
        DeadlockError, RuntimeError, RuntimeError, DeadlockError, TimeoutError, DeadlockError,
        DeadlockError,
    ]  # fmt: skip


def test_a_callback_may_wait_in_line_for_another_service(manual: Manual, over: Service) -> None:
    results: list[int] = []

    def call_back(_: AnyFuture) -> None:
        with Service(2) as other, TaskGroup(other, limit=1) as group:
            group.submit(time.sleep, 0.001)
            futures = [group.submit(int, n) for n in range(3)]
            results.extend(future.result() for future in futures)

    over.submit(int).add_done_callback(call_back)
    finish(manual, over)
    assert results == [0, 1, 2]


def test_a_body_that_the_executors_submit_calls_may_not_wait_for_its_own_service() -> None:
    with Service.over(Inline(), 2) as service:
        future = service.submit(lambda: service.submit(int).result())
        with pytest.raises(DeadlockError, match="what the executor calls in its submit"):
            future.result(LIMIT)


def test_a_run_in_executor_is_cancelled_with_its_task(manual: Manual, over: Service) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        waiting = loop.run_in_executor(over, int)
        over.submit(int)
        while len(manual.handed) < 2:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    wait_until(lambda: over.stats().cancelled == 1)


def test_over_a_service_both_keep_their_bounds() -> None:
    executing = Executing()

    def body() -> None:
        with executing:
            time.sleep(0.0001)

    with Service(2) as inner, Service.over(inner, 4) as outer:
        futures = [outer.submit(body) for _ in range(200)]
        for future in futures:
            future.result(LIMIT)
        assert executing.peak <= 2
        assert inner.stats().submitted == outer.stats().submitted == 200


def test_it_is_loaded_when_it_is_asked_for() -> None:
    assert run_script(
        """
        import sys, boundedexec
        names = ["boundedexec.over", "boundedexec._core.feeding", "boundedexec._core.beneath"]
        print([name in sys.modules for name in names])
        """
    ) == ["[False, False, False]"]


# Everything at once


@pytest.mark.parametrize("unbounded", [False, True])
def test_everything_at_once_is_accounted_for(switching: None, unbounded: bool) -> None:
    chance = random.Random(new_seed())
    executing = Executing()
    counted: dict[str, list[int]] = {"ran": [], "failed": []}

    def body(number: int) -> int:
        with executing:
            counted["ran"].append(number)
            if number % 7 == 0:
                counted["failed"].append(number)
                raise Boom
            return number

    futures: list[AnyFuture] = []
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        service = Service.over(pool, 0 if unbounded else 5)
        clients = [
            threading.Thread(target=_client, args=(service, body, futures, chance.random(), n))
            for n in range(4)
        ]
        for client in clients:
            client.start()
        for bound in (2, 9, 1, 4):
            if not unbounded:
                service.max_workers = bound
            time.sleep(0.002)
        for client in clients:
            client.join(LIMIT)
        assert service.block_till_done(LIMIT)
        now = service.stats()
        service.shutdown()
    assert len(futures) == now.submitted == 800
    cancelled = sum(future.cancelled() for future in futures)
    failed = sum(not f.cancelled() and f.exception() is not None for f in futures)
    assert (now.cancelled, now.failed) == (cancelled, failed)
    assert now.completed == len(counted["ran"]) - len(counted["failed"])
    assert failed == len(counted["failed"])
    assert len(set(counted["ran"])) == len(counted["ran"]) == 800 - cancelled


def _client(
    service: Service, body: Callable[[int], int], futures: list[AnyFuture], seed: float, client: int
) -> None:
    chance = random.Random(seed)
    for number in range(200):
        futures.append(service.submit(body, 200 * client + number))
        if chance.random() < 0.3:
            futures[chance.randrange(len(futures))].cancel()
