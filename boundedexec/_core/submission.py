"""A submission and its outcome: the claim, the states, the end. No waiting in here.

A submission and its future are one object, as lean as one can be: what only some
futures need (a lock, waiters, callbacks) stands in a `Watch`, made by the first thread
that watches. The protocol of states is in README.md, beside this file.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, InvalidStateError
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from .locking import HAS_GIL, exactly, headroom, holding
from .recording import Recorder
from .reporting import Failure, report

T = TypeVar("T")
Callback: TypeAlias = "Callable[[Any], object]"

# The stdlib's own words for the states: its `wait` and `as_completed` compare them.
PENDING = "PENDING"
RUNNING = "RUNNING"
#: The outcome is stored, and the thread that stored it is about to make the state final.
ENDING = "ENDING"
#: The same, for a submission that was cancelled.
CANCELLING = "CANCELLING"
CANCELLED = "CANCELLED_AND_NOTIFIED"
FINISHED = "FINISHED"

#: When it was submitted, in nanoseconds. It is the order of submission across all services.
clock = time.perf_counter_ns


def serial_of(future: Any) -> int:
    """Its place in that order; those of other packages come first."""
    return getattr(future, "serial", 0)


class Waiter(Protocol):
    """What is told of a future's end, in the stdlib's words."""

    def add_result(self, future: Any, /) -> None: ...
    def add_exception(self, future: Any, /) -> None: ...
    def add_cancelled(self, future: Any, /) -> None: ...


class Owner:
    """What accepted a submission."""

    __slots__ = ("lost", "cancelled", "dead")

    #: Told of what happens; a service may have one.
    recorder: Recorder | None = None

    def __init__(self) -> None:
        #: Set in a forked child, where the threads of this service do not exist.
        self.lost = False
        # Without a GIL these two are written under the lock of the slow path.
        #: How many submissions were cancelled,
        self.cancelled = 0
        #: and how many of those still stand in the queue. (Nearly: right again once that
        #: was empty.)
        self.dead = 0

    def count_cancelled(self, queued: int) -> None:
        self.cancelled += 1
        self.dead += queued


class Watch:
    """What a watched future has: the lock of its last transition, and who hears of it."""

    __slots__ = ("lock", "waiters", "unnotified", "callbacks")

    def __init__(self) -> None:
        # Reentrant: a signal handler or a `__del__` may come in between.
        self.lock = threading.RLock()
        self.waiters: list[Waiter] = []
        #: Those that have not heard yet that the state is final; empty before it is.
        self.unnotified: list[Waiter] = []
        #: Grows until the state is final, and shrinks from then on.
        self.callbacks: deque[Callback] = deque()


#: The failure of every cancelled future.
CANCELLATION = Failure(CancelledError(), "", True)


class Submission(concurrent.futures.Future[T], Generic[T]):
    """A callable, its arguments and context, until it has run; its outcome from then on.

    The *claim* is the attribute `fn`: deleting it fails where it is gone, so exactly
    one thread has it. That thread starts the submission, cancels it or takes it back,
    and stores a state that is not PENDING in the same run of steps, without a call in
    between (README.md: "Claim and state").
    """

    __slots__ = (
        "state",
        "value",  # set by success; until then, where that is recorded, by whose thread submitted
        "failure",
        "owner",  # what accepted the submission; None for a bare future
        "args",  # None where `fn` says at the start what is to be called, see `LateCall`
        "kwargs",
        "context",
        "serial",
        # Without a GIL an ordinary attribute: deleting a slot is not one step there.
        *(("fn",) if HAS_GIL else ()),
    )

    state: str
    value: T | None
    failure: Failure | None
    owner: Owner | None
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any] | None
    context: Context | None
    serial: int

    fn: Any
    # Ordinary attributes, for few futures have them. `watch` is made by `dict.setdefault`.
    watch: Watch | None = None
    #: Whether a failure that nobody asked for is logged.
    reported = True
    # Of a Coalescer's runs: whether it is to be queued once another is over, the future
    # that must be over before this can be, and the one that follows this.
    owed = False
    predecessor: concurrent.futures.Future[Any] | None = None
    successor: Submission[Any] | None = None

    def __init__(self) -> None:
        self.state = PENDING
        self.failure = None
        self.owner = None
        self.args = ()
        self.kwargs = self.context = None
        self.serial = 0
        self.fn = True

    if not TYPE_CHECKING:
        # What the stdlib's `wait` and `as_completed` use; typed there as attributes.

        @property
        def _state(self) -> str:
            self.done()  # It may be lost.
            return self.state

        @property
        def _condition(self) -> threading.RLock:
            self.done()
            return self.watched().lock

        @property
        def _waiters(self) -> list[Waiter]:
            return self.watched().waiters

    # Watching and ending.

    def watched(self, made: Watch | None = None) -> Watch:
        """The Watch: the one that was `made`, if there was none."""
        watch = self.watch
        if watch is None:
            headroom(10)
            if made is None:
                made = Watch()
            # Under its lock, or
            # 1. a worker stores the outcome and sees no Watch;
            # 2. it is published here, and `wait` reads "not finished" under its lock;
            # 3. the worker stores FINISHED and notifies nobody.
            if holding(made.lock, self._publish, made):  # explore: published-too-late
                self.settle()
            watch = self.watch
            assert watch is not None
        return watch

    def _publish(self, made: Watch) -> bool:
        """Have `made` be the Watch, unless there is one; whether it came too late."""
        if self.__dict__.setdefault("watch", made) is not made:
            return False
        if self.state is PENDING or self.state is RUNNING:  # explore: published-then-state
            return False
        self._close(made)
        return True

    def _close(self, watch: Watch) -> None:
        """Make the state final and notify the waiters, once; its lock is held.

        Where it was interrupted it is called again, and a waiter may hear of it twice.
        """
        # Read once: without a GIL, the thread that ends it may be storing the final state.
        state = self.state
        if state is ENDING or state is CANCELLING:
            # No signal is looked for between these two.
            watch.unnotified = watch.waiters.copy()
            self.state = FINISHED if state is ENDING else CANCELLED  # explore: close-by-one-look
        unnotified = watch.unnotified
        while unnotified:
            waiter = unnotified[0]
            if self.state is CANCELLED:
                waiter.add_cancelled(self)
            elif self.failure is None:
                waiter.add_result(self)
            else:
                waiter.add_exception(self)
            del unnotified[0]

    def settle(self) -> None:
        """Finish a watched future whose outcome is stored; its callbacks run here.

        Harmless when repeated, and by two threads at once: the first makes the state
        final, each callback is taken by one.
        """
        self.close()
        self.call_back()

    def close(self) -> None:
        """The first half of `settle`: the state is final, and waiters have been notified."""
        watch = self.watch
        assert watch is not None
        holding(watch.lock, self._close, watch)

    def call_back(self) -> None:
        """The second half: the done-callbacks run here, each once."""
        watch = self.watch
        while watch is not None and watch.callbacks:
            try:
                callback = watch.callbacks.popleft()
            except IndexError:
                break
            self._call_back(callback)

    def _call_back(self, callback: Callback) -> None:
        try:
            callback(self)
        except Exception as exception:
            report("exception calling callback for %r", self, exception=exception)
        except BaseException as exception:
            if threading.current_thread() is threading.main_thread():
                raise  # A Ctrl-C.
            report("exception calling callback for %r", self, exception=exception)

    def finish(self) -> None:
        """Make the outcome that was just stored final. For the thread with the claim."""
        self.state = ENDING
        # Stored, so look: a thread that makes a Watch does so in the other order.
        if self.watch is None:
            self.state = FINISHED
        else:
            self.settle()

    def fail(self, exception: BaseException, name: str) -> None:
        """Finish with `exception`. For the thread with the claim."""
        self.forget()
        self.failure = Failure(exception, name, not self.reported)
        self.finish()

    def claim(self) -> bool:
        """Have the right to start, fail or cancel it; False where another thread has."""
        return self.take() is not None

    def take(self) -> Any:
        """Claim it; its callable, or None where another thread was first."""
        try:
            fn = self.fn
            del self.fn  # explore: take-claims
            self.state = RUNNING
        except AttributeError:
            return None
        return fn

    def forget(self) -> None:
        """Keep nothing of what was to be called."""
        self.args = ()
        self.kwargs = self.context = None

    def silence(self) -> None:
        """Have its failure not reported: nobody who could miss it ever sees it."""
        self.reported = False
        failure = self.failure
        if failure is not None:
            failure.asked = True

    # Cancelling.

    def cancel(self) -> bool:
        """Cancel the submission if it has not started.

        Returns True if it is cancelled, False if it runs or is over. Never blocks
        but for the done-callbacks, which run here.
        """
        if self.watch is not None:
            headroom()
        try:
            fn = self.fn
            del self.fn  # explore: cancel-claims
            self.state = CANCELLING
        except AttributeError:
            return self._was_cancelled()
        if self.owner is not None:
            exactly(self.owner.count_cancelled, 1)
            if self.owner.recorder is not None:
                self.owner.recorder.cancelled(self, fn)
            del fn
        self.failure = CANCELLATION
        self.args = ()
        self.kwargs = self.context = None
        if self.watch is None:
            self.state = CANCELLED
            return True
        try:
            self._become_cancelled()
        except BaseException:
            self._become_cancelled()  # A Ctrl-C: no other thread would finish it.
            raise
        return True

    def cancel_even_if_shared(self) -> None:
        """Cancel it whoever else wants it: its service is shut down."""
        self.cancel()

    def _become_cancelled(self) -> None:
        """Make it final and call back; for the thread that cancelled it. Repeatable."""
        self.settle()

    def _was_cancelled(self) -> bool:
        """What became of a submission that another thread has claimed."""
        if not HAS_GIL:
            # There the claim and the state are two steps; the second follows at once.
            # explore: claimed-and-pending
            while self.state is PENDING and not hasattr(self, "fn") and not self._is_lost():
                pass
        return self.cancelled()

    def _is_lost(self) -> bool:
        return self.owner is not None and self.owner.lost

    def _drop_if_lost(self) -> bool:
        """In a forked child nobody is left to finish what was unfinished: cancel it."""
        if not self._is_lost():
            return False
        self.forget()
        self.failure = CANCELLATION
        self.state = CANCELLED
        # The lock of the old Watch may be held by a thread that is not here.
        self.__dict__["watch"] = Watch()
        return True

    # The public surface, but for what blocks.

    def cancelled(self) -> bool:
        """Whether the submission was cancelled. Never blocks."""
        state = self.state
        if state is CANCELLED or state is CANCELLING:
            return True
        return state is not FINISHED and self._drop_if_lost()

    def running(self) -> bool:
        """Whether the body executes now. Never blocks."""
        return self.state is RUNNING and not self._drop_if_lost()

    def done(self) -> bool:
        """Whether it is finished or cancelled. Never blocks."""
        state = self.state
        if state is FINISHED or state is CANCELLED or state is CANCELLING:
            return True
        owner = self.owner
        return owner is not None and owner.lost and self._drop_if_lost()

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """Call `fn(future)` once it is over: on the body's thread, as part of the body,
        or here and now if it is over. What `fn` raises is logged on `boundedexec`."""
        if not self.done():
            made = Watch()
            made.callbacks.append(fn)
            watch = self.watched(made)
            if watch is made or holding(watch.lock, self._add_callback, watch, fn):
                return
        self._call_back(fn)

    def _add_callback(self, watch: Watch, fn: Callback) -> bool:
        if self.done():  # explore: callback-too-late
            return False
        watch.callbacks.append(fn)
        return True

    # What executors call on a future of their own making.

    def set_running_or_notify_cancel(self) -> bool:
        """Mark a bare future as running. Returns False if it was cancelled."""
        if self.claim():
            return True
        if self.cancelled():
            return False
        raise RuntimeError(f"future in unexpected state: {self.state}")

    def set_result(self, result: T) -> None:
        """Finish a bare future. Raises `InvalidStateError` if it is over."""
        self._decide(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """Finish a bare future. Raises `InvalidStateError` if it is over."""
        if exception is None:
            raise TypeError("exception must be an exception, not None")
        self._decide(None, exception)

    def _decide(self, value: T | None, exception: BaseException | None) -> None:
        headroom()
        failure = None
        if exception is not None:
            failure = Failure(exception, "a bare future", True)
        holding(self.watched().lock, self._store, value, failure)
        if failure is not None:
            failure.asked = not self.reported
        try:
            self.settle()
        except BaseException:
            self.settle()  # A Ctrl-C.
            raise

    def _store(self, value: T | None, failure: Failure | None) -> None:
        if not (self.claim() or self.state is RUNNING):
            raise InvalidStateError(f"{self.state}: {self!r}")
        self.value = value
        self.failure = failure
        self.state = ENDING

    def _get_snapshot(
        self,
    ) -> (
        tuple[Literal[False], Literal[False], None, None]
        | tuple[Literal[True], bool, T | None, BaseException | None]
    ):
        """What asyncio asks from Python 3.14 on: done, cancelled, result, exception."""
        if not self.done():
            return False, False, None, None
        if self.cancelled():
            return True, True, None, None
        exception = self.exception()
        return True, False, None if exception is not None else self.value, exception

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else self.state.lower()
        state = "running" if state == "ending" else state
        if state == "finished":
            failure = self.failure
            if failure is None:
                state += f" returned {type(self.value).__name__}"
            else:
                state += f" raised {type(failure.exception).__name__}"
        return f"<Future at {id(self):#x} state={state}>"

    def __reduce__(self) -> str:
        raise TypeError("a Future cannot be pickled: it stands for a body in this process")
