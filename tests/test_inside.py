"""stats, tasks, dump, slow_after and debug: what runs, what waits, for what, and since when."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
from helpers import FREE_THREADED, LIMIT, NewService, in_child

import boundedexec
from boundedexec import Coalescer, QueueFull, Service


class Stall:
    """Bodies that begin, say so, and wait until they are let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()

    def body(self, *args: object) -> None:
        self.begun.release()
        assert self.gate.wait(LIMIT)

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.begun.acquire(timeout=LIMIT)


@pytest.fixture
def stall() -> Any:
    stall = Stall()
    yield stall
    stall.gate.set()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# stats


def test_stats_of_a_new_service(new_service: NewService) -> None:
    now = new_service(3).stats()
    assert now == boundedexec.Stats(3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, 0.0)


def test_stats_of_a_full_service(new_service: NewService, stall: Stall) -> None:
    service = new_service(2)
    for _ in range(2):
        service.submit(stall.body)
    stall.wait_for(2)
    queued = [service.submit(int) for _ in range(10)]
    assert queued[3].cancel()
    now = service.stats()
    assert (now.bound, now.running, now.queued, now.threads) == (2, 2, 9, 2)
    assert (now.submitted, now.cancelled, now.completed, now.idle_threads) == (12, 1, 0, 0)
    assert now.seconds_since_completion is None
    assert now.longest_wait > 0
    stall.gate.set()
    assert service.block_till_done(LIMIT)
    now = service.stats()
    assert (now.running, now.queued, now.completed, now.cancelled) == (0, 0, 11, 1)
    assert (now.submitted, now.longest_wait) == (12, 0.0)
    assert now.seconds_since_completion is not None


def test_what_several_threads_cancel_is_counted_each_once(
    new_service: NewService, stall: Stall
) -> None:
    # More than are counted at once without a GIL, and no multiple of that.
    service = new_service(1)
    service.submit(stall.body)
    stall.wait_for(1)
    queued = [service.submit(int) for _ in range(1_000)]

    def cancel(part: list[Future[int]]) -> None:
        for future in part:
            assert future.cancel()

    parts = queued[0::4], queued[1::4], queued[2::4][:33]
    threads = [threading.Thread(target=cancel, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    now = service.stats()
    assert (now.cancelled, now.queued, now.submitted) == (533, 467, 1_001)
    stall.gate.set()
    assert service.block_till_done(LIMIT)
    now = service.stats()
    assert (now.cancelled, now.queued, now.completed) == (533, 0, 468)


def test_every_submission_is_counted_in_one_place(new_service: NewService) -> None:
    service = new_service(4)

    def fails() -> None:
        raise LookupError

    def nested() -> int:
        return service.submit(int).result()

    kinds: list[Callable[[], object]] = [int, fails, nested]
    futures = [service.submit(fn) for _ in range(200) for fn in kinds]
    cancelled = sum(future.cancel() for future in futures[::7])
    for future in futures:
        if not future.cancelled():
            future.exception()
    assert service.block_till_done(LIMIT)
    now = service.stats()
    begun = 200 - sum(future.cancelled() for future in futures[2::3])
    assert now.cancelled == cancelled
    assert now.failed == 200 - sum(future.cancelled() for future in futures[1::3])
    assert now.submitted == 600 + begun
    assert now.completed == now.submitted - now.failed - now.cancelled
    assert now.running == now.queued == 0


def test_each_moment_adds_up_while_others_submit(new_service: NewService) -> None:
    service = new_service(2)
    done = threading.Event()
    count = 0

    def submit() -> None:
        nonlocal count
        while not done.is_set():
            futures = [service.submit(int) for _ in range(20)]
            count += 20
            futures[-1].cancel()

    threads = [threading.Thread(target=submit) for _ in range(1)]
    for thread in threads:
        thread.start()
    before = service.stats()
    for _ in range(300):
        now = service.stats()
        assert now.running <= 2
        if not FREE_THREADED:  # Where what moves meanwhile may be counted twice.
            assert now.submitted >= before.submitted
            assert now.completed >= before.completed
        assert min(now.queued, now.running, now.completed, now.failed, now.cancelled) >= 0
        before = now
    done.set()
    for thread in threads:
        thread.join()
    assert service.block_till_done(LIMIT)
    assert service.stats().submitted == count


def test_what_threads_that_have_ended_did_is_counted(new_service: NewService) -> None:
    service = new_service(2, idle_timeout=0.0)
    for _ in range(3):
        service.submit(int).result()
        service.submit(int, "x").exception()
    until(lambda: service.stats().threads == 0)
    now = service.stats()
    assert (now.completed, now.failed, now.submitted) == (3, 3, 6)
    assert now.seconds_since_completion is not None


def test_lent_and_resuming_bodies_are_counted(new_service: NewService, stall: Stall) -> None:
    service = new_service(1)
    service.submit(lambda: service.submit(stall.body).result())
    stall.wait_for(1)
    now = service.stats()
    assert (now.running, now.lent, now.resuming) == (2, 1, 0)
    stall.gate.set()
    assert service.block_till_done(LIMIT)

    other = new_service(1)
    taken, gate = threading.Event(), threading.Event()

    def take() -> None:
        taken.set()
        gate.wait(LIMIT)

    def yields() -> None:
        other.submit(take)
        other.yield_slot(taken.wait, LIMIT)

    other.submit(yields)
    until(lambda: other.stats().resuming == 1)
    assert [task.state for task in other.tasks()] == ["resuming", "running"]
    gate.set()


def test_refusals_are_counted(new_service: NewService, stall: Stall) -> None:
    service = new_service(1, max_queued=0)
    service.submit(stall.body)
    stall.wait_for(1)
    for _ in range(3):
        with pytest.raises(QueueFull):
            service.submit(int)
    now = service.stats()
    assert (now.refused, now.submitted) == (3, 1)
    stall.gate.set()
    service.shutdown()


def test_stats_are_immutable(new_service: NewService) -> None:
    now: Any = new_service(1).stats()
    with pytest.raises(AttributeError):
        now.queued = 1


def test_stats_do_not_grow_with_the_queue(new_service: NewService, stall: Stall) -> None:
    service = new_service(1)
    service.submit(stall.body)
    stall.wait_for(1)

    def seconds() -> float:
        start = time.thread_time()
        for _ in range(20):
            service.stats()
        return time.thread_time() - start

    short = min(seconds() for _ in range(5))
    futures = [service.submit(int) for _ in range(50_000)]
    assert min(seconds() for _ in range(5)) < 3 * short + 0.001
    assert service.stats().queued == 50_000
    for future in futures:
        future.cancel()
    assert service.stats().queued == 0


# tasks


def test_tasks_in_order_with_names_and_arguments(new_service: NewService, stall: Stall) -> None:
    service = new_service(1, thread_name_prefix="crew")
    service.submit(stall.body, "first", 1)
    stall.wait_for(1)
    service.submit(pow, 2, 3)
    service.submit(int, "7", base=8)
    running, power, integer = service.tasks()
    assert running.state == "running"
    assert running.name.endswith("Stall.body")
    assert running.arguments == "('first', 1)"
    assert running.thread_name == "crew_0"
    assert running.thread_ident in {thread.ident for thread in threading.enumerate()}
    assert running.number < power.number < integer.number
    assert (power.state, power.name, power.arguments) == ("queued", "pow", "(2, 3)")
    assert (integer.name, integer.arguments) == ("int", "('7', base=8)")
    assert power.thread_name is None and power.thread_ident is None
    assert power.seconds >= integer.seconds > 0
    assert [task.number for task in service.tasks()] == [
        running.number, power.number, integer.number,
    ]  # fmt: skip
    assert service.tasks(limit=2)[1].name == "pow"
    assert service.tasks(limit=0) == []


def test_what_a_task_waits_for_is_named_by_number(new_service: NewService, stall: Stall) -> None:
    service = new_service(1)
    service.submit(lambda: service.submit(stall.body).result())
    stall.wait_for(1)
    waiting, running = service.tasks()
    assert (waiting.state, running.state) == ("lending", "running")
    assert waiting.waits_for == (running.number,)
    assert running.waits_for == ()


def test_a_yielded_slot_and_an_owed_run(new_service: NewService, stall: Stall) -> None:
    service = new_service(1)
    service.submit(lambda: service.yield_slot(stall.body))
    stall.wait_for(1)
    assert [task.state for task in service.tasks()] == ["yielded"]
    coalescer: Coalescer[str] = Coalescer(service)
    coalescer.submit("key", stall.body, "run")
    stall.wait_for(1)
    coalescer.submit("key", pow, 2, 5)
    _, running, owed = service.tasks()
    assert (running.state, running.key) == ("running", "key")
    assert (owed.state, owed.key, owed.name) == ("owed", "key", "pow")
    assert service.stats().queued == 1


def test_seconds_count_from_when_the_state_began(new_service: NewService, stall: Stall) -> None:
    service = new_service(1)
    service.submit(stall.body)
    stall.wait_for(1)
    service.submit(int)
    before = [task.seconds for task in service.tasks()]
    time.sleep(0.05)
    after = [task.seconds for task in service.tasks()]
    for earlier, later in zip(before, after, strict=True):
        assert 0.05 <= later - earlier < LIMIT


def test_a_broken_repr_does_no_harm(new_service: NewService, stall: Stall) -> None:
    class Broken:
        def __repr__(self) -> str:
            raise LookupError

    service = new_service(1)
    service.submit(stall.body, Broken(), "x" * 1000)
    stall.wait_for(1)
    (task,) = service.tasks()
    assert "Broken" in task.arguments
    assert len(task.arguments) < 200


@pytest.mark.parametrize("limit", ["x", 1.5, True])
def test_a_limit_that_is_no_integer(new_service: NewService, limit: Any) -> None:
    with pytest.raises(TypeError, match="limit"):
        new_service(1).tasks(limit=limit)


def test_a_negative_limit(new_service: NewService) -> None:
    with pytest.raises(ValueError, match="limit"):
        new_service(1).tasks(limit=-1)


# dump


def held_by_a_lock(lock: threading.Lock) -> None:
    with lock:
        pass


def test_a_dump_shows_where_bodies_are_stuck(new_service: NewService) -> None:
    service = new_service(2, thread_name_prefix="crew")
    lock = threading.Lock()
    lock.acquire()

    def parent() -> None:
        service.submit(held_by_a_lock, lock).result()

    def dumped() -> str:
        text = io.StringIO()
        service.dump(text)
        return text.getvalue()

    try:
        service.submit(parent)
        service.submit(parent)
        until(lambda: dumped().count("in held_by_a_lock: with lock:") == 2)
        for _ in range(5):
            service.submit(pow, 2, 2)
        lines = dumped()
        assert lines.startswith("crew: 2 slots, 4 running (2 lending, 0 resuming), 5 queued")
        assert "held_by_a_lock" in lines.partition("who waits for whom")[2]
        assert "5 of pow" in lines
        assert os.path.join("boundedexec", "_core") not in lines
    finally:
        lock.release()


def test_a_dump_goes_to_standard_error(
    new_service: NewService, capsys: pytest.CaptureFixture[str]
) -> None:
    service = new_service(1, thread_name_prefix="alone")
    service.dump()
    boundedexec.dump()
    assert capsys.readouterr().err.count("alone: 1 slot") == 2


def run_python(code: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ps(process: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "boundedexec", "ps", str(process)],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


ps_works = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")

STUCK = """
import ctypes, sys, threading, boundedexec
boundedexec.dump_on_signal()
service = boundedexec.Service(1, "crew")
def stuck():
    print("stuck", flush=True)
    sys.stdin.readline()
service.submit(stuck)
service.submit(pow, 2, 2)
{main}
"""


@ps_works
@pytest.mark.parametrize(
    "main",
    [
        # An ordinary wait; and one in C that no Python handler can come into.
        "threading.Event().wait(20)",
        "ctypes.CDLL(None).sleep(1) if ctypes.CDLL(None).pause() else None",
    ],
)
def test_ps_asks_a_stuck_process(main: str) -> None:
    child = run_python(STUCK.format(main=main))
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "stuck\n"
        asked = ps(child.pid)
        assert asked.stdout.startswith("crew: 1 slot")
        assert "1 of pow" in asked.stdout
    finally:
        child.kill()
        child.communicate()


@ps_works
def test_a_signal_has_the_process_dump_to_standard_error() -> None:
    child = run_python(STUCK.format(main="threading.Event().wait(20)"))
    try:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == "stuck\n"
        child.send_signal(signal.SIGUSR1)
        assert child.stderr.readline().startswith("crew: 1 slot")
    finally:
        child.kill()
        child.communicate()


@ps_works
def test_ps_says_why_it_cannot_ask() -> None:
    child = run_python("import sys; print(flush=True); sys.stdin.readline()")
    try:
        assert child.stdout is not None
        child.stdout.readline()
        if not hasattr(sys, "remote_exec"):
            asked = ps(child.pid)
            assert asked.returncode == 2
            assert len(asked.stderr.splitlines()) == 1
            assert "dump_on_signal" in asked.stderr
        assert child.poll() is None  # It was not ended by a signal.
    finally:
        child.communicate("\n", timeout=LIMIT)
    for process in child.pid, 0, -1:
        asked = ps(process)
        assert (asked.returncode, asked.stderr) == (2, f"ps: there is no process {process}\n")


from_outside = pytest.mark.skipif(not hasattr(sys, "remote_exec"), reason="before Python 3.14")


@from_outside
@pytest.mark.parametrize(
    ("main", "begins", "says"),
    [
        ("while True: time.sleep(0.01)", "crew: 1 slot", "1 of pow"),
        # It executes no Python: what can be read from outside.
        ("threading.Event().wait(20)", "process ", "in stuck:"),
        ("ctypes.CDLL(None).sleep(20)", "process ", "in stuck:"),
    ],
)
def test_ps_asks_a_process_that_has_prepared_nothing(main: str, begins: str, says: str) -> None:
    child = run_python(
        "import time\n" + STUCK.replace("boundedexec.dump_on_signal()", "").format(main=main)
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "stuck\n"
        asked = ps(child.pid)
        assert asked.returncode == 0
        assert asked.stdout.startswith(begins)
        assert says in asked.stdout
        assert child.poll() is None
    finally:
        child.kill()
        child.communicate()


# slow_after


def test_a_slow_body_is_logged_once_with_its_stack(
    caplog: pytest.LogCaptureFixture, new_service: NewService, stall: Stall
) -> None:
    service = new_service(1, slow_after=0.02)
    service.submit(stall.body, "x")

    def found() -> list[logging.LogRecord]:
        # On a busy machine it may have waited for its slot, too.
        return [each for each in caplog.records if "a body has run for" in each.getMessage()]

    until(found)
    time.sleep(0.1)
    (record,) = found()
    assert (record.name, record.levelno) == ("boundedexec", logging.WARNING)
    assert "in body: assert self.gate.wait(LIMIT)" in record.getMessage()


def after_short_ones(service: Service, stall: Stall, *bodies: Callable[[], None]) -> None:
    """Queue `bodies` on a service with one slot behind so many that take no time that they
    share a look at the clock."""
    service.submit(stall.body)
    stall.wait_for(1)
    for _ in range(40):
        service.submit(int)
    for body in bodies:
        service.submit(body)
    stall.gate.set()


def test_of_two_slow_bodies_that_follow_short_ones_each_is_logged_in_its_time(
    caplog: pytest.LogCaptureFixture, new_service: NewService, stall: Stall
) -> None:
    limit = 0.1
    gates = [threading.Event(), threading.Event()]
    begun: list[float] = []

    def slow(gate: threading.Event) -> None:
        begun.append(time.time())
        assert gate.wait(LIMIT)

    def logged() -> list[logging.LogRecord]:
        return [each for each in caplog.records if "a body has run" in each.getMessage()]

    def is_logged(count: int) -> bool:
        return len(logged()) == count

    service = new_service(1, slow_after=limit)
    after_short_ones(service, stall, *(partial(slow, gate) for gate in gates))
    for number, gate in enumerate(gates, 1):
        until(partial(is_logged, number))
        gate.set()
    assert service.block_till_done(LIMIT)
    for record, since in zip(logged(), begun, strict=True):
        assert record.created - since >= limit
        assert ".slow(" in record.getMessage()


def test_the_seconds_of_a_body_do_not_count_those_before_it(
    new_service: NewService, stall: Stall
) -> None:
    service = new_service(1)
    first, second = Stall(), Stall()
    after_short_ones(service, stall, first.body, second.body)
    first.wait_for(1)
    time.sleep(0.05)
    looked = time.perf_counter()
    (before,) = service.tasks(limit=1)
    assert before.seconds >= 0.05
    first.gate.set()
    second.wait_for(1)
    (after,) = service.tasks(limit=1)
    assert after.number != before.number
    assert after.seconds <= time.perf_counter() - looked
    second.gate.set()


def test_a_long_wait_for_a_slot_is_logged_once(
    caplog: pytest.LogCaptureFixture, new_service: NewService, stall: Stall
) -> None:
    service = new_service(1, slow_after=0.02)
    service.submit(stall.body, "holder")
    stall.wait_for(1)
    for n in range(3):
        service.submit(pow, 2, n)
    until(lambda: len(caplog.records) >= 2)
    time.sleep(0.1)
    message = "\n".join(record.getMessage() for record in caplog.records)
    assert len(caplog.records) <= 3  # The three may have come to their time one by one.
    assert "pow(2, 0)" in message
    assert "the slots are held by" in message and "Stall.body('holder')" in message


def test_who_gave_its_slot_away_does_not_hold_one(
    caplog: pytest.LogCaptureFixture, new_service: NewService, stall: Stall
) -> None:
    service, yields = new_service(1, slow_after=0.02), threading.Event()
    service.submit(service.yield_slot, yields.wait)
    service.submit(stall.body, "holder")
    stall.wait_for(1)
    service.submit(pow, 2, 3)
    until(lambda: any("pow(2, 3)" in record.getMessage() for record in caplog.records))
    message = next(r.getMessage() for r in caplog.records if "pow(2, 3)" in r.getMessage())
    yields.set()
    assert "Stall.body('holder')" in message
    assert "yield_slot" not in message


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_slow_body_is_logged_in_a_forked_child(
    caplog: pytest.LogCaptureFixture, new_service: NewService, stall: Stall
) -> None:
    service = new_service(1, slow_after=0.02)
    service.submit(int).result()

    def check() -> None:
        service.submit(stall.body, "in the child")
        until(lambda: any("in the child" in record.getMessage() for record in caplog.records))

    assert in_child(check) == 0


def test_what_is_quick_is_not_logged(
    caplog: pytest.LogCaptureFixture, new_service: NewService
) -> None:
    service = new_service(2, slow_after=30)
    assert list(service.map(int, range(100))) == list(range(100))
    assert not caplog.records


@pytest.mark.parametrize("value", [-1, "x", True])
def test_slow_after_is_checked(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="slow_after"):
        Service(1, slow_after=value)


def test_no_thread_looks_where_nobody_asked(new_service: NewService) -> None:
    new_service(1).submit(int).result()
    code = "import boundedexec, threading; s = boundedexec.Service(1); s.submit(int).result(); "
    code += "print([t.name for t in threading.enumerate() if 'slow' in t.name])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


# debug


def test_a_lost_failure_says_where_it_was_submitted(
    caplog: pytest.LogCaptureFixture, new_service: NewService
) -> None:
    service = new_service(1)
    boundedexec.debug()
    try:
        service.submit(int, "seven")
        assert service.block_till_done(LIMIT)
    finally:
        boundedexec.debug(False)
    until(lambda: caplog.records)
    (record,) = caplog.records
    assert "int('seven'), submitted at " in record.getMessage()
    assert f"{os.path.basename(__file__)}:" in record.getMessage()
    assert record.exc_info is not None


def test_without_it_a_lost_failure_tells_the_call_and_runs_no_code_of_its_arguments(
    caplog: pytest.LogCaptureFixture, new_service: NewService
) -> None:
    class Loud:
        def __repr__(self) -> str:
            raise AssertionError

        __str__ = __repr__

    class LoudText(str):
        __repr__ = __getitem__ = Loud.__repr__  # type: ignore[assignment]

    def body(*args: object, **kwargs: object) -> None:
        raise ValueError

    service = new_service(1)
    boundedexec.debug(False)
    future = service.submit(
        body, 7, "x" * 10**6, 1.5, None, Loud(), LoudText("text"), size=1 << 10**6, flag=True
    )
    assert service.block_till_done(LIMIT)
    assert repr(future).partition(" at ")[0].endswith(".body")
    del future
    until(lambda: caplog.records)
    (record,) = caplog.records
    (call,) = re.findall(r"body(\(.*\)):", record.getMessage())
    assert re.sub("x[x.]*x", "x", call) == (
        f"(7, 'x', 1.5, None, <{Loud.__qualname__}>, <{LoudText.__qualname__}>, "
        "size=<int>, flag=True)"
    )
    assert len(call) < 500
