"""Threads: started when a submission may start, reused, ended; exit, collection and fork."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures.thread import BrokenThreadPool
from contextvars import Context, ContextVar
from queue import SimpleQueue
from threading import Thread, current_thread
from types import FrameType
from typing import Any

import pytest
from conftest import LIMIT, Starts, fork, holding, run_script, wait_until

import boundedexec
from boundedexec import Service
from boundedexec.slots import Observer, Slots

variable: ContextVar[str] = ContextVar("variable", default="unset")
other: ContextVar[str] = ContextVar("other", default="unset")


def this_thread(_: object) -> Thread:
    return current_thread()


def ended(thread: Thread) -> bool:
    """Whether `thread` ends, in every way in which that can be asked."""
    thread.join(LIMIT)
    return not thread.is_alive() and thread not in threading.enumerate()


# Started and reused.


def test_a_service_starts_no_thread_before_it_is_used() -> None:
    before = threading.active_count()
    with Service(4) as service:
        assert threading.active_count() == before
        assert service.block_till_done(LIMIT)
        assert threading.active_count() == before


def test_there_are_no_more_threads_than_bodies_that_run_at_once() -> None:
    before = threading.active_count()
    with Service(8) as service:
        with holding(service, 3):
            assert threading.active_count() == before + 3
        assert service.block_till_done(LIMIT)
        for _ in range(100):
            service.submit(int).result(LIMIT)
            assert service.block_till_done(LIMIT)
        assert threading.active_count() == before + 3


@pytest.mark.parametrize("bound", [3, 0])
def test_block_till_done_starts_no_thread(bound: int) -> None:
    before = threading.active_count()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            with Service(bound) as service:
                service.submit(int)
                assert service.block_till_done(LIMIT)
                assert threading.active_count() == before + 1
    finally:
        sys.setswitchinterval(interval)


def test_threads_are_reused_while_they_idle() -> None:
    for bound in (4, 0):
        with Service(bound) as service:
            threads: set[Thread] = set()
            for _ in range(50):
                threads.add(service.submit(current_thread).result(LIMIT))
                assert service.block_till_done(LIMIT)
            # Not always one: a thread that has just freed its slot looks into the queue,
            # and may wake another for what its submitter has woken this very thread for.
            assert len(threads) <= 4


@pytest.mark.parametrize("idle_timeout", [None, 10.0])
def test_one_slot_stays_on_one_thread_under_concurrent_submitters(
    idle_timeout: float | None,
) -> None:
    def submitter() -> list[Future[Thread]]:
        futures: list[Future[Thread]] = []
        for i in range(300):
            futures.append(service.submit(current_thread))
            if i % 3 == 0:
                futures.pop().cancel()
            elif i % 10 == 0:
                futures[-1].result(LIMIT)
        return futures

    with Service(1, idle_timeout=idle_timeout) as service, Service.unbounded() as others:
        submitters = [others.submit(submitter) for _ in range(6)]
        threads = {f.result(LIMIT) for each in submitters for f in each.result(LIMIT)}
        assert len(threads) == 1


def test_one_slot_stays_on_one_thread_when_bodies_submit_raise_and_time_out() -> None:
    threads: set[Thread] = set()

    def body(left: int) -> None:
        threads.add(current_thread())
        if left:
            future = service.submit(body, left - 1)
            # A wait with a timeout keeps the slot.
            with pytest.raises(TimeoutError if sys.version_info >= (3, 11) else Exception):
                future.result(0.001)
        raise SystemExit

    with Service(1) as service:
        with holding(service):
            for _ in range(5):
                service.submit(body, 3).add_done_callback(lambda f: f.exception())
        assert service.block_till_done(LIMIT)
    assert len(threads) == 1


def test_a_thread_has_the_prefix_and_a_number_for_a_name() -> None:
    with Service(3, "work") as service:
        together = threading.Barrier(3)

        def body() -> str:
            together.wait(LIMIT)
            return current_thread().name

        names = {f.result(LIMIT) for f in [service.submit(body) for _ in range(3)]}
    assert len(names) == 3
    assert all(re.fullmatch(r"work_\d+", name) for name in names)


def test_without_a_prefix_a_threads_name_tells_its_service_from_every_other() -> None:
    prefixes: set[str] = set()
    for _ in range(3):
        with Service(1) as service:
            name = service.submit(lambda: current_thread().name).result(LIMIT)
            match = re.fullmatch(r"(.+)_\d+", name)
            assert match is not None
            prefixes.add(match[1])
    assert len(prefixes) == 3


def test_a_thread_of_the_service_is_seen_by_threading() -> None:
    with Service(1) as service:
        thread = service.submit(current_thread).result(LIMIT)
        assert thread in threading.enumerate()
        assert thread.is_alive()
        assert thread.ident == service.submit(threading.get_ident).result(LIMIT)
        assert thread.native_id == service.submit(threading.get_native_id).result(LIMIT)
        thread.join(0.001)
        assert thread.is_alive()
    assert ended(thread)


def test_a_thread_that_logs_when_it_is_all_but_gone_is_not_listed_for_ever(
    log: SimpleQueue[logging.LogRecord],
) -> None:
    """As without a GIL, where an exception that others dropped is freed as its maker ends."""
    local = threading.local()
    before = set(threading.enumerate())
    with Service(1) as service:
        service.submit(lambda: setattr(local, "failed", service.submit(int, "x"))).result(LIMIT)
    assert "nobody asked" in log.get(timeout=LIMIT).getMessage()
    wait_until(lambda: before.issuperset(threading.enumerate()))


def test_threading_locals_of_a_thread_stay_with_it() -> None:
    local = threading.local()

    def count() -> int:
        local.count = getattr(local, "count", 0) + 1
        return int(local.count)

    with Service(1) as service:
        assert [service.submit(count).result(LIMIT) for _ in range(3)] == [1, 2, 3]


def test_trace_and_profile_functions_of_threading_are_heeded() -> None:
    seen: SimpleQueue[str] = SimpleQueue()

    def body() -> None:
        pass

    def profile(frame: FrameType, event: str, arg: object) -> None:
        seen.put(frame.f_code.co_name)

    threading.setprofile(profile)
    try:
        with Service(1) as service:
            service.submit(body).result(LIMIT)
    finally:
        threading.setprofile(None)
    names: set[str] = set()
    while not seen.empty():
        names.add(seen.get())
    assert "body" in names


# Ended.


@pytest.mark.parametrize("idle_timeout", [0, 0.03])
def test_a_thread_ends_when_it_has_idled_for_its_time(idle_timeout: float) -> None:
    with Service(2, idle_timeout=idle_timeout) as service:
        for _ in range(3):
            begin = time.monotonic()
            threads = [service.submit(current_thread).result(LIMIT) for _ in range(2)]
            assert all(ended(thread) for thread in threads)
            assert time.monotonic() - begin >= idle_timeout * 0.9


def test_a_thread_that_has_the_number_of_one_that_ended_is_no_body() -> None:
    with Service(1, idle_timeout=0) as service:
        for _ in range(20):
            assert ended(service.submit(current_thread).result(LIMIT))
            got: SimpleQueue[object] = SimpleQueue()

            def plain(got: SimpleQueue[object]) -> None:
                future = service.submit(int)
                got.put(service.block_till_done(LIMIT))
                got.put(future.result())
                got.put(boundedexec.wait([future]).not_done)

            thread = Thread(target=plain, args=(got,))
            thread.start()
            thread.join()
            assert [got.get_nowait() for _ in range(3)] == [True, 0, set()]


def test_surplus_threads_end_although_their_service_is_in_use() -> None:
    with Service(8, idle_timeout=0.05) as service:
        together = threading.Barrier(8)

        def body() -> Thread:
            together.wait(LIMIT)
            return current_thread()

        threads = {f.result(LIMIT) for f in [service.submit(body) for _ in range(8)]}

        def all_but_one_ended() -> bool:
            service.submit(int).result(LIMIT)
            return sum(thread.is_alive() for thread in threads) <= 1

        wait_until(all_but_one_ended)


def test_threads_for_slots_that_were_given_away_end_too() -> None:
    with Service(1, idle_timeout=0) as service:
        together = threading.Barrier(20)

        def body() -> Thread:
            service.yield_slot(together.wait, LIMIT)
            return current_thread()

        threads = {f.result(LIMIT) for f in [service.submit(body) for _ in range(20)]}
        assert len(threads) == 20
        assert all(ended(thread) for thread in threads)


def test_idle_time_counts_from_the_last_use() -> None:
    with Service(1, idle_timeout=0.2) as service:
        thread = service.submit(current_thread).result(LIMIT)
        last = begin = time.monotonic()
        while last < begin + 0.4:
            last = time.monotonic()
            if service.submit(current_thread).result(LIMIT) is not thread:
                pytest.skip("this machine is too slow to tell")
            time.sleep(0.02)
        assert ended(thread)
        assert time.monotonic() - last >= 0.18


def test_submissions_that_meet_a_thread_at_its_end_are_not_lost() -> None:
    for idle_timeout in (0, 0.0001, 0.001):
        with Service(2, idle_timeout=idle_timeout) as service:
            for i in range(150):
                assert service.submit(int, str(i)).result(LIMIT) == i
                time.sleep(idle_timeout)


def test_an_idle_service_uses_no_cpu_and_has_no_helper_thread() -> None:
    lines = run_script(
        """
        import os, resource, threading, time
        from boundedexec import Service

        service = Service(4)
        unbounded = Service.unbounded()
        waiting = threading.Barrier(4)
        futures = [service.submit(waiting.wait) for _ in range(4)] + [unbounded.submit(int)]
        assert service.block_till_done() and unbounded.block_till_done()
        before = resource.getrusage(resource.RUSAGE_SELF)
        time.sleep(0.3)
        after = resource.getrusage(resource.RUSAGE_SELF)
        print(threading.active_count())
        print(len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 6)
        print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.05)
        print(after.ru_nvcsw - before.ru_nvcsw < 20)
        """
    )
    assert lines == ["6", "6", "True", "True"]


def test_nothing_polls_while_it_waits() -> None:
    lines = run_script(
        """
        import concurrent.futures, resource, threading
        from boundedexec import Service

        with Service(2) as service:
            release, yielded = threading.Event(), threading.Event()
            bodies = [
                service.submit(service.yield_slot, lambda: (yielded.set(), release.wait())),
                service.submit(release.wait),
                service.submit(release.wait),
                *[service.submit(int) for _ in range(1000)],
            ]
            yielded.wait()
            before = resource.getrusage(resource.RUSAGE_SELF)
            print(service.block_till_done(0.15))
            try:
                bodies[-1].result(0.15)
            except concurrent.futures.TimeoutError:
                print("waited")
            after = resource.getrusage(resource.RUSAGE_SELF)
            release.set()
        print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.05)
        print(after.ru_nvcsw - before.ru_nvcsw < 20)
        """
    )
    assert lines == ["False", "waited", "True", "True"]


def test_without_an_idle_timeout_threads_stay_until_shutdown() -> None:
    service = Service(1, idle_timeout=None)
    thread = service.submit(current_thread).result(LIMIT)
    thread.join(0.1)
    assert thread.is_alive()
    assert service.submit(current_thread).result(LIMIT) is thread
    service.shutdown()
    assert ended(thread)


def test_after_shutdown_without_wait_threads_end_at_once() -> None:
    service = Service(2, idle_timeout=None)
    with holding(service):
        thread = service.submit(current_thread).result(LIMIT)
        assert thread.is_alive()
        last = service.submit(current_thread)
        service.shutdown(wait=False)
    assert ended(thread)
    assert ended(last.result(LIMIT))


# Collected without shutdown.


def test_a_service_that_is_collected_finishes_what_it_accepted_and_ends() -> None:
    service = Service(2, idle_timeout=None)
    reference = weakref.ref(service)
    started, release = threading.Barrier(3), threading.Event()
    for _ in range(2):
        service.submit(lambda: (started.wait(LIMIT), release.wait(LIMIT)))
    started.wait(LIMIT)
    futures = [service.submit(current_thread) for _ in range(50)]
    del service
    gc.collect()
    # Neither its threads nor its futures keep it alive.
    assert reference() is None
    assert not any(future.done() for future in futures)
    release.set()
    threads = {future.result(LIMIT) for future in futures}
    assert all(ended(thread) for thread in threads)


def test_an_idle_service_that_is_collected_ends_its_threads_at_once() -> None:
    service = Service(2, idle_timeout=None)
    thread = service.submit(current_thread).result(LIMIT)
    assert service.block_till_done(LIMIT)
    reference = weakref.ref(service)
    del service
    gc.collect()
    assert reference() is None
    assert ended(thread)


@pytest.mark.parametrize("buffersize", [None, 3])
def test_the_iterator_of_map_does_not_keep_its_service_alive(buffersize: int | None) -> None:
    service = Service(2, idle_timeout=None)
    iterator = service.map(this_thread, range(5), buffersize=buffersize)
    first = next(iterator)
    reference = weakref.ref(service)
    del service
    gc.collect()
    assert reference() is None
    assert all(ended(thread) for thread in [first, *iterator])


def test_a_service_that_only_a_body_refers_to_is_finished_too() -> None:
    def start() -> SimpleQueue[Future[Thread]]:
        service = Service(1, idle_timeout=None)
        inner: SimpleQueue[Future[Thread]] = SimpleQueue()
        service.submit(lambda: inner.put(service.submit(current_thread)))
        return inner

    thread = start().get(timeout=LIMIT).result(LIMIT)
    gc.collect()
    assert ended(thread)


# Starts that fail.


def test_where_nothing_runs_submit_raises_and_nothing_was_accepted(starts: Starts) -> None:
    ran: list[int] = []
    for bound in (2, 0):
        with Service(bound) as service:
            starts.fail()
            for _ in range(3):
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    service.submit(ran.append, 1)
                assert service.block_till_done(0)
            starts.fail(False)
            assert service.submit(int, "5").result(LIMIT) == 5
            assert service.block_till_done(LIMIT)
    assert ran == []


def test_where_something_runs_a_submission_waits_for_the_next_submit(starts: Starts) -> None:
    for bound in (3, 0):
        with Service(bound) as service, holding(service):
            starts.fail()
            waiting = [service.submit(int, str(i)) for i in range(5)]
            assert not any(future.done() for future in waiting)
            starts.fail(False)
            # One slot is held all the while: the others are used again.
            last = service.submit(int, "5")
            assert [f.result(LIMIT) for f in [*waiting, last]] == list(range(6))


def test_where_something_runs_a_submission_waits_for_its_slot(starts: Starts) -> None:
    for bound in (3, 0):
        with Service(bound) as service:
            with holding(service):
                starts.fail()
                waiting = [service.submit(int, str(i)) for i in range(5)]
            starts.fail(False)
            # Its thread goes on to them, without a start.
            assert [f.result(LIMIT) for f in waiting] == list(range(5))
            assert service.block_till_done(LIMIT)


def test_a_start_is_tried_again_when_a_slot_is_given_away(starts: Starts) -> None:
    with Service(1) as service:

        def body() -> int:
            starts.fail()
            with service.slot_yielded():
                waiting = service.submit(int, "5")
                starts.fail(False)
                service.submit(int)
                assert waiting.result(LIMIT) == 5
            waiting = service.submit(int, "6")
            # The slot frees here, and the start is tried.
            return service.yield_slot(waiting.result, LIMIT)

        assert service.submit(body).result(LIMIT) == 6


def test_what_no_thread_was_started_for_while_a_body_yields_runs_after_it(
    starts: Starts,
) -> None:
    with Service(1) as service:

        def body() -> Future[int]:
            starts.fail()
            with service.slot_yielded():
                return service.submit(int, "5")

        assert service.submit(body).result(LIMIT).result(LIMIT) == 5
        assert service.block_till_done(LIMIT)


LENDING_WAITS: dict[str, Callable[[Future[int]], object]] = {
    "result": lambda future: future.result(),
    "exception": lambda future: future.exception(),
    "wait": lambda future: boundedexec.wait([future]),
    "as_completed": lambda future: next(boundedexec.as_completed([future])),
}


@pytest.mark.parametrize("wait_for", LENDING_WAITS.values(), ids=LENDING_WAITS)
def test_a_lend_whose_thread_cannot_be_started_raises_from_the_wait(
    wait_for: Callable[[Future[int]], object], starts: Starts
) -> None:
    with Service(1) as service:

        def body() -> Future[int]:
            starts.fail()
            future = service.submit(int, "5")
            for _ in range(2):
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    wait_for(future)
            # It kept its slot, and nothing is lost.
            later = service.submit(int)
            assert not later.running() and not later.done()
            return future

        assert service.submit(body).result(LIMIT).result(LIMIT) == 5
        starts.fail(False)

        def again() -> int:
            future = service.submit(int, "6")
            wait_for(future)
            return future.result()

        assert service.submit(again).result(LIMIT) == 6
        assert service.block_till_done(LIMIT)


@pytest.mark.parametrize(("bound", "lending"), [(0, True), (2, True), (2, False)])
def test_a_wait_for_what_only_lacks_a_thread_raises_or_tries_again(
    bound: int, lending: bool, starts: Starts
) -> None:
    with Service(bound, lending=lending) as service:

        def body() -> int:
            starts.fail()
            with pytest.raises(RuntimeError, match="can't start new thread"):
                # A slot is free for it: nothing else will ever start it.
                service.submit(int).result()
            starts.fail(False)
            return service.submit(int, "5").result()

        assert service.submit(body).result(LIMIT) == 5
        assert service.block_till_done(LIMIT)


def test_a_wait_in_a_yield_for_what_only_lacks_a_thread_raises(starts: Starts) -> None:
    with Service(1) as service:

        def body() -> int:
            starts.fail()
            future = service.submit(int)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                service.yield_slot(future.result)
            starts.fail(False)
            return service.yield_slot(service.submit(int, "5").result)

        assert service.submit(body).result(LIMIT) == 5
        assert service.block_till_done(LIMIT)


def test_a_submission_that_was_refused_may_be_submitted_again_at_once(starts: Starts) -> None:
    fails = iter([True, False] * 100)
    starts.failing = lambda: next(fails)
    with Service(4, idle_timeout=0) as service:
        for i in range(20):
            try:
                future = service.submit(int, str(i))
            except RuntimeError:
                future = service.submit(int, str(i))
            assert future.result(LIMIT) == i
            assert service.block_till_done(LIMIT)


def test_who_waits_for_all_is_told_where_the_last_fails_for_want_of_a_thread(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A submit has the slot, and is to start a thread; 2. another queues a submission
    and relies on that; 3. somebody waits until nothing is outstanding; 4. the start fails."""
    waits, told = threading.Event(), threading.Event()
    futures: list[Future[int]] = []
    done_in_callback: list[bool] = []
    slots_observe = Slots.observe

    def observe(slots: Slots, observer: Observer) -> None:
        slots_observe(slots, observer)
        waits.set()

    def wait_for_all() -> None:
        service.block_till_done()
        told.set()

    def failing() -> bool:
        if not futures:
            futures.append(service.submit(int))
            futures[0].add_done_callback(
                lambda _: done_in_callback.append(service.block_till_done(0))
            )
            Thread(target=wait_for_all, daemon=True).start()
            assert waits.wait(LIMIT)
        return True

    monkeypatch.setattr(Slots, "observe", observe)
    with Service(1) as service:
        starts.failing = failing
        with pytest.raises(RuntimeError, match="can't start new thread"):
            service.submit(int)
        assert isinstance(futures[0].exception(0), RuntimeError)
        assert told.wait(LIMIT)
        assert done_in_callback == [False]


# The initializer.


def test_an_initializer_runs_once_in_each_new_thread() -> None:
    seen: SimpleQueue[tuple[Thread, int]] = SimpleQueue()

    def initializer(number: int) -> None:
        seen.put((current_thread(), number))

    with Service(3, "", initializer, (7,)) as service:
        for _ in range(3):
            with holding(service, 3):
                pass
            assert service.block_till_done(LIMIT)
        together = threading.Barrier(4)
        bodies = [service.submit(service.yield_slot, together.wait, LIMIT) for _ in range(4)]
        assert sorted(f.result(LIMIT) for f in bodies) == [0, 1, 2, 3]
    initialized = [seen.get() for _ in range(seen.qsize())]
    assert {number for _, number in initialized} == {7}
    assert len({thread for thread, _ in initialized}) == len(initialized) >= 4


def test_slow_initializers_run_side_by_side() -> None:
    meet = threading.Barrier(8)
    with Service(8, initializer=meet.wait, initargs=(LIMIT,)) as service:
        futures = [service.submit(threading.get_ident) for _ in range(8)]
        for future in futures:
            future.result(LIMIT)


def test_slow_initializers_run_side_by_side_for_lent_slots() -> None:
    meet, both, inits = threading.Barrier(4), threading.Barrier(4), itertools.count()

    def initializer() -> None:
        # After those of the bodies. One more than there are lends may be woken in vain.
        if 4 <= next(inits) < 8:
            meet.wait(LIMIT)

    def outer() -> int:
        both.wait(LIMIT)
        return service.submit(int, "5").result()

    with Service(4, initializer=initializer) as service:
        futures = [service.submit(outer) for _ in range(4)]
        assert [future.result(LIMIT) for future in futures] == [5] * 4


def test_a_slow_initializer_gets_no_more_threads_than_submissions() -> None:
    started = list[int]()

    def initializer() -> None:
        started.append(threading.get_ident())
        time.sleep(0.02)

    with Service(8, initializer=initializer) as service:
        service.submit(int).result(LIMIT)
        assert len(started) == 1
        # Over before its thread has parked; from then on that is found.
        assert service.block_till_done(LIMIT)
        service.submit(int).result(LIMIT)
        assert len(started) == 1


def test_what_an_initializer_set_is_seen_over_the_submitters_values() -> None:
    def initializer() -> None:
        variable.set("initializer's")

    def look() -> tuple[str, str]:
        return variable.get(), other.get()

    def here() -> tuple[str, str]:
        variable.set("submitter's")
        other.set("submitter's")
        return service.submit(look).result(LIMIT)

    with Service(1, initializer=initializer) as service:
        assert Context().run(here) == ("initializer's", "submitter's")
        assert Context().run(service.submit, look).result(LIMIT) == ("initializer's", "unset")


def test_what_a_body_sets_over_the_initializers_values_reaches_no_other() -> None:
    def initializer() -> None:
        variable.set("initializer's")

    def body() -> str:
        found = variable.get()
        variable.set("body's")
        return found

    with Service(1, initializer=initializer) as service:
        for _ in range(2):
            assert Context().run(service.submit, body).result(LIMIT) == "initializer's"
            assert service.submit(body).result(LIMIT) == "initializer's"


def test_an_initializers_values_are_seen_by_lent_bodies_and_later_threads() -> None:
    def initializer() -> None:
        variable.set(current_thread().name)

    def look() -> bool:
        return variable.get() == current_thread().name

    def outer() -> bool:
        return look() and service.submit(look).result()

    with Service(1, initializer=initializer, idle_timeout=0) as service:
        for _ in range(5):
            assert service.submit(outer).result(LIMIT)
            assert service.block_till_done(LIMIT)


def test_an_initializer_may_submit_and_wait_elsewhere() -> None:
    waited: SimpleQueue[int] = SimpleQueue()

    def initializer() -> None:
        with holding(other):
            future = other.submit(int, "5")
            threading.Timer(0.01, go_on.set).start()
        waited.put(future.result())
        boundedexec.wait([other.submit(go_on.wait, LIMIT)])
        for each in boundedexec.as_completed([other.submit(go_on.wait, LIMIT)]):
            assert each.result()
        with pytest.raises(RuntimeError):
            service.yield_slot(int)
        waited.put(other.submit(lambda: go_on.wait(LIMIT) and 6).result())

    go_on = threading.Event()
    with Service(1) as other, Service(2, initializer=initializer) as service:
        assert service.submit(int, "7").result(LIMIT) == 7
        assert [waited.get(timeout=LIMIT), waited.get(timeout=LIMIT)] == [5, 6]


class Oops(BaseException):
    """What no `except Exception` catches."""


@pytest.mark.parametrize("exception", [ValueError("no luck"), Oops("no luck")])
def test_a_failing_initializer_breaks_the_service(
    exception: BaseException, log: SimpleQueue[logging.LogRecord]
) -> None:
    fail = threading.Event()
    ran: list[int] = []

    def initializer() -> None:
        fail.wait(LIMIT)
        raise exception

    with Service(1, initializer=initializer) as service:
        futures = [service.submit(ran.append, i) for i in range(5)]
        told: SimpleQueue[object] = SimpleQueue()
        futures[3].add_done_callback(told.put)
        assert futures[4].cancel()
        fail.set()
        for future in futures[:4]:
            with pytest.raises(BrokenThreadPool):
                future.result(LIMIT)
        assert told.get(timeout=LIMIT) is futures[3]
        assert service.block_till_done(LIMIT)
        for _ in range(2):
            with pytest.raises(BrokenThreadPool):
                service.submit(int)
    assert ran == []
    record = log.get(timeout=LIMIT)
    assert record.levelno >= logging.ERROR
    assert record.exc_info is not None and record.exc_info[1] is exception
    assert "in initializer\n" in logging.Formatter().format(record)
    assert log.empty()


def test_done_callbacks_of_a_broken_service_may_submit_and_wait_elsewhere() -> None:
    fail = threading.Event()

    def initializer() -> None:
        fail.wait(LIMIT)
        raise ValueError

    got: SimpleQueue[int] = SimpleQueue()
    with Service(1) as other, Service(1, initializer=initializer) as service:
        for future in [service.submit(int) for _ in range(2)]:
            future.add_done_callback(lambda _: got.put(other.submit(int, "5").result()))
        fail.set()
        assert [got.get(timeout=LIMIT) for _ in range(2)] == [5, 5]


def test_a_body_that_runs_when_its_service_breaks_is_finished(
    log: SimpleQueue[logging.LogRecord],
) -> None:
    runs = iter([True, False])

    def initializer() -> None:
        if not next(runs):
            raise ValueError

    with Service(2, initializer=initializer) as service:
        with holding(service):
            with pytest.raises(BrokenThreadPool):
                service.submit(int).result(LIMIT)
        # `holding` has asked for its result.
        with pytest.raises(BrokenThreadPool):
            service.submit(int)
        assert service.block_till_done(LIMIT)


def test_a_body_that_waits_when_its_service_breaks_is_told() -> None:
    runs = iter([True, False])

    def initializer() -> None:
        if not next(runs):
            raise ValueError

    with Service(1, initializer=initializer) as service:
        with pytest.raises(BrokenThreadPool):
            # Lends, on a second thread.
            service.submit(lambda: service.submit(int).result()).result(LIMIT)
        assert service.block_till_done(LIMIT)


def test_a_body_that_yields_when_its_service_breaks_goes_on() -> None:
    runs = iter([True, False])

    def initializer() -> None:
        if not next(runs):
            raise ValueError

    def body() -> object:
        inner = service.submit(int)
        return service.yield_slot(inner.exception, LIMIT)

    with Service(1, initializer=initializer) as service:
        assert isinstance(service.submit(body).result(LIMIT), BrokenThreadPool)
        assert service.block_till_done(LIMIT)


# The context of threads, where Python would have it inherited.


@pytest.mark.skipif(not hasattr(sys.flags, "thread_inherit_context"), reason="not in this Python")
@pytest.mark.parametrize("inherit", ["0", "1"])
def test_a_thread_does_not_inherit_the_context_that_started_it(inherit: str) -> None:
    lines = run_script(
        """
        from contextvars import Context, ContextVar
        from boundedexec import Service
        variable = ContextVar("variable", default="unset")
        variable.set("of the first")
        for initializer in (None, lambda: print("initializer", variable.get())):
            with Service(1, initializer=initializer) as service:
                print(service.submit(variable.get).result())
                print(Context().run(service.submit, variable.get).result())
        """,
        "-X",
        f"thread_inherit_context={inherit}",
    )
    assert [line for line in lines if "initializer" not in line] == ["of the first", "unset"] * 2


# Interpreter exit.

EXIT = """
    import atexit, gc, sys, threading, time
    from boundedexec import Service

    def say(*words):
        sys.stdout.write(" ".join(map(str, words)) + "\\n")

    def later(*words):
        time.sleep(0.01)
        say(*words)

    def try_to_submit(who, service):
        try:
            service.submit(int)
        except RuntimeError as error:
            say(who + ":", error)
"""
WORDS = "cannot schedule new futures after interpreter shutdown"


@pytest.mark.parametrize(
    "end",
    [
        "",
        "service.shutdown(wait=False)",
        "del service; gc.collect()",
        "sys.exit(0)",
        "service.submit(sys.exit, 3).exception()",
    ],
)
@pytest.mark.parametrize("bound", [1, 3, 0])
def test_at_exit_everything_accepted_is_finished(bound: int, end: str) -> None:
    lines = run_script(
        EXIT
        + f"""
    service = Service({bound}, idle_timeout=None)
    for i in range(10):
        service.submit(later, str(i)).add_done_callback(lambda _: say("called"))
    {end}
"""
    )
    assert sorted(lines) == sorted([str(i) for i in range(10)] + ["called"] * 10)


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="Python 3.12 starts no threads at exit"
)
def test_at_exit_bodies_that_lend_and_yield_are_finished() -> None:
    lines = run_script(
        EXIT
        + """
    def body():
        inner = service.submit(int, "5")
        other = service.submit(int, "6")
        submitted.set()
        at_exit.wait()
        say(inner.result(), service.yield_slot(other.result))

    service = Service(1)
    submitted, at_exit = threading.Event(), threading.Event()
    service.submit(body)
    submitted.wait()
    threading.Timer(0.1, at_exit.set).start()
"""
    )
    assert lines == ["5 6"]


def test_at_exit_a_failed_program_finishes_what_it_accepted() -> None:
    lines = run_script(
        EXIT
        + """
    service = Service(1)
    service.submit(later, "done")
    sys.excepthook = lambda *_: None
    atexit.register(lambda: (sys.stdout.flush(), __import__("os")._exit(0)))
    raise ValueError
"""
    )
    assert lines == ["done"]


def test_at_exit_submit_raises_in_the_standard_words() -> None:
    lines = run_script(
        EXIT
        + """
    def body():
        try:
            while True:
                service.submit(int)
                time.sleep(0.001)
        except RuntimeError as error:
            say("body:", error)

    service, unused = Service(2), Service(2)
    late = lambda: (try_to_submit("atexit", service), try_to_submit("unused", unused))
    atexit.register(late)
    atexit.register(lambda: try_to_submit("new", Service(1)))
    atexit.register(lambda: say(service.block_till_done(), service.shutdown()))
    service.submit(body)
"""
    )
    assert sorted(lines) == sorted(
        [
            "True None",
            f"body: {WORDS}",
            f"atexit: {WORDS}",
            f"unused: {WORDS}",
            f"new: {WORDS}",
        ]
    )


def test_idle_threads_do_not_hold_up_the_exit() -> None:
    begin = time.monotonic()
    run_script(
        """
        from boundedexec import Service
        services = [Service(2, idle_timeout=timeout) for timeout in (None, 1000)]
        print([service.submit(int).result() for service in services])
        """
    )
    assert time.monotonic() - begin < LIMIT / 2


@pytest.mark.parametrize(
    "stuck",
    ["threading.Event().wait", "lambda: time.sleep(1000)", "lambda: watch()"],
)
def test_a_daemon_service_does_not_keep_a_program_alive(stuck: str) -> None:
    lines = run_script(
        EXIT
        + f"""
    def watch():
        while True:
            time.sleep(0.001)

    service = Service(1, daemon=True)
    running = service.submit({stuck})
    queued = service.submit(say, "never")
    queued.add_done_callback(lambda f: say("cancelled", f.cancelled()))
    while not running.running():
        time.sleep(0.001)
    atexit.register(lambda: try_to_submit("atexit", service))
"""
    )
    assert lines == ["cancelled True", f"atexit: {WORDS}"]


def test_a_daemon_service_abandons_bodies_that_yield_or_wait() -> None:
    lines = run_script(
        EXIT
        + """
    entered = threading.Semaphore(0)

    def stuck():
        entered.release()
        threading.Event().wait()

    service = Service(2, daemon=True)
    service.submit(service.yield_slot, stuck)
    service.submit(lambda: service.submit(stuck).result())
    entered.acquire()
    entered.acquire()
    other = Service(1)
    other.submit(later, "finished")
"""
    )
    assert lines == ["finished"]


def test_an_idle_daemon_service_finishes_what_is_waited_for_before() -> None:
    lines = run_script(
        EXIT
        + """
    with Service(1, daemon=True) as service:
        service.submit(later, "finished")
    service = Service(1, daemon=True)
    service.submit(later, "finished")
    say(service.block_till_done())
"""
    )
    assert lines == ["finished", "finished", "True"]


# Fork.

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_child(
    check: Callable[[], object],
    *,
    meanwhile: Callable[[], object] = int,
    end: Callable[[int], object] = os._exit,
) -> int:
    """Fork, call `check` in the child, `meanwhile` here: its exit status, 0 if it returned."""
    sys.stderr.flush()
    sys.stdout.flush()
    child = fork(meanwhile)
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(LIMIT))  # Ends a child that hangs.
        check()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        end(status)
    raise AssertionError("not reached")


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("bound", [2, 0])
def test_after_fork_the_childs_copy_is_empty_and_works(bound: int) -> None:
    with Service(bound, "forked", variable.set, ("initializer's",)) as service:

        def check() -> None:
            assert service.block_till_done(0)
            assert service.max_workers == (bound or None)
            with holding(service, 2):
                more = service.submit(int, "5")
                if bound:
                    assert not more.done()
            assert more.result(LIMIT) == 5
            assert service.submit(variable.get).result(LIMIT) == "initializer's"
            assert service.submit(lambda: service.submit(int, "6").result()).result(LIMIT) == 6
            assert service.submit(service.yield_slot, int, "7").result(LIMIT) == 7
            name = service.submit(lambda: current_thread().name).result(LIMIT)
            assert name.startswith("forked_")
            service.shutdown()
            with pytest.raises(RuntimeError):
                service.submit(int)

        assert service.submit(int).result(LIMIT) == 0
        assert in_child(check) == 0
        with holding(service, 2):
            service.submit(int)
            assert in_child(check) == 0
        assert service.submit(int).result(LIMIT) == 0


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
def test_futures_unfinished_at_the_fork_are_cancelled_in_the_child() -> None:
    called: list[object] = []
    parent = os.getpid()
    in_parent: list[bool] = []
    with Service(1) as service:
        finished = service.submit(int, "5")
        failed = service.submit(divmod, 1, 0)
        assert finished.result(LIMIT) == 5
        assert failed.exception(LIMIT)
        entered, release = threading.Event(), threading.Event()

        def body() -> None:
            entered.set()
            release.wait(LIMIT)

        running = service.submit(body)
        queued = service.submit(int)
        watched = service.submit(int)
        unfinished: list[Future[Any]] = [running, queued, watched]
        assert entered.wait(LIMIT)
        watched.add_done_callback(called.append)
        running.add_done_callback(called.append)
        running.add_done_callback(lambda _: in_parent.append(os.getpid() == parent))

        def check() -> None:
            for future in unfinished:
                with pytest.raises(CancelledError):
                    future.result()
                with pytest.raises(CancelledError):
                    future.exception(LIMIT)
                assert future.cancelled() and future.done() and not future.running()
                future.cancel()
            assert wait(unfinished, LIMIT).done == set(unfinished)
            assert finished.result() == 5
            assert isinstance(failed.exception(), ZeroDivisionError)
            assert service.block_till_done(LIMIT)
            assert service.submit(int).result(LIMIT) == 0
            assert called == []

        assert in_child(check) == 0
        # The parent does not notice.
        assert not any(future.done() for future in unfinished)
        release.set()
        assert watched.result(LIMIT) == 0
    assert in_parent == [True]
    assert len(called) == 2


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_service_that_was_shut_down_stays_so_in_the_child() -> None:
    service, without_wait = Service(1), Service(1)
    service.shutdown()
    with holding(without_wait):
        without_wait.shutdown(wait=False)

        def check() -> None:
            for each in (service, without_wait):
                with pytest.raises(RuntimeError, match="after shutdown"):
                    each.submit(int)
                assert each.block_till_done(LIMIT)
                each.shutdown()

        assert in_child(check) == 0


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_broken_service_stays_so_in_the_child() -> None:
    def initializer() -> None:
        raise ValueError

    with Service(1, initializer=initializer) as service:
        with pytest.raises(BrokenThreadPool):
            service.submit(int).result(LIMIT)

        def check() -> None:
            with pytest.raises(BrokenThreadPool):
                service.submit(int)

        assert in_child(check) == 0


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_fork_in_a_body_leaves_a_service_that_works() -> None:
    with Service(1) as service:

        def check() -> None:
            assert service.submit(int, "5").result(LIMIT) == 5
            assert [*service.map(int, "123")] == [1, 2, 3]

        assert service.submit(in_child, check).result(LIMIT) == 0
        assert service.submit(service.yield_slot, in_child, check).result(LIMIT) == 0
        assert service.submit(int).result(LIMIT) == 0


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_process_that_is_forked_in_a_body_ends_well() -> None:
    lines = run_script(
        """
        import multiprocessing, threading
        from boundedexec import Service

        def work():
            print(threading.current_thread() is threading.main_thread())
            print(service.submit(int, "5").result(), len(threading.enumerate()), flush=True)

        def fork():
            process = multiprocessing.get_context("fork").Process(target=work)
            process.start()
            process.join()
            return process.exitcode, threading.current_thread().name

        with Service(1, "worker") as service:
            print(*service.submit(fork).result(), flush=True)
            print(*service.submit(fork).result(), flush=True)
        """,
        "-W",
        "ignore",
    )
    # In the child: the main thread, and the one that its service has started.
    assert lines == ["True", "5 2", "0 worker_0"] * 2


@pytest.mark.skipif(sys.version_info < (3, 14), reason="concurrent.interpreters is of Python 3.14")
def test_a_sub_interpreter_has_services_of_its_own() -> None:
    lines = run_script("""
        from concurrent import interpreters

        source = '''if True:
            from boundedexec import Service
            with Service(2) as service:
                print(service.submit(pow, 2, 5).result(), list(service.map(int, "123")))
            try:
                Service(1, daemon=True)
            except RuntimeError as error:
                print(error)
            Service(2).submit(print, "finished at the end")
        '''
        for _ in range(5):
            interpreter = interpreters.create()
            interpreter.exec(source)
            interpreter.close()
    """)
    assert sorted(lines) == sorted(
        [
            "32 [1, 2, 3]",
            "finished at the end",
            "this sub-interpreter has no daemon threads: daemon must be False",
        ]
        * 5
    )


def test_forks_in_the_middle_of_everything_leave_services_that_work() -> None:
    over, traffic = threading.Event(), threading.Event()

    def nested(service: Service) -> int:
        return service.submit(int, "5").result()

    def use(service: Service) -> int:
        count = 0
        while not over.is_set():
            traffic.wait(LIMIT)
            service.submit(nested, service)
            service.submit(service.yield_slot, int).add_done_callback(lambda _: None)
            service.submit(int).cancel()
            service.submit(int).result(LIMIT)
            count += 1
        return count

    with Service(1) as one, Service(3) as three, Service.unbounded() as others:
        users = [others.submit(use, service) for service in (one, three) for _ in range(2)]

        def check() -> None:
            for service in (one, three):
                assert service.block_till_done(0)
                assert service.submit(nested, service).result(LIMIT) == 5
                assert service.block_till_done(LIMIT)
                service.shutdown()

        try:
            for _ in range(20):
                traffic.set()
                time.sleep(0.005)
                # It gives way: a busy machine may not run a new process for half a minute.
                assert in_child(check, meanwhile=traffic.clear) == 0
        finally:
            over.set()
            traffic.set()
        assert all(user.result(LIMIT) for user in users)


@forking
def test_a_child_that_exits_finishes_what_it_accepted_itself() -> None:
    lines = run_script(
        """
        import os, sys, threading
        from boundedexec import Service
        service = Service(1)
        entered, release = threading.Event(), threading.Event()
        running = service.submit(lambda: (entered.set(), release.wait(), print("parent's")))
        queued = service.submit(print, "parent's")
        entered.wait()
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            release.set()
        else:
            service.submit(print, "child's")
            sys.exit(0)
        """,
        "-W",
        "ignore",
    )
    assert lines == ["child's", "parent's", "parent's"]


@forking
def test_a_service_made_before_multiprocessing_forks_works_in_its_workers() -> None:
    lines = run_script(
        """
        import multiprocessing
        from boundedexec import Service
        service = Service(2)
        def work(number):
            return sum(service.map(int, range(number)))
        if __name__ == "__main__":
            print(service.submit(int, "5").result())
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(work, [3, 4]))
        """,
        "-W",
        "ignore",
    )
    assert lines == ["5", "[3, 6]"]
