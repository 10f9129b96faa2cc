"""The work that the benchmark measures, one function per kind of row.

A function takes what makes an executor of so many workers, and how many
operations to do, and returns its figures by name. The same function measures
the stdlib's pool, the `Service` and the floor; where the two sides cannot run
the same code, there is a function for each. Nothing here touches the garbage
collector or the switch interval, and futures are kept for as long as a caller
that wants all the results keeps them.

Each call is made in a process of its own (`child.py`), so what one measurement
leaves behind is not there for the next.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from .. import Coalescer, Service

P = ParamSpec("P")
T = TypeVar("T")

Figures = dict[str, float]
Pool = Callable[[int], Executor]

MICRO = 1e6
MILLI = 1e3
MEGABYTE = 1e6

# A measurement that waits longer than this for something that takes
# milliseconds has lost it.
LOST_AFTER = 60.0


class NotMeasured(Exception):
    """What this machine cannot measure; the message says why."""


class Floor(Executor):
    """The least that an executor with the stdlib's future can do.

    It makes the future, sets it running, calls, and sets the result, all in
    the caller's thread.
    """

    def __init__(self, workers: int) -> None:
        """Take `workers` as the executors do that it stands in for."""

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
    """Be the body of a row that measures what is around a body."""


def three_arguments(first: int, second: str, *, third: object) -> None:
    """Be the body of a row that hands over arguments."""


def same(value: int) -> int:
    """Be the body of the row of `map`."""
    return value


def resident_bytes() -> int:
    """Return the bytes of this process that are in memory now."""
    try:
        # Exact, where statm counts in batches per thread.
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

    None where Linux's /proc is not. `resource.getrusage` would do elsewhere, but
    there it may report the peak of the process that started this one.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def available_bytes() -> int | None:
    """Return the bytes that the machine can still give, None where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            for line in meminfo:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def thread_count() -> int:
    """Return how many threads of this process run Python code.

    `threading.active_count` misses those that were started below it.
    """
    return len(sys._current_frames())  # pyright: ignore[reportPrivateUsage]


@contextlib.contextmanager
def held(executor: Executor, workers: int) -> Generator[None, None, None]:
    """Keep all `workers` of `executor` busy with bodies that are blocked."""
    ready = threading.Barrier(workers + 1)
    release = threading.Event()

    def hold() -> None:
        ready.wait(LOST_AFTER)
        release.wait()

    for _ in range(workers):
        executor.submit(hold)
    ready.wait(LOST_AFTER)
    try:
        yield
    finally:
        release.set()


def start_every_thread(executor: Executor, workers: int) -> None:
    """Have `executor` start all its `workers`, and leave them parked."""
    together = threading.Barrier(workers)

    def meet() -> None:
        together.wait(LOST_AFTER)

    for future in [executor.submit(meet) for _ in range(workers)]:
        future.result()


def set_five_variables() -> None:
    """Give the context of the caller five variables."""
    for number in range(5):
        contextvars.ContextVar[int](f"variable_{number}").set(number)


def throughput(pool: Pool, count: int, *, workers: int) -> Figures:
    """Submit bodies that do nothing, keep the futures, ask for all the results."""
    with pool(workers) as executor:
        start = time.perf_counter()
        futures = [executor.submit(nothing) for _ in range(count)]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def throughput_real(pool: Pool, count: int) -> Figures:
    """Do the same with arguments, under a context that has variables."""
    set_five_variables()
    third = object()
    with pool(8) as executor:
        start = time.perf_counter()
        futures = [executor.submit(three_arguments, 1, "second", third=third) for _ in range(count)]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def submit(pool: Pool, count: int) -> Figures:
    """Submit to an executor whose workers are all blocked."""
    with pool(8) as executor, held(executor, 8):
        start = time.perf_counter()
        futures = [executor.submit(nothing) for _ in range(count)]
        seconds = time.perf_counter() - start
        del futures
    return {"time": seconds / count * MICRO}


def memory(pool: Pool, count: int) -> Figures:
    """Weigh pending submissions whose futures are kept."""
    # The list that keeps the futures is the caller's, so it is there before.
    futures: list[Future[None] | None] = [None] * count
    with pool(8) as executor, held(executor, 8):
        before = resident_bytes()
        for index in range(count):
            futures[index] = executor.submit(nothing)
        after = resident_bytes()
    return {"memory": (after - before) / count}


def memory_real(pool: Pool, count: int) -> Figures:
    """Weigh pending submissions with arguments, under a context that has variables.

    The arguments are the same objects each time: they are the caller's memory.
    """
    set_five_variables()
    third = object()
    futures: list[Future[None] | None] = [None] * count
    with pool(8) as executor, held(executor, 8):
        before = resident_bytes()
        for index in range(count):
            futures[index] = executor.submit(three_arguments, 1, "second", third=third)
        after = resident_bytes()
    return {"memory": (after - before) / count}


def million(pool: Pool, count: int) -> Figures:
    """Queue very many submissions, then let them all be done."""
    available = available_bytes()
    needed = 2_500 * count
    if available is not None and available < needed:
        raise NotMeasured(f"it needs {needed / MEGABYTE:,.0f} MB of free memory")
    threads: list[int] = []

    def count_threads() -> None:
        threads.append(thread_count())

    futures: list[Future[None] | None] = [None] * count
    with pool(8) as executor:
        before = peak_resident_bytes()
        start = time.perf_counter()
        with held(executor, 8):
            for index in range(count):
                futures[index] = executor.submit(nothing if index % 1000 else count_threads)
        for future in futures:
            if future is not None:
                future.result()
        seconds = time.perf_counter() - start
        peak = peak_resident_bytes()
    figures = {"time": seconds, "threads": float(max(threads))}
    if before is not None and peak is not None:
        figures["peak"] = (peak - before) / MEGABYTE
    return figures


def cancel(pool: Pool, count: int) -> Figures:
    """Cancel queued submissions."""
    with pool(8) as executor, held(executor, 8):
        futures = [executor.submit(nothing) for _ in range(count)]
        start = time.perf_counter()
        for future in futures:
            future.cancel()
        seconds = time.perf_counter() - start
        if not all(future.cancelled() for future in futures):
            raise RuntimeError("a queued submission could not be cancelled")
    return {"time": seconds / count * MICRO}


def round_trip(pool: Pool, count: int) -> Figures:
    """Submit and wait, one after the other."""
    with pool(8) as executor:
        executor.submit(nothing).result()
        start = time.perf_counter()
        for _ in range(count):
            executor.submit(nothing).result()
        seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def burst(pool: Pool, count: int) -> Figures:
    """Submit 32 at once to 32 workers that are parked."""
    seconds = 0.0
    with pool(32) as executor:
        start_every_thread(executor, 32)
        for _ in range(count):
            time.sleep(0.005)  # The workers of the last burst park.
            start = time.perf_counter()
            futures = [executor.submit(nothing) for _ in range(32)]
            for future in futures:
                future.result()
            seconds += time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def map_range(pool: Pool, count: int) -> Figures:
    """Map over a range."""
    with pool(8) as executor:
        start = time.perf_counter()
        results = list(executor.map(same, range(count)))
        seconds = time.perf_counter() - start
    if results != list(range(count)):
        raise RuntimeError("map returned other results than it should")
    return {"time": seconds / count * MICRO}


def wait_for_all(pool: Pool, count: int) -> Figures:
    """Submit, and wait for all with the stdlib's `wait`."""
    with pool(8) as executor:
        start = time.perf_counter()
        futures = [executor.submit(nothing) for _ in range(count)]
        concurrent.futures.wait(futures)
        seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def take_as_completed(pool: Pool, count: int) -> Figures:
    """Submit, and take each future from the stdlib's `as_completed`."""
    with pool(8) as executor:
        start = time.perf_counter()
        futures = [executor.submit(nothing) for _ in range(count)]
        for future in concurrent.futures.as_completed(futures):
            future.result()
        seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


def fan_out(pool: Pool, count: int) -> Figures:
    """Run bodies that sleep for ten milliseconds on 32 workers."""
    with pool(32) as executor:
        start = time.perf_counter()
        futures = [executor.submit(time.sleep, 0.01) for _ in range(count)]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - start
    return {"time": seconds * MILLI}


@contextlib.contextmanager
def http_server() -> Generator[int, None, None]:
    """Run a small HTTP server in another process; its port is yielded."""
    script = Path(__file__).with_name("http_server.py")
    with subprocess.Popen(
        [sys.executable, "-I", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        if server.stdin is None or server.stdout is None:
            raise RuntimeError("the HTTP server has no pipes")
        try:
            yield int(server.stdout.readline())
        finally:
            # It ends when its input does, so it ends with this process too.
            server.stdin.close()


def http_gets(pool: Pool, count: int) -> Figures:
    """Fetch a small page very often, each time on a connection of its own."""
    with http_server() as port:

        def get() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LOST_AFTER)
            try:
                connection.request("GET", "/")
                return len(connection.getresponse().read())
            finally:
                connection.close()

        expected = get()
        with pool(32) as executor:
            start = time.perf_counter()
            futures = [executor.submit(get) for _ in range(count)]
            lengths = [future.result() for future in futures]
            seconds = time.perf_counter() - start
        if lengths != [expected] * count:
            raise RuntimeError("the HTTP server answered something else")
    return {"time": seconds * MILLI}


def asyncio_gather(pool: Pool, count: int) -> Figures:
    """Gather calls of `loop.run_in_executor`."""

    async def gather(executor: Executor) -> float:
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        await asyncio.gather(*[loop.run_in_executor(executor, nothing) for _ in range(count)])
        return time.perf_counter() - start

    with pool(8) as executor:
        seconds = asyncio.run(gather(executor))
    return {"time": seconds / count * MICRO}


def fresh(pool: Pool, count: int) -> Figures:
    """Make an executor, use it for four submissions, shut it down."""
    start = time.perf_counter()
    for _ in range(count):
        with pool(4) as executor:
            futures = [executor.submit(nothing) for _ in range(4)]
        del futures
    seconds = time.perf_counter() - start
    return {"time": seconds / count * MICRO}


class Meeting:
    """So many bodies that are all blocked at once."""

    def __init__(self, count: int) -> None:
        """Expect `count` bodies."""
        self._count = count
        self._arrived: list[None] = []
        self._complete = threading.Event()
        self._over = threading.Event()

    def body(self) -> None:
        """Arrive, and block until the meeting is over."""
        # `list.append` is atomic with and without a GIL, and each looks after
        # its own, so the last to arrive sees them all.
        self._arrived.append(None)
        if len(self._arrived) >= self._count:
            self._complete.set()
        self._over.wait()

    def end(self) -> None:
        """Wait until all have arrived, and let them go."""
        complete = self._complete.wait(LOST_AFTER)
        self._over.set()
        if not complete:
            raise RuntimeError(
                f"{len(self._arrived)} of {self._count} bodies had a thread after {LOST_AFTER} s"
            )

    def give_up(self) -> None:
        """Let those go that have arrived."""
        self._over.set()


def unbounded_threads(count: int) -> Figures:
    """Block a bare thread each."""
    meeting = Meeting(count)
    start = time.perf_counter()
    threads = [threading.Thread(target=meeting.body) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        meeting.give_up()
        raise NotMeasured(f"{count:,} threads cannot be started: {error}") from error
    meeting.end()
    for thread in threads:
        thread.join()
    return {"time": (time.perf_counter() - start) * MILLI}


def unbounded_service(count: int) -> Figures:
    """Block a submission each, on an unbounded service.

    It is over when its threads are gone, as the bare threads are.
    """
    meeting = Meeting(count)
    start = time.perf_counter()
    with Service.unbounded() as service:
        futures = [service.submit(meeting.body) for _ in range(count)]
        meeting.end()
        for future in futures:
            future.result()
    return {"time": (time.perf_counter() - start) * MILLI}


def nested_service(count: int) -> Figures:
    """Run bodies that each wait for a submission of their own."""
    threads: list[int] = []

    with Service(8) as service:

        def inner(number: int) -> None:
            if number % 20 == 0:
                threads.append(thread_count())

        def outer(number: int) -> None:
            service.submit(inner, number).result()

        start = time.perf_counter()
        futures = [service.submit(outer, number) for number in range(count)]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - start
    # The main thread is none of the service's.
    return {"time": seconds * MILLI, "threads": float(max(threads) - 1)}


def nested_stdlib(count: int) -> Figures:
    """Submit as many as `nested_service` does in all, none of which waits.

    The stdlib's pool would hang with the nested ones.
    """
    threads: list[int] = []

    def body(number: int) -> None:
        if number % 40 == 0:
            threads.append(thread_count())

    with ThreadPoolExecutor(8) as executor:
        start = time.perf_counter()
        futures = [executor.submit(body, number) for number in range(2 * count)]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - start
    return {"time": seconds * MILLI, "threads": float(max(threads) - 1)}


def coalesced_submit(count: int) -> Figures:
    """Submit to a key that is running, again and again."""
    futures: list[Future[None] | None] = [None] * count
    started = threading.Event()
    release = threading.Event()

    def run() -> None:
        started.set()
        release.wait()

    with Service(8) as service:
        coalescer: Coalescer[str] = Coalescer(service)
        coalescer.submit("key", run)
        if not started.wait(LOST_AFTER):
            raise RuntimeError("the first run of a key did not start")
        try:
            # The one re-run that all the others join.
            coalescer.submit("key", nothing)
            before = _resident_bytes_or_none()
            start = time.perf_counter()
            for index in range(count):
                futures[index] = coalescer.submit("key", nothing)
            seconds = time.perf_counter() - start
            after = _resident_bytes_or_none()
        finally:
            release.set()
    figures = {"time": seconds / count * MICRO}
    if before is not None and after is not None:
        figures["memory"] = max(0, after - before) / count
    return figures


def _resident_bytes_or_none() -> int | None:
    try:
        return resident_bytes()
    except NotMeasured:
        return None


def yield_slot(count: int) -> Figures:
    """Yield the slot of a body, with nobody there to take it."""

    def body(service: Service) -> float:
        start = time.perf_counter()
        for _ in range(count):
            service.yield_slot(nothing)
        return time.perf_counter() - start

    with Service(8) as service:
        seconds = service.submit(body, service).result()
    return {"time": seconds / count * MICRO}


def idle(pool: Pool, count: int) -> Figures:
    """Park 32 threads for so many tenths of a second."""
    with pool(32) as executor:
        start_every_thread(executor, 32)
        time.sleep(0.1)  # The last of them park.
        start = time.process_time()
        time.sleep(count / 10)
        seconds = time.process_time() - start
    return {"time": seconds * MILLI}


def import_module(count: int, *, module: str, after: str) -> Figures:
    """Import `module` in a fresh interpreter that has imported `after`."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        f"import {after}\n"
        "from time import process_time\n"
        "start = process_time()\n"
        f"import {module}\n"
        "print(process_time() - start)\n"
    )
    with tempfile.TemporaryDirectory() as cache:
        # An installed package is compiled. The first import does that here, also
        # where this user may not write beside the modules, or does not want to.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        costs = [
            float(subprocess.check_output([sys.executable, "-c", code], env=environment))
            for _ in range(1 + count)
        ]
    return {"time": sum(costs[1:]) / count * MILLI}


def scaling(pool: Pool, count: int) -> Figures:
    """Run four bodies that only compute on one worker, and then on two."""
    if usable_processors() < 2:
        raise NotMeasured("it needs two processors")

    def compute() -> int:
        total = 0
        for number in range(count):
            total += number
        return total

    def seconds(workers: int) -> float:
        with pool(workers) as executor:
            start_every_thread(executor, workers)
            start = time.perf_counter()
            futures: list[Future[Any]] = [executor.submit(compute) for _ in range(4)]
            for future in futures:
                future.result()
            return time.perf_counter() - start

    return {"speed-up": seconds(1) / seconds(2)}


def usable_processors() -> int:
    """Return how many processors this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
