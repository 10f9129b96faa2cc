"""Running a program with and without ``python -m boundedexec run``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers import LIMIT

import boundedexec

RUN = ["-m", "boundedexec", "run"]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(boundedexec.__file__).parents[1]),
    "PYTHONDONTWRITEBYTECODE": "1",
}


def python(
    *arguments: str | Path, cwd: Path | None = None, given: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=ENVIRONMENT,
        cwd=cwd,
        input=given,
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The report, which stands last on standard error."""
    lines = done.stderr.splitlines()
    report = [line for line in lines if line.startswith("boundedexec: ")]
    assert report
    assert lines[-len(report) :] == report
    return report


def assert_as_by_itself(
    *arguments: str | Path,
    cwd: Path | None = None,
    flags: tuple[str, ...] = (),
    given: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run it with and without us: output, errors and status are the same."""
    alone = python(*flags, *arguments, cwd=cwd, given=given)
    done = python(*flags, *RUN, *arguments, cwd=cwd, given=given)
    errors = done.stderr.splitlines()
    if done.returncode >= 0 and "os._exit" not in done.stdout:
        errors = errors[: -len(said(done))]
    # `python -m` shows the frames of runpy, which are not the program's.
    runpy = r'  File "(<frozen runpy>|[^"]*\brunpy\.py)", .*\n(    .*\n)*'
    theirs = re.sub(runpy, "", alone.stderr).splitlines()
    assert (done.returncode, done.stdout, errors) == (alone.returncode, alone.stdout, theirs)
    return done
