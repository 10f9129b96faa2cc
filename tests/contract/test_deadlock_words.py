"""What a `DeadlockError` says: each body, its arguments, its thread, the line where it waits."""

from __future__ import annotations

import concurrent.futures
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, check_slots, full, new_service

import boundedexec
from boundedexec import Coalescer, DeadlockError, Service

HERE = Path(__file__).name

#: Where the bodies below wait, by name.
LINES: dict[str, int] = {}


def here(name: str) -> None:
    """The line after the one that calls this is where `name` waits."""
    LINES[name] = sys._getframe(1).f_lineno + 1  # pyright: ignore[reportPrivateUsage]


def alone(futures: list[Any], text: str) -> Any:
    here("alone")
    return futures[0].result()


def first_of_two(futures: list[Any], both: threading.Barrier) -> Any:
    both.wait(LIMIT)
    here("first_of_two")
    return futures[1].result()


def second_of_two(futures: list[Any], both: threading.Barrier) -> Any:
    both.wait(LIMIT)
    here("second_of_two")
    return futures[0].exception() or futures[0].result()


def check_words(error: BaseException | None, *names: str) -> str:
    assert isinstance(error, DeadlockError)
    words = str(error)
    for name in names:
        assert name in words
        assert HERE in words
        assert re.search(rf"\b{LINES[name]}\b", words), f"line {LINES[name]} of {name}: {words}"
    return words


def run_alone(service: Service, body: Callable[..., Any], *args: Any) -> BaseException | None:
    futures: list[Any] = []
    with full(service):
        futures.append(service.submit(body, futures, *args))
    error: BaseException | None = futures[0].exception(LIMIT)
    check_slots(service, 1)
    return error


def test_a_body_that_waits_for_itself_is_named_with_its_thread_and_line() -> None:
    service = new_service(1, thread_name_prefix="named-thread")
    words = check_words(run_alone(service, alone, "an argument"), "alone")
    assert "an argument" in words
    assert "named-thread_" in words


def test_arguments_are_shortened() -> None:
    service = new_service(1)
    words = check_words(run_alone(service, alone, "x" * 1_000_000), "alone")
    assert "xxx" in words
    assert len(words) < 4000


def test_many_arguments_are_shortened() -> None:
    service = new_service(1)
    futures: list[Any] = []

    def many(*args: Any, **kwargs: Any) -> Any:
        return futures[0].result()

    with full(service):
        futures.append(
            service.submit(many, *range(10_000), **{f"name{n}": "y" * 1000 for n in range(100)})
        )
    error = futures[0].exception(LIMIT)
    assert isinstance(error, DeadlockError)
    assert "many" in str(error)
    assert len(str(error)) < 6000


class Unprintable:
    def __repr__(self) -> str:
        raise KeyError("repr")


class Multiline:
    def __repr__(self) -> str:
        return "a line\n" * 1000


@pytest.mark.parametrize("argument", [Unprintable(), Multiline()])
def test_an_argument_whose_repr_raises_or_is_long_is_no_obstacle(argument: Any) -> None:
    service = new_service(1)
    words = check_words(run_alone(service, alone, argument), "alone")
    assert len(words) < 4000


def test_an_argument_whose_repr_submits_or_waits_is_no_obstacle() -> None:
    service = new_service(1)

    class Submits:
        def __repr__(self) -> str:
            return f"made by the service: {service.submit(pow, 2, 3).result(0.05)}"

    check_words(run_alone(service, alone, Submits()), "alone")


def test_a_callable_without_a_name_is_no_obstacle() -> None:
    service = new_service(1)
    futures: list[Any] = []

    class Callable_:
        def __call__(self) -> Any:
            return futures[0].result()

        def __repr__(self) -> str:
            raise KeyError("repr")

    with full(service):
        futures.append(service.submit(Callable_()))
    assert isinstance(futures[0].exception(LIMIT), DeadlockError)
    check_slots(service, 1)


def test_each_body_of_a_circle_is_named_with_its_thread_and_line() -> None:
    services = [new_service(1, thread_name_prefix=f"prefix{n}") for n in range(2)]
    both = threading.Barrier(2)
    futures: list[Any] = []
    with full(services[0]), full(services[1]):
        futures.append(services[0].submit(first_of_two, futures, both))
        futures.append(services[1].submit(second_of_two, futures, both))
    errors = [future.exception(LIMIT) for future in futures]
    words = check_words(errors[0] or errors[1], "first_of_two", "second_of_two")
    assert "prefix0_" in words
    assert "prefix1_" in words
    for service in services:
        check_slots(service, 1)


def by_wait(futures: list[Any]) -> Any:
    here("by_wait")
    return boundedexec.wait([futures[0]])


def by_as_completed(futures: list[Any]) -> Any:
    here("by_as_completed")
    return next(boundedexec.as_completed([futures[0]]))


def by_stdlib_wait(futures: list[Any]) -> Any:
    here("by_stdlib_wait")
    return concurrent.futures.wait([futures[0]])


def by_stdlib_as_completed(futures: list[Any]) -> Any:
    here("by_stdlib_as_completed")
    return next(concurrent.futures.as_completed([futures[0]]))


def by_exception(futures: list[Any]) -> Any:
    here("by_exception")
    return futures[0].exception()


def by_a_loop(futures: list[Any]) -> Any:
    here("by_a_loop")
    return [future.result() for future in futures]


BODIES = [by_wait, by_as_completed, by_stdlib_wait, by_stdlib_as_completed, by_exception, by_a_loop]


@pytest.mark.parametrize("body", BODIES)
def test_the_line_is_the_users_whatever_is_waited_with(body: Callable[[list[Any]], Any]) -> None:
    check_words(run_alone(new_service(1), body), body.__name__)


def through_map(service: Service, futures: list[Any]) -> Any:
    here("through_map")
    return list(service.map(alone, [futures], ["in a map"]))


def test_a_circle_through_a_lent_body_names_both() -> None:
    service = new_service(1)
    futures: list[Any] = []
    with full(service):
        futures.append(service.submit(through_map, service, futures))
    words = check_words(futures[0].exception(LIMIT), "alone", "through_map")
    assert "in a map" in words
    check_slots(service, 1)


def rerun_awaited(coalescer: Coalescer[str]) -> Any:
    owed = coalescer.submit("key", pow, 2, 3)
    here("rerun_awaited")
    return owed.result()


def test_a_run_that_waits_for_the_rerun_that_it_holds_up_is_named() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)
    run = coalescer.submit("key", rerun_awaited, coalescer)
    check_words(run.exception(LIMIT), "rerun_awaited")
    check_slots(service, 1)


def joins_itself(coalescer: Coalescer[str]) -> Any:
    own = coalescer.join("key", pow, 2, 3)
    here("joins_itself")
    return own.result()


def test_a_run_that_joins_and_waits_for_itself_is_named() -> None:
    service = new_service(1)
    coalescer: Coalescer[str] = Coalescer(service)
    run = coalescer.submit("key", joins_itself, coalescer)
    check_words(run.exception(LIMIT), "joins_itself")
    check_slots(service, 1)


def test_it_is_a_runtime_error_that_can_be_pickled_and_made() -> None:
    import pickle  # noqa: PLC0415

    assert issubclass(DeadlockError, RuntimeError)
    assert str(DeadlockError("words")) == "words"
    error = run_alone(new_service(1), alone, "an argument")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_it_keeps_none_of_the_arguments() -> None:
    import weakref  # noqa: PLC0415

    from contract_helpers import collected  # noqa: PLC0415

    class Thing:
        pass

    service, gate = new_service(2), Gate()
    futures: list[Any] = []

    def body(thing: Any) -> str:
        gate()
        try:
            futures[0].result()
        except DeadlockError as error:
            return str(error)
        return ""

    thing = Thing()
    reference = weakref.ref(thing)
    futures.append(service.submit(body, thing))
    gate.open()
    words = futures[0].result(LIMIT)
    assert "body" in words
    del thing
    futures.clear()
    assert collected(reference)
