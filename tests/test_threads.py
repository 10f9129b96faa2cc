"""Threads start when a submission may start, are reused, and end when they have idled."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread, current_thread
from types import FrameType

import pytest
from helpers import LIMIT, ended, holding, run_script, wait_until

import boundedexec
from boundedexec import Service

# Started and reused


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


def test_one_slot_stays_on_one_thread_when_bodies_submit_raise_and_look() -> None:
    threads: set[Thread] = set()

    def body(left: int) -> None:
        threads.add(current_thread())
        if left:
            future = service.submit(body, left - 1)
            # A look, which is no wait, keeps the slot.
            with pytest.raises(TimeoutError):
                future.result(0)
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


def test_without_a_prefix_thread_names_differ_between_services() -> None:
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


def test_what_is_set_on_a_thread_that_runs_does_not_reach_what_it_executes() -> None:
    # streamlit replaces `run`, so that a thread that starts later has a context of its own.
    names = ["run", "start", "context", "result", "target", "queue", "work_queue", "executor"]
    for propagate_context in True, False:
        with Service(1, propagate_context=propagate_context) as service:
            thread = service.submit(current_thread).result(LIMIT)
            for name in names:
                setattr(thread, name, lambda: None)
            assert service.submit(pow, 2, 3).result(LIMIT) == 8
            assert service.submit(service.submit(pow, 2, 4).result).result(LIMIT) == 16


def test_a_thread_that_logs_while_it_ends_does_not_stay_listed(
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


def test_trace_and_profile_functions_of_threading_take_effect() -> None:
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


# Ended


@pytest.mark.parametrize("idle_timeout", [0, 0.03])
def test_a_thread_ends_when_it_has_idled_for_its_time(idle_timeout: float) -> None:
    with Service(2, idle_timeout=idle_timeout) as service:
        for _ in range(3):
            begin = time.monotonic()
            threads = [service.submit(current_thread).result(LIMIT) for _ in range(2)]
            assert all(ended(thread) for thread in threads)
            assert time.monotonic() - begin >= idle_timeout * 0.9


def test_a_plain_thread_with_the_identifier_of_an_ended_worker_is_not_a_body() -> None:
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
                pytest.skip("this machine is too slow for this test")
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
