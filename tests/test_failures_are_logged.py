"""An exception that nobody asked for is logged once, when its future is dropped."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import pytest
from helpers import (
    LIMIT,
    Boom,
    NewService,
    Oops,
    fail,
    holding,
    logged,
    logged_exceptions,
    wait_until,
)

import boundedexec
from boundedexec import Service


def test_an_exception_that_nobody_asked_for_is_logged_when_its_future_is_dropped(
    log: SimpleQueue[logging.LogRecord],
) -> None:
    with Service(1) as service:
        exception = ValueError("of nobody's interest")
        future = service.submit(fail, exception)
        concurrent.futures.wait([future], LIMIT)
        assert log.empty()
        del future
        gc.collect()
        record = logged(log)
        assert record.levelno == logging.ERROR
        assert record.exc_info is not None and record.exc_info[1] is exception
        assert "of nobody's interest" in logging.Formatter().format(record)
    assert log.empty()


def test_what_fails_after_its_future_was_dropped_is_logged_too(
    log: SimpleQueue[logging.LogRecord],
) -> None:
    with Service(1) as service:
        service.submit(fail, Oops())
        record = logged(log)
        assert record.exc_info is not None and record.exc_info[0] is Oops


def ask_for_result(future: Future[Any]) -> None:
    with pytest.raises(Oops):
        future.result()


def ask_for_exception(future: Future[Any]) -> None:
    assert isinstance(future.exception(), Oops)


@pytest.mark.parametrize("ask", [ask_for_exception, ask_for_result])
def test_an_exception_that_was_asked_for_is_not_logged(
    ask: Callable[[Future[Any]], object], log: SimpleQueue[logging.LogRecord]
) -> None:
    with Service(1) as service:
        future = service.submit(fail, Oops())
        ask(future)
        with holding(service):
            future = service.submit(fail, Oops())
            future.add_done_callback(ask)
            del future
    gc.collect()
    assert log.empty()


def test_success_and_cancelling_are_not_logged(log: SimpleQueue[logging.LogRecord]) -> None:
    with Service(1) as service:
        with holding(service):
            service.submit(int)
            assert service.submit(fail, ValueError()).cancel()
    gc.collect()
    assert log.empty()


def test_an_exception_that_asyncio_was_given_is_not_logged_again(
    log: SimpleQueue[logging.LogRecord],
) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.get_running_loop().run_in_executor(service, divmod, 1, 0)

    with Service(1) as service:
        asyncio.run(main())
    gc.collect()
    assert log.empty()


def test_a_failing_log_handler_does_no_harm() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise Oops

    handler = Broken()
    logging.getLogger("boundedexec").addHandler(handler)
    try:
        with Service(1) as service:
            service.submit(fail, ValueError())
            assert service.submit(int).result(LIMIT) == 0
    finally:
        logging.getLogger("boundedexec").removeHandler(handler)


def test_a_failure_dropped_while_others_are_logged_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    booms = [Boom(number) for number in range(3)]
    futures: list[boundedexec.Future[int]] = []
    for boom in booms:
        futures.append(boundedexec.Future())
        try:
            raise boom
        except Boom:
            futures[-1].set_exception(boom)

    class Dropping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if futures:
                futures.pop()

    handler = Dropping()
    logging.getLogger("boundedexec").addHandler(handler)
    try:
        futures.pop()
    finally:
        logging.getLogger("boundedexec").removeHandler(handler)
    assert logged_exceptions(caplog) == booms[::-1]


def test_a_bare_future_reports_too(caplog: pytest.LogCaptureFixture) -> None:
    boom = Boom("bare")
    future = boundedexec.Future[int]()
    try:
        raise boom
    except Boom:
        future.set_exception(boom)
    del future
    assert logged_exceptions(caplog) == [boom]


def test_an_exception_that_a_body_asked_for_is_not_logged(
    new_service: NewService, caplog: pytest.LogCaptureFixture
) -> None:
    service = new_service(1)
    inner = service.submit(lambda: service.submit(fail, Boom()).exception())
    assert isinstance(inner.result(LIMIT), Boom)
    service.shutdown()
    del inner
    gc.collect()
    assert logged_exceptions(caplog) == []


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_the_failures_of_a_map_that_is_dropped_are_logged_unless_it_raised(
    new_service: NewService, caplog: pytest.LogCaptureFixture, taken: int
) -> None:
    service = new_service(2)

    def body(n: int) -> int:
        if n:
            raise Boom(n)
        return n

    results = service.map(body, range(10))
    if taken:
        assert next(results) == 0
    if taken == 2:
        with pytest.raises(Boom):
            next(results)
    assert service.block_till_done(LIMIT)
    del results
    service.shutdown()
    gc.collect()
    logged = sorted(error.args[0] for error in logged_exceptions(caplog))
    assert logged == ([] if taken == 2 else list(range(1, 10)))


def test_the_failures_of_a_map_that_is_dropped_while_its_bodies_run_are_logged(
    new_service: NewService, caplog: pytest.LogCaptureFixture
) -> None:
    service, entered, gate = new_service(2), threading.Barrier(3), threading.Event()

    def body(n: int) -> None:
        entered.wait(LIMIT)
        gate.wait()
        raise Boom(n)

    results = service.map(body, range(2))
    entered.wait(LIMIT)
    del results
    gate.set()
    service.shutdown()
    gc.collect()
    wait_until(lambda: len(logged_exceptions(caplog)) == 2)
    assert sorted(error.args[0] for error in logged_exceptions(caplog)) == [0, 1]
