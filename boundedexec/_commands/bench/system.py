"""Measurements beside the rest of the system: I/O, asyncio, threads, imports, processors.

The functions are made like those of `submitting`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from ... import Service
from .tools import (
    LOST_AFTER,
    MICRO,
    MILLI,
    Figures,
    Meeting,
    NotMeasured,
    Pool,
    nothing,
    start_every_thread,
    usable_processors,
)


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
def http_server() -> Generator[int]:
    """Run a small HTTP server in another process; yield its port."""
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
            # The server ends with its standard input, so also when this process is killed.
            server.stdin.close()


def http_gets(pool: Pool, count: int) -> Figures:
    """Fetch a small page again and again, each time on a new connection."""
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


def unbounded_threads(count: int) -> Figures:
    """Start bare threads that are all blocked at the same time, and join them."""
    meeting = Meeting(count)
    start = time.perf_counter()
    threads = [threading.Thread(target=meeting.body) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        meeting.end()
        raise NotMeasured(f"{count:,} threads cannot be started: {error}") from error
    _complete(meeting)
    for thread in threads:
        thread.join()
    return {"time": (time.perf_counter() - start) * MILLI}


def unbounded_service(count: int) -> Figures:
    """Do the same with submissions to an unbounded service, and shut it down.

    The shutdown joins its threads, as `unbounded_threads` does.
    """
    meeting = Meeting(count)
    start = time.perf_counter()
    with Service.unbounded() as service:
        futures = [service.submit(meeting.body) for _ in range(count)]
        _complete(meeting)
        for future in futures:
            future.result()
    return {"time": (time.perf_counter() - start) * MILLI}


def _complete(meeting: Meeting) -> None:
    try:
        meeting.wait()
    finally:
        meeting.end()


def idle(pool: Pool, count: int) -> Figures:
    """Leave 32 threads idle for `count` tenths of a second."""
    with pool(32) as executor:
        start_every_thread(executor, 32)
        time.sleep(0.1)  # The last of them become idle.
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
        # An installed package is compiled. Here the first import compiles, into a
        # directory of its own: the modules' directory may be read-only.
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
