"""What services did while a program ran: for `python -m boundedexec run`.

Counting may happen anywhere, also in a signal handler or a `__del__`, and therefore takes
no lock. Single steps on dicts and sets are done in C, and a thread changes only the entries
under its own number.
"""

from __future__ import annotations

from _thread import get_ident

from .._core.recording import Recorder, Start, recording
from .._core.submission import SECOND


class Counts(Recorder):
    """What has happened up to now."""

    def __init__(self) -> None:
        # By the thread that it happened on, whose number may have been another's before.
        self._services: dict[int, int] = {}
        self._submissions: dict[int, int] = {}
        self._longest: dict[int, float] = {}
        self._alive: dict[object, None] = {}
        #: Every number of threads that there was at an instant.
        self._numbers = {0}
        # These change under the core's lock, but for the second.
        #: How often a body lent its slot to what it waited for.
        self.lends = 0
        #: How many waits could never have ended.
        self.circles = 0
        #: How many waits of a body ran out of time in a full pool.
        self.late = 0

    @property
    def services(self) -> int:
        """How many services were made, pools among them."""
        return sum(self._services.values())

    @property
    def submissions(self) -> int:
        """How many submissions were accepted, and have started or were cancelled."""
        return sum(self._submissions.values())

    @property
    def threads(self) -> int:
        """How many threads all services together had at most at an instant."""
        return max(self._numbers)

    @property
    def longest_wait(self) -> float:
        """The longest time, in seconds, from a call of `submit` to the start of its body."""
        return max(self._longest.values(), default=0.0)

    def made(self) -> None:
        _increment(self._services)

    def started(self, start: Start) -> None:
        _increment(self._submissions)
        waited = (start[1] - start[2]) / SECOND
        thread = get_ident()
        self._longest[thread] = max(self._longest.get(thread, 0.0), waited)

    def cancelled(self, future: object, fn: object) -> None:
        _increment(self._submissions)

    def began(self, worker: object) -> None:
        self._alive[worker] = None
        self._numbers.add(len(self._alive))

    def ended(self, worker: object) -> None:
        self._alive.pop(worker, None)

    def lent(self, worker: object, future: object) -> None:
        self.lends += 1

    def refused_circle(self) -> None:
        self.circles += 1

    def ran_out(self) -> None:
        self.late += 1


def count() -> Counts:
    """Count from now on, for the life of the process; call it once."""
    counts = recording.recorder = Counts()
    return counts


def _increment(numbers: dict[int, int]) -> None:
    thread = get_ident()
    numbers[thread] = numbers.get(thread, 0) + 1
