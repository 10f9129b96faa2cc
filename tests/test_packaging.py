"""What is installed is the package, whole, and nothing else."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

import boundedexec

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def distribution() -> metadata.Distribution:
    # Beside setup.py lies what the build left there, which is not what is installed.
    path = [entry for entry in sys.path if Path(entry).resolve() != CHECKOUT]
    for found in metadata.distributions(name="boundedexec", path=path):
        return found
    pytest.skip("boundedexec is not installed: pip install '.[test]'")


def sources(folder: Path) -> set[str]:
    """The files of the package, as paths below `folder`."""
    return {
        path.relative_to(folder).as_posix()
        for path in (folder / "boundedexec").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_nothing_is_needed_to_run_it(distribution: metadata.Distribution) -> None:
    extra = re.compile(r"(pytest|pytest-timeout) *; *extra == .test.")
    assert [each for each in distribution.requires or [] if not extra.fullmatch(each)] == []
    assert distribution.metadata.get_all("Provides-Extra") == ["test"]


def test_the_version_is_said_once(distribution: metadata.Distribution) -> None:
    assert distribution.version == boundedexec.__version__


def test_the_metadata_says_what_it_is(distribution: metadata.Distribution) -> None:
    assert distribution.metadata["Requires-Python"] == ">=3.11"
    assert distribution.metadata["License-Expression"] == "MIT"
    assert distribution.metadata.get_all("License-File") == ["LICENSE"]
    classifiers = distribution.metadata.get_all("Classifier") or []
    supported = [line.rsplit(" ", 1)[1] for line in classifiers if ":: Python :: 3." in line]
    assert supported == [f"3.{minor}" for minor in range(11, 16)]
    assert "Development Status :: 4 - Beta" in classifiers
    assert "Programming Language :: Python :: Free Threading :: 2 - Beta" in classifiers


def test_what_is_installed_is_the_package_and_nothing_else(
    distribution: metadata.Distribution,
) -> None:
    assert (distribution.read_text("top_level.txt") or "").split() == ["boundedexec"]
    site_packages = Path(str(distribution.locate_file("")))
    if not (site_packages / "boundedexec").is_dir():
        pytest.skip("an editable install has no files of its own")
    installed = sources(site_packages)
    assert "boundedexec/py.typed" in installed
    # Where these differ, a build/ of another day beside setup.py may be why.
    assert installed == sources(CHECKOUT)


@pytest.mark.skipif(
    importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed"
)
def test_the_sdist_is_the_whole_checkout(tmp_path: Path) -> None:
    # Of a copy: setuptools works in the directory, where it may be at work already.
    copy, made = tmp_path / "checkout", tmp_path / "made"
    for folder in "boundedexec", "tests", ".ci":
        shutil.copytree(
            CHECKOUT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    beside = {"CHANGELOG.md", "LICENSE", "README.md", "tox.ini"}
    beside |= {"setup.cfg", "setup.py"}
    for name in beside:
        shutil.copy(CHECKOUT / name, copy)
    made.mkdir()
    # In a process of its own: it changes the working directory's state.
    subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "egg_info",
            f"--egg-base={made}",
            "sdist",
            f"--dist-dir={made}",
        ],
        cwd=copy,
        check=True,
        capture_output=True,
    )
    with tarfile.open(made / f"boundedexec-{boundedexec.__version__}.tar.gz") as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tests = {
        path.relative_to(CHECKOUT).as_posix()
        for path in (CHECKOUT / "tests").rglob("*.*")
        if path.suffix in {".json", ".md", ".py", ".toml"}
    }
    assert packed >= sources(CHECKOUT) | tests | beside | {".ci/run"}
