"""Objects whose own methods note that they were called, and raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: What was called although nothing may call it.
CALLED: list[str] = []


def raising(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        CALLED.append(name)
        raise KeyError(name)

    return method


METHODS = [
    "__setattr__",
    "__delattr__",
    "__bool__",
    "__len__",
    "__eq__",
    "__ne__",
    "__hash__",
    "__repr__",
    "__str__",
    "__reduce__",
    "__iter__",
    "__contains__",
    "add_note",
    "__format__",
    "__lt__",
    "__call__",
]


def hostile(base: type, *but: str) -> type:
    """A class derived from `base` of which every method raises, but for some.

    Its instances may not stand in an `assert`: pytest looks at what stands there.
    """
    return type(
        f"Hostile{base.__name__}",
        (base,),
        {name: raising(name) for name in METHODS if name not in but},
    )


class Plain:
    pass
