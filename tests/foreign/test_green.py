"""gevent and eventlet: their monkey patches before the import of the package and after it.

Every program is run with a Service, with the drop-in, and unchanged under `run`. It says
nothing on standard error and ends in time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign_helpers import FORMS, command, every_form, library, python
from helpers import forking

# Each starts programs, on machines that may do more than that.
pytestmark = pytest.mark.timeout(120)

PATCHES = {
    "gevent": "from gevent import monkey, sleep, spawn\nmonkey.patch_all()\n",
    "eventlet": "from eventlet import monkey_patch, sleep, spawn\nmonkey_patch()\n",
}
every_patch = pytest.mark.parametrize("green", PATCHES)
every_order = pytest.mark.parametrize("order", ["patched before", "patched after"])


def run(folder: Path, source: str, green: str, order: str, form: str) -> list[str]:
    library(green)
    before = order == "patched before"
    lines = [PATCHES[green], FORMS[form]] if before else [FORMS[form], PATCHES[green]]
    path = folder / "program.py"
    path.write_text(f"FORM = {form!r}\n{''.join(lines)}{source}")
    if form == "run" and before:
        ours = f"from boundedexec.__main__ import main; main(['run', '--quiet', {str(path)!r}])"
        return python("-c", PATCHES[green] + ours, cwd=folder)
    return python(*command(form), path, cwd=folder)


BODIES = """
import threading, time

together = threading.Barrier(8)
def meet(n):
    together.wait(20)
    time.sleep(0.001)
    return n

with Pool(8) as pool:
    futures = [pool.submit(meet, n) for n in range(8)]
    print([future.result() for future in futures], list(pool.map(meet, range(8))))
    print(len(wait([pool.submit(meet, n) for n in range(8)]).done))
    eight = [pool.submit(meet, n) for n in range(8)]
    print(sorted(future.result() for future in as_completed(eight)))
    # It is a thread like any other, and there are no more than eight of them.
    print(pool.submit(lambda: threading.current_thread() in threading.enumerate()).result())
    threads = list(pool._threads)
    print(0 < len(threads) <= 8, all(thread.is_alive() for thread in threads))
print(any(thread.is_alive() for thread in threads), set(threads) & set(threading.enumerate()))

ticks = []
def tick():
    while True:
        ticks.append(1)
        sleep(0.001)

def sleep_until_others_ran():
    before = len(ticks)
    while len(ticks) < before + 3: time.sleep(0.001)
    return "others ran"

ticking = spawn(tick)
with Pool(1) as pool:
    print(pool.submit(sleep_until_others_ran).result())
    last = pool.submit(sleep_until_others_ran)
print(last.result())
ticking.kill()
"""


@every_form
@every_order
@every_patch
def test_bodies_are_greenlets_and_others_run_while_one_sleeps(
    tmp_path: Path, green: str, order: str, form: str
) -> None:
    assert run(tmp_path, BODIES, green, order, form) == [
        "[0, 1, 2, 3, 4, 5, 6, 7] [0, 1, 2, 3, 4, 5, 6, 7]",
        "8",
        "[0, 1, 2, 3, 4, 5, 6, 7]",
        "True",
        "True True",
        "False set()",
        "others ran",
        "others ran",
    ]


WAITS = """
import concurrent.futures, threading, time
from concurrent.futures import _base

def leaf(n):
    time.sleep(0.001)
    return n

def ask():
    def several(): return [pool.submit(leaf, n) for n in range(3)]
    try: pool.submit(gate.wait).result(timeout=0.01)
    except TimeoutError: gate.set()
    return (
        pool.submit(leaf, 7).result(timeout=20), list(pool.map(leaf, range(3))),
        len(wait(several()).done), len(_base.wait(several()).done),
        sorted(future.result() for future in as_completed(several())),
        sorted(future.result() for future in _base.as_completed(several())),
        pool.submit(lambda: pool.submit(lambda: pool.submit(leaf, 5).result()).result()).result(),
    )

gate = threading.Event()
with Pool(1) as pool:
    print(*pool.submit(ask).result())
    print(list(pool.map(lambda n: pool.submit(leaf, n).result(), range(50))) == list(range(50)))

with Pool(2) as pool:
    both = threading.Barrier(2)
    def ask_the_other(n):
        both.wait()
        return futures[n].result()
    futures = [pool.submit(ask_the_other, n) for n in (1, 0)]
    print(*(type(future.exception()).__name__ for future in futures))

with Pool(1) as pool:
    answered = threading.Event()
    def answer():
        pool.submit(answered.set)
        return pool.yield_slot(answered.wait)
    print(pool.submit(answer).result(), pool.block_till_done())
    gate = threading.Event()
    future = pool.submit(gate.wait)
    print(pool.block_till_done(0.001), gate.set(), pool.block_till_done(20), future.done())
"""


@every_form
@every_order
@every_patch
def test_waits_lend_yield_time_out_and_find_circles(
    tmp_path: Path, green: str, order: str, form: str
) -> None:
    assert run(tmp_path, WAITS, green, order, form) == [
        "7 [0, 1, 2] 3 3 [0, 1, 2] [0, 1, 2] 5",
        "True",
        "DeadlockError DeadlockError",
        "True True",
        "False None True True",
    ]


FAILURES = """
import logging, threading, time
from boundedexec import Coalescer, Service

class Slow(logging.Handler):
    def emit(self, record):
        time.sleep(0.001)
        said.append(record.getMessage().split(":")[0])

said = []
logging.getLogger("boundedexec").addHandler(Slow())

with Pool(2) as pool:
    print(type(pool.submit(lambda: 1 / 0).exception()).__name__)
    for _ in range(5): pool.submit(lambda: 1 / 0)
    called = threading.Event()
    pool.submit(time.sleep, 0.001).add_done_callback(lambda future: called.set())
    print(called.wait(20))
    # A greenlet that ends a body.
    print(type(pool.submit(exit, 3).exception()).__name__, pool.submit(pow, 2, 3).result())
    runs = Coalescer(pool)
    first = runs.submit("key", time.sleep, 0.01)
    rest = {runs.submit("key", str, n) for n in range(100)}
    print(len(rest), rest.pop().result())
pool.shutdown()
print(said)

with Pool(1) as pool:
    blocked = pool.submit(time.sleep, 0.02)
    queued = pool.submit(print, "never")
    print(queued.cancel(), blocked.result())

broken = Pool(1, initializer=lambda: 1 / 0)
print(type(broken.submit(pow, 2, 3).exception()).__name__, len(said))

with Service(4, idle_timeout=0.01) as service:
    list(service.map(time.sleep, [0.001] * 8))
    end = time.monotonic() + 20
    while service._threads and time.monotonic() < end: time.sleep(0.01)
    print(len(service._threads), service.submit(pow, 2, 3).result())
"""


@every_form
@every_order
@every_patch
def test_failures_are_logged_and_threads_end(
    tmp_path: Path, green: str, order: str, form: str
) -> None:
    unasked = ["nobody asked for the exception of <lambda>()"] * 5
    assert run(tmp_path, FAILURES, green, order, form) == [
        "ZeroDivisionError",
        "True",
        "SystemExit 8",
        "1 99",
        str(unasked),
        "True None",
        "BrokenThreadPool 6",
        "0 8",
    ]


FORKS = """
import os, subprocess, sys, threading

def child(where):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    print(where, pool.submit(pow, 2, 3).result(), end=" ")
    with Pool(1) as own:
        print(own.submit(lambda: own.submit(pow, 2, 4).result()).result(), flush=True)
    os._exit(0)

pool = Pool(2)
pool.submit(int).result()
print(child("outside"), flush=True)
print(pool.submit(child, "in a body").result(), flush=True)

def echo(n):
    return subprocess.run([sys.executable, "-c", f"print({n})"], capture_output=True, text=True)

with Pool(3) as processes:
    print([(done.returncode, done.stdout, done.stderr) for done in processes.map(echo, range(3))])
print(pool.submit(pow, 2, 5).result(), len(threading.enumerate()))
pool.shutdown()
"""


@forking
@every_form
@every_order
@every_patch
def test_processes_are_forked_beside_threads_and_in_bodies(
    tmp_path: Path, green: str, order: str, form: str
) -> None:
    outside, status, inside, status_inside, echoed, after = run(tmp_path, FORKS, green, order, form)
    assert (outside, status) == ("outside 8 16", "0")
    assert (inside, status_inside) == ("in a body 8 16", "0")
    assert echoed == str([(0, f"{n}\n", "") for n in range(3)])
    assert after == "32 2"


LAST = """
import time
pool = Pool(1)
def last(n):
    time.sleep(0.02)
    print(n, flush=True)
for n in range(3): pool.submit(last, n)
"""


@every_form
@every_order
def test_at_exit_what_was_accepted_is_finished(tmp_path: Path, order: str, form: str) -> None:
    # Not under eventlet, which replaces what Python calls then, for the stdlib's pool too.
    assert run(tmp_path, LAST, "gevent", order, form) == ["0", "1", "2"]


ABANDONED = """
import threading
pool = Pool(1, daemon=True)
started = threading.Event()
pool.submit(lambda: (started.set(), threading.Event().wait()))
pool.submit(print, "never")
started.wait()
pool.shutdown(wait=False)
print(pool.block_till_done(0.01))
"""


@pytest.mark.parametrize("form", ["service", "drop-in"])
@every_order
@every_patch
def test_a_program_ends_though_a_body_of_a_daemon_does_not(
    tmp_path: Path, green: str, order: str, form: str
) -> None:
    assert run(tmp_path, ABANDONED, green, order, form) == ["False"]


NATIVE = """
import concurrent.futures, time
from gevent.threadpool import ThreadPoolExecutor as Native

blocking = monkey.get_original("_thread", "allocate_lock")()
blocking.acquire()
def tick():
    for _ in range(3): sleep(0.001)
    blocking.release()
pool = Native(2)
print(issubclass(Native, concurrent.futures.ThreadPoolExecutor))
print([future.result() for future in [pool.submit(pow, n, 2) for n in range(5)]])
print(list(pool.map(pow, range(5), [3] * 5)))
spawn(tick)
print(pool.submit(blocking.acquire).result(), pool._max_workers, pool._shutdown)
with pool._shutdown_lock: print(pool._broken)
pool.shutdown()
try: pool.submit(int)
except RuntimeError as error: print(error)
with Native(1) as pool, Pool(1) as ours:
    print(ours.submit(lambda: pool.submit(pow, 2, 3).result()).result())
"""


@every_form
@every_order
def test_gevents_own_pool_of_native_threads_works(tmp_path: Path, order: str, form: str) -> None:
    assert run(tmp_path, NATIVE, "gevent", order, form) == [
        "True",
        "[0, 1, 4, 9, 16]",
        "[0, 1, 8, 27, 64]",
        "True 2 False",
        "False",
        "cannot schedule new futures after shutdown",
        "8",
    ]


@every_order
def test_gevents_own_pool_works_after_install(tmp_path: Path, order: str) -> None:
    source = "import boundedexec; boundedexec.install()\n" + NATIVE
    assert run(tmp_path, source, "gevent", order, "drop-in")[-1] == "8"


LOCKS = """
import threading
from boundedexec import Service
from boundedexec._core.locking import guard
from boundedexec._core.state import Worker

with Pool(2) as pool:
    pool.submit(int).result()
    (worker,) = pool._threads
    kinds = {type(worker.gate), type(worker._ended), type(pool.submit(int).listeners().lock)}
print(kinds <= {type(threading.Lock()), type(threading.RLock())})
print(type(guard.lock) is type(threading.RLock()))
"""


@every_form
@every_order
@every_patch
def test_no_lock_of_the_interpreter_stands_beside_a_patched_thread(
    tmp_path: Path, green: str, order: str, form: str
) -> None:
    assert run(tmp_path, LOCKS, green, order, form) == ["True", "True"]
