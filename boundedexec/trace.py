"""Trace: what services do, recorded, to be looked at as a timeline; loaded when asked for."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from ._core.locking import locked
from ._core.pool import living
from ._core.recording import recorders_of, recording, with_one, without
from ._core.reporting import name_of
from ._core.slots import queue_now
from ._core.state import Slots
from ._core.submission import PENDING, clock
from ._trace.tape import Tape
from ._trace.timeline import Queued, Timeline, timeline
from .service import Service, slots_of


class Trace:
    """Records what services do while the `with` block executes, and draws it.

    Args:
        services: those that are recorded. None named: all, also those made meanwhile.
        limit: how many starts of bodies are kept, the latest, and as many other events;
            `dropped` counts those that are not.

    Recorded are submit, start, lend, yield, resume, end, cancel and a Coalescer's re-run,
    with the time, the thread and the name of the callable: no argument, no result. What was
    submitted before is recorded from its start on. Traces may overlap. Entering and leaving
    the block never blocks; both may be done on any thread. `with` gives the Trace itself. It
    can be looked at while it is on, on any thread. It is entered once, and raises
    `RuntimeError` the second time; `ValueError` for a `limit` below 1.

    A notebook shows a trace by itself.
    """

    def __init__(self, *services: Service, limit: int = 100_000) -> None:
        if limit < 1:
            raise ValueError(f"limit must be 1 or more, not {limit!r}")
        for service in services:
            if not isinstance(service, Service):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"a Trace records services, not {service!r}")
        #: The slots of `services`; empty for all.
        self._only = [slots_of(service) for service in services]
        self._limit = limit
        self._tape = Tape(limit)
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
        self._tape = Tape(1)
        self._only.clear()

    def _turn(self, on: bool) -> None:
        tape, change = self._tape, with_one if on else without
        if not self._only:
            recording.recorder = change(recording.recorder, tape)
        for slots in self._recorded():
            if (tape in recorders_of(slots.recorder)) is not on:
                slots.record(change(slots.recorder, tape))

    def _recorded(self) -> list[Slots]:
        return self._only or living()

    @property
    def dropped(self) -> int:
        """How many events are not kept, because there were more than `limit` later ones; up
        to now, while the block executes. Never blocks."""
        return self._tape.dropped() if self._whole is None else self._whole.dropped

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was recorded up to now to a file, in the format that its name ends in.

        `.json`: the Trace Event format, for https://ui.perfetto.dev and the like. `.svg`: a
        picture. Replaces a file that is there. May be called during the block and after it, on
        any thread; never waits for what a body does. Raises `ValueError` for another ending,
        before any effect, and what writing a file raises.
        """
        text = _format(os.fspath(path))(self._timeline())
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def _timeline(self) -> Timeline:
        return self._read() if self._whole is None else self._whole

    def _read(self) -> Timeline:
        tape = self._tape
        bodies, events, queued = tape.bodies(), tape.events(), list(self._queued())
        # Last, so that nothing has begun after it; but what was begun as this was turned off.
        end = self._ended or clock()
        return timeline(bodies, events, queued, (self._began or end, end), tape.dropped())

    def _queued(self) -> Iterator[Queued]:
        for slots in self._recorded():
            for future in queue_now(slots)[: self._limit]:
                queued = Queued(future.serial, future.submitter(), name_of(future.callee()))
                if future.state is PENDING:
                    yield queued

    def _repr_svg_(self) -> str:
        return _format(".svg")(self._timeline())

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto">{self._repr_svg_()}</div>'

    def __repr__(self) -> str:
        state = "over" if self._whole else "on" if self._began else "not entered"
        return f"<Trace {state} dropped={self.dropped}>"


def record_until_exit(path: str) -> None:
    """Record all services until this process ends, and save that to `path` then: for the
    command line. Raises `ValueError` for an ending that `save` does not know."""
    _format(path)
    process = os.getpid()
    trace = Trace()

    def finish() -> None:
        if os.getpid() != process:
            return  # A forked child.
        trace.__exit__(None, None, None)
        try:
            trace.save(path)
        except OSError as error:
            print(f"boundedexec: can't write {path!r}: {error.strerror}", file=sys.__stderr__)

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
