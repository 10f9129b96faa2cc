"""What breaks in the middle of a TaskGroup: a Ctrl-C, an executor that fails, a late submit."""

# pyright: reportPossiblyUnboundVariable=false
# For what is bound in a block that `pytest.raises` is about.

from __future__ import annotations

import concurrent.futures
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
from helpers import A_WHILE, LIMIT, Boom, Manual, Passing, Thing, holding, wait_until

from boundedexec import Service, TaskGroup
from boundedexec.limiting import Limiter


def meet(entered: threading.Event, release: threading.Event) -> None:
    entered.set()
    assert release.wait(LIMIT)


def test_a_ctrl_c_as_the_end_begins_cancels_and_waits(
    monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    def struck(_: int) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    gate = threading.Event()
    with Service(1) as service:
        with pytest.raises(KeyboardInterrupt), TaskGroup(service, limit=limit) as group:
            futures: list[Future[bool]] = [group.submit(gate.wait, LIMIT) for _ in range(2)]
            wait_until(futures[0].running)
            futures[1].add_done_callback(lambda _: gate.set())
            monkeypatch.setattr("boundedexec.groups.headroom", struck)
        over = [future.done() for future in futures]
        gate.set()
        assert group.cancelled and over == [True, True]
        with pytest.raises(RuntimeError, match="is over"):
            group.submit(int)


def test_futures_that_cannot_be_cancelled_are_waited_for(
    caplog: pytest.LogCaptureFixture, limit: int | None
) -> None:
    gate, tried = threading.Event(), SimpleQueue[Future[Any]]()

    class Stubborn(Future[Any]):
        def cancel(self) -> bool:
            tried.put(self)
            if tried.qsize() == 2:
                gate.set()
            raise OSError("no connection")

    class Engine(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = Stubborn()
            done = service.submit(fn, *args, **kwargs)
            done.add_done_callback(lambda done: future.set_result(done.result()))
            return future

    with Service(2) as service:
        with pytest.raises(ExceptionGroup) as raised:
            with TaskGroup(Engine(), limit=limit and 2) as group:
                futures = [group.submit(gate.wait, LIMIT) for _ in range(2)]
                raise Boom
        assert [type(error) for error in raised.value.exceptions] == [Boom]
        assert all(future.done() for future in futures)
    assert "exception cancelling" in caplog.text


def test_a_submit_that_the_end_overtakes_is_refused() -> None:
    """Another thread is in the executor's `submit` as the end comes."""
    entered, over = threading.Event(), threading.Event()
    ran: list[int] = []
    refused: list[RuntimeError] = []

    def submit() -> None:
        try:
            group.submit(ran.append, 0)
        except RuntimeError as error:
            refused.append(error)

    with Service(1) as service, holding(service):
        executor = Passing(service)
        executor.before = partial(meet, entered, over)
        thread = threading.Thread(target=submit)
        with TaskGroup(executor) as group:
            thread.start()
            assert entered.wait(LIMIT)
        over.set()
        thread.join(LIMIT)
    assert len(refused) == 1
    assert not ran and group.results() == []


def test_a_submit_that_the_end_overtakes_is_waited_for_once_in_line() -> None:
    entered, release = threading.Event(), threading.Event()
    ran: list[int] = []
    with Service(1) as service:
        executor = Passing(service)
        executor.before = partial(meet, entered, release)
        with TaskGroup(executor, limit=1) as group:
            thread = threading.Thread(target=group.submit, args=(ran.append, 0))
            thread.start()
            assert entered.wait(LIMIT)
            threading.Timer(0.05, release.set).start()
        assert ran == [0]
        thread.join(LIMIT)


# With a limit


@pytest.mark.parametrize("place", ["before", "after"])
def test_what_a_ctrl_c_leaves_in_line_does_not_run_after_the_end(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """It strikes in `submit`, before or after that is handed over; nobody has the future."""
    ran: list[int] = []
    advance = Limiter.advance

    def struck(limiter: Limiter) -> None:
        monkeypatch.undo()
        if place == "after":
            advance(limiter)
        raise KeyboardInterrupt

    with Service(1) as service, holding(service), TaskGroup(service, limit=1) as group:
        monkeypatch.setattr(Limiter, "advance", struck)
        with pytest.raises(KeyboardInterrupt):
            group.submit(ran.append, 0)
    assert not ran


def test_the_end_waits_for_what_runs_though_a_ctrl_c_struck_its_submit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started, ends, ran = threading.Event(), threading.Event(), threading.Event()
    advance = Limiter.advance

    def body() -> None:
        started.set()
        assert ends.wait(LIMIT)
        ran.set()

    def struck(limiter: Limiter) -> None:
        monkeypatch.undo()
        advance(limiter)
        assert started.wait(LIMIT)
        raise KeyboardInterrupt

    with Service(1) as service:
        with TaskGroup(service, limit=1) as group:
            monkeypatch.setattr(Limiter, "advance", struck)
            with pytest.raises(KeyboardInterrupt):
                group.submit(body)
            threading.Timer(0.05, ends.set).start()
        assert ran.is_set()


def test_callbacks_are_called_where_submit_raises_as_one_is_handed_over() -> None:
    """Also what ends no thread of an executor: callbacks are called."""
    manual = Manual()
    executor = Passing(manual)
    called: list[Future[Any]] = []

    def refuse() -> None:
        raise SystemExit

    with pytest.raises(SystemExit), TaskGroup(executor, limit=1) as group:
        members = [group.submit(int) for _ in range(2)]
        for member in members:
            member.add_done_callback(called.append)
        executor.before = refuse
        first = manual.handed.popleft()[0]
        with pytest.raises(SystemExit):
            first.set_result(0)
        assert sorted(map(id, called)) == sorted(map(id, members))
        assert isinstance(members[1].exception(), SystemExit)


def test_what_is_refused_is_not_kept() -> None:
    manual = Manual()
    manual.refusal = ValueError()
    with Service(1, max_queued=0) as service, holding(service):
        for executor in manual, service:
            gc.collect()
            gc.disable()
            try:
                thing = Thing()
                kept = weakref.ref(thing)
                with pytest.raises(ExceptionGroup), TaskGroup(executor, limit=5) as group:
                    group.submit(id, thing)
                    del thing
                assert kept() is None
            finally:
                gc.enable()


# Executors whose futures are not of this package


@contextmanager
def in_time() -> Generator[None]:
    """The block must not have waited until the `timeout=LIMIT` of the group in it."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LIMIT


def end_by_cancel(group: TaskGroup, _: Executor) -> None:
    group.cancel()


def end_by_shutdown(_: TaskGroup, pool: Executor) -> None:
    pool.shutdown(wait=False, cancel_futures=True)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("end", [end_by_cancel, end_by_shutdown])
def test_the_end_hears_at_once_of_what_is_cancelled(
    limit: int | None, inside: bool, end: Callable[[TaskGroup, Executor], None]
) -> None:
    """Also if its executor, which executes something else, never comes to it."""

    def block() -> None:
        with TaskGroup(pool, limit=limit, timeout=LIMIT) as group:
            futures.extend(group.submit(int) for _ in range(3))
            threading.Timer(A_WHILE, end, (group, pool)).start()

    futures: list[Future[int]] = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool, Service(1) as service, holding(pool):
        try:
            with in_time():
                service.submit(block).result() if inside else block()
        except* RuntimeError as refused:  # What waited in line after the shutdown.
            assert limit and "shutdown" in str(refused.exceptions[0])
    assert all(future.done() for future in futures)


@pytest.mark.filterwarnings("ignore:.*fork", "error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_a_process_that_dies_is_a_failure(limit: int | None, inside: bool, waits: bool) -> None:
    """And the pool's thread, which fails one after the other, does not trip over what the
    group has cancelled meanwhile: that would leave the other processes alive."""

    def block() -> None:
        with TaskGroup(pool, limit=limit and 10 * limit, timeout=LIMIT) as group:
            dying = group.submit(os._exit, 1)
            futures.extend(group.submit(os._exit, 1) for _ in range(100))
            if waits:
                dying.result()

    futures: list[Future[Any]] = []
    with concurrent.futures.ProcessPoolExecutor(1) as pool, Service(1) as service:
        with in_time(), pytest.raises(ExceptionGroup) as raised:
            service.submit(block).result() if inside else block()
    assert {type(error) for error in raised.value.exceptions} == {BrokenProcessPool}
    assert all(future.done() for future in futures)


def test_what_the_end_waited_for_is_kept_by_nobody(no_collector: None) -> None:
    manual = Manual()

    def block() -> weakref.ref[Future[int]]:
        with TaskGroup(manual) as group:
            future = group.submit(int)
            threading.Timer(A_WHILE, manual.handed.popleft()[0].set_result, (0,)).start()
        return weakref.ref(future)

    future = block()
    wait_until(lambda: future() is None)
