"""Who waits for whom: decides what is a circle and what could be lent; moves nothing.

An arrow leads from a body that waits to each future that it waits for, and from a future
to the body that executes it. It is read and changed under `guard.lock`; others only say that a
wait has `changed`, and ring it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from .locking import Sleeper
from .state import Slots, Worker
from .submission import Submission, clock


class Node(Sleeper):
    """A body that waits: for futures, or for a slot."""

    #: The body, once it waits. Not there for a thread that executes none.
    worker: Worker
    #: What that body waited in already, where a `__del__` waits in between.
    outer: Node | None = None
    #: Whether one of `pending` ends the wait; otherwise all must be over.
    any = False
    #: Whether it ends by itself when its time has run out.
    timed = False
    #: Whether it waits for a slot: a body that resumes.
    resumes = False
    #: The only one of `pending`.
    single: Any = None
    #: Where its thread waits, while it does. (`sys._current_frames` could tell, and can
    #: deadlock inside CPython 3.11 where two threads ask.)
    frame: FrameType | None = None
    #: Why what its slot was lent to cannot start.
    error: BaseException | None = None
    #: Whether what it waits for may lead somewhere that was not looked at yet.
    changed = True
    #: A line that is to advance, once the lock is released, for this to end.
    line: Line | None = None
    #: Whether it is installed. A body that lends its slot right away need not be.
    listening = False

    #: Those of `pending` that `next_queued` has not passed, in order of submission.
    _maybe_queued: OrderedDict[Any, None] | None = None

    def __init__(self) -> None:
        super().__init__()
        #: The futures that it waits for; shrinks as they end.
        self.pending: dict[Any, None] = {}

    def over(self) -> bool:
        raise NotImplementedError

    def listen(self) -> None:
        """See to it, once, that it hears when what it waits for ends."""
        if not self.listening:
            self.listening = True
            self.install()

    def install(self) -> None:
        """Have what it waits for tell it."""

    def next_queued(self, slots: Slots) -> Submission[Any] | None:
        """The first of `pending` that is queued for `slots`, the body's own."""
        if self._maybe_queued is None:
            self._maybe_queued = OrderedDict.fromkeys(self.pending)
        while self._maybe_queued:
            future = next(iter(self._maybe_queued))
            if getattr(future, "owner", None) is slots:
                if is_queued(future):
                    return future
                if future.predecessor is not None:
                    break  # A run that is owed may be one later.
            del self._maybe_queued[future]
        return None

    def forget(self, future: Any) -> None:
        """Keep nothing of one that is over."""
        del self.pending[future]
        if self._maybe_queued is not None:
            self._maybe_queued.pop(future, None)


class Graph:
    """The bodies that wait."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        #: By the future of the body.
        self.waiting: dict[Any, Node] = {}

    def enter(self, node: Node, worker: Worker) -> None:
        worker.moved = clock()
        node.worker, node.outer, node.changed = worker, worker.node, True
        worker.node = self.waiting[worker.future] = node

    def leave(self, node: Node, worker: Worker) -> None:
        """Harmless when it has left already, or has not entered."""
        if worker.node is not node:
            return
        worker.moved = clock()
        worker.node = node.outer
        if node.outer is None:
            self.waiting.pop(worker.future, None)
        else:
            self.waiting[worker.future] = node.outer
            node.outer.ring()  # What rang meanwhile did not ring that.


graph = Graph()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=graph.forget)


def is_queued(future: Any) -> TypeGuard[Submission[Any]]:
    """Whether `future` is a submission that nobody has claimed, and stands in a queue."""
    return (
        isinstance(future, Submission)
        # Not its state, which without a GIL is stored a step later.
        # explore: queued-by-claim
        and hasattr(future, "fn")  # pyright: ignore[reportUnknownArgumentType]
        and isinstance(future.owner, Slots)
        and future.predecessor is None
    )


class Line(Node):
    """What those wait for that wait in a line: the end of any that was let through.

    It is nobody's wait, and their `predecessor`. So a body that waits for one in line lends
    its slot to one that was let through, and a circle that leads through here is seen. It is
    no error: of those in line, the one that is waited for is let through.
    """

    any = True

    def over(self) -> bool:
        """Whether the next is about to be let through, or may be when it comes."""
        raise NotImplementedError

    def led_to(self, start: Node) -> None:
        """`start` leads here, and is to look again once one more was let through. Comes before
        a look at those that were."""
        raise NotImplementedError

    def let_through(self, awaited: Iterable[Any]) -> None:
        """Have the first of `awaited` that is in this line go next."""
        raise NotImplementedError

    def advance(self) -> None:
        """Let those through whose turn it is. Not for under the lock."""
        raise NotImplementedError


def _obstacle(future: Any) -> Node | Submission[Any] | None:
    """What `future` waits for: the wait of the body that executes it, itself where it is
    queued, the line in which it waits; None where it can end without anybody else."""
    while future is not None:
        if isinstance(future, Line):
            return future
        # (Another package's has no wait, and its `done` may take a lock.)
        if not isinstance(future, Submission) or future.done():
            break
        if future in graph.waiting:
            return graph.waiting[future]
        if is_queued(future):
            return future
        future = future.predecessor
    return None


Place: TypeAlias = Node | Slots
#: What lent slots would start or let go on, queued submissions and those whose bodies resume,
#: each with the slots that it needs one of.
Targets: TypeAlias = dict[Any, Slots]


class Reach(NamedTuple):
    """Where a wait leads to."""

    #: The places that it leads to, in the order in which they were found, and what each of
    #: these leads to.
    leads: dict[Place, list[Any]]
    #: What can end.
    can_end: set[Place]
    targets: Targets


def runs_freely(start: Node) -> bool:
    """Whether `start` leads, from one wait for one future to the next, to a body that
    waits for nothing. The short way for long chains; False where it is not that simple."""
    node = start
    # No circle outlives the locked section that closes it: the only one here may be `start`'s.
    while node.single is not None and not node.timed:
        following = graph.waiting.get(node.single)
        if following is None:
            return _obstacle(node.single) is None
        if following is start:
            break
        node = following
    return False


def explore(start: Node, *, past_queues: bool = False, untimed: bool = False) -> Reach:
    """Find where `start` leads to, and what of it can end.

    A queued submission ends like any other, unless one looks `past_queues`: then it waits
    for one of those who hold the slots of its service. A wait with a timeout ends by itself,
    unless one looks at it as `untimed`.
    """
    leads: dict[Place, list[Any]] = {}
    targets: Targets = {}
    reached_from: dict[Place, list[Place]] = {start: []}
    places: list[Place] = [start]
    # How many of those that a place leads to must be able to end before it can.
    missing: dict[Place, int] = {}
    for place in places:
        if isinstance(place, Line):
            place.led_to(start)
        leads[place], missing[place] = _leads(place, past_queues, untimed, targets)
        for lead in leads[place]:
            if lead not in reached_from:
                places.append(lead)
            reached_from.setdefault(lead, []).append(place)
    ending = [place for place in places if not missing[place]]
    for place in ending:
        for waiting in reached_from[place]:
            missing[waiting] -= 1
            if not missing[waiting]:
                ending.append(waiting)
    return Reach(leads, set(ending), targets)


def _leads(
    place: Place, past_queues: bool, untimed: bool, targets: Targets
) -> tuple[list[Place], int]:
    """What `place` waits for that waits itself, and how many of those must be able to end."""
    if isinstance(place, Slots):
        return _holders(place)
    if place.over():
        return [], 0
    if place.resumes:
        slots = place.worker.slots
        targets[place.worker.future] = slots
        return ([slots], 1) if past_queues else ([], 0)
    leads: list[Place] = []
    lend = None if isinstance(place, Line) else place.worker.lend
    for future in list(place.pending):
        obstacle = _obstacle(future)
        if isinstance(obstacle, Node):
            leads.append(obstacle)
            continue
        if obstacle is not None:
            owner: Any = obstacle.owner
            # Not one that this body has lent its slot to: a second would come back unused.
            if lend is None or lend.future is not obstacle:
                targets[obstacle] = owner
            if past_queues:
                leads.append(owner)
                continue
        if place.any:
            return leads, 0
    needed = 0 if place.timed and not untimed else len(leads)  # explore: timed-can-end
    return leads, min(needed, 1) if place.any else needed


def is_full(slots: Slots) -> bool:
    """Whether what is queued for `slots` starts only after a body that holds a slot ends."""
    return not (slots.free or slots.lends or slots.opened < slots.bound)


def _holders(slots: Slots) -> tuple[list[Place], int]:
    """The waits of the bodies that hold `slots`; none of them is needed where a slot is or
    comes free without."""
    # Who has lent its slot is no holder: the borrower is.
    holders = [worker for worker in slots.workers if worker.slot]
    # One that does not wait executes, or is about to take something.
    waits: list[Place] = [worker.node for worker in holders if worker.node is not None]
    if not is_full(slots) or len(waits) < len(holders):
        return [], 0
    return waits, min(len(waits), 1)


def can_lend(node: Node, slots: Slots) -> bool:
    """Whether the body that waits in `node` holds one of `slots` and may lend it."""
    worker = node.worker
    return worker.slots is slots and worker.slot and slots.lends_slots and not node.over()


def lenders(node: Node, slots: Slots) -> Iterator[Worker]:
    """The bodies that may lend one of `slots` to what `node` waits for: its own, then those
    whose waits lead to it, the nearest first."""
    seen = {node}
    nodes = [node] if slots.lends_slots else []
    for there in nodes:
        if can_lend(there, slots):
            yield there.worker
        for waiting in _direct(there.worker):
            if waiting not in seen:
                seen.add(waiting)
                nodes.append(waiting)


def _direct(worker: Worker) -> Iterator[Node]:
    """The waits for what `worker` executes, or for what follows it."""
    future = worker.future
    for debt in worker.debts:
        # It waits for what this executes, and need not have made a Watch for that.
        node = debt.lender.node
        if node is not None and future in node.pending:
            yield node
    while future is not None:
        for node in _nodes_at(future):
            waiting = getattr(node, "worker", None)
            if waiting is not None and waiting.node is node:
                yield node
        future = future.successor


def _nodes_at(future: Submission[Any]) -> Iterator[Node]:
    """The waits that are installed in `future`. The stdlib's, in a body, are the events of
    its waiters."""
    listeners = future.watch and future.watch.listeners
    for waiter in list(listeners.waiters) if listeners else []:
        node: Any = getattr(waiter, "event", waiter)
        if isinstance(node, Node):
            yield node


def ring_waiters(future: Submission[Any]) -> None:
    """Bodies that wait for a run that is queued by now may have a slot to lend."""
    for node in _nodes_at(future):
        node.changed = True
        node.ring()
