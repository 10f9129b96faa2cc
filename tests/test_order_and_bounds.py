"""Bodies start in order, never more than `max_workers` at once, and no slot is lost."""

from __future__ import annotations

import itertools
import random
import threading
import time
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue

import pytest
from helpers import LIMIT, Executing, Oops, Starts, check_every_slot, fail, holding

from boundedexec import Service

# Order and bound


def test_one_slot_runs_bodies_in_the_order_of_submission() -> None:
    ran: list[int] = []
    with Service(1) as service:
        with holding(service):
            for i in range(1000):
                service.submit(ran.append, i)
    assert ran == list(range(1000))


@pytest.mark.parametrize("seed", range(5))
def test_several_slots_start_bodies_in_the_order_of_submission(seed: int) -> None:
    chance = random.Random(seed)
    started: SimpleQueue[int] = SimpleQueue()
    release = [threading.Event() for _ in range(30)]

    def body(index: int) -> None:
        started.put(index)
        release[index].wait(LIMIT)

    with Service(3) as service:
        for i in range(30):
            service.submit(body, i)
        running = [started.get(timeout=LIMIT) for _ in range(3)]
        assert sorted(running) == [0, 1, 2]
        for following in range(3, 30):
            release[running.pop(chance.randrange(3))].set()
            running.append(started.get(timeout=LIMIT))
            assert running[-1] == following
        for event in release:
            event.set()


def test_what_a_body_submits_goes_to_the_end_of_the_queue() -> None:
    ran: list[str] = []
    with Service(1) as service:
        with holding(service):
            service.submit(lambda: service.submit(ran.append, "nested") and None)
            service.submit(ran.append, "first")
            service.submit(ran.append, "second")
        assert service.block_till_done(LIMIT)
    assert ran == ["first", "second", "nested"]


@pytest.mark.parametrize("bound", [1, 2, 7])
def test_the_bound_holds_under_many_submitters(bound: int) -> None:
    executing = Executing()

    def body() -> None:
        with executing:
            time.sleep(0)

    with Service(bound) as service, Service.unbounded() as others:
        submitters = [
            others.submit(lambda: [service.submit(body) for _ in range(300)]) for _ in range(4)
        ]
        for submitter in submitters:
            for future in submitter.result(LIMIT):
                future.result(LIMIT)
        assert 1 <= executing.peak <= bound
        check_every_slot(service)


@pytest.mark.parametrize("bound", [2, 5])
def test_no_slot_is_left_idle_while_a_submission_waits(bound: int) -> None:
    with Service(bound) as service, Service.unbounded() as others:
        for _ in range(200):
            # Ends only if all of them hold a slot at once.
            together = threading.Barrier(bound)
            submitters = [others.submit(service.submit, together.wait, LIMIT) for _ in range(bound)]
            for submitter in submitters:
                submitter.result(LIMIT).result(LIMIT)


def test_every_slot_is_used_when_bodies_end_while_others_are_submitted() -> None:
    with Service(3) as service:
        for round_ in range(300):
            for _ in range(round_ % 5):
                service.submit(int)
            together = threading.Barrier(3)
            waiting = [service.submit(together.wait, LIMIT) for _ in range(3)]
            for future in waiting:
                future.result(LIMIT)


def test_a_cancelled_submission_costs_no_slot() -> None:
    with Service(2) as service:
        for _ in range(50):
            with holding(service, 2):
                futures = [service.submit(int) for _ in range(10)]
                for future in futures[::2]:
                    assert future.cancel()
            for future in futures[1::2]:
                assert future.result(LIMIT) == 0
        check_every_slot(service)


@pytest.mark.parametrize("exception", [ValueError(), SystemExit(), Oops()])
def test_a_body_that_raises_costs_no_slot(exception: BaseException) -> None:
    with Service(2) as service:
        futures = [service.submit(fail, exception) for _ in range(20)]
        assert all(future.exception(LIMIT) is exception for future in futures)
        check_every_slot(service)


# Random mixes


class Mix:
    """Bodies that run, yield, submit, wait, cancel and raise as a seed says."""

    def __init__(self, seed: int, bound: int) -> None:
        self.chance = random.Random(seed)
        self.service = Service(bound, idle_timeout=self.chance.choice([0, 0.001, 10.0, None]))
        self.executing = Executing()
        self.numbers = itertools.count()
        self.futures: list[tuple[int, Future[int]]] = []
        self.began: list[int] = []

    def submit(self, depth: int) -> Future[int] | None:
        number = next(self.numbers)
        try:
            future = self.service.submit(self.body, number, depth)
        except RuntimeError:
            return None  # A thread that could not be started.
        self.futures.append((number, future))
        if self.chance.random() < 0.2:
            future.add_done_callback(self.callback)
        return future

    def submit_many(self) -> None:
        for _ in range(30):
            future = self.submit(3)
            if future is not None and self.chance.random() < 0.1:
                future.cancel()

    def callback(self, _: object) -> None:
        if self.chance.random() < 0.3:
            self.submit(0)
        if self.chance.random() < 0.2:
            raise ValueError

    def body(self, number: int, depth: int) -> int:
        self.began.append(number)
        with self.executing:
            for _ in range(self.chance.randrange(4)):
                self.step(self.chance.randrange(8), depth)
        return number

    def step(self, what: int, depth: int) -> None:
        if what == 0:
            time.sleep(0)
        elif what == 1:
            with self.executing.pause():
                self.service.yield_slot(time.sleep, self.chance.choice([0, 0.0002]))
        elif what == 2:
            with self.executing.pause(), self.service.slot_yielded():
                self.service.yield_slot(self.submit, 0)
        elif what == 3:
            self.chance.choice(self.futures)[1].cancel()
        elif what == 4:
            raise self.chance.choice([ValueError, Oops])
        elif depth:
            child = self.submit(depth - 1)
            if child is not None and what < 7:
                # It may have its slot all the while: never too many are counted.
                with self.executing.pause():
                    try:
                        child.result()
                    except (ValueError, Oops, CancelledError, RuntimeError):
                        pass

    def run(self) -> None:
        with Service.unbounded() as others:
            for each in [others.submit(self.submit_many) for _ in range(3)]:
                each.result(LIMIT)
        assert self.service.block_till_done(LIMIT)

    def check(self, bound: int) -> None:
        """The bound was never exceeded, nothing is lost, every slot is usable again."""
        assert self.executing.peak <= bound
        for number, future in self.futures:
            assert future.done()
            ran = self.began.count(number)
            if future.cancelled():
                assert ran == 0
            elif isinstance(error := future.exception(), RuntimeError):
                assert ran == 0, error  # No thread for it, and no caller to raise to.
            else:
                assert ran == 1
        check_every_slot(self.service)
        self.service.shutdown()


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("bound", [1, 2, 5])
def test_random_mixes_keep_the_bound_and_lose_nothing(bound: int) -> None:
    for seed in range(15):
        print("seed", seed)
        mix = Mix(seed, bound)
        mix.run()
        mix.check(bound)


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("bound", [1, 2, 5])
@pytest.mark.parametrize("likely", [0.1, 0.5, 0.9])
def test_random_mixes_lose_nothing_where_thread_starts_fail(
    likely: float, bound: int, starts: Starts
) -> None:
    submits_from_here = threading.current_thread()
    for seed in range(5):
        print("seed", seed)
        mix = Mix(seed, bound)
        starts.failing = lambda: (
            # `run` has its threads from a service too, and starts them from here.
            threading.current_thread() is not submits_from_here and random.random() < likely
        )
        random.seed(seed)
        mix.run()
        starts.fail(False)
        mix.check(bound)
