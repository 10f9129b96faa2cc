"""How long the rest of a run takes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .row import Row


class Estimate:
    """The expected time of what is left, corrected by how long the rest of it took."""

    def __init__(self, rows: Sequence[Row], repeat: int, scale: float) -> None:
        self._rows = rows
        self._scale = scale
        self._expected = [row.seconds * row.pairs(repeat) for row in rows]
        self._start = time.monotonic()

    def left(self, index: int, pairs: int) -> str:
        """Return what is left, in words, once so many pairs of the row at `index` are done."""
        done = sum(self._expected[:index]) + self._rows[index].seconds * pairs
        left = sum(self._expected) - done
        if done:
            left *= (time.monotonic() - self._start) / done
        else:
            left *= self._scale
        return f"about {_roughly(left)} left"


def _roughly(seconds: float) -> str:
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{max(1, round(seconds / 5)) * 5} s"
