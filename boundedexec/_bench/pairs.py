"""Measurements in pairs, and what they say.

The stdlib and the Service take turns, and take turns at going first, so what the
machine does meanwhile falls on both. A ratio is taken within a pair; the median
of the ratios is reported with the least and the greatest of them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .rows import Kind, Line, Row, Side
from .work import Figures, NotMeasured

FEWEST_PAIRS = 5
"""With fewer pairs, a median is no ground for a verdict."""

# Many times what the slowest row takes: a measurement that is not over by then hangs.
TIME_LIMIT = 300.0

Measure = Callable[[Row, Side, int], Figures]


class MeasurementFailed(Exception):
    """A measurement ended without figures; the message says how."""


@dataclass
class Outcome:
    """What came of one row."""

    row: Row
    size: int
    figures: dict[Side, list[Figures]] = field(default_factory=dict[Side, "list[Figures]"])
    not_measured: str = ""
    """Why this machine cannot measure the row."""
    failed: str = ""
    """What went wrong where it should have been measured."""


def measure_in_a_process(row: Row, side: Side, size: int) -> Figures:
    """Do one measurement in a fresh interpreter that finds what this one finds.

    Raises `NotMeasured` where the machine cannot do it, and `MeasurementFailed`
    where it went wrong.
    """
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from boundedexec._bench.child import main\n"
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
        what = "the figures are there, but it does not end" if error.stdout else "it hangs"
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
) -> Outcome:
    """Measure `row` in `repeat` pairs, or that many times `row.times`."""
    outcome = Outcome(row, row.scaled(scale))
    for pair in range(repeat * row.times):
        order = [Side.STDLIB, Side.SERVICE]
        if pair % 2:
            order.reverse()
        if Side.FLOOR in row.sides:
            # Last, so that it never stands between the two of a pair.
            order.append(Side.FLOOR)
        for side in order:
            try:
                figures = measure(row, side, outcome.size)
            except NotMeasured as error:
                outcome.not_measured = str(error)
                return outcome
            except MeasurementFailed as error:
                outcome.failed = str(error)
                return outcome
            outcome.figures.setdefault(side, []).append(figures)
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
    """The figure that is held against the target."""
    spread: tuple[float, float] | None = None
    """The least and the greatest of what `judged` is taken from."""
    met: bool | None = None
    """None where the measurements are no ground for a verdict."""

    @property
    def label(self) -> str:
        """Return the name of the line."""
        return f"{self.row.name}, {self.line.label}" if self.line.label else self.row.name


def judge(outcome: Outcome, *, conclusive: bool) -> list[Verdict]:
    """Return what `outcome` says about each line of its row.

    Only where it is `conclusive` does a verdict say whether the target is met.
    """
    return [_judge_line(outcome, line, conclusive) for line in outcome.row.lines]


def _judge_line(outcome: Outcome, line: Line, conclusive: bool) -> Verdict:
    if outcome.failed or outcome.not_measured:
        return Verdict(outcome.row, line, not_measured=outcome.not_measured, failed=outcome.failed)
    values = {
        side: [figures[line.figure] for figures in series if line.figure in figures]
        for side, series in outcome.figures.items()
    }
    service = values.get(Side.SERVICE, [])
    stdlib = values.get(Side.STDLIB, [])
    if not service or (line.kind is Kind.RATIO and not stdlib):
        return Verdict(outcome.row, line, not_measured="it is read from Linux's /proc")
    ratios: list[float] = []
    if line.kind is Kind.RATIO:
        if min(stdlib) <= 0:
            return Verdict(
                outcome.row,
                line,
                not_measured="the stdlib's figure is zero at this size",
            )
        ratios = [mine / theirs for mine, theirs in zip(service, stdlib, strict=True)]
    judged_from = ratios or service
    judged = max(judged_from) if line.kind is Kind.NEVER_ABOVE else statistics.median(judged_from)
    met = judged >= line.target if line.kind is Kind.AT_LEAST else judged <= line.target
    return Verdict(
        outcome.row,
        line,
        stdlib=_median(stdlib),
        service=_median(service),
        floor=_median(values.get(Side.FLOOR, [])),
        ratio=_median(ratios),
        judged=judged,
        spread=(min(judged_from), max(judged_from)),
        met=met if conclusive and len(service) >= FEWEST_PAIRS else None,
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
