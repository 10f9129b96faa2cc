"""Part 2: walk the tree; every directory waits for those below it."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor

import boundedexec

from ..screen import Screen, count
from .comparing import REFRESH, Limit, Times, compare, ending, new_service, seconds_shown
from .tree import Tree

# So few that waiting bodies fill a pool on any tree three directories deep.
_SLOTS = 2

# Seconds.
_STUCK_AFTER = 0.5


def walk_directories(tree: Tree, seconds: float, screen: Screen) -> Times | None:
    """Walk `tree`; return the times, or None where there is nothing, or too much, to compare."""
    screen.line()
    if tree.directories <= 1:
        screen.line("2. Walk the tree: no directory lies below this one to wait for")
        return None
    screen.line(
        f"2. Walk the tree: each directory submits those below it and waits, {_SLOTS} slots"
    )
    if not _walk(tree, seconds, screen):
        return None
    stuck = _stuck(tree, seconds, screen)
    times = compare(
        screen,
        seconds,
        lambda: _seconds_of_walk(lambda: new_service(_SLOTS), tree),
        None if stuck else lambda: _seconds_of_walk(lambda: ThreadPoolExecutor(_SLOTS), tree),
    )
    screen.line(
        f"   Service({_SLOTS}): {seconds_shown(times.service)}, {count(times.rounds, 'round')}"
    )
    if stuck:
        screen.line(f"   ThreadPoolExecutor({_SLOTS}): would hang:")
        screen.line(f"     {stuck}")
    else:
        screen.line(
            f"   ThreadPoolExecutor({_SLOTS}): {times.pool_shown()}; "
            "here, bodies that wait never held all its threads"
        )
    return times


def _walk(tree: Tree, seconds: float, screen: Screen) -> bool:
    """Walk `tree` once and say what was found; return whether that was all of it."""
    limit = Limit(seconds)
    with ending(new_service(_SLOTS), limit) as service:
        walk = _Walk(service, tree.left_out, limit)
        future = service.submit(walk.body, tree.root)
        while not service.block_till_done(REFRESH):
            screen.progress(f"   walked {len(walk.finished):,} directories")
        whole = tree.complete and not limit.over()
        directories, files = future.result()
    if not whole:
        verdict = "then the time for this part was over"
    elif (directories, files) == (tree.directories, len(tree.files)):
        verdict = "as many as a plain loop counts"
    else:
        verdict = (
            f"a plain loop counted {tree.directories:,} and {len(tree.files):,} before: "
            "they have changed"
        )
    screen.line(
        f"   Service({_SLOTS}): {count(directories, 'directory', 'directories')}, "
        f"{count(files, 'file')}, on {count(len(walk.threads), 'thread')}"
    )
    screen.line(f"     ({verdict})")
    return whole


def _seconds_of_walk(make: Callable[[], Executor], tree: Tree) -> float:
    limit = Limit(math.inf)
    with ending(make(), limit) as executor:
        start = time.perf_counter()
        executor.submit(_Walk(executor, tree.left_out, limit).body, tree.root).result()
        return time.perf_counter() - start


class _Walk:
    """A walk whose bodies submit the directories below theirs and wait for them."""

    def __init__(self, executor: Executor, left_out: frozenset[str], limit: Limit) -> None:
        self._executor = executor
        self._left_out = left_out
        self._limit = limit
        # Many threads append, which is atomic; the thread that watches reads.
        self.threads: list[int] = []
        self.waiting: list[str] = []
        self.finished: list[str] = []
        self._this_thread = threading.local()

    def body(self, directory: str) -> tuple[int, int]:
        """Return how many directories and files there are from `directory` down."""
        # Not a set of thread identifiers: a new thread may reuse that of one that ended.
        if not hasattr(self._this_thread, "counted"):
            self._this_thread.counted = True
            self.threads.append(threading.get_ident())
        below, directories, files = self._list(directory)
        if self._limit.over():
            below.clear()
        futures = [self._executor.submit(self.body, path) for path in below]
        self.waiting.append(directory)
        for future in futures:
            try:
                more_directories, more_files = future.result()
            except CancelledError:
                # The walk was cancelled from outside, and its result is not used.
                break
            directories += more_directories
            files += more_files
        self.finished.append(directory)
        return directories, files

    def _list(self, directory: str) -> tuple[list[str], int, int]:
        """Return the directories in `directory`, 1 for itself or 0, and the files in it."""
        below: list[str] = []
        files = 0
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        files += not (entry.is_symlink() and os.path.isdir(entry.path))
                    elif entry.name not in self._left_out:
                        below.append(entry.path)
        except OSError:
            # It was reported when the files were listed.
            return below, 0, files
        return below, 1, files


def _stuck(tree: Tree, seconds: float, screen: Screen) -> str:
    """Walk `tree` on a pool; return how it gets stuck, an empty string if it does not.

    Stuck: every thread of the pool waits for the result of a submission, and in
    `_STUCK_AFTER` seconds none of them went on. Those submissions are queued, and no
    thread is left to run them.
    """
    limit = Limit(seconds)
    with ending(ThreadPoolExecutor(_SLOTS), limit) as pool:
        walk = _Walk(pool, tree.left_out, limit)
        whole = pool.submit(walk.body, tree.root)
        screen.progress("   trying ThreadPoolExecutor")
        before = (0, 0)
        while not boundedexec.wait([whole], timeout=_STUCK_AFTER).done:
            # `finished` is read first: a body appends to `waiting` before it, so the
            # difference is never too small. It is too large only while the walk makes
            # progress, which the next comparison notices.
            finished = len(walk.finished)
            now = (len(walk.waiting), finished)
            if now == before and now[0] - finished == _SLOTS:
                # Leaving this block cancels the submissions that they wait for.
                return (
                    f"with {finished:,} of {tree.directories:,} directories done, each of its "
                    f"{_SLOTS} threads waits for one still queued "
                    f"(watched for {_STUCK_AFTER} s, then cancelled)"
                )
            before = now
    return ""
