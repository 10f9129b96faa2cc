"""An initializer runs once in each new thread; one that fails breaks the service."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from concurrent.futures.thread import BrokenThreadPool
from contextvars import Context, ContextVar
from queue import SimpleQueue
from threading import Thread, current_thread

import pytest
from helpers import LIMIT, Oops, holding

import boundedexec
from boundedexec import Service

variable: ContextVar[str] = ContextVar("variable", default="unset")

other: ContextVar[str] = ContextVar("other", default="unset")


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
        # After those of the bodies. One worker more than there are lends may be woken.
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
        notified: SimpleQueue[object] = SimpleQueue()
        futures[3].add_done_callback(notified.put)
        assert futures[4].cancel()
        fail.set()
        for future in futures[:4]:
            with pytest.raises(BrokenThreadPool):
                future.result(LIMIT)
        assert notified.get(timeout=LIMIT) is futures[3]
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


def test_the_wait_of_a_body_raises_when_its_service_breaks() -> None:
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
