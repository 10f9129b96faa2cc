"""The seam for `python -m boundedexec run`: what a program's services did.

The core calls a Recorder where there is one, and checks for None where there is none.
"""

from __future__ import annotations

from typing import Any


class Recorder:
    """Told what happens; each method may be called on several threads at once."""

    def made(self) -> None:
        """A service was made."""

    def submitted(self, future: Any) -> None:
        """A submission is about to be queued."""

    def started(self, future: Any) -> None:
        """Its body is about to start."""

    def began(self, thread: object) -> None:
        """A thread has started."""

    def ended(self, thread: object) -> None:
        """A thread is about to end."""

    def lent(self) -> None:
        """A body has lent its slot."""

    def refused_circle(self) -> None:
        """A wait that could never end has raised."""

    def ran_out(self) -> None:
        """A body's wait has run out of time in a full pool."""


class Recording:
    """Where services that are made from now on find their recorder."""

    recorder: Recorder | None = None


recording = Recording()
