"""In what context a body runs, and what of its submitter's it must not share.

A copy of a context shares the values. Two of them belong to a thread: the decimal context,
which is mutable, and sniffio's name of the event loop that runs here.
"""

from __future__ import annotations

import functools
import sys
from contextvars import Context, ContextVar
from typing import Any


def isolate(context: Context) -> None:
    """Give the copy of a submitter's context values of its own, where it must have them."""
    if "decimal" in sys.modules:
        variable = _decimal_variable()
        if variable is not None and variable in context:
            context.run(variable.set, context[variable].copy())
    if "sniffio" in sys.modules:
        variable = getattr(sys.modules["sniffio"], "current_async_library_cvar", None)
        if variable is not None and variable in context:
            context.run(variable.set, None)


@functools.cache
def _decimal_variable() -> ContextVar[Any] | None:
    """The variable of `decimal`'s context, which has no public name."""
    import decimal  # noqa: PLC0415  # It was imported before, or this would not be called.

    blank = Context()
    blank.run(decimal.getcontext)
    return next(iter(blank), None)


def preset(values: list[tuple[ContextVar[Any], Any]]) -> None:
    for variable, value in values:
        variable.set(value)
