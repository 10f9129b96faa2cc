"""Part 3: a storm of change notices, with and without a `Coalescer`."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from boundedexec import Coalescer

from ..screen import Screen, count
from .comparing import Limit, Times, compare, ending, new_service, seconds_shown

_KEYS = 200
_NOTICES = 20_000
_FEWEST_NOTICES = 1000
# Notices in a burst, and the pause after it in seconds: without pauses no run would start.
_WAVE = 1000
_PAUSE = 0.001
_BYTES = 1 << 16
# The share of the part's limit for a storm with one run for each notice.
_SHARE = 0.2


def storm(hashed: Sequence[str], seconds: float, screen: Screen) -> tuple[bool, Times | None]:
    """Run the storms; return whether every change was seen, and the times."""
    screen.line()
    if not hashed:
        screen.line("3. A storm of change notices: no file that could change")
        return True, None
    storms = _Storms(hashed[:: -(-len(hashed) // _KEYS)], seconds)
    number = len(storms.notices)
    screen.line(
        f"3. A storm of change notices: {number:,} for {count(len(storms.paths), 'file')}, "
        f"{_WAVE:,} at a time"
    )
    # Once before the comparison, so that both have the Service's number of slots.
    storms.with_coalescer()
    times = compare(screen, seconds, storms.with_coalescer, storms.with_pool)
    runs = statistics.median_low([outcome.runs for outcome in storms.coalesced])
    screen.line(
        f"   Coalescer on a Service: {number:,} submits, {count(runs, 'run')}, "
        f"{seconds_shown(times.service)}"
    )
    screen.line(
        f"   ThreadPoolExecutor:     {number:,} submits, "
        f"{count(storms.plain[-1].runs, 'run')}, {times.pool_shown()}, "
        f"{count(times.rounds, 'round')} each"
    )
    return _report(storms.coalesced, screen), times


def _report(coalesced: Sequence[_Outcome], screen: Screen) -> bool:
    """Say whether every change was seen, and return it."""
    stale = sum(outcome.stale for outcome in coalesced)
    missed = sum(outcome.missed for outcome in coalesced)
    if stale or missed:
        screen.line(
            f"   BROKEN: {count(missed, 'file')} whose last run missed the last change, "
            f"{count(stale, 'notice')} with a result from before the change"
        )
        return False
    screen.line(
        f"   checked in {count(len(coalesced), 'storm')}: each file's last run saw its "
        "last change, and each notice got a result that had seen its own"
    )
    return True


class _Storms:
    """The same storm again and again, with a run for every notice and with fewer."""

    def __init__(self, paths: Sequence[str], seconds: float) -> None:
        self.paths = paths
        start = time.perf_counter()
        for path in paths:
            _read_start(path)
        each = (time.perf_counter() - start) / len(paths)
        number = max(_FEWEST_NOTICES, min(_NOTICES, int(seconds * _SHARE / each)))
        # A few files change often, most of them rarely.
        hotness = [1 / place for place in range(1, len(paths) + 1)]
        self.notices = random.Random(0).choices(paths, hotness, k=number)
        self.coalesced: list[_Outcome] = []
        self.plain: list[_Outcome] = []
        self._slots: int | None = None

    def with_coalescer(self) -> float:
        """Submit each notice to a `Coalescer`; return the seconds."""
        with ending(new_service(), Limit(math.inf)) as service:
            self._slots = service.max_workers
            coalescer: Coalescer[str] = Coalescer(service)
            outcome = self._run(lambda index, path: coalescer.submit(path, index.body, path))
        self.coalesced.append(outcome)
        return outcome.seconds

    def with_pool(self) -> float:
        """Submit each notice to a pool; return the seconds."""
        with ending(ThreadPoolExecutor(self._slots), Limit(math.inf)) as pool:
            outcome = self._run(lambda index, path: pool.submit(index.body, path))
        self.plain.append(outcome)
        return outcome.seconds

    def _run(self, submit: Callable[[_Index, str], Future[int]]) -> _Outcome:
        index = _Index(self.paths)
        start = time.perf_counter()
        results: list[tuple[int, Future[int]]] = []
        for number, path in enumerate(self.notices, 1):
            index.changes[path] += 1
            results.append((index.changes[path], submit(index, path)))
            if number % _WAVE == 0:
                time.sleep(_PAUSE)
        stale = sum(future.result() < change for change, future in results)
        seconds = time.perf_counter() - start
        return _Outcome(seconds, len(index.runs), stale, index.missed())


@dataclasses.dataclass(frozen=True)
class _Outcome:
    seconds: float
    runs: int
    # Notices whose result came from a run that had not seen their change.
    stale: int
    # Files whose last run had not seen their last change.
    missed: int


class _Index:
    """For each file the number of its changes, and which of them the last run saw."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.changes = dict.fromkeys(paths, 0)
        self.last_seen = dict.fromkeys(paths, 0)
        # Many threads append, which is atomic.
        self.runs: list[str] = []

    def body(self, path: str) -> int:
        """Index `path`; return which of its changes this run saw."""
        self.runs.append(path)
        seen = self.changes[path]
        _read_start(path)
        self.last_seen[path] = seen
        return seen

    def missed(self) -> int:
        """Return the number of files whose last run did not see the last change."""
        return sum(self.last_seen[path] != number for path, number in self.changes.items())


def _read_start(path: str) -> None:
    try:
        with open(path, "rb", buffering=0) as file:
            hashlib.sha256(file.read(_BYTES)).digest()
    except OSError:
        # The file was there in part 1. A run for a file that has gone counts like any other.
        pass
