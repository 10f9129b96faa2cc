"""Done-callbacks are part of the body, and one that raises costs nothing but itself."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any, NoReturn

import pytest
from helpers import (
    LIMIT,
    AnyFuture,
    Boom,
    NewService,
    Oops,
    check_threads_end,
    fail,
    holding,
    logged,
    logged_exceptions,
    sound,
)

import boundedexec
from boundedexec import BrokenThreadPool, Service

# Done-callbacks


def test_a_done_callback_holds_the_slot() -> None:
    with Service(1) as service:
        entered, release = threading.Event(), threading.Event()

        def callback(_: object) -> None:
            entered.set()
            release.wait(LIMIT)

        with holding(service):
            service.submit(int).add_done_callback(callback)
            second = service.submit(int)
        assert entered.wait(LIMIT)
        assert not second.running() and not second.done()
        assert not service.block_till_done(0)
        release.set()
        assert second.result(LIMIT) == 0


def test_a_done_callback_may_lend_its_slot() -> None:
    with Service(1) as service:
        got: SimpleQueue[int] = SimpleQueue()
        with holding(service):
            service.submit(int).add_done_callback(
                lambda _: got.put(service.submit(int, "5").result())
            )
        assert got.get(timeout=LIMIT) == 5


def test_a_done_callback_may_yield_its_slot() -> None:
    with Service(1) as service:
        got: SimpleQueue[int] = SimpleQueue()
        with holding(service):
            second: Future[int]
            service.submit(int).add_done_callback(
                lambda _: got.put(service.yield_slot(second.result, LIMIT))
            )
            second = service.submit(int, "5")
        assert got.get(timeout=LIMIT) == 5
        assert service.block_till_done(LIMIT)


@pytest.mark.parametrize("refused", ["block_till_done", "shutdown"])
def test_a_done_callback_may_not_wait_for_its_own_service(refused: str) -> None:
    with Service(1) as service:
        raised: SimpleQueue[object] = SimpleQueue()

        def callback(_: object) -> None:
            with pytest.raises(RuntimeError) as caught:
                getattr(service, refused)()
            raised.put(caught.value)

        with holding(service):
            service.submit(int).add_done_callback(callback)
        assert isinstance(raised.get(timeout=LIMIT), RuntimeError)
        assert service.submit(int).result(LIMIT) == 0


@pytest.mark.parametrize("exception", [ValueError("callback"), Oops("callback")])
def test_a_done_callback_that_raises_loses_nothing_and_is_logged(
    exception: BaseException, log: SimpleQueue[logging.LogRecord]
) -> None:
    with Service(1) as service:
        called: SimpleQueue[object] = SimpleQueue()
        with holding(service):
            future = service.submit(int)
            future.add_done_callback(lambda _: fail(exception))
            future.add_done_callback(called.put)
        assert called.get(timeout=LIMIT) is future
        assert future.result(LIMIT) == 0
        assert service.submit(int).result(LIMIT) == 0
        record = logged(log)
        assert record.exc_info is not None and record.exc_info[1] is exception


def test_callbacks_run_in_order_on_the_thread_of_the_body(
    busy: tuple[Service, threading.Event],
) -> None:
    service, gate = busy
    calls: list[tuple[str, AnyFuture, int]] = []
    future = service.submit(threading.get_ident)

    def note(name: str, done: AnyFuture) -> None:
        calls.append((name, done, threading.get_ident()))

    for name in "abc":
        future.add_done_callback(partial(note, name))
    assert calls == []
    gate.set()
    assert service.block_till_done(LIMIT)
    thread = future.result(LIMIT)
    assert thread != threading.get_ident()
    assert calls == [(name, future, thread) for name in "abc"]


def test_a_callback_that_is_added_twice_runs_twice(busy: tuple[Service, threading.Event]) -> None:
    service, gate = busy
    calls: list[AnyFuture] = []
    future = service.submit(int)
    future.add_done_callback(calls.append)
    future.add_done_callback(calls.append)
    gate.set()
    assert service.block_till_done(LIMIT)
    assert calls == [future, future]


def test_a_callback_added_while_the_body_runs_is_called_at_its_end(
    new_service: NewService,
) -> None:
    service, entered, gate = new_service(1), threading.Event(), threading.Event()

    def body() -> int:
        entered.set()
        gate.wait()
        return threading.get_ident()

    future = service.submit(body)
    assert entered.wait(LIMIT)
    calls: list[int] = []
    future.add_done_callback(lambda _: calls.append(threading.get_ident()))
    assert calls == []
    gate.set()
    assert service.block_till_done(LIMIT)
    assert calls == [future.result(LIMIT)]


@pytest.mark.parametrize("how", ["returned", "raised", "cancelled"])
def test_a_callback_added_when_it_is_over_is_called_here_and_now(
    busy: tuple[Service, threading.Event], how: str
) -> None:
    service, gate = busy
    future: AnyFuture = service.submit(fail, Boom()) if how == "raised" else service.submit(int)
    if how == "cancelled":
        assert future.cancel()
    else:
        gate.set()
    assert concurrent.futures.wait([future], LIMIT).done
    calls: list[tuple[AnyFuture, int]] = []
    future.add_done_callback(lambda f: calls.append((f, threading.get_ident())))
    assert calls == [(future, threading.get_ident())]
    assert how == "cancelled" or bool(future.exception()) == (how == "raised")


def test_callbacks_of_a_cancelled_submission_run_where_it_is_cancelled(
    busy: tuple[Service, threading.Event],
) -> None:
    service, _ = busy
    calls: list[tuple[bool, int]] = []
    future = service.submit(int)
    future.add_done_callback(lambda f: calls.append((f.cancelled(), threading.get_ident())))
    assert future.cancel() and future.cancel()
    assert calls == [(True, threading.get_ident())]


def test_a_callback_sees_the_future_done(busy: tuple[Service, threading.Event]) -> None:
    service, gate = busy
    seen: list[int] = []
    future = service.submit(int, "4")

    def callback(done: Future[int]) -> None:
        assert done.done()
        seen.append(done.result())
        done.add_done_callback(lambda again: seen.append(again.result() + 1))

    future.add_done_callback(callback)
    gate.set()
    assert service.block_till_done(LIMIT)
    assert seen == [4, 5]


def test_result_returns_before_the_callbacks_are_over(
    busy: tuple[Service, threading.Event],
) -> None:
    service, gate = busy
    resumed = threading.Event()
    heard: list[bool] = []
    future = service.submit(int)
    future.add_done_callback(lambda _: heard.append(resumed.wait(LIMIT)))
    gate.set()
    future.result(LIMIT)
    concurrent.futures.wait([future], LIMIT)
    resumed.set()
    assert service.block_till_done(LIMIT)
    assert heard == [True]


def test_a_callback_that_raises_is_logged_and_the_others_are_called(
    busy: tuple[Service, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    service, gate = busy
    calls: list[AnyFuture] = []
    boom = Boom()
    future = service.submit(int, "1")
    future.add_done_callback(lambda _: fail(boom))
    future.add_done_callback(calls.append)
    gate.set()
    assert service.block_till_done(LIMIT)
    assert calls == [future]
    assert future.result() == 1
    assert logged_exceptions(caplog) == [boom]
    future.add_done_callback(lambda _: fail(boom))
    assert logged_exceptions(caplog) == [boom, boom]
    cancelled = boundedexec.Future[int]()
    cancelled.add_done_callback(lambda _: fail(boom))
    assert cancelled.cancel()
    assert logged_exceptions(caplog) == [boom, boom, boom]


@pytest.mark.parametrize("exception", [SystemExit(), KeyboardInterrupt()])
def test_a_callback_that_raises_an_exit_loses_no_slot_and_is_logged(
    busy: tuple[Service, threading.Event],
    caplog: pytest.LogCaptureFixture,
    exception: BaseException,
) -> None:
    service, gate = busy
    future = service.submit(int, "1")
    future.add_done_callback(lambda _: fail(exception))
    gate.set()
    assert service.submit(int, "2").result(LIMIT) == 2
    assert future.result(LIMIT) == 1
    assert service.block_till_done(LIMIT)
    assert logged_exceptions(caplog) == [exception]


def test_a_callback_added_while_the_body_ends_runs_once(
    new_service: NewService, often: None
) -> None:
    service = new_service(2)
    calls: list[AnyFuture] = []
    futures: list[AnyFuture] = []
    for n in range(3000):
        future = service.submit(int)
        futures.append(future)
        if n % 3:
            concurrent.futures.wait([future], 0)
        future.add_done_callback(calls.append)
    assert service.block_till_done(LIMIT)
    assert Counter(calls) == Counter(futures)


# Done-callbacks are part of the body


def test_a_done_callback_lends_the_slot(new_service: NewService) -> None:
    service, order = new_service(1), list[str]()

    def callback(_: object) -> None:
        decoy = service.submit(int)
        service.submit(order.append, "awaited").result()
        order.append("callback")
        assert decoy.cancel()

    with holding(service):
        service.submit(order.append, "body").add_done_callback(callback)
    assert service.block_till_done(LIMIT)
    assert order == ["body", "awaited", "callback"]


def test_a_done_callback_yields_the_slot(new_service: NewService) -> None:
    service, order, event = new_service(1), list[str](), threading.Event()

    def callback(_: object) -> None:
        service.yield_slot(event.wait)
        order.append("callback")

    with holding(service):
        service.submit(order.append, "body").add_done_callback(callback)
        service.submit(lambda: order.append("next") or event.set())  # type: ignore[func-returns-value]
    assert service.block_till_done(LIMIT)
    assert order == ["body", "next", "callback"]


def test_a_done_callback_that_yields_is_lent_the_slot_of_one_that_waits(
    new_service: NewService,
) -> None:
    """Otherwise both would wait for ever."""
    service, went = new_service(1), threading.Event()
    chained = boundedexec.Future[int]()

    def callback(done: Future[int]) -> None:
        service.yield_slot(went.wait)
        chained.set_result(done.result())

    with holding(service):
        first = service.submit(int, "7")
        first.add_done_callback(callback)
        second = service.submit(lambda: went.set() or first.result())  # type: ignore[func-returns-value]
    assert second.result(LIMIT) == 7
    assert chained.result(LIMIT) == 7


# Callbacks and log handlers that raise


def raising(exception: BaseException) -> Callable[..., NoReturn]:
    def raise_it(*_: object) -> NoReturn:
        raise exception

    return raise_it


@contextmanager
def broken_log(exception: BaseException) -> Generator[None]:
    handler = logging.Handler()
    handler.emit = raising(exception)  # type: ignore[method-assign]
    logger = logging.getLogger("boundedexec")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("log", [OSError(), SystemExit(), Oops()])
@pytest.mark.parametrize("exception", [ValueError(), SystemExit(), KeyboardInterrupt(), Oops()])
def test_callbacks_and_logs_that_raise_lose_nothing(
    exception: BaseException, log: BaseException
) -> None:
    called: list[Future[Any]] = []
    with sound(2) as (service, ledger), broken_log(log):
        # A body's callbacks, and what follows one that raises.
        with holding(service, 2):
            future = ledger.submit(1)
            future.add_done_callback(raising(exception))
            future.add_done_callback(called.append)
            # Where nobody asks it is said.
            service.submit(raising(exception))
            lost = ledger.submit(2)
            lost.add_done_callback(raising(exception))
            lost.add_done_callback(called.append)
            try:
                assert lost.cancel()
            except BaseException as raised:
                # Only what is no Exception comes out of `cancel`, as in the stdlib.
                assert raised is exception and not isinstance(exception, Exception)
            assert lost.cancelled()
        assert future.result(LIMIT) == 1
        assert service.block_till_done(LIMIT)
    assert future in called


@pytest.mark.parametrize("exception", [ValueError(), SystemExit(), Oops()])
def test_an_initializer_and_a_log_that_raise_leave_nothing_outstanding(
    exception: BaseException,
) -> None:
    with broken_log(Oops()):
        service = Service(2, initializer=raising(exception), daemon=True)
        futures: list[Future[int]] = []
        try:
            futures += [service.submit(int) for _ in range(5)]
        except BrokenThreadPool:
            pass
        for future in futures:
            assert isinstance(future.exception(LIMIT), BrokenThreadPool)
        assert service.block_till_done(LIMIT)
        check_threads_end(service)
