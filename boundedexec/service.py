"""Service: the executor's surface, and nothing below it."""

# The rooms share what users must not touch.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import concurrent.futures
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .futures import PENDING, Future, current, keep_unreported, serials
from .slots import Slots
from .waiting import Body

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Service"]

P = ParamSpec("P")
T = TypeVar("T")

_new_future: Callable[[type[Future[Any]]], Future[Any]] = object.__new__


class Service(concurrent.futures.Executor):
    """An executor for blocking work: bounded in what runs, never in what is submitted.

    Every submission that runs has a thread of its own; a semaphore of `max_workers`
    slots decides when a submission may start, in the order of submission. A slot can
    be given away by a body that waits (`yield_slot`), and a body that waits for a
    queued submission of its own service lends it its slot, so nested work never
    hangs.

    Args:
        max_workers: how many bodies may hold a slot at once. None: four times the
            CPUs that this process may use. Zero or less: no bound.
        thread_name_prefix: threads are named `<prefix>_<n>`.
        initializer: called with `initargs` once in every new thread. If it raises,
            the service is broken: `BrokenThreadPool` from what is queued and from
            `submit`.
        idle_timeout: seconds after which a thread without work ends. None: never
            before shutdown.
        lending: whether a body that waits lends its slot.
        daemon: at interpreter exit, cancel what is queued and abandon what runs,
            instead of finishing it.

    Raises `TypeError` or `ValueError` for arguments that are none of these.

    The names come from flux-local's `TaskService` and the Go package `task`.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        idle_timeout: float | None = 10.0,
        lending: bool = True,
        daemon: bool = False,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable or None, not {initializer!r}")
        slots = Slots(
            _checked_bound(max_workers),
            prefix=thread_name_prefix,
            idle_timeout=_checked_timeout(idle_timeout),
            initializer=initializer and partial(initializer, *initargs),
            lending=lending,
            daemon=daemon,
        )
        self._attach(slots)

    def _attach(self, slots: Slots) -> None:
        """Have `slots` retire when this is collected, and replaced after a fork."""
        self._slots = slots
        slots.owner = weakref.ref(self, slots.retire)

    @classmethod
    def bounded(cls, max_workers: int, /, *args: Any, **kwargs: Any) -> Self:
        """A service of at most `max_workers` bodies at once; the rest as the class."""
        return cls(checked_positive(max_workers), *args, **kwargs)

    @classmethod
    def unbounded(cls, *args: Any, **kwargs: Any) -> Self:
        """A service without a bound: every submission starts at once."""
        return cls(0, *args, **kwargs)

    @property
    def max_workers(self) -> int | None:
        """How many bodies may hold a slot at once; None when there is no bound."""
        return self._slots.max_workers

    # Typed as the stdlib's, so that code which passes lists of its futures around, or
    # overrides `submit`, goes on type-checking.
    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Queue `fn(*args, **kwargs)` and return its future at once.

        Never blocks, and may be called from anywhere: a body, a done-callback, a
        signal handler, a `__del__`. The body runs in a copy of the caller's context.
        Raises `RuntimeError` after shutdown and where no thread can be started though
        nothing runs, `TypeError` if `fn` is not callable. Costs one or two
        microseconds.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        slots = self._slots
        if slots.refusal is not None and slots.refuses():
            raise slots.refusal()
        # Not `Future(...)`: a constructor's call costs as much as all that follows.
        future: Future[T] = _new_future(Future)
        context = copy_context()
        future._state = PENDING
        future._failure = None
        future._owner = slots
        future._args = args
        future._kwargs = kwargs or None
        future._context = context if len(context) else None
        future._serial = next(serials)
        future._fn = fn
        slots.queue.append(future)
        # Queued, so look. For a shutdown first: it may have returned meanwhile, and then
        # no thread may be woken any more; if not, it sees what is queued.
        if slots.refusal is not None and slots.refuses() and slots.take_back(future):
            raise slots.refusal()
        # A worker that is waking up looks when it is awake.
        if (slots.free or slots.endless) and not slots.last.woken.fresh:
            slots.wake(future)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """`map(fn, *iterables)` with the calls submitted at once; results in order.

        With a `buffersize` no more than that many calls are submitted ahead of the
        results that were taken, as in Python 3.14. `timeout` is in seconds from now,
        for the iterator as a whole; `chunksize` is accepted for the stdlib's sake.
        Raises `TypeError` or `ValueError` for a `buffersize` that is not a positive
        int or None. The iterator blocks as `Future.result` does, raises what a call
        raised, and cancels what has not started when it is dropped.
        """
        _check_buffersize(buffersize)
        end = None if timeout is None else timeout + time.monotonic()
        calls = zip(*iterables, strict=False)
        futures: deque[concurrent.futures.Future[T]] = deque()
        try:
            for call in calls:
                _add(futures, self, fn, call)
                if len(futures) == buffersize:
                    break
        except BaseException:
            _cancel(futures)
            raise
        # With everything submitted the iterator needs nothing more of this service,
        # and must not keep it alive.
        return _results(futures, end, None if buffersize is None else weakref.ref(self), fn, calls)

    def yield_slot(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Give this body's slot to whoever is next, and return `fn(*args, **kwargs)`.

        Blocks before it returns or raises until the body has a slot again, which it
        gets before anything that has not started. Where the slot is given away
        already, and on an unbounded service, it just calls `fn`. Raises
        `RuntimeError` outside a body of this service, without calling `fn`.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        slots = self._slots
        if slots.unbounded:
            return fn(*args, **kwargs)
        body = self._own_body()
        if body is None:
            raise RuntimeError(
                "yield_slot must be called in a body of this service: no slot is held here"
            )
        if body.slot is None:
            return fn(*args, **kwargs)
        try:
            try:
                slots.give_away(body)
                return fn(*args, **kwargs)
            finally:
                slots.resume(body)
        finally:
            if body.resumes():
                slots.resume(body)  # It was interrupted.

    @contextmanager
    def slot_yielded(self) -> Generator[None]:
        """`yield_slot` as a `with` block: in it, the slot is somebody else's."""
        slots = self._slots
        body = None if slots.unbounded else self._own_body()
        if body is None and not slots.unbounded:
            raise RuntimeError(
                "slot_yielded must be used in a body of this service: no slot is held here"
            )
        if body is None or body.slot is None:
            yield
            return
        try:
            try:
                slots.give_away(body)
                yield
            finally:
                slots.resume(body)
        finally:
            if body.resumes():
                slots.resume(body)  # It was interrupted.

    def block_till_done(self, timeout: float | None = None) -> bool:
        """Block until nothing is outstanding: queued, running, waiting or owed.

        Returns True, or False when `timeout` seconds passed first. What done-callbacks
        submit is waited for too. Raises `RuntimeError` in a body of this service,
        which would wait for itself.
        """
        if self._is_waited_for_by_itself():
            raise RuntimeError("block_till_done in a body of its own service would never return")
        return self._slots.wait_idle(timeout)

    async def async_block_till_done(self, timeout: float | None = None) -> bool:
        """`block_till_done` for a coroutine: the loop goes on meanwhile.

        Returns True once nothing is outstanding, False when `timeout` seconds passed
        first; no thread waits for it. It may be cancelled, and cancels nothing.
        Raises `RuntimeError` on a loop that runs in a body of this service, which
        would wait for itself, and where no asyncio loop runs.
        """
        if self._is_waited_for_by_itself():
            raise RuntimeError(
                "async_block_till_done in a body of its own service would never return"
            )
        # Here, so that importing the package does not import asyncio.
        from .event_loop import wait_idle  # noqa: PLC0415

        return await wait_idle(self._slots, timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more; with `cancel_futures`, cancel what has not started.

        With `wait` it blocks until nothing is outstanding and the threads are gone,
        and raises `RuntimeError` in a body of this service, before any effect.
        """
        if wait and self._is_waited_for_by_itself():
            raise RuntimeError(
                "shutdown(wait=True) in a body of its own service would never return;"
                " use shutdown(wait=False)"
            )
        self._slots.close(cancel=cancel_futures)
        if wait:
            self._slots.join()

    def _own_body(self) -> Body | None:
        """The body of this service that the caller is part of."""
        body = current.body
        if isinstance(body, Body) and body.slots is self._slots and body.future is not None:
            return body
        return None

    def _is_waited_for_by_itself(self) -> bool:
        """Whether the caller is part of what is outstanding here."""
        body = current.body
        return current.cancelling is self._slots or (
            isinstance(body, Body) and body.slots is self._slots
        )

    def __repr__(self) -> str:
        name = type(self).__name__
        slots: Slots | None = vars(self).get("_slots")
        if slots is None:
            return f"<{name} not initialized>"
        running = sum(body.future is not None for body in slots.bodies())
        queued = len(slots.queue)
        return (
            f"<{name} max_workers={slots.max_workers} {running=} {queued=} {slots.condition()}>"
        )

    def __reduce__(self) -> str:
        raise TypeError("a Service cannot be pickled: its threads are in this process")


def _checked_bound(max_workers: object) -> int | None:
    if max_workers is None:
        return 4 * _usable_cpus()
    if not isinstance(max_workers, int) or isinstance(max_workers, bool):
        raise TypeError(f"max_workers must be an int or None, not {max_workers!r}")
    return max_workers if max_workers > 0 else None


def checked_positive(max_workers: object) -> int:
    if max_workers is None:
        raise TypeError("max_workers must be an int, not None")
    bound = _checked_bound(max_workers)
    if bound is None:
        raise ValueError(f"max_workers must be greater than 0, not {max_workers!r}")
    return bound


def _check_buffersize(buffersize: object) -> None:
    if buffersize is None:
        return
    if not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def _checked_timeout(idle_timeout: object) -> float | None:
    if idle_timeout is None:
        return None
    if not isinstance(idle_timeout, (int, float)) or isinstance(idle_timeout, bool):
        raise TypeError(f"idle_timeout must be seconds or None, not {idle_timeout!r}")
    if not idle_timeout >= 0:
        raise ValueError(f"idle_timeout must be 0 or more seconds, not {idle_timeout!r}")
    return float(idle_timeout)


def _usable_cpus() -> int:
    process_cpu_count = getattr(os, "process_cpu_count", None)
    if process_cpu_count is not None:
        return process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _add(
    futures: deque[concurrent.futures.Future[T]],
    service: Service,
    fn: Callable[..., T],
    call: tuple[Any, ...],
) -> None:
    future = service.submit(fn, *call)
    # Either the iterator raises what it raised, or nobody ever sees it.
    keep_unreported(future)
    futures.append(future)


def _results(
    futures: deque[concurrent.futures.Future[T]],
    end: float | None,
    service: weakref.ref[Service] | None,
    fn: Callable[..., T],
    calls: Iterator[tuple[Any, ...]],
) -> Iterator[T]:
    # A generator that was never started is dropped without a word, as the stdlib's
    # is: a call of `map` for its effects alone has them all.
    #
    # Where one result is between its future and the caller: a local variable would
    # keep it until the next is asked for.
    taken: list[T] = []
    try:
        while futures:
            future = futures.popleft()
            try:
                taken.append(future.result(None if end is None else end - time.monotonic()))
            except BaseException:
                future.cancel()
                raise
            finally:
                del future
            owner = None if service is None else service()
            if owner is not None:
                for call in calls:
                    _add(futures, owner, fn, call)
                    break
            del owner
            yield taken.pop()
    finally:
        _cancel(futures)


def _cancel(futures: deque[concurrent.futures.Future[T]]) -> None:
    while futures:
        futures.popleft().cancel()
