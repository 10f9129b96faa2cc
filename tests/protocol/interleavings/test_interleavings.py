"""That the explorer explores; and what of it takes no time: a few scenarios and mutations."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import every_scenario  # noqa: F401  # Enters the scenarios.  # pyright: ignore[reportUnusedImport]
import instrument
import pytest
from exploring import Explorer, Result, every_schedule, parsed, written
from mutating import markers
from mutations import MUTATIONS
from package import MODES, MODULES, SOURCE, Package
from scenarios import SCENARIOS
from scheduler import DECLARED, Lock, Run, declare, mark

# Beside busy processes each switch of threads waits for its turn.
pytestmark = pytest.mark.timeout(300)


def explore(*threads: Callable[[], object], gil: bool = False) -> Result:
    """Explore what these threads do beside each other."""

    def main() -> None:
        assert Run.current is not None
        for thread in threads:
            Run.current.spawn(thread, (), "thread")

    def check(run: Run) -> None:
        assert not any(task.alive for task in run.tasks), "waits for ever"

    return Explorer([], gil=gil).explore(lambda: (main, check), 20)


@pytest.mark.parametrize("gil", [True, False])
def test_every_order_of_steps_that_conflict_is_explored_once(gil: bool) -> None:
    def steps(thing: object, count: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(count):
                declare(thing)

        return run

    one, other = object(), object()
    assert explore(steps(one, 2), steps(one, 2), gil=gil).schedules == 6
    assert explore(steps(one, 1), steps(one, 1), steps(one, 1), gil=gil).schedules == 6
    assert explore(steps(one, 3), steps(one, 2), gil=gil).schedules == 10
    assert explore(steps(one, 3), steps(other, 3), gil=gil).schedules == 1


def test_what_comes_without_a_call_between_is_one_step_with_a_gil() -> None:
    thing = object()

    def two_steps() -> None:
        assert Run.current is not None
        for _ in range(2):
            Run.current.touch(thing, None, True, DECLARED)

    assert explore(two_steps, two_steps, gil=True).schedules == 2
    assert explore(two_steps, two_steps, gil=False).schedules == 6


def test_who_holds_a_lock_first_is_explored() -> None:
    lock = Lock()

    def locked() -> None:
        with lock:
            pass

    result = explore(locked, locked, locked)
    assert result.complete
    assert result.schedules == 6


def test_a_deadlock_is_found_and_found_again_along_its_schedule() -> None:
    locks = Lock(), Lock()

    def locked(one: Lock, other: Lock) -> None:
        with one, other:
            pass

    def main() -> None:
        assert Run.current is not None
        for lock in locks:
            lock.held = False
        Run.current.spawn(lambda: locked(*locks), (), "one")
        Run.current.spawn(lambda: locked(*reversed(locks)), (), "other")

    def check(run: Run) -> None:
        assert not any(task.alive for task in run.tasks), "waits for ever"

    explorer = Explorer([])
    failure = explorer.explore(lambda: (main, check), 20).failure
    assert failure is not None
    assert failure.what.startswith("waits for ever")
    again = explorer.replay(lambda: (main, check), parsed(written(failure.schedule)))
    assert again is not None
    assert again.schedule == failure.schedule


class _Program:
    """Threads that load, store, lock and try to lock, as a seed says."""

    def __init__(self, seed: int) -> None:
        choice = random.Random(seed)
        self.threads = [
            [
                (choice.choice(["load", "store", "lock", "unlock", "try"]), choice.choice("xy"))
                for _ in range(choice.randint(1, 3))
            ]
            for _ in range(choice.choice([2, 2, 3]))
        ]
        self.marks = choice.random()
        self.outcomes: set[str] = set()

    def make(self) -> tuple[Callable[[], None], Callable[[Run], None]]:
        locks = {name: Lock() for name in "xy"}
        values: dict[str, object] = dict.fromkeys("xy", 0)
        seen: dict[int, list[object]] = {}
        choice = random.Random(self.marks)
        marked = [[choice.random() < 0.5 for _ in steps] for steps in self.threads]

        def run(number: int) -> None:
            assert Run.current is not None
            seen[number] = []
            held: list[Lock] = []
            for place, (step, name) in enumerate(self.threads[number]):
                if step in ("load", "store"):
                    Run.current.touch(locks[name], name, step == "store", DECLARED)
                if step == "load":
                    seen[number].append(values[name])
                elif step == "store":
                    values[name] = number, place
                elif step == "lock" and locks[name] not in held:
                    locks[name].acquire()
                    held.append(locks[name])
                elif step == "unlock" and held:
                    held.pop().release()
                elif step == "try":
                    seen[number].append(locks[name].acquire(True, 1))
                if marked[number][place]:
                    mark()
            seen[number].append("over")

        def main() -> None:
            assert Run.current is not None
            for number in range(len(self.threads)):
                Run.current.spawn(run, (number,), "thread")

        def check(_: Run) -> None:
            self.outcomes.add(repr((sorted(seen.items()), values)))

        return main, check


@pytest.mark.parametrize("gil", [True, False])
def test_every_outcome_of_random_programs_is_found(gil: bool) -> None:
    for seed in range(60):
        found, every = _Program(seed), _Program(seed)
        assert Explorer([], gil=gil).explore(found.make, 20).complete
        every_schedule(every.make, gil=gil)
        assert found.outcomes == every.outcomes, f"seed {seed}: {found.threads}"


def explore_scenario(package: Package, name: str, mode: str, seconds: float) -> Result:
    explorer = Explorer(package.sites, SCENARIOS[name].bounds[mode], gil=package.gil)
    return explorer.explore(SCENARIOS[name].make(package), seconds)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name",
    [
        "submit_beside_an_end",
        "cancel_beside_a_start",
        "result_beside_an_end",
        "block_till_done_beside_the_last_end",
        "resume_beside_a_submit",
        "lend_beside_a_submit",
        "coalesced_beside_an_end",
        "idle_beside_a_join",
    ],
)
def test_no_schedule_breaks(name: str, mode: str) -> None:
    result = explore_scenario(Package(mode), name, mode, 4)
    assert result.failure is None, result.failure
    assert result.schedules > 1


def _mutation(marker: str) -> Any:
    (found,) = [mutation for mutation in MUTATIONS if mutation.marker == marker]
    return found


@pytest.mark.parametrize(
    "marker", ["consumed-so-look", "idle-so-look", "claim-by-worker", "lend-to-resuming"]
)
def test_a_broken_step_is_noticed(marker: str) -> None:
    mutation = _mutation(marker)
    package = Package(mutation.mode, mutation.apply(instrument.read(SOURCE, MODULES)))
    assert explore_scenario(package, mutation.scenario, mutation.mode, 20).failure is not None


def test_every_mutation_fits() -> None:
    sources = instrument.read(SOURCE, MODULES)
    for mutation in MUTATIONS:
        assert mutation.mode in SCENARIOS[mutation.scenario].bounds
        mutated = mutation.apply(sources)
        assert mutated != sources
        # What raises `AttributeError` inside a body may break nothing that a scenario sees.
        unknown = _attributes(mutated) - _attributes(sources)
        assert not unknown, (mutation.marker, unknown)


def _attributes(sources: Mapping[str, str]) -> set[str]:
    return {name for source in sources.values() for name in re.findall(r"\.([a-z]\w*)", source)}


def test_every_marker_has_a_mutation() -> None:
    unused = markers(instrument.read(SOURCE, MODULES)) - {m.marker for m in MUTATIONS}
    assert not unused
