"""Lending: moves the slot of a body that waits to what it waits for, and back.

All of it is under `guard.lock`. Where a slot can go is decided by `graph`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from .graph import (
    Line,
    Node,
    Reach,
    Targets,
    can_lend,
    explore,
    graph,
    is_full,
    is_queued,
    lenders,
    runs_freely,
)
from .locking import HAS_GIL
from .slots import grant, take_spare
from .state import Lend, Slots, Worker
from .submission import RUNNING, Submission, serial_of

#: Without a GIL a submission is removed from a queue by looking through it; longer ones
#: keep it until a worker comes to it.
_LONG = 10_000


def lend_for(node: Node) -> list[Node] | None:
    """Lend what helps a body that begins to wait, whose slot is back, or whose wait leads
    elsewhere by now.

    None where it must listen before; not under this lock, for that takes those of the futures.
    Where the wait can never end, it has left the graph, and what is returned is the circle:
    its waits in order, the first one last too. Raises the `RuntimeError` of a thread that
    cannot be started.
    """
    worker = node.worker
    one_is_enough = node.any or node.single is not None
    if (one_is_enough or not node.changed) and can_lend(node, worker.slots):
        future = node.next_queued(worker.slots)
        if future is not None:
            # What is queued waits for nobody: no circle. And its end is when the slot is back.
            _lend(worker, future)
            return []
    if not node.listening:
        return None
    node.changed = False
    if node.over() or runs_freely(node):
        return []
    slots: Any = node.single.owner if is_queued(node.single) else None
    if slots is not None and not is_full(slots):
        slots.signal()  # As in `_lend_to_each`. The short way, again.
        return []
    reach = explore(node)
    if _let_through(node, reach):
        return []
    if node not in reach.can_end:
        # Under the same lock: of several that close a circle, the others need not raise.
        graph.leave(node, worker)
        return _circle(node, reach)  # explore: circle-raises
    full = any(map(is_full, reach.targets.values()))
    if not _lend_to_each(node, reach.targets) and full:
        _lend_where_stuck(node)
    return []


def _let_through(node: Node, reach: Reach) -> bool:
    """Where `node` leads in a circle through a line, have what is waited for there go next;
    whether it does. (It may be through by now, or cancelled: then it looks again after that.)"""
    if not any(isinstance(place, Line) for place in reach.leads):
        return False
    if node in reach.can_end:  # Perhaps only as some time runs out.
        reach = explore(node, untimed=True)
    if node in reach.can_end:
        return False
    circle = _circle(node, reach)
    for place, line in pairwise(circle):
        if isinstance(line, Line):
            line.let_through(list(place.pending))
            node.line = line
            return True
    return False


def _circle(start: Node, reach: Reach) -> list[Node]:
    circle: dict[Any, None] = {}
    place: Any = start
    while place not in circle:
        circle[place] = None
        place = next(lead for lead in reach.leads[place] if lead not in reach.can_end)
    return [*circle, place]


def _lend_to_each(node: Node, targets: Targets) -> bool:
    """Lend to each of `targets` what the body of `node`, or else the nearest of those that
    wait for it, holds; whether anything was lent."""
    lent = False
    givers: dict[Slots, Iterator[Worker]] = {}
    for future, slots in targets.items():
        giver = next(givers.setdefault(slots, lenders(node, slots)), None)
        if giver is None:
            slots.signal()  # Perhaps it only lacks a thread, and nobody else would try again.
        else:
            _lend(giver, future)
            lent = True
    return lent


def _lend_where_stuck(node: Node) -> None:
    """Where full services wait for each other crosswise, lend until `node` can end."""
    while True:
        reach = explore(node, past_queues=True)
        if node in reach.can_end:
            return
        for future, slots in reach.targets.items():
            holders = reach.leads.get(slots, [])
            giver = next((each for each in holders if can_lend(each, slots)), None)
            if giver is not None:  # explore: crosswise
                _lend(giver.worker, future)
                break
        else:
            return


def _lend(lender: Worker, future: Submission[Any]) -> None:
    """Lend the slot of `lender`: to `future` where it is queued, and a worker fetches both;
    else to its body, which resumes."""
    slots, resuming = lender.slots, graph.waiting.get(future)
    lend = Lend(lender, future if resuming is None else None)
    if resuming is None:
        fetch(slots)  # It comes to the lends once the lock is released.
        lends = slots.lends
        lends += (lend,)  # No call until the lender knows: see `open_one`.
    else:
        resuming.worker.debts.append(lend)  # explore: lend-to-resuming
        grant(resuming.worker)
    lender.lend, lender.slot = lend, False
    slots.recorder.lent(lender, future)


def withdraw(lender: Worker) -> bool:
    """Take back a lend that no worker has fetched; whether there was one."""
    lend = lender.lend
    if lend is None or lend.future is None:
        return False
    place = lender.slots.lends.index(lend)
    del lender.slots.lends[place]
    lender.slot = True  # Before the call: see `open_one`.
    grant(lender)
    return True


def fetch(slots: Slots) -> None:
    """Wake a worker for the lends, if none is on its way.

    Raises the `RuntimeError` of a thread that cannot be started; then nothing has changed.
    """
    if slots.fetcher is not None:
        return
    worker = take_spare(slots)
    try:
        for _ in worker.wake:
            break
    except BaseException:
        slots.spare.insert(0, worker.wake)
        raise
    slots.fetcher = worker


def fetch_or_refuse(slots: Slots) -> None:
    """Have the next lend fetched; where no thread can be started, its lender's wait raises."""
    try:
        if len(slots.lends) > slots.preparing_for_lends:
            fetch(slots)
    except RuntimeError as error:
        while slots.lends:
            lender = slots.lends.popleft().lender
            assert lender.node is not None
            lender.node.error = error
            grant(lender)  # explore: refused-rings


def borrow(worker: Worker) -> bool:
    """Have a worker without a slot fetch the next lend; False where there is none.

    It then has the slot and the claim of the submission.
    """
    slots = worker.slots
    if slots.fetcher is worker:
        slots.fetcher = None  # explore: fetched-none
    lends, debts = slots.lends, worker.debts
    while lends:
        lend = lends[0]
        future, lend.future = lend.future, None
        del lends[0]
        worker.slot = True
        debts += (lend,)
        if _start(worker, future):
            fetch_or_refuse(slots)  # explore: fetched-so-next
            return True
        end_debts(worker)  # Cancelled, or another has started it.  # explore: borrowed-nothing
    return False


def lend_on(worker: Worker) -> bool:
    """A borrower is over: have it start the next submission that its lender waits for.

    Without waking the lender; False where there is none, and the slot is to be given back.
    """
    if len(worker.debts) != 1 or not worker.slot:
        return False
    lender = worker.debts[0].lender
    node = lender.node
    if lender.lend is not worker.debts[0] or node is None or node.over():
        return False
    while (future := node.next_queued(worker.slots)) is not None:
        if _start(worker, future):
            lender.slots.recorder.lent(lender, future)
            return True
    return False


def _start(worker: Worker, future: Any) -> bool:
    """Claim `future` for `worker`, past the queue."""
    try:
        fn = future.fn
        del future.fn  # explore: claim-by-borrower
        future.state = RUNNING
        worker.future = future
        worker.fn = fn
    except AttributeError:
        return False
    worker.borrowed += 1
    _discard(worker.slots.queue, future)
    return True


def end_debts(worker: Worker) -> None:
    """The body of `worker` is over, or has not started: what it has lent stays with the
    borrower; its own slot goes back to the last of its lenders that wait for it, and the
    others get one as bodies that resume."""
    worker.lend = None  # explore: debts-close-lend
    worker.slots.unslotted.discard(worker)
    while worker.debts:
        lend = worker.debts.pop()
        lender = lend.lender
        if lender.lend is not lend:  # explore: lend-closed
            continue
        if worker.slot:
            worker.slot = False
            lender.slot = True  # Before the call: see `open_one`.
            grant(lender)
        else:
            lender.lend = None
            lender.slots.unslotted.add(lender)
            if lender.node is not None:
                lender.node.ring()


def _discard(queue: deque[Submission[Any]], future: Submission[Any]) -> None:
    """Take a submission that was started past the queue out of it.

    Most are at the end, for a body has just submitted them. The others are found by their
    serial: the queue is in order but for those submitted at once. With a GIL the look and
    the removal are one run.
    """
    if HAS_GIL:
        try:
            if queue[-1] is future:
                del queue[-1]
                return
            near = bisect_left(queue, future.serial, key=serial_of)
            for place in range(max(near - 8, 0), near + 8):
                if queue[place] is future:
                    del queue[place]
                    return
        except IndexError:
            pass  # Workers have taken others out meanwhile.
    if HAS_GIL or len(queue) < _LONG:
        try:
            queue.remove(future)
        except ValueError:
            pass  # A worker has taken it out, and dropped it.
