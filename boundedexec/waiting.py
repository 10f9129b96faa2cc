"""Who waits for whom: lending, `DeadlockError`, `wait` and `as_completed`.

A body that waits without a timeout stands in a graph: an arrow leads from it to
each future that it waits for, and from a future to the body that executes it. A
queued submission that such arrows lead to is given the slot of a body on the way,
if one holds a slot of the same service: the body nearest to it. A wait from which
every way leads back into itself can never end, and raises instead.

Both are decided when a wait begins, when a lent slot comes back, and when a body
that wants its slot back has to wait for it: nothing else makes a way. They are
decided under one lock, so that of two waits that close a circle one is second.
Only a body about to block takes that lock.
"""

# The rooms share what users must not touch.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import concurrent.futures
import os
import threading
from _thread import allocate_lock
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from .futures import PENDING, Future, Sleeper, current, holding, name_of
from .threads import Crew, Worker

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = ["DeadlockError", "as_completed", "wait"]

T = TypeVar("T")

# As they were when this was imported: the module's names may be ours by now, see `install`.
_stdlib_wait = concurrent.futures.wait
_stdlib_as_completed = concurrent.futures.as_completed

AnyFuture: TypeAlias = "concurrent.futures.Future[Any]"

_last: Callable[[Any], Any] = list[Any].pop


class DeadlockError(RuntimeError):
    """A wait that could never end: bodies that wait for each other in a circle.

    Raised from the wait that closes the circle; the message names the bodies.
    """


class Slot:
    """The right to execute, of one service."""

    __slots__ = ("uses",)

    def __init__(self) -> None:
        #: How often it was taken; written by whoever holds it.
        self.uses = 0


class Lender(Protocol):
    """What lending needs of the slots of a service."""

    crew: Crew[Body]
    max_workers: int | None
    lending: bool
    daemon: bool
    free: list[Slot]
    resumers: deque[Body]
    lends: deque[Lend]
    away: set[object]

    def bodies(self) -> list[Body]: ...
    def ask(self, body: Body, /) -> None: ...
    def resume(self, body: Body, /) -> None: ...
    def fetch_lends(self) -> None: ...
    def fetch_or_refuse_lends(self) -> None: ...
    def before_initializer(self, body: Any, /) -> None: ...
    def after_initializer(self, body: Any, /) -> None: ...
    def rescue(self, body: Any, exception: BaseException, /) -> None: ...


class Body(Worker):
    """A thread and the body that executes on it."""

    slots: Lender

    def __init__(self, crew: Crew[Any], name: str) -> None:
        super().__init__(crew, name)
        #: The submission that executes, and its callable.
        self.future: Future[Any] | None = None
        self.fn: Callable[..., Any] | None = None
        #: What it holds; None while the slot is yielded, lent, or there is no body.
        self.slot: Slot | None = None
        #: Woken for a lend, but has not taken one yet.
        self.fetching = False
        #: What it owes: its slot goes to the last of these lenders when it is over.
        self.debts: list[Lend] = []
        #: Where its own slot is.
        self.lend: Lend | None = None
        #: Not empty from when this body resumes until it has its slot.
        self.asked: list[None] = []
        #: Released by whoever gives a slot to this body while it resumes.
        self.granted = allocate_lock()
        self.granted.acquire()

    def enter(self) -> None:
        current.body = self
        super().enter()

    def leave(self) -> None:
        current.body = None
        super().leave()

    def before_initializer(self) -> None:
        self.slots.before_initializer(self)

    def after_initializer(self) -> None:
        self.slots.after_initializer(self)

    def rescue(self, exception: BaseException) -> None:
        self.slots.rescue(self, exception)

    def wait_for(self, future: Future[Any]) -> None:
        """Block until `future` is over, lending the slot where that helps."""
        if self.future is None:
            future._await_end(None)  # In an initializer.
            return
        waiting = _WaitForOne(future)
        try:
            waiting.block_once()
        finally:
            del future, waiting  # A traceback may hold this frame.

    def recover(self) -> Lend | None:
        """Have the slot again if it was given back; the lend if it was not yet."""
        lend = self.lend
        # Once it has asked, it is given one that way.
        if lend is not None and not self.asked:
            if lend.ended and self.slot is None:
                try:
                    for self.slot in map(_last, (lend.returned,)):
                        break
                except IndexError:
                    pass  # It was interrupted in here.
                self.lend = None
            elif self.slot is not None:
                self.lend = None  # Interrupted in here, or before it was lent.
        return self.lend

    def resumes(self) -> bool:
        """Whether it is still to have a slot again."""
        return self.slot is None or bool(self.asked)

    def rouse(self) -> None:
        """Have this body look for the slot that it was given."""
        try:
            self.granted.release()
        except RuntimeError:
            pass  # It is awake, and looks before it waits.

    def await_slot(self) -> None:
        while self.slot is None:
            self.granted.acquire()


class Lend:
    """A slot on its way to the submission that a body waits for, and back."""

    __slots__ = (
        "slot",
        "future",
        "returned",
        "ended",
        "_lender",
        "_wait",
        "_open",
        "_closed",
        "_abandoned",
    )

    def __init__(self, lender: Body, waiting: _Wait) -> None:
        #: What is lent, and to which submission, where a worker is still to fetch them.
        self.slot = lender.slot
        self.future: Future[Any] | None = None
        self._lender = lender
        self._wait = waiting
        #: What is given back, once it has ended, until the lender takes it out.
        self.returned: list[Slot | None] = [None]
        self.ended = False
        # Popped by one of the two: the borrower who is over, the lender who goes on.
        self._open = [None]
        self._closed: list[None] = []
        self._abandoned: list[None] = []

    def wake(self) -> None:
        """The submission is over, but the slot is still needed: for its callbacks."""
        self._wait.wake()

    def refuse(self, error: Exception) -> bool:
        """End a lend that no thread can be started for, as `give_back`."""
        self._wait.error = error
        return self.give_back(self.slot)

    def give_back(self, slot: Slot | None) -> bool:
        """End the lend; the borrower is over. False: the lender went on, keep the slot.
        To be called again where it was interrupted."""
        try:
            if not self._closed:
                self._closed.extend(map(_last, (self._open,)))
        except IndexError:
            return False
        if not self.ended:
            if slot is None:
                self._lender.slots.away.add(self._lender)  # Outstanding until it has resumed.
            self.returned[0] = slot
            self.ended = True
        self._wait.wake()
        return True

    def abandon(self) -> None:
        """Go on without the slot; for a lender that has asked for one, as it resumes.

        In this order, for else
        1. the lender abandons the lend;
        2. the borrower keeps the slot, and gives it to what is queued;
        3. the lender asks.
        If the slot is just coming back it is free, and first for those who resume. To be
        called again where it was interrupted.
        """
        try:
            if not self._abandoned:
                self._abandoned.extend(map(_last, (self._open,)))
        except IndexError:
            while not self.ended:
                self._wait.lock.acquire()
            try:
                self._lender.slots.free.extend(filter(None, map(_last, (self.returned,))))
            except IndexError:
                pass


# The graph. Changed and read under `_graph`, but for the last two, which change in
# single steps: `Coalescer.submit` holds, and may be called where the lock is held. What
# is read without the lock is first copied by `list`, which is a single step; `copy` is
# not before Python 3.12.
_graph = threading.RLock()
#: What a body waits for, by the future of the body.
_waits: dict[AnyFuture, _Wait] = {}
#: The bodies that want a slot back, by their futures.
_resuming: dict[AnyFuture, Body] = {}
#: What a future is held up by, see `hold`; and the way back.
_holds: dict[AnyFuture, _Node] = {}
_held_up: dict[AnyFuture, AnyFuture] = {}

_Place: TypeAlias = "_Node | Lender"


class _Node:
    """What an arrow of the graph starts from. By itself: a future that is held up by
    others, see `hold`."""

    #: The body that waits, if one does.
    body: Body | None = None
    #: Whether any of `pending` ends it; else all must.
    any = False

    def __init__(self, pending: dict[AnyFuture, None]) -> None:
        self.pending = pending
        #: The services that accepted `pending`.
        self.owners: set[Any] = {getattr(future, "_owner", None) for future in pending}
        self.owners.discard(None)

    def over(self) -> bool:
        return False

    def queued(self) -> Iterator[Future[Any]]:
        """Those of `pending` that nobody has started."""
        yield from filter(_is_queued, self.pending)

    def wake(self) -> None:
        """Have the body look again."""


class _Wait(Sleeper, _Node):
    """A wait, of a body or of another thread, for one or several futures."""

    #: Set where what it waits for is held up by something new, see `hold`.
    changed = False
    #: Why what its body lent a slot to has no thread.
    error: Exception | None = None

    def install(self) -> None:
        """Be told of ends."""

    def uninstall(self) -> None:
        """Be told of nothing more. To be called again where it was interrupted."""

    def _tell_no_more(self, waiters: list[Any]) -> None:
        if self in waiters:
            waiters.remove(self)

    def block_once(self) -> None:
        try:
            try:
                self.install()
                self.block()
            finally:
                self.uninstall()
        except BaseException:
            self.uninstall()  # Perhaps it was interrupted.
            raise
        finally:
            del self  # A traceback may hold this frame.

    def begin(self, body: Body) -> None:
        """Raise if it can never end, and have what it waits for started where it can."""
        _check_circle(self)
        for owner in self.owners:
            # A thread may have been wanting, and nothing else would try again.
            owner.retry()
        _lend(self)

    def go_on(self, body: Body) -> None:
        """Raise or lend again, for something may have changed."""
        if body.recover() is not None and not self.changed:
            return  # Woken in vain. It is woken again when the slot is back.
        self.changed = False
        _check_circle(self)  # For `hold` may have closed one.
        _lend(self)

    def block(self) -> None:
        """Return when it is over; in a body, with the slot that it had."""
        body = _executing()
        if body is None or body.future is None:
            while not self.over():
                self.lock.acquire()
            return
        self.body = body
        self._held = body.slot is not None
        try:
            try:
                self._block(body)
            finally:
                self._leave(body)
        finally:
            if self.is_blocked():
                self._leave(body)  # It was interrupted.
            del self  # A traceback may hold this frame.

    def is_blocked(self) -> bool:
        return self.body is not None

    def _block(self, body: Body) -> None:
        assert body.future is not None
        try:
            with _graph:
                if self.over():
                    return
                _waits[body.future] = self
                self.begin(body)
            while True:
                self.lock.acquire()
                if self.over():
                    return
                if self.error is not None:
                    # Another may be told the same.
                    raise type(self.error)(*self.error.args) from self.error
                with _graph:
                    self.go_on(body)
        finally:
            del body, self  # As above.

    def _leave(self, body: Body) -> None:
        """Have the slot again. To be called again where it was interrupted."""
        assert body.future is not None
        with _graph:
            _waits.pop(body.future, None)
        # Its slot may still be with a submission that no longer matters to it.
        lend = body.recover()
        if lend is not None:
            # Outstanding, whoever has the slot by now; until `resume` says so.
            body.slots.away.add(body)
            body.slots.ask(body)
            lend.abandon()
            body.lend = None
        if self._held:
            if body.resumes():
                body.slots.resume(body)
            else:
                body.slots.away.discard(body)
        self.body = None


class _WaitForOne(_Wait):
    """A body's wait for one future. A submission to which its slot can be lent right
    away need not tell it of its end: that is when the slot comes back."""

    def __init__(self, future: Future[Any]) -> None:
        Sleeper.__init__(self)
        self.pending = {future: None}
        self._future = future
        self._watching = False

    @property
    def owners(self) -> list[Any]:  # type: ignore[override]
        return [self._future._owner] if self._future._owner is not None else []

    def begin(self, body: Body) -> None:
        future = self._future
        # What is queued waits for nobody: no circle.
        if _can_give(self, future._owner) and _is_queued(future):
            _lend_to(body, future)
        elif self._watch():
            super().begin(body)

    def go_on(self, body: Body) -> None:
        # The slot came back before the end: another was first to start it. By now it may
        # be lent again, for another wait.
        if self._watching or self._watch():
            super().go_on(body)

    def _watch(self) -> bool:
        """Be told of the end; False where it is over."""
        future = self._future
        with future._condition:
            if future.done():
                self.wake()
                return False
            self._watching = True
            future._watched().waiters.append(self)
            return True

    def uninstall(self) -> None:
        if self._watching:
            holding(self._future._condition, self._tell_no_more, self._future._waiters)

    def queued(self) -> Iterator[Future[Any]]:
        if _is_queued(self._future):
            yield self._future

    def over(self) -> bool:
        return self._future.done()


class _WaitForSeveral(_Wait):
    """A wait that is told of the futures' ends as the stdlib's waiters are."""

    def __init__(self, futures: Iterable[AnyFuture], return_when: str) -> None:
        # In the order of submission, which is the order in which slots are lent.
        # (A plain dict is slow to find its first key once many before it are gone.)
        _Node.__init__(self, OrderedDict.fromkeys(sorted(futures, key=_serial)))
        Sleeper.__init__(self)
        self.any = return_when == FIRST_COMPLETED
        #: Those of `pending` that may still be queued; what is not never will be again.
        self._maybe_queued: deque[AnyFuture] | None = None
        self.finished: deque[AnyFuture] = deque()
        self._failed = False
        self._stops_at_failure = return_when == FIRST_EXCEPTION
        self._needed = 1 if self.any else len(self.pending)
        #: Those that tell of their end, and whether they have.
        self._watched: dict[AnyFuture, bool] = {}

    def install(self) -> None:
        for future in self.pending:
            if holding(future._condition, self._watch, future):
                continue
            if self._stops_at_failure and not future.cancelled() and future.exception():
                self._failed = True
            self.finished.append(future)

    def uninstall(self) -> None:
        for future in list(self._watched):
            self._unwatch(future)

    def _watch(self, future: AnyFuture) -> bool:
        if future.done():
            return False
        self._watched[future] = False
        future._waiters.append(self)  # type: ignore[arg-type]
        return True

    def _unwatch(self, future: AnyFuture) -> None:
        if future in self._watched:
            holding(future._condition, self._tell_no_more, future._waiters)
            del self._watched[future]

    def forget(self, future: AnyFuture) -> None:
        """Keep nothing of a future that is over."""
        del self.pending[future]
        self._unwatch(future)

    def add_result(self, future: AnyFuture) -> None:
        # Else it is told again, see `Future._close`. Not to be seen from `finished`: what
        # is in there may be taken out meanwhile.
        if not self._watched.get(future, True):
            self._watched[future] = True
            try:
                self.finished.append(future)
            except MemoryError:
                self._watched[future] = False
                raise
        if self.over():
            self.wake()

    add_cancelled = add_result

    def add_exception(self, future: AnyFuture) -> None:
        self._failed = self._stops_at_failure
        self.add_result(future)

    def queued(self) -> Iterator[Future[Any]]:
        maybe = self._maybe_queued
        if maybe is None:
            maybe = self._maybe_queued = deque(self.pending)
        while maybe and not _is_queued(maybe[0]):
            maybe.popleft()
        yield from filter(_is_queued, maybe)

    def over(self) -> bool:
        return len(self.finished) >= self._needed or self._failed


def _executing() -> Body | None:
    """The body that the caller is part of; none in an initializer."""
    body = current.body
    return body if isinstance(body, Body) and body.future is not None else None


def _serial(future: AnyFuture) -> int:
    return getattr(future, "_serial", 0)


def _leads(node: _Place, past_queues: bool) -> tuple[list[_Place], bool]:
    """What `node` waits for that waits itself, and whether it can end without those.

    A queued submission ends like any other, unless one looks `past_queues`: then it
    waits for the slots of its service.
    """
    if not isinstance(node, _Node):
        holders = [body for body in node.bodies() if body.slot is not None]
        waits = [_waits.get(body.future) for body in holders if body.future is not None]
        blocked = [waiting for waiting in waits if waiting is not None]
        # A slot that nobody holds is on its way to somebody who goes on.
        return [*blocked], len(blocked) < (node.max_workers or len(blocked) + 1)
    leads: list[_Place] = []
    pending = node.pending
    few = len(_waits) + len(_holds) < len(pending) and not past_queues and not node.any
    # `pending` changes only while its body does not wait, hence not while it is seen here.
    for future in [*list(_waits), *list(_holds)] if few else pending:
        lead: _Place | None = _waits.get(future) or _holds.get(future)
        if lead is None and past_queues:
            lead = _slots_wanted_by(future)
        if lead is not None and not future.done():
            if future in pending:
                leads.append(lead)
        elif node.any:
            return leads, True
    return leads, not leads


def _slots_wanted_by(future: AnyFuture) -> Lender | None:
    body = _resuming.get(future)
    if body is not None:
        return body.slots
    if _is_queued(future):
        return future._owner  # type: ignore[return-value]
    return None


def _is_queued(future: AnyFuture) -> TypeIs[Future[Any]]:
    return (
        isinstance(future, Future)
        and future._state is PENDING
        and future._owner is not None
        and hasattr(future, "_fn")
    )


def _explore(
    start: _Node, past_queues: bool
) -> tuple[dict[_Place, list[_Place]], set[_Place]]:
    """Where `start` leads to, and what of it can end.

    What executes without waiting can end. From there it spreads: to a wait for any
    of several, or for a slot, from one of them; to others from all.
    """
    leads: dict[_Place, list[_Place]] = {}
    can_end: set[_Place] = set()
    reached: list[_Place] = [start]
    for node in reached:
        if node not in leads:
            leads[node], ends = _leads(node, past_queues)
            if ends:
                can_end.add(node)
            reached += leads[node]
    grown = True
    while grown and start not in can_end:
        grown = False
        for node, others in leads.items():
            enough = all if isinstance(node, _Node) and not node.any else any
            if node not in can_end and enough(other in can_end for other in others):
                can_end.add(node)
                grown = True
    return leads, can_end


def _check_circle(start: _Wait) -> None:
    """Raise `DeadlockError` if `start` can never end."""
    leads, can_end = _explore(start, past_queues=False)
    if start in can_end:
        return
    if start.body is not None and start.body.future is not None:
        # Still under the lock: the others of the circle need not raise then.
        _waits.pop(start.body.future, None)
    names: list[str] = []
    seen: set[_Place] = set()
    node: _Place = start
    while True:
        if isinstance(node, _Node) and node.body is not None:
            names.append(name_of(node.body.fn))
        if node in seen:
            break
        seen.add(node)
        node = next(other for other in leads[node] if other not in can_end)
    raise DeadlockError(
        f"this wait could never end: the bodies wait in a circle, {' -> '.join(names)}"
    )


def _lend(start: _Node) -> None:
    """Lend what can be lent along the way from `start`.

    Raises the `RuntimeError` of a thread that cannot be started.
    """
    if not _lend_along(start):
        _lend_where_stuck(start)


def _lend_where_stuck(start: _Node) -> None:
    """Where queues wait for each other's slots, lend until `start` can end.

    Each of two services may be full of bodies that wait for what is queued on the
    other. No body is on a way from itself to its own service's queue, and nothing is
    a circle of bodies; but a slot of either, lent, sets both going. `start` may wait
    for several such at once.
    """
    while True:
        leads, can_end = _explore(start, past_queues=True)
        if start in can_end or not _lend_one(leads, can_end):
            return


def _lend_one(leads: dict[_Place, list[_Place]], can_end: set[_Place]) -> bool:
    """Lend one slot to what cannot end; whether there was one."""
    for node in leads:
        if node in can_end or not isinstance(node, _Node):
            continue
        for future in node.pending:
            slots = _slots_wanted_by(future)
            if slots is None or slots in can_end:
                continue
            for waiting in leads.get(slots, ()):
                if isinstance(waiting, _Node) and _can_give(waiting, slots):
                    assert waiting.body is not None
                    if _lend_to(waiting.body, future):
                        return True
    return False


def _lend_along(start: _Node) -> bool:
    """Give the slots of bodies that wait along with `start` to what they wait for.

    Returns whether that of `start` itself was given: it decides again when that is back.
    """
    lent = False
    came_from: dict[_Node, _Node | None] = {start: None}
    reached: list[_Node] = [start]
    for waiting in reached:
        # Services that have no slot to lend on this way: there may be very many
        # futures of theirs, and none needs a look.
        without: set[object] = set()
        for queued in waiting.queued():
            if queued._owner not in without:
                giver = _giver(queued._owner, waiting, came_from)
                if giver is not None:
                    lent |= _lend_to(giver, queued) and giver is start.body
                    continue
                without.add(queued._owner)
            if len(without) == len(waiting.owners):
                break
        for future in list(_resuming):
            body = _resuming.get(future)
            if body is not None and future in waiting.pending:
                giver = _giver(body.slots, waiting, came_from)
                if giver is not None:
                    lent |= _lend_to(giver, future) and giver is start.body
        for other in _leads(waiting, past_queues=False)[0]:
            if isinstance(other, _Node) and other not in came_from:
                came_from[other] = waiting
                reached.append(other)
    return lent


def _giver(
    slots: object, waiting: _Node, came_from: dict[_Node, _Node | None]
) -> Body | None:
    """The body nearest to `waiting` that holds one of `slots`: on the way there from
    the start, else among those who wait for the start."""
    step: _Node | None = waiting
    start = waiting
    while step is not None:
        if _can_give(step, slots):
            return step.body
        start, step = step, came_from[step]
    if start.body is not None:
        us: AnyFuture | None = start.body.future
    else:
        us = next(iter(start.pending))
    assert us is not None
    for step in _those_waiting_for(us):
        if _can_give(step, slots):
            return step.body
    return None


def _can_give(waiting: _Node, slots: object) -> bool:
    body = waiting.body
    return (
        body is not None
        and body.slot is not None
        and body.slots is slots
        and body.slots.lending
        and not waiting.over()
    )


def _those_waiting_for(future: AnyFuture) -> Iterator[_Node]:
    """The waits that lead to `future`, the nearest first."""
    reached = {future}
    todo = [future]
    for target in todo:
        for body in list(_waits):
            waiting = _waits.get(body)
            if waiting is not None and body not in reached and target in waiting.pending:
                reached.add(body)
                todo.append(body)
                yield waiting
        dependent = _held_up.get(target)
        if dependent is not None and dependent not in reached:
            reached.add(dependent)
            todo.append(dependent)


def _lend_to(giver: Body, future: AnyFuture) -> bool:
    """Lend the slot of `giver` to a queued submission or a body that resumes.

    False: it needs none any more. Raises the `RuntimeError` of a thread that cannot be
    started.
    """
    resuming = _resuming.get(future)
    if resuming is not None:
        return _lend_to_resumer(giver, resuming)
    assert isinstance(future, Future)
    slots = giver.slots
    lend = _make_lend(giver)
    lend.future = future
    queued: list[None] = []
    try:
        giver.slot = None
        queued += map(slots.lends.append, (lend,))
        slots.fetch_lends()
    except BaseException as error:
        taken = False
        if queued:
            try:
                slots.lends.remove(lend)
            except ValueError:
                taken = True
        if not taken:
            giver.slot = lend.slot
            giver.lend = None
        if not isinstance(error, Exception):
            slots.fetch_or_refuse_lends()  # Others may have relied on this.
        elif taken:
            return True
        raise
    return True


def _lend_to_resumer(giver: Body, resuming: Body) -> bool:
    taken: list[None] = []
    try:
        taken += map(resuming.slots.resumers.remove, (resuming,))
        _owe(giver, resuming)
        resuming.rouse()
        return True
    except ValueError:
        return False  # It was given a slot in this moment.
    except BaseException:
        if taken:
            _owe(giver, resuming)
            resuming.rouse()
        raise


def _owe(giver: Body, borrower: Body) -> None:
    """Have `borrower` the slot of a body that waits, to be given back when it is over.

    To be called again where it was interrupted.
    """
    if giver.slot is None:
        return
    lend = giver.lend or _make_lend(giver)
    if lend not in borrower.debts:
        borrower.debts.append(lend)
    borrower.slot = giver.slot
    giver.slot = None


def _make_lend(giver: Body) -> Lend:
    assert giver.future is not None
    waiting = _waits[giver.future]
    assert isinstance(waiting, _Wait)
    lend = giver.lend = Lend(giver, waiting)
    return lend


def seek_slot(body: Body) -> None:
    """Have a body that waits for `body`, which resumes, lend it the slot it needs.

    Else it would wait for one that is held by a body which waits for it.
    """
    assert body.future is not None
    with _graph:
        _resuming[body.future] = body
        _lend(_Node({body.future: None}))


def found_slot(body: Body) -> None:
    """Undo `seek_slot`."""
    assert body.future is not None
    _resuming.pop(body.future, None)


def hold(future: AnyFuture, other: AnyFuture) -> None:
    """Say that `future` cannot be over before `other` is. Takes no lock."""
    node = _Node({other: None})
    let_go(future)
    # In this order, for `let_go` finds the way back by what it takes out of `_holds`; and
    # no signal is looked for in between.
    _held_up[other] = future
    _holds[future] = node
    if future.done():
        # It was over before it was held: nobody else lets it go. Who ends it from now on
        # does so afterwards.
        let_go(future, other)
        return
    # Whoever waits for it looks again whether there is something to lend to: for
    # those, too, who wait for them in turn.
    dependents = [future]
    for dependent in dependents:
        another = _held_up.get(dependent)
        if another is not None and another not in dependents:
            dependents.append(another)
    for waiting in list(_waits.values()):
        if not waiting.pending.keys().isdisjoint(dependents):
            waiting.changed = True
            waiting.wake()


def let_go(future: AnyFuture, *others: AnyFuture | None) -> None:
    """Undo `hold`, by whichever of `others` it may have been. Takes no lock."""
    node = _holds.pop(future, None)
    for other in others if node is None else (*others, *node.pending):
        if other is not None:
            _held_up.pop(other, None)


def _forget_all() -> None:
    """In a forked child none of those who waited is there."""
    global _graph, _waits, _resuming, _holds, _held_up
    _graph = threading.RLock()
    _waits, _resuming, _holds, _held_up = {}, {}, {}, {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def wait(
    fs: Iterable[concurrent.futures.Future[T]],
    timeout: float | None = None,
    return_when: str = ALL_COMPLETED,
) -> concurrent.futures._base.DoneAndNotDoneFutures[T]:
    """`concurrent.futures.wait`, lending the body's slot to what it waits for.

    Blocks up to `timeout` seconds, for ever with None. Returns the sets of futures
    that are done and not done. In a body and without a timeout the slot goes from
    one queued future to the next, in the order of submission, until the wait is
    over; raises `DeadlockError` where it could never be.
    """
    futures = set(fs)
    if timeout is None and _executing() is not None:
        if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
            raise ValueError(f"invalid return condition: {return_when!r}")
        _wait_in_body(futures, return_when)
        return _divided(futures)
    return _stdlib_wait(futures, timeout, return_when)


def _wait_in_body(futures: set[concurrent.futures.Future[T]], how: str) -> None:
    done, not_done = _divided(futures)
    if not not_done or (how == FIRST_COMPLETED and done):
        return
    if how == FIRST_EXCEPTION and any(not f.cancelled() and f.exception() for f in done):
        return
    _WaitForSeveral(not_done, how).block_once()


def _divided(
    futures: set[concurrent.futures.Future[T]],
) -> concurrent.futures._base.DoneAndNotDoneFutures[T]:
    # Not the stdlib's: a Ctrl-C there can leave every future locked.
    done = {future for future in futures if future.done()}
    return concurrent.futures._base.DoneAndNotDoneFutures(done, futures - done)


def as_completed(
    fs: Iterable[concurrent.futures.Future[T]], timeout: float | None = None
) -> Iterator[concurrent.futures.Future[T]]:
    """`concurrent.futures.as_completed`, lending the body's slot to what it waits for.

    Yields each future once as it is done; raises `TimeoutError` when `timeout`
    seconds have passed since the first step. Without a timeout each step lends the
    slot of the body that it is made in, as `wait` for the first of them does.
    """
    # A future on its way to the caller: a local variable would keep it until the next.
    taken: list[concurrent.futures.Future[T]] = []
    unfinished = set(fs)
    if timeout is not None:
        steps = _stdlib_as_completed(unfinished.copy(), timeout)
        del fs
        while True:
            try:
                taken.append(next(steps))
            except StopIteration:
                return
            except concurrent.futures.TimeoutError as error:
                if _executing() and any(
                    future._why_late(None) for future in unfinished if isinstance(future, Future)
                ):
                    raise concurrent.futures.TimeoutError(
                        f"{error}; some have not started: no slot was free for them; wait"
                        " without a timeout, or give this body's slot away with yield_slot"
                    ) from None
                raise
            unfinished.discard(taken[0])
            yield taken.pop()
    waiting = _WaitForSeveral(unfinished, FIRST_COMPLETED)
    del unfinished, fs
    try:
        waiting.install()
        while waiting.pending:
            if not waiting.finished:
                waiting.block()
            taken.append(waiting.finished.popleft())
            waiting.forget(taken[0])
            yield taken.pop()
    finally:
        waiting.uninstall()
