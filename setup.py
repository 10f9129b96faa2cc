"""All of it is in setup.cfg, but for what that cannot say."""

from glob import glob

from setuptools import setup
from setuptools.command.sdist import sdist

SOURCES = (".json", ".md", ".py", ".toml")


class CompleteSdist(sdist):
    """Has the whole checkout: by itself it would leave out what tests share, and tox.ini."""

    def make_release_tree(self, base_dir, files):
        tests = [path for path in glob("tests/**/*.*", recursive=True) if path.endswith(SOURCES)]
        more = {*tests, *glob(".ci/*"), "CHANGELOG.md", "tox.ini"}
        super().make_release_tree(base_dir, sorted(more.union(files)))


setup(cmdclass={"sdist": CompleteSdist})
