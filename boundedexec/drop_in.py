"""ThreadPoolExecutor: a `Service` for code that asks for the stdlib's class."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import os
from collections.abc import Callable
from functools import update_wrapper
from types import FunctionType
from typing import TYPE_CHECKING, Any

from ._core.state import Slots
from .service import Service

__all__ = ["ThreadPoolExecutor"]

_pools = itertools.count()


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
    bodies in the context of their thread; see `__init__`. Instrumentation that wraps the
    `submit` of the stdlib's class takes effect here.
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
        """Make an executor; never blocks. The parameters are `Service`'s, which says more.

        Args:
            max_workers: how many bodies may hold a slot at once. It bounds the slots, not
                the threads, nor how often `initializer` is called: a body that waits keeps
                its thread, and lends its slot to another. None: the stdlib's number, CPUs + 4
                and at most 32. A fraction is rounded up; infinity is no bound.
            thread_name_prefix: threads are named `<prefix>_<n>`; where it is empty,
                `ThreadPoolExecutor-<m>_<n>`.
            initializer: called once in every new thread. If it raises, the executor is
                broken: `BrokenThreadPool` from what is queued and from `submit`.
            initargs: a tuple of the arguments of `initializer`.
            idle_timeout: seconds after which a thread without work ends. None: never before
                shutdown.
            lending: whether a body that waits lends its slot.
            propagate_context: whether a body runs in a copy of its submitter's `contextvars`
                context, instead of its thread's.
            max_queued: how many submissions may be queued; one more raises `QueueFull`. None:
                any number.
            daemon: at interpreter exit, cancel what is queued and abandon what runs, instead
                of finishing it.
            slow_after: seconds after which a body that still runs is logged, and a submission
                that still waits for a slot. None: neither is.

        Raises `ValueError` for a `max_workers` of 0 or less, and `TypeError` or `ValueError`
        for other arguments that are none of these.
        """
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
        if type(self)._adjust_thread_count is not _adjust_thread_count:
            from .parts import warn_of_threads  # noqa: PLC0415

            warn_of_threads(type(self))

    def _attach(self, slots: Slots) -> None:
        slots.wrappable = True
        super()._attach(slots)

    if not TYPE_CHECKING:
        # A function of its own: while `install` has the stdlib's name be ours, a wrapper is
        # put round this one, or its code rewritten, and a plain Service is left alone.
        submit = _copied(Service.submit)

    # What a `submit` copied from the stdlib's calls; so does one that a subclass overrides.

    def _adjust_thread_count(self) -> None:
        """Called once an item is in `_work_queue`. It has been submitted, unless that is a
        queue of one's own."""
        from .parts import run_from_own_queue  # noqa: PLC0415

        run_from_own_queue(self)

    def _resolve_work_item_task(self, *task: Any) -> Any:
        return task


_adjust_thread_count = vars(ThreadPoolExecutor)["_adjust_thread_count"]


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


class _Part:
    """An attribute of the stdlib's pool that others read and set although it is private."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, service: Service | None, owner: type) -> Any:
        if service is None:
            return self
        from .parts import read  # noqa: PLC0415  # Seldom needed.

        return read(service, self._name)

    def __set__(self, service: Service, value: Any) -> None:
        from .parts import write  # noqa: PLC0415

        write(service, self._name, value, _bound)


# From here, not in `service`: a Service does not know who looks at it in this way.
for _name in (
    "_broken",
    "_idle_semaphore",
    "_initargs",
    "_initializer",
    "_max_workers",
    "_shutdown",
    "_shutdown_lock",
    "_thread_name_prefix",
    "_threads",
    "_work_queue",
):
    setattr(Service, _name, _Part(_name))
