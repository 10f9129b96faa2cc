"""The command line names what it offers, and what it did not understand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run

import boundedexec
from boundedexec.__main__ import COMMANDS

pytestmark = pytest.mark.timeout(120)

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the system has no /dev/full")


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"boundedexec {boundedexec.__version__}\n")


def test_help_has_a_line_and_an_example_for_each_command() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in COMMANDS:
        assert len(re.findall(rf"^  {name} +\w", done.stdout, re.MULTILINE)) == 1
        assert re.search(rf"^  python -m boundedexec {name} \S", done.stdout, re.MULTILINE)
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_help_of_its_own(name: str) -> None:
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m boundedexec {name} ")


def test_no_command_is_the_help_and_status_2() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run("--help").stdout


@pytest.mark.parametrize(
    ("words", "word"),
    [
        ("no", "no"),
        ("--no", "--no"),
        ("--no demo", "--no"),
        ("Demo", "Demo"),
        ("demo a b", "b"),
        ("demo --no", "--no"),
        ("demo --limit 0", "'0'"),
        ("demo --limit x", "'x'"),
        ("bench no", "no"),
        ("bench --repeat x", "'x'"),
    ],
)
def test_an_unknown_word_is_named_below_a_usage_line(words: str, word: str) -> None:
    done = run(*words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python -m boundedexec ")
    assert word in done.stderr.splitlines()[-1].split("error: ")[1]


COMMAND_LINES = ["--help", "demo --limit 0.1 {tmp_path}", "bench --list"]


@ON_LINUX
@pytest.mark.parametrize("words", COMMAND_LINES)
def test_a_full_output_is_one_line_and_status_1(words: str, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run(*words.format(tmp_path=tmp_path).split(), stdout=full)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"python -m boundedexec.*: cannot write: No space left on device", line)


@pytest.mark.skipif(os.name != "posix", reason="the system has no /bin/sh")
@pytest.mark.parametrize("words", COMMAND_LINES[1:])
@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_output_is_as_if_nobody_read_it(words: str, closing: str, tmp_path: Path) -> None:
    shell = ["/bin/sh", "-c", f'exec "$@" {closing}', "sh"]
    done = run(*words.format(tmp_path=tmp_path).split(), prefix=shell)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="the system has no such status")
@pytest.mark.parametrize("words", COMMAND_LINES)
def test_an_output_without_a_reader_ends_it_quietly(words: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        done = run(*words.format(tmp_path=tmp_path).split(), stdout=output)
    assert (done.returncode, done.stderr) == (141, "")


def test_python_m_is_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "boundedexec", "--version"],
        cwd=Path(boundedexec.__file__).parents[1],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout == run("--version").stdout
