"""The tape: where a trace keeps what it is told, until that is read.

A submission leaves one entry, when its body starts: it says when and on which thread that was
submitted, too, and when the body before it on the same worker was over. So while a trace is
on it costs a submission little more than one step of a deque.
"""

from __future__ import annotations

import itertools
from _thread import get_ident
from collections import deque
from collections.abc import Iterable
from typing import Any, TypeVar

from .._core.locking import exactly
from .._core.recording import Recorder, Start
from .._core.reporting import name_of
from .._core.state import Worker
from .._core.submission import Submission, clock
from .timeline import Event

T = TypeVar("T")

#: Of what a body waits for, how many are recorded.
_AWAITED = 20
#: Events are dropped in bunches: one for so many that are kept.
_BUNCHES = 8


class Tape(Recorder):
    """Keeps the latest `limit` starts of bodies, and as many other events."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._starts: deque[Start] = deque(maxlen=limit)
        self.started = self._starts.append  # type: ignore[method-assign]
        self._events: deque[Event] = deque()
        #: How many of `_events` were dropped.
        self._gone = 0
        #: Of each worker that has not ended, how many bodies had started there before; and how
        #: many have started since on the others.
        self._before: dict[Worker, int] = {}
        self._over = 0

    def begin(self, workers: Iterable[Worker]) -> None:
        """Those of a service that is recorded from now on; under the lock."""
        self._before.update((worker, worker.begun_bodies()) for worker in workers)

    def starts(self) -> list[Start]:
        return copied(self._starts)

    def events(self) -> list[Event]:
        return copied(self._events)[-self._limit :]

    def dropped(self) -> int:
        dropped = self._gone + max(0, len(self._events) - self._limit)
        if len(self._starts) == self._limit:
            # Nothing is counted for each start: workers know how many bodies they had.
            before = self._before.copy()
            begun = sum(worker.begun_bodies() for worker in before)
            started = begun - sum(before.values()) + self._over
            dropped += max(0, started - self._limit)
        return dropped

    def began(self, worker: Worker) -> None:
        self._before.setdefault(worker, 0)

    def ended(self, worker: Worker) -> None:
        exactly(self._count, 0, worker.begun_bodies() - self._before.pop(worker, 0))

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
        exactly(self._count, dropped, 0)

    def _count(self, dropped: int, started: int) -> None:
        self._gone += dropped
        self._over += started

    def cancelled(self, future: Submission[Any], fn: object) -> None:
        self._add("cancel", clock(), get_ident(), future.serial, future.submitter, name_of(fn))

    def rerun(self, run: Submission[Any], asked: int) -> None:
        run.submitter = get_ident()
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
