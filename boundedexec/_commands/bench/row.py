"""What a row of the benchmark is: its sides, its lines and their targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from .tools import Figures

Measurement = Callable[[int], Figures]
"""Does that many operations; returns the figures by name."""


class Side(Enum):
    """What does the work."""

    STDLIB = "stdlib"
    SERVICE = "service"
    FLOOR = "floor"


class Kind(Enum):
    """What a target bounds."""

    RATIO = "ratio at most"
    """The median over the pairs of Service to stdlib."""

    LIMIT = "at most"
    """The median of the Service's own figure."""

    NEVER_ABOVE = "never above"
    """The greatest of the Service's own figures."""

    AT_LEAST = "at least"
    """The median of the Service's own figure, from below."""

    INFORMATIVE = "no target"
    """Nothing: the figures are reported and not judged."""


@dataclass(frozen=True)
class Line:
    """One figure of a row: a line of the table."""

    figure: str
    unit: str
    kind: Kind
    target: float | None = None
    """None where the line is informative."""
    label: str = ""
    """What distinguishes the line from the others of its row."""
    target_without_gil: float | None = None
    """The target on a free-threaded interpreter; None where it is the same."""


@dataclass(frozen=True)
class Row:
    """What one measurement measures."""

    name: str
    what: str
    size: int
    """The number that a measurement is given: of operations, unless `what` says other."""
    sides: Mapping[Side, Measurement]
    lines: tuple[Line, ...]
    seconds: float
    """What a pair takes, roughly: for the estimate of what is left."""
    times: int = 1
    """Multiplies the number of pairs. More than 1 where the spread of single pairs is
    about as wide as the distance between the target and the expected median."""

    def pairs(self, repeat: int) -> int:
        """Return in how many pairs the row is measured."""
        return repeat * self.times

    def scaled(self, scale: float) -> int:
        """Return the size at `scale`, at least 1."""
        return max(1, round(self.size * scale))

    def without_gil(self) -> Row:
        """Return the row with the targets of a free-threaded interpreter."""
        lines = tuple(
            line
            if line.target_without_gil is None
            else replace(line, target=line.target_without_gil)
            for line in self.lines
        )
        return replace(self, lines=lines)
