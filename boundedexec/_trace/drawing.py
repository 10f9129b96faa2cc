"""A timeline as a picture: a row for each thread, spans in it, arrows where a slot is lent.

The picture needs no viewer and no script. Its colours follow the reader's preference for
light or dark; each span says what it is in a title, which browsers show under the pointer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from .timeline import Arrow, Mark, Row, Span, Timeline

_CLASS = "boundedexec-trace"
_WIDTH = 1200
_LEFT, _RIGHT = 150, 16
_TOP, _BOTTOM = 58, 20
#: Of a row; of a body in it; of what it waits for, which stands in the body's lower part.
_ROW, _BODY, _INNER = 34, 26, 8
#: What is narrower is drawn with its neighbours, as one.
_NARROW = 1.5
#: Of a letter, nearly, at the size in which bodies are named.
_LETTER = 6.3
_MOST_ROWS = 200
_MOST_ARROWS = 400
_TICKS = 8

#: Selectors and what they set, in light and in dark. Each is put behind the picture's own
#: class, for in a notebook the picture is part of the page.
_LIGHT = {
    "text": "font: 11px system-ui, sans-serif; fill: #1f2328",
    ".paper": "fill: #ffffff",
    ".quiet": "fill: #59636e",
    ".line": "stroke: #d1d9e0",
    ".body": "fill: #a8cdf5; stroke: #4a7fb5",
    ".raised": "fill: #f4b2b0; stroke: #b5423e",
    ".running": "fill: #d5ecd8; stroke: #3f8f4f",
    ".many": "fill: #7fb0e6",
    ".waits": "fill: #8b949e",
    ".lends": "fill: #e3a008",
    ".yielded": "fill: #b58be0",
    ".resuming": "fill: #d6417b",
    ".submit": "stroke: #59636e",
    ".re-run": "stroke: #8250df",
    ".cancel": "stroke: #cf222e",
    ".arrow": "fill: none; stroke: #a86f00; opacity: .75",
    ".head": "fill: #a86f00",
}
_DARK = {
    "text": "fill: #e6edf3",
    ".paper": "fill: #0d1117",
    ".quiet": "fill: #9198a1",
    ".line": "stroke: #30363d",
    ".body": "fill: #1f4b7a; stroke: #5b9bd9",
    ".raised": "fill: #7d2b2a; stroke: #f0807b",
    ".running": "fill: #1e4d2b; stroke: #5fbf73",
    ".many": "fill: #3a78b8",
    ".waits": "fill: #7d8590",
    ".yielded": "fill: #a371f7",
    ".resuming": "fill: #f778ba",
    ".submit": "stroke: #9198a1",
    ".re-run": "stroke: #bc8cff",
    ".cancel": "stroke: #ff7b72",
    ".arrow": "stroke: #e3b341",
    ".head": "fill: #e3b341",
}


def to_svg(timeline: Timeline) -> str:
    """The text of an SVG file."""
    return "\n".join(_Drawing(timeline).lines()) + "\n"


class _Drawing:
    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._rows = timeline.rows[:_MOST_ROWS]
        self._long = max(1, timeline.end - timeline.start)
        self._height = _TOP + _ROW * len(self._rows) + _BOTTOM

    def lines(self) -> Iterator[str]:
        size = f'width="{_WIDTH}" height="{self._height}" viewBox="0 0 {_WIDTH} {self._height}"'
        yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" class="{_CLASS}">'
        yield f"<title>{self._summary()}</title>"
        dark = f"@media (prefers-color-scheme: dark) {{ {_rules(_DARK)} }}"
        yield f"<style>{_rules(_LIGHT)}{dark}</style>"
        yield f'<rect class="paper" width="{_WIDTH}" height="{self._height}"/>'
        yield f'<text x="8" y="18">{self._summary()}</text>'
        yield from self._legend()
        yield from self._scale()
        for row in self._rows:
            yield from self._draw_row(row)
        yield from self._draw_arrows()
        yield "</svg>"

    def _summary(self) -> str:
        timeline = self._timeline
        spans = sum(span.kind == "body" for row in timeline.rows for span in row.spans)
        words = f"{spans:,} bodies on {len(timeline.rows):,} threads in {_time(self._long)}"
        if timeline.queued:
            words += f", {timeline.queued:,} still queued"
        if timeline.dropped:
            words += f", {timeline.dropped:,} earlier events dropped"
        if len(timeline.rows) > len(self._rows):
            words += f"; the first {len(self._rows)} threads are drawn"
        return words

    def _legend(self) -> Iterator[str]:
        x = 8.0
        boxes = [
            ("body", "body"), ("body raised", "raised"), ("body running", "still running"),
            ("waits", "waits"), ("lends", "lends its slot"), ("yielded", "slot given away"),
            ("resuming", "wants a slot again"),
        ]  # fmt: skip
        for style, words in boxes:
            yield f'<rect class="{style}" x="{x:.0f}" y="27" width="11" height="9"/>'
            yield f'<text class="quiet" x="{x + 15:.0f}" y="36">{words}</text>'
            x += 30 + _LETTER * len(words)
        for style in "submit", "re-run", "cancel":
            yield _line(style, x + 4, 26, x + 4, 37)
            yield f'<text class="quiet" x="{x + 10:.0f}" y="36">{style}</text>'
            x += 26 + _LETTER * len(style)

    def _scale(self) -> Iterator[str]:
        step = _step(self._long / _TICKS)
        bottom = self._height - _BOTTOM + 4
        for number in range(int(self._long / step) + 1):
            x = self._x(self._timeline.start + int(number * step))
            yield _line("line", x, _TOP - 4, x, bottom)
            words = _time(int(number * step)) if number else "0"
            place = f'x="{x:.1f}" y="{bottom + 12}" text-anchor="middle"'
            yield f'<text class="quiet" {place}>{words}</text>'

    def _x(self, time: int) -> float:
        part = (time - self._timeline.start) / self._long
        return _LEFT + min(max(part, 0), 1) * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, row: Row) -> float:
        return _TOP + (row.number - 1) * _ROW

    def _draw_row(self, row: Row) -> Iterator[str]:
        y = self._y(row)
        name = row.name if len(row.name) <= 21 else "…" + row.name[-20:]
        yield f'<text x="8" y="{y + 17}">{escape(name)}<title>{escape(row.name)}</title></text>'
        yield _line("line", _LEFT, y + _BODY + 3, _WIDTH - _RIGHT, y + _BODY + 3)
        bodies = (span for span in row.spans if span.kind == "body")
        for group in self._grouped(bodies):
            yield from self._draw_body(group, y)
        inner = [span for span in row.spans if span.kind != "body"]
        for depth in sorted({span.depth for span in inner}):
            for group in self._grouped(span for span in inner if span.depth == depth):
                yield self._box(group, group[0].kind, y + _BODY - _INNER, _INNER)
        yield from self._draw_marks(row.marks, y)

    def _grouped(self, spans: Iterable[Span]) -> Iterator[list[Span]]:
        """Each by itself, but narrow ones with the narrow ones that touch them."""
        group: list[Span] = []
        for span in spans:
            narrow = self._x(span.end) - self._x(span.start) < _NARROW
            if group and not (narrow and self._x(span.start) - self._x(group[-1].end) < _NARROW):
                yield group
                group = []
            group.append(span)
            if not narrow:
                yield group
                group = []
        if group:
            yield group

    def _draw_body(self, group: list[Span], y: float) -> Iterator[str]:
        first = group[0]
        yield self._box(group, f"body {first.outcome}" if len(group) == 1 else "many", y, _BODY)
        letters = int((self._x(first.end) - self._x(first.start) - 6) / _LETTER)
        if len(group) == 1 and letters >= 2:
            name = first.name
            # The last part of a qualified name says most.
            name = name if len(name) <= letters else name.rpartition(".")[2]
            name = name if len(name) <= letters else name[: letters - 1] + "…"
            x = self._x(first.start) + 4
            yield f'<text x="{x:.1f}" y="{y + 13}" pointer-events="none">{escape(name)}</text>'

    def _box(self, group: list[Span], style: str, y: float, height: float) -> str:
        start, end = self._x(group[0].start), self._x(group[-1].end)
        return (
            f'<rect class="{style}" x="{start:.2f}" y="{y}" width="{max(end - start, 0.5):.2f}"'
            f' height="{height}"><title>{escape(_title(group))}</title></rect>'
        )

    def _draw_marks(self, marks: Iterable[Mark], y: float) -> Iterator[str]:
        # One of a kind at a place is enough to be seen.
        found: dict[tuple[str, int], list[Mark]] = {}
        for mark in marks:
            found.setdefault((mark.kind, round(self._x(mark.time))), []).append(mark)
        for (kind, _), here in found.items():
            x = self._x(here[0].time)
            title = f"{kind} #{here[0].number} {here[0].name}"
            if len(here) > 1:
                title = f"{kind}, {len(here):,} times, from #{here[0].number} {here[0].name}"
            yield _line(kind, x, y - 3, x, y + 4, title)

    def _draw_arrows(self) -> Iterator[str]:
        drawn: set[tuple[int, int, int, int]] = set()
        for arrow in self._timeline.arrows:
            if arrow.kind != "lend" or len(drawn) == _MOST_ARROWS:
                continue
            place = self._ends(arrow)
            if place is not None and place not in drawn:
                drawn.add(place)
                x, y, to_x, to_y = place
                bend = 10 if to_y > y else -10
                yield (
                    f'<path class="arrow" d="M{x},{y} C{x},{y + bend} {to_x},{to_y - bend}'
                    f' {to_x},{to_y}"/><path class="head" d="M{to_x},{to_y} l-3,{-bend * 0.6}'
                    f' l6,0 z"/>'
                )

    def _ends(self, arrow: Arrow) -> tuple[int, int, int, int] | None:
        """From the lower part of the one row to the nearer edge of the other."""
        if max(arrow.source.number, arrow.target.number) > len(self._rows):
            return None
        y, to_y = self._y(arrow.source), self._y(arrow.target)
        edge = 0 if to_y > y else _BODY
        source = round(y + (_BODY if to_y > y else _BODY - _INNER))
        return round(self._x(arrow.since)), source, round(self._x(arrow.until)), round(to_y + edge)


def _rules(colours: dict[str, str]) -> str:
    return "".join(f".{_CLASS} {name} {{ {words} }}\n" for name, words in colours.items())


def _title(group: list[Span]) -> str:
    first = group[0]
    if len(group) > 1:
        long = _time(group[-1].end - first.start)
        return f"{len(group):,} times within {long}, first {first.name}"
    words = f"{first.name}, {_time(first.end - first.start)}"
    if first.kind == "body":
        queued = _time(max(0, first.start - first.submitted))
        words = f"#{first.number} {words}, {first.outcome}; queued for {queued}"
    return words


def _line(style: str, x: float, y: float, to_x: float, to_y: float, title: str = "") -> str:
    ends = f'x1="{x:.1f}" y1="{y}" x2="{to_x:.1f}" y2="{to_y}"'
    end = f"><title>{escape(title)}</title></line>" if title else "/>"
    return f'<line class="{style}" {ends}{end}'


def _step(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least that long."""
    step = 1.0
    while step * 10 < least:
        step *= 10
    return next(step * factor for factor in (1, 2, 5, 10) if step * factor >= least)


def _time(nanoseconds: int) -> str:
    for unit, length in ("s", 1e9), ("ms", 1e6), ("µs", 1e3):
        if nanoseconds >= length:
            return f"{nanoseconds / length:.4g} {unit}"
    return f"{nanoseconds} ns"
