"""A submission and its outcome: the claim, the states, the end. What a caller does is above.

A submission and its future are one object, as lean as one can be: what only some
futures need (callbacks, waiters and their lock) stands in a `Watch`, made by the first
thread that watches. The protocol of states is in README.md, beside this file.
"""

from __future__ import annotations

import _thread
import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextvars import Context
from typing import Any, Generic, TypeAlias, TypeVar

from .locking import HAS_GIL, headroom, holding, locked
from .recording import SILENT, Recorder
from .reporting import Failure, report

T = TypeVar("T")
AnyFuture: TypeAlias = "concurrent.futures.Future[Any]"
Callback: TypeAlias = "Callable[[Any], object]"
#: Returns what is to be called with a failure; None where that is gone: a weak reference.
NoteFailure: TypeAlias = "Callable[[], Callable[[BaseException], object] | None]"

# The stdlib's own words for the states: its `wait` and `as_completed` compare them.
PENDING = "PENDING"
RUNNING = "RUNNING"
#: The outcome is stored, and the thread that stored it is about to make the state final.
ENDING = "ENDING"
#: The same, for a submission that was cancelled.
CANCELLING = "CANCELLING"
CANCELLED = "CANCELLED_AND_NOTIFIED"
FINISHED = "FINISHED"

#: How many cancelled submissions may be uncounted, see `Owner`.
_MANY = 100

#: When it was submitted, in nanoseconds. It is the order of submission across all services.
clock = time.perf_counter_ns
#: A second on that clock.
SECOND = 1e9

# (Not read with `get`, see `runs`.)
_FINAL = {ENDING: FINISHED, CANCELLING: CANCELLED}


def serial_of(future: AnyFuture) -> int:
    """Its place in that order; those of other packages come first."""
    return getattr(future, "serial", 0)


class Owner:
    """What accepted a submission."""

    __slots__ = ("lost", "cancelled", "dead", "uncounted")

    #: Told of what happens, where this is a service.
    recorder: Recorder = SILENT

    def __init__(self) -> None:
        #: Set in a forked child, where the threads of this service do not exist.
        self.lost = False
        # Without a GIL these two change under the lock of the slow path.
        #: How many submissions were cancelled,
        self.cancelled = 0
        #: and how many of those still stand in the queue. (Nearly: right again once that
        #: was empty.)
        self.dead = 0
        #: Without a GIL, what was cancelled and is not in these two yet: for each, whether it
        #: stood in the queue. So seldom does a `cancel` wait for the lock.
        self.uncounted: deque[int] = deque()

    def count_cancelled(self, queued: int) -> None:
        """Without a GIL: one was cancelled."""
        self.uncounted.append(queued)
        if len(self.uncounted) >= _MANY:
            locked(self.count)

    def count(self) -> None:
        while self.uncounted:
            self.dead += self.uncounted.popleft()
            self.cancelled += 1


#: The owner of bare futures.
NOBODY = Owner()


class Watch:
    """What a watched future has: who hears of its end."""

    __slots__ = ("bells", "callbacks", "__dict__")

    #: An ordinary attribute, for few need them. Made by `dict.setdefault`.
    listeners: Listeners | None = None

    def __init__(self) -> None:
        #: Locks that are released at the end: those of threads that sleep in `result`.
        self.bells: list[_thread.LockType] = []
        #: Grows until the state is final, and shrinks from then on.
        self.callbacks: deque[Callback] = deque()


class Listeners:
    """What hears of the end as the stdlib's waiters do, and the lock of the last transition."""

    __slots__ = ("lock", "waiters", "unnotified")

    def __init__(self) -> None:
        # Reentrant: a signal handler or a `__del__` may come in between.
        self.lock = threading.RLock()
        #: What is notified of the end, by `add_result`, `add_exception` or `add_cancelled`.
        self.waiters: list[Any] = []
        #: Those that have not heard yet that the state is final; empty before it is.
        self.unnotified: list[Any] = []


#: The failure of every cancelled future.
CANCELLATION = Failure(CancelledError(), "", True)


class Submission(concurrent.futures.Future[T], Generic[T]):
    """A callable, its arguments and context, until it has run; its outcome from then on.

    The *claim* is the attribute `fn`: deleting it fails where it is gone, so exactly
    one thread has it. That thread starts the submission, cancels it or takes it back,
    and stores a state that is not PENDING in the same run of steps, without a call in
    between (README.md: "Claim and state").
    """

    # Without a GIL `fn` is an ordinary attribute: deleting a slot is not one step there.
    __slots__ = (
        "state", "value", "failure", "owner", "args", "kwargs", "context", "serial",
        *(("fn",) if HAS_GIL else ()),
    )  # fmt: skip

    # Ordinary attributes, for few futures have them. `watch` is made by `dict.setdefault`.
    watch: Watch | None = None
    #: Whether a failure that nobody asked for is logged.
    reported = True
    #: Told of its failure before its state is final, where it is a group's.
    on_failure: NoteFailure | None = None
    # Of a Coalescer's runs: the future that must be over before this can be, None once this
    # is queued; and the one that follows this. Of a group's, too; or the line that it is in.
    predecessor: Any = None
    successor: Submission[Any] | None = None
    #: Where another executor has it: what cancels it there; see `feeding`.
    recalls: Callable[[], bool] | None = None

    def __init__(self) -> None:
        """A bare future. (The others are made field by field, which takes less time.)"""
        self.state = PENDING
        #: Set by success; before, where `submit` had more to do, the ident of its submitter.
        self.value: T | None = None
        self.failure: Failure | None = None
        self.owner = NOBODY
        #: None where it says itself, at its start, what is to be called, see `LateCall`.
        self.args: tuple[Any, ...] | None = ()
        self.kwargs: dict[str, Any] | None = None
        self.context: Context | None = None
        self.serial = 0
        self.fn: Any = True

    # Watching and ending.

    def watched(self) -> Watch:
        """The Watch, made where there was none. What is added to it may come too late: look."""
        return self.watch or self.__dict__.setdefault("watch", Watch())

    def listeners(self) -> Listeners:
        """Those of its Watch, made where there were none.

        Calls nothing back: the callbacks are part of the body.
        """
        watch = self.watched()
        listeners: Listeners = watch.listeners or watch.__dict__.setdefault(
            "listeners", Listeners()
        )
        # Published, so look: the thread that stored the outcome may have seen none. Then the
        # stdlib's `wait` would read "not finished" under the lock, and nobody would notify it.
        if self.state in _FINAL:  # explore: published-then-state
            self.close()  # explore: published-so-close
        return listeners

    def settle(self) -> None:
        """Make the state final where the outcome is stored, notify, and call back.

        Harmless when repeated, and by two threads at once: the first makes the state
        final, each callback is taken by one.
        """
        self.close()
        self.call_back()

    def close(self) -> None:
        """The first half of `settle`: the state is final, and who waits has heard of it."""
        # After the outcome was stored: a thread that makes one does so in the other order.
        watch = self.watch
        listeners = None if watch is None else watch.listeners
        if listeners is not None:
            holding(listeners.lock, self._notify, listeners)
        else:
            state = self.state
            if state in _FINAL:
                self.state = _FINAL[state]
        # Last, for each step between this and its own sleep keeps them from the interpreter.
        for bell in () if watch is None else [*watch.bells]:  # explore: close-rings
            try:
                bell.release()
            except RuntimeError:
                pass  # Rung already: this is a repetition.

    def _notify(self, listeners: Listeners) -> None:
        """Make the state final and notify the waiters, once; under their lock. Where this was
        interrupted it is called again, and a waiter may hear of it twice."""
        # Read once: without a GIL, a thread that saw no listeners may be storing the final state.
        state = self.state
        if state in _FINAL:
            # No signal is looked for between these two.
            listeners.unnotified = listeners.waiters.copy()
            self.state = _FINAL[state]  # explore: close-by-one-look
        unnotified = listeners.unnotified
        while unnotified:
            waiter = unnotified[0]
            if self.state is CANCELLED:
                waiter.add_cancelled(self)
            elif self.failure is None:
                waiter.add_result(self)
            else:
                waiter.add_exception(self)
            del unnotified[0]

    def call_back(self) -> None:
        """The second half of `settle`: the done-callbacks run here, each once."""
        watch = self.watch
        while watch is not None and watch.callbacks:
            try:
                callback = watch.callbacks.popleft()
            except IndexError:
                break
            self.call_one(callback)

    def call_one(self, callback: Callback) -> None:
        """Call a done-callback; what it raises is logged."""
        try:
            callback(self)
        except BaseException as exception:
            on_main = threading.current_thread() is threading.main_thread()
            if on_main and not isinstance(exception, Exception):
                raise  # A Ctrl-C.
            report("exception calling callback for %r", self, exception=exception)

    def claim(self) -> bool:
        """Have the right to start, fail or cancel it; False where another thread has."""
        try:
            # Kept until the state is stored: with its last reference user code may run.
            _kept = self.fn
            del self.fn  # explore: take-claims
            self.state = RUNNING
        except AttributeError:
            return False
        return True

    def fail(self, exception: BaseException, name: str) -> None:
        """Finish with `exception`. For the thread with the claim."""
        self.forget()
        self.failure = Failure(exception, name, not self.reported)
        self.note_failure(exception)
        self.state = ENDING
        self.settle()

    def note_failure(self, exception: BaseException) -> None:
        """Tell its group, if it has one."""
        note = None if self.on_failure is None else self.on_failure()
        if note is not None:
            note(exception)

    def callee(self) -> object:
        """What is to be called; None where it has begun, or was cancelled."""
        return getattr(self, "fn", None)

    def submitter(self) -> Any:
        """The ident of the thread that submitted it, where that was recorded, else None. Before
        it has begun."""
        return getattr(self, "value", None)

    def forget(self) -> None:
        """Keep nothing of what was to be called."""
        self.args = ()
        self.kwargs = self.context = None

    def silence(self) -> None:
        """Have its failure not reported: nobody who could miss it ever sees it."""
        self.reported = False
        if self.failure is not None:
            self.failure.asked = True

    # Cancelling, and what became of it.

    def cancel(self) -> bool:
        """Cancel the submission if it has not started.

        Returns True if it is cancelled, False if it runs or is over. Never blocks
        but for the done-callbacks, which run here.
        """
        if self.watch is not None:
            headroom()
        try:
            fn = self.fn  # As in `claim`.
            del self.fn  # explore: cancel-claims
            self.state = CANCELLING
        except AttributeError:
            # Without a GIL the claim and the state are two steps; the second follows at once.
            # explore: claimed-and-pending
            while self.state is PENDING and not hasattr(self, "fn") and not self.owner.lost:
                pass
            return self.cancelled() or self.recall()
        owner = self.owner
        if HAS_GIL:  # Counted in the same run, so who passes over it finds it counted.
            owner.cancelled += 1
            owner.dead += 1
        self.failure = CANCELLATION
        self.args = ()
        self.kwargs = self.context = None
        if self.watch is None:
            self.state = CANCELLED
        else:
            try:
                self._become_cancelled()
            except BaseException:
                self._become_cancelled()  # A Ctrl-C: no other thread would finish it.
                raise
        if not HAS_GIL:
            owner.count_cancelled(1)
        if owner.recorder is not SILENT:
            owner.recorder.cancelled(self, fn)
        return True

    def _become_cancelled(self) -> None:
        self.settle()

    def recall(self) -> bool:
        """Cancel it where another executor has it, and has not started it."""
        return self.recalls is not None and self.recalls()

    def cancel_even_if_shared(self) -> None:
        """Cancel it even if others want it: its service is shut down."""
        self.cancel()

    def cancelled(self) -> bool:
        """Whether the submission was cancelled. Never blocks."""
        return self.done() and self.state is not FINISHED

    def running(self) -> bool:
        """Whether the body executes now. Never blocks."""
        return self.state is RUNNING and not self.done()

    def done(self) -> bool:
        """Whether it is finished or cancelled. Never blocks."""
        state = self.state
        if state is FINISHED or state is CANCELLED or state is CANCELLING:
            return True
        if not self.owner.lost:
            return False
        # In a forked child nobody is left to finish what was unfinished: it is cancelled.
        self.forget()
        self.failure = CANCELLATION
        self.state = CANCELLED
        # The lock of the old Watch may be held by a thread that is not here.
        self.__dict__["watch"] = Watch()
        return True


# For futures of other packages, too.


def ended_under_lock(future: AnyFuture) -> bool:
    """Whether it may have ended under the lock of its executor's `submit`: the stdlib's pools
    cancel and break under that."""
    return future.cancelled() or isinstance(future.exception(), concurrent.futures.BrokenExecutor)


def install(future: AnyFuture, waiter: object) -> None:
    """Have `waiter` hear of the end of `future`; that may have come by now, so look again."""
    if not isinstance(future, Submission):
        holding(future._condition, future._waiters.append, waiter)  # pyright: ignore[reportPrivateUsage]
        return
    listeners = future.listeners()
    # Under their lock, in which the waiters are copied and the state becomes final: one that
    # was added in between would be in neither.
    holding(listeners.lock, listeners.waiters.append, waiter)  # explore: install-under-lock


def uninstall(future: AnyFuture, waiter: object) -> None:
    """Have it not hear of that, if it is installed."""
    try:
        if not isinstance(future, Submission):
            # Under the lock, for the stdlib goes over the list as it is.
            holding(future._condition, future._waiters.remove, waiter)  # pyright: ignore[reportPrivateUsage]
        elif future.watch is not None and future.watch.listeners is not None:
            future.watch.listeners.waiters.remove(waiter)
    except ValueError:
        pass
