"""Threads: how one is started, listed by `threading`, and ended.

They start through `_thread`, not `threading`. `Thread.start` waits for the new thread,
which is slow, deadlocks in a signal handler up to Python 3.12, and from 3.14 on may pass
the starter's context on. The price is that a new thread enters itself into `threading`'s
table. Functions of `_thread` are looked up when they are called, so that gevent's and
eventlet's patches hold for pools that were imported before them.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
from collections.abc import Callable
from operator import methodcaller
from typing import Any

from .locking import HAS_GIL

#: Not in an isolated sub-interpreter.
DAEMONS_ALLOWED: bool = getattr(_thread, "daemon_threads_allowed", lambda: True)()

#: Where `Thread.start` keeps what the interpreter knows of a thread.
_HANDLE = "_handle" if sys.version_info < (3, 14) else "_os_thread_handle"


#: Since Python 3.14 threads have their names in the system, too.
_set_name: Callable[[str], object] | None = getattr(_thread, "set_name", None)


def _listed() -> dict[int, threading.Thread]:
    """`threading`'s own table, which has no public name. eventlet puts another in its place."""
    table: dict[int, threading.Thread] = vars(threading)["_active"]
    return table


class ListedThread(threading.Thread):
    """A thread that can be named, found and joined as any other; started by its starter."""

    def __init__(self, name: str, daemon: bool) -> None:
        # What a body starts inherits this.
        super().__init__(name=name, daemon=daemon and DAEMONS_ALLOWED)
        #: Locked until the thread has ended.
        self._ended = _thread.allocate_lock()
        self._ended.acquire()

    def starter(self, daemon: bool) -> Callable[[Any], object]:
        """What starts this thread when it is called with `_thread`: a single call in C."""
        if HAS_GIL and DAEMONS_ALLOWED:
            return methodcaller("start_new_thread", self._main, ())
        if sys.version_info < (3, 13):
            raise RuntimeError("a sub-interpreter without daemon threads needs Python 3.13")
        # The interpreter keeps a list of these, and joins them. Without a GIL it must not
        # end before its last thread is quite gone, which is later than `_ended`.
        return methodcaller("start_joinable_thread", self._main, daemon=daemon)

    def work(self) -> None:
        """What the thread does. Raises what ends it unexpectedly."""

    def gone(self) -> None:
        """The last thing that it does, when `threading` does not list it any more."""

    def _main(self) -> None:
        try:
            self._enter()
            self.work()
        finally:
            _listed().pop(_thread.get_ident(), None)
            self.gone()
            self._ended.release()

    def _enter(self) -> None:
        """What `Thread._bootstrap` does, without its locks."""
        self._ident = _thread.get_ident()
        if hasattr(_thread, "get_native_id"):
            self._native_id = _thread.get_native_id()
        _listed()[self._ident] = self
        vars(self)["_started"].set()
        if _set_name is not None:
            try:
                _set_name(self.name)
            except OSError:
                pass
        # What `threading` looks at in a forked child, where the thread that forked is the
        # main thread; gevent's patches look there too.
        if sys.version_info < (3, 13):
            vars(self)["_tstate_lock"] = self._ended
        else:
            vars(self)[_HANDLE] = vars(_thread)["_make_thread_handle"](self._ident)
        trace, profile = threading.gettrace(), threading.getprofile()
        if trace is not None:
            sys.settrace(trace)
        if profile is not None:
            sys.setprofile(profile)

    def is_alive(self) -> bool:
        return self._ended.locked()

    def join(self, timeout: float | None = None) -> None:
        if self is threading.current_thread():
            raise RuntimeError("cannot join current thread")
        seconds = -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)
        if self._ended.acquire(True, seconds):
            self._ended.release()


class PerThread:
    """A value for each thread, forgotten in a forked child.

    Not a `threading.local`: an ending thread clears those after its last line, which
    without a GIL can meet the interpreter's own end and deadlock.
    """

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def get(self) -> Any:
        return self.values.get(_thread.get_ident())

    def set(self, value: Any) -> None:
        if value is None:
            self.values.pop(_thread.get_ident(), None)
        else:
            self.values[_thread.get_ident()] = value

    def forget(self) -> None:
        # Replaced, not cleared: without a GIL a thread that does not exist in the child
        # may have been in the middle of an operation on it.
        self.values = {}
