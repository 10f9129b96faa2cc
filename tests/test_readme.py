"""What the README and the docstrings show is what happens."""

import doctest
import re
from pathlib import Path

import pytest

import boundedexec

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
