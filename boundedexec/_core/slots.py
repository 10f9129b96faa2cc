"""Slots: how one is opened, freed, granted to a body that resumes, and closed.

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
    """Open one more slot, where none is free and the bound allows it; first for bodies that
    resume, which found none free."""
    while not slots.free and slots.opened < slots.bound:
        slots.opened += 1
        free_slot(slots)


def free_slot(slots: Slots) -> None:
    """A slot has no worker: have it free with one, unless it is needed elsewhere."""
    if not _goes_elsewhere(slots):
        worker = take_spare(slots)
        worker.slot = worker.signalled = True
        slots.free.insert(_END if worker.begun else 0, worker.wake)


def keep(worker: Worker) -> bool:
    """Whether a worker between two bodies keeps its slot; if not, it has given it up."""
    worker.slot = not _goes_elsewhere(worker.slots)
    return worker.slot


def _goes_elsewhere(slots: Slots) -> bool:
    """Close a slot that no worker has, or grant it to a body that resumes; False where
    neither is to happen."""
    if slots.opened > slots.bound:
        slots.opened -= 1  # explore: freed-above-bound
    elif slots.resuming:  # explore: freed-for-resuming
        grant(next(iter(slots.resuming)))
    else:
        return False
    return True


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
    """Give free slots to the bodies that resume, close those above the bound, and open one
    where none is left and there may be more."""
    while (slots.resuming or slots.opened > slots.bound) and _take_free(slots):
        _goes_elsewhere(slots)  # explore: taken-goes-elsewhere
    open_one(slots)  # explore: taken-so-open


def set_bound(slots: Slots, max_workers: int | None) -> None:
    slots.bound = UNBOUNDED if max_workers is None else max_workers
    hand_out(slots)  # explore: bound-opens


def _take_free(slots: Slots) -> bool:
    """Take a slot out of `free`; its worker, if it has a thread, is idle without one."""
    try:
        # One run: an exception from outside cannot come between the two places.
        for wake in slots.frees:
            wake.worker.slot = wake.worker.signalled = False
            slots.spare.insert(_END if wake.worker.begun else 0, wake)
            return True
    except IndexError:
        pass
    return False


def take_spare(slots: Slots) -> Worker:
    """A worker without a slot: an idle one, or one that can be started."""
    return slots.spare.pop().worker if slots.spare else slots.new_worker()


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
