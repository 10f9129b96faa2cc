"""Wrappers round the `submit` of the stdlib's pool take effect on the drop-in's submissions.

Instrumentation replaces the attribute (sentry, OpenTelemetry), or rewrites the code of the
function (ddtrace). Either way the wrapper hands the pool and a callable of its own to the
function that it is wrapped round. So where there is a wrapper, the stdlib's `submit` is
called on a stand-in for the pool (`standing_in`), and what it queues is submitted here.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.thread
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias

from .state import Slots
from .threads import PerThread

#: The stdlib's class, also while `install` has the name be ours.
stdlib_pool: Any = concurrent.futures.ThreadPoolExecutor
_globals: object = vars(concurrent.futures.thread)

#: Submits without a look at wrappers.
Accept: TypeAlias = "Callable[..., concurrent.futures.Future[Any]]"


class Plain:
    """The stdlib's own `submit`, as it was last seen without a wrapper."""

    __slots__ = ("submit", "code")

    def __init__(self) -> None:
        #: None until it has been seen: the wrapper may have come first.
        self.submit: Any = None
        #: Its code then. In no step with `submit`: who finds one of them changed looks again.
        self.code: object = None


plain = Plain()


def is_wrapped() -> bool:
    """Whether there is a wrapper now."""
    submit = stdlib_pool.submit
    if submit is plain.submit and submit.__code__ is plain.code:
        return False
    if type(submit) is not FunctionType:
        return True
    code = submit.__code__
    # A rewritten function keeps its globals and its name, but starts no threads itself.
    if submit.__globals__ is not _globals or "_adjust_thread_count" not in code.co_names:
        return True
    plain.submit, plain.code = submit, code
    return False


is_wrapped()

#: Set while this thread is inside the stdlib's function and holds its lock, which is not
#: reentrant: what a signal handler or a `__del__` submits there must not come to it again.
inside = PerThread()


def takes_effect(slots: object) -> bool:
    """Whether what this thread submits now goes through a wrapper. (What is submitted to a
    stand-in has.)"""
    return type(slots) is not Slots or (is_wrapped() and not inside.get())
