"""Part 4: the step to processes, for bodies that compute."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)

from boundedexec import Service

from ..screen import Screen, count
from .comparing import Limit, Times, compare, ending, seconds_shown

_PROCESSES = 2
# Enough that a process never waits for the next.
_IN_HAND = 4 * _PROCESSES
_FILES = 200
_BYTES = 1 << 14


def count_words(path: str) -> int:
    """Return how many different words the start of a file has: work for a processor."""
    try:
        with open(path, "rb", buffering=0) as file:
            words = file.read(_BYTES).split()
    except OSError:
        return 0  # It was there in part 1.
    seen: dict[bytes, int] = {}
    for _ in range(20):
        for word in words:
            seen[word] = seen.get(word, 0) + 1
    return len(seen)


def compute_in_processes(
    hashed: Sequence[str], seconds: float, screen: Screen
) -> tuple[bool, Times | None]:
    """Count words on threads and in processes; return whether they agree, and the times."""
    screen.line()
    if not hashed:
        screen.line("4. The step to processes: no file to compute with")
        return True, None
    paths = hashed[:: -(-len(hashed) // _FILES)]
    screen.line(
        f"4. The step to processes: count the words of {count(len(paths), 'file')}, "
        "which takes a processor"
    )
    pool = ProcessPoolExecutor(
        _PROCESSES, multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    try:
        return _compare(pool, paths, seconds, screen)
    except (OSError, BrokenExecutor) as error:
        screen.line(f"   no process could be started here: {error}")
        return True, None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _compare(
    pool: ProcessPoolExecutor, paths: Sequence[str], seconds: float, screen: Screen
) -> tuple[bool, Times]:
    # Their processes start with the first.
    for future in [pool.submit(count_words, paths[0]) for _ in range(_IN_HAND)]:
        future.result()
    counts: dict[str, list[int]] = {}

    def over() -> float:
        with ending(Service.over(pool, _IN_HAND, daemon=True), Limit(math.inf)) as service:
            return _count_all("processes", service)

    def threads() -> float:
        with ending(ThreadPoolExecutor(_PROCESSES), Limit(math.inf)) as pool_of_threads:
            return _count_all("threads", pool_of_threads)

    def _count_all(where: str, executor: Executor) -> float:
        start = time.perf_counter()
        futures = [executor.submit(count_words, path) for path in paths]
        counts[where] = [future.result() for future in futures]
        return time.perf_counter() - start

    times = compare(screen, seconds, over, threads)
    screen.line(
        f"   Service.over(ProcessPoolExecutor({_PROCESSES}), {_IN_HAND}): "
        f"{seconds_shown(times.service)}, {count(times.rounds, 'round')} each"
    )
    screen.line(f"   ThreadPoolExecutor({_PROCESSES}): {times.pool_shown()}")
    agree = counts["processes"] == counts["threads"]
    words = "both counted the same" if agree else "BROKEN: they counted differently"
    screen.line(f"   {words}; at most {_IN_HAND} were with the pool at once, the others here")
    return agree, times


def _end_with_parent() -> None:
    """A Ctrl-C ends the demo at once, and its processes must not stay."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
