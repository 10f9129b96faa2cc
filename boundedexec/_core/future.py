"""Future: what `submit` returns. A submission that can be waited for."""

from __future__ import annotations

import _thread
import concurrent.futures
import time
from collections.abc import Iterable
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, TypeVar

from .blocking import block, seconds_left
from .graph import Node
from .locking import holding
from .state import current_body
from .stdlib_waits import Waiters
from .submission import FINISHED, PENDING, Submission, Watch

T = TypeVar("T")


class _Sleeper:
    """A waiter that sleeps on a lock, which is released to wake it."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = _thread.allocate_lock()
        self.lock.acquire()

    def add_result(self, future: Any) -> None:
        try:
            self.lock.release()
        except RuntimeError:
            pass  # It is awake.

    add_exception = add_cancelled = add_result


class _WaitForOne(Node):
    """A body's wait for one future. A submission that its slot is lent to right away need
    not tell it of its end: that is when the slot comes back."""

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
    """

    __slots__ = ()

    if not TYPE_CHECKING:

        @property
        def _waiters(self) -> Any:
            waiters = self.watched().waiters
            # The stdlib's waits install themselves here: in a body, so that they lend.
            return waiters if current_body() is None else Waiters(self, waiters)

    def result(self, timeout: float | None = None) -> T:
        """Return what the body returned, or raise what it raised.

        Blocks up to `timeout` seconds, for ever with None; in a body it lends the
        body's slot to this submission meanwhile. Raises `TimeoutError`,
        `CancelledError`, and in a body without a timeout `DeadlockError` where the wait
        could never end.
        """
        failure = None
        try:
            if self.state is not FINISHED:
                self._await(timeout)
            failure = self.failure
            if failure is None:
                return self.value  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
            failure.asked = True
            raise failure.exception
        finally:
            # The traceback holds this frame: no way from there back to the future.
            del self, failure

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the body raised, None if it returned. Blocks and raises as `result`."""
        try:
            if self.state is not FINISHED:
                self._await(timeout)
            failure = self.failure
            if failure is None:
                return None
            failure.asked = True
            return failure.exception
        finally:
            del self

    def _await(self, timeout: float | None) -> None:
        """Return once finished; raise if cancelled or out of time."""
        try:
            deadline = None if timeout is None else time.monotonic() + timeout
            if not (self.done() or self._blocks_until_done(timeout, deadline)):
                raise concurrent.futures.TimeoutError(*self._why_late())
            if self.cancelled():
                raise CancelledError
        finally:
            del self  # As in `result`.

    def _blocks_until_done(self, timeout: float | None, deadline: float | None) -> bool:
        if timeout is not None and timeout <= 0:
            return self.done()
        if current_body() is None:
            return self._sleep_until_done(deadline)
        node = _WaitForOne(self)
        try:
            return block(node, deadline)
        finally:
            if node.listening:
                uninstall(self, node)
            del node, self

    def _sleep_until_done(self, deadline: float | None) -> bool:
        sleeper = _Sleeper()
        try:
            install(self, sleeper)
            # Installed, so look again: the thread that ended it before did not see this.
            # explore: installed-so-look
            while not self.done() and sleeper.lock.acquire(True, seconds_left(deadline)):
                pass
        finally:
            if not self.done():
                uninstall(self, sleeper)
        return self.done()

    def _why_late(self) -> Iterable[str]:
        if self.owner is None or self.state is not PENDING:
            return ()
        return ("the submission has not started: no slot was free for it",)


def install(future: Submission[Any], waiter: Any) -> None:
    """Have `waiter` hear of the end of `future`; it may be over by now, so look again."""
    made = Watch()
    made.waiters.append(waiter)
    # Under its lock, for the thread that made the Watch holds that until it knows whether
    # it came too late.
    watch = future.watched(made)
    if watch is not made:
        holding(watch.lock, watch.waiters.append, waiter)  # explore: install-under-lock


def uninstall(future: Submission[Any], waiter: Any) -> None:
    watch = future.watch
    if watch is not None:
        holding(watch.lock, _remove, watch.waiters, waiter)


def _remove(waiters: list[Any], waiter: object) -> None:
    if waiter in waiters:
        waiters.remove(waiter)
