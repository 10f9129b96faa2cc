"""What users of other libraries did to the stdlib's pool, as its public trackers tell: it works.

Each program runs on the stdlib's pool as well, for that is the measure; then on the drop-in,
and unchanged under `python -m boundedexec run`.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from run_helpers import RUN, python

POOLS = {
    "stdlib": "from concurrent.futures import ThreadPoolExecutor as Pool",
    "drop-in": "from boundedexec import ThreadPoolExecutor as Pool",
    "run": "from concurrent.futures import ThreadPoolExecutor as Pool",
}
each_pool = pytest.mark.parametrize("form", POOLS)


def lines(folder: Path, form: str, source: str) -> list[str]:
    """What the program prints. It fails on a warning, and says nothing on standard error."""
    path = folder / "program.py"
    path.write_text(POOLS[form] + textwrap.dedent(source))
    ours = [*RUN, "--quiet"] if form == "run" else []
    done = python("-W", "error::RuntimeWarning", *ours, path, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


THREADS = """
    import ctypes, sys, threading
    class Kill(BaseException): pass

    def spin():
        while True: threading.Event().wait(0.001)

    for _ in range(20):
        pool, gate = Pool(4), threading.Event()
        for _ in range(4): pool.submit(gate.wait)
        threads = list(pool._threads)
        known = [each.ident in sys._current_frames() for each in threads]
        assert known == [True] * 4, known
        assert all(each.native_id and each in threading.enumerate() for each in threads)
        gate.set()
        pool.shutdown()
    pool = Pool(2)
    futures = [pool.submit(spin) for _ in range(2)]
    for thread in pool._threads:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(Kill)
        )
    print([type(future.exception(20)).__name__ for future in futures])
    """


@each_pool
def test_threads_have_their_ident_right_after_submit(tmp_path: Path, form: str) -> None:
    assert lines(tmp_path, form, THREADS) == ["['Kill', 'Kill']"]


QUEUE = """
    import queue, sys, threading
    from concurrent.futures import Future
    from concurrent.futures.thread import _WorkItem

    class Context:  # What an item's `run` is given from Python 3.14 on.
        def run(self, task): return task[0](*task[1], **task[2])

    def run(item):
        item.run(Context()) if sys.version_info >= (3, 14) else item.run()

    pool, gate = Pool(2), threading.Event()
    held = [pool.submit(gate.wait) for _ in range(2)]
    queued = [pool.submit(pow, 2, n) for n in range(2)] + [pool.submit(lambda: 1 / 0)]
    # What runs is not in it, however soon that is asked.
    print(pool._work_queue.qsize(), pool._work_queue.empty())
    for _ in range(2): run(pool._work_queue.get_nowait())
    print([future.result(20) for future in queued[:2]])
    run(pool._work_queue.get(block=False))
    print(repr(queued[2].exception(20)))
    dropped = [pool.submit(int) for _ in range(3)]
    while True:
        try: pool._work_queue.get_nowait().future.cancel()
        except queue.Empty: break
    gate.set()
    print([each.cancelled() for each in (*held, *dropped)])
    pool._work_queue.put(None)
    future = Future()
    call = pow, (2, 5), {}
    new = sys.version_info >= (3, 14)
    pool._work_queue.put(_WorkItem(future, call) if new else _WorkItem(future, *call))
    print(future.result(20), pool.submit(pow, 2, 6).result(20))
    pool.shutdown()
    """


@each_pool
def test_work_items_are_taken_run_and_put(tmp_path: Path, form: str) -> None:
    assert lines(tmp_path, form, QUEUE) == [
        "3 False",
        "[1, 2]",
        "ZeroDivisionError('division by zero')",
        "[False, False, True, True, True]",
        "32 64",
    ]


COPIED = """
    import itertools, sys, warnings
    from concurrent.futures import Future, thread

    class Mine(Pool):
        def submit(self, fn, /, *args, **kwargs):
            with self._shutdown_lock, thread._global_shutdown_lock:
                if self._broken: raise thread.BrokenThreadPool(self._broken)
                if self._shutdown: raise RuntimeError("cannot schedule new futures after shutdown")
                future = Future()
                if sys.version_info >= (3, 14):
                    item = self.Item(future, self._resolve_work_item_task(fn, args, kwargs))
                else:
                    item = self.Item(future, fn, args, kwargs)
                self._work_queue.put(item)
                self._adjust_thread_count()
                return future
        Item = thread._WorkItem

    class Last(Mine):
        class Item(thread._WorkItem):
            count = itertools.count()
            def __init__(self, *args):
                super().__init__(*args)
                self.number = -next(self.count)
            def __lt__(self, other): return self.number < other.number

        def __init__(self, *args):
            import queue
            super().__init__(*args)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._work_queue = queue.PriorityQueue()
            if caught: assert "max_queued" in str(caught[0].message)

    with Mine(1) as pool:
        print(pool.submit(pow, 2, 3).result(20), list(pool.map(pow, [2, 3], [2, 2])))
        print(repr(pool.submit(lambda: 1 / 0).exception(20)), len(pool._threads))
    try: pool.submit(int)
    except RuntimeError as error: print(error)

    import os, threading
    pool, gate, began, order = Last(1), threading.Event(), threading.Event(), []
    pool.submit(lambda: (began.set(), gate.wait()))
    began.wait()
    futures = [pool.submit(order.append, n) for n in range(4)]
    gate.set()
    for future in futures: future.result(20)
    print(order, flush=True)
    os._exit(0)  # The stdlib's pool would put None beside the items, which cannot be compared.
    """


@each_pool
def test_a_submit_that_was_copied_from_the_stdlib_works(tmp_path: Path, form: str) -> None:
    assert lines(tmp_path, form, COPIED) == [
        "8 [4, 9]",
        "ZeroDivisionError('division by zero') 1",
        "cannot schedule new futures after shutdown",
        "[3, 2, 1, 0]",
    ]


BEFORE = """
    import queue, threading

    class Mine(Pool):
        def __init__(self, number):
            self._max_workers, self._shutdown = number, True
            self._threads = {None}
            self._work_queue = queue.SimpleQueue()
            super().__init__(self._max_workers, "mine")
            self._shutdown = False

    with Mine(3) as pool:
        print(pool._max_workers, pool._shutdown, len(pool._threads), pool._work_queue.qsize())
        print(pool.submit(pow, 2, 3).result(20), len(pool._threads))
    """


@each_pool
def test_what_a_subclass_sets_before_super_init_is_overwritten(tmp_path: Path, form: str) -> None:
    assert lines(tmp_path, form, BEFORE) == ["3 False 0 0", "8 1"]


IDLE = """
    import threading

    pool, gate = Pool(2), threading.Event()
    print(pool._idle_semaphore._value)
    pool.submit(int).result()
    while not pool._idle_semaphore._value: pass
    print(len(pool._threads), pool._idle_semaphore._value)
    for _ in range(2): pool.submit(gate.wait)
    print(len(pool._threads), pool._idle_semaphore.acquire(timeout=0))
    gate.set()
    pool.shutdown()
    """


@each_pool
def test_it_says_how_many_threads_are_idle(tmp_path: Path, form: str) -> None:
    assert lines(tmp_path, form, IDLE) == ["0", "1 1", "2 False"]


FUTURES = """
    import threading

    with Pool(1) as pool:
        future = pool.submit(pow, 2, 3)
        future.result()
        print(future._state, future._result, future._exception, len(future._waiters))
        future = pool.submit(lambda: 1 / 0)
        future.exception()
        print(future._state, future._result, repr(future._exception))
        gate = threading.Event()
        future = pool.submit(gate.wait)
        future.add_done_callback(print)
        print(len(future._done_callbacks))
        future._done_callbacks.clear()
        gate.set()
    """


@each_pool
def test_the_private_outcome_of_a_future_can_be_read(tmp_path: Path, form: str) -> None:
    assert lines(tmp_path, form, FUTURES) == [
        "FINISHED 8 None 0",
        "FINISHED None ZeroDivisionError('division by zero')",
        "1",
    ]


MAP = """
    def numbers():
        yield from range(3)
        raise KeyError("mine")

    ran = []
    with Pool(1) as pool:
        try: pool.map(ran.append, numbers())
        except KeyError as error: print(repr(error))
    print(ran)
    """


@each_pool
def test_what_map_has_submitted_runs_where_its_iterable_raises(tmp_path: Path, form: str) -> None:
    assert lines(tmp_path, form, MAP) == ["KeyError('mine')", "[0, 1, 2]"]


NOTHING = """
    import warnings

    class Green(Pool):
        def submit(self, fn, /, *args): return fn(*args)
        def _adjust_thread_count(self):
            "As gevent's, which starts none."

    print(Green(1).submit(pow, 2, 3))
    """


@each_pool
def test_a_pool_that_starts_no_threads_of_its_own_warns_of_nothing(
    tmp_path: Path, form: str
) -> None:
    assert lines(tmp_path, form, NOTHING) == ["8"]


PATCHED = """
    import warnings

    def start(self): ...
    original, Pool._adjust_thread_count = Pool._adjust_thread_count, start
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = Pool(1)
    Pool._adjust_thread_count = lambda self: original(self)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Pool(1) as pool: print(pool.submit(pow, 2, 3).result())
    print(["daemon=True" in str(each.message) for each in caught])
    """


@pytest.mark.parametrize("form", ["drop-in", "run"])
def test_an_adjust_thread_count_put_on_the_class_warns(tmp_path: Path, form: str) -> None:
    assert lines(tmp_path, form, PATCHED) == ["8", "[True]"]
