"""ThreadPoolExecutor, and what other libraries read from one.

Three private attributes of the stdlib's pool are read by libraries that take one:
`_max_workers` (its size), `_threads` (how many there are) and `_work_queue` (how
much waits; a client that gives up empties it). They are here for every `Service`,
which has no such parts, and give what the stdlib's would.
"""

# The rooms share what users must not touch.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import concurrent.futures
import itertools
import os
import queue
from collections.abc import Callable, Collection
from typing import Any

from .futures import Future
from .service import Service, checked_positive
from .slots import Slots
from .threads import Worker

__all__ = ["ThreadPoolExecutor"]

_pools = itertools.count()


class _WorkItem:
    """A submission taken out of the queue, as the stdlib's: `fn`, `args`, `kwargs` (from
    Python 3.14 on that has them as one `task`) and a future that nobody but its taker
    will finish."""

    def __init__(self, future: Future[Any], fn: Callable[..., Any]) -> None:
        self.fn, self.args, self.kwargs = fn, future._args, future._kwargs or {}
        self.task = self.fn, self.args, self.kwargs
        self.future = future
        future._forget()
        future._owner = None
        future._fn = True


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
            taken = future._take()
            if taken is not None:
                self._slots.check_idle()
                return _WorkItem(future, taken)

    def get_nowait(self) -> _WorkItem:
        return self.get(block=False)


def _max_workers(service: Service) -> int:
    """The bound, or how many threads there are where there is none; always positive."""
    slots = service._slots
    return slots.max_workers or max(1, len(slots.crew.workers))


def _threads(service: Service) -> Collection[Worker]:
    return set(service._slots.crew.workers)


def _work_queue(service: Service) -> _WorkQueue:
    return _WorkQueue(service._slots)


class _Part:
    """An attribute that is computed until somebody sets one of their own.

    Subclasses do: a `_work_queue` with a limit is a known recipe, if one without any
    effect here.
    """

    def __init__(self, compute: Callable[[Service], object]) -> None:
        self._compute = compute

    def __get__(self, service: Service | None, owner: type) -> object:
        return self if service is None else self._compute(service)


# From here, not in `service`: a Service has no such parts, and does not know who looks.
for _compute in (_max_workers, _threads, _work_queue):
    setattr(Service, _compute.__name__, _Part(_compute))


class ThreadPoolExecutor(Service, concurrent.futures.ThreadPoolExecutor):
    """A `Service` for code that asks for the stdlib's class, with its defaults.

    `isinstance` and `issubclass` say that it is one; it runs none of its code. Unlike
    a plain Service it has the stdlib's number of workers, raises `ValueError` for
    `max_workers <= 0`, and keeps its threads until it is shut down.
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
        daemon: bool = False,
    ) -> None:
        super().__init__(
            default_workers() if max_workers is None else checked_positive(max_workers),
            thread_name_prefix or f"ThreadPoolExecutor-{next(_pools)}",
            initializer,
            initargs,
            idle_timeout=idle_timeout,
            lending=lending,
            daemon=daemon,
        )


def default_workers() -> int:
    """How many workers a pool has that was made without a number: as many as the stdlib's."""
    process_cpu_count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)
    return min(32, (process_cpu_count() or 1) + 4)
