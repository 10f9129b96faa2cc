"""The table that a person reads and the JSON that a program reads."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ... import __version__
from ..screen import count, wrapped
from .pairs import FEWEST_PAIRS, Outcome, Verdict
from .row import Kind, Line, Side
from .rows import free_threaded
from .tools import usable_processors

QUIET = 0.2
"""Other processes that use less of a processor than this do not affect the figures."""

# The columns and their widths: together with a space between them, 80 at most. A line is
# printed before those below it are measured, so the widths cannot depend on them.
COLUMNS = {
    "what": 22,
    "stdlib": 7,
    "Service": 7,
    "floor": 6,
    "unit": 4,
    "ratio": 5,
    "spread": 11,
    "target": 6,
    "met": 3,
}

# The label of a line says what else is counted.
UNITS = {"bytes": "B", "times": "×", "threads": "", "switches": ""}


def machine() -> dict[str, Any]:
    """Return what a reader needs to compare the figures with those of another machine."""
    return {
        "boundedexec": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "free_threaded": free_threaded(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": os.cpu_count(),
        "usable_processors": usable_processors(),
    }


def title() -> str:
    """Return the title of a chart of the ratios."""
    return f"Service beside ThreadPoolExecutor, {_interpreter(machine())}"


def _interpreter(about: dict[str, Any]) -> str:
    free_threaded = " free-threaded" if about["free_threaded"] else ""
    processors = f"{about['usable_processors']} processors"
    return f"{about['implementation']} {about['python']}{free_threaded}, {processors}"


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


def heading(repeat: int, scale: float) -> list[str]:
    """Return the lines above the table."""
    about = machine()
    lines = [
        f"boundedexec {about['boundedexec']}, {_interpreter(about)}, {about['system']}; "
        f"{count(repeat, 'pair')} or more, each measurement in a process of its own",
        "ratio: Service to stdlib, the median of the pairs; under 1, Service takes less",
        "spread: the least and the greatest of what the median was taken from",
    ]
    if scale != 1:
        lines.append(f"Sizes are {scale:g} times the full ones: no verdicts.")
    if repeat < FEWEST_PAIRS:
        lines.append(f"Fewer than {FEWEST_PAIRS} pairs: no verdicts.")
    return lines


def table_line(verdict: Verdict) -> str:
    """Return the line of the table for `verdict`; several where there is a reason for none."""
    if verdict.failed:
        return wrapped(f"{verdict.label}  failed: {verdict.failed}")
    if verdict.not_measured:
        return wrapped(f"{verdict.label}  not measured here: {verdict.not_measured}")
    line = verdict.line
    of_ratios = line.kind is Kind.RATIO
    return _aligned(
        verdict.label,
        number(verdict.stdlib),
        number(verdict.service),
        number(verdict.floor),
        UNITS.get(line.unit, line.unit),
        _ratio(verdict.ratio),
        "-".join((_ratio if of_ratios else number)(value) for value in verdict.spread or ()),
        target(line),
        {True: "yes", False: "no", None: ""}[verdict.met],
    )


def _aligned(first: str, *others: str) -> str:
    width, *widths = COLUMNS.values()
    cells = [cell.rjust(width) for cell, width in zip(others, widths, strict=True)]
    return " ".join([first.ljust(width), *cells]).rstrip()


TABLE_HEAD = "\n".join([_aligned(*COLUMNS), " ".join("-" * width for width in COLUMNS.values())])


def target(line: Line) -> str:
    """Return the target as the table shows it."""
    if line.target is None:
        return ""
    sign = "≥" if line.kind is Kind.AT_LEAST else "≤"
    value = f"{line.target:.2f}" if line.kind is Kind.RATIO else number(line.target)
    return f"{sign} {value}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def number(value: float | None) -> str:
    """Return `value` with three significant digits, or more where it is 1,000 or more."""
    if value is None:
        return ""
    if value == int(value):
        return f"{value:,.0f}"
    leading = math.floor(math.log10(abs(value)))
    return f"{value:,.{min(4, max(0, 2 - leading))}f}"


def document(
    outcomes: Sequence[Outcome],
    verdicts: Sequence[Verdict],
    *,
    complete: bool,
    repeat: int,
    scale: float,
    others: float | None,
) -> dict[str, Any]:
    """Return everything that was measured, as a JSON document."""
    by_row = {outcome.row.name: outcome for outcome in outcomes}
    return {
        "machine": machine(),
        "complete": complete,
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
            side.value: outcome.values(side, figure) for side in Side if side in outcome.row.sides
        },
    }
