"""``python -m boundedexec demo [DIR]``: what the package does, on real files.

Three parts, each beside ``ThreadPoolExecutor`` where that can do it at all: a
submission for every file, a walk in which every directory waits for those below
it, and a storm of change notices that a ``Coalescer`` folds into few runs. A fourth
takes the step to processes, which ``Service.over`` makes one line.

Every figure is measured in the run that prints it. The two executors alternate, so that
neither has the warmer cache or the quieter machine. The demo uses only the public names
of the package. No part takes longer than its time limit, however large DIR is: bodies
check a `Limit`, and the output says what was left out.

* `tree`: what is under DIR;
* `hashing`, `walking`, `storm`, `processes`: the parts;
* `comparing`: the time limit, and taking turns.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import sysconfig
import threading
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext

import boundedexec

from ..files import trace_file
from ..screen import Screen, count, shown
from .comparing import REFRESH, Times, seconds_shown
from .hashing import hash_files
from .processes import compute_in_processes
from .storm import storm
from .tree import look
from .walking import walk_directories

# Seconds that a pass over DIR may take; all passes together take under a minute.
_LIMIT = 8.0

_UNUSABLE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command on `parser`."""
    parser.description = (
        "Hash every file under DIR, walk its directories and coalesce a storm of change "
        "notices, beside ThreadPoolExecutor, and compute in processes. Nothing is written but "
        "what --trace asks for; under a minute."
    )
    parser.add_argument(
        "directory", nargs="?", metavar="DIR", help="default: Python's own standard library"
    )
    parser.add_argument(
        "--limit",
        type=_positive,
        default=_LIMIT,
        metavar="SECONDS",
        help="after this time in each part, leave out the rest of DIR (default: %(default)s)",
    )
    parser.add_argument(
        "--trace",
        type=trace_file,
        metavar="FILE",
        help="record what the services do, which takes time too, and write that to FILE, which "
        "ends in .svg or .json",
    )


def _positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be seconds, more than 0, not {text!r}")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Run the demo; return 0, or 1 if a part is broken, or 2 if DIR is unusable."""
    given: str | None = args.directory
    directory = sysconfig.get_path("stdlib") if given is None else given
    # Packages installed beside the standard library are not part of it.
    left_out = frozenset({"site-packages", "dist-packages"} if given is None else ())
    try:
        os.scandir(directory).close()
    except OSError as error:
        print(f"python -m boundedexec demo: {shown(directory)}: {error.strerror}", file=sys.stderr)
        return _UNUSABLE
    screen = Screen(sys.stdout, sys.stdout, unencodable="backslashreplace")
    recorded: AbstractContextManager[boundedexec.Trace | None]
    recorded = nullcontext() if args.trace is None else boundedexec.Trace()
    status: Future[int] = Future()

    def show() -> None:
        try:
            with recorded as trace:
                outcome = _show(directory, left_out, args.limit, screen)
            if trace is not None:
                trace.save(args.trace)
            status.set_result(outcome)
        except BaseException as error:
            status.set_exception(error)

    # Ctrl-C interrupts the main thread anywhere. In a weakref's callback it would be
    # lost, and in the submit of a ThreadPoolExecutor a lock would stay locked; so the main
    # thread only waits here. It wakes up regularly, because a signal that another thread
    # receives does not wake it.
    threading.Thread(target=show, daemon=True).start()
    try:
        while not boundedexec.wait([status], timeout=REFRESH).done:
            pass
        return status.result()
    finally:
        screen.progress("")


def _show(directory: str, left_out: frozenset[str], seconds: float, screen: Screen) -> int:
    screen.line(f"boundedexec demo, Python {platform.python_version()}, on {shown(directory)}")
    tree = look(directory, left_out, seconds, screen)
    so_far = "" if tree.complete else " (then the time for listing them was over)"
    screen.line(
        f"{count(len(tree.files), 'file')} in "
        f"{count(tree.directories, 'directory', 'directories')}, "
        f"{count(tree.depth, 'level')} deep{so_far}"
    )
    hashed, hashing = hash_files(tree, seconds, screen)
    walking = walk_directories(tree, seconds, screen)
    fresh, notices = storm(hashed, seconds, screen)
    agree, computing = compute_in_processes(hashed, seconds, screen)
    parts = {"1. hash": hashing, "2. walk": walking, "3. storm": notices, "4. words": computing}
    _summarize(parts, screen)
    return 0 if fresh and agree else 1


def _summarize(parts: dict[str, Times | None], screen: Screen) -> None:
    measured = {name: times for name, times in parts.items() if times is not None}
    screen.line()
    if not measured:
        screen.line(
            "There was nothing to compare. Without DIR, the demo takes Python's standard library."
        )
        return
    # As wide as a narrow screen.
    screen.as_it_is(f"{'time':<8}{'Service':>11}{'ThreadPoolExecutor':>21}")
    for name, times in measured.items():
        screen.as_it_is(
            f"{name:<8}{seconds_shown(times.service):>11}{times.pool_shown():>21}".rstrip()
        )
    screen.line("medians; the two took turns on the same work, all files read once before")
