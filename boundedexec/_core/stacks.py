"""Where threads are; loaded when somebody looks inside."""

from __future__ import annotations

import linecache
import sys
from types import FrameType

from .describing import outside


def current_frames() -> dict[int, FrameType]:
    """Where each thread is, by its ident."""
    return sys._current_frames()  # pyright: ignore[reportPrivateUsage]


def stack(frame: FrameType | None, most: int) -> list[str]:
    """The innermost lines that are a body's own, at most that many; the outer ones first."""
    lines: list[str] = []
    while frame is not None and len(lines) < most:
        code = frame.f_code
        if outside(code.co_filename):
            words = linecache.getline(code.co_filename, frame.f_lineno).strip()
            lines.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_name}: {words}")
        frame = frame.f_back
    return lines[::-1]
