"""The future: cheap to make, lends when it is waited for.

A submission and its future are one object. Everything that only some futures
need (a lock, waiters, callbacks) stands in a `Watch`, made by whoever first
watches; a future that nobody watches is finished by two stores.

What it stands on, with a GIL and without:

* Deleting an attribute is one step in C that fails where the attribute is gone, so
  of several threads that `del future._fn` exactly one succeeds. That is the *claim*:
  whoever has it starts the submission, cancels it or lends to it. Without a GIL it
  holds for ordinary attributes only: a slot is looked at before its lock is taken.
* `dict.setdefault` is one step in C, so all who make a Watch at once get the same.
* A store is seen by every load that comes after it. Who finishes a future stores
  the outcome and then looks for a Watch; who makes a Watch publishes it and then
  looks for an outcome. One of the two sees the other.

The stdlib's `wait` and `as_completed` read `_state` several times under
`_condition` and are told twice of a future whose state changes in between. So
from the moment there is a Watch the state becomes final only under its lock.
"""

# The rooms share what users must not touch.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import sysconfig
import threading
from _thread import RLock, allocate_lock, get_ident
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, InvalidStateError
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

__all__ = ["Future"]

T = TypeVar("T")
Callback: TypeAlias = "Callable[[Any], object]"

# The stdlib's own words for the states: its `wait` and `as_completed` compare them.
PENDING = "PENDING"
RUNNING = "RUNNING"
#: Ours: the outcome is stored, and whoever stored it is about to make the state final.
ENDING = "ENDING"
CANCELLED = "CANCELLED_AND_NOTIFIED"
FINISHED = "FINISHED"

#: The order of submission across all services, for waits on several futures.
serials = itertools.count(1)

HAS_GIL = not sysconfig.get_config_var("Py_GIL_DISABLED")

_logger = logging.getLogger("boundedexec")


class _Reports:
    """Logs failures that have no caller to be raised to; a broken handler ends here.

    A future may be dropped anywhere, also while this thread logs the failure of another,
    and CPython 3.13.5 leaves out what is logged meanwhile: so that waits for its turn.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[BaseException, str, tuple[object, ...]]] = deque()
        #: The threads that log.
        self._logging: set[int] = set()
        # Not globals: when the interpreter ends those may be gone.
        self._log = _logger.error
        self._ident = get_ident
        self._table: dict[int, threading.Thread] = threading._active  # type: ignore[attr-defined]
        #: There for a thread that is not: it is all but gone, or none of Python's. What
        #: `logging` has put there itself may stay for ever.
        self._unlisted = threading.Thread(name="Dummy", daemon=False)

    def __call__(self, message: str, *args: object, exception: BaseException) -> None:
        self._waiting.append((exception, message, args))
        thread = self._ident()
        # Again, for one may come between the last look and the end.
        while self._waiting and thread not in self._logging:
            try:
                self._logging.add(thread)
                self._table.setdefault(thread, self._unlisted)
                while self._waiting:
                    exception, message, args = self._waiting.popleft()
                    self._log(message, *args, exc_info=exception)
            except BaseException:
                pass
            finally:
                self._logging.discard(thread)
                if self._table.get(thread) is self._unlisted:
                    self._table.pop(thread)


report = _Reports()


def name_of(fn: object) -> str:
    """What a person calls `fn`: its qualified name, else its repr."""
    return getattr(fn, "__qualname__", None) or repr(fn)


class Waiter(Protocol):
    """What is told of a future's end, in the stdlib's words."""

    def add_result(self, future: Any, /) -> None: ...
    def add_exception(self, future: Any, /) -> None: ...
    def add_cancelled(self, future: Any, /) -> None: ...


class Owner(Protocol):
    """What a submission needs of the service that accepted it."""

    lost: bool
    away: set[object]

    def check_idle(self) -> None: ...
    def executes(self, future: Future[Any], /) -> bool: ...
    def retry(self) -> None: ...


class Body(Protocol):
    """What a future needs of the body that waits for it."""

    fn: Callable[..., Any] | None

    @property
    def future(self) -> Future[Any] | None: ...
    def wait_for(self, future: Future[Any], /) -> None: ...


class _PerThread(Generic[T]):
    """An attribute of the current thread, None unless it was set.

    Not a `threading.local`: an ending thread clears those after its last line, which
    without a GIL can meet the interpreter's own end and deadlock.
    """

    def __init__(self) -> None:
        self.values: dict[int, T] = {}

    def __get__(self, instance: object, owner: object) -> T | None:
        return self.values.get(get_ident())

    def __set__(self, instance: object, value: T | None) -> None:
        if value is None:
            self.values.pop(get_ident(), None)
        else:
            self.values[get_ident()] = value


class _Current:
    #: The body that this thread executes, None on every other thread.
    body = _PerThread[Body]()
    #: The service that accepts what this thread submits though it is shut down: an
    #: owed submission was accepted when it was made.
    admitted = _PerThread[Owner]()
    #: The service whose submission this thread has cancelled, while it runs the
    #: callbacks: they are outstanding, and must not wait for themselves.
    cancelling = _PerThread[Owner]()
    #: The run that this thread is handing over.
    handing = _PerThread[object]()

    def forget(self) -> None:
        """In a forked child there is none of that.

        Here and wherever a child forgets what its parent has, containers are replaced and
        not cleared: without a GIL a thread that is not there may have been in the middle
        of an operation on one, and nobody would give CPython's lock for it back.
        """
        for name in "body", "admitted", "cancelling", "handing":
            vars(_Current)[name].values = {}


current = _Current()


class Sleeper:
    """A waiter that sleeps on a lock, which is released to wake it."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = lock = allocate_lock()
        lock.acquire()

    def wake(self) -> None:
        try:
            self.lock.release()
        except RuntimeError:
            pass  # It is awake, and looks at everything before it sleeps again.

    def add_result(self, future: Any) -> None:
        self.wake()

    add_exception = add_cancelled = add_result


class Lock(Protocol):
    def acquire(self, blocking: bool, /) -> bool: ...
    def release(self) -> None: ...


def holding(lock: Lock, step: Callable[..., T], *args: Any) -> T:
    """Call `step` while `lock` is held.

    As `with`, which since Python 3.14 looks for signals when it has entered and does not
    leave yet: after a Ctrl-C there, nobody would ever have the lock again.
    """
    held: list[bool] = []
    try:
        held += map(lock.acquire, (True,))
        outcome = step(*args)
    finally:
        if held:
            lock.release()
    return outcome


class Watch:
    """What a watched future has: the lock of its last transition, and who is told."""

    __slots__ = ("lock", "waiters", "untold", "callbacks")

    def __init__(self, *waiters: Waiter) -> None:
        # Reentrant: a signal handler or a `__del__` may come in between.
        self.lock = RLock()
        self.waiters: list[Waiter] = [*waiters]
        #: Those who have not been told yet that the state is final; None before it is.
        self.untold: list[Waiter] | None = None
        #: In order while they come; the last first once the state is final, for that is
        #: the order in which a list gives them out.
        self.callbacks: list[Callback] = []


class Failure:
    """An exception and whether anybody asked for it. Reports it when dropped unasked."""

    __slots__ = ("exception", "name", "asked")

    def __init__(self, exception: BaseException, name: str, asked: bool) -> None:
        self.exception = exception
        self.name = name
        self.asked = asked

    def __del__(self, report: Callable[..., None] = report) -> None:
        if not self.asked:
            report(
                "nobody asked for the exception of %s: %r",
                self.name,
                self.exception,
                exception=self.exception,
            )


def keep_unreported(future: concurrent.futures.Future[Any]) -> None:
    """Say that nobody who could miss its exception ever sees this future."""
    if isinstance(future, Future):
        future._reported = False
        failure = future._failure
        if failure is not None:
            failure.asked = True


#: The failure of every cancelled future.
CANCELLATION = Failure(CancelledError(), "", True)


class Future(concurrent.futures.Future[T]):
    """The result of a submission that may not have happened yet.

    A `concurrent.futures.Future` in every respect, for the stdlib's `wait` and
    `as_completed` and for asyncio too. What differs:

    * `result()` and `exception()` without a timeout, called in a body, lend the
      body's slot to the submission where it is still queued, and raise
      `DeadlockError` where they could never return.
    * `cancel()` is final at once; waiters need not wait for a worker to see it.
    * An exception that nobody asked for is logged on `boundedexec` when the
      future is dropped.
    """

    __slots__ = (
        "_state",
        "_result",  # set by success alone
        "_failure",
        "_owner",  # what accepted the submission; None for a bare future
        "_args",
        "_kwargs",
        "_context",
        "_serial",
        *(("_fn",) if HAS_GIL else ()),  # the claim
    )

    _result: T | None
    _failure: Failure | None
    _owner: Owner | None
    _args: tuple[Any, ...]
    _kwargs: dict[str, Any] | None
    _context: Context | None
    _serial: int

    _fn: Any
    # An ordinary attribute, made by `dict.setdefault` when somebody needs it.
    _watch: Watch | None = None
    _reported = True

    def __init__(self) -> None:
        self._state = PENDING
        self._failure = None
        self._owner = None
        self._serial = 0
        self._fn = True

    if not TYPE_CHECKING:
        # What the stdlib's `wait` and `as_completed` use, and are typed to find as
        # attributes.

        @property
        def _condition(self) -> RLock:
            self.done()  # If it is lost, they must see that.
            return self._watched().lock

        @property
        def _waiters(self) -> list[Waiter]:
            return self._watched().waiters

    def _watched(self, made: Watch | None = None) -> Watch:
        """The Watch: the one that was `made`, if there was none."""
        watch = self._watch
        if watch is None:
            if made is None:
                made = Watch()
            # Nobody may read the state under this lock before it is settled
            # whether the future was already being finished:
            # 1. a worker stores the outcome and sees no Watch;
            # 2. it is published here, and `wait` reads "not finished" under it;
            # 3. the worker stores FINISHED without telling anybody.
            if holding(made.lock, self._publish, made):
                self._settle()
            watch = self._watch
            assert watch is not None
        return watch

    def _publish(self, made: Watch) -> bool:
        """Have `made` be the Watch, unless there is one; whether it came too late."""
        try:
            watch = self.__dict__.setdefault("_watch", made)
            late = watch is made and (
                self._state is ENDING
                or self._failure is CANCELLATION
                # Who waits looks by itself; what is in there to be called does not.
                or (self._state is FINISHED and bool(made.callbacks))
            )
            if late:
                self._end(watch)
        except BaseException:
            self._publish(made)  # A Ctrl-C.
            raise
        return late

    def _drop_if_lost(self) -> bool:
        """In a forked child nobody is left to finish what was unfinished: cancel it."""
        owner = self._owner
        if owner is None or not owner.lost:
            return False
        self._forget()
        self._failure = CANCELLATION
        self._state = CANCELLED
        # The lock of the old Watch may be held by a thread that is not here.
        self.__dict__["_watch"] = Watch()
        return True

    def _forget(self) -> None:
        self._args = ()
        self._kwargs = self._context = None

    def _close(self, watch: Watch) -> None:
        """Make the state final and tell the waiters, once. To be called again where it
        was interrupted: then one of them may be told twice."""
        holding(watch.lock, self._end, watch)

    def _end(self, watch: Watch) -> None:
        """Close it; for whoever holds its lock."""
        failure = self._failure
        if not (self._state is FINISHED or self._state is CANCELLED):
            # First, for there may be no memory for it. No signal is looked for between
            # the last two, so they are not turned round again.
            watch.untold = watch.waiters.copy()
            watch.callbacks = watch.callbacks[::-1]
            self._state = CANCELLED if failure is CANCELLATION else FINISHED
        untold = watch.untold
        while untold:
            waiter = untold[0]
            if failure is None:
                waiter.add_result(self)
            elif failure is CANCELLATION:
                waiter.add_cancelled(self)
            else:
                waiter.add_exception(self)
            del untold[0]

    def _settle(self, tolerated: type[BaseException] = Exception) -> None:
        """Finish a watched future whose outcome is stored; its callbacks run here.

        Harmless when repeated, and by two threads at once: the first makes the state
        final, each callback is taken by one.
        """
        watch = self._watch
        assert watch is not None
        self._close(watch)
        callbacks = watch.callbacks
        while callbacks:
            try:
                callback = callbacks.pop()
            except IndexError:
                break
            self._call(callback, tolerated)

    def _call(
        self, callback: Callback, tolerated: type[BaseException] = Exception
    ) -> None:
        try:
            callback(self)
        except tolerated as exception:
            report("exception calling callback for %r", self, exception=exception)

    def _fail(self, exception: BaseException, name: str) -> None:
        """Finish with `exception`; for whoever has the claim."""
        self._failure = Failure(exception, name, not self._reported)
        self._state = ENDING
        if self._watch is None:
            self._state = FINISHED
        else:
            self._settle(BaseException)

    def _finish(self) -> None:
        """Make the stored outcome final and tell the waiters."""
        if not (self._state is FINISHED or self._state is CANCELLED):
            self._state = ENDING
        watch = self._watch
        if watch is None:
            self._state = CANCELLED if self._failure is CANCELLATION else FINISHED
        else:
            self._close(watch)

    def _become_cancelled(self) -> None:
        """Finish as cancelled; for whoever has the claim, and who helps them."""
        self._forget()
        self._failure = CANCELLATION
        if self._watch is None:
            self._state = CANCELLED
        else:
            self._settle()

    def _revoke(self) -> bool:
        """Cancel it whoever else wants it: its service is shut down."""
        return self.cancel()

    def _claim(self) -> bool:
        return self._take() is not None

    def _take(self) -> Any:
        """Claim it; its callable, or None where another was first."""
        try:
            fn = self._fn
            del self._fn
        except AttributeError:
            return None
        return fn

    # The public surface.

    def cancel(self) -> bool:
        """Cancel the submission if it has not started.

        Returns True if it is cancelled, False if it runs or is over. Never blocks
        but for the done-callbacks, which run here.
        """
        owner = self._owner
        if owner is None:
            if self._claim():
                self._become_cancelled()
                return True
            return self.cancelled()
        # One for each who cancels: the first may be at the callbacks when another is over.
        mark = object()
        claimed = False
        try:
            # Outstanding until the callbacks have run, though no longer queued.
            owner.away.add(mark)
            try:
                del self._fn
                claimed = True  # No signal is looked for in between.
            except AttributeError:
                pass
            if claimed or self._is_being_cancelled(owner):
                if self._watch is None:
                    self._become_cancelled()
                else:
                    self._cancel_watched(owner)
            # As `cancelled` has it first, but without the call: most are final by here.
            cancelled = self._state is CANCELLED or self.cancelled()
            owner.away.discard(mark)
            owner.check_idle()
        except BaseException:
            # A Ctrl-C: who has the claim and did not come further never will.
            if claimed:
                self._become_cancelled()
            elif self._failure is CANCELLATION and self._watch is not None:
                self._settle()
            owner.away.discard(mark)
            owner.check_idle()
            raise
        return cancelled

    def _cancel_watched(self, owner: Owner) -> None:
        before = current.cancelling
        try:
            current.cancelling = owner
            self._become_cancelled()
            current.cancelling = before
        except BaseException:
            current.cancelling = before
            raise

    def _is_being_cancelled(self, owner: Owner) -> bool:
        """Whether another `cancel` has the claim and has not come further.

        A body's thread says what it executes before it claims it, and goes on saying
        so until the state is final: not to be seen there, and then still pending, is
        not to be executed.
        """
        return not owner.executes(self) and self._state is PENDING and not self._drop_if_lost()

    def cancelled(self) -> bool:
        """Whether the submission was cancelled. Never blocks."""
        return self._state is CANCELLED or (self._state is not FINISHED and self._drop_if_lost())

    def running(self) -> bool:
        """Whether the body executes now. Never blocks."""
        return self._state is RUNNING and not self._drop_if_lost()

    def done(self) -> bool:
        """Whether it is finished or cancelled. Never blocks."""
        state = self._state
        if state is FINISHED or state is CANCELLED:
            return True
        owner = self._owner
        return owner is not None and owner.lost and self._drop_if_lost()

    def result(self, timeout: float | None = None) -> T:
        """Return what the body returned, or raise what it raised.

        Blocks up to `timeout` seconds, for ever with None. Raises `TimeoutError`,
        `CancelledError`, and in a body without a timeout `DeadlockError` where the
        wait could never end; there it lends the body's slot to this submission.
        """
        failure: Failure | None = None
        try:
            if self._state is not FINISHED:
                self._wait(timeout)
            failure = self._failure
            if failure is None:
                return self._result  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
            failure.asked = True
            raise failure.exception
        finally:
            # The traceback holds this frame: no way from there back to the future.
            del self, failure

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the body raised, None if it returned. Blocks and raises as `result`."""
        if self._state is not FINISHED:
            self._wait(timeout)
        failure = self._failure
        if failure is None:
            return None
        failure.asked = True
        return failure.exception

    def _wait(self, timeout: float | None) -> None:
        """Return once finished; raise if cancelled or out of time."""
        try:
            if not self.done():
                body = current.body
                if body is not None and timeout is None:
                    body.wait_for(self)
                elif not self._await_end(timeout):
                    raise concurrent.futures.TimeoutError(*self._why_late(body))
            if self._state is CANCELLED:
                raise CancelledError
        finally:
            del self  # As in `result`.

    def _await_end(self, timeout: float | None) -> bool:
        sleeper = Sleeper()
        try:
            watch = self._watched(Watch(sleeper))
            # Whoever made the Watch holds its lock until it knows whether it came too late.
            # Without it:
            # 1. a worker stores the outcome and sees no Watch; another thread publishes one;
            # 2. this one adds its sleeper, and reads "not finished";
            # 3. the worker stores FINISHED, and the other finds that it need tell nobody.
            if sleeper not in watch.waiters:
                holding(watch.lock, watch.waiters.append, sleeper)
            # Published, so look again: who ended it before did not tell us.
            if not self.done():
                if timeout is None:
                    sleeper.lock.acquire()
                elif timeout > 0:
                    sleeper.lock.acquire(True, min(timeout, threading.TIMEOUT_MAX))
        finally:
            if self._watch is not None and sleeper in self._watch.waiters:
                self._watch.waiters.remove(sleeper)
        return self.done()

    def _why_late(self, body: object) -> Iterable[str]:
        if self._owner is None or self._state is not PENDING:
            return ()
        reason = "the submission has not started: no slot was free for it"
        if body is not None:
            reason += "; wait without a timeout, or give this body's slot away with yield_slot"
        return (reason,)

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """Call `fn(future)` once it is over: on the body's thread, as part of the body,
        or here and now if it is over. What `fn` raises is logged on `boundedexec`."""
        if not self.done():
            made = Watch()
            made.callbacks.append(fn)
            watch = self._watched(made)
            if watch is made or holding(watch.lock, self._add_callback, watch, fn):
                return
        self._call(fn)

    def _add_callback(self, watch: Watch, fn: Callback) -> bool:
        if self.done():
            return False
        watch.callbacks.append(fn)
        return True

    # What executors call on a future of their own making.

    def set_running_or_notify_cancel(self) -> bool:
        """Mark a bare future as running. Returns False if it was cancelled."""
        if self._claim():
            self._state = RUNNING
            return True
        if self.cancelled():
            return False
        raise RuntimeError(f"future in unexpected state: {self._state}")

    def set_result(self, result: T) -> None:
        """Finish a bare future. Raises `InvalidStateError` if it is over."""
        holding(self._watched().lock, self._store, result, None)
        self._settle()

    def set_exception(self, exception: BaseException | None) -> None:
        """Finish a bare future. Raises `InvalidStateError` if it is over."""
        if exception is None:
            raise TypeError("exception must be an exception, not None")
        holding(self._watched().lock, self._store, None, exception)
        self._settle()

    def _store(self, result: T | None, exception: BaseException | None) -> None:
        if not (self._claim() or self._state is RUNNING):
            raise InvalidStateError(f"{self._state}: {self!r}")
        if exception is None:
            self._result = result
        else:
            self._failure = Failure(exception, "a bare future", not self._reported)
        self._state = ENDING

    def _get_snapshot(
        self,
    ) -> (
        tuple[Literal[False], Literal[False], None, None]
        | tuple[Literal[True], bool, T | None, BaseException | None]
    ):
        """What asyncio asks from Python 3.14 on: done, cancelled, result, exception."""
        if not self.done():
            return False, False, None, None
        if self._state is CANCELLED:
            return True, True, None, None
        exception = self.exception()
        return True, False, None if exception is not None else self._result, exception

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else self._state.lower()
        state = "running" if state == "ending" else state
        if state == "finished":
            failure = self._failure
            if failure is None:
                state += f" returned {type(self._result).__name__}"
            else:
                state += f" raised {type(failure.exception).__name__}"
        return f"<Future at {id(self):#x} state={state}>"

    def __reduce__(self) -> str:
        raise TypeError("a Future cannot be pickled: it stands for a body in this process")
