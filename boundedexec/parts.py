"""What other programs read, set and override of the stdlib's pool although it is private.

It is here, and true, for every `Service`; `drop_in` loads this when somebody asks.
"""

from __future__ import annotations

import concurrent.futures.thread
import queue
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

from ._core.locking import locked
from ._core.outstanding import check_idle
from ._core.pool import threads
from ._core.slots import open_one
from ._core.state import Slots, Worker
from ._core.submission import NOBODY, Submission
from .service import Service, slots_of

# What the stdlib's workers call; its names are private, and not typed.
_thread: Any = concurrent.futures.thread

#: Seconds. An initializer may take longer than the first, and is not waited for then.
_A_WHILE = 0.1
_A_MOMENT = 0.0001


class _WorkQueue:
    """The queue of a service, as far as it can be used as a `queue.SimpleQueue`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._slots = slots_of(service)

    def _queue(self) -> deque[Submission[Any]]:
        """Where what may start has started: the stdlib's `submit` waits for its thread."""
        slots, end = self._slots, time.monotonic() + _A_WHILE
        while slots.queue and (slots.free or not slots.quiet) and time.monotonic() < end:
            time.sleep(_A_MOMENT)
        return slots.queue

    def qsize(self) -> int:
        """How many submissions have not started; some may have been cancelled."""
        return len(self._queue())

    def empty(self) -> bool:
        return not self._queue()

    def put(self, item: Any) -> None:
        """Have a work item run; None, which wakes the stdlib's threads, has no effect."""
        if item is not None:
            Service.submit(self._service, _run, item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the submission that came first, as one of the stdlib's work items, which
        nobody but its taker will run; `queue.Empty` where there is none."""
        if block:
            raise NotImplementedError("only get(block=False): a service's queue is its own")
        while True:
            try:
                future = self._queue().popleft()
            except IndexError:
                raise queue.Empty from None
            if future.args is None:
                future.cancel_even_if_shared()  # A Coalescer's run: its callable is not known.
                continue
            call = getattr(future, "fn", None), future.args, future.kwargs or {}
            if future.claim():
                check_idle(self._slots)
                future.forget()
                future.owner = NOBODY
                future.state = "PENDING"
                future.fn = True
                return _item(future, *call)

    def get_nowait(self) -> Any:
        return self.get(block=False)


def _item(future: Any, fn: Any, args: Any, kwargs: Any) -> Any:
    item: Any = object.__new__(_thread._WorkItem)
    item.future, item.fn, item.args, item.kwargs = future, fn, args, kwargs
    item.task = fn, args, kwargs  # From Python 3.14 on it has only that.
    return item


def _run(item: Any) -> None:
    """As a thread of the stdlib's."""
    if sys.version_info >= (3, 14):
        item.run(_thread.WorkerContext(None, ()))
    else:
        item.run()


def run_from_own_queue(service: Service) -> None:
    own = vars(service).get("own _work_queue")
    if own is not None:
        # The one that is first when a thread is free.
        Service.submit(service, lambda: _run(own.get_nowait()))


class _Threads(set[Worker]):
    """The threads of a service at this moment."""

    def clear(self) -> None:
        """Done before the end of a program, so that nobody waits for them."""
        _warn("_threads.clear()", "daemon=True", stacklevel=2)
        super().clear()


def _threads(service: Service) -> _Threads:
    """The threads, with one for each submission that may start, and each with its `ident`:
    as the stdlib, which waits in `submit` for what it starts."""
    slots = slots_of(service)
    if slots.queue:
        locked(_start_threads, slots)
    found = _Threads(threads(slots))
    for worker in found:
        # Not for ever: its start may have just failed.
        vars(worker)["_started"].wait(1)
    return found


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


def _max_workers(service: Service) -> int:
    """The bound, or how many threads there are where there is none; always positive."""
    slots = slots_of(service)
    return slots.max_workers or max(1, len(threads(slots)))


def _broken(service: Service) -> Any:
    words = "A thread initializer failed, the thread pool is not usable anymore"
    return words if slots_of(service).broken else False


def _idle(service: Service) -> threading.Semaphore:
    """As many as threads are idle; the stdlib's `submit` takes one, or starts a thread."""
    wakes = slots_of(service).free.copy()
    return threading.Semaphore(sum(wake.worker.begun for wake in wakes))


def _initializer(service: Service) -> tuple[Any, tuple[Any, ...]]:
    initializer: Any = slots_of(service).settings.initializer
    return (None, ()) if initializer is None else (initializer.func, initializer.args)


_READ: dict[str, Callable[[Service], Any]] = {
    "_broken": _broken,
    "_idle_semaphore": _idle,
    "_initargs": lambda service: _initializer(service)[1],
    "_initializer": lambda service: _initializer(service)[0],
    "_max_workers": _max_workers,
    "_shutdown": lambda service: service.is_shut_down,
    # A real lock, which this package does not take.
    "_shutdown_lock": lambda service: vars(service).setdefault(
        "own _shutdown_lock", threading.Lock()
    ),
    "_thread_name_prefix": lambda service: slots_of(service).settings.prefix,
    "_threads": _threads,
    "_work_queue": _WorkQueue,
}

#: What has the effect that setting one of these does not have.
_INSTEAD = {
    "_broken": "shutdown(wait=False, cancel_futures=True)",
    "_idle_semaphore": "max_workers = n",
    "_initargs": "initargs=",
    "_initializer": "initializer=",
    "_shutdown": "shutdown(wait=False)",
    "_thread_name_prefix": "thread_name_prefix=",
    "_threads": "daemon=True",
    "_work_queue": "max_queued=n",
}


def read(service: Service, name: str) -> Any:
    """What is true of the service, or what a program has set in its place."""
    attributes = vars(service)
    if "_slots" in attributes:
        return attributes.get(f"own {name}") or _READ[name](service)
    try:
        return attributes[name]
    except KeyError:
        raise AttributeError(f"{name} is not there before __init__", name=name) from None


def write(service: Service, name: str, value: Any, bound: Callable[[Any], int]) -> None:
    """Set the bound; warn of what has no effect, unless it is what it was."""
    attributes = vars(service)
    if "_slots" not in attributes:
        attributes[name] = value  # By a subclass; `__init__` comes, and has its way.
    elif name == "_max_workers":
        service.max_workers = bound(value)
    elif value is not read(service, name):
        attributes[f"own {name}"] = value
        if name in _INSTEAD:
            _warn(f"{name} of one's own", _INSTEAD[name], stacklevel=3)


def warn_of_threads(cls: Any) -> None:
    """Warn of an `_adjust_thread_count` of one's own; but not where it does nothing: that
    of gevent's pool, whose `submit` does not come here either, is there to start no thread."""
    code = getattr(cls._adjust_thread_count, "__code__", None)
    if code is None or code.co_names:
        _warn("_adjust_thread_count of one's own", "daemon=True", stacklevel=3)


def _warn(what: str, instead: str, stacklevel: int) -> None:
    warnings.warn(
        f"{what} has no effect on a pool whose threads and queue are boundedexec's;"
        f" {instead} does that here",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )
