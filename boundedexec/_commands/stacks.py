"""What the threads of another process execute, read from its memory, for `ps`.

`sys.remote_exec` has the main thread of a process do something once that executes Python. A
main thread that waits for a lock, or is in C, does not. Then this is what can be seen, with
what Python 3.14 and newer have for `python -m asyncio ps`.
"""

from __future__ import annotations

import importlib
import linecache
from collections.abc import Iterator
from typing import Any

from .._core.describing import outside

#: Of each stack, the innermost lines.
_LINES = 4


def stacks(process: int) -> str:
    """The innermost lines of each thread's stack, outside this package; nothing where they
    cannot be read."""
    try:
        unwinder: Any = importlib.import_module("_remote_debugging").RemoteUnwinder
        found: list[Any] = unwinder(process, all_threads=True).get_stack_trace()
    except Exception:  # It has no public contract.
        return ""
    # From Python 3.15 on, by interpreter.
    threads = [thread for each in found for thread in getattr(each, "threads", [each])]
    lines = [
        f"process {process} has no answer: its main thread executes no Python."
        " What its threads execute:"
    ]
    for thread in sorted(threads, key=lambda thread: thread.thread_id):
        lines += _lines(process, thread)
    return "\n".join(lines) + "\n"


def _lines(process: int, thread: Any) -> Iterator[str]:
    yield f"  {_name(process, thread.thread_id)}"
    own = [frame for frame in thread.frame_info if outside(frame.filename)]
    for frame in own[:_LINES][::-1]:
        line = frame.lineno if hasattr(frame, "lineno") else frame.location.lineno
        words = linecache.getline(frame.filename, line).strip()
        yield f"      {frame.filename}:{line} in {frame.funcname}: {words}"


def _name(process: int, thread: int) -> str:
    """As the system calls it, for a Python thread cannot be asked for its name."""
    if process == thread:
        return "MainThread"
    try:
        with open(f"/proc/{process}/task/{thread}/comm", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return f"thread {thread}"
