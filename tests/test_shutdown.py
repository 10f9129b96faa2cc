"""`shutdown` finishes or cancels what was accepted; so does a service that is collected."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread, current_thread

import pytest
from helpers import LIMIT, ended, holding

from boundedexec import Service

# Shutdown


def test_shutdown_finishes_what_was_accepted_and_its_threads_are_gone() -> None:
    service = Service(2)
    futures = [service.submit(threading.current_thread) for _ in range(100)]
    service.shutdown()
    assert all(future.done() for future in futures)
    threads = {future.result() for future in futures}
    assert not any(thread.is_alive() for thread in threads)
    assert not threads & set(threading.enumerate())


def test_shutdown_waits_for_done_callbacks_and_for_bodies_that_yielded() -> None:
    over: list[str] = []
    service = Service(1)
    with holding(service):
        service.submit(int).add_done_callback(
            lambda _: service.yield_slot(time.sleep, 0.01) or over.append("callback")  # type: ignore[func-returns-value]
        )
        service.submit(lambda: service.yield_slot(time.sleep, 0.02) or over.append("body"))  # type: ignore[func-returns-value]
    service.shutdown()
    assert sorted(over) == ["body", "callback"]


def test_shutdown_without_wait_returns_at_once_and_loses_nothing() -> None:
    service = Service(1)
    with holding(service):
        future = service.submit(int, "5")
        service.shutdown(wait=False)
        assert not future.done()
    assert future.result(LIMIT) == 5


def test_shutdown_may_be_repeated_and_waited_for_by_many() -> None:
    service = Service(1)
    with Service.unbounded() as others:
        with holding(service):
            futures = [others.submit(service.shutdown) for _ in range(4)]
            service.shutdown(wait=False)
        for future in futures:
            future.result(LIMIT)
    service.shutdown()


def test_shutdown_with_cancel_futures_cancels_what_has_not_started() -> None:
    service = Service(1)
    ran: list[int] = []
    notified: SimpleQueue[Future[None]] = SimpleQueue()
    with holding(service):
        futures = [service.submit(ran.append, i) for i in range(100)]
        futures[0].add_done_callback(notified.put)
        service.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in futures)
        assert notified.get(timeout=LIMIT) is futures[0]
    service.shutdown()
    assert ran == []


@pytest.mark.parametrize("bound", [1, 5])
def test_cancel_futures_spares_what_only_waits_for_its_thread(bound: int) -> None:
    # The threads that it takes are idle, or about to start: as under the stdlib's
    # pool, where `submit` waits for its thread, it counts as started.
    for warm in range(bound + 1):
        service = Service(bound)
        ran: list[int] = []
        if warm:
            with holding(service, warm):
                pass
            assert service.block_till_done(LIMIT)
        futures = [service.submit(ran.append, i) for i in range(100)]
        service.shutdown(cancel_futures=True)
        assert not any(future.cancelled() for future in futures[:bound])
        assert futures[-1].cancelled() or len(ran) == 100
        assert all(future.done() for future in futures)
        assert sorted(ran) == [i for i in range(100) if not futures[i].cancelled()]


def test_an_unbounded_service_has_nothing_that_has_not_started_to_cancel() -> None:
    service = Service.unbounded()
    futures = [service.submit(int) for _ in range(10)]
    service.shutdown(cancel_futures=True)
    assert [future.result(LIMIT) for future in futures] == [0] * 10


def test_what_was_accepted_may_lend_and_yield_after_shutdown() -> None:
    service = Service(1)
    shut = threading.Event()

    def body() -> tuple[int, int]:
        first, second = service.submit(int, "5"), service.submit(int, "6")
        ready.set()
        shut.wait(LIMIT)
        return first.result(), service.yield_slot(second.result, LIMIT)

    ready = threading.Event()
    future = service.submit(body)
    assert ready.wait(LIMIT)
    service.shutdown(wait=False)
    shut.set()
    assert future.result(LIMIT) == (5, 6)
    service.shutdown()


def test_submit_after_shutdown_raises_in_the_standard_words() -> None:
    service = Service(1)
    service.shutdown()
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        service.submit(int)
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        service.map(int, "1")


def test_submit_after_shutdown_raises_from_bodies_and_callbacks_too() -> None:
    service = Service(1)
    raised: SimpleQueue[BaseException] = SimpleQueue()

    def try_it(_: object = None) -> None:
        try:
            service.submit(int)
        except RuntimeError as error:
            raised.put(error)

    with holding(service):
        service.submit(try_it).add_done_callback(try_it)
        service.shutdown(wait=False)
    for _ in range(2):
        assert str(raised.get(timeout=LIMIT)) == "cannot schedule new futures after shutdown"


def test_a_body_may_not_wait_for_the_shutdown_of_its_own_service() -> None:
    with Service(1) as service:

        def body() -> Future[int]:
            queued = service.submit(int, "5")
            for _ in range(2):
                with pytest.raises(RuntimeError):
                    service.shutdown(cancel_futures=True)
            with pytest.raises(RuntimeError):
                service.yield_slot(service.shutdown)
            return queued

        # Before any effect.
        assert service.submit(body).result(LIMIT).result(LIMIT) == 5
        assert service.submit(int).result(LIMIT) == 0


def test_a_body_may_shut_its_own_service_down_without_waiting() -> None:
    service = Service(1)

    def body() -> Future[int]:
        queued = service.submit(int, "5")
        service.shutdown(wait=False, cancel_futures=True)
        return queued

    assert service.submit(body).result(LIMIT).cancelled()
    service.shutdown()


def test_a_body_may_shut_another_service_down() -> None:
    with Service(1) as service:
        other = Service(1)
        future = other.submit(int)
        service.submit(other.shutdown).result(LIMIT)
        assert future.done()
        with pytest.raises(RuntimeError):
            other.submit(int)


@pytest.mark.parametrize("cancel", [False, True])
def test_what_is_submitted_beside_shutdown_is_refused_or_done(cancel: bool) -> None:
    def submit_until_refused(service: Service, together: threading.Barrier) -> list[Future[int]]:
        accepted: list[Future[int]] = []
        together.wait(LIMIT)
        try:
            for _ in range(1000):
                accepted.append(service.submit(int))
        except RuntimeError:
            pass
        return accepted

    with Service.unbounded() as others:
        for _ in range(100):
            service, together = Service(2), threading.Barrier(3)
            submitters = [others.submit(submit_until_refused, service, together) for _ in range(2)]
            together.wait(LIMIT)
            service.shutdown(cancel_futures=cancel)
            for submitter in submitters:
                for future in submitter.result(LIMIT):
                    if not (cancel and future.cancelled()):
                        assert future.result(LIMIT) == 0


def test_the_with_block_shuts_down_and_waits() -> None:
    with Service(1) as service:
        future = service.submit(time.sleep, 0.01)
    assert future.done()
    with pytest.raises(RuntimeError):
        service.submit(int)


# Collected without shutdown


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


def test_a_service_that_only_a_body_refers_to_is_finished_too() -> None:
    def start() -> SimpleQueue[Future[Thread]]:
        service = Service(1, idle_timeout=None)
        inner: SimpleQueue[Future[Thread]] = SimpleQueue()
        service.submit(lambda: inner.put(service.submit(current_thread)))
        return inner

    thread = start().get(timeout=LIMIT).result(LIMIT)
    gc.collect()
    assert ended(thread)
