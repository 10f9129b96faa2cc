"""The rows of the benchmark: what each does, on which sides, and its target.

A row is measured in one go and may give several figures; each is a line of the
table. Where the sides of a row do not run the same code, its `what` says how
they differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial

from .. import Service
from . import work
from .work import Figures, Floor, Pool


class Side(Enum):
    """Who does the work."""

    STDLIB = "stdlib"
    SERVICE = "service"
    FLOOR = "floor"


class Kind(Enum):
    """What a target bounds."""

    RATIO = "ratio at most"
    """The median over the pairs of Service to stdlib."""

    LIMIT = "at most"
    """The median of the Service's own figure."""

    NEVER_ABOVE = "never above"
    """The greatest of the Service's own figures."""

    AT_LEAST = "at least"
    """The median of the Service's own figure, from below."""


@dataclass(frozen=True)
class Line:
    """One figure of a row: a line of the table."""

    figure: str
    unit: str
    kind: Kind
    target: float
    label: str = ""
    """What tells the line from the others of its row."""


@dataclass(frozen=True)
class Row:
    """What is measured in one go."""

    name: str
    what: str
    size: int
    """How many operations one measurement does."""
    sides: Mapping[Side, Callable[[int], Figures]]
    lines: tuple[Line, ...]
    times: int = 1
    """How many times as many pairs as asked for: more where single pairs differ by
    about as much as the target is away from what is to be expected."""

    def scaled(self, scale: float) -> int:
        """Return how many operations a measurement does at `scale`, at least one."""
        return max(1, round(self.size * scale))


def _same_code(
    measure: Callable[[Pool, int], Figures], *, floor: bool = False
) -> Mapping[Side, Callable[[int], Figures]]:
    """Return sides that differ by the class of the executor and by nothing else."""
    sides: dict[Side, Callable[[int], Figures]] = {
        Side.STDLIB: partial(measure, ThreadPoolExecutor),
        Side.SERVICE: partial(measure, Service),
    }
    if floor:
        sides[Side.FLOOR] = partial(measure, Floor)
    return sides


def _time(unit: str, target: float, label: str = "") -> Line:
    return Line("time", unit, Kind.RATIO, target, label)


def _throughput(workers: int) -> Row:
    several = f"{workers} workers" if workers > 1 else "1 worker"
    return Row(
        name=f"throughput-{workers}",
        what=f"100,000 no-op submissions, futures kept, then all results; {several}",
        size=100_000,
        sides=_same_code(partial(work.throughput, workers=workers), floor=True),
        lines=(_time("µs", 0.20),),
    )


def _twenty_yields(count: int) -> Figures:
    # A yield is so much shorter than a round trip that as many of them would
    # be over before they could be timed well.
    return work.yield_slot(20 * count)


_ALWAYS = (
    _throughput(1),
    _throughput(8),
    _throughput(32),
    Row(
        name="throughput-real",
        what="the same on 8 workers with two arguments, a keyword and a context of five "
        "variables; the stdlib does not carry the context, Service does",
        size=100_000,
        sides=_same_code(work.throughput_real, floor=True),
        lines=(_time("µs", 0.25),),
    ),
    Row(
        name="submit",
        what="one submit while all 8 workers are blocked; 100,000 of them, futures kept",
        size=100_000,
        sides=_same_code(work.submit),
        lines=(_time("µs", 0.15),),
    ),
    Row(
        name="memory",
        what="resident bytes per pending submission, 200,000 pending, futures kept",
        size=200_000,
        sides=_same_code(work.memory),
        lines=(Line("memory", "bytes", Kind.RATIO, 0.15),),
    ),
    Row(
        name="memory-real",
        what="the same with two arguments, a keyword and a context of five variables; "
        "the stdlib does not carry the context, Service does",
        size=200_000,
        sides=_same_code(work.memory_real),
        lines=(Line("memory", "bytes", Kind.RATIO, 0.30),),
    ),
    Row(
        name="million",
        what="1,000,000 queued behind 8 blocked bodies, futures kept, then all done",
        size=1_000_000,
        sides=_same_code(work.million),
        lines=(
            _time("s", 0.15, "wall"),
            Line("peak", "MB", Kind.RATIO, 0.15, "peak memory"),
            Line("threads", "threads", Kind.NEVER_ABOVE, 9, "threads"),
        ),
    ),
    Row(
        name="cancel",
        what="cancel() of 100,000 queued submissions",
        size=100_000,
        sides=_same_code(work.cancel),
        lines=(_time("µs", 0.60),),
    ),
    Row(
        name="round-trip",
        what="submit(f).result(), 5,000 in a row, 8 workers",
        size=5_000,
        sides=_same_code(work.round_trip, floor=True),
        lines=(_time("µs", 0.65),),
        times=3,
    ),
    Row(
        name="burst",
        what="32 submissions at once onto 32 parked workers, then all results; 200 bursts",
        size=200,
        sides=_same_code(work.burst),
        lines=(_time("µs", 0.70),),
        times=3,
    ),
    Row(
        name="map",
        what="list(map(f, range(50_000))), 8 workers",
        size=50_000,
        sides=_same_code(work.map_range, floor=True),
        lines=(_time("µs", 0.35),),
    ),
    Row(
        name="wait",
        what="50,000 no-op submissions, then concurrent.futures.wait for all; 8 workers",
        size=50_000,
        sides=_same_code(work.wait_for_all, floor=True),
        lines=(_time("µs", 0.60),),
    ),
    Row(
        name="as-completed",
        what="50,000 no-op submissions, each taken from concurrent.futures.as_completed; 8 workers",
        size=50_000,
        sides=_same_code(work.take_as_completed, floor=True),
        lines=(_time("µs", 0.60),),
    ),
    Row(
        name="fan-out",
        what="400 bodies of time.sleep(0.01) on 32 workers",
        size=400,
        sides=_same_code(work.fan_out),
        lines=(_time("ms", 1.02),),
        times=3,
    ),
    Row(
        name="http",
        what="2,000 small HTTP GETs, a connection each, to a server in another process on "
        "127.0.0.1; 32 workers",
        size=2_000,
        sides=_same_code(work.http_gets),
        lines=(_time("ms", 0.97),),
        times=3,
    ),
    Row(
        name="asyncio",
        what="20,000 calls of loop.run_in_executor gathered, 8 workers",
        size=20_000,
        sides=_same_code(work.asyncio_gather),
        lines=(_time("µs", 0.75),),
        times=3,
    ),
    Row(
        name="fresh",
        what="an executor of 4 workers made, four no-ops, shut down; 200 of them",
        size=200,
        sides=_same_code(work.fresh),
        lines=(_time("µs", 0.70),),
        times=3,
    ),
    Row(
        name="unbounded",
        what="2,000 bodies blocked at once on Service.unbounded(), started, let go and "
        "its threads gone; against 2,000 bare threading.Thread, started, let go and joined",
        size=2_000,
        sides={
            Side.STDLIB: work.unbounded_threads,
            Side.SERVICE: work.unbounded_service,
        },
        lines=(_time("ms", 1.00),),
        times=3,
    ),
    Row(
        name="nested",
        what="2,000 bodies that each wait for a submission of their own, 8 workers; against "
        "4,000 submissions that wait for none, because the stdlib hangs with the nested ones",
        size=2_000,
        sides={Side.STDLIB: work.nested_stdlib, Side.SERVICE: work.nested_service},
        lines=(
            _time("ms", 1.00, "wall"),
            Line("threads", "threads", Kind.NEVER_ABOVE, 24, "threads"),
        ),
        times=3,
    ),
    Row(
        name="coalesced",
        what="one Coalescer.submit on a running key, 100,000 of them, futures kept; against "
        "one stdlib submit while all workers are blocked",
        size=100_000,
        sides={
            Side.STDLIB: partial(work.submit, ThreadPoolExecutor),
            Side.SERVICE: work.coalesced_submit,
        },
        lines=(
            _time("µs", 0.12, "time"),
            # Whatever a submit left behind would take a pointer, eight bytes,
            # and more; half of one allows for a page here and there.
            Line("memory", "bytes", Kind.LIMIT, 4, "memory"),
        ),
    ),
    Row(
        name="yield",
        what="one yield_slot(f) with nobody waiting, in a body on 8 workers, 100,000 of them; "
        "against one submit(f).result() of the stdlib",
        size=5_000,
        sides={
            Side.STDLIB: partial(work.round_trip, ThreadPoolExecutor),
            Side.SERVICE: _twenty_yields,
        },
        lines=(_time("µs", 0.06),),
    ),
    Row(
        name="idle",
        what="processor time of 32 parked threads over 5 s",
        size=50,
        sides=_same_code(work.idle),
        lines=(Line("time", "ms", Kind.LIMIT, 10),),
    ),
    Row(
        name="import",
        what="processor time of import boundedexec, compiled, in a fresh interpreter that has "
        "imported concurrent.futures.thread; beside that of concurrent.futures.thread itself, "
        "in one that has imported concurrent.futures",
        size=3,
        sides={
            Side.STDLIB: partial(
                work.import_module,
                module="concurrent.futures.thread",
                after="concurrent.futures",
            ),
            Side.SERVICE: partial(
                work.import_module,
                module="boundedexec",
                after="concurrent.futures.thread",
            ),
        },
        lines=(Line("time", "ms", Kind.LIMIT, 12),),
    ),
)

_FREE_THREADED = (
    Row(
        name="free-scaling",
        what="four bodies that only compute: how many times as fast on two workers as on one",
        size=5_000_000,
        sides=_same_code(work.scaling),
        lines=(Line("speed-up", "times", Kind.AT_LEAST, 1.8),),
    ),
    Row(
        name="free-throughput",
        what="throughput-8, which without a GIL must not be below the stdlib's",
        size=100_000,
        sides=_same_code(partial(work.throughput, workers=8)),
        lines=(_time("µs", 1.00),),
    ),
)


def free_threaded() -> bool:
    """Return whether this interpreter runs without a GIL now."""
    gil_enabled: Callable[[], bool] | None = getattr(sys, "_is_gil_enabled", None)
    return gil_enabled is not None and not gil_enabled()


def all_rows() -> tuple[Row, ...]:
    """Return the rows that this interpreter has, in the order of the table."""
    return _ALWAYS + _FREE_THREADED if free_threaded() else _ALWAYS
