"""A body runs in a copy of its submitter's context; what belongs to a thread is not shared."""

from __future__ import annotations

import asyncio
import decimal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from concurrent.futures import ThreadPoolExecutor as StdlibPool
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, new_service, run_script

import boundedexec
from boundedexec import Coalescer, Service

VARIABLE: ContextVar[Any] = ContextVar("VARIABLE", default="default")

#: Where it is set, a new thread takes over its starter's context, the stdlib's pool's too.
INHERITED = bool(getattr(sys.flags, "thread_inherit_context", 0))


def set_and_get(value: Any) -> Any:
    before = VARIABLE.get()
    VARIABLE.set(value)
    return before


def drop_in(max_workers: int = 1, **options: Any) -> boundedexec.ThreadPoolExecutor:
    return boundedexec.ThreadPoolExecutor(max_workers, daemon=True, **options)


def without_propagation(max_workers: int = 1, **options: Any) -> Service:
    return new_service(max_workers, propagate_context=False, **options)


def in_a_context(act: Callable[[], Any]) -> Any:
    return copy_context().run(act)


def test_the_context_is_the_one_at_submit() -> None:
    service, gate = new_service(1), Gate()

    def act() -> None:
        service.submit(gate)
        VARIABLE.set("at submit")
        future = service.submit(VARIABLE.get)
        VARIABLE.set("after submit")
        gate.open()
        assert future.result(LIMIT) == "at submit"
        assert VARIABLE.get() == "after submit"

    in_a_context(act)


def test_what_a_body_sets_reaches_no_other_body_and_no_submitter() -> None:
    service = new_service(1)

    def act() -> None:
        VARIABLE.set("submitter")
        seen = [service.submit(set_and_get, n).result(LIMIT) for n in range(3)]
        assert seen == ["submitter"] * 3
        assert list(service.map(set_and_get, range(3))) == ["submitter"] * 3
        assert VARIABLE.get() == "submitter"

    in_a_context(act)


def test_one_context_submitted_from_twice_is_copied_twice() -> None:
    service = new_service(1)
    context = copy_context()
    context.run(VARIABLE.set, "shared")
    futures = [context.run(service.submit, set_and_get, n) for n in range(3)]
    assert [future.result(LIMIT) for future in futures] == ["shared"] * 3
    assert context[VARIABLE] == "shared"


def test_a_lent_body_has_the_context_of_the_body_that_waits_and_changes_nothing_there() -> None:
    service = new_service(1)

    def outer() -> tuple[Any, ...]:
        VARIABLE.set("outer")
        inner = service.submit(set_and_get, "inner")
        VARIABLE.set("later")
        return inner.result(), VARIABLE.get(), service.submit(VARIABLE.get).result()

    assert service.submit(outer).result(LIMIT) == ("outer", "later", "later")


def test_a_yielded_slot_leaves_the_body_its_context() -> None:
    service = new_service(1)

    def outer() -> tuple[Any, ...]:
        VARIABLE.set("outer")
        inner = service.submit(set_and_get, "inner")
        return service.yield_slot(inner.result), VARIABLE.get()

    assert service.submit(outer).result(LIMIT) == ("outer", "outer")


@pytest.mark.parametrize("make", [without_propagation, drop_in])
def test_without_propagation_what_a_body_sets_stays_on_its_thread(
    make: Callable[..., Service],
) -> None:
    service = make(1, initializer=VARIABLE.set, initargs=("initializer",))

    def act() -> None:
        VARIABLE.set("submitter")
        seen = [service.submit(set_and_get, n).result(LIMIT) for n in range(3)]
        assert seen == ["initializer", 0, 1]
        assert VARIABLE.get() == "submitter"

    in_a_context(act)


@pytest.mark.parametrize("make", [without_propagation, drop_in])
def test_without_propagation_the_submitters_values_are_not_seen(
    make: Callable[..., Service],
) -> None:
    service = make(1)

    def act() -> None:
        VARIABLE.set("submitter")

        def read(_: int) -> Any:
            return VARIABLE.get()

        assert service.submit(VARIABLE.get).result(LIMIT) == "default"
        assert list(service.map(read, range(2))) == ["default"] * 2
        loop = asyncio.new_event_loop()
        try:
            assert loop.run_until_complete(loop.run_in_executor(service, VARIABLE.get)) == "default"
        finally:
            loop.close()

    service.submit(pow, 2, 3).result(LIMIT)  # Its thread is there, with a context of its own.
    in_a_context(act)


@pytest.mark.parametrize("make", [without_propagation, drop_in, StdlibPool])
def test_without_propagation_a_new_thread_starts_as_in_the_stdlibs_pool(
    make: Callable[..., Executor],
) -> None:
    def act() -> Any:
        VARIABLE.set("submitter")
        executor = make(1)
        try:
            return executor.submit(VARIABLE.get).result(LIMIT)
        finally:
            executor.shutdown()

    assert in_a_context(act) == ("submitter" if INHERITED else "default")


def test_a_coalescers_run_has_the_context_of_the_latest_submit() -> None:
    service, gate = new_service(1), Gate()
    coalescer: Coalescer[str] = Coalescer(service)
    service.submit(gate)
    gate.wait_entered()
    contexts = [copy_context() for _ in range(3)]
    futures: list[Any] = []
    for context, value in zip(contexts, "abc", strict=True):
        context.run(VARIABLE.set, value)
        futures.append(context.run(coalescer.submit, "key", set_and_get, "run"))
    gate.open()
    assert futures[-1].result(LIMIT) == "c"
    assert contexts[-1][VARIABLE] == "c"


def test_a_coalescers_run_without_propagation_has_its_threads_context() -> None:
    service = without_propagation(1, initializer=VARIABLE.set, initargs=("thread",))
    coalescer: Coalescer[str] = Coalescer(service)

    def act() -> list[Any]:
        VARIABLE.set("submitter")
        return [coalescer.submit("key", set_and_get, n).result(LIMIT) for n in range(3)]

    assert in_a_context(act) == ["thread", 0, 1]


# What an initializer set.


def test_what_the_initializer_set_is_seen_over_the_submitters_values() -> None:
    other: ContextVar[str] = ContextVar("other", default="default")
    service = new_service(1, initializer=VARIABLE.set, initargs=("initializer",))

    def act() -> None:
        VARIABLE.set("submitter")
        other.set("submitter")
        for _ in range(2):
            seen = service.submit(lambda: (set_and_get("body"), other.get())).result(LIMIT)
            assert seen == ("initializer", "submitter")

    in_a_context(act)


def test_each_thread_has_what_its_own_initializer_set() -> None:
    service = new_service(2, initializer=lambda: VARIABLE.set(threading.get_ident()))
    both = threading.Barrier(2)

    def body() -> bool:
        both.wait(LIMIT)
        return bool(VARIABLE.get() == threading.get_ident())

    futures = [service.submit(body) for _ in range(4)]
    assert all(future.result(LIMIT) for future in futures)

    def outer() -> Any:
        return service.submit(lambda: VARIABLE.get() == threading.get_ident()).result()

    assert all(future.result(LIMIT) for future in [service.submit(outer) for _ in range(4)])


def test_a_decimal_context_that_an_initializer_set_is_copied_for_each_body() -> None:
    def initialize() -> None:
        decimal.getcontext().prec = 11

    def body() -> int:
        before = decimal.getcontext().prec
        decimal.getcontext().prec = 3
        return before

    service = new_service(1, initializer=initialize)
    with decimal.localcontext() as context:
        context.prec = 20
        assert [service.submit(body).result(LIMIT) for _ in range(3)] == [11, 11, 11]
        assert context.prec == 20


# The decimal context.


def digits_of_a_third() -> int:
    return len(str(decimal.Decimal(1) / 3)) - 2


def race(submit: Callable[..., Any], count: int = 2) -> list[int]:
    """Bodies that set each a precision of its own, and all compute after all have set it."""
    meeting = threading.Barrier(count)

    def rounded(digits: int) -> int:
        decimal.getcontext().prec = digits
        meeting.wait(LIMIT)
        return digits_of_a_third()

    decimal.getcontext()  # It exists before anything is submitted.
    futures = [submit(rounded, 5 + 2 * n) for n in range(count)]
    return [future.result(LIMIT) - (5 + 2 * n) for n, future in enumerate(futures)]


@pytest.mark.parametrize("make", [new_service, without_propagation, drop_in, StdlibPool])
def test_bodies_that_race_with_their_precision_compute_right_digits(
    make: Callable[..., Executor],
) -> None:
    if INHERITED and make is not new_service:
        pytest.skip("the stdlib's pool shares it on this Python")
    executor = make(4)
    before = decimal.getcontext().prec
    assert race(executor.submit, 4) == [0] * 4
    assert decimal.getcontext().prec == before
    executor.shutdown(wait=False)


def test_runs_of_a_coalescer_that_race_with_their_precision_compute_right_digits() -> None:
    coalescer: Coalescer[int] = Coalescer(new_service(4))
    keys = iter(range(4))
    assert race(lambda *call: coalescer.submit(next(keys), *call), 4) == [0] * 4


def test_coroutines_that_race_with_their_precision_compute_right_digits() -> None:
    service = new_service(2)
    both = threading.Barrier(2)

    def rounded(digits: int) -> int:
        decimal.getcontext().prec = digits
        both.wait(LIMIT)
        return digits_of_a_third()

    async def main() -> list[int]:
        decimal.getcontext()
        loop = asyncio.get_running_loop()
        return list(
            await asyncio.gather(*(loop.run_in_executor(service, rounded, n) for n in (5, 9)))
        )

    assert asyncio.run(main()) == [5, 9]


def test_a_body_starts_with_its_submitters_precision_and_flags_come_back_to_nobody() -> None:
    service = new_service(1)

    def body(_: object) -> tuple[int, str]:
        context = decimal.getcontext()
        seen = context.prec, context.rounding
        assert decimal.Decimal(1) / 3 > 0  # Sets the flag.
        context.prec, context.rounding = 3, decimal.ROUND_UP
        return seen

    with decimal.localcontext() as context:
        context.prec, context.rounding = 7, decimal.ROUND_DOWN
        context.clear_flags()
        futures = [service.submit(body, n) for n in range(2)]
        seen = [future.result(LIMIT) for future in futures]
        seen += service.map(body, range(2))
        assert seen == [(7, decimal.ROUND_DOWN)] * 4
        assert (context.prec, context.rounding) == (7, decimal.ROUND_DOWN)
        assert not context.flags[decimal.Inexact]
        assert decimal.getcontext() is context


def test_a_lent_body_does_not_change_the_precision_of_the_body_that_waits() -> None:
    service = new_service(1)

    def inner() -> int:
        before = decimal.getcontext().prec
        decimal.getcontext().prec = 3
        return before

    def outer() -> tuple[int, int]:
        decimal.getcontext().prec = 9
        return service.submit(inner).result(), digits_of_a_third()

    assert service.submit(outer).result(LIMIT) == (9, 9)


def test_a_submitter_that_never_used_decimal_is_not_changed_by_a_body() -> None:
    assert run_script("""
        import decimal, threading
        from boundedexec import Service

        def body():
            decimal.getcontext().prec = 5

        seen = []
        def fresh():
            with Service(1) as service:
                service.submit(body).result()
            seen.append(decimal.getcontext().prec)

        thread = threading.Thread(target=fresh)
        thread.start()
        thread.join()
        print(seen[0])
        """) == ["28"]


# The name of the running event loop's library.

SNIFFIO_BODIES = """
    {first}
    {second}
    import asyncio, sniffio
    from boundedexec import Coalescer, Service, ThreadPoolExecutor

    def name():
        return sniffio.current_async_library_cvar.get()

    def by_loop():
        async def main():
            return name()
        return asyncio.run(main())

    async def main():
        loop = asyncio.get_running_loop()
        for service in Service(1), ThreadPoolExecutor(1):
            for body in name, by_loop:
                print(await loop.run_in_executor(service, body))
                print(await asyncio.wrap_future(service.submit(body)))
                print(await asyncio.wrap_future(Coalescer(service).submit("key", body)))
            nested = service.submit(lambda: service.submit(name).result())
            print(await asyncio.wrap_future(nested))
            service.shutdown()
        return name()

    sniffio.current_async_library_cvar.set("outer")
    print(asyncio.run(main()))
    """

ORDERS = [
    ("import sniffio", "import boundedexec"),
    ("import boundedexec", "import sniffio"),
]


@pytest.mark.parametrize(("first", "second"), ORDERS)
def test_the_name_of_the_running_event_loop_is_unset_in_a_body(first: str, second: str) -> None:
    pytest.importorskip("sniffio")
    assert run_script(SNIFFIO_BODIES.format(first=first, second=second)) == [
        *["None"] * 14,
        "outer",
    ]


def test_without_sniffio_nothing_is_imported_for_it(tmp_path: Path) -> None:
    (tmp_path / "sniffio.py").write_text("raise SystemExit('imported')\n")
    assert run_script(
        """
        from boundedexec import Service
        with Service(1) as service:
            print(service.submit(pow, 2, 3).result())
        """,
        PYTHONPATH=str(tmp_path),
    ) == ["8"]


def test_a_body_may_set_the_name_for_itself() -> None:
    sniffio = pytest.importorskip("sniffio")
    service = new_service(1)

    def body() -> Any:
        before = sniffio.current_async_library_cvar.get()
        sniffio.current_async_library_cvar.set("mine")
        return before, sniffio.current_async_library()

    def act() -> None:
        sniffio.current_async_library_cvar.set("submitter")
        assert [service.submit(body).result(LIMIT) for _ in range(2)] == [(None, "mine")] * 2
        assert sniffio.current_async_library_cvar.get() == "submitter"

    in_a_context(act)
