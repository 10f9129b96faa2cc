"""All of it is in setup.cfg, but for what that cannot say."""

from glob import glob

from setuptools import setup
from setuptools.command.sdist import sdist


class CompleteSdist(sdist):
    """Has the whole checkout: by itself it would leave out what tests share, and tox.ini."""

    def make_release_tree(self, base_dir, files):
        tests = [
            path for kind in ("py", "md") for path in glob(f"tests/**/*.{kind}", recursive=True)
        ]
        more = {*tests, *glob(".ci/*"), "CHANGELOG.md", "tox.ini"}
        super().make_release_tree(base_dir, sorted(more.union(files)))


setup(cmdclass={"sdist": CompleteSdist})
