"""The Coalescer: submits for one key beside its start, its end, a cancel; its table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from scenarios import scenario
from scheduler import declare, mark
from world import Gate, World, same


def _executing(world: World) -> tuple[Any, Any, Any]:
    """A service, a Coalescer on it, and the future of a run that has started."""
    service = world.service()
    coalescer = world.package.Coalescer(service)
    started = Gate()
    first = world.accept(coalescer.submit("key", world.body("first", started.open)))
    started.wait()
    return service, coalescer, first


@scenario(2, 2)
def coalesced_beside_an_end(world: World) -> None:
    """A key is submitted while its run starts and ends: a run that starts later is its."""
    coalescer = world.package.Coalescer(world.service())
    first = world.accept(coalescer.submit("key", world.body("first", lambda: 1)))
    second = world.accept(coalescer.submit("key", world.body("second", lambda: 2)))

    def check() -> None:
        same(second.value, 2)
        assert first is second or first.value == 1
        same(len(coalescer), 0)

    world.after.append(check)


@scenario(2, 2)
def coalesced_twice_beside_an_end(world: World) -> None:
    """A key that executes is submitted twice by one thread: what came last runs last."""
    service, coalescer, _ = _executing(world)
    futures = [
        world.accept(coalescer.submit("key", world.body(name, partial(str, name))))
        for name in ("second", "third")
    ]
    assert service.block_till_done()
    declare(world)
    assert world.ended in (["first", "third"], ["first", "second", "third"])
    same(futures[1].value, "third")


@scenario(2, 1)
def coalesced_by_two(world: World) -> None:
    """Two threads submit the same key: each is given a run that starts later."""
    _two_submit(world, world.package.Coalescer(world.service()))


@scenario(2, 1)
def coalesced_by_two_on_two_slots(world: World) -> None:
    """The same where both could run at once."""
    _two_submit(world, world.package.Coalescer(world.service(2)))


@scenario(2, 1)
def coalesced_by_two_while_it_runs(world: World) -> None:
    """Two threads submit a key that executes: they share the one re-run, or follow."""
    _, coalescer, first = _executing(world)
    _two_submit(world, coalescer, first)


def _two_submit(world: World, coalescer: Any, before: Any = None) -> None:
    futures: dict[str, Any] = {}
    running: list[str] = []

    def submit(name: str) -> None:
        def run() -> str:
            assert not running, "two runs of one key at once"
            running.append(name)
            declare(running)
            running.pop()
            return name

        futures[name] = world.accept(coalescer.submit("key", world.body(name, run)))

    world.thread(lambda: submit("other"), "submitter")
    submit("mine")

    def check() -> None:
        for name, future in futures.items():
            assert future is not before, "it joined a run that had started"
            assert futures["mine"] is futures["other"] or future.value == name
        same(len(coalescer), 0)

    world.after.append(check)


@scenario(2, 2)
def joined_beside_an_end(world: World) -> None:
    """Who is content with the run that executes gets that, or the next."""
    _, coalescer, first = _executing(world)
    joined = world.accept(coalescer.join("key", world.body("second")))
    world.after.append(lambda: same(joined is first, "second" not in world.ran))


@scenario(2, 2)
def idle_beside_a_join(world: World) -> None:
    """A run is joined that another thread is just handing to a service with a `submit` of
    its own: that run is outstanding, and nothing else."""
    base: Any = world.package.Service
    entered, asked = Gate(), Gate()

    class Overriding(base):  # type: ignore[misc]
        def submit(self, *call: Any) -> Any:
            entered.open()
            asked.wait()
            return base.submit(self, *call)

    service = world.service(kind=Overriding)
    coalescer = world.package.Coalescer(service)
    world.thread(lambda: world.accept(coalescer.join("key", world.body("first"))), "submitter")
    entered.wait()
    joined = world.accept(coalescer.join("key", world.body("second")))
    asked.open()
    if world.package.rooms.outstanding.is_idle(service._slots):
        assert joined.done(), "what was joined is outstanding"


@scenario(2, 2)
def coalesced_join_beside_block_till_done(world: World) -> None:
    """Who joins a run that another is just handing over has something outstanding."""
    service = world.service()
    coalescer = world.package.Coalescer(service)

    def join() -> None:
        future = world.accept(coalescer.submit("key", lambda: 2))
        assert service.block_till_done()
        assert future.done(), "it returned early"

    world.thread(join, "submitter")
    world.accept(coalescer.submit("key", lambda: 1))


@scenario(3, 2)
def coalesced_beside_block_till_done(world: World) -> None:
    """A re-run that is owed is outstanding, all the time."""
    service, coalescer, first = _executing(world)
    second = world.accept(coalescer.submit("key", world.body("second")))
    assert first is not second, "it joined a run that had started"
    assert service.block_till_done()
    world.finds("first", "second")


@scenario(2, 2)
def coalesced_cancel_beside_a_join(world: World) -> None:
    """A run is cancelled while another submit joins it: it runs for that one."""
    coalescer = world.package.Coalescer(world.service())
    first = world.accept(coalescer.submit("key", lambda: 1))
    second: list[Any] = []
    world.thread(lambda: second.append(world.accept(coalescer.submit("key", lambda: 2))))
    cancelled = first.cancel()

    def check() -> None:
        assert first.cancelled() is cancelled
        assert not second[0].cancelled(), "cancelled by another"
        same(second[0].value, 2)
        same(len(coalescer), 0)

    world.after.append(check)


@scenario(2, 2)
def joined_beside_a_cancel(world: World) -> None:
    """A run is cancelled while one joins who is content with what is in flight: that one
    keeps it from being cancelled, or has a run of its own."""
    coalescer = world.package.Coalescer(world.service())
    first = world.accept(coalescer.submit("key", lambda: 1))
    second: list[Any] = []
    world.thread(lambda: second.append(world.accept(coalescer.join("key", lambda: 2))))
    cancelled = first.cancel()

    def check() -> None:
        assert first.cancelled() is cancelled
        assert not second[0].cancelled(), "it joined a run that was cancelled"
        same(len(coalescer), 0)

    world.after.append(check)


@scenario(2, 2)
def two_cancel_a_run_beside_its_start(world: World) -> None:
    """Both hear the same, and that is its end."""
    coalescer = world.package.Coalescer(world.service())
    future = world.accept(coalescer.submit("key", world.body("body")))
    heard: list[bool] = []
    world.thread(lambda: heard.append(future.cancel()))
    heard.append(future.cancel())

    def check() -> None:
        for answer in heard:
            assert answer is future.cancelled(), f"{heard}, and {future!r}"
        assert ("body" in world.ran) is not future.cancelled()
        same(len(coalescer), 0)

    world.after.append(check)


@scenario(2, 1)
def a_rerun_is_cancelled_beside_an_end(world: World) -> None:
    """What is owed is cancelled while the run before hands it over; the key goes on."""
    service, coalescer, _ = _executing(world)
    second = world.accept(coalescer.submit("key", world.body("second")))
    cancelled = second.cancel()
    third = world.accept(coalescer.submit("key", world.body("third")))
    assert service.block_till_done()

    def check() -> None:
        assert cancelled is second.cancelled()
        # Where its worker had the claim, it can be joined still.
        ran = "third" if second is third else "second"
        assert cancelled is (ran not in world.ran), "both or neither"
        assert not third.cancelled()
        same(len(coalescer), 0)

    world.after.append(check)


@scenario(2, 1)
def coalesced_wait_beside_an_end(world: World) -> None:
    """A body waits for a re-run while the run before hands that over: it lends its slot, for
    the other one is held until this body is over."""
    service = world.service(2)
    coalescer = world.package.Coalescer(service)
    go, over = Gate(), Gate()

    def wait() -> None:
        go.open()
        rerun = world.accept(coalescer.submit("key", int))
        world.without_slot(rerun.result)
        over.open()

    world.accept(coalescer.submit("key", world.body("first", go.wait)))
    world.submit("waiting", wait)
    world.submit("blocking", over.wait)


@scenario(2, 1)
def coalesced_beside_a_shutdown(world: World) -> None:
    """What is owed at a shutdown runs; what comes later is refused."""
    service, coalescer, _ = _executing(world)
    accepted: list[str] = []

    def submit() -> None:
        try:
            world.accept(coalescer.submit("key", world.body("second")))
        except RuntimeError:
            return
        accepted.append("second")

    world.thread(submit, "submitter")
    service.shutdown(wait=True)
    world.after.append(lambda: same(["first", *accepted], world.ended))


@scenario(2, 1)
def coalesced_beside_a_shutdown_that_cancels(world: World) -> None:
    """What is owed is cancelled, or it runs."""
    service, coalescer, _ = _executing(world)
    second = world.accept(coalescer.submit("key", world.body("second")))
    service.shutdown(wait=True, cancel_futures=True)

    def check() -> None:
        assert second.cancelled() is ("second" not in world.ran)
        same(len(coalescer), 0)

    world.after.append(check)


class _SlowKey:
    """Equals "key". Its submit has been accepted when `entered` opens, and goes on when `gate`
    does."""

    def __init__(self, gate: Gate) -> None:
        self.entered = Gate()
        self._gate = gate

    def __eq__(self, other: object) -> bool:
        return other == "key"

    def __hash__(self) -> int:
        self.entered.open()
        self._gate.wait()
        return hash("key")


@scenario(2, 1)
def joined_beside_a_shutdown_that_cancels(world: World) -> None:
    """A re-run is cancelled at its service's shutdown though one joins it meanwhile; it is not
    lost."""
    service = world.service()
    coalescer = world.package.Coalescer(service)
    shut, owed = Gate(), Gate()
    second, third = _SlowKey(shut), _SlowKey(shut)

    def first() -> None:
        second.entered.wait()
        third.entered.wait()
        service.shutdown(wait=False, cancel_futures=True)
        shut.open()
        owed.wait()

    def submit() -> None:
        world.accept(coalescer.submit(second, world.body("second")))
        owed.open()

    world.accept(coalescer.submit("key", world.body("first", first)))
    world.thread(submit, "submitter")
    try:
        world.accept(coalescer.submit(third, world.body("third")))
    except RuntimeError:
        pass  # That was cancelled before.
    world.after.append(lambda: same("second" in world.ran, False))


@scenario(2, 2)
def owed_beside_a_shutdown_that_cancels(world: World) -> None:
    """What is owed when a shutdown cancels is not queued after it."""
    service = world.service()
    coalescer = world.package.Coalescer(service)
    begun, gate = Gate(), Gate()

    def first() -> None:
        begun.open()
        gate.wait()

    world.accept(coalescer.submit("key", world.body("first", first)))
    begun.wait()
    second = world.accept(coalescer.submit("key", world.body("second")))
    gate.open()
    service.shutdown(wait=False, cancel_futures=True)
    slots = service._slots
    declare(slots)
    taken = [*slots.queue, *(worker.future for worker in slots.workers)]
    # It is not queued yet. (Without a GIL it may have been taken a step before that is known.)
    if world.package.gil and second.state == "PENDING" and second not in taken:
        world.after.append(lambda: same(second.cancelled(), True))


class _Executor:
    """Another package's executor: a thread for each call."""

    def __init__(self, world: World) -> None:
        self._world = world

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        future = self._world.package.Future()
        self._world.thread(lambda: future.set_result(fn(*args)), "executor")
        return future


@scenario(2, 1)
def coalesced_on_another_executor(world: World) -> None:
    """A key is submitted while the executor ends its run, and before that is handed over."""
    coalescer = world.package.Coalescer(_Executor(world))
    first = world.accept(coalescer.submit("key", lambda: 1))
    second = world.accept(coalescer.submit("key", lambda: 2))
    assert first is not second

    def check() -> None:
        same((first.value, second.value), (1, 2))
        same(len(coalescer), 0)

    world.after.append(check)


class _Key:
    """Keys with one hash, which are compared."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        mark()
        return isinstance(other, _Key) and self._name == other._name


@scenario(3, 2)
def two_keys_with_one_hash(world: World) -> None:
    """Two threads submit keys with the same hash beside each other's runs."""
    coalescer = world.package.Coalescer(world.service())
    world.thread(lambda: world.accept(coalescer.submit(_Key("b"), world.body("b"))))
    world.accept(coalescer.submit(_Key("a"), world.body("a")))
    world.after.append(lambda: same(len(coalescer), 0))


@scenario(modes=("gil",))
def entered_by_two_beside_an_equal_hash(world: World) -> None:
    """With a GIL the table is used without a lock: two threads enter a key while another one
    with its hash, which it is compared with, leaves. It is entered once."""
    room = world.package.rooms.runs
    runs = room.Runs(None, id)
    other, *entries = (room.Run(runs, _Key(name), 1, (int,)) for name in ("other", "key", "key"))
    assert runs.enter(other, True) is None
    joined: list[object] = []
    world.thread(lambda: runs.leave(other), "leaver")
    world.thread(lambda: joined.append(runs.enter(entries[0], True)), "submitter")
    joined.append(runs.enter(entries[1], True))

    def check() -> None:
        assert runs.find(1, _Key("key")) in joined, "it was entered twice"
        same(joined.count(None), 1)
        same(len(runs), 1)

    world.after.append(check)


@scenario(2, 2)
def submitted_in_the_middle_of_a_submit(world: World) -> None:
    """What interrupts a submit, under its lock, submits an equal key: there is one run, or
    one follows the other. (A signal handler; here it is a key's `__eq__`.)"""
    coalescer = world.package.Coalescer(world.service())
    inner: list[Any] = []

    class Key(_Key):
        __hash__ = _Key.__hash__

        def __eq__(self, other: object) -> bool:
            if not inner:
                inner.append(None)
                inner.append(world.accept(coalescer.submit(_Key("key"), world.body("inner"))))
            return _Key.__eq__(self, other)

    world.accept(coalescer.submit(_Key("other"), world.body("other")))
    world.accept(coalescer.submit(Key("key"), world.body("outer")))
    world.after.append(lambda: same(len(coalescer), 0))
