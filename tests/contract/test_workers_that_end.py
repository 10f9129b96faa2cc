"""A worker that ends unexpectedly takes its own submission with it, and nothing else."""

from __future__ import annotations

import ctypes
import operator
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from contract_helpers import (
    LIMIT,
    Gate,
    check_slots,
    in_thread,
    new_service,
    run_script,
    wait_until,
)

import boundedexec
from boundedexec import Coalescer, Service
from boundedexec._core.recording import SILENT, Recorder
from boundedexec.service import slots_of


class Abort(BaseException):
    """What is raised in a thread from outside."""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that ends by an exception says so on stderr; here that is expected."""

    def unheard(_: object) -> None: ...

    monkeypatch.setattr(threading, "excepthook", unheard)


def abort(ident: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Abort))


class Busy:
    """A body that runs Python code until it is aborted, or told to go on."""

    def __init__(self) -> None:
        self.ident = 0
        self.stop = False
        self.entered, self.left = threading.Event(), threading.Event()

    def __call__(self) -> str:
        try:
            return self._loop()
        finally:
            self.left.set()

    def _loop(self) -> str:
        # Not in the `try` itself: Python 3.13.0 can let a loop's jump out of that.
        self.ident = threading.get_ident()
        self.entered.set()
        end = time.monotonic() + LIMIT
        while not self.stop and time.monotonic() < end:
            pass
        return "not aborted"

    def abort(self) -> None:
        """Abort it; again where the exception fell into a callback of the collector's."""
        assert self.entered.wait(LIMIT)
        for _ in range(10):
            abort(self.ident)
            if self.left.wait(1):
                break


def drop_in(max_workers: int) -> boundedexec.ThreadPoolExecutor:
    return boundedexec.ThreadPoolExecutor(max_workers, daemon=True)


makers = pytest.mark.parametrize("make", [new_service, drop_in])


@makers
@pytest.mark.parametrize("workers", [1, 4])
def test_a_body_that_is_aborted_fails_with_that_exception(
    make: Callable[[int], Service], workers: int
) -> None:
    service = make(workers)
    for _ in range(5):
        busy = Busy()
        future = service.submit(busy)
        queued = service.submit(pow, 2, 3)
        busy.abort()
        assert isinstance(future.exception(LIMIT), Abort)
        assert queued.result(LIMIT) == 8
    check_slots(service, workers)


@makers
@pytest.mark.parametrize("workers", [1, 4])
def test_an_idle_thread_that_is_aborted_costs_no_slot(
    make: Callable[[int], Service], workers: int
) -> None:
    service = make(workers)
    aborted = 0
    for turn in range(10):
        try:
            ident = service.submit(threading.get_ident).result(LIMIT)
        except Abort:  # A thread that was not woken since it was aborted.
            aborted += 1
            continue
        assert service.block_till_done(LIMIT)
        abort(ident)
        futures = [service.submit(pow, 2, 3) for _ in range(4)]
        errors = [future.exception(LIMIT) for future in futures]
        assert all(error is None or isinstance(error, Abort) for error in errors)
        aborted += sum(error is not None for error in errors)
        assert aborted <= turn + 1
    check_slots(service, workers)


def test_every_idle_thread_may_be_aborted_at_once() -> None:
    service = new_service(4)
    meeting = threading.Barrier(4)

    def ident() -> int:
        meeting.wait(LIMIT)
        return threading.get_ident()

    idents = [future.result(LIMIT) for future in [service.submit(ident) for _ in range(4)]]
    assert service.block_till_done(LIMIT)
    for one in idents:
        abort(one)
    futures = [service.submit(pow, 2, 3) for _ in range(20)]
    errors = [future.exception(LIMIT) for future in futures]
    assert sum(error is not None for error in errors) <= 4
    check_slots(service, 4)


def test_a_thread_that_is_aborted_again_when_it_says_so_costs_no_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[object] = []

    def hook(args: threading.ExceptHookArgs) -> None:
        heard.append(args.exc_type)
        raise Abort

    monkeypatch.setattr(threading, "excepthook", hook)
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    service = new_service(1)
    for _ in range(10):
        ident = service.submit(threading.get_ident).result(LIMIT)
        assert service.block_till_done(LIMIT)
        abort(ident)
        service.submit(pow, 2, 3).exception(LIMIT)  # Which may be what is aborted.
        if heard:
            break
    assert heard[0] is Abort
    check_slots(service, 1)


def check_aborted(service: Service, gate: Gate, inside: Callable[[], Any]) -> None:
    """A body that is aborted while another is in the gate fails, and its slot is free."""
    idents: list[int] = []

    def body() -> Any:
        idents.append(threading.get_ident())
        return inside()

    future = service.submit(body)
    gate.wait_entered()
    abort(idents[0])
    gate.open()
    assert isinstance(future.exception(LIMIT), Abort)
    check_slots(service, 1)


def test_a_body_that_is_aborted_while_it_waits_fails_and_its_slot_is_free() -> None:
    service, gate = new_service(1), Gate()
    check_aborted(service, gate, lambda: service.submit(gate, "inner").result())


def test_a_body_that_is_aborted_with_its_slot_yielded_fails_and_its_slot_is_free() -> None:
    service, busy = new_service(1), Busy()
    future = service.submit(lambda: service.yield_slot(busy))
    assert busy.entered.wait(LIMIT)
    assert service.submit(pow, 2, 3).result(LIMIT) == 8
    busy.abort()
    assert isinstance(future.exception(LIMIT), Abort)
    check_slots(service, 1)


def test_a_body_that_is_aborted_while_it_resumes_fails_and_its_slot_is_free() -> None:
    service, gate = new_service(1), Gate()

    def inside() -> None:
        service.submit(gate)
        service.yield_slot(gate.wait_entered)

    check_aborted(service, gate, inside)


def test_a_body_that_is_aborted_when_it_has_asked_for_its_slot_stands_in_no_line() -> None:
    service, gate = new_service(1), Gate()

    class Aborting(Recorder):
        def resumes(self, worker: Any) -> None:
            raise Abort

    def body() -> None:
        holder.append(service.submit(gate))
        service.yield_slot(gate.wait_entered)

    holder: list[Future[Any]] = []
    slots_of(service).recorder = Aborting()
    assert isinstance(service.submit(body).exception(LIMIT), Abort)
    slots_of(service).recorder = SILENT
    gate.open()
    holder[0].result(LIMIT)
    check_slots(service, 1)


def test_a_body_that_is_aborted_while_its_slot_is_still_lent_fails() -> None:
    service, gate, busy = new_service(1), Gate(), Busy()

    def body() -> str:
        future = service.submit(gate)
        while not gate.entered.is_set():
            try:
                future.result(0.02)
            except boundedexec.TimeoutError:
                pass
        return busy()

    future = service.submit(body)
    gate.wait_entered()
    busy.abort()
    assert isinstance(future.exception(LIMIT), Abort)
    assert not service.block_till_done(0)
    gate.open()
    check_slots(service, 1)


def test_a_borrower_that_is_aborted_gives_the_slot_back() -> None:
    service, busy = new_service(1), Busy()

    def body() -> str:
        error = service.submit(busy).exception()
        return type(error).__name__

    future = service.submit(body)
    busy.abort()
    assert future.result(LIMIT) == "Abort"
    check_slots(service, 1)


def test_a_run_that_is_aborted_fails_and_its_rerun_runs() -> None:
    service, busy = new_service(1), Busy()
    coalescer: Coalescer[str] = Coalescer(service)
    run = coalescer.submit("key", busy)
    assert busy.entered.wait(LIMIT)
    rerun = coalescer.submit("key", pow, 2, 3)
    busy.abort()
    assert isinstance(run.exception(LIMIT), Abort)
    assert rerun.result(LIMIT) == 8
    assert service.block_till_done(LIMIT)
    assert len(coalescer) == 0
    check_slots(service, 1)


def test_a_callback_that_is_aborted_costs_no_slot() -> None:
    service, busy, gate = new_service(1), Busy(), Gate()
    future = service.submit(gate, "result")
    future.add_done_callback(lambda _: busy() and None)
    gate.open()
    busy.abort()
    assert future.result(LIMIT) == "result"
    check_slots(service, 1)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Abort()])
def test_a_body_that_raises_what_ends_threads_ends_nothing(error: BaseException) -> None:
    service = new_service(1)

    def body() -> None:
        raise error

    assert service.submit(body).exception(LIMIT) is error
    check_slots(service, 1)


def test_aborts_at_random_moments_lose_no_slot() -> None:
    service: Service = new_service(3, thread_name_prefix="aborted")
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    seen: set[threading.Thread] = set()
    futures: list[Future[int]] = []

    def body(depth: int) -> int:
        seen.add(threading.current_thread())
        for _ in range(50):
            pass
        return depth and int(service.submit(body, depth - 1).result()) + 1

    for turn in range(300):
        futures += [service.submit(body, n) for n in range(3)]
        if turn % 3 == 0:
            # Only of threads that live, and have begun: an ident is given out again, and what
            # strikes a thread before its first instruction nobody can catch.
            alive = {thread for thread in seen.copy() if thread.is_alive()}
            for thread in sorted(alive, key=operator.attrgetter("name"))[: rng.randrange(3)]:
                abort(thread.ident or 0)
    for future in futures:
        error = future.exception(LIMIT)
        assert error is None or isinstance(error, Abort)
    # One that is under way still may strike a body that comes later.
    for _ in range(50):
        service.submit(pow, 2, 3).exception(LIMIT)
    check_slots(service, 3)


PROGRAM = """
import ctypes, threading, time
from boundedexec import {name} as Pool

class Abort(BaseException):
    pass

def abort(ident):
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Abort))

def busy():
    idents.append(threading.get_ident())
    end = time.monotonic() + 5
    while time.monotonic() < end:
        pass

threading.excepthook = lambda *_: None
idents = []
pool = Pool({workers})
running = pool.submit(busy)
while not idents:
    time.sleep(0.001)
abort(idents[0])
print(type(running.exception()).__name__)
abort(pool.submit(threading.get_ident).result())
pool.submit(pow, 2, 3).exception(5)
pool.block_till_done()
print(pool.submit(pow, 2, 3).result(5))
abort(pool.submit(threading.get_ident).result())
{end}
"""


@pytest.mark.parametrize("name", ["Service", "ThreadPoolExecutor"])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("end", ["", "pool.shutdown()", "del pool"])
def test_a_program_with_aborted_threads_ends(name: str, workers: int, end: str) -> None:
    source = PROGRAM.format(name=name, workers=workers, end=end)
    assert run_script(source, limit=20) == ["Abort", "8"]


def test_a_shutdown_beside_an_aborted_thread_returns() -> None:
    service = Service(2)
    ident = service.submit(threading.get_ident).result(LIMIT)
    abort(ident)
    in_thread(service.shutdown)
    assert service.is_shut_down


# Threads that a body starts.


def daemon_of_a_thread() -> bool:
    return threading.Thread(target=int).daemon


@pytest.mark.parametrize("make", [Service, boundedexec.ThreadPoolExecutor])
def test_a_thread_that_a_body_makes_is_no_daemon(make: Any) -> None:
    with make(1) as service:
        assert service.submit(daemon_of_a_thread).result(LIMIT) is False
        assert service.submit(lambda: threading.Timer(1, int).daemon).result(LIMIT) is False
        nested = service.submit(lambda: service.submit(daemon_of_a_thread).result())
        assert nested.result(LIMIT) is False
        yielded = service.submit(lambda: service.yield_slot(daemon_of_a_thread))
        assert yielded.result(LIMIT) is False
        coalescer: Coalescer[str] = Coalescer(service)
        assert coalescer.submit("key", daemon_of_a_thread).result(LIMIT) is False
        seen: list[bool] = []
        gate = Gate()
        future = service.submit(gate)

        def callback(_: object) -> None:
            seen.append(daemon_of_a_thread())

        future.add_done_callback(callback)
        gate.open()
        wait_until(lambda: seen == [False])
        own = service.submit(lambda: threading.Thread(target=int, daemon=True).daemon)
        assert own.result(LIMIT) is True


@pytest.mark.parametrize("make", [Service, boundedexec.ThreadPoolExecutor])
def test_a_thread_that_a_body_of_a_daemon_service_makes_is_a_daemon(make: Any) -> None:
    service = make(1, daemon=True)
    assert service.submit(daemon_of_a_thread).result(LIMIT) is True
    explicit = service.submit(lambda: threading.Thread(target=int, daemon=False).daemon)
    assert explicit.result(LIMIT) is False


def test_a_thread_that_an_initializer_makes_is_no_daemon() -> None:
    seen: list[bool] = []
    with Service(1, initializer=lambda: seen.append(daemon_of_a_thread())) as service:
        service.submit(int).result(LIMIT)
    assert seen == [False]


@pytest.mark.parametrize("name", ["Service", "ThreadPoolExecutor"])
def test_the_program_waits_for_a_thread_that_a_body_started(name: str) -> None:
    assert run_script(f"""
        import threading, time
        from boundedexec import {name} as Pool

        def work():
            time.sleep(0.3)
            print("saved", flush=True)

        with Pool(1) as pool:
            pool.submit(lambda: threading.Thread(target=work).start()).result()
        """) == ["saved"]
