"""The lock of the slow path, and how it is held where a signal handler may interrupt.

One lock serves all services, for slots are lent across them. It is held briefly, never
while user code runs; `submit` takes it only where it fails, or `max_queued` may be reached. It
is reentrant, because the garbage collector may run a `__del__` that cancels or waits while this
thread holds it.
"""

from __future__ import annotations

import _thread
import os
import sysconfig
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

HAS_GIL = not sysconfig.get_config_var("Py_GIL_DISABLED")


class Lock(Protocol):
    def acquire(self, blocking: bool, /) -> bool: ...
    def release(self) -> None: ...


class Guard:
    """Where all rooms find the lock; a forked child has a new one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def renew(self) -> None:
        # Not released: a thread that does not exist here may hold the old one.
        self.lock = threading.RLock()

    def follow_patches(self) -> None:
        """Have the kind of lock that is made now: gevent may have come after the import.

        A lock of the interpreter's is reentrant for all greenlets, which share a thread.
        """
        if type(self.lock) is not type(threading.RLock()):
            self.renew()


guard = Guard()


class Sleeper:
    """A thread that sleeps until something has changed."""

    def __init__(self) -> None:
        #: Released to have the thread look again.
        self.lock = _thread.allocate_lock()
        self.lock.acquire()

    def ring(self) -> None:
        """Have the thread look again. May be called too often, and late."""
        try:
            self.lock.release()
        except RuntimeError:
            pass  # It has not looked since the last time.


def holding(lock: Lock, step: Callable[..., T], *args: Any) -> T:
    """Call `step` while `lock` is held; for what may run on the main thread.

    Not `with`: from Python 3.14 on a Ctrl-C can be raised between its acquire and the
    block, and then nobody releases the lock. Here the acquire happens inside the `try`,
    and what it returned is in the list before a signal is looked for.
    """
    held: list[bool] = []
    try:
        held += map(lock.acquire, (True,))
        outcome = step(*args)
    finally:
        if held:
            lock.release()
    return outcome


def locked(step: Callable[..., T], *args: Any) -> T:
    """`holding` the lock of the slow path."""
    return holding(guard.lock, step, *args)


def exactly(step: Callable[..., object], *args: Any) -> None:
    """Take a step that no other thread may interrupt, and that is one run (README.md, "What it
    stands on"): as it is with a GIL, under the lock of the slow path without."""
    if HAS_GIL:
        step(*args)
    else:
        locked(step, *args)


def headroom(levels: int = 25) -> None:
    """Raise `RecursionError` now, if the calls to come would raise it halfway.

    Called first by every step that must not be left half done. The calls beneath those
    steps nest less deeply than this.
    """
    if levels:
        headroom(levels - 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=guard.renew)
