"""What is outstanding on a service, submission by submission; loaded when somebody asks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeAlias

from .describing import shortened
from .locking import locked
from .reporting import name_of
from .slots import owed, queue_now
from .state import Slots, Worker
from .submission import PENDING, SECOND, Submission, clock, serial_of

State: TypeAlias = Literal["queued", "running", "lending", "yielded", "resuming", "owed"]


class Task(NamedTuple):
    """One outstanding submission at one moment: a named tuple, of which `Service.tasks`
    returns a list.

    Fields:
        number: given when it is first looked at, in the order of submission; its own from
            then on.
        name: the callable's qualified name.
        arguments: as in a call, shortened.
        state: "queued"; "running"; "lending": it waits, and what it waits for has its slot;
            "yielded": it gave its slot away; "resuming": it wants a slot again; "owed": a
            Coalescer's re-run, not queued yet.
        seconds: how long it has been in that state; at most, where its thread has gone
            through several that took no time before it.
        thread_name: the name of the thread that executes it; None where it has not started.
        thread_ident: that thread's `ident`; None where it has not started.
        waits_for: the numbers of the submissions that it waits for. (Not those of other
            packages.)
        key: the key of a Coalescer's run; None for others.
    """

    number: int
    name: str
    arguments: str
    state: State
    seconds: float
    thread_name: str | None
    thread_ident: int | None
    waits_for: tuple[int, ...]
    key: Any


class Sighting:
    """What was seen of a submission under the lock, until it is put into words."""

    __slots__ = ("future", "state", "since", "began", "worker", "fn", "args", "kwargs", "awaited")

    def __init__(
        self,
        future: Submission[Any],
        state: State,
        since: int,
        began: int = 0,
        worker: Worker | None = None,
    ) -> None:
        self.future = future
        self.state: State = state
        self.since = since
        self.began = began
        self.worker = worker
        self.fn = future.callee() if worker is None else worker.fn
        self.args = future.args or ()
        self.kwargs = future.kwargs or {}
        node = None if worker is None else worker.node
        self.awaited = [] if node is None else _awaited(node.pending)


def tasks(slots: Slots, limit: int | None = None) -> list[Task]:
    """What is outstanding: bodies in the order in which they began, then the queue, then
    what is owed; at most `limit`. Calls the `__repr__` of arguments, under no lock."""
    return to_tasks(islice(filter(_has_call, locked(_everything, slots)), limit))


def _has_call(sighting: Sighting) -> bool:
    return sighting.fn is not None  # Otherwise it has just started, or was cancelled.


def executing(slots: Slots) -> list[Sighting]:
    """The bodies, in the order in which they began."""
    return locked(_executing, slots)


def _everything(slots: Slots) -> Iterator[Sighting]:
    # The bodies are looked at here, under the lock. What is queued is looked at later, and
    # may have started by then.
    queue, following = queue_now(slots), owed(slots)
    return itertools.chain(
        _executing(slots),
        (Sighting(each, "queued", each.serial) for each in queue if each.state is PENDING),
        (Sighting(each, "owed", each.serial) for each in following if each.state is PENDING),
    )


def _executing(slots: Slots) -> list[Sighting]:
    found = [each for each in map(_sighting, slots.workers) if each is not None]
    return sorted(found, key=lambda each: each.began)


def _sighting(worker: Worker) -> Sighting | None:
    now, since, future = clock(), worker.since, worker.future
    if future is None or worker.fn is None:
        worker.seen = (0, 0, now)
        return None
    number, began, looked = worker.seen
    if number != future.serial:
        # Several that take no time share `since`: it may have begun later than that.
        began = max(since, future.serial, looked)
    worker.seen = (future.serial, began, now)
    state: State = "running"
    if worker.node is not None and worker.node.resumes:
        state = "resuming"
    elif worker.lend is not None:
        # Not where the wait ran out of time, and it goes on while its slot is lent.
        state = "running" if worker.node is None else "lending"
    elif worker in worker.slots.unslotted:
        state = "yielded"
    return Sighting(future, state, max(began, worker.moved), began, worker)


def _awaited(pending: Iterable[Any]) -> list[Submission[Any]]:
    return [f for f in list(pending) if isinstance(f, Submission) and not f.done()]


def to_tasks(sightings: Iterable[Sighting]) -> list[Task]:
    """Put into words what was seen."""
    now = clock()
    seen = list(sightings)
    futures = {future for each in seen for future in (each.future, *each.awaited)}
    for future in sorted(futures, key=serial_of):
        number_of(future)
    return [_task(each, now) for each in seen]


def _task(seen: Sighting, now: int) -> Task:
    worker = seen.worker
    return Task(
        number=number_of(seen.future),
        name=name_of(seen.fn),
        arguments=shortened(seen.args, seen.kwargs),
        state=seen.state,
        seconds=max(0, now - seen.since) / SECOND,
        thread_name=None if worker is None else worker.name,
        thread_ident=None if worker is None else worker.ident,
        waits_for=tuple(map(number_of, seen.awaited)),
        key=getattr(seen.future, "key", None),
    )


# Numbers: given to those that somebody looks at, so that others cost nothing.
_numbers = itertools.count(1)


def number_of(future: Submission[Any]) -> int:
    """The number by which reports refer to `future`."""
    number: int = vars(future).get("number") or vars(future).setdefault("number", next(_numbers))
    return number
