"""What the commands print on: lines that fit its width, and progress that leaves no trace."""

from __future__ import annotations

import shutil
import textwrap
from typing import TextIO

WIDEST = 80
# Below this, breaking words would leave nothing to read.
NARROWEST = 20


def width() -> int:
    """Return how many columns a line may have: COLUMNS or the terminal's, 80 at most."""
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns))


def wrapped(text: str) -> str:
    """Return `text` on as many lines as it needs; those after the first are indented further."""
    indent = " " * (len(text) - len(text.lstrip(" ")) + 2)
    return textwrap.fill(text, width(), subsequent_indent=indent, break_on_hyphens=False)


class OutputFailed(Exception):
    """The output cannot be written: it is full, or its reader is gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


def flush(stream: TextIO) -> None:
    """Flush `stream`. Raises `OutputFailed`."""
    try:
        stream.flush()
    except OSError as error:
        raise OutputFailed(error) from error


class Screen:
    """Prints lines, and on a terminal a progress line below them that changes in place.

    Where the progress does not go to a terminal, it has a plain line for each step.
    `unencodable` is what becomes of characters that the encoding of the lines lacks, as
    for `str.encode`. Each method may raise `OutputFailed`.
    """

    def __init__(self, lines: TextIO, progress: TextIO, *, unencodable: str) -> None:
        if reconfigure := getattr(lines, "reconfigure", None):
            reconfigure(errors=unencodable)
        self._lines = lines
        self._progress = progress
        self._live = progress.isatty()
        # The length of the progress line.
        self._length = 0

    def line(self, text: str = "") -> None:
        """Print `text`, wrapped."""
        self.as_it_is(wrapped(text))

    def as_it_is(self, text: str) -> None:
        """Print `text`, whose lines are laid out already."""
        self.progress("")
        _write(self._lines, text + "\n")

    def step(self, text: str) -> None:
        """Say what comes next, where there is no progress line."""
        if not self._live:
            _write(self._progress, wrapped(text) + "\n")

    def progress(self, text: str) -> None:
        """Show `text` in place of the progress line; an empty one removes it."""
        if self._live and (text or self._length):
            text = text[: width() - 3]
            # Overwritten with blanks, which works on every terminal, as is the ^C that
            # a terminal may have echoed after it.
            blank = " " * (self._length + 2)
            _write(self._progress, f"\r{blank}\r{text}")
            self._length = len(text)


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except OSError as error:
        raise OutputFailed(error) from error
    # So that the reader of a pipe sees each line when it is printed.
    flush(stream)


def shown(path: str) -> str:
    """Return `path` for a line: a name may contain a line feed or an undecodable byte."""
    return path if path and path.isprintable() else ascii(path)


def count(number: int, thing: str, things: str = "") -> str:
    """Return `number` with the word for what it counts."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
