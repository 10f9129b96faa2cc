"""Part 1: hash every file, one submission for each."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

from boundedexec import Service

from ..screen import Screen, count
from .comparing import REFRESH, Limit, Times, compare, ending, new_service, seconds_shown
from .tree import Tree

# The share of the part's limit for the files that are hashed again to compare.
_COMPARED = 0.25
_BLOCK = 1 << 20
_NAMED = 20


def hash_files(tree: Tree, seconds: float, screen: Screen) -> tuple[list[str], Times | None]:
    """Hash the files of `tree`; return those that could be read, and the times."""
    screen.line()
    limit = Limit(seconds)
    hashing = _Hashing(tree, limit, screen)
    if not tree.files:
        screen.line("1. Hash every file: there is none")
        hashing.name_unread()
        return [], None
    with ending(new_service(), limit) as service:
        slots = service.max_workers
        screen.line(f"1. Hash every file: one submission for each, {slots} slots")
        passed = hashing.run_on(service)
    paths = hashing.report(passed)
    hashing.name_unread()
    if not paths:
        return [], None
    # A part that takes a short time is enough, and stays in the page cache.
    share = min(1.0, seconds * _COMPARED / passed)
    compared = paths[: max(1, int(len(paths) * share))]
    return paths, _compare(compared, slots, seconds, screen)


class _Hashing:
    """A submission for every file of `tree`, until the limit."""

    def __init__(self, tree: Tree, limit: Limit, screen: Screen) -> None:
        self._tree = tree
        self._limit = limit
        self._screen = screen
        # Many bodies append, which is atomic on every build, while one thread reads.
        self._read: list[tuple[str, int]] = []
        self._unread: list[str] = []

    def _body(self, path: str) -> None:
        # The futures are dropped, and a dropped future logs an exception that was never
        # retrieved.
        try:
            size = _digest(path, self._limit)
        except OSError as error:
            self._unread.append(self._tree.why_unread(path, error))
        else:
            if size is not None:
                self._read.append((path, size))

    def run_on(self, service: Service) -> float:
        """Hash the files; return how many seconds that took."""
        start = time.perf_counter()
        for path in self._tree.files:
            service.submit(self._body, path)
        submitted = time.perf_counter() - start
        number = count(len(self._tree.files), "submission")
        self._screen.line(
            f"   {number} in {seconds_shown(submitted)}: submit does not wait for a slot"
        )
        self._watch(service)
        return time.perf_counter() - start

    def _watch(self, service: Service) -> None:
        number = count(len(self._tree.files), "file")
        size = counted = 0
        while not service.block_till_done(REFRESH) and not self._limit.over():
            size += sum(more for _, more in itertools.islice(self._read, counted, None))
            counted = len(self._read)
            self._screen.progress(f"   hashed {counted:,} of {number}, {_size_shown(size)}")
        if self._limit.over():
            service.shutdown(wait=False, cancel_futures=True)
            # Running bodies check the limit after each block.
            service.block_till_done(1.0)

    def report(self, passed: float) -> list[str]:
        """Say what was hashed in `passed` seconds; return the files."""
        # Sorted by name, because bodies finish in any order; copied, because a body that
        # is stuck in a read may still finish.
        hashed = sorted(self._read)
        size = _size_shown(sum(more for _, more in hashed))
        number = count(len(hashed), "file")
        self._screen.line(f"   hashed {number}, {size}, in {seconds_shown(passed)}")
        if late := len(self._tree.files) - len(hashed) - len(self._unread):
            number = count(late, "file")
            self._screen.line(f"   {number} left out: the time for this part was over")
        return [path for path, _ in hashed]

    def name_unread(self) -> None:
        """Say what could not be read, and why."""
        unread = sorted(self._tree.unread + self._unread)
        if not unread:
            return
        self._screen.line(f"   {len(unread):,} could not be read:")
        for text in unread[:_NAMED]:
            self._screen.line(f"     {text}")
        if len(unread) > _NAMED:
            self._screen.line(f"     and {len(unread) - _NAMED:,} more")


def _digest(path: str, limit: Limit) -> int | None:
    """Hash the file; return its size, or None if the limit passed first."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        # Opening a named pipe would block until it has a writer.
        raise OSError(0, "not a regular file", path)
    size = 0
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            size += len(block)
            digest.update(block)
            if limit.over():
                return None
    return size


def _size_shown(size: int) -> str:
    return f"{size / 10**6:,.1f} MB" if size >= 10**6 else f"{size:,} bytes"


def _compare(paths: Sequence[str], slots: int | None, seconds: float, screen: Screen) -> Times:
    def measure(make: Callable[[], Executor]) -> float:
        limit = Limit(math.inf)
        with ending(make(), limit) as executor:
            start = time.perf_counter()
            for future in [executor.submit(_digest, path, limit) for path in paths]:
                future.exception()
            return time.perf_counter() - start

    times = compare(
        screen,
        seconds,
        lambda: measure(lambda: new_service(slots)),
        lambda: measure(lambda: ThreadPoolExecutor(slots)),
    )
    screen.line(
        f"   {count(times.rounds, 'round')} of {count(len(paths), 'file')}: "
        f"Service {seconds_shown(times.service)}, ThreadPoolExecutor {times.pool_shown()}"
    )
    return times
