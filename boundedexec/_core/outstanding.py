"""What is outstanding, and who waits until nothing is.

Nothing counts submissions. It is read off the queue, the slots and the few sets of what
neither says; README.md argues why these reads, in this order, are true of one instant.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from .locking import Sleeper, exactly, locked
from .state import Observer, Slots


def is_idle(slots: Slots) -> bool:
    """Whether there was an instant, since this was called, with nothing outstanding."""
    return locked(_is_idle, slots)


def _is_idle(slots: Slots) -> bool:
    return (
        not slots.queue  # explore: idle-queue
        and len(slots.free) == slots.opened  # explore: idle-slots
        and not slots.unslotted  # explore: idle-unslotted
        and not slots.in_transit  # explore: idle-in-transit
    )


def check_idle(slots: Slots) -> None:
    """Notify those who wait for it if nothing is outstanding."""
    # Who waits is read first: what was true before somebody came to wait is not for them.
    observers = list(slots.observers)
    if observers and is_idle(slots):
        for observer in observers:
            observer.notify()


class _SleepingThread(Sleeper, Observer):
    """A thread in `wait_idle`."""

    def notify(self) -> None:
        self.ring()


def leave_transit(slots: Slots, mark: object) -> None:
    """What was `in_transit` is over, or outstanding otherwise. Harmless when repeated."""
    # Under the lock: what is in transit while `_is_idle` looks at the slots still is when it
    # looks here, though by then a worker may have taken it.
    locked(slots.in_transit.discard, mark)  # explore: transit-locked
    if slots.observers:
        check_idle(slots)  # explore: failed-notifies


def wait_idle(slots: Slots, timeout: float | None = None) -> bool:
    """Wait until nothing is outstanding; False when `timeout` seconds passed first."""
    observer = _SleepingThread()
    seconds = -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)
    try:
        observe(slots, observer)
        return observer.lock.acquire(True, seconds) or is_idle(slots)
    finally:
        slots.observers.pop(observer, None)


def observe(slots: Slots, observer: Observer) -> None:
    """Notify `observer` when nothing is outstanding, until it is taken out. Never blocks."""
    slots.observers[observer] = None
    # A Ctrl-C in `submit`, or a thread that could not be started, may have left something
    # queued that no worker was woken for.
    signal_or_fail(slots)
    check_idle(slots)  # explore: observed-so-look


def signal_or_fail(slots: Slots) -> None:
    """Wake a worker for the queue, where nobody waits for what is raised if none can start."""
    try:
        slots.signal()
    except RuntimeError as error:
        fail_queued(slots, error)  # explore: signalled-or-failed


def fail_queued(slots: Slots, error: BaseException) -> None:
    """No thread can be started. Where nothing runs after which the start would be tried
    again, what is queued fails with `error`, for there is no caller to raise it to."""
    if not locked(slots.busy):
        fail_all(slots, lambda: error, "a submission for which no thread could be started")


def fail_all(slots: Slots, error: Callable[[], BaseException], name: str) -> None:
    """Fail what is queued; outstanding until the callbacks have run."""
    mark = object()
    slots.in_transit.add(mark)
    try:
        while slots.queue:
            try:
                future = slots.queue.popleft()
            except IndexError:
                break
            if future.claim():
                exactly(slots.count_failed)
                future.fail(error(), name)
    finally:
        try:
            exactly(slots.drop_dead)
            leave_transit(slots, mark)
        finally:
            slots.in_transit.discard(mark)  # A Ctrl-C came first: nobody else would.
