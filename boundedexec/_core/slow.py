"""What takes long is logged, once, while it does: bodies, and waits for a slot.

One thread looks after all services that asked for it (`slow_after`), four times in the
shortest of their limits. It ends when the last of them is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from itertools import repeat
from typing import Any, TypeAlias

from .describing import describe, describe_call
from .locking import locked
from .slots import queue_now
from .stacks import current_frames, stack
from .state import Slots, Worker
from .submission import PENDING, SECOND, Submission, clock

#: A worker and the serial of what it executes.
_Body: TypeAlias = tuple[Worker, int]

_logger = logging.getLogger("boundedexec")
#: Of a stack, the innermost lines; and how many bodies that hold slots are named.
_LINES = 20
_HOLDERS = 4
#: The shortest time between two looks, in seconds.
_SHORTEST = 0.005


class _Watched:
    """A service, and what of it was logged."""

    def __init__(self, slots: Slots, limit: float) -> None:
        self.slots = weakref.ref(slots)
        self.limit = limit
        #: The bodies that executed at the last look: when each began, at the latest; and which
        #: of them were logged.
        self._began: dict[_Body, int] = {}
        self._logged: set[_Body] = set()
        #: When the latest of the queue that were logged was submitted.
        self._queued_logged = 0

    def look(self, slots: Slots) -> None:
        now = clock()
        before = now - int(self.limit * SECOND)
        found = {body: since for body, since in map(_body, _workers(slots), repeat(now)) if since}
        self._began = {body: min(found[body], self._began.get(body, now)) for body in found}
        self._logged.intersection_update(found)
        for body, since in self._began.items():
            if since < before and body not in self._logged:
                self._logged.add(body)
                self._log_body(body[0], (now - since) / SECOND)
        late = [f for f in _queued_before(slots, before) if f.serial > self._queued_logged]
        if late:
            self._queued_logged = max(future.serial for future in late)
            self._log_queued(slots, late)

    def _log_body(self, worker: Worker, seconds: float) -> None:
        lines = stack(current_frames().get(worker.ident or 0), _LINES)
        _warn(
            "a body has run for %.1f s: %s\n%s",
            seconds,
            describe(worker, None),
            "\n".join(f"  {line}" for line in lines),
        )

    def _log_queued(self, slots: Slots, late: list[Submission[Any]]) -> None:
        first = late[0]
        call = describe_call(first.callee(), first)
        holders = [worker for worker in _workers(slots) if worker.slot and worker.fn is not None]
        words = [describe(worker, None) for worker in holders[:_HOLDERS]]
        if len(holders) > _HOLDERS:
            words.append(f"and {len(holders) - _HOLDERS} more")
        _warn(
            "waiting more than %.1f s for a slot: %d, the first is %s; the slots are held by %s",
            self.limit,
            len(late),
            call,
            ", ".join(words) or "no body",
        )


def _warn(message: str, *args: object) -> None:
    with contextlib.suppress(Exception):  # A broken handler of `logging`.
        _logger.warning(message, *args)


def _body(worker: Worker, now: int) -> tuple[_Body, int]:
    """What it executes, and when that began, at the latest; 0 where it executes nothing."""
    future = worker.future
    if future is None or worker.fn is None:
        return (worker, 0), 0
    # Read in this order. Several that take no time share `since`, and then it says too little.
    since = worker.since
    return (worker, future.serial), since if worker.burst == 1 else now


def _workers(slots: Slots) -> list[Worker]:
    return locked(lambda: list(slots.workers))


def _queued_before(slots: Slots, before: int) -> list[Submission[Any]]:
    late: list[Submission[Any]] = []
    for future in queue_now(slots):
        if future.serial >= before:
            break
        if future.state is PENDING:
            late.append(future)
    return late


class _Watcher:
    """The thread, there while a service is."""

    def __init__(self) -> None:
        self.watched: dict[int, _Watched] = {}
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, slots: Slots, limit: float) -> None:
        with self._lock:
            self.watched[id(slots)] = _Watched(slots, limit)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="boundedexec-slow")
                self._thread.daemon = True
                self._thread.start()

    def _run(self) -> None:
        while self._goes_on():
            shortest = min((each.limit for each in list(self.watched.values())), default=1.0)
            time.sleep(max(shortest / 4, _SHORTEST))
            for key, each in list(self.watched.items()):
                slots = each.slots()
                if slots is None or (slots.ending and not slots.workers):
                    self.watched.pop(key, None)
                else:
                    each.look(slots)
                del slots

    def _goes_on(self) -> bool:
        with self._lock:
            if not self.watched:
                self._thread = None
            return self._thread is not None


_watcher = _Watcher()


def watch(slots: Slots, limit: float) -> None:
    """Have what takes longer than `limit` seconds on `slots` logged."""
    global _watcher
    if _watcher.process != os.getpid():  # In a forked child its thread is not there.
        _watcher = _Watcher()
    _watcher.add(slots, limit)
