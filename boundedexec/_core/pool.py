"""What puts a service's parts together: submitting, shutdown, the interpreter's end, fork."""

from __future__ import annotations

import os
import threading
import time
import weakref
from _thread import get_ident
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

from .debugging import debugging
from .describing import origin
from .future import Future, Member
from .locking import exactly, guard, locked
from .loop import end_one, work
from .outstanding import check_idle, fail_queued, is_idle, signal_or_fail, wait_idle
from .slots import hand_out, look, open_one, owed, queue_now
from .state import AFTER_EXIT, AFTER_SHUTDOWN, RECORDED, Settings, Slots, Worker, current_body
from .submission import CANCELLED, PENDING, NoteFailure, Submission, clock
from .threads import DAEMONS_ALLOWED, PerThread

# In place of `Member(...)`: a constructor's call costs as much as all else in a submission.
_new_member: Callable[[type[Member[Any]]], Member[Any]] = object.__new__

#: The service that accepts what this thread submits though it is shut down: an owed
#: re-run was accepted when it was asked for.
admitting = PerThread()


class QueueFull(RuntimeError):
    """`max_queued` submissions are waiting already: this one was not accepted."""


def make_slots(settings: Settings, max_workers: int | None) -> Slots:
    return set_up(Slots(settings, max_workers, work, hand_out))


def set_up(slots: Slots) -> Slots:
    """Have new slots be known, and one of them open."""
    if slots.settings.daemon and not DAEMONS_ALLOWED:
        raise RuntimeError("this sub-interpreter has no daemon threads: daemon must be False")
    guard.follow_patches()
    open_one(slots)
    _register(slots)
    if slots.settings.slow_after is not None:
        from .slow import watch  # noqa: PLC0415  # Loaded where it is asked for.

        watch(slots, slots.settings.slow_after)
    return slots


# Submitting.


def queue_call(
    slots: Slots, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], on_failure: NoteFailure
) -> Future[Any]:
    """`Service.submit` for rooms above, of a member of a group; see the comments there. (A call
    of this would cost that a tenth; to call that from a group costs the group a third.)"""
    future = _new_member(Member)
    future.state = PENDING
    future.failure = None
    future.owner = slots
    future.args = args
    future.kwargs = kwargs or None
    future.context = (copy_context() or None) if slots.propagate else None
    future.serial = clock()
    future.on_failure = on_failure
    future.fn = fn
    if slots.checked:
        future.value = get_ident()
        if slots.checked is not RECORDED:
            admit(slots, future)
    try:
        slots.queue.append(future)
        if (slots.free and slots.quiet) or slots.refusal is not None:
            start_queued(slots, future)
    except BaseException:
        try:
            del future.fn
            future.state = CANCELLED
            take_out(slots, future)
        except AttributeError:
            pass
        raise
    return future


def admit(slots: Slots, future: Submission[Any]) -> None:
    """`check_accepts`, and remember where it was made."""
    check_accepts(slots)
    remember_origin(future)


def remember_origin(future: Submission[Any]) -> None:
    """Remember where it was made, where somebody wants to know."""
    if debugging.on:
        vars(future)["origin"] = origin()


def check_accepts(slots: Slots) -> None:
    """Raise where a submission must not be accepted."""
    if slots.refusal is not None and _refuses(slots):
        raise slots.refusal()
    most = slots.settings.max_queued
    if most is None or len(slots.queue) < most:
        return
    # What was cancelled stands in the queue until a worker comes to it; so does what the free
    # slots are for, until their threads have come. Again, where one came in between.
    queued, free = 0, -1
    while free != (free := locked(_count_free, slots)):
        queued = sum(future.state is PENDING for future in queue_now(slots))
    if queued - free >= most and admitting.get() is not slots:
        exactly(slots.count_refused)
        raise QueueFull(f"{most} submissions are queued, and no slot is free")


def _refuses(slots: Slots) -> bool:
    if slots.broken or admitting.get() is slots:
        return slots.broken
    if time.monotonic() >= slots.grace_ends:
        return True
    body = current_body()
    return body is None or body.slots.settings.daemon


def start_queued(slots: Slots, future: Submission[Any]) -> None:
    """A submission was queued, so look: see to it that it is started when it may be.

    Takes no lock, but where no thread can be started or it is refused. What it raises, but
    for a Ctrl-C, says that the submission was not accepted; the claim is the caller's then.
    """
    # For a shutdown first: it may have returned meanwhile, and then no thread may be woken
    # any more; if not, it sees what is queued.
    refusal = slots.refusal
    if refusal is not None and _refuses(slots) and future.claim():
        take_out(slots, future)  # explore: refused-take-out
        raise refusal()
    try:
        slots.signal()
    except RecursionError:
        raise
    except RuntimeError as error:
        # Where something runs, the start is tried again when it is over.
        if locked(slots.busy) or not future.claim():  # explore: start-failed-busy
            return
        # explore: start-failed-others
        fail_queued(slots, error)  # Others may have relied on this signal.
        raise


def take_out(slots: Slots, future: Submission[Any]) -> None:
    """Have a submission that was claimed, and will not be started, be outstanding no longer."""
    try:
        slots.queue.remove(future)
    except ValueError:
        pass  # A worker has dropped it.
    if slots.observers:
        check_idle(slots)


# Shutdown.


def close(
    slots: Slots, words: str = AFTER_SHUTDOWN, *, cancel: bool = False, grace_ends: float = 0
) -> None:
    """Accept nothing more, end the threads that have nothing to do. Never blocks."""
    if slots.refusal is None:
        slots.grace_ends = grace_ends
        slots.refusal = lambda: RuntimeError(words)
        slots.checked = True
    if cancel:
        slots.cancelling = True
        for future in owed(slots):  # What this misses is when its body is over.
            future.cancel_even_if_shared()
        _cancel_queued(slots)
        slots.recall()
    slots.ending = True
    signal_or_fail(slots)
    end_one(slots)  # explore: close-ends-one


def _cancel_queued(slots: Slots) -> None:
    """Cancel what is queued, but for as much as there are free slots.

    That would run by now, had the threads been quicker. It counts as started, as under
    the stdlib's pool, whose `submit` waits for its thread.
    """
    spared = locked(_count_free, slots)
    # From the end: workers take from the other, and may pass over what is cancelled faster
    # than this cancels it.
    for future in reversed(queue_now(slots)[spared:]):
        future.cancel_even_if_shared()
    look(slots)
    check_idle(slots)


def _count_free(slots: Slots) -> int:
    # A worker that is being woken for the queue has taken nothing yet.
    busy = sum(worker.slot and worker.future is not None for worker in slots.workers)
    lent = len(slots.lends)
    return max(0, slots.bound - busy - lent)


def retire(slots: Slots, _: object) -> None:
    """The Service is gone: finish what was accepted."""
    slots.service = None
    if not slots.ending:  # At the interpreter's end it is, and `close` may be gone.
        close(slots)


def is_at_work(slots: Slots) -> bool:
    return bool(threads(slots)) or not is_idle(slots)


def threads(slots: Slots) -> set[Worker]:
    """The threads that have been started, or are being started, and have not ended."""
    return locked(slots.threads)


def join(slots: Slots) -> None:
    """Wait until nothing is outstanding and the threads are gone."""
    wait_idle(slots)
    for worker in threads(slots):
        worker.join()


# Exit and fork: the slots of every service, by weak references. Single steps only, for a
# Service may be made or collected anywhere.


class _Everything:
    def __init__(self) -> None:
        self.slots: dict[int, weakref.ref[Slots]] = {}
        self.exiting = False


_everything = _Everything()


#: Seconds from the interpreter's end in which bodies may still submit. The stdlib's
#: `submit` returns when its new thread runs, so that where a program ends with a submit,
#: the body has done its own submit before it is refused. Ours does not wait. No longer,
#: for there are bodies that submit for ever, until they are refused.
_GRACE = 1.0


def _register(slots: Slots) -> None:
    key = id(slots)
    # In C throughout (the reference is `pop`'s default), for a Ctrl-C that lands in a
    # weakref's callback is swallowed.
    _everything.slots[key] = weakref.ref(slots, partial(_everything.slots.pop, key))
    if _everything.exiting:
        close(slots, AFTER_EXIT)


def living() -> list[Slots]:
    every = [reference() for reference in list(_everything.slots.values())]
    return [slots for slots in every if slots is not None]


def debug(on: bool = True) -> None:
    """Have submissions remember where they were made, from now on; or not, with False.

    The record of a failure that nobody asked for has that then, and all arguments of the
    call, shortened: it calls their `__repr__`. `PYTHONDEVMODE` turns it on from the start.
    It costs some microseconds a submission. Never blocks; may be called from anywhere.
    """
    debugging.on = bool(on)
    if on:
        for slots in living():
            slots.checked = True


def signal_on_its_way() -> bool:
    """Whether a worker of any service was woken and has taken nothing yet."""
    return any(not slots.quiet for slots in living())


def all_idle() -> bool:
    """Whether nothing is outstanding on any service."""
    return all(map(is_idle, living()))


def finish_all() -> None:
    """At exit: accept nothing more, finish what was accepted, abandon daemons."""
    _everything.exiting = True
    grace_ends = time.monotonic() + _GRACE
    for slots in living():
        close(slots, AFTER_EXIT, cancel=slots.settings.daemon, grace_ends=grace_ends)
    # More than once, for a body of one may still submit to another.
    while working := [s for s in living() if not s.settings.daemon and is_at_work(s)]:
        for slots in working:
            join(slots)


def _lose_all() -> None:
    lost = living()
    _everything.slots = {}
    for slots in lost:
        _lose(slots)


def _lose(slots: Slots) -> None:
    """In a forked child: what was outstanding in the parent is not outstanding here.

    Futures of the parent's refer to these slots and see that they are lost; the Service
    goes on with empty ones of the same kind.
    """
    slots.lost = True
    for worker in list(slots.workers):
        if worker.future is not None:
            worker.future.done()  # Which drops it, and those that wait for it.
    slots.empty()
    slots.ending = True
    service = None if slots.service is None else slots.service()
    if service is not None:
        fresh = set_up(slots.fresh())
        fresh.refusal = slots.refusal
        fresh.checked = slots.checked
        fresh.broken = slots.broken
        fresh.ending = slots.refusal is not None
        service._attach(fresh)


# Before `threading` joins its threads, as the stdlib's pool does: `atexit` is too late,
# daemon threads are frozen by then.
vars(threading)["_register_atexit"](finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lose_all)
