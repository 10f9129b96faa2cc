"""What breaks beneath a service over an executor hits what it took, and no slot is lost."""

from __future__ import annotations

import concurrent.futures
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    FREE_THREADED,
    LIMIT,
    Boom,
    Inline,
    Manual,
    Oops,
    Passing,
    Starts,
    fail,
    forking,
    in_child,
    run_script,
    wait_until,
)
from test_interrupts import CtrlC, interrupted, sweep

from boundedexec import Coalescer, Service, TaskGroup

AnyFuture = Future[Any]

# Not forked beside threads.
_spawned = multiprocessing.get_context("spawn")


def processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, _spawned)


def stay(folder: Path, name: str) -> int:
    """Say that it runs, and in which process; end when the file is gone, or nobody stays."""
    path = folder / name
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
    while path.exists() and not (folder / "nobody").exists():
        time.sleep(0.002)
    return os.getpid()


@contextmanager
def nobody_stays(folder: Path) -> Generator[None]:
    """At the end, so that a test that fails does not wait for ever."""
    try:
        yield
    finally:
        (folder / "nobody").touch()


def started(folder: Path, name: str) -> int:
    """The process in which `stay` runs, once it does."""
    wait_until((folder / name).exists)
    return int((folder / name).read_text())


def kill(processes: list[int]) -> None:
    """All that execute something: the stdlib's pool may not look at one that it has started
    last, until something else happens."""
    for process in processes:
        os.kill(process, signal.SIGKILL)


def every_slot_can_be_used(service: Service, executor: Manual, bound: int) -> None:
    """All slots are there, and no more."""
    executor.run()  # What was cancelled.
    futures = [service.submit(int) for _ in range(bound + 1)]
    wait_until(lambda: len(executor.handed) == bound)
    assert service.stats().running == bound
    while not service.block_till_done(0.001):
        executor.run()
    assert [future.result(LIMIT) for future in futures] == [0] * (bound + 1)


# Processes


def test_processes_execute_and_their_failures_come_back() -> None:
    with processes() as pool, Service.over(pool, 5) as service:
        assert list(service.map(pow, range(50), [2] * 50)) == [n**2 for n in range(50)]
        assert service.submit(os.getpid).result(LIMIT) != os.getpid()
        with pytest.raises(ZeroDivisionError):
            service.submit(divmod, 1, 0).result(LIMIT)
        unpicklable = service.submit(lambda: None)
        with pytest.raises(Exception, match="pickle|local object"):
            unpicklable.result(LIMIT)
        with TaskGroup(service, limit=2) as group:
            for n in range(5):
                group.submit(pow, n, 2)
        assert group.results() == [0, 1, 4, 9, 16]
        assert service.submit(pow, 2, 3).result(LIMIT) == 8
        assert service.block_till_done(LIMIT)
        now = service.stats()
        assert (now.failed, now.running, now.queued) == (2, 0, 0)


def test_a_killed_worker_is_the_failure_of_what_the_pool_had_in_hand(tmp_path: Path) -> None:
    with processes() as pool, Service.over(pool, 2) as service, nobody_stays(tmp_path):
        in_hand = [service.submit(stay, tmp_path, name) for name in "ab"]
        executing = [started(tmp_path, name) for name in "ab"]
        queued = [service.submit(int) for _ in range(3)]
        assert queued[2].cancel()
        kill(executing)
        for future in in_hand:
            assert isinstance(future.exception(LIMIT), BrokenProcessPool)
        # The pool is broken, and says so to each that is handed to it.
        for future in queued[:2]:
            assert isinstance(future.exception(LIMIT), BrokenProcessPool)
        assert service.block_till_done(LIMIT)
        now = service.stats()
        assert (now.submitted, now.failed, now.cancelled, now.completed) == (5, 4, 1, 0)


def test_with_a_factory_what_a_killed_worker_took_is_executed_again(tmp_path: Path) -> None:
    made: list[ProcessPoolExecutor] = []

    def make() -> ProcessPoolExecutor:
        made.append(processes())
        return made[-1]

    with Service.over(make, 2, retries=1) as service, nobody_stays(tmp_path):
        in_hand = [service.submit(stay, tmp_path, name) for name in "ab"]
        before = [started(tmp_path, name) for name in "ab"]
        queued = [service.submit(pow, n, 2) for n in range(5)]
        kill(before)
        wait_until(lambda: all(started(tmp_path, name) not in before for name in "ab"))
        again = [started(tmp_path, name) for name in "ab"]
        for name in "ab":
            (tmp_path / name).unlink()
        assert [future.result(LIMIT) for future in in_hand] == again
        assert [future.result(LIMIT) for future in queued] == [0, 1, 4, 9, 16]
        assert len(made) == 2
    # Shut down with the service that had it made.
    with pytest.raises(RuntimeError):
        made[-1].submit(int)


def test_without_retries_a_factory_goes_on_for_what_is_queued(tmp_path: Path) -> None:
    with Service.over(processes, 1) as service, nobody_stays(tmp_path):
        first = service.submit(stay, tmp_path, "a")
        queued = [service.submit(pow, n, 2) for n in range(5)]
        kill([started(tmp_path, "a")])
        assert isinstance(first.exception(LIMIT), BrokenProcessPool)
        assert [future.result(LIMIT) for future in queued] == [0, 1, 4, 9, 16]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="no InterpreterPoolExecutor here")
def test_interpreters_execute() -> None:
    pool: Any = getattr(concurrent.futures, "InterpreterPoolExecutor")(2)  # noqa: B009
    with pool, Service.over(pool, 4) as service:
        assert list(service.map(pow, range(50), [2] * 50)) == [n**2 for n in range(50)]
        builds: Coalescer[str] = Coalescer(service)
        assert {builds.submit("key", pow, 2, 5).result(LIMIT) for _ in range(20)} == {32}
        with pytest.raises(ZeroDivisionError):
            service.submit(divmod, 1, 0).result(LIMIT)
        assert service.block_till_done(LIMIT)


# Executors that refuse, break and are shut down


class Breaking(Manual):
    """Can be broken, as a pool of processes is by one that dies."""

    def break_now(self) -> None:
        self.refusal = BrokenExecutor("broken")
        while self.handed:
            self.handed.popleft()[0].set_exception(BrokenExecutor("broken with it"))


class Factory:
    def __init__(self) -> None:
        self.made: list[Breaking] = []

    def __call__(self) -> Breaking:
        self.made.append(Breaking())
        return self.made[-1]

    def handed(self) -> list[int]:
        return [len(each.handed) for each in self.made]


def test_what_an_executor_refuses_is_the_failure_of_that_submission() -> None:
    executor = Manual()
    with Service.over(executor, 2) as service:
        for refusal in (Boom("no"), Oops(), RuntimeError("cannot schedule new futures")):
            executor.refusal = refusal
            refused = [service.submit(int) for _ in range(5)]
            assert [future.exception(LIMIT) for future in refused] == [refusal] * 5
        executor.refusal = None
        every_slot_can_be_used(service, executor, 2)
        assert service.stats().failed == 15


def test_a_cancel_that_raises_there_leaves_the_failure_of_the_body_what_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Obstinate(AnyFuture):
        def cancel(self) -> bool:
            raise OSError("no connection")

    class Distant(Manual):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AnyFuture:
            self.handed.append((Obstinate(), fn, args, kwargs))
            return self.handed[-1][0]

    executor = Distant()
    futures: list[AnyFuture] = []
    with Service.over(executor, 2) as service:
        with pytest.raises(ExceptionGroup) as raised, TaskGroup(service) as group:
            group.submit(fail, Boom())
            futures += [group.submit(int), group.submit(int)]
            wait_until(lambda: len(executor.handed) == 2)
            assert not futures[0].cancel()
            executor.run()
        assert [type(error) for error in raised.value.exceptions] == [Boom]
        assert futures[0].result(0) == 0 and futures[1].cancelled()
        assert "no connection" in caplog.text
        every_slot_can_be_used(service, executor, 2)


def test_an_executor_that_is_shut_down_fails_what_is_handed_to_it() -> None:
    pool = concurrent.futures.ThreadPoolExecutor(1)
    gate, begun = threading.Event(), threading.Event()

    def body() -> bool:
        begun.set()
        return gate.wait(LIMIT)

    with Service.over(pool, 1) as service:
        first, second = service.submit(body), service.submit(int)
        assert begun.wait(LIMIT)
        pool.shutdown(wait=False)
        gate.set()
        assert first.result(LIMIT)
        with pytest.raises(RuntimeError, match="after shutdown"):
            second.result(LIMIT)


def test_retries_are_counted_and_are_for_what_the_broken_one_had() -> None:
    factory = Factory()
    with Service.over(factory, 2, retries=2) as service:
        futures = [service.submit(int, str(i)) for i in range(3)]
        for attempt in range(3):
            wait_until(lambda: len(factory.made) > attempt and factory.handed()[attempt] == 2)  # noqa: B023
            assert not any(future.done() for future in futures)
            factory.made[attempt].break_now()
        for future in futures[:2]:
            assert isinstance(future.exception(LIMIT), BrokenExecutor)
        # The third was queued all the time.
        wait_until(lambda: factory.handed() == [0, 0, 0, 1])
        every_slot = factory.made[3]
        every_slot.run()
        assert futures[2].result(LIMIT) == 2
        every_slot_can_be_used(service, every_slot, 2)
        now = service.stats()
        assert (now.submitted, now.failed) == (6, 2)


def test_a_body_that_raises_it_itself_is_not_executed_again() -> None:
    factory = Factory()
    ran: list[int] = []

    def body() -> None:
        ran.append(1)
        raise BrokenExecutor("of an executor of its own")

    with Service.over(factory, 2, retries=5) as service:
        future = service.submit(body)
        wait_until(lambda: factory.handed() == [1])
        factory.made[0].run()
        with pytest.raises(BrokenExecutor, match="of its own"):
            future.result(LIMIT)
        assert ran == [1]
        assert factory.handed() == [1]  # The question whether that is broken.
        factory.made[0].run()
        every_slot_can_be_used(service, factory.made[0], 2)


def test_what_the_factory_raises_is_the_failure_of_that_submission() -> None:
    made: list[Any] = [Breaking(), Boom("no executor"), None, Inline()]

    def make() -> Executor:
        executor = made.pop(0)
        if isinstance(executor, Boom):
            raise executor
        return executor  # type: ignore[no-any-return]

    first = made[0]
    with Service.over(make, 1) as service:
        first.break_now()
        assert isinstance(service.submit(int).exception(LIMIT), Boom)
        assert "must return an executor" in str(service.submit(int).exception(LIMIT))
        assert service.submit(int, "5").result(LIMIT) == 5
    made[:] = [Boom("no executor"), None]
    with pytest.raises(Boom):
        Service.over(make, 1)
    with pytest.raises(TypeError, match="must return an executor"):
        Service.over(make, 1)


def test_an_executor_of_a_factory_is_shut_down_though_nothing_was_submitted() -> None:
    class Closing(Inline):
        closed = False

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            self.closed = True

    executor = Closing()
    with Service.over(lambda: executor, 1):
        assert not executor.closed
    assert executor.closed


def test_an_executor_that_is_broken_from_the_start_is_asked_twice() -> None:
    class Broken(Inline):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> AnyFuture:
            raise BrokenExecutor("from the start")

    with Service.over(Broken, 1, retries=3) as service:
        with pytest.raises(BrokenExecutor):
            service.submit(int).result(LIMIT)


def test_a_run_that_broke_is_followed_by_what_is_owed() -> None:
    factory = Factory()
    with Service.over(factory, 2) as service:
        builds: Coalescer[str] = Coalescer(service)
        first = builds.submit("key", int, "1")
        wait_until(lambda: factory.handed() == [1])
        second = builds.submit("key", int, "2")
        factory.made[0].break_now()
        assert isinstance(first.exception(LIMIT), BrokenExecutor)
        wait_until(lambda: factory.handed() == [0, 1])
        factory.made[1].run()
        assert second.result(LIMIT) == 2
        assert len(builds) == 0


# Exit and fork


@pytest.mark.parametrize("given", ["ProcessPoolExecutor(1)", "lambda: ProcessPoolExecutor(1)"])
def test_at_exit_what_was_accepted_is_finished_first(given: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"""if __name__ == "__main__":
    import boundedexec
    from concurrent.futures import ProcessPoolExecutor
    service = boundedexec.Service.over({given}, 2)
    service.submit(int).result()  # Python 3.12 starts no process once the program is over.
    for n in range(10):
        service.submit(print, n, flush=True)
    service.submit(pow, 2, 5).add_done_callback(lambda future: print(future.result()))
"""
    )
    source = f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')"
    assert sorted(map(int, run_script(source, "-W", "ignore"))) == [*range(10), 32]


@forking
def test_in_the_child_of_a_fork_it_is_empty_and_works() -> None:
    executor = Passing(Inline())
    gate, blocking = threading.Event(), threading.Event()

    def block() -> None:
        blocking.set()
        assert gate.wait(LIMIT)

    executor.before = block
    with Service.over(executor, 1) as service:
        futures = [service.submit(int) for _ in range(3)]
        assert blocking.wait(LIMIT)

        def check() -> None:
            assert all(future.cancelled() for future in futures)
            assert service.submit(int, "5").result(LIMIT) == 5
            assert service.block_till_done(LIMIT)
            service.shutdown()

        status = in_child(check)
        gate.set()
        assert status == 0
        assert [future.result(LIMIT) for future in futures] == [0, 0, 0]


# Faults


def test_a_feeder_that_cannot_be_started_loses_nothing(starts: Starts) -> None:
    executor = Manual()
    with Service.over(executor, 2) as service:
        starts.fail()
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                service.submit(int)
            assert service.block_till_done(0)
        starts.fail(False)
        every_slot_can_be_used(service, executor, 2)
        assert service.stats().submitted == 3


class Abort(BaseException):
    pass


def abort(thread: threading.Thread) -> None:
    assert thread.ident is not None
    ident, error = ctypes.c_ulong(thread.ident), ctypes.py_object(Abort)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, error)


def test_a_feeder_that_is_interrupted_loses_no_more_than_what_it_was_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[type[BaseException]] = []

    def report(args: Any) -> None:
        reported.append(args.exc_type)

    monkeypatch.setattr(threading, "excepthook", report)
    executor = Passing(Inline())

    def strike() -> None:
        abort(threading.current_thread())
        for _ in range(100):
            pass

    with Service.over(executor, 1) as service:
        service.submit(int).result(LIMIT)
        for _ in range(3):
            (feeder,) = [t for t in threading.enumerate() if t.name.endswith("_feeder")]
            abort(feeder)  # It comes where that has been woken.
            assert service.submit(int, "5").result(LIMIT) == 5
        executor.before = strike
        with pytest.raises(Abort):
            service.submit(int).result(LIMIT)
        executor.after = strike
        struck = service.submit(int)
        assert struck.exception(LIMIT) is None or isinstance(struck.exception(), Abort)
        gate = threading.Event()
        executor.before = lambda: gate.wait(LIMIT)
        struck = service.submit(int)
        struck.add_done_callback(lambda _: abort(threading.current_thread()))
        gate.set()
        assert service.block_till_done(LIMIT)
        assert [service.submit(int, n).result(LIMIT) for n in range(5)] == list(range(5))
        assert service.block_till_done(LIMIT)


@pytest.mark.skipif(FREE_THREADED, reason="an exception may come elsewhere without a GIL")
@pytest.mark.parametrize("call", ["submit", "cancel", "block_till_done", "shutdown"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_loses_nothing(call: str) -> None:
    def round_(ctrl_c: CtrlC) -> None:
        executor = Manual()
        service = Service.over(executor, 2, daemon=True)
        futures = [service.submit(int) for _ in range(3)]
        wait_until(lambda: len(executor.handed) == 2)
        calls: dict[str, Callable[[], object]] = {
            "submit": lambda: futures.append(service.submit(int)),
            "cancel": lambda: [future.cancel() for future in futures],
            "block_till_done": lambda: service.block_till_done(0),
            "shutdown": lambda: service.shutdown(wait=False, cancel_futures=True),
        }
        with interrupted(ctrl_c):
            calls[call]()
        end = time.monotonic() + LIMIT
        while not service.block_till_done(0.001):
            assert time.monotonic() < end
            executor.run()
        assert all(future.done() for future in futures)
        if call != "shutdown":
            every_slot_can_be_used(service, executor, 2)
        service.shutdown()

    assert sweep(round_) > 3
