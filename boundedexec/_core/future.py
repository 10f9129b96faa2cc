"""Future: what `submit` returns. A submission with all that a caller may do with it."""

from __future__ import annotations

import _thread
import concurrent.futures
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, InvalidStateError
from typing import TYPE_CHECKING, Any, TypeVar

from .blocking import block
from .graph import Node, is_queued
from .locking import headroom, holding
from .reporting import Failure, name_of
from .state import Slots, current_body, current_worker
from .stdlib_waits import Waiters
from .submission import (
    ENDING,
    FINISHED,
    PENDING,
    RUNNING,
    Submission,
    install,
    uninstall,
)

T = TypeVar("T")


class _WaitForOne(Node):
    """A wait for one future. In a body, a submission that the slot is lent to right away
    need not tell it of its end: that is when the slot comes back."""

    def __init__(self, future: Future[Any]) -> None:
        super().__init__()
        self.single = future
        self.pending = {future: None}

    def over(self) -> bool:
        return bool(self.single.done())

    def install(self) -> None:
        install(self.single, self)

    def add_result(self, future: Any) -> None:
        self.ring()

    add_exception = add_cancelled = add_result


class Future(Submission[T]):
    """The result of a submission that may not have happened yet.

    A `concurrent.futures.Future` in every respect, for the stdlib's `wait` and
    `as_completed` and for asyncio too. What differs:

    * `result()` and `exception()`, called in a body, lend the body's slot to the
      submission where it is still queued, and raise `DeadlockError` where they could
      never return.
    * `cancel()` is final at once; waiters need not wait for a worker to see it.
    * An exception that nobody asked for is logged on `boundedexec` when the future is
      dropped.

    Public are the methods of `concurrent.futures.Future`; the others are internal.
    """

    __slots__ = ()

    def result(self, timeout: float | None = None) -> T:
        """Return what the body returned, or raise what it raised.

        Blocks up to `timeout` seconds, for ever with None; in a body it lends the
        body's slot to this submission meanwhile. Raises `TimeoutError`,
        `CancelledError`, and in a body without a timeout `DeadlockError` where the wait
        could never end.
        """
        try:
            if self.state is not FINISHED:
                self._await(timeout)
            if self.failure is None:
                return self.value  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
            raise self.failure.ask()
        finally:
            # The traceback holds this frame: no way from there back to the future.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the body raised, None if it returned. Blocks and raises as `result`."""
        try:
            if self.state is not FINISHED:
                self._await(timeout)
            return None if self.failure is None else self.failure.ask()
        finally:
            del self

    def _await(self, timeout: float | None) -> None:
        """Return once finished; raise if cancelled or out of time."""
        try:
            if timeout is None or timeout > 0:
                (self._sleep if current_worker.get() is None else self._block)(timeout)
            if self.state is not FINISHED and not self.done():
                queued = "the submission has not started: no slot was free for it"
                raise concurrent.futures.TimeoutError(*([queued] if is_queued(self) else []))
            if self.state is not FINISHED:
                raise CancelledError
        finally:
            del self  # As in `result`.

    def _sleep(self, timeout: float | None) -> None:
        """Wait on a thread that is no service's.

        In few calls, for each keeps the other thread waiting for the interpreter.
        """
        seconds = -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        bell = _thread.allocate_lock()
        bell.acquire()
        bells = self.watched().bells
        bells.append(bell)
        # Added, so look: the thread that ends it stores the state, and then looks for bells.
        if self.state not in (PENDING, RUNNING) or self.owner.lost:  # explore: bell-then-look
            self.close()
        elif not bell.acquire(True, seconds):
            bells.remove(bell)

    def _block(self, timeout: float | None) -> None:
        node = _WaitForOne(self)
        try:
            if not node.over():
                block(node, None if timeout is None else time.monotonic() + timeout)
        finally:
            if node.listening:
                uninstall(self, node)
            del node, self

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """Call `fn(future)` once it is over: on the body's thread, as part of the body,
        or here and now if it is over. What `fn` raises is logged on `boundedexec`."""
        if self.done():
            self.call_one(fn)
            return
        callbacks = self.watched().callbacks
        callbacks.append(fn)
        # Added, so look: the thread that ended it may have seen no Watch, or no callback.
        if self.state not in (PENDING, RUNNING):  # explore: added-then-look
            self.close()
            try:
                # Only the last, for the others are part of the body: this one, or that of
                # another thread that came too late as well, and calls this.
                last = callbacks.pop()  # explore: added-calls-last
            except IndexError:
                return
            self.call_one(last)

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else self.state
        words = "running" if state is ENDING else state.lower()
        if state is FINISHED:
            failure = self.failure
            outcome = self.value if failure is None else failure.exception
            how = "returned" if failure is None else "raised"
            words += f" {how} {type(outcome).__name__}"
        name = self._name()
        return f"<Future{name and f' of {name}'} at {id(self):#x} state={words}>"

    def _name(self) -> str:
        """What its callable is called, where that is known: until it is over, and in a failure."""
        if not isinstance(self.owner, Slots):
            return ""
        if self.failure is not None:
            return self.failure.name
        executing = [each.fn for each in list(self.owner.workers) if each.future is self]
        known = [fn for fn in (self.callee(), *executing) if fn is not None]
        return name_of(known[0]) if known else ""

    def __reduce__(self) -> str:
        raise TypeError("a Future cannot be pickled: it stands for a body in this process")

    # A bare future, in the hands of another executor.

    def set_running_or_notify_cancel(self) -> bool:
        """Mark a bare future as running. Returns False if it was cancelled."""
        claimed = self.claim()
        if not claimed and not self.cancelled():
            raise RuntimeError(f"future in unexpected state: {self.state}")
        return claimed

    def set_result(self, result: T) -> None:
        """Finish a bare future. Raises `InvalidStateError` if it is over."""
        self._set(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """Finish a bare future. Raises `InvalidStateError` if it is over."""
        self._set(None, exception)

    def _set(self, value: T | None, exception: BaseException | None) -> None:
        headroom()
        holding(self.listeners().lock, self._store, value, exception)
        self.settle()

    def _store(self, value: T | None, exception: BaseException | None) -> None:
        """Under its lock, for it may be set by two threads at once."""
        if not (self.claim() or self.state is RUNNING):
            raise InvalidStateError(f"{self.state}: {self!r}")
        if exception is not None:
            self.failure = Failure(exception, "a bare future", not self.reported)
        self.value = value
        self.state = ENDING

    if not TYPE_CHECKING:
        # What the stdlib's `wait`, `as_completed` and asyncio use; typed there as attributes.

        @property
        def _state(self) -> str:
            self.done()  # It may be lost.
            return self.state

        @property
        def _condition(self) -> Any:
            self.done()
            return self.listeners().lock

        @property
        def _waiters(self) -> Any:
            # Not closed here: who asks has read the state under the lock, and relies on it
            # until its waiter is in here.
            listeners = (self.watch and self.watch.listeners) or self.listeners()
            waiters = listeners.waiters
            # The stdlib's waits install themselves here: in a body, so that they lend.
            return waiters if current_body() is None else Waiters(self, waiters)

        def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
            """Done, cancelled, result, exception; from Python 3.14 on."""
            done, cancelled = self.done(), self.cancelled()
            exception = self.exception() if done and not cancelled else None
            return done, cancelled, getattr(self, "value", None), exception

        # What programs read all the same.

        @property
        def _result(self) -> Any:
            return self._get_snapshot()[2]

        @property
        def _exception(self) -> BaseException | None:
            return self._get_snapshot()[3]

        @property
        def _done_callbacks(self) -> Any:
            return self.watched().callbacks


class Member(Future[T]):
    """A group's. (An ordinary attribute costs a dictionary from Python 3.13 on.)"""

    __slots__ = ("on_failure",)
