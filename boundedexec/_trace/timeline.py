"""What a trace has recorded, as rows of nested spans and the arrows between them.

Events name workers, and the submissions by their serials. What is made of them here
refers to nothing of a service any more.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeAlias

from .._core.state import Worker

#: What else happened, when, and more that depends on it; see `Trace`.
Event: TypeAlias = "tuple[Any, ...]"


class Noted(NamedTuple):
    """A body that a worker made notes of."""

    worker: Worker
    start: int
    #: When the next began, or the worker went idle; None where neither has been.
    end: int | None
    serial: int
    #: The ident of the thread that submitted it; None where that was before the trace.
    submitter: int | None
    name: str
    raised: bool


class Queued(NamedTuple):
    """A submission that has not started."""

    serial: int
    #: The ident of the thread that submitted it; None where that was before the trace.
    submitter: int | None
    name: str


@dataclass(slots=True)
class Span:
    """Something that a thread does for a while. What begins within it ends within it."""

    #: `body`, and in that: `waits`, `lends`, `yielded`, `resuming`.
    kind: str
    name: str
    start: int
    end: int
    #: How many spans it is in.
    depth: int = 0
    #: Of a body: its number, in the order of submission, and when that was.
    number: int = 0
    submitted: int = 0
    #: Of a body: `returned`, `raised` or `running`.
    outcome: str = ""


class Mark(NamedTuple):
    """Something that a thread does at an instant: `submit`, `re-run`, `cancel`."""

    kind: str
    name: str
    time: int
    #: Of the submission.
    number: int


class Arrow(NamedTuple):
    """From a row and a time to another: `submit` to the start, `wait` to what is awaited,
    `lend` to what has the slot."""

    kind: str
    source: Row
    since: int
    target: Row
    until: int


@dataclass(slots=True, eq=False)
class Row:
    """A thread."""

    name: str
    number: int
    #: In the order in which they begin, the outer one first.
    spans: list[Span] = field(default_factory=list[Span])
    marks: list[Mark] = field(default_factory=list[Mark])


class Timeline(NamedTuple):
    """All of it; times are in nanoseconds, on the clock of `Submission.serial`."""

    start: int
    end: int
    dropped: int
    rows: list[Row]
    arrows: list[Arrow]
    #: How many have not started at the end.
    queued: int


def timeline(
    bodies: list[Noted],
    events: list[Event],
    queued: list[Queued],
    period: tuple[int, int],
    dropped: int,
) -> Timeline:
    """Read what was recorded. Whether the last body of a worker is over, that says itself."""
    rows, arrows = _Reader(bodies, events, queued, period).read()
    return Timeline(*period, dropped, rows, arrows, len(queued))


class _Body(NamedTuple):
    span: Span
    row: Row
    serial: int
    submitter: int | None


class _Reader:
    def __init__(
        self,
        noted: list[Noted],
        events: list[Event],
        queued: list[Queued],
        period: tuple[int, int],
    ) -> None:
        self._start, self._now = period
        self._noted = [body for body in noted if body.start <= self._now]
        self._events = sorted((e for e in events if e[1] <= self._now), key=itemgetter(1))
        self._queued = queued
        #: By worker, in the order in which they began.
        self._bodies: dict[Worker, list[_Body]] = {}
        #: By the serial of the submission, and of a re-run by what it was before that, too.
        self._by_serial: dict[int, _Body] = {}
        self._numbers: dict[int, int] = {}
        self._by_ident: dict[int, list[Worker]] = {}
        #: Threads that are no workers.
        self._others: dict[int, Row] = {}
        self._arrows: list[Arrow] = []

    def read(self) -> tuple[list[Row], list[Arrow]]:
        self._number_all()
        self._read_bodies()
        for event in self._events:
            if event[0] == "rerun" and event[1] in self._by_serial:
                self._by_serial[event[3]] = self._by_serial[event[1]]
        self._read_waits()
        self._read_marks()
        workers = [bodies[0].row for bodies in self._bodies.values()]
        rows = [*self._others.values(), *workers]
        for number, row in enumerate(rows, 1):
            row.number = number
            row.marks.sort(key=attrgetter("time"))
        return rows, self._arrows

    def _number_all(self) -> None:
        serials = {body.serial for body in self._noted}
        serials.update(event[3] for event in self._events if event[0] == "cancel")
        serials.update(each.serial for each in self._queued)
        self._numbers = {serial: number for number, serial in enumerate(sorted(serials), 1)}

    # Bodies.

    def _read_bodies(self) -> None:
        for noted in self._noted:
            bodies = self._bodies.setdefault(noted.worker, [])
            row = bodies[0].row if bodies else Row(noted.worker.name, 0)
            bodies.append(_Body(self._span(noted), row, noted.serial, noted.submitter))
            self._by_serial[noted.serial] = bodies[-1]
        for worker in self._bodies:
            self._by_ident.setdefault(worker.ident or 0, []).append(worker)

    def _span(self, body: Noted) -> Span:
        number, end = self._numbers[body.serial], body.end
        running = (end is None or end > self._now) and _executes(body.worker, body.serial)
        outcome = "running" if running else "raised" if body.raised else "returned"
        end = self._now if end is None else min(end, self._now)
        return Span("body", body.name, body.start, end, 0, number, body.serial, outcome)

    def _at(self, worker: Worker, time: int) -> _Body | None:
        """The body that `worker` executed at that time."""
        bodies = self._bodies.get(worker, [])
        place = bisect_right(bodies, time, key=lambda body: body.span.start) - 1
        return bodies[place] if place >= 0 and time <= bodies[place].span.end else None

    # What is in them.

    def _read_waits(self) -> None:
        of_body: dict[int, list[Event]] = {}
        for event in self._events:
            if isinstance(event[2], Worker):
                body = self._at(event[2], event[1])
                if body is not None:
                    of_body.setdefault(body.serial, []).append(event)
        for bodies in self._bodies.values():
            for body in bodies:
                body.row.spans.append(body.span)
                inner = _Inner(body.span)
                for event in of_body.get(body.serial, ()):
                    inner.take(event, self._title(event))
                body.row.spans += inner.finish()
                self._draw_waits(body, of_body.get(body.serial, ()), inner)

    def _title(self, event: Event) -> str:
        if event[0] == "wait":
            awaited, count = event[3], event[4]
            if len(awaited) == count == 1:
                return f"waits for {self._call(awaited[0])}"
            return f"waits for {count} futures"
        return f"lends its slot to {self._call(event[3])}" if event[0] == "lend" else event[0]

    def _call(self, serial: int) -> str:
        body = self._by_serial.get(serial)
        if body is None:
            number = self._numbers.get(serial)
            return "a submission" if number is None else f"#{number}"
        return f"#{body.span.number} {body.span.name}"

    def _draw_waits(self, body: _Body, events: Iterable[Event], inner: _Inner) -> None:
        for event in events:
            if event[0] == "wait":
                until = inner.ends.get(event[1], body.span.end)
                for serial in event[3]:
                    self._draw("wait", body, event[1], serial, until)
            elif event[0] == "lend":
                self._draw("lend", body, event[1], event[3], body.span.end)

    def _draw(self, kind: str, body: _Body, since: int, serial: int, latest: int) -> None:
        target = self._by_serial.get(serial)
        if target is None or target is body:
            return
        # To where it starts, or to what it does by then.
        until = max(since, target.span.start)
        if until <= min(latest, target.span.end):
            self._arrows.append(Arrow(kind, body.row, since, target.row, until))

    # Instants.

    def _read_marks(self) -> None:
        asked = {event[1]: event for event in self._events if event[0] == "rerun"}
        for bodies in self._bodies.values():
            for body in bodies:
                span = body.span
                kind = "re-run" if body.serial in asked else "submit"
                source = self._mark(kind, body.serial, body.submitter, span.name)
                if source is not None:
                    self._arrows.append(Arrow("submit", source, body.serial, body.row, span.start))
        for serial, submitter, name in self._queued:
            self._mark("submit", serial, submitter, name)
        for event in self._events:
            if event[0] == "cancel":
                _, time, ident, serial, submitter, name = event
                self._mark("submit", serial, submitter, name)
                mark = Mark("cancel", name, time, self._numbers[serial])
                self._row(ident, time).marks.append(mark)

    def _mark(self, kind: str, serial: int, submitter: int | None, name: str) -> Row | None:
        if submitter is None or serial < self._start:
            return None  # It was submitted before; another trace may know where.
        row = self._row(submitter, serial)
        row.marks.append(Mark(kind, name, serial, self._numbers[serial]))
        return row

    def _row(self, ident: int, time: int) -> Row:
        """The thread that had that number at that time."""
        workers = self._by_ident.get(ident, [])
        for worker in workers:
            if self._at(worker, time) is not None:
                return self._bodies[worker][0].row
        if ident not in self._others:
            self._others[ident] = Row(_name_of_thread(ident), 0)
        return self._others[ident]


class _Inner:
    """Makes spans of what a body went through, in the order in which it did."""

    def __init__(self, body: Span) -> None:
        self._body = body
        self._open: list[Span] = []
        self._all: list[Span] = []
        #: When each wait was over, by when it began.
        self.ends: dict[int, int] = {}

    def take(self, event: Event, title: str) -> None:
        what, time = event[0], event[1]
        if what == "wait":
            self._begin("waits", title, time)
        elif what == "yield":
            self._begin("yielded", "has given its slot away", time)
        elif what in ("lend", "resume") and self._open:
            if self._open[-1].kind == "lends":
                self._end(time)
            kind, name = ("lends", title) if what == "lend" else ("resuming", "wants a slot again")
            self._begin(kind, name, time)
        elif what == "go on":
            self._end_to("waits", time)
        elif what == "resumed":
            self._end_to("yielded", time)

    def _begin(self, kind: str, name: str, time: int) -> None:
        span = Span(kind, name, time, self._body.end, len(self._open) + 1)
        self._open.append(span)
        self._all.append(span)

    def _end_to(self, kind: str, time: int) -> None:
        """End the innermost of that kind; what began before the trace has none."""
        if any(span.kind == kind for span in self._open):
            while self._end(time).kind != kind:
                pass

    def _end(self, time: int) -> Span:
        span = self._open.pop()
        span.end = time
        self.ends[span.start] = time
        return span

    def finish(self) -> Iterator[Span]:
        return iter(self._all)


def _executes(worker: Worker, serial: int) -> bool:
    future = worker.future
    return future is not None and future.serial == serial and not future.done()


def _name_of_thread(ident: int) -> str:
    for thread in threading.enumerate():
        if thread.ident == ident:
            return thread.name
    return f"thread {ident}"
