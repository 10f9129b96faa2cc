"""What the measurements share: the floor, blocked bodies, memory, threads, switches.

Nothing here or in the measurements changes the garbage collector's settings or the
switch interval.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Figures = dict[str, float]
Pool = Callable[[int], Executor]
"""Makes an executor with that many workers."""

MICRO = 1e6
MILLI = 1e3
MEGABYTE = 1e6

LOST_AFTER = 60.0
"""Seconds after which something that takes milliseconds counts as lost."""


class NotMeasured(Exception):
    """This machine cannot measure it; the message says why."""


def growth(before: float, after: float) -> float:
    """Return how many times `before` is contained in `after`, both in seconds."""
    if before <= 0:
        raise NotMeasured("the clock is too coarse at this size")
    return after / before


class Floor(Executor):
    """The least that an executor with the stdlib's future can do.

    `submit` creates the future, marks it as running, calls the callable and sets the
    result, all in the caller's thread.
    """

    def __init__(self, workers: int) -> None:
        """Ignore `workers`; the argument is there because other executors take it."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn` now."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
        return future


def nothing() -> None:
    """Do nothing: the body where only the cost around a body is measured."""


def three_arguments(first: int, second: str, *, third: object) -> None:
    """Do nothing with three arguments."""


def same(value: int) -> int:
    """Return `value`: the body of the row of `map`."""
    return value


@contextlib.contextmanager
def held(executor: Executor, workers: int) -> Generator[None]:
    """Block `workers` workers of `executor` until the end of the ``with`` block."""
    meeting = Meeting(workers)
    for _ in range(workers):
        executor.submit(meeting.body)
    try:
        meeting.wait()
        yield
    finally:
        meeting.end()


def start_every_thread(executor: Executor, workers: int) -> None:
    """Make `executor` start all of its `workers` threads; afterwards they are idle."""
    together = threading.Barrier(workers)

    def meet() -> None:
        together.wait(LOST_AFTER)

    for future in [executor.submit(meet) for _ in range(workers)]:
        future.result()


class Meeting:
    """Bodies that are all blocked at the same time, until `end`."""

    def __init__(self, count: int) -> None:
        """Expect `count` bodies."""
        self._count = count
        self._arrived: list[None] = []
        self._complete = threading.Event()
        self._over = threading.Event()

    def arrive(self) -> None:
        """Count the calling body as arrived, and return at once."""
        # `list.append` is atomic with and without a GIL. Each body appends before it
        # looks at the length, so the last to append sees all of them.
        self._arrived.append(None)
        if len(self._arrived) >= self._count:
            self._complete.set()

    def body(self) -> None:
        """Arrive, and block until the meeting ends."""
        self.arrive()
        self._over.wait()

    def wait(self) -> None:
        """Block until all bodies have arrived. Raises `RuntimeError` if they do not."""
        if not self._complete.wait(LOST_AFTER):
            raise RuntimeError(
                f"{len(self._arrived)} of {self._count} bodies had a thread after {LOST_AFTER} s"
            )

    def end(self) -> None:
        """Release the bodies that have arrived and those that still will."""
        self._over.set()


def set_five_variables() -> None:
    """Set five context variables in the caller's context."""
    for number in range(5):
        contextvars.ContextVar[int](f"variable_{number}").set(number)


def resident_bytes() -> int:
    """Return the bytes of this process that are in memory now."""
    try:
        # Exact; the kernel updates statm in batches per thread.
        with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:
            for line in rollup:
                if line.startswith("Rss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        raise NotMeasured("resident memory is read from Linux's /proc") from None


def peak_resident_bytes() -> int | None:
    """Return the most bytes that this process ever had in memory.

    None without Linux's /proc. `resource.getrusage` is no replacement: on some systems
    it reports the peak of the parent process.
    """
    return _kilobytes("/proc/self/status", "VmHWM:")


def available_bytes() -> int | None:
    """Return how many bytes of memory the machine has available, None if unknown."""
    return _kilobytes("/proc/meminfo", "MemAvailable:")


def _kilobytes(path: str, name: str) -> int | None:
    try:
        with open(path, encoding="ascii") as lines:
            for line in lines:
                if line.startswith(name):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def thread_count() -> int:
    """Return how many threads of this process run Python code.

    `threading.active_count` does not count threads started through `_thread`.
    """
    return len(sys._current_frames())  # pyright: ignore[reportPrivateUsage]


def usable_processors() -> int:
    """Return how many processors this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def settle() -> None:
    """Block until the threads of this process are all blocked, as far as can be seen."""
    end = time.monotonic() + LOST_AFTER
    used = math.inf
    while used > 0.002 and time.monotonic() < end:
        start = time.process_time()
        time.sleep(0.1)
        used = time.process_time() - start


@contextlib.contextmanager
def one_processor() -> Generator[None]:
    """Run this thread, and the threads that it starts meanwhile, on one processor.

    A switch of threads costs several times as much between processors as on one, and
    which of them it is varies within a measurement. Does nothing where the system has no
    such call.
    """
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def voluntary_switches() -> int | None:
    """Return how often threads of this process blocked in the kernel so far.

    None where the system does not count it.
    """
    try:
        import resource  # noqa: PLC0415 - Windows does not have it.
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
