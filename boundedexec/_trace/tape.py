"""The tape: where a trace keeps what it is told, until that is read.

Of bodies it is told nothing: workers make notes (`_core.recording`), and it keeps their lists.
"""

from __future__ import annotations

import itertools
from _thread import get_ident
from collections import deque
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, TypeVar

from .._core.locking import exactly, locked
from .._core.recording import IDLE, NAMED, RAISED, Notes, Recorder
from .._core.reporting import name_of
from .._core.state import Worker
from .._core.submission import Submission, clock
from .timeline import Event, Noted

T = TypeVar("T")

#: Of what a body waits for, how many are recorded.
_AWAITED = 20
#: Events are dropped in bunches: one for so many that are kept.
_BUNCHES = 8


class Tape(Recorder):
    """Keeps what the notes say of the latest `limit` bodies, and as many other events."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # The next four change under the core's lock.
        #: Where each worker makes its notes, and the lists that are complete, the oldest first.
        self._current: dict[Worker, Notes] = {}
        self._complete: deque[tuple[Worker, Notes]] = deque()
        #: How many bodies there are in those, and how many were in those that were dropped.
        self._kept = self._dropped = 0
        self._events: deque[Event] = deque()
        #: How many of `_events` were dropped.
        self._gone = 0

    # Bodies.

    def noted(self, worker: Worker, notes: Notes) -> None:
        self._complete_notes(worker)
        self._current[worker] = notes

    def ended(self, worker: Worker) -> None:
        locked(self._complete_notes, worker)

    def _complete_notes(self, worker: Worker) -> None:
        notes = self._current.pop(worker, None)
        if not notes:
            return
        self._complete.append((worker, notes))
        self._kept += _count_bodies(notes)
        while self._kept - (oldest := _count_bodies(self._complete[0][1])) >= self._limit:
            self._complete.popleft()
            self._kept -= oldest
            self._dropped += oldest

    def _all_notes(self) -> list[tuple[Worker, Notes]]:
        return [(w, n.copy()) for w, n in (*self._complete, *self._current.items())]

    def bodies(self) -> list[Noted]:
        """In the order in which they began."""
        by_worker: dict[Worker, Notes] = {}
        for worker, notes in locked(self._all_notes):
            by_worker.setdefault(worker, []).extend(notes[: len(notes) // 3 * 3])
        found = (body for each in by_worker.items() for body in _read(*each))
        return sorted(found, key=attrgetter("start"))[-self._limit :]

    # Other events.

    def events(self) -> list[Event]:
        return copied(self._events)[-self._limit :]

    def dropped(self) -> int:
        dropped = self._gone + max(0, len(self._events) - self._limit) + self._dropped
        bodies = sum(_count_bodies(notes) for _, notes in locked(self._all_notes))
        return dropped + max(0, bodies - self._limit)

    def _add(self, *event: Any) -> None:
        self._events.append(event)
        if len(self._events) > self._limit + self._limit // _BUNCHES:
            self._drop()

    def _drop(self) -> None:
        dropped = 0
        while len(self._events) > self._limit:
            try:
                self._events.popleft()
            except IndexError:
                break  # Another thread does the same.
            dropped += 1
        exactly(self._count, dropped)

    def _count(self, dropped: int) -> None:
        self._gone += dropped

    def cancelled(self, future: Submission[Any], fn: object) -> None:
        self._add("cancel", clock(), get_ident(), future.serial, future.submitter(), name_of(fn))

    def rerun(self, run: Submission[Any], asked: int) -> None:
        run.value = get_ident()
        self._add("rerun", run.serial, get_ident(), asked)

    def waits(self, worker: Worker, node: Any) -> None:
        pending = itertools.islice(node.pending, _AWAITED)
        awaited = (future.serial for future in pending if isinstance(future, Submission))
        self._add("wait", clock(), worker, tuple(awaited), len(node.pending))

    def goes_on(self, worker: Worker) -> None:
        self._add("go on", clock(), worker)

    def lent(self, worker: Worker, future: Submission[Any] | None) -> None:
        if future is not None:
            self._add("lend", clock(), worker, future.serial)

    def yielded(self, worker: Worker) -> None:
        self._add("yield", clock(), worker)

    def resumes(self, worker: Worker) -> None:
        if not worker.slot:
            self._add("resume", clock(), worker)

    def resumed(self, worker: Worker) -> None:
        self._add("resumed", clock(), worker)


def _count_bodies(notes: Notes) -> int:
    kinds = notes[2::3]
    return len(kinds) - sum(map(kinds.count, (NAMED, RAISED, IDLE)))


def _read(worker: Worker, notes: Notes) -> Iterator[Noted]:
    """What the notes of `worker` say of its bodies."""
    name = "a submission"
    body: Noted | None = None
    for what, serial, kind in zip(notes[::3], notes[1::3], notes[2::3], strict=True):
        if kind is NAMED:
            name = what
        elif kind is RAISED:
            body = body and body._replace(raised=True)
        else:
            # It is idle, or the next body begins: the one before is over.
            if body is not None:
                yield body._replace(end=what)
            body = None if kind is IDLE else Noted(worker, what, None, serial, kind, name, False)
    if body is not None:
        yield body


def copied(present: deque[T]) -> list[T]:
    """The latest of a deque that others may be changing, the last ones last."""
    try:
        return list(present.copy())
    except RuntimeError:
        pass
    # Without a GIL others append meanwhile. From the right some are seen twice, none is missed.
    found: dict[T, None] = {}
    for place in range(1, len(present) + 1):
        try:
            found[present[-place]] = None
        except IndexError:
            break
    return list(found)[::-1]
