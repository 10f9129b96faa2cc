"""For installers that look for this file; all of it is in setup.cfg."""

from setuptools import setup

setup()
