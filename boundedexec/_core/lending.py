"""Lending: moves the slot of a body that waits to what it waits for, and back.

All of it is under `guard.lock`, on threads that execute bodies or have just done so; but
for `fetch`'s caller nobody else. Where a slot can go is decided by `graph`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from .graph import Node, Target, can_lend, explore, runs_freely, waiting_for
from .locking import HAS_GIL
from .slots import close_lend, grant
from .state import Lend, Slots, Worker
from .submission import RUNNING, Submission

#: Without a GIL a submission is removed from a queue by looking through it; longer ones
#: keep it until a worker comes to it.
_LONG = 10_000


class CannotEnd(Exception):
    """A wait leads into a circle; the waits of it, in order, the first one last too."""

    def __init__(self, circle: list[Node]) -> None:
        super().__init__(circle)
        self.circle = circle


def seek(node: Node) -> None:
    """Lend what helps a body that begins to wait, or whose wait leads elsewhere by now.

    Raises `CannotEnd`, and the `RuntimeError` of a thread that cannot be started.
    """
    assert node.worker is not None
    if (node.any or node.single is not None) and can_lend(node, node.worker.slots):
        future = node.next_queued()
        if future is not None:
            # What is queued waits for nobody: no circle. And its end is when the slot is back.
            lend_to_queued(node.worker, future)
            return
    node.listen()
    if node.over() or (node.wants is None and runs_freely(node)):
        return
    reach = explore(node)
    if node not in reach.can_end:
        raise CannotEnd(_circle(node, reach.leads, reach.can_end))  # explore: circle-raises
    if reach.targets and not _lend_to_first(node, reach.targets):
        _lend_where_stuck(node)


def go_on(node: Node) -> None:
    """The slot of a body that waits is back, or its wait leads elsewhere by now: lend again."""
    assert node.worker is not None
    if not node.changed and can_lend(node, node.worker.slots):
        future = node.next_queued()
        if future is not None:
            lend_to_queued(node.worker, future)
            return
    node.changed = False
    seek(node)


def _circle(
    start: Node, leads: dict[Any, list[Any]], can_end: set[Any]
) -> list[Node]:
    circle: list[Node] = []
    place: Any = start
    seen: set[Any] = set()
    while place not in seen:
        seen.add(place)
        circle.append(place)
        place = next(lead for lead in leads[place] if lead not in can_end)
    return [*circle, place]


def _lend_to_first(node: Node, targets: list[Target]) -> bool:
    """Lend to each of `targets` what the body of `node`, or else the nearest of those that
    wait for it, holds; whether anything was lent."""
    lent = False
    givers: list[Node] | None = None
    # Services that have nothing to lend on this way: very many targets may be theirs.
    without: set[Slots] = set()
    for slots, future, worker in targets:
        if slots in without:
            continue
        if can_lend(node, slots):
            giver: Node | None = node
        else:
            if givers is None and slots.lends_slots:
                givers = list(waiting_for(node))
            giver = next((other for other in givers or () if can_lend(other, slots)), None)
        if giver is None:
            without.add(slots)
            slots.signal()  # Perhaps it only lacks a thread, and nobody else would try again.
        else:
            lent |= _lend(giver, Target(slots, future, worker))
    return lent


def _lend_where_stuck(node: Node) -> None:
    """Where full services wait for each other crosswise, lend until `node` can end."""
    while True:
        reach = explore(node, past_queues=True)
        if node in reach.can_end:
            return
        for target in reach.targets:
            givers = reach.leads.get(target.slots, [])
            giver = next((other for other in givers if can_lend(other, target.slots)), None)  # type: ignore[arg-type]
            # explore: crosswise
            if giver is not None and _lend(giver, target):  # type: ignore[arg-type]
                break
        else:
            return


def _lend(giver: Node, target: Target) -> bool:
    """Lend the slot of the body that waits in `giver`; False where it is needed no more."""
    assert giver.worker is not None
    if target.worker is not None:
        return _lend_to_resuming(giver.worker, target.worker)
    assert target.future is not None
    lend_to_queued(giver.worker, target.future)
    return True


def lend_to_queued(lender: Worker, future: Submission[Any]) -> None:
    """Lend the slot of `lender` to a queued submission; a worker fetches both."""
    lend = lender.lend = Lend(lender, future)
    lender.slot = False
    slots = lender.slots
    slots.lends.append(lend)
    if slots.recorder is not None:
        slots.recorder.lent(lender, future)
    try:
        fetch(slots)
    except BaseException:
        withdraw(lender)
        raise


def _lend_to_resuming(lender: Worker, borrower: Worker) -> bool:
    try:
        borrower.slots.resuming.remove(borrower)
    except ValueError:
        return False
    lend = Lend(lender, None)
    lender.slot = False
    borrower.debts.append(lend)  # explore: lend-to-resuming
    grant(borrower)
    lender.lend = lend
    if lender.slots.recorder is not None:
        lender.slots.recorder.lent(lender, borrower.future)
    return True


def withdraw(lender: Worker) -> bool:
    """Take back a lend that no worker has fetched; whether there was one."""
    lend = lender.lend
    try:
        lender.slots.lends.remove(lend)  # type: ignore[arg-type]
    except ValueError:
        return False
    lender.lend = None
    lender.slot = True
    return True


def fetch(slots: Slots) -> None:
    """Wake a worker for the lends, if none is on its way.

    Raises the `RuntimeError` of a thread that cannot be started.
    """
    if slots.fetcher is not None:
        return
    wake = slots.spare.pop() if slots.spare else slots.new_worker(slot=False).wake
    slots.fetcher = wake.worker
    try:
        next(wake)
    except BaseException:
        slots.fetcher = None
        slots.spare.insert(0, wake)
        raise


def fetch_or_refuse(slots: Slots) -> None:
    """Have the next lend fetched; where no thread can be started, its lender's wait raises."""
    try:
        if len(slots.lends) > slots.preparing_for_lends:
            fetch(slots)
    except RuntimeError as error:
        while slots.lends:
            lend = slots.lends.popleft()
            lender = lend.lender
            lender.lend = None
            lender.slot = True
            if lender.node is not None:
                lender.node.error = error
                lender.node.ring()  # explore: refused-rings


def borrow(worker: Worker) -> bool:
    """Have a worker without a slot fetch the next lend; False where there is none.

    It then has the slot and the claim of the submission.
    """
    slots = worker.slots
    if slots.fetcher is worker:
        slots.fetcher = None  # explore: fetched-none
    while slots.lends:
        lend = slots.lends.popleft()
        worker.debts.append(lend)
        worker.slot = True
        if _start(worker, lend):
            fetch_or_refuse(slots)  # explore: fetched-so-next
            return True
        give_back(worker)  # Cancelled, or another has started it.  # explore: borrowed-nothing
    return False


def _start(worker: Worker, lend: Lend) -> bool:
    """Claim the submission of `lend` for `worker`."""
    future = lend.future
    lend.future = None
    assert future is not None
    try:
        fn = future.fn
        del future.fn  # explore: claim-by-borrower
        future.state = RUNNING
        worker.future = future
        worker.fn = fn
    except AttributeError:
        return False
    _discard(worker.slots.queue, future)
    return True


def give_back(worker: Worker) -> None:
    """The body of `worker` is over: give its slot back to the last of its lenders that wait
    for it; the others get one as bodies that resume."""
    while worker.debts:
        lend = worker.debts.pop()
        lender = lend.lender
        if not lend.open:  # explore: lend-closed
            continue
        lend.open = False
        lender.lend = None
        if worker.slot:
            worker.slot = False
            if lender.node is not None and lender.node.wants is not None:
                lender.slots.resuming.remove(lender)  # explore: given-back-to-resuming
            grant(lender)
        else:
            lender.slots.unslotted.add(lender)
            if lender.node is not None:
                lender.node.ring()


def lend_on(worker: Worker) -> bool:
    """A borrower is over: have it start the next submission that its lender waits for.

    Without waking the lender; False where there is none, and the slot is to be given back.
    """
    if len(worker.debts) != 1 or not worker.slot:
        return False
    lend = worker.debts[0]
    node = lend.lender.node
    if not lend.open or node is None or node.single is not None or node.over():
        return False
    future = node.next_queued()
    while future is not None:
        lend.future = future
        if _start(worker, lend):
            if worker.slots.recorder is not None:
                worker.slots.recorder.lent(lend.lender, future)
            return True
        future = node.next_queued()
    return False


def end_debts(worker: Worker) -> None:
    """The body of `worker` is over: settle what it owes and what it is owed."""
    close_lend(worker)  # explore: debts-close-lend
    worker.slots.unslotted.discard(worker)
    give_back(worker)


def _discard(queue: deque[Submission[Any]], future: Submission[Any]) -> None:
    """Take a submission that was started past the queue out of it.

    With a GIL no thread is switched to between the look and the removal, for nothing is
    called in between. Most are near the end: a body has just submitted them.
    """
    if not HAS_GIL:
        if len(queue) < _LONG:
            _remove(queue, future)
        return
    try:
        if queue[-1] is future:
            queue.pop()
            return
        for place in _places(queue, future.serial):
            if queue[place] is future:
                del queue[place]
                return
    except IndexError:
        pass  # Workers have taken others out meanwhile.
    _remove(queue, future)


def _remove(queue: deque[Submission[Any]], future: Submission[Any]) -> None:
    try:
        queue.remove(future)
    except ValueError:
        pass  # A worker has taken it out, and dropped it.


def _places(queue: deque[Submission[Any]], serial: int) -> Iterator[int]:
    """Where the submission with that number may be: the queue is in order but for those
    that were submitted at once."""
    low, high = 0, len(queue)
    while low < high:
        middle = (low + high) // 2
        if queue[middle].serial < serial:
            low = middle + 1
        else:
            high = middle
    yield from range(low, max(low - 8, -1), -1)
    yield from range(low + 1, low + 8)
