"""A scheduler that runs one thread at a time: threads, locks, points, and what happened.

Threads are real, but each waits at a point until it is chosen. Which points there are
depends on the mode:

* `free`: before every shared access. What holds there holds without a GIL.
* `gil`: before the first shared access after a place where CPython with a GIL can switch
  threads: after a call, on function entry, on a backward jump. What comes between two such
  places is one step.

A step has accesses, known once it has been made; `exploring` computes from them which
other orders there are. A wait with a time-out may end without the lock whenever the
scheduler says so.

Memory is sequentially consistent: a store is seen by every later load. That is what
CPython gives with a GIL and without.
"""

from __future__ import annotations

import _thread
import faulthandler
import itertools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

_allocate_lock = _thread.allocate_lock
_get_ident = _thread.get_ident

#: Seconds that one execution may take, which takes milliseconds.
_LIMIT = 60
#: Steps that the threads of an execution that is over may take to unwind.
_PATIENCE = 10000
#: Steps that others may make before a thread that could go on does. Without a GIL there are
#: threads that look again and again, until another has gone on.
_FAIR = 600

# Places that are not in the source.
ACQUIRE, RELEASE, LOCKED, DECLARED, MAPPED, EVENT, STARTED = range(-7, 0)
_WORDS = {
    ACQUIRE: "acquire of a lock",
    RELEASE: "release of a lock",
    LOCKED: "look at a lock",
    DECLARED: "what the scenario watches",
    MAPPED: "a step of map",
    EVENT: "an event",
    STARTED: "start of a thread",
}


class Abort(BaseException):
    """Unwinds the threads of an execution that is over."""


class Access(NamedTuple):
    """What a step touches."""

    #: The object, as `Run.name` numbers it.
    of: int
    #: An attribute or a key; None for all of the object.
    part: object
    writes: bool
    #: Where in the source.
    site: int


class Event:
    """A step that is made, or was."""

    __slots__ = ("task", "depth", "nth", "start", "clock", "accesses", "acquired", "held", "limit")

    def __init__(self, task: Task, depth: int, limit: int) -> None:
        self.task = task.number
        self.depth = depth
        #: How many steps of each thread happened before this one, when it began, and with
        #: what it has touched.
        self.start = task.clock
        self.clock = [*task.clock]
        self.clock[task.number] += 1
        #: How many steps of its own the thread has made with it.
        self.nth = self.clock[task.number]
        self.accesses: list[Access] = []
        #: The locks that it has waited for, or would have.
        self.acquired: set[int] = set()
        #: The locks that it found held, each with the step by which it was.
        self.held: dict[int, Event | None] = {}
        #: Objects with a smaller number were known when it began.
        self.limit = limit


class Task:
    """A thread of an execution."""

    def __init__(self, number: int, name: str, worker: object) -> None:
        self.number = number
        self.name = name
        #: The package's thread, None for one of the scenario's.
        self.worker = worker
        #: Released to let the thread run.
        self.baton = _allocate_lock()
        self.baton.acquire()
        self.alive = True
        self.ident = 0
        #: Whether it can be interrupted before its next access.
        self.boundary = True
        #: The lock without which it cannot go on.
        self.wants: Lock | None = None
        #: The lock that it waits for until its time is up.
        self.wants_for_a_while: Lock | None = None
        #: The object that another has to write before it can go on; how often it had been
        #: written when it looked last.
        self.spins_on: int | None = None
        self.spun: tuple[int, int] | None = None
        #: Raised where it could be interrupted next.
        self.exception: BaseException | None = None
        self.clock: list[int] = []
        #: The step that it makes.
        self.event: Event | None = None


class Lock:
    """`_thread.allocate_lock`, under control."""

    def __init__(self) -> None:
        self.held = False
        #: The step that acquired it.
        self.taken: Event | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        run = Run.mine()
        if run is None or run.aborting:
            if self.held:
                raise Abort
            self.held = True
            return True
        run.acquire_point(self, blocking, timeout)
        if self.held:
            return False
        self.held = True
        self.taken = run.running.event
        return True

    def release(self) -> None:
        run = Run.mine()
        if run is not None:
            run.touch(self, None, True, RELEASE)
        if not self.held:
            raise RuntimeError("release unlocked lock")
        self.held = False

    def locked(self) -> bool:
        run = Run.mine()
        if run is not None:
            run.touch(self, None, False, LOCKED)
        return self.held

    def __enter__(self) -> bool:
        acquired = self.acquire()
        _switchable()
        return acquired

    def __exit__(self, *_: object) -> None:
        self.release()
        mark()


class RLock:
    """`threading.RLock`, under control."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._owner: Task | None = None
        self._count = 0

    def is_mine(self) -> bool:
        run = Run.mine()
        return self._owner is not None and run is not None and self._owner is run.running

    _is_owned = is_mine  # As a `Condition` asks.

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self.is_mine():
            self._count += 1
            return True
        if not self._lock.acquire(blocking, timeout):
            return False
        run = Run.mine()
        self._owner, self._count = None if run is None else run.running, 1
        return True

    def release(self) -> None:
        if self._count > 1:
            self._count -= 1
            return
        self._owner, self._count = None, 0
        self._lock.release()

    def __enter__(self) -> bool:
        acquired = self.acquire()
        _switchable()
        return acquired

    def __exit__(self, *_: object) -> None:
        self.release()
        mark()


class LockedEvent:
    """`threading.Event`, under control."""

    def __init__(self) -> None:
        self._is_set = False
        self._lock = Lock()
        self._lock.held = True

    def set(self) -> None:
        _touch(self, writes=True)
        self._is_set = True
        if self._lock.held:
            self._lock.release()

    def clear(self) -> None:
        _touch(self, writes=True)
        self._is_set = False
        self._lock.acquire(False)

    def is_set(self) -> bool:
        _touch(self, writes=False)
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        if self.is_set():
            return True
        if self._lock.acquire(True, -1 if timeout is None else timeout):
            self._lock.release()
        return self.is_set()


def _touch(event: LockedEvent, *, writes: bool) -> None:
    run = Run.mine()
    if run is not None:
        mark()
        run.touch(event, None, writes, EVENT)


class _Carrier:
    """A thread that executes tasks, one after the other: threads are slow to start."""

    idle: ClassVar[list[_Carrier]] = []

    def __init__(self) -> None:
        self._work: Callable[[], None] | None = None
        self._lock = _allocate_lock()
        self._lock.acquire()
        _thread.start_new_thread(self._main, ())

    def run(self, work: Callable[[], None]) -> None:
        self._work = work
        self._lock.release()

    def _main(self) -> None:
        while True:
            self._lock.acquire()
            work, self._work = self._work, None
            assert work is not None
            work()
            del work


class Chooser(Protocol):
    """Decides who goes on, and learns from what was done."""

    def choose(self, run: Run, enabled: list[int]) -> int | None:
        """One of `enabled`; None where what remains is known from another execution."""

    def made(self, run: Run, event: Event) -> None:
        """A step is complete."""


class Run:
    """One execution of a scenario."""

    #: The one that is going on.
    current: Run | None = None

    def __init__(self, chooser: Chooser, gil: bool, most_steps: int = 5000) -> None:
        self._chooser = chooser
        self._gil = gil
        self._most_steps = most_steps
        self.tasks: list[Task] = []
        self.events: list[Event] = []
        self.running: Task
        #: Objects by `id`, in the order in which they were first touched. An execution with
        #: the same beginning numbers what is touched there in the same way.
        self._names: dict[int, int] = {}
        #: Kept until the end, so that no `id` is used twice.
        self._kept: list[object] = []
        #: Of each object and part, the clocks of the last write and of the looks since.
        self._clocks: dict[int, dict[object, tuple[list[int] | None, list[list[int]]]]] = {}
        #: How often each was written.
        self._writes: dict[int, int] = {}
        #: The steps that touched each object.
        self.touched: dict[int, list[int]] = {}
        #: The objects whose `__dict__` these are.
        self.dicts: dict[int, object] = {}
        self.failure: str | None = None
        #: Whether what remains is known from another branch.
        self.pruned = False
        #: It is over, and its threads are on their way out.
        self.aborting = False
        #: Whether a thread may be interrupted by an exception where it is now.
        self.interrupts: Callable[[Task], bool] | None = None
        self._patience = _PATIENCE
        self._finished = _allocate_lock()
        self._finished.acquire()

    @classmethod
    def mine(cls) -> Run | None:
        """The execution that this thread is part of, and running in."""
        run = cls.current
        return run if run is not None and run.running.ident == _get_ident() else None

    # Called by the threads of the execution.

    def spawn(
        self,
        function: Callable[..., object],
        args: tuple[Any, ...] = (),
        name: str = "",
        worker: object = None,
    ) -> None:
        task = Task(len(self.tasks), name, worker)
        if self.tasks and self.running.event is not None:
            # Not a copy: it comes after all of this step. And what follows is another.
            self._record(self.running, task, None, True, STARTED)
            task.clock = self.running.event.clock
        self.tasks.append(task)
        carrier = _Carrier.idle.pop() if _Carrier.idle else _Carrier()
        carrier.run(lambda: self._main(carrier, task, function, args))

    def _main(
        self, carrier: _Carrier, task: Task, function: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        task.ident = _get_ident()
        task.baton.acquire()
        try:
            if not self.aborting:
                function(*args)
        except Abort:
            pass
        except BaseException as error:
            if not self.aborting:
                self.fail(f"{task.name}: {type(error).__name__}: {error}", error)
            del error
        del function, args
        task.alive = False
        _Carrier.idle.append(carrier)
        if self.aborting:
            self._finished.release()
        else:
            self._switch(task)

    def touch(
        self, thing: object, part: object, writes: bool, site: int, *, same: bool = False
    ) -> None:
        """The running thread is about to touch a part of `thing`.

        Another may be chosen before, but not with `same`: then it is part of the step in
        which it touches something else too.
        """
        task = self.running
        if task.ident != _get_ident():
            return  # Something of the execution before is dropped only now.
        if self.aborting:
            self._unwind()
            return
        if not same and self._is_point(task):
            self._switch(task)
        self._record(task, thing, part, writes, site)

    def acquire_point(self, lock: Lock, blocking: bool, timeout: float) -> None:
        """The running thread is about to acquire `lock`; it goes on when that is free."""
        task = self.running
        if blocking and timeout >= 0:
            task.wants_for_a_while = lock
        elif blocking:
            task.wants = lock
        if self._is_point(task):
            self._switch(task)
        elif blocking and lock.held:
            # That it has to wait for it is part of the step before.
            self._record(task, lock, None, False, LOCKED)
            self._switch(task)
        self._record(task, lock, None, True, ACQUIRE)
        if task.wants is not None and task.event is not None:
            task.event.acquired.add(self.name(lock))
        task.wants = task.wants_for_a_while = None

    def spin(self, thing: object) -> None:
        """The running thread looks at `thing` again and again, until another writes it."""
        task = self.running
        if self.aborting:
            self._unwind()
            return
        of = self.name(thing)
        seen = of, self._writes.get(of, 0)
        if task.spun == seen:
            task.spins_on = of
            self._switch(task)
            self._record(task, thing, None, False, LOCKED)
            seen = of, self._writes[of]
        task.spun = seen

    def _unwind(self) -> None:
        self._patience -= 1
        if self._patience < 0:
            raise Abort

    def _is_point(self, task: Task) -> bool:
        # A step that has touched nothing has just been chosen.
        event = task.event
        return event is not None and bool(event.accesses) and (task.boundary or not self._gil)

    def name(self, thing: object) -> int:
        """The number of an object."""
        number = self._names.get(id(thing))
        if number is None:
            number = self._names[id(thing)] = len(self._names)
            self._kept.append(thing)
        return number

    def _record(self, task: Task, thing: object, part: object, writes: bool, site: int) -> None:
        event = task.event
        assert event is not None
        task.boundary = False
        of = self.name(thing)
        if isinstance(thing, Lock) and thing.held and thing.taken is not event:
            event.held.setdefault(of, thing.taken)
        event.accesses.append(Access(of, part, writes, site))
        clocks = self._clocks.get(of)
        if clocks is None:
            clocks = self._clocks[of] = {}
            self.touched[of] = []
        for each in [*clocks] if part is None else (part, None):
            last, looks = clocks.get(each, (None, []))
            if last is not None:
                join(event.clock, last)
            if writes:
                for look in looks:
                    join(event.clock, look)
        if writes and part is None:
            clocks.clear()
        if writes:
            clocks[part] = event.clock, []
        else:
            clocks.setdefault(part, (None, []))[1].append(event.clock)
        touched = self.touched[of]
        if not touched or touched[-1] != event.depth:
            touched.append(event.depth)
        if writes:
            self._writes[of] = self._writes.get(of, 0) + 1
            for other in self.tasks:
                if other.spins_on == of and other is not task:
                    other.spins_on = None

    def keep_dict_of(self, thing: object) -> None:
        """Attributes of `thing` are about to be touched through its `__dict__`."""
        self.dicts[id(thing.__dict__)] = thing
        self._kept.append(thing.__dict__)

    def fail(self, what: str, error: BaseException | None = None) -> None:
        if self.failure is not None:
            return
        self.failure = what
        trace = error.__traceback__ if error is not None else None
        while trace is not None:
            code = trace.tb_frame.f_code
            if code.co_filename != __file__:
                self.failure += f"\n    in {code.co_name}, {code.co_filename}:{trace.tb_lineno}"
            trace = trace.tb_next

    # Switching.

    def _switch(self, me: Task) -> None:
        if me.event is not None:
            me.clock = me.event.clock
            self._chooser.made(self, me.event)
            me.event = None
        following = self._choose()
        if following is me and me.alive:
            return
        if following is None:
            self._finished.release()
        else:
            self.running = following
            following.baton.release()
        if me.alive:
            me.baton.acquire()
            if self.aborting:
                raise Abort

    def _choose(self) -> Task | None:
        """The thread to go on with; None at the end of the execution."""
        if self.failure is not None:
            return None
        enabled = [
            task.number
            for task in self.tasks
            if task.alive and task.spins_on is None and (task.wants is None or not task.wants.held)
        ]
        if not enabled:
            return None
        if len(self.events) >= self._most_steps:
            self.fail(f"more than {self._most_steps} steps: it goes round in circles")
            return None
        number = self._chooser.choose(self, self._fair(enabled))
        if number is None:
            self.pruned = self.failure is None
            return None
        task = self.tasks[number]
        task.clock += [0] * (len(self.tasks) - len(task.clock))
        task.event = Event(task, len(self.events), len(self._names))
        self.events.append(task.event)
        return task

    def _fair(self, enabled: list[int]) -> list[int]:
        if not self.events or len(self.events) % _FAIR:
            return enabled
        recent = {event.task for event in self.events[-_FAIR:]}
        return [number for number in enabled if number not in recent] or enabled

    # Called by the explorer.

    def execute(self, scenario: Callable[[], object], check: Callable[[Run], None]) -> None:
        """Run `scenario` until nobody can run; check; let everybody go."""
        self.spawn(scenario, (), "main")
        first = self._choose()
        assert first is not None
        self.running = first
        Run.current = self
        first.baton.release()
        self._await_end()
        Run.current = None
        if self.failure is None and not self.pruned:
            for task in self.tasks:
                self._never_made(task)
            try:
                check(self)
            except Exception as error:
                self.fail(str(error), error)
        Run.current = self
        self.aborting = True
        for task in self.tasks:
            if task.alive:
                self.running = task
                task.baton.release()
                self._await_end()
        Run.current = None

    def _never_made(self, task: Task) -> None:
        """A thread waits for a lock at the end: another order may have given it that."""
        lock = task.wants
        if not task.alive or lock is None:
            return
        event = Event(task, len(self.events), len(self._names))
        event.accesses.append(Access(self.name(lock), None, True, ACQUIRE))
        event.acquired.add(self.name(lock))
        self._chooser.made(self, event)

    def _await_end(self) -> None:
        if not self._finished.acquire(True, _LIMIT):
            faulthandler.dump_traceback(all_threads=True)
            raise RuntimeError("a thread waits for something outside of the scheduler, or loops")

    def story(self, place: Callable[[int], str]) -> str:
        """The steps, a line for each stretch of one thread; `place` says what a site is."""
        lines: list[str] = []
        for number, events in itertools.groupby(self.events, lambda event: event.task):
            stretch = [access.site for event in events for access in event.accesses]
            name = self.tasks[number].name
            if not stretch:
                lines.append(f"{number} {name}: starts or ends")
                continue
            places = [
                _WORDS[site] if site < 0 else place(site) for site in (stretch[0], stretch[-1])
            ]
            lines.append(f"{number} {name}: {' … '.join(dict.fromkeys(places))}")
        return "\n".join(lines)


def join(clock: list[int], other: list[int]) -> None:
    """Have `clock` know what `other` knows."""
    if len(other) > len(clock):
        clock += [0] * (len(other) - len(clock))
    for index, count in enumerate(other):
        if count > clock[index]:
            clock[index] = count


def _switchable() -> None:
    """Here threads may be switched. (Before Python 3.14 nothing is raised between `with`
    and its block.)"""
    run = Run.current
    if run is not None:
        run.running.boundary = True


def mark() -> None:
    """Here CPython with a GIL may switch threads, and raise what was set from outside."""
    run = Run.current
    if run is not None:
        task = run.running
        task.boundary = True
        if run.interrupts is not None and not run.aborting and run.interrupts(task):
            run.touch(task, None, False, DECLARED)
            task.boundary = True
            exception, task.exception = task.exception, None
            if exception is not None:
                raise exception


def declare(thing: object) -> None:
    """The scenario touches what it watches: in which order matters."""
    run = Run.current
    if run is not None:
        mark()
        run.touch(thing, None, True, DECLARED)
        mark()
