"""``python -m boundedexec run``: the program is its own in every way but for its pools."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import LIMIT, THREADS_INHERIT_CONTEXT
from run_helpers import ENVIRONMENT, RUN, assert_as_by_itself, python, said


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a script of its source."""

    def make(source: str) -> Path:
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return path

    return make


def with_pools(path: Path, *arguments: str) -> tuple[list[str], list[str]]:
    """What a program that ends well prints, and what is reported of it."""
    done = python(*RUN, *arguments, path)
    report = said(done)
    assert (done.returncode, done.stderr.splitlines()) == (0, report)
    return done.stdout.splitlines(), report


# The program is its own.


def test_it_has_its_arguments_its_path_and_its_main(
    program: Callable[[str], Path], tmp_path: Path
) -> None:
    path = program("""
        import __main__, pickle, sys
        def f(): pass
        class C: pass
        names = ["__name__", "__file__", "__spec__", "__package__", "__doc__"]
        print(sys.argv, sys.path[0], {name: globals()[name] for name in names})
        print(sorted(globals()), __builtins__, type(__loader__), vars(__main__) is globals())
        print(pickle.loads(pickle.dumps(f)) is f, type(pickle.loads(pickle.dumps(C()))) is C)
        print(sys.modules["__main__"] is __main__, sys.flags)
    """)
    assert_as_by_itself(path, "-m", "x", "--workers", "0", "-h", "--", "")
    assert_as_by_itself("program.py", cwd=tmp_path)
    assert_as_by_itself("./../" + tmp_path.name + "/program.py", "--help", cwd=tmp_path)
    assert_as_by_itself(path, flags=("-O", "-W", "error", "-X", "dev"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(path)
    assert_as_by_itself(Path("elsewhere") / "link", cwd=tmp_path)


def test_it_imports_what_lies_beside_it_and_not_what_lies_where_it_is_started(
    program: Callable[[str], Path], tmp_path: Path
) -> None:
    path = program("import beside; print(beside.value); import elsewhere_only")
    (tmp_path / "beside.py").write_text("value = 1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "elsewhere_only.py").touch()
    done = assert_as_by_itself(path, cwd=elsewhere)
    assert (done.returncode, done.stdout) == (1, "1\n")


@pytest.mark.parametrize(
    "source",
    [
        "pass",
        "import sys; sys.exit()",
        "import sys; sys.exit(0)",
        "import sys; sys.exit(7)",
        "import sys; sys.exit('what went wrong')",
        "import sys; sys.exit([1])",
        "raise SystemExit(3)",
        "import sys; sys.excepthook = lambda *error: print(*error[:2]); 1 / 0",
        "import sys; sys.excepthook = lambda *error: sys.exit(5); 1 / 0",
        "import os; print('os._exit', flush=True); os._exit(9)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import threading, sys; threading.Thread(target=sys.exit, args=(4,)).start()",
        "import atexit; atexit.register(print, 'at exit'); 1 / 0",
        "import sys; print('out'); print('err', file=sys.stderr); sys.stderr = None",
        "def f(): f()\nimport sys; sys.setrecursionlimit(60)\ntry: f()\n"
        "except RecursionError: print('deep')",
        "import warnings; warnings.warn('in main', DeprecationWarning)",
        "def nothing() -> 'x': pass\nprint(nothing.__annotations__, nothing.__code__.co_flags)",
    ],
)
def test_its_status_and_output_are_its_own(source: str, program: Callable[[str], Path]) -> None:
    assert_as_by_itself(program(source))


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    raise ValueError('no')\nf()",
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e",
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError('k')",
        "x = (",
        "def f():\nreturn",
        "# coding: latin-1\nprint('\xe9')",
        "import nothing_of_that_name",
        "from concurrent.futures import nothing_of_that_name",
        "class E(Exception):\n    def __str__(self): 1 / 0\nraise E",
    ],
)
def test_a_traceback_shows_the_program_and_nothing_of_ours(
    source: str, program: Callable[[str], Path]
) -> None:
    done = assert_as_by_itself(program(source))
    assert "boundedexec" not in done.stderr.replace(said(done)[0], "")
    assert "runpy" not in done.stderr


def test_a_module_runs_as_by_python_m(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("print('package', __name__)")
    source = """
import sys
from . import other
print(sys.argv, sys.path[0], __name__, __package__, __spec__.name, __file__, sorted(globals()))
if len(sys.argv) > 2: 1 / 0
"""
    (package / "__main__.py").write_text(source)
    (package / "other.py").touch()
    (package / "bad.py").write_text("import nothing_of_that_name")
    (tmp_path / "single.py").write_text("print(__name__, __package__)")
    for arguments in (
        ["-m", "package"],
        ["-m", "package", "-m", "x", "--workers", "0", "-h"],
        ["-mpackage", "-x"],
        ["-m", "package.__main__", "x"],
        ["-m", "package.bad"],
        ["-m", "single"],
    ):
        assert_as_by_itself(*arguments, cwd=tmp_path)


def test_a_directory_and_an_archive_run_as_by_python(tmp_path: Path) -> None:
    source = "import sys, other; print(sys.argv, sys.path[0], __file__, __name__, __package__)"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "__main__.py").write_text(source)
    (tmp_path / "folder" / "other.py").touch()
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("__main__.py", source)
        archive.writestr("other.py", "")
    assert_as_by_itself("folder", "x", cwd=tmp_path)
    assert_as_by_itself("archive", "x", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["missing.py"], 2, "can't open file '{here}/missing.py': [Errno 2] No such file or dir"),
        (["."], 1, "can't find '__main__' module in '{here}/.'"),
        (["-m", "missing"], 1, "No module named missing"),
        (["-m", "missing.module"], 1, "Error while finding module specification for 'missing.mod"),
        (["-m", "email"], 1, "No module named email.__main__; 'email' is a package and cannot be"),
        (["-m", ".x"], 1, "Error while finding module specification for '.x' ("),
        (["-m", "sys"], 1, "No code object available for sys"),
    ],
)
def test_a_program_that_is_missing_is_one_line(
    arguments: list[str], status: int, line: str, tmp_path: Path
) -> None:
    done = python(*RUN, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, "")
    (error,) = done.stderr.splitlines()
    here = os.path.realpath(tmp_path)
    assert error.startswith("python -m boundedexec run: " + line.format(here=here))
    assert python(*arguments, cwd=tmp_path).returncode == status


@pytest.mark.parametrize(
    "words",
    ["", "-m", "-c", "--workers 3", "--nothing x", "--work 3 x", "--quiet", "--report x"],
)
def test_a_wrong_command_line_is_status_2(words: str, tmp_path: Path) -> None:
    done = python(*RUN, *words.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python -m boundedexec run ")


def test_help_is_ours_before_the_program() -> None:
    done = python(*RUN, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    ours = ("--workers N", "--report FILE", "--trace FILE", "--quiet", "-c CODE", "-m MODULE")
    for option in ours:
        assert option in done.stdout


WAITING = """
import concurrent.futures, signal, sys, time
# As at a terminal, whatever the process that runs these tests does with Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
def wait():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        print(pool.submit(pow, 2, 3).result(), flush=True)
    # Not one long wait: a signal that comes right before it is not noticed in it, on a
    # free-threaded CPython 3.13 one time in ten (under the stdlib's pool).
    while True:
        time.sleep(0.05)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
@pytest.mark.parametrize(
    ("end", "status", "output", "last"),
    [
        ("wait()", -signal.SIGINT, "", "KeyboardInterrupt"),
        ("try: wait()\nexcept KeyboardInterrupt: sys.exit(6)", 6, "", ""),
        ("try: wait()\nexcept KeyboardInterrupt: print('caught')", 0, "caught\n", ""),
        ("signal.signal(signal.SIGINT, signal.SIG_DFL); wait()", -signal.SIGINT, "", None),
    ],
)
def test_ctrl_c_is_the_program_s(
    end: str, status: int, output: str, last: str | None, program: Callable[[str], Path]
) -> None:
    path = program(WAITING + end)
    for command in [], RUN:
        with subprocess.Popen(
            [sys.executable, *command, str(path)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "8\n"
            process.send_signal(signal.SIGINT)
            output_after, errors = process.communicate(timeout=LIMIT)
        assert (process.returncode, output_after) == (status, output)
        lines = errors.splitlines()
        if command and last is not None:
            # The signal by itself ends a process without a word.
            assert lines.pop().startswith("boundedexec: 1 service, 1 submission, at most 1 ")
        assert lines[-1:] == ([last] if last else [])
        assert "runpy" not in errors


# Its pools are ours.


@pytest.mark.parametrize(
    "way",
    [
        "import concurrent.futures; it = concurrent.futures.ThreadPoolExecutor",
        "import concurrent.futures.thread as t; it = t.ThreadPoolExecutor",
        "from concurrent.futures import ThreadPoolExecutor as it",
        "from concurrent.futures import *; it = ThreadPoolExecutor",
        "from concurrent.futures.thread import ThreadPoolExecutor as it",
    ],
)
def test_every_way_to_import_it_gives_ours(way: str, program: Callable[[str], Path]) -> None:
    path = program(f"""
        {way}
        import concurrent.futures, boundedexec
        print(it is boundedexec.ThreadPoolExecutor)
        print(concurrent.futures.wait is concurrent.futures._base.wait is boundedexec.wait)
        print(concurrent.futures.as_completed is boundedexec.as_completed)
    """)
    assert with_pools(path) == (["True"] * 3, ["boundedexec: the program made no pool"])


def test_the_documentation_s_program_that_hangs_finishes(program: Callable[[str], Path]) -> None:
    path = program("""
        from concurrent.futures import ThreadPoolExecutor

        def wait_on_future():
            f = executor.submit(pow, 5, 2)
            # This will never complete because there is only one worker thread and
            # it is executing this function.
            print(f.result())

        executor = ThreadPoolExecutor(max_workers=1)
        executor.submit(wait_on_future)
    """)
    for _ in range(5):
        output, report = with_pools(path)
        assert output == ["25"]
        assert report[0].startswith("boundedexec: 1 service, 2 submissions, at most 2 threads at ")
        assert report[1:] == [
            "boundedexec: 1 slot lent by bodies to what they waited for,"
            " where a ThreadPoolExecutor may hang"
        ]


def test_the_documentation_s_other_program_ends_with_an_error(
    program: Callable[[str], Path],
) -> None:
    path = program("""
        import threading
        from concurrent.futures import ThreadPoolExecutor

        both = threading.Barrier(2)
        known = threading.Event()

        def wait_on_b():
            both.wait(); known.wait()
            return b.result()

        def wait_on_a():
            both.wait(); known.wait()
            return a.result()

        executor = ThreadPoolExecutor(max_workers=2)
        a = executor.submit(wait_on_b)
        b = executor.submit(wait_on_a)
        known.set()
        b.exception()
        a.result()
    """)
    done = python(*RUN, path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(
        r"^boundedexec\.DeadlockError: .*wait_on_.* -> .*wait_on_", done.stderr, re.MULTILINE
    )
    assert said(done)[1:] == ["boundedexec: 1 wait raised DeadlockError and could never have ended"]


def test_services_submissions_threads_and_the_longest_wait_are_counted(
    program: Callable[[str], Path],
) -> None:
    path = program("""
        import threading
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(3) as three, ThreadPoolExecutor(2) as two:
            all_run = threading.Barrier(5)
            bodies = [pool.submit(all_run.wait) for pool in (three, three, three, two, two)]
            for body in bodies: body.result()
            list(two.map(pow, range(1000), range(1000)))
            gate = threading.Event()
            held = [two.submit(gate.wait) for _ in range(2)]
            late = two.submit(pow, 2, 3)
            threading.Event().wait(0.05)
            gate.set()
            late.result()
            late.cancel()
    """)
    _, (line,) = with_pools(path)
    counted = re.fullmatch(
        r"boundedexec: 2 services, 1,008 submissions, at most 5 threads at a time, "
        r"longest wait for a slot ([\d.]+) (ms|s)",
        line,
    )
    assert counted
    assert counted[2] == "s" or float(counted[1]) >= 50


def test_what_pools_that_are_gone_did_is_counted(program: Callable[[str], Path]) -> None:
    path = program("""
        import gc
        from concurrent.futures import ThreadPoolExecutor
        for _ in range(3):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(lambda: pool.submit(int).result()).result()
        del pool
        gc.collect()
    """)
    _, report = with_pools(path)
    assert report[0].startswith("boundedexec: 3 services, 6 submissions, at most ")
    assert report[1].startswith("boundedexec: 3 slots lent ")


def test_counting_leaves_the_body_s_futures_context_and_traceback_alone(
    program: Callable[[str], Path],
) -> None:
    path = program("""
        import contextvars, gc, inspect, sysconfig, time, traceback, weakref
        from concurrent.futures import ThreadPoolExecutor
        variable = contextvars.ContextVar("variable", default="unset")
        variable.set("set")
        class Argument: pass
        def fail(argument): raise ValueError(variable.get())
        with ThreadPoolExecutor(1) as pool:
            argument = Argument()
            future = pool.submit(fail, argument)
            gone = [weakref.ref(argument), weakref.ref(future)]
            error = future.exception()
            print(error, [frame.name for frame in traceback.extract_tb(error.__traceback__)])
            pool.submit(int).result()
            gc.disable()
            del future
            print(gone[1]() is None or sysconfig.get_config_var("Py_GIL_DISABLED") == 1)
            del argument, error
            end = time.monotonic() + 10
            while gone[0]() is not None and time.monotonic() < end:
                gc.collect()  # Without a GIL a thread may be just dropping it.
            print(gone[0]())
            print(inspect.signature(pool.submit))
            try: pool.submit()
            except TypeError as error: print(type(error).__name__)
            print(pool.submit(lambda self, fn: self + fn, self=1, fn=2).result())
    """)
    output, _ = with_pools(path)
    own = "set" if THREADS_INHERIT_CONTEXT else "unset"
    assert output[:3] == [f"{own} ['fail']", "True", "None"]
    assert output[3].startswith("(fn: ")
    assert output[4:] == ["TypeError", "3"]


def test_asyncio_s_default_executor_is_ours_and_counted(program: Callable[[str], Path]) -> None:
    path = program("""
        import asyncio, concurrent.futures, threading
        async def main():
            loop = asyncio.get_running_loop()
            thread = await loop.run_in_executor(None, threading.current_thread)
            print(thread.name.rpartition("_")[0])
            print(await asyncio.to_thread(pow, 2, 3))
            loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
            print(await loop.run_in_executor(None, pow, 2, 4))
        asyncio.run(main())
    """)
    output, report = with_pools(path)
    assert output == ["asyncio", "8", "16"]
    assert report[0].startswith("boundedexec: 2 services, 3 submissions, ")


def test_workers_are_the_default_of_pools_that_are_made_without_a_number(
    program: Callable[[str], Path],
) -> None:
    path = program("""
        import os
        from concurrent.futures import ThreadPoolExecutor as Pool
        class Derived(Pool):
            def __init__(self): super().__init__(thread_name_prefix="x")
        print([pool._max_workers for pool in (Pool(), Pool(None), Derived(), Pool(2), Pool(4))])
    """)
    assert with_pools(path, "--workers", "3")[0] == ["[3, 3, 3, 2, 4]"]
    assert with_pools(path, "--workers=1")[0] == ["[1, 1, 1, 2, 4]"]


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many", ""])
def test_workers_that_are_no_number_are_status_2(number: str) -> None:
    done = python(*RUN, f"--workers={number}", "x.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"must be a number of threads, 1 or more, not {number!r}" in done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_of_the_program_find_its_main_and_report_nothing(
    method: str, program: Callable[[str], Path]
) -> None:
    if sys.platform == "win32" and method != "spawn":
        pytest.skip("Windows only spawns")
    path = program(f"""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        class Item:
            def __init__(self, value): self.value = value
        def square(item):
            with ThreadPoolExecutor(1) as pool:
                return Item(pool.submit(pow, item.value, 2).result())
        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            with context.Pool(1) as pool:
                print([item.value for item in pool.map(square, map(Item, range(3)))])
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                print(pool.submit(square, Item(5)).result().value)
    """)
    output, report = with_pools(path)
    assert (output, report) == (["[0, 1, 4]", "25"], ["boundedexec: the program made no pool"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_that_ends_as_the_program_would_reports_nothing(
    program: Callable[[str], Path],
) -> None:
    path = program("""
        import os
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(1) as pool:
            child = os.fork()
            os.write(1, b"%d\\n" % pool.submit(pow, 2, 3).result())
        if child: os.waitpid(child, 0)
    """)
    output, report = with_pools(path)
    assert output == ["8", "8"]
    assert len(report) == 1
    assert report[0].startswith("boundedexec: 1 service, 1 submission, ")


def test_what_is_accepted_when_the_program_ends_is_finished_and_counted(
    program: Callable[[str], Path],
) -> None:
    path = program("""
        import atexit, threading
        from concurrent.futures import ThreadPoolExecutor
        atexit.register(print, "handler")
        pool = ThreadPoolExecutor(1)
        first = pool.submit(threading.Event().wait, 0.05)
        for _ in range(9): last = pool.submit(pow, 2, 3)
        last.add_done_callback(lambda future: print("last"))
    """)
    output, report = with_pools(path)
    assert output == ["last", "handler"]
    assert report[0].startswith("boundedexec: 1 service, 10 submissions, at most 1 thread at ")


def test_a_program_that_never_stops_submitting_ends_as_on_the_standard_pool(
    program: Callable[[str], Path],
) -> None:
    path = program("""
        import threading, time
        from concurrent.futures import ThreadPoolExecutor
        ticked = threading.Event()
        def tick():
            ticked.set()
            time.sleep(0.001)
            try: pool.submit(tick)
            except RuntimeError as error: print(error)
        pool = ThreadPoolExecutor(2)
        pool.submit(tick)
        ticked.wait()
    """)
    output, _ = with_pools(path)
    assert output == ["cannot schedule new futures after interpreter shutdown"]


def test_the_report_goes_to_standard_error_whatever_the_program_did_to_it(
    program: Callable[[str], Path],
) -> None:
    replaced = program("import io, sys; sys.stderr = io.StringIO(); sys.stdout = None")
    assert with_pools(replaced) == ([], ["boundedexec: the program made no pool"])
    closed = program("import sys; sys.__stderr__.close(); sys.stdout.close()")
    done = python(*RUN, closed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_package_imports_nothing_of_the_command() -> None:
    source = """
import boundedexec, sys
private = {name for name in sys.modules if name.startswith("boundedexec._")}
print({name for name in private if name.split(".")[1] != "_core"})
print({"argparse", "pkgutil", "runpy"} & set(sys.modules))
"""
    assert (
        python(
            "-I",
            "-c",
            "import sys; sys.path.insert(0, sys.argv[1]); " + source,
            ENVIRONMENT["PYTHONPATH"],
        ).stdout
        == "set()\nset()\n"
    )


def test_code_that_installs_by_itself_runs_too(program: Callable[[str], Path]) -> None:
    path = program("""
        import boundedexec, concurrent.futures
        with boundedexec.installed(): pass
        print(concurrent.futures.ThreadPoolExecutor is boundedexec.ThreadPoolExecutor)
        with boundedexec.Service(1) as service: print(service.submit(pow, 2, 3).result())
    """)
    output, report = with_pools(path)
    assert output == ["True", "8"]
    assert report[0].startswith("boundedexec: 1 service, 1 submission, at most 1 thread at a time")
