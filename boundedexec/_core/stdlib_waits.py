"""The stdlib's `wait` and `as_completed`, called in a body, lend as ours do.

They install a waiter in each future and block on the waiter's `event`. Where the thread
that installs it executes a body, that event becomes one whose `wait` lends.
"""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import time
from types import FrameType
from typing import Any

from .blocking import block
from .graph import Node
from .state import current_body
from .submission import Submission, serial_of

_STDLIB = concurrent.futures.wait.__code__.co_filename
#: The waiter of `wait` for all of them; every other is content with one.
_AllCompleted = concurrent.futures._base._AllCompletedWaiter  # pyright: ignore[reportPrivateUsage]


class _StdlibWait(Node):
    def __init__(self, pending: dict[Any, None], any: bool, event: threading.Event) -> None:
        super().__init__()
        self.pending = pending
        self.any = any
        self._event = event

    def over(self) -> bool:
        return self._event.is_set()


class _LendingEvent(threading.Event):
    """The event of a waiter that a body installs."""

    def __init__(self, waiter: Any, pending: dict[Any, None], any: bool) -> None:
        super().__init__()
        self._waiter = waiter
        #: What the waiter is installed in, and futures of other packages.
        self.pending = pending
        self.any = any
        self.node: Node | None = None

    def set(self) -> None:
        super().set()
        if self.node is not None:
            self.node.ring()

    def wait(self, timeout: float | None = None) -> bool:
        if current_body() is None or self.is_set() or (timeout is not None and timeout <= 0):
            return super().wait(timeout)
        # In the order of submission, in which slots are lent.
        pending = dict.fromkeys(sorted(self.pending, key=serial_of))
        # By the waiter, `graph` finds what waits for a future.
        node = self.node = self._waiter.node = _StdlibWait(pending, self.any, self)
        try:
            return block(node, None if timeout is None else time.monotonic() + timeout)
        finally:
            self.node = self._waiter.node = None
            del node


class Waiters:
    """A future's list of waiters, for a thread that executes a body."""

    def __init__(self, future: Submission[Any], waiters: list[Any]) -> None:
        self._future = future
        self._waiters = waiters

    def append(self, waiter: Any) -> None:
        event = getattr(waiter, "event", None)
        if type(event) is threading.Event:
            every = isinstance(waiter, _AllCompleted)
            others = _foreign(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
            event = waiter.event = _LendingEvent(waiter, others, not every)
        if isinstance(event, _LendingEvent):
            event.pending[self._future] = None
        self._waiters.append(waiter)

    def remove(self, waiter: Any) -> None:
        event = getattr(waiter, "event", None)
        if isinstance(event, _LendingEvent):
            event.pending.pop(self._future, None)
        self._waiters.remove(waiter)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._waiters, name)

    def __iter__(self) -> Any:
        return iter(self._waiters)

    def __len__(self) -> int:
        return len(self._waiters)


def _foreign(frame: FrameType) -> dict[Any, None]:
    """The futures of other packages among those that the stdlib's wait is for: they can
    end it, though they do not install themselves here."""
    while frame.f_back is not None and frame.f_back.f_code.co_filename == _STDLIB:
        frame = frame.f_back
        if "fs" in frame.f_locals:
            return {f: None for f in frame.f_locals["fs"] if not isinstance(f, Submission)}
    if frame.f_code.co_filename == _STDLIB and "fs" in frame.f_locals:
        return {f: None for f in frame.f_locals["fs"] if not isinstance(f, Submission)}
    return {}
