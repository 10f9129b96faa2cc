"""Exceptions whose own methods raise go into their futures unchanged."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, check_slots, full, logged, new_service
from contract_hostile import CALLED, hostile

import boundedexec
from boundedexec import Coalescer


@pytest.fixture(autouse=True)
def _nothing_called() -> None:
    CALLED.clear()


@dataclasses.dataclass(frozen=True)
class NotFound(Exception):
    name: str


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


class EqualToAll(Exception):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class Slotted(Exception):
    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


def refuse_traceback(error: Any, value: Any) -> None:
    CALLED.append("__traceback__")
    raise AttributeError("__traceback__")


class OnlyWithTraceback(Exception):
    """Its `__traceback__` is to be set by `with_traceback`, and by nothing else."""

    __traceback__: Any = property(BaseException.__dict__["__traceback__"].__get__, refuse_traceback)


ERRORS: list[Callable[[], BaseException]] = [
    lambda: NotFound("x"),
    Falsy,
    EqualToAll,
    Slotted,
    OnlyWithTraceback,
    hostile(Exception),
    hostile(BaseException),
    hostile(KeyboardInterrupt),
    hostile(SystemExit),
    hostile(concurrent.futures.CancelledError),
    hostile(concurrent.futures.TimeoutError),
]
every_error = pytest.mark.parametrize(
    "make_error",
    ERRORS,
    ids=[
        "frozen",
        "falsy",
        "equal",
        "slotted",
        "traceback",
        "Exception",
        "BaseException",
        "KeyboardInterrupt",
        "SystemExit",
        "CancelledError",
        "TimeoutError",
    ],
)


def throw(error: BaseException) -> None:
    raise error


def check_untouched(error: BaseException, seen: BaseException | None) -> None:
    same = seen is error
    assert same
    assert CALLED == []
    state = object.__getattribute__(error, "__dict__")
    assert state in ({}, {"name": "x"})
    bare = error.__cause__ is None and error.__context__ is None
    assert bare


def by_submit(service: Any, error: BaseException) -> Any:
    return service.submit(throw, error)


def by_coalescer(service: Any, error: BaseException) -> Any:
    return Coalescer[str](service).submit("key", throw, error)


def by_rerun(service: Any, error: BaseException) -> Any:
    coalescer, gate = Coalescer[str](service), Gate()
    coalescer.submit("key", gate)
    gate.wait_entered()
    future: Any = coalescer.submit("key", throw, error)
    gate.open()
    return future


def by_nested(service: Any, error: BaseException) -> Any:
    return service.submit(lambda: service.submit(throw, error).result())


def by_timed_nested(service: Any, error: BaseException) -> Any:
    return service.submit(lambda: service.submit(throw, error).result(LIMIT))


def by_wait(service: Any, error: BaseException) -> Any:
    def body() -> Any:
        future = service.submit(throw, error)
        boundedexec.wait([future], return_when=boundedexec.FIRST_EXCEPTION)
        list(boundedexec.as_completed([future]))
        return future.result()

    return service.submit(body)


def by_yield_slot(service: Any, error: BaseException) -> Any:
    return service.submit(service.yield_slot, throw, error)


def by_slot_yielded(service: Any, error: BaseException) -> Any:
    def body() -> None:
        with service.slot_yielded():
            raise error

    return service.submit(body)


def by_map(service: Any, error: BaseException) -> Any:
    return service.submit(lambda: list(service.map(throw, [error])))


def by_map_with_buffersize(service: Any, error: BaseException) -> Any:
    return service.submit(lambda: list(service.map(throw, [error], buffersize=1)))


WAYS = [
    by_submit,
    by_coalescer,
    by_rerun,
    by_nested,
    by_timed_nested,
    by_wait,
    by_yield_slot,
    by_slot_yielded,
    by_map,
    by_map_with_buffersize,
]


@every_error
@pytest.mark.parametrize("way", WAYS)
def test_what_a_body_raises_goes_into_its_future_unchanged(
    way: Callable[[Any, BaseException], Any], make_error: Callable[[], BaseException]
) -> None:
    service, error = new_service(1), make_error()
    future = way(service, error)
    concurrent.futures.wait([future], LIMIT)
    check_untouched(error, future.exception(0))
    check_slots(service, 1)


@every_error
def test_result_raises_the_same_object(make_error: Callable[[], BaseException]) -> None:
    service, error = new_service(1), make_error()
    same = False
    try:
        service.submit(throw, error).result(LIMIT)
    except BaseException as seen:
        same = seen is error
    assert same
    assert CALLED == []


@every_error
def test_a_map_outside_a_body_raises_the_same_object(
    make_error: Callable[[], BaseException],
) -> None:
    service, error = new_service(2), make_error()
    seen: Any = None
    try:
        list(service.map(throw, [error]))
    except BaseException as raised:
        seen = raised
    same = seen is error
    assert same
    assert CALLED == []


@every_error
def test_what_a_callback_raises_stops_no_other_callback(
    make_error: Callable[[], BaseException],
) -> None:
    if not isinstance(make_error(), Exception):
        return  # The stdlib catches Exception there.
    service, error, gate, after = new_service(1), make_error(), Gate(), threading.Event()
    logging.getLogger("concurrent.futures").disabled = True
    try:
        future = service.submit(gate)
        future.add_done_callback(lambda _: throw(error))
        future.add_done_callback(lambda _: after.set())
        gate.open()
        assert after.wait(LIMIT)
    finally:
        logging.getLogger("concurrent.futures").disabled = False
    check_slots(service, 1)


@every_error
def test_a_failure_that_nobody_asked_for_is_logged_whatever_it_is(
    make_error: Callable[[], BaseException],
) -> None:
    error = make_error()
    with logged() as records:
        service = new_service(1)
        service.submit(throw, error)
        check_slots(service, 1)
    assert len(records) == 1


def test_first_exception_does_not_look_at_the_exception_itself() -> None:
    error = hostile(Exception)()
    service = new_service(1)
    future: Future[Any] = service.submit(throw, error)
    concurrent.futures.wait([future], LIMIT)
    with full(service):
        waiting: Future[Any] = service.submit(pow, 2, 3)
        done, _ = boundedexec.wait([future, waiting], 5, boundedexec.FIRST_EXCEPTION)
        assert len(done) == 1
        assert not waiting.done()
    assert CALLED == []
