"""Submits from many threads, signal handlers and `__del__`: each gets a run after it."""

from __future__ import annotations

import concurrent.futures
import gc
import random
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest
from helpers import (
    EXECUTORS,
    LIMIT,
    Cycle,
    Inline,
    InlineService,
    Key,
    Manual,
    Passing,
    collected,
    shallow,
    traced,
    wait_until,
)

from boundedexec import Coalescer, Service

#: Several times as many as there may be nested calls.
RERUNS = 4000

# Races


class Storm:
    """Threads that change an input and submit, in any order, as a seed says."""

    def __init__(self, coalescer: Coalescer[Any], seed: object = 0) -> None:
        self.coalescer = coalescer
        self.chance = random.Random(str(seed))
        #: The input. Its length is its version: only appended to, which is atomic.
        self.changes: list[None] = []
        #: Each submit: the version before it, what identifies it, its future.
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
    executor: Executor, seed: int, switching: None
) -> None:
    storm = Storm(Coalescer[Key](executor), seed)
    with Service(3) as others:
        list(others.map(storm.submit_many, [250] * 3))
    storm.settle()
    storm.check()
    futures = [weakref.ref(future) for _, _, future in storm.submits]
    del storm
    assert all(map(collected, futures))


def test_submits_beside_the_end_of_a_run_are_never_lost(pool: Executor, switching: None) -> None:
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
    executor: Executor, switching: None
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
        end = time.monotonic() + 0.15
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

    with traced(interrupt, new_threads=True), make() as executor:
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
        futures.append(coalescer.submit("key", run, RERUNS))
        assert last.wait(LIMIT)
        assert len(futures) == RERUNS + 1
        assert {future.result(LIMIT) for future in futures} == {None}
    assert max(depths) - min(depths) < 10


def test_keys_that_submit_each_other_inline_do_not_nest() -> None:
    ran: list[str] = []

    def run(mine: str, other: str) -> None:
        ran.append(mine)
        if len(ran) < RERUNS:
            coalescer.submit(other, run, other, mine)

    coalescer = Coalescer[str](Inline())
    coalescer.submit("a", run, "a", "b")
    assert ran.count("a") == ran.count("b") == RERUNS // 2
    assert len(coalescer) == 0
