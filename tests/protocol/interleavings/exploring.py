"""The explorer: runs a scenario along every schedule, or as many as it may.

Two schedules that differ only in the order of steps which touch different things, or only
look, are the same execution; of those it needs one. That is dynamic partial-order
reduction with source sets and sleep sets (Abdulla, Aronis, Jonsson and Sagonas, 2014):

1. Two steps of different threads race if one touches what the other has touched, and
   nothing else orders them. Then the state before the first must also be left by a thread
   that begins the other order; where none is noted there already, one is.
2. After an execution the deepest state with an alternative is run into again, with that
   alternative chosen there.
3. What has been explored from a state need not be tried again in a branch before
   something that it conflicts with has happened: it sleeps.

So without a bound every execution is covered. With a bound on preemptions (switches away
from a thread that could go on) those with no more than so many are; an alternative is then
also noted where the other thread began to run, for there it costs no preemption (Coons,
Musuvathi and McKinley, 2013), and nothing sleeps.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

from instrument import Site
from scheduler import Access, Event, Run, join

#: What the failure of a scenario begins with that does not do the same again.
NOT_REPEATABLE = "not repeatable"


class _Known(NamedTuple):
    """A step that was explored from a state."""

    accesses: list[Access]
    #: Objects with a smaller number were known there; others may be numbered differently.
    limit: int


class _Node:
    """A state of the current branch, and what remains to be tried from there."""

    __slots__ = (
        "enabled", "chosen", "todo", "done", "sleeping", "before", "preemptions", "made",
    )  # fmt: skip

    def __init__(
        self,
        enabled: list[int],
        chosen: int,
        sleeping: dict[int, _Known],
        before: int,
        preemptions: int,
    ) -> None:
        self.enabled = enabled
        self.chosen = chosen
        self.todo = {chosen}
        self.done: dict[int, _Known] = {}
        self.sleeping = sleeping
        #: Who ran before and could go on, else -1.
        self.before = before if before in enabled else -1
        #: How many preemptions there were before this state.
        self.preemptions = preemptions
        #: The step that was made from here.
        self.made = _Known([], 0)

    def cost(self, number: int) -> int:
        return int(self.before >= 0 and number != self.before)


def _conflict(one: list[Access], other: list[Access]) -> bool:
    for of, part, writes, _ in one:
        for their_of, their_part, they_write, _ in other:
            if (
                of == their_of
                and (writes or they_write)
                and (part is None or their_part is None or part == their_part)
            ):
                return True
    return False


def _disturbs(event: Event, known: _Known) -> bool:
    """Whether a step conflicts with one that was made in another execution."""
    limit = known.limit
    if any(access.of >= limit for access in known.accesses) and any(
        access.of >= limit for access in event.accesses
    ):
        return True
    return _conflict([access for access in known.accesses if access.of < limit], event.accesses)


def _without(accesses: list[Access], locks: set[int]) -> list[Access]:
    return [access for access in accesses if access.of not in locks]


class Failure(NamedTuple):
    what: str
    schedule: list[int]
    story: str


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


def _default(run: Run, enabled: list[int], before: int, sleeping: dict[int, _Known]) -> int | None:
    """Go on with who ran; a time-out only where nobody else can run."""
    if before in enabled and before not in sleeping:
        return before
    late = None
    for number in enabled:
        if number not in sleeping:
            lock = run.tasks[number].wants_for_a_while
            if lock is None or not lock.held:
                return number
            if late is None:
                late = number
    return late


def _before(run: Run) -> int:
    """The thread that would be interrupted now, if another were chosen."""
    if not run.events:
        return -1
    task = run.tasks[run.events[-1].task]
    # While it waits, it is not interrupted.
    return -1 if task.wants_for_a_while is not None else task.number


class _Replayed:
    """Chooses as a schedule says, and then as it comes."""

    def __init__(self, schedule: list[int]) -> None:
        self._schedule = schedule

    def choose(self, run: Run, enabled: list[int]) -> int | None:
        depth = len(run.events)
        if depth >= len(self._schedule):
            return _default(run, enabled, _before(run), {})
        number = self._schedule[depth]
        if number not in enabled:
            run.fail(f"the schedule does not fit: {number} cannot run at step {depth}")
            return None
        return number

    def made(self, run: Run, event: Event) -> None:
        pass


Make = Callable[[], tuple[Callable[[], object], Callable[[Run], None]]]


class Explorer:
    """Runs a scenario along every schedule, or as many as it may."""

    #: Whether known steps sleep, where there is no bound.
    sleeps = True

    def __init__(self, sites: list[Site], bound: int | None = None, *, gil: bool = False) -> None:
        self._sites = sites
        self._bound = bound
        self._gil = gil
        self._stack: list[_Node] = []
        #: Up to here everything is as it was in the execution before.
        self._unchanged = -1

    def explore(self, make: Make, seconds: float) -> Result:
        """Explore until there is nothing more, something fails, or `seconds` have passed.

        `make` makes a fresh scenario and the check of its outcome.
        """
        start = time.monotonic()
        schedules = pruned = threads = steps = 0
        self._stack = []
        gc.collect()
        gc.disable()
        try:
            while True:
                self._unchanged = len(self._stack) - 1
                run = Run(self, self._gil)
                run.execute(*make())
                threads = max(threads, len(run.tasks))
                steps = max(steps, len(run.events))
                pruned += run.pruned
                schedules += not run.pruned
                failure = self._failure(run)
                complete = failure is None and not self._next()
                late = time.monotonic() - start
                if failure is not None or complete or late > seconds:
                    return Result(schedules, pruned, threads, steps, complete, late, failure)
                if (schedules + pruned) % 500 == 0:
                    gc.collect()
        finally:
            gc.enable()

    def replay(self, make: Make, schedule: list[int]) -> Failure | None:
        """Run along `schedule`, and then as it comes."""
        run = Run(_Replayed(schedule), self._gil)
        run.execute(*make())
        return self._failure(run)

    def _failure(self, run: Run) -> Failure | None:
        if run.failure is None:
            return None
        story = run.story(lambda site: str(self._sites[site]))
        return Failure(run.failure, [event.task for event in run.events], story)

    def _next(self) -> bool:
        """Choose the next branch; False where there is none."""
        while self._stack:
            node = self._stack[-1]
            node.done[node.chosen] = node.made
            for number in sorted(node.todo - node.done.keys() - node.sleeping.keys()):
                if self._bound is None or node.preemptions + node.cost(number) <= self._bound:
                    node.chosen = number
                    return True
            self._stack.pop()
        return False

    # As the `Chooser` of a run.

    def choose(self, run: Run, enabled: list[int]) -> int | None:
        depth = len(run.events)
        if depth < len(self._stack):
            node = self._stack[depth]
            if node.enabled != enabled:
                run.fail(f"{NOT_REPEATABLE}: {enabled} and not {node.enabled} at step {depth}")
                return None
            return node.chosen
        sleeping: dict[int, _Known] = {}
        preemptions = 0
        if depth:
            parent = self._stack[depth - 1]
            preemptions = parent.preemptions + parent.cost(parent.chosen)
            if self._bound is None and self.sleeps:
                sleeping = {
                    other: known
                    for other, known in (parent.sleeping | parent.done).items()
                    if other != parent.chosen and not _disturbs(run.events[-1], known)
                }
        before = _before(run)
        number = _default(run, enabled, before, sleeping)
        if number is not None:
            self._stack.append(_Node(enabled, number, sleeping, before, preemptions))
        return number

    def made(self, run: Run, event: Event) -> None:
        """Find the steps that could as well come after `event`."""
        depth = event.depth
        if depth < self._unchanged:
            return
        if depth < len(self._stack):
            self._stack[depth].made = _Known(event.accesses, event.limit)
        touched = {
            before
            for access in event.accesses
            for before in run.touched.get(access.of, ())
            if before < depth
        }
        known = [*event.start] + [0] * len(run.tasks)
        for before in sorted(touched, reverse=True):
            other = run.events[before]
            if other.nth <= known[other.task] or not _conflict(other.accesses, event.accesses):
                continue  # It has to come before, or may.
            locks = event.acquired & other.held.keys()
            if not locks or _conflict(other.accesses, _without(event.accesses, locks)):
                self._race(run, other, event)
            own = [*known]
            join(known, other.clock)
            for lock in locks:
                # It could not have been made before `other`, but before this.
                taken = other.held[lock]
                if taken is not None:
                    known[taken.task] = max(own[taken.task], min(known[taken.task], taken.nth - 1))

    def _race(self, run: Run, first: Event, event: Event) -> None:
        node = self._stack[first.depth]
        if self._bound is not None:
            self._add(node, event.task)
            depth = first.depth
            while depth and self._stack[depth - 1].chosen == first.task:
                depth -= 1
            self._add(self._stack[depth], event.task)
            return
        begin = _beginning(run, first, event)
        if begin & (node.todo | node.done.keys()):
            return
        begin &= set(node.enabled)
        if not begin:
            node.todo.update(node.enabled)
        else:
            node.todo.add(event.task if event.task in begin else min(begin))

    def _add(self, node: _Node, number: int) -> None:
        if number in node.enabled:
            node.todo.add(number)
        else:
            node.todo.update(node.enabled)


def _beginning(run: Run, first: Event, event: Event) -> set[int]:
    """The threads that can begin an execution in which `event` comes before `first`."""
    firsts: dict[int, Event] = {}
    begin: set[int] = set()
    for later in [*run.events[first.depth + 1 : event.depth], event]:
        clock = later.clock
        if later.task in firsts or (later is not event and _count(clock, first.task) >= first.nth):
            continue
        if all(_count(clock, task) < before.nth for task, before in firsts.items()):
            begin.add(later.task)
        firsts[later.task] = later
    return begin


def _count(clock: list[int], task: int) -> int:
    return clock[task] if task < len(clock) else 0


class _Every(Explorer):
    """Without any reduction: to check the other against."""

    sleeps = False

    def choose(self, run: Run, enabled: list[int]) -> int | None:
        number = super().choose(run, enabled)
        self._stack[len(run.events)].todo.update(enabled)
        return number

    def made(self, run: Run, event: Event) -> None:
        pass


def every_schedule(make: Make, *, gil: bool) -> None:
    """Run along every schedule."""
    _Every([], gil=gil).explore(make, 60)


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
