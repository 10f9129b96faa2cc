"""Coalescer: at most one run per key in flight, on futures' callbacks alone.

The runs of a key stand in a line. The first is in flight; the others are owed, and
each is linked from the one before. A submit walks along the line and joins the
first run that has not started; where there is none it adds one. When a run is over
the next one is handed to the executor.

No lock is held while anything of the user's is called, least of all the executor's
`submit`, which may run the callable, block, or be interrupted by a submit for the same
key. Each run has a dictionary `links` instead, in which `dict.setdefault`, one step in C,
settles once and for all:

* `"work"`: what the run executes, or that it is cancelled;
* `"next"`: the run that follows it, or that none can, for it is over. Whoever finds it
  over ends the line in its place, where that has not been done yet.

How a submit joins a run that is just being started or cancelled:

1. The submit stores its work in `latest` and then looks at `closing`; whoever
   closes the run sets `closing` and then looks at `latest`.
2. A submit that saw an open run is seen by whoever closes it: it has joined.
3. A submit that did not proposes its own work for `"work"`. Either that is what the
   run will execute, and it has joined; or it was too late, and walks on.
"""

# The rooms share what users must not touch.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import _thread
import concurrent.futures
import os
import weakref
from collections.abc import Callable, Hashable
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeAlias, TypeVar

from .futures import (
    CANCELLATION,
    PENDING,
    Failure,
    Future,
    current,
    holding,
    keep_unreported,
    name_of,
)
from .service import Service
from .waiting import hold, let_go

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = ["Coalescer"]

K = TypeVar("K", bound=Hashable)
P = ParamSpec("P")
T = TypeVar("T")


class _Call(NamedTuple):
    """A callable and what it is called with."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: Context


#: What one submit asked for, until it is taken out, which is a single step. Told from
#: others by identity, also once it is empty.
_Work: TypeAlias = list[_Call]


#: In `links`: the run was cancelled; it is over; nothing can follow it.
_CANCELLED, _GONE, _OVER = object(), object(), object()


class _Era:
    """What the futures of a Coalescer have instead of a service: who counts them as
    outstanding, and whether the process that would finish them is another one."""

    def __init__(self, service: Service | None) -> None:
        self.lost = False
        slots = None if service is None else service._slots
        self.slots = slots
        self.away: set[object] = set() if slots is None else slots.away

    def check_idle(self) -> None:
        if self.slots is not None:
            self.slots.check_idle()

    def executes(self, future: object) -> bool:
        return False

    def retry(self) -> None:
        if self.slots is not None:
            self.slots.retry()


class _Run(Generic[K]):
    """One execution of a key, from the first submit that asks for it to its end."""

    def __init__(self, coalescer: Coalescer[K], key: K, work: _Work) -> None:
        self.coalescer = coalescer
        self.key = key
        self.future: _RunFuture = _RunFuture(self, coalescer._era)
        #: The work of the submit that came last.
        self.latest: _Work | None = work
        #: Whether a second submit has joined.
        self.shared = False
        #: Whether `"work"` is being settled; a submit must then propose its own.
        self.closing = False
        self.links: dict[str, Any] = {}
        #: What the executor returned.
        self.inner: concurrent.futures.Future[Any] | None = None
        #: What follows it, where it was over before it was handed over.
        self.follower: _Run[K] | None = None
        #: The future of the body that executes it.
        self.executing: concurrent.futures.Future[Any] | None = None
        #: Its work, where the executor may call it more than once.
        self.again: _Call | None = None
        self.name = ""
        #: What it is the first of, or was.
        self.line: _Line[K] | None = None

    def join(self, work: _Work) -> bool:
        """Whether `work` belongs to this run now; False where it has started."""
        if "work" in self.links:
            return False
        self.shared = True
        self.latest = work
        return not self.closing or self.links.setdefault("work", work) is work

    def settle(self) -> _Call | None:
        """Close the run; what it executes, None if it was cancelled or settled before."""
        self.closing = True
        work = self.links.setdefault("work", self.latest)
        if not _is_work(work):
            return None
        # Nothing of it stays but its identity, by which its submit may be about to
        # learn that it has joined. Taken by one of two: the body, and a submit that was
        # interrupted when it may have begun.
        try:
            call = work.pop()
        except IndexError:
            return None
        self.latest = None
        self.name = name_of(call.fn)
        return call

    def is_executed(self) -> bool:
        """Whether a body on a Service has begun to execute it, and will conclude it. If
        not, none ever will."""
        if self.coalescer._by_callbacks or self.settle() is not None:
            return False
        return _is_work(self.links["work"])

    def hold(self, before: _Run[K] | None = None) -> None:
        """Say what its future waits for, until it is over: for what executes it, else for
        what the executor returned, else for the run `before` it.

        Of two holds at once one loses its entry, and whose that is may not be so any more.
        So whoever has held looks again: who came in between had stored what it holds by
        before that. What has lost its entry is let go by name, here or at the end.
        """
        held: concurrent.futures.Future[Any] | None = None
        other: concurrent.futures.Future[Any] | None
        while True:
            if self.executing is not None:
                other = self.executing
            elif self.inner is not None:
                other = self.inner
            else:
                other = None if before is None else before.future
            if other is None or other is held:
                return
            if held is not None:
                let_go(self.future, held)
            hold(self.future, other)
            held = other

    def was_cancelled(self) -> bool:
        return self.links.get("work") is _CANCELLED

    def __call__(self) -> Any:
        """The body of a run on a Service."""
        body = current.body
        if body is not None and body.future is not None:
            # Not always what `submit` returned: a subclass may wrap it.
            self.executing = body.future
            self.hold()
        if self.coalescer._by_callbacks:
            # May be called again, by a `submit` that wraps it in a retry.
            call = self.again = self.again or self.settle()
        else:
            call = self.settle()
            if call is None and not self.was_cancelled():
                return None  # Handed over once more, see `Coalescer._mend`.
        if body is not None and call is not None:
            body.fn = call.fn
        if self.coalescer._by_callbacks:
            try:
                return call and call.context.copy().run(call.fn, *call.args, **call.kwargs)
            finally:
                del self, body, call  # As below.
        outcome: Any = None
        failure: Failure | None = None
        if call is not None:
            fn, args, kwargs, context = call
            del call
            try:
                outcome = context.run(fn, *args, **kwargs)
            except BaseException as exception:
                trace = exception.__traceback__
                exception.__traceback__ = trace and trace.tb_next
                failure = Failure(exception, self.name, False)
                del trace
            del fn, args, kwargs, context
        following = self.coalescer._next(self)
        self.future._conclude(outcome, failure)
        self.go_on(following)
        # A traceback leads here through `f_back`: no way from here to the future.
        del self, body, outcome, failure, following
        return None

    def on_inner_done(self, inner: concurrent.futures.Future[Any]) -> None:
        """The executor is done with it. On a Service that is news only if it never ran."""
        if self.coalescer._ran_as_body(inner):
            return
        try:
            self._follow(inner)
        except BaseException:
            self._follow(inner)  # A Ctrl-C in a `cancel`.
            raise

    def _follow(self, inner: concurrent.futures.Future[Any]) -> None:
        following = self.coalescer._next(self)
        self.take_outcome(inner)
        if following is not None and _may_hold_a_lock(inner):
            following = self._hand_over_elsewhere(following)
        self.go_on(following)

    def _hand_over_elsewhere(self, following: _Run[K]) -> _Run[K] | None:
        """Hand over on a thread of its own; what is left to do here."""
        hand_over = partial(self.coalescer._hand_over, following, owed=True)
        if self.coalescer._service is not None:
            return following
        try:
            _thread.start_new_thread(hand_over, ())
        except RuntimeError:
            return following  # Here, then, and at one's own risk.
        return None

    def take_outcome(self, inner: concurrent.futures.Future[Any]) -> None:
        """Conclude with what became of `inner`."""
        if inner.cancelled():
            self.future._conclude(None, CANCELLATION)
            return
        exception = inner.exception()
        if exception is not None:
            self.future._conclude(None, Failure(exception, self.name, False))
        else:
            self.future._conclude(inner.result(), None)

    def go_on(self, following: _Run[K] | None) -> None:
        """Hand over what follows; only then call back, for a callback may wait for it."""
        if following is not None:
            if current.handing is self:
                self.follower = following
                return
            self.coalescer._hand_over(following, owed=True)
        self.future._call_back()


def _is_work(work: object) -> TypeIs[_Work]:
    return isinstance(work, list)


def _may_hold_a_lock(inner: concurrent.futures.Future[Any]) -> bool:
    """Whether the stdlib's pools may be calling back under the lock of their `submit`:
    they cancel and break under it."""
    return inner.cancelled() or isinstance(
        inner.exception(), concurrent.futures.BrokenExecutor
    )


class _RunFuture(Future[Any]):
    """The future that all who joined a run share."""

    __slots__ = ("_run",)

    def __init__(self, run: _Run[Any], era: _Era) -> None:
        # Without a claim: who starts or cancels it is settled in `run.links`.
        self._state = PENDING
        self._failure = None
        self._owner = era
        self._serial = 0
        self._run: _Run[Any] | None = run

    def cancel(self) -> bool:
        """Cancel the run if one submit alone asked for it and it has not started."""
        return self._revoke(False)

    def _revoke(self, even_shared: bool = True) -> bool:
        run = self._run
        if run is None or self.done() or (run.shared and not even_shared):
            return self.cancelled()
        # Closed first, then looked at again: a submit that joins from now on
        # proposes its own work, and one of us is too late.
        run.closing = True
        if run.shared and not even_shared:
            return False
        inner = run.inner
        try:
            work = run.links.setdefault("work", _CANCELLED)
            if work is not _CANCELLED:
                # Started; but another executor to which it was handed may still be able to.
                taken = _is_work(work) and not work
                return taken and inner is not None and inner.cancel()
            self._withdraw(run)
        except BaseException:
            # A Ctrl-C: nobody else would finish it.
            if run.was_cancelled():
                self._withdraw(run)
                inner = run.inner
                if inner is not None and inner.done():
                    run.on_inner_done(inner)  # It may have been interrupted, too.
            raise
        return True

    def _withdraw(self, run: _Run[Any]) -> None:
        """Finish as cancelled; for whoever has cancelled `run`. Harmless when repeated."""
        run.latest = None
        owner = self._owner
        assert owner is not None
        owner.away.add(self)
        self._conclude(None, CANCELLATION)
        self._call_back()
        inner = run.inner  # Whoever is just handing it over looks after us.
        if inner is not None:
            inner.cancel()
        owner.away.discard(self)
        owner.check_idle()

    def running(self) -> bool:
        run = self._run
        inner = None if run is None else run.inner
        return not self.done() and inner is not None and inner.running()

    def _why_late(self, body: object) -> Any:
        return () if self.running() else super()._why_late(body)

    def _conclude(self, result: Any, failure: Failure | None) -> None:
        """Store the outcome and tell the waiters, unless it was cancelled before."""
        run = self._run
        if run is None or (run.was_cancelled() and failure is not CANCELLATION):
            if failure is not None:
                failure.asked = True
            return
        self._result = result
        self._failure = failure
        self._finish()
        # Over, and only then let go, see `hold`. By name, see `_Run.hold`.
        let_go(self, run.inner, run.executing)
        # Who keeps the future keeps nothing of the run, and the run not the future.
        self._run = None

    def _call_back(self) -> None:
        if self._watch is not None and self.done():
            self._settle(BaseException)


class _Line(Generic[K]):
    """The runs of a key in flight, by the first."""

    __slots__ = ("key", "hash", "first")

    def __init__(self, run: _Run[K]) -> None:
        self.key = run.key
        self.hash = hash(run.key)
        #: None once it is over.
        self.first: _Run[K] | None = run


class _Group(Generic[K]):
    """The lines of the keys that have one hash; nearly always there is one."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        #: Replaced, never changed; None once the group is in use no more.
        self.lines: tuple[_Line[K], ...] | None = ()

    def replace(self, before: tuple[_Line[K], ...], after: tuple[_Line[K], ...]) -> bool:
        """Have `after` for `before`; False where it is that no more."""
        if self.lines is before:
            # Nothing is called in between, and so no signal handler either.
            self.lines = after
            return True
        return False


class _Lines(Generic[K]):
    """The lines of all keys in flight.

    Not a dictionary by keys. Where two keys have the same hash that calls their `__eq__`;
    meanwhile other threads go on, and signal handlers come; and a key that they have
    entered may then be entered a second time. Here keys are compared while no lock is
    held, and a line is added to those that its key was compared with, or not at all.
    """

    def __init__(self) -> None:
        self._groups: dict[int, _Group[K]] = {}
        # Reentrant, as a Watch's.
        self._lock = _thread.RLock()

    def find(self, key: object) -> _Run[K] | None:
        """The first run of a key, None where there is no line."""
        group = self._groups.get(hash(key))
        return None if group is None else _found(group.lines or (), key)

    def enter(self, run: _Run[K]) -> _Run[K]:
        """The first run of its key, which is `run` itself where there was no line."""
        line = run.line = _Line(run)
        while True:
            group = self._groups.get(line.hash)
            if group is None:
                group = self._groups.setdefault(line.hash, _Group())
            lines = group.lines
            if lines is not None:
                first = _found(lines, line.key)
                if first is not None:
                    run.line = None
                    return first
                if holding(self._lock, group.replace, lines, (*lines, line)):
                    return run

    def leave(self, line: _Line[K]) -> None:
        """End a line. Harmless when repeated."""
        holding(self._lock, self._leave, line)

    def _leave(self, line: _Line[K]) -> None:
        group = self._groups.get(line.hash)
        while group is not None and group.lines:
            lines = group.lines
            others = tuple(other for other in lines if other is not line)
            if group.replace(lines, others):
                # Nothing is called from here on, as above. In this order, for who finds
                # it in use no more looks for another.
                if group.lines == ():
                    del self._groups[line.hash]
                    group.lines = None
                break
        line.first = None

    def __len__(self) -> int:
        return sum(len(group.lines or ()) for group in list(self._groups.values()))


def _found(lines: tuple[_Line[K], ...], key: object) -> _Run[K] | None:
    for line in lines:
        if line.key is key or line.key == key:
            return line.first
    return None


class Coalescer(Generic[K]):
    """At most one run per key in flight; what arrives meanwhile becomes one re-run.

    Args:
        executor: any `concurrent.futures.Executor`. On a `Service` a run counts as
            started when its body does, and an owed re-run is outstanding; on others
            when it is handed over. Another executor is handed the caller's callable.

    `len(coalescer)` is the number of keys in flight, `key in coalescer` asks for one.
    Raises `TypeError` for an executor without `submit`. The idea is that of the Go
    package `task`; see also the work queue of Kubernetes' client-go.
    """

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        if not callable(getattr(executor, "submit", None)):
            raise TypeError(f"a Coalescer needs an executor with submit, not {executor!r}")
        self._executor = executor
        self._service = executor if isinstance(executor, Service) else None
        #: Whether what the executor returns decides the outcome of a run; else the run
        #: does, in its body, which is sooner.
        self._by_callbacks = type(executor).submit is not Service.submit
        self._lines: _Lines[K] = _Lines()
        self._era = _Era(self._service)
        _register(self)

    def submit(
        self, key: K, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Have `fn(*args, **kwargs)` run for `key`, and return the future of a run that
        starts after this call.

        Joins the key's run if it has not started, else its re-run; the callable,
        arguments and context that came last are those that run. Never blocks unless
        the executor's `submit` does, and may be called from anywhere. Raises
        `TypeError` if `fn` is not callable or `key` not hashable, and what the
        executor raises; on a Service `RuntimeError` after its shutdown.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        service = self._service
        if service is not None:
            slots = service._slots
            if slots.refusal is not None and slots.refuses():
                raise slots.refusal()
        work = [_Call(fn, args, kwargs, copy_context())]
        # The common case, in which nothing need be made.
        line: Any = self._lines.find(key)
        while line is not None and line is not _OVER:
            if line.join(work):
                joined: Future[T] = line.future
                return joined
            line = line.links.get("next")
        run = _Run(self, key, work)
        try:
            # Outstanding before anybody can join it.
            self._era.away.add(run.future)
            entered, first = self._enter(run, work)
            if first:
                self._hand_over(run, owed=False)
            elif entered is not run:
                self._queued_or_gone(run)
        except BaseException:
            self._mend(run)
            raise
        future: Future[T] = entered.future
        return future

    def _mend(self, run: _Run[K]) -> None:
        """Finish what a Ctrl-C in `submit` left undone.

        Where the executor may have been given the run already, it is given it again:
        only the first call of it does anything.
        """
        line: Any = self._lines.find(run.key)
        if line is run and run.inner is None and not run.future.done():
            self._hand_over(run, owed=True)
            return
        before: _Run[K] | None = None
        while line is not None and line is not _OVER and line is not run:
            before, line = line, line.links.get("next")
        if line is run:
            run.hold(before)
        if line is not run or run.inner is not None:
            self._queued_or_gone(run)

    def _enter(self, run: _Run[K], work: _Work) -> tuple[_Run[K], bool]:
        """Join the first run of the line that has not started, else end it with `run`.

        Returns the run joined or entered, and whether it is the one to hand over.
        """
        before: _Run[K] | None = None
        line: _Run[K] = self._lines.enter(run)
        while line is not run:
            if line.join(work):
                return line, False
            following: Any = line.links.setdefault("next", run)
            if following is run:
                run.hold(line)
                return run, False
            if following is _OVER:
                # Whoever is over leaves, but may not have come so far.
                assert line.line is not None
                self._lines.leave(line.line)
                before, line = None, self._lines.enter(run)
                continue
            if before is not None and line.was_cancelled():
                # Else submits that are cancelled, one after the other, would make
                # the line of a long run longer and longer.
                before.links["next"] = following
            else:
                before = line
            line = following
        return run, True

    def _next(self, run: _Run[K]) -> _Run[K] | None:
        """Take a run that is over out of the line; return the one to hand over.

        As long as a run is the first of its line, nobody else changes that.
        """
        while not self._era.lost:
            run.closing = True
            run.links.setdefault("work", _GONE)
            run.latest = run.again = None
            following: Any = run.links.setdefault("next", _OVER)
            line = run.line
            if line is not None and line.first is run:  # Else it was interrupted in here.
                if following is _OVER:
                    self._lines.leave(line)
                else:
                    following.line = line
                    line.first = following
            if following is _OVER:
                return None
            if not following.was_cancelled():
                found: _Run[K] = following
                return found
            run = following
        return None

    def _hand_over(self, run: _Run[K], *, owed: bool) -> None:
        """Give a run to the executor. Raises what that raises, unless it was owed.

        A loop, for an executor may run each at once, and each may be followed by the
        next: a run that is over before this thread has handed it over leaves its
        follower in `follower`, and is called back when that is handed over.
        """
        error: BaseException | None = None
        over: _Run[K] | None = None
        before = current.handing
        try:
            while True:
                current.handing = run
                try:
                    inner = self._give(run, owed)
                except BaseException as exception:
                    # A Ctrl-C may have come when it was accepted, and even begun:
                    # 1. the body is over, and looks whether its run is first of the line;
                    # 2. so does this thread, and takes it out;
                    # 3. a submit enters the next; 4. the body takes that out.
                    if not run.is_executed():
                        following = self._next(run)
                        if self._era.slots is not None and self._era.slots.cancelling:
                            failure = CANCELLATION
                        else:
                            failure = Failure(exception, run.name, not owed)
                        run.future._conclude(None, failure)
                        run.go_on(following)
                    if not owed:
                        error = exception
                else:
                    if inner is not None:
                        inner.add_done_callback(run.on_inner_done)
                    elif not run.is_executed():
                        run.go_on(self._next(run))  # Cancelled before it was its turn.
                self._queued_or_gone(run)
                if over is not None:
                    over.future._call_back()
                over, follower = run, run.follower
                if follower is None:
                    break
                run.follower = None
                run, owed = follower, True
        finally:
            current.handing = before
        if error is not None:
            try:
                raise error
            finally:
                del error

    def _give(self, run: _Run[K], owed: bool) -> concurrent.futures.Future[Any] | None:
        """Have the executor accept the run; None if it was cancelled."""
        # The context of a submit is where the executor finds what it passes on. A
        # copy, for the body may be in it before the executor returns.
        if self._service is None:
            call = run.settle()
            if call is None:
                return None
            submit = self._executor.submit
            inner = call.context.copy().run(submit, call.fn, *call.args, **call.kwargs)
        else:
            call = next(iter(run.latest or ()), None)
            if run.was_cancelled() or call is None:
                return None
            slots = self._service._slots
            if owed and slots.cancelling:
                raise concurrent.futures.CancelledError
            before, current.admitted = current.admitted, slots if owed else None
            try:
                inner = call.context.copy().run(self._service.submit, run)
            finally:
                current.admitted = before
            keep_unreported(inner)
        run.inner = inner
        run.hold()
        if run.was_cancelled():
            inner.cancel()
        return inner

    def _queued_or_gone(self, run: _Run[K]) -> None:
        """It is outstanding in some other way, or no more."""
        self._era.away.discard(run.future)
        self._era.check_idle()
        if run.future.done() or run.inner is None:
            let_go(run.future)

    def _ran_as_body(self, inner: concurrent.futures.Future[Any]) -> bool:
        """Whether the run has resolved its future by itself."""
        return not self._by_callbacks and not inner.cancelled() and inner.exception() is None

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, key: object) -> bool:
        return self._lines.find(key) is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} keys={len(self)} of {self._executor!r}>"

    def _lose(self) -> None:
        """In a forked child, what was in flight is not."""
        self._era.lost = True
        self._lines = _Lines()
        self._era = _Era(self._service)


# Every Coalescer there is, for fork; in single steps, as in `slots`.
_every: dict[int, weakref.ref[Coalescer[Any]]] = {}


def _register(coalescer: Coalescer[Any]) -> None:
    key = id(coalescer)
    # In C throughout (the reference is `pop`'s default), for a Ctrl-C that lands in a
    # weakref's callback is swallowed.
    _every[key] = weakref.ref(coalescer, partial(_every.pop, key))


def _lose_all() -> None:
    for reference in list(_every.values()):
        coalescer = reference()
        if coalescer is not None:
            coalescer._lose()


if hasattr(os, "register_at_fork"):
    # After the one in `slots`, so each finds the new slots of its service.
    os.register_at_fork(after_in_child=_lose_all)
