"""Threads: started when a submission may start, reused while idle, ended.

A `Crew` has the threads of one service. A parked thread waits on a lock of its
own, its `wake`; whoever takes it out of `parked` owns it, gives it a job and
releases the lock once. It stands on:

* `dict.popitem` and `dict.pop` are single steps in C, with and without a GIL, so
  a parked thread is taken by one: a caller with a job, or itself when its time
  is up. `popitem` returns the one parked last, so surplus threads age.
* A lock released before it is acquired lets the acquire through: a job may
  arrive before its thread has gone to wait. A thread that finds no job when it
  wakes waits again, so it may be woken once too often, never too seldom.
* CPython looks for signals when a call returns, a function starts, or a loop goes
  round: not between a step of a `for` and its store into the loop's variable. So
  what is taken by a `for` over an iterator that pops is in a local variable before
  a Ctrl-C can come, and what a call in C appends to a list (`list += map(call, …)`, `list.extend`)
  says that the call was made.
* There may be no memory for any call of a function: from 3.14 on, where there is no GIL,
  a thread gets code of its own when it first calls one. So whatever a thread does here,
  it does again after a `MemoryError`, and what cannot be repeated comes last.

Threads start through `_thread`, not `threading`. `Thread.start` waits for the new
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
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from .futures import HAS_GIL

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
        #: The job handed to it, until it is taken out: by itself, or by whoever hands it
        #: over and is interrupted before they know whether it has arrived.
        self.offer: list[Job | None] = []
        #: The thread, from the very step that starts it.
        self.begun: list[object] = []
        # Handed a job, but not awake yet.
        self.fresh = False
        #: Where the next body without a context of its own runs; see `_initialize`.
        self.blank = Context()
        #: What the initializer set, for the contexts of bodies to come.
        self.presets: list[tuple[ContextVar[Any], Any]] = []
        self._wake = _thread.allocate_lock()
        self._wake.acquire()
        self._ended = _thread.allocate_lock()
        self._ended.acquire()

    def hand(self, offer: list[Job | None]) -> None:
        """Give a job (None: end) to this thread; for whoever took it out of `parked`.

        The job stands in a list of its own. A caller who is interrupted in here tries
        to take it out again: there is none if this thread was first.
        """
        self.offer = offer
        self._rouse()

    def _rouse(self) -> None:
        try:
            self._wake.release()
        except RuntimeError:
            pass  # It is awake, and looks before it waits.

    def start(self) -> None:
        # In a list, by the step in C that starts it, see `Crew.put_back`.
        if HAS_GIL and DAEMONS_ALLOWED:
            self.begun.extend(map(_thread.start_new_thread, (self._main,), ((),)))
        elif sys.version_info >= (3, 13):
            # An interpreter must not end before its last thread is quite gone, which is
            # later than `_ended`; of these it keeps a list, and joins them. Without a GIL,
            # CPython 3.14 may crash beside a thread that is about to be gone.
            start = partial(_thread.start_joinable_thread, daemon=self.crew.daemon)
            self.begun.extend(map(start, (self._main,)))
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
        steps: list[Callable[[], object]] = [self.enter, self._wake.acquire]
        if crew.initializer is not None:
            steps += (
                self.before_initializer,
                partial(self._initialize, crew.initializer),
                self.after_initializer,
            )
        steps += self._work, self._end, crew.ended
        failure: BaseException | None = None
        for step in steps:
            while True:
                try:
                    step()
                except MemoryError:
                    continue  # Else what it is handed were lost; see the module.
                except BaseException as exception:
                    failure = exception
                break
        try:
            if failure is not None:
                raise failure
        finally:
            del failure

    def _initialize(self, initializer: Callable[[], object]) -> None:
        """Run the initializer, and keep what it set.

        Every body runs in a context of its own, so the values are set there again.
        """
        try:
            context = Context()
            context.run(initializer)
            self.presets = list(context.items())
        except BaseException as exception:
            self.crew.on_broken(exception)

    def _work(self) -> None:
        """Do what this thread is handed, until it is to end."""
        self._rouse()  # To look before it waits: it may have been woken.
        while True:
            job = self.crew.next_job(self)
            if job is None:
                return
            # No longer offered: the job parks this thread, and the next may arrive.
            try:
                job(self)
            except BaseException as exception:
                self.rescue(exception)
            del job

    def _end(self) -> None:
        self.leave()
        self.crew.workers.pop(self, None)
        self._ended.release()  # Last, for it is not to be repeated.

    def before_initializer(self) -> None:
        """Have others woken meanwhile: it may take as long as a job."""

    def after_initializer(self) -> None:
        """Be counted on as one that was woken just now."""

    def rescue(self, exception: BaseException) -> None:
        """Lose nothing where a job raised: for want of memory, for it is not to."""
        raise exception

    def next_offered(self) -> Job | None:
        """The job for which this thread was woken; waits where it was woken in vain."""
        while True:
            try:
                return self.offer.pop()
            except IndexError:
                self._wake.acquire()

    def enter(self) -> None:
        """What `Thread._bootstrap` does, without its locks. Harmless when repeated."""
        self._ident = _thread.get_ident()
        self._native_id = _thread.get_native_id()
        threading._active[self._ident] = self  # type: ignore[attr-defined]
        # As its `set`, which wakes those who wait for it: nobody does.
        self._started._flag = True  # type: ignore[attr-defined]
        trace, profile = threading.gettrace(), threading.getprofile()
        if trace is not None:
            sys.settrace(trace)
        if profile is not None:
            sys.setprofile(profile)

    def leave(self) -> None:
        threading._active.pop(_thread.get_ident(), None)  # type: ignore[attr-defined]


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
        daemon: bool,
    ) -> None:
        self._worker = worker
        self._prefix = prefix or f"Service-{next(_crews)}"
        self._numbers = itertools.count()
        self._idle_timeout = (
            -1 if idle_timeout is None else min(idle_timeout, threading.TIMEOUT_MAX)
        )
        self.initializer = initializer
        self.on_broken = on_broken
        self._on_end = on_end
        #: Whether the interpreter ends without waiting for the threads.
        self.daemon = daemon
        #: Every thread from before its start until after its last job.
        self.workers: dict[W, None] = {}
        #: Those that wait for a job, in the order in which they came.
        self.parked: dict[W, None] = {}
        #: Takes out of `parked`, the last first; `KeyError` where none is left.
        self.spare: Iterator[W] = map(
            operator.itemgetter(0),
            map(self.parked.__class__.popitem, itertools.repeat(self.parked)),
        )
        #: Set once: a thread with nothing to do ends.
        self.ending = False

    def take(self, taken: list[W | None]) -> None:
        """Have in `taken[0]` a worker that waits for `hand`: a parked one, else a new one.

        There, and not returned, for a Ctrl-C may come at the return. Raises the
        `RuntimeError` of a thread that cannot be started. After whatever is raised, what
        is in `taken` is to be `put_back`.
        """
        try:
            for taken[0] in self.spare:
                return
        except KeyError:
            pass
        worker = self._worker(self, f"{self._prefix}_{next(self._numbers)}")
        taken[0] = worker
        self.workers[worker] = None
        worker.start()

    def put_back(self, worker: W, rest: Job) -> None:
        """Undo that a worker was taken or started; its job is then to `rest`."""
        if worker.begun:
            worker.hand([rest])
        else:
            self.workers.pop(worker, None)
            worker.hand([None])  # For want of memory it may have begun, and not say so.

    def park(self, worker: W) -> None:
        """Have `worker` found among the `spare` while it finishes its job.

        Before it frees its slot, never after: else a submission that sees the slot
        does not see the thread, and starts a second one.
        """
        self.parked[worker] = None

    def next_job(self, worker: W) -> Job | None:
        """Wait until a parked `worker` has a job; None means that it ends."""
        # Parked, so look: `end` may have come before and not have found it.
        if self.ending and self.withdraw(worker):
            return None
        while worker._wake.acquire(True, self._idle_timeout):
            try:
                return worker.offer.pop()
            except IndexError:
                pass  # Woken in vain.
        if self.withdraw(worker):
            return None
        # Taken in this very moment: the job is on its way.
        return worker.next_offered()

    def withdraw(self, worker: W) -> bool:
        """Have a parked `worker` go on; False where it was taken, and is handed a job."""
        return self.parked.pop(worker, worker) is None

    def ended(self) -> None:
        """Look after what a thread that has ended may have been relied on for."""
        self._on_end()
        if self.ending:
            self.end_one()

    def end(self) -> None:
        """End the threads that have nothing to do, now and from now on. Never blocks."""
        self.ending = True
        self.end_one()

    def end_one(self) -> None:
        """End one of the parked threads, which ends the next: awake all at once, they
        would only wait for each other."""
        worker: W | None = None
        try:
            for worker in self.spare:
                worker.hand([None])
                break
        except KeyError:
            pass
        except BaseException:
            if worker is not None:
                worker.hand([None])  # Harmless if it was told before.
            raise


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


def _forget_table() -> None:
    global _forking
    _forking = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_leave_table, after_in_parent=_return_to_table, after_in_child=_forget_table
    )
