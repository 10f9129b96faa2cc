"""Coalescer: at most one run per key in flight; every submit gets a run that starts after it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import logging
import os
import pickle
import random
import signal
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
)
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any, NoReturn, cast

import pytest
from conftest import LIMIT, Starts, holding, run_script, shallow, wait_until

import boundedexec
from boundedexec import BrokenThreadPool, Coalescer, DeadlockError, Service

AnyFuture = Future[Any]


class Inline(Executor):
    """Runs everything in `submit`."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AnyFuture:
        future = AnyFuture()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as exception:
            future.set_exception(exception)
        return future


class Manual(Executor):
    """Runs what it was handed when it is told to."""

    def __init__(self) -> None:
        self.handed: deque[tuple[AnyFuture, Callable[..., Any], Any, Any]] = deque()
        #: What it refuses submissions with.
        self.refusal: BaseException | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AnyFuture:
        if self.refusal is not None:
            raise self.refusal
        future = AnyFuture()
        self.handed.append((future, fn, args, kwargs))
        return future

    def run(self) -> None:
        while self.handed:
            future, fn, args, kwargs = self.handed.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except Exception as exception:
                    future.set_exception(exception)

    def run_until(self, future: AnyFuture) -> None:
        end = time.monotonic() + LIMIT
        while not future.done() and time.monotonic() < end:
            self.run()


class Passing(Executor):
    """Passes on to `executor`; before and after that, it calls `before` and `after` once each."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.before: Callable[[], object] = int
        self.after: Callable[[], object] = int

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AnyFuture:
        before, self.before = self.before, int
        before()
        future = self.executor.submit(fn, *args, **kwargs)
        after, self.after = self.after, int
        after()
        return future


class Chained(Service):
    """A Service that gives out other futures than its own."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        chained = AnyFuture()
        super().submit(fn, *args, **kwargs).add_done_callback(
            lambda done: chained.set_result((done.result(), "chained"))
        )
        return chained


class Overriding(Service):
    """A Service with a `submit` of its own, which gives out futures of its own."""

    submits = 0
    before: Callable[[], object] = int

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.submits += 1
        self.before()
        return super().submit(functools.partial(fn, *args), **kwargs)


class InlineService(Service):
    """A Service that runs everything in `submit`, as tests like to have it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return Inline().submit(fn, *args, **kwargs)


SERVICES: dict[str, Callable[[], Service]] = {
    "one slot": lambda: Service(1),
    "three slots": lambda: Service(3),
    "no bound": Service.unbounded,
    "drop-in": lambda: boundedexec.ThreadPoolExecutor(2),
    "overriding": lambda: Overriding(2),
}
POOLS: dict[str, Callable[[], Executor]] = {
    **SERVICES,
    "stdlib": lambda: concurrent.futures.ThreadPoolExecutor(2),
    "passing": lambda: Passing(Service(2)),
}
EXECUTORS: dict[str, Callable[[], Executor]] = {
    **POOLS,
    "inline": Inline,
    "inline service": lambda: InlineService(1),
}


def make(request: pytest.FixtureRequest) -> Iterator[Any]:
    with request.param() as made:
        yield made
        if isinstance(made, Passing):
            made.executor.shutdown()


service = pytest.fixture(params=SERVICES.values(), ids=list(SERVICES))(make)
pool = pytest.fixture(params=POOLS.values(), ids=list(POOLS))(make)
executor = pytest.fixture(params=EXECUTORS.values(), ids=list(EXECUTORS))(make)


@pytest.fixture(params=[None, 1e-6], ids=["", "often"])
def turns(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads take turns as ever, and as often as they can."""
    interval = sys.getswitchinterval()
    if request.param is not None:
        sys.setswitchinterval(request.param)
    yield
    sys.setswitchinterval(interval)


@contextmanager
def executing(
    coalescer: Coalescer[Any], key: Hashable = "key", *, end: Callable[[], Any] = str
) -> Generator[Future[Any]]:
    """Have a run of `key` execute until the block is over, and end as `end` does."""
    started, release = threading.Event(), threading.Event()

    def run() -> Any:
        started.set()
        release.wait()
        return end()

    future = coalescer.submit(key, run)
    try:
        assert started.wait(LIMIT)
        yield future
    finally:
        release.set()
        concurrent.futures.wait([future], LIMIT)


def fail(exception: BaseException) -> NoReturn:
    raise exception


class Oops(BaseException):
    pass


def gone(reference: weakref.ref[Any]) -> bool:
    """Whether it is, once the threads of a pool have let go of it."""
    end = time.monotonic() + LIMIT
    while reference() is not None and time.monotonic() < end:
        time.sleep(0.001)
        gc.collect()
    return reference() is None


# What a submit gets


def test_a_submit_gets_the_standard_future_of_its_call(executor: Executor) -> None:
    coalescer = Coalescer[str](executor)
    future = coalescer.submit("key", int, "21", base=3)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(LIMIT) == 7
    failure = ValueError()
    assert coalescer.submit("key", fail, failure).exception(LIMIT) is failure


def test_every_keyword_is_passed_on(executor: Executor) -> None:
    keywords: dict[str, Any] = {"self": 1, "key": 2, "fn": 3, "executor": 4, "context": 5}
    submit: Any = Coalescer[str](executor).submit
    assert submit("key", dict, **keywords).result(LIMIT) == keywords


def test_submits_for_different_keys_have_nothing_to_do_with_each_other(pool: Executor) -> None:
    coalescer = Coalescer[int](pool)
    futures = [coalescer.submit(key, str, key) for key in range(50)]
    assert [future.result(LIMIT) for future in futures] == [str(key) for key in range(50)]


def test_two_coalescers_on_one_executor_have_nothing_to_do_with_each_other() -> None:
    with Service(1) as service, holding(service):
        one, other = Coalescer[str](service), Coalescer[str](service)
        assert one.submit("key", int) is not other.submit("key", int)
        assert (len(one), len(other)) == (1, 1)


def test_a_future_is_what_the_standard_wait_as_completed_and_asyncio_take(pool: Executor) -> None:
    coalescer = Coalescer[int](pool)

    async def main(future: Future[str]) -> str:
        return await asyncio.wrap_future(future)

    futures = [coalescer.submit(key, str, key) for key in range(3)]
    assert concurrent.futures.wait(futures, LIMIT).done == set(futures)
    assert set(concurrent.futures.as_completed(futures, LIMIT)) == set(futures)
    with executing(coalescer, 7):
        owed = coalescer.submit(7, str, 7)
    assert asyncio.run(main(owed)) == "7"


def test_done_callbacks_get_the_future_that_submit_returned(executor: Executor) -> None:
    called: SimpleQueue[object] = SimpleQueue()
    future = Coalescer[str](executor).submit("key", int)
    future.add_done_callback(called.put)
    assert called.get(timeout=LIMIT) is future


# Joining


def test_a_submit_joins_the_run_that_is_queued_and_the_latest_is_what_runs(
    service: Service,
) -> None:
    service = Service(1)
    coalescer = Coalescer[str](service)
    ran: list[str] = []
    with service, holding(service):
        first = coalescer.submit("key", ran.append, "first")
        assert coalescer.submit("key", ran.append, "second") is first
        latest = coalescer.submit("key", sorted, "latest", reverse=True)
        assert cast(object, latest) is first
    assert cast(object, first.result(LIMIT)) == sorted("latest", reverse=True)
    assert ran == []


def test_submits_beside_a_run_that_executes_join_the_one_rerun(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    ran: list[str] = []
    with executing(coalescer) as run:
        owed = coalescer.submit("key", ran.append, "first")
        assert coalescer.submit("key", ran.append, "second") is owed
        latest = coalescer.submit("key", sorted, "latest", reverse=True)
        assert cast(object, latest) is owed
        assert owed is not run
        assert not owed.done() and not run.done()
    assert cast(object, owed.result(LIMIT)) == sorted("latest", reverse=True)
    assert ran == []


def test_a_run_counts_as_started_once_it_is_handed_to_an_executor_that_is_not_a_service() -> None:
    executor = Manual()
    coalescer = Coalescer[str](executor)
    first = coalescer.submit("key", str, "first")
    second = coalescer.submit("key", str, "second")
    third = coalescer.submit("key", str, "third")
    assert first is not second and second is third
    assert len(executor.handed) == 1
    executor.run()
    assert (first.result(0), second.result(0)) == ("first", "third")


@pytest.mark.parametrize(
    "end", [str, lambda: fail(ValueError()), lambda: fail(Oops())], ids=["", "raises", "exits"]
)
def test_the_rerun_starts_however_the_run_ended(pool: Executor, end: Callable[[], Any]) -> None:
    coalescer = Coalescer[str](pool)
    with executing(coalescer, end=end) as run:
        owed = coalescer.submit("key", str, "again")
    assert owed.result(LIMIT) == "again"
    assert isinstance(run.exception(LIMIT), (ValueError, Oops, type(None)))


def test_the_rerun_starts_when_the_run_was_cancelled() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        coalescer = Coalescer[str](executor)
        with holding(executor):
            run = coalescer.submit("key", str, "cancelled")
            owed = coalescer.submit("key", str, "again")
            assert run.cancel()
        assert owed.result(LIMIT) == "again"
        assert run.cancelled()


def test_the_rerun_starts_when_the_executor_cancelled_the_run() -> None:
    executor = Manual()
    coalescer = Coalescer[str](executor)
    run = coalescer.submit("key", str, "cancelled")
    owed = coalescer.submit("key", str, "again")
    assert executor.handed[0][0].cancel()
    assert run.cancelled()
    executor.run_until(owed)
    assert owed.result(0) == "again"


def test_the_run_is_over_when_its_rerun_starts(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    for _ in range(100):
        with executing(coalescer) as run:
            owed = coalescer.submit("key", run.done)
        assert owed.result(LIMIT)


def test_a_run_that_submits_its_own_key_joins_its_rerun(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)

    def run() -> Future[str]:
        coalescer.submit("key", str, "superseded")
        return coalescer.submit("key", str, "again")

    assert coalescer.submit("key", run).result(LIMIT).result(LIMIT) == "again"


def test_a_done_callback_that_submits_the_key_gets_a_new_run(executor: Executor) -> None:
    coalescer = Coalescer[str](executor)
    again: SimpleQueue[Future[str]] = SimpleQueue()
    future = coalescer.submit("key", int)
    future.add_done_callback(lambda _: again.put(coalescer.submit("key", str, "again")))
    assert again.get(timeout=LIMIT).result(LIMIT) == "again"


def test_a_done_callback_that_raises_does_not_hold_up_the_rerun(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    logging.disable()
    try:
        with executing(coalescer) as run:
            run.add_done_callback(lambda _: fail(ValueError()))
            owed = coalescer.submit("key", str, "again")
        assert owed.result(LIMIT) == "again"
    finally:
        logging.disable(logging.NOTSET)


variable = contextvars.ContextVar("variable", default="default")


def submit_in_context(coalescer: Coalescer[str], value: str) -> Future[str]:
    def submit() -> Future[str]:
        variable.set(value)
        return coalescer.submit("key", variable.get)

    return contextvars.copy_context().run(submit)


def test_the_context_of_the_latest_submit_is_the_one_that_runs(service: Service) -> None:
    coalescer = Coalescer[str](service)
    assert submit_in_context(coalescer, "alone").result(LIMIT) == "alone"
    with executing(coalescer):
        submit_in_context(coalescer, "first")
        owed = submit_in_context(coalescer, "latest")
    assert owed.result(LIMIT) == "latest"
    with executing(coalescer):
        owed = submit_in_context(coalescer, "first")
        coalescer.submit("key", variable.get)
    assert owed.result(LIMIT) == "default"


def test_the_context_of_the_latest_submit_is_the_one_of_a_run_that_is_queued() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with holding(service):
            submit_in_context(coalescer, "first")
            joined = submit_in_context(coalescer, "latest")
        assert joined.result(LIMIT) == "latest"


def test_another_executor_is_called_in_the_context_of_the_latest_submit() -> None:
    executor = Passing(manual := Manual())
    coalescer = Coalescer[str](executor)
    values: list[str] = []
    coalescer.submit("key", str)
    submit_in_context(coalescer, "first")
    submit_in_context(coalescer, "latest")
    executor.before = lambda: values.append(variable.get())
    manual.run()
    assert values == ["latest"]


# The queue


def test_a_rerun_goes_to_the_end_of_the_queue() -> None:
    order: list[str] = []
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            service.submit(order.append, "before")
            coalescer.submit("key", order.append, "again")
            service.submit(order.append, "after")
        assert service.block_till_done(LIMIT)
        service.submit(order.append, "last").result(LIMIT)
    assert order == ["before", "after", "again", "last"]


def test_a_hot_key_does_not_keep_a_slot() -> None:
    order: list[str] = []

    def hot() -> None:
        order.append("hot")
        if len(order) < 20:
            coalescer.submit("key", hot)
            service.submit(order.append, "other")

    with Service(1) as service:
        coalescer = Coalescer[str](service)
        coalescer.submit("key", hot)
        assert service.block_till_done(LIMIT)
    assert order == ["hot", "other"] * 10 + ["hot"]


def test_other_submissions_have_their_turn_while_a_key_is_hot(turns: None) -> None:
    ending = threading.Event()

    def hot() -> None:
        if not ending.is_set():
            coalescer.submit("key", hot)

    with Service(1) as service:
        coalescer = Coalescer[str](service)
        coalescer.submit("key", hot)
        for _ in range(100):
            service.submit(int).result(LIMIT)
        assert "key" in coalescer
        ending.set()


def test_a_coalesced_body_has_a_slot_that_it_may_yield() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def run() -> str:
            return service.yield_slot(service.submit(str, "other").result, LIMIT)

        assert coalescer.submit("key", run).result(LIMIT) == "other"


def test_a_coalesced_body_may_not_block_till_its_service_is_done() -> None:
    with Service(2) as service:
        coalescer = Coalescer[str](service)
        future = coalescer.submit("key", service.block_till_done)
        assert isinstance(future.exception(LIMIT), RuntimeError)


# Which keys are in flight


def test_len_and_in_tell_which_keys_are_in_flight() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        assert (len(coalescer), "key" in coalescer) == (0, False)
        with executing(coalescer):
            coalescer.submit("queued", int)
            assert len(coalescer) == 2
            assert "key" in coalescer and "queued" in coalescer and "other" not in coalescer
            coalescer.submit("key", int)
            coalescer.submit("queued", int)
            assert len(coalescer) == 2
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0
        assert "key" not in coalescer and "queued" not in coalescer


@pytest.mark.parametrize("end", [int, lambda: fail(ValueError())], ids=["returns", "raises"])
def test_a_key_whose_future_is_done_is_not_in_flight(
    executor: Executor, turns: None, end: Callable[[], Any]
) -> None:
    coalescer = Coalescer[str](executor)
    for _ in range(300):
        coalescer.submit("key", end).exception(LIMIT)
        assert "key" not in coalescer
    assert len(coalescer) == 0


def test_a_key_that_was_cancelled_is_not_in_flight() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with holding(service):
            assert coalescer.submit("key", int).cancel()
            assert len(coalescer) == 0 and "key" not in coalescer


class Key:
    """Equal to its like, by Python code that other threads may run beside, and with the
    hash of all others."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.name == other.name

    def __hash__(self) -> int:
        return 1


class Compared(Key):
    """Calls the next of `calls` whenever it is compared."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: deque[Callable[[], object]] = deque()

    def __eq__(self, other: object) -> bool:
        if self.calls:
            self.calls.popleft()()
        return super().__eq__(other)

    __hash__ = Key.__hash__


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_a_key_that_is_entered_while_it_is_compared_is_entered_once(elsewhere: bool) -> None:
    """In a dictionary by keys it would be there twice: 1. a key has left a gap before
    another with its hash; 2. it is entered, and compared with that; 3. meanwhile it is
    entered by a signal handler or another thread, into the gap; 4. and behind the other."""
    first_over, release = threading.Event(), threading.Event()
    ran: list[str] = []

    def run(name: str) -> None:
        ran.append(name)
        release.wait(LIMIT)

    def submit() -> None:
        coalescer.submit(Key("a"), run, "came between")
        wait_until(lambda: ran == ["came between"])

    def come_between() -> None:
        if elsewhere:
            thread = threading.Thread(target=submit)
            thread.start()
            thread.join(LIMIT)
        else:
            submit()

    with Service(3) as service:
        coalescer, other = Coalescer[Key](service), Compared("b")
        first = coalescer.submit(Key("a"), first_over.wait, LIMIT)
        coalescer.submit(other, release.wait, LIMIT)
        first_over.set()
        assert first.result(LIMIT)
        assert Key("a") not in coalescer
        # Once as it is looked for, once as it is entered.
        other.calls.extend([int, come_between])
        last = coalescer.submit(Key("a"), run, "last")
        assert not other.calls
        assert len(coalescer) == 2
        assert not last.running()
        release.set()
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0
    assert ran == ["came between", "last"]


def test_equal_keys_are_one_key(pool: Executor) -> None:
    coalescer = Coalescer[Key](pool)
    with executing(coalescer, Key("a")):
        assert coalescer.submit(Key("a"), int) is coalescer.submit(Key("a"), int)
        assert Key("a") in coalescer and Key("c") not in coalescer
        other = coalescer.submit(Key("c"), int)
        assert coalescer.submit(Key("a"), int) is not other
        assert len(coalescer) >= 1


@pytest.mark.parametrize("key", [None, False, 0, "", (), frozenset({1}), int])
def test_anything_hashable_is_a_key(key: Hashable) -> None:
    executor = Manual()
    coalescer = Coalescer[Hashable](executor)
    future = coalescer.submit(key, str, "run")
    owed = coalescer.submit(key, str, "again")
    assert key in coalescer
    executor.run()
    assert (future.result(0), owed.result(0), len(coalescer)) == ("run", "again", 0)


# Cancelling


def test_a_queued_run_that_one_submit_asked_for_can_be_cancelled() -> None:
    ran: list[str] = []
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with holding(service):
            future = coalescer.submit("key", ran.append, "cancelled")
            assert future.cancel() and future.cancelled()
            assert concurrent.futures.wait([future], LIMIT).not_done == set()
            again = coalescer.submit("key", ran.append, "again")
            assert again is not future
        again.result(LIMIT)
    assert ran == ["again"]


def test_an_owed_rerun_that_one_submit_asked_for_can_be_cancelled(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    ran: list[str] = []
    with executing(coalescer):
        future = coalescer.submit("key", ran.append, "cancelled")
        assert future.cancel() and future.cancelled()
        assert concurrent.futures.wait([future], LIMIT).not_done == set()
        with pytest.raises(CancelledError):
            future.result(LIMIT)
        again = coalescer.submit("key", ran.append, "again")
        assert again is not future
    again.result(LIMIT)
    with executing(coalescer):
        assert coalescer.submit("key", ran.append, "cancelled").cancel()
    coalescer.submit("other", int).result(LIMIT)
    assert ran == ["again"]


def test_a_run_handed_to_another_executor_can_be_cancelled_until_it_executes() -> None:
    ran: list[str] = []
    executor = Manual()
    coalescer = Coalescer[str](executor)
    assert coalescer.submit("key", ran.append, "cancelled").cancel()
    executor.run()
    assert len(coalescer) == 0
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        coalescer = Coalescer[str](threads)
        with executing(coalescer) as run:
            assert not run.cancel()
            queued = coalescer.submit("queued", ran.append, "cancelled")
            assert queued.cancel() and queued.cancelled()
            assert concurrent.futures.wait([queued], LIMIT).not_done == set()
    assert ran == []


def test_a_run_that_two_submits_joined_cannot_be_cancelled_by_one_of_them() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            owed = coalescer.submit("key", str, "first")
            coalescer.submit("key", str, "owed")
            queued = coalescer.submit("queued", str, "first")
            coalescer.submit("queued", str, "queued")
            for _ in range(2):
                assert not owed.cancel() and not owed.cancelled()
                assert not queued.cancel() and not queued.cancelled()
        assert owed.result(LIMIT) == "owed"
        assert queued.result(LIMIT) == "queued"


def test_a_run_that_executes_or_is_over_cannot_be_cancelled(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    with executing(coalescer) as run:
        assert not run.cancel()
        assert not run.cancelled()
    assert not run.cancel()
    assert run.result(LIMIT) == ""


def test_the_done_callbacks_of_what_was_cancelled_are_called(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    called: list[object] = []
    with executing(coalescer):
        owed = coalescer.submit("key", int)
        owed.add_done_callback(called.append)
        owed.cancel()
        assert called == [owed]


@pytest.mark.parametrize("state", ["queued", "owed"])
def test_of_a_cancel_beside_a_join_one_is_first(state: str, turns: None) -> None:
    rounds = 300
    together = threading.Barrier(2)

    def join() -> list[Future[str]]:
        joined: list[Future[str]] = []
        for key in range(rounds):
            together.wait(LIMIT)
            joined.append(coalescer.submit(key, str, "joined"))
        return joined

    def cancel() -> list[tuple[Future[str], bool]]:
        cancelled: list[tuple[Future[str], bool]] = []
        for key in range(rounds):
            if state == "owed":
                coalescer.submit(key, str)  # Handed over, and so it counts as started.
            future = coalescer.submit(key, str, "first")
            together.wait(LIMIT)
            cancelled.append((future, future.cancel()))
        return cancelled

    with Service(1) as service, Service(1) as other:
        manual = Manual()
        coalescer = Coalescer[int](manual if state == "owed" else service)
        with holding(service):
            joining = other.submit(join)
            pairs = cancel()
            joined = joining.result(LIMIT)
        manual.run()
        for (first, cancelled), future in zip(pairs, joined, strict=True):
            assert future.result(LIMIT) == "joined"
            assert first.cancelled() == cancelled == (first is not future)
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0


# Races


class Storm:
    """Threads that change an input and submit, in any order, as a seed says."""

    def __init__(self, coalescer: Coalescer[Any], seed: object = 0) -> None:
        self.coalescer = coalescer
        self.chance = random.Random(str(seed))
        #: The input. Its length is its version: only appended to, which is atomic.
        self.changes: list[None] = []
        #: Each submit: the version before it, what tells it from others, its future.
        self.submits: list[tuple[int, object, Future[int]]] = []
        self.cancelled: list[Future[int]] = []
        self.ran: list[object] = []
        self.at_once: list[object] = []
        self.added: list[None] = []
        self.called: list[None] = []
        self._alone = {name: threading.Lock() for name in "ab"}

    def submit(self, name: str = "a") -> Future[int]:
        self.changes.append(None)
        version, submit = len(self.changes), object()
        future = self.coalescer.submit(Key(name), self.run, name, submit)
        self.submits.append((version, submit, future))
        return future

    def run(self, name: str, submit: object) -> int:
        alone = self._alone[name].acquire(blocking=False)
        self.ran.append(submit)
        version = len(self.changes)
        if not alone:
            self.at_once.append(submit)
        else:
            self._alone[name].release()
        if version % 8 == 0:
            raise ValueError(version)
        return version

    def submit_many(self, count: int) -> None:
        for _ in range(count):
            future = self.submit(self.chance.choice("aaab"))
            step = self.chance.randrange(8)
            if step < 3:
                concurrent.futures.wait([future], LIMIT)
            elif step == 3 and future.cancel():
                self.cancelled.append(future)
            elif step == 4:
                self.added.append(None)
                future.add_done_callback(self.call_back)
            elif step == 5:
                time.sleep(0)

    def call_back(self, _: object) -> None:
        self.submit()
        self.called.append(None)

    def settle(self) -> None:
        """Wait until everything is done and called back."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            for _, _, future in self.submits:
                concurrent.futures.wait([future], LIMIT)
            if len(self.called) == len(self.added):
                break
            time.sleep(0.001)
        for _, _, future in self.submits:
            assert concurrent.futures.wait([future], LIMIT).done

    def check(self) -> None:
        cancelled = set(self.cancelled)
        ran = set(self.ran)
        assert self.at_once == []
        assert len(ran) == len(self.ran) <= len(self.submits)
        asked_for: dict[Future[int], int] = {}
        for version, submit, future in self.submits:
            asked_for[future] = asked_for.get(future, 0) + 1
            if future.cancelled():
                assert submit not in ran and future in cancelled
            else:
                assert future not in cancelled
                error = future.exception()
                seen = error.args[0] if isinstance(error, ValueError) else future.result()
                assert seen >= version, "a result that has not seen the change"
        assert all(asked_for[future] == 1 for future in cancelled)
        assert len(self.coalescer) == 0


@pytest.mark.parametrize("seed", range(2))
def test_every_submit_gets_a_run_that_starts_after_it(
    executor: Executor, seed: int, turns: None
) -> None:
    storm = Storm(Coalescer[Key](executor), seed)
    with Service(3) as others:
        list(others.map(storm.submit_many, [500] * 3))
    storm.settle()
    storm.check()
    futures = [weakref.ref(future) for _, _, future in storm.submits]
    del storm
    assert all(map(gone, futures))


def test_submits_beside_the_end_of_a_run_are_never_lost(pool: Executor, turns: None) -> None:
    coalescer = Coalescer[str](pool)
    changes: list[None] = []
    together = threading.Barrier(3)

    def submit() -> None:
        for _ in range(300):
            together.wait(LIMIT)  # A run is just over.
            for _ in range(2):
                coalescer.submit("key", changes.__len__)
            changes.append(None)
            version = len(changes)
            assert coalescer.submit("key", changes.__len__).result(LIMIT) >= version

    with Service(3) as others:
        for each in [others.submit(submit) for _ in range(3)]:
            each.result(LIMIT)
    assert len(coalescer) == 0


def test_one_submitters_latest_arguments_are_what_its_futures_see(
    executor: Executor, turns: None
) -> None:
    coalescer = Coalescer[str](executor)
    ran: list[int] = []

    def run(n: int) -> int:
        ran.append(n)
        return n

    futures = [coalescer.submit("key", run, n) for n in range(2000)]
    results = [future.result(LIMIT) for future in futures]
    assert all(result >= n for n, result in enumerate(results))
    assert results[-1] == 1999
    assert ran == sorted(set(results))


# From anywhere


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")
def test_submits_from_a_signal_handler_are_never_lost(executor: Executor) -> None:
    storm = Storm(Coalescer[Key](executor))
    own_lock = type(executor) is concurrent.futures.ThreadPoolExecutor
    before = signal.signal(signal.SIGALRM, shallow(storm.submit))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            for _ in range(5):
                storm.submit()
            concurrent.futures.wait([storm.submit()], LIMIT)
            # The stdlib's pools deadlock in a handler unless it joins what is handed over.
            future = storm.submit("a" if own_lock else "b")
            if future.cancel():
                storm.cancelled.append(future)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    storm.settle()
    storm.check()


class Cycle:
    """Garbage that only the collector finds, and that submits when it does."""

    def __init__(self, submit: Callable[[], object]) -> None:
        self._submit = submit
        self._self = self

    def __del__(self) -> None:
        self._submit()


def test_submits_from_a_del_during_collection_are_never_lost(executor: Executor) -> None:
    storm = Storm(Coalescer[Key](executor))

    def submit_many() -> None:
        for _ in range(200):
            Cycle(storm.submit)
            storm.submit()

    before = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        with Service(2) as others:
            for each in [others.submit(submit_many) for _ in range(2)]:
                each.result(LIMIT)
    finally:
        gc.set_threshold(*before)
    # A collection that another thread is in, and its `__del__`, is not waited for by one.
    wait_until(lambda: gc.collect() >= 0 and len(storm.submits) == 800)
    storm.settle()
    storm.check()


PACKAGE = str(Path(boundedexec.__file__).parent)


@contextmanager
def interrupted(interrupt: Callable[[], object]) -> Generator[None]:
    """Call `interrupt` once at each line of the package that this or a new thread comes to."""
    seen: set[object] = set()

    def local(frame: FrameType, event: str, _: Any) -> Any:
        where = frame.f_code, frame.f_lineno
        if event == "line" and where not in seen:
            seen.add(where)
            interrupt()
        return local

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    threading.settrace(enter)
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
        threading.settrace(None)


@pytest.mark.parametrize("make", EXECUTORS.values(), ids=EXECUTORS)
def test_a_submit_may_be_interrupted_anywhere_by_another_for_its_key(
    make: Callable[[], Executor],
) -> None:
    storm: Storm | None = None
    inside: list[None] = []

    def interrupt() -> None:
        inside.append(None)
        if (current := storm) is not None:
            current.submit()
        inside.pop()  # Not where it raised: the test is to fail.

    with interrupted(interrupt), make() as executor:
        storm = Storm(Coalescer[Key](executor))
        for _ in range(3):
            storm.submit()
            future = storm.submit()
            other = storm.submit("b")
            if other.cancel():
                storm.cancelled.append(other)
            concurrent.futures.wait([future], LIMIT)
        done, storm = storm, None
        # Other threads are interrupted, too. What they submit is not refused.
        wait_until(lambda: not inside)
        done.settle()
    assert len(done.submits) > 20
    if isinstance(executor, Passing):
        executor.executor.shutdown()
    done.check()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("inner", [Inline, lambda: Service(1)], ids=["inline", "pool"])
def test_a_submit_within_the_executors_submit_gets_a_later_run(
    when: str, inner: Callable[[], Executor]
) -> None:
    order: list[str] = []
    nested: list[Future[None]] = []
    with inner() as executor:
        passing = Passing(executor)
        coalescer = Coalescer[str](passing)

        def nest() -> None:
            assert "key" in coalescer
            nested.append(coalescer.submit("key", order.append, "nested"))

        setattr(passing, when, nest)
        coalescer.submit("key", order.append, "outer").result(LIMIT)
        nested[0].result(LIMIT)
    assert order[-1] == "nested"
    assert len(coalescer) == 0


def test_an_inline_run_is_done_when_submit_returns() -> None:
    coalescer = Coalescer[str](Inline())
    again: list[Future[str]] = []
    run = coalescer.submit("key", lambda: again.append(coalescer.submit("key", str, "again")))
    assert run.done()
    assert again[0].result(0) == "again"
    assert len(coalescer) == 0


def test_a_run_that_is_over_within_an_inline_run_is_followed_on_its_own_executor() -> None:
    manual, inline = Manual(), Passing(Inline())
    there, here = Coalescer[str](manual), Coalescer[str](inline)
    there.submit("key", str)
    owed = there.submit("key", str, "again")

    def run() -> str:
        manual.run_until(owed)
        return owed.result(0)

    assert here.submit("key", run).result(0) == "again"


@pytest.mark.parametrize("make", [Inline, lambda: InlineService(1), lambda: Service(1)])
def test_reruns_however_many_do_not_nest(make: Callable[[], Executor]) -> None:
    depths: set[int] = set()
    futures: list[Future[None]] = []

    def run(left: int) -> None:
        depths.add(len(list(traceback.walk_stack(None))))
        if left:
            futures.append(coalescer.submit("key", run, left - 1))
        else:
            last.set()

    last = threading.Event()
    with make() as executor:
        coalescer = Coalescer[str](executor)
        futures.append(coalescer.submit("key", run, 10_000))
        assert last.wait(LIMIT)
        assert len(futures) == 10_001
        assert {future.result(LIMIT) for future in futures} == {None}
    assert max(depths) - min(depths) < 10


def test_keys_that_submit_each_other_inline_do_not_nest() -> None:
    ran: list[str] = []

    def run(mine: str, other: str) -> None:
        ran.append(mine)
        if len(ran) < 10_000:
            coalescer.submit(other, run, other, mine)

    coalescer = Coalescer[str](Inline())
    coalescer.submit("a", run, "a", "b")
    assert ran.count("a") == ran.count("b") == 5000
    assert len(coalescer) == 0


# Executors that block and that refuse


@pytest.mark.parametrize("make", [lambda: Passing(Service(2)), lambda: Overriding(2)])
def test_no_submit_waits_for_another_that_blocks_in_its_executor(
    make: Callable[[], Any],
) -> None:
    blocking, release = threading.Event(), threading.Event()
    executor = make()
    coalescer = Coalescer[str](executor)

    def block() -> None:
        executor.before = int
        blocking.set()
        assert release.wait(LIMIT)

    with Service(1) as others:
        executor.before = block
        first = others.submit(coalescer.submit, "key", str, "first")
        assert blocking.wait(LIMIT)
        joined = coalescer.submit("key", str, "joined")
        assert coalescer.submit("other", str, "other").result(LIMIT) == "other"
        assert "key" in coalescer
        assert not first.done() and not joined.done()
        release.set()
        assert joined.result(LIMIT) == "joined"
        assert first.result(LIMIT).result(LIMIT) in ("first", "joined")
    executor.shutdown()
    assert len(coalescer) == 0


def test_what_joins_a_run_that_is_being_handed_over_is_outstanding() -> None:
    blocking, release = threading.Event(), threading.Event()
    service = Overriding(2)
    coalescer = Coalescer[str](service)

    def block() -> None:
        service.before = int
        blocking.set()
        assert release.wait(LIMIT)

    with service, Service(1) as others:
        service.before = block
        first = others.submit(coalescer.submit, "key", str, "first")
        assert blocking.wait(LIMIT)
        joined = coalescer.submit("key", str, "joined")
        assert not service.block_till_done(0.02)
        release.set()
        assert service.block_till_done(LIMIT)
        assert joined.done()
        first.result(LIMIT)


@pytest.mark.parametrize("refusal", [OSError(), Oops()], ids=["error", "exit"])
@pytest.mark.parametrize("make", [lambda: Passing(Inline()), lambda: Overriding(1)])
def test_a_submit_that_the_executor_refuses_raises_and_leaves_nothing(
    make: Callable[[], Any], refusal: BaseException
) -> None:
    executor = make()
    with executor:
        coalescer = Coalescer[str](executor)
        executor.before = lambda: fail(refusal)
        with pytest.raises(type(refusal)):
            coalescer.submit("key", int)
        assert len(coalescer) == 0 and "key" not in coalescer
        executor.before = int
        assert coalescer.submit("key", str, "again").result(LIMIT) == "again"
        assert isinstance(executor, Passing) or executor.block_till_done(LIMIT)


@pytest.mark.parametrize("make", [lambda: Passing(Inline()), lambda: Overriding(1)])
def test_what_joined_a_run_that_is_then_refused_is_not_left_unresolved(
    make: Callable[[], Any],
) -> None:
    executor = make()
    joined: list[Future[str]] = []
    refusal = OSError()

    def join_and_refuse() -> None:
        executor.before = int
        joined.append(coalescer.submit("key", str, "joined"))
        raise refusal

    with executor:
        coalescer = Coalescer[str](executor)
        executor.before = join_and_refuse
        try:
            coalescer.submit("key", int)
        except OSError as error:
            assert error is refusal
        assert joined[0].exception(LIMIT) in (None, refusal)
        assert isinstance(executor, Passing) or executor.block_till_done(LIMIT)
        assert len(coalescer) == 0


@pytest.mark.parametrize("refusal", [OSError(), Oops()], ids=["error", "exit"])
def test_a_rerun_that_another_executor_refuses_has_that_error(refusal: BaseException) -> None:
    executor = Manual()
    coalescer = Coalescer[str](executor)
    run = coalescer.submit("key", str, "run")
    owed = coalescer.submit("key", int)
    assert coalescer.submit("key", int) is owed
    executor.refusal = refusal
    try:
        executor.run()
    except Oops:
        pass  # It is the executor's, whose thread this is.
    assert run.result(0) == "run"
    assert owed.exception(0) is refusal
    executor.refusal = None
    assert len(coalescer) == 0
    again = coalescer.submit("key", str, "again")
    executor.run()
    assert again.result(0) == "again"


def test_a_rerun_that_a_service_of_ones_own_refuses_has_that_error() -> None:
    refusal = OSError()
    with Overriding(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            owed = coalescer.submit("key", int)
            service.before = lambda: fail(refusal)
        assert owed.exception(LIMIT) is refusal
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_nothing_is_left_unresolved_when_another_executor_shuts_down(cancel_futures: bool) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(1)
    coalescer = Coalescer[str](pool)
    with executing(coalescer) as run:
        owed = coalescer.submit("key", int)
        queued = coalescer.submit("queued", str, "queued")
        owed_too = coalescer.submit("queued", int)
        pool.shutdown(wait=False, cancel_futures=cancel_futures)
    pool.shutdown()
    assert run.result(0) == ""
    for future in owed, owed_too:
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            future.result(LIMIT)
    assert queued.cancelled() if cancel_futures else queued.result(0) == "queued"
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        coalescer.submit("key", int)
    assert len(coalescer) == 0


def test_a_submit_for_which_no_thread_starts_raises_and_leaves_nothing(starts: Starts) -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        starts.fail()
        with pytest.raises(RuntimeError, match="thread"):
            coalescer.submit("key", int)
        assert len(coalescer) == 0
        assert service.block_till_done(LIMIT)
        starts.fail(False)
        assert coalescer.submit("key", str, "again").result(LIMIT) == "again"


def test_a_rerun_needs_no_thread_but_that_of_its_run(starts: Starts) -> None:
    with Service(2) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            starts.fail()
            owed = coalescer.submit("key", str, "again")
        assert owed.result(LIMIT) == "again"
        assert service.block_till_done(LIMIT)


def test_a_broken_service_breaks_its_coalescer() -> None:
    logging.disable()
    try:
        with Service(1, initializer=fail, initargs=(ValueError(),)) as service:
            coalescer = Coalescer[str](service)
            future = coalescer.submit("key", int)
            assert isinstance(future.exception(LIMIT), BrokenThreadPool)
            assert len(coalescer) == 0
            with pytest.raises(BrokenThreadPool):
                coalescer.submit("key", int)
            assert len(coalescer) == 0
    finally:
        logging.disable(logging.NOTSET)


# What another executor is handed


def test_another_executor_is_handed_the_callers_own_callable() -> None:
    executor = Manual()
    coalescer = Coalescer[str](executor)

    def own(*args: object, **kwargs: object) -> None: ...

    coalescer.submit("key", own, 1, word=2)
    coalescer.submit("key", int)
    coalescer.submit("key", own, 3, word=4)
    _, fn, args, kwargs = executor.handed[0]
    assert fn is own
    assert (tuple(args), dict(kwargs)) == ((1,), {"word": 2})
    executor.run()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_it_works_on_a_pool_of_processes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ProcessPoolExecutor(1) as pool:
        coalescer = Coalescer[str](pool)
        assert coalescer.submit("key", pow, 2, 10).result(LIMIT) == 1024
        run = coalescer.submit("key", pipe.read_text)
        with pipe.open("w") as writer:
            owed = coalescer.submit("key", pow, 2, 3)
            assert coalescer.submit("key", pow, 2, 4) is owed
            writer.write("read")
        assert run.result(LIMIT) == "read"
        assert owed.result(LIMIT) == 16
        unpicklable = coalescer.submit("key", lambda: None)
        assert isinstance(
            unpicklable.exception(LIMIT), (pickle.PicklingError, AttributeError, TypeError)
        )
        # It dies once the other is owed, for a pool that is broken takes nothing.
        dying = f"import os; open({str(pipe)!r}).read(); os._exit(1)"
        dead = coalescer.submit("key", exec, dying)
        with pipe.open("w"):
            owed = coalescer.submit("key", pow, 2, 5)
        assert isinstance(dead.exception(LIMIT), BrokenExecutor)
        assert isinstance(owed.exception(LIMIT), BrokenExecutor)
        assert len(coalescer) == 0


def test_a_service_of_ones_own_submits_every_run() -> None:
    with Overriding(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            coalescer.submit("key", int)
            coalescer.submit("key", int)
        coalescer.submit("other", int)
        assert service.block_till_done(LIMIT)
        assert service.submits == 3


def test_a_service_of_ones_own_may_give_out_other_futures() -> None:
    with Chained(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            owed = coalescer.submit("key", str, "again")
        assert cast(object, owed.result(LIMIT)) == ("again", "chained")
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0


# Outstanding


def test_an_owed_rerun_is_outstanding(service: Service, turns: None) -> None:
    coalescer = Coalescer[str](service)
    for _ in range(50):
        with executing(coalescer):
            owed = coalescer.submit("key", str, "again")
            assert not service.block_till_done(0)
        assert service.block_till_done(LIMIT)
        assert owed.done()
        assert len(coalescer) == 0


def test_there_is_no_instant_between_runs_at_which_nothing_is_outstanding(
    service: Service, turns: None
) -> None:
    coalescer = Coalescer[str](service)
    ran = 0

    def run(left: int) -> None:
        nonlocal ran
        ran += 1
        if left:
            coalescer.submit("key", run, left - 1)

    for length in [0, 1, 2, 3, 5, 300, 1000]:
        ran = 0
        coalescer.submit("key", run, length)
        assert service.block_till_done(LIMIT)
        assert ran == length + 1


def test_a_rerun_that_was_cancelled_is_not_outstanding(service: Service) -> None:
    coalescer = Coalescer[str](service)
    with executing(coalescer):
        assert coalescer.submit("key", int).cancel()
    assert service.block_till_done(LIMIT)
    assert len(coalescer) == 0


def test_shutdown_lets_an_owed_rerun_run_and_waits_for_it(service: Service) -> None:
    coalescer = Coalescer[str](service)
    with executing(coalescer):
        owed = coalescer.submit("key", str, "again")
        service.shutdown(wait=False)
        assert not owed.done()
    service.shutdown(wait=True)
    assert owed.result(0) == "again"
    assert len(coalescer) == 0


def test_after_shutdown_submit_raises_also_while_a_run_executes() -> None:
    service = Service(1)
    coalescer = Coalescer[str](service)
    inside: list[str] = []

    def submit_inside() -> None:
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            coalescer.submit("key", inside.append, "never")

    with executing(coalescer, end=submit_inside) as run:
        coalescer.submit("queued", inside.append, "queued")
        coalescer.submit("key", inside.append, "owed")
        service.shutdown(wait=False)
        for key in "key", "queued", "new":
            with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
                coalescer.submit(key, inside.append, "never")
    service.shutdown()
    run.result(0)
    assert sorted(inside) == ["owed", "queued"]
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        coalescer.submit("key", int)
    assert len(coalescer) == 0


@pytest.mark.parametrize("joined", [1, 2])
def test_cancel_futures_cancels_what_is_queued_and_what_is_owed(joined: int) -> None:
    service = Service(1)
    coalescer = Coalescer[str](service)
    with executing(coalescer) as run:
        owed = [coalescer.submit("key", int) for _ in range(joined)]
        queued = [coalescer.submit("queued", int) for _ in range(joined)]
        service.shutdown(wait=False, cancel_futures=True)
    service.shutdown()
    assert run.result(0) == ""
    assert all(future.cancelled() for future in owed + queued)
    assert concurrent.futures.wait(owed + queued, 0).not_done == set()
    assert len(coalescer) == 0


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_what_is_submitted_beside_shutdown_is_refused_or_done(
    cancel_futures: bool, turns: None
) -> None:
    def submit(coalescer: Coalescer[str]) -> list[Future[int]]:
        futures: list[Future[int]] = []
        try:
            while True:
                futures.append(coalescer.submit("key", int))
                submitted.release()
        except RuntimeError:
            return futures

    with Service(2) as others:
        for _ in range(40):
            submitted = threading.Semaphore(0)
            service = Service(2)
            coalescer = Coalescer[str](service)
            submitting = [others.submit(submit, coalescer) for _ in range(2)]
            for _ in range(10):
                assert submitted.acquire(timeout=LIMIT)
            service.shutdown(cancel_futures=cancel_futures)
            futures = [future for each in submitting for future in each.result(LIMIT)]
            assert all(future.done() for future in futures)
            assert cancel_futures or not any(future.cancelled() for future in futures)
            assert len(coalescer) == 0


def test_at_exit_an_owed_rerun_is_finished_first() -> None:
    assert run_script("""
        import threading, time
        from boundedexec import Coalescer, Service

        service = Service(1)
        coalescer = Coalescer(service)
        started, at_end = threading.Event(), threading.Event()

        def run():
            started.set()
            at_end.wait()
            time.sleep(0.1)  # Until the program exits.
            print("run")

        coalescer.submit("key", run)
        started.wait()
        coalescer.submit("key", print, "again")
        coalescer.submit("queued", print, "queued")
        at_end.set()
    """) == ["run", "queued", "again"]


def test_at_exit_an_owed_rerun_of_a_daemon_is_cancelled() -> None:
    assert run_script("""
        import atexit, threading

        # Registered before the package: called after whatever it does at exit.
        atexit.register(lambda: print(owed.cancelled(), queued.cancelled(), run.done()))

        from boundedexec import Coalescer, Service

        service = Service(1, daemon=True)
        coalescer = Coalescer(service)
        started = threading.Event()

        def stuck():
            started.set()
            threading.Event().wait()

        run = coalescer.submit("key", stuck)
        started.wait()
        owed = coalescer.submit("key", print, "again")
        queued = coalescer.submit("queued", print, "queued")
    """) == ["True True False"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_fork_the_childs_coalescers_are_empty_and_work() -> None:
    source = """
        import concurrent.futures, os, threading
        from boundedexec import Coalescer, Service

        def use(executor):
            coalescer = Coalescer(executor)
            started, release = threading.Event(), threading.Event()

            def run():
                started.set()
                release.wait()
                return "run"

            futures = [coalescer.submit("key", run)]
            started.wait()
            futures.append(coalescer.submit("key", str, "owed"))
            futures.append(coalescer.submit("queued", str, "queued"))
            for future in futures:
                future.add_done_callback(lambda future: called.append(future))
            called = []
            child = os.fork()
            if not child:
                print(len(coalescer), "key" in coalescer, len(called), flush=True)
                if isinstance(executor, Service):
                    print(*[future.cancelled() for future in futures])
                    again = coalescer.submit("key", str, "child").result(10)
                    print(again, executor.block_till_done(10), len(coalescer), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            release.set()
            print(*[future.result() for future in futures], flush=True)

        use(Service(1))
        use(concurrent.futures.ThreadPoolExecutor(1))
    """
    assert run_script(source, "-Wignore") == [
        "0 False 0",
        "True True True",
        "child True 0",
        "run owed queued",
        "0 False 0",
        "run owed queued",
    ]


# Waiting in a body

WAITS: dict[str, Callable[[AnyFuture], object]] = {
    "result": lambda future: future.result(),
    "exception": lambda future: future.exception(),
    "wait": lambda future: boundedexec.wait([future]),
    "as_completed": lambda future: list(boundedexec.as_completed([future])),
}
every_wait = pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)


@every_wait
def test_a_body_that_waits_for_a_queued_run_lends_it_its_slot(
    wait: Callable[[AnyFuture], object],
) -> None:
    order: list[str] = []
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def body() -> None:
            service.submit(order.append, "queued")
            coalescer.submit("key", order.append, "superseded")
            wait(coalescer.submit("key", order.append, "run"))
            order.append("body")

        service.submit(body).result(LIMIT)
        assert service.block_till_done(LIMIT)
    assert order == ["run", "body", "queued"]


@every_wait
def test_a_body_that_waits_for_an_owed_rerun_lends_it_its_slot(
    wait: Callable[[AnyFuture], object],
) -> None:
    """The re-run is owed when the wait begins, and then queued behind who waits for the body."""
    waiting, release = threading.Event(), threading.Event()
    with Service(2) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer) as run:
            owed = coalescer.submit("key", str, "again")

            def body() -> None:
                waiting.set()
                wait(owed)
                release.set()

            future = service.submit(body)
            assert waiting.wait(LIMIT)
            blocked = service.submit(release.wait, LIMIT)
        future.result(LIMIT)
        assert blocked.result(LIMIT)
        assert run.done() and owed.result(LIMIT) == "again"


def test_a_body_that_waits_for_the_rerun_of_a_run_it_waited_for_lends_again() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def run() -> Future[str]:
            return coalescer.submit("key", str, "again")

        def body() -> str:
            return coalescer.submit("key", run).result().result()

        assert service.submit(body).result(LIMIT) == "again"


def test_runs_that_wait_for_runs_lend_along_the_chain() -> None:
    with Service(1) as service:
        coalescer = Coalescer[Hashable](service)

        def run(depth: int) -> int:
            if not depth:
                return 0
            if depth % 2:
                return service.submit(run, depth - 1).result() + 1
            return coalescer.submit(depth, run, depth - 1).result() + 1

        assert coalescer.submit("start", run, 100).result(LIMIT) == 100
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0


def test_runs_lend_across_services() -> None:
    with Service(1) as service, Service(1) as other:
        coalescer, on_other = Coalescer[str](service), Coalescer[str](other)

        def outer() -> str:
            return on_other.submit("key", middle).result()

        def middle() -> str:
            return coalescer.submit("inner", str, "inner").result()

        assert coalescer.submit("key", outer).result(LIMIT) == "inner"


def test_bodies_may_wait_for_the_same_run(turns: None) -> None:
    def join(coalescer: Coalescer[str]) -> str:
        return coalescer.submit("key", str, "run").result()

    for bound in [1, 2, 3] * 20:
        with Service(bound) as service:
            coalescer = Coalescer[str](service)
            with holding(service, bound):
                future = coalescer.submit("key", str, "run")
                bodies = [service.submit(future.result) for _ in range(4)]
                bodies.append(service.submit(join, coalescer))
            assert [body.result(LIMIT) for body in bodies] == ["run"] * 5


def test_a_body_may_wait_for_a_run_that_is_joined_while_it_waits(turns: None) -> None:
    def join(coalescer: Coalescer[str], text: str) -> int:
        return coalescer.submit("key", int, text).result()

    for _ in range(50):
        with Service(1) as service:
            coalescer = Coalescer[str](service)
            future = service.submit(join, coalescer, "1")
            joined = coalescer.submit("key", int, "2")
            assert future.result(LIMIT) in (1, 2)
            assert joined.result(LIMIT) in (1, 2)


def test_a_wait_with_a_timeout_keeps_the_slot() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def body() -> Future[str]:
            future = coalescer.submit("key", str, "run")
            with pytest.raises(boundedexec.TimeoutError, match="yield_slot"):
                future.result(0.01)
            return future

        assert service.submit(body).result(LIMIT).result(LIMIT) == "run"


@every_wait
def test_a_run_that_waits_for_itself_is_told(wait: Callable[[AnyFuture], object]) -> None:
    known = threading.Event()
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def a_certain_run() -> None:
            assert known.wait(LIMIT)
            with pytest.raises(DeadlockError, match="a_certain_run"):
                wait(future)

        future = coalescer.submit("key", a_certain_run)
        known.set()
        future.result(LIMIT)


@every_wait
def test_a_run_that_waits_for_the_rerun_that_it_holds_up_is_told(
    service: Service, wait: Callable[[AnyFuture], object]
) -> None:
    coalescer = Coalescer[str](service)

    def a_certain_run() -> Future[str]:
        owed = coalescer.submit("key", str, "again")
        with pytest.raises(DeadlockError, match="a_certain_run"):
            wait(owed)
        return owed

    assert coalescer.submit("key", a_certain_run).result(LIMIT).result(LIMIT) == "again"
    assert service.block_till_done(LIMIT)


def test_a_run_that_waits_for_its_rerun_with_a_timeout_is_not() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def run() -> Future[str]:
            owed = coalescer.submit("key", str, "again")
            with pytest.raises(boundedexec.TimeoutError):
                owed.result(0.01)
            return owed

        assert coalescer.submit("key", run).result(LIMIT).result(LIMIT) == "again"


def test_of_runs_that_wait_for_each_others_reruns_one_is_told() -> None:
    together = threading.Barrier(2)
    told: list[str] = []
    with Service(2) as service:
        coalescer = Coalescer[str](service)

        def run(other: str) -> None:
            together.wait(LIMIT)
            owed = coalescer.submit(other, str, "again")
            together.wait(LIMIT)
            try:
                assert owed.result() == "again"
            except DeadlockError:
                told.append(other)

        futures = [coalescer.submit("a", run, "b"), coalescer.submit("b", run, "a")]
        for future in futures:
            future.result(LIMIT)
    assert len(told) == 1


def test_a_run_may_wait_for_one_that_waits_for_the_rerun_with_a_way_out() -> None:
    """The other body gives up: no circle, for its wait ends by itself."""
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def impatient(owed: Future[str]) -> None:
            with pytest.raises(boundedexec.TimeoutError):
                owed.result(0.01)

        def run() -> Future[str]:
            owed = coalescer.submit("key", str, "again")
            service.submit(impatient, owed).result()
            return owed

        assert coalescer.submit("key", run).result(LIMIT).result(LIMIT) == "again"


@every_wait
@pytest.mark.parametrize("owed", [False, True], ids=["new", "owed"])
def test_a_done_callback_may_wait_for_the_next_run(
    service: Service, owed: bool, wait: Callable[[AnyFuture], object]
) -> None:
    coalescer = Coalescer[str](service)
    waited: SimpleQueue[object] = SimpleQueue()

    def callback(_: object) -> None:
        try:
            wait(again := coalescer.submit("key", str, "again"))
            waited.put(again.result(0))
        except BaseException as exception:
            waited.put(exception)

    with executing(coalescer) as run:
        run.add_done_callback(callback)
        if owed:
            coalescer.submit("key", str, "owed")
    assert waited.get(timeout=LIMIT) == "again"
    assert service.block_till_done(LIMIT)


def test_a_done_callback_may_wait_for_the_rerun_that_was_owed_inline() -> None:
    coalescer = Coalescer[str](Inline())
    waited: list[str] = []

    def first() -> None:
        owed = coalescer.submit("key", second)
        owed.add_done_callback(lambda _: waited.append(third[0].result(9)))

    def second() -> None:
        third.append(coalescer.submit("key", str, "third"))

    third: list[Future[str]] = []
    coalescer.submit("key", first)
    assert waited == ["third"]


def test_a_done_callback_may_wait_for_the_rerun_that_was_owed(service: Service) -> None:
    coalescer = Coalescer[str](service)
    waited: SimpleQueue[object] = SimpleQueue()
    with executing(coalescer) as run:
        owed = coalescer.submit("key", str, "again")

        def callback(_: object) -> None:
            try:
                waited.put(owed.result())
            except BaseException as exception:
                waited.put(exception)

        run.add_done_callback(callback)
    assert waited.get(timeout=LIMIT) == "again"


# Nothing fails in silence


def logged(log: SimpleQueue[logging.LogRecord]) -> str:
    wait_until(lambda: not log.empty())
    record = log.get()
    assert record.exc_info is not None
    return str(record.exc_info[1])


@pytest.mark.parametrize("make", EXECUTORS.values(), ids=EXECUTORS)
@pytest.mark.parametrize("asked", [False, True], ids=["not asked", "asked"])
def test_an_exception_that_nobody_asked_for_is_logged_once(
    make: Callable[[], Executor], asked: bool, log: SimpleQueue[logging.LogRecord]
) -> None:
    owed: list[AnyFuture] = []

    def run() -> NoReturn:
        # No local name: a log handler may keep this frame, with the traceback.
        owed.append(coalescer.submit("key", fail, ValueError("owed")))
        coalescer.submit("key", fail, ValueError("owed"))
        raise ValueError("run")

    with make() as executor:
        coalescer = Coalescer[str](executor)
        futures = [coalescer.submit("key", run)]
        concurrent.futures.wait(futures, LIMIT)
        concurrent.futures.wait(owed, LIMIT)
        if asked:
            assert [str(future.exception()) for future in futures + owed] == ["run", "owed"]
        gc.collect()
        assert log.empty(), "the futures are still here"
        futures.clear()
        owed.clear()
        if isinstance(executor, Passing):
            executor.executor.shutdown()
    gc.collect()
    if not asked:
        assert {logged(log), logged(log)} == {"run", "owed"}
        gc.collect()
    assert log.empty()


def test_a_refused_rerun_that_nobody_asked_for_is_logged_once(
    log: SimpleQueue[logging.LogRecord],
) -> None:
    executor = Manual()
    coalescer = Coalescer[str](executor)
    coalescer.submit("key", int)
    coalescer.submit("key", int)
    executor.refusal = OSError("refused")
    executor.run()
    executor.refusal = None
    gc.collect()
    assert logged(log) == "refused"
    assert log.empty()


def test_success_and_cancelling_are_not_logged(log: SimpleQueue[logging.LogRecord]) -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            coalescer.submit("queued", fail, ValueError()).cancel()
            coalescer.submit("key", fail, ValueError()).cancel()
            coalescer.submit("key", int)
    gc.collect()
    assert log.empty()


# Memory


@contextmanager
def bounded_memory(limit: int = 2000) -> Generator[None]:
    """The block leaves no more than `limit` things in memory."""
    gc.collect()
    before = sys.getallocatedblocks()
    yield
    gc.collect()
    assert sys.getallocatedblocks() - before < limit


def test_submits_to_a_running_key_cost_one_rerun_and_no_memory(pool: Executor) -> None:
    count = 200_000 if isinstance(pool, Service) and pool.max_workers == 1 else 20_000
    coalescer = Coalescer[str](pool)
    ran: list[int] = []
    with executing(coalescer):
        owed = coalescer.submit("key", ran.append, -1)
        with bounded_memory():
            for n in range(count):
                coalescer.submit("key", ran.append, n)
        assert coalescer.submit("key", ran.append, count) is owed
        assert len(coalescer) == 1
    owed.result(LIMIT)
    assert ran == [count]


def test_submits_to_a_queued_key_cost_one_run_and_no_memory() -> None:
    ran: list[int] = []
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with holding(service):
            coalescer.submit("key", ran.append, -1)
            with bounded_memory():
                for n in range(20_000):
                    coalescer.submit("key", ran.append, n)
        assert service.block_till_done(LIMIT)
    assert ran == [19_999]


def test_submits_to_a_running_key_that_are_cancelled_cost_no_memory(pool: Executor) -> None:
    count = 100_000 if isinstance(pool, Service) and pool.max_workers == 1 else 10_000
    coalescer = Coalescer[str](pool)
    ran: list[int] = []
    with executing(coalescer):
        coalescer.submit("key", ran.append, -1).cancel()
        with bounded_memory():
            for n in range(count):
                assert coalescer.submit("key", ran.append, n).cancel()
        owed = coalescer.submit("key", ran.append, count)
    owed.result(LIMIT)
    assert ran == [count]
    assert not isinstance(pool, Service) or pool.block_till_done(LIMIT)


class Thing:
    """Can be referred to weakly, and called."""

    def __call__(self, *args: object) -> Thing:
        return Thing()


def test_a_key_that_is_done_leaves_nothing(executor: Executor) -> None:
    coalescer = Coalescer[Thing](executor)
    key, fn, argument = Thing(), Thing(), Thing()
    future = coalescer.submit(key, fn, argument)
    again = coalescer.submit(key, fn, argument)
    results = [future.result(LIMIT), again.result(LIMIT)]
    things = [weakref.ref(thing) for thing in [key, fn, argument]]
    del key, fn, argument
    # Their futures keep results alone.
    assert all(map(gone, things))
    things = [weakref.ref(result) for result in results]
    del results, future, again
    assert all(map(gone, things))
    assert len(coalescer) == 0


def test_a_callable_that_was_superseded_or_cancelled_is_kept_by_nobody(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    fns = [Thing(), Thing()]
    things = [weakref.ref(fn) for fn in fns]
    with executing(coalescer):
        cancelled = coalescer.submit("key", fns.pop())
        assert cancelled.cancel()
        coalescer.submit("key", fns.pop())
        owed = coalescer.submit("key", int)
        assert all(map(gone, things))
    assert owed.result(LIMIT) == 0


def test_a_submit_that_finds_a_run_over_need_not_wait_until_it_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main = threading.current_thread()
    release, came, go_on = (threading.Event() for _ in range(3))
    leave = vars(boundedexec.coalescer)["_Lines"].leave
    ran: list[int] = []

    def come_and_leave(*args: Any) -> None:
        if threading.current_thread() is not main and not came.is_set():
            came.set()
            assert go_on.wait(LIMIT)
        leave(*args)

    monkeypatch.setattr("boundedexec.coalescer._Lines.leave", come_and_leave)
    with Service(2) as service:
        coalescer = Coalescer[str](service)
        first = coalescer.submit("key", release.wait, LIMIT)
        release.set()
        assert came.wait(LIMIT)
        futures = [coalescer.submit("key", ran.append, number) for number in range(3)]
        concurrent.futures.wait(futures, LIMIT)
        assert len(coalescer) == 0
        assert not first.done()
        go_on.set()
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0
    assert first.done()
    assert ran == sorted(ran)
    assert ran[-1] == 2


class Holds(dict[Any, Any]):
    """Has a submit, on the thread that made this, go on from what it says only once the
    body of its run has said it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.submitter = threading.current_thread()
        self.submit_said, self.body_said = threading.Event(), threading.Event()

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        if threading.current_thread() is self.submitter:
            self.submit_said.set()
            assert self.body_said.wait(LIMIT)
        else:
            self.body_said.set()


def replace_graph(
    monkeypatch: pytest.MonkeyPatch, ways: dict[Any, Any], holds: dict[Any, Any]
) -> None:
    monkeypatch.setattr(boundedexec.waiting, "_held_up", ways)
    monkeypatch.setattr(boundedexec.waiting, "_holds", holds)


def test_a_body_and_its_submit_that_tell_what_its_run_waits_for_at_once_leave_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1. The body of a run is about to say that the run waits for it; 2. its submit says
    that it waits for what the executor returned; 3. the body says so, over that."""
    main = threading.current_thread()
    body_came, holds = threading.Event(), Holds()

    class Ways(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            if threading.current_thread() is main:
                assert body_came.wait(LIMIT)
            else:
                body_came.set()
                assert holds.submit_said.wait(LIMIT)
            super().__setitem__(key, value)

    ways = Ways()
    replace_graph(monkeypatch, ways, holds)
    with Chained(1) as service:
        future = Coalescer[str](service).submit("key", int, "21")
        assert cast(object, future.result(LIMIT)) == (21, "chained")
        assert service.block_till_done(LIMIT)
    assert holds.body_said.is_set()
    assert (ways, holds) == ({}, {})


def test_a_rerun_that_executes_while_it_is_entered_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1. A submit is half through saying that its re-run waits for the run before; 2. that
    ends and hands it over, and its body is half through saying that it waits for this;
    3. the submit says the rest; 4. the body does, over that; 5. the executor returns."""
    main = threading.current_thread()
    began, release, submitted = (threading.Event() for _ in range(3))
    body_came, holds = threading.Event(), Holds()

    class Ways(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, value)
            if threading.current_thread() is main:
                release.set()
                assert body_came.wait(LIMIT)
            elif not body_came.is_set():
                body_came.set()
                assert holds.submit_said.wait(LIMIT)

    def run() -> bool:
        began.set()
        return release.wait(LIMIT)

    def returned(_: object) -> None:
        assert submitted.wait(LIMIT)

    with Service(2) as service:
        coalescer = Coalescer[str](service)
        coalescer.submit("key", run)
        assert began.wait(LIMIT)
        ways = Ways()
        replace_graph(monkeypatch, ways, holds)
        monkeypatch.setattr(boundedexec.coalescer, "keep_unreported", returned)
        rerun = coalescer.submit("key", submitted.wait, LIMIT)
        submitted.set()
        assert rerun.result(LIMIT)
        assert service.block_till_done(LIMIT)
    assert holds.body_said.is_set()
    assert (ways, holds) == ({}, {})


def test_keys_that_are_done_leave_nothing_however_many() -> None:
    with Service(2) as service:
        coalescer = Coalescer[int](service)
        coalescer.submit(-1, int).result(LIMIT)
        with bounded_memory():
            for key in range(10_000):
                coalescer.submit(key, int)
            assert service.block_till_done(LIMIT)
    assert len(coalescer) == 0


def test_a_submit_costs_the_same_however_many_keys_are_in_flight() -> None:
    def best_time(keys: Iterable[int]) -> float:
        times: list[float] = []
        for key in keys:
            began = time.perf_counter()
            coalescer.submit(key, int)
            coalescer.submit(key, int)
            times.append(time.perf_counter() - began)
        return min(times)

    with Service(1) as service:
        coalescer = Coalescer[int](service)
        with holding(service):
            first = best_time(range(200))
            best_time(range(200, 5000))
            last = best_time(range(5000, 5200))
    assert last < 10 * first


def test_what_was_submitted_runs_though_its_coalescer_was_dropped(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    with executing(coalescer):
        owed = coalescer.submit("key", str, "again")
        del coalescer
        gc.collect()
    assert owed.result(LIMIT) == "again"


def test_a_service_that_was_dropped_with_its_coalescer_finishes_what_is_owed() -> None:
    coalescer = Coalescer[str](Service(1))
    reference = weakref.ref(coalescer)
    with executing(coalescer) as run:
        owed = coalescer.submit("key", str, "again")
        del coalescer
        gc.collect()
    assert owed.result(LIMIT) == "again"
    assert gone(reference)
    assert run.done()


def test_a_future_does_not_keep_an_unused_service_alive() -> None:
    service = Service(1)
    reference = weakref.ref(service)
    coalescer = Coalescer[str](service)
    futures = [coalescer.submit("key", int), coalescer.submit("key", int)]
    concurrent.futures.wait(futures, LIMIT)
    del service, coalescer
    assert gone(reference)
    assert [future.result() for future in futures] == [0, 0]


# Bad input


@pytest.mark.parametrize("executor", [None, 3, object(), "submit"])
def test_what_has_no_submit_is_refused(executor: Any) -> None:
    with pytest.raises(TypeError, match="submit|[Ee]xecutor"):
        Coalescer[str](executor)


@pytest.mark.parametrize("state", ["new", "executing", "queued"])
def test_a_key_that_is_not_hashable_is_refused(state: str) -> None:
    with Service(1) as service:
        coalescer = Coalescer[Any](service)
        with executing(coalescer), pytest.raises(TypeError, match="unhashable|hash"):
            coalescer.submit([], int)
        with pytest.raises(TypeError, match="unhashable|hash"):
            coalescer.submit({}, int)
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0


@pytest.mark.parametrize("make", EXECUTORS.values(), ids=EXECUTORS)
@pytest.mark.parametrize("fn", [None, 3, "text"])
def test_what_is_not_callable_is_refused_at_once(make: Callable[[], Executor], fn: Any) -> None:
    with make() as executor:
        coalescer = Coalescer[str](executor)
        with pytest.raises(TypeError, match="callable"):
            coalescer.submit("key", fn)
        assert len(coalescer) == 0


def test_what_is_not_callable_changes_nothing_of_what_is_in_flight(pool: Executor) -> None:
    fn: Any = None
    coalescer = Coalescer[str](pool)
    with executing(coalescer):
        with pytest.raises(TypeError, match="callable"):
            coalescer.submit("key", fn)
        owed = coalescer.submit("key", str, "again")
        with pytest.raises(TypeError, match="callable"):
            coalescer.submit("key", fn)
        assert len(coalescer) == 1
    assert owed.result(LIMIT) == "again"


def test_a_submit_without_key_or_callable_is_refused() -> None:
    submit: Any = Coalescer[str](Manual()).submit
    with pytest.raises(TypeError):
        submit()
    with pytest.raises(TypeError):
        submit("key")


def test_a_submit_that_is_interrupted_once_its_run_has_begun_leaves_the_run_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, release = threading.Event(), threading.Event()
    at_once: list[int] = []

    def body(number: int) -> int:
        at_once.append(number)
        begun.set()
        release.wait(LIMIT)
        at_once.remove(number)
        return len(at_once)

    main = threading.current_thread()

    def interrupted(*_: object) -> None:
        if threading.current_thread() is main:
            monkeypatch.undo()
            assert begun.wait(LIMIT)
            raise KeyboardInterrupt

    with Service(2) as service:
        coalescer = Coalescer[str](service)
        monkeypatch.setattr("boundedexec.coalescer._Run.hold", interrupted)
        with pytest.raises(KeyboardInterrupt):
            coalescer.submit("key", body, 1)
        assert "key" in coalescer
        others = [coalescer.submit("key", body, number) for number in (2, 3)]
        assert others[0] is others[1]
        assert not others[0].running()
        release.set()
        assert others[0].result(LIMIT) == 0
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0
