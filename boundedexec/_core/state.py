"""The records: a worker, a lend, and the slots of one service. `slots`, `lending`, `loop` and
`pool` move them.

Fields marked [lock] change under `guard.lock` alone, counts in single steps with a GIL. Of the
others, each says who writes.
The protocol, with the orders that make it right, is in README.md, beside this file.
"""

from __future__ import annotations

import _thread
import itertools
import operator
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .debugging import debugging
from .locking import guard, locked
from .recording import FULL_NOTES, IDLE, SILENT, Notes, Recorder, recording
from .submission import Owner, Submission, clock
from .threads import ListedThread, PerThread

if TYPE_CHECKING:
    from .graph import Node

    Steps: TypeAlias = map[object]
else:
    Steps = map

#: More than there can be. An integer, for the worker's loop compares with it.
UNBOUNDED = 1 << 1000

# How many submissions a worker takes up between two looks at the clock, and what each of
# them may take on average for that, in nanoseconds.
_LONGEST_BURST = 32
_QUICK = 20_000

#: Of `Slots.checked`.
RECORDED = "recorded"

#: The key of the one signal in `Slots.quiet`.
SIGNAL = "signal"

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"


_last: Callable[[Any], Any] = list[Any].pop
_first: Callable[[Any], Any] = deque[Any].popleft
_take: Callable[[Any, Any], Any] = dict[Any, Any].pop


class Wake(Steps):
    """Wakes a worker, or starts its thread: by a step of this iterator, `for _ in wake: break`.

    CPython looks for signals when a call returns, a function starts or a loop goes round;
    not between a step of a `for` and what follows. So where one `for` takes a Wake out of
    an iterator that pops, and the next one steps it, a Ctrl-C finds neither or both done;
    and what is raised by the step was raised by the start of a thread.
    """

    worker: Worker


class Worker(ListedThread):
    """A thread of a service and what it executes. Written by itself, where nothing is said."""

    # Slots, here and in `Slots`: the worker's loop reads them for each submission, and an
    # object with thirty attributes or more is slow to read otherwise.
    __slots__ = (
        "slots", "begun", "wake", "gate", "patience", "slot", "signalled", "future", "fn", "debts",
        "lend", "node", "blank", "call", "presets", "pops", "steps", "burst", "granted", "missed",
        "passed", "borrowed", "failed", "since", "idled", "moved", "seen", "notes", "named",
    )  # fmt: skip

    def __init__(self, slots: Slots, name: str) -> None:
        super().__init__(name, slots.settings.daemon)
        self.slots = slots
        #: Whether its thread runs. False: `wake` starts it.
        self.begun = False
        start = self.starter(slots.settings.daemon)
        self.wake = Wake(start, itertools.repeat(_thread))
        self.wake.worker = self
        #: Released by `wake`, once for each time it is taken out of `free` or `spare`.
        self.gate = _thread.allocate_lock()
        self.gate.acquire()
        #: How many seconds it stays idle, as `acquire` takes them.
        self.patience = -1 if slots.settings.idle_timeout is None else slots.settings.idle_timeout
        #: [lock] Whether it holds a slot.
        #: True also while it stands in `free`: the thread that wakes it there gives it the slot.
        self.slot = False
        #: Whether the signal comes with the next wake-up, or has come and was not consumed.
        self.signalled = False
        #: The submission it has taken; its callable once it has the claim as well.
        self.future: Submission[Any] | None = None
        self.fn: Callable[..., Any] | None = None
        #: [lock] The lends by which it has its slot. The slot goes back to the last of them.
        self.debts: list[Lend] = []
        #: [lock] By what it has lent its slot, if that comes back: otherwise the borrower
        #: keeps the slot. None while it holds one.
        self.lend: Lend | None = None
        #: [lock] What it waits for, from when it looks what that leads to until it goes on.
        self.node: Node | None = None
        #: Where a body without a context of its own runs, if the submitter's is propagated;
        #: replaced when one has set something. Otherwise it runs in that of the thread.
        self.blank = Context()
        #: Runs a body there. (Not `run`, which programs replace on a thread.)
        self.call: Callable[..., Any] = self.blank.run if slots.propagate else operator.call
        #: What the initializer set, for the contexts of bodies to come.
        self.presets: list[tuple[ContextVar[Any], Any]] = []
        self._count_from_zero()
        #: [lock] Where it makes notes, while somebody records; see `recording`.
        self.notes: Notes | None = None
        #: The callable that it has made a note of last; None where that was another's.
        self.named: object = None

    def _count_from_zero(self) -> None:
        #: Takes submissions out of the queue, at most `burst`: `IndexError` where there is
        #: none. `steps` counts them.
        self.pops: Iterator[Submission[Any]] = iter(())
        self.steps: Iterator[Any] = itertools.repeat(None, 0)
        self.burst = 0
        #: How many `pops` and those before it would have taken in all.
        self.granted = 0
        #: How often it found the queue empty, and took what had been cancelled or started.
        self.missed = self.passed = 0
        #: How many submissions it has begun with a lent slot.
        self.borrowed = 0
        #: How many of its bodies have raised.
        self.failed = 0
        #: When its body began, on the clock of `Submission.serial`; see `look_at_clock`.
        self.since = 0
        #: When it went idle after its last body; 0 before.
        self.idled = 0
        #: [lock] When it last began to wait, gave its slot away, or went on.
        self.moved = 0
        #: [lock] What it executed when somebody last looked: the serial, and when that began,
        #: at the earliest; 0 where that was nothing. When that look was.
        self.seen: tuple[int, int, int] = (0, 0, 0)

    def work(self) -> None:
        self.begun = True
        self.wake = Wake(type(self.gate).release, itertools.repeat(self.gate))
        self.wake.worker = self
        self.slots.work(self)

    def renew_context(self) -> None:
        self.blank = Context()
        self.call = self.blank.run

    def begun_bodies(self) -> int:
        """How many bodies have begun here: what it took and has not passed over."""
        left = operator.length_hint(self.steps)
        return self.granted - left - self.missed - self.passed + self.borrowed

    def go_idle(self) -> None:
        """It has nothing more to do: remember when its last body was over, and be ready for
        the next, which others are then waiting for."""
        if self.since > self.idled:
            self.idled = clock()
            self.named = None
            self.note(self.idled, 0, IDLE)
        self.take_steps(1)

    def note(self, what: object, serial: int, kind: object) -> None:
        """Make a note, if somebody records; see `recording`."""
        notes = self.notes
        if notes is not None:
            notes += (what, serial, kind)

    def turn_page(self) -> None:
        """Where the list for its notes is full, go on with another."""
        if self.notes is not None and len(self.notes) >= FULL_NOTES:
            locked(self.renew_notes)

    def renew_notes(self) -> None:
        """Go on with another list for its notes, if somebody records; under the lock."""
        recorder = self.slots.recorder
        notes: Notes | None = None if recorder is SILENT else []
        if notes is not None:
            recorder.noted(self, notes)
        self.named = None
        self.notes = notes

    def look_at_clock(self) -> None:
        """Decide how many submissions it takes up before it looks again.

        A look costs a tenth of a short body. So bodies that take no time share one, and
        those that take some have one each.
        """
        if self.notes is not None:
            self.turn_page()
        now = clock()
        burst = self.burst
        quick = now - self.since < burst * _QUICK
        self.since = now
        if not operator.length_hint(self.steps):  # `go_idle` has left one.
            self.take_steps(min(2 * burst, _LONGEST_BURST) if quick else 1)

    def take_steps(self, burst: int) -> None:
        steps = itertools.repeat(self.slots.queue, burst)
        pops = map(_first, steps)
        granted = self.granted - operator.length_hint(self.steps) + burst
        # Nothing is called in between: who counts sees all of it or nothing.
        self.burst = burst
        self.steps = steps
        self.pops = pops
        self.granted = granted

    def may_wait(self, node: Node) -> None:
        """Raise where that wait, on this thread and outside a body, could never end."""

    def gone(self) -> None:
        with guard.lock:
            self.slots.discharge(self)


#: The worker whose body the current thread executes, or which it is.
current_worker = PerThread()


def current_body() -> Worker | None:
    """The worker whose body the caller is part of; None in an initializer and elsewhere."""
    worker: Worker | None = current_worker.values.get(_thread.get_ident())
    return worker if worker is not None and worker.future is not None else None


class Lend:
    """A slot on its way from a body that waits to what it waits for, and back."""

    __slots__ = ("lender", "future")

    def __init__(self, lender: Worker, future: Submission[Any] | None) -> None:
        self.lender = lender
        #: The submission to start with the slot; None once it has, or for a body that resumes.
        self.future = future


class Observer:
    """A thread or coroutine that waits until nothing is outstanding."""

    def notify(self) -> None:
        """Called at such an instant, once or more often, on any thread."""
        raise NotImplementedError


class Settings(NamedTuple):
    """What a service was made with, but for its bound."""

    prefix: str
    idle_timeout: float | None
    initializer: Callable[[], object] | None
    lending: bool
    propagate: bool
    max_queued: int | None
    daemon: bool
    slow_after: float | None


class Slots(Owner):
    """The slots, the queue and the workers of one service.

    Its threads and futures refer to this and not to the Service, which can therefore be
    collected while they are at work.
    """

    __slots__ = (
        "settings", "work", "hand_out", "bound", "propagate", "checked", "wrappable", "refusal",
        "grace_ends", "cancelling", "broken", "ending", "recorder", "service", "_numbers",
        "opened", "free", "queue", "quiet", "takes", "frees", "resuming", "lends", "fetcher",
        "preparing", "preparing_for_lends", "spare", "spares", "workers", "unslotted",
        "in_transit", "observers", "begun", "failed", "refused", "borrowed", "circles", "late",
        "last_end",
        "__weakref__",
    )  # fmt: skip

    #: Whether bodies execute on threads of its workers; see `feeding`.
    executes = True

    def __init__(
        self,
        settings: Settings,
        max_workers: int | None,
        work: Callable[[Worker], None],
        hand_out: Callable[[Slots], None],
    ) -> None:
        super().__init__()
        self.settings = settings
        #: What each of its threads does, and how free slots come to bodies that resume: in
        #: rooms above this.
        self.work = work
        self.hand_out = hand_out
        #: [lock] How many slots there may be.
        self.bound = UNBOUNDED if max_workers is None else max_workers
        self.propagate = settings.propagate
        #: Whether wrappers of the stdlib's `submit` take effect here; see `wrapping`.
        self.wrappable = False
        #: Why nothing more is accepted; set before `checked`.
        self.refusal: Callable[[], Exception] | None = None
        #: Told of what happens; see `recording`. [lock] Set before `checked`.
        self.recorder: Recorder = recording.recorder
        #: Whether there is more to do for a submission than usual; `RECORDED` where that is
        #: no more than to remember its thread.
        self.checked: bool | str = self.needs_checks()
        #: Until when bodies may submit all the same, on the monotonic clock.
        self.grace_ends = 0.0
        #: Whether what is owed is cancelled, instead of run, after the shutdown.
        self.cancelling = False
        self.broken = False
        #: Whether a thread with nothing to do ends.
        self.ending = False
        #: The Service, for the child of a fork; its end is the reference's callback.
        self.service: weakref.ref[Any] | None = None
        self._numbers = itertools.count()
        self.empty()

    def empty(self) -> None:
        """Have nothing queued, no slot and no worker: at first, and in a forked child.

        What was there is replaced, not cleared: without a GIL a thread that does not exist
        in the child may have been in the middle of an operation on it.
        """
        self._empty_queue()
        self._empty_workers()
        #: [lock] What workers that have ended have counted; and what failed without a body.
        self.begun = self.failed = 0
        #: [lock] When the last body of a worker that has ended was over.
        self.last_end = 0
        #: [lock] How many submissions `max_queued` has refused.
        self.refused = 0
        #: [lock] How many bodies have begun with a lent slot on workers that have ended; how
        #: many waits could never have ended, and how many ran out of time in a full pool.
        self.borrowed = self.circles = self.late = 0

    def _empty_queue(self) -> None:
        #: [lock] How many there are: those in `free` and those that workers hold. Where
        #: `free` is empty and this is less than `bound`, a worker that was just woken is
        #: about to open one more.
        self.opened = 0
        #: One entry for each free slot: an idle worker, or one that can be started. The last
        #: is taken first, so that surplus threads age; those not started come first.
        self.free: list[Wake] = []
        #: Submissions that have not started, in order, and some whose claim is gone.
        self.queue: deque[Submission[Any]] = deque()
        #: Has its entry unless a signal is on its way: from when a submitter takes it out
        #: until the worker that was woken has taken a submission.
        self.quiet: dict[str, list[Wake]] = {SIGNAL: self.free}
        #: Takes the signal, then a worker out of `free`: `KeyError` without the one,
        #: `IndexError` without the other.
        self.takes: Iterator[Wake] = map(
            _last, map(_take, itertools.repeat(self.quiet), itertools.repeat(SIGNAL))
        )
        #: Takes a worker out of `free`: `IndexError` where there is none. (And `spares`,
        #: out of `spare`.)
        self.frees: Iterator[Wake] = map(_last, itertools.repeat(self.free))

    def _empty_workers(self) -> None:
        #: [lock] Bodies that want a slot back, in order; they go before the queue. Non-empty
        #: only while `free` is empty, or while somebody is about to give them what is there.
        self.resuming: OrderedDict[Worker, None] = OrderedDict()
        #: [lock] Slots that bodies have lent, until a worker has fetched them.
        self.lends: deque[Lend] = deque()
        #: [lock] The worker that was woken for the lends and has not come to them yet.
        self.fetcher: Worker | None = None
        #: [lock] How many workers run their initializer before they look into the queue, and
        #: how many before they fetch a lend: each of them will take one.
        self.preparing = 0
        self.preparing_for_lends = 0
        #: [lock] Workers that have no slot: idle ones, and some that were never started.
        self.spare: list[Wake] = []
        self.spares: Iterator[Wake] = map(_last, itertools.repeat(self.spare))
        #: [lock] Every worker that was made and has not ended.
        self.workers: dict[Worker, None] = {}
        #: [lock] Bodies that have no slot and have lent none: they are outstanding though
        #: neither the queue nor a slot says so.
        self.unslotted: set[Worker] = set()
        #: What else is outstanding: runs of a Coalescer that others can join and that a
        #: `submit` of a subclass has not queued yet, and what was taken out of the queue to
        #: fail. One entry for each thread that does so, and written by it; under the lock
        #: where it is taken out.
        self.in_transit: set[object] = set()
        #: Who waits until nothing is outstanding.
        self.observers: dict[Observer, None] = {}

    def threads(self) -> set[Worker]:
        """The workers that have a thread, or are being started; under the lock."""
        waiting = {wake.worker for wake in (*self.free, *self.spare)}
        return {worker for worker in self.workers if worker.begun or worker not in waiting}

    def fresh(self) -> Slots:
        """Empty ones of the same kind, for the child of a fork."""
        return Slots(self.settings, self.max_workers, self.work, self.hand_out)

    def recall(self) -> None:
        """Cancel what another executor has, and has not started."""

    def needs_checks(self) -> bool | str:
        if self.settings.max_queued is not None or self.refusal is not None or debugging.on:
            return True
        return self.recorder is not SILENT and RECORDED

    def record(self, recorder: Recorder) -> None:
        """Have `recorder` told of what happens from now on; under the lock."""
        self.recorder = recorder
        for worker in self.workers:
            worker.renew_notes()
        self.checked = self.needs_checks()
        # Stored, so look: who finds another reason stores True after it.
        if self.needs_checks() is True:
            self.checked = True

    @property
    def max_workers(self) -> int | None:
        return None if self.bound == UNBOUNDED else self.bound

    @property
    def lends_slots(self) -> bool:
        return self.settings.lending and self.bound != UNBOUNDED

    def new_worker(self) -> Worker:
        """A worker whose thread has not been started; under the lock, or before others
        know these slots."""
        name = f"{self.settings.prefix}_{next(self._numbers)}"
        worker = Worker(self, name)
        worker.renew_notes()
        self.workers[worker] = None
        return worker

    def discharge(self, worker: Worker) -> None:
        """A worker has ended: keep what it has counted."""
        if self.workers.pop(worker, self) is None:
            self.begun += worker.begun_bodies()
            self.failed += worker.failed
            self.borrowed += worker.borrowed
            self.last_end = max(self.last_end, worker.idled)

    def drop_dead(self) -> None:
        """One that was cancelled has left the queue."""
        if self.uncounted:  # Never with a GIL, where nothing may be called here.
            self.count()
        self.dead -= self.dead > 0
        if not self.queue:
            self.dead = 0

    def count_failed(self) -> None:
        self.failed += 1

    def count_refused(self) -> None:
        self.refused += 1

    def count_circle(self) -> None:
        self.circles += 1

    def __del__(self) -> None:
        self.recorder.gone(self)

    def signal(self) -> None:
        """Wake one worker for the queue, unless a signal is on its way or no slot is free.

        Takes no lock, but where a start fails. Between taking a worker and waking it no signal
        is looked for. Raises what starting a thread raises; then nothing has changed.
        """
        # The queue last: a worker takes a submission before it consumes the signal, so what
        # is queued while no signal is on its way needs one.
        while self.quiet and self.free and self.queue:
            wake: Iterable[object] = ()
            try:
                for wake in self.takes:  # noqa: B007
                    break
            except KeyError:
                return
            except IndexError:
                # Threads that looked in between saw a signal on its way: look again.
                self.quiet[SIGNAL] = self.free  # explore: signal-found-none
                continue  # explore: signal-look-again
            try:
                for _ in wake:
                    break
            except BaseException:
                # explore: start-failed-entry
                self.free[0:0] = [wake]  # type: ignore[list-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
                self.quiet[SIGNAL] = self.free  # explore: start-failed-signal
                # Put back, so look: a body may have begun to resume when it was gone.
                if self.resuming:
                    locked(self.hand_out, self)  # explore: start-failed-resuming
                raise
            return

    def busy(self) -> bool:
        """Whether a body executes after whose end the queue is looked at again."""
        return self.opened > len(self.free) or bool(self.unslotted)
