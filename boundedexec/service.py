"""Service: the executor's surface, and nothing below it."""

from __future__ import annotations

import concurrent.futures
import time
import weakref
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ._core.blocking import SlotYielded
from ._core.future import Future
from ._core.locking import headroom, locked
from ._core.outstanding import wait_idle
from ._core.pool import admit, close, join, make_slots, retire, start_queued, take_out
from ._core.slots import look, set_bound
from ._core.state import RECORDED, Settings, Slots, Worker, current_body, current_worker
from ._core.submission import CANCELLED, PENDING, clock
from ._core.wrapping import is_wrapped, takes_effect
from .checking import (
    check_buffersize,
    check_timeout,
    checked_bound,
    checked_integer,
    checked_seconds,
)

if TYPE_CHECKING:
    from typing import Self, TextIO

    from ._core.stats import Stats
    from ._core.tasks import Task

__all__ = ["Service"]

P = ParamSpec("P")
T = TypeVar("T")

# In place of `Future(...)`: a constructor's call costs as much as all else in `submit`.
_new_future: Callable[[type[Future[Any]]], Future[Any]] = object.__new__
_service_numbers = iter(range(1 << 62))


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
        propagate_context: whether a body runs in a copy of its submitter's `contextvars`
            context, instead of its thread's.
        max_queued: how many submissions may be queued; one more raises `QueueFull`. None: any
            number.
        daemon: at interpreter exit, cancel what is queued and abandon what runs,
            instead of finishing it.
        slow_after: seconds after which a body that still runs is logged, once, with its
            stack, and a submission that still waits for a slot, with what holds the slots.
            None: neither is.

    Raises `TypeError` or `ValueError` for arguments that are none of these, `RuntimeError` for
    `daemon` in a sub-interpreter without daemon threads. Making one never blocks. `with` gives
    the service; the end of its block is `shutdown()`, which blocks until everything accepted
    has finished.

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
        propagate_context: bool = True,
        max_queued: int | None = None,
        daemon: bool = False,
        slow_after: float | None = None,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable or None, not {initializer!r}")
        settings = Settings(
            thread_name_prefix or f"Service-{next(_service_numbers)}",
            checked_seconds("idle_timeout", idle_timeout),
            None if initializer is None else partial(initializer, *initargs),
            lending,
            propagate_context,
            None if max_queued is None else checked_integer("max_queued", max_queued, 0),
            daemon,
            checked_seconds("slow_after", slow_after),
        )
        self._attach(make_slots(settings, checked_bound(max_workers)))

    def _attach(self, slots: Slots) -> None:
        """Have `slots` be this service's, and finish when it is collected. For the core."""
        self._slots = slots
        slots.service = weakref.ref(self, partial(retire, slots))

    @classmethod
    def bounded(cls, max_workers: int, /, *args: Any, **kwargs: Any) -> Self:
        """A service of at most `max_workers` bodies at once; other arguments as for the class.

        Raises `TypeError` for a `max_workers` that is no integer, `ValueError` below 1.
        """
        return cls(checked_integer("max_workers", max_workers, 1), *args, **kwargs)

    @classmethod
    def unbounded(cls, *args: Any, **kwargs: Any) -> Self:
        """A service without a bound: every submission starts at once.

        Takes the arguments of the class that follow `max_workers`, and raises as that does.
        The drop-in's class refuses (`ValueError`): its `max_workers=math.inf` is no bound.
        """
        return cls(0, *args, **kwargs)

    @staticmethod
    def over(
        executor: concurrent.futures.Executor | Callable[[], concurrent.futures.Executor],
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        *,
        retries: int = 0,
        max_queued: int | None = None,
        daemon: bool = False,
        slow_after: float | None = None,
    ) -> Service:
        """A service whose bodies `executor` executes: of processes, interpreters, a cluster.

        At most `max_workers` submissions are in its hands at once, in order. The others wait
        here, and one thread of this service hands over, so `submit` never blocks.

        Args:
            executor: one that stays yours: `shutdown` leaves it alone. Or a callable that
                returns one: called here, and again when that one is broken; `shutdown`
                shuts those down.
            retries: how often a submission that was running or queued in an executor when
                it broke is handed to the next one. Needs a callable.

        The rest is as for the class. What differs:

        * The callable itself is handed over, so it is pickled where `executor` does that,
          and contexts stay behind. A body counts as running from then on.
        * No body lends, `yield_slot` raises `RuntimeError`, and a body that waits for its own
          service may hang: give bodies that wait a service of their own.
        * `cancel` also cancels what `executor` has and can still cancel.
        * What `executor` raises, or loses, fails the submissions that it had.
        * Done-callbacks execute on the thread that hands over: keep them short. Waiting there
          for this service raises `DeadlockError`.

        Raises `TypeError` or `ValueError` for other arguments, and what the callable raises.
        Blocks only as long as the callable does.
        """
        from .over import Over  # noqa: PLC0415  # Loaded where it is asked for.

        return Over(
            executor, max_workers, thread_name_prefix, retries, max_queued, daemon, slow_after
        )

    @property
    def max_workers(self) -> int | None:
        """How many bodies may hold a slot at once; None where there is no bound.

        Can be set at any time, in a body, too, and never blocks. An integer of 1 or more is
        the new bound; zero, less, or None removes it. (To a constructor None means the default
        bound, and the drop-in's refuses zero and less.) With a larger bound, or none, queued
        submissions that now may start do so at once; a smaller one is reached as bodies end,
        and interrupts nobody. Raises `TypeError` for what is neither an integer nor None.
        """
        return self._slots.max_workers

    @max_workers.setter
    def max_workers(self, max_workers: int | None) -> None:
        bound = None if max_workers is None else checked_bound(max_workers)
        headroom()
        slots = self._slots
        locked(set_bound, slots, bound)
        look(slots)

    @property
    def is_shut_down(self) -> bool:
        """Whether `shutdown` was called, or the interpreter is about to end.

        False for a service that is only broken. Never blocks; may be read from anywhere.
        """
        return self._slots.ending

    # Typed as the stdlib's, so that code which passes lists of its futures around, or
    # overrides `submit`, goes on type-checking.
    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Queue `fn(*args, **kwargs)` and return its future at once.

        Never blocks; from anywhere: a body, a callback, a signal handler, a `__del__`. Raises
        `TypeError` for an `fn` that is not callable, `QueueFull` at `max_queued`,
        `RuntimeError` after shutdown and where no thread can start, `BrokenThreadPool` after
        an initializer has raised.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        slots = self._slots
        if slots.wrappable and takes_effect(slots):
            return submit_wrapped("submit", self, partial(Service.submit, self), fn, args, kwargs)
        future: Future[T] = _new_future(Future)
        future.state = PENDING
        future.failure = None
        future.owner = slots
        future.args, future.kwargs = args, kwargs or None
        future.context = (copy_context() or None) if slots.propagate else None
        future.serial = clock()
        future.fn = fn
        if slots.checked:
            future.value = get_ident()  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
            if slots.checked is not RECORDED:
                admit(slots, future)
        try:
            slots.queue.append(future)  # explore: queued-then-look
            # Queued, so look. Where a signal is on its way, its worker looks when it has come.
            if (slots.free and slots.quiet) or slots.refusal is not None:
                start_queued(slots, future)
        except BaseException:
            # Nobody has the future. Claimed without a call: there may be no frame for one.
            try:
                del future.fn
                future.state = CANCELLED
                take_out(slots, future)
            except AttributeError:
                pass
            raise
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """`map(fn, *iterables)` with the calls submitted at once; an iterator of the results,
        in order.

        May be called from anywhere; blocks only where an iterable does. With a `buffersize` no
        more than that many calls are submitted ahead of the results that were taken, as in
        Python 3.14. `timeout` is in seconds from now, for the iterator as a whole; `chunksize`
        is accepted for the stdlib's sake. Raises what `submit` raises, and `TypeError` or
        `ValueError` for a `buffersize` that is not a positive int or None. The iterator
        blocks, lends and raises as `Future.result` does, and cancels what has not started
        when it is dropped, or has raised.
        """
        check_buffersize(buffersize)
        end = None if timeout is None else timeout + time.monotonic()
        calls = zip(*iterables, strict=False)
        futures: deque[concurrent.futures.Future[T]] = deque()
        for call in calls:
            futures.append(self.submit(fn, *call))
            if len(futures) == buffersize:
                break
        # With everything submitted the iterator needs nothing more of this service,
        # and must not keep it alive.
        return _results(futures, end, None if buffersize is None else weakref.ref(self), fn, calls)

    def yield_slot(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Give this body's slot to the next in line, and return `fn(*args, **kwargs)`.

        Blocks before it returns or raises until the body has a slot again, which it
        gets before anything that has not started. Where the slot is given away
        already, it just calls `fn`; on an unbounded service it does so anywhere. On others it
        raises `RuntimeError` outside a body of this service, without calling `fn`.
        Raises `TypeError` for an `fn` that is not callable, and what `fn` raises. Java's
        `ForkJoinPool.ManagedBlocker` is the same idea.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        with self.slot_yielded():
            return fn(*args, **kwargs)

    def slot_yielded(self) -> AbstractContextManager[None]:
        """`yield_slot` as a `with` block: in it, the slot is somebody else's.

        Returns a context manager for one block of this body; the block's end blocks until the
        body has a slot again. Where the block outlives its body (a generator that is kept), it
        ends without taking a slot. On an unbounded service it does nothing, anywhere; on
        others the call raises `RuntimeError` outside a body of this service.
        """
        if self._slots.max_workers is None:
            return SlotYielded(None)
        body = current_body()
        if body is None or body.slots is not self._slots:
            raise RuntimeError("no slot is held here: this is not a body of this service")
        return SlotYielded(body)

    def block_till_done(self, timeout: float | None = None) -> bool:
        """Block until nothing is outstanding: queued, running, waiting or owed (a Coalescer's
        re-run).

        Returns True, or False when `timeout` seconds passed first (None: no limit).
        What done-callbacks submit is waited for too. Raises `RuntimeError` in a body of this
        service, which would wait for itself; a body of another service keeps its slot
        meanwhile. Raises `TypeError` or `ValueError` for a `timeout` that is no number.
        """
        check_timeout(timeout)
        if self._is_waited_for_by_itself():
            raise RuntimeError("block_till_done in a body of its own service would never return")
        headroom()
        return wait_idle(self._slots, timeout)

    async def async_block_till_done(self, timeout: float | None = None) -> bool:
        """`block_till_done` for a coroutine: the loop goes on meanwhile.

        Returns True once nothing is outstanding, False when `timeout` seconds passed
        first; no thread waits for it. It may be cancelled, and cancels nothing.
        Raises as `block_till_done`, also on a loop that runs in a body of this service, and
        `RuntimeError` where it has to wait and no asyncio loop runs.
        """
        check_timeout(timeout)
        if self._is_waited_for_by_itself():
            raise RuntimeError(
                "async_block_till_done in a body of its own service would never return"
            )
        # Here, so that importing the package does not import asyncio.
        from ._core.event_loop import wait_idle  # noqa: PLC0415

        return await wait_idle(self._slots, timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more; with `cancel_futures`, cancel what has not started.

        With `wait` it blocks until nothing is outstanding and the threads are gone,
        and raises `RuntimeError` in a body of this service, before any effect. Without, it
        never blocks, but for the done-callbacks of what it cancels, and may be called from
        anywhere. It may be called again.
        """
        if wait and self._is_waited_for_by_itself():
            raise RuntimeError(
                "shutdown(wait=True) in a body of its own service would never return;"
                " use shutdown(wait=False)"
            )
        headroom()
        slots = self._slots
        close(slots, cancel=cancel_futures)
        if wait:
            join(slots)

    # What these need is loaded when somebody looks inside.

    def stats(self) -> Stats:
        """A `Stats`: what the service does at this moment, in numbers.

        May be called from anywhere. Never waits for what a body does; `submit` waits for it
        only at `max_queued` and where no thread can start, and then briefly. Its cost grows
        with the number of threads and not with the queue.
        """
        from ._core.stats import stats  # noqa: PLC0415

        return stats(self._slots)

    def tasks(self, limit: int | None = None) -> list[Task]:
        """A list of `Task`: what is outstanding, submission by submission.

        Bodies come first, in the order in which they began, then the queue in its order,
        then owed re-runs; at most `limit` of all, with None any number. May be called from
        anywhere; never waits for what a body does. Calls the `__repr__` of arguments, and
        shortens what it returns; what it raises is caught. Raises `TypeError` or
        `ValueError` for a `limit` that is no integer of 0 or more.
        """
        from ._core.tasks import tasks  # noqa: PLC0415

        return tasks(self._slots, None if limit is None else checked_integer("limit", limit, 0))

    def dump(self, file: TextIO | None = None) -> None:
        """Write what the service does to `file`, by default standard error, for a person.

        Its `stats`; the bodies, the longest running first, with the innermost lines of
        their stacks; who waits for whom; the queue, counted by callable. May be called from
        anywhere; never waits for what a body does. Calls the `__repr__` of arguments. Raises
        what writing raises.
        """
        from .dumping import dump_one  # noqa: PLC0415

        dump_one(self._slots, file)

    def _is_waited_for_by_itself(self) -> bool:
        """Whether the caller is part of what is outstanding here."""
        worker: Worker | None = current_worker.get()
        return worker is not None and worker.slots is self._slots

    def __repr__(self) -> str:
        name = type(self).__name__
        slots: Slots | None = vars(self).get("_slots")
        if slots is None:
            return f"<{name} not initialized>"
        running = sum(worker.future is not None for worker in list(slots.workers))
        queued = len(slots.queue)
        condition = "broken" if slots.broken else "shut down" if slots.ending else "open"
        return f"<{name} max_workers={slots.max_workers} {running=} {queued=} {condition}>"

    def __reduce__(self) -> str:
        raise TypeError("a Service cannot be pickled: its threads are in this process")


def slots_of(service: Service) -> Slots:
    """What the package's other rooms know a service by."""
    return service._slots  # pyright: ignore[reportPrivateUsage]


_submit_code = Service.submit.__code__


def submits_plainly(service: Service) -> bool:
    """Whether `service.submit` is that of the class here, and nothing is wrapped round it."""
    submit = type(service).submit
    if type(submit) is not FunctionType or submit.__code__ is not _submit_code:
        return False
    return not (slots_of(service).wrappable and is_wrapped())


def submit_wrapped(
    way: str, pool: Any, accept: Any, fn: Any, args: Any, kwargs: Any
) -> concurrent.futures.Future[Any]:
    """Submit through a wrapper, in one of the two ways of `_core.standing_in`."""
    from ._core import standing_in  # noqa: PLC0415  # Seldom needed.

    submit: Any = getattr(standing_in, way, None)
    future: concurrent.futures.Future[Any]
    if submit is None:  # A signal handler has interrupted its import.
        future = accept(fn, *args, **kwargs)
    else:
        future = submit(pool, accept, fn, args, kwargs)
    return future


def _results(
    futures: deque[concurrent.futures.Future[T]],
    end: float | None,
    service: weakref.ref[Service] | None,
    fn: Callable[..., T],
    calls: Iterator[tuple[Any, ...]],
) -> Iterator[T]:
    # A generator that was never started is dropped without running any of this, as the
    # stdlib's: a call of `map` for its effects alone has them all.
    #
    # Where one result is between its future and the caller: a local variable would keep
    # it until the next is asked for.
    taken: list[T] = []
    try:
        while futures:
            taken.append(_first_result(futures, end))
            owner = None if service is None else service()
            if owner is not None:
                for call in calls:
                    futures.append(owner.submit(fn, *call))
                    break
            del owner
            yield taken.pop()
    finally:
        while futures:
            futures.popleft().cancel()


def _first_result(futures: deque[concurrent.futures.Future[T]], end: float | None) -> T:
    future = futures.popleft()
    try:
        return future.result(None if end is None else end - time.monotonic())
    except BaseException:
        future.cancel()
        _drop(futures)
        raise
    finally:
        del future


def _drop(futures: deque[concurrent.futures.Future[T]]) -> None:
    """Cancel what has not started. Something was raised: nobody misses other failures."""
    while futures:
        future = futures.popleft()
        future.cancel()
        if isinstance(future, Future):
            future.silence()
