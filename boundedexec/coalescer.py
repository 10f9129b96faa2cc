"""Coalescer: at most one run per key in flight; what arrives meanwhile becomes one re-run.

A key in flight has one entry in the table, its current run, and that has at most one
`following`: the re-run that is owed. On a Service a run's future is the submission itself,
so a run costs little more than one. On another executor, or a subclass of Service with a
`submit` of its own, the executor is handed the callable, and the run's future ends when
what the executor returned does.

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
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from ._core.graph import node_of
from ._core.locking import headroom
from ._core.outstanding import check_idle
from ._core.pool import admitting, check_accepts, publish
from ._core.reporting import Failure
from ._core.runs import Call, Run, Runs
from ._core.slots import look
from ._core.state import Slots
from ._core.submission import (
    CANCELLATION,
    Owner,
    Submission,
    clock,
)
from ._core.threads import PerThread
from .service import Service, slots_of

__all__ = ["Coalescer"]

K = TypeVar("K", bound=Hashable)
P = ParamSpec("P")
T = TypeVar("T")

class _Body:
    """What a subclass of Service with a `submit` of its own is handed: it begins the run."""

    def __init__(self, run: Run, coalescer: Coalescer[Any]) -> None:
        self._run = run
        self._coalescer = coalescer
        #: Kept, for a `submit` that wraps this may call it again.
        self._call: Call | None = None
        #: What a person calls it by, see `name_of`.
        self.func: object = self

    def __call__(self) -> Any:
        if self._call is None:
            self._call = self._coalescer.locked(self._run.begin)
        if self._call is None:
            return None  # Cancelled.
        self.func, args, kwargs, context = self._call
        enter = operator.call if context is None else context.copy().run
        return enter(self._call[0], *args, **kwargs)


class Coalescer(Runs, Generic[K]):
    """At most one run per key in flight; what arrives meanwhile becomes one re-run.

    Args:
        executor: any `concurrent.futures.Executor`. On a `Service` a run counts as
            started when its body does, and an owed re-run is outstanding; on others
            when it is handed over. Another executor is handed the caller's callable.

    `len(coalescer)` is the number of keys in flight, `key in coalescer` asks for one.
    Raises `TypeError` for an executor without `submit`. The idea is that of the Go
    package `task`; see also client-go's work queue, and Go's `singleflight` for `join`.
    """

    def __init__(self, executor: concurrent.futures.Executor) -> None:
        if not callable(getattr(executor, "submit", None)):
            raise TypeError(f"a Coalescer needs an executor with submit, not {executor!r}")
        self._executor = executor
        self._service = executor if isinstance(executor, Service) else None
        self._direct = getattr(type(executor), "submit", None) is Service.submit
        super().__init__(self._new_owner())
        _register(self)

    def _slots(self) -> Slots | None:
        return None if self._service is None else slots_of(self._service)

    def _new_owner(self) -> Owner:
        slots = self._slots()
        return slots if slots is not None and self._direct else Owner()

    def submit(
        self, key: K, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Have `fn(*args, **kwargs)` run for `key`, and return the future of a run that
        starts after this call.

        Joins the key's run if it has not started, else its re-run; the callable,
        arguments and context that came last are those that run, and all who join get
        that run's result, whatever their own callables return. Never blocks unless the
        executor's `submit` does, and may be called from anywhere. Raises `TypeError` if
        `fn` is not callable or `key` not hashable, and what the executor raises; on a
        Service `RuntimeError` after its shutdown.
        """
        return self._submit(key, fn, args, kwargs, False)

    def join(
        self, key: K, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """As `submit`, but content with what is in flight: the future of the key's run,
        queued or executing, where there is one. The result may be older than this call.
        For caches that fill themselves.
        """
        return self._submit(key, fn, args, kwargs, True)

    def _submit(
        self, key: K, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], content: bool
    ) -> concurrent.futures.Future[Any]:
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        headroom(8)
        slots = self._slots()
        if slots is not None and slots.refusal is not None:
            check_accepts(slots)
        plain = slots is not None and not slots.propagate
        call = fn, args, kwargs, None if plain else copy_context()
        number = hash(key)
        current = self.table.find(number, key)
        if current is not None:
            joined = self.locked(self.join_current, current, call, content)
            if joined is not None:
                return joined
        run = Run(self, key, number, call)
        if slots is None:
            return self._enter_and_hand_over(run, content)
        try:
            # explore: run-in-transit
            slots.in_transit.add(run)  # Outstanding before another can join it.
            joined = self._enter_and_hand_over(run, content)
        finally:
            slots.in_transit.discard(run)
            if slots.observers:
                check_idle(slots)
        return joined

    def _enter_and_hand_over(self, run: Run, content: bool) -> Run:
        try:
            joined = self.locked(self.enter, run, content)
            if joined is run and not run.owed:
                if self._direct:
                    self._queue(run, owed=False)
                else:
                    self.hand_over(run, owed=False)
        except BaseException as error:
            if self._direct and isinstance(error, Exception):
                self._not_accepted(run, error, owed=False)
            else:
                self._recover(run)
            raise
        if joined is not run:
            run.claim()
            run.let_go()  # It refers to itself.
        return joined

    def _recover(self, run: Run) -> None:
        """A submit raises, perhaps for a Ctrl-C: end or hand over a run that is current and
        that nobody else would."""
        if run.begun or run.over or run.owed or not self.locked(self.table.has, run):
            return
        if not run.shared and run.cancel():
            return
        slots = self._slots()
        if slots is None or not self._direct or run not in slots.queue.copy():
            self.hand_over(run, owed=True)  # Others have joined it.
        else:
            look(slots)

    def hand_over(self, run: Run, *, owed: bool) -> None:
        """Give a run to the executor. Raises what that raises, unless it was owed.

        A loop, for an executor may run each at once, and each may be followed by the next.
        A run that ends before this thread has handed it over leaves what follows it in
        `deferred`, and is called back when that is handed over: a callback may wait for it.
        """
        if self._direct:
            self._hand_over_one(run, owed)
            return
        over: Run | None = None
        before = _handing_over.get()
        try:
            while True:
                _handing_over.set(run)
                self._hand_over_one(run, owed)
                if over is not None:
                    over.call_back()
                if run.deferred is None:
                    break
                over, run, owed = run, run.deferred, True
        finally:
            _handing_over.set(before)

    def _hand_over_one(self, run: Run, owed: bool) -> None:
        run.owed = False
        run.predecessor = None
        slots = self._slots()
        try:
            if owed and slots is not None and slots.cancelling:
                run.cancel_even_if_shared()
            elif self._direct:
                self._queue(run, owed)
            else:
                self._give(run, owed)
        except BaseException as error:
            if self._direct and not isinstance(error, Exception):
                raise  # A Ctrl-C; the run may be queued, see `_recover`.
            self._not_accepted(run, error, owed)
            if not owed:
                raise

    def _not_accepted(self, run: Run, error: BaseException, owed: bool) -> None:
        following = self.leave_run(run)
        run.decide(None, Failure(error, "a run", not owed and not run.shared))
        if following is not None:
            self.hand_over(following, owed=True)
        run.call_back()

    def _queue(self, run: Run, owed: bool) -> None:
        """Have the run itself stand in the service's queue."""
        if run.over:
            return  # Cancelled before it was its turn.
        assert self._service is not None
        slots = slots_of(self._service)
        if owed:
            slots.owed.pop(run, None)
            asked, run.serial = run.serial, clock()
            if slots.recorder is not None:
                slots.recorder.rerun(run, asked)
        if slots.checked:
            if not owed:
                check_accepts(slots)
            if slots.recorder is not None:
                run.value = get_ident()
        publish(slots, run, owed)
        if run.watch is not None:
            _ring_waiters(run)  # explore: queued-rings

    def _give(self, run: Run, owed: bool) -> None:
        """Have the executor accept the callable."""
        call = run.call if self._service is not None else self.locked(run.begin)
        if call is None:
            return
        fn, args, kwargs, context = call
        before = admitting.get()
        admitting.set(self._slots() if owed else before)
        try:
            # The context of a submit is where the executor finds what it passes on. A copy,
            # for the body may be in it before the executor returns.
            enter = operator.call if context is None else context.copy().run
            if self._service is not None:
                inner = enter(self._executor.submit, _Body(run, self))
            else:
                inner = enter(self._executor.submit, fn, *args, **kwargs)
        finally:
            admitting.set(before)
        if isinstance(inner, Submission):
            inner.silence()
            inner.successor = run
        run.predecessor = inner
        _ring_waiters(run)
        inner.add_done_callback(partial(self._on_done, run))

    def _on_done(self, run: Run, inner: concurrent.futures.Future[Any]) -> None:
        """The executor is done with it."""
        following = self.leave_run(run)
        self._decide_as(run, inner)
        if following is not None:
            if _handing_over.get() is run:
                run.deferred = following
                return
            self._hand_over_after(inner, following)
        run.call_back()

    def _decide_as(self, run: Run, inner: concurrent.futures.Future[Any]) -> None:
        if inner.cancelled():
            run.decide(None, CANCELLATION)
            return
        exception = inner.exception()
        if exception is None:
            run.decide(inner.result(), None)
        else:
            run.decide(None, Failure(exception, "a run", False))

    def _hand_over_after(self, inner: concurrent.futures.Future[Any], following: Run) -> None:
        if self._service is None and _may_hold_a_lock(inner):
            try:
                hand_over = partial(self.hand_over, following, owed=True)
                threading.Thread(target=hand_over, daemon=True).start()
                return
            except RuntimeError:
                pass  # Here, then, and at one's own risk.
        self.hand_over(following, owed=True)

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, key: object) -> bool:
        return self.locked(self.table.find, hash(key), key) is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} keys={len(self)} of {self._executor!r}>"

    def lose_all(self) -> None:
        """In a forked child, what was in flight is not."""
        self.owner.lost = True
        self.lose(self._new_owner())


#: The run that this thread is handing over.
_handing_over = PerThread()


def _ring_waiters(run: Run) -> None:
    """Bodies that wait for a run that is queued by now may have a slot to lend."""
    watch = run.watch
    for waiter in [] if watch is None else list(watch.waiters):
        node = node_of(waiter)
        if node is not None:
            node.changed = True
            node.ring()


def _may_hold_a_lock(inner: concurrent.futures.Future[Any]) -> bool:
    """Whether the stdlib's pools may be calling back under the lock of their `submit`:
    they cancel and break under it."""
    return inner.cancelled() or isinstance(
        inner.exception(), concurrent.futures.BrokenExecutor
    )


# Every Coalescer there is, for fork; in single steps, as in `_core.pool`.
_every: dict[int, weakref.ref[Coalescer[Any]]] = {}


def _register(coalescer: Coalescer[Any]) -> None:
    key = id(coalescer)
    _every[key] = weakref.ref(coalescer, partial(_every.pop, key))


def _lose_all() -> None:
    for reference in list(_every.values()):
        coalescer = reference()
        if coalescer is not None:
            coalescer.lose_all()


if hasattr(os, "register_at_fork"):
    # After the one in `_core.pool`, so each finds the new slots of its service.
    os.register_at_fork(after_in_child=_lose_all)
