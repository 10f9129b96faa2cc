"""Arguments are checked at the call, in the same words everywhere."""

from __future__ import annotations

import operator
import os
import threading
from typing import Any


def checked_bound(max_workers: Any) -> int | None:
    if max_workers is None:
        return 4 * _usable_cpus()
    bound = checked_integer("max_workers", max_workers)
    return bound if bound > 0 else None


def checked_integer(name: str, value: Any, least: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if least is not None and number < least:
        raise ValueError(f"{name} must be {least} or more, not {value!r}")
    return number


def checked_seconds(name: str, value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be seconds or None, not {value!r}")
    if not value >= 0:
        raise ValueError(f"{name} must be 0 or more seconds, not {value!r}")
    return min(float(value), threading.TIMEOUT_MAX)


def check_timeout(timeout: Any) -> None:
    try:
        comparable = timeout is None or timeout == timeout + 0.0
    except TypeError:
        raise TypeError(f"timeout must be seconds or None, not {timeout!r}") from None
    except OverflowError:
        raise ValueError("timeout must be seconds or None, not an int past all floats") from None
    if not comparable:
        raise ValueError("timeout must be seconds or None, not nan")


def checked_timeout(timeout: Any) -> float | None:
    """Of what is this package's alone: no bool, which the stdlib's functions accept."""
    if isinstance(timeout, bool):
        raise TypeError(f"timeout must be seconds or None, not {timeout!r}")
    check_timeout(timeout)
    return None if timeout is None else float(timeout)


def check_executor(who: str, executor: object) -> None:
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        raise TypeError(f"{who} needs an executor with submit, not {executor!r}")


def check_buffersize(buffersize: object) -> None:
    # In the words of Python 3.14.
    if buffersize is not None:
        if not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize < 1:
            raise ValueError("buffersize must be None or > 0")


def _usable_cpus() -> int:
    process_cpu_count = getattr(os, "process_cpu_count", None)
    if process_cpu_count is not None:
        return process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
