"""``python -m boundedexec run``: code, standard input, hooks that fail, where the report goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from run_helpers import RUN, assert_as_by_itself, python, said

SEES = """
import __main__, os, pickle, sys
def f(): pass
print(sys.argv, sys.path[:2], sorted(globals()), vars(__main__) is globals(), __builtins__)
print({name: globals().get(name) for name in ["__file__", "__loader__", "__package__", "__spec__"]})
print(pickle.loads(pickle.dumps(f)) is f, sys.modules["__main__"] is __main__, sys.flags)
if os.path.exists("beside.py"): import beside
print(sys.stdin.read())
"""


def test_code_runs_as_by_python_c(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("print(__name__)")
    assert_as_by_itself("-c", SEES, "-m", "x", "--workers", "0", "-h", "-", cwd=tmp_path)
    assert_as_by_itself("-c" + SEES, "--quiet", cwd=tmp_path, given="left to the program")
    assert_as_by_itself("-c", SEES, cwd=tmp_path, flags=("-P", "-O", "-X", "dev"))
    for code in ("", "-1", "--workers", "# coding: latin-1\nprint('\xe9')", "print(1", "if 1:"):
        assert_as_by_itself("-c", code, cwd=tmp_path)


def test_a_script_from_standard_input_runs_as_by_python(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("print(__name__)")
    assert_as_by_itself("-", "-m", "--report", "-c", cwd=tmp_path, given=SEES)
    assert_as_by_itself("-", cwd=tmp_path, given=SEES, flags=("-P", "-W", "error"))
    for source in ("", "# coding: utf-8\nprint('\xe9')", "print(1", "x = (\n\n1"):
        assert_as_by_itself("-", cwd=tmp_path, given=source)


RAISES = """
def f(n):
    if n: f(n - 1)
    raise {}
f(2)
"""


@pytest.mark.parametrize(
    "raised", ["ValueError('no')", "SystemExit(3)", "KeyError from ValueError()", "StopIteration"]
)
def test_a_traceback_of_code_shows_the_code_and_nothing_of_ours(raised: str) -> None:
    source = RAISES.format(raised)
    for done in (assert_as_by_itself("-c", source), assert_as_by_itself("-", given=source)):
        assert "boundedexec" not in done.stderr.replace(said(done)[0], "")


@pytest.mark.parametrize(
    "hook",
    [
        "def hook(*error): raise KeyError('of the hook')",
        "def hook(*error):\n try: 1 / 0\n except ArithmeticError as e: raise KeyError from e",
        "def hook(): pass",
        "def hook(*error): raise KeyboardInterrupt",
        "def hook(*error): sys.exit(7)",
        "def hook(kind, value, trace): print(sys.last_traceback is trace, sys.excepthook is hook)",
        "hook = None",
    ],
)
@pytest.mark.parametrize("error", ["1 / 0", "raise KeyboardInterrupt", "compile('(', 'x', 'exec')"])
def test_a_failing_excepthook_shows_nothing_of_ours(hook: str, error: str) -> None:
    source = f"import sys\n{hook}\nsys.excepthook = hook\ndef f(): {error}\nf()"
    alone = python("-c", source)
    done = python(*RUN, "--quiet", "-c", source)
    # From Python 3.14 on a hook that raises it ends the interpreter by the signal; here not.
    if "KeyboardInterrupt" not in hook or sys.version_info < (3, 14):
        assert done.returncode == alone.returncode
    assert (done.stdout, done.stderr) == (alone.stdout, alone.stderr)
    assert "runpy" not in done.stderr


@pytest.mark.parametrize("hook", ["def hook(kind, value, _): raise value", "del sys.excepthook"])
def test_a_hook_that_raises_the_same_or_is_taken_away_shows_nothing_of_ours(hook: str) -> None:
    # Their own frames in both tracebacks differ from Python to Python.
    source = f"import sys\n{hook}\nif 'hook' in globals(): sys.excepthook = hook\n1 / 0"
    done = python(*RUN, "--quiet", "-c", source)
    assert done.returncode == 1
    assert "runpy" not in done.stderr
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "boundedexec" not in done.stderr


# The report.


USES = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(1) as pool: print(pool.submit(pow, 2, 3).result())
"""


def test_quiet_writes_no_report() -> None:
    done = python(*RUN, "--quiet", "-c", USES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")
    done = python(*RUN, "--quiet", "-c", USES + "sys.stderr.write('mine'); sys.exit(4)")
    assert (done.returncode, done.stdout, done.stderr) == (4, "8\n", "mine")


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
@pytest.mark.parametrize("option", [["--report", "it"], ["--report=it"]])
def test_the_report_goes_to_a_file(option: list[str], quiet: list[str], tmp_path: Path) -> None:
    (tmp_path / "it").write_text("of an earlier run, and longer than what comes now" * 9)
    done = python(*RUN, *option, *quiet, "-c", USES + "os.chdir('/'); 1 / 0", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "8\n")
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    (line,) = (tmp_path / "it").read_text().splitlines()
    assert line.startswith("boundedexec: 1 service, 1 submission, at most 1 thread at a time")


def test_a_report_that_cannot_be_written_is_said_before_the_program_starts(tmp_path: Path) -> None:
    for file in ("missing/it", "."):
        done = python(*RUN, "--report", file, "-c", "print('started')", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"argument --report: can't write {file!r}: " in done.stderr


def test_a_report_that_cannot_be_written_at_the_end_goes_to_standard_error(tmp_path: Path) -> None:
    source = USES + "os.remove('folder/it'); os.rmdir('folder')"
    (tmp_path / "folder").mkdir()
    done = python(*RUN, "--report", "folder/it", "-c", source, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "8\n")
    why, report = said(done)
    assert why.startswith("boundedexec: can't write ")
    assert why.endswith("folder/it': No such file or directory")
    assert report.startswith("boundedexec: 1 service, 1 submission, ")


# The trace.


@pytest.mark.parametrize("option", [["--trace", "it.json"], ["--trace=it.json"]])
def test_what_the_pools_did_is_in_the_trace(option: list[str], tmp_path: Path) -> None:
    source = USES + "print(sys.argv); os.chdir('/'); 1 / 0"
    done = python(*RUN, *option, "-c", source, "--trace", "x", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "8\n['-c', '--trace', 'x']\n")
    assert said(done)[0].startswith("boundedexec: 1 service, 1 submission, ")
    events = json.loads((tmp_path / "it.json").read_text())["traceEvents"]
    assert [event["name"] for event in events if event.get("cat") == "body"] == ["pow"]


def test_a_trace_is_a_picture_where_its_name_says_so(tmp_path: Path) -> None:
    done = python(*RUN, "--quiet", "--trace", "it.svg", "-c", USES, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")
    assert "pow" in (tmp_path / "it.svg").read_text(encoding="utf-8")


def test_a_trace_that_cannot_be_written_is_said_before_the_program_starts(tmp_path: Path) -> None:
    for file, why in ("missing/it.svg", "can't write "), ("it.png", "must end in .json or .svg"):
        done = python(*RUN, "--trace", file, "-c", "print('started')", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "argument --trace: " in done.stderr
        assert why in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_trace_that_cannot_be_written_at_the_end_is_said_in_a_line(tmp_path: Path) -> None:
    source = USES + "os.remove('folder/it.svg'); os.rmdir('folder')"
    (tmp_path / "folder").mkdir()
    done = python(*RUN, "--trace", "folder/it.svg", "-c", source, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "8\n")
    why, report = said(done)
    assert why.startswith("boundedexec: can't write ")
    assert report.startswith("boundedexec: 1 service, 1 submission, ")


LATE = """
import threading
from concurrent.futures import ThreadPoolExecutor, wait
gate = threading.Event()

def waits():
    inner = pool.submit(gate.wait)
    try: inner.result(timeout=0.05)
    except TimeoutError: print("late")
    print(len(wait([inner, pool.submit(int)], timeout=0.05).not_done))
    gate.set()
    inner.result(timeout=60)

with ThreadPoolExecutor(1) as pool:
    pool.submit(waits).result()
    # In time, and outside of a body.
    pool.submit(lambda: pool.submit(int).result(timeout=60)).result()
    gate.clear()
    try: pool.submit(gate.wait).result(timeout=0.01)
    except TimeoutError: gate.set()
"""


def test_waits_that_ran_out_of_time_in_a_full_pool_are_counted() -> None:
    done = python(*RUN, "-c", LATE)
    assert (done.returncode, done.stdout) == (0, "late\n2\n")
    assert "boundedexec: 2 waits ran out of time in a full pool" in said(done)
