"""`python -m boundedexec bench`: what Service costs, compared with the stdlib's pool.

It reports only what it measures in this run, each row when it is done. A target is met by
the median of pairs that were measured at full size.

* `row`, `rows`: what a row is; the rows with their targets;
* `submitting`, `waiting`, `system`, `tools`: the code that is timed;
* `child`: one measurement, in a process of its own;
* `pairs`: measuring in pairs, and the verdicts;
* `session`, `estimate`: a run of the command, and how long the rest of it takes;
* `report`, `chart`: the table, the JSON, the picture.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ..screen import Screen, width, wrapped
from .pairs import FEWEST_PAIRS
from .row import Row
from .rows import all_rows
from .session import Session

USAGE_ERROR = 2


class _UnknownRows(Exception):
    """No row has a name that was given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command on `parser`."""
    parser.description = (
        "Measure what Service costs beside ThreadPoolExecutor, row by row, each in pairs of "
        "fresh processes. Takes minutes; Ctrl-C ends it and keeps what was measured."
    )
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
        help="write every measurement to FILE as JSON, after each row",
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
    written; 2: a name matches no row; 130: interrupted. Takes minutes and starts processes.
    """
    try:
        rows = _selected(args.only)
    except _UnknownRows as error:
        _complain(str(error))
        return USAGE_ERROR
    screen = Screen(sys.stdout, sys.stderr, unencodable="replace")
    if args.list:
        _list(rows, screen)
        return 0
    for path in (args.json, args.plot):
        if path is not None and not path.parent.is_dir():
            _complain(f"{path.parent} is not a directory")
            return USAGE_ERROR
    session = Session(
        rows, screen, repeat=args.repeat, scale=args.scale, json_file=args.json, plot=args.plot
    )
    return session.measure()


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


def _list(rows: Sequence[Row], screen: Screen) -> None:
    indent = max(len(row.name) for row in rows) + 2
    for row in rows:
        screen.as_it_is(
            textwrap.fill(
                row.what,
                width(),
                initial_indent=row.name.ljust(indent),
                subsequent_indent=" " * indent,
            )
        )


def _complain(text: str) -> None:
    print(wrapped(f"python -m boundedexec bench: {text}"), file=sys.stderr)


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
