"""To a type checker `boundedexec.Future` is `concurrent.futures.Future`."""

from __future__ import annotations

from pathlib import Path

from type_checking import checked_by_mypy, rejected

import boundedexec

pytestmark = checked_by_mypy

RIGHT = """
import concurrent.futures
from typing import Any, Optional, assert_type

import boundedexec
from boundedexec import Coalescer, Future, QueueFull, Service, ThreadPoolExecutor

service = Service(4, propagate_context=False, max_queued=10)
assert_type(service.submit(int, "1"), Future[int])
assert_type(service.submit(int, "1"), concurrent.futures.Future[int])

ours: Future[int] = service.submit(int, "1")
theirs: concurrent.futures.Future[int] = ours
back: Future[int] = theirs
listed: list[Future[int]] = [service.submit(int, n) for n in "123"]
as_theirs: list[concurrent.futures.Future[int]] = listed
by_key: dict[Future[int], str] = {future: "url" for future in as_theirs}
elsewhere: Future[int] = concurrent.futures.ThreadPoolExecutor().submit(int, "1")
mixed: set[Future[int]] = {ours, elsewhere}
for future in concurrent.futures.as_completed(by_key):
    assert_type(by_key[future], str)
for future in boundedexec.as_completed(by_key):
    assert_type(by_key[future], str)
done, not_done = boundedexec.wait(mixed)
assert_type(done, set[Future[int]])


def callback(future: Future[int]) -> None:
    assert_type(future.result(), int)


ours.add_done_callback(callback)
elsewhere.add_done_callback(callback)


class Pool(ThreadPoolExecutor):
    futures: list[Future[Any]]


coalescer = Coalescer[str](service)
assert_type(coalescer.submit("key", int, "1"), Future[int])
assert_type(coalescer.join("key", int, "1"), Future[int])
service.max_workers = 3
service.max_workers = None
assert_type(service.max_workers, Optional[int])
assert_type(service.is_shut_down, bool)
error: RuntimeError = QueueFull("full")


async def main() -> None:
    assert_type(await service.async_block_till_done(timeout=1.0), bool)
"""

WRONG = [
    'coalescer.join(3, int, "1")',
    'coalescer.join("key", pow)',
    'service.max_workers = "3"',
    "service.is_shut_down = True",
    "Service(4, max_queued=2.5)",
    'ours = service.submit(str, "1")',
]


def test_futures_of_both_packages_are_one_type(tmp_path: Path) -> None:
    assert rejected(RIGHT, tmp_path) == []


def test_wrong_uses_are_errors(tmp_path: Path) -> None:
    found = rejected(RIGHT + "\n".join(WRONG) + "\n", tmp_path)
    accepted = [use for use in WRONG if not any(error.startswith(f"{use}: ") for error in found)]
    assert accepted == []


def test_an_annotation_means_the_same_at_run_time() -> None:
    assert issubclass(boundedexec.Future, __import__("concurrent.futures").futures.Future)
