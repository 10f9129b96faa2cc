"""The line in which a group's submissions wait where the executor is to have but some of them.

What waits is a future of its own. On a Service it then stands in the queue itself; what another
executor is handed is the callable, and the future ends as what that returned. The thread that
ends one hands over the next, one thread at a time, so the order stays. Who finds another at it
leaves it to that, which looks again. The executor is called under no other lock.
"""

from __future__ import annotations

import operator
import threading
from _thread import get_ident
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeGuard

from ._core.future import Future, Member
from ._core.graph import Line, Node
from ._core.locking import headroom, locked
from ._core.pool import check_accepts, remember_origin, start_queued
from ._core.reporting import Failure, name_of, report
from ._core.runs import Call
from ._core.slots import look
from ._core.submission import (
    CANCELLATION,
    CANCELLING,
    ENDING,
    PENDING,
    RUNNING,
    AnyFuture,
    NoteFailure,
    Owner,
    Submission,
    clock,
    ended_under_lock,
)
from .service import Service, slots_of, submits_plainly


class _Member(Member[Any]):
    """A submission. What it waits for, its `predecessor`, is the line first, and then what the
    executor returned; nothing where it stands in a service's queue itself."""

    __slots__ = ("limiter", "call", "inner", "predecessor")

    def __init__(self, limiter: Limiter, call: Call, on_failure: NoteFailure) -> None:
        self.state = PENDING
        self.failure = None
        self.owner = limiter.owner
        self.args = self.kwargs = self.context = None
        self.serial = clock()
        self.on_failure = on_failure
        #: None once it is over, and need not be told.
        self.limiter: Limiter | None = limiter
        #: None once it has begun, or is over.
        self.call: Call | None = call
        #: What the executor returned.
        self.inner: AnyFuture | None = None
        self.predecessor: Limiter | AnyFuture | None = limiter
        self.fn = True

    def callee(self) -> object:
        call = self.call
        return None if call is None else call[0]

    # As `_core.loop.LateCall`: what a worker calls, which has the claim.

    def start(self) -> Call:
        call, self.call = self.call, None
        assert call is not None
        return call

    def leave(self) -> None:
        pass

    def go_on(self) -> None:
        """Have the next handed over: before the callbacks, which may wait for it. Repeatable."""
        limiter = self.limiter
        if limiter is not None:
            limiter.release(self)
            self.limiter = self.inner = self.predecessor = None

    def fail(self, exception: BaseException, name: str) -> None:
        self.note_failure(exception)
        self.go_on()
        super().fail(exception, name)

    def forget(self) -> None:
        super().forget()
        self.call = None

    # On another executor.

    def conclude(self, value: Any, failure: Failure | None) -> None:
        """Be over; the callbacks are left to the caller. Repeatable."""
        if failure is not None and failure is not CANCELLATION:
            self.note_failure(failure.exception)
        locked(self.store, value, failure)
        self.close()
        self.successor = None

    def store(self, value: Any, failure: Failure | None) -> None:
        if self.state is RUNNING:
            self.value = value
            self.failure = failure
            self.state = CANCELLING if failure is CANCELLATION else ENDING
        if failure is not None and (failure is not self.failure or not self.reported):
            failure.asked = True

    def running(self) -> bool:
        inner = self.inner
        return super().running() if inner is None else not self.done() and inner.running()

    def cancel(self) -> bool:
        """Cancel it where it waits in line, or where the executor has not begun it."""
        headroom()
        inner = self.inner
        try:
            if super().cancel():
                self.forget()
                self.go_on()
            elif inner is not None:
                inner.cancel()
        except BaseException:  # A Ctrl-C: nobody else would do the rest.
            if self.cancelled():
                self.go_on()
            elif inner is not None and inner.cancelled() and self.limiter is not None:
                self.limiter.ended(self, inner)
            raise
        return self.cancelled()

    def _become_cancelled(self) -> None:
        self.close()
        self.go_on()
        self.call_back()


class Limiter(Line):
    """Hands over to `executor`, of which it has at most `limit` futures that are not over."""

    def __init__(self, executor: Executor, limit: int) -> None:
        super().__init__()
        self._executor = executor
        self._limit = limit
        self._slots = slots_of(executor) if isinstance(executor, Service) else None
        #: Whether they stand in the service's queue themselves.
        self._direct = isinstance(executor, Service) and submits_plainly(executor)
        #: Says whether a fork has lost what waits here.
        self.owner = Owner()
        #: In order, and some that were handed over or cancelled. Taken out by the thread that
        #: hands over.
        self._waiting: deque[_Member] = deque()
        #: Those that go first, and past the limit: what was handed over waits for them.
        self._urgent: deque[_Member] = deque()
        self._handing_over = threading.Lock()
        #: Which thread that is; and what ended under it, whose callbacks are to come.
        self._holder: int | None = None
        self._ended: list[_Member] = []
        self._closed = False
        #: [lock] Whose waits lead here.
        self._led: dict[Node, None] = {}

    def make(
        self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], on_failure: NoteFailure
    ) -> Member[Any]:
        """What is to be put in line. It fails with what the executor raises."""
        # In the context of a submit other executors find what they pass on.
        propagates = self._slots is None or self._slots.propagate
        context = (copy_context() or None) if propagates else None
        member = _Member(self, (fn, args, kwargs or None, context), on_failure)
        if self._slots is not None and self._slots.checked:
            member.value = get_ident()
            remember_origin(member)
        return member

    def put(self, member: Any) -> None:
        """Put in line what was made for this."""
        self._waiting.append(member)
        self.advance()

    def close(self) -> None:
        """Hand over no more."""
        self._closed = True
        locked(self._ring)

    def lose(self) -> None:
        """In a forked child nobody hands over what waits."""
        self.owner.lost = True
        self.close()

    def advance(self) -> None:
        """Hand over those whose turn it is."""
        ended: list[_Member] = []
        try:
            self._advance(ended)
        except BaseException:
            self._advance(ended)  # A Ctrl-C. Others have left it to this thread.
            raise

    def _advance(self, ended: list[_Member]) -> None:
        while True:
            while ended:
                ended[0].call_back()
                del ended[0]
            if not (self._has_turn() and self._takes_turn(ended)):
                return

    def _has_turn(self) -> bool:
        has_room = bool(self._waiting) and self.over()
        return not self._closed and (has_room or bool(self._urgent))

    def _takes_turn(self, ended: list[_Member]) -> bool:
        """Hand over one, unless another thread does: then that looks again."""
        held: list[bool] = []  # As in `locking.holding`.
        try:
            held += map(self._handing_over.acquire, (False,))
            if held[0]:
                self._ended = ended
                self._holder = get_ident()
                self._hand_over_next()
            return held[0]
        finally:
            if True in held:  # Without a call, before which a Ctrl-C could come.
                self._holder = None
                self._handing_over.release()

    def _hand_over_next(self) -> None:
        if not self._has_turn():
            return  # Another thread has just handed over.
        queue = self._urgent or self._waiting
        member = queue[0]
        try:
            if member.predecessor is self:
                self.pending[member] = None
                (self._queue if self._direct else self._give)(member)
        finally:
            waits = member.predecessor is self and member.state is PENDING
            if not waits:
                queue.popleft()
            # Known, so look: it may have been cancelled before. Or a Ctrl-C came.
            if waits or member.done():
                self.pending.pop(member, None)
        if self._led:
            locked(self._ring)
        if self._closed:
            cancel_quietly(member, self._executor)

    def _queue(self, member: _Member) -> None:
        """Have it stand in the service's queue."""
        slots = self._slots
        assert slots is not None
        call = member.call
        try:
            if slots.checked:
                check_accepts(slots)
            member.serial = clock()
            member.owner = slots
            member.predecessor = None  # And no Ctrl-C until it is in the queue.
            slots.queue.append(member)
            if (slots.free and slots.quiet) or slots.refusal is not None:
                start_queued(slots, member)
        except RuntimeError as error:
            self._refuse(member, error.with_traceback(None), call)
        except BaseException:  # A Ctrl-C.
            look(slots)
            raise

    def _give(self, member: _Member) -> None:
        """Have the executor accept the callable."""
        inner: AnyFuture | None = None
        call = member.call
        try:
            if call is None or not member.claim():
                return  # Cancelled.
            member.predecessor = None  # It has left the line.
            fn, args, kwargs, context = call
            member.forget()
            enter = operator.call if context is None else context.run
            inner = enter(self._executor.submit, fn, *args, **(kwargs or {}))
            self._attach(member, inner)
        except Exception as error:
            # Without its traceback, whose frames keep the arguments, and lead back here.
            self._refuse(member, error.with_traceback(None), call)
        except BaseException as error:
            if inner is None:
                self._refuse(member, error, call)
            else:
                self._attach(member, inner)  # A Ctrl-C. Harmless when repeated.
            raise

    def _refuse(self, member: _Member, error: BaseException, call: Call | None) -> None:
        if member.claim() or member.state is RUNNING:
            member.forget()
            name = "" if call is None else name_of(call[0])
            member.conclude(None, Failure(error, name, False))
            member.go_on()
            self._ended.append(member)

    def _attach(self, member: _Member, inner: AnyFuture) -> None:
        member.inner = member.predecessor = inner
        if _is_submission(inner):
            inner.successor = member
        inner.add_done_callback(partial(self.ended, member))

    def ended(self, member: _Member, inner: AnyFuture) -> None:
        """The executor is done with `inner`."""
        try:
            self._end(member, inner)
        except BaseException:
            self._end(member, inner)  # A Ctrl-C: nobody else would.
            raise
        finally:
            if self._holder == get_ident():
                self._ended.append(member)  # Its callbacks may wait for the next.
            else:
                member.call_back()

    def _end(self, member: _Member, inner: AnyFuture) -> None:
        if _is_submission(inner):
            inner.successor = None
        member.conclude(*_outcome(inner))
        self.pending.pop(member, None)
        if self._slots is None and self._has_turn() and ended_under_lock(inner):
            try:
                threading.Thread(target=member.go_on, daemon=True).start()
                return
            except RuntimeError:
                pass  # Here, then, and at one's own risk.
        member.go_on()

    def release(self, member: _Member) -> None:
        """It is over: hand over the next."""
        self.pending.pop(member, None)
        if self._led:
            locked(self._ring)  # If none is handed over for it, another may have to go past.
        self.advance()

    # As a `Line`.

    def over(self) -> bool:
        return len(self.pending) < self._limit

    def led_to(self, start: Node) -> None:
        self._led[start] = None

    def _ring(self) -> None:
        while self._led:
            node, _ = self._led.popitem()
            node.changed = True
            node.ring()

    def let_through(self, awaited: Iterable[Any]) -> None:
        for future in awaited:
            while future is not None and not isinstance(future, Line):
                if isinstance(future, _Member) and future.predecessor is self:
                    self._urgent.append(future)
                    return
                future = getattr(future, "predecessor", None)


def cancel_quietly(future: AnyFuture, executor: Executor) -> None:
    """Cancel it; where that fails, as another executor's may, it goes on as if it ran.

    Not what a broken pool of the stdlib has: that fails it itself, one after the other, and
    before Python 3.13 its thread ends at one that was cancelled, and leaves its processes alive.
    """
    held = getattr(future, "inner", future)  # None in line.
    is_foreign = not (held is None or isinstance(held, Submission))
    if is_foreign and getattr(executor, "_broken", False):
        return
    try:
        future.cancel()
    except RecursionError:
        raise
    except Exception as error:
        report("exception cancelling %r", future, exception=error)


def _is_submission(inner: object) -> TypeGuard[Future[Any]]:
    """Whether it is to be found who waits for the member. (A Coalescer's runs follow others.)"""
    return type(inner) is Future


def _outcome(inner: AnyFuture) -> tuple[Any, Failure | None]:
    if inner.cancelled():
        return None, CANCELLATION
    if isinstance(inner, Submission):
        return getattr(inner, "value", None), inner.failure
    error = inner.exception()
    if error is None:
        return inner.result(), None
    return None, Failure(error, "a submission to a TaskGroup", False)
