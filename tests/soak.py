"""Load, for minutes or hours: random clients of everything, against a count of it all.

    python tests/soak.py [--minutes N] [--seed N] [--no-forks] [--pauses]

Each round is a process of its own, on one core or on two, with a seed from which all
that it does is drawn. It ends with every promise counted: what was accepted is what
completed, failed and was cancelled; nothing is outstanding; no slot, thread, key or
future is left. A round that does not, or that hangs, shows where every thread is.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import faulthandler
import gc
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

from helpers import shallow

import boundedexec
from boundedexec import Coalescer, DeadlockError, Service, ThreadPoolExecutor

#: Seconds after which a round that has not ended hangs.
LIMIT = 120.0


def absolute(number: int) -> int:
    return abs(number)


class Expected(Exception):
    """What a body raises on purpose."""


class Bounded:
    """A service, and who holds a slot of it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.executing: set[int] = set()
        self.most = 0

    def enter(self, number: int) -> None:
        self.executing.add(number)
        self.most = max(self.most, len(self.executing))

    def leave(self, number: int) -> None:
        self.executing.discard(number)

    def check(self) -> None:
        bound = self.service.max_workers
        assert bound is None or self.most <= bound, f"{self.most} held a slot at once"


class Round:
    """Clients of one service, and of others for a while, and the count of what they did."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.chance = random.Random(seed)
        self.end = time.monotonic() + seconds
        self.bound = self.chance.choice([1, 2, 3, 8, 0])
        self.service = Service(
            self.bound, idle_timeout=self.chance.choice([0, 0.0005, 0.01, 10.0, None])
        )
        self.home = Bounded(self.service)
        self.coalescer: Coalescer[int] = Coalescer(self.service)
        #: Every future that a submit returned, by its number; single steps only.
        self.accepted: dict[int, Future[Any]] = {}
        self.runs: collections.deque[int] = collections.deque()
        self.calls: collections.deque[int] = collections.deque()
        self.awaited_calls = itertools.count()
        self.coalesced: collections.deque[Future[int]] = collections.deque()
        self.done: collections.Counter[str] = collections.Counter()
        self._done_lock = threading.RLock()
        self.numbers = itertools.count()
        self.signalled = 0

    def count(self, what: str, much: int = 1) -> None:
        with self._done_lock:
            self.done[what] += much

    # What bodies do. Each draws from a chance of its own.

    def submit(self, depth: int = 0, home: Bounded | None = None) -> Future[Any]:
        number = next(self.numbers)
        home = home or self.home
        future = home.service.submit(self.body, number, depth, home)
        self.accepted[number] = future
        return future

    def body(self, number: int, depth: int, home: Bounded) -> int:
        self.runs.append(number)
        home.enter(number)
        chance = random.Random(number * 31 + depth)
        draw = chance.random()
        try:
            if draw < 0.03:
                raise Expected
            if depth < 4 and draw < 0.15:
                self.pause(number, home, self.nested(chance, depth))
                self.count("nested waits")
            elif draw < 0.2:
                self.pause(number, home, lambda: home.service.yield_slot(time.sleep, 0))
            elif draw < 0.22:
                home.leave(number)
                with home.service.slot_yielded():
                    pass
                home.enter(number)
            elif draw < 0.24:
                time.sleep(0.001)
        finally:
            home.leave(number)
        return number

    def pause(self, number: int, home: Bounded, wait: Callable[[], object]) -> None:
        """A wait in which the slot may be another's."""
        home.leave(number)
        try:
            wait()
        finally:
            home.enter(number)

    def nested(self, chance: random.Random, depth: int) -> Callable[[], object]:
        """What a body waits for, however it waits: its own submissions, or a key's run."""
        if chance.random() < 0.1:
            run = self.coalescer.submit(chance.randrange(4), int, "7")
            self.coalesced.append(run)
            return run.exception
        futures = [self.submit(depth + 1) for _ in range(chance.randrange(1, 4))]
        how = chance.randrange(4)
        if how == 0:
            return futures[-1].exception
        if how == 1:
            return partial(boundedexec.wait, futures)
        if how == 2:
            return partial(boundedexec.wait, futures, return_when="FIRST_COMPLETED")
        return lambda: list(boundedexec.as_completed(futures))

    # What clients do.

    def client(self, seed: int) -> None:
        chance = random.Random(seed)
        clients = [
            self.burst,
            self.ask,
            self.time_out,
            self.map,
            self.cancel,
            self.coalesce,
            self.call_back,
            self.run_loop,
            self.come_and_go,
        ]
        while time.monotonic() < self.end:
            chance.choice(clients)(chance)

    def burst(self, chance: random.Random) -> None:
        futures = [self.submit() for _ in range(chance.randrange(200))]
        how = chance.randrange(4)
        if how == 0:
            boundedexec.wait(futures, LIMIT)
        elif how == 1:
            for future in boundedexec.as_completed(futures, LIMIT):
                assert future.done()
        elif how == 2:
            assert self.service.block_till_done(LIMIT), "block_till_done"
            self.count("block_till_done")
            # What this client submitted before is over now.
            assert all(future.done() for future in futures), "block_till_done was early"
        self.count("bursts")

    def ask(self, chance: random.Random) -> None:
        for _ in range(chance.randrange(1, 20)):
            try:
                assert isinstance(self.submit().result(LIMIT), int)
            except Expected:
                pass
            self.count("round trips")

    def time_out(self, chance: random.Random) -> None:
        """Give up waiting, in every way; what was waited for goes on."""
        futures = [self.submit() for _ in range(chance.randrange(1, 50))]
        limit = chance.choice([0, 0.0001, 0.001])
        try:
            how = chance.randrange(4)
            if how == 0:
                futures[-1].exception(limit)
            elif how == 1:
                assert sum(map(len, boundedexec.wait(futures, limit))) == len(futures)
            elif how == 2:
                for future in boundedexec.as_completed(futures, limit):
                    assert future.done()
            else:
                self.service.block_till_done(limit)
        except TimeoutError:
            self.count("time-outs")

    def map(self, chance: random.Random) -> None:
        size = chance.choice([None, 1, 3])
        length = chance.randrange(1, 100)
        results: Iterator[int] = self.service.map(absolute, range(-length, 0), buffersize=size)
        taken = list(itertools.islice(results, chance.randrange(length + 1)))
        assert taken == list(range(length, 0, -1))[: len(taken)], "map"
        del results  # Cancels what has not started.
        self.count("map results", len(taken))

    def cancel(self, chance: random.Random) -> None:
        futures = [self.submit() for _ in range(chance.randrange(50))]
        chance.shuffle(futures)
        for future in futures[: len(futures) // 2]:
            if future.cancel():
                assert future.cancelled()
                self.count("cancels")

    def coalesce(self, chance: random.Random) -> None:
        def run() -> int:
            self.submit(4).exception()
            return 7

        count = chance.randrange(1, 50)
        for _ in range(count):
            key = chance.randrange(4)
            if chance.random() < 0.1:
                self.coalesced.append(self.coalescer.submit(key, run))
            else:
                self.coalesced.append(self.coalescer.submit(key, int, "7"))
        if chance.random() < 0.3:
            self.coalesced[-1].cancel()
        self.count("coalesced submits", count)

    def call_back(self, chance: random.Random) -> None:
        def called(number: int, _: Future[Any]) -> None:
            self.calls.append(number)
            self.submit(4)
            if number % 10 == 0:
                raise Expected

        for _ in range(chance.randrange(1, 20)):
            self.submit().add_done_callback(partial(called, next(self.awaited_calls)))

    def run_loop(self, chance: random.Random) -> None:
        """An asyncio loop of this thread, as `run_in_executor` uses a service."""

        async def main() -> None:
            futures = [asyncio.wrap_future(self.submit()) for _ in range(chance.randrange(50))]
            if chance.random() < 0.3:
                for future in futures[::2]:
                    future.cancel()
            elif chance.random() < 0.3:
                assert await self.service.async_block_till_done(LIMIT), "async_block_till_done"
                self.count("async_block_till_done")
            await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), LIMIT)

        asyncio.run(main())
        self.count("event loops")

    def come_and_go(self, chance: random.Random) -> None:
        """A service of its own, shut down or dropped while another thread submits."""
        begun: collections.deque[None] = collections.deque()
        initializer = partial(begun.append, None)
        if chance.random() < 0.2:
            service = Service.unbounded(initializer=initializer)
        else:
            pool = chance.choice([Service, ThreadPoolExecutor])
            service = pool(chance.choice([1, 2, 5]), initializer=initializer)
        futures: list[Future[Any]] = []
        other: list[Bounded] = [Bounded(service)]
        del service

        def submit() -> None:
            try:
                while len(futures) < 200:
                    futures.append(self.submit(2, other[0]))
                    time.sleep(0)
            except RuntimeError:  # After the shutdown.
                self.count("refused")

        beside = threading.Thread(target=submit)
        beside.start()
        time.sleep(chance.random() * 0.01)
        how = chance.randrange(4)
        if how == 0:
            other[0].service.shutdown()
            assert all(future.done() for future in futures), "shutdown was early"
        elif how == 1:
            other[0].service.shutdown(cancel_futures=True)
        elif how == 2:
            other[0].service.shutdown(wait=False)
        beside.join()
        other[0].check()
        # Nothing here needs the service from now on.
        other.clear()
        done, unfinished = boundedexec.wait(futures, LIMIT)
        assert not unfinished, f"a service that has gone left {unfinished}"
        assert begun or all(future.cancelled() for future in done), "no initializer ran"
        self.count("services")

    def fork(self) -> None:
        """A child's copy of the service is empty and works."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                # Of the parent's locks only the package's own are known to be free.
                assert self.service.submit(pow, 2, 5).result(LIMIT) == 32
                assert self.service.block_till_done(LIMIT)
                code = 0
            finally:
                os._exit(code)
        self.count("forks")
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                assert status == 0, f"the child of a fork failed: {status}"
                return
            time.sleep(0.005)
        os.kill(pid, signal.SIGABRT)
        raise AssertionError("the child of a fork hangs")

    def on_signal(self) -> None:
        self.signalled += 1
        self.submit(4)

    # The round.

    def run(self, *, signals: bool, forks: bool) -> dict[str, int]:
        failures: collections.deque[BaseException] = collections.deque()

        def client(seed: int) -> None:
            try:
                self.client(seed)
            except BaseException as exception:
                failures.append(exception)

        clients = [
            threading.Thread(target=client, args=(self.chance.randrange(1 << 30),))
            for _ in range(self.chance.randrange(1, 5))
        ]
        if signals:
            signal.signal(signal.SIGALRM, shallow(self.on_signal))
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for each in clients:
            each.start()
        while time.monotonic() < self.end and not failures:
            if forks:
                self.fork()
            time.sleep(0.02)
        for each in clients:
            each.join()
        if signals:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if failures:
            raise failures[0]
        counts = self.balance()
        self.accepted.clear()
        self.coalesced.clear()
        gc.collect()
        kept = sum(isinstance(thing, Future) for thing in gc.get_objects())
        assert not kept, f"{kept} futures that nobody has are kept"
        # A service that was dropped is kept by the failures of its bodies until here.
        end = time.monotonic() + LIMIT
        while left := [t for t in threading.enumerate() if t is not threading.main_thread()]:
            assert time.monotonic() < end, f"threads are left: {left}"
            time.sleep(0.01)
        return counts

    def balance(self) -> dict[str, int]:
        assert self.service.block_till_done(LIMIT), "something stays outstanding"
        check_slots(self.service, self.bound or 16)
        ends: collections.Counter[str] = collections.Counter()
        for number, future in self.accepted.items():
            assert future.done(), f"submission {number} is not over"
            if future.cancelled():
                ends["cancelled"] += 1
            elif future.exception() is None:
                ends["completed"] += 1
                assert future.result() == number
            else:
                failure = future.exception()
                assert isinstance(failure, (Expected, DeadlockError)), failure
                ends["failed"] += 1
        assert all(future.done() for future in self.coalesced), "a coalesced run is not over"
        assert len(self.coalescer) == 0, "a key is left"
        self.home.check()
        submitted = len(self.accepted)
        assert submitted == sum(ends.values()), (submitted, ends)
        assert len(self.runs) == len(set(self.runs)) == submitted - ends["cancelled"], "runs"
        awaited = next(self.awaited_calls)
        assert sorted(self.calls) == list(range(awaited)), "callbacks"
        self.service.shutdown()
        return {
            "submitted": submitted,
            **ends,
            **self.done,
            "callbacks": awaited,
            "signals": self.signalled,
        }


def check_slots(service: Service, bound: int) -> None:
    together = threading.Barrier(bound)
    bodies = [service.submit(together.wait, LIMIT) for _ in range(bound)]
    for each in bodies:
        each.result(LIMIT)
    assert service.block_till_done(LIMIT)


def pause_at_random(seed: int) -> None:
    """Have threads pause at random lines of the package, which makes rare orders frequent."""
    if sys.version_info < (3, 12):
        raise SystemExit("--pauses needs Python 3.12")
    monitoring, chance = sys.monitoring, random.Random(seed)
    package = str(Path(boundedexec.__file__).parent)

    def line(code: CodeType, _: int) -> object:
        if not code.co_filename.startswith(package):
            return monitoring.DISABLE
        if chance.random() < 0.003:
            time.sleep(chance.random() * 0.002)
        return None

    monitoring.use_tool_id(monitoring.DEBUGGER_ID, "soak")
    monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.LINE, line)
    monitoring.set_events(monitoring.DEBUGGER_ID, monitoring.events.LINE)


def run_round(seed: int, seconds: float, number: int, forks: bool) -> None:
    """In a process of its own: one round, whose counts it prints."""
    logging.getLogger("boundedexec").setLevel(logging.CRITICAL)  # They raise on purpose.
    faulthandler.dump_traceback_later(seconds + 2 * LIMIT, exit=True)
    faulthandler.enable()  # The child of a fork that hangs is sent SIGABRT.
    cores = 1 + number % 2
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    try:
        # No signals where there are forks: the child would need the handler's locks.
        forks = forks and number % 3 == 0 and hasattr(os, "fork")
        signals = not forks and hasattr(signal, "setitimer")
        counts = Round(seed, seconds).run(signals=signals, forks=forks)
    except BaseException:
        faulthandler.dump_traceback()
        raise
    print(json.dumps(counts))


def main() -> int:
    parser = argparse.ArgumentParser(description="Load, for minutes or hours.")
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--round", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each round")
    parser.add_argument(
        "--no-forks",
        dest="forks",
        action="store_false",
        help="for CPython without a GIL, whose own fork loses a child in some thousands",
    )
    parser.add_argument(
        "--pauses", action="store_true", help="pause at random lines (Python 3.12 or newer)"
    )
    arguments = parser.parse_args()
    if arguments.round:
        seed, number = arguments.round
        if arguments.pauses:
            pause_at_random(seed)
        run_round(seed, arguments.seconds, number, arguments.forks)
        return 0
    print(f"Python {sys.version.split()[0]}, seed {arguments.seed}", flush=True)
    chance = random.Random(arguments.seed)
    totals: collections.Counter[str] = collections.Counter()
    options = ["--seconds", str(arguments.seconds)]
    options += ["--no-forks"] * (not arguments.forks) + ["--pauses"] * arguments.pauses
    begun = time.monotonic()
    rounds = failed = 0
    try:
        while not failed and time.monotonic() < begun + arguments.minutes * 60:
            seed = chance.randrange(1 << 30)
            command = [sys.executable, __file__, "--round", str(seed), str(rounds)]
            done = subprocess.run(
                command + options,
                env={**os.environ, "PYTHONPATH": str(Path(boundedexec.__file__).parents[1])},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                print(done.stdout, done.stderr[-20_000:])
                print(f"FAILED in round {rounds}, seed {seed}: {done.returncode}; before that")
                failed = 1
            else:
                totals.update(json.loads(done.stdout.splitlines()[-1]))
                rounds += 1
    except KeyboardInterrupt:
        print("interrupted, the round not counted; before that")
    minutes = (time.monotonic() - begun) / 60
    print(f"{rounds} rounds in {minutes:.1f} minutes")
    for what, much in totals.items():
        print(f"{much:12,} {what}")
    ends = totals["completed"] + totals["failed"] + totals["cancelled"]
    print(f"{totals['submitted']:,} submitted = {ends:,} completed, failed or cancelled")
    return failed or int(totals["submitted"] != ends)


if __name__ == "__main__":
    sys.exit(main())
