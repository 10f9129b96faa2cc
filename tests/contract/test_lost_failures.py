"""A failure that nobody asked for is logged once, on `boundedexec`, in its body's context."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from contract_helpers import (
    LIMIT,
    MOMENT,
    Gate,
    full,
    logged,
    new_service,
    run_script,
    wait_until,
    wake,
)

import boundedexec
from boundedexec import Coalescer, Service

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="default")


def fail(*_: Any) -> None:
    raise ValueError("a failure")


def one_over(number: int) -> float:
    return 1 / number


def settle(service: Service, records: list[Any], count: int) -> int:
    """How many records there are once nothing runs, and those that should come have come."""
    assert service.block_till_done(LIMIT)
    gc.collect()
    try:
        wait_until(lambda: (gc.collect(), len(records) >= count)[1], 1)
    except AssertionError:
        pass
    if not count:
        threading.Event().wait(0.02)
        gc.collect()
    return len(records)


def test_a_failure_that_is_dropped_is_logged_with_its_traceback() -> None:
    with logged() as records:
        service = new_service(1)
        service.submit(fail)
        assert settle(service, records, 1) == 1
    record = records[0]
    assert record.levelno == logging.ERROR
    assert record.name == "boundedexec"
    assert record.exc_info
    assert record.exc_info[0] is ValueError
    assert record.exc_info[2] is not None
    assert "fail" in record.getMessage()


def test_a_failure_is_logged_when_its_future_is_dropped_and_not_before() -> None:
    with logged() as records:
        service = new_service(1)
        future: Any = service.submit(fail)
        assert settle(service, records, 0) == 0
        del future
        assert settle(service, records, 1) == 1


def asks_by_result(future: Any) -> None:
    with pytest.raises(ValueError, match="a failure"):
        future.result(LIMIT)


def ask(future: Future[Any]) -> None:
    future.exception()


def look(future: Future[Any]) -> None:
    future.done()


ASKING: dict[str, Callable[[Any], Any]] = {
    "result": lambda future: asks_by_result(future),
    "exception": lambda future: future.exception(LIMIT),
    "callback": lambda future: future.add_done_callback(ask),
    "wait and exception": lambda future: boundedexec.wait([future]).done.pop().exception(),
    "as_completed": lambda future: next(boundedexec.as_completed([future])).exception(),
}


@pytest.mark.parametrize("how", ASKING)
def test_a_failure_that_was_asked_for_is_not_logged(how: str) -> None:
    with logged() as records:
        service = new_service(1)
        ASKING[how](service.submit(fail))
        assert settle(service, records, 0) == 0


LOOKING: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda future: None,
    "done": lambda future: (future.done(), future.running(), future.cancelled(), repr(future)),
    "cancel": lambda future: boundedexec.wait([future], LIMIT) and future.cancel(),
    "wait": lambda future: boundedexec.wait([future], LIMIT),
    "wait first": lambda future: boundedexec.wait(
        [future], LIMIT, return_when=boundedexec.FIRST_COMPLETED
    ),
    "wait exception": lambda future: boundedexec.wait(
        [future], LIMIT, return_when=boundedexec.FIRST_EXCEPTION
    ),
    "wait exception twice": lambda future: [
        boundedexec.wait([future], LIMIT, return_when=boundedexec.FIRST_EXCEPTION) for _ in range(2)
    ],
    "as_completed": lambda future: list(boundedexec.as_completed([future], LIMIT)),
    "stdlib wait": lambda future: concurrent.futures.wait([future], LIMIT),
    "stdlib as_completed": lambda future: list(concurrent.futures.as_completed([future], LIMIT)),
    "callback": lambda future: future.add_done_callback(look),
}


@pytest.mark.parametrize("in_body", [False, True])
@pytest.mark.parametrize("how", LOOKING)
def test_looking_is_not_asking(how: str, in_body: bool) -> None:
    with logged() as records:
        service = new_service(1)
        if in_body:
            service.submit(lambda: LOOKING[how](service.submit(fail)) and None).result(LIMIT)
        else:
            LOOKING[how](service.submit(fail))
        assert settle(service, records, 1) == 1


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("in_body", [False, True])
@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_a_wait_for_the_first_exception_silences_nothing(
    before: bool, in_body: bool, timeout: float | None
) -> None:
    with logged() as records:
        service = new_service(2)

        def act() -> None:
            future: Future[Any] = service.submit(fail)
            other: Future[Any] = service.submit(pow, 2, 3)
            if before:
                boundedexec.wait([future])
            boundedexec.wait([future, other], timeout, return_when=boundedexec.FIRST_EXCEPTION)

        if in_body:
            service.submit(act).result(LIMIT)
        else:
            act()
        assert settle(service, records, 1) == 1


def test_what_succeeds_or_is_cancelled_is_not_logged() -> None:
    with logged() as records:
        service = new_service(1)
        with full(service):
            service.submit(fail).cancel()
            service.submit(pow, 2, 3)
        assert settle(service, records, 0) == 0


def test_a_failure_that_a_lender_asked_for_is_not_logged_and_its_own_is() -> None:
    with logged() as records:
        service = new_service(1)

        def body() -> None:
            service.submit(fail).exception()
            service.submit(fail).result()

        service.submit(body)
        assert settle(service, records, 1) == 1
        assert "body" in records[0].getMessage()


# map


NUMBERS = [1, 0, 0, 0]


def test_a_map_that_is_dropped_whole_logs_its_failures() -> None:
    with logged() as records:
        service = new_service(2)
        iterator: Any = service.map(one_over, NUMBERS)
        assert service.block_till_done(LIMIT)
        assert records == []
        del iterator
        assert settle(service, records, 3) == 3


def test_a_map_that_is_dropped_before_its_end_logs_its_failures() -> None:
    with logged() as records:
        service = new_service(2)
        iterator: Any = service.map(one_over, NUMBERS)
        assert next(iterator) == 1
        assert service.block_till_done(LIMIT)
        del iterator
        assert settle(service, records, 3) == 3


def test_a_map_that_is_closed_before_its_end_logs_its_failures() -> None:
    with logged() as records:
        service = new_service(2)
        iterator: Any = service.map(one_over, NUMBERS)
        assert next(iterator) == 1
        assert service.block_till_done(LIMIT)
        iterator.close()
        del iterator
        assert settle(service, records, 3) == 3


def test_a_map_that_raised_one_failure_logs_no_other() -> None:
    with logged() as records:
        service = new_service(2)
        iterator: Any = service.map(one_over, NUMBERS)
        assert service.block_till_done(LIMIT)
        with pytest.raises(ZeroDivisionError):
            list(iterator)
        del iterator
        assert settle(service, records, 0) == 0


def test_a_map_that_came_to_its_end_logs_nothing() -> None:
    with logged() as records:
        service = new_service(2)
        assert list(service.map(abs, range(5))) == list(range(5))
        assert settle(service, records, 0) == 0


def test_a_map_that_is_dropped_while_its_call_runs_logs_its_failure() -> None:
    gate = Gate()

    def body(_: int) -> None:
        gate()
        fail()

    with logged() as records:
        service = new_service(1)
        iterator: Any = service.map(body, range(3))
        gate.wait_entered()
        del iterator
        gc.collect()
        gate.open()
        assert settle(service, records, 1) >= 1
        assert all(record.exc_info and record.exc_info[0] is ValueError for record in records)


@pytest.mark.parametrize("broken_off", [False, True])
def test_a_map_with_a_buffersize_that_is_dropped_logs_its_failures(broken_off: bool) -> None:
    with logged() as records:
        service = new_service(1)
        iterator: Any = service.map(one_over, NUMBERS, buffersize=2)
        if broken_off:
            assert next(iterator) == 1
        assert service.block_till_done(LIMIT)
        del iterator
        # Submitted are the first two, and a third for the one that was taken.
        assert settle(service, records, 1 + broken_off) == 1 + broken_off


def test_a_map_in_a_body_that_is_dropped_logs_its_failures() -> None:
    with logged() as records:
        service = new_service(1)

        def body() -> float:
            iterator = service.map(one_over, NUMBERS)
            first = next(iterator)
            boundedexec.wait([service.submit(int)])
            return first

        assert service.submit(body).result(LIMIT) == 1
        # What had not started when it was dropped was cancelled.
        assert settle(service, records, 0) <= 3


# Coalescer


def test_a_coalescers_failure_is_logged_once() -> None:
    with logged() as records:
        service = new_service(1)
        coalescer: Coalescer[str] = Coalescer(service)
        coalescer.submit("key", fail)
        assert settle(service, records, 1) == 1
        assert "fail" in records[0].getMessage()


def test_a_coalescers_failure_that_was_asked_for_is_not_logged() -> None:
    with logged() as records:
        service, gate = new_service(1), Gate()
        coalescer: Coalescer[str] = Coalescer(service)
        run = coalescer.submit("key", gate)
        gate.wait_entered()
        owed = coalescer.submit("key", fail)
        gate.open()
        assert isinstance(owed.exception(LIMIT), ValueError)
        assert run.exception(LIMIT) is None
        del run, owed
        nested = service.submit(lambda: type(coalescer.submit("other", fail).exception()))
        assert nested.result(LIMIT) is ValueError
        assert settle(service, records, 0) == 0


def test_a_failed_rerun_is_logged_once() -> None:
    with logged() as records:
        service, gate = new_service(1), Gate()
        coalescer: Coalescer[str] = Coalescer(service)
        coalescer.submit("key", gate)
        gate.wait_entered()
        for _ in range(3):
            coalescer.submit("key", fail)
        gate.open()
        assert settle(service, records, 1) == 1


def test_a_failed_run_on_the_stdlibs_pool_is_logged_once_at_most() -> None:
    with logged() as records, concurrent.futures.ThreadPoolExecutor(1) as pool:
        coalescer: Coalescer[str] = Coalescer(pool)
        coalescer.submit("key", fail).exception(LIMIT)
        coalescer.submit("key", pow, 2, 3).result(LIMIT)
        gc.collect()
        assert records == []


# Contexts


@contextmanager
def hearing() -> Generator[list[str]]:
    """The variable's values where a handler of the logger is called."""
    heard: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(VARIABLE.get())

    handler = Handler()
    logging.getLogger("boundedexec").addHandler(handler)
    try:
        yield heard
    finally:
        logging.getLogger("boundedexec").removeHandler(handler)


def heard_in(service: Service, submit: Callable[[], Any]) -> list[str]:
    """Those values where what was submitted is dropped here, where it has another value."""
    with hearing() as heard, logged() as records:
        futures = [copy_context().run(submit)]
        concurrent.futures.wait(futures, LIMIT)
        futures.clear()
        settle(service, records, 1)
    return heard


def test_a_failure_is_logged_in_the_context_of_its_body() -> None:
    service = new_service(1)

    def submit() -> Any:
        VARIABLE.set("submitter")
        return service.submit(fail)

    assert heard_in(service, submit) == ["submitter"]

    def fail_in_its_context() -> None:
        VARIABLE.set("body")
        fail()

    assert heard_in(service, lambda: service.submit(fail_in_its_context)) == ["body"]


def test_a_failure_that_a_thread_of_the_service_drops_is_logged_in_its_bodys_context() -> None:
    service = new_service(1)

    def submit() -> None:
        VARIABLE.set("submitter")
        service.submit(fail)

    with hearing() as heard:
        copy_context().run(submit)
        assert service.block_till_done(LIMIT)
        wake(service)
        wait_until(lambda: len(heard) == 1, 2)
    assert heard == ["submitter"]


def test_a_coalesced_failure_is_logged_in_the_context_of_its_body() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)

    def submit() -> Any:
        VARIABLE.set("submitter")
        return coalescer.submit("key", fail)

    assert heard_in(service, submit) == ["submitter"]


def test_a_maps_failure_is_logged_in_the_context_of_its_body() -> None:
    service = new_service(1)

    def submit() -> Any:
        VARIABLE.set("submitter")
        return service.map(fail, [1])

    with hearing() as heard:
        iterator = copy_context().run(submit)
        assert service.block_till_done(LIMIT)
        del iterator
        gc.collect()
        wait_until(lambda: len(heard) == 1, 2)
    assert heard == ["submitter"]


def test_without_propagation_a_failure_is_logged_all_the_same() -> None:
    for service in (
        new_service(1, propagate_context=False),
        boundedexec.ThreadPoolExecutor(1, daemon=True),
    ):
        with logged() as records:
            service.submit(fail)
            assert settle(service, records, 1) == 1


# Odd places


def unheard(_: object) -> None: ...


def test_a_handler_that_submits_or_fails_disturbs_nothing() -> None:
    service = new_service(1)
    seen: list[Future[int]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(service.submit(pow, 2, 3))
            raise KeyError("handler")

    handler = Handler()
    logging.getLogger("boundedexec").addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.unraisablehook", unheard)
            for _ in range(5):
                service.submit(fail)
            assert service.block_till_done(LIMIT)
            wake(service)
            wait_until(lambda: len(seen) >= 5, 2)
    finally:
        logging.getLogger("boundedexec").removeHandler(handler)
    assert [future.result(LIMIT) for future in seen] == [8] * len(seen)


def test_an_initializer_that_fails_is_logged_with_its_traceback() -> None:
    with logged() as records:
        service = new_service(1, initializer=fail)
        future = service.submit(pow, 2, 3)
        assert isinstance(future.exception(LIMIT), boundedexec.BrokenThreadPool)
        wait_until(lambda: len(records) >= 1, 2)
        assert records[0].exc_info
        assert records[0].exc_info[0] is ValueError
        with pytest.raises(boundedexec.BrokenThreadPool):
            service.submit(pow, 2, 3)


def test_a_failure_at_the_end_of_the_program_is_logged() -> None:
    assert run_script("""
        import logging, sys
        from boundedexec import Service
        logging.basicConfig(stream=sys.stdout, format="%(name)s %(exc_text)s")

        class Handler(logging.Handler):
            def emit(self, record):
                print(record.name, record.exc_info[0].__name__, flush=True)

        logging.getLogger("boundedexec").propagate = False
        logging.getLogger("boundedexec").addHandler(Handler())
        Service(1).submit(int, "x")
        """) == ["boundedexec ValueError"]


def test_nothing_is_logged_while_a_future_is_only_waited_for() -> None:
    gate = Gate()
    with logged() as records:
        service = new_service(1)

        def body() -> None:
            gate()
            fail()

        future: Any = service.submit(body)
        boundedexec.wait([future], MOMENT / 10)
        gate.open()
        boundedexec.wait([future], LIMIT)
        assert settle(service, records, 0) == 0
        assert isinstance(future.exception(), ValueError)
        del future
        assert settle(service, records, 0) == 0
