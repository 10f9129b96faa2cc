"""What a service does at one moment, in numbers; read off the state that it works with.

Loaded when somebody asks. Nothing is counted for it on the way of a submission, but for
what each worker counts of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

from .locking import locked
from .state import Slots, Worker
from .submission import PENDING, SECOND, clock

#: How many of the queue are looked at for one that has not been cancelled.
_FEW = 100


class Stats(NamedTuple):
    """What a service does at one moment: a named tuple, which `Service.stats` returns.

    Every submission that was accepted is in one of `queued`, `running`, `completed`,
    `failed` and `cancelled`; `submitted` is their sum. The totals count from when the
    service was made.

    Fields:
        bound: how many bodies may hold a slot at once; None for no bound.
        queued: submissions that have not started, a Coalescer's owed re-runs included.
        running: bodies that have started and are not over, also those that wait.
        lent: of these, bodies whose slot is lent to what they wait for.
        resuming: of these, bodies that wait to have a slot again.
        threads: threads of the service.
        idle_threads: those of them that wait for work.
        submitted: submissions that were accepted.
        completed: bodies that have returned.
        failed: bodies that have raised, and submissions that could not be started.
        cancelled: submissions that were cancelled.
        refused: submissions that `max_queued` has refused; not among `submitted`.
        seconds_since_completion: seconds since a body was last over; None where none was.
        longest_wait: seconds for which the first of what is queued has waited; 0.0 where
            nothing is.
    """

    bound: int | None
    queued: int
    running: int
    lent: int
    resuming: int
    threads: int
    idle_threads: int
    submitted: int
    completed: int
    failed: int
    cancelled: int
    refused: int
    seconds_since_completion: float | None
    longest_wait: float


def stats(slots: Slots) -> Stats:
    """The numbers of `slots`. Takes the lock of the slow path, which `submit` takes only where
    it may have to refuse: at `max_queued`, and where no thread can be started."""
    return locked(_stats, slots)


_of_worker = operator.attrgetter(
    "fn", "future", "lend", "begun", "failed", "granted", "missed", "passed", "borrowed"
)
_future = operator.attrgetter("future")
_steps = operator.attrgetter("steps")
_of_slots = operator.attrgetter("cancelled", "dead", "begun", "failed", "refused")


class _Counted(NamedTuple):
    """What can be said of one moment alone."""

    queued: int
    running: int
    lent: int
    threads: int
    begun: int
    failed: int
    cancelled: int
    refused: int


def _count(slots: Slots) -> _Counted:
    # One call in C: with a GIL no other thread comes in between. Without one, what moves
    # meanwhile may be counted where it was, where it is, or at both.
    workers = slots.workers
    parts: list[Callable[[], Any]] = [
        partial(len, slots.queue),
        partial(list, map(_of_worker, workers)),
        partial(list, map(operator.length_hint, map(_steps, workers))),
        partial(list, map(getattr, map(_future, workers), repeat("failure"), repeat(None))),
        partial(list, map(getattr, map(_future, workers), repeat("successor"), repeat(None))),
        partial(_of_slots, slots),
    ]
    length, facts, lefts, failures, owed, totals = list(map(operator.call, parts))
    cancelled, dead, begun, failed, refused = totals
    running = lent = threads = taken = 0
    for fact, left, failure in zip(facts, lefts, failures, strict=True):
        fn, future, lend, started, raised, granted, missed, passed, borrowed = fact
        running += fn is not None
        taken += fn is None and future is not None
        lent += lend is not None
        threads += started
        # One that has raised, and whose callbacks run, is still running.
        failed += raised - (fn is not None and failure is not None)
        begun += granted - left - missed - passed + borrowed
    # What a worker has taken and not claimed yet is neither in the queue nor running.
    queued = max(0, length + taken - dead) + len(owed) - owed.count(None)
    return _Counted(queued, running, lent, threads, begun - taken, failed, cancelled, refused)


def _stats(slots: Slots) -> Stats:
    slots.count()
    queued, running, lent, threads, begun, failed, cancelled, refused = _count(slots)
    now = clock()
    last = max(slots.last_end, *map(_last_end, slots.workers), 0)
    return Stats(
        bound=slots.max_workers,
        queued=queued,
        running=running,
        lent=lent,
        resuming=len(slots.resuming),
        threads=threads,
        idle_threads=sum(wake.worker.begun for wake in (*slots.free, *slots.spare)),
        submitted=queued + begun + cancelled,
        completed=begun - running - failed,
        failed=failed,
        cancelled=cancelled,
        refused=refused,
        seconds_since_completion=(now - last) / SECOND if last else None,
        longest_wait=_longest_wait(slots, now) if queued else 0.0,
    )


def _last_end(worker: Worker) -> int:
    """When the last body of `worker` was over, nearly; 0 where none is."""
    over = worker.begun_bodies() > (worker.fn is not None)
    # Where it has not gone idle since, its next body began when that was over.
    return max(worker.idled, worker.since) if over and worker.fn is not None else worker.idled


def _longest_wait(slots: Slots, now: int) -> float:
    since = now
    for place in range(_FEW):
        try:
            future = slots.queue[place]
        except IndexError:
            return 0.0
        since = future.serial
        # Otherwise it was cancelled, or has started with a lent slot.
        if future.state is PENDING:
            break
    # Those that were not looked at have not waited longer than the last that was.
    return (now - since) / SECOND
