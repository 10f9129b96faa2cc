"""CPython's own tests of its thread pool, run with this package's classes in its place.

`python tests/foreign/cpython_suite.py` takes every thread-pool class of
`test.test_concurrent_futures` from the interpreter that runs it, first with `Service`,
then with `ThreadPoolExecutor` where the stdlib's class was: as the tests'
`executor_type`, as `concurrent.futures.ThreadPoolExecutor`, and in the scripts that
the tests start. It says what ran, passed and was skipped, and why, and ends with 1 if
anything failed. A Python that ships no such tests is reported and tells nothing.

A test is left out by an entry of `LEFT_OUT` alone, which names the test of ours that
keeps the promise instead. An entry that leaves nothing out is an error.
"""

from __future__ import annotations

import ast
import concurrent.futures
import faulthandler
import gc
import importlib
import pkgutil
import sys
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

import boundedexec  # noqa: E402

SUITE = "test.test_concurrent_futures"
EXECUTORS = {
    "Service": boundedexec.Service,
    "ThreadPoolExecutor": boundedexec.ThreadPoolExecutor,
}

#: Seconds for one test, after which all threads are shown and the run is over.
LIMIT = 120


class LeftOut(NamedTuple):
    """A test that is not run, and the one of ours that keeps the promise."""

    test: str
    executors: tuple[str, ...]
    reason: str
    instead: tuple[str, ...]
    #: The first Python that has it, and the first that has not.
    since: tuple[int, int] = (3, 10)
    until: tuple[int, int] = (4, 0)


BOTH = ("Service", "ThreadPoolExecutor")

LEFT_OUT = (
    LeftOut(
        "ThreadPoolExecutorTest.test_max_workers_negative",
        ("Service",),
        "zero and less are no bound",
        (
            "tests/test_submit.py::test_no_bound_at_all_for_zero_and_less",
            "tests/test_drop_in.py::test_no_workers_are_refused_as_by_the_standard_class",
        ),
    ),
    LeftOut(
        "ThreadPoolExecutorTest.test_default_workers",
        ("Service",),
        "the default is four times the CPUs that the process may use",
        (
            "tests/test_submit.py::"
            "test_the_default_bound_is_four_times_the_cpus_this_process_may_use",
        ),
    ),
    LeftOut(
        "ThreadPoolShutdownTest.test_thread_names_default",
        ("Service",),
        "without a prefix the threads are named Service-<number>_<n>",
        ("tests/test_threads.py::test_without_a_prefix_thread_names_differ_between_services",),
    ),
    LeftOut(
        "ThreadPoolShutdownTest.test_threads_terminate",
        BOTH,
        "it counts _threads in the instant of the submit: one wake-up is on its way at a"
        " time, so the second thread is started by the first, and not by submit",
        (
            "tests/test_drop_in.py::test_the_length_of_threads_can_be_read",
            "tests/test_drop_in.py::test_its_threads_are_gone_after_shutdown",
        ),
    ),
    LeftOut(
        "ThreadPoolExecutorTest.test_saturation",
        BOTH,
        "it counts _threads in the instant of the submit, as test_threads_terminate does",
        (
            "tests/test_drop_in.py::test_its_threads_stay_until_shutdown",
            "tests/test_threads.py::test_there_are_no_more_threads_than_bodies_that_run_at_once",
        ),
    ),
    LeftOut(
        "ThreadPoolFailingInitializerTest.test_initializer",
        BOTH,
        "the failure is logged on boundedexec, not on concurrent.futures, and _broken is"
        " read by no client",
        (
            "tests/test_initializer.py::test_a_failing_initializer_breaks_the_service",
            "tests/test_drop_in.py::test_an_initializer_that_fails_breaks_it_as_the_standard_one",
        ),
    ),
)


class Report(unittest.TestResult):
    """Counts, by class; and says how a test failed when it does."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: dict[str, int] = {}
        self.failed: dict[str, set[str]] = {}
        self.skips: dict[str, list[str]] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        name = type(test).__name__
        self.ran[name] = self.ran.get(name, 0) + 1
        faulthandler.dump_traceback_later(LIMIT, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)

    def skip(self, owner: str, test: str, reason: str) -> None:
        self.skips.setdefault(owner, []).append(f"{test}: {reason}")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        name = type(test).__name__
        self.ran[name] -= 1
        self.skip(name, method_of(test), f"the test says: {reason}")

    def _fail(self, test: Any, error: Any) -> None:
        # A class or module that could not be set up is no test.
        known = isinstance(test, unittest.TestCase)
        owner, name = (type(test).__name__, method_of(test)) if known else ("set up", str(test))
        self.failed.setdefault(owner, set()).add(name)
        print(f"\nFAILED {owner}.{name}\n{self._exc_info_to_string(error, test)}")  # type: ignore[attr-defined]

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._fail(test, err)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._fail(test, err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._fail(test, err)

    def tell(self) -> None:
        for owner in sorted({*self.ran, *self.skips, *self.failed}):
            ran, failed = self.ran.get(owner, 0), len(self.failed.get(owner, ()))
            skips = self.skips.get(owner, [])
            print(f"  {owner}: {ran} ran, {ran - failed} passed, {len(skips)} skipped")
            for skip in skips:
                print(f"    skipped {skip}")


def method_of(test: unittest.TestCase) -> str:
    return test.id().rpartition(".")[2]


def modules() -> list[ModuleType]:
    """The suite's modules: a package of them, or the one that it was up to 3.11."""
    # Some distributions have the tests in a directory beside, named by PYTHONPATH.
    package = importlib.import_module("test")
    package.__path__ = pkgutil.extend_path(package.__path__, "test")
    suite = importlib.import_module(SUITE)
    if not hasattr(suite, "__path__"):
        return [suite]
    names = [module.name for module in pkgutil.iter_modules(suite.__path__)]
    return [importlib.import_module(f"{SUITE}.{name}") for name in names]


def classes(found: list[ModuleType]) -> Iterator[type[unittest.TestCase]]:
    """Every class that tests the thread pool, once."""
    for module in found:
        for value in list(vars(module).values()):
            if not (isinstance(value, type) and issubclass(value, unittest.TestCase)):
                continue
            executor = getattr(value, "executor_type", None)
            own = value.__module__ == module.__name__
            if own and executor is concurrent.futures.ThreadPoolExecutor:
                yield value


def mixin(found: list[ModuleType]) -> Any:
    """Where the tests' `executor_type` is."""
    (mixin,) = {vars(module)["ThreadPoolMixin"] for module in found if has_mixin(module)}
    return mixin


def has_mixin(module: ModuleType) -> bool:
    return "ThreadPoolMixin" in vars(module)


def in_scripts(run: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`assert_python_ok` for scripts that import the class `name`, or the stdlib's."""

    def run_with_the_package(flag: str, source: str, **environment: str) -> Any:
        assert flag == "-c"
        # The script runs isolated, so it has to be told where the modules are.
        source = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            "import concurrent.futures, pkgutil, test, boundedexec\n"
            "test.__path__ = pkgutil.extend_path(test.__path__, 'test')\n"
            f"concurrent.futures.ThreadPoolExecutor = boundedexec.{name}\n"
            f"concurrent.futures.{name} = boundedexec.{name}\n"
        ) + source
        return run(flag, source, **environment)

    return run_with_the_package


def run(name: str) -> bool:
    """Run the suite with one class of ours; whether all of it passed."""
    found = modules()
    cases = list(classes(found))
    left_out = {
        entry.test: entry
        for entry in LEFT_OUT
        if name in entry.executors and entry.since <= sys.version_info[:2] < entry.until
    }
    used: set[str] = set()
    report = Report()
    suite = unittest.TestSuite()
    for case in cases:
        for method in unittest.defaultTestLoader.getTestCaseNames(case):
            entry = left_out.get(f"{case.__name__}.{method}")
            if entry is None:
                suite.addTest(case(method))
            else:
                used.add(entry.test)
                report.skip(
                    case.__name__, method, f"{entry.reason}; instead: {', '.join(entry.instead)}"
                )
    with mock.patch.object(mixin(found), "executor_type", EXECUTORS[name]):
        with mock.patch("concurrent.futures.ThreadPoolExecutor", EXECUTORS[name]):
            for module in found:
                if "assert_python_ok" in vars(module):
                    vars(module)["assert_python_ok"] = in_scripts(assert_python_ok(), name)
            suite.run(report)
    print(f"{name} in the place of concurrent.futures.ThreadPoolExecutor")
    report.tell()
    stale = sorted(left_out.keys() - used)
    for test in stale:
        print(f"  STALE entry: there is no {test} to leave out")
    left_behind = threads_left_behind()
    if left_behind:
        print(f"  LEFT BEHIND: {left_behind}")
    ran = sum(report.ran.values())
    failed = sum(len(tests) for tests in report.failed.values())
    skipped = sum(len(skips) for skips in report.skips.values())
    print(f"  in all: {ran} ran, {ran - failed} passed, {failed} failed, {skipped} skipped\n")
    return bool(ran) and not failed and not stale and not left_behind


def assert_python_ok() -> Callable[..., Any]:
    return importlib.import_module("test.support.script_helper").assert_python_ok  # type: ignore[no-any-return]


def threads_left_behind() -> list[threading.Thread]:
    """Those that do not end although nothing refers to their service any more."""
    end = time.monotonic() + 10
    while True:
        gc.collect()
        left = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.01)


def missing_tests() -> list[str]:
    """Those tests of ours that the table names and that are not there."""
    named = {test for entry in LEFT_OUT for test in entry.instead}
    return sorted(test for test in named if not is_there(test))


def is_there(test: str) -> bool:
    path, _, name = test.partition("::")
    tree = ast.parse((CHECKOUT / path).read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def main(names: list[str]) -> int:
    missing = missing_tests()
    for test in missing:
        print(f"the table names {test}, which is not there")
    try:
        modules()
    except ModuleNotFoundError as error:
        print(f"SKIPPED, 0 ran: this Python ships no {SUITE} ({error})")
        return bool(missing)
    print(f"{SUITE} of Python {sys.version}\n")
    passed = [run(name) for name in names or EXECUTORS]
    return not all(passed) or bool(missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
