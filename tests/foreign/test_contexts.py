"""Values that libraries keep in context variables, and in threads, behave on the drop-in as
on the stdlib's pool."""

# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import asyncio
import concurrent.futures
import decimal
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import FREE_THREADED, LIMIT

import boundedexec

#: Those without a wheel for the newest Python, and for builds without a GIL.
NO_WHEEL = {"numpy"}
NO_WHEEL_HERE = sys.version_info >= (3, 15) or FREE_THREADED

Make = Callable[..., Any]


@pytest.fixture(params=["stdlib", "drop-in", "installed"])
def make(request: Any) -> Iterator[Make]:
    """Makes the stdlib's pool, ours, and what its name stands for after `install`."""
    if request.param == "stdlib":
        yield concurrent.futures.ThreadPoolExecutor
    elif request.param == "drop-in":
        yield boundedexec.ThreadPoolExecutor
    else:
        with boundedexec.installed():
            yield concurrent.futures.ThreadPoolExecutor


def library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        if NO_WHEEL_HERE and name in NO_WHEEL:
            pytest.skip(f"{name} has no wheel for this Python")
        raise


def test_numpys_error_state_is_that_of_the_thread(make: Make) -> None:
    numpy = library("numpy")

    def divide() -> str:
        try:
            with numpy.errstate(invalid="ignore"):
                numpy.divide(numpy.array([1.0]), 0)
        except FloatingPointError:
            return "raised"
        return numpy.geterr()["divide"]

    with make(1) as pool:
        with numpy.errstate(divide="ignore"):
            assert pool.submit(lambda: numpy.geterr()["divide"]).result(LIMIT) == "warn"
            pool.submit(numpy.seterr, divide="raise").result(LIMIT)
            assert numpy.geterr()["divide"] == "ignore"
        # What a body sets stays on its thread.
        assert pool.submit(divide).result(LIMIT) == "raised"
        assert numpy.geterr()["divide"] == "warn"
    with make(1) as pool:
        assert pool.submit(lambda: numpy.geterr()["divide"]).result(LIMIT) == "warn"


def test_numpys_error_state_in_bodies_at_the_same_time(make: Make) -> None:
    numpy = library("numpy")
    both = threading.Barrier(2)

    def body(how: str) -> str:
        with numpy.errstate(over=how):
            both.wait(LIMIT)
            seen = numpy.geterr()["over"]
            both.wait(LIMIT)
        return seen

    with make(2) as pool:
        futures = [pool.submit(body, how) for how in ("ignore", "raise")]
        assert [future.result(LIMIT) for future in futures] == ["ignore", "raise"]
        assert numpy.geterr()["over"] == "warn"


def test_decimal_contexts_are_those_of_the_threads(make: Make) -> None:
    both = threading.Barrier(2)

    def rounded(digits: int) -> int:
        decimal.getcontext().prec = digits
        both.wait(LIMIT)
        return len(str(decimal.Decimal(1) / 3)) - 2

    decimal.getcontext()  # The submitter has one.
    with make(2) as pool:
        futures = [pool.submit(rounded, digits) for digits in (5, 9)]
        assert [future.result(LIMIT) for future in futures] == [5, 9]
    assert decimal.getcontext().prec == 28
    with make(1) as pool:
        pool.submit(lambda: setattr(decimal.getcontext(), "prec", 7)).result(LIMIT)
        assert pool.submit(lambda: decimal.getcontext().prec).result(LIMIT) == 7


@pytest.mark.parametrize("thread_critical", [True, False])
def test_connections_in_an_asgiref_local_belong_to_the_threads(
    make: Make, thread_critical: bool
) -> None:
    """As those of Django, which makes one where it finds none."""
    local = library("asgiref.local").Local(thread_critical)
    made: list[object] = []
    used: set[tuple[int, int]] = set()

    def connection() -> object:
        if not hasattr(local, "connection"):
            local.connection = object()
            made.append(local.connection)
        return local.connection

    def query(_: int) -> None:
        used.add((threading.get_ident(), id(connection())))

    mine = connection()
    with make(3) as pool:
        list(pool.map(query, range(100)))
        threads = len(pool._threads)
        # Threads that the submitter's connection must not be in.
        assert not [one for _, one in used if one == id(mine)]
        assert len(made) == 1 + len({one for _, one in used}) <= 1 + threads
        # One each, and no two threads share one.
        assert len(used) == len({one for _, one in used})
    assert connection() is mine


def test_asgiref_runs_threads_sensitive_code_on_one_thread(make: Make) -> None:
    sync = library("asgiref.sync")

    def body() -> list[str]:
        async def main() -> list[str]:
            name = sync.sync_to_async(lambda: threading.current_thread().name)
            return [await name() for _ in range(3)]

        return sync.async_to_sync(main)()

    with make(2, "mine") as pool:
        for names in [pool.submit(body) for _ in range(6)]:
            # On the thread that called `async_to_sync`.
            assert len(set(names.result(LIMIT))) == 1
            assert names.result(LIMIT)[0].startswith("mine")


def test_sniffio_finds_no_event_loop_in_a_body(make: Make) -> None:
    sniffio = library("sniffio")

    def body() -> str:
        try:
            return sniffio.current_async_library()
        except sniffio.AsyncLibraryNotFoundError:
            return "none"

    async def inner() -> str:
        return sniffio.current_async_library()

    async def main() -> list[str]:
        token = sniffio.current_async_library_cvar.set("trio")
        loop = asyncio.get_running_loop()
        try:
            with make(1) as pool:
                return [
                    await loop.run_in_executor(pool, body),
                    await loop.run_in_executor(pool, lambda: asyncio.run(inner())),
                    await loop.run_in_executor(pool, body),
                ]
        finally:
            sniffio.current_async_library_cvar.reset(token)

    assert asyncio.run(main()) == ["none", "asyncio", "none"]
