"""The bounded semaphore: who may execute, and in what order.

A submission is put into the queue, a resuming body among the resumers; then
whoever put it there looks for a free slot. A worker whose body is over looks for
resumers, then into the queue; where there is nothing it parks, frees its slot, and
looks once more. Since everybody does its own step first and looks afterwards, one
of two who do this at once sees the other: no slot stays free while somebody waits
for it. No step takes a lock, so there is none that a signal handler, a `__del__`
or a weakref callback could find held. It stands on:

* `append`, `pop` and `popleft` of lists and deques and `add` and `discard` of sets
  are single steps in C, with and without a GIL.
* A store is seen by every load that comes after it.

One wake-up is on its way at a time. A worker that has been woken wakes the next
one before its body if there is more to do and another slot is free, and a worker
goes on to the next submission by itself. So a burst of submissions costs its
submitter one wake-up, and not a switch of threads for each. Lends are fetched in the
same way, by workers that are woken one after the other and go on by themselves.
"""

# The rooms share what users must not touch.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures.thread import BrokenThreadPool
from contextvars import Context
from functools import partial
from typing import Any, Protocol

from .futures import (
    ENDING,
    FINISHED,
    RUNNING,
    Failure,
    Future,
    current,
    name_of,
    report,
)
from .threads import DAEMONS_ALLOWED, Crew, Job
from .waiting import Body, Lend, Slot, found_slot, seek_slot

_MOST_THREADS = 1 << 17

_first: Callable[[Any], Any] = deque[Any].popleft
_last: Callable[[Any], Any] = deque[Any].pop

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"


class Observer(Protocol):
    """Who waits until nothing is outstanding."""

    def notify(self) -> None:
        """Told that there was such an instant, once or oftener, on any thread."""


class _Observer:
    """A thread in `wait_idle`; its lock is released when nothing was outstanding."""

    def __init__(self) -> None:
        self.satisfied = False
        self._lock = allocate_lock()
        self._lock.acquire()

    def notify(self) -> None:
        self.satisfied = True
        try:
            self._lock.release()
        except RuntimeError:
            pass  # Notified before.

    def wait(self, timeout: float) -> None:
        self._lock.acquire(True, timeout)


class _Awake:
    """Stands for the worker that was woken last, before there was one."""

    fresh = fetching = False


class _Last:
    """The workers that were woken last.

    Apart from the Slots, for many threads store here. Without a GIL what is stored to
    has a lock, and a child of a fork may find that taken by a thread that it has not.
    """

    #: For the queue. While it is not awake yet, it is the one that will wake the others.
    woken: Body | _Awake = _Awake()
    #: For the lends.
    called: Body | _Awake = _Awake()


class Slots:
    """The slots, the queue and the threads of one service.

    What a Service is made of; its threads and futures refer to this and not to the
    Service, which can therefore be collected while they are at work.
    """

    def __init__(
        self,
        max_workers: int | None,
        *,
        prefix: str,
        idle_timeout: float | None,
        initializer: Callable[[], object] | None,
        lending: bool,
        daemon: bool,
    ) -> None:
        if daemon and not DAEMONS_ALLOWED:
            raise RuntimeError("this sub-interpreter has no daemon threads: daemon must be False")
        self.max_workers = max_workers
        self.unbounded = max_workers is None
        #: Whether slots are made when none is free. More than any process can have
        #: threads are no bound, and would take long to make.
        self.endless = max_workers is None or max_workers > _MOST_THREADS
        self.lending = lending and max_workers is not None
        self.daemon = daemon
        self._settings: dict[str, Any] = {
            "prefix": prefix,
            "idle_timeout": idle_timeout,
            "initializer": initializer,
            "lending": lending,
            "daemon": daemon,
        }
        #: Every slot there is.
        self.all = [Slot() for _ in range(0 if self.endless else max_workers or 0)]
        #: Those that nobody holds.
        self.free = self.all.copy()
        #: Takes out of `free`; `IndexError` where there is none.
        self._free_slots = map(self.free.__class__.pop, itertools.repeat(self.free))
        #: Submissions that have not started, in order. Those that were cancelled or
        #: lent a slot have lost their claim, and are dropped by the worker they reach.
        self.queue: deque[Future[Any]] = deque()
        #: Bodies that want a slot back; they go before the queue.
        self.resumers: deque[Body] = deque()
        self._next_resumer: Iterator[Body] = map(_first, itertools.repeat(self.resumers))
        #: What is outstanding but neither queued nor holding a slot: bodies that have
        #: yielded, owed submissions, callbacks of a cancelled one. Something enters
        #: while it is still outstanding otherwise, and leaves when it is again.
        self.away: set[object] = set()
        self.last = _Last()
        #: Slots that bodies have lent, each with the submission it is lent to, until a
        #: worker fetches them.
        self.lends: deque[Lend] = deque()
        #: The workers that run their initializer before they look into the queue, and
        #: those before they fetch a lend: one each needs no other.
        self.preparing: set[Body] = set()
        self.preparing_for_lends: set[Body] = set()
        #: Why nothing more is accepted; set once.
        self.refusal: Callable[[], Exception] | None = None
        #: Until when bodies may submit all the same, on the monotonic clock.
        self._grace_ends = 0.0
        #: Whether what is owed is cancelled, instead of run, after the shutdown.
        self.cancelling = False
        self.broken = False
        #: The Service; it is told of its own end by the reference's callback.
        self.owner: weakref.ref[Any] | None = None
        #: Set in a forked child, where this is the parent's.
        self.lost = False
        self._observers: dict[Observer, None] = {}
        self.crew = Crew(
            self._new_body,
            prefix,
            idle_timeout,
            initializer,
            self._break,
            self.check_idle,
            daemon,
        )
        _register(self)

    def _new_body(self, crew: Crew[Body], name: str) -> Body:
        body = Body(crew, name)
        body.slots = self
        return body

    # Slots.

    def release(self, slot: Slot) -> None:
        """Give up a slot for good, to whoever is next."""
        while True:
            try:
                self.free.append(slot)
                break
            except MemoryError:
                pass  # Else it were lost for good.
        while True:
            try:
                if self.resumers or self.queue:
                    self.dispatch_or_fail()
                if self._observers:
                    self.check_idle()
                break
            except MemoryError:
                pass

    def dispatch(self) -> None:
        """Hand free slots out: to those who resume, then one to a worker for the queue.

        Raises the `RuntimeError` of a thread that cannot be started. Whatever is raised
        in here, by Ctrl-C too, loses nothing: what was taken is in a local variable
        (see `threads`), and was handed over where `done` or the empty `offer` says so.
        """
        while self.resumers or self.queue:
            slot: Slot | None = None
            resumer: Body | None = None
            taken: list[Body | None] = [None]
            done: list[None] = []
            offer: list[Job | None] = [self.serve]
            try:
                try:
                    for slot in self._free_slots:  # noqa: B007
                        break
                except IndexError:
                    if not self.endless:
                        return
                if slot is None:
                    slot = Slot()
                    self.all.append(slot)
                slot.uses += 1
                if self.resumers:
                    try:
                        for resumer in self._next_resumer:  # noqa: B007
                            break
                    except IndexError:
                        done += map(self.free.append, (slot,))
                        self.check_idle()
                    else:
                        assert resumer is not None
                        done += map(setattr, (resumer,), ("slot",), (slot,))
                        resumer.rouse()
                    continue
                if not self.queue:
                    # Whoever looked meanwhile has seen one slot too few.
                    done += map(self.free.append, (slot,))
                    self.check_idle()
                    continue
                self.crew.take(taken)
                body = taken[0]
                assert body is not None
                body.slot = slot
                body.fresh = True
                body.hand(offer)
                # Only now: whoever relies on it must know that it will come.
                self.last.woken = body
                return
            except BaseException as error:
                body = taken[0]
                if resumer is not None and done:
                    resumer.rouse()  # Perhaps once more.
                elif done:
                    self.check_idle()  # Perhaps once more.
                elif slot is not None and self._recall(offer):
                    if resumer is not None:
                        self.resumers.appendleft(resumer)
                    if body is not None:
                        body.slot = None
                        body.fresh = False
                        self.crew.put_back(body, self.rest)
                    self._take_back_slot(slot)
                if not isinstance(error, Exception):
                    self.dispatch_or_fail()  # Others may have relied on this.
                raise

    @staticmethod
    def _recall(offer: list[Job | None]) -> bool:
        """Whether nobody has taken what was offered; now nobody can."""
        try:
            offer.pop()
        except IndexError:
            return False
        return True

    def _take_back_slot(self, slot: Slot) -> None:
        """Have a slot that was taken in vain free again, and those who resume served."""
        if self.endless and slot not in self.all:
            return
        self.free.append(slot)
        # They looked meanwhile, and nobody else looks for them.
        while self.resumers and self.free:
            try:
                slot = self.free.pop()
            except IndexError:
                break
            self.hand_over(slot)
        self.check_idle()

    def dispatch_or_fail(self) -> None:
        """Dispatch where there is no caller to raise to."""
        while True:
            try:
                self.dispatch()
            except MemoryError:
                continue  # Nobody else may look: what stirs may wait for what is queued.
            except Exception as error:
                if self._stirs():
                    return  # It looks into the queue when it is over.
                errors = itertools.repeat(error)
                self._fail_queued(errors, "a submission for which no thread could be started")
            return

    def _fail_queued(self, errors: Iterator[Exception], name: str) -> None:
        """Fail all that is queued, outstanding until the callbacks have run."""
        mark = object()
        try:
            self.away.add(mark)
            while self.queue:
                try:
                    future = self.queue.popleft()
                except IndexError:
                    break
                if future._claim():
                    future._fail(next(errors), name)
            self.away.discard(mark)
            self.check_idle()
        except BaseException:
            self.away.discard(mark)
            self.check_idle()
            raise

    def _stirs(self) -> bool:
        """Whether anything executes that will look into the queue when it is over."""
        return len(self.free) < len(self.all) or any(
            isinstance(away, Body) for away in self.away.copy()
        )

    # Submissions.

    def refuses(self) -> bool:
        """Whether a submission must not be accepted; asked once there is a `refusal`."""
        if self.broken or current.admitted is self:
            return self.broken
        body = current.body
        return not (
            time.monotonic() < self._grace_ends
            and isinstance(body, Body)
            and body.future is not None
            and not body.slots.daemon
        )

    def condition(self) -> str:
        """What a person wants to hear about it."""
        return "broken" if self.broken else "open" if self.refusal is None else "shut down"

    def is_stalled(self) -> bool:
        """Whether something is queued that only lacks a thread."""
        # The queue first: what is taken between the two costs a wake-up, and no submission
        # that had relied on it.
        return (
            len(self.queue) > len(self.preparing)
            and bool(self.free or self.endless)
            and not self.last.woken.fresh
        )

    def retry(self) -> None:
        """Start what only lacks a thread; raise if there is still none."""
        if self.is_stalled():
            self.dispatch()

    def bodies(self) -> list[Body]:
        return list(self.crew.workers)

    def executes(self, future: Future[Any]) -> bool:
        """Whether a thread executes `future`, or is about to."""
        return any(body.future is future for body in self.bodies())

    def wake(self, future: Future[Any]) -> None:
        """See to it that a submission just queued is started when it may be.

        Raises, and takes it back, where there is no memory for that, or no thread can be
        started and nothing runs after which it would be tried again.
        """
        try:
            self.dispatch()
        except Exception as error:
            stirs = not isinstance(error, MemoryError) and self._stirs()
            if stirs or not self.take_back(future):
                return
            self.dispatch_or_fail()  # Others may have come since, relying on us.
            raise

    def take_back(self, future: Future[Any]) -> bool:
        """Undo a submission that nobody has started."""
        if not future._claim():
            return False
        try:
            self.queue.remove(future)
        except ValueError:
            pass  # A worker has dropped it.
        self.check_idle()
        return True

    def serve(self, body: Body) -> None:
        """The job of a worker that was handed a slot: run what is queued."""
        while not self.resumers:
            try:
                future = self.queue.popleft()
            except IndexError:
                break
            body.fn = None
            body.future = future  # Before the claim, see `Future.cancel`.
            if body.fresh:
                # Not before something is taken: whoever saw it fresh relies on what
                # comes now, and whoever does not must not wake another for the same.
                body.fresh = False
                self.preparing.discard(body)
                while True:
                    try:
                        if self.is_stalled():
                            self.dispatch_or_fail()
                        break
                    except MemoryError:
                        pass
            try:
                fn = future._fn
                del future._fn
            except AttributeError:
                continue  # Cancelled, or lent a slot.
            body.fn = fn
            if self.broken:
                future._fail(self._broken_error(), "a submission")
            else:
                _execute(body, future, fn)
            if body.debts or body.slot is None:
                break
        future = fn = None  # type: ignore[assignment]
        self._finish(body)

    def fetch_lends(self) -> None:
        """Wake a worker for the lends, if none is on its way.

        Raises the `RuntimeError` of a thread that cannot be started; as `dispatch`.
        """
        if self.last.called.fetching:
            return
        taken: list[Body | None] = [None]
        offer: list[Job | None] = [self.serve_lends]
        try:
            self.crew.take(taken)
            body = taken[0]
            assert body is not None
            body.fetching = True
            body.hand(offer)
            self.last.called = body
        except BaseException:
            body = taken[0]
            if body is not None and self._recall(offer):
                body.fetching = False
                self.crew.put_back(body, self.rest)
            raise

    def fetch_or_refuse_lends(self) -> None:
        """Fetch the lends where there is no caller to raise to: who lent them raises."""
        try:
            if self.lends:
                self.fetch_lends()
        except Exception as error:
            while self.lends:
                try:
                    lend = self.lends.popleft()
                except IndexError:
                    break
                if not lend.refuse(error):
                    assert lend.slot is not None
                    self.hand_over(lend.slot)

    def serve_lends(self, body: Body) -> None:
        """The job of a worker that was woken for the lends."""
        while True:
            debts: list[Any] = [None]
            try:
                debts[0] = self.lends.popleft()
            except IndexError:
                break
            # Nothing is lost from here on, for this needs no memory.
            body.debts = debts
            lend: Lend = debts[0]
            body.slot = lend.slot
            if body.fetching:
                body.fetching = False
                self.preparing_for_lends.discard(body)
                if len(self.lends) > len(self.preparing_for_lends):
                    self.fetch_or_refuse_lends()
            future = body.future = lend.future  # Before the claim, see `Future.cancel`.
            assert future is not None
            try:
                fn = future._fn
                del future._fn
            except AttributeError:
                pass  # Cancelled, or started by another: the slot goes back.
            else:
                body.fn = fn
                if self.broken:
                    future._fail(self._broken_error(), "a submission")
                else:
                    _execute(body, future, fn)
                del fn
            del debts, lend, future
            self._finish(body)
            # Goes on to the next by itself, unless it is taken for something else.
            while True:
                try:
                    if not (self.lends and self.crew.withdraw(body)):
                        return
                    break
                except MemoryError:
                    pass
        self.rest(body)

    def before_initializer(self, body: Body) -> None:
        """Wake the next worker before the initializer of this one, as before a body."""
        if body.fresh or body in self.preparing:
            self.preparing.add(body)  # Before others look whether it is fresh.
            body.fresh = False
            if self.is_stalled():
                self.dispatch_or_fail()
        elif body.fetching or body in self.preparing_for_lends:
            self.preparing_for_lends.add(body)
            body.fetching = False
            if len(self.lends) > len(self.preparing_for_lends):
                self.fetch_or_refuse_lends()

    def after_initializer(self, body: Body) -> None:
        """Have it counted on until it has taken something, as if woken just now."""
        if body in self.preparing:
            body.fresh = True
        elif body in self.preparing_for_lends:
            body.fetching = True

    def rest(self, body: Body) -> None:
        """The job of a worker that was taken in vain."""
        body.fresh = body.fetching = False
        self.preparing.discard(body)
        self.preparing_for_lends.discard(body)
        while True:
            try:
                self.crew.park(body)
                break
            except MemoryError:
                pass  # Else it and its slot were lost for good.
        # It may have been relied on.
        while True:
            try:
                if self.is_stalled():
                    self.dispatch_or_fail()
                self.fetch_or_refuse_lends()
                break
            except MemoryError:
                pass

    def rescue(self, body: Body, exception: BaseException) -> None:
        """Fail the submission whose thread could not go on, and have the slot again."""
        future = body.future
        if future is not None and (body.fn is not None or future._claim()):
            if future._watch is not None and (future._state is ENDING or future.done()):
                future._settle(BaseException)  # Perhaps not all were told.
            elif not future.done():
                future._fail(exception, "a submission whose thread could not go on")
        if body.future is None and body.slot is None and not body.debts:
            self.rest(body)
        else:
            self._finish(body)
            self.fetch_or_refuse_lends()

    def _finish(self, body: Body) -> None:
        """Keep nothing of the last body, park, and give the slot up."""
        if body.fresh:
            body.fresh = False
            self.preparing.discard(body)
        body.future = body.fn = None
        # Before it is parked: from then on it may be handed another.
        debts: list[Lend] = body.debts
        owed: list[Lend] = debts
        if debts:
            owed, body.debts = debts.copy(), []
        slot, body.slot = body.slot, None
        self.away.discard(body)
        # Parked before the slot is free, see `Crew.park`. In no function of its own, nor is
        # that in `rest`: there may be no memory to call it.
        while True:
            try:
                self.crew.park(body)
                break
            except MemoryError:
                pass  # Else it and its slot were lost for good.
        while debts:
            try:
                # The first of several lenders could be over before the last is told.
                self.away.update(debts)
                while owed:
                    if owed[-1].give_back(slot):
                        slot = None
                    owed.pop()
                self.away.difference_update(debts)
                break
            except MemoryError:
                pass  # Else the slot, and who waits for it, were lost for good.
        while True:
            try:
                if slot is None:
                    if self._observers:
                        self.check_idle()
                elif self.resumers:
                    self.hand_over(slot)
                else:
                    self.release(slot)
                break
            except MemoryError:
                pass

    def hand_over(self, slot: Slot) -> None:
        """Give a slot to a body that resumes, past the queue; free it if none does."""
        try:
            resumer = self.resumers.popleft()
        except (IndexError, MemoryError):
            self.release(slot)
            return
        resumer.slot = slot
        while True:
            try:
                resumer.rouse()
                break
            except MemoryError:
                pass

    # Yielding.

    def give_away(self, body: Body) -> None:
        """Give the slot of `body` to whoever is next.

        If it is interrupted, the body has the slot or `resume` gets one.
        """
        slot = body.slot
        assert slot is not None
        given: list[None] = []
        self.away.add(body)
        try:
            body.slot = None
            given += map(self.free.append, (slot,))
        finally:
            if not given:
                body.slot = slot
        if self.resumers or self.queue:
            self.dispatch_or_fail()
        if self._observers:
            self.check_idle()

    def ask(self, body: Body) -> None:
        """Have `body` stand among those who resume. To be followed by `resume`."""
        if not body.asked:
            body.asked.extend(map(self.resumers.append, (body,)))

    def resume(self, body: Body) -> None:
        """Return when `body` has a slot again. Goes before what has not started.

        To be called again where it was interrupted.
        """
        self.away.add(body)
        if body.slot is None and not (self.resumers or body.asked):
            try:
                for body.slot in self._free_slots:
                    body.slot.uses += 1
                    break
            except IndexError:
                pass
        if body.slot is None or body.asked:
            self.ask(body)
            # Whoever asked looks, also where others ask, and where it has been given a slot
            # by then: its own may have come back since, and be free for what is queued.
            self.dispatch_or_fail()
        while body.slot is None:
            try:
                seek_slot(body)
                body.await_slot()
            finally:
                found_slot(body)
        body.asked.clear()
        self.away.discard(body)

    # Outstanding work.

    def idle(self) -> bool:
        """Whether there was an instant at which nothing was outstanding.

        All slots are free, nothing is away, nothing is queued; read one after the
        other, and true of one instant only if no slot was taken meanwhile: what runs
        on a slot can queue something, and only what runs on a slot takes something
        out of the queue. So how often they were taken is read before and after: who
        is counted before the slots were seen free is not missed after it.
        """
        slots = self.all.copy()
        if len(self.free) != len(slots):
            return False
        uses = sum(slot.uses for slot in slots)
        if len(self.free) != len(slots) or self.away or self.queue:
            return False
        if not len(self.free) == len(slots) == len(self.all):
            return False
        return uses == sum(slot.uses for slot in slots)

    def check_idle(self) -> None:
        """Tell those who wait for it if nothing is outstanding."""
        # First who waits, then whether it is so: what was true before somebody came
        # to wait is not true for them.
        observers = list(self._observers)
        if observers and self.idle():
            for observer in observers:
                observer.notify()

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until nothing is outstanding; False when `timeout` passed first."""
        if self.idle():
            return True
        observer = _Observer()
        try:
            self.observe(observer)
            if timeout is None:
                observer.wait(-1)
            else:
                observer.wait(min(max(timeout, 0), threading.TIMEOUT_MAX))
            return observer.satisfied or self.idle()
        finally:
            self.forget(observer)

    def observe(self, observer: Observer) -> None:
        """Tell `observer` when nothing is outstanding, until `forget`. Never blocks."""
        self._observers[observer] = None
        # A Ctrl-C in `submit` may have left something that nobody was woken for.
        if self.is_stalled():
            self.dispatch_or_fail()
        self.check_idle()

    def forget(self, observer: Observer) -> None:
        self._observers.pop(observer, None)

    # The end.

    def close(
        self, words: str = AFTER_SHUTDOWN, *, cancel: bool = False, grace_ends: float = 0
    ) -> None:
        """Accept nothing more, end the threads that have nothing to do. Never blocks."""
        if self.refusal is None:
            self._grace_ends = grace_ends
            self.refusal = lambda: RuntimeError(words)
        if cancel:
            self.cancelling = True
            for owed in self.away.copy():
                if isinstance(owed, Future):
                    owed._revoke()
            self._cancel_queued()
        self.crew.end()

    def _cancel_queued(self) -> None:
        """Cancel what is queued, but for as much as there are slots with nothing to run.

        That would run by now, had the threads been quicker. It counts as started, as
        under the stdlib's pool, whose `submit` waits for its thread.
        """
        if self.endless:
            return
        busy = sum(body.slot is not None and body.future is not None for body in self.bodies())
        surplus: list[Future[Any]] = []
        marker = object()

        def cancel() -> None:
            while surplus:
                surplus[-1].cancel()
                surplus.pop()
            self.away.discard(marker)
            self.check_idle()

        try:
            self.away.add(marker)  # Outstanding until their callbacks have run.
            while len(self.queue) > len(self.all) - busy:
                try:
                    surplus += map(_last, (self.queue,))
                except IndexError:
                    break
            cancel()
        except BaseException:
            cancel()
            raise

    def retire(self, _: object) -> None:
        """The Service is gone: finish what was accepted."""
        self.owner = None
        self.close()

    def is_at_work(self) -> bool:
        return bool(self.crew.workers) or not self.idle()

    def join(self) -> None:
        """Wait until nothing is outstanding and the threads are gone."""
        self.wait_idle()
        for worker in list(self.crew.workers):
            worker.join()

    # Broken by its initializer.

    def _broken_error(self) -> BrokenThreadPool:
        return BrokenThreadPool(
            "A thread initializer failed, the thread pool is not usable anymore"
        )

    def _break(self, exception: BaseException) -> None:
        report("exception in initializer:", exception=exception)
        self.broken = True
        self.refusal = self._broken_error
        self._fail_queued(iter(self._broken_error, None), "a submission")

    # Fork.

    def lose(self) -> None:
        """In the child: what was outstanding in the parent is not outstanding here.

        Futures of the parent's refer to this and see that they are lost; the Service
        goes on with an empty one of the same kind.
        """
        self.lost = True
        # Not cleared, see `_Last`.
        self.queue = deque()
        self.resumers = deque()
        self.lends = deque()
        self.free = []
        self.away = set()
        self._observers = {}
        self.crew.parked = {}
        self.crew.ending = True
        service = None if self.owner is None else self.owner()
        if service is not None:
            fresh = Slots(self.max_workers, **self._settings)
            fresh.refusal = self.refusal
            fresh.broken = self.broken
            service._attach(fresh)


def _execute(body: Body, future: Future[Any], fn: Callable[..., Any]) -> None:
    """Run a submission whose claim this thread has, callbacks included."""
    future._state = RUNNING
    context = future._context
    args = future._args
    kwargs = future._kwargs
    if context is None:
        context = body.blank
    else:
        future._context = None
    if args:
        future._args = ()
    if kwargs is not None:
        future._kwargs = None
    try:
        if body.presets:
            context = context.copy()
            result = context.run(_preset, body.presets, fn, args, kwargs or {})
        elif kwargs is not None:
            result = context.run(fn, *args, **kwargs)
        elif args:
            result = context.run(fn, *args)
        else:
            result = context.run(fn)
    except BaseException as exception:
        # Without this frame, which goes on to other submissions.
        trace = exception.__traceback__
        exception.__traceback__ = trace and trace.tb_next
        del trace
        future._failure = Failure(exception, name_of(fn), not future._reported)
    else:
        future._result = result
        del result
    future._state = ENDING
    watch = future._watch
    if watch is None:
        future._state = FINISHED
    else:
        with watch.lock:  # No Ctrl-C comes to this thread, so as in `holding`.
            future._end(watch)
        if watch.callbacks:
            # One may wait for the lender. Without any the slot comes back right away, and
            # a lender that is woken before looks in vain at all that it waits for.
            for debt in body.debts:
                debt.wake()
            context.run(future._settle, BaseException)
        del watch
    if len(body.blank):
        body.blank = Context()
    # Tracebacks lead here through `f_back`: no way from here to the future.
    del future, fn, args, kwargs, context


def _preset(presets: Any, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    for variable, value in presets:
        variable.set(value)
    return fn(*args, **kwargs)


# Exit and fork: every Slots there is, by weak references. Single steps only, for a
# Service may be made or collected anywhere.
_every: dict[int, weakref.ref[Slots]] = {}
_exiting = False
#: Seconds from the interpreter's end in which bodies may still submit. The stdlib's
#: `submit` returns when its new thread runs, so that where a program ends with a submit,
#: like the one in the stdlib's documentation that hangs, the body has done its own submit
#: before it is refused. Ours does not wait. No longer, for there are bodies that submit
#: for ever, until they are refused.
_GRACE = 1.0


def _register(slots: Slots) -> None:
    key = id(slots)
    # In C throughout (the reference is `pop`'s default), for a Ctrl-C that lands in a
    # weakref's callback is swallowed.
    _every[key] = weakref.ref(slots, partial(_every.pop, key))
    if _exiting:
        slots.close(AFTER_EXIT)


def _living() -> list[Slots]:
    return [slots for slots in (ref() for ref in list(_every.values())) if slots is not None]


def _finish_all() -> None:
    """At exit: accept nothing more, finish what was accepted, abandon daemons."""
    global _exiting
    _exiting = True
    grace_ends = time.monotonic() + _GRACE
    for slots in _living():
        slots.close(AFTER_EXIT, cancel=slots.daemon, grace_ends=grace_ends)
    # More than once, for a body of one may still submit to another.
    while working := [slots for slots in _living() if not slots.daemon and slots.is_at_work()]:
        for slots in working:
            slots.join()


def _lose_all() -> None:
    global _every
    current.forget()
    lost = _living()
    _every = {}
    for slots in lost:
        slots.lose()


# Before `threading` joins its threads, as the stdlib's pool does: `atexit` is too late,
# daemon threads are frozen by then.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lose_all)
