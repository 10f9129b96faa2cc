"""Executors for blocking work, for wherever `ThreadPoolExecutor` stands today."""

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
from ._core.pool import QueueFull
from ._core.waits import as_completed, wait
from .coalescer import Coalescer
from .drop_in import ThreadPoolExecutor
from .installing import install, installed
from .service import Service

if TYPE_CHECKING:
    # So that annotations and lists of futures mean the same before and after the change.
    from concurrent.futures import Future
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
    "ThreadPoolExecutor",
    "TimeoutError",
    "as_completed",
    "install",
    "installed",
    "wait",
]

for _public in (
    Coalescer,
    DeadlockError,
    Future,
    QueueFull,
    Service,
    ThreadPoolExecutor,
    as_completed,
    install,
    installed,
    wait,
):
    # Where users find them, and what tracebacks and docs should say.
    _public.__module__ = __name__
