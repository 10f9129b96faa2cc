"""`python -m boundedexec bench`: what Service costs, compared with the stdlib's pool.

It reports only what it measures in this run. A target is met by the median of pairs that
were measured at full size.

* `row`, `rows`: what a row is; the rows with their targets;
* `submitting`, `waiting`, `system`, `tools`: the code that is timed;
* `child`: one measurement, in a process of its own;
* `pairs`: measuring in pairs, and the verdicts;
* `report`, `chart`: the table, the JSON, the picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from . import report
from .chart import chart
from .pairs import FEWEST_PAIRS, Outcome, judge, measure_row
from .row import Row
from .rows import all_rows

USAGE_ERROR = 2
FAILED = 1
INTERRUPTED = 130


class _UnknownRows(Exception):
    """No row has a name that was given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command on `parser`."""
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="measure only these rows; patterns such as 'throughput-*' are allowed",
    )
    parser.add_argument(
        "--repeat",
        type=_positive_int,
        default=FEWEST_PAIRS,
        metavar="N",
        help="measure each row in N pairs, some rows in three times as many (default: "
        "%(default)s; with fewer there are no verdicts)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write every measurement to FILE as JSON",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the ratios to FILE.svg")
    parser.add_argument(
        "--list",
        action="store_true",
        help="print the rows and what each measures, and exit",
    )
    # For tests: multiplies the sizes. The targets hold only for full sizes.
    parser.add_argument("--scale", type=_positive_float, default=1.0, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the requested files; return the exit status.

    0: all measurements ran, whatever the figures; 1: one failed, or a file could not be
    written; 2: a name matches no row. Takes minutes and starts processes.
    """
    try:
        rows = _selected(args.only)
    except _UnknownRows as error:
        print(f"bench: {error}", file=sys.stderr)
        return USAGE_ERROR
    if args.list:
        _print_rows(rows)
        return 0
    for path in (args.json, args.plot):
        if path is not None and not path.parent.is_dir():
            print(f"bench: {path.parent} is not a directory", file=sys.stderr)
            return USAGE_ERROR
    return _measure(rows, args)


def _measure(rows: Sequence[Row], args: argparse.Namespace) -> int:
    _print(report.heading(args.repeat, args.scale) + "\n")
    outcomes: list[Outcome] = []
    status = 0
    before = report.Processors.now()
    try:
        for index, row in enumerate(rows, 1):
            print(f"[{index}/{len(rows)}] {row.name}", file=sys.stderr, flush=True)
            outcomes.append(measure_row(row, args.scale, args.repeat))
    except KeyboardInterrupt:
        # The rows that were measured took minutes and are complete: report them.
        print("bench: interrupted", file=sys.stderr)
        status = INTERRUPTED
    others = report.others_busy(before, report.Processors.now())
    verdicts = [
        verdict for outcome in outcomes for verdict in judge(outcome, conclusive=args.scale == 1)
    ]
    _print(report.table(verdicts))
    if note := report.note_on_others(others):
        _print("\n" + note)
    if args.json is not None:
        document = report.document(
            outcomes, verdicts, repeat=args.repeat, scale=args.scale, others=others
        )
        status = _write(args.json, json.dumps(document, indent=2) + "\n") or status
    if args.plot is not None:
        status = _write(args.plot, chart(verdicts, title=report.title())) or status
    if any(outcome.failed for outcome in outcomes):
        status = status or FAILED
    return status


def _selected(names: Sequence[str] | None) -> list[Row]:
    rows = all_rows()
    if names is None:
        return list(rows)
    unknown = [name for name in names if not any(fnmatchcase(row.name, name) for row in rows)]
    if unknown:
        raise _UnknownRows(
            f"no row is called {', '.join(map(repr, unknown))}; the rows are: "
            + ", ".join(row.name for row in rows)
        )
    return [row for row in rows if any(fnmatchcase(row.name, name) for name in names)]


def _print_rows(rows: Sequence[Row]) -> None:
    width = max(len(row.name) for row in rows) + 2
    for row in rows:
        _print(
            textwrap.fill(
                row.what,
                width=96,
                initial_indent=row.name.ljust(width),
                subsequent_indent=" " * width,
            )
        )


def _print(text: str) -> None:
    # A console without ≤ or µ shows a question mark and keeps the layout.
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


def _write(path: Path, text: str) -> int:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"bench: cannot write {path}: {error}", file=sys.stderr)
        return FAILED
    return 0


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def _positive_float(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be greater than 0, not {text}")
    return number
