"""`wait` and `as_completed`, lending, and safe where a Ctrl-C lands in them."""

from __future__ import annotations

import concurrent.futures
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from typing import Any, TypeAlias, TypeVar

from .blocking import block
from .graph import Node
from .locking import holding
from .submission import Submission, serial_of

__all__ = ["as_completed", "wait"]

T = TypeVar("T")

AnyFuture: TypeAlias = "concurrent.futures.Future[Any]"
_DoneAndNotDone = concurrent.futures._base.DoneAndNotDoneFutures  # pyright: ignore[reportPrivateUsage]


class _WaitForSeveral(Node):
    """A wait that is told of the futures' ends as the stdlib's waiters are."""

    def __init__(self, futures: Iterable[AnyFuture], return_when: str) -> None:
        super().__init__()
        # In the order of submission, which is the order in which slots are lent. (A plain
        # dict is slow to find its first key once many before it are gone.)
        self.pending = OrderedDict.fromkeys(sorted(futures, key=serial_of))
        self.any = return_when == FIRST_COMPLETED
        #: Those of `pending` that are over, in that order, until they are taken out.
        self.finished: deque[AnyFuture] = deque()
        #: Those that were ever in `finished`, and are still in `pending`.
        self._ended: set[AnyFuture] = set()
        self._failed = False
        self._stops_at_failure = return_when == FIRST_EXCEPTION
        self._needed = 1 if self.any else len(self.pending)
        #: Those in which this is installed.
        self._installed: dict[AnyFuture, None] = {}

    def over(self) -> bool:
        return len(self.finished) >= self._needed or self._failed

    def install(self) -> None:
        for future in list(self.pending):
            condition = future._condition  # pyright: ignore[reportPrivateUsage]
            if not holding(condition, self._watch, future):
                self._failed = self._failed or (self._stops_at_failure and _has_failed(future))
                self._finish(future)

    def uninstall(self) -> None:
        for future in list(self._installed):
            self._unwatch(future)

    def _watch(self, future: AnyFuture) -> bool:
        if future.done():
            return False
        self._installed[future] = None
        _waiters(future).append(self)
        return True

    def _unwatch(self, future: AnyFuture) -> None:
        if future in self._installed:
            holding(future._condition, self._uninstall, future)  # pyright: ignore[reportPrivateUsage]
            del self._installed[future]

    def _uninstall(self, future: AnyFuture) -> None:
        if self in _waiters(future):
            _waiters(future).remove(self)

    def _finish(self, future: AnyFuture) -> None:
        # Once, also where it hears of it twice, see `Submission._close`. `pending` keeps it
        # until this thread takes it out, for others may be looking through that.
        if future not in self._ended:
            self._ended.add(future)
            self.finished.append(future)

    def add_result(self, future: AnyFuture) -> None:
        self._finish(future)
        if self.over():
            self.ring()

    add_cancelled = add_result

    def add_exception(self, future: AnyFuture) -> None:
        self._failed = self._stops_at_failure
        self.add_result(future)

    def take(self) -> AnyFuture:
        """One that is over; nothing of it is kept."""
        future = self.finished.popleft()
        self.forget(future)
        self._unwatch(future)
        self._ended.discard(future)
        return future


def _waiters(future: AnyFuture) -> list[Any]:
    if isinstance(future, Submission):
        return future.watched().waiters
    return future._waiters  # pyright: ignore[reportPrivateUsage]


def _has_failed(future: AnyFuture) -> bool:
    """Whether a future that is over failed. Looking is not asking."""
    if isinstance(future, Submission):
        return future.failure is not None and not future.cancelled()
    return not future.cancelled() and future.exception() is not None


def wait(
    fs: Iterable[concurrent.futures.Future[T]],
    timeout: float | None = None,
    return_when: str = ALL_COMPLETED,
) -> concurrent.futures._base.DoneAndNotDoneFutures[T]:  # pyright: ignore[reportPrivateUsage]
    """`concurrent.futures.wait`, lending the body's slot to what it waits for.

    Blocks up to `timeout` seconds, for ever with None. Returns the sets of futures that
    are done and not done. In a body the slot goes from one queued future to the next, in
    the order of submission, until the wait is over; without a timeout it raises
    `DeadlockError` where it could never be. Raises `ValueError` for another
    `return_when` than the three of `concurrent.futures`.
    """
    futures = set(fs)
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
        raise ValueError(f"invalid return condition: {return_when!r}")
    deadline = None if timeout is None else time.monotonic() + timeout
    if not _is_over(futures, return_when) and (timeout is None or timeout > 0):
        waiting = _WaitForSeveral(futures, return_when)
        try:
            waiting.listen()
            if not waiting.over():
                block(waiting, deadline)
        finally:
            waiting.uninstall()
            del waiting
    done = {future for future in futures if future.done()}
    return _DoneAndNotDone(done, futures - done)


def _is_over(futures: set[concurrent.futures.Future[T]], return_when: str) -> bool:
    done = [future for future in futures if future.done()]
    if len(done) == len(futures):
        return True
    if return_when == FIRST_COMPLETED:
        return bool(done)
    return return_when == FIRST_EXCEPTION and any(map(_has_failed, done))


def as_completed(
    fs: Iterable[concurrent.futures.Future[T]], timeout: float | None = None
) -> Iterator[concurrent.futures.Future[T]]:
    """`concurrent.futures.as_completed`, lending the body's slot to what it waits for.

    Yields each future once as it is done; raises `TimeoutError` when `timeout` seconds
    have passed since the first step. Each step lends the slot of the body that it is made
    in, as `wait` for the first of them does.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    waiting = _WaitForSeveral(set(fs), FIRST_COMPLETED)
    total = len(waiting.pending)
    # A future on its way to the caller: a local variable would keep it until the next.
    taken: list[Any] = []
    del fs
    try:
        waiting.listen()
        while waiting.pending:
            if not waiting.finished and not block(waiting, deadline):
                raise concurrent.futures.TimeoutError(
                    f"{len(waiting.pending)} (of {total}) futures unfinished"
                )
            taken.append(waiting.take())
            yield taken.pop()
    finally:
        waiting.uninstall()
