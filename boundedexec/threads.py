"""Threads: started when a submission may start, reused while idle, ended.

A `Crew` has the threads of one service. A parked thread waits on a lock of its
own, its `wake`; whoever takes it out of `parked` owns it, gives it a job and
releases the lock once. It stands on:

* `dict.popitem` and `dict.pop` are single steps in C, with and without a GIL, so
  a parked thread is taken by one: a caller with a job, or itself when its time
  is up. `popitem` returns the one parked last, so surplus threads age.
* A lock released before it is acquired lets the acquire through: a job may
  arrive before its thread has gone to wait.

Threads start through `_thread.start_new_thread`. `Thread.start` waits for the new
thread, which hands a slot over late, and deadlocks in a signal handler that
interrupted `join` (up to Python 3.12); it also passes the starter's context on
where `sys.flags.thread_inherit_context` says so. The price is that the new thread
enters itself into `threading`'s table.
"""

# The rooms share what users must not touch.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import _thread
import itertools
import os
import sys
import threading
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any, Generic, TypeAlias, TypeVar

Job: TypeAlias = Callable[[Any], None]
W = TypeVar("W", bound="Worker")

#: Not in an isolated sub-interpreter.
DAEMONS_ALLOWED: bool = getattr(_thread, "daemon_threads_allowed", lambda: True)()

#: Every service is told from every other by this number where it has no name.
_crews = itertools.count()


class Worker(threading.Thread):
    """One thread of a Crew. As a `Thread` it can be named, found and joined."""

    def __init__(self, crew: Crew[Any], name: str) -> None:
        super().__init__(name=name, daemon=DAEMONS_ALLOWED)
        self.crew = crew
        self.job: Job | None = None
        # Handed a job, but not awake yet.
        self.fresh = False
        #: Where the next body without a context of its own runs; see `Crew.prepare`.
        self.blank = Context()
        #: What the initializer set, for the contexts of bodies to come.
        self.presets: list[tuple[ContextVar[Any], Any]] = []
        self._wake = _thread.allocate_lock()
        self._wake.acquire()
        self._ended = _thread.allocate_lock()
        self._ended.acquire()

    def hand(self, job: Job | None) -> None:
        """Give the job (None: end) to this thread; for whoever took it out of `parked`."""
        self.job = job
        self._wake.release()

    def start(self) -> None:
        if DAEMONS_ALLOWED:
            _thread.start_new_thread(self._main, ())
        elif sys.version_info >= (3, 13):
            # An interpreter must not end before its last thread is quite gone, which is
            # later than `_ended`; of these it keeps a list, and joins them.
            _thread.start_joinable_thread(self._main, daemon=False)
        else:
            raise RuntimeError(
                "a Service needs Python 3.13 or newer in a sub-interpreter without daemon threads"
            )

    def is_alive(self) -> bool:
        return self._ended.locked()

    def join(self, timeout: float | None = None) -> None:
        if self is threading.current_thread():
            raise RuntimeError("cannot join current thread")
        if timeout is None:
            timeout = -1
        else:
            timeout = min(max(timeout, 0), threading.TIMEOUT_MAX)
        if self._ended.acquire(True, timeout):
            self._ended.release()

    def _main(self) -> None:
        crew = self.crew
        self._enter_table()
        try:
            self._wake.acquire()
            crew.prepare(self)
            while True:
                # Taken before it runs: it parks this thread, and the next may arrive.
                job, self.job = self.job, None
                if job is None:
                    break
                job(self)
                del job
                crew.next_job(self)
        finally:
            threading._active.pop(_thread.get_ident(), None)  # type: ignore[attr-defined]
            crew.workers.pop(self, None)
            self._ended.release()
            crew.ended()
            if crew.ending:
                crew.end_one()

    def _enter_table(self) -> None:
        # What `Thread._bootstrap` does, without its locks.
        self._ident = _thread.get_ident()
        self._native_id = _thread.get_native_id()
        threading._active[self._ident] = self  # type: ignore[attr-defined]
        self._started.set()  # type: ignore[attr-defined]
        trace, profile = threading.gettrace(), threading.getprofile()
        if trace is not None:
            sys.settrace(trace)
        if profile is not None:
            sys.setprofile(profile)


class Crew(Generic[W]):
    """The threads of one service."""

    def __init__(
        self,
        worker: Callable[[Crew[W], str], W],
        prefix: str,
        idle_timeout: float | None,
        initializer: Callable[[], object] | None,
        on_broken: Callable[[BaseException], None],
        on_end: Callable[[], None],
    ) -> None:
        self._worker = worker
        self._prefix = prefix or f"Service-{next(_crews)}"
        self._numbers = itertools.count()
        self._idle_timeout = (
            -1 if idle_timeout is None else min(idle_timeout, threading.TIMEOUT_MAX)
        )
        self._initializer = initializer
        self._on_broken = on_broken
        self.ended = on_end
        #: Every thread from before its start until after its last job.
        self.workers: dict[W, None] = {}
        #: Those that wait for a job, in the order in which they came.
        self.parked: dict[W, None] = {}
        #: Set once: a thread with nothing to do ends.
        self.ending = False

    def obtain(self) -> W:
        """A thread that waits for `hand`: the one parked last, else a new one.

        Raises the `RuntimeError` of a thread that cannot be started. Never blocks.
        """
        try:
            return self.parked.popitem()[0]
        except KeyError:
            pass
        worker = self._worker(self, f"{self._prefix}_{next(self._numbers)}")
        self.workers[worker] = None
        try:
            worker.start()
        except BaseException:
            del self.workers[worker]
            raise
        return worker

    def park(self, worker: W) -> None:
        """Have `worker` found by `obtain` while it finishes its job.

        Before it frees its slot, never after: else a submission that sees the slot
        does not see the thread, and starts a second one.
        """
        self.parked[worker] = None

    def next_job(self, worker: W) -> None:
        """Wait until a parked `worker` has a job; none means that it ends."""
        # Parked, so look: `end` may have come before and not have found it.
        if self.ending and self._withdraw(worker):
            return
        if not worker._wake.acquire(True, self._idle_timeout):
            if self._withdraw(worker):
                return
            # Taken in this very moment: the job is on its way.
            worker._wake.acquire()

    def _withdraw(self, worker: W) -> bool:
        return self.parked.pop(worker, worker) is None

    def end(self) -> None:
        """End the threads that have nothing to do, now and from now on. Never blocks."""
        self.ending = True
        self.end_one()

    def end_one(self) -> None:
        """End one of the parked threads, which ends the next: awake all at once, they
        would only wait for each other."""
        try:
            worker, _ = self.parked.popitem()
        except KeyError:
            return
        worker.hand(None)

    def prepare(self, worker: Worker) -> None:
        """Run the initializer on its new thread, and keep what it set.

        Every body runs in a context of its own, so the values are set there again.
        """
        if self._initializer is None:
            return
        context = Context()
        try:
            context.run(self._initializer)
        except BaseException as exception:
            self._on_broken(exception)
        else:
            worker.presets = list(context.items())


# Fork: in the child `threading` makes the thread that forked the main thread, and relies
# on what `Thread.start` would have left in it. It makes a main thread itself for a
# thread that is not in its table.
_forking: dict[int, Worker] = {}


def _leave_table() -> None:
    ident = _thread.get_ident()
    worker = threading._active.get(ident)  # type: ignore[attr-defined]
    if isinstance(worker, Worker):
        _forking[ident] = worker
        threading._active.pop(ident, None)  # type: ignore[attr-defined]


def _return_to_table() -> None:
    ident = _thread.get_ident()
    worker = _forking.pop(ident, None)
    if worker is not None:
        threading._active[ident] = worker  # type: ignore[attr-defined]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_leave_table, after_in_parent=_return_to_table, after_in_child=_forking.clear
    )
