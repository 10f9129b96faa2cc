"""What the tests share: bodies that hold slots, scripts, starts that fail, the log."""

from __future__ import annotations

import _thread
import gc
import logging
import os
import select
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

#: Seconds after which something that has to happen is taken not to.
LIMIT = 30.0

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

#: Where the child of a fork says that it runs Python: the end of a pipe, if anywhere.
_begun: list[int] = []


def _say_begun() -> None:
    if _begun:
        os.write(_begun[0], b"!")


if hasattr(os, "register_at_fork"):
    # Here the package is not imported yet: its hooks are called after this one.
    os.register_at_fork(after_in_child=_say_begun)


def pytest_collection_finish() -> None:
    """What is there before the first test need not be looked through by each collection."""
    gc.collect()
    gc.freeze()


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds, where nothing tells when it does."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
        if FREE_THREADED:
            # There, what was made by a thread that sleeps is freed by the collector.
            gc.collect()


def fork(meanwhile: Callable[[], object]) -> int:
    """`os.fork`, with `meanwhile` called in the parent.

    Again where CPython without a GIL loses the child: while it deletes the threads of the
    parent, before any hook, it may crash (`_Py_brc_remove_thread`) or stand still
    (`_PyMem_AbandonDelayed`). In 3.13.5 that is one of some thousand beside other threads.
    """
    for _ in range(5):
        told, begun = os.pipe()
        _begun.append(begun)
        child = os.fork()
        _begun.clear()
        if child:
            meanwhile()
        os.close(begun)
        begins = not child or (select.select([told], [], [], LIMIT)[0] and os.read(told, 1))
        os.close(told)
        if begins or not FREE_THREADED:
            return child
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    raise AssertionError("no child of a fork comes to its first hook")


def shallow(act: Callable[[], object]) -> Callable[..., None]:
    """A signal handler that calls `act`, and that interrupts itself a few times at most.

    One that takes longer than its next signal would do so deeper and deeper, until a
    `RecursionError` is raised just anywhere.
    """
    depth: list[None] = []

    def handler(*_: object) -> None:
        depth.append(None)
        if len(depth) < 5:
            act()
        depth.pop()

    return handler


@contextmanager
def holding(executor: Executor, count: int = 1) -> Generator[None]:
    """Have `count` bodies run on `executor` until the block is over."""
    started = threading.Barrier(count + 1)
    release = threading.Event()

    def body() -> None:
        started.wait(LIMIT)
        release.wait()

    futures = [executor.submit(body) for _ in range(count)]
    try:
        started.wait(LIMIT)
        yield
    finally:
        release.set()
        for future in futures:
            future.result(LIMIT)


def run_script(source: str, *flags: str, **environment: str) -> list[str]:
    """Run `source` in an interpreter of its own: the lines it prints. Ends well and quietly."""
    import boundedexec  # noqa: PLC0415

    root = str(Path(boundedexec.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


class Starts:
    """Starts threads in the package's name, or fails to."""

    def __init__(self, start: Callable[..., Any]) -> None:
        self.failing: Callable[[], bool] = lambda: False
        self._start = start

    def fail(self, failing: bool = True) -> None:
        self.failing = lambda: failing

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.failing():
            raise RuntimeError("can't start new thread")
        return self._start(*args, **kwargs)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    """What starts the package's threads in this test. The test's own always start."""
    name = "start_joinable_thread" if FREE_THREADED else "start_new_thread"
    starts = Starts(getattr(_thread, name))
    monkeypatch.setattr(_thread, name, starts)
    return starts


@pytest.fixture
def log() -> Iterator[SimpleQueue[logging.LogRecord]]:
    """What is logged on `boundedexec`, as it comes."""
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.put(record)

    handler = Handler()
    logger = logging.getLogger("boundedexec")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
