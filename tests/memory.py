"""Each allocation of each call fails, one after the other: nothing is lost.

    python tests/memory.py [--to N] [USE ...]

CPython itself crashes at some allocations that fail, and where a thread has not come to
its first line it may stop for ever (without a GIL) or end without a word (3.10): such a
place is skipped, and counted. Needs `_testcapi`.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boundedexec
from boundedexec import Coalescer, Service

LIMIT = 10.0
#: The exit status where CPython ended a thread before its first line.
THREAD_LOST = 77


class Attempt:
    """One service, on which one call is made while an allocation fails."""

    def __init__(self) -> None:
        self.service = Service(1, daemon=True)
        self.coalescer: Coalescer[str] = Coalescer(self.service)
        self.futures: list[Any] = []

    def submit(self) -> None:
        self.futures.append(self.service.submit(int))

    def result(self) -> None:
        self.submit()
        self.futures[-1].result(LIMIT)

    def cancel(self) -> None:
        self.submit()
        self.futures[-1].cancel()

    def block_till_done(self) -> None:
        self.service.block_till_done(LIMIT)

    def coalesce(self) -> None:
        self.futures.append(self.coalescer.submit("key", int))

    def yield_slot(self) -> None:
        self.futures.append(self.service.submit(self.service.yield_slot, int))
        self.futures[-1].exception(LIMIT)

    def nested(self) -> None:
        self.futures.append(self.service.submit(lambda: self.service.submit(int).result()))
        self.futures[-1].exception(LIMIT)

    def check(self) -> None:
        assert self.service.block_till_done(LIMIT), "outstanding"
        assert self.service.submit(int).result(LIMIT) == 0
        assert all(future.done() for future in self.futures), "a future is not over"
        assert len(self.coalescer) == 0, "a key is left"
        assert self.coalescer.submit("key", int).result(LIMIT) == 0


USES: dict[str, Callable[[Attempt], None]] = {
    "submit": Attempt.submit,
    "result": Attempt.result,
    "cancel": Attempt.cancel,
    "block_till_done": Attempt.block_till_done,
    "coalesce": Attempt.coalesce,
    "yield_slot": Attempt.yield_slot,
    "nested": Attempt.nested,
}


def end_if_thread_lost(_: sys.UnraisableHookArgs) -> None:
    if threading.get_ident() not in {thread.ident for thread in threading.enumerate()}:
        os._exit(THREAD_LOST)


def run(use: str, first: int, last: int) -> None:
    """In a process of its own: say where each attempt is, and check after each."""
    import _testcapi  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    testcapi: Any = _testcapi
    # What CPython says of it is not what is asked here.
    threading.excepthook = lambda _: None
    sys.unraisablehook = end_if_thread_lost
    for at in range(first, last):
        print(at, flush=True)
        faulthandler.dump_traceback_later(4 * LIMIT, exit=True)
        attempt = Attempt()
        if at % 2:
            attempt.service.submit(int).result()
        try:
            testcapi.set_nomemory(at, at + 1)
            try:
                USES[use](attempt)
            except (MemoryError, RuntimeError):
                pass  # "can't allocate lock" is a RuntimeError.
            finally:
                testcapi.remove_mem_hooks()
            attempt.check()
        except BaseException:
            faulthandler.dump_traceback()
            raise
    print("done", flush=True)
    os._exit(0)


def sweep(use: str, last: int) -> int:
    """Have each of `last` allocations fail. Returns how many CPython did not survive."""
    first = crashes = 0
    while first < last:
        done = subprocess.run(
            [sys.executable, __file__, "--run", use, str(first), str(last)],
            env={**os.environ, "PYTHONPATH": str(Path(boundedexec.__file__).parents[1])},
            capture_output=True,
            text=True,
        )
        if done.stdout.endswith("done\n"):
            break
        at = int(done.stdout.split()[-1])
        stuck = "Timeout (" in done.stderr and "<no Python frame>" in done.stderr
        survived = done.returncode >= 0 and done.returncode != THREAD_LOST and not stuck
        assert not survived, f"{use}, allocation {at}: {done.stderr}"
        crashes += 1
        first = at + 1
    return crashes


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", type=int, default=200)
    parser.add_argument("--run", nargs=3)
    parser.add_argument("uses", nargs="*", default=[*USES])
    arguments = parser.parse_args()
    if arguments.run:
        use, first, last = arguments.run
        run(use, int(first), int(last))
    for use in arguments.uses:
        crashes = sweep(use, arguments.to)
        print(
            f"{use:16} {arguments.to} allocations failed, one each time:"
            f" nothing lost; CPython did not survive {crashes}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
