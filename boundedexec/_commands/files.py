"""Files that a command is told to write: known to be writable before an hour has passed."""

from __future__ import annotations

import argparse
import os


def writable(path: str) -> str:
    """The full path, for a program may change its directory. Nothing of an earlier program
    stays in the file. Raises `ArgumentTypeError` where it can't be written."""
    try:
        open(path, "w").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"can't write {path!r}: {error.strerror}") from None
    return os.path.abspath(path)


def trace_file(path: str) -> str:
    """`writable`, for what `Trace.save` writes."""
    if not path.endswith((".json", ".svg")):
        raise argparse.ArgumentTypeError(f"the name must end in .json or .svg, not {path!r}")
    return writable(path)
