"""Slots: how one is opened, granted to a body that resumes, and closed.

All that moves a slot is under `guard.lock`, beside submitters and idle workers that take none: they
take entries out of `free`, and put entries in. So what is put in is looked after (`look`).
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any, TypeVar

from .state import UNBOUNDED, Slots, Worker
from .submission import Submission

T = TypeVar("T")

#: Where a worker that has a thread is put in; those that have none come first, see `free`.
_END = sys.maxsize


def open_one(slots: Slots) -> None:
    """Open one more slot where the bound allows it: for each body that resumes, and where none
    is free."""
    # Here and below, what belongs together is done without a call, after which an exception
    # from outside could come.
    while slots.opened < slots.bound and (slots.resuming or not slots.free):
        if slots.resuming:  # explore: opened-for-resuming
            first = next(iter(slots.resuming))
            slots.opened += 1
            first.slot = True
            grant(first)
        else:
            worker = take_spare(slots)
            place = _END if worker.begun else 0
            worker.slot = worker.signalled = True
            slots.free[place:place] = [worker.wake]
            slots.opened += 1


def give_up_slot(worker: Worker) -> None:
    """Close its slot, and open one where that is needed."""
    slots = worker.slots
    worker.slot = False
    slots.opened -= 1  # explore: given-up-closed
    open_one(slots)  # explore: given-up-so-open


def keep(worker: Worker) -> bool:
    """Whether a worker between two bodies keeps its slot; if not, it has given it up."""
    slots = worker.slots
    if slots.resuming or slots.opened > slots.bound:
        give_up_slot(worker)
    return worker.slot


def grant(worker: Worker) -> None:
    """Have a body go on with a slot that no worker has. If it has lent one, its borrower
    keeps that."""
    worker.slot = True
    worker.lend = None  # explore: granted-closes-lend
    worker.slots.unslotted.discard(worker)  # explore: granted-slotted
    worker.slots.resuming.pop(worker, None)  # explore: granted-out-of-line
    if worker.node is not None:
        worker.node.ring()  # explore: granted-rings


def hand_out(slots: Slots) -> None:
    """Give slots to the bodies that resume, close those above the bound, and open one where
    none is left and there may be more."""
    open_one(slots)  # explore: bound-opens
    while (slots.resuming or slots.opened > slots.bound) and _close_free(slots):
        open_one(slots)  # explore: closed-so-open


def set_bound(slots: Slots, max_workers: int | None) -> None:
    before, slots.bound = slots.bound, UNBOUNDED if max_workers is None else max_workers
    hand_out(slots)
    if slots.bound < before:
        # What a body waits for may have been about to start, and now waits for a lent slot.
        for worker in slots.workers:
            if worker.node is not None:
                worker.node.changed = True
                worker.node.ring()


def _close_free(slots: Slots) -> bool:
    """Close a free slot; its worker, if it has a thread, is idle without one."""
    try:
        for wake in slots.frees:
            slots.opened -= 1  # explore: free-closed
            wake.worker.slot = wake.worker.signalled = False
            slots.spare.insert(_END if wake.worker.begun else 0, wake)
            return True
    except IndexError:
        pass
    return False


def take_spare(slots: Slots) -> Worker:
    """A worker without a slot: an idle one, or one that can be started."""
    try:
        for wake in slots.spares:
            return wake.worker
    except IndexError:
        pass
    return slots.new_worker()


def look(slots: Slots) -> None:
    """Wake a worker for the queue where one is free, and nobody needs to hear of failure:
    what runs looks again when it is over."""
    try:
        slots.signal()
    except RuntimeError:
        pass


def queue_now(slots: Slots) -> list[Submission[Any]]:
    return copy_of(slots.queue)


def copy_of(queue: deque[T]) -> list[T]:
    """What is in it at one moment. Without a GIL others may change it meanwhile."""
    while True:
        try:
            return list(queue)
        except RecursionError:
            raise
        except RuntimeError:
            pass  # "deque mutated during iteration".


def owed(slots: Slots) -> list[Submission[Any]]:
    """What is to be queued once a body that executes is over."""
    executed = [worker.future for worker in list(slots.workers)]
    following = [future.successor for future in executed if future is not None]
    return [future for future in following if future is not None]
