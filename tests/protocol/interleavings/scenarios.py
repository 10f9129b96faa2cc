"""The table of scenarios: the steps of the core protocol, beside each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from package import MODES, Package
from scheduler import Run
from world import World


class Scenario(NamedTuple):
    name: str
    main: Callable[[World], object]
    #: The bound of preemptions in each mode in which it runs, None where every schedule
    #: is explored.
    bounds: dict[str, int | None]

    def make(self, package: Package) -> Callable[[], tuple[Callable[[], object], Any]]:
        def fresh() -> tuple[Callable[[], object], Callable[[Run], None]]:
            package.reset()
            world = World(package)
            return lambda: self.main(world), world.check

        return fresh


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    gil: int | None = None, free: int | None = None, *, modes: tuple[str, ...] = MODES
) -> Callable[[Callable[[World], object]], Scenario]:
    """Enter a function as a scenario. It is given a World, and is the main thread of every
    execution; it makes as few threads as show the meeting that it is about."""
    bounds = {mode: bound for mode, bound in zip(MODES, (gil, free), strict=True) if mode in modes}

    def enter(main: Callable[[World], object]) -> Scenario:
        name = main.__name__
        assert name not in SCENARIOS
        SCENARIOS[name] = Scenario(name, main, bounds)
        return SCENARIOS[name]

    return enter
