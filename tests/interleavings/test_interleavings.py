"""That the explorer explores, and what of it takes no time: a few scenarios and mutations."""

from __future__ import annotations

import math
from collections.abc import Callable

import instrument
import pytest
from mutations import MUTATIONS
from package import MODULES, SOURCE, Package
from scenarios import SCENARIOS
from scheduler import Explorer, Lock, Result, Run, declare, parsed, written


def explore(*threads: Callable[[], object]) -> Result:
    """Explore what these threads do beside each other."""

    def main() -> None:
        assert Run.current is not None
        for thread in threads:
            Run.current.spawn(thread, (), "thread")

    def check(run: Run) -> None:
        assert not any(task.alive for task in run.tasks), "waits for ever"

    return Explorer([]).explore(lambda: (main, check), 20)


def test_every_order_of_steps_that_conflict_is_explored_once() -> None:
    def steps(thing: object, count: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(count):
                declare(thing)

        return run

    one, other = object(), object()
    assert explore(steps(one, 2), steps(one, 2)).schedules == 6
    assert explore(steps(one, 1), steps(one, 1), steps(one, 1)).schedules == 6
    assert explore(steps(one, 3), steps(one, 2)).schedules == 10
    assert explore(steps(one, 3), steps(other, 3)).schedules == 1


def test_who_holds_a_lock_first_is_explored() -> None:
    lock = Lock()

    def locked() -> None:
        with lock:
            pass

    result = explore(locked, locked, locked)
    assert result.complete
    assert result.schedules == 6


def test_a_deadlock_is_found() -> None:
    locks = Lock(), Lock()

    def locked(one: Lock, other: Lock) -> None:
        with one, other:
            pass

    def main(run: Run) -> None:
        for lock in locks:
            lock.held = False
        run.spawn(lambda: locked(*locks), (), "one")
        run.spawn(lambda: locked(*reversed(locks)), (), "other")

    def check(run: Run) -> None:
        assert not any(task.alive for task in run.tasks), "waits for ever"

    def make() -> tuple[Callable[[], None], Callable[[Run], None]]:
        return lambda: main(Run.current) if Run.current else None, check

    explorer = Explorer([])
    failure = explorer.explore(make, 20).failure
    assert failure is not None
    assert failure.what.startswith("waits for ever")
    # And again, along the schedule as it is printed.
    again = explorer.replay(make, parsed(written(failure.schedule)))
    assert again is not None
    assert again.schedule == failure.schedule


@pytest.mark.timeout(300)  # One second; beside busy processes each switch waits for its turn.
@pytest.mark.parametrize(
    "name", ["submit_beside_an_end", "cancel_beside_a_start", "result_beside_an_end"]
)
def test_no_schedule_breaks(name: str) -> None:
    package = Package()
    result = Explorer(package.sites).explore(SCENARIOS[name].make(package), math.inf)
    assert result.failure is None, result.failure
    assert result.complete


def test_every_mutation_fits() -> None:
    sources = instrument.read(SOURCE, MODULES)
    for mutation in MUTATIONS:
        assert mutation.scenario in SCENARIOS
        assert mutation.apply(sources) != sources
