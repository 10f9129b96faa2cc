"""The executor under a service that only admits: passed, or made by a factory, and anew."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor
from contextlib import suppress

from .pool import finish_all


class Beneath:
    """The executor that executes; where it was made by a factory, it is the service's own."""

    def __init__(
        self, executor: Executor | None, make: Callable[[], Executor] | None, retries: int
    ) -> None:
        #: None where the factory is to be called. From the first submission on, the feeder's.
        self.executor = executor
        self.make = make
        #: How often what a broken one had is handed to another.
        self.retries = retries
        if executor is not None:
            _finish_before(executor)

    def fresh(self) -> Beneath:
        return Beneath(None if self.make else self.executor, self.make, self.retries)

    def current(self) -> Executor:
        """The executor, made anew where there is none. Raises what the factory raises."""
        if self.executor is None:
            assert self.make is not None
            made = self.make()
            if not callable(getattr(made, "submit", None)):
                raise TypeError(f"the factory must return an executor with submit, not {made!r}")
            self.executor = made
            _finish_before(made)
        return self.executor

    @property
    def is_own(self) -> bool:
        """Whether there is one that a factory has made."""
        return self.make is not None and self.executor is not None

    def replaces(self, broken: Executor | None) -> bool:
        """Have another made, instead of one that refused with `BrokenExecutor`; whether
        there can be another."""
        if self.make is not None and self.executor is broken:
            self.close(wait=False)
        return self.make is not None

    def is_broken(self, executor: Executor | None) -> bool:
        """Whether it accepts nothing any more: a body may have raised `BrokenExecutor`."""
        if executor is None or executor is not self.executor:
            return True  # It was replaced.
        # It cannot be asked, but a broken one accepts nothing. (To hand over the submission
        # itself would execute a body again that has raised that.)
        try:
            executor.submit(int).cancel()
        except BrokenExecutor:
            return True
        except Exception:
            pass  # Shut down.
        return False

    def close(self, *, wait: bool) -> None:
        """Shut down what a factory has made; what was passed is its owner's."""
        if self.is_own:
            executor, self.executor = self.executor, None
            with suppress(Exception):
                executor.shutdown(wait=wait)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]


#: The classes of executors that were seen.
_seen: set[type] = set()


def _finish_before(executor: Executor) -> None:
    """At exit have services be finished before that executor is.

    What is registered last is called first, and the module of the executor may have
    registered its own end after the package was imported.
    """
    if type(executor) not in _seen:
        with suppress(RuntimeError):  # The end has come.
            vars(threading)["_register_atexit"](finish_all)
        _seen.add(type(executor))
