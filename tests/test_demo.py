"""The demo says what it measured, on any directory, to a terminal and to a pipe."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import COMMAND, ENVIRONMENT, LIMIT, START, run

pytestmark = pytest.mark.timeout(120)


def demo(directory: Path, **environment: str) -> str:
    """The output of the demo on `directory`, where nothing is wrong with that."""
    done = run("demo", "--limit", "1", directory, environment=environment)
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout}{done.stderr}"
    assert max(map(len, done.stdout.splitlines())) <= 80
    return done.stdout


def unwrapped(output: str) -> str:
    """`output` with single spaces, where lines were broken too."""
    return " ".join(output.split())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Nine files in ten directories, four deep."""
    root = tmp_path / "tree"
    for one in "abc":
        for two in "xyz"[: "abc".index(one) + 1]:
            folder = root / one / two
            folder.mkdir(parents=True)
            (folder / "file").write_text(one + two)
    deepest = root / "a" / "x" / "deep" / "deeper"
    deepest.mkdir(parents=True)
    (deepest / "empty").touch()
    (root / "top").write_bytes(bytes(3_000_000))
    (root / "not quite").touch()
    return root


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A file that is hashed until the demo's limit, and takes no room on the disk."""
    (tmp_path / "long").mkdir()
    with open(tmp_path / "long" / "sparse", "wb") as file:
        file.truncate(1 << 36)
    return tmp_path / "long"


@contextmanager
def hashing(directory: Path, limit: str) -> Generator[subprocess.Popen[str]]:
    """A demo that has begun to hash `directory`."""
    with subprocess.Popen(
        [*COMMAND, "demo", "--limit", limit, str(directory)],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if "1 submission " in line:
                break
        try:
            yield process
        finally:
            process.kill()


def test_every_part_says_what_it_did_beside_the_pool(tree: Path) -> None:
    output = demo(tree)
    time = r"[\d.]+ m?s"
    assert "9 files in 12 directories, 4 levels deep" in output
    assert "9 submissions in" in output
    assert "hashed 9 files, 3.0 MB, in" in output
    assert re.search(rf"^1\. hash +{time} +{time}$", output, re.MULTILINE)
    assert "Service(2): 12 directories, 9 files, on " in output
    assert "as many as a plain loop counts" in output
    assert "each of its 2 threads waits for one still queued" in unwrapped(output)
    assert re.search(rf"^2\. walk +{time} +would hang$", output, re.MULTILINE)
    assert re.search(r"Coalescer on a Service: [\d,]+ submits, [\d,]+ runs?, ", output)
    assert "each file's last run saw its last change" in unwrapped(output)
    assert re.search(rf"^3\. storm +{time} +{time}$", output, re.MULTILINE)
    assert re.search(rf"ThreadPoolExecutor\(2\): {time}\n", output)
    assert re.search(rf"Service\.over\(ProcessPoolExecutor\(2\), 8\): {time}, ", output)
    assert "both counted the same; at most 8 were with the pool" in unwrapped(output)
    assert re.search(rf"^4\. words +{time} +{time}$", output, re.MULTILINE)


def test_a_trace_has_every_body_of_the_services(tree: Path, tmp_path: Path) -> None:
    done = run("demo", "--limit", "1", "--trace", tmp_path / "demo.json", tree)
    assert (done.returncode, done.stderr) == (0, "")
    events = json.loads((tmp_path / "demo.json").read_text())["traceEvents"]
    kinds = {event["cat"] for event in events if "cat" in event}
    assert {"submit", "body", "waits", "lends"} <= kinds
    done = run("demo", "--trace", tmp_path / "demo.txt", tree)
    assert (done.returncode, done.stdout) == (2, "")
    assert "must end in .json or .svg" in " ".join(done.stderr.split())


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_no_line_is_wider_than_the_screen(tree: Path, columns: int) -> None:
    (tree / ("a long name " * 9)).symlink_to("nowhere")
    (tree / ("a-longer-name" * 9)).symlink_to("nowhere")
    output = demo(tree, COLUMNS=str(columns))
    assert max(map(len, output.splitlines())) <= columns
    for text in ("as many as a plain loop counts", "a long name a long name", "would hang"):
        assert text in unwrapped(output)
    assert "a-longer-name" * 9 in "".join(output.split())


def test_an_empty_directory_is_not_compared(tmp_path: Path) -> None:
    output = demo(tmp_path)
    assert "0 files in 1 directory, 0 levels deep" in output
    assert "1. Hash every file: there is none" in output
    assert "2. Walk the tree: no directory lies below this one to wait for" in output
    assert "3. A storm of change notices: no file that could change" in output
    assert "4. The step to processes: no file to compute with" in output
    assert "There was nothing to compare." in output
    # No figure, of nothing or of something else.
    assert not re.search(r"\d m?s\b|ThreadPoolExecutor", output)


def test_directories_without_files_are_walked_alone(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    output = demo(tmp_path)
    assert "0 files in 4 directories, 2 levels deep" in output
    assert "1. Hash every file: there is none" in output
    assert re.search(r"^2\. walk +[\d.]+ m?s ", output, re.MULTILINE)
    assert not re.search(r"^(1\. hash|3\. storm)", output, re.MULTILINE)


def test_files_without_directories_are_not_walked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    output = demo(tmp_path)
    assert "no directory lies below this one" in output
    assert re.search(r"^1\. hash +[\d.]+ m?s ", output, re.MULTILINE)
    assert not re.search(r"^2\. walk", output, re.MULTILINE)


def test_on_a_pipe_there_are_plain_lines_alone(tree: Path) -> None:
    (tree / "red\x1b[31m\r\n").symlink_to("nowhere")
    (tree / "na\u00efve").symlink_to("nowhere")
    output = demo(tree, PYTHONIOENCODING="ascii")
    assert all(line.isprintable() and line.isascii() for line in output.split("\n"))
    assert r"     'red\x1b[31m\r\n': No such file" in output
    assert r"     na\xefve: No such file" in output


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals here")
def test_on_a_terminal_a_line_changes_in_place(long: Path) -> None:
    controller, terminal = os.openpty()
    with subprocess.Popen(
        [*COMMAND, "demo", str(long)], env=ENVIRONMENT, stdin=terminal, stdout=terminal
    ) as process:
        os.close(terminal)
        seen = b""
        while not re.search(rb"\r   hashed 0 of 1 file, 0 bytes", seen):
            seen += os.read(controller, 1000)
        process.kill()
    os.close(controller)


def test_what_cannot_be_read_is_counted_and_named(tree: Path) -> None:
    (tree / "gone").symlink_to("nowhere")
    (tree / "loop").symlink_to("loop")
    (tree / "a" / "up").symlink_to("..")
    os.mkfifo(tree / "pipe")
    output = demo(tree)
    assert "hashed 9 files" in output
    assert "3 could not be read:\n" in output
    assert "     gone: No such file or directory\n" in output
    assert "     loop: " in output
    assert "     pipe: not a regular file\n" in output
    assert "12 files, on" in output


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_what_may_not_be_read_is_counted_and_named(tree: Path) -> None:
    (tree / "top").chmod(0)
    (tree / "b").chmod(0)
    try:
        output = demo(tree)
        (tree / "b").chmod(0o700)
        tree.chmod(0)
        done = run("demo", tree)
    finally:
        tree.chmod(0o700)
        (tree / "b").chmod(0o700)
    assert "2 could not be read:\n" in output
    assert "     top: Permission denied\n" in output
    assert "     b: Permission denied\n" in output
    assert (done.returncode, done.stdout) == (2, "")


def test_a_file_that_vanishes_is_counted_and_named(tree: Path) -> None:
    # Vanishes after it was listed: there is no instant between the two to hit from
    # outside, so the listing is made to name it.
    lying = """
import os, sys
walk = os.walk
def lie(top, **options):
    for directory, below, files in walk(top, **options):
        yield directory, below, files + ["vanished"] * (directory == top)
os.walk = lie
"""
    done = subprocess.run(
        [sys.executable, "-c", lying + START, "demo", "--limit", "1", str(tree)],
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 could not be read:\n     vanished: No such file" in done.stdout
    assert "(a plain loop counted 12 and 10 before: they have changed)" in unwrapped(done.stdout)


@pytest.mark.parametrize("name", ["missing", "tree/top", ""])
def test_a_directory_of_no_use_is_one_line_and_status_2(tree: Path, name: str) -> None:
    directory = str(tree.parent / name) if name else ""
    done = run("demo", directory)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"python -m boundedexec demo: {directory or repr('')}: ")


def test_ctrl_c_ends_it_promptly_with_one_line(long: Path) -> None:
    with hashing(long, "40") as process:
        process.send_signal(signal.SIGINT)
        # Far less than the limit, and enough for a slow machine.
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "")
    assert errors == "python -m boundedexec demo: interrupted\n"


def test_a_reader_that_goes_away_ends_it_quietly(long: Path) -> None:
    with hashing(long, "1") as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        # It finds out when it writes the next line, at the limit.
        assert process.stderr.read() == ""
        assert process.wait(LIMIT) == 141


def test_what_takes_longer_than_the_limit_is_left_out(long: Path) -> None:
    output = demo(long)
    assert "hashed 0 files" in output
    assert "1 file left out: the time for this part was over" in output
