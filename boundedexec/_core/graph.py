"""Who waits for whom: decides what is a circle and what could be lent; moves nothing.

An arrow leads from a body that waits to each future that it waits for, and from a future
to the body that executes it. All of it is read and changed under `guard.lock`.
"""

from __future__ import annotations

import _thread
import os
from collections import OrderedDict
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple, TypeAlias

from .state import Lend, Slots, Worker
from .submission import PENDING, Submission


class Node:
    """A body that waits: for futures, or for a slot."""

    #: The body; None for a thread that executes none, and before it waits.
    worker: Worker | None = None
    #: Whether one of `pending` ends the wait; otherwise all must be over.
    any = False
    #: Whether it ends by itself when its time has run out.
    timed = False
    #: What it waits for; shrinks as futures end. Empty for a body that wants a slot.
    pending: dict[Any, None]
    #: The only one of `pending`.
    single: Any = None
    #: Where a body that resumes wants a slot; None for a wait for futures.
    wants: Slots | None = None
    #: Where its thread waits, while it does. (`sys._current_frames` could tell, and can
    #: deadlock inside CPython 3.11 where two threads ask.)
    frame: FrameType | None = None
    #: Why what its slot was lent to cannot start.
    error: BaseException | None = None
    #: Set where what it waits for may lead somewhere else by now.
    changed = False

    #: Those of `pending` that `next_queued` has not passed, in order of submission.
    _maybe_queued: OrderedDict[Any, None] | None = None

    #: Whether it is installed. A body that lends its slot right away need not be.
    listening = False

    def __init__(self) -> None:
        #: Released to have its thread look again.
        self.lock = _thread.allocate_lock()
        self.lock.acquire()

    def over(self) -> bool:
        raise NotImplementedError

    def listen(self) -> None:
        """See to it, once, that it hears when what it waits for ends."""
        if not self.listening:
            self.listening = True
            self.install()

    def install(self) -> None:
        """Have what it waits for tell it."""

    def next_queued(self) -> Submission[Any] | None:
        """The first of `pending` that is queued on the service of the body itself."""
        assert self.worker is not None
        if self.single is not None:
            own = is_queued(self.single) and self.single.owner is self.worker.slots
            return self.single if own else None
        if self._maybe_queued is None:
            self._maybe_queued = OrderedDict.fromkeys(self.pending)
        maybe = self._maybe_queued
        while maybe:
            future = next(iter(maybe))
            if is_queued(future) and future.owner is self.worker.slots:
                return future  # type: ignore[no-any-return]
            # What has started or is another service's is no candidate later either; but a
            # run that is owed may be.
            own = isinstance(future, Submission) and future.owner is self.worker.slots
            if own and future.predecessor is not None:
                break
            del maybe[future]
        return None

    def forget(self, future: Any) -> None:
        """Keep nothing of one that is over."""
        del self.pending[future]
        if self._maybe_queued is not None:
            self._maybe_queued.pop(future, None)

    def ring(self) -> None:
        """Have its thread look again. May be called too often, and late."""
        try:
            self.lock.release()
        except RuntimeError:
            pass  # It has not looked since the last time.


Place: TypeAlias = "Node | Slots"


class Graph:
    """The bodies that wait."""

    def __init__(self) -> None:
        #: By the future of the body.
        self.waiting: dict[Submission[Any], Node] = {}

    def enter(self, node: Node, worker: Worker) -> None:
        assert worker.future is not None
        node.worker = worker
        worker.node = self.waiting[worker.future] = node

    def leave(self, worker: Worker, before: Node | None) -> None:
        """`before`: what it waited in already, where a `__del__` waits in between."""
        assert worker.future is not None
        worker.node = before
        if before is None:
            self.waiting.pop(worker.future, None)
        else:
            self.waiting[worker.future] = before

    def forget(self) -> None:
        self.waiting = {}


graph = Graph()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=graph.forget)


def is_queued(future: Any) -> bool:
    """Whether `future` is a submission that has not started, and stands in a queue."""
    return (
        isinstance(future, Submission)
        and future.state is PENDING
        and isinstance(future.owner, Slots)
        and future.predecessor is None
    )


def _obstacle(future: Any) -> Node | Submission[Any] | None:
    """What `future` waits for: the wait of the body that executes it, itself where it is
    queued; None where it can end without anybody else."""
    while future is not None and not future.done():
        node = graph.waiting.get(future)
        if node is not None:
            return node
        if is_queued(future):
            queued: Submission[Any] = future
            return queued
        future = getattr(future, "predecessor", None)
    return None


class Target(NamedTuple):
    """Something that a lent slot would start, or let go on."""

    slots: Slots
    #: The submission; None for a body that resumes.
    future: Submission[Any] | None
    worker: Worker | None


class Reach(NamedTuple):
    """Where a wait leads to."""

    #: In the order in which they were found, the nearest first.
    places: list[Place]
    #: What each leads to.
    leads: dict[Place, list[Place]]
    #: What can end.
    can_end: set[Place]
    targets: list[Target]


def runs_freely(start: Node) -> bool:
    """Whether `start` leads, from one wait for one future to the next, to a body that
    waits for nothing. The short way for long chains; False where it is not that simple."""
    node = start
    # No circle outlives the locked section that closes it, but one may be closing.
    for _ in range(len(graph.waiting)):
        if node.single is None or node.timed:
            break
        following = graph.waiting.get(node.single)
        if following is None:
            return _obstacle(node.single) is None
        if following is start:
            return False
        node = following
    return False


def explore(start: Node, *, past_queues: bool = False) -> Reach:
    """Find where `start` leads to, and what of it can end.

    A queued submission ends like any other, unless one looks `past_queues`: then it waits
    for one of those who hold the slots of its service. "Can end" spreads backwards from
    what can, along each arrow once.
    """
    leads: dict[Place, list[Place]] = {}
    reached_from: dict[Place, list[Place]] = {start: []}
    places: list[Place] = [start]
    can_end: set[Place] = set()
    ending: list[Place] = []
    targets: list[Target] = []
    for place in places:
        leads[place], ends = _leads(place, past_queues, targets)
        if ends:
            ending.append(place)
        for lead in leads[place]:
            if lead not in reached_from:
                reached_from[lead] = []
                places.append(lead)
            reached_from[lead].append(place)
    missing = {place: 1 if _one_is_enough(place) else len(leads[place]) for place in places}
    for place in ending:
        if place not in can_end:
            can_end.add(place)
            for waiting in reached_from[place]:
                missing[waiting] -= 1
                if missing[waiting] == 0:
                    ending.append(waiting)
    return Reach(places, leads, can_end, targets)


def _one_is_enough(place: Place) -> bool:
    return isinstance(place, Slots) or place.any


def _leads(
    place: Place, past_queues: bool, targets: list[Target]
) -> tuple[list[Place], bool]:
    """What `place` waits for that waits itself, and whether it can end without those."""
    if isinstance(place, Slots):
        return _holders(place)
    if place.wants is not None:
        targets.append(Target(place.wants, None, place.worker))
        return ([place.wants], False) if past_queues else ([], True)
    leads: list[Place] = []
    ends = place.timed  # explore: timed-can-end
    for future in list(place.pending):
        obstacle = _obstacle(future)
        if isinstance(obstacle, Node):
            leads.append(obstacle)
            continue
        if obstacle is not None:
            slots = obstacle.owner
            assert isinstance(slots, Slots)
            targets.append(Target(slots, obstacle, None))
            if past_queues and slots.max_workers is not None:
                leads.append(slots)
                continue
        if place.any:
            return leads, True
    return leads, ends or not leads


def _holders(slots: Slots) -> tuple[list[Place], bool]:
    """The waits of the bodies that hold `slots`, and whether a slot is or comes free
    without those."""
    if slots.free or slots.lends or slots.opened < slots.bound:
        return [], True
    waits: list[Place] = []
    for worker in slots.workers:
        if worker.slot:
            if worker.node is None:
                return waits, True  # It executes, or is about to take something.
            waits.append(worker.node)
    # The others are with those that they were lent to, which hold them.
    return waits, not waits


def can_lend(node: Node | None, slots: Slots) -> bool:
    """Whether the body that waits in `node` holds one of `slots` and may lend it."""
    if node is None or node.wants is not None or node.worker is None:
        return False
    worker = node.worker
    return (
        worker.slot and worker.slots is slots and worker.node is node and slots.lends_slots
    ) and not node.over()


def waiting_for(node: Node) -> Iterator[Node]:
    """The bodies whose waits lead to the body of `node`, the nearest first."""
    seen = {node}
    nodes = [node]
    for there in nodes:
        assert there.worker is not None
        for waiting in _direct(there.worker):
            if waiting not in seen:
                seen.add(waiting)
                nodes.append(waiting)
                yield waiting


def node_of(waiter: Any) -> Node | None:
    """The wait that a waiter stands for; the stdlib's have it as an attribute, in a body."""
    node: Any = getattr(waiter, "node", waiter)
    return node if isinstance(node, Node) else None


def _direct(worker: Worker) -> Iterator[Node]:
    """The waits for what `worker` executes, or for what follows it."""
    future: Submission[Any] | None = worker.future
    debt: Lend
    for debt in worker.debts:
        # It waits for this alone, and need not have made a Watch for that.
        node = debt.lender.node
        if node is not None and future in node.pending:
            yield node
    while future is not None:
        for node in _nodes_at(future):
            if node.worker is not None and node.worker.node is node:
                yield node
        future = future.successor


def _nodes_at(future: Submission[Any]) -> Iterator[Node]:
    watch = future.watch
    for waiter in [] if watch is None else list(watch.waiters):
        node = node_of(waiter)
        if node is not None:
            yield node


def ring_waiters(future: Submission[Any]) -> None:
    """Bodies that wait for a run that is queued by now may have a slot to lend."""
    for node in _nodes_at(future):
        node.changed = True
        node.ring()
