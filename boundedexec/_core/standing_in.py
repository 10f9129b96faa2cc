"""What stands in for a pool while a wrapper submits to it: see `wrapping`. Loaded by `service`."""

from __future__ import annotations

import concurrent.futures
from types import SimpleNamespace
from typing import Any

from .submission import AnyFuture
from .wrapping import Accept, inside, is_wrapped, stdlib_pool


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
        inside.set(True)

    def __exit__(self, *_: object) -> None:
        inside.set(None)


class _Queue(_Other):
    """The pool's queue, for a wrapper that counts it; what is put into it is accepted."""

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


class StandIn(_Other):
    """The pool, for a wrapper; but what a `submit` uses of it is here: of the stdlib's
    function, and of this package's.

    What refuses a submission is not: `accept` does, with the words of this package.
    """

    __slots__ = ("accept", "_work_queue")
    accept: Accept

    _shutdown_lock = _Inside()
    _broken = _shutdown = False
    _slots = SimpleNamespace(wrappable=True)

    def __init__(self, pool: Any, accept: Accept) -> None:
        super().__init__(pool)
        object.__setattr__(self, "accept", accept)
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
        return _ours(self) is _ours(other)

    def __hash__(self) -> int:
        return hash(_ours(self))


def _ours(future: Any) -> AnyFuture:
    """The future that it is another name for, or itself."""
    ours: AnyFuture = future
    if type(future) is _Alias:
        ours = object.__getattribute__(future, "__dict__")["ours"]
    return ours


# Last, for who finds these finds all of it loaded.


def submit(pool: Any, accept: Accept, fn: Any, args: Any, kwargs: Any) -> AnyFuture:
    """Have the wrapper round the stdlib's `submit` hand what it has made of `fn` to `accept`;
    return what it returns: the future of that, unless it has one of its own."""
    stand_in: StandIn = pool if type(pool) is StandIn else StandIn(pool, accept)
    if inside.get() or not is_wrapped():
        return stand_in.accept(fn, *args, **kwargs)
    try:
        return _ours(stdlib_pool.submit(stand_in, fn, *args, **kwargs))
    finally:
        inside.set(None)  # A Ctrl-C may have come between the lock and its block.


def submit_through(pool: Any, accept: Accept, fn: Any, args: Any, kwargs: Any) -> AnyFuture:
    """The same for a wrapper round the `submit` of the pool's class as well."""
    # Inside it this package's function finds a stand-in, and comes to `submit`.
    cls: Any = pool.__class__
    return _ours(cls.submit(StandIn(pool, accept), fn, *args, **kwargs))
