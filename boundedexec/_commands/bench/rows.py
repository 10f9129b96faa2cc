"""The rows of the benchmark: what each does, on which sides, and its target.

One measurement of a row may give several figures; each is a line of the table. Where
the sides of a row do not run the same code, its `what` says how they differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ... import Service
from . import submitting, system, waiting
from .row import Kind, Line, Measurement, Row, Side
from .tools import Figures, Floor, Pool


def _same_code(
    measure: Callable[[Pool, int], Figures], *, floor: bool = False
) -> Mapping[Side, Measurement]:
    """Return sides that differ only in the class of the executor."""
    sides: dict[Side, Measurement] = {
        Side.STDLIB: partial(measure, ThreadPoolExecutor),
        Side.SERVICE: partial(measure, Service),
    }
    if floor:
        sides[Side.FLOOR] = partial(measure, Floor)
    return sides


def _time(unit: str, target: float, label: str = "", *, without_gil: float | None = None) -> Line:
    return Line("time", unit, Kind.RATIO, target, label, without_gil)


def _growth(target: float, label: str = "") -> Line:
    return Line("growth", "times", Kind.LIMIT, target, label)


_SWITCHES = Line("switches", "switches", Kind.INFORMATIVE, label="switches")


def _throughput(workers: int) -> Row:
    several = f"{workers} workers" if workers > 1 else "1 worker"
    return Row(
        name=f"throughput-{workers}",
        what=f"100,000 no-op submissions, futures kept, then all results; {several}",
        size=100_000,
        sides=_same_code(partial(submitting.throughput, workers=workers), floor=True),
        lines=(_time("µs", 0.20),),
    )


def _chain(name: str, on: str, service: Measurement) -> Row:
    return Row(
        name=name,
        what=f"a chain of 400 bodies, each of which submits the next one and waits for it, {on}; "
        "against a stdlib pool of 400 workers; first: on a new executor, which includes starting "
        "its threads; again: on the same one; doubling: the cost of a level in a chain of 800 "
        "again, divided by that in a chain of 400",
        size=400,
        sides={Side.STDLIB: waiting.chain_stdlib, Side.SERVICE: service},
        lines=(
            Line("first", "ms", Kind.RATIO, 1.50, "first"),
            Line("again", "ms", Kind.RATIO, 1.50, "again"),
            _growth(2.00, "doubling"),
        ),
        times=3,
    )


def _twenty_yields(count: int) -> Figures:
    # A yield is much shorter than a round trip: the same number of them would be over
    # too soon to be timed well.
    return waiting.yield_slot(20 * count)


_ALWAYS = (
    _throughput(1),
    _throughput(8),
    _throughput(32),
    Row(
        name="throughput-real",
        what="the same on 8 workers with two arguments, a keyword and a context of five "
        "variables; the stdlib does not carry the context, Service does",
        size=100_000,
        sides=_same_code(submitting.throughput_real, floor=True),
        lines=(_time("µs", 0.25),),
    ),
    Row(
        name="submit",
        what="one submit while all 8 workers are blocked; 100,000 of them, futures kept",
        size=100_000,
        sides=_same_code(submitting.submit),
        lines=(_time("µs", 0.15),),
    ),
    Row(
        name="memory",
        what="resident bytes per pending submission, 200,000 pending, futures kept",
        size=200_000,
        sides=_same_code(submitting.memory),
        lines=(Line("memory", "bytes", Kind.RATIO, 0.15),),
    ),
    Row(
        name="memory-real",
        what="the same with two arguments, a keyword and a context of five variables; "
        "the stdlib does not carry the context, Service does",
        size=200_000,
        sides=_same_code(submitting.memory_real),
        lines=(Line("memory", "bytes", Kind.RATIO, 0.30),),
    ),
    Row(
        name="million",
        what="1,000,000 queued behind 8 blocked bodies, futures kept, then all done",
        size=1_000_000,
        sides=_same_code(submitting.million),
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
        sides=_same_code(submitting.cancel),
        lines=(_time("µs", 0.60, without_gil=0.70),),
    ),
    Row(
        name="cancel-beside",
        what="cancel() of 4,000 finished futures while 1,000 other bodies of their executor run; "
        "the figure is its processor time divided by that with none running",
        # The bodies that run.
        size=1_000,
        sides=_same_code(submitting.cancel_beside_running),
        lines=(_growth(1.50),),
    ),
    Row(
        name="round-trip",
        what="submit(f).result(), 5,000 in a row, 8 workers; switches: how often threads of the "
        "process block in the kernel for one of them",
        size=5_000,
        sides=_same_code(waiting.round_trip, floor=True),
        lines=(_time("µs", 0.75, without_gil=1.00), _SWITCHES),
        times=3,
    ),
    Row(
        name="locks",
        what="beside round-trip: two threads that pass a pair of bare locks to and fro, 5,000 "
        "times, and do nothing else",
        size=5_000,
        sides={Side.FLOOR: waiting.bare_locks},
        lines=(Line("time", "µs", Kind.INFORMATIVE), _SWITCHES),
        times=3,
    ),
    Row(
        name="burst",
        what="32 submissions at once to 32 idle workers, then all results; 200 bursts",
        size=200,
        sides=_same_code(submitting.burst),
        lines=(_time("µs", 0.70),),
        times=3,
    ),
    Row(
        name="map",
        what="list(map(f, range(50_000))), 8 workers",
        size=50_000,
        sides=_same_code(submitting.map_range, floor=True),
        lines=(_time("µs", 0.35),),
    ),
    Row(
        name="wait",
        what="50,000 no-op submissions, then concurrent.futures.wait for all; 8 workers",
        size=50_000,
        sides=_same_code(waiting.wait_for_all, floor=True),
        lines=(_time("µs", 0.60),),
    ),
    Row(
        name="as-completed",
        what="50,000 no-op submissions, each taken from concurrent.futures.as_completed; 8 workers",
        size=50_000,
        sides=_same_code(waiting.take_as_completed, floor=True),
        lines=(_time("µs", 0.60),),
    ),
    Row(
        name="fan-out",
        what="400 bodies of time.sleep(0.01) on 32 workers",
        size=400,
        sides=_same_code(system.fan_out),
        lines=(_time("ms", 1.02),),
        times=3,
    ),
    Row(
        name="http",
        what="2,000 small HTTP GETs, a connection each, to a server in another process on "
        "127.0.0.1; 32 workers",
        size=2_000,
        sides=_same_code(system.http_gets),
        lines=(_time("ms", 0.97),),
        times=3,
    ),
    Row(
        name="asyncio",
        what="20,000 calls of loop.run_in_executor gathered, 8 workers",
        size=20_000,
        sides=_same_code(system.asyncio_gather),
        lines=(_time("µs", 0.75),),
        times=3,
    ),
    Row(
        name="fresh",
        what="create an executor of 4 workers, submit four no-ops, shut it down; 200 times",
        size=200,
        sides=_same_code(submitting.fresh),
        lines=(_time("µs", 0.70),),
        times=3,
    ),
    Row(
        name="fresh-results",
        what="the same, and the four results are taken before the shutdown",
        size=200,
        sides=_same_code(submitting.fresh_results),
        lines=(_time("µs", 0.80),),
        times=3,
    ),
    Row(
        name="unbounded",
        what="2,000 bodies blocked at the same time on Service.unbounded(), released, and its "
        "threads joined; against 2,000 bare threading.Thread",
        size=2_000,
        sides={
            Side.STDLIB: system.unbounded_threads,
            Side.SERVICE: system.unbounded_service,
        },
        lines=(_time("ms", 1.00),),
        times=3,
    ),
    Row(
        name="nested",
        what="2,000 bodies that each wait for a submission of their own, 8 workers; against a "
        "stdlib pool of 2,001 workers, because with fewer it can hang",
        size=2_000,
        sides={Side.STDLIB: waiting.nested_stdlib, Side.SERVICE: waiting.nested_service},
        lines=(
            _time("ms", 0.45, "wall"),
            Line("threads", "threads", Kind.NEVER_ABOVE, 24, "threads"),
        ),
        times=3,
    ),
    _chain("chain", "8 workers", waiting.chain_service),
    _chain("chain-unbounded", "on Service.unbounded()", waiting.chain_unbounded),
    Row(
        name="chain-before",
        what="400 bodies that run at the same time, each of which waits for the one submitted "
        "before it; 400 workers; doubling: the cost of a level, divided by that with 200 bodies",
        size=400,
        sides=_same_code(waiting.chain_before),
        lines=(_time("ms", 3.00), _growth(2.00, "doubling")),
        times=3,
    ),
    Row(
        name="wait-beside",
        what="submit(f).result() in a body, beside 2,000 bodies of another executor that wait "
        "for a future; Service(1), and a stdlib pool of 2 workers, because with 1 it hangs; "
        "the figure is its processor time divided by that beside 2,000 bodies blocked in an "
        "event; coalesced: the same with Coalescer.submit",
        # The bodies that wait.
        size=2_000,
        sides={Side.STDLIB: waiting.wait_beside_stdlib, Side.SERVICE: waiting.wait_beside_service},
        lines=(_growth(1.50), Line("coalesced", "times", Kind.LIMIT, 1.50, "coalesced")),
    ),
    Row(
        name="coalesced",
        what="one Coalescer.submit on a running key, 100,000 of them, futures kept; against "
        "one stdlib submit while all workers are blocked",
        size=100_000,
        sides={
            Side.STDLIB: partial(submitting.submit, ThreadPoolExecutor),
            Side.SERVICE: submitting.coalesced_submit,
        },
        lines=(
            _time("µs", 0.12, "time"),
            # Anything that a submit leaves behind takes at least a pointer, eight
            # bytes. Half of that tolerates a few pages that have other causes.
            Line("memory", "bytes", Kind.LIMIT, 4, "memory"),
        ),
    ),
    Row(
        name="coalesced-new",
        what="Coalescer.submit of 20,000 different keys, futures kept, then all results, "
        "8 workers; against plain submits of the stdlib",
        size=20_000,
        sides={
            Side.STDLIB: partial(submitting.throughput, ThreadPoolExecutor, workers=8),
            Side.SERVICE: submitting.coalesced_new_keys,
        },
        lines=(_time("µs", 0.50),),
    ),
    Row(
        name="yield",
        what="one yield_slot(f) with no other body waiting, on 8 workers, 100,000 of them; "
        "against one submit(f).result() of the stdlib",
        size=5_000,
        sides={
            Side.STDLIB: partial(waiting.round_trip, ThreadPoolExecutor),
            Side.SERVICE: _twenty_yields,
        },
        lines=(_time("µs", 0.06),),
    ),
    Row(
        name="idle",
        what="processor time of 32 idle threads over 5 s",
        size=50,
        sides=_same_code(system.idle),
        lines=(Line("time", "ms", Kind.LIMIT, 10),),
    ),
    Row(
        name="import",
        what="processor time of import boundedexec, compiled, in a fresh interpreter that has "
        "imported concurrent.futures.thread; the stdlib's is that of importing "
        "concurrent.futures.thread after concurrent.futures",
        size=3,
        sides={
            Side.STDLIB: partial(
                system.import_module,
                module="concurrent.futures.thread",
                after="concurrent.futures",
            ),
            Side.SERVICE: partial(
                system.import_module,
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
        sides=_same_code(system.scaling),
        lines=(Line("speed-up", "times", Kind.AT_LEAST, 1.8),),
    ),
    Row(
        name="free-throughput",
        what="throughput-8 again: without a GIL it must be at least the stdlib's",
        size=100_000,
        sides=_same_code(partial(submitting.throughput, workers=8)),
        lines=(_time("µs", 1.00),),
    ),
)


def free_threaded() -> bool:
    """Return whether this interpreter runs without a GIL now."""
    gil_enabled: Callable[[], bool] | None = getattr(sys, "_is_gil_enabled", None)
    return gil_enabled is not None and not gil_enabled()


def all_rows() -> tuple[Row, ...]:
    """Return the rows for this interpreter, in the order of the table."""
    if free_threaded():
        return tuple(row.without_gil() for row in _ALWAYS + _FREE_THREADED)
    return _ALWAYS
