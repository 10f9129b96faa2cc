"""Lending: what a body waits for gets its slot, and gives it back; circles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from scenarios import scenario
from scenarios_slots import yielding
from scheduler import declare
from world import Gate, World, meeting, nap, same


def waiting(world: World, *names: str, of: Any = None, inside: Any = int) -> Callable[[], Any]:
    """A body that submits others to its own service and waits for each in turn."""

    def body() -> None:
        for name in names:
            inner = world.submit(name, inside, of)
            world.without_slot(inner.result, of)

    return body


def _wait_for_all(world: World, futures: list[Any], **options: Any) -> Any:
    return world.without_slot(lambda: world.package.rooms.waits.wait(futures, **options))


@scenario(2, 2)
def lend_beside_a_submit(world: World) -> None:
    """A body lends its slot to what it waits for while something else is queued."""
    world.service()
    world.submit("outer", waiting(world, "inner"))
    world.submit("other")


@scenario(3, 2)
def lend_beside_block_till_done(world: World) -> None:
    """A slot that is lent and given back is never seen as nothing outstanding."""
    service = world.service()
    world.submit("outer", waiting(world, "inner"))
    assert service.block_till_done()
    world.finds("inner", "outer")


@scenario(2, 2)
def lend_beside_a_cancel(world: World) -> None:
    """What a body lends its slot to is cancelled: it goes on, with its slot, and lends none to
    what is cancelled already."""
    lends: list[None] = []
    recorder = world.package.rooms.recording.Recorder()

    def lent(*_: object) -> None:
        lends.append(None)

    recorder.lent = lent
    world.service()._slots.recorder = recorder
    inner: list[Any] = []
    known = Gate()

    def outer() -> None:
        inner.append(world.submit("inner"))
        known.open()
        try:
            world.without_slot(inner[0].result)
        except world.package.stdlib.CancelledError:
            pass

    world.submit("outer", outer)
    known.wait()
    inner[0].cancel()
    world.after.append(lambda: same(inner[0].cancelled(), "inner" not in world.ran))
    world.after.append(lambda: same(lends[1:], []))


@scenario(2, 1)
def lend_beside_a_start(world: World) -> None:
    """What a body lends its slot to is started by a worker of the queue."""
    world.service(2)
    world.submit("outer", waiting(world, "inner"))
    world.submit("other")


@scenario(2, 1)
def lend_by_one_of_two(world: World) -> None:
    """A body lends for the second time while the borrower of the first one parks."""
    world.service()
    world.submit("outer", waiting(world, "a", "b"))


@scenario(2, 1)
def lend_inside_a_lend(world: World) -> None:
    """The borrower waits too: the slot goes on, and comes back the same way."""
    world.service()
    world.submit("outer", waiting(world, "middle", inside=waiting(world, "inner")))


@scenario(2, 1)
def two_lend_at_once(world: World) -> None:
    """Two bodies lend their slots to submissions that need each other."""
    world.service(2)
    both, meet = meeting(2), meeting(2)

    def outer(number: int) -> None:
        both[number]()  # Both have a slot before one asks for more.
        waiting(world, f"inner {number}", inside=meet[number])()

    for number in range(2):
        world.submit(f"outer {number}", partial(outer, number))


@scenario(2, 1)
def a_lend_whose_start_fails(world: World) -> None:
    """Of two lends one has no thread: its lender raises, or needs none any more."""
    world.service(2)
    world.package.fails_to_start = lambda: world.threads() >= 3

    def outer(name: str) -> None:
        try:
            waiting(world, name)()
        except RuntimeError as error:
            same(str(error), "can't start new thread")

    for name in "first", "second":
        world.submit(name, partial(outer, f"{name} inner"))


@scenario(2, 1)
def lends_with_an_initializer(world: World) -> None:
    """The thread that is woken for a lend takes its time; the next lend has another."""
    world.service(2, initializer=nap)
    for name in "first", "second":
        world.submit(name, waiting(world, f"{name} inner"))


# With a time limit.


def _timed(world: World, future: Any) -> None:
    def wait() -> None:
        try:
            future.result(1)
        except world.package.stdlib.TimeoutError:
            body = world.package.rooms.state.current_body()
            assert body.lend not in [*body.slots.lends], "a lend was not withdrawn"

    world.without_slot(wait)


@scenario(2, 2)
def a_timed_lend(world: World) -> None:
    """The time runs out before the borrower starts, while it runs, as it ends: the lend is
    withdrawn, or the slot comes back later, or now."""
    world.service()
    world.beyond = 1
    world.submit("outer", lambda: _timed(world, world.submit("inner", nap)))


@scenario(2, 1)
def a_timed_lend_beside_a_submit(world: World) -> None:
    """The same while something else is queued for the slot."""
    world.service()
    world.beyond = 1
    world.submit("outer", lambda: _timed(world, world.submit("inner")))
    world.submit("other")


@scenario(2, 2)
def a_timed_lend_beside_block_till_done(world: World) -> None:
    """A body that goes on without its slot is outstanding."""
    service = world.service()
    world.beyond = 1
    world.submit("outer", lambda: _timed(world, world.submit("inner")))
    assert service.block_till_done()
    world.finds("inner", "outer")


@scenario(2, 1)
def a_timed_lend_and_another(world: World) -> None:
    """A body whose slot is still lent yields, lends or waits again."""
    world.service()
    world.beyond = 1

    def outer() -> None:
        inner = world.submit("inner", nap)
        _timed(world, inner)
        world.without_slot(inner.result)

    world.submit("outer", outer)


@scenario(2, 1)
def a_timed_lend_and_a_yield(world: World) -> None:
    """A body yields a slot that its borrower still has."""
    world.service()
    world.beyond = 1

    def outer() -> None:
        _timed(world, world.submit("inner", nap))
        yielding(world)()

    world.submit("outer", outer)


# Several.


@scenario(2, 1)
def lend_on_to_the_next(world: World) -> None:
    """A body waits for two: the slot goes from one to the other, and back."""
    world.service()

    def outer() -> None:
        _wait_for_all(world, [world.submit("a"), world.submit("b")])

    world.submit("outer", outer)


@scenario(2, 1)
def lend_on_beside_a_cancel(world: World) -> None:
    """The next is cancelled beside the end of the one before."""
    world.service()
    inner: list[Any] = []
    known = Gate()

    def outer() -> None:
        inner.extend([world.submit("a"), world.submit("b")])
        known.open()
        _wait_for_all(world, inner)

    world.submit("outer", outer)
    known.wait()
    inner[1].cancel()


@scenario(2, 2)
def a_lender_goes_on(world: World) -> None:
    """A body lends its slot to one of two that it waits for, and the other ends: it goes on
    beside the end of what has the slot, and is outstanding all the while."""
    service = world.service()
    bare = world.package.Future()

    def outer() -> None:
        _wait_for_all(world, [world.submit("inner"), bare], return_when="FIRST_COMPLETED")

    world.submit("outer", outer)
    world.thread(lambda: bare.set_result(None))
    assert service.block_till_done()
    world.finds("inner", "outer")


@scenario(2, 1)
def a_lender_goes_on_with_another_slot(world: World) -> None:
    """Where the slot is with a borrower that still runs, it gets the next that is free, and
    the borrower keeps its own."""
    world.service(2)
    bare = world.package.Future()

    def outer() -> None:
        _wait_for_all(world, [world.submit("inner", nap), bare], return_when="FIRST_COMPLETED")

    world.submit("outer", outer)
    world.submit("other")
    bare.set_result(None)
    world.submit("late")


@scenario(2, 1)
def stdlib_wait_in_a_body(world: World) -> None:
    """The stdlib's `wait` lends as ours does."""
    world.service()

    def outer() -> None:
        futures = [world.submit("a"), world.submit("b")]
        world.without_slot(lambda: world.package.stdlib.wait(futures))
        assert all(future.done() for future in futures), "it returned early"

    world.submit("outer", outer)


@scenario(2, 1)
def stdlib_as_completed_in_a_body(world: World) -> None:
    """So does its `as_completed`, at each step."""
    world.service()

    def outer() -> None:
        futures = [world.submit("a"), world.submit("b")]
        given = world.without_slot(lambda: list(world.package.stdlib.as_completed(futures)))
        same(sorted(map(futures.index, given)), [0, 1])

    world.submit("outer", outer)


@scenario(2, 1)
def two_wait_for_the_same(world: World) -> None:
    """Two bodies wait for one that is queued: one lends, both go on."""
    world.service(2)
    shared: list[Any] = []
    known = Gate()

    def first() -> None:
        shared.append(world.submit("inner"))
        known.open()
        world.without_slot(shared[0].result)

    def second() -> None:
        known.wait()
        world.without_slot(shared[0].result)

    world.submit("first", first)
    world.submit("second", second)


# Resuming with a lent slot.


@scenario(2, 1)
def resume_by_a_lend(world: World) -> None:
    """A body wants its slot back; another that holds the only one waits for it, and lends."""
    world.service()
    first: list[Any] = []
    gate = Gate()
    first.append(world.submit("first", yielding(world, gate.wait)))

    def second() -> None:
        world.submit("third")
        gate.open()
        world.without_slot(first[0].result)

    world.submit("second", second)
    # It has its slot back before anything queued starts.
    world.after.append(lambda: same(world.ended, ["first", "second", "third"]))


@scenario(2, 1)
def a_chain_to_a_resuming_body(world: World) -> None:
    """The same over a body of another service that waits in between."""
    service = world.service()
    other = world.service()
    first: list[Any] = []
    gate = Gate()
    first.append(world.submit("first", yielding(world, gate.wait)))

    def second() -> None:
        gate.open()
        between = world.submit("between", lambda: world.without_slot(first[0].result, other), other)
        world.without_slot(between.result)

    world.submit("second", second)
    assert service.block_till_done()


# Two services.


@scenario(1, 1)
def two_services_crosswise(world: World) -> None:
    """A body of each of two full services waits for one queued on the other."""
    services = world.service(), world.service()
    both = meeting(2)

    def outer(mine: int) -> None:
        both[mine]()
        there = services[1 - mine]
        inner = world.submit(f"inner {mine}", int, there)
        world.without_slot(inner.result, services[mine])

    for mine in range(2):
        world.submit(f"outer {mine}", partial(outer, mine), services[mine])


@scenario(2, 1)
def a_chain_over_another_service(world: World) -> None:
    """A body waits for one of another service, which waits for one queued on the first."""
    world.service()
    other = world.service()

    def between() -> None:
        world.without_slot(world.submit("inner").result, other)

    world.submit(
        "outer", lambda: world.without_slot(world.submit("between", between, other).result)
    )


@scenario(2, 1)
def a_chain_whose_start_fails(world: World) -> None:
    """The thread for what a slot is lent to over another service cannot be started: the
    wait raises, and the slot is back with the first."""
    world.service()
    other = world.service()
    starts: list[object] = []

    def fails() -> bool:
        starts.append(None)
        return len(starts) == 3

    world.package.fails_to_start = fails

    def between() -> None:
        inner = world.submit("inner")
        try:
            world.without_slot(inner.result, other)
        except RuntimeError as error:
            same(str(error), "can't start new thread")

    world.submit(
        "outer", lambda: world.without_slot(world.submit("between", between, other).result)
    )


# Circles.


def _circle(world: World, length: int) -> None:
    world.service(length)
    futures: list[Any] = []
    caught: list[object] = []
    known = Gate()

    def ask(other: int) -> None:
        known.wait()
        try:
            world.without_slot(futures[other].result)
        except RuntimeError as error:
            declare(caught)
            caught.append(error)

    for number in range(length):
        futures.append(world.submit(f"body {number}", partial(ask, (number + 1) % length)))
    known.open()
    deadlock = world.package.rooms.blocking.DeadlockError
    world.after.append(lambda: same([type(error) for error in caught], [deadlock]))


@scenario(2, 2)
def a_circle_closed_by_two(world: World) -> None:
    """Two bodies wait for each other at once: exactly one raises, and both go on."""
    _circle(world, 2)


@scenario(1, 1)
def a_circle_of_three(world: World) -> None:
    """The same with three."""
    _circle(world, 3)


@scenario(2, 1)
def a_timed_wait_in_a_circle(world: World) -> None:
    """Where one of two that wait for each other has a time limit, neither raises."""
    world.service(2)
    futures: list[Any] = []
    known = Gate()

    def ask(other: int) -> None:
        known.wait()
        if other:
            _timed(world, futures[other])
        else:
            world.without_slot(futures[other].result)

    for number in range(2):
        futures.append(world.submit(f"body {number}", partial(ask, 1 - number)))
    known.open()
    world.after.append(lambda: same([future.exception() for future in futures], [None, None]))


@scenario(2, 2)
def a_body_waits_beside_an_end(world: World) -> None:
    """A body waits for another that executes and ends."""
    world.service(2)
    first = world.submit("first", lambda: 7)
    second = world.submit("second", lambda: world.without_slot(first.result))
    world.after.append(lambda: same(second.result(), 7))


@scenario(2, 2)
def a_callback_waits_for_the_lender(world: World) -> None:
    """A callback of what was lent a slot waits for the lender, which goes on once the
    future is over."""
    world.service()
    outer: list[Any] = []
    known = Gate()

    def wait() -> None:
        known.wait()
        inner = world.submit("inner")
        inner.add_done_callback(lambda _: outer[0].result())  # pyright: ignore[reportUnknownLambdaType]
        inner.result()

    world.beyond = 1
    outer.append(world.submit("outer", lambda: world.without_slot(wait)))
    known.open()


@scenario(2, 2)
def a_callback_waits_beside_a_waiting_body(world: World) -> None:
    """A body begins to wait for another that ends, and whose callback waits for a third,
    which yields: no callback runs under the lock of the slow path."""
    world.service(3)
    yielded = Gate()

    def third() -> None:
        yielding(world)()
        yielded.open()

    first = world.submit("first", lambda: 7)
    first.add_done_callback(lambda _: yielded.wait())  # pyright: ignore[reportUnknownLambdaType]
    second = world.submit("second", lambda: world.without_slot(first.result))
    world.submit("third", third)
    world.after.append(lambda: same(second.result(), 7))


@scenario(2, 2)
def a_condition_is_held_beside_a_waiting_body(world: World) -> None:
    """A thread that holds a future's condition, as the stdlib's `wait` does, shuts a service
    down, as the garbage collector may there. A body begins to wait for that future."""
    first = world.service(2).submit(int)
    another = world.service()
    world.submit("body", lambda: world.without_slot(first.result))
    condition = first._condition
    condition.acquire()
    another.shutdown(wait=False)
    condition.release()
