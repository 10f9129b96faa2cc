"""dump: what runs, what waits and for what, for a person to read.

It takes the lock of the core's slow path and none of the program's, so it answers while
every slot is stuck. Loaded when somebody asks.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import TextIO

from ._core.pool import living
from ._core.reporting import name_of
from ._core.slots import queue_now
from ._core.stacks import current_frames, stack
from ._core.state import Slots
from ._core.stats import Stats, stats
from ._core.tasks import Task, executing, to_tasks

#: Of each stack, the innermost lines.
_LINES = 4
#: How many callables the queue is counted by.
_CALLABLES = 10


def dump(file: TextIO | None = None) -> None:
    """Write what all services of this process do to `file`, by default standard error.

    For each: its `stats`; the bodies, the longest running first, with the innermost lines
    of their stacks outside this package; who waits for whom; the queue, counted by callable.
    Where there is no service, it says so. May be called from anywhere; never waits for what a
    body does. Calls the `__repr__` of arguments, under no lock. Raises what writing raises.
    """
    services = living()
    if not services:
        print("no service", file=sys.stderr if file is None else file)
    for slots in services:
        dump_one(slots, file)


def dump_one(slots: Slots, file: TextIO | None = None) -> None:
    """`dump` of one service."""
    text = "\n".join(_lines(slots)) + "\n"
    print(text, end="", file=sys.stderr if file is None else file, flush=True)


def _lines(slots: Slots) -> Iterator[str]:
    yield f"{slots.settings.prefix}: {_in_words(stats(slots))}"
    bodies = to_tasks(executing(slots))
    frames = current_frames() if bodies else {}
    for task in sorted(bodies, key=lambda task: -task.seconds):
        yield f"  {_title(task)}, on {task.thread_name}"
        if task.thread_ident is not None:
            for line in stack(frames.get(task.thread_ident), _LINES):
                yield f"      {line}"
    waits = list(_waits(bodies))
    if waits:
        yield "  who waits for whom"
        yield from waits
    calls = (future.callee() for future in queue_now(slots))
    queued = Counter(name_of(fn) for fn in calls if fn is not None)
    if queued:
        yield "  queued"
        for name, count in queued.most_common(_CALLABLES):
            yield f"    {count:,} of {name}"
        if len(queued) > _CALLABLES:
            yield f"    and of {len(queued) - _CALLABLES:,} other callables"


def _in_words(now: Stats) -> str:
    bound = "no bound" if now.bound is None else _counted(now.bound, "slot")
    words = f"{bound}, {now.running:,} running"
    if now.lent or now.resuming:
        words += f" ({now.lent:,} lending, {now.resuming:,} resuming)"
    words += f", {now.queued:,} queued"
    if now.queued:
        words += f" (the first for {now.longest_wait:.1f} s)"
    words += f", {_counted(now.threads, 'thread')} ({now.idle_threads:,} idle)"
    words += f"; {now.completed:,} completed, {now.failed:,} failed, {now.cancelled:,} cancelled"
    if now.refused:
        words += f", {now.refused:,} refused"
    if now.seconds_since_completion is not None:
        words += f", the last {now.seconds_since_completion:.1f} s ago"
    return words


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def _title(task: Task) -> str:
    key = "" if task.key is None else f" of key {task.key!r:.40}"
    return f"#{task.number} {task.name}{task.arguments}{key}: {task.state} {task.seconds:.1f} s"


def _waits(bodies: list[Task]) -> Iterator[str]:
    """A tree: beneath each body what it waits for. What waits for nothing, and nobody waits
    for, is not in it."""
    by_number = {task.number: task for task in bodies}
    awaited = {number for task in bodies for number in task.waits_for}
    roots = [task for task in bodies if task.waits_for and task.number not in awaited]
    # In a circle everything is awaited.
    for root in roots or [task for task in bodies if task.waits_for][:1]:
        stack = [(root.number, 2)]
        shown: set[int] = set()
        while stack:
            number, depth = stack.pop()
            task = by_number.get(number)
            words = f"#{number} queued" if task is None else f"#{number} {task.name}: {task.state}"
            yield "  " * min(depth, 20) + words
            if task is not None and number not in shown:
                shown.add(number)
                stack += [(each, depth + 1) for each in reversed(task.waits_for)]
