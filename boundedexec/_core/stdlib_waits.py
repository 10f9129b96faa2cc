"""The stdlib's `wait` and `as_completed`, called in a body, lend as ours do.

They install a waiter in each future and block on the waiter's `event`. Where the thread
that installs it executes a body, that event becomes one whose `wait` lends.
"""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import time
from collections import OrderedDict
from typing import Any

from .blocking import block
from .graph import Node
from .submission import Submission, serial_of

_STDLIB = concurrent.futures.wait.__code__.co_filename
#: The waiter of `wait` for all of them; every other is content with one.
_AllCompleted = concurrent.futures._base._AllCompletedWaiter  # pyright: ignore[reportPrivateUsage]


class _StdlibWait(Node):
    """The event of a waiter that a body installs, and what it waits for."""

    def __init__(self, pending: dict[Any, None], any: bool) -> None:
        super().__init__()
        self.pending = pending
        self.any = any
        self._is_set = False

    def over(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self.ring()

    def clear(self) -> None:
        self._is_set = False

    def install(self) -> None:
        # It is installed. In the order of submission, in which slots are lent.
        self.pending = OrderedDict.fromkeys(sorted(self.pending, key=serial_of))

    def wait(self, timeout: float | None = None) -> bool:
        self.listen()
        if self._is_set or (timeout is not None and timeout <= 0):
            return self._is_set
        return block(self, None if timeout is None else time.monotonic() + timeout)


class Waiters:
    """A future's list of waiters, for a thread that executes a body."""

    def __init__(self, future: Submission[Any], waiters: list[Any]) -> None:
        self._future = future
        self._waiters = waiters

    def append(self, waiter: Any) -> None:
        event = getattr(waiter, "event", None)
        if type(event) is threading.Event:
            event = waiter.event = _StdlibWait(_foreign(), not isinstance(waiter, _AllCompleted))
        if isinstance(event, _StdlibWait):
            event.pending[self._future] = None
        self._waiters.append(waiter)

    def remove(self, waiter: Any) -> None:
        self._waiters.remove(waiter)
        event = getattr(waiter, "event", None)
        if isinstance(event, _StdlibWait):
            event.forget(self._future)


def _foreign() -> dict[Any, None]:
    """The futures of other packages among those that the stdlib's wait is for: they can
    end it, though they do not install themselves here."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    waited = frame.f_locals.get("fs", ()) if frame.f_code.co_filename == _STDLIB else ()
    return {future: None for future in waited if not isinstance(future, Submission)}
