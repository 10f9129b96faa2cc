"""`wait` and `as_completed`, lending, and safe where a Ctrl-C lands in them."""

from __future__ import annotations

import concurrent.futures
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from typing import TypeVar

from .blocking import block
from .graph import Node
from .submission import AnyFuture, Submission, install, serial_of, uninstall

__all__ = ["as_completed", "wait"]

T = TypeVar("T")

_DoneAndNotDone = concurrent.futures._base.DoneAndNotDoneFutures  # pyright: ignore[reportPrivateUsage]


class _WaitForSeveral(Node):
    """A wait that is notified of the futures' ends as the stdlib's waiters are."""

    def __init__(self, futures: Iterable[AnyFuture], return_when: str) -> None:
        super().__init__()
        # In the order of submission, which is the order in which slots are lent. (A plain
        # dict is slow to find its first key once many before it are gone.)
        self.pending = OrderedDict.fromkeys(sorted(futures, key=serial_of))
        self.any = return_when == FIRST_COMPLETED
        #: Those of `pending` that it has not heard of, and those that are over, in that
        #: order, until they are taken out.
        self._unheard = {future: future for future in self.pending}
        self.finished: deque[AnyFuture] = deque()
        self._stops_at_failure = return_when == FIRST_EXCEPTION
        self._failed = False
        self._look()

    def over(self) -> bool:
        if self.any:
            return bool(self.finished) or not self.pending
        return self._failed or not self._unheard

    def _look(self) -> None:
        for future in list(self._unheard):
            if future.done():
                (self.add_exception if _has_failed(future) else self.add_result)(future)

    def install(self) -> None:
        for future in list(self._unheard):
            install(future, self)
        # Installed, so look: some may have ended before.
        self._look()  # explore: installed-so-look

    def uninstall(self) -> None:
        for future in list(self.pending):
            uninstall(future, self)

    def add_result(self, future: AnyFuture) -> None:
        # Out of the one and into the other once, on whatever threads it hears of it, and no
        # signal in between. `pending` keeps it until this thread takes it out, for others
        # may be looking through that.
        try:
            self.finished.extend(map(self._unheard.pop, (future,)))
        except KeyError:
            pass
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
        uninstall(future, self)
        return future


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
    are `done` and `not_done`, also when time ran out. May be called from anywhere. In a body
    the slot goes from one queued future to the next, in the order of submission, until the
    wait is over; without a timeout it raises `DeadlockError` where it could never be. Raises
    `TypeError` for what is not iterable, `ValueError` for another `return_when` than the three
    of `concurrent.futures`.
    """
    futures = set(fs)
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
        raise ValueError(f"invalid return condition: {return_when!r}")
    deadline = None if timeout is None else time.monotonic() + timeout
    if timeout is None or timeout > 0:
        waiting = _WaitForSeveral(futures, return_when)
        try:
            if not waiting.over():
                waiting.listen()
                block(waiting, deadline)
        finally:
            waiting.uninstall()
    done = {future for future in futures if future.done()}
    return _DoneAndNotDone(done, futures - done)


def as_completed(
    fs: Iterable[concurrent.futures.Future[T]], timeout: float | None = None
) -> Iterator[concurrent.futures.Future[T]]:
    """`concurrent.futures.as_completed`, lending the body's slot to what it waits for.

    Returns an iterator at once, from anywhere; it yields each future once, as it is done. A
    step blocks until one is, and raises `TimeoutError` when `timeout` seconds (None: no limit)
    have passed since the first step. In a body each step lends the slot, and raises
    `DeadlockError`, as `wait` for the first of them does. Raises `TypeError` for what is not
    iterable.
    """
    return _as_completed(set(fs), timeout)


def _as_completed(
    futures: set[concurrent.futures.Future[T]], timeout: float | None
) -> Iterator[concurrent.futures.Future[T]]:
    deadline = None if timeout is None else time.monotonic() + timeout
    waiting = _WaitForSeveral(futures, FIRST_COMPLETED)
    total = len(waiting.pending)
    del futures
    try:
        waiting.listen()
        while waiting.pending:
            if not waiting.finished and not block(waiting, deadline):
                raise concurrent.futures.TimeoutError(
                    f"{len(waiting.pending)} (of {total}) futures unfinished"
                )
            yield waiting.take()  # A local variable would keep it until the next.
    finally:
        waiting.uninstall()
