"""Trace: records what services do, to be looked at as a timeline; loaded when asked for.

A submission leaves one event, when its body starts: it says when and where that was
submitted, too, and when the body before it on the same thread was over. So while it is on, a
trace costs a submission two calls and one step on a deque; and nothing while it is off.
"""

from __future__ import annotations

import atexit
import itertools
import os
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from ._core.locking import exactly, locked
from ._core.pool import living
from ._core.recording import Recorder, Start, recorders_of, recording, with_one, without
from ._core.reporting import name_of
from ._core.state import Slots, Worker
from ._core.submission import PENDING, Submission, clock
from ._trace.timeline import Event, Queued, Timeline, timeline
from .service import Service, slots_of

T = TypeVar("T")

#: Of what a body waits for, how many are recorded.
_AWAITED = 20
#: Events are dropped in bunches: one for so many that are kept.
_BUNCHES = 8


class Trace(Recorder):
    """Records what services do while the `with` block executes, and draws it.

    Args:
        services: those that are recorded. None named: all, also those made meanwhile.
        limit: how many events are kept, the latest; `dropped` counts the others.

    Recorded are submit, start, lend, yield, resume, end, cancel and a Coalescer's re-run,
    with the time, the thread and the name of the callable: no argument, no result. What was
    submitted before is recorded from its start on. Traces may overlap. Entering and leaving
    the block never blocks; both may be done on any thread. A trace can be looked at while it
    is on; it can be entered once, and then raises `RuntimeError`.

    A notebook shows a trace by itself.
    """

    def __init__(self, *services: Service, limit: int = 100_000) -> None:
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, not {limit!r}")
        #: The slots of `services`; empty for all.
        self._only = [slots_of(service) for service in services]
        self._limit = limit
        #: The starts of bodies, each by one step in C; and what else has happened.
        self._starts: deque[Start] = deque(maxlen=limit)
        self.started = self._starts.append  # type: ignore[method-assign]
        self._events: deque[Event] = deque()
        #: How many of `_events` were dropped.
        self._gone = 0
        #: Of each worker that has not ended, how many bodies it had started before; and how
        #: many the others have started since.
        self._before: dict[Worker, int] = {}
        self._over = 0
        self._began = self._ended = 0
        #: What was recorded, once that is over; it refers to nothing of the services.
        self._whole: Timeline | None = None

    def __enter__(self) -> Self:
        if self._began:
            raise RuntimeError("a Trace records once: make another")
        self._began = clock()
        locked(self._turn, True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        locked(self._turn, False)
        self._ended = clock()
        self._whole = self._read()
        self._starts.clear()
        self._events.clear()
        self._before.clear()
        self._only.clear()

    def _turn(self, on: bool) -> None:
        change = with_one if on else without
        if not self._only:
            recording.recorder = change(recording.recorder, self)
        for slots in self._recorded():
            if (self in recorders_of(slots.recorder)) is not on:
                if on:
                    self._before |= {worker: _started(worker) for worker in slots.workers}
                slots.record(change(slots.recorder, self))

    def _recorded(self) -> list[Slots]:
        return self._only or living()

    @property
    def dropped(self) -> int:
        """How many events were dropped, because `limit` later ones are kept."""
        if self._whole is not None:
            return self._whole.dropped
        dropped = self._gone + max(0, len(self._events) - self._limit)
        if len(self._starts) == self._limit:
            # Nothing is counted for each: workers know how many bodies they had.
            workers = dict(self._before)
            started = sum(_started(worker) - before for worker, before in workers.items())
            dropped += max(0, self._over + started - self._limit)
        return dropped

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was recorded up to now to a file, in the format that its name ends in.

        `.json`: the Trace Event format, for https://ui.perfetto.dev and the like. `.svg`: a
        picture. Raises `ValueError` for another ending, and what writing a file raises.
        """
        text = _format(os.fspath(path))(self._timeline())
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def _timeline(self) -> Timeline:
        return self._read() if self._whole is None else self._whole

    def _read(self) -> Timeline:
        starts, events = _copied(self._starts), _copied(self._events)[-self._limit :]
        period = self._began, self._ended or clock()
        return timeline(starts, events, list(self._queued()), period, self.dropped)

    def _queued(self) -> Iterator[Queued]:
        for slots in self._recorded():
            for future in _copied(slots.queue)[: self._limit]:
                name = name_of(getattr(future, "fn", None))
                if future.state is PENDING:
                    yield Queued(future.serial, getattr(future, "value", None), name)

    def _repr_svg_(self) -> str:
        return _format(".svg")(self._timeline())

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto">{self._repr_svg_()}</div>'

    def __repr__(self) -> str:
        state = "over" if self._whole else "on" if self._began else "not entered"
        return f"<Trace {state} dropped={self.dropped}>"

    # Recording. (`started` is a step of the deque.)

    def began(self, thread: Any) -> None:
        self._before.setdefault(thread, 0)

    def ended(self, thread: Any) -> None:
        exactly(self._count, 0, _started(thread) - self._before.pop(thread, 0))

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
        submitter = getattr(future, "value", None)
        self._add("cancel", clock(), get_ident(), future.serial, submitter, name_of(fn))

    def rerun(self, run: Submission[Any], asked: int) -> None:
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
        self._add("resume", clock(), worker)

    def resumed(self, worker: Worker) -> None:
        self._add("resumed", clock(), worker)


def _copied(present: deque[T]) -> list[T]:
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


def record_until_exit(path: str) -> None:
    """Record all services until this process ends, and save that to `path` then: for the
    command line. Raises `ValueError` for an ending that `save` does not know."""
    _format(path)
    process = os.getpid()
    trace = Trace()

    def finish() -> None:
        if os.getpid() == process:  # Not in a forked child.
            trace.__exit__(None, None, None)
            trace.save(path)

    atexit.register(finish)
    trace.__enter__()


def _format(name: str) -> Callable[[Timeline], str]:
    """What makes the text of a file with that name. Loaded when it is asked for."""
    if name.endswith(".json"):
        from ._trace.event_format import to_json  # noqa: PLC0415

        return to_json
    if name.endswith(".svg"):
        from ._trace.drawing import to_svg  # noqa: PLC0415

        return to_svg
    raise ValueError(f"the name must end in .json or .svg, not {name!r}")


def _started(worker: Worker) -> int:
    """How many bodies have started on it."""
    return worker.completed + worker.failed + (worker.fn is not None)
