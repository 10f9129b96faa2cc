"""Where another executor executes: one thread, the feeder, hands over to it.

A slot is as in any service; what holds it is a `Place`, a worker without a thread. To wake
a Place is to put its step into the inbox of the feeder, who takes what is queued, hands it
over, and goes on. When the executor is done with one, that is a step in the inbox, too. So
the executor is called, and slots are accounted for, on the feeder alone, and what another
thread does here (submit, the executor's callback) is to put something into the inbox: a
single step in C.

*Cancelling beneath*: who cancels asks the executor; where that says yes, the state goes from
`RUNNING` to `CANCELLING` in one run, by whoever comes first, the canceller or the feeder. The
Place is freed by the feeder alone, once.

*The end*: the feeder is there from the first submission to the end of the service. It puts what
starts the next one into `absent`, then looks into the inbox. `signal` looks whether it is
absent before it takes a Place, for a start that fails must change nothing; and again after, for
it may have ended in between.
"""

from __future__ import annotations

import itertools
import operator
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor
from functools import partial
from queue import SimpleQueue
from typing import Any

from .beneath import Beneath
from .blocking import DeadlockError
from .graph import Line, Node
from .locking import exactly, guard
from .loop import LateCall, be_free, consume_signal, end, failure_of, note_start, pass_over
from .outstanding import check_idle, is_idle
from .reporting import report
from .runs import Run
from .slots import hand_out, keep
from .state import Settings, Slots, Wake, Worker, current_worker
from .submission import CANCELLATION, CANCELLING, ENDING, RUNNING, AnyFuture, Submission, clock

_last: Callable[[Any], Any] = list[Any].pop


class Feed(Slots):
    """The slots and the queue of a service over another executor."""

    __slots__ = ("beneath", "inbox", "steps", "step", "absent", "_starts")

    executes = False

    def __init__(self, settings: Settings, max_workers: int | None, beneath: Beneath) -> None:
        self.beneath = beneath
        #: What the feeder is to do next.
        self.inbox: SimpleQueue[Callable[[], object]] = SimpleQueue()
        #: Takes that; and what was taken, until it has begun.
        self.steps = map(type(self.inbox).get, itertools.repeat(self.inbox))
        self.step: Callable[[], object] | None = None
        super().__init__(settings, max_workers, _work, hand_out)
        #: What starts the feeder, while it has no thread.
        self.absent = [self._new_feeder()]
        self._starts: Iterator[Wake] = map(_last, itertools.repeat(self.absent))

    def fresh(self) -> Feed:
        return Feed(self.settings, self.max_workers, self.beneath.fresh())

    def new_worker(self) -> Worker:
        place = Place(self, f"{self.settings.prefix}_{next(self._numbers)}")
        self.workers[place] = None
        return place

    def _new_feeder(self) -> Wake:
        """A feeder whose thread has not been started; under the lock, or before others know
        these slots."""
        feeder = Feeder(self, f"{self.settings.prefix}_feeder")
        self.workers[feeder] = None
        return feeder.wake

    def threads(self) -> set[Worker]:
        absent = {wake.worker for wake in self.absent}
        return {w for w in self.workers if not isinstance(w, Place) and w not in absent}

    def signal(self) -> None:
        if self.queue:
            self._have_feeder()  # First, for what that raises says that nothing has changed.
        super().signal()
        if self.ending and (self.beneath.is_own or not self.absent):
            self.inbox.put(int)  # So that it looks whether it can end.
        # Put in, so look: it may have ended in between.
        if not self.inbox.empty():
            self._have_feeder()

    def _have_feeder(self) -> None:
        """Start the feeder where it is absent. Raises what starting a thread raises."""
        wake: Iterable[object] = ()
        try:
            for wake in self._starts:  # noqa: B007
                break
        except IndexError:
            return
        try:
            for _ in wake:
                break
        except BaseException:
            self.absent.append(wake)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            raise

    def ends(self) -> bool:
        """Whether the feeder is to end: asked by itself, before each step.

        Only who is not in `absent` takes steps: that is one feeder, or none.
        """
        while self.ending and is_idle(self):
            self.beneath.close(wait=True)
            with guard.lock:
                self.absent.append(self._new_feeder())
            # Absent, so look.
            if self.inbox.empty() or not self._returns():
                return True
            # Back, so look again: another that was started meanwhile may have taken the step,
            # and have ended.
            if not self.inbox.empty():
                break
        return False

    def _returns(self) -> bool:
        """Have the feeder not be absent after all; False where another was started."""
        with guard.lock:
            try:
                wake = self.absent.pop()
            except IndexError:
                return False
            del self.workers[wake.worker]
        return True

    def recall(self) -> None:
        for future in [place.future for place in list(self.workers)]:
            if future is not None:
                future.cancel_even_if_shared()


class Feeder(Worker):
    """The thread that hands over, and calls back."""

    def may_wait(self, node: Node) -> None:
        if node.over():
            return
        own = map(self._must_hand_over, node.pending)
        if all(own) if node.any else any(own):
            exactly(self.slots.count_circle)
            raise DeadlockError(
                "this wait could never end: it is for a service over another executor, on the"
                " thread that hands over for it, by a done-callback or by what the executor calls"
                " in its submit"
            )

    def _must_hand_over(self, future: Any) -> bool:
        """Whether `future` ends only once this thread goes on."""
        while future is not None:
            if isinstance(future, Line):
                return not future.over() and all(map(self._must_hand_over, list(future.pending)))
            if future.done():
                break
            if getattr(future, "owner", None) is self.slots:
                return True
            future = getattr(future, "predecessor", None)
        return False


def _work(feeder: Worker) -> None:
    """All that the thread of the feeder does."""
    slots = feeder.slots
    assert isinstance(slots, Feed)
    # In callbacks, this thread is part of what is outstanding, and of no body.
    current_worker.set(feeder)
    slots.recorder.began(feeder)
    try:
        while not _serves_until_end(slots):
            pass
    finally:
        current_worker.set(None)
        slots.recorder.ended(feeder)


def _serves_until_end(slots: Feed) -> bool:
    """Take the feeder's steps until it is to end; False where something came from outside."""
    try:
        # Asked first: it may have been started for a step that the one before has taken.
        while not slots.ends():
            # Into the field at once: an exception from outside cannot come in between.
            for slots.step in slots.steps:  # noqa: B020
                slots.step()
                break
        return True
    except BaseException as exception:
        _report(exception)
        # What had not begun; or so that it looks whether it can end.
        slots.inbox.put(slots.step or int)
    return False


def _report(exception: BaseException) -> None:
    info = type(exception), exception, exception.__traceback__, threading.current_thread()
    threading.excepthook(threading.ExceptHookArgs(info))


def _become_cancelled(future: Submission[Any]) -> None:
    """By whoever sees it first: the one who cancels, or the feeder. Repeatable."""
    exactly(_turn_cancelled, future)
    if isinstance(future, Run):
        future.leave()
    future.settle()


def _turn_cancelled(future: Submission[Any]) -> None:
    if future.state is RUNNING:
        future.state = CANCELLING


class Place(Worker):
    """A slot, and what the executor has in hand with it. Its steps are the feeder's."""

    slots: Feed

    def __init__(self, slots: Feed, name: str) -> None:
        super().__init__(slots, name)
        self.wake = Wake(slots.inbox.put, itertools.repeat(self._feed_safely))
        self.wake.worker = self
        #: How often what it holds was taken by a broken executor.
        self.tries = 0
        #: Whether it stands in `free` or `spare`, or was taken out and not yet fed.
        self.idle = True
        #: What the executor returned for what it has in hand, and which executor that was.
        self._inner: AnyFuture | None = None
        self._executor: Executor | None = None
        #: What it holds, where that said at its start what is to be called.
        self._late: LateCall | None = None

    def _feed_safely(self) -> None:
        self.safely(self.feed)

    def safely(self, step: Callable[..., object], *args: object) -> None:
        """Take a step of the feeder; one that fails takes with it what the place holds."""
        try:
            self.slots.step = None  # It has begun.
            step(*args)
        except BaseException as exception:
            _report(exception)
            self._lose(exception)

    def feed(self) -> None:
        """Hand over what is queued next, or be free."""
        self.idle = False
        slots = self.slots
        while self._keeps_slot():
            self.take_steps(1)
            try:
                for self.future in self.pops:  # noqa: B020
                    if self.signalled:
                        consume_signal(self)
                    if self._begins() and self._is_handed_over():
                        return
            except IndexError:
                if self.future is not None:
                    raise
                self.missed += 1
                if self.signalled:
                    consume_signal(self)
                self.idle = True
                be_free(self)
                return
        if slots.observers:
            check_idle(slots)

    def _keeps_slot(self) -> bool:
        """Whether the bound leaves it its slot; if not, it is spare."""
        slots = self.slots
        if slots.opened <= slots.bound:
            return True
        with guard.lock:
            if keep(self):
                return True
        if self.signalled:
            consume_signal(self)
        self.idle = True
        with guard.lock:
            slots.spare.append(self.wake)
        return False

    def _begins(self) -> bool:
        """Claim what it has taken; False where that was cancelled."""
        future: Any = self.future
        fn = getattr(future, "fn", None)
        if not future.claim():
            pass_over(self, future)
            return False
        self.fn = fn
        if future.args is None:
            self._late = future
            self.fn, args, future.kwargs, _ = future.start()
            future.args = args
        self.since = clock()
        self.tries = 0
        if self.notes is not None:
            note_start(self, future, self.fn)
        return True

    def _is_handed_over(self) -> bool:
        """Have the executor accept what it has claimed; where that fails, so does this."""
        try:
            inner = self._submit()
        except BaseException as error:
            self._end(None, error)
            return False
        assert self.future is not None
        self._inner = inner
        self.future.recalls = partial(self._recall, self.future, inner)
        # Nothing that refers to `inner`: the stdlib's futures keep their callbacks for ever.
        inner.add_done_callback(self._say_over)
        return True

    def _submit(self) -> AnyFuture:
        # No local variable is the future, for a traceback may hold this frame.
        beneath = self.slots.beneath
        self._executor = None
        try:
            self._executor = beneath.current()
            return self._call(self._executor)
        except BrokenExecutor:
            if not beneath.replaces(self._executor):
                raise
        self._executor = beneath.current()
        return self._call(self._executor)

    def _call(self, executor: Executor) -> AnyFuture:
        fn: Any = self.fn
        future: Any = self.future
        try:
            return executor.submit(fn, *future.args, **(future.kwargs or {}))
        finally:
            del fn, future

    def _say_over(self, inner: AnyFuture) -> None:
        """The executor is done with it: called on any thread, more than once."""
        self.slots.inbox.put(partial(self.safely, self._take_back, inner))

    def _recall(self, future: Submission[Any], inner: AnyFuture) -> bool:
        """Cancel it, if the executor has not started it."""
        try:
            inner.cancel()
        except Exception as error:
            # Not to the caller: that is perhaps a body that fails, which cancels its group.
            report("exception cancelling %r in another executor", future, exception=error)
        finally:
            if inner.cancelled():
                self._say_over(inner)  # A Ctrl-C may have kept `inner` from that.
                _become_cancelled(future)
        return inner.cancelled()

    def _take_back(self, inner: AnyFuture) -> None:
        """The executor is done with it: finish it, or hand it over again; then go on."""
        if self._inner is not inner:
            return  # It was said before.
        if inner.cancelled():
            self._pass_on_cancelled()
        elif (error := inner.exception()) is None:
            self._end(inner.result(), None)
        elif self._retries(error):
            self.tries += 1
            if self._is_handed_over():
                return
        else:
            self._end(None, error)
        # Not here: the executor may block, and this frame keeps what is over.
        self.slots.inbox.put(self._feed_safely)

    def _retries(self, error: BaseException) -> bool:
        beneath = self.slots.beneath
        return (
            self.tries < beneath.retries
            and isinstance(error, BrokenExecutor)
            and beneath.is_broken(self._executor)
        )

    def _pass_on_cancelled(self) -> None:
        future: Any = self.future
        _become_cancelled(future)
        if self._late is not None:
            self._late.go_on()
        future.failure = CANCELLATION
        _kept = self.fn  # Its end may run code.
        exactly(self._count_cancelled)
        self._forget(future)

    def _count_cancelled(self) -> None:
        self.passed += 1
        self.slots.cancelled += 1
        self.future = self.fn = self._inner = None

    def _end(self, value: Any, error: BaseException | None) -> None:
        """Finish it with this outcome."""
        future: Any = self.future
        self.idled = clock()
        if error is None:
            future.value = value
        else:
            future.failure = failure_of(self, future, self.fn, error)
            self.failed += 1
        late = self._late
        future.args = ()
        if late is not None:
            late.leave()
        future.state = ENDING
        end(self, future, operator.call, late)
        self._forget(future)

    def _forget(self, future: Submission[Any]) -> None:
        """Keep nothing of what is over."""
        future.forget()
        future.recalls = None
        self.future = self.fn = self._inner = self._executor = self._late = None

    def _lose(self, exception: BaseException) -> None:
        """Something came from outside in the middle of a step: as `loop` does, when a worker
        ends unexpectedly."""
        future = self.future
        if future is not None and (self.fn is not None or future.claim()):
            if future.state is RUNNING:
                future.fail(exception, "a submission whose feeder was interrupted")
            else:
                future.settle()
            self.failed += 1
        if future is not None:
            self._forget(future)
        # Where it is idle it stands in `free` or `spare`, or was woken: then it is signalled.
        slots = self.slots
        if self.slot and self.wake not in slots.free and not (self.idle and self.signalled):
            slots.inbox.put(self._feed_safely)
