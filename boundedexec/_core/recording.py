"""The seam for those that follow what services do: `run`, and `Trace`.

Every service has a Recorder. One that does nothing, `SILENT`, is not told of what would cost
every submission something: that is behind `Slots.checked`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

#: Of the start of a body: its worker; when it starts, on the clock of `Submission.serial`;
#: its serial; the ident of the thread that submitted it, None where that was not recorded;
#: how many bodies have raised on this worker before; `Worker.idled`; its name.
Start: TypeAlias = "tuple[Any, int, int, int | None, int, int, str]"


class Recorder:
    """Told what happens; each method may be called on several threads at once.

    Those about a body are called on its thread, but for `lent`.
    """

    def started(self, start: Start, /) -> object:
        """A body is about to start. In an instance it may be a step of a deque."""

    def made(self) -> None:
        """A service was made."""

    def rerun(self, run: Any, asked: int) -> None:
        """A Coalescer's re-run is about to be queued; its serial was `asked` until now."""

    def cancelled(self, future: Any, fn: object) -> None:
        """A submission was cancelled before it began; `fn` is what it would have called."""

    def began(self, worker: Any) -> None:
        """A thread has started."""

    def ended(self, worker: Any) -> None:
        """A thread is about to end."""

    def waits(self, worker: Any, node: Any) -> None:
        """A body begins to wait for `node.pending`."""

    def goes_on(self, worker: Any) -> None:
        """That wait is over, and the body has its slot, or has run out of time."""

    def lent(self, worker: Any, future: Any) -> None:
        """A body has lent its slot to `future`: queued, or that of a body that resumes."""

    def yielded(self, worker: Any) -> None:
        """A body has given its slot away."""

    def resumes(self, worker: Any) -> None:
        """A body wants a slot again; it may have one by now."""

    def resumed(self, worker: Any) -> None:
        """A body that had given its slot away has one again."""

    def refused_circle(self) -> None:
        """A wait that could never end has raised."""

    def ran_out(self) -> None:
        """A body's wait has run out of time in a full pool."""


#: Where nobody wants to know.
SILENT = Recorder()


class _Several(Recorder):
    """What each of several is told."""

    def __init__(self, recorders: list[Recorder]) -> None:
        self.recorders = recorders
        for name in vars(Recorder):
            if not name.startswith("_"):
                setattr(self, name, _each([getattr(recorder, name) for recorder in recorders]))


def _each(methods: Iterable[Callable[..., None]]) -> Callable[..., None]:
    def tell(*args: object) -> None:
        for method in methods:
            method(*args)

    return tell


def recorders_of(recorder: Recorder) -> list[Recorder]:
    """Those that are told where `recorder` is."""
    if isinstance(recorder, _Several):
        return recorder.recorders
    return [] if recorder is SILENT else [recorder]


def with_one(recorder: Recorder, more: Recorder) -> Recorder:
    """What tells `more` as well; the same where it does already."""
    present = recorders_of(recorder)
    return recorder if more in present else _recorder([*present, more])


def without(recorder: Recorder, gone: Recorder) -> Recorder:
    """What does not tell `gone` any more."""
    return _recorder([each for each in recorders_of(recorder) if each is not gone])


def _recorder(recorders: list[Recorder]) -> Recorder:
    if len(recorders) > 1:
        return _Several(recorders)
    return recorders[0] if recorders else SILENT


class Recording:
    """Where services that are made from now on find their recorder."""

    recorder: Recorder = SILENT


recording = Recording()
