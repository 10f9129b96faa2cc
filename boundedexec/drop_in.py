"""ThreadPoolExecutor, and what other programs read, set and override of a pool.

The stdlib's pool has private attributes that libraries and programs use all the same. They
are here, and true, for every `Service`.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import os
import queue
import threading
import warnings
from collections.abc import Callable
from functools import update_wrapper
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal

from ._core.locking import locked
from ._core.outstanding import check_idle
from ._core.pool import threads
from ._core.slots import open_one
from ._core.state import Slots, Worker
from ._core.submission import NOBODY, Submission
from .service import Service, slots_of

__all__ = ["ThreadPoolExecutor"]

_pools = itertools.count()


class _WorkItem:
    """A submission taken out of the queue, as the stdlib's: `fn`, `args`, `kwargs` (from
    Python 3.14 on that has them as one `task`) and a future that nobody but its taker
    will finish."""

    def __init__(self, future: Submission[Any], fn: Callable[..., Any]) -> None:
        self.fn, self.args, self.kwargs = fn, future.args or (), future.kwargs or {}
        self.task = self.fn, self.args, self.kwargs
        self.future = future
        future.forget()
        future.owner = NOBODY
        future.state = "PENDING"
        future.fn = True


class _WorkQueue:
    """The queue of a service, as far as it can be read as a `queue.SimpleQueue`."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def qsize(self) -> int:
        """How many submissions have not started; some may have been cancelled."""
        return len(self._slots.queue)

    def empty(self) -> bool:
        return not self._slots.queue

    def get(self, block: bool = True, timeout: float | None = None) -> _WorkItem:
        """Take the submission that came first; `queue.Empty` where there is none."""
        if block:
            raise NotImplementedError("only get(block=False): a service's queue is its own")
        while True:
            try:
                future = self._slots.queue.popleft()
            except IndexError:
                raise queue.Empty from None
            if future.args is None:
                future.cancel_even_if_shared()  # A Coalescer's run: its callable is not known.
                continue
            fn: Any = getattr(future, "fn", None)
            if future.claim():
                check_idle(self._slots)
                return _WorkItem(future, fn)

    def get_nowait(self) -> _WorkItem:
        return self.get(block=False)


def _copied(function: Any) -> Any:
    """Another function with the same code; it costs what the first does."""
    copy: Any = FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    update_wrapper(copy, function)
    del copy.__wrapped__
    return copy


class ThreadPoolExecutor(Service, concurrent.futures.ThreadPoolExecutor):
    """A `Service` for code that asks for the stdlib's class, with its defaults.

    `isinstance` and `issubclass` say that it is one. Unlike a plain Service it has the
    stdlib's number of workers and its tolerance of other numbers than integers, raises
    `ValueError` for `max_workers <= 0`, keeps its threads until it is shut down, and leaves
    bodies in the context of their thread; its parameters are `Service`'s. Instrumentation
    that wraps the `submit` of the stdlib's class takes effect here.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        idle_timeout: float | None = None,
        lending: bool = True,
        propagate_context: bool = False,
        max_queued: int | None = None,
        daemon: bool = False,
        slow_after: float | None = None,
    ) -> None:
        super().__init__(
            _bound(max_workers),
            thread_name_prefix or f"ThreadPoolExecutor-{next(_pools)}",
            initializer,
            initargs,
            idle_timeout=idle_timeout,
            lending=lending,
            propagate_context=propagate_context,
            max_queued=max_queued,
            daemon=daemon,
            slow_after=slow_after,
        )
        if hasattr(self, "_adjust_thread_count") and not _is_stdlibs(type(self)):
            _warn("_adjust_thread_count of one's own", "daemon=True", stacklevel=2)

    def attach(self, slots: Slots) -> None:
        slots.wrappable = True
        super().attach(slots)

    if not TYPE_CHECKING:
        # A function of its own: while `install` has the stdlib's name be ours, a wrapper is
        # put round this one, or its code rewritten, and a plain Service is left alone.
        submit = _copied(Service.submit)


def _is_stdlibs(cls: type) -> bool:
    """Whether `_adjust_thread_count`, which starts the stdlib's threads, is the stdlib's."""
    name = "_adjust_thread_count"
    return getattr(cls, name) is getattr(concurrent.futures.ThreadPoolExecutor, name, None)


def _bound(max_workers: Any) -> int:
    """The bound for what the stdlib's pool takes: any number that can be compared."""
    if max_workers is None:
        return default_workers()
    if max_workers <= 0:
        raise ValueError("max_workers must be greater than 0")
    if math.isinf(max_workers):
        return 0
    # The stdlib starts a thread while there are fewer than that: 2.5 means three.
    number: float = max_workers
    return math.ceil(number)


class _Defaults:
    #: What `run --workers` says; None for the stdlib's number.
    workers: int | None = None


def set_default_workers(workers: int | None) -> None:
    """Have pools that are made without a number have `workers`."""
    _Defaults.workers = workers


def default_workers() -> int:
    """How many workers a pool has that was made without a number: as many as the stdlib's."""
    if _Defaults.workers is not None:
        return _Defaults.workers
    process_cpu_count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
    return min(32, (process_cpu_count() or 1) + 4)


# What others read from a pool although it is private.


def _max_workers(service: Service) -> int:
    """The bound, or how many threads there are where there is none; always positive."""
    slots = slots_of(service)
    return slots.max_workers or max(1, len(threads(slots)))


def _set_max_workers(service: Service, value: Any) -> None:
    service.max_workers = _bound(value)


class _Threads(set[Worker]):
    """The threads of a service at this moment."""

    def clear(self) -> None:
        """Done before the end of a program, so that nobody waits for them."""
        _warn("_threads.clear()", "daemon=True", stacklevel=2)
        super().clear()


def _threads(service: Service) -> _Threads:
    """The threads, with one for each submission that may start: as the stdlib, which starts
    them in `submit`."""
    slots = slots_of(service)
    if slots.queue:
        locked(_start_threads, slots)
    return _Threads(threads(slots))


def _start_threads(slots: Slots) -> None:
    """Start the threads that queued submissions lack, whether a signal is on its way or not."""
    while _lacks_threads(slots):
        open_one(slots)
        if not slots.free:
            return
        try:
            wake = slots.free.pop(0)
        except IndexError:
            continue  # A signal took it.
        # Again, now that no signal can take it: one that came in between has started a
        # thread for the same submission.
        if not _lacks_threads(slots, taken=1):
            slots.free.insert(0, wake)
            continue
        try:
            next(wake)
        except RuntimeError:
            slots.free.insert(0, wake)
            return  # The next one to look tries again.


def _lacks_threads(slots: Slots, taken: int = 0) -> bool:
    """Whether more is queued than threads are idle or on their way; `taken` of those with
    a slot have not been woken."""
    idle = {wake.worker for wake in slots.free.copy()}
    coming = [w for w in slots.workers if w.slot and w.future is None and w not in idle]
    queued = len(slots.queue)
    # Again: without a GIL one may have taken its submission, and not stored that it has.
    still = sum(worker.future is None for worker in coming)
    return queued > still - taken + sum(worker.begun for worker in idle)


class _Part:
    """An attribute of the stdlib's pool that is computed here, and stays what it is.

    What a program sets in its place has no effect on the service; a warning names what has.
    """

    def __init__(
        self,
        compute: Callable[[Service], object],
        instead: str,
        setting: Callable[[Service, Any], None] | None = None,
    ) -> None:
        self._compute = compute
        self._instead = instead
        self._setting = setting

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, service: Service | None, owner: type) -> Any:
        if service is None:
            return self
        return vars(service).get(self._name) or self._compute(service)

    def __set__(self, service: Service, value: Any) -> None:
        if self._setting is not None:
            self._setting(service, value)
            return
        vars(service)[self._name] = value
        _warn(f"{self._name} of one's own", self._instead, stacklevel=2)


def _warn(what: str, instead: str, stacklevel: int) -> None:
    warnings.warn(
        f"{what} has no effect on a pool whose threads and queue are boundedexec's;"
        f" {instead} does that here",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )


def _broken(service: Service) -> str | Literal[False]:
    if slots_of(service).broken:
        return "A thread initializer failed, the thread pool is not usable anymore"
    return False


class _ShutdownLock:
    """Made when somebody asks for it: a real lock, which this package does not take."""

    def __get__(self, service: Service | None, owner: type) -> Any:
        if service is None:
            return self
        return vars(service).setdefault("_shutdown_lock", threading.Lock())


def _initializer(service: Service) -> Any:
    initializer: Any = slots_of(service).settings.initializer
    return None if initializer is None else initializer.func


def _initargs(service: Service) -> tuple[Any, ...]:
    initializer: Any = slots_of(service).settings.initializer
    return () if initializer is None else initializer.args


_PARTS: dict[str, Any] = {
    "_max_workers": _Part(_max_workers, "max_workers = n", setting=_set_max_workers),
    "_threads": _Part(_threads, "daemon=True"),
    "_work_queue": _Part(lambda service: _WorkQueue(slots_of(service)), "max_queued=n"),
    "_shutdown": _Part(lambda service: service.is_shut_down, "shutdown(wait=False)"),
    "_broken": _Part(_broken, "shutdown(wait=False, cancel_futures=True)"),
    "_shutdown_lock": _ShutdownLock(),
    "_thread_name_prefix": _Part(
        lambda service: slots_of(service).settings.prefix, "thread_name_prefix="
    ),
    "_initializer": _Part(_initializer, "initializer="),
    "_initargs": _Part(_initargs, "initargs="),
}
# From here, not in `service`: a Service does not know who looks at it in this way.
for _name, _part in _PARTS.items():
    if isinstance(_part, _Part):
        _part.__set_name__(Service, _name)
    setattr(Service, _name, _part)
