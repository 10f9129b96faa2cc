"""The block of a `TaskGroup` that a coroutine executes; no thread waits for it.

What reaches the loop from other threads goes through `call_soon_threadsafe`. A loop that is
closed by then has nobody who waits. Imported by the first such block, for it needs asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any


class AsyncBlock:
    #: What a coroutine that is cancelled raises.
    Interrupt = asyncio.CancelledError

    def __init__(self, timeout: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(timeout)
        self._inside = False

    async def enter(self) -> None:
        await self._scope.__aenter__()
        self._inside = True

    def interrupt(self) -> None:
        """Have the block raise `CancelledError` where it awaits. From any thread."""
        self._call_soon(self._end_scope)

    def _end_scope(self) -> None:
        if self._inside and not self._scope.expired():
            self._scope.reschedule(self._loop.time())

    def _call_soon(self, step: Callable[[], object]) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(step)

    async def leave(self, kind: Any, exception: Any, trace: Any) -> bool:
        """Return whether `exception` is that of an interrupt, or of the time's end."""
        self._inside = False
        try:
            await self._scope.__aexit__(kind, exception, trace)
        except TimeoutError:
            return True
        finally:
            del exception, trace
        return False

    async def wait(self, future: Future[Any], timeout: float | None) -> None:
        """Return when `future` is over, or `timeout` seconds have passed."""
        woken: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(lambda _: self._call_soon(woken.cancel))
        await asyncio.wait((woken,), timeout=timeout)
