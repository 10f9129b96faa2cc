"""A type checker infers what ordinary calls return, and finds a wrong argument."""

from __future__ import annotations

import textwrap
from pathlib import Path

from type_checking import checked_by_mypy, rejected

pytestmark = checked_by_mypy

PREAMBLE = """
import asyncio
import concurrent.futures
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future
from pathlib import Path
from typing import Optional, assert_type

import boundedexec
from boundedexec import Coalescer, DeadlockError, Service, ThreadPoolExecutor


def area(width: int, height: int = 1, *, unit: str = "m") -> str:
    return f"{width * height} {unit}"


def nothing() -> None: ...


service = Service(4)
coalescer = Coalescer[str](service)
"""


def errors(source: str, where: Path) -> set[str]:
    """The lines of `source`, with what stands before it, that mypy --strict does not accept."""
    return set(rejected(PREAMBLE + textwrap.dedent(source), where))


def test_the_types_of_ordinary_calls_are_inferred(tmp_path: Path) -> None:
    assert (
        errors(
            """
            assert_type(service.submit(int, "1"), Future[int])
            assert_type(service.submit(int, "1").result(), int)
            assert_type(service.submit(int, "1").exception(), Optional[BaseException])
            assert_type(service.submit(area, 3, 4, unit="cm"), Future[str])
            assert_type(service.submit(nothing), Future[None])
            assert_type(service.submit(lambda: [1]), Future[list[int]])
            assert_type(service.map(area, [1, 2], [3, 4]), Iterator[str])
            assert_type(service.map(len, ["a"], timeout=1.0, chunksize=2), Iterator[int])
            assert_type(service.map(len, ["a"], buffersize=3), Iterator[int])
            assert_type(service.yield_slot(area, 3, unit="cm"), str)
            assert_type(service.block_till_done(timeout=0.5), bool)
            assert_type(service.max_workers, Optional[int])
            assert_type(Service.bounded(3), Service)
            assert_type(Service.unbounded(thread_name_prefix="x"), Service)
            assert_type(ThreadPoolExecutor(2).submit(area, 1), Future[str])

            with Service(2, "name", print, ("hello",), idle_timeout=None, daemon=True) as entered:
                assert_type(entered, Service)

            with ThreadPoolExecutor() as pool:
                assert_type(pool, ThreadPoolExecutor)

            with service.slot_yielded():
                pass

            assert_type(coalescer.submit("key", area, 3, unit="cm"), Future[str])
            assert_type(Coalescer[Path](service).submit(Path(), nothing), Future[None])
            assert_type(len(coalescer), int)
            assert_type("key" in coalescer, bool)

            with boundedexec.TaskGroup(service, limit=2, timeout=1.5) as group:
                assert_type(group, boundedexec.TaskGroup)
                assert_type(group.submit(area, 3, unit="cm"), Future[str])
                bound_in_the_block = group.submit(nothing)
            assert_type(bound_in_the_block, Future[None])
            assert_type(group.cancelled, bool)

            futures = [service.submit(int, n) for n in "123"]
            done, not_done = boundedexec.wait(futures, timeout=1.0, return_when=FIRST_COMPLETED)
            assert_type(done.pop().result(), int)
            assert_type(not_done.pop().result(), int)
            for future in boundedexec.as_completed(futures, timeout=1.0):
                assert_type(future.result(), int)
            for future in concurrent.futures.as_completed(futures):
                assert_type(future.result(), int)


            async def main() -> None:
                loop = asyncio.get_running_loop()
                assert_type(await loop.run_in_executor(service, area, 3), str)
                async with boundedexec.TaskGroup(service) as group:
                    assert_type(group.submit(int, "3"), Future[int])
                assert_type(await asyncio.wrap_future(service.submit(area, 3)), str)
                loop.set_default_executor(ThreadPoolExecutor())


            executor: Executor = service
            their_pool: concurrent.futures.ThreadPoolExecutor = ThreadPoolExecutor()
            service.submit(int).add_done_callback(lambda done: print(done.result() + 1))
            error: RuntimeError = DeadlockError("circle")
            bare = boundedexec.Future[int]()
            bare.set_result(3)
            theirs: Future[int] = bare
            theirs.add_done_callback(lambda done: print(done.result()))
            """,
            tmp_path,
        )
        == set()
    )


WRONG = [
    "service.submit()",
    "service.submit(3)",
    "service.submit(area)",
    'service.submit(area, "3")',
    "service.submit(area, 1, 2, 3)",
    "service.submit(area, 1, unit=3)",
    "service.submit(area, 1, depth=3)",
    'service.yield_slot(area, "3")',
    "service.yield_slot(area, 1, depth=3)",
    'service.map(area, "3", chunksize="x")',
    'service.block_till_done(timeout="1")',
    'Service("4")',
    "Service(4, lending=1.5)",
    'coalescer.submit(3, area, "3")',
    'coalescer.submit("key", area, "3")',
    'coalescer.submit("key", area)',
    "Coalescer[str](3)",
    "Coalescer[list[int]](service).submit([], nothing)",
    'boundedexec.TaskGroup(service).submit(area, "3")',
    "boundedexec.TaskGroup(3)",
    "ThreadPoolExecutor(2).submit(area, 1, depth=3)",
    'text: str = service.submit(int, "1")',
    'number: str = service.submit(int, "1").result()',
    'boundedexec.Future[int]().set_result("x")',
]


def test_a_wrong_argument_is_an_error(tmp_path: Path) -> None:
    found = errors("\n".join(WRONG), tmp_path)
    accepted = [call for call in WRONG if not any(error.startswith(f"{call}: ") for error in found)]
    assert accepted == []
