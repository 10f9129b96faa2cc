"""Failures that reach no caller go to the logger `boundedexec`."""

from __future__ import annotations

import _thread
import logging
import operator
import os
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

_logger = logging.getLogger("boundedexec")


class _Reports:
    """Logs failures; what a broken handler raises ends here.

    A future may be dropped anywhere, also while this thread logs the failure of another.
    CPython 3.13.5 omits what is logged in between, so that waits for its turn.
    """

    def __init__(self) -> None:
        self.forget()
        # Not globals: at the interpreter's end those may be gone.
        self._log: Callable[..., None] = _logger.error
        self._call: Callable[..., Any] = operator.call
        self._ident = _thread.get_ident
        self._table: dict[int, threading.Thread] = vars(threading)["_active"]
        #: Stands in the table for a thread that is not there (it has all but ended, or
        #: Python did not start it), for `logging` would add an entry that stays.
        self._unlisted = threading.Thread(name="Dummy", daemon=False)

    def __call__(
        self, *message: object, exception: BaseException, context: Context | None = None
    ) -> None:
        """Log `message`, a format and its arguments, in that context."""
        # A copy, for the context may be entered somewhere at this moment.
        run = self._call if context is None else context.copy().run
        # Not the exception itself: `logging` would ask whether it is true.
        info = type(exception), exception, exception.__traceback__
        self._waiting.append((run, message, info))
        thread = self._ident()
        # Again, for one may come between the last look and the end.
        while self._waiting and thread not in self._logging:
            try:
                self._logging.add(thread)
                self._table.setdefault(thread, self._unlisted)
                while self._waiting:
                    run, message, info = self._waiting.popleft()
                    run(self._log, *message, exc_info=info)
            except BaseException:
                pass
            finally:
                self._logging.discard(thread)
                if self._table.get(thread) is self._unlisted:
                    self._table.pop(thread)

    def forget(self) -> None:
        """At first, and in a forked child: nobody is logging."""
        self._waiting: deque[tuple[Callable[..., Any], tuple[object, ...], Any]] = deque()
        #: The threads that are logging.
        self._logging: set[int] = set()


report = _Reports()


def name_of(fn: object) -> str:
    """What a person calls `fn`. Never its `repr`, which may be large, slow or broken."""
    try:
        for _ in range(8):  # A `functools.partial`, also of another, by what it calls.
            inner = getattr(fn, "func", fn)
            if inner is fn:
                break
            fn = inner
        return str(getattr(fn, "__qualname__", None) or type(fn).__qualname__)
    except BaseException:
        return type(fn).__qualname__


class Failure:
    """An exception and whether anybody asked for it. Reports it when dropped unasked."""

    __slots__ = ("exception", "name", "details", "asked", "context")

    def __init__(
        self,
        exception: BaseException,
        name: str,
        asked: bool,
        context: Context | None = None,
        details: str = "",
    ) -> None:
        self.exception = exception
        #: What raised it is called, and what more can be said of that.
        self.name = name
        self.details = details
        self.asked = asked
        self.context = context

    def ask(self) -> BaseException:
        """The exception, for somebody who asked for it."""
        self.asked = True
        return self.exception

    def __del__(self, report: Callable[..., None] = report) -> None:
        # Nothing global in here, either.
        if self.asked:
            return
        try:
            words = repr(self.exception)
        except BaseException:
            words = type(self.exception).__qualname__
        call = self.name + self.details
        message = "nobody asked for the exception of %s: %s", call, words
        report(*message, exception=self.exception, context=self.context)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=report.forget)
