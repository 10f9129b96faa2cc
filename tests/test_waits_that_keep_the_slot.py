"""Waiting for anything but what is queued keeps the slot; so does `lending=False`."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

import pytest
from helpers import A_WHILE, LIMIT, AnyFuture, NewService, Wait, every_wait

import boundedexec
from boundedexec import Service


def keeps_slot(service: Service, begin: Callable[[], object], end: Callable[[], object]) -> None:
    """Check that a body of `service`, all of whose slots are held, keeps it in `begin`."""
    order: list[str] = []
    begins = threading.Event()

    def body() -> None:
        begins.set()
        begin()
        order.append("body")

    future = service.submit(body)
    decoy = service.submit(order.append, "decoy")
    assert begins.wait(LIMIT)
    concurrent.futures.wait([decoy], A_WHILE)
    assert order == []
    end()
    future.result(LIMIT)
    decoy.result(LIMIT)
    assert order == ["body", "decoy"]


@every_wait
@pytest.mark.parametrize("bound", [1, 0])
def test_waiting_for_what_runs_keeps_the_slot(
    new_service: NewService, wait: Wait, bound: int
) -> None:
    gate, entered, other = threading.Event(), threading.Event(), new_service(bound)
    running = other.submit(lambda: entered.set() or gate.wait())  # type: ignore[func-returns-value]
    assert entered.wait(LIMIT)
    keeps_slot(new_service(1), lambda: wait(running), gate.set)


@every_wait
def test_waiting_for_what_runs_on_its_own_service_keeps_the_slot(
    new_service: NewService, wait: Wait
) -> None:
    service, gate, entered = new_service(2), threading.Event(), threading.Event()
    running = service.submit(lambda: entered.set() or gate.wait())  # type: ignore[func-returns-value]
    assert entered.wait(LIMIT)
    order: list[str] = []

    def body() -> None:
        wait(running)
        order.append("body")

    service.submit(body)
    decoy = service.submit(order.append, "decoy")
    concurrent.futures.wait([decoy], A_WHILE)
    assert order == []
    gate.set()
    decoy.result(LIMIT)


@every_wait
def test_waiting_for_another_packages_future_keeps_the_slot(
    new_service: NewService, wait: Wait
) -> None:
    foreign: AnyFuture = Future()
    keeps_slot(new_service(1), lambda: wait(foreign), lambda: foreign.set_result(1))


def test_waiting_for_a_bare_future_keeps_the_slot(new_service: NewService) -> None:
    bare = boundedexec.Future[int]()
    keeps_slot(new_service(1), bare.result, lambda: bare.set_result(1))


def test_waiting_for_an_event_keeps_the_slot(new_service: NewService) -> None:
    event = threading.Event()
    keeps_slot(new_service(1), event.wait, event.set)


def test_waiting_for_another_service_keeps_the_slot(new_service: NewService) -> None:
    gate, other = threading.Event(), new_service(1)
    other.submit(gate.wait)
    keeps_slot(new_service(1), other.block_till_done, gate.set)


def test_waiting_for_what_is_queued_elsewhere_keeps_the_slot(new_service: NewService) -> None:
    gate, other = threading.Event(), new_service(1)
    other.submit(gate.wait)
    queued = other.submit(int)
    keeps_slot(new_service(1), queued.result, gate.set)


def test_the_stdlibs_own_wait_keeps_the_slot(new_service: NewService) -> None:
    gate, other = threading.Event(), new_service(1)
    running = other.submit(gate.wait)
    keeps_slot(new_service(1), lambda: concurrent.futures.wait([running]), gate.set)


@every_wait
def test_an_initializer_may_wait(new_service: NewService, wait: Wait) -> None:
    other = new_service(1)
    waits = lambda: wait(other.submit(time.sleep, 0.001))  # noqa: E731
    service = new_service(1, initializer=waits)
    assert service.submit(lambda: service.submit(int, "3").result()).result(LIMIT) == 3


def test_a_service_of_one_slot_is_a_serial_queue(new_service: NewService) -> None:
    service, foreign = new_service(1), boundedexec.Future[int]()
    threads: set[int] = set()
    executing: list[int] = []

    def body(n: int) -> None:
        threads.add(threading.get_ident())
        executing.append(n)
        if n == 50:
            foreign.result()
        time.sleep(0)
        assert executing == list(range(n + 1))

    bodies = [service.submit(body, n) for n in range(100)]
    foreign.set_result(1)
    for future in bodies:
        future.result(LIMIT)
    assert executing == list(range(100))
    assert len(threads) == 1, "a body that never gives its slot away needs no second thread"


@every_wait
def test_without_lending_a_wait_keeps_the_slot(new_service: NewService, wait: Wait) -> None:
    service, ran = new_service(1, lending=False), list[int]()
    submitted: queue.SimpleQueue[AnyFuture] = queue.SimpleQueue()

    def body() -> None:
        queued = service.submit(ran.append, 1)
        submitted.put(queued)
        try:
            wait(queued)
        except CancelledError:
            pass

    future = service.submit(body)
    queued = submitted.get(timeout=LIMIT)
    concurrent.futures.wait([queued], A_WHILE)
    assert queued.cancel()
    future.result(LIMIT)
    assert ran == []


def test_without_lending_another_slot_serves_as_ever(new_service: NewService) -> None:
    service = new_service(2, lending=False)
    assert service.submit(lambda: service.submit(int, "2").result()).result(LIMIT) == 2
