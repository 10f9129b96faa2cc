"""The seam for those that follow what services do: `run`, and `Trace`.

Every service has a Recorder. Where that is not `SILENT`, its workers make *notes*: flat lists
of three entries, which the garbage collector does not look into.

| a note of | is |
|---|---|
| a body that starts | the time, its serial, the ident of the thread that submitted it |
| the callable of those that follow | its name, 0, `NAMED` |
| a body that has raised | 0, its serial, `RAISED` |
| a worker that goes idle | the time, 0, `IDLE` |

Times are on the clock of `Submission.serial`. The ident is None where it was not recorded.
So a body costs its submitter a call for that ident, and its worker a look at the clock and
three steps of a list; nothing else is in `loop._execute` and in `Service.submit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

#: Flat: three entries belong together; at the end some may be missing.
Notes: TypeAlias = "list[Any]"
NAMED = "named"
RAISED = "raised"
IDLE = "idle"
#: A worker goes on with another list when one has so many entries, nearly.
FULL_NOTES = 3 * 1024


class Recorder:
    """Told what happens; each method may be called on several threads at once.

    Those about a body are called on its thread, but for `lent`.
    """

    def noted(self, worker: Any, notes: Notes) -> None:
        """From now on the notes of `worker` go there; under the lock."""

    def rerun(self, run: Any, asked: int) -> None:
        """A Coalescer's re-run is about to be queued; its serial was `asked` until now."""

    def cancelled(self, future: Any, fn: object) -> None:
        """A submission was cancelled before it began; `fn` is what it would have called."""

    def began(self, worker: Any) -> None:
        """A thread has started."""

    def ended(self, worker: Any) -> None:
        """A thread is about to end; its notes are complete."""

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

    def gone(self, slots: Any) -> None:
        """A service is gone, and what it has counted goes now; anywhere, as a `__del__`."""


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
