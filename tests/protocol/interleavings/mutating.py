"""Break one step of the package, found by a marker in its source.

A marker is a comment `# explore: NAME` at the end of a line, or on a line of its own above
one that is too long for it. A mutation changes the statement on that line (the innermost
one), or the line.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Mapping
from typing import NamedTuple

_MARKER = re.compile(r"# explore: ([a-z-]+)$")


class Mutation(NamedTuple):
    marker: str
    #: What is broken, for a person.
    what: str
    #: `drop` the statement, `swap` it with the next one, `invert` its condition, `cut` the
    #: line; or what replaces the statement, or its head (`if …:`).
    change: str
    #: The scenario that notices, and in which mode.
    scenario: str
    mode: str = "gil"

    def apply(self, sources: Mapping[str, str]) -> dict[str, str]:
        """The sources with this mutation. Raises `ValueError` where it does not fit."""
        places = [
            (name, number)
            for name, source in sources.items()
            for number, line in enumerate(source.splitlines(), 1)
            if _marker_of(line) == self.marker
        ]
        if len(places) != 1:
            raise ValueError(f"the marker {self.marker!r} is there {len(places)} times")
        name, number = places[0]
        lines = sources[name].splitlines()
        if lines[number - 1].strip().startswith("# explore:"):
            number += 1
        if self.change == "cut":
            del lines[number - 1]
        else:
            self._change(lines, *_statements(sources[name], number))
        return {**sources, name: "\n".join(lines) + "\n"}

    def _change(self, lines: list[str], statement: ast.stmt, following: ast.stmt | None) -> None:
        start, end = statement.lineno - 1, statement.end_lineno or 0
        indent = " " * statement.col_offset
        if self.change == "drop":
            lines[start:end] = [indent + "pass"]
        elif self.change == "swap":
            if following is None:
                raise ValueError(f"nothing follows {self.marker!r}")
            after = following.end_lineno or 0
            lines[start:after] = [*lines[end:after], *lines[start:end]]
        elif self.change == "invert":
            assert isinstance(statement, (ast.If, ast.While))
            word = "if" if isinstance(statement, ast.If) else "while"
            head = f"{indent}{word} not ({ast.unparse(statement.test)}):"
            lines[start : statement.body[0].lineno - 1] = [head]
        elif self.change.endswith(":"):
            assert isinstance(statement, (ast.If, ast.While, ast.With, ast.For))
            lines[start : statement.body[0].lineno - 1] = [indent + self.change]
        else:
            lines[start:end] = [indent + line for line in self.change.splitlines()]


def _marker_of(line: str) -> str | None:
    found = _MARKER.search(line)
    return found.group(1) if found else None


def markers(sources: Mapping[str, str]) -> set[str]:
    """Every marker in the sources."""
    found = {_marker_of(line) for source in sources.values() for line in source.splitlines()}
    return {marker for marker in found if marker is not None}


def _statements(source: str, number: int) -> tuple[ast.stmt, ast.stmt | None]:
    """The innermost statement on a line, and the one that follows it in its block."""
    found: tuple[ast.stmt, ast.stmt | None] | None = None
    for node in ast.walk(ast.parse(source)):
        for field in "body", "orelse", "finalbody":
            if isinstance(node, (ast.Lambda, ast.IfExp)):
                continue  # Their `body` is an expression.
            block: list[ast.stmt] = getattr(node, field, None) or []
            for statement, following in itertools.zip_longest(block, block[1:]):
                contains = statement.lineno <= number <= (statement.end_lineno or 0)
                if contains and (found is None or statement.lineno >= found[0].lineno):
                    found = statement, following
    if found is None:
        raise ValueError("a marker that is on no statement")
    return found
