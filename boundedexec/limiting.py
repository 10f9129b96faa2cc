"""What a group hands over, and the line in which it waits for that where there is a limit.

It waits in the queue of a `Service` whose bodies hand over, and wait for what they handed
over. That costs a thread for each. But then waits lend, and circles are seen, as on any
Service, which futures of another kind would have to tell the core.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from .service import Service, slots_of


class Call:
    """A body whose failure is noted by the thread that executes it."""

    __slots__ = ("func", "note")

    def __init__(self, func: Callable[..., Any], note: Callable[[BaseException], None]) -> None:
        self.func = func  # What a person calls it by, see `name_of`.
        self.note = note

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.func(*args, **kwargs)
        except BaseException as error:
            self.note(error)
            del self, args, kwargs  # The traceback holds this frame.
            raise


class _Turn:
    """Its turn has come: hands over, and waits."""

    __slots__ = ("func", "line")

    def __init__(self, line: Line, func: Callable[..., Any]) -> None:
        self.line = line
        self.func = func  # As of `Call`.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        line, future = self.line, None
        try:
            future = line.executor.submit(self.func, *args, **kwargs)
            line.handed[future] = None
            if line.cancelled:  # Known, so look.
                future.cancel()
            return future.result()
        finally:
            line.handed.pop(future, None)
            del self, args, kwargs, line, future  # A traceback may hold this frame.


class Line(Executor):
    """Hands over to `executor`, of which it has at most `limit` futures that are not over."""

    def __init__(self, executor: Executor, limit: int) -> None:
        if isinstance(limit, bool) or not hasattr(limit, "__index__"):
            raise TypeError(f"limit must be an int or None, not {limit!r}")
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, not {limit!r}")
        # What a daemon abandons at exit is not waited for.
        daemon = isinstance(executor, Service) and slots_of(executor).settings.daemon
        self._service = Service(operator.index(limit), "TaskGroup", daemon=daemon)
        self.executor = executor
        self.handed: dict[Any, None] = {}
        self.cancelled = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._service.submit(_Turn(self, fn), *args, **kwargs)

    def cancel(self) -> None:
        """Cancel what was handed over, and what will be."""
        self.cancelled = True
        for future in list(self.handed):
            future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._service.shutdown(wait, cancel_futures=cancel_futures)
