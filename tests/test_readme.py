"""What the README and the docstrings show is what happens."""

import doctest
import inspect
import pydoc
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import run_script

import boundedexec
from boundedexec import Coalescer, Service, Stats, Task, TaskGroup, Trace

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def readme() -> str:
    return README.read_text(encoding="utf-8")


def test_every_example_of_the_readme_runs() -> None:
    flags = doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testfile(str(README), module_relative=False, optionflags=flags)
    assert result.attempted > 20
    assert result.failed == 0


def test_start_is_two_commands_of_one_line_each(readme: str) -> None:
    start = readme.split("\n## Start\n")[1].split("\n## ", maxsplit=1)[0]
    blocks = re.findall(r"```(\w*)\n(.*?)```", start, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sh", "sh"]
    assert all(text.count("\n") == 1 for _, text in blocks)


@pytest.mark.parametrize("name", boundedexec.__all__)
def test_every_public_name_is_documented_and_in_the_readme(name: str, readme: str) -> None:
    public = getattr(boundedexec, name)
    assert isinstance(public, str) or public.__doc__
    stdlib = {"FIRST_COMPLETED", "FIRST_EXCEPTION", "BrokenExecutor", "InvalidStateError"}
    assert name in readme or name in stdlib | {"TimeoutError"}


@pytest.mark.parametrize("name", boundedexec.__all__)
def test_dir_and_help_of_the_package_have_every_public_name(name: str) -> None:
    assert name in dir(boundedexec)
    summary = pydoc.plain(pydoc.render_doc(boundedexec)).split("PACKAGE CONTENTS")[0]
    assert re.search(rf"\b{name}\b", summary)


def test_import_and_dir_load_no_lazy_module() -> None:
    lines = run_script("""
        import sys
        import boundedexec

        later = {"_core.stats", "_core.tasks", "asking", "coalescer", "dumping", "groups"}
        later |= {"installing", "limiting", "over", "parts", "trace"}
        assert set(boundedexec.__all__) <= set(dir(boundedexec))
        print({f"boundedexec.{name}" for name in later} & set(sys.modules))
        boundedexec.Stats
        print("boundedexec._core.stats" in sys.modules)
    """)
    assert lines == ["set()", "True"]


@pytest.mark.parametrize("kind", [Stats, Task])
def test_help_has_every_field(kind: Any) -> None:
    text = pydoc.plain(pydoc.render_doc(kind)).split("Method resolution order")[0]
    told = re.findall(r"^ \|      (\w+): \S", text.partition("Fields:")[2], re.MULTILINE)
    assert tuple(told) == kind._fields


def test_the_init_of_the_drop_in_documents_its_own_parameters() -> None:
    init: Any = boundedexec.ThreadPoolExecutor.__init__
    text = inspect.getdoc(init) or ""
    told = re.findall(r"^    (\w+): \S", text.partition("Args:")[2], re.MULTILINE)
    assert ["self", *told] == list(inspect.signature(init).parameters)


def test_every_public_method_and_property_has_a_docstring() -> None:
    for kind in Service, Coalescer, TaskGroup, Trace:
        members: dict[str, Any] = dict(vars(kind))
        for name, member in members.items():
            if not name.startswith("_"):
                assert member.__doc__, f"{kind.__name__}.{name}"
