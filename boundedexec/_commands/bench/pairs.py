"""Measurements in pairs, and what they say.

The stdlib and the Service alternate, and alternate in which of them goes first, so
other load on the machine affects both. Each pair gives a ratio; the median of the
ratios is reported, with the least and the greatest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .row import Kind, Line, Row, Side
from .tools import Figures, NotMeasured

FEWEST_PAIRS = 5
"""With fewer pairs, the median is not judged."""

# Many times what the slowest row takes: a measurement that takes longer has hung.
TIME_LIMIT = 300.0

# The kinds of line for which the figures of all sides are needed.
_OF_ALL = {Kind.RATIO, Kind.INFORMATIVE}

Measure = Callable[[Row, Side, int], Figures]


class MeasurementFailed(Exception):
    """A measurement ended without figures; the message says how."""


@dataclass
class Outcome:
    """What was measured of one row."""

    row: Row
    size: int
    pairs: list[dict[Side, Figures]] = field(default_factory=list[dict[Side, Figures]])
    """Those that are complete."""
    not_measured: str = ""
    """Why this machine cannot measure the row."""
    failed: str = ""
    """What went wrong where it should have been measured."""
    interrupted: bool = False
    """Whether the user ended it before all pairs were measured."""

    def values(self, side: Side, figure: str) -> list[float]:
        """Return what the pairs say of `figure`, as far as the system reports it."""
        return [pair[side][figure] for pair in self.pairs if figure in pair[side]]


def measure_in_a_process(row: Row, side: Side, size: int) -> Figures:
    """Do one measurement in a fresh interpreter with the same `sys.path`.

    Raises `NotMeasured` if the machine cannot do it, `MeasurementFailed` if it failed.
    """
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from boundedexec._commands.bench.child import main\n"
        f"main({row.name!r}, {side.value!r}, {size!r})\n"
    )
    try:
        child = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        what = "it printed its figures and then hangs" if error.stdout else "it hangs"
        raise MeasurementFailed(f"{side.value}: {what} after {TIME_LIMIT:.0f} s") from None
    if child.returncode:
        last = (child.stderr.strip() or "no message").splitlines()[-1]
        raise MeasurementFailed(f"{side.value}: exit status {child.returncode}, {last}")
    answer = json.loads(child.stdout)
    if "not_measured" in answer:
        raise NotMeasured(answer["not_measured"])
    return {name: float(value) for name, value in answer["figures"].items()}


def measure_row(
    row: Row,
    scale: float,
    repeat: int,
    *,
    measure: Measure = measure_in_a_process,
    begin: Callable[[int], None] = lambda pair: None,
) -> Outcome:
    """Measure `row` in so many pairs; call `begin` with the number of each before it.

    Ctrl-C ends it after the last complete pair.
    """
    outcome = Outcome(row, row.scaled(scale))
    try:
        for pair in range(row.pairs(repeat)):
            begin(pair)
            order = [Side.SERVICE, Side.STDLIB] if pair % 2 else [Side.STDLIB, Side.SERVICE]
            # The floor comes last, so that it never separates a pair.
            sides = [side for side in [*order, Side.FLOOR] if side in row.sides]
            outcome.pairs.append({side: measure(row, side, outcome.size) for side in sides})
    except NotMeasured as error:
        outcome.not_measured = str(error)
    except MeasurementFailed as error:
        outcome.failed = str(error)
    except KeyboardInterrupt:
        outcome.interrupted = True
    return outcome


@dataclass(frozen=True)
class Verdict:
    """What the measurements say about one line of a row."""

    row: Row
    line: Line
    not_measured: str = ""
    failed: str = ""
    stdlib: float | None = None
    service: float | None = None
    floor: float | None = None
    ratio: float | None = None
    judged: float | None = None
    """The figure that is compared with the target."""
    spread: tuple[float, float] | None = None
    """The least and the greatest of the values that `judged` is taken from."""
    met: bool | None = None
    """Whether the target is met; None where that is not judged."""

    @property
    def label(self) -> str:
        """Return the name of the line."""
        return f"{self.row.name}, {self.line.label}" if self.line.label else self.row.name


def judge(outcome: Outcome, *, conclusive: bool) -> list[Verdict]:
    """Return a verdict for each line of the row of `outcome`.

    Without `conclusive`, no verdict says whether the target is met.
    """
    return [_judge_line(outcome, line, conclusive) for line in outcome.row.lines]


def _judge_line(outcome: Outcome, line: Line, conclusive: bool) -> Verdict:
    row = outcome.row
    if outcome.failed or outcome.not_measured:
        return Verdict(row, line, not_measured=outcome.not_measured, failed=outcome.failed)
    values = {side: outcome.values(side, line.figure) for side in row.sides}
    needed = row.sides if line.kind in _OF_ALL else [Side.SERVICE]
    if not all(values[side] for side in needed):
        return Verdict(row, line, not_measured="this system does not report it")
    stdlib, service = values.get(Side.STDLIB, []), values.get(Side.SERVICE, [])
    if line.kind is Kind.RATIO and min(stdlib) <= 0:
        return Verdict(row, line, not_measured="the stdlib's figure is zero at this size")
    ratios: list[float] = []
    if line.kind is Kind.RATIO:
        ratios = [mine / theirs for mine, theirs in zip(service, stdlib, strict=True)]
    judged_from = ratios or service or values[Side.FLOOR]
    judged = max(judged_from) if line.kind is Kind.NEVER_ABOVE else statistics.median(judged_from)
    enough = conclusive and len(judged_from) >= FEWEST_PAIRS
    return Verdict(
        row,
        line,
        stdlib=_median(stdlib),
        service=_median(service),
        floor=_median(values.get(Side.FLOOR, [])),
        ratio=_median(ratios),
        judged=judged,
        spread=(min(judged_from), max(judged_from)),
        met=_met(line, judged) if enough else None,
    )


def _met(line: Line, judged: float) -> bool | None:
    if line.target is None:
        return None
    return judged >= line.target if line.kind is Kind.AT_LEAST else judged <= line.target


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
