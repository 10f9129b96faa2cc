"""The world that a scenario lives in: what it makes and watches, and what holds at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from package import Package
from scheduler import Lock, Run, declare, mark


class Gate:
    """An event: closed until it is opened."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._lock.held = True

    def open(self) -> None:
        mark()
        if self._lock.held:
            self._lock.release()
        mark()

    def wait(self) -> None:
        mark()
        self._lock.acquire()
        self._lock.release()
        mark()


def nap() -> None:
    """Let others run meanwhile: that is no preemption."""
    lock = Lock()
    lock.held = True
    mark()
    lock.acquire(timeout=1)
    mark()


def meeting(count: int) -> list[Callable[[], None]]:
    """Bodies that end once all of them have started."""
    gates = [Gate() for _ in range(count)]

    def meet(mine: Gate) -> None:
        mine.open()
        for gate in gates:
            gate.wait()

    return [lambda mine=mine: meet(mine) for mine in gates]  # type: ignore[misc]


class World:
    """What a scenario makes, counts and watches."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self.services: list[Any] = []
        self.futures: list[Any] = []
        #: How often each body ran.
        self.ran: dict[str, int] = {}
        #: The bodies that are over, in order.
        self.ended: list[str] = []
        #: How many threads the package may start.
        self.most_threads = 99
        #: How many bodies may exceed the bound: those whose wait ran out of time.
        self.beyond = 0
        self._executing: dict[Any, int] = {}
        #: What else holds at the end.
        self.after: list[Callable[[], None]] = []

    def service(self, max_workers: int = 1, kind: Any = None, **settings: Any) -> Any:
        """A Service, or a subclass, made in one step."""
        before, Run.current = Run.current, None
        try:
            settings.setdefault("idle_timeout", None)
            service = (kind or self.package.Service)(max_workers, **settings)
        finally:
            Run.current = before
        service._slots.service = None  # Nothing happens when it is dropped.
        self.services.append(service)
        return service

    def threads(self, run: Run | None = None) -> int:
        """How many threads the package has started."""
        run = run or Run.current
        assert run is not None
        return sum(task.worker is not None for task in run.tasks)

    def thread(self, function: Callable[[], object], name: str = "other") -> None:
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
            try:
                return inside()
            finally:
                self.leaves(of)
                self.ended.append(name)

        return body

    def enters(self, of: Any = None) -> None:
        service = of or self.services[0]
        declare(self)
        count = self._executing[service] = self._executing.get(service, 0) + 1
        bound = service._slots.max_workers
        assert bound is None or count <= bound + self.beyond, "the bound was exceeded"

    def leaves(self, of: Any = None) -> None:
        declare(self)
        self._executing[of or self.services[0]] -= 1

    def without_slot(self, wait: Callable[[], Any], of: Any = None) -> Any:
        """Call what may yield or lend the slot, and has it again when it is over."""
        self.leaves(of)
        try:
            return wait()
        finally:
            self.enters(of)

    def submit(self, name: str, inside: Callable[[], object] = lambda: None, of: Any = None) -> Any:
        """Submit a body that has to come to its end."""
        service = of or self.services[0]
        return self.accept(service.submit(self.body(name, inside, of)))

    def accept(self, future: Any) -> Any:
        """A submission that has to come to its end."""
        self.futures.append(future)
        return future

    def finds(self, *names: str) -> None:
        """The bodies that are over by now are these."""
        declare(self)
        same(sorted(self.ended), sorted(names))

    def check(self, run: Run) -> None:
        """What holds when nobody can run any more. Looks at what is private: it has to tell
        work that hangs from threads that are idle."""
        threads = self.threads(run)
        assert threads <= self.most_threads, f"{threads} threads were started"
        for task in run.tasks:
            if task.alive:
                worker: Any = task.worker
                assert worker is not None, f"{task.name} waits for ever"
                assert worker.future is None, f"a body waits for ever on {task.name}"
                waiting = (*worker.slots.free, *worker.slots.spare)
                assert worker.wake in waiting, f"{task.name} waits for ever"
        alive = {task.worker for task in run.tasks if task.alive}
        for service in self.services:
            _check_slots(service._slots, alive)
        for future in self.futures:
            assert future.done(), "a submission was lost"
            failure = future.failure
            if failure is not None:
                failure.asked = True
                if isinstance(failure.exception, AssertionError):
                    raise failure.exception
        for name, count in self.ran.items():
            assert count == 1, f"{name} ran {count} times"
        assert not self.package.rooms.graph.graph.waiting, "the graph keeps something"
        assert not self.package.called_locked, "a callback was called under the lock"
        for check in self.after:
            check()


def _check_slots(slots: Any, alive: set[Any]) -> None:
    assert not slots.resuming, "a body that resumes was forgotten"
    assert not slots.lends, "a lent slot was forgotten"
    assert not [f for f in slots.queue if hasattr(f, "fn")], "a submission was forgotten"
    free = [wake.worker for wake in slots.free]
    spare = [wake.worker for wake in slots.spare]
    assert len(free) == slots.opened == len(set(free)), (
        f"{len(free)} of {slots.opened} slots are free"
    )
    assert 0 < slots.opened <= slots.bound, f"{slots.opened} slots, {slots.bound} allowed"
    assert len({*free, *spare}) == len(free) + len(spare), "a worker waits in two places"
    assert not slots.preparing and not slots.preparing_for_lends, "an initializer is counted"
    assert slots.quiet, "a signal is on its way for ever"
    assert slots.fetcher is None, "a worker is to fetch lends for ever"
    for name in "unslotted", "in_transit", "observers":
        assert not getattr(slots, name), f"{name} keeps something"
    for worker in slots.workers:
        assert worker in free or worker in spare, "a worker neither works nor is idle"
        assert worker.begun is (worker in alive), "a worker has no thread, or not yet"
        assert worker.slot is (worker in free), "a slot is in two places"
        assert not worker.debts and worker.lend is None, "a lend is never over"
        assert worker.future is None and worker.node is None


def same(found: object, expected: object) -> None:
    assert found == expected, f"{found!r}, not {expected!r}"
