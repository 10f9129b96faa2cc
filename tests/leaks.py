"""A process stays at its size, whatever is submitted how often.

    python tests/leaks.py [--count N]

Each kind of use is made N times twice, after a first time that fills caches. What the
second half left behind is printed: objects, bytes, threads, file descriptors, the
process's own size. What grows, grows in both halves.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

from helpers import FREE_THREADED

import boundedexec
from boundedexec import Coalescer, DeadlockError, Service

LIMIT = 60.0

#: Bytes that may be as good as freed: without a GIL each thread has a list of 4 KiB for them.
FREED_LATER = 2 * 4096 if FREE_THREADED else 0


class Size(NamedTuple):
    objects: int
    bytes: int
    threads: int
    files: int
    resident: int  # kilobytes

    def __sub__(self, other: Size) -> Size:  # type: ignore[override, unused-ignore]
        return Size(*(a - b for a, b in zip(self, other, strict=True)))


def size() -> Size:
    for _ in range(3):
        gc.collect()
    files = resident = 0
    if os.path.isdir("/proc/self/fd"):
        files = len(os.listdir("/proc/self/fd"))
        with open("/proc/self/statm") as statm:
            resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    traced = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0
    return Size(len(gc.get_objects()), traced, threading.active_count(), files, resident)


@contextmanager
def traced() -> Generator[None]:
    """Have `size` count bytes in the block.

    While no thread is about to end: without a GIL, CPython may crash where one frees
    something while `tracemalloc` exchanges what frees, and what that is called with.
    """
    await_ends()
    tracemalloc.start()
    try:
        yield
    finally:
        await_ends()
        tracemalloc.stop()


def await_ends() -> None:
    """Return when every thread executes Python, where that can be seen."""
    end = time.monotonic() + LIMIT
    while FREE_THREADED and os.path.isdir("/proc/self/task") and time.monotonic() < end:
        if len(os.listdir("/proc/self/task")) <= len(sys._current_frames()):
            break
        time.sleep(0.001)


def raising() -> None:
    raise ValueError


def plain(service: Service) -> None:
    service.submit(int)


def with_everything(service: Service) -> None:
    future = service.submit(dict, [("a", 1)], b=2)
    future.add_done_callback(len_of_repr)
    future.result(LIMIT)


def len_of_repr(future: object) -> int:
    return len(repr(future))


def failing(service: Service) -> None:
    assert isinstance(service.submit(raising).exception(LIMIT), ValueError)


def dropped_failure(service: Service) -> None:
    service.submit(raising)


def cancelled(service: Service) -> None:
    service.submit(int).cancel()


def timed_out(service: Service) -> None:
    future = service.submit(int)
    try:
        future.result(0)
    except boundedexec.TimeoutError:
        pass


def nested(service: Service) -> None:
    service.submit(lambda: service.submit(int).result()).result(LIMIT)


def nested_wait(service: Service) -> None:
    def body() -> None:
        futures = [service.submit(int), service.submit(int)]
        boundedexec.wait(futures, return_when="FIRST_COMPLETED")
        list(boundedexec.as_completed(futures))

    service.submit(body).result(LIMIT)


def yielding(service: Service) -> None:
    service.submit(service.yield_slot, int).result(LIMIT)


def mapping(service: Service) -> None:
    next(iter(service.map(abs, range(3), buffersize=2)))


def waiting(service: Service) -> None:
    service.submit(service.submit, int).cancel()
    assert service.block_till_done(LIMIT)


def circle(service: Service) -> None:
    def body() -> None:
        try:
            own.pop().result()
        except (DeadlockError, IndexError):
            pass

    own: list[boundedexec.Future[None]] = []
    own.append(service.submit(body))
    assert service.block_till_done(LIMIT)


def coalescing(service: Service) -> None:
    coalescer: Coalescer[int] = Coalescer(service)
    for key in (1, 1, 2):
        last = coalescer.submit(key, int)
    last.result(LIMIT)


def services(_: Service) -> None:
    with Service(2, idle_timeout=0) as service:
        service.submit(int)


def unshut(_: Service) -> None:
    Service(1).submit(int).result(LIMIT)


#: Each use, and how many times less often it is made than the first.
USES: dict[Callable[[Service], None], int] = {
    plain: 1,
    with_everything: 5,
    failing: 5,
    dropped_failure: 5,
    cancelled: 1,
    timed_out: 2,
    nested: 10,
    nested_wait: 20,
    yielding: 5,
    mapping: 5,
    waiting: 10,
    circle: 20,
    coalescing: 10,
    services: 100,
    unshut: 100,
}


def settle(service: Service) -> None:
    assert service.block_till_done(LIMIT)
    # The threads of services that were dropped end on their own.
    end = time.monotonic() + LIMIT
    while threading.active_count() > 6 and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=(doc or "").partition("\n")[0])


def growth(use: Callable[[Service], None], count: int) -> tuple[Size, Size]:
    """What each of two halves of `count` uses each left behind."""
    service = Service(2, idle_timeout=None)

    def half(times: int) -> Size:
        for number in range(times):
            use(service)
            if number % 1000 == 999:
                # Otherwise the queue would be what grows.
                assert service.block_till_done(LIMIT)
        settle(service)
        return size()

    half(min(count, 500))
    before = half(10)
    between = half(count)
    after = half(count)
    service.shutdown()
    return between - before, after - between


def grows(use: Callable[[Service], None], count: int) -> str:
    """How `use` makes the process grow; nothing if it does not."""
    first, second = growth(use, count)
    small = max(100, count // 20)
    for what in ("objects", "threads", "files"):
        limit = small if what == "objects" else 2
        if min(getattr(first, what), getattr(second, what)) > limit:
            return f"{use.__name__}: {what} {getattr(first, what)}, {getattr(second, what)}"
    if min(first.bytes, second.bytes) > 16 * small + FREED_LATER:
        return f"{use.__name__}: bytes {first.bytes}, {second.bytes}"
    return ""


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=int, default=500_000, help="of the most frequent use")
    count = parser.parse_args().count
    logging.getLogger("boundedexec").setLevel(logging.CRITICAL)  # They fail on purpose.
    print(f"Python {sys.version.split()[0]}; what the second half of N uses left behind")
    print(f"{'use':16}{'N':>10}{'objects':>9}{'bytes':>9}{'threads':>8}{'files':>6}{'KiB':>7}")
    leaking = 0
    total = 0
    for use, rarity in USES.items():
        times = max(count // rarity, 100)
        with traced():
            first, second = growth(use, times // 10 or 1)
        # Untraced, for the great number.
        big_first, big = growth(use, times)
        total += 2 * (times + times // 10)
        print(
            f"{use.__name__:16}{times:10,}{big.objects:9,}{second.bytes:9,}"
            f"{big.threads:8}{big.files:6}{big.resident:7,}",
            flush=True,
        )
        small = max(100, times // 1000)
        leaking += min(big_first.objects, big.objects) > small
        leaking += min(first.bytes, second.bytes) > max(4096, times // 10) + FREED_LATER
        leaking += min(big_first.threads, big.threads) > 1 or min(big_first.files, big.files) > 0
        leaking += min(big_first.resident, big.resident) > max(1024, times // 200)
    print(f"{total:,} uses; {leaking} of the measures grow")
    return int(leaking > 0)


if __name__ == "__main__":
    sys.exit(main())
