"""The package under the scheduler's control, and the world that a scenario lives in."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import instrument
from scheduler import Lock, RLock, Run, declare, helpers

SOURCE = Path(__file__).parents[2] / "boundedexec"
#: The modules of the core protocol, dependencies first.
MODULES = ["futures", "threads", "waiting", "slots", "service", "coalescer"]


class _Table(dict[Any, Any]):
    """`threading._active`: each thread touches its own entry."""


class _Thread:
    """What the package's threads use of `threading.Thread`."""

    def __init__(self, *, name: str, daemon: bool) -> None:
        self.name = name
        self._started = SimpleNamespace(set=lambda: None)


def _silent(name: str) -> logging.Logger:
    logger = logging.Logger(name)
    logger.addHandler(logging.NullHandler())
    return logger


def _ignored(function: object) -> None:
    """What is to be called at exit is not: nothing is to be finished then."""


def _ident() -> int:
    run = Run.current
    return 0 if run is None else run.running.number + 1


class Package:
    """One instrumented copy of the package."""

    def __init__(self, sources: Mapping[str, str] | None = None) -> None:
        if sources is None:
            sources = instrument.read(SOURCE, MODULES)
        self.sites: list[instrument.Site] = []
        #: Whether a thread cannot be started now.
        self.fails_to_start: Callable[[], bool] = lambda: False
        modules, sites = instrument.load(
            "instrumented",
            sources,
            helpers(lambda: self.sites),
            {
                "_thread": SimpleNamespace(
                    RLock=RLock,
                    allocate_lock=Lock,
                    get_ident=_ident,
                    get_native_id=_ident,
                    start_new_thread=self._start,
                    start_joinable_thread=self._start_joinable,
                ),
                # What is logged, the scenarios provoke.
                "logging": SimpleNamespace(getLogger=_silent),
                "threading": SimpleNamespace(
                    RLock=RLock,
                    Thread=_Thread,
                    TIMEOUT_MAX=threading.TIMEOUT_MAX,
                    _active=_Table(),
                    _register_atexit=_ignored,
                    current_thread=lambda: None,
                    getprofile=lambda: None,
                    gettrace=lambda: None,
                ),
            },
        )
        self.sites = sites
        self.world: World | None = None
        rooms: dict[str, Any] = {**modules}
        self.futures = rooms["futures"]
        self.waiting = rooms["waiting"]
        self.slots = rooms["slots"]
        self.Service = rooms["service"].Service
        self.coalescer = rooms["coalescer"]
        self.Coalescer = self.coalescer.Coalescer

    def _start(self, function: Callable[..., object], args: tuple[Any, ...]) -> int:
        run = Run.current
        assert run is not None
        if self.fails_to_start():
            raise RuntimeError("can't start new thread")
        worker = getattr(function, "__self__", None)
        number = sum(task.worker is not None for task in run.tasks) + 1
        run.spawn(function, args, f"worker {number}", worker)
        return 0

    def _start_joinable(self, function: Callable[..., object], *, daemon: bool) -> int:
        return self._start(function, ())

    def reset(self) -> None:
        """Forget what an execution that was broken off has left."""
        if self.world is not None:
            for service in self.world.services:
                service._slots.owner = None  # Nothing happens when it is dropped.
        self.futures.current.forget()
        self.waiting._forget_all()
        self.slots._every.clear()
        self.fails_to_start = lambda: False


class World:
    """What a scenario makes, counts and watches."""

    def __init__(self, package: Package) -> None:
        self.package = package
        package.world = self
        self.services: list[Any] = []
        self.futures: list[Any] = []
        #: How often each body ran.
        self.ran: dict[str, int] = {}
        #: The bodies that are over, in order.
        self.ended: list[str] = []
        self.shut_down = False
        #: How many threads the package may start.
        self.most_threads = 99
        self._executing: dict[Any, int] = {}
        self.after: list[Callable[[], None]] = []

    def service(self, max_workers: int = 1, **settings: Any) -> Any:
        """A Service, made in one step."""
        before, Run.current = Run.current, None
        try:
            service = self.package.Service(max_workers, **{"idle_timeout": None, **settings})
        finally:
            Run.current = before
        self.services.append(service)
        return service

    def threads(self, run: Run | None = None) -> int:
        """How many threads the package has started."""
        run = run or Run.current
        assert run is not None
        return sum(task.worker is not None for task in run.tasks)

    def thread(self, function: Callable[[], object], name: str) -> None:
        """Start a thread of the scenario's."""
        assert Run.current is not None
        Run.current.spawn(function, (), name)

    def body(
        self, name: str, inside: Callable[[], object] = lambda: None, of: Any = None
    ) -> Callable[[], object]:
        """A body that is counted, and must not find more of its service's executing than
        there are slots."""

        def body() -> object:
            self.ran[name] = self.ran.get(name, 0) + 1
            self.enters(of)
            assert not self.shut_down, "a body runs after the shutdown"
            try:
                return inside()
            finally:
                self.leaves(of)
                self.ended.append(name)

        return body

    def enters(self, service: Any = None) -> None:
        service = service or self.services[0]
        declare(self)
        count = self._executing[service] = self._executing.get(service, 0) + 1
        assert count <= (service.max_workers or count), "the bound was exceeded"

    def leaves(self, service: Any = None) -> None:
        declare(self)
        self._executing[service or self.services[0]] -= 1

    def without_slot(self, wait: Callable[[], Any]) -> Any:
        """Call what may give the slot away and has it again when it is over."""
        self.leaves()
        try:
            return wait()
        finally:
            self.enters()

    def looks_into(self, container: object) -> None:
        """Something of the package's is about to be looked at."""
        run = Run.current
        if run is not None:
            run.look(container)

    def accept(self, future: Any) -> Any:
        """A submission that has to come to its end."""
        self.futures.append(future)
        return future

    def check(self, run: Run) -> None:
        """What holds when nobody can run any more. Looks at what is private: it has to tell
        work that is stuck from threads that rest."""
        package = self.package
        threads = self.threads(run)
        assert threads <= self.most_threads, f"{threads} threads were started"
        for task in run.tasks:
            if not task.alive:
                continue
            assert task.worker is not None, f"{task.name} waits for ever"
            worker: Any = task.worker
            assert worker.future is None, f"a body waits for ever on {task.name}"
            assert worker in worker.crew.parked, f"{task.name} waits for ever"
        for service in self.services:
            slots = service._slots
            assert not slots.resumers, "a body that resumes was forgotten"
            assert not slots.lends, "a lent slot was forgotten"
            claimable = [f for f in slots.queue if hasattr(f, "_fn")]
            assert not claimable, "a submission was forgotten"
            assert len(slots.free) == len(slots.all) == len(set(slots.free)), (
                f"{len(slots.free)} of {len(slots.all)} slots are free"
            )
            assert not slots.preparing and not slots.preparing_for_lends
            assert not slots.away, f"outstanding for ever: {slots.away}"
            assert slots.idle() or slots.queue, "never idle"
            for worker in slots.crew.workers:
                assert worker in slots.crew.parked, "a thread neither works nor rests"
                assert worker.slot is None
                assert not worker.fresh
                assert not worker.fetching
        for future in self.futures:
            assert future.done(), "a submission was lost"
            failure = future._failure
            if failure is not None:
                failure.asked = True
                error = failure.exception
                if isinstance(error, AssertionError):
                    raise error
        for name, count in self.ran.items():
            assert count == 1, f"{name} ran {count} times"
        for graph in "_waits", "_resuming", "_holds", "_held_up":
            assert not getattr(package.waiting, graph), f"{graph} keeps something"
        for check in self.after:
            check()
