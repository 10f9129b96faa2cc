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

from .coalescer import Coalescer
from .drop_in import ThreadPoolExecutor
from .futures import Future
from .installing import install, installed
from .service import Service
from .waiting import DeadlockError, as_completed, wait

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
    Service,
    ThreadPoolExecutor,
    as_completed,
    install,
    installed,
    wait,
):
    # Where users find them, and what tracebacks and docs should say.
    _public.__module__ = __name__
