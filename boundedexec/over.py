"""What `Service.over` returns: a service that admits, over an executor that executes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from typing import Any

from ._core.beneath import Beneath
from ._core.feeding import Feed
from ._core.pool import set_up
from ._core.state import Settings
from .checking import checked_bound, checked_integer, checked_seconds
from .service import Service

_numbers = itertools.count()


class Over(Service):
    """See `Service.over`."""

    def __init__(
        self,
        executor: Executor | Callable[[], Executor],
        max_workers: int | None,
        thread_name_prefix: str,
        retries: int,
        max_queued: int | None,
        daemon: bool,
        slow_after: float | None,
    ) -> None:
        settings = Settings(
            thread_name_prefix or f"Over-{next(_numbers)}",
            None,
            None,
            False,
            False,
            None if max_queued is None else checked_integer("max_queued", max_queued, 0),
            daemon,
            checked_seconds("slow_after", slow_after),
        )
        beneath = _beneath(executor, checked_integer("retries", retries, 0))
        self._attach(set_up(Feed(settings, checked_bound(max_workers), beneath)))

    def slot_yielded(self) -> AbstractContextManager[None]:
        raise RuntimeError(
            "no slot is held here: the bodies of this service execute in another executor, not"
            " on its threads"
        )


def _beneath(executor: Any, retries: int) -> Beneath:
    # A class has a `submit`, and is to be called.
    if callable(getattr(executor, "submit", None)) and not isinstance(executor, type):
        if retries:
            raise ValueError(
                "retries needs a callable that returns an executor: this one, once broken, is"
                f" not replaced: {executor!r}"
            )
        return Beneath(executor, None, 0)
    if not callable(executor):
        raise TypeError(f"executor must be one, or a callable that returns one, not {executor!r}")
    make: Any = executor
    beneath = Beneath(None, make, retries)
    # Here, for at the end of the program it may be too late.
    beneath.current()
    return beneath
