"""TaskGroup: a part of what an executor does is waited for, cancelled and collected as one.

On a Service the thread of a body that fails tells the group, before it takes what is queued
behind; on other executors a done-callback does. Nothing is locked: who adds to what another
thread looks through looks itself afterwards.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from ._core.blocking import DeadlockError, block
from ._core.graph import Node
from ._core.locking import headroom
from ._core.pool import queue_call
from ._core.state import current_body
from ._core.submission import NoteFailure, Submission
from ._core.waits import wait
from .checking import check_executor, checked_integer, checked_timeout
from .limiting import Limiter, cancel_quietly
from .service import Service, slots_of, submits_plainly

if TYPE_CHECKING:
    import asyncio
    from typing import Self

    from ._core.state import Slots
    from .async_block import AsyncBlock

P = ParamSpec("P")
T = TypeVar("T")
#: After `bool` alone, type checkers take a block to end anywhere.
_Handled: TypeAlias = "bool | None"
#: What is raised bare.
_BARE = KeyboardInterrupt, SystemExit, GeneratorExit
#: So many are looked through at once, and so many waited for by a body; most of those behind
#: them end meanwhile.
_CHUNK = 1000
_AT_ONCE = 100


class _Refused(RuntimeError, CancelledError):
    """What `submit` raises in a cancelled group: a body that ends with it was cancelled."""


class TaskGroup:
    """Waits at the end of its `with` block for all that was submitted to it.

    Args:
        executor: any `concurrent.futures.Executor`. Several groups may share one.
        limit: so many of the group's submissions are with the executor at most; the others
            wait here, in order, and fail with what the executor's `submit` raises (a Ctrl-C
            in it included, whatever becomes of the call). Where on a `Service` all that are
            there wait for others in line, one of these goes past the limit. Where `submit` itself
            executes, what a body submits comes after that body, which must not wait for it.
        timeout: seconds for the block as a whole. Then the group is cancelled, and the end
            raises `TimeoutError`, beside failures, without waiting for what runs.

    The end waits for what the block and the bodies submit (done-callbacks may be too late, and
    `submit` raises); in a body it lends the slot. The first failure of a body, an exception in
    the block, or a Ctrl-C there or at the end cancels the group: what has not started is
    cancelled (a broken pool fails it), what runs is waited for. (A second Ctrl-C does not
    wait.) Then the end raises an `ExceptionGroup` of all failures in order of submission, the
    block's own last, but `KeyboardInterrupt` and `SystemExit` bare; `DeadlockError` if the wait
    could never end. A body that ends with `CancelledError`, with what `submit` raises in a
    cancelled group, or with an exception group of these alone, was cancelled, and did not fail.

    A group keeps the futures of all that was submitted, and so the results, until it is
    dropped: for a stream that never ends, use one after the other.

    The block of a thread is not interrupted: `submit`, `cancelled` and the end notice the
    timeout. That of a coroutine, `async with`, is, where it awaits; no thread waits for it.
    Raises `TypeError` or `ValueError` for arguments that are none of these. After asyncio's
    `TaskGroup`, trio's nursery, and Go's `errgroup`, whose `SetLimit` blocks.
    """

    def __init__(
        self, executor: Executor, *, limit: int | None = None, timeout: float | None = None
    ) -> None:
        check_executor("a TaskGroup", executor)
        self._timeout = checked_timeout(timeout)
        self._executor = executor
        self._limit = None if limit is None else checked_integer("limit", limit, 1)
        self._attach()
        _every.add(self)
        # Weak, so that no future keeps the group.
        self._note_failure = weakref.WeakMethod(self._note)
        self._may_have_failed = False
        self._deadline: float | None = None  # On the monotonic clock.
        self._expired = self._cancelled = False
        self._closed: str | None = "has not been entered"  # Why `submit` refuses.
        self._futures: list[Future[Any]] = []  # All that was submitted, in order.
        self._known: int | None = None  # With so many of these the end came; others are refused.
        self._block: AsyncBlock | None = None  # Where it is a coroutine's.
        self._cancelling = 0  # How often its task was cancelled before.

    def _attach(self) -> None:
        self._limiter: Limiter | None = None
        # Where what is submitted stands in a service's queue itself.
        self._slots: Slots | None = None
        executor = self._executor
        if self._limit is not None:
            self._limiter = Limiter(executor, self._limit)
        elif isinstance(executor, Service) and submits_plainly(executor):
            self._slots = slots_of(executor)

    def _renew(self) -> None:
        """In a forked child, where the executor's queue is empty, go on with an empty line."""
        if self._limiter is not None:
            self._limiter.lose()
        self._attach()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submit `fn(*args, **kwargs)` to the executor, or put it in line for that.

        Blocks only if the executor's `submit` does. Raises what that raises; `RuntimeError`
        outside the block and when the group is cancelled; `TypeError` if `fn` is no callable.
        Where the end comes meanwhile it raises, and cancels what the executor has not started.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        if self._closed is not None:
            raise RuntimeError(f"this TaskGroup {self._closed}")
        if self._cancelled or (self._deadline is not None and self.cancelled):
            raise _Refused("this TaskGroup is cancelled")
        future: Future[Any]
        if self._slots is not None:
            future = queue_call(self._slots, fn, args, kwargs, self._note_failure)
            self._futures.append(future)
        elif self._limiter is not None:
            if self._limiter.over():
                # It is handed over at once. Before it is known: near the limit of the stack it
                # could not be cancelled either.
                headroom()
            future = self._limiter.make(fn, args, kwargs, self._note_failure)
            try:
                self._futures.append(future)
                if self._closed is not None:
                    self._look_again(future)
                self._limiter.put(future)
            except BaseException:
                future.cancel()  # Nobody has it.
                raise
        else:
            self._may_have_failed = True  # The callback may come late.
            future = self._executor.submit(fn, *args, **kwargs)
            self._futures.append(future)
            future.add_done_callback(partial(_note_end, self._note_failure))
        if self._cancelled or self._closed is not None:
            self._look_again(future)
        return future

    def _look_again(self, future: Future[Any]) -> None:
        """It is known, so look."""
        known = future in self._futures[: self._known]
        if self._cancelled or not known:
            cancel_quietly(future, self._executor)
        if not known:
            raise RuntimeError(f"this TaskGroup {self._closed}")

    def _note(self, error: BaseException) -> None:
        """A body has ended with `error`."""
        self._may_have_failed = True
        if not _is_cancellation(error):
            if not self._cancelled:
                self.cancel()
            if self._block is not None:
                self._block.interrupt()

    def cancel(self) -> None:
        """Cancel what has not started; the block's end waits for what runs, and raises
        nothing for this. Never blocks but for done-callbacks; may be called from anywhere."""
        headroom(30)
        self._cancelled = True
        if self._limiter is not None:
            self._limiter.close()  # First, or these would have it hand over the next.
        for future in self._futures.copy():
            cancel_quietly(future, self._executor)

    @property
    def cancelled(self) -> bool:
        """Whether the group was cancelled, also as its time is over: for long bodies."""
        if not self._expired and self._seconds_left() == 0:
            self._expire()
        return self._cancelled

    def _expire(self) -> None:
        self._cancelled = self._expired = True
        self.cancel()

    def _seconds_left(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0)

    def results(self) -> list[Any]:
        """The results in order of submission. Blocks and raises as `Future.result` does."""
        return [future.result() for future in self._futures[: self._known]]

    def __enter__(self) -> Self:
        self._check_not_entered()
        self._deadline = None if self._timeout is None else time.monotonic() + self._timeout
        self._closed = None
        return self

    def _check_not_entered(self) -> None:
        if self._closed != "has not been entered":
            raise RuntimeError("a TaskGroup can be entered once")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> _Handled:
        try:
            try:
                headroom(40)
                error = self._own(error)
                self._wait()
            except BaseException as another:
                self.cancel()
                if not isinstance(another, DeadlockError) and not isinstance(error, _BARE):
                    self._wait()
                raise
            return self._conclude(error)
        finally:
            self._leave()
            del error, trace

    def _own(self, error: BaseException | None) -> BaseException | None:
        """The block's exception, which cancels the group unless it follows from that."""
        # Which looks at the time: the block may have overrun, and nothing be left to wait for.
        if self.cancelled and error is not None and _is_cancellation(error):
            return None
        if error is not None or self._cancelled:
            self.cancel()  # Perhaps again: a Ctrl-C may have come in the middle.
        return error

    def _wait(self) -> None:
        for pending in self._unfinished():
            # In a body for each, so that its slot goes from one to the next. Elsewhere for the
            # last: to hear of each would cost half as much as to submit it.
            awaited = pending[-1:] if current_body() is None else pending[:_AT_ONCE]
            of_this_package = [each for each in awaited if isinstance(each, Submission)]
            if of_this_package:
                wait(of_this_package, self._seconds_left())
            else:
                _wait_for_foreign(awaited, self._deadline)

    def _unfinished(self) -> Iterator[list[Future[Any]]]:
        """Some that are to be waited for, until none are; then the group is closed."""
        seen = 0
        if self._limiter is not None:
            self._limiter.advance()  # A Ctrl-C may have come where it did.
        while True:
            while seen < (len(self._futures) if self._known is None else self._known):
                chunk = self._futures[seen : seen + _CHUNK]
                pending = [future for future in chunk if not future.done()]
                if not pending:
                    seen += len(chunk)
                elif self.cancelled and self._expired:
                    return
                else:
                    yield pending
            if self._known is not None:
                return
            self._close()  # Closed, so look, for what came from elsewhere.

    def _close(self) -> None:
        self._closed = "is over"
        if self._known is None:
            self._known = len(self._futures)

    def _conclude(self, own: BaseException | None) -> bool:
        """Raise what there is to raise; whether the block's `own` exception is done with."""
        if isinstance(own, _BARE):
            return False
        ended = self._futures[: self._known] if self._may_have_failed else []
        failed = [future for future in ended if _failure(future) is not None]
        if failed:
            self._cancelled = True  # As a callback may be late to do.
        bare = [future for future in failed if isinstance(_failure(future), _BARE)][:1]
        # What is raised, and so asked for.
        errors: list[Any] = [future.exception() for future in bare or failed]
        errors += [own] if own is not None else []
        if self._expired:
            errors.append(TimeoutError(f"not over after {self._timeout} seconds"))
        try:
            if bare or (self._expired and len(errors) == 1):
                raise errors[0]
            if errors:
                raise BaseExceptionGroup("unhandled errors in a TaskGroup", errors) from None
            return True
        finally:
            del self, ended, failed, bare, errors, own

    def _leave(self) -> None:
        self._close()
        self._deadline = None

    async def __aenter__(self) -> Self:
        from .async_block import AsyncBlock  # noqa: PLC0415  # Which imports asyncio.

        self._check_not_entered()
        self._block = AsyncBlock(self._timeout)
        self.__enter__()
        await self._block.enter()
        self._cancelling = _task().cancelling()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> _Handled:
        block: Any = self._block
        interrupt: BaseException | None = None
        try:
            if await block.leave(kind, error, trace):
                error = None
                if not self._cancelled:  # Then by the loop's clock, which may be ahead.
                    self._expire()
            by_group = self._cancelled and _task().cancelling() <= self._cancelling
            if by_group and isinstance(error, block.Interrupt):
                error = None  # The block awaited what the group has cancelled.
            error = self._own(error)
            if isinstance(error, block.Interrupt):
                interrupt, error = error, None
            for pending in self._unfinished():
                try:
                    await block.wait(pending[-1], self._seconds_left())
                except block.Interrupt as another:
                    interrupt = another
                    self.cancel()
            try:
                over = self._conclude(error)
            except BaseException:
                _cancel_again(_task())
                raise
            if interrupt is not None:
                raise interrupt
            return over
        finally:
            self._leave()
            del error, interrupt, trace


def _task() -> asyncio.Task[Any]:
    """What executes this, the block of a coroutine."""
    from asyncio import current_task  # noqa: PLC0415  # As above.

    task = current_task()
    assert task is not None
    return task


def _cancel_again(task: asyncio.Task[Any]) -> None:
    """Where `task` was cancelled and a failure is raised, have its next await raise the cancel.

    As asyncio's TaskGroup does, and from Python 3.13 on: before, `uncancel` did not take back
    what the next await would raise.
    """
    if sys.version_info >= (3, 13) and task.cancelling():
        task.uncancel()
        task.cancel()


class _ForeignEnds(Node):
    """A wait for futures of other packages, by done-callbacks. Their waiters hear of one that
    was cancelled only when its executor comes to it, which may be late, or never."""

    def __init__(self, futures: list[Future[Any]]) -> None:
        super().__init__()
        self.pending = dict.fromkeys(futures)
        #: Those that it has not heard of. (To ask them takes their locks.)
        self._unheard = self.pending.copy()

    def over(self) -> bool:
        return not self._unheard

    def install(self) -> None:
        for future in self.pending:
            future.add_done_callback(self._hear)

    def _hear(self, future: Future[Any]) -> None:
        self._unheard.pop(future, None)
        self.ring()

    def keep_nothing(self) -> None:
        """It is over: the futures keep their callbacks, and so this."""
        self.pending.clear()
        self._unheard.clear()


def _wait_for_foreign(futures: list[Future[Any]], deadline: float | None) -> None:
    waiting = _ForeignEnds(futures)
    try:
        waiting.listen()
        block(waiting, deadline)
    finally:
        waiting.keep_nothing()


_every: weakref.WeakSet[TaskGroup] = weakref.WeakSet()


def _renew_all() -> None:
    for group in list(_every):
        group._renew()  # pyright: ignore[reportPrivateUsage]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


def _note_end(note_failure: NoteFailure, over: Future[Any]) -> None:
    note, error = note_failure(), _failure(over)
    if note is not None and error is not None:
        note(error)


def _failure(future: Future[Any]) -> BaseException | None:
    """What it has failed with, if it has. To look is not to ask: unless that is raised it is to
    be logged; but not of a body that was cancelled."""
    if not future.done() or future.cancelled():
        return None
    if isinstance(future, Submission):
        error = None if future.failure is None else future.failure.exception
    else:
        error = future.exception()
    if error is not None and _is_cancellation(error):
        future.exception()
        return None
    return error


def _is_cancellation(error: BaseException) -> bool:
    """Whether a body that ends with `error` was cancelled; a group of its own wraps what says
    so in an exception group."""
    leaves: list[BaseException] = [error]
    for each in leaves:
        group: Any = each
        if isinstance(each, BaseExceptionGroup):
            leaves += group.exceptions
        elif not isinstance(each, CancelledError):
            return False
    return True
