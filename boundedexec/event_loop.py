"""Waiting for a service in a coroutine: the loop goes on, and no thread waits for it.

Whoever notices that nothing is outstanding calls `notify`, on any thread and in
anything that may call `submit`. It hands the news to the loop and takes no lock that
the loop or a signal handler could hold: `call_soon_threadsafe` appends to a deque and
writes a byte. A loop that is closed by then has nobody who waits.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .slots import Observer


class Idling(Protocol):
    """What waiting needs of the slots of a service."""

    def idle(self) -> bool: ...
    def observe(self, observer: Observer, /) -> None: ...
    def forget(self, observer: Observer, /) -> None: ...


class _Observer:
    """A coroutine in `wait_idle`; its future is done when nothing was outstanding."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.satisfied = False
        self.woken: asyncio.Future[None] = loop.create_future()
        self._loop = loop

    def notify(self) -> None:
        if self.satisfied:
            return  # Told before; twice does no harm, for two threads at once.
        self.satisfied = True
        try:
            self._loop.call_soon_threadsafe(self.wake)
        except RuntimeError:
            pass  # The loop is closed.

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


async def wait_idle(slots: Idling, timeout: float | None) -> bool:
    """Wait until nothing is outstanding; False when `timeout` passed first."""
    if slots.idle():
        return True
    loop = asyncio.get_running_loop()
    observer = _Observer(loop)
    timer = None
    if timeout is not None:
        timer = loop.call_later(min(max(timeout, 0), threading.TIMEOUT_MAX), observer.wake)
    try:
        slots.observe(observer)
        await observer.woken
        return observer.satisfied or slots.idle()
    finally:
        slots.forget(observer)
        if timer is not None:
            timer.cancel()
