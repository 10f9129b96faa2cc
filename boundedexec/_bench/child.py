"""One measurement, in a process of its own.

It prints the figures as JSON, or why there are none: `{"figures": {…}}` or
`{"not_measured": "…"}`.
"""

from __future__ import annotations

import json

from .rows import Side, all_rows
from .work import NotMeasured


def main(name: str, side: str, size: int) -> None:
    """Do the row called `name` on `side` with `size` operations."""
    (row,) = [row for row in all_rows() if row.name == name]
    try:
        figures = row.sides[Side(side)](size)
    except NotMeasured as error:
        answer: dict[str, object] = {"not_measured": str(error)}
    else:
        answer = {"figures": figures}
    # Flushed, so that a process that hangs at its exit is told from one that hangs.
    print(json.dumps(answer), flush=True)
