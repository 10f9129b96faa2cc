"""Runs ``python -m boundedexec ...`` for tests, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import boundedexec

LIMIT = 60.0

# Ctrl-C works as at a terminal, whatever the process that runs these tests does with it. A
# command that hangs prints where.
START = f"""
import faulthandler, signal, sys
if sys.stderr is not None:
    faulthandler.dump_traceback_later({LIMIT * 0.75}, exit=True)
signal.signal(signal.SIGINT, signal.default_int_handler)
from boundedexec.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
COMMAND = [sys.executable, "-c", START]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(boundedexec.__file__).parents[1])}
# A buffer of the output is what the interpreter flushes once more at its end.
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)
ENVIRONMENT.pop("COLUMNS", None)


def run(
    *arguments: str | Path,
    stdout: int | IO[str] = subprocess.PIPE,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command line; `prefix` goes before it."""
    return subprocess.run(
        [*prefix, *COMMAND, *map(str, arguments)],
        env={**ENVIRONMENT, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=LIMIT,
        check=False,
    )
