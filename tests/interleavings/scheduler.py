"""A scheduler that runs one thread at a time, and an explorer of its choices.

Threads are real, but each waits at every point until it is chosen. A point says
what the thread is about to touch, so the scheduler knows of every thread that waits
what it will do next. It knows whether a lock is free, hence who can run; that nobody
can is the end of an execution.

The explorer runs a scenario again and again. Two schedules that differ only in the
order of steps which touch different things, or only look, are the same execution;
of those it needs one. That is dynamic partial-order reduction (Flanagan and
Godefroid, 2005) with sleep sets:

1. Where a thread is about to touch what another has touched, and nothing made it
   wait for that, the other order is possible: the thread is noted as an alternative
   for the state before the other's step.
2. After an execution the deepest state with an alternative is run into again, with
   that alternative chosen there.
3. What has been explored from a state need not be tried again in a branch before
   something that it conflicts with has happened: it sleeps.

So without a bound every execution is covered. With a bound on preemptions (switches
away from a thread that could go on) those with no more than so many are; an
alternative is then also noted where the other thread began to run, for there it costs
no preemption (Coons, Musuvathi and McKinley, 2013), and nothing sleeps.

A wait with a time-out may end without the lock whenever the scheduler says so: the
time-out is one more step that conflicts with the lock's release.

Memory is sequentially consistent: a store is seen by every later load. That is what
CPython gives with a GIL and without.
"""

from __future__ import annotations

import _thread
import faulthandler
import gc
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, TypeAlias

from instrument import Site

_allocate_lock = _thread.allocate_lock
_get_ident = _thread.get_ident

#: What a step touches (`part` of an object, all of it where that is None), whether it
#: changes it, and where in the source; and what else it looks through, or 0.
Access: TypeAlias = "tuple[int, object, bool, int, int]"

#: Seconds that one execution may take, which takes milliseconds.
_LIMIT = 60

# Places that are not in the source.
_ACQUIRE, _RELEASE, _LOCKED, _DECLARED = range(-4, 0)
_WORDS = {
    _ACQUIRE: "acquire of a lock",
    _RELEASE: "release of a lock",
    _LOCKED: "look at a lock",
    _DECLARED: "what the scenario watches",
}


#: What the failure of a scenario begins with that does not do the same again.
NOT_REPEATABLE = "not repeatable"


class Abort(BaseException):
    """Unwinds the threads of an execution that is over."""


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
        #: What its next step touches; None where it has not begun.
        self.access: Access | None = None
        #: The lock without which it cannot go on.
        self.wants: Lock | None = None
        #: The lock that it waits for until its time is up.
        self.wants_for_a_while: Lock | None = None
        self.releases: Lock | None = None
        #: How many steps of each thread happened before its next one.
        self.clock: list[int] = []


class Lock:
    """`_thread.allocate_lock`, under control."""

    def __init__(self) -> None:
        self.held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        run = Run.mine()
        if run is None or run.aborting:
            if self.held:
                raise Abort
            self.held = True
            return True
        task = run.running
        if blocking and timeout >= 0:
            task.wants_for_a_while = self
        elif blocking:
            task.wants = self
        run.point((id(self), None, True, _ACQUIRE, 0), self)
        task.wants = task.wants_for_a_while = None
        if self.held:
            return False
        self.held = True
        return True

    def release(self) -> None:
        run = Run.mine()
        if run is not None:
            run.running.releases = self
            run.point((id(self), None, True, _RELEASE, 0), self)
        if not self.held:
            raise RuntimeError("release unlocked lock")
        self.held = False

    def locked(self) -> bool:
        run = Run.current
        if run is not None:
            run.point((id(self), None, False, _LOCKED, 0), self)
        return self.held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock:
    """`threading.RLock`, under control."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._owner: Task | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        run = Run.mine()
        me = None if run is None else run.running
        if self._owner is not None and self._owner is me:
            self._count += 1
            return True
        if not self._lock.acquire(blocking, timeout):
            return False
        self._owner, self._count = me, 1
        return True

    def release(self) -> None:
        if self._count > 1:
            self._count -= 1
            return
        self._owner, self._count = None, 0
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


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


class _Node:
    """A state of the current branch, and what remains to be tried from there."""

    __slots__ = ("enabled", "chosen", "todo", "done", "sleeping", "before", "preemptions")

    def __init__(
        self, enabled: list[int], chosen: int, sleeping: set[int], before: int, preemptions: int
    ) -> None:
        self.enabled = enabled
        self.chosen = chosen
        self.todo = {chosen}
        self.done: set[int] = set()
        self.sleeping = sleeping
        #: Who ran before and could go on, else -1.
        self.before = before if before in enabled else -1
        #: How many preemptions there were before this state.
        self.preemptions = preemptions

    def cost(self, number: int) -> int:
        return int(self.before >= 0 and number != self.before)


class _Event(NamedTuple):
    """A step that was made."""

    task: int
    access: Access | None
    #: How many steps of its own the thread had made with it.
    nth: int
    #: Whether it freed a lock.
    freed: bool


class Failure(NamedTuple):
    what: str
    schedule: list[int]
    story: str


class Run:
    """One execution of a scenario."""

    #: The one that is going on.
    current: Run | None = None

    def __init__(self, explorer: Explorer, prefix: list[int] | None = None) -> None:
        self._explorer = explorer
        self._stack = explorer.stack
        self._bound = explorer.bound
        #: The choices to repeat, where that is all there is to do.
        self._prefix = prefix
        #: Up to here everything is as it was in the execution before.
        self._known = len(self._stack) - 1 if prefix is None else explorer.most_steps
        self.tasks: list[Task] = []
        self.events: list[_Event] = []
        self.running: Task
        self._last = -1
        #: The steps that touched an object, and those threads that did, -1 for several.
        self._touched: dict[int, list[int]] = {}
        self._by: dict[int, int] = {}
        #: What happened before whoever looks at, or changes, a part of an object.
        self._clocks: dict[int, dict[object, tuple[list[int], list[int]]]] = {}
        #: Kept until the end, so that no `id` is used twice.
        self._kept: list[object] = []
        #: The objects whose `__dict__` these are.
        self.dicts: dict[int, int] = {}
        self.failure: str | None = None
        #: Whether what remains is known from another branch.
        self.pruned = False
        #: It is over, and its threads are on their way out.
        self.aborting = False
        #: How many steps they may take for that all in all.
        self._patience = 10000
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
        task.clock = [*self.running.clock] if self.tasks else []
        self.tasks.append(task)
        for each in self.tasks:
            each.clock += [0] * (len(self.tasks) - len(each.clock))
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

    def point(self, access: Access, kept: object) -> None:
        """The running thread is about to make a step: somebody may be chosen before it."""
        task = self.running
        if task.ident != _get_ident():
            return  # Something of the execution before is dropped only now.
        if self.aborting:
            self._patience -= 1
            if self._patience < 0:
                raise Abort
            return
        task.access = access
        self._kept.append(kept)
        self._switch(task)

    def keep_dict_of(self, thing: object) -> None:
        """Attributes of `thing` are about to be touched through its `__dict__`."""
        self.dicts[id(thing.__dict__)] = id(thing)
        self._kept.append(thing)

    def look(self, container: object) -> None:
        """The scenario is about to look into something of the package's."""
        self.point((id(container), None, False, _DECLARED, 0), container)

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

    def _switch(self, me: Task) -> None:
        following = self._choose(me)
        if following is me:
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

    # Choices.

    def _choose(self, me: Task) -> Task | None:
        """The thread to go on with; None at the end of the execution."""
        if self.failure is not None:
            return None
        enabled = [
            task.number
            for task in self.tasks
            if task.alive and (task.wants is None or not task.wants.held)
        ]
        if not enabled:
            return None
        depth = len(self.events)
        if depth > self._known and me.alive and me.access is not None:
            self._look_back(me)
        before = self._last
        if before >= 0 and self.tasks[before].wants_for_a_while is not None:
            before = -1  # It waits, and is not interrupted.
        if self._prefix is not None:
            if depth < len(self._prefix):
                number = self._prefix[depth]
                if number not in enabled:
                    self.fail(f"the schedule does not fit: {number} cannot run at step {depth}")
                    return None
            else:
                number = self._default(enabled, before, set())
        elif depth < len(self._stack):
            node = self._stack[depth]
            if node.enabled != enabled:
                self.fail(f"{NOT_REPEATABLE}: {enabled} and not {node.enabled} at step {depth}")
                return None
            number = node.chosen
        else:
            sleeping: set[int] = set()
            preemptions = 0
            if depth:
                parent = self._stack[depth - 1]
                preemptions = parent.preemptions + parent.cost(parent.chosen)
                if self._bound is None:
                    sleeping = {
                        other
                        for other in parent.sleeping | parent.done
                        if other != parent.chosen
                        and not _conflict(self.events[-1].access, self.tasks[other].access)
                    }
            number = self._default(enabled, before, sleeping)
            if number < 0:
                self.pruned = True
                return None
            self._stack.append(_Node(enabled, number, sleeping, before, preemptions))
        if depth >= self._explorer.most_steps:
            self.fail(f"more than {depth} steps: it goes round in circles")
            return None
        task = self.tasks[number]
        self._step(task, depth)
        self._last = number
        return task

    def _default(self, enabled: list[int], before: int, sleeping: set[int]) -> int:
        """Go on with who ran; a time-out only where nobody else can run."""
        if before in enabled and before not in sleeping:
            return before
        late = -1
        for number in enabled:
            if number not in sleeping:
                lock = self.tasks[number].wants_for_a_while
                if lock is None or not lock.held:
                    return number
                if late < 0:
                    late = number
        return late

    def _step(self, task: Task, depth: int) -> None:
        """Take note of the step that is made now."""
        number = task.number
        clock = task.clock
        clock[number] += 1
        access = task.access
        if access is None:
            self.events.append(_Event(number, None, clock[number], False))
            return
        of, part, writes, site, also = access
        if also:
            self._touch(number, clock, depth, also, None, False)
        self._touch(number, clock, depth, of, part, writes)
        freed = site == _RELEASE and task.releases is not None and task.releases.held
        self.events.append(_Event(number, access, clock[number], freed))
        if depth >= self._known:
            for other in self.tasks:
                if other is task or not other.alive or not _conflict(access, other.access):
                    continue
                if not (freed and other.wants is not None):  # Else it could not have run.
                    self._note(other, depth)

    def _touch(
        self, number: int, clock: list[int], depth: int, of: int, part: object, writes: bool
    ) -> None:
        """What touched the same before has happened before this."""
        clocks = self._clocks.get(of)
        if clocks is None:
            clocks = self._clocks[of] = {}
            self._touched[of] = []
            self._by[of] = number
        elif self._by[of] != number:
            self._by[of] = -1
        for each in clocks if part is None else (part, None):
            entry = clocks.get(each)
            if entry is not None:
                _join(clock, entry[0])
                if writes:
                    _join(clock, entry[1])
        entry = clocks.get(part)
        if entry is None:
            entry = clocks[part] = ([], [])
        _join(entry[0 if writes else 1], clock)
        self._touched[of].append(depth)

    def _look_back(self, task: Task) -> None:
        """Find the last step that could as well come after the next one of `task`."""
        access = task.access
        assert access is not None
        depths: list[int] = []
        for of in access[0], access[4]:
            if self._by.get(of, task.number) != task.number:
                depths += self._touched[of]
        if access[4]:
            depths.sort()
        clock = task.clock
        for depth in reversed(depths):
            event = self.events[depth]
            if event.nth <= clock[event.task] or not _conflict(event.access, access):
                continue  # It has to come before, or may.
            if event.freed and task.wants is not None:
                continue
            self._note(task, depth)
            if self._bound is None:
                return  # The earlier ones are found from there.

    def _note(self, task: Task, depth: int) -> None:
        """Have `task`, or what leads to it, tried in the state before step `depth`."""
        if self._prefix is not None:
            return
        stack = self._stack
        self._add(task, depth)
        if self._bound is not None:
            number = stack[depth].chosen
            while depth and stack[depth - 1].chosen == number:
                depth -= 1
            self._add(task, depth)

    def _add(self, task: Task, depth: int) -> None:
        node = self._stack[depth]
        if task.number in node.enabled:
            node.todo.add(task.number)
            return
        if self._bound is None:
            for event in self.events[depth + 1 :]:
                if event.nth <= task.clock[event.task] and event.task in node.enabled:
                    node.todo.add(event.task)
                    return
        node.todo.update(node.enabled)

    # Called by the explorer.

    def execute(self, scenario: Callable[[], object], check: Callable[[Run], None]) -> None:
        """Run `scenario` until nobody can run; check; let everybody go."""
        self.spawn(scenario, (), "main")
        first = self._choose(self.tasks[0])
        assert first is not None
        self.running = first
        Run.current = self
        first.baton.release()
        self._await_end()
        Run.current = None
        if self.failure is None and not self.pruned:
            try:
                check(self)
            except AssertionError as error:
                self.fail(str(error))
        Run.current = self
        self.aborting = True
        for task in self.tasks:
            if task.alive:
                self.running = task
                task.baton.release()
                self._await_end()
        Run.current = None

    def _await_end(self) -> None:
        if not self._finished.acquire(True, _LIMIT):
            faulthandler.dump_traceback(all_threads=True)
            raise RuntimeError("a thread waits for something outside of the scheduler, or loops")

    def story(self) -> str:
        """The steps, a line for each stretch of one thread."""
        lines: list[str] = []
        for number, events in itertools.groupby(self.events, lambda event: event.task):
            stretch = [event for event in events if event.access is not None]
            name = self.tasks[number].name
            if not stretch:
                lines.append(f"{number} {name}: starts")
                continue
            places = [self._place(event.access) for event in (stretch[0], stretch[-1])]
            lines.append(f"{number} {name}: {' … '.join(dict.fromkeys(places))}")
        return "\n".join(lines)

    def _place(self, access: Access | None) -> str:
        assert access is not None
        site = access[3]
        return _WORDS[site] if site < 0 else str(self._explorer.sites[site])


def _conflict(one: Access | None, other: Access | None) -> bool:
    if one is None or other is None:
        return False
    if (
        one[0] == other[0]
        and (one[2] or other[2])
        and (one[1] is None or other[1] is None or one[1] == other[1])
    ):
        return True
    return (other[2] and one[4] == other[0]) or (one[2] and other[4] == one[0])


def _join(clock: list[int], other: list[int]) -> None:
    if len(other) > len(clock):
        clock += [0] * (len(other) - len(clock))
    for index, count in enumerate(other):
        if count > clock[index]:
            clock[index] = count


class Result(NamedTuple):
    """What an exploration came to."""

    #: Executions that went to their end, and those that were cut off as known.
    schedules: int
    pruned: int
    threads: int
    steps: int
    #: Whether every execution (within the bound) was covered.
    complete: bool
    seconds: float
    failure: Failure | None


class Explorer:
    """Runs a scenario along every schedule, or as many as it may."""

    def __init__(self, sites: list[Site], bound: int | None = None, most_steps: int = 5000) -> None:
        self.sites = sites
        self.bound = bound
        self.most_steps = most_steps
        self.stack: list[_Node] = []

    def explore(
        self,
        make: Callable[[], tuple[Callable[[], object], Callable[[Run], None]]],
        seconds: float,
    ) -> Result:
        """Explore until there is nothing more, something fails, or `seconds` have passed.

        `make` makes a fresh scenario and the check of its outcome.
        """
        start = time.monotonic()
        schedules = pruned = threads = steps = 0
        self.stack = []
        gc.collect()
        gc.disable()
        try:
            while True:
                run = Run(self)
                run.execute(*make())
                threads = max(threads, len(run.tasks))
                steps = max(steps, len(run.events))
                if run.pruned:
                    pruned += 1
                else:
                    schedules += 1
                failure = None
                if run.failure is not None:
                    schedule = [event.task for event in run.events]
                    failure = Failure(run.failure, schedule, run.story())
                complete = failure is None and not self._next()
                late = time.monotonic() - start
                if failure is not None or complete or late > seconds:
                    return Result(schedules, pruned, threads, steps, complete, late, failure)
                if (schedules + pruned) % 500 == 0:
                    gc.collect()
        finally:
            gc.enable()

    def _next(self) -> bool:
        """Choose the next branch; False where there is none."""
        while self.stack:
            node = self.stack[-1]
            node.done.add(node.chosen)
            for number in sorted(node.todo - node.done - node.sleeping):
                if self.bound is None or node.preemptions + node.cost(number) <= self.bound:
                    node.chosen = number
                    return True
            self.stack.pop()
        return False

    def replay(
        self,
        make: Callable[[], tuple[Callable[[], object], Callable[[Run], None]]],
        schedule: list[int],
    ) -> Failure | None:
        """Run along `schedule`, and then as it comes."""
        run = Run(self, schedule)
        run.execute(*make())
        if run.failure is None:
            return None
        return Failure(run.failure, [event.task for event in run.events], run.story())


def written(schedule: list[int]) -> str:
    """A schedule as it is printed: `2x14` is fourteen steps of thread 2."""
    return " ".join(f"{task}x{len([*steps])}" for task, steps in itertools.groupby(schedule))


def parsed(text: str) -> list[int]:
    """Undo `written`."""
    schedule: list[int] = []
    for stretch in text.split():
        task, _, count = stretch.partition("x")
        schedule += [int(task)] * int(count)
    return schedule


# What the points in the source call.

_CONTAINERS = {list, deque, dict, OrderedDict, set}


def declare(thing: object) -> None:
    """The scenario touches what it watches: in which order matters."""
    run = Run.current
    if run is not None:
        run.point((id(thing), None, True, _DECLARED, 0), thing)


def helpers(sites: Callable[[], list[Site]]) -> dict[str, Callable[..., Any]]:
    """The functions of `instrument.load`, for the points of `sites`."""

    def touch(run: Run, of: object, part: object, site: int, also: object = None) -> None:
        if type(also) not in _CONTAINERS:
            run.point((id(of), part, sites()[site].writes, site, 0), of)
        else:
            run.point((id(of), part, sites()[site].writes, site, id(also)), (of, also))

    def touch_item(holder: object, index: object, site: int) -> None:
        run = Run.current
        if run is not None and type(holder) in _CONTAINERS:
            of = run.dicts.get(id(holder))
            if of is not None:
                run.point((of, index, sites()[site].writes, site, 0), holder)
            else:
                touch(run, holder, index if isinstance(index, str) else None, site)

    def attribute(of: object, site: int) -> object:
        run = Run.current
        if run is not None:
            _, _, _, name, writes = sites()[site]
            run.point((id(of), name, writes, site, 0), of)
        return of

    def instance_dict(of: object, site: int) -> object:
        run = Run.current
        if run is not None:
            run.keep_dict_of(of)
        return of

    def get_item(holder: Any, index: Any, site: int) -> Any:
        touch_item(holder, index, site)
        return holder[index]

    def set_item(value: Any, holder: Any, index: Any, site: int) -> None:
        touch_item(holder, index, site)
        holder[index] = value

    def delete_item(holder: Any, index: Any, site: int) -> None:
        touch_item(holder, index, site)
        del holder[index]

    def method(site: int, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        run = Run.current
        if run is not None:
            of: object = getattr(function, "__self__", None)
            kind: type[object] = type(of)
            if args and type(args[0]) is map:
                pass  # The step is that of what is called, which has a point.
            elif kind in _CONTAINERS:
                if kind is set and function.__name__ in ("add", "discard", "remove"):
                    touch(run, of, id(args[0]), site)
                elif args and isinstance(args[0], str):
                    touch_item(of, args[0], site)
                else:
                    touch(run, of, None, site, args[0] if args else None)
        return function(*args, **kwargs)

    def look(site: int, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        run = Run.current
        # Not into a counter, whose numbers only have to differ and to grow.
        if run is not None and type(args[0]) in _CONTAINERS:
            touch(run, args[0], None, site)
        return function(*args, **kwargs)

    def by_name(site: int, function: Any, /, *args: Any) -> Any:
        run = Run.current
        if run is not None:
            touch(run, args[0], args[1], site)
        return function(*args)

    def lazily(site: int, function: Any, /, *args: Any) -> Any:
        return steps(args[-1], function(*args), site)

    def each(thing: Any, site: int) -> Any:
        return steps(thing, thing, site)

    def steps(thing: object, iterable: Any, site: int) -> Any:
        """`iterable`, which goes through `thing`: a point before each step."""
        if Run.current is None or type(thing) not in _CONTAINERS:
            return iterable

        def go() -> Iterator[Any]:
            iterator = iter(iterable)
            while True:
                if Run.current is not None:
                    touch(Run.current, thing, None, site)
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                yield item

        return go()

    def container(thing: object, site: int) -> object:
        run = Run.current
        if run is not None and type(thing) in _CONTAINERS:
            touch(run, thing, None, site)
        return thing

    return {
        function.__name__: function
        for function in (
            attribute, instance_dict, get_item, set_item, delete_item, method, look, lazily,
            by_name, container, each,
        )
    }  # fmt: skip
