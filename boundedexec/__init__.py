"""Executors for blocking work: bounded in what runs, never in what is submitted.

A *body* is a submitted callable while it executes. A *slot* is the right to execute: a
`Service(8)` has eight. `submit` queues, and never blocks. A body holds a slot until it ends.
While it waits for a queued submission it lends its slot to that one, so submissions may wait
for each other; for other waits it can give its slot away (`yield_slot`).

Executors:
    Service             the executor, with defaults for new code
    ThreadPoolExecutor  a Service with the stdlib's defaults, and an instance of its class
    QueueFull           raised by `submit` at `max_queued`; a RuntimeError
    DeadlockError       raised by a wait that could never end; a RuntimeError

Futures:
    Future              what `submit` returns; only the stdlib's methods are public
    wait, as_completed  the stdlib's, lending the slot of the body that waits

On any executor:
    Coalescer           at most one run per key in flight
    TaskGroup           a part of the work, waited for, cancelled and collected as one

To look inside:
    Stats               what `Service.stats` returns: numbers
    Task                what `Service.tasks` lists: one outstanding submission
    Trace               records what services do, and draws a timeline
    dump                writes what all services do
    dump_on_signal      has this process write that when it gets a signal
    debug               has a failure that nobody read be logged with where it was submitted

For existing programs:
    install, installed  have `concurrent.futures` mean this package

The stdlib's, unchanged: ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, BrokenExecutor,
BrokenThreadPool, CancelledError, InvalidStateError, TimeoutError.
"""

import importlib
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    InvalidStateError,
    TimeoutError,
)
from concurrent.futures.thread import BrokenThreadPool
from typing import TYPE_CHECKING

from ._core.blocking import DeadlockError
from ._core.pool import QueueFull, debug
from ._core.waits import as_completed, wait
from .drop_in import ThreadPoolExecutor
from .service import Service

if TYPE_CHECKING:
    # So that annotations and lists of futures mean the same before and after the change.
    from concurrent.futures import Future

    from ._core.stats import Stats
    from ._core.tasks import Task
    from .asking import dump_on_signal
    from .coalescer import Coalescer
    from .dumping import dump
    from .groups import TaskGroup
    from .installing import install, installed
    from .trace import Trace
else:
    from ._core.future import Future

__version__ = "0.1.0"

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "BrokenExecutor",
    "BrokenThreadPool",
    "CancelledError",
    "Coalescer",
    "DeadlockError",
    "Future",
    "InvalidStateError",
    "QueueFull",
    "Service",
    "Stats",
    "Task",
    "TaskGroup",
    "ThreadPoolExecutor",
    "TimeoutError",
    "Trace",
    "as_completed",
    "debug",
    "dump",
    "dump_on_signal",
    "install",
    "installed",
    "wait",
]

for _public in (
    DeadlockError,
    Future,
    QueueFull,
    Service,
    ThreadPoolExecutor,
    as_completed,
    debug,
    wait,
):
    # Where users find them, and what tracebacks and docs should say.
    _public.__module__ = __name__


#: What is loaded when somebody asks for it: keys, groups, and what looks inside.
_LATER = {
    "Coalescer": "coalescer",
    "Stats": "_core.stats",
    "Task": "_core.tasks",
    "TaskGroup": "groups",
    "Trace": "trace",
    "dump": "dumping",
    "dump_on_signal": "asking",
    "install": "installing",
    "installed": "installing",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    found.__module__ = __name__
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
