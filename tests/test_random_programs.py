"""Random programs of nested submissions: each ends, as a model says, within its bounds.

A program is a tree of bodies, each on one of a few small services. A body submits its
children and, in any mixture, waits for them (and for any other body that comes later
in the program, so that the waits form no circle), yields, cancels and raises.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    ThreadPoolExecutor,
)

import pytest
from helpers import LIMIT, AnyFuture, Boom, Executing, check_every_slot

import boundedexec
from boundedexec import DeadlockError, Service

BLOCKS, SEEDS = 8, 25


class Home(Executing):
    """A service, and its bodies that execute: have begun, and do not wait or yield."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self.service = service
        #: Waits that ran out of time, after each of which one body more may execute.
        self.expired: list[None] = []


class Node:
    """One body of a program: what it does is drawn when the program is made."""

    def __init__(self, number: int, where: int, raises: bool) -> None:
        self.number = number
        self.where = where
        self.raises = raises
        #: What its done-callback does, if it has one.
        self.callback: str | None = None
        self.children: list[Node] = []
        self.steps: list[tuple[str, int]] = []


class Program:
    """A random program and what came of it."""

    def __init__(self, seed: int) -> None:
        draw = self.draw = random.Random(seed)
        self.seed = seed
        self.homes = [
            Home(Service(draw.choice([1, 1, 2, 3]), daemon=True))
            for _ in range(draw.choice([1, 1, 2, 3]))
        ]
        self.nodes: list[Node] = []
        self.futures: dict[int, AnyFuture] = {}
        self.cancelled: dict[int, bool] = {}
        self.ran: list[int] = []
        self.called: list[int] = []
        self.wrong: list[str] = []
        self.roots = [self._node(draw.choice([1, 2, 3, 4])) for _ in range(draw.randint(1, 4))]
        for node in self.nodes:
            self._draw_steps(node)

    def _node(self, depth: int) -> Node:
        draw = self.draw
        node = Node(len(self.nodes), draw.randrange(len(self.homes)), draw.random() < 0.15)
        self.nodes.append(node)
        if depth and len(self.nodes) < 60:
            node.children = [self._node(depth - 1) for _ in range(draw.randint(0, 3))]
        return node

    def _draw_steps(self, node: Node) -> None:
        draw = self.draw
        steps = [("submit", child.number) for child in node.children]
        # Whatever is done with a child comes after it was submitted, most often.
        waits = ["result", "exception", "all", "first", "failure", "steps", "map"]
        others = ["yield", "yield result", "timed", "pause"]
        for _ in range(draw.randint(0, 5)):
            kind = draw.choice(waits + others)
            steps.insert(draw.randint(len(steps) // 2, len(steps)), (kind, draw.getrandbits(32)))
        if node.children and draw.random() < 0.3:
            steps.append(("cancel", draw.choice(node.children).number))
            steps.append(("result", draw.getrandbits(32)))
        node.steps = steps
        node.callback = draw.choice([None, None, "result", "yield"])

    def submit(self, node: Node) -> None:
        future = self.homes[node.where].service.submit(self._body, node)
        self.futures[node.number] = future
        if node.callback is not None:
            future.add_done_callback(lambda _: self._callback(node))

    def _callback(self, node: Node) -> None:
        """Lend or yield the slot of the body, or of the body that cancelled it or came too late."""
        service = self.homes[node.where].service
        if node.callback == "result":
            self._expect(service.submit(abs, -1).result() == 1, node, "callback")
        else:
            try:
                service.yield_slot(time.sleep, 0)
            except RuntimeError as error:
                self._expect("body" in str(error), node, "callback")
        self.called.append(node.number)

    def _body(self, node: Node) -> int:
        home = self.homes[node.where]
        try:
            with home:
                self.ran.append(node.number)
                for kind, seed in node.steps:
                    if kind not in ("submit", "cancel"):
                        self._step(node, home, kind, random.Random(seed))
                        continue
                    with home.pause():  # Callbacks may run here, and lend and yield.
                        self.cancel(seed) if kind == "cancel" else self.submit(self.nodes[seed])
                if node.raises:
                    raise Boom(node.number)
            return node.number
        except Boom:
            raise
        except Exception as error:
            self.wrong.append(f"{node.number}: {error!r}")
            raise

    def cancel(self, number: int) -> None:
        if self.futures[number].cancel():
            self.cancelled[number] = True

    def _step(self, node: Node, home: Home, kind: str, draw: random.Random) -> None:
        service = home.service
        later = [number for number in list(self.futures) if number > node.number]
        chosen = draw.sample(later, min(len(later), draw.randint(1, 4)))
        futures = {self.futures[number]: number for number in chosen}
        if kind == "pause":
            time.sleep(draw.choice([0, 0, 0.0005]))
        elif kind == "yield":
            with home.pause():
                service.yield_slot(time.sleep, draw.choice([0, 0, 0.0005]))
        elif kind == "map":
            with home.pause():
                results = list(service.map(abs, range(3)))
            self._expect(results == [0, 1, 2], node, "map")
        elif kind == "yield result":
            for future, number in futures.items():
                with home.pause(), service.slot_yielded():
                    outcome = outcome_of(future.result)
                self._expect(outcome == self.outcome(number), node, f"{number}: {outcome}")
        elif kind in ("result", "exception"):
            for future, number in futures.items():
                ask: Callable[[], object] = getattr(future, kind)
                with home.pause():
                    outcome = outcome_of(ask)
                expected = self.outcome(number)
                if kind == "exception" and isinstance(expected, int):
                    expected = None
                self._expect(outcome == expected, node, f"{number}: {outcome}, not {expected}")
        elif kind == "timed":
            timeout = draw.choice([0, 0.0005])
            begun = time.monotonic()
            with home.pause():
                done, not_done = boundedexec.wait(futures, timeout)
                # By the clock: the last may be over just after its time ran out.
                if timeout and time.monotonic() >= begun + timeout:
                    home.expired.append(None)
            self._expect(done | not_done == set(futures), node, "timed wait")
        elif kind == "steps":
            with home.pause():
                seen = list(boundedexec.as_completed(futures))
            self._expect(Counter(seen) == Counter(list(futures)), node, "as_completed")
        else:
            self._wait(node, home, kind, futures)

    def _wait(self, node: Node, home: Home, kind: str, futures: dict[AnyFuture, int]) -> None:
        how = {"all": ALL_COMPLETED, "first": FIRST_COMPLETED, "failure": FIRST_EXCEPTION}[kind]
        with home.pause():
            done, not_done = boundedexec.wait(futures, None, how)
        self._expect(done | not_done == set(futures) and not done & not_done, node, kind)
        self._expect(all(future.done() for future in done), node, "done")
        if kind == "first":
            self._expect(bool(done) or not futures, node, "first completed")
        elif kind == "all" or not any(self.nodes[futures[future]].raises for future in done):
            self._expect(not not_done, node, kind)

    def _expect(self, right: bool, node: Node, what: str) -> None:
        if not right:
            self.wrong.append(f"{node.number}: {what}")

    def outcome(self, number: int) -> object:
        """What a wait for a body gives, according to the model."""
        if self.futures[number].cancelled():
            return CancelledError
        return Boom if self.nodes[number].raises else number

    def run(self) -> None:
        for root in self.roots:
            self.submit(root)
        if self.draw.random() < 0.3:
            self.cancel(self.draw.choice(self.roots).number)
        # Bodies of one service submit to another: until all of them were done at once.
        submitted = -1
        while submitted != len(self.futures):
            submitted = len(self.futures)
            for home in self.homes:
                assert home.service.block_till_done(LIMIT), f"seed {self.seed} does not end"

    def check(self) -> None:
        where = f"seed {self.seed}"
        assert self.wrong == [], where
        cancelled = {number for number, future in self.futures.items() if future.cancelled()}
        assert cancelled == set(self.cancelled), where
        # Everything submitted ran once or was cancelled, and whatever ran submitted all.
        assert Counter(self.ran) == Counter(set(self.futures) - cancelled), where
        expected = {root.number for root in self.roots}
        expected |= {child.number for number in self.ran for child in self.nodes[number].children}
        assert set(self.futures) == expected, where
        assert Counter(self.called) == Counter(
            number for number in self.futures if self.nodes[number].callback is not None
        ), where
        for number, future in self.futures.items():
            assert outcome_of(future.result) == self.outcome(number), (where, number)
        for home in self.homes:
            bound = home.service.max_workers
            assert bound is not None and home.peak <= bound + len(home.expired), where
            check_every_slot(home.service)
            home.service.shutdown()


def outcome_of(ask: Callable[[], object]) -> object:
    try:
        answer = ask()
    except (Boom, CancelledError) as error:
        return type(error)
    return type(answer) if isinstance(answer, Boom) else answer


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_programs_end_as_the_model_says(block: int) -> None:
    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        print("seed", seed)
        program = Program(seed)
        program.run()
        program.check()


def test_random_programs_may_run_side_by_side() -> None:
    programs = [Program(seed) for seed in range(1000, 1040)]
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(Program.run, programs):
            pass
    for program in programs:
        program.check()


def bodies_in_any_circle(seed: int) -> None:
    """Have bodies wait for random others, also in circles: each wait ends or raises."""
    draw = random.Random(seed)
    bounds = [draw.choice([1, 2, 3]) for _ in range(draw.choice([1, 1, 2, 3]))]
    services = [Service(bound, daemon=True) for bound in bounds]
    count = draw.randint(2, 8)
    plans = [
        (
            draw.choice(["result", "exception", "all", "first", "steps", "yield"]),
            draw.sample(range(count), draw.randint(1, min(3, count))),
        )
        for _ in range(count)
    ]
    futures: list[AnyFuture] = []
    known = threading.Event()

    def body(own: Service, kind: str, targets: list[int]) -> str:
        assert known.wait(LIMIT)
        awaited = [futures[target] for target in targets]
        try:
            if kind == "all":
                boundedexec.wait(awaited)
            elif kind == "first":
                boundedexec.wait(awaited, return_when=FIRST_COMPLETED)
            elif kind == "steps":
                list(boundedexec.as_completed(awaited))
            else:
                for future in awaited:
                    if kind == "yield":
                        own.yield_slot(future.result)
                    else:
                        getattr(future, kind)()
        except DeadlockError:
            return "raised"
        return "fine"

    for number, (kind, targets) in enumerate(plans):
        own = services[number % len(services)]
        futures.append(own.submit(body, own, kind, targets))
    known.set()
    results = [future.result(LIMIT) for future in futures]
    # A wait raises where there is a circle, and none where there is none.
    assert ("raised" in results) == has_circle(plans)
    for service in services:
        check_every_slot(service)
        service.shutdown()


def has_circle(plans: list[tuple[str, list[int]]]) -> bool:
    """Whether some body never ends unless a wait raises."""
    left = set(range(len(plans)))

    def ends(kind: str, targets: list[int]) -> bool:
        return not left.issuperset(targets) if kind == "first" else left.isdisjoint(targets)

    while ended := {number for number in left if ends(*plans[number])}:
        left -= ended
    return bool(left)


@pytest.mark.usefixtures("switching")
def test_bodies_that_wait_in_any_circle_all_end() -> None:
    for seed in range(200):
        print("seed", seed)
        bodies_in_any_circle(seed)
