"""Callables, arguments and results whose own methods raise change nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, check_slots, logged, new_service
from contract_hostile import CALLED, Plain, hostile

from boundedexec import Coalescer, Service


@pytest.fixture(autouse=True)
def _nothing_called() -> None:
    CALLED.clear()


class HostileCallable(hostile(Plain, "__call__")):  # type: ignore[misc]
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Answers(HostileCallable):
    def __call__(self, *_: Any) -> int:
        return 8


class Fails(HostileCallable):
    def __call__(self, *_: Any) -> None:
        raise ValueError("what the body raised")


class Unprintable:
    def __repr__(self) -> str:
        CALLED.append("__repr__")
        raise KeyError("repr")


class RefusesItsName:
    def __getattribute__(self, name: str) -> Any:
        if name in ("__qualname__", "__name__", "__module__"):
            raise KeyError(name)
        return object.__getattribute__(self, name)

    def __call__(self, *_: Any) -> int:
        return 8


class FailsAndRefusesItsName(RefusesItsName):
    def __call__(self, *_: Any) -> int:
        raise ValueError("what the body raised")


def fail(*_: Any) -> None:
    raise ValueError("what the body raised")


def answer(*_: Any) -> int:
    return 8


GOOD: list[Callable[[], Any]] = [
    Answers,
    lambda: partial(answer, Unprintable()),
    RefusesItsName,
    lambda: partial(Answers()),
]
BAD: list[Callable[[], Any]] = [
    Fails,
    lambda: partial(fail, Unprintable()),
    FailsAndRefusesItsName,
    lambda: partial(Fails(), hostile(Plain)()),
]


def call_everywhere(service: Service, fn: Any, *args: Any) -> list[Any]:
    """The futures of `fn` called in each way."""
    coalescer: Coalescer[int] = Coalescer(service)
    gate = Gate()
    futures = [
        service.submit(fn, *args),
        service.submit(lambda: service.submit(fn, *args).result()),
        service.submit(lambda: service.yield_slot(fn, *args)),
        service.submit(lambda: next(service.map(fn, [args]))),
        coalescer.submit(1, fn, *args),
        coalescer.join(2, fn, *args),
        coalescer.submit(3, gate),
    ]
    gate.wait_entered()
    futures.append(coalescer.submit(3, fn, *args))
    gate.open()
    futures[6].result(LIMIT)
    del futures[6]
    return futures


@pytest.mark.parametrize("make", GOOD)
def test_a_callable_that_can_do_nothing_but_be_called_is_called(make: Any) -> None:
    service = new_service(2)
    futures = call_everywhere(service, make())
    assert [future.result(LIMIT) for future in futures] == [8] * 7
    assert CALLED == []
    check_slots(service, 2)


@pytest.mark.parametrize("make", BAD)
def test_a_callable_that_fails_fails_with_what_it_raised(make: Any) -> None:
    service = new_service(2)
    futures = call_everywhere(service, make())
    for future in futures:
        assert type(future.exception(LIMIT)) is ValueError
    assert [name for name in CALLED if name == "__repr__"] == []
    assert CALLED == []
    check_slots(service, 2)


@pytest.mark.parametrize("make", BAD)
def test_a_failure_of_such_a_callable_is_logged(make: Any) -> None:
    with logged() as records:
        service = new_service(1)
        service.submit(make())
        Coalescer[str](service).submit("key", make())
        check_slots(service, 1)
    assert len(records) == 2
    assert all("what the body raised" in str(record.exc_info or record.msg) for record in records)


def test_arguments_and_results_are_passed_on_untouched() -> None:
    argument = hostile(Plain, "__hash__")()
    service = new_service(1)

    def same(value: Any, *, named: Any) -> Any:
        return value if value is named else None

    def identity(value: Any) -> Any:
        return value

    coalescer: Coalescer[str] = Coalescer(service)
    futures: list[Future[Any]] = [
        service.submit(same, argument, named=argument),
        service.submit(lambda: service.submit(same, argument, named=argument).result()),
        coalescer.submit("key", same, argument, named=argument),
        service.submit(lambda: next(service.map(identity, [argument]))),
        service.submit(lambda: service.yield_slot(same, argument, named=argument)),
    ]
    for future in futures:
        passed_on = future.result(LIMIT) is argument
        assert passed_on
    assert CALLED == []


def test_a_callback_that_can_do_nothing_but_be_called_is_called() -> None:
    service, over = new_service(1), threading.Event()

    class Callback(hostile(Plain, "__call__")):  # type: ignore[misc]
        def __call__(self, _: Any) -> None:
            over.set()

    gate = Gate()
    future = service.submit(gate)
    future.add_done_callback(Callback())
    gate.open()
    assert over.wait(LIMIT)
    over.clear()
    future.add_done_callback(Callback())
    assert over.is_set()
    assert CALLED == []


def test_an_initializer_that_is_falsy_is_called() -> None:
    over = threading.Event()

    class Initializer(hostile(Plain, "__call__")):  # type: ignore[misc]
        def __call__(self) -> None:
            over.set()

    service = new_service(1, initializer=Initializer())
    service.submit(int).result(LIMIT)
    assert over.is_set()
    assert CALLED == []


def test_a_context_variables_value_is_not_looked_at() -> None:
    variable: ContextVar[Any] = ContextVar("variable")
    value = hostile(Plain)()
    service = new_service(1, initializer=variable.set, initargs=(value,))

    def act() -> Any:
        variable.set(hostile(Plain)())
        return service.submit(variable.get).result(LIMIT)

    same = [copy_context().run(act) is value for _ in range(2)]
    assert same == [True, True]
    assert CALLED == []


def test_the_repr_of_a_large_argument_is_not_made_for_a_failure() -> None:
    made: list[int] = []

    class Large:
        def __repr__(self) -> str:
            made.append(1)
            return "x" * 5_000_000

    service = new_service(1)
    futures = [
        service.submit(partial(fail, Large())),
        Coalescer[str](service).submit("key", partial(fail, Large())),
    ]
    for future in futures:
        assert isinstance(future.exception(LIMIT), ValueError)
        del future
    check_slots(service, 1)
    assert made == []


@pytest.mark.parametrize("ask", ["cancel", "cancelled", "done"])
def test_a_callable_whose_end_asks_its_future(ask: str) -> None:
    # The last reference goes in `cancel`: what `__del__` asks there is answered.
    answers: list[bool] = []
    futures: list[Future[Any]] = []

    class Mortal:
        def __call__(self) -> None: ...

        def __del__(self) -> None:
            answers.append(getattr(futures[0], ask)())

    with new_service(1) as service:
        gate = Gate()
        service.submit(gate)
        futures.append(service.submit(Mortal()))
        assert futures[0].cancel()
        gate.open()
        assert service.block_till_done(LIMIT)
    assert answers == [True]
