"""What a body raises goes into its future, and nothing of what is over is kept."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import weakref
from collections.abc import Callable

import pytest
from helpers import (
    LIMIT,
    AnyFuture,
    Boom,
    NewService,
    Oops,
    Thing,
    all_gone,
    fail,
    holding,
    wait_until,
)

from boundedexec import Service

# What a body raises, and what is kept


@pytest.mark.parametrize(
    "exception", [ValueError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Oops()]
)
def test_whatever_a_body_raises_goes_into_its_future(exception: BaseException) -> None:
    with Service(1) as service:
        before = service.submit(threading.current_thread).result(LIMIT)
        future = service.submit(fail, exception)
        assert future.exception(LIMIT) is exception
        with pytest.raises(type(exception)):
            future.result(LIMIT)
        # Neither the slot nor the thread is lost.
        assert service.submit(threading.current_thread).result(LIMIT) is before
    assert not before.is_alive()


def test_the_service_keeps_nothing_of_a_body_that_is_over() -> None:
    with Service(2) as service:
        fn, argument, keyword = Thing(), Thing(), Thing()
        future = service.submit(fn, argument, key=keyword)
        result = future.result(LIMIT)
        kept = [weakref.ref(each) for each in (fn, argument, keyword, result, future)]
        del fn, argument, keyword, result, future
        wait_until(lambda: all_gone(kept))


def test_the_service_keeps_nothing_of_a_body_that_failed() -> None:
    with Service(2) as service:
        argument, exception = Thing(), Oops()
        future = service.submit(fail, exception, argument)
        assert future.exception(LIMIT) is exception
        kept = [weakref.ref(each) for each in (argument, exception, future)]
        # The traceback has the frame of the body, and with it `argument`.
        exception.__traceback__ = None
        del argument, exception, future
        wait_until(lambda: all_gone(kept))


def test_a_thread_that_goes_on_keeps_nothing_of_the_body_before() -> None:
    with Service(1) as service:
        release = threading.Event()
        with holding(service):
            fn, argument = Thing(), Thing()
            future = service.submit(fn, argument)
            running = service.submit(release.wait)
            kept = [weakref.ref(each) for each in (fn, argument, future)]
            del fn, argument, future
        wait_until(lambda: all_gone(kept))
        assert not running.done()
        release.set()


def test_a_future_that_is_kept_keeps_neither_callable_nor_arguments() -> None:
    with Service(1) as service:
        fn, argument = Thing(), Thing()
        kept = [weakref.ref(fn), weakref.ref(argument)]
        future = service.submit(fn, argument)
        future.result(LIMIT)
        del fn, argument
        wait_until(lambda: all_gone(kept))


def test_nothing_is_kept_of_a_submission_that_was_lent_a_slot() -> None:
    def outer() -> weakref.ref[Thing]:
        argument = Thing()
        service.submit(Thing(), argument).result()
        return weakref.ref(argument)

    with Service(1) as service:
        kept = service.submit(outer).result(LIMIT)
        wait_until(lambda: kept() is None)


def raised_by(future: AnyFuture) -> Boom:
    try:
        future.result(LIMIT)
        raise AssertionError("it did not raise")
    except Boom as exception:
        return exception
    finally:
        del future  # Otherwise the traceback leads back to it.


# Garbage


@pytest.mark.parametrize("ask", ["result", "exception", "result with a timeout", "wait"])
def test_a_failed_body_leaves_no_cycle(
    new_service: NewService, no_collector: None, ask: str
) -> None:
    service = new_service(1)
    entered, gate = threading.Event(), threading.Event()

    def failing() -> None:
        entered.set()
        gate.wait()
        raise Boom

    future = service.submit(failing)
    if ask != "result with a timeout":
        gate.set()
    else:
        threading.Timer(0.01, gate.set).start()
    if ask == "wait":
        concurrent.futures.wait([future], LIMIT)
    gone: Callable[[], object]
    if ask.startswith("result"):
        gone = weakref.ref(raised_by(future))
    else:
        exception = future.exception(LIMIT)
        assert exception is not None
        gone = weakref.ref(exception)
        del exception
    future_gone = weakref.ref(future)
    service.shutdown()
    assert gone() is not None
    del future
    wait_until(lambda: future_gone() is None and gone() is None)


def test_a_failed_body_that_was_waited_for_in_a_body_leaves_no_cycle(
    new_service: NewService, no_collector: None
) -> None:
    service = new_service(1)
    gone: list[weakref.ref[BaseException]] = []

    def outer() -> None:
        inner: AnyFuture = service.submit(fail, Boom())
        try:
            inner.result()
        except Boom as exception:
            gone.append(weakref.ref(exception))
        del inner  # Otherwise the traceback that goes through here leads back to it.

    service.submit(outer).result(LIMIT)
    service.shutdown()
    wait_until(lambda: gone[0]() is None)


def test_arguments_and_results_of_what_is_over_are_not_kept(
    new_service: NewService, no_collector: None
) -> None:
    class WithMethod(Thing):
        def method(self, _: Thing) -> Thing:
            return Thing()

    service, fn_of, argument = new_service(1), WithMethod(), Thing()
    future = service.submit(fn_of.method, argument)
    assert service.block_till_done(LIMIT)
    alive: list[weakref.ref[Thing]] = [weakref.ref(fn_of), weakref.ref(argument)]
    result = weakref.ref(future.result(LIMIT))
    del fn_of, argument
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        assert [ref() for ref in alive] == [None, None], "kept until the service ends"
    assert result() is not None
    del future
    service.shutdown()
    wait_until(lambda: [ref() for ref in [*alive, result]] == [None] * 3)
