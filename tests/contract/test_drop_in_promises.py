"""What programs read, set, override and wrap on the stdlib's pool works on the drop-in."""

from __future__ import annotations

import concurrent.futures
import textwrap
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor as StdlibPool
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, check_slots, full, new_service, run_script

import boundedexec
from boundedexec import Service


def new_pool(max_workers: int, **options: Any) -> Service:
    return boundedexec.ThreadPoolExecutor(max_workers, daemon=True, **options)


makers = pytest.mark.parametrize("make", [new_pool, new_service], ids=["drop-in", "Service"])

NAMES = [
    "_shutdown",
    "_broken",
    "_shutdown_lock",
    "_thread_name_prefix",
    "_threads",
    "_work_queue",
    "_max_workers",
    "_initializer",
    "_initargs",
]


@makers
def test_what_programs_read_of_a_pool_is_there(make: Any) -> None:
    def initialize(_: int) -> None: ...

    ours = make(2, thread_name_prefix="mine", initializer=initialize, initargs=(1,))
    theirs: Any = StdlibPool(2, "mine", initialize, (1,))
    assert [name for name in NAMES if not hasattr(ours, name)] == []
    for pool in ours, theirs:
        assert pool._shutdown is False
        assert not pool._broken
        assert pool._thread_name_prefix == "mine"
        assert len(pool._threads) == 0
        assert pool._work_queue.qsize() == 0
        assert pool._work_queue.empty()
        assert pool._max_workers == 2
        pool.submit(pow, 2, 3).result(LIMIT)
        assert all(isinstance(thread, threading.Thread) for thread in pool._threads)
        pool.shutdown()
        assert pool._shutdown is True
    assert ours._initializer is initialize
    assert ours._initargs == (1,)


@makers
def test_the_shutdown_lock_is_a_lock(make: Any) -> None:
    pool = make(1)
    with pool._shutdown_lock:
        assert not in_another_thread(lambda: pool._shutdown_lock.acquire(blocking=False))
    assert pool._shutdown_lock.acquire(timeout=1)
    pool._shutdown_lock.release()
    check_slots(pool, 1)


def in_another_thread(act: Any) -> Any:
    said: list[Any] = []
    thread = threading.Thread(target=lambda: said.append(act()), daemon=True)
    thread.start()
    thread.join(LIMIT)
    return said[0]


@makers
def test_broken_says_that_the_initializer_failed(make: Any) -> None:
    pool = make(1, initializer=lambda: 1 / 0)
    assert not pool._broken
    future = pool.submit(pow, 2, 3)
    assert isinstance(future.exception(LIMIT), boundedexec.BrokenThreadPool)
    assert pool._broken


def test_the_threads_are_there_when_submit_returns() -> None:
    for pool in boundedexec.ThreadPoolExecutor(4, daemon=True), StdlibPool(4):
        there: Any = pool
        gates = [Gate() for _ in range(6)]
        for n, gate in enumerate(gates):
            pool.submit(gate)
            # One may have been started ahead, for the next submission.
            assert min(n + 1, 4) <= len(there._threads) <= 4
            assert all(thread.is_alive() for thread in there._threads)
        for gate in gates:
            gate.open()
        pool.shutdown()


def test_an_attribute_that_is_set_on_the_threads_is_found_by_the_bodies() -> None:
    for _ in range(20):
        pool = boundedexec.ThreadPoolExecutor(4, daemon=True)
        gate = Gate()

        def body(gate: Gate = gate) -> bool:
            gate()
            return getattr(threading.current_thread(), "mine", False)

        futures = [pool.submit(body) for _ in range(4)]
        assert len(pool._threads) == 4
        for thread in pool._threads:
            thread.mine = True  # type: ignore[attr-defined]
        gate.open()
        assert all(future.result(LIMIT) for future in futures)
        pool.shutdown()


def test_max_workers_is_always_a_positive_int() -> None:
    pools: list[Any] = [
        boundedexec.ThreadPoolExecutor(),
        boundedexec.ThreadPoolExecutor(3),
        boundedexec.ThreadPoolExecutor(True),
        boundedexec.ThreadPoolExecutor(2.5),  # type: ignore[arg-type]
        boundedexec.ThreadPoolExecutor(float("inf")),  # type: ignore[arg-type]
        Service.unbounded(),
    ]
    for pool in pools:
        assert type(pool._max_workers) is int
        assert pool._max_workers > 0


# What has no effect warns.


def test_a_work_queue_of_ones_own_warns_once_and_names_max_queued() -> None:
    import queue  # noqa: PLC0415

    class Limited(boundedexec.ThreadPoolExecutor):
        def __init__(self, limit: int, **options: Any) -> None:
            super().__init__(2, daemon=True, **options)
            own: Any = queue.Queue[Any](maxsize=limit)
            self._work_queue = own

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = Limited(10)
        for _ in range(3):
            assert pool.submit(pow, 2, 3).result(LIMIT) == 8
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert "max_queued" in str(caught[0].message)
    check_slots(pool, 2)


def test_an_overridden_adjust_thread_count_warns_once_and_names_daemon() -> None:
    class Daemons(boundedexec.ThreadPoolExecutor):
        def _adjust_thread_count(self) -> None:
            raise AssertionError("called")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = Daemons(2, daemon=True)
        for _ in range(3):
            assert pool.submit(pow, 2, 3).result(LIMIT) == 8
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert "daemon=True" in str(caught[0].message)
    check_slots(pool, 2)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("_shutdown", True, "shutdown(wait=False)"),
        ("_broken", "mine", "cancel_futures=True"),
        ("_threads", set[Any](), "daemon=True"),
        ("_thread_name_prefix", "mine", "thread_name_prefix="),
        ("_initializer", print, "initializer="),
        ("_initargs", (1,), "initargs="),
    ],
)
def test_what_is_set_without_effect_warns_and_names_what_has(
    name: str, value: Any, instead: str
) -> None:
    pool = new_pool(1)
    with pytest.warns(RuntimeWarning, match=name) as caught:
        setattr(pool, name, value)
    assert instead in str(caught[0].message)
    assert caught[0].filename == __file__
    assert pool.submit(pow, 2, 3).result(LIMIT) == 8


def test_clearing_the_threads_warns_and_names_daemon() -> None:
    pool: Any = new_pool(1)
    pool.submit(pow, 2, 3).result(LIMIT)
    with pytest.warns(RuntimeWarning, match="daemon=True"):
        pool._threads.clear()
    assert len(pool._threads) == 1


@pytest.mark.parametrize("number", [3, 2.5, 5 / 2, True, float("inf"), 10**30])
def test_the_number_of_workers_can_be_set_to_what_the_constructor_takes(number: Any) -> None:
    pool: Any = new_pool(1)
    pool._max_workers = number
    assert type(pool._max_workers) is int
    workers = 1 if number is True else 3
    with full(pool, workers):
        assert len(pool._threads) == workers
    for wrong in 0, -1:
        with pytest.raises(ValueError, match="greater than 0"):
            pool._max_workers = wrong
    pool.shutdown()


PROGRAM = """
    from concurrent.futures import ThreadPoolExecutor, as_completed, wait
    import threading, warnings
    warnings.simplefilter("error")
    pool = ThreadPoolExecutor(1, "mine")
    pool._max_workers = 3
    three = threading.Barrier(4)
    futures = [pool.submit(three.wait) for _ in range(3)]
    print(len(pool._threads), pool._max_workers, pool._shutdown, pool._broken)
    three.wait()
    wait(futures)
    with pool._shutdown_lock:
        print(pool._shutdown_lock.acquire(blocking=False), pool._work_queue.qsize())
    print(sorted(thread.name for thread in pool._threads))
    def poll():
        # What a library does in a body that waits.
        done, pending = set(), {one.submit(pow, 2, n) for n in range(3)}
        while pending:
            over, pending = wait(pending, timeout=0.1)
            done |= over
        done |= set(as_completed([one.submit(pow, 2, 5)], timeout=30))
        return sorted(future.result(timeout=30) for future in done)
    with ThreadPoolExecutor(True) as one:
        print(one.submit(poll).result(timeout=30))
    pool.shutdown()
    print(pool._shutdown)
    """


def test_a_program_that_uses_the_parts_runs_under_run_and_with_install(tmp_path: Any) -> None:
    program = textwrap.dedent(PROGRAM)
    expected = [
        "3 3 False False",
        "False 0",
        "['mine_0', 'mine_1', 'mine_2']",
        "[1, 2, 4, 32]",
        "True",
    ]
    assert run_script("import boundedexec; boundedexec.install()\n" + program) == expected
    (tmp_path / "program.py").write_text(program)
    assert (
        run_script(f"""
        import io, sys
        from boundedexec.__main__ import main
        sys.__stderr__ = io.StringIO()
        sys.exit(main(["run", {str(tmp_path / "program.py")!r}]))
        """)
        == expected
    )


def test_ordinary_subclasses_and_attributes_warn_of_nothing() -> None:
    class Ordinary(boundedexec.ThreadPoolExecutor):
        def __init__(self) -> None:
            super().__init__(2, daemon=True)
            self.mine = 1
            self._also_mine = 2

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            return super().submit(fn, *args, **kwargs)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool = Ordinary()
        pool._max_workers = 3
        assert list(pool.map(abs, [-1])) == [1]
    check_slots(pool, 3)


# Leaving.

LEAVING = """
    import signal, threading, time
    from boundedexec import Service, ThreadPoolExecutor
    ran = []
    started = threading.Event()

    def body(n):
        started.set()
        if n == 0:
            time.sleep(0.1)
        ran.append(n)

    try:
        with {pool}(1) as pool:
            for n in range(50):
                pool.submit(body, n)
            started.wait()
            {leave}
    except BaseException as error:
        print(type(error).__name__, len(ran), pool.is_shut_down)
    """


@pytest.mark.parametrize("pool", ["Service", "ThreadPoolExecutor"])
@pytest.mark.parametrize(
    ("leave", "name"),
    [
        ("raise KeyError", "KeyError"),
        ("signal.raise_signal(signal.SIGINT)", "KeyboardInterrupt"),
    ],
)
def test_a_with_block_that_is_left_early_still_runs_what_is_queued(
    pool: str, leave: str, name: str
) -> None:
    assert run_script(LEAVING.format(pool=pool, leave=leave)) == [f"{name} 50 True"]


# The end of a program.


@pytest.mark.parametrize("name", ["Service", "ThreadPoolExecutor"])
def test_bodies_may_submit_at_the_end_of_the_program(name: str) -> None:
    assert run_script(f"""
        import time
        from boundedexec import {name} as Pool
        pool = Pool(1)

        def body(n):
            print(n, flush=True)
            time.sleep(0.05)
            if n:
                pool.submit(body, n - 1)

        pool.submit(body, 3)
        """) == ["3", "2", "1", "0"]


def test_what_queued_work_asks_for_at_the_end_is_finished_or_cancelled_for_a_daemon() -> None:
    assert run_script("""
        import threading
        from boundedexec import Service
        service = Service(1, daemon=True)
        started = threading.Event()
        service.submit(lambda: (started.set(), threading.Event().wait(60)))
        started.wait()
        queued = service.submit(print, "never")
        queued.add_done_callback(lambda future: print("cancelled", future.cancelled()))
        """) == ["cancelled True"]


def test_giving_up_after_a_while_leaves_the_with_statement_out() -> None:
    assert run_script("""
        import threading
        from boundedexec import Service
        service = Service(1, daemon=True)
        future = service.submit(threading.Event().wait)
        service.shutdown(wait=False)
        print(service.is_shut_down, service.block_till_done(0.1))
        """) == ["True False"]


def test_the_stdlibs_functions_take_its_futures_with_others() -> None:
    pool = boundedexec.ThreadPoolExecutor(1, daemon=True)
    with StdlibPool(1) as theirs, full(pool) as release:
        futures = [pool.submit(pow, 2, 3), theirs.submit(pow, 2, 4)]
        release()
        done, _ = concurrent.futures.wait(futures, LIMIT)
        assert sorted(future.result() for future in done) == [8, 16]
