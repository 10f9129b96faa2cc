"""What services did while a program ran: for `python -m boundedexec run`.

Ordinary use pays nothing for it, because nothing in the rooms counts: `count` puts
functions of its own over a few of theirs, once and for the life of the process. Each
calls what it stands over, with its arguments, and leaves callables, futures, contexts
and tracebacks alone.

Counting may happen anywhere, also in a signal handler or a `__del__`, and therefore
takes no lock. It stands on this: single steps on dicts and sets are done in C, and a
thread changes only the entries under its own number.
"""

# The rooms share what users must not touch.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import functools
from _thread import get_ident
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import Any, TypeAlias

from . import slots, waiting
from .service import Service
from .threads import Worker
from .waiting import DeadlockError

_Function: TypeAlias = Callable[..., Any]


class Counts:
    """What has happened up to now."""

    def __init__(self) -> None:
        # By the thread that it happened on, whose number may have been another's before.
        self._services: dict[int, int] = {}
        self._submissions: dict[int, int] = {}
        self._longest: dict[int, float] = {}
        self._alive: dict[Worker, None] = {}
        #: Every number of threads that there was at an instant.
        self._numbers = {0}
        # These two change under the lock of the graph of those who wait.
        #: How often a body lent its slot to what it waited for.
        self.lent = 0
        #: How many waits could never have ended.
        self.circles = 0

    @property
    def services(self) -> int:
        """How many services were made, pools among them."""
        return sum(self._services.values())

    @property
    def submissions(self) -> int:
        """How many submissions were accepted."""
        return sum(self._submissions.values())

    @property
    def threads(self) -> int:
        """How many threads all services together had at most at an instant."""
        return max(self._numbers)

    @property
    def longest_wait(self) -> float:
        """The longest time, in seconds, from a call of `submit` to the start of its body."""
        return max(self._longest.values(), default=0.0)

    def made(self, original: _Function) -> _Function:
        @functools.wraps(original)
        def init(self_: Service, *args: Any, **kwargs: Any) -> None:
            original(self_, *args, **kwargs)
            _increment(self._services)

        return init

    def submitted(self, original: _Function) -> _Function:
        @functools.wraps(original)
        def submit(self_: Service, fn: _Function, /, *args: Any, **kwargs: Any) -> Future[Any]:
            asked = monotonic()
            future: Future[Any] = original(self_, fn, *args, **kwargs)
            _increment(self._submissions)
            # Its body may have started by now. Whoever of the two comes second finds
            # the other's time.
            started = vars(future).setdefault("_counted", asked)
            if started is not asked:
                self._note_wait(started - asked)
            return future

        return submit

    def executed(self, original: _Function) -> _Function:
        def execute(body: waiting.Body, future: Future[Any], fn: _Function) -> None:
            started = monotonic()
            asked = vars(future).setdefault("_counted", started)
            if asked is not started:
                self._note_wait(started - asked)
            del asked
            original(body, future, fn)
            # Tracebacks lead here through `f_back`: no way from here to the future.
            del body, future, fn

        return execute

    def ran(self, original: _Function) -> _Function:
        def main(worker: Worker) -> None:
            self._alive[worker] = None
            self._numbers.add(len(self._alive))
            try:
                original(worker)
            finally:
                del self._alive[worker]

        return main

    def lends(self, original: _Function) -> _Function:
        def lend(*args: Any) -> bool:
            lent: bool = original(*args)
            self.lent += lent
            return lent

        return lend

    def checked(self, original: _Function) -> _Function:
        def check(start: Any) -> None:
            try:
                original(start)
            except DeadlockError:
                self.circles += 1
                raise
            finally:
                del start  # The traceback holds this frame.

        return check

    def _note_wait(self, seconds: float) -> None:
        thread = get_ident()
        if seconds > self._longest.get(thread, 0.0):
            self._longest[thread] = seconds


def count() -> Counts:
    """Count from now on, for the life of the process; call it once."""
    counts = Counts()
    for owner, name, over in (
        (Service, "__init__", counts.made),
        (Service, "submit", counts.submitted),
        (Worker, "_main", counts.ran),
        (slots, "_execute", counts.executed),
        (waiting, "_lend_to", counts.lends),
        (waiting, "_check_circle", counts.checked),
    ):
        setattr(owner, name, over(getattr(owner, name)))
    return counts


def _increment(numbers: dict[int, int]) -> None:
    thread = get_ident()
    numbers[thread] = numbers.get(thread, 0) + 1
