"""How a body is described to a person: its call, its thread, and the line where it waits."""

from __future__ import annotations

import concurrent.futures
import os
import reprlib
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from .reporting import name_of
from .state import Worker
from .submission import Submission

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: Where a body's own frames are not.
_INSIDE = (_PACKAGE, os.path.dirname(concurrent.futures.__file__), threading.__file__)
_repr = reprlib.Repr().repr
#: Of one argument, in characters.
_LONGEST = 80


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


def describe_arguments(future: Submission[Any]) -> str:
    """`(arguments)`, for a failure that may never be logged: calls nothing of theirs. Where
    somebody wants to know, all that `describe_call` says, and where it was submitted."""
    args, kwargs = future.args or (), future.kwargs or {}
    submitted = vars(future).get("origin")
    if submitted is None:
        return shortened(args, kwargs, _plain)
    return f"{shortened(args, kwargs)}, submitted at {submitted}"


def origin() -> str:
    """The line of the caller outside this package."""
    return _place(sys._getframe())  # pyright: ignore[reportPrivateUsage]


def _place(frame: FrameType | None) -> str:
    """The innermost line that is a body's own; empty where there is none."""
    while frame is not None and not outside(frame.f_code.co_filename):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _plain(value: Any) -> str:
    """Plain values shortened, others by their type."""
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind in (str, bytes):
        return _short(value[:_LONGEST])
    if kind in (float, bool, type(None)) or (kind is int and value.bit_length() <= _LONGEST):
        return repr(value)
    return f"<{name_of(kind)}>"


def _short(value: object) -> str:
    try:
        words = _repr(value)
    except BaseException:
        words = f"<{type(value).__name__}>"
    return words if len(words) <= _LONGEST else words[: _LONGEST - 3] + "..."


def shortened(
    args: tuple[Any, ...], kwargs: dict[str, Any], short: Callable[[object], str] = _short
) -> str:
    """Arguments as in a call, each shortened; what its own `__repr__` raises is caught."""
    words = [short(value) for value in args[:6]]
    words += [f"{name}={short(value)}" for name, value in list(kwargs.items())[:6]]
    if len(args) > 6 or len(kwargs) > 6:
        words.append("...")
    return f"({', '.join(words)})"
