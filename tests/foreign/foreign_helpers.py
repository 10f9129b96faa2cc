"""What the tests of other libraries share: importing one, and running a program on one."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import FREE_THREADED, LIMIT
from run_helpers import ENVIRONMENT, RUN

#: Those that had no wheel for the newest Python, and for builds without a GIL.
NO_WHEEL = {
    "aiohttp", "debugpy", "eventlet", "gevent", "google.cloud.pubsub_v1", "grpc", "huggingface_hub",
    "ipykernel", "langchain_core", "moto", "sqlalchemy", "streamlit", "temporalio", "uvloop",
    "viztracer",
}  # fmt: skip
NO_WHEEL_HERE = sys.version_info >= (3, 15) or FREE_THREADED

#: How a program comes to its `Pool`.
FORMS = {
    "service": "from boundedexec import Service as Pool, as_completed, wait\n",
    "drop-in": "from boundedexec import ThreadPoolExecutor as Pool, as_completed, wait\n",
    "run": "from concurrent.futures import ThreadPoolExecutor as Pool, as_completed, wait\n",
}
every_form = pytest.mark.parametrize("form", FORMS)


def library(name: str) -> Any:
    """The library; a missing one is an error, or skips where it has no wheel."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if NO_WHEEL_HERE and any(name.startswith(each) for each in NO_WHEEL):
            pytest.skip(f"{name} has no wheel for this Python")
        raise


def command(form: str) -> list[str]:
    """What stands before the name of a program."""
    return [*RUN, "--quiet"] if form == "run" else []


def python(*arguments: str | Path, cwd: Path, **environment: str) -> list[str]:
    """The lines that it prints; it says nothing else, and ends well, in time."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**ENVIRONMENT, "PYTHONWARNINGS": "ignore", **environment},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * LIMIT,
        check=False,
    )
    print(done.stdout[-5000:], done.stderr[-5000:])
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def write(folder: Path, form: str, source: str) -> Path:
    """A program with its `Pool`."""
    path = folder / "program.py"
    path.write_text(f"FORM = {form!r}\n{FORMS[form]}{source}")
    return path


def run_program(folder: Path, form: str, source: str, **environment: str) -> list[str]:
    """What a program prints that finds `Pool` and `FORM`, in a process of its own."""
    return python(*command(form), write(folder, form, source), cwd=folder, **environment)
