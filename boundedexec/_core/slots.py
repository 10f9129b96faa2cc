"""Slots: how one is opened, freed, granted to a body that resumes, and closed.

All of it is under `guard.lock`, beside submitters and idle workers that take none: they
take entries out of `free`, and put entries in. So what is put in is looked after (`look`).
"""

from __future__ import annotations

from .state import UNBOUNDED, Slots, Worker


def open_one(slots: Slots) -> None:
    """Open one more slot, where none is free and the bound allows it; first for bodies that
    resume, which found none free."""
    while not slots.free and slots.opened < slots.bound:
        slots.opened += 1
        if slots.resuming:  # explore: opened-for-resuming
            grant(slots.resuming.popleft())
            continue
        slots.free.insert(0, slots.new_worker(slot=True).wake)


def free_slot(slots: Slots) -> None:
    """A slot has lost its worker: to a body that resumes, or with another worker free."""
    if slots.opened > slots.bound:
        slots.opened -= 1  # explore: freed-above-bound
    elif slots.resuming:  # explore: freed-for-resuming
        grant(slots.resuming.popleft())
    else:
        worker = slots.spare.pop().worker if slots.spare else slots.new_worker(slot=True)
        worker.slot = worker.signalled = True
        if worker.begun:
            slots.free.append(worker.wake)
        else:
            slots.free.insert(0, worker.wake)


def grant(worker: Worker) -> None:
    """Have a body that resumes go on with a slot that nobody else has."""
    worker.slot = True
    worker.slots.unslotted.discard(worker)  # explore: granted-slotted
    close_lend(worker)  # explore: granted-closes-lend
    if worker.node is not None:
        worker.node.ring()  # explore: granted-rings


def close_lend(worker: Worker) -> None:
    """Let the borrower of this worker's slot keep it."""
    if worker.lend is not None:
        worker.lend.open = False
        worker.lend = None


def take_free(slots: Slots) -> bool:
    """Take a slot out of `free`; its worker, if it has a thread, is idle without one."""
    try:
        for wake in slots.frees:
            wake.worker.slot = wake.worker.signalled = False
            if wake.worker.begun:
                slots.spare.append(wake)
            else:
                slots.spare.insert(0, wake)
            break
    except IndexError:
        return False
    return True


def serve_resuming(slots: Slots) -> None:
    """Give what is free to the bodies that resume, in order."""
    while slots.resuming and take_free(slots):
        grant(slots.resuming.popleft())
    open_one(slots)  # explore: taken-so-open


def keep(worker: Worker) -> bool:
    """Whether a worker between two bodies keeps its slot; if not, it has given it up."""
    slots = worker.slots
    if slots.opened > slots.bound:
        slots.opened -= 1
    elif slots.resuming:
        grant(slots.resuming.popleft())
    else:
        return True
    worker.slot = False
    return False


def set_bound(slots: Slots, max_workers: int | None) -> None:
    """Change the bound: open a slot where there may be more, close free ones above it."""
    slots.bound = UNBOUNDED if max_workers is None else max_workers
    while slots.opened > slots.bound and slots.free and take_free(slots):
        slots.opened -= 1  # explore: bound-closes
    open_one(slots)  # explore: bound-opens


def look(slots: Slots) -> None:
    """Wake a worker for the queue where one is free, and nobody needs to hear of failure:
    what runs looks again when it is over."""
    try:
        slots.signal()
    except RuntimeError:
        pass
