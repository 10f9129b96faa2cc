"""Explore the interleavings of the core protocol, and of the package with a step broken.

    python explore.py [--bound N] [--seconds S] [--mode M] [SCENARIO ...]
    python explore.py --replay SCENARIO MODE "0x40 1x7 …"

Without names: every scenario in each of its modes, and every mutation. Ends with 1 if a
scenario fails, if a mutation is not noticed or if one does not fit the source any more.

`--bound` replaces the bounds of preemptions that the scenarios have by themselves; a
negative one removes them. Each exploration stops after `--seconds`, and says so.

Why no library: those made for this were tried on 0.1.0 and three of its mutations, in
November 2026. None sees threads and locks of `_thread`, which the package uses, so each
needed a shim first, and reported that all was well without one.

* frontrun 0.7.0 has partial-order reduction, but does not see what steps of C iterators
  such as `map(pop, …)` change, which is how the package takes a worker: it leaves those
  orders out and says that the property holds. One mutation of three.
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

import every_scenario  # noqa: F401  # Enters the scenarios.  # pyright: ignore[reportUnusedImport]
import instrument
from exploring import NOT_REPEATABLE, Explorer, Failure, Result, parsed, written
from mutations import MUTATIONS
from package import MODES, MODULES, SOURCE, Package
from scenarios import SCENARIOS


def explore(name: str, mode: str, bound: int | None, seconds: float) -> Result:
    """Explore a scenario of the package as it is."""
    package = Package(mode)
    explorer = Explorer(package.sites, bound, gil=package.gil)
    return explorer.explore(SCENARIOS[name].make(package), seconds)


def mutate(index: int, seconds: float) -> Result | str:
    """Explore the scenario that has to notice a mutation; why not, if it does not fit."""
    mutation = MUTATIONS[index]
    try:
        sources = mutation.apply(instrument.read(SOURCE, MODULES))
    except ValueError as error:
        return str(error)
    package = Package(mutation.mode, sources)
    scenario = SCENARIOS[mutation.scenario]
    explorer = Explorer(package.sites, scenario.bounds[mutation.mode], gil=package.gil)
    return explorer.explore(scenario.make(package), seconds)


def described(failure: Failure, name: str, mode: str) -> str:
    return (
        f"FAILED {name}: {failure.what}\n{failure.story}\n"
        f'again: --replay {name} {mode} "{written(failure.schedule)}"'
    )


def replay(name: str, mode: str, schedule: str) -> int:
    package = Package(mode)
    explorer = Explorer(package.sites, gil=package.gil)
    failure = explorer.replay(SCENARIOS[name].make(package), parsed(schedule))
    print(described(failure, name, mode) if failure else f"{name}: nothing fails")
    return int(failure is not None)


def _print_scenario(
    name: str, mode: str, bound: int | None, result: Result, seconds: float
) -> None:
    how = "exhaustive" if bound is None else f"preemptions <= {bound}"
    if result.failure is not None:
        how = "FAILED"
    elif not result.complete:
        how += f", stopped after {seconds:g} s"
    print(
        f"{name:42} {mode:4} {result.threads} threads {result.schedules:7,} schedules"
        f" {result.seconds:6.1f} s  {how}",
        flush=True,
    )
    if result.failure is not None:
        print(described(result.failure, name, mode))


def _print_mutation(index: int, outcome: Result | str) -> bool:
    """Print what came of it; whether it was noticed."""
    mutation = MUTATIONS[index]
    noticed = False
    if isinstance(outcome, str):
        how = f"DOES NOT FIT: {outcome}"
    elif outcome.failure is None or outcome.failure.what.startswith(NOT_REPEATABLE):
        how = f"NOT NOTICED by {mutation.scenario} in {outcome.schedules:,} schedules"
    else:
        noticed = True
        why = outcome.failure.what.splitlines()[0]
        how = f"{mutation.scenario}, schedule {outcome.schedules:,}: {why[:60]}"
    print(f"{mutation.marker:24} {mutation.mode:4} {how}", flush=True)
    return noticed


def explore_all(options: argparse.Namespace) -> int:
    start = time.monotonic()
    names = options.scenarios or [*SCENARIOS]
    modes = [options.mode] if options.mode else [*MODES]
    failed = False
    total = dict.fromkeys(MODES, 0)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        explorations: list[tuple[str, str, int | None, Future[Result]]] = []
        for name in names:
            for mode, bound in SCENARIOS[name].bounds.items():
                if options.bound is not None:
                    bound = None if options.bound < 0 else options.bound
                if mode in modes:
                    future = pool.submit(explore, name, mode, bound, options.seconds)
                    explorations.append((name, mode, bound, future))
        mutations = {
            index: pool.submit(mutate, index, options.seconds)
            for index, mutation in enumerate(MUTATIONS)
            if mutation.scenario in names and mutation.mode in modes
        }
        for name, mode, bound, future in explorations:
            result = future.result()
            total[mode] += result.schedules
            failed |= result.failure is not None
            _print_scenario(name, mode, bound, result, options.seconds)
        noticed = sum(_print_mutation(index, mutations[index].result()) for index in mutations)
    schedules = ", ".join(f"{total[mode]:,} schedules ({mode})" for mode in modes)
    print(
        f"{len(names)} scenarios, {schedules}; {noticed} of {len(mutations)} mutations"
        f" noticed; {time.monotonic() - start:.0f} s"
    )
    return int(failed or noticed < len(mutations))


def main() -> int:
    parser = argparse.ArgumentParser(description="Explore interleavings.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="by default all")
    parser.add_argument("--mode", choices=MODES, help="by default both")
    parser.add_argument("--bound", type=int, help="preemptions; negative: no bound")
    parser.add_argument("--seconds", type=float, default=120.0, help="at most, for each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--replay", nargs=3, metavar=("SCENARIO", "MODE", "SCHEDULE"))
    options = parser.parse_args()
    return replay(*options.replay) if options.replay else explore_all(options)


if __name__ == "__main__":
    sys.exit(main())
