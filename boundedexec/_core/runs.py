"""The runs of keys: how a submit joins one, how one begins, ends and is cancelled.

What hands them to an executor is above (`coalescer`). With a GIL nothing here is locked:
where two steps belong together nothing is called between them, so neither a signal handler
nor another thread comes in between (README.md, "What it stands on").
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeAlias, TypeVar

from .future import Future
from .keyed import Keyed
from .locking import HAS_GIL, exactly, headroom, holding
from .reporting import Failure
from .state import Slots
from .submission import (
    CANCELLATION,
    CANCELLED,
    CANCELLING,
    ENDING,
    FINISHED,
    PENDING,
    RUNNING,
    Owner,
    clock,
)

T = TypeVar("T")

#: A callable, its arguments, and its context or None.
Call: TypeAlias = "tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Context | None]"


class Run(Future[Any]):
    """One execution of a key, and the future that all who joined it share.

    Once it is over it keeps nothing else.
    """

    __slots__ = (
        "runs", "key", "hash", "call", "shared", "begun", "over", "following", "deferred",
    )  # fmt: skip

    def __init__(self, runs: Runs, key: Any, number: int, call: Call) -> None:
        self.state = PENDING
        self.failure = None
        self.owner = runs.owner
        self.args = self.kwargs = self.context = None
        self.serial = clock()
        self.fn = self
        #: None once it is over.
        self.runs: Runs | None = runs
        self.key = key
        self.hash = number
        #: What the submit that came last asked for; None once it has begun or is over.
        self.call: Call | None = call
        #: Whether a second submit has joined: then none of them can cancel it.
        self.shared = False
        #: Whether it has begun: a submit then joins the run that follows it.
        self.begun = False
        #: Whether it is in flight no more, and `following` settled; the thread that sets it
        #: takes it out of the table.
        self.over = False
        #: The re-run that is owed. Set while this is begun, and not over.
        self.following: Run | None = None
        #: The same, once this is over, until it is handed over.
        self.deferred: Run | None = None

    @property
    def func(self) -> object:
        """What a person calls it by, see `name_of`."""
        call = self.call
        return self if call is None else call[0]

    def begin(self) -> Call | None:
        """Begin: what is to be called; None where it is over already."""
        call, self.call = self.call, None
        self.begun = True
        return call

    def let_go(self) -> None:
        """Keep nothing but the outcome."""
        self.runs = self.key = self.call = self.following = None
        self.owed = False
        self.predecessor = self.successor = None
        self.args = ()

    # As `_core.loop.LateCall`: what a worker calls, which has the claim.

    def start(
        self,
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any] | None, Context | None]:
        assert self.runs is not None
        call = self.runs.locked(self.begin)  # explore: run-begins-locked
        assert call is not None
        return call[0], call[1], call[2] or None, call[3]

    def leave(self) -> None:
        if self.runs is not None:
            self.deferred = self.runs.leave_run(self)
            self.let_go()

    def go_on(self) -> None:
        """Hand over what is owed, while this body is still outstanding."""
        following, self.deferred = self.deferred, None
        if following is not None and following.runs is not None:
            following.runs.hand_over(following, owed=True)

    def fail(self, exception: BaseException, name: str) -> None:
        self.leave()
        self.go_on()
        super().fail(exception, name)

    def cancel(self) -> bool:
        """Cancel the run if one submit alone asked for it and it has not begun."""
        return self._cancel(even_if_shared=False)

    def cancel_even_if_shared(self) -> None:
        self._cancel(even_if_shared=True)

    def _cancel(self, even_if_shared: bool) -> bool:
        headroom()
        runs = self.runs
        if runs is None or self.done():
            return self.cancelled()
        inner = None if self.owed else self.predecessor
        try:
            if not runs.locked(runs.cancel_run, self, even_if_shared):
                if inner is None or self.shared:
                    return self.cancelled()
                return inner.cancel()  # Another executor has it, and may not have begun.
            self._conclude_cancelled(runs)
            if inner is not None:
                inner.cancel()
        except BaseException:
            if self.state is CANCELLING:
                self._conclude_cancelled(runs)  # A Ctrl-C: nobody else would finish it.
            raise
        return True

    def _conclude_cancelled(self, runs: Runs) -> None:
        runs.leave_run(self)  # Again, where a Ctrl-C came before it was done.
        self.let_go()
        self.failure = CANCELLATION
        if self.watch is None:
            self.state = CANCELLED
        else:
            self._become_cancelled()

    def decide(self, value: Any, failure: Failure | None) -> None:
        """Store the outcome and notify the waiters, unless it was cancelled before; the
        callbacks are left to the caller."""
        if not (self.claim() or self.state is RUNNING):
            if failure is not None:
                failure.asked = True
            return
        self.let_go()
        self.value = value
        self.failure = failure
        self.state = CANCELLING if failure is CANCELLATION else ENDING
        if self.watch is not None:
            self.close()
        else:
            self.state = CANCELLED if failure is CANCELLATION else FINISHED

    def running(self) -> bool:
        inner = self.predecessor
        if inner is None or self.owed:
            return super().running()
        return not self.done() and inner.running()


class Runs:
    """The runs of a Coalescer that are in flight, by key."""

    def __init__(self, owner: Owner) -> None:
        self.lose(owner)

    def lose(self, owner: Owner) -> None:
        """Have none in flight: at first, and in a forked child."""
        self._lock = threading.RLock()
        #: What owns the futures: the slots in whose queue they stand, or what says whether
        #: a fork has lost them.
        self.owner = owner
        #: What the slots know as owed.
        self._owed = owner.owed if isinstance(owner, Slots) else None
        #: The current run of each key.
        self.table: Keyed[Run] = Keyed()

    def hand_over(self, run: Run, *, owed: bool) -> None:
        """Give a run to the executor."""
        raise NotImplementedError

    def locked(self, step: Callable[..., T], *args: Any) -> T:
        """Take a step that other threads must not come into."""
        return step(*args) if HAS_GIL else holding(self._lock, step, *args)

    def enter(self, run: Run, content: bool) -> Run:
        """The run that this submit belongs to: `run` itself, as the current one or as the
        re-run of that, or one that is there already."""
        while True:
            current = self.table.find_or_enter(run)
            if current is run:
                return run
            assert run.call is not None
            joined = self.join_current(current, run.call, content)
            if joined is not None:
                return joined
            # Nothing is called from here on.
            if current.over or current.following is not None:  # explore: rerun-once
                continue
            current.following = current.successor = run
            run.owed = True
            run.predecessor = current
            if self._owed is not None:
                self._owed[run] = None
                if not run.owed:
                    self._owed.pop(run, None)  # It was queued in this moment.
            return run

    def join_current(self, current: Run, call: Call, content: bool) -> Run | None:
        """Join the key's run, or what follows it; None where there is nothing to join."""
        if current.over:  # explore: joined-too-late
            # Who ends it has not come to that; or is interrupted by this very submit.
            self.table.leave(current, current.following)
            return None
        # Nothing is called from here on.
        if content or not current.begun:
            if not content:
                current.call = call
            current.shared = True  # explore: run-shared
            return current
        following = current.following
        if following is None:
            return None
        if following.over:
            current.following = None  # It was cancelled.
            return None
        following.call = call  # explore: rerun-call
        following.shared = True
        return following

    def cancel_run(self, run: Run, even_if_shared: bool) -> bool:
        """Claim a run that has not begun, and take it out."""
        if run.begun or (run.shared and not even_if_shared):
            return False
        try:
            del run.fn  # explore: run-cancel-claims
            run.state = CANCELLING
            run.over = True
        except AttributeError:
            return False
        exactly(self.owner.count_cancelled, isinstance(self.owner, Slots) and not run.owed)
        if self.owner.recorder is not None:
            self.owner.recorder.cancelled(run, run)
        run.call = None
        self._take_out(run)
        return True

    def leave_run(self, run: Run) -> Run | None:
        """Take a run that is over out; what follows it is current then, and returned."""
        return self.locked(self._leave, run)

    def _leave(self, run: Run) -> Run | None:
        first = not run.over
        run.over = True  # Now nothing can follow it that does not follow it already.
        self._take_out(run)
        return run.following if first else None  # explore: run-following

    def _take_out(self, run: Run) -> None:
        """Have what follows a run that is over be current; harmless when repeated."""
        if self._owed is not None:
            self._owed.pop(run, None)
        before = run.predecessor
        if isinstance(before, Run) and before.following is run:
            before.following = before.successor = None
        self.table.leave(run, run.following)
