"""Explore the interleavings of the core protocol, and of the package with a step broken.

    python tests/interleavings/explore.py [--bound N] [--seconds S] [SCENARIO ...]
    python tests/interleavings/explore.py --replay SCENARIO "0x40 1x7 …"

Without names: every scenario, and every mutation. Ends with 1 if a scenario fails,
if a mutation is not noticed or if one does not fit the source any more.

`--bound` replaces the bounds of preemptions that the scenarios have by themselves; a
negative one removes them. Each exploration stops after `--seconds`, and says so.

Why no library: those made for this were tried, on the package and on three of the
mutations, in November 2026. None sees threads and locks of `_thread`, which the package
uses, so each needed a shim first, and reported that all was well without one.

* frontrun 0.7.0 has partial-order reduction, but does not see what `for x in map(pop, …)`
  and `map(setattr, …)` change, which is how the package takes a slot or a worker: it
  leaves those orders out and says that the property holds. One mutation of three.
* interleave-test 0.1.0 switches between any two bytecodes and found all three, each with
  other settings. It has no reduction (800 schedules with one preemption where 21 are all
  that there are without a bound), no time-outs, and needs Python 3.12.
* ploom 0.1.1 switches at its own locks alone; between those there is nothing here. None.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor

import instrument
from mutations import MUTATIONS
from package import MODULES, SOURCE, Package
from scenarios import SCENARIOS
from scheduler import NOT_REPEATABLE, Explorer, Failure, Result, parsed, written


def explore(name: str, bound: int | None, seconds: float) -> Result:
    """Explore a scenario of the package as it is."""
    package = Package()
    return Explorer(package.sites, bound).explore(SCENARIOS[name].make(package), seconds)


def mutate(index: int, seconds: float) -> Result | str:
    """Explore the scenario that has to notice a mutation; why not, if it does not fit."""
    mutation = MUTATIONS[index]
    try:
        sources = mutation.apply(instrument.read(SOURCE, MODULES))
    except ValueError as error:
        return str(error)
    package = Package(sources)
    scenario = SCENARIOS[mutation.scenario]
    return Explorer(package.sites, scenario.bound).explore(scenario.make(package), seconds)


def told(failure: Failure, name: str) -> str:
    return (
        f"FAILED {name}: {failure.what}\n{failure.story}\n"
        f'again: --replay {name} "{written(failure.schedule)}"'
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Explore interleavings.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="by default all")
    parser.add_argument("--bound", type=int, help="preemptions; negative: no bound")
    parser.add_argument("--seconds", type=float, default=120.0, help="at most, for each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--replay", nargs=2, metavar=("SCENARIO", "SCHEDULE"))
    options = parser.parse_args()
    if options.replay:
        name, schedule = options.replay
        package = Package()
        failure = Explorer(package.sites).replay(
            SCENARIOS[name].make(package), parsed(schedule)
        )
        print(told(failure, name) if failure else f"{name}: nothing fails")
        return int(failure is not None)

    start = time.monotonic()
    failed = False
    names = options.scenarios or [*SCENARIOS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        explorations: list[tuple[str, int | None, Future[Result]]] = []
        for name in names:
            bound = SCENARIOS[name].bound if options.bound is None else options.bound
            if bound is not None and bound < 0:
                bound = None
            explorations.append(
                (name, bound, pool.submit(explore, name, bound, options.seconds))
            )
        mutations = [
            (mutation, pool.submit(mutate, index, options.seconds))
            for index, mutation in enumerate(MUTATIONS)
            if not options.scenarios or mutation.scenario in names
        ]
        total = 0
        for name, bound, future in explorations:
            result = future.result()
            total += result.schedules
            how = "exhaustive" if bound is None else f"preemptions <= {bound}"
            if result.failure is not None:
                how = "FAILED"
            elif not result.complete:
                how += f", stopped after {options.seconds:g} s"
            print(
                f"{name:42} {result.threads} threads {result.schedules:7,} schedules"
                f" {result.seconds:6.1f} s  {how}",
                flush=True,
            )
            if result.failure is not None:
                failed = True
                print(told(result.failure, name))
        caught = 0
        for mutation, mutated in mutations:
            outcome = mutated.result()
            if isinstance(outcome, str):
                how = f"DOES NOT FIT: {outcome}"
            elif outcome.failure is None or outcome.failure.what.startswith(NOT_REPEATABLE):
                how = f"NOT NOTICED by {mutation.scenario} in {outcome.schedules:,} schedules"
            else:
                caught += 1
                how = f"noticed by {mutation.scenario}, schedule {outcome.schedules:,}"
            print(f"{mutation.name:66} {how}", flush=True)
        failed |= caught < len(mutations)
    print(
        f"{len(names)} scenarios, {total:,} schedules;"
        f" {caught} of {len(mutations)} mutations noticed; {time.monotonic() - start:.0f} s"
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
