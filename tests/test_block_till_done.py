"""`block_till_done` returns once nothing is outstanding, and not before."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from typing import Any

import pytest
from helpers import LIMIT, NewService, holding

from boundedexec import Service


def test_block_till_done_of_a_service_that_did_nothing_is_true() -> None:
    with Service(1) as service:
        assert service.block_till_done() is True
        assert service.block_till_done(0) is True
    assert service.block_till_done() is True


def test_block_till_done_is_false_when_the_timeout_passed_first() -> None:
    with Service(1) as service:
        with holding(service):
            begin = time.monotonic()
            assert service.block_till_done(0.05) is False
            assert time.monotonic() - begin >= 0.045
            assert service.block_till_done(0) is False
            assert service.block_till_done(-1) is False
        assert service.block_till_done(LIMIT) is True


@pytest.mark.parametrize("bound", [1, 3, 0])
def test_block_till_done_returns_once_everything_is_over(bound: int) -> None:
    with Service(bound) as service:
        for _ in range(100):
            futures = [service.submit(int) for _ in range(7)]
            assert service.block_till_done(LIMIT)
            assert all(future.done() for future in futures)


@pytest.mark.parametrize("bound", [1, 3, 0])
def test_block_till_done_waits_for_what_bodies_and_callbacks_submit(bound: int) -> None:
    over: list[int] = []

    def body(left: int) -> None:
        if left % 2:
            service.submit(body, left - 1)
        elif left:
            service.submit(int).add_done_callback(lambda _: body(left - 1))
        else:
            over.append(1)

    with Service(bound) as service:
        for round_ in range(1, 51):
            for _ in range(3):
                service.submit(body, 10)
            assert service.block_till_done(LIMIT)
            assert len(over) == 3 * round_


def test_block_till_done_waits_for_a_body_that_yielded() -> None:
    with Service(1) as service:
        yielded, release = threading.Event(), threading.Event()

        def wait() -> bool:
            yielded.set()
            return release.wait(LIMIT)

        future = service.submit(service.yield_slot, wait)
        assert yielded.wait(LIMIT)
        assert not service.block_till_done(0.01)
        release.set()
        assert service.block_till_done(LIMIT)
        assert future.done()


def test_block_till_done_waits_for_a_body_that_waited_without_its_slot() -> None:
    waited, release = threading.Event(), threading.Event()

    def body() -> None:
        # Held elsewhere, so that the wait is one.
        held = other.submit(time.sleep, 0.01)

        def without_slot() -> None:
            held.result()
            waited.set()
            release.wait(LIMIT)

        service.yield_slot(without_slot)

    with Service(1) as service, Service(1) as other:
        future = service.submit(body)
        assert waited.wait(LIMIT)
        try:
            assert not service.block_till_done(0.01)
        finally:
            release.set()
        assert service.block_till_done(LIMIT)
        assert future.done()


def test_block_till_done_does_not_wait_for_what_was_cancelled() -> None:
    with Service(1) as service:
        with holding(service):
            futures = [service.submit(int) for _ in range(100)]
            assert all(future.cancel() for future in futures)
        assert service.block_till_done(LIMIT)


def test_a_cancelled_submission_is_not_outstanding_while_its_callbacks_run() -> None:
    entered, release = threading.Event(), threading.Event()

    def callback(_: object) -> None:
        entered.set()
        release.wait(LIMIT)

    with Service(1) as service, Service(2) as others:
        with holding(service):
            future = service.submit(int)
            future.add_done_callback(callback)
            first = others.submit(future.cancel)
            assert entered.wait(LIMIT)
            assert future.cancel()
        try:
            assert service.block_till_done(LIMIT)
            assert not first.done()
        finally:
            release.set()
        assert first.result(LIMIT)


def test_many_threads_may_block_till_done_at_once() -> None:
    with Service(2) as service, Service.unbounded() as others:
        with holding(service, 2):
            waiting = [others.submit(service.block_till_done) for _ in range(10)]
            done, not_done = concurrent.futures.wait(waiting, timeout=0.02)
            assert not done and len(not_done) == 10
        assert all(future.result(LIMIT) for future in waiting)


def test_block_till_done_is_safe_beside_submit() -> None:
    with Service(2) as service, Service.unbounded() as others:
        submitters = threading.Barrier(3)

        def submit_all() -> None:
            submitters.wait(LIMIT)
            for _ in range(300):
                future = service.submit(int)
                assert service.block_till_done(LIMIT)
                # Accepted before, so over.
                assert future.done()

        for each in [others.submit(submit_all) for _ in range(3)]:
            each.result(LIMIT)


def test_a_body_may_not_block_till_its_own_service_is_done() -> None:
    with Service(1) as service:
        with pytest.raises(RuntimeError):
            service.submit(service.block_till_done).result(LIMIT)
        with pytest.raises(RuntimeError):
            service.submit(service.block_till_done, 0).result(LIMIT)
        with pytest.raises(RuntimeError):
            service.submit(service.yield_slot, service.block_till_done).result(LIMIT)
        assert service.block_till_done(LIMIT)


def test_a_body_may_block_till_another_service_is_done() -> None:
    with Service(1) as service, Service(1) as other:
        future = other.submit(int)
        assert service.submit(other.block_till_done).result(LIMIT) is True
        assert future.done()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("timeout", ["x", [], float("nan")], ids=str)
def test_a_timeout_that_is_none_is_an_error_at_the_call(
    new_service: NewService, timeout: Any, busy: bool
) -> None:
    service, gate = new_service(1), threading.Event()
    if busy:
        service.submit(gate.wait, LIMIT)
    try:
        with pytest.raises((TypeError, ValueError), match="timeout must be seconds or None"):
            service.block_till_done(timeout)
        with pytest.raises((TypeError, ValueError), match="timeout must be seconds or None"):
            asyncio.run(service.async_block_till_done(timeout))
    finally:
        gate.set()
