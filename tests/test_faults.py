"""Every call that the core makes and that can fail is made to fail, at each place in turn.

After each fault: the call raised it or went on, no slot is lost and none is there
twice, every future is over, nothing is outstanding or counted twice, the threads end.
"""

from __future__ import annotations

import dis
import gc
import inspect
import itertools
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, ClassVar, NoReturn

import memory
import pytest
from conftest import Starts, wait_until

import boundedexec
from boundedexec import BrokenThreadPool, Coalescer, DeadlockError, Service
from boundedexec.slots import Slots
from boundedexec.waiting import Slot

PACKAGE = str(Path(boundedexec.__file__).parent)


#: A Ctrl-C that lands while a generator is closed is said, and goes nowhere.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

#: Seconds after which what should have happened is lost.
LIMIT = 10.0


class Ledger:
    """What was submitted in one round, and how often each of it was executed."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.futures: list[Future[Any]] = []
        self.runs: dict[int, int] = {}
        self.coalescers: list[Coalescer[str]] = []

    def body(self, number: int) -> int:
        self.runs[number] = self.runs.get(number, 0) + 1
        return number

    def submit(self, number: int) -> Future[int]:
        future = self.service.submit(self.body, number)
        self.futures.append(future)
        return future


@contextmanager
def holding(service: Service, count: int) -> Generator[None]:
    """Have `count` bodies run on `service` until the block is over."""
    together, release = threading.Barrier(count + 1), threading.Event()

    def body() -> None:
        together.wait(LIMIT)
        release.wait(LIMIT)

    bodies = [service.submit(body) for _ in range(count)]
    together.wait(LIMIT)
    try:
        yield
    finally:
        release.set()
    for each in bodies:
        each.result(LIMIT)


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
    assert service.block_till_done(LIMIT)
    assert all(future.done() for future in ledger.futures)
    assert all(count == 1 for count in ledger.runs.values()), ledger.runs
    assert not any(ledger.coalescers), "a key is in flight"
    # All of the slots are there, and no more.
    with holding(service, bound or 3):
        assert not service.block_till_done(0)
        if bound:
            more = service.submit(int)
            assert not more.running() and not more.done()
    assert service.block_till_done(LIMIT)
    check_threads_end(service)


def check_threads_end(service: Service) -> None:
    ended = threading.Event()

    def end() -> None:
        service.shutdown()
        ended.set()

    threading.Thread(target=end, daemon=True).start()
    assert ended.wait(LIMIT), f"threads do not end: {threading.enumerate()}"


# Ctrl-C.


#: The opcodes after which CPython looks for signals, after a jump if it jumped.
LOOKS = "CALL|JUMP_BACKWARD|RESUME" if sys.version_info >= (3, 11) else "CALL|JUMP|POP_JUMP"


class CtrlC:
    """A trace function: raises KeyboardInterrupt at the n-th place in the package's code
    at which CPython may: after a call, at the start of a function, after a jump.
    """

    #: The opcodes of each code, by their places, after which CPython looks.
    _known: ClassVar[dict[CodeType, dict[int, str]]] = {}

    def __init__(self, at: int) -> None:
        self._left = at
        #: Seconds in which others go on before it strikes.
        self.pause = 0.0
        self.delivered: str | None = None
        #: Where each frame was before.
        self._before: dict[FrameType, int] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace = self._local  # First, for else Python 3.13 ignores the other.
        frame.f_trace_opcodes = True
        return self._local

    def _local(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "return":
            self._before.pop(frame, None)
        if event == "opcode":
            before = self._before.get(frame)
            self._before[frame] = frame.f_lasti
            if before is None or self._looks(frame, before):
                self._left -= 1
                if self._left < 0:
                    file = Path(frame.f_code.co_filename).name
                    self.delivered = (
                        f"{frame.f_code.co_name}, {file}:{frame.f_lineno}+{frame.f_lasti}"
                    )
                    self._before.clear()
                    time.sleep(self.pause)
                    raise KeyboardInterrupt
        return self._local

    def _looks(self, frame: FrameType, before: int) -> bool:
        """Whether CPython has looked for signals since it was at `before` in `frame`."""
        code = frame.f_code
        if code not in self._known:
            self._known[code] = {
                each.offset: each.opname
                for each in dis.get_instructions(code)
                if re.match(LOOKS, each.opname)
            }
        name = self._known[code].get(before)
        return name is not None and not (
            name.startswith("POP_JUMP") and frame.f_lasti == before + 2
        )


@contextmanager
def interrupted(ctrl_c: CtrlC) -> Generator[None]:
    """Have `ctrl_c` strike in the block, and go on after it."""
    before = sys.gettrace()
    # Python 3.12 traces opcodes if it was asked to before `settrace`.
    frame = inspect.currentframe()
    assert frame is not None
    frame.f_trace_opcodes = True
    sys.settrace(ctrl_c)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)


def sweep(round_: Callable[[Any], None], fault: type[CtrlC | NoMemory] = CtrlC) -> int:
    """Repeat `round_` with a `fault` one place later each time, until there is none.

    There is none in three rounds: what another thread does may make the way shorter.
    """
    at = missed = 0
    while missed < 3:
        strike = fault(at)
        try:
            round_(strike)
        except BaseException:
            print(f"with {fault.__name__} at place {at}, in {strike.delivered}")
            raise
        if strike.delivered is None:
            missed += 1
        else:
            at += 1
            missed = 0
    return at


@pytest.mark.parametrize("bound", [1, 2, 0])
@pytest.mark.parametrize("warm", [False, True])
def test_ctrl_c_in_submit_loses_nothing(bound: int, warm: bool) -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(bound) as (service, ledger):
            if warm:
                ledger.submit(0).result(LIMIT)
                assert service.block_till_done(LIMIT)
            with interrupted(ctrl_c):
                ledger.submit(1)
            ledger.submit(2)

    assert sweep(round_) > 10


def test_ctrl_c_in_submit_beside_an_initializer_loses_nothing() -> None:
    """A thread may be called off while its initializer runs: it is counted on no more."""

    def round_(ctrl_c: CtrlC) -> None:
        ctrl_c.pause = 0.001
        release = threading.Event()
        with sound(3, initializer=lambda: time.sleep(0.003)) as (service, _):
            with interrupted(ctrl_c):
                service.submit(release.wait, LIMIT)
            # Two that need each other, beside the first, if that was accepted.
            with holding(service, 2):
                release.set()

    assert sweep(round_) > 10


def test_ctrl_c_in_submit_while_a_body_resumes_loses_nothing() -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(2) as (service, ledger):
            gone, back = threading.Event(), threading.Event()
            with holding(service, 1):

                def leave() -> bool:
                    gone.set()
                    return back.wait(LIMIT)

                yielding = service.submit(service.yield_slot, leave)
                assert gone.wait(LIMIT)
                back.set()
                with interrupted(ctrl_c):
                    ledger.submit(1)
                # Nothing more is submitted that would wake it.
                assert yielding.result(LIMIT)

    assert sweep(round_) > 10


@pytest.mark.parametrize("held", [0, 1])
def test_ctrl_c_in_block_till_done_loses_nothing(held: int) -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(2) as (service, ledger):
            with holding(service, held), interrupted(ctrl_c):
                assert service.block_till_done(0) is (held == 0)
            ledger.submit(1)

    assert sweep(round_) > 10


def executes(_slots: object, _future: object) -> bool:
    return True


@pytest.mark.parametrize("dropped", [False, True], ids=["", "dropped"])
def test_ctrl_c_in_cancel_leaves_no_future_unresolved(
    dropped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dropped:
        # As while a worker that has reached it finds that it was claimed.
        monkeypatch.setattr(Slots, "executes", executes)

    def round_(ctrl_c: CtrlC) -> None:
        called: list[object] = []
        with sound(1) as (service, ledger):
            with holding(service, 1):
                plain, watched = ledger.submit(1), ledger.submit(2)
                watched.add_done_callback(called.append)
                with interrupted(ctrl_c):
                    plain.cancel()
                    watched.cancel()
        # Not called if it was just about to be.
        assert called in ([watched], [])

    assert sweep(round_) > 10


class Told:
    """A waiter as those of the stdlib's `wait` and `as_completed`."""

    def __init__(self) -> None:
        self.futures: list[object] = []

    def add_cancelled(self, future: object) -> None:
        self.futures.append(future)


def test_ctrl_c_in_cancel_leaves_no_waiter_untold() -> None:
    def round_(ctrl_c: CtrlC) -> None:
        waiters = [Told(), Told(), Told()]
        with sound(1) as (service, ledger):
            with holding(service, 1):
                future = ledger.submit(1)
                future._waiters.extend(waiters)  # type: ignore[arg-type]
                with interrupted(ctrl_c):
                    future.cancel()
                if not future.cancelled():
                    assert future.cancel()
        twice = sum(waiter.futures == [future, future] for waiter in waiters)
        assert twice <= 1  # The one that was just being told.
        assert sum(waiter.futures == [future] for waiter in waiters) == 3 - twice

    assert sweep(round_) > 10


def test_ctrl_c_in_shutdown_can_be_followed_by_another() -> None:
    def round_(ctrl_c: CtrlC) -> None:
        service = Service(2, daemon=True)
        ledger = Ledger(service)
        for number in range(3):
            ledger.submit(number)
        with interrupted(ctrl_c):
            service.shutdown(cancel_futures=True)
        check_threads_end(service)
        assert all(future.done() for future in ledger.futures)

    assert sweep(round_) > 10


def in_body(
    service: Service, ctrl_c: CtrlC, call: Callable[[], object], after: Callable[[], object]
) -> None:
    """Have `ctrl_c` strike in `call`, in a body; the body then does `after`."""

    def body() -> None:
        with interrupted(ctrl_c):
            call()
        after()

    service.submit(body).result(LIMIT)


def check_held(service: Service, ledger: Ledger) -> None:
    """In the only body of a Service(1): it has its slot, and it alone."""
    other = ledger.submit(100)
    assert not other.running() and not other.done()
    # Given away, and back.
    assert service.yield_slot(other.result, LIMIT) == 100
    # Lent, and back.
    assert ledger.submit(101).result() == 101


def test_ctrl_c_in_a_nested_result_leaves_the_body_its_slot() -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(1) as (service, ledger):
            in_body(
                service,
                ctrl_c,
                lambda: ledger.submit(1).result(),
                lambda: check_held(service, ledger),
            )

    assert sweep(round_) > 10


def test_ctrl_c_in_a_wait_for_several_leaves_the_body_its_slot() -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(1) as (service, ledger):

            def call() -> None:
                boundedexec.wait([ledger.submit(number) for number in range(3)])

            in_body(service, ctrl_c, call, lambda: check_held(service, ledger))

    assert sweep(round_) > 10


def test_ctrl_c_in_the_result_of_running_work_removes_the_waiter() -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(2) as (service, ledger):
            release = threading.Event()
            running = service.submit(release.wait, LIMIT)

            def call() -> None:
                # Late enough that the body waits by then.
                threading.Timer(0.02, release.set).start()
                with interrupted(ctrl_c):
                    running.result()

            service.submit(call).result(LIMIT)
            ledger.submit(1).result(LIMIT)

    assert sweep(round_) > 10


@pytest.mark.parametrize("form", ["call", "with"])
@pytest.mark.parametrize("wanted", [False, True])
def test_ctrl_c_in_yield_slot_leaves_the_body_its_slot(form: str, wanted: bool) -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(1) as (service, ledger):

            def call() -> None:
                other = ledger.submit(1) if wanted else None

                def wait() -> None:
                    if other is not None:
                        other.result(LIMIT)

                if form == "call":
                    service.yield_slot(wait)
                else:
                    with service.slot_yielded():
                        wait()

            in_body(service, ctrl_c, call, lambda: check_held(service, ledger))

    assert sweep(round_) > 10


def test_ctrl_c_in_a_coalescers_submit_loses_nothing() -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(1) as (service, _):
            coalescer: Coalescer[str] = Coalescer(service)
            with interrupted(ctrl_c):
                coalescer.submit("a", int)
            last = coalescer.submit("a", int, "3")
            assert last.result(LIMIT) == 3
            assert service.block_till_done(LIMIT)
            assert len(coalescer) == 0

    assert sweep(round_) > 10


def test_ctrl_c_in_the_submit_of_a_rerun_leaves_it_held_up() -> None:
    """A run that waits for it is told that it waits for itself, and does not hang."""

    def round_(ctrl_c: CtrlC) -> None:
        with sound(1) as (service, _):
            coalescer: Coalescer[str] = Coalescer(service)
            started, release = threading.Event(), threading.Event()

            def run() -> None:
                started.set()
                release.wait(LIMIT)
                coalescer.submit("a", int).result()

            first = coalescer.submit("a", run)
            assert started.wait(LIMIT)
            with interrupted(ctrl_c):
                coalescer.submit("a", int)
            release.set()
            assert isinstance(first.exception(LIMIT), DeadlockError)
            assert service.block_till_done(LIMIT)
            assert len(coalescer) == 0

    assert sweep(round_) > 10


# Threads that do not start.


def use_everything(service: Service, ledger: Ledger) -> None:
    """What may raise because a thread does not start does so, and the rest goes on."""

    def nested() -> None:
        try:
            ledger.submit(next(numbers)).result()
        except RuntimeError:
            pass
        service.yield_slot(int)
        with service.slot_yielded():
            pass

    numbers = itertools.count(1)
    coalescer: Coalescer[int] = Coalescer(service)
    more: list[Future[Any]] = []
    for number in range(4):
        for submit in (
            lambda: ledger.submit(next(numbers)),
            lambda: service.submit(nested),
            lambda number=number: coalescer.submit(number % 2, int),
        ):
            try:
                more.append(submit())
            except RuntimeError:
                pass
    for future in more:
        assert isinstance(future.exception(LIMIT), (RuntimeError, type(None)))
    assert service.block_till_done(LIMIT)
    assert len(coalescer) == 0


@pytest.mark.parametrize("bound", [1, 2, 0])
@pytest.mark.parametrize("idle_timeout", [0, None])
@pytest.mark.parametrize("length", [1, 3, 1000])
def test_a_thread_that_cannot_be_started_loses_nothing(
    starts: Starts, bound: int, idle_timeout: float | None, length: int
) -> None:
    at = 0
    for at in range(1000):
        count = itertools.count()
        failed: list[int] = []

        def failing(at: int = at, count: Any = count, failed: list[int] = failed) -> bool:
            number = next(count)
            if at <= number < at + length:
                failed.append(number)
            return bool(failed) and failed[-1] == number

        with sound(bound, idle_timeout) as (service, ledger):
            starts.failing = failing
            use_everything(service, ledger)
            starts.fail(False)
        if not failed:
            break
    # Idle threads may be reused, or not; at the least the first start has failed.
    assert at >= 1


# Callbacks and log handlers that raise.


class Oops(BaseException):
    """Derives from nothing that anybody catches by chance."""


def raising(exception: BaseException) -> Callable[..., NoReturn]:
    def raise_it(*_: object) -> NoReturn:
        raise exception

    return raise_it


@contextmanager
def broken_log(exception: BaseException) -> Generator[None]:
    handler = logging.Handler()
    handler.emit = raising(exception)  # type: ignore[method-assign]
    logger = logging.getLogger("boundedexec")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("log", [OSError(), SystemExit(), Oops()])
@pytest.mark.parametrize("exception", [ValueError(), SystemExit(), KeyboardInterrupt(), Oops()])
def test_callbacks_and_logs_that_raise_lose_nothing(
    exception: BaseException, log: BaseException
) -> None:
    called: list[Future[Any]] = []
    with sound(2) as (service, ledger), broken_log(log):
        # A body's callbacks, and what follows one that raises.
        with holding(service, 2):
            future = ledger.submit(1)
            future.add_done_callback(raising(exception))
            future.add_done_callback(called.append)
            # Where nobody asks it is said.
            service.submit(raising(exception))
            lost = ledger.submit(2)
            lost.add_done_callback(raising(exception))
            lost.add_done_callback(called.append)
            try:
                assert lost.cancel()
            except BaseException as raised:
                # Only what is no Exception comes out of `cancel`, as in the stdlib.
                assert raised is exception and not isinstance(exception, Exception)
            assert lost.cancelled()
        assert future.result(LIMIT) == 1
        assert service.block_till_done(LIMIT)
    assert future in called


@pytest.mark.parametrize("exception", [ValueError(), SystemExit(), Oops()])
def test_an_initializer_and_a_log_that_raise_leave_nothing_outstanding(
    exception: BaseException,
) -> None:
    with broken_log(Oops()):
        service = Service(2, initializer=raising(exception), daemon=True)
        futures: list[Future[int]] = []
        try:
            futures += [service.submit(int) for _ in range(5)]
        except BrokenThreadPool:
            pass
        for future in futures:
            assert isinstance(future.exception(LIMIT), BrokenThreadPool)
        assert service.block_till_done(LIMIT)
        check_threads_end(service)


# Real signals.

STORM = """
import faulthandler, random, signal, sys, threading, traceback
from boundedexec import Coalescer, Service

faulthandler.dump_traceback_later(40, exit=True)
seed, rounds = int(sys.argv[1]), int(sys.argv[2])
chance = random.Random(seed)
landed = 0


def ctrl_c(*_):
    raise KeyboardInterrupt


signal.signal(signal.SIGALRM, ctrl_c)


def check(service, bound):
    together = threading.Barrier(bound + 1)
    assert service.block_till_done(10), (seed, "outstanding")
    bodies = [service.submit(together.wait, 10) for _ in range(bound)]
    together.wait(10)
    assert service.block_till_done(10)


for number in range(rounds):
    bound = chance.choice([1, 2, 3])
    service = Service(bound, idle_timeout=chance.choice([0, 0.001, None]))
    coalescer = Coalescer(service)
    futures = []

    def use():
        for _ in range(chance.randrange(1, 4)):
            futures.append(service.submit(int))
            futures.append(coalescer.submit(_ % 2, int))
            futures[chance.randrange(len(futures))].cancel()
            if chance.random() < 0.3:
                service.block_till_done(0)
            if chance.random() < 0.2 and not futures[-1].cancelled():
                futures[-1].result()

    for _ in range(20):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 3e-4))
                # Not `while`: Python 3.13.0 can let its jump out of the `try`. And an end,
                # for a Ctrl-C in a `__del__` is ignored.
                for _ in range(200):
                    use()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt as interrupt:
            frames = traceback.extract_tb(interrupt.__traceback__)
            landed += any("boundedexec" in frame.filename for frame in frames)
    try:
        check(service, bound)
        for future in futures:
            assert future.done()
        assert not len(coalescer)
        service.shutdown()
    except BaseException:
        print("seed", seed, "round", number, flush=True)
        raise
print(landed)
"""


def storm(seed: int, rounds: int) -> int:
    root = str(Path(boundedexec.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", STORM, str(seed), str(rounds)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_real_signals_that_raise_lose_nothing() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    assert storm(seed, 15) > 100


# Memory.


class NoMemory:
    """A trace function: raises MemoryError in the n-th call of a function of the package
    on a thread of the package.

    CPython does so: without a GIL each thread has code of its own, from 3.14 on, which is
    made when it first calls a function.
    """

    def __init__(self, at: int) -> None:
        self._at = at
        self._count = itertools.count()
        self.armed = True
        self.delivered: str | None = None

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if (
            self.armed
            and event == "call"
            and code.co_filename.startswith(PACKAGE)
            and self._is_the_packages(frame)
            and next(self._count) == self._at
        ):
            caller = frame.f_back.f_code.co_name if frame.f_back else None
            self.delivered = f"{code.co_name} called by {caller}"
            raise MemoryError

    @staticmethod
    def _is_the_packages(frame: FrameType) -> bool:
        """Whether the thread is one of the package's, by the function that it began with."""
        first: FrameType | None = frame
        while first is not None:
            frame, first = first, first.f_back
        return frame.f_code.co_filename.startswith(PACKAGE)


#: No two submissions have the same.
numbers = itertools.count()


def several(service: Service, ledger: Ledger) -> None:
    boundedexec.wait([ledger.submit(next(numbers)) for _ in range(2)])


def complete(service: Service, ledger: Ledger) -> None:
    list(boundedexec.as_completed([ledger.submit(next(numbers)) for _ in range(2)]))


def coalesce(service: Service, ledger: Ledger) -> None:
    coalescer: Coalescer[str] = Coalescer(service)
    for _ in range(3):
        ledger.futures.append(coalescer.submit("key", int))
    ledger.coalescers.append(coalescer)
    ledger.futures[-1].result()


def yield_it(service: Service, ledger: Ledger) -> None:
    more = ledger.submit(next(numbers))
    service.yield_slot(more.result)
    with service.slot_yielded():
        more.result()


def call_back(service: Service, ledger: Ledger) -> None:
    future = ledger.submit(next(numbers))
    future.add_done_callback(lambda _: ledger.submit(next(numbers)) and None)
    future.result()


def submit(service: Service, ledger: Ledger) -> None:
    ledger.submit(next(numbers))


def nest(service: Service, ledger: Ledger) -> None:
    ledger.submit(next(numbers)).result()


def cancel(service: Service, ledger: Ledger) -> None:
    ledger.submit(next(numbers)).cancel()


@pytest.mark.timeout(180)  # A second or two; beside busy processes each switch waits.
@pytest.mark.parametrize(
    "bound, use",
    [
        (1, submit),
        (1, nest),
        (1, yield_it),
        (2, cancel),
        (2, several),
        (2, complete),
        (2, coalesce),
        (2, call_back),
    ],
)
def test_a_call_on_a_thread_without_memory_loses_nothing(
    bound: int, use: Callable[[Service, Ledger], object]
) -> None:
    def round_(no_memory: NoMemory) -> None:
        others = threading.enumerate()
        threading.settrace(no_memory)
        with sound(bound, 0.001, initializer=int) as (service, ledger):
            for future in [service.submit(use, service, ledger) for _ in range(2)]:
                assert isinstance(future.exception(LIMIT), (MemoryError, type(None)))
            assert service.block_till_done(LIMIT)
            for thread in threading.enumerate():
                # Not one that has left `threading`'s table and logs what the collector drops.
                if thread not in others and not thread.name.startswith("Dummy"):
                    thread.join(LIMIT)
                    assert not thread.is_alive()
            no_memory.armed = False

    try:
        assert sweep(round_, NoMemory) > 10
    finally:
        threading.settrace(None)
    gc.collect()  # What nobody asked for is not to be logged in another test.


def failing(monkeypatch: pytest.MonkeyPatch, name: str) -> list[MemoryError]:
    """Has the method `name` of Slots raise what is put into the list, once each."""
    failures, method = list[MemoryError](), getattr(Slots, name)

    def fail_once(slots: Slots) -> None:
        if failures:
            raise failures.pop()
        method(slots)

    monkeypatch.setattr(Slots, name, fail_once)
    return failures


def test_a_body_that_resumes_is_woken_though_another_has_no_memory_to_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, gate = Service(1, daemon=True), threading.Event()
    failures, resuming = failing(monkeypatch, "dispatch"), dict[object, object]()
    monkeypatch.setattr(boundedexec.waiting, "_resuming", resuming)

    def yields() -> None:
        gate.set()
        wait_until(lambda: bool(resuming))  # It has looked itself, in vain.
        failures.append(MemoryError())
        service.yield_slot(resumes.result)

    resumes = service.submit(lambda: service.yield_slot(gate.wait, LIMIT))
    other = service.submit(yields)
    assert resumes.result(LIMIT)
    other.result(LIMIT)
    assert not failures
    service.shutdown()


def test_a_submit_that_has_no_memory_to_look_is_told_and_not_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What runs might wait for it, and nothing would look again."""
    service, entered, gate = Service(1, daemon=True), threading.Event(), threading.Event()
    yields = service.submit(
        lambda: service.yield_slot(lambda: entered.set() or gate.wait(LIMIT))  # type: ignore[func-returns-value]
    )
    assert entered.wait(LIMIT)
    failures = failing(monkeypatch, "dispatch")
    failures.append(MemoryError())
    with pytest.raises(MemoryError):
        service.submit(gate.set)
    assert not gate.is_set()
    service.submit(gate.set)
    assert yields.result(LIMIT)
    assert service.block_till_done(LIMIT)
    assert not failures
    service.shutdown()


class Notified(threading.Event):
    """Set when nothing is outstanding."""

    notify = threading.Event.set


def test_who_waits_for_all_is_told_though_there_was_no_memory_to_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slot is taken for a submission that is cancelled meanwhile."""
    service = Service(1, daemon=True)
    slots = service._slots  # pyright: ignore[reportPrivateUsage]
    told, outstanding = Notified(), object()

    def take_meanwhile() -> Generator[Slot]:
        slot = slots.free.pop()
        slots.queue.popleft().cancel()
        slots.away.discard(outstanding)
        slots.check_idle()
        assert not told.is_set()
        failures.append(MemoryError())
        yield slot

    slots.away.add(outstanding)
    slots.observe(told)
    failures = failing(monkeypatch, "check_idle")
    monkeypatch.setattr(slots, "_free_slots", take_meanwhile())
    service.submit(int)
    assert not failures
    assert told.wait(LIMIT)
    monkeypatch.undo()
    service.shutdown()


@pytest.mark.parametrize("use", ["submit", "nested"])
def test_an_allocation_that_fails_loses_nothing(use: str) -> None:
    # All of it, and further: `tests/memory.py`.
    pytest.importorskip("_testcapi")
    memory.sweep(use, 40)
