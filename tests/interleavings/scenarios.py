"""The steps of the core protocol, beside each other.

Each scenario is a function that is given a `World` and is the main thread of every
execution. It makes as few threads as show the meeting that it is about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from package import Package, World
from scheduler import Lock, Run, declare


class Scenario(NamedTuple):
    name: str
    main: Callable[[World], object]
    #: The bound of preemptions by default, None where every schedule is explored.
    bound: int | None

    def make(self, package: Package) -> Callable[[], tuple[Callable[[], object], Any]]:
        def fresh() -> tuple[Callable[[], object], Callable[[Run], None]]:
            package.reset()
            world = World(package)
            return lambda: self.main(world), world.check

        return fresh


SCENARIOS: dict[str, Scenario] = {}


def scenario(bound: int | None = None) -> Callable[[Callable[[World], object]], Scenario]:
    def enter(main: Callable[[World], object]) -> Scenario:
        name = main.__name__
        SCENARIOS[name] = Scenario(name, main, bound)
        return SCENARIOS[name]

    return enter


class Gate:
    """An event: closed until it is opened."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._lock.held = True

    def open(self) -> None:
        self._lock.release()

    def wait(self) -> None:
        self._lock.acquire()
        self._lock.release()


@scenario()
def submit_beside_an_end(world: World) -> None:
    """A submission is queued while the only slot is given up."""
    service = world.service()
    world.accept(service.submit(world.body("first")))
    world.accept(service.submit(world.body("second")))


@scenario()
def two_submitters(world: World) -> None:
    """Two threads submit to a service at rest."""
    service = world.service()
    world.thread(lambda: world.accept(service.submit(world.body("other"))), "submitter")
    world.accept(service.submit(world.body("mine")))


@scenario()
def two_slots_two_bodies(world: World) -> None:
    """Two bodies that need each other, so both slots must be handed out."""
    service = world.service(2)
    gates = Gate(), Gate()

    def meet(mine: Gate, other: Gate) -> None:
        mine.open()
        other.wait()

    world.accept(service.submit(world.body("first", lambda: meet(*gates))))
    world.accept(service.submit(world.body("second", lambda: meet(*reversed(gates)))))


@scenario()
def cancel_beside_a_start(world: World) -> None:
    """A submission is cancelled while it is started: one of the two happens."""
    service = world.service()
    future = world.accept(service.submit(world.body("body")))
    cancelled = future.cancel()

    def check() -> None:
        assert future.cancelled() is cancelled
        assert ("body" in world.ran) is not cancelled, "cancelled and started, or neither"

    world.after.append(check)
