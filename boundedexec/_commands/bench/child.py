"""One measurement, in a process of its own.

It prints the figures as JSON, or why there are none: `{"figures": {…}}` or
`{"not_measured": "…"}`.
"""

from __future__ import annotations

import json

from .row import Side
from .rows import all_rows
from .tools import NotMeasured


def main(name: str, side: str, size: int) -> None:
    """Measure the row called `name` on `side` with `size` operations."""
    (row,) = [row for row in all_rows() if row.name == name]
    try:
        figures = row.sides[Side(side)](size)
    except NotMeasured as error:
        answer: dict[str, object] = {"not_measured": str(error)}
    else:
        answer = {"figures": figures}
    # Flushed now: the parent can then distinguish a hang at exit from one before.
    print(json.dumps(answer), flush=True)
