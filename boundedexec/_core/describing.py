"""How a body is described to a person: its call, its thread, and the line where it waits."""

from __future__ import annotations

import concurrent.futures
import os
import reprlib
import sys
import threading
from types import FrameType
from typing import Any

from .reporting import name_of
from .state import Worker
from .submission import Submission

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: Where a body's own frames are not.
_INSIDE = (_PACKAGE, os.path.dirname(concurrent.futures.__file__), threading.__file__)
_repr = reprlib.Repr().repr


def outside(filename: str) -> bool:
    """Whether a frame of that file is a body's own."""
    return not filename.startswith(_INSIDE)


def describe(worker: Worker, frame: FrameType | None) -> str:
    """`name(arguments) on <thread> at <file>:<line>`, as much of it as there is."""
    future, fn = worker.future, worker.fn
    if future is None or fn is None:
        return "a body that is over"
    place = _place(frame)
    return f"{describe_call(fn, future)} on {worker.name}{place and ' at '}{place}"


def describe_call(fn: object, future: Submission[Any]) -> str:
    """`name(arguments)`: calls the `__repr__` of arguments."""
    return name_of(fn) + shortened(future.args or (), future.kwargs or {})


def origin() -> str:
    """The line of the caller outside this package."""
    return _place(sys._getframe())  # pyright: ignore[reportPrivateUsage]


def _place(frame: FrameType | None) -> str:
    """The innermost line that is a body's own; empty where there is none."""
    while frame is not None and not outside(frame.f_code.co_filename):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def shortened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Arguments as in a call, each shortened; what its own `__repr__` raises is caught."""
    words = [_short(value) for value in args[:6]]
    words += [f"{name}={_short(value)}" for name, value in list(kwargs.items())[:6]]
    if len(args) > 6 or len(kwargs) > 6:
        words.append("...")
    return f"({', '.join(words)})"


def _short(value: object) -> str:
    try:
        words = _repr(value)
    except BaseException:
        words = f"<{type(value).__name__}>"
    return words if len(words) <= 80 else words[:77] + "..."
