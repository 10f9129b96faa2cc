"""What the tests of the contract share: bodies that wait, checks of slots, forks, the log."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boundedexec
from boundedexec import Service

#: Seconds after which something that has to happen is taken not to.
LIMIT = 10.0

#: Seconds that something which must not happen is given to happen.
MOMENT = 0.1


def new_service(max_workers: Any = 1, **options: Any) -> Service:
    """A service whose threads keep no test run alive, whatever a failure leaves behind."""
    options.setdefault("daemon", True)
    return Service(max_workers, **options)


class Gate:
    """A body that says that it runs, and goes on once the gate is open."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self, result: Any = None) -> Any:
        self.entered.set()
        assert self.opened.wait(LIMIT), "nobody opened the gate"
        return result

    def wait_entered(self) -> None:
        assert self.entered.wait(LIMIT), "the body did not start"

    def open(self) -> None:
        self.opened.set()


class Executing:
    """Counts the bodies between `enter` and `leave`, and the most at one time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = 0
        self.peak = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.peak = max(self.peak, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


@contextmanager
def full(executor: Executor, count: int = 1) -> Generator[Callable[[], None]]:
    """Have `count` bodies run on `executor` until the block is over, or what it yields called."""
    gates = [Gate() for _ in range(count)]
    futures = [executor.submit(gate) for gate in gates]

    def release() -> None:
        for gate in gates:
            gate.open()

    try:
        for gate in gates:
            gate.wait_entered()
        yield release
    finally:
        release()
        for future in futures:
            future.result(LIMIT)


def wake(service: Service) -> None:
    """Have a thread of `service` run again: without a GIL, what it has made and another thread
    drops is freed then."""
    service.submit(int).result(LIMIT)


def wait_until(condition: Callable[[], bool], limit: float = LIMIT) -> None:
    """Return when `condition` holds, where nothing signals when it does."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.002)


def is_collected(reference: weakref.ref[Any]) -> bool:
    gc.collect()
    return reference() is None


def collected(*references: weakref.ref[Any], limit: float = 3.0) -> bool:
    """Whether all of `references` die, where their threads may need a moment to let go."""
    end = time.monotonic() + limit
    while not all(is_collected(reference) for reference in references):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def slots_fault(service: Service, count: int, limit: float = LIMIT, moment: float = 0.02) -> str:
    """What is wrong with the `count` slots of an idle service; "" where nothing is.

    `moment` is how many seconds one body too many is given to start.
    """
    if not service.block_till_done(limit):
        return "something is outstanding for ever"
    meeting = threading.Barrier(count + 1)
    release = threading.Event()
    extra = threading.Event()

    def meet() -> None:
        meeting.wait(limit)
        release.wait(limit)

    try:
        futures: list[Future[Any]] = [service.submit(meet) for _ in range(count)]
        try:
            meeting.wait(limit)
        except threading.BrokenBarrierError:
            return f"not all of {count} slots can be used"
        futures.append(service.submit(extra.set))
        if extra.wait(moment):
            return f"more than {count} bodies execute at a time"
    except BaseException:
        meeting.abort()  # Not after the meeting: it would fail for those that still wake.
        raise
    finally:
        release.set()
    for future in futures:
        if future.exception(limit) is not None:
            return f"a body failed with {future.exception(0)!r}"
    if not service.block_till_done(limit):
        return "outstanding although every body is over"
    return ""


def check_slots(service: Service, count: int) -> None:
    """Assert that an idle service has exactly `count` slots, and works."""
    fault = slots_fault(service, count)
    assert fault == "", fault


def in_thread(act: Callable[[], Any], limit: float = LIMIT) -> Any:
    """What `act` returns or raises, on a thread that may be left behind if it hangs."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(limit)


def near_the_limit(slack: int, call: Callable[[], Any]) -> Any:
    """Call `call` where about `slack` more frames fit under the recursion limit."""
    frame = inspect.currentframe()
    used = 0
    while frame is not None:
        used, frame = used + 1, frame.f_back

    def down(levels: int) -> Any:
        return down(levels - 1) if levels > 0 else call()

    return down(sys.getrecursionlimit() - used - slack)


@contextmanager
def logged() -> Generator[list[logging.LogRecord]]:
    """The records of the logger `boundedexec`, as they come; nothing else hears them."""
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Handler()
    logger = logging.getLogger("boundedexec")
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def fork_and_say(act: Callable[[], Any], limit: float = 20.0) -> Any:
    """Fork, and return in the parent what `act` returns in the child (or its traceback).

    The child never returns from here. It may be called on any thread, in a body too.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said: Any = "the child raised nothing that can be told"
        try:
            signal.alarm(int(limit))
            said = act()
        except BaseException:
            said = traceback.format_exc()
        finally:
            os.write(writing, pickle.dumps(said))
            os._exit(0)
    os.close(writing)
    try:
        received = b""
        end = time.monotonic() + limit
        while select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(reading, 65536)
            if not part:
                break
            received += part
        else:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    return pickle.loads(received) if received else "the child hangs"


def run_script(source: str, *, limit: float = 30.0, **environment: str) -> list[str]:
    """The lines that `source` prints in an interpreter of its own. It ends well and quietly."""
    root = str(Path(boundedexec.__file__).parents[1])
    path = os.pathsep.join([environment.pop("PYTHONPATH", root), root])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=limit,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()
