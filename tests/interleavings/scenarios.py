"""The steps of the core protocol, beside each other.

Each scenario is a function that is given a `World` and is the main thread of every
execution. It makes as few threads as show the meeting that it is about.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
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


def nap() -> None:
    """Let others run meanwhile: that is no preemption."""
    lock = Lock()
    lock.held = True
    lock.acquire(timeout=1)


@scenario()
def submit_beside_an_end(world: World) -> None:
    """A submission is queued while the only slot is given up: one thread does both."""
    service = world.service()
    world.most_threads = 1
    world.accept(service.submit(world.body("first")))
    world.accept(service.submit(world.body("second")))


@scenario()
def two_submitters(world: World) -> None:
    """Two threads submit to a service at rest."""
    service = world.service()
    world.most_threads = 1
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


@scenario(2)
def two_initializers(world: World) -> None:
    """Two threads whose initializers need each other, so neither may wait for the other's."""
    gates = [Gate(), Gate()]
    orders = [gates, gates[::-1]]

    def initialize() -> None:
        mine, other = orders.pop()
        mine.open()
        other.wait()

    service = world.service(2, initializer=initialize)
    world.accept(service.submit(world.body("first")))
    world.accept(service.submit(world.body("second")))


@scenario(3)
def an_initializer_beside_a_submit(world: World) -> None:
    """However long an initializer takes, a submission has one thread; and another where
    one was taken between two looks."""
    service = world.service(6, initializer=nap)
    world.most_threads = 4
    world.accept(service.submit(world.body("first")))
    world.accept(service.submit(world.body("second")))


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


@scenario()
def two_cancel_beside_a_start(world: World) -> None:
    """Two threads cancel what a third starts: one succeeds, or it runs."""
    service = world.service()
    future = world.accept(service.submit(world.body("body")))
    told: list[bool] = []
    world.thread(lambda: told.append(future.cancel()), "canceller")
    told.append(future.cancel())

    def check() -> None:
        # One may be told False while the other is still about to make it so.
        assert (True in told) is future.cancelled(), told
        assert ("body" in world.ran) is not future.cancelled(), "cancelled and started, or neither"

    world.after.append(check)


@scenario()
def result_beside_an_end(world: World) -> None:
    """A future is waited for, and called back, while its body ends."""
    service = world.service()
    future = world.accept(service.submit(world.body("body", lambda: 7)))
    called: list[object] = []
    future.add_done_callback(called.append)
    assert future.result() == 7

    def check() -> None:
        assert called == [future], called

    world.after.append(check)


@scenario(3)
def two_watch_beside_an_end(world: World) -> None:
    """Two threads wait for a future while its body ends."""
    service = world.service()
    future = world.accept(service.submit(world.body("body", lambda: 7)))
    results: list[object] = []
    world.thread(lambda: results.append(future.result()), "waiter")
    results.append(future.result())
    world.after.append(lambda: _same(results, [7, 7]))


@scenario()
def wait_beside_a_cancel(world: World) -> None:
    """A future is waited for while it is cancelled, or started."""
    service = world.service()
    future = world.accept(service.submit(world.body("body", lambda: 7)))

    def wait() -> None:
        try:
            assert future.result() == 7
        except world.package.futures.CancelledError:
            assert future.cancelled()

    world.thread(wait, "waiter")
    future.cancel()


@scenario()
def idle_time_out_beside_a_hand_over(world: World) -> None:
    """A thread's idle time is over while it is handed a submission."""
    service = world.service(idle_timeout=1.0)
    world.accept(service.submit(world.body("first"))).result()
    world.accept(service.submit(world.body("second")))


@scenario(1)
def two_idle_time_outs(world: World) -> None:
    """Two idle threads' time is over while one of them is handed a submission."""
    service = world.service(2, idle_timeout=1.0)
    gates = Gate(), Gate()

    def meet(mine: Gate, other: Gate) -> None:
        mine.open()
        other.wait()

    first = world.accept(service.submit(world.body("first", lambda: meet(*gates))))
    world.accept(service.submit(world.body("second", lambda: meet(*reversed(gates))))).result()
    first.result()
    world.accept(service.submit(world.body("third")))


@scenario()
def block_till_done_beside_the_last_end(world: World) -> None:
    """What waits for everything returns once the last body is over, and not before."""
    service = world.service()
    world.accept(service.submit(world.body("body")))
    assert service.block_till_done()
    declare(world)
    assert world.ended == ["body"], "it returned early"


@scenario(3)
def block_till_done_beside_a_callback(world: World) -> None:
    """What a callback submits is waited for too: there is no gap between the two."""
    service = world.service()

    def callback(_: object) -> None:
        world.accept(service.submit(world.body("second")))

    future = world.accept(service.submit(world.body("first")))
    future.add_done_callback(callback)
    assert service.block_till_done()
    declare(world)
    assert world.ended == ["first", "second"], "it returned early"


@scenario(2)
def block_till_done_beside_a_cancel(world: World) -> None:
    """The callbacks of a submission are outstanding, also where it is cancelled."""
    service = world.service()
    world.accept(service.submit(world.body("first")))
    future = world.accept(service.submit(world.body("perhaps")))

    def callback(_: object) -> None:
        world.accept(service.submit(world.body("second")))

    future.add_done_callback(callback)
    world.thread(future.cancel, "canceller")
    assert service.block_till_done()
    declare(world)
    assert world.ended[-1] == "second", "it returned early"


@scenario()
def idle_beside_an_end(world: World) -> None:
    """Nothing is outstanding: that is not said while what was queued is taken."""
    service = world.service()
    world.accept(service.submit(world.body("first")))
    world.accept(service.submit(world.body("second")))
    if service._slots.idle():
        declare(world)
        assert world.ended == ["first", "second"], "something was outstanding"


@scenario()
def idle_beside_a_yield(world: World) -> None:
    """Nothing is outstanding: that is not said while a body has started and yielded."""
    service = world.service()
    gate = Gate()
    world.accept(service.submit(world.body("first")))
    world.accept(
        service.submit(
            world.body("second", lambda: world.without_slot(lambda: service.yield_slot(gate.wait)))
        )
    )
    if service._slots.idle():
        raise AssertionError("something was outstanding")
    gate.open()


@scenario(3)
def block_till_done_with_two_slots(world: World) -> None:
    """Each slot is free at some time; nothing is outstanding at another."""
    service = world.service(2)
    world.accept(
        service.submit(
            world.body("first", lambda: world.accept(service.submit(world.body("second"))))
        )
    )
    assert service.block_till_done()
    declare(world)
    assert world.ended == ["first", "second"] or world.ended == ["second", "first"]


@scenario(3)
def shutdown_beside_a_submit(world: World) -> None:
    """A submission beside a shutdown is refused, or finished before that returns."""
    service = world.service()
    refused: list[str] = []

    def submit() -> None:
        try:
            world.accept(service.submit(world.body("body")))
        except RuntimeError:
            refused.append("body")

    world.thread(submit, "submitter")
    service.shutdown(wait=True)
    world.shut_down = True
    world.after.append(lambda: _same(sorted([*refused, *world.ran]), ["body"]))


@scenario()
def shutdown_beside_an_end(world: World) -> None:
    """The threads end though one parks while all are told to."""
    service = world.service()
    world.accept(service.submit(world.body("body")))
    service.shutdown(wait=True)
    assert world.ended == ["body"], "it returned early"
    world.after.append(lambda: _same([*service._slots.crew.workers], []))


@scenario(3)
def shutdown_that_cancels(world: World) -> None:
    """What is queued is cancelled or runs; nothing is left."""
    service = world.service()
    world.accept(service.submit(world.body("first")))
    future = world.accept(service.submit(world.body("second")))
    service.shutdown(wait=True, cancel_futures=True)
    world.after.append(lambda: _same("second" in world.ran, not future.cancelled()))
    world.after.append(lambda: _same([*service._slots.crew.workers], []))


@scenario(3)
def two_resume_beside_an_end(world: World) -> None:
    """Two bodies want their slot back while a third gives it up: all end, in turn."""
    service = world.service()

    def yielding() -> None:
        world.without_slot(lambda: service.yield_slot(int))

    world.accept(service.submit(world.body("first", yielding)))
    world.accept(service.submit(world.body("second", yielding)))


@scenario()
def resume_beside_a_submit(world: World) -> None:
    """A body wants its slot back while something new is queued: neither is forgotten."""
    service = world.service()
    world.accept(
        service.submit(
            world.body("first", lambda: world.without_slot(lambda: service.yield_slot(int)))
        )
    )
    world.accept(service.submit(world.body("second")))


def lacks_memory(service: Any) -> None:
    """No other thread has memory for the first of its looks at who is waiting, nor for the
    third."""
    dispatch, own = service._slots.dispatch, threading.local()
    own.looks = -100  # Of this thread, whose `submit` would raise.

    def dispatch_or_raise() -> None:
        own.looks = getattr(own, "looks", 0) + 1
        if own.looks in (1, 3):
            raise MemoryError
        dispatch()

    service._slots.dispatch = dispatch_or_raise


@scenario()
def resume_beside_who_lacks_memory(world: World) -> None:
    """A body wants its slot back while another ends that has no memory to look for it."""
    service = world.service()
    lacks_memory(service)
    world.accept(
        service.submit(
            world.body("first", lambda: world.without_slot(lambda: service.yield_slot(int)))
        )
    )
    world.accept(service.submit(world.body("second")))


@scenario(2)
def yielded_and_needed(world: World) -> None:
    """A body yields its slot until another has run, which is submitted meanwhile."""
    service = world.service()
    gate = Gate()
    world.accept(
        service.submit(
            world.body("first", lambda: world.without_slot(lambda: service.yield_slot(gate.wait)))
        )
    )
    world.accept(service.submit(world.body("second", gate.open)))
    assert service.block_till_done()
    declare(world)
    assert sorted(world.ended) == ["first", "second"], "it returned early"


@scenario(2)
def yielded_and_needed_without_memory(world: World) -> None:
    """A body that has no memory to look for it yields its slot until another has run."""
    service = world.service()
    lacks_memory(service)
    gate = Gate()
    world.accept(
        service.submit(
            world.body("first", lambda: world.without_slot(lambda: service.yield_slot(gate.wait)))
        )
    )
    world.accept(service.submit(world.body("second", gate.open)))


@scenario(3)
def lend_beside_a_submit(world: World) -> None:
    """A body lends its slot to what it waits for while something else is queued."""
    service = world.service()

    def outer() -> object:
        inner = world.accept(service.submit(world.body("inner", lambda: 7)))
        return world.without_slot(inner.result)

    future = world.accept(service.submit(world.body("outer", outer)))
    world.accept(service.submit(world.body("other")))
    world.after.append(lambda: _same(future._result, 7))


@scenario(2)
def lend_beside_a_cancel(world: World) -> None:
    """What a body lends its slot to is cancelled: it goes on, with its slot."""
    service = world.service()
    inner: list[Any] = []

    def outer() -> None:
        future = world.accept(service.submit(world.body("inner")))
        inner.append(future)
        known.open()
        try:
            world.without_slot(future.result)
        except world.package.futures.CancelledError:
            pass

    known = Gate()
    world.accept(service.submit(world.body("outer", outer)))
    known.wait()
    inner[0].cancel()


@scenario(3)
def lend_beside_block_till_done(world: World) -> None:
    """A slot that is lent and given back is never seen as nothing outstanding."""
    service = world.service()

    def outer() -> None:
        world.without_slot(world.accept(service.submit(world.body("inner"))).result)

    world.accept(service.submit(world.body("outer", outer)))
    assert service.block_till_done()
    declare(world)
    assert world.ended == ["inner", "outer"], "it returned early"


@scenario(2)
def lend_to_a_thread_that_parks(world: World) -> None:
    """The thread that a body lends its slot to has parked and not yet given up its own."""
    service = world.service(2)
    started = Gate()

    def outer() -> None:
        started.open()
        inner = world.accept(service.submit(world.body("inner", nap)))
        world.without_slot(inner.result)

    world.accept(service.submit(world.body("outer", outer)))
    world.accept(service.submit(world.body("first", started.wait)))


@scenario(2)
def two_lend_at_once(world: World) -> None:
    """Two bodies lend their slots to submissions that need each other."""
    service = world.service(2)
    gates = Gate(), Gate()
    both = Gate()

    def meet(mine: Gate, other: Gate) -> None:
        mine.open()
        other.wait()

    def outer(name: str, mine: Gate, other: Gate) -> None:
        # Both have a slot before one asks for more.
        if name == "second inner":
            both.open()
        both.wait()
        inner = world.accept(service.submit(world.body(name, lambda: meet(mine, other))))
        world.without_slot(inner.result)

    for name, pair in ("first", gates), ("second", gates[::-1]):
        world.accept(service.submit(world.body(name, partial(outer, f"{name} inner", *pair))))


@scenario(2)
def lends_one_after_the_other(world: World) -> None:
    """A body lends while another's lend brings one worker too many."""
    service = world.service(2)

    def outer(*names: str) -> None:
        for name in names:
            inner = world.accept(service.submit(world.body(name)))
            world.without_slot(inner.result)

    world.accept(service.submit(world.body("first", partial(outer, "a", "b"))))
    world.accept(service.submit(world.body("second", partial(outer, "c"))))


@scenario(2)
def a_lend_whose_start_fails(world: World) -> None:
    """Of two lends one has no thread: its lender raises, or it needs none any more."""
    service = world.service(2)
    world.package.fails_to_start = lambda: world.threads() >= 3

    def outer(name: str) -> None:
        inner = world.accept(service.submit(world.body(name)))
        try:
            world.without_slot(inner.result)
        except RuntimeError as error:
            assert str(error) == "can't start new thread"

    for name in "first", "second":
        world.accept(service.submit(world.body(name, partial(outer, f"{name} inner"))))


@scenario(2)
def a_lender_goes_on(world: World) -> None:
    """A body lends its slot to one of two that it waits for; the other ends: it goes on
    beside the end of what has the slot, and is outstanding all the while."""
    service = world.service()
    other = world.package.futures.Future()

    def outer() -> None:
        inner = world.accept(service.submit(world.body("inner")))
        # What `wait` does, but for the stdlib's part, which locks futures in the order of
        # their addresses: that cannot be repeated.
        waiting = world.package.waiting._WaitForSeveral([inner, other], "FIRST_COMPLETED")
        world.without_slot(waiting.block_once)

    world.accept(service.submit(world.body("outer", outer)))
    world.thread(lambda: other.set_result(None), "other")
    assert service.block_till_done()
    declare(world)
    assert sorted(world.ended) == ["inner", "outer"], "it returned early"


@scenario(2)
def a_lender_goes_on_before_what_is_queued(world: World) -> None:
    """A body waits as `wait` does, for what has its slot: told of the end it goes on beside
    it, and has a slot before something that was queued meanwhile."""
    service = world.service()

    def outer() -> None:
        inner = world.accept(service.submit(world.body("inner")))
        waiting = world.package.waiting._WaitForSeveral([inner], "ALL_COMPLETED")
        world.without_slot(waiting.block_once)

    world.accept(service.submit(world.body("outer", outer)))
    world.accept(service.submit(world.body("other")))
    world.after.append(lambda: _same(world.ended[-2:], ["outer", "other"]))


@scenario(2)
def a_lender_goes_on_beside_block_till_done(world: World) -> None:
    """It is outstanding, too, while the slot that comes back is free for whoever resumes,
    and nothing is queued."""
    service = world.service(2)
    running, told, late = Gate(), Gate(), Gate()
    bare = world.package.futures.Future()

    def body() -> None:
        running.open()
        told.wait()
        late.open()

    def outer() -> None:
        inner = world.accept(service.submit(world.body("inner", body)))
        waiting = world.package.waiting._WaitForSeveral([inner, bare], "FIRST_COMPLETED")
        world.without_slot(waiting.block_once)

    # Its worker then drops from the queue what was lent a slot.
    other = world.accept(service.submit(world.body("other", running.wait)))
    world.accept(service.submit(world.body("outer", outer)))
    other.result()
    bare.set_result(None)
    told.open()
    late.wait()
    assert service.block_till_done()
    declare(world)
    assert sorted(world.ended) == ["inner", "other", "outer"], "it returned early"


@scenario(1)
def a_lender_goes_on_with_another_slot(world: World) -> None:
    """It is given a slot that is free while its own comes back: what is queued starts."""
    service = world.service(2)
    running, told, started = Gate(), Gate(), Gate()
    bare = world.package.futures.Future()

    def outer() -> None:
        inner = world.accept(service.submit(world.body("inner", running.open)))
        waiting = world.package.waiting._WaitForSeveral([inner, bare], "FIRST_COMPLETED")
        world.without_slot(waiting.block_once)
        started.wait()

    other = world.accept(service.submit(world.body("other", told.wait)))
    world.accept(service.submit(world.body("outer", outer)))
    running.wait()
    told.open()
    other.result()
    bare.set_result(None)
    world.accept(service.submit(world.body("late", started.open)))


@scenario(2)
def two_wait_in_a_circle(world: World) -> None:
    """Two bodies wait for each other: one is told so, and nobody hangs."""
    service = world.service(2)
    futures: list[Any] = []
    known = Gate()

    def ask(other: int) -> None:
        known.wait()
        futures[other].result()

    for name, other in ("first", 1), ("second", 0):
        futures.append(world.accept(service.submit(world.body(name, partial(ask, other)))))
    known.open()

    def check() -> None:
        errors = [type(future._failure.exception).__name__ for future in futures]
        assert errors == ["DeadlockError", "DeadlockError"], errors

    world.after.append(check)


@scenario()
def a_start_that_fails(world: World) -> None:
    """A thread cannot be started while another's body ends: nothing is lost."""
    service = world.service(2)
    gate = Gate()
    world.accept(service.submit(world.body("first", gate.wait)))
    world.package.fails_to_start = lambda: True
    world.accept(service.submit(world.body("second")))
    gate.open()


@scenario(2)
def starts_that_fail_beside_block_till_done(world: World) -> None:
    """Two submit where no thread can be started, and one relies on the other's."""
    service = world.service()
    world.package.fails_to_start = lambda: True

    def submit() -> None:
        try:
            service.submit(lambda: None)
        except RuntimeError as error:
            assert str(error) == "can't start new thread"

    for name in "first", "second":
        world.thread(submit, name)
    assert service.block_till_done()


@scenario(3)
def coalesced_beside_an_end(world: World) -> None:
    """A key is submitted while its run starts and ends: a run that starts later is its."""
    service = world.service()
    coalescer = world.package.Coalescer(service)
    first = world.accept(coalescer.submit("key", world.body("first", lambda: 1)))
    second = world.accept(coalescer.submit("key", world.body("second", lambda: 2)))

    def check() -> None:
        assert second._result == 2, "it joined a run that had started"
        assert first is second or first._result == 1
        assert len(coalescer) == 0

    world.after.append(check)


@scenario(3)
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
    assert futures[1]._result == "third"


@scenario(2)
def coalesced_by_two(world: World) -> None:
    """Two threads submit the same key: each is given a run that starts later."""
    service = world.service()
    coalescer = world.package.Coalescer(service)
    _two_submit(world, coalescer)


@scenario(2)
def coalesced_by_two_while_it_runs(world: World) -> None:
    """Two threads submit a key that executes: they share the one re-run, or follow."""
    _, coalescer, first = _executing(world)
    _two_submit(world, coalescer, first)


def _executing(world: World) -> tuple[Any, Any, Any]:
    """A service, a Coalescer on it, and the future of a run that has started."""
    service = world.service()
    coalescer = world.package.Coalescer(service)
    started = Gate()
    first = world.accept(coalescer.submit("key", world.body("first", started.open)))
    started.wait()
    return service, coalescer, first


@scenario()
def entered_by_two_beside_an_equal_hash(world: World) -> None:
    """Two threads enter a key while another one with its hash, which it is compared with,
    leaves: it has one line."""

    class Key:
        def __init__(self, name: str) -> None:
            self.name = name

        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            declare(self)
            return isinstance(other, Key) and self.name == other.name

    room = world.package.coalescer
    lines, coalescer = room._Lines(), room.Coalescer(world.service())
    other, *runs = (room._Run(coalescer, Key(name), []) for name in ("other", "key", "key"))
    assert lines.enter(other) is other
    found: list[Any] = []
    world.thread(lambda: lines.leave(other.line), "leaver")
    world.thread(lambda: found.append(lines.enter(runs[0])), "submitter")
    found.append(lines.enter(runs[1]))

    def check() -> None:
        assert found[0] is found[1] is lines.find(Key("key")), "it has two lines"
        assert len(lines) == 1
        lines.leave(found[0].line)
        assert not lines._groups, "a group is left"

    world.after.append(check)


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
            assert futures["mine"] is futures["other"] or future._result == name
        assert len(coalescer) == 0

    world.after.append(check)


@scenario()
def coalesced_interrupted_beside_its_run(world: World) -> None:
    """A Ctrl-C comes to a submit that has handed its run over: the run executes, or has
    failed, and not both."""
    futures: list[Any] = []

    coalescer = world.package.Coalescer(world.service())
    give = coalescer._give

    def interrupted(run: Any, owed: bool) -> Any:
        inner = give(run, owed)
        if owed:
            return inner
        futures.append(run.future)
        raise KeyboardInterrupt

    coalescer._give = interrupted
    try:
        coalescer.submit("key", world.body("body"))
    except KeyboardInterrupt:
        pass

    def check() -> None:
        (future,) = futures
        assert future.done()
        assert ("body" in world.ran) == (future._failure is None), "executed, and failed"
        if future._failure is not None:
            future._failure.asked = True
        assert len(coalescer) == 0

    world.after.append(check)


@scenario(2)
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


@scenario(2)
def coalesced_beside_block_till_done(world: World) -> None:
    """A re-run that is owed is outstanding, all the time."""
    service, coalescer, first = _executing(world)
    second = world.accept(coalescer.submit("key", world.body("second")))
    assert first is not second, "it joined a run that had started"
    assert service.block_till_done()
    declare(world)
    assert world.ended == ["first", "second"], "it returned early"


@scenario(2)
def coalesced_beside_a_cancel(world: World) -> None:
    """A run is cancelled while another submit joins it: it runs for that one."""
    service = world.service()
    coalescer = world.package.Coalescer(service)
    first = world.accept(coalescer.submit("key", lambda: 1))
    second: list[Any] = []
    world.thread(
        lambda: second.append(world.accept(coalescer.submit("key", lambda: 2))), "submitter"
    )
    cancelled = first.cancel()

    def check() -> None:
        assert first.cancelled() is cancelled
        assert not second[0].cancelled(), "cancelled by another"
        assert second[0]._result == 2
        assert len(coalescer) == 0

    world.after.append(check)


@scenario(2)
def coalesced_wait_beside_an_end(world: World) -> None:
    """A body waits for a re-run that it enters while the run before hands that over: it is
    lent the slot, for the other one is held until this body is over."""
    service = world.service(2)
    coalescer = world.package.Coalescer(service)
    go, over = Gate(), Gate()

    def wait() -> None:
        go.open()
        rerun = world.accept(coalescer.submit("key", int))
        world.without_slot(rerun.result)
        over.open()

    world.accept(coalescer.submit("key", world.body("first", go.wait)))
    world.accept(service.submit(world.body("waiting", wait)))
    world.accept(service.submit(world.body("blocking", over.wait)))


@scenario(3)
def held_by_three_at_once(world: World) -> None:
    """A re-run is entered while one worker hands it over and another executes it: it is
    held by what executes it, and no more by the run before."""
    before, run, executing, over = _held_by_three(world)
    for gate in over:
        gate.wait()
    _same(world.package.waiting._holds[run.future].pending, {executing: None})
    ways = world.package.waiting._held_up
    assert ways[executing] is run.future
    assert before.future not in ways, "held by what is over"
    run.future._conclude(None, None)


@scenario(3)
def held_by_three_beside_its_end(world: World) -> None:
    """The same, and it is over meanwhile: it is held by nothing."""
    _held_by_three(world, ends=True)


def _held_by_three(world: World, *, ends: bool = False) -> tuple[Any, Any, Any, list[Gate]]:
    """Hold a re-run as three threads do; the run before, the re-run, what executes it, and
    when the other two have done so."""
    room = world.package.coalescer
    coalescer = room.Coalescer(world.service())
    before, run = (room._Run(coalescer, "key", []) for _ in range(2))
    inner, executing = (world.package.futures.Future() for _ in range(2))
    over = [Gate(), Gate()]

    def hand_over() -> None:
        run.inner = inner
        run.hold()
        over[0].open()

    def execute() -> None:
        run.executing = executing
        run.hold()
        if ends:
            run.future._conclude(None, None)
        over[1].open()

    world.thread(hand_over, "hander")
    world.thread(execute, "executor")
    run.hold(before)
    return before, run, executing, over


@scenario()
def callback_beside_an_end(world: World) -> None:
    """Callbacks are entered while the body ends: each is called once."""
    service = world.service()
    future = world.accept(service.submit(world.body("body")))
    called: list[object] = []
    other: list[object] = []
    future.add_done_callback(called.append)
    future.add_done_callback(other.append)
    world.after.append(lambda: _same([called, other], [[future], [future]]))


@scenario()
def yielded_beside_block_till_done(world: World) -> None:
    """A body is outstanding while its slot is somebody else's."""
    service = world.service()
    world.accept(
        service.submit(
            world.body("body", lambda: world.without_slot(lambda: service.yield_slot(int)))
        )
    )
    assert service.block_till_done()
    declare(world)
    assert world.ended == ["body"], "it returned early"


@scenario()
def one_submission_one_thread(world: World) -> None:
    """One submission wakes one thread, however many slots are free."""
    service = world.service(2)
    world.most_threads = 1
    world.accept(service.submit(world.body("body")))
    assert service.block_till_done()


@scenario(2)
def a_body_waits_beside_an_end(world: World) -> None:
    """A body waits for another that executes and ends."""
    service = world.service(2)
    first = world.accept(service.submit(world.body("first", lambda: 7)))
    second = world.accept(
        service.submit(world.body("second", lambda: world.without_slot(first.result)))
    )
    world.after.append(lambda: _same(second._result, 7))


@scenario(2)
def as_completed_beside_two_ends(world: World) -> None:
    """One future is taken while another tells of its end: each is given once.

    Not a service's, whose workers try again what failed.
    """
    futures = [world.package.futures.Future() for _ in range(2)]
    for number, future in enumerate(futures):
        future._serial = number  # Else their order were that of a set.
        world.thread(partial(future.set_result, None), "executor")
    given = list(world.package.waiting.as_completed(futures))
    world.after.append(lambda: _same(sorted(map(futures.index, given)), [0, 1]))


@scenario(2)
def resumers_go_first(world: World) -> None:
    """A body that wants its slot back has it before what has not started."""
    service = world.service()
    slots = service._slots
    gate = Gate()
    log: list[str] = []

    def first() -> None:
        world.without_slot(lambda: service.yield_slot(gate.wait))
        log.append("first")

    def second() -> None:
        gate.open()
        world.looks_into(slots.resumers)
        if slots.resumers:
            log.append("first waits")

    def third() -> None:
        if "first waits" in log:
            assert "first" in log, "it went before a body that resumes"

    world.accept(service.submit(world.body("first", first)))
    world.accept(service.submit(world.body("second", second)))
    world.accept(service.submit(world.body("third", third)))


@scenario(2)
def a_slot_looked_for_in_vain(world: World) -> None:
    """A slot that is taken for nothing and put back is outstanding to nobody."""
    service = world.service(2)
    world.thread(lambda: world.accept(service.submit(world.body("body"))), "submitter")
    assert service.block_till_done()


def _same(found: object, expected: object) -> None:
    assert found == expected, f"{found!r}, not {expected!r}"
