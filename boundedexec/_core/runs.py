"""The runs of keys: how a submit joins one, how one begins, ends and is cancelled.

What hands them to an executor is above (`coalescer`). With a GIL nothing here is locked:
steps that belong together are one run (README.md, "What it stands on"). Runs are grouped by
the hash of their key, and what is taken out is found by identity (README.md, "Tried").
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeAlias, TypeVar, cast

from .future import Future
from .graph import ring_waiters
from .locking import HAS_GIL, headroom, holding
from .reporting import Failure
from .slots import look
from .state import Slots
from .submission import (
    CANCELLATION,
    CANCELLING,
    ENDING,
    PENDING,
    RUNNING,
    Owner,
    clock,
)

Step = TypeVar("Step", bound="Callable[..., Any]")

#: A callable, its arguments, and its context or None.
Call: TypeAlias = (
    "tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any] | None, Context | None]"
)


class Run(Future[Any]):
    """One execution of a key, and the future that all who joined it share.

    `successor` is the re-run that is owed: set while this has begun and is not over, and
    taken by the thread that hands it over. Until then this is the `predecessor` of that.
    Once a run is over it keeps nothing but its outcome.
    """

    __slots__ = ("runs", "key", "hash", "call", "shared")

    def __init__(self, runs: Runs, key: Any, number: int, call: Call) -> None:
        self.state = PENDING
        self.failure = None
        self.owner = runs.owner
        self.args = self.kwargs = self.context = None
        self.serial = clock()
        self.fn = True
        #: None once it is in flight no more: what is its `successor` then stays that.
        self.runs: Runs | None = runs
        self.key = key
        self.hash = number
        #: What the submit that came last asked for; None once it has begun or is over.
        self.call: Call | None = call
        #: Whether a second submit has joined: then none of them can cancel it.
        self.shared = False

    def callee(self) -> object:
        call = self.call
        return None if call is None else call[0]

    # As `_core.loop.LateCall`: what a worker calls, which has the claim.

    def start(self) -> Call:
        assert self.runs is not None
        call = self.runs.begin_on_worker(self)
        assert call is not None
        return call

    def leave(self) -> None:
        if self.runs is not None:
            self.runs.leave_on_worker(self)

    def go_on(self) -> None:
        """Queue what is owed, while this body is still outstanding."""
        following, self.successor = self.successor, None
        if isinstance(following, Run):
            following.queue()  # explore: run-following

    def queue(self) -> None:
        """What it follows is over: stand in the queue, at which its worker looks again."""
        slots: Any = self.owner
        if slots.cancelling:
            self.cancel_even_if_shared()
            return
        self.predecessor = None
        asked, self.serial = self.serial, clock()
        slots.recorder.rerun(self, asked)
        slots.queue.append(self)
        # Queued, so look: a shutdown may have looked before for what is owed and queued.
        if slots.cancelling:  # explore: owed-then-look
            self.cancel_even_if_shared()
        ring_waiters(self)  # explore: queued-rings
        look(slots)

    def fail(self, exception: BaseException, name: str) -> None:
        self._leave()
        self.go_on()
        super().fail(exception, name)

    # Without a worker: on another executor, and where a submit is refused.

    def _leave(self) -> None:
        if self.runs is not None:
            self.runs.leave(self)

    def decide(self, value: Any, failure: Failure | None) -> None:
        """Be over, unless it was cancelled before, and notify the waiters; the callbacks are
        left to the caller."""
        self._leave()
        if self.claim() or self.state is RUNNING:
            self.value = value
            self.failure = failure
            self.state = CANCELLING if failure is CANCELLATION else ENDING
            self.close()
        elif failure is not None:
            failure.asked = True

    @property
    def inner(self) -> Any:
        """What the executor returned for it; None where it is owed, or queued itself."""
        before = self.predecessor
        return None if isinstance(before, Run) and before.successor is self else before

    def running(self) -> bool:
        inner = self.inner
        if inner is None:
            return super().running()
        return not self.done() and bool(inner.running())

    # Cancelling.

    def cancel(self) -> bool:
        """Cancel the run if one submit alone asked for it and it has not begun."""
        return self._cancel(False)

    def cancel_even_if_shared(self) -> None:
        self._cancel(True)

    def _cancel(self, even_if_shared: bool) -> bool:
        headroom()
        runs, inner = self.runs, self.inner
        if runs is None or self.done():
            return self.cancelled()
        try:
            claimed = runs.cancel(self, even_if_shared)
            if claimed is None:
                if self.shared and not even_if_shared:
                    return self.cancelled()
                if inner is not None:
                    return bool(inner.cancel())  # Another executor has it, and may not have begun.
                return self.cancelled() or self.recall()
            self._conclude_cancelled(runs)
            call, queued = claimed
            if not HAS_GIL:  # Not under the lock of `runs`: a `__del__` may take that under this.
                self.owner.count_cancelled(queued)
            self.owner.recorder.cancelled(self, call[0])
            if inner is not None:
                inner.cancel()
        except BaseException:
            if self.state is CANCELLING:
                self._conclude_cancelled(runs)  # A Ctrl-C: nobody else would finish it.
            raise
        return True

    def _conclude_cancelled(self, runs: Runs) -> None:
        runs.leave(self)
        self.failure = CANCELLATION
        self.settle()


#: One less than how many `Runs` a Coalescer's keys are spread over, by their hashes: a mask.
#: Without a GIL so many that threads seldom wait for each other's lock.
PARTS = 0 if HAS_GIL else 63


def parts_of(owner: Owner, accept: Callable[[Run], object]) -> list[Runs]:
    return [Runs(owner, accept) for _ in range(PARTS + 1)]


def _alone(step: Step) -> Step:
    """A step of `Runs` that other threads must not come into."""
    if HAS_GIL:
        return step

    def locked(runs: Runs, /, *args: Any) -> Any:
        return holding(runs.lock, step, runs, *args)

    return cast("Step", locked)


def _alone_on_worker(step: Step) -> Step:
    """`_alone`, for a worker's thread: no Ctrl-C is raised there, so `with` is enough."""
    if HAS_GIL:
        return step

    def locked(runs: Runs, /, *args: Any) -> Any:
        with runs.lock:
            return step(runs, *args)

    return cast("Step", locked)


# No `get` of dictionaries that threads share: in CPython 3.13 without a GIL it takes a
# dictionary's lock twice, and waits for itself, where the value is another thread's.
_NO_RUNS: tuple[Run, ...] = ()


class Runs:
    """The runs of a Coalescer that are in flight, by key: all of them, or those of its part
    of the hashes."""

    def __init__(self, owner: Owner, accept: Callable[[Run], object]) -> None:
        self.lock = threading.RLock()
        #: What owns the futures: the slots in whose queue they stand, or what says whether
        #: a fork has lost them.
        self.owner = owner
        #: Makes a run that others can join outstanding: a single step in C.
        self._accept = accept
        #: The current run of each key, by hash. Tuples are replaced, never changed, and
        #: never empty.
        self.table: dict[int, tuple[Run, ...]] = {}

    def __len__(self) -> int:
        return sum(map(len, list(self.table.values())))

    def find(self, number: int, key: object) -> Run | None:
        """The current run of a key, of which `number` is the hash."""
        try:
            group = self.table[number]
        except KeyError:
            return None
        return _find(group, key)

    @_alone
    def enter(self, run: Run, content: bool) -> Run | None:
        """Have `run` be current, and return None; or the run that the submit belongs to
        instead: one that is there already, or `run` as the re-run of that.

        Raises what a key's `__eq__` raises, and changes nothing then.
        """
        table, number, call = self.table, run.hash, run.call
        assert call is not None
        while True:
            group = table[number] if number in table else _NO_RUNS  # noqa: SIM401
            current = _find(group, run.key) if group else None
            if current is None:
                entered = (*group, run) if group else (run,)
                # Nothing is called from here until it is outstanding; so no `get`.
                # explore: key-entered-once
                if (table[number] if number in table else _NO_RUNS) is group:  # noqa: SIM401
                    table[number] = entered  # explore: entered-then-accepted
                    self._accept(run)
                    return None
                continue
            joined = self.join(current, call, content)
            if joined is not None:
                return joined
            # Nor from here on.
            if current.runs is not None and current.successor is None:  # explore: rerun-once
                current.successor = run
                run.predecessor = current
                return run

    @_alone
    def join(self, current: Run, call: Call, content: bool) -> Run | None:
        """Join the key's run, or what follows it; None where there is nothing to join."""
        if current.runs is None:  # explore: joined-too-late
            # Who ends it has not come to that; or is interrupted by this very submit.
            self._take_out(current)
            return None
        # Nothing is called from here on.
        if content or current.call is not None:
            if not content:
                current.call = call
            current.shared = True  # explore: run-shared
            return current
        following: Any = current.successor
        if following is not None:
            following.call = call  # explore: rerun-call
            following.shared = True
        return following  # type: ignore[no-any-return]

    def _begin(self, run: Run) -> Call | None:
        """Begin a run: what is to be called; None where it is over already."""
        call, run.call = run.call, None
        return call

    begin = _alone(_begin)
    begin_on_worker = _alone_on_worker(_begin)  # explore: run-begins-locked

    @_alone
    def cancel(self, run: Run, even_if_shared: bool) -> tuple[Call, bool] | None:
        """Claim a run that has not begun, and have it follow no other: what it would have
        called, and whether it stands in a service's queue. None where it cannot be cancelled."""
        before = run.predecessor if isinstance(run.predecessor, Run) else None
        call = run.call
        queued = isinstance(self.owner, Slots) and before is None
        # Nothing is called from here on.
        if call is None or (run.shared and not even_if_shared):
            return None
        try:
            del run.fn  # explore: run-cancel-claims
            run.state = CANCELLING
            run.runs = run.call = None
            if before is not None and before.successor is run:
                before.successor = None
            if HAS_GIL:
                self.owner.cancelled += 1
                self.owner.dead += queued
        except AttributeError:
            return None
        return call, queued

    def _leave(self, run: Run) -> None:
        """Take a run that is over out; what follows it is current then. Repeatable."""
        run.runs = None  # Now nothing can follow it that does not follow it already.
        self._take_out(run)
        run.key = run.call = None
        if run.predecessor is not None:
            run.predecessor = None

    leave = _alone(_leave)
    leave_on_worker = _alone_on_worker(_leave)

    def _take_out(self, run: Run) -> None:
        table, number = self.table, run.hash
        while True:
            try:
                group = table[number]
            except KeyError:
                return
            following = run.successor
            if len(group) == 1 and group[0] is run:
                others = _NO_RUNS
            else:
                others = tuple([other for other in group if other is not run])
                if len(others) == len(group):
                    return
            if isinstance(following, Run):
                others = (*others, following)
            # Nothing is called from here on. What follows may have been cancelled.
            # explore: key-left-once
            if run.successor is following and number in table and table[number] is group:
                if others:
                    table[number] = others
                else:
                    del table[number]
                return


def _find(group: tuple[Run, ...], key: object) -> Run | None:
    for run in group:
        if run.key is key or run.key == key:
            return run
    return None
