"""The ratios as a bar chart in SVG.

The scale is logarithmic. A bar runs from 1, the stdlib, to the ratio: to the left where
Service takes less, to the right where it takes more. Its colour says the same, unless
some pairs say the one and some the other. The chart has a background of its own, so that
it is readable in a dark viewer that ignores colour schemes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from .pairs import Verdict

WIDTH = 880
LABELS = 190
NUMBERS = 70
TOP = 92
STEP = 24
BAR = 12
BOTTOM = 44

STYLE = """
  .back { fill: #ffffff; }
  text { fill: #1f2328; font: 12px system-ui, sans-serif; }
  .title { font-size: 15px; font-weight: 600; }
  .quiet { fill: #59636e; }
  .grid { stroke: #d1d9e0; }
  .stdlib { stroke: #59636e; stroke-width: 1.5; }
  .less { fill: #2a78d6; }
  .more { fill: #c4581a; }
  .unclear { fill: #7d8590; }
  .spread { stroke: #1f2328; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117; }
    text { fill: #e6edf3; }
    .quiet { fill: #9198a1; }
    .grid { stroke: #30363d; }
    .stdlib { stroke: #9198a1; }
    .less { fill: #4c9aff; }
    .more { fill: #f0883e; }
    .spread { stroke: #e6edf3; }
  }
"""

# What a colour says, with the room for it in pixels.
LEGEND = (
    ("less", "less than the stdlib: faster, smaller", 260),
    ("more", "more than the stdlib: slower, larger", 260),
    ("unclear", "no clear difference: the pairs disagree", 0),
)


def chart(verdicts: Sequence[Verdict], *, title: str) -> str:
    """Return an SVG document that shows each verdict that is a ratio."""
    shown = [verdict for verdict in verdicts if verdict.ratio is not None]
    scale = _Scale([value for verdict in shown for value in verdict.spread or ()])
    bottom = TOP + STEP * max(1, len(shown))
    parts = [*_head(title, bottom + BOTTOM), *_grid(scale, bottom)]
    if not shown:
        parts.append(f'<text x="{LABELS}" y="{TOP + 16}">no ratio was measured</text>')
    for index, verdict in enumerate(shown):
        parts += _bar(verdict, scale, TOP + STEP * index + STEP / 2)
    parts.append("</svg>\n")
    return "\n".join(parts)


def _head(title: str, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}" rx="6"/>',
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
        '<text class="quiet" x="16" y="46">what Service takes, divided by what the stdlib takes, '
        "logarithmic; bar: median of the pairs; thin line: least and greatest</text>",
        *_legend(),
    ]


def _legend() -> list[str]:
    parts: list[str] = []
    x = 16
    for name, text, room in LEGEND:
        parts += [
            f'<rect class="{name}" x="{x}" y="60" width="{BAR}" height="{BAR}"/>',
            f'<text x="{x + BAR + 6}" y="70">{text}</text>',
        ]
        x += room
    return parts


def _grid(scale: _Scale, bottom: int) -> list[str]:
    parts: list[str] = []
    for value in scale.ticks:
        x = scale.x(value)
        parts += [
            f'<line class="{"stdlib" if value == 1 else "grid"}" '
            f'x1="{x:.1f}" y1="{TOP - 4}" x2="{x:.1f}" y2="{bottom}"/>',
            f'<text class="quiet" x="{x:.1f}" y="{bottom + 18}" '
            f'text-anchor="middle">{value:g}</text>',
        ]
    parts.append(
        f'<text class="quiet" x="{scale.x(1):.1f}" y="{bottom + 34}" '
        'text-anchor="middle">the stdlib</text>'
    )
    return parts


class _Scale:
    """A logarithmic axis that holds 1 and all `values`, between round numbers."""

    def __init__(self, values: Sequence[float]) -> None:
        positive = [value for value in values if value > 0]
        least = min([*positive, 0.5])
        greatest = max([*positive, 2])
        round_numbers = [
            digit * 10.0**power
            for power in range(math.floor(math.log10(least)), math.ceil(math.log10(greatest)) + 1)
            for digit in (1, 2, 5)
        ]
        low = max(value for value in round_numbers if value <= least)
        high = min(value for value in round_numbers if value >= greatest)
        self.ticks = [value for value in round_numbers if low <= value <= high]
        self._low = math.log(low)
        self._per_pixel = (math.log(high) - self._low) / (WIDTH - LABELS - NUMBERS)

    def x(self, value: float) -> float:
        """Return where `value` is, in pixels from the left."""
        if value <= 0:
            return LABELS
        return LABELS + (math.log(value) - self._low) / self._per_pixel


def _bar(verdict: Verdict, scale: _Scale, middle: float) -> list[str]:
    if verdict.ratio is None or verdict.spread is None:
        return []
    least, greatest = verdict.spread
    left, right = sorted((scale.x(verdict.ratio), scale.x(1)))
    name = "less" if greatest < 1 else "more" if least > 1 else "unclear"
    return [
        f'<text x="{LABELS - 12}" y="{middle + 4:.1f}" text-anchor="end">'
        f"{escape(verdict.label)}</text>",
        f'<rect class="{name}" x="{left:.1f}" y="{middle - BAR / 2:.1f}" '
        f'width="{max(right - left, 1):.1f}" height="{BAR}"/>',
        f'<line class="spread" x1="{scale.x(least):.1f}" y1="{middle:.1f}" '
        f'x2="{scale.x(greatest):.1f}" y2="{middle:.1f}"/>',
        f'<text x="{WIDTH - 16}" y="{middle + 4:.1f}" text-anchor="end">{verdict.ratio:.3f}</text>',
    ]
