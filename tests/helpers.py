"""What the tests share: bodies that hold slots, executors, scripts, faults, ways to wait."""

from __future__ import annotations

import concurrent.futures
import dis
import functools
import gc
import logging
import os
import random
import re
import select
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Executor, Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import CodeType, FrameType
from typing import Any, ClassVar, NoReturn

import pytest

import boundedexec
from boundedexec import Coalescer, Service, ThreadPoolExecutor

AnyFuture = Future[Any]
NewService = Callable[..., Service]
Wait = Callable[[AnyFuture], object]
TimedWait = Callable[[AnyFuture, float], object]

#: Seconds after which something that has to happen is taken not to.
LIMIT = 30.0

#: Seconds to give something that must not happen; a test is right if it is too short.
A_WHILE = 0.03

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

#: Whether a new thread has the context of the thread that started it, as on newer Pythons.
THREADS_INHERIT_CONTEXT = bool(getattr(sys.flags, "thread_inherit_context", False))

#: The directory of the package's source.
PACKAGE = str(Path(boundedexec.__file__).parent)

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
needs_timer_signals = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="no timer signals here"
)


# Things to submit and to raise


class Oops(BaseException):
    """What no `except Exception` catches."""


class Boom(Exception):
    """What bodies raise; instances can be referred to weakly."""


class Thing:
    """Can be referred to weakly, and called."""

    def __call__(self, *args: object, **kwargs: object) -> Thing:
        return Thing()


class Cycle:
    """Garbage that only the collector finds, and that submits when it does."""

    def __init__(self, submit: Callable[[], object]) -> None:
        self._submit = submit
        self._self = self

    def __del__(self) -> None:
        self._submit()


def fail(exception: BaseException, *_: object) -> NoReturn:
    """Raise `exception`, and leave no reference cycle through its traceback."""
    try:
        raise exception
    finally:
        del exception


# Waiting, and what there is to wait for


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds, where nothing signals that it does."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
        if FREE_THREADED:
            # There, what was made by a thread that sleeps is freed by the collector.
            gc.collect()


def all_gone(kept: Iterable[weakref.ref[Any]]) -> bool:
    return all(reference() is None for reference in kept)


def collected(reference: weakref.ref[Any]) -> bool:
    """Whether it is freed, with the collector's help, once a pool's threads released it."""
    end = time.monotonic() + LIMIT
    while reference() is not None and time.monotonic() < end:
        time.sleep(0.001)
        gc.collect()
    return reference() is None


def ended(thread: threading.Thread) -> bool:
    """Whether `thread` ends, in every way in which that can be asked."""
    thread.join(LIMIT)
    return not thread.is_alive() and thread not in threading.enumerate()


@contextmanager
def switching_often() -> Generator[None]:
    """Have threads switched as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


class Blocking:
    """Shows from outside that a thread is blocked on a lock."""

    def __init__(self) -> None:
        self._steps = 0

    def watch(self) -> None:
        """Watch this thread from now on."""
        sys.setprofile(self._profile)

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        # Called, returned, raised: an odd number while it is inside.
        if event.startswith("c_") and arg.__name__ == "acquire":
            self._steps += 1

    def wait(self) -> None:
        """Return when the thread has been inside one `acquire` for a while."""
        end = time.monotonic() + LIMIT
        while True:
            steps = self._steps
            time.sleep(0.01)
            if steps % 2 and steps == self._steps:
                return
            assert time.monotonic() < end


#: The ways to wait without a timeout for what `submit` returns.
WAITS: dict[str, Wait] = {
    "result": lambda future: future.result(),
    "exception": lambda future: future.exception(),
    "wait": lambda future: boundedexec.wait([future]),
    "first completed": lambda future: boundedexec.wait([future], None, FIRST_COMPLETED),
    "first exception": lambda future: boundedexec.wait([future], return_when=FIRST_EXCEPTION),
    "as_completed": lambda future: list(boundedexec.as_completed([future])),
    "the stdlib's wait": lambda future: concurrent.futures.wait([future]),
    "the stdlib's as_completed": lambda future: list(concurrent.futures.as_completed([future])),
}
every_wait = pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)


class Later:
    """A future that bodies get to know after they were submitted."""

    def __init__(self) -> None:
        self._future: AnyFuture
        self._known = threading.Event()

    def set(self, future: AnyFuture) -> None:
        self._future = future
        self._known.set()

    def get(self) -> AnyFuture:
        assert self._known.wait(LIMIT)
        return self._future


def submit_knowing(service: Service, body: Callable[[AnyFuture], Any]) -> AnyFuture:
    """Submit `body`, which is given its own future."""
    me = Later()

    @functools.wraps(body)
    def knowing() -> Any:
        return body(me.get())

    me.set(service.submit(knowing))
    return me.get()


def cancel_all(futures: Iterable[AnyFuture]) -> list[bool]:
    return [future.cancel() for future in futures]


# Slots


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


def bound_of(pool: Any) -> int | None:
    """How many bodies it executes at once."""
    pool = getattr(pool, "executor", pool)
    bound: int | None = getattr(pool, "max_workers", getattr(pool, "_max_workers", None))
    return bound


def check_every_slot(service: Service) -> None:
    """Nothing is outstanding; each slot can be used, all at once, and there are no more."""
    assert service.block_till_done(LIMIT), "something is outstanding for ever"
    bound = service.max_workers
    with holding(service, bound or 3):
        assert not service.block_till_done(0)
        more = service.submit(int)
        if bound:
            assert not more.running() and not more.done()
    assert more.result(LIMIT) == 0
    assert service.block_till_done(LIMIT)


class Ledger:
    """What was submitted to a service, and how often each of it was executed."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.futures: list[Future[Any]] = []
        self.runs: dict[int, int] = {}

    def body(self, number: int) -> int:
        self.runs[number] = self.runs.get(number, 0) + 1
        return number

    def submit(self, number: int) -> Future[int]:
        future = self.service.submit(self.body, number)
        self.futures.append(future)
        return future


@contextmanager
def sound(
    bound: int,
    idle_timeout: float | None = 10.0,
    initializer: Callable[[], object] | None = None,
) -> Generator[tuple[Service, Ledger]]:
    """A service that is as good as new after the block, whatever happened in it."""
    # A daemon, so that one which is not does not keep the tests from ending.
    service = Service(bound, "", initializer, idle_timeout=idle_timeout, daemon=True)
    ledger = Ledger(service)
    yield service, ledger
    check_every_slot(service)
    assert all(future.done() for future in ledger.futures)
    assert all(count == 1 for count in ledger.runs.values()), ledger.runs
    check_threads_end(service)


def check_threads_end(service: Service) -> None:
    over = threading.Event()

    def end() -> None:
        service.shutdown()
        over.set()

    threading.Thread(target=end, daemon=True).start()
    assert over.wait(LIMIT), f"threads do not end: {threading.enumerate()}"


class Executing:
    """Counts those who execute: `with executing:` around what needs a slot."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.peak = 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.peak = max(self.peak, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1

    @contextmanager
    def pause(self) -> Generator[None]:
        """Around what a body does without a slot, or may."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


# Executors for a Coalescer


class Inline(Executor):
    """Runs everything in `submit`."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AnyFuture:
        future = AnyFuture()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as exception:
            future.set_exception(exception)
        return future


class Manual(Executor):
    """Runs what it was handed when `run` is called."""

    def __init__(self) -> None:
        self.handed: deque[tuple[AnyFuture, Callable[..., Any], Any, Any]] = deque()
        #: What it refuses submissions with.
        self.refusal: BaseException | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AnyFuture:
        if self.refusal is not None:
            raise self.refusal
        future = AnyFuture()
        self.handed.append((future, fn, args, kwargs))
        return future

    def run(self) -> None:
        while self.handed:
            future, fn, args, kwargs = self.handed.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except Exception as exception:
                    future.set_exception(exception)

    def run_until(self, future: AnyFuture) -> None:
        end = time.monotonic() + LIMIT
        while not future.done() and time.monotonic() < end:
            self.run()


class Passing(Executor):
    """Passes on to `executor`; before and after that, it calls `before` and `after` once each."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.before: Callable[[], object] = int
        self.after: Callable[[], object] = int

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AnyFuture:
        before, self.before = self.before, int
        before()
        future = self.executor.submit(fn, *args, **kwargs)
        after, self.after = self.after, int
        after()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.executor.shutdown(wait, cancel_futures=cancel_futures)


class Chained(Service):
    """A Service that gives out other futures than its own."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        chained = AnyFuture()
        super().submit(fn, *args, **kwargs).add_done_callback(
            lambda done: chained.set_result((done.result(), "chained"))
        )
        return chained


class Overriding(Service):
    """A Service with a `submit` of its own, which gives out futures of its own."""

    submits = 0
    before: Callable[[], object] = int

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.submits += 1
        self.before()
        return super().submit(functools.partial(fn, *args), **kwargs)


class InlineService(Service):
    """A Service that runs everything in `submit`, as tests like to have it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return Inline().submit(fn, *args, **kwargs)


SERVICES: dict[str, Callable[[], Service]] = {
    "one slot": lambda: Service(1),
    "three slots": lambda: Service(3),
    "no bound": Service.unbounded,
    "drop-in": lambda: ThreadPoolExecutor(2),
    "overriding": lambda: Overriding(2),
}
POOLS: dict[str, Callable[[], Executor]] = {
    **SERVICES,
    "stdlib": lambda: concurrent.futures.ThreadPoolExecutor(2),
    "passing": lambda: Passing(Service(2)),
}
EXECUTORS: dict[str, Callable[[], Executor]] = {
    **POOLS,
    "inline": Inline,
    "inline service": lambda: InlineService(1),
}

#: The package's executors, made with a number of workers.
OWN_EXECUTORS: dict[str, Callable[[int], Service]] = {
    "service": Service,
    "drop-in": ThreadPoolExecutor,
}
every_executor = pytest.mark.parametrize("make", OWN_EXECUTORS.values(), ids=OWN_EXECUTORS)


@contextmanager
def executing(
    coalescer: Coalescer[Any], key: Hashable = "key", *, end: Callable[[], Any] = str
) -> Generator[Future[Any]]:
    """Have a run of `key` execute until the block is over, and end as `end` does."""
    started, release = threading.Event(), threading.Event()

    def run() -> Any:
        started.set()
        release.wait()
        return end()

    future = coalescer.submit(key, run)
    try:
        assert started.wait(LIMIT)
        yield future
    finally:
        release.set()
        concurrent.futures.wait([future], LIMIT)


class Key:
    """Equal to its like, by Python code that other threads may run beside, and with the
    hash of all others."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.name == other.name

    def __hash__(self) -> int:
        return 1


# Faults and interrupts


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


#: The opcodes after which CPython looks for signals, after a jump if it jumped. Nothing
#: else on the main thread comes between two steps of the package.
LOOKS = re.compile("CALL|JUMP_BACKWARD|RESUME")


class Looks:
    """Tells at which steps of traced frames CPython has just looked for signals."""

    #: The places of each code after which CPython looks for signals.
    _known: ClassVar[dict[CodeType, set[int]]] = {}

    def __init__(self) -> None:
        #: Where each frame was before.
        self._before: dict[FrameType, int] = {}

    def after_a_look(self, frame: FrameType, event: str) -> bool:
        """Call it with each event of a frame whose opcodes are traced."""
        if event == "return":
            self._before.pop(frame, None)
        if event != "opcode":
            return False
        before = self._before.get(frame)
        self._before[frame] = frame.f_lasti
        return before is None or self._looks(frame.f_code, before)

    def forget(self) -> None:
        self._before.clear()

    def _looks(self, code: CodeType, place: int) -> bool:
        if code not in self._known:
            self._known[code] = {
                each.offset for each in dis.get_instructions(code) if LOOKS.match(each.opname)
            }
        return place in self._known[code]


def at_each_look(interrupt: Callable[[], object]) -> Any:
    """A trace function that calls `interrupt` once at each place in the package's code at
    which CPython looks for signals."""
    seen: set[tuple[CodeType, int]] = set()
    looks = Looks()

    def local(frame: FrameType, event: str, _: Any) -> Any:
        where = frame.f_code, frame.f_lasti
        if looks.after_a_look(frame, event) and where not in seen:
            seen.add(where)
            interrupt()
        return local

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace = local  # First: otherwise Python 3.13 ignores the other.
        frame.f_trace_opcodes = True
        return local

    return enter


@contextmanager
def traced(interrupt: Callable[[], object], *, new_threads: bool = False) -> Generator[None]:
    """Call `interrupt` once at each place of the package at which CPython looks for signals
    and that this thread comes to, and with `new_threads` those started in the block too."""
    trace = at_each_look(interrupt)
    before = sys.gettrace()
    # The trace function is Python code, in which threads could be switched after any opcode,
    # where without it none is: only those that block are.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(LIMIT)
    # Python 3.12 traces opcodes if it was asked to before `settrace`.
    sys._getframe().f_trace_opcodes = True  # pyright: ignore[reportPrivateUsage]
    if new_threads:
        threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        sys.setswitchinterval(interval)
        if new_threads:
            threading.settrace(None)


class Starts:
    """Starts threads in the package's name, or fails to, as often as `failing` says."""

    def __init__(self) -> None:
        self.failing: Callable[[], bool] = lambda: False

    def fail(self, failing: bool = True) -> None:
        self.failing = lambda: failing

    def over(self, start: Callable[..., Any], *, packages_alone: bool) -> Callable[..., Any]:
        """`start`, which fails when it is to; with `packages_alone`, if the package calls it."""

        def starting(*args: Any, **kwargs: Any) -> Any:
            # This function's caller is `threading`, whose caller it is that counts.
            caller = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
            ours = not packages_alone or is_the_packages(caller)
            if ours and self.failing():
                raise RuntimeError("can't start new thread")
            return start(*args, **kwargs)

        return starting


def is_the_packages(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(PACKAGE)


# Programs and processes of their own


def run_script(source: str, *flags: str, **environment: str) -> list[str]:
    """Run `source` in an interpreter of its own: the lines it prints. Ends well and quietly."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": str(Path(PACKAGE).parent), **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


#: Where the child of a fork says that it runs Python: the end of a pipe, if anywhere.
_begun: list[int] = []


def say_begun() -> None:
    """Called in the child of every fork."""
    if _begun:
        os.write(_begun[0], b"!")


def fork(meanwhile: Callable[[], object]) -> int:
    """`os.fork`, with `meanwhile` called in the parent.

    Again where CPython without a GIL loses the child: while it deletes the threads of the
    parent, before any hook, it may crash (`_Py_brc_remove_thread`) or deadlock
    (`_PyMem_AbandonDelayed`). In 3.13.5 that is one of some thousand beside other threads.
    """
    for _ in range(5):
        begins, begun = os.pipe()
        _begun.append(begun)
        child = os.fork()
        _begun.clear()
        if child:
            meanwhile()
        os.close(begun)
        alive = not child or (select.select([begins], [], [], LIMIT)[0] and os.read(begins, 1))
        os.close(begins)
        if alive or not FREE_THREADED:
            return child
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    raise AssertionError("no child of a fork comes to its first hook")


def in_child(
    check: Callable[[], object],
    *,
    meanwhile: Callable[[], object] = int,
    end: Callable[[int], object] = os._exit,
) -> int:
    """Fork, call `check` in the child, `meanwhile` here: its exit status, 0 if it returned."""
    sys.stderr.flush()
    sys.stdout.flush()
    child = fork(meanwhile)
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(LIMIT))  # Ends a child that hangs.
        check()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        end(status)
    raise AssertionError("not reached")


# The log


def logged(log: SimpleQueue[logging.LogRecord]) -> logging.LogRecord:
    """The next record."""
    wait_until(lambda: not log.empty())
    return log.get()


def logged_exceptions(caplog: pytest.LogCaptureFixture) -> list[BaseException]:
    """The exceptions logged on `boundedexec`, each with its traceback."""
    found: list[BaseException] = []
    for record in caplog.records:
        if record.name == "boundedexec":
            assert record.levelno >= logging.ERROR
            assert record.exc_info and record.exc_info[1] and record.exc_info[2]
            found.append(record.exc_info[1])
    return found


def new_seed() -> int:
    """A seed for a random test, which prints it."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return seed
