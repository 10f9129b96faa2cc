"""What a type checker says of a piece of code."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import boundedexec

#: For modules whose tests need it.
checked_by_mypy = [
    pytest.mark.timeout(180),  # Without its cache mypy reads all of the stdlib's types.
    pytest.mark.skipif(
        importlib.util.find_spec("mypy") is None, reason="mypy is not installed here"
    ),
]


def rejected(source: str, where: Path) -> list[str]:
    """The lines of `source` that mypy --strict does not accept, each with what it says."""
    (where / "snippet.py").write_text(source + "\n")
    root = Path(boundedexec.__file__).parents[1]
    environment = dict(os.environ)
    if root.name not in ("site-packages", "dist-packages"):
        environment["MYPYPATH"] = str(root)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache"]
    ran = subprocess.run(
        [*command, "--follow-imports=silent", "snippet.py"],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    lines = source.splitlines()
    found = re.findall(r"^snippet\.py:(\d+): error: (.*)$", ran.stdout, re.MULTILINE)
    return [f"{lines[int(number) - 1].strip()}: {message}" for number, message in found]
