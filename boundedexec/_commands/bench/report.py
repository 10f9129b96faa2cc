"""The table that a person reads and the JSON that a program reads."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from .pairs import FEWEST_PAIRS, Outcome, Verdict
from .row import Kind, Side
from .rows import free_threaded
from .tools import usable_processors

QUIET = 0.2
"""Other processes that use less of a processor than this do not affect the figures."""

HEADINGS = ("what", "stdlib", "Service", "floor", "ratio", "target", "spread", "met")


def machine() -> dict[str, Any]:
    """Return what a reader needs to compare the figures with those of another machine."""
    try:
        version = metadata.version("boundedexec")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "boundedexec": version,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "free_threaded": free_threaded(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "usable_processors": usable_processors(),
    }


def title() -> str:
    """Return the title of a chart of the ratios."""
    about = machine()
    return (
        "Service beside ThreadPoolExecutor, "
        f"{about['implementation']} {about['python']}"
        + (" free-threaded" if about["free_threaded"] else "")
        + f", {about['usable_processors']} processors"
    )


@dataclass(frozen=True)
class Processors:
    """How long the processors have worked, in seconds: in all, and for this run."""

    wall: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> Processors | None:
        """Return the state now, None without Linux's /proc."""
        try:
            with open("/proc/stat", encoding="ascii") as stat:
                user, nice, system, _, _, irq, softirq, steal = map(
                    int, stat.readline().split()[1:9]
                )
        except (OSError, ValueError):
            return None
        # Time that other guests of the host took (steal) was not available here either.
        ticks = user + nice + system + irq + softirq + steal
        return cls(
            wall=time.monotonic(),
            busy=ticks / os.sysconf("SC_CLK_TCK"),
            own=sum(os.times()[:4]),
        )


def others_busy(before: Processors | None, after: Processors | None) -> float | None:
    """Return how many processors other processes kept busy meanwhile, None if unknown."""
    if before is None or after is None or after.wall <= before.wall:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, others / (after.wall - before.wall))


def note_on_others(others: float | None) -> str:
    """Return a warning that the machine was busy, or an empty string."""
    if others is None or others < QUIET:
        return ""
    return (
        f"Other processes kept {others:.1f} processors busy meanwhile. That distorts the "
        "figures and widens the spreads; measure on a quiet machine."
    )


def heading(repeat: int, scale: float) -> str:
    """Return the text above the table."""
    about = machine()
    lines = [
        f"boundedexec {about['boundedexec']}, {about['implementation']} {about['python']}"
        + (" free-threaded" if about["free_threaded"] else "")
        + f", {about['system']}, {about['usable_processors']} processors;"
        f" {repeat} pairs or more, each measurement in a process of its own"
    ]
    if scale != 1:
        lines.append(f"Sizes are {scale:g} times the full ones: no verdicts.")
    if repeat < FEWEST_PAIRS:
        lines.append(f"Fewer than {FEWEST_PAIRS} pairs: no verdicts.")
    return "\n".join(lines)


def table(verdicts: Sequence[Verdict]) -> str:
    """Return the table, a line for each verdict."""
    body = [_cells(verdict) for verdict in verdicts]
    widths = [
        max(len(cells[column]) for cells in [HEADINGS, *body]) for column in range(len(HEADINGS))
    ]
    lines = [_aligned(HEADINGS, widths), "  ".join("-" * width for width in widths)]
    for verdict, cells in zip(verdicts, body, strict=True):
        line = _aligned(cells, widths)
        if verdict.failed:
            line = f"{line}  failed: {verdict.failed}"
        elif verdict.not_measured:
            line = f"{line}  not measured here: {verdict.not_measured}"
        lines.append(line)
    return "\n".join(lines)


def _cells(verdict: Verdict) -> tuple[str, ...]:
    unit = verdict.line.unit
    spread = ""
    if verdict.spread is not None:
        spread = " to ".join(number(value) for value in verdict.spread)
    return (
        verdict.label,
        amount(verdict.stdlib, unit),
        amount(verdict.service, unit),
        amount(verdict.floor, unit),
        "" if verdict.ratio is None else f"{verdict.ratio:.3f}",
        target(verdict),
        spread,
        {True: "yes", False: "no", None: ""}[verdict.met],
    )


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = [
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join([first, *others]).rstrip()


def target(verdict: Verdict) -> str:
    """Return the target as the table shows it."""
    line = verdict.line
    if line.target is None:
        return ""
    if line.kind is Kind.RATIO:
        return f"≤ {line.target:.2f}"
    sign = "≥" if line.kind is Kind.AT_LEAST else "≤"
    return f"{sign} {amount(line.target, line.unit)}"


def amount(value: float | None, unit: str) -> str:
    """Return `value` with its unit, or an empty string for None."""
    if value is None:
        return ""
    return f"{number(value)} {unit}"


def number(value: float) -> str:
    """Return `value` with three significant digits, or more where it is 1,000 or more."""
    if value == int(value):
        return f"{value:,.0f}"
    leading = math.floor(math.log10(abs(value)))
    return f"{value:,.{min(4, max(0, 2 - leading))}f}"


def document(
    outcomes: Sequence[Outcome],
    verdicts: Sequence[Verdict],
    *,
    repeat: int,
    scale: float,
    others: float | None,
) -> dict[str, Any]:
    """Return everything that was measured, as a JSON document."""
    by_row = {outcome.row.name: outcome for outcome in outcomes}
    return {
        "machine": machine(),
        "repeat": repeat,
        "scale": scale,
        "processors_busy_with_others": others,
        "lines": [_line_document(verdict, by_row[verdict.row.name]) for verdict in verdicts],
    }


def _line_document(verdict: Verdict, outcome: Outcome) -> dict[str, Any]:
    figure = verdict.line.figure
    return {
        "what": verdict.label,
        "row": verdict.row.name,
        "description": verdict.row.what,
        "size": outcome.size,
        "unit": verdict.line.unit,
        "kind": verdict.line.kind.value,
        "target": verdict.line.target,
        "stdlib": verdict.stdlib,
        "service": verdict.service,
        "floor": verdict.floor,
        "ratio": verdict.ratio,
        "spread": None if verdict.spread is None else list(verdict.spread),
        "met": verdict.met,
        "not_measured": verdict.not_measured or None,
        "failed": verdict.failed or None,
        "measurements": {
            side.value: [
                figures[figure] for figures in outcome.figures.get(side, []) if figure in figures
            ]
            for side in Side
            if side in outcome.row.sides
        },
    }
