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

Sides = Mapping[Side, Measurement]


def _same_code(measure: Callable[[Pool, int], Figures], *, floor: bool = False) -> Sides:
    """Return sides that differ only in the class of the executor."""
    sides = _two(partial(measure, ThreadPoolExecutor), partial(measure, Service))
    return {**sides, Side.FLOOR: partial(measure, Floor)} if floor else sides


def _two(stdlib: Measurement, service: Measurement) -> Sides:
    return {Side.STDLIB: stdlib, Side.SERVICE: service}


def _time(unit: str, target: float, label: str = "", *, without_gil: float | None = None) -> Line:
    return Line("time", unit, Kind.RATIO, target, label, without_gil)


def _growth(target: float, label: str = "") -> Line:
    return Line("growth", "times", Kind.LIMIT, target, label)


def _threads(most: float) -> Line:
    return Line("threads", "threads", Kind.NEVER_ABOVE, most, "threads")


_SWITCHES = Line("switches", "switches", Kind.INFORMATIVE, label="switches")

_REAL = (
    "with two arguments, a keyword and a context of five variables; the stdlib does not carry "
    "the context, Service does"
)


def _throughput(workers: int) -> Row:
    several = f"{workers} workers" if workers > 1 else "1 worker"
    return Row(
        f"throughput-{workers}",
        f"100,000 no-op submissions, futures kept, then all results; {several}",
        100_000,
        _same_code(partial(submitting.throughput, workers=workers), floor=True),
        (_time("µs", 0.20),),
        seconds=3.5,
    )


def _chain(name: str, on: str, service: Measurement, *, seconds: float) -> Row:
    return Row(
        name,
        f"a chain of 400 bodies, each of which submits the next one and waits for it, {on}; "
        "against a stdlib pool of 400 workers; first: on a new executor, which includes starting "
        "its threads; again: on the same one; twice: the cost of a level in a chain of 800 "
        "again, divided by that in a chain of 400",
        400,
        _two(waiting.chain_stdlib, service),
        (
            Line("first", "ms", Kind.RATIO, 1.50, "first"),
            Line("again", "ms", Kind.RATIO, 1.50, "again"),
            _growth(2.00, "twice"),
        ),
        seconds,
        times=3,
    )


def _twenty_yields(count: int) -> Figures:
    # A yield is much shorter than a round trip: the same number of them would be over
    # too soon to be timed well.
    return waiting.yield_slot(20 * count)


_SUBMITTING = (
    _throughput(1),
    _throughput(8),
    _throughput(32),
    Row(
        "throughput-real",
        f"the same on 8 workers {_REAL}",
        100_000,
        _same_code(submitting.throughput_real, floor=True),
        (_time("µs", 0.25),),
        seconds=5,
    ),
    Row(
        "submit",
        "one submit while all 8 workers are blocked; 100,000 of them, futures kept",
        100_000,
        _same_code(submitting.submit),
        (_time("µs", 0.15),),
        seconds=3,
    ),
    Row(
        "memory",
        "resident bytes per pending submission, 200,000 pending, futures kept",
        200_000,
        _same_code(submitting.memory),
        (Line("memory", "bytes", Kind.RATIO, 0.15),),
        seconds=5,
    ),
    Row(
        "memory-real",
        f"the same {_REAL}",
        200_000,
        _same_code(submitting.memory_real),
        (Line("memory", "bytes", Kind.RATIO, 0.30),),
        seconds=5,
    ),
    Row(
        "million",
        "1,000,000 queued behind 8 blocked bodies, futures kept, then all done",
        1_000_000,
        _same_code(submitting.million),
        (
            _time("s", 0.15, "wall"),
            Line("peak", "MB", Kind.RATIO, 0.15, "peak memory"),
            _threads(9),
        ),
        seconds=22,
    ),
    Row(
        "cancel",
        "cancel() of 100,000 queued submissions",
        100_000,
        _same_code(submitting.cancel),
        (_time("µs", 0.60, without_gil=0.70),),
        seconds=2,
    ),
    Row(
        "cancel-beside",
        "cancel() of 4,000 finished futures while 1,000 other bodies of their executor run; "
        "the figure is its processor time divided by that with none running",
        # The bodies that run.
        1_000,
        _same_code(submitting.cancel_beside_running),
        (_growth(1.50),),
        seconds=3,
    ),
)

_TAKING = (
    Row(
        "round-trip",
        "submit(f).result(), 5,000 in a row, 8 workers; switches: how often threads of the "
        "process block in the kernel for one of them",
        5_000,
        _same_code(waiting.round_trip, floor=True),
        (_time("µs", 0.75, without_gil=1.00), _SWITCHES),
        seconds=1.5,
        times=3,
    ),
    Row(
        "locks",
        "beside round-trip: two threads that pass a pair of bare locks to and fro, 5,000 "
        "times, and do nothing else",
        5_000,
        {Side.FLOOR: waiting.bare_locks},
        (Line("time", "µs", Kind.INFORMATIVE), _SWITCHES),
        seconds=0.5,
        times=3,
    ),
    Row(
        "burst",
        "32 submissions at once to 32 idle workers, then all results; 200 bursts",
        200,
        _same_code(submitting.burst),
        (_time("µs", 0.70),),
        seconds=3,
        times=3,
    ),
    Row(
        "map",
        "list(map(f, range(50_000))), 8 workers",
        50_000,
        _same_code(submitting.map_range, floor=True),
        (_time("µs", 0.35),),
        seconds=2.5,
    ),
    Row(
        "wait",
        "50,000 no-op submissions, then concurrent.futures.wait for all; 8 workers",
        50_000,
        _same_code(waiting.wait_for_all, floor=True),
        (_time("µs", 0.60),),
        seconds=3,
    ),
    Row(
        "as-completed",
        "50,000 no-op submissions, each taken from concurrent.futures.as_completed; 8 workers",
        50_000,
        _same_code(waiting.take_as_completed, floor=True),
        (_time("µs", 0.60),),
        seconds=4,
    ),
)

_ELSEWHERE = (
    Row(
        "fan-out",
        "400 bodies of time.sleep(0.01) on 32 workers",
        400,
        _same_code(system.fan_out),
        (_time("ms", 1.02),),
        seconds=1,
        times=3,
    ),
    Row(
        "http",
        "2,000 small HTTP GETs, a connection each, to a server in another process on "
        "127.0.0.1; 32 workers",
        2_000,
        _same_code(system.http_gets),
        (_time("ms", 0.97),),
        seconds=4,
        times=3,
    ),
    Row(
        "asyncio",
        "20,000 calls of loop.run_in_executor gathered, 8 workers",
        20_000,
        _same_code(system.asyncio_gather),
        (_time("µs", 0.75),),
        seconds=3,
        times=3,
    ),
    Row(
        "fresh",
        "create an executor of 4 workers, submit four no-ops, shut it down; 200 times",
        200,
        _same_code(submitting.fresh),
        (_time("µs", 0.70),),
        seconds=1,
        times=3,
    ),
    Row(
        "fresh-results",
        "the same, and the four results are taken before the shutdown",
        200,
        _same_code(submitting.fresh_results),
        (_time("µs", 0.80),),
        seconds=1,
        times=3,
    ),
    Row(
        "unbounded",
        "2,000 bodies blocked at the same time on Service.unbounded(), released, and its "
        "threads joined; against 2,000 bare threading.Thread",
        2_000,
        _two(system.unbounded_threads, system.unbounded_service),
        (_time("ms", 1.00),),
        seconds=1.5,
        times=3,
    ),
)

_NESTED = (
    Row(
        "nested",
        "2,000 bodies that each wait for a submission of their own, 8 workers; against a "
        "stdlib pool of 2,001 workers, because with fewer it can hang",
        2_000,
        _two(waiting.nested_stdlib, waiting.nested_service),
        (_time("ms", 0.45, "wall"), _threads(24)),
        seconds=1.5,
        times=3,
    ),
    _chain("chain", "8 workers", waiting.chain_service, seconds=4),
    _chain("chain-unbounded", "on Service.unbounded()", waiting.chain_unbounded, seconds=4),
    Row(
        "chain-before",
        "400 bodies that run at the same time, each of which waits for the one submitted "
        "before it; 400 workers; twice: the cost of a level, divided by that with 200 bodies",
        400,
        _same_code(waiting.chain_before),
        (_time("ms", 3.00), _growth(2.00, "twice")),
        seconds=2,
        times=3,
    ),
    Row(
        "wait-beside",
        "submit(f).result() in a body, beside 2,000 bodies of another executor that wait "
        "for a future; Service(1), and a stdlib pool of 2 workers, because with 1 it hangs; "
        "the figure is its processor time divided by that beside 2,000 bodies blocked in an "
        "event; coalesced: the same with Coalescer.submit",
        # The bodies that wait.
        2_000,
        _two(waiting.wait_beside_stdlib, waiting.wait_beside_service),
        (_growth(1.50), Line("coalesced", "times", Kind.LIMIT, 1.50, "coalesced")),
        seconds=5,
    ),
    Row(
        "yield",
        "one yield_slot(f) with no other body waiting, on 8 workers, 100,000 of them; "
        "against one submit(f).result() of the stdlib",
        5_000,
        _two(partial(waiting.round_trip, ThreadPoolExecutor), _twenty_yields),
        (_time("µs", 0.06),),
        seconds=1,
    ),
)

_COALESCED = (
    Row(
        "coalesced",
        "one Coalescer.submit on a running key, 100,000 of them, futures kept; against "
        "one stdlib submit while all workers are blocked",
        100_000,
        _two(partial(submitting.submit, ThreadPoolExecutor), submitting.coalesced_submit),
        (
            _time("µs", 0.12, "time"),
            # Anything that a submit leaves behind takes at least a pointer, eight
            # bytes. Half of that tolerates a few pages that have other causes.
            Line("memory", "bytes", Kind.LIMIT, 4, "memory"),
        ),
        seconds=3,
    ),
    Row(
        "coalesced-new",
        "Coalescer.submit of 20,000 different keys, futures kept, then all results, "
        "8 workers; against plain submits of the stdlib",
        20_000,
        _two(
            partial(submitting.throughput, ThreadPoolExecutor, workers=8),
            submitting.coalesced_new_keys,
        ),
        (_time("µs", 0.50),),
        seconds=1.5,
    ),
)

_AT_REST = (
    Row(
        "idle",
        "processor time of 32 idle threads over 5 s",
        50,
        _same_code(system.idle),
        (Line("time", "ms", Kind.LIMIT, 10),),
        seconds=11,
    ),
    Row(
        "import",
        "processor time of import boundedexec, compiled, in a fresh interpreter that has "
        "imported concurrent.futures.thread; the stdlib's is that of importing "
        "concurrent.futures.thread after concurrent.futures",
        3,
        _two(
            partial(
                system.import_module,
                module="concurrent.futures.thread",
                after="concurrent.futures",
            ),
            partial(system.import_module, module="boundedexec", after="concurrent.futures.thread"),
        ),
        (Line("time", "ms", Kind.LIMIT, 12),),
        seconds=2,
    ),
)

_FREE_THREADED = (
    Row(
        "free-scaling",
        "four bodies that only compute: how many times as fast on two workers as on one",
        5_000_000,
        _same_code(system.scaling),
        (Line("speed-up", "times", Kind.AT_LEAST, 1.8),),
        seconds=3,
    ),
    Row(
        "free-throughput",
        "throughput-8 again: without a GIL it must be at least the stdlib's",
        100_000,
        _same_code(partial(submitting.throughput, workers=8)),
        (_time("µs", 1.00),),
        seconds=3,
    ),
)

_ALWAYS = (*_SUBMITTING, *_TAKING, *_ELSEWHERE, *_NESTED, *_COALESCED, *_AT_REST)


def free_threaded() -> bool:
    """Return whether this interpreter runs without a GIL now."""
    gil_enabled: Callable[[], bool] | None = getattr(sys, "_is_gil_enabled", None)
    return gil_enabled is not None and not gil_enabled()


def all_rows() -> tuple[Row, ...]:
    """Return the rows for this interpreter, in the order of the table."""
    if free_threaded():
        return tuple(row.without_gil() for row in _ALWAYS + _FREE_THREADED)
    return _ALWAYS
