"""install: the names of `concurrent.futures` are this package's, until that is undone.

Whoever asks the module for one of them then has ours, in whatever way: its lazy names,
its submodules, asyncio's default executor. What was imported from it before stays what
it was, so a program does this first.

Nothing is put around anything: an installed pool is the class itself, and costs what
it costs without this.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.thread
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import ModuleType

from ._core.waits import as_completed, wait
from .drop_in import ThreadPoolExecutor

__all__ = ["install", "installed"]

#: Where the stdlib defines `wait` and `as_completed`; it has no public name.
_base = sys.modules[concurrent.futures.Future.__module__]

# Every place that has one of the names, and ours for it.
_PLACES: list[tuple[ModuleType, str, object]] = [
    (concurrent.futures.thread, "ThreadPoolExecutor", ThreadPoolExecutor),
    (concurrent.futures, "ThreadPoolExecutor", ThreadPoolExecutor),
    (concurrent.futures, "wait", wait),
    (concurrent.futures, "as_completed", as_completed),
    (_base, "wait", wait),
    (_base, "as_completed", as_completed),
]

# Guards the two that follow.
_lock = threading.RLock()
#: The installs that nobody has undone yet, in no order that matters.
_standing: set[object] = set()
#: What the first of them found, place by place.
_found: list[object] = []


def install() -> Callable[[], None]:
    """Have `concurrent.futures` mean this package, for all that is imported from now on.

    Its `ThreadPoolExecutor`, `wait` and `as_completed` are `boundedexec`'s, in
    `concurrent.futures.thread` and `concurrent.futures._base` too. Returns what undoes
    it: a callable without arguments, which may be called again without effect. Of several
    installs, undone in any order, the names are ours until the last is undone. Neither
    touches pools that exist, or modules that have imported the names before: call it first.
    Both may be called on any thread.

    A pool of ours is an instance of the stdlib's class and of what the name stands for.
    One of the stdlib's, made or derived from before, is an instance of the former only.
    """
    token = object()
    with _lock:
        if not _standing:
            _replace()
        _standing.add(token)

    def undo() -> None:
        with _lock:
            if token in _standing:
                _standing.remove(token)
                if not _standing:
                    _restore()

    return undo


@contextmanager
def installed() -> Generator[None]:
    """A context manager: `install` for a `with` block, undone at its end, also when it raises.

    Yields nothing. Other threads see it too.
    """
    undo = install()
    try:
        yield
    finally:
        undo()


def _replace() -> None:
    # From Python 3.14 on it derives from the stdlib's pool, of which it uses every
    # part: it has to be there before its base's name is ours.
    with suppress(ImportError):
        __import__("concurrent.futures.interpreter")
    _found[:] = [getattr(module, name) for module, name, _ in _PLACES]
    for module, name, ours in _PLACES:
        setattr(module, name, ours)


def _restore() -> None:
    for (module, name, ours), before in zip(_PLACES, _found, strict=True):
        # Others may have replaced ours since: that is theirs to undo.
        if getattr(module, name) is ours:
            setattr(module, name, before)
    _found.clear()
