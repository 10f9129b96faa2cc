"""Failures are logged in the child of a fork as ever."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import pytest
from contract_helpers import LIMIT, MOMENT, fork_and_say, new_service, wake

from boundedexec import Service

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


class ChildFailed(Exception):
    """Told from failures that other tests left to be dropped."""


def fail_in_the_child() -> None:
    raise ChildFailed


def failures_logged(service: Service, count: int) -> int:
    records: list[Any] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[0] is ChildFailed:
                records.append(record)

    logger = logging.getLogger("boundedexec")
    logger.handlers = [Handler()]
    logger.propagate = False
    for _ in range(count):
        service.submit(fail_in_the_child)
        service.block_till_done(5)
    service.shutdown()
    return len(records)


def test_failures_are_logged_in_the_child() -> None:
    service = new_service(2)
    service.submit(pow, 2, 3).result(LIMIT)
    assert fork_and_say(lambda: failures_logged(service, 5)) == 5
    assert fork_and_say(lambda: failures_logged(new_service(2), 5)) == 5


def test_failures_are_logged_in_the_child_of_a_fork_beside_a_thread_that_logs_one() -> None:
    entered, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if os.getpid() == parent:
                entered.set()
                go_on.wait(LIMIT)

    logger = logging.getLogger("boundedexec")
    handler = Slow()
    logger.addHandler(handler)
    service = new_service(4)
    try:
        service.submit(int, "x")
        while not entered.wait(MOMENT):
            service.submit(int)  # As in `wake`.
        assert fork_and_say(lambda: failures_logged(new_service(4), 20)) == 20
        assert fork_and_say(lambda: failures_logged(service, 20)) == 20
    finally:
        go_on.set()
        logger.removeHandler(handler)


def test_a_body_that_forks_while_its_failure_is_logged_logs_in_the_child() -> None:
    service = new_service(1)

    said: list[Any] = []

    class Forks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logging.getLogger("boundedexec").removeHandler(self)
            said.append(fork_and_say(lambda: failures_logged(new_service(1), 3)))

    logging.getLogger("boundedexec").addHandler(Forks())
    service.submit(int, "x")
    assert service.block_till_done(LIMIT * 3)
    wake(service)
    assert said == [3]
