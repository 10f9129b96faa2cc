"""A timeline in the Trace Event format, which viewers read (ui.perfetto.dev, Speedscope).

Its times are microseconds; here they count from the begin of the trace. An arrow must begin
and end in a span of its thread, so what happens at an instant is a span of a nanosecond.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from .timeline import Mark, Row, Span, Timeline

_MICRO = 1000
#: Of marks; the format has no times that are finer.
_INSTANT = 0.001


def to_json(timeline: Timeline) -> str:
    """The text of a file; one event a line."""
    lines = ",\n".join(json.dumps(event) for event in _events(timeline, os.getpid()))
    others = {"dropped": timeline.dropped, "queued": timeline.queued}
    return (
        f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(others)}, "traceEvents": [\n'
        f"{lines}\n]}}\n"
    )


def _events(timeline: Timeline, process: int) -> Iterator[dict[str, Any]]:
    def time(nanoseconds: int) -> float:
        return round((nanoseconds - timeline.start) / _MICRO, 3)

    def place(row: Row, nanoseconds: int) -> dict[str, Any]:
        return {"pid": process, "tid": row.number, "ts": time(nanoseconds)}

    names: list[tuple[str, Row | None, dict[str, Any]]]
    names = [("process_name", None, {"name": "boundedexec"})]
    for row in timeline.rows:
        names.append(("thread_name", row, {"name": row.name}))
        names.append(("thread_sort_index", row, {"sort_index": row.number}))
    for name, about, args in names:
        number = 0 if about is None else about.number
        yield {"ph": "M", "name": name, "pid": process, "tid": number, "ts": 0, "args": args}
    for row in timeline.rows:
        for span in row.spans:
            long = round((span.end - span.start) / _MICRO, 3)
            yield _named(span) | {"ph": "X", "dur": long} | place(row, span.start)
        for mark in row.marks:
            yield _marked(mark) | {"ph": "X", "dur": _INSTANT} | place(row, mark.time)
    for number, arrow in enumerate(timeline.arrows, 1):
        same = {"cat": arrow.kind, "name": arrow.kind, "id": number}
        yield same | {"ph": "s"} | place(arrow.source, arrow.since)
        yield same | {"ph": "f", "bp": "e"} | place(arrow.target, arrow.until)


def _named(span: Span) -> dict[str, Any]:
    if span.kind != "body":
        return {"cat": span.kind, "name": span.name}
    waited = (span.start - span.submitted) / _MICRO
    args = {"number": span.number, "outcome": span.outcome, "microseconds queued": waited}
    return {"cat": "body", "name": span.name, "args": args}


def _marked(mark: Mark) -> dict[str, Any]:
    return {"cat": mark.kind, "name": f"{mark.kind} {mark.name}", "args": {"number": mark.number}}
