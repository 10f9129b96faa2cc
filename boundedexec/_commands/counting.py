"""What services did while a program ran: for `python -m boundedexec run`.

It is read off the core's own counts. What the core does not know is how many threads there
were at most, and what the longest wait for a slot was.
"""

from __future__ import annotations

from typing import NamedTuple

from .._core.locking import locked
from .._core.pool import living
from .._core.recording import Notes, Recorder, recording
from .._core.state import Slots, Worker
from .._core.stats import stats
from .._core.submission import SECOND


class Done(NamedTuple):
    """What a service has done."""

    #: How many submissions were accepted.
    submissions: int
    #: How many slots bodies have lent to what they waited for.
    lends: int
    #: How many waits could never have ended, and how many ran out of time in a full pool.
    circles: int
    late: int


class Counts(Recorder):
    """What has happened up to now."""

    def __init__(self) -> None:
        #: Of services that are gone.
        self._gone: list[Done] = []
        # The next four change under the core's lock.
        self._threads = 0
        #: How many threads all services together had at most at an instant.
        self.most_threads = 0
        #: Where each worker makes its notes, and the longest wait in those before.
        self._notes: dict[Worker, Notes] = {}
        self._longest = 0

    def services(self) -> list[Done]:
        """What each has done that there was."""
        return [*self._gone, *map(_done, living())]

    def longest_wait(self) -> float:
        """The longest time, in seconds, from a call of `submit` to the start of its body."""
        locked(self._look_at_all)
        return self._longest / SECOND

    def gone(self, slots: Slots) -> None:
        self._gone.append(_done(slots))

    def began(self, worker: Worker) -> None:
        locked(self._count_threads, 1)

    def ended(self, worker: Worker) -> None:
        locked(self._look, worker)
        locked(self._count_threads, -1)

    def noted(self, worker: Worker, notes: Notes) -> None:
        self._look(worker)
        self._notes[worker] = notes

    def _count_threads(self, change: int) -> None:
        self._threads += change
        self.most_threads = max(self.most_threads, self._threads)

    def _look_at_all(self) -> None:
        for worker in list(self._notes):
            self._look(worker)

    def _look(self, worker: Worker) -> None:
        notes = self._notes.pop(worker, [])
        starts = zip(notes[::3], notes[1::3], notes[2::3], strict=False)
        waits = (time - serial for time, serial, kind in starts if not isinstance(kind, str))
        self._longest = max(self._longest, *waits, 0)


def _done(slots: Slots) -> Done:
    borrowed = slots.borrowed + sum(worker.borrowed for worker in list(slots.workers))
    return Done(stats(slots).submitted, borrowed, slots.circles, slots.late)


def count() -> Counts:
    """Count from now on, for the life of the process; call it once."""
    counts = recording.recorder = Counts()
    return counts
