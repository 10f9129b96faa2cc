"""Waiting for a service in a coroutine: the loop goes on, and no thread waits for it.

A thread that notices that nothing is outstanding calls `notify`. That passes it on to the
loop and takes no lock that the loop or a signal handler could hold:
`call_soon_threadsafe` appends to a deque and writes a byte. A loop that is closed by then
has nobody who waits.
"""

from __future__ import annotations

import asyncio
import threading

from .outstanding import is_idle, observe
from .state import Observer, Slots


class _Coroutine(Observer):
    """A coroutine in `wait_idle`; its future is done when nothing was outstanding."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.satisfied = False
        self.woken: asyncio.Future[None] = loop.create_future()
        self._loop = loop

    def notify(self) -> None:
        if self.satisfied:
            return
        self.satisfied = True
        try:
            self._loop.call_soon_threadsafe(self.wake)
        except RuntimeError:
            pass  # The loop is closed.

    def wake(self) -> None:
        if not self.woken.done():  # Two may have notified it.
            self.woken.set_result(None)


async def wait_idle(slots: Slots, timeout: float | None) -> bool:
    """Wait until nothing is outstanding; False when `timeout` passed first."""
    if is_idle(slots):
        return True
    observer = _Coroutine(asyncio.get_running_loop())
    seconds = None if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)
    try:
        observe(slots, observer)
        await asyncio.wait([observer.woken], timeout=seconds)
        return observer.satisfied or is_idle(slots)
    finally:
        slots.observers.pop(observer, None)
