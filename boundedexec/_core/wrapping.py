"""Wrappers round the `submit` of the stdlib's pool take effect on the drop-in's submissions.

Instrumentation replaces the attribute (sentry, OpenTelemetry), or rewrites the code of the
function (ddtrace). Either way the wrapper hands the pool and a callable of its own to the
function that it is wrapped round. So where there is a wrapper, the stdlib's `submit` is
called on a stand-in for the pool, and what it puts into its queue is submitted here.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.thread
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeAlias

from .threads import PerThread

#: The stdlib's class, also while `install` has the name be ours.
stdlib_pool: Any = concurrent.futures.ThreadPoolExecutor
_globals: object = vars(concurrent.futures.thread)

AnyFuture: TypeAlias = "concurrent.futures.Future[Any]"
#: Submits without a look at wrappers.
Accept: TypeAlias = "Callable[..., AnyFuture]"


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
_inside = PerThread()


def takes_effect() -> bool:
    """Whether what this thread submits now goes through a wrapper."""
    return is_wrapped() and not _inside.get()


def submit_wrapped(pool: object, accept: Accept, fn: Any, args: Any, kwargs: Any) -> AnyFuture:
    """Have the wrapper submit, and return what it returns: the future that `accept` made,
    unless it has one of its own."""
    try:
        returned: AnyFuture = stdlib_pool.submit(_StandIn(pool, accept), fn, *args, **kwargs)
    finally:
        _inside.set(None)  # A Ctrl-C may have come between the lock and its block.
    return _ours(returned) if type(returned) is _Alias else returned


class _Other:
    """Another object, but for what the class defines."""

    __slots__ = ("_other",)
    _other: Any

    def __init__(self, other: object) -> None:
        object.__setattr__(self, "_other", other)

    __class__: Any = property(lambda self: self._other.__class__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._other, name, value)


class _Inside:
    """In the place of the pool's lock, which the stdlib takes first and gives back last."""

    def __enter__(self) -> None:
        _inside.set(True)

    def __exit__(self, *_: object) -> None:
        _inside.set(None)


class _Queue(_Other):
    """The pool's queue, for a wrapper that counts it; what is put into it is submitted."""

    __slots__ = ("_accept",)
    _accept: Accept

    def __init__(self, other: object, accept: Accept) -> None:
        super().__init__(other)
        object.__setattr__(self, "_accept", accept)

    def put(self, item: Any) -> None:
        # From Python 3.14 on an item has what is to be called as one `task`.
        task: Any = getattr(item, "task", None) or (item.fn, item.args, item.kwargs)
        fn, args, kwargs = task
        vars(item.future)["ours"] = self._accept(fn, *args, **kwargs)
        item.future.__class__ = _Alias


class _StandIn(_Other):
    """The pool, for a wrapper; but what the stdlib's `submit` uses of it is here.

    What refuses a submission is not: `accept` does, with the words of this package.
    """

    __slots__ = ("_work_queue",)

    _shutdown_lock = _Inside()
    _broken = _shutdown = False

    def __init__(self, pool: Any, accept: Accept) -> None:
        super().__init__(pool)
        object.__setattr__(self, "_work_queue", _Queue(pool._work_queue, accept))

    def _adjust_thread_count(self) -> None:
        """Threads start as this package starts them."""

    def _resolve_work_item_task(self, *task: Any) -> Any:
        return task


class _Alias(concurrent.futures.Future[Any]):
    """What the stdlib's `submit` made, turned into another name for our future: a wrapper
    may have it called back, or wait for it."""

    def __getattribute__(self, name: str) -> Any:
        return getattr(_ours(self), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(_ours(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_ours(self), name)

    # A wait for it finds it by the future that ends.

    def __eq__(self, other: object) -> bool:
        return _ours(self) is (_ours(other) if type(other) is _Alias else other)

    def __hash__(self) -> int:
        return hash(_ours(self))


def _ours(alias: object) -> AnyFuture:
    ours: AnyFuture = object.__getattribute__(alias, "__dict__")["ours"]
    return ours
