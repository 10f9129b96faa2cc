"""A `KeyboardInterrupt` on the main thread, wherever it lands, loses nothing."""

from __future__ import annotations

import inspect
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, as_completed
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import pytest
from helpers import (
    LIMIT,
    PACKAGE,
    Ledger,
    Looks,
    Passing,
    check_threads_end,
    holding,
    is_the_packages,
    sound,
)

import boundedexec
from boundedexec import Coalescer, DeadlockError, Service, TaskGroup

#: A Ctrl-C that lands while a generator is closed is reported, and goes nowhere.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


# Interrupts


class Interrupted(BaseException):
    """What the signal handler raises, as Ctrl-C would."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Has the main thread interrupted once, in a moment."""
    arrived = threading.Event()

    def handler(*_: object) -> None:
        if not arrived.is_set():
            arrived.set()
            raise Interrupted

    def send() -> None:
        main = threading.main_thread().ident
        assert main is not None
        # Again where it came just before the main thread blocked.
        while not arrived.wait(0.05):
            signal.pthread_kill(main, signal.SIGVTALRM)

    before = signal.signal(signal.SIGVTALRM, handler)
    sender = threading.Thread(target=send)
    yield sender.start
    arrived.set()
    sender.join()
    signal.signal(signal.SIGVTALRM, before)


INTERRUPTED_WAITS: dict[str, Callable[[Service, Future[int]], object]] = {
    "result": lambda service, future: future.result(),
    "exception": lambda service, future: future.exception(LIMIT),
    "block_till_done": lambda service, future: service.block_till_done(),
    "with a timeout": lambda service, future: service.block_till_done(LIMIT),
    "wait": lambda service, future: boundedexec.wait([future]),
    "as_completed": lambda service, future: next(boundedexec.as_completed([future])),
    "map": lambda service, future: next(service.map(int, "5")),
    "shutdown": lambda service, future: service.shutdown(),
}


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no such signals here")
@pytest.mark.parametrize("wait", INTERRUPTED_WAITS.values(), ids=INTERRUPTED_WAITS)
def test_an_interrupt_ends_any_wait_and_loses_nothing(
    interrupt: Callable[[], None], wait: Callable[[Service, Future[int]], object]
) -> None:
    with Service(1) as service:
        with holding(service):
            future = service.submit(int, "5")
            with pytest.raises(Interrupted):
                interrupt()
                wait(service, future)
        assert future.result(LIMIT) == 5
        assert service.block_till_done(LIMIT)


# Ctrl-C


class CtrlC:
    """A trace function: raises KeyboardInterrupt at the n-th place in the package's code
    at which CPython may: after a call, at the start of a function, after a jump.
    """

    def __init__(self, at: int) -> None:
        self._left = at
        #: Seconds in which others go on before it strikes.
        self.pause = 0.0
        self.delivered: str | None = None
        self._looks = Looks()

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not is_the_packages(frame):
            return None
        frame.f_trace = self._local  # First: otherwise Python 3.13 ignores the other.
        frame.f_trace_opcodes = True
        return self._local

    def _local(self, frame: FrameType, event: str, _: Any) -> Any:
        if self._looks.after_a_look(frame, event):
            self._left -= 1
            if self._left < 0:
                file = Path(frame.f_code.co_filename).name
                self.delivered = f"{frame.f_code.co_name}, {file}:{frame.f_lineno}+{frame.f_lasti}"
                self._looks.forget()
                time.sleep(self.pause)
                raise KeyboardInterrupt
        return self._local


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


def sweep(round_: Callable[[CtrlC], None]) -> int:
    """Repeat `round_` with a Ctrl-C one place later each time, until there is none.

    There is none in three rounds: what another thread does may make the way shorter.
    """
    at = missed = 0
    while missed < 3:
        ctrl_c = CtrlC(at)
        try:
            round_(ctrl_c)
        except BaseException:
            print(f"with a Ctrl-C at place {at}, in {ctrl_c.delivered}")
            raise
        if ctrl_c.delivered is None:
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

    assert sweep(round_) > 8


def test_ctrl_c_in_submit_beside_an_initializer_loses_nothing() -> None:
    """A thread whose initializer runs may lose its submission: nothing may wait for it then."""

    def round_(ctrl_c: CtrlC) -> None:
        ctrl_c.pause = 0.001
        release = threading.Event()
        with sound(3, initializer=lambda: time.sleep(0.003)) as (service, _):
            with interrupted(ctrl_c):
                service.submit(release.wait, LIMIT)
            # Two that need each other, beside the first, if that was accepted.
            with holding(service, 2):
                release.set()

    assert sweep(round_) > 8


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

    assert sweep(round_) > 8


@pytest.mark.parametrize("held", [0, 1])
def test_ctrl_c_in_block_till_done_loses_nothing(held: int) -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(2) as (service, ledger):
            with holding(service, held), interrupted(ctrl_c):
                assert service.block_till_done(0) is (held == 0)
            ledger.submit(1)

    assert sweep(round_) > 10


def test_ctrl_c_in_cancel_leaves_no_future_unresolved() -> None:
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


def test_ctrl_c_in_cancel_wakes_every_waiter() -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(1) as (service, ledger):
            over = ledger.submit(0)
            over.result(LIMIT)
            with holding(service, 1):
                future = ledger.submit(1)
                waiting = [as_completed([over, future], LIMIT) for _ in range(3)]
                # Each waits for both once it has reported one.
                assert [next(steps) for steps in waiting] == [over] * 3
                with interrupted(ctrl_c):
                    future.cancel()
                if not future.cancelled():
                    assert future.cancel()
                twice = 0
                for steps in waiting:
                    try:
                        assert list(steps) == [future]
                    except KeyError:
                        twice += 1  # The stdlib's `as_completed` has removed it already.
                assert twice <= 1  # The one that was just being notified.

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


def interrupt_a_coalescers_submit(service: Service, ctrl_c: CtrlC) -> None:
    coalescer: Coalescer[str] = Coalescer(service)
    with interrupted(ctrl_c):
        coalescer.submit("a", int)
    last = coalescer.submit("a", int, "3")
    assert last.result(LIMIT) == 3
    assert service.block_till_done(LIMIT)
    assert len(coalescer) == 0


def test_ctrl_c_in_a_coalescers_submit_loses_nothing() -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(1) as (service, _):
            interrupt_a_coalescers_submit(service, ctrl_c)

    assert sweep(round_) > 10


class Overriding(Service):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return super().submit(fn, *args, **kwargs)


def test_ctrl_c_while_a_run_is_handed_over_leaves_nothing_outstanding() -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with Overriding(1) as service:
            interrupt_a_coalescers_submit(service, ctrl_c)

    assert sweep(round_) > 10


def test_ctrl_c_in_the_submit_of_a_rerun_leaves_it_held_up() -> None:
    """A run that waits for it raises `DeadlockError`, and does not hang."""

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


#: Another executor than a Service hands out futures that a group has to follow.
Kind: TypeAlias = "Callable[[Service], Executor]"
KINDS: dict[str, Kind] = {"service": lambda service: service, "passing": Passing}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
@pytest.mark.parametrize("limit", [None, 1, 2])
def test_ctrl_c_in_a_groups_block_and_at_its_end_loses_nothing(
    limit: int | None, kind: Kind
) -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(2) as (service, ledger):
            with interrupted(ctrl_c), TaskGroup(kind(service), limit=limit) as group:
                for number in range(3):
                    ledger.futures.append(group.submit(ledger.body, number))
            if ctrl_c.delivered is None:
                assert all(future.done() for future in ledger.futures)
            assert not boundedexec.wait(ledger.futures, LIMIT).not_done

    assert sweep(round_) > 50


@every_kind
@pytest.mark.parametrize("limit", [None, 1])
def test_ctrl_c_where_a_group_is_cancelled_loses_nothing(limit: int | None, kind: Kind) -> None:
    def round_(ctrl_c: CtrlC) -> None:
        with sound(1) as (service, ledger), holding(service, 1):
            group = TaskGroup(kind(service), limit=limit)
            group.__enter__()
            for number in range(3):
                ledger.futures.append(group.submit(ledger.body, number))
            with interrupted(ctrl_c):
                group.cancel()
            group.cancel()
            assert not boundedexec.wait(ledger.futures, LIMIT).not_done
            assert not ledger.runs
            group.__exit__(None, None, None)

    assert sweep(round_) > 10


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no such signals here")
@pytest.mark.parametrize("limit", [None, 1])
def test_an_interrupt_at_the_end_of_a_block_waits_for_what_runs(
    interrupt: Callable[[], None], limit: int | None
) -> None:
    started, over = threading.Event(), threading.Event()

    def body() -> None:
        started.set()
        # Cancelled one after the other: what is queued could start before its turn has come.
        while not (group.cancelled and queued[0].done()):
            time.sleep(0.001)
        over.set()

    with Service(1) as service:
        group = TaskGroup(service, limit=limit)
        queued: list[Future[int]] = []
        with pytest.raises(Interrupted), group:
            group.submit(body)
            queued.append(group.submit(int))
            assert started.wait(LIMIT)
            interrupt()
        assert over.is_set() and queued[0].cancelled()


# Real signals


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
    done = subprocess.run(
        [sys.executable, "-c", STORM, str(seed), str(rounds)],
        env={**os.environ, "PYTHONPATH": str(Path(PACKAGE).parent)},
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
