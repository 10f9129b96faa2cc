"""Coalescer: at most one run per key in flight; what arrives meanwhile becomes one re-run.

On a Service a run's future is the submission itself, so a run costs little more than one.
On another executor, or a Service whose `submit` is overridden or wrapped, the executor is
handed the callable, and the run's future ends when what the executor returned did.

The executor is never called under a lock.
"""

from __future__ import annotations

import concurrent.futures
import operator
import os
import threading
import weakref
from _thread import get_ident
from collections.abc import Callable, Hashable
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from ._core.graph import ring_waiters
from ._core.locking import headroom
from ._core.outstanding import leave_transit
from ._core.pool import admitting, check_accepts, start_queued
from ._core.recording import SILENT
from ._core.reporting import Failure
from ._core.runs import PARTS, Call, Run, Runs, parts_of
from ._core.slots import look
from ._core.submission import CANCELLATION, AnyFuture, Owner, Submission, ended_under_lock
from .checking import check_executor
from .service import Service, slots_of, submit_wrapped, submits_plainly

__all__ = ["Coalescer"]

K = TypeVar("K", bound=Hashable)
P = ParamSpec("P")
T = TypeVar("T")


class _Body:
    """What a subclass of Service with a `submit` of its own is handed: it begins the run."""

    #: What a person calls it by, see `name_of`.
    func: Callable[..., Any]
    #: Kept, for a `submit` that wraps this may call it again.
    _call: Call | None = None

    def __init__(self, begin: Callable[[], Call | None]) -> None:
        self._begin = begin

    def __call__(self) -> Any:
        self._call = self._call or self._begin()
        if self._call is None:
            return None  # Cancelled.
        self.func, args, kwargs, context = self._call
        return _enter(context)(self.func, *args, **(kwargs or {}))


def _enter(context: Context | None) -> Callable[..., Any]:
    """What calls in a copy of `context`; a copy, for another thread may be in it."""
    return operator.call if context is None else context.copy().run


class Coalescer(Generic[K]):
    """At most one run per key in flight; what arrives meanwhile becomes one re-run.

    Args:
        executor: any `concurrent.futures.Executor`. On a `Service` a run counts as
            started when its body does, and an owed re-run is outstanding; on others
            when it is handed over. Another executor is handed the caller's callable.

    `len(coalescer)` is the number of keys in flight, `key in coalescer` asks for one; neither
    blocks. Raises `TypeError` for an executor without `submit`. The idea is that of the Go
    package `task`; see also client-go's work queue, and Go's `singleflight` for `join`.
    """

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        check_executor("a Coalescer", executor)
        self._executor = executor
        self._attach()
        _every[id(self)] = weakref.WeakMethod(self._lose, partial(_every.pop, id(self)))

    def _attach(self) -> None:
        executor = self._executor
        service = executor if isinstance(executor, Service) else None
        self._slots = None if service is None else slots_of(service)
        #: Whether runs stand in the service's queue themselves.
        self._direct = service is not None and submits_plainly(service)
        #: Whose `submit` may come to be wrapped: then that is to be given the callables.
        wrappable = self._slots is not None and self._slots.wrappable
        self._pool = service if self._direct and wrappable else None
        if self._slots is None:
            self._parts = parts_of(Owner(), id)
        elif self._direct:
            self._parts = parts_of(self._slots, self._slots.queue.append)
        else:
            self._parts = parts_of(Owner(), self._slots.in_transit.add)

    def _lose(self) -> None:
        """In a forked child what was in flight is not, and a service has new slots."""
        self._parts[0].owner.lost = True
        self._attach()

    def submit(
        self, key: K, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Have `fn(*args, **kwargs)` run for `key`, and return the future of a run that
        starts after this call.

        Joins the key's run if it has not started, else its re-run; the callable,
        arguments and context that came last are those that run, and all who join get
        that run's result, whatever their own callables return. Never blocks unless the
        executor's `submit` does, and may be called from wherever that may be: on a Service,
        from anywhere. Raises `TypeError` if `fn` is not callable or `key` not hashable, and
        what the executor's `submit` raises: on a Service `RuntimeError` after its shutdown,
        and `QueueFull` where `max_queued` leaves no room for a new run.
        """
        return self._submit(key, fn, args, kwargs, False)

    def join(
        self, key: K, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """As `submit`, but content with what is in flight: the future of the key's run,
        queued or executing, where there is one, and then `fn` is not called. The result may
        be older than this call. For caches that fill themselves.
        """
        return self._submit(key, fn, args, kwargs, True)

    def _submit(
        self,
        key: K,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        content: bool,
        wrapped: bool = False,
    ) -> AnyFuture:
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        slots, pool = self._slots, self._pool
        if pool is not None and not wrapped and not submits_plainly(pool):
            accept = partial(self._accept, key, content)
            return submit_wrapped("submit_through", pool, accept, fn, args, kwargs)
        if slots is not None and slots.refusal is not None:
            check_accepts(slots)
        context = copy_context() if slots is None or slots.propagate else None
        if self._direct:
            context = context or None  # As `Service.submit`: a worker's own, then, made anew.
        call = fn, args, kwargs or None, context
        number = hash(key)
        runs = self._parts[number & PARTS]
        current = runs.find(number, key) if number in runs.table else None
        if current is not None:
            joined = runs.join(current, call, content)
            if joined is not None:
                return joined
        elif slots is not None and slots.checked and self._direct:
            check_accepts(slots)
        run = Run(runs, key, number, call)
        queue = self._queue if self._direct else self._hand_over
        return queue(runs, run, content)

    def _accept(
        self, key: K, content: bool, fn: Any, /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        """What a wrapper has been given a submit of this, and hands on."""
        return self._submit(key, fn, args, kwargs, content, wrapped=True)

    def _queue(self, runs: Runs, run: Run, content: bool) -> Run:
        """Have the run itself stand in the service's queue, unless it joins or follows one."""
        slots = self._slots
        assert slots is not None
        if slots.free and slots.quiet:
            headroom(8)  # A worker is to be woken.
        if slots.recorder is not SILENT:
            run.value = get_ident()
        try:
            joined = runs.enter(run, content)
            if joined is not None:
                return joined
            if slots.refusal is not None or (slots.free and slots.quiet):
                start_queued(slots, run)
        except RuntimeError as error:
            run.decide(None, Failure(error, "a run", not run.shared))
            run.call_back()
            raise
        except BaseException:  # A Ctrl-C.
            run.cancel()
            look(slots)  # Where others have joined it.
            raise
        return run

    # On another executor.

    def _hand_over(self, runs: Runs, run: Run, content: bool) -> Run:
        """Have the executor run it, unless it joins or follows one."""
        headroom()
        slots, over = self._slots, False
        try:
            joined = runs.enter(run, content)
            if joined is None:
                over = self._give(run, owed=False)
        except BaseException as error:
            run.decide(None, Failure(error, "a run", not run.shared))
            over = True
            raise
        finally:
            try:
                if slots is not None:
                    leave_transit(slots, run)
            finally:
                if slots is not None:
                    slots.in_transit.discard(run)  # A Ctrl-C came first: nobody else would.
                if over:
                    self._follow(run)
        return run if joined is None else joined

    def _give(self, run: Run, *, owed: bool) -> bool:
        """Have the executor accept the callable; whether the run is over by now."""
        slots = self._slots
        if owed and slots is not None and slots.cancelling:
            run.cancel_even_if_shared()
        runs = self._parts[run.hash & PARTS]
        call = run.call if slots is not None else runs.begin(run)
        if call is None:
            return False  # Cancelled.
        fn, args, kwargs, context = call
        if slots is not None:
            fn, args, kwargs = _Body(partial(runs.begin, run)), (), None
        before = admitting.get()
        admitting.set(slots if owed else before)
        try:
            # The context of a submit is where the executor finds what it passes on.
            inner: AnyFuture = _enter(context)(self._executor.submit, fn, *args, **(kwargs or {}))
        finally:
            admitting.set(before)
        if isinstance(inner, Submission):
            inner.silence()
            if not isinstance(inner, Run):
                inner.successor = run
        run.predecessor = inner
        ring_waiters(run)
        if inner.done():  # Looked for here, so that those who run each at once do not nest.
            _decide_as(run, inner)
            return True
        inner.add_done_callback(partial(self._on_done, run))
        return False

    def _on_done(self, run: Run, inner: AnyFuture) -> None:
        """The executor is done with it."""
        _decide_as(run, inner)
        if run.successor is not None and self._slots is None and ended_under_lock(inner):
            try:
                threading.Thread(target=self._follow, args=(run,), daemon=True).start()
                run.call_back()
                return
            except RuntimeError:
                pass  # Here, then, and at one's own risk.
        self._follow(run)

    def _follow(self, run: Run) -> None:
        """Hand over what follows a run that is over, then call back: a callback may wait for
        that. A loop, for an executor may run each at once."""
        following: Any
        while True:
            following, run.successor = run.successor, None
            over = False
            if following is not None:
                try:
                    over = self._give(following, owed=True)
                except BaseException as error:
                    following.decide(None, Failure(error, "a run", False))
                    over = True
            run.call_back()
            if following is None or not over:
                return
            run = following

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __contains__(self, key: object) -> bool:
        number = hash(key)
        return self._parts[number & PARTS].find(number, key) is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} keys={len(self)} of {self._executor!r}>"


def _decide_as(run: Run, inner: AnyFuture) -> None:
    if inner.cancelled():
        run.decide(None, CANCELLATION)
    elif (exception := inner.exception()) is not None:
        run.decide(None, Failure(exception, "a run", False))
    else:
        run.decide(inner.result(), None)


# What every Coalescer does in a forked child; in single steps, as in `_core.pool`.
_every: dict[int, weakref.ref[Callable[[], None]]] = {}


def _lose_all() -> None:
    for reference in list(_every.values()):
        lose = reference()
        if lose is not None:
            lose()


if hasattr(os, "register_at_fork"):
    # After the one in `_core.pool`, so each finds the new slots of its service.
    os.register_at_fork(after_in_child=_lose_all)
