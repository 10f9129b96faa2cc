"""Cancelling, ending and watching; nothing outstanding; shutdown."""

from __future__ import annotations

from functools import partial
from typing import Any

from scenarios import scenario
from scenarios_slots import yielding
from scheduler import DECLARED, Run, declare
from world import Gate, World, meeting, nap, same

# Cancelling.


def _cancelled_or_run(world: World, future: Any, heard: list[bool]) -> None:
    for answer in heard:
        assert answer is future.cancelled(), f"{heard}, and {future!r}"
    assert ("body" in world.ran) is not future.cancelled(), "cancelled and started, or neither"


@scenario()
def cancel_beside_a_start(world: World) -> None:
    """A submission is cancelled while it is started: one of the two happens."""
    world.service()
    future = world.submit("body")
    heard = [future.cancel()]
    world.after.append(lambda: _cancelled_or_run(world, future, heard))


@scenario(3, 2)
def two_cancel_beside_a_start(world: World) -> None:
    """Two threads cancel what a third starts: both hear the same, and that is its end."""
    world.service()
    future = world.submit("body")
    heard: list[bool] = []
    world.thread(lambda: heard.append(future.cancel()))
    heard.append(future.cancel())
    world.after.append(lambda: _cancelled_or_run(world, future, heard))


@scenario(3, 2)
def two_cancel_what_is_watched(world: World) -> None:
    """The same with a callback, which is called once."""
    world.service()
    called: list[object] = []
    future = world.submit("body")
    future.add_done_callback(called.append)
    heard: list[bool] = []
    world.thread(lambda: heard.append(future.cancel()))
    heard.append(future.cancel())
    world.after.append(lambda: _cancelled_or_run(world, future, heard))
    world.after.append(lambda: same(called, [future]))


@scenario(3, 2)
def wait_beside_a_cancel(world: World) -> None:
    """A future is waited for while it is cancelled, or started."""
    world.service()
    future = world.submit("body", lambda: 7)

    def wait() -> None:
        try:
            assert future.result() == 7
        except world.package.stdlib.CancelledError:
            assert future.cancelled()

    world.thread(wait, "waiter")
    future.cancel()


# Watching.


@scenario()
def result_beside_an_end(world: World) -> None:
    """A future is waited for, and called back, while its body ends."""
    world.service()
    called: list[object] = []
    future = world.submit("body", lambda: 7)
    future.add_done_callback(called.append)
    assert future.result() == 7
    world.after.append(lambda: same(called, [future]))


@scenario(3, 3)
def two_wait_beside_an_end(world: World) -> None:
    """Two threads wait for a future with `wait` while its body ends."""
    world.service()
    future = world.submit("body", lambda: 7)
    wait = world.package.rooms.waits.wait
    world.thread(lambda: wait([future]), "waiter")
    wait([future])
    world.after.append(lambda: same(future.result(), 7))


@scenario(3, 2)
def a_callback_is_part_of_the_body(world: World) -> None:
    """What others add, or wait for, while the body ends does not take its callback away."""
    service = world.service()
    called: list[object] = []

    def callback(future: object) -> None:
        nap()
        called.append(future)

    future = world.submit("body")
    future.add_done_callback(callback)
    wait = world.package.rooms.waits.wait
    world.thread(lambda: future.add_done_callback(id), "adder")
    world.thread(lambda: wait([future]), "waiter")
    assert service.block_till_done()
    same(called, [future])


@scenario(3, 2)
def callbacks_beside_an_end(world: World) -> None:
    """Callbacks are added by two threads while the body ends: each is called once."""
    world.service()
    called: list[int] = []
    future = world.submit("body")
    world.thread(lambda: future.add_done_callback(lambda _: called.append(1)))  # pyright: ignore[reportUnknownLambdaType]
    future.add_done_callback(lambda _: called.append(2))  # pyright: ignore[reportUnknownLambdaType]
    world.after.append(lambda: same(sorted(called), [1, 2]))


@scenario()
def a_timed_wait_beside_an_end(world: World) -> None:
    """A thread's wait runs out of time while the body ends."""
    world.service()
    future = world.submit("body", lambda: 7)
    try:
        assert future.result(1) == 7
    except TimeoutError:
        pass


@scenario(2, 2)
def wait_for_two_beside_their_ends(world: World) -> None:
    """Our `wait` hears of each end once, and returns when both are over."""
    service = world.service(2)
    futures = [world.submit(name, lambda: 7) for name in "ab"]
    done, not_done = world.package.rooms.waits.wait(futures)
    same((len(done), len(not_done)), (2, 0))
    assert service.block_till_done()


@scenario(2, 2)
def stdlib_wait_beside_the_ends(world: World) -> None:
    """The stdlib's `wait` hears of each end once: twice, it would return early."""
    world.service(2)
    futures = [world.submit(name, lambda: 7) for name in "ab"]
    done, not_done = world.package.stdlib.wait(futures)
    same((len(done), len(not_done)), (2, 0))
    assert all(future.done() for future in futures)


@scenario(3, 3)
def two_stdlib_waits_beside_an_end(world: World) -> None:
    """Two threads wait with the stdlib's `wait`, and both watch first."""
    world.service()
    future = world.submit("body")
    world.thread(lambda: world.package.stdlib.wait([future]), "waiter")
    assert world.package.stdlib.wait([future]).done == {future}


@scenario(2, 2)
def stdlib_as_completed_beside_the_ends(world: World) -> None:
    """The stdlib's `as_completed` gives each future once."""
    world.service(2)
    futures = [world.submit(name) for name in "ab"]
    given = list(world.package.stdlib.as_completed(futures))
    same(sorted(map(futures.index, given)), [0, 1])


@scenario(2, 2)
def as_completed_beside_the_ends(world: World) -> None:
    """Ours gives each future once."""
    world.service(2)
    futures = [world.submit(name) for name in "ab"]
    given = list(world.package.rooms.waits.as_completed(futures))
    same(sorted(map(futures.index, given)), [0, 1])


@scenario(3, 2)
def a_bare_future_is_set_by_two(world: World) -> None:
    """Two set the result of a bare future: one does, and who waits has it."""
    future = world.package.Future()
    raised: list[object] = []

    def set_result(value: int) -> None:
        try:
            future.set_result(value)
        except world.package.stdlib.InvalidStateError as error:
            raised.append(error)

    world.thread(partial(set_result, 1), "first")
    world.thread(partial(set_result, 2), "second")
    result = future.result()
    world.after.append(lambda: same((len(raised), future.result()), (1, result)))


# Nothing is outstanding.


@scenario()
def block_till_done_beside_the_last_end(world: World) -> None:
    """It returns once the last body is over, and not before."""
    service = world.service()
    world.submit("body")
    assert service.block_till_done()
    world.finds("body")


@scenario(3, 2)
def block_till_done_beside_a_callback(world: World) -> None:
    """What a callback submits is waited for too: there is no gap between the two."""
    service = world.service()
    future = world.submit("first")
    future.add_done_callback(lambda _: world.submit("second"))  # pyright: ignore[reportUnknownLambdaType]
    assert service.block_till_done()
    world.finds("first", "second")


@scenario(3, 2)
def block_till_done_with_two_slots(world: World) -> None:
    """Each slot is free at some time, and nothing is outstanding at another."""
    service = world.service(2)
    world.submit("first", lambda: world.submit("second"))
    assert service.block_till_done()
    world.finds("first", "second")


@scenario(2, 2)
def block_till_done_beside_a_submitter(world: World) -> None:
    """One that submits the next before its own ends leaves no gap; a stranger may."""
    service = world.service()
    world.submit("first")
    world.thread(lambda: world.submit("other"))
    assert service.block_till_done()
    declare(world)
    assert "first" in world.ended, "it returned early"


@scenario(2, 2)
def block_till_done_beside_a_cancel(world: World) -> None:
    """Who cancels the last that is queued wakes nobody; who waits returns all the same."""
    service = world.service()
    world.submit("first")
    future = world.submit("second")
    world.thread(future.cancel, "canceller")
    assert service.block_till_done()
    declare(world)
    assert "first" in world.ended, "it returned early"


@scenario(3, 2)
def idle_beside_an_end(world: World) -> None:
    """Nothing is outstanding: that is not said while what was queued is taken."""
    service = world.service()
    world.submit("first")
    world.submit("second")
    if world.package.rooms.outstanding.is_idle(service._slots):
        world.finds("first", "second")


@scenario(3, 2)
def idle_beside_a_submit(world: World) -> None:
    """Nor while another thread, which has queued something, wakes a worker for that."""
    service = world.service()
    world.thread(lambda: world.submit("body"))
    slots = service._slots
    nap()
    assert Run.current is not None
    Run.current.touch(slots.queue, None, False, DECLARED)
    if slots.queue and world.package.rooms.outstanding.is_idle(slots):
        world.finds("body")


@scenario(3, 2)
def idle_beside_a_yield(world: World) -> None:
    """Nor while a body has started and yielded."""
    service = world.service()
    gate = Gate()
    world.submit("first")
    world.submit("second", yielding(world, gate.wait))
    if world.package.rooms.outstanding.is_idle(service._slots):
        raise AssertionError("something was outstanding")
    gate.open()


@scenario(3, 2)
def block_till_done_beside_a_yield(world: World) -> None:
    """A body is outstanding while its slot is another's, and while it resumes."""
    service = world.service()
    world.submit("body", yielding(world))
    assert service.block_till_done()
    world.finds("body")


@scenario(2, 1)
def block_till_done_beside_yields(world: World) -> None:
    """Two bodies yield and resume in turn."""
    service = world.service()
    world.submit("first", yielding(world))
    world.submit("second", yielding(world))
    assert service.block_till_done()
    world.finds("first", "second")


@scenario(2, 2)
def block_till_done_beside_a_time_out(world: World) -> None:
    """A worker whose idle time is over is counted as busy until its slot is free again."""
    service = world.service(idle_timeout=1.0)
    world.submit("body").result()
    assert service.block_till_done()


@scenario(2, 2)
def two_block_till_done(world: World) -> None:
    """Two threads wait for the same end, and one gives up."""
    service = world.service()
    world.submit("body")
    world.thread(lambda: service.block_till_done(1), "impatient")
    assert service.block_till_done()
    world.finds("body")


# Shutdown.


@scenario(2, 2)
def shutdown_beside_a_submit(world: World) -> None:
    """A submission beside a shutdown is refused, or finished before that returns."""
    service = world.service()
    refused: list[str] = []

    def submit() -> None:
        try:
            world.submit("body")
        except RuntimeError:
            refused.append("body")
            assert not world.package.rooms.service.slots_of(service).queue, "refused, and queued"

    world.thread(submit, "submitter")
    service.shutdown(wait=True)
    ran = list(world.ran)
    world.after.append(lambda: same([*refused, *ran], ["body"]))
    world.after.append(lambda: same(list(world.ran), ran))


@scenario(2, 2)
def shutdown_beside_a_submit_and_an_end(world: World) -> None:
    """A submission is refused after the last worker has looked into the queue."""
    service = world.service()
    world.submit("first")

    def submit() -> None:
        try:
            world.submit("second")
        except RuntimeError:
            pass

    world.thread(submit, "submitter")
    service.shutdown(wait=True)
    ran = list(world.ran)
    world.after.append(lambda: same(list(world.ran), ran))


@scenario(3, 2)
def shutdown_beside_an_end(world: World) -> None:
    """The thread ends though it parks while all are ended."""
    service = world.service()
    world.submit("body")
    service.shutdown(wait=True)
    world.finds("body")
    world.after.append(lambda: _no_threads(service))


def _no_threads(service: Any) -> None:
    begun = [worker for worker in service._slots.workers if worker.begun]
    same(begun, [])


@scenario(3, 2)
def shutdown_of_an_idle_thread(world: World) -> None:
    """Nothing is outstanding, and a thread is idle: it ends."""
    service = world.service(2)
    world.submit("body").result()
    service.shutdown(wait=False)
    world.after.append(lambda: _no_threads(service))


@scenario(2, 1)
def shutdown_of_two_idle_threads(world: World) -> None:
    """Each ends the next."""
    service = world.service(2)
    for future in [world.submit(f"body {n}", meet) for n, meet in enumerate(meeting(2))]:
        future.result()
    service.shutdown(wait=False)
    world.after.append(lambda: _no_threads(service))


@scenario(2, 1)
def shutdown_of_two_threads(world: World) -> None:
    """Each ends the next, also where one parks meanwhile."""
    service = world.service(2)
    meet = meeting(2)
    world.submit("first", meet[0])
    world.submit("second", meet[1])
    service.shutdown(wait=True)
    world.finds("first", "second")
    world.after.append(lambda: _no_threads(service))


@scenario(2, 1)
def shutdown_beside_a_lend(world: World) -> None:
    """A thread without a slot ends as well, and what its body lends is run."""
    service = world.service()

    def outer() -> None:
        world.without_slot(world.submit("inner").result)

    future = world.submit("outer", outer)
    lent = Gate()
    future.add_done_callback(lambda _: lent.open())  # pyright: ignore[reportUnknownLambdaType]
    lent.wait()
    service.shutdown(wait=True)
    world.after.append(lambda: _no_threads(service))


@scenario(2, 1)
def lend_after_a_shutdown(world: World) -> None:
    """A thread without a slot idles or ends beside a shutdown and a lend."""
    service = world.service()
    known = Gate()

    def outer() -> None:
        first, second = world.submit("a"), world.submit("b")
        known.open()
        world.without_slot(first.result)
        world.without_slot(second.result)

    world.submit("outer", outer)
    known.wait()
    service.shutdown(wait=False)
    assert service.block_till_done()


@scenario(2, 2)
def shutdown_that_cancels(world: World) -> None:
    """What is queued is cancelled or runs; nothing is left."""
    service = world.service()
    world.submit("first")
    future = world.submit("second")
    service.shutdown(wait=True, cancel_futures=True)
    world.after.append(lambda: same("second" in world.ran, not future.cancelled()))
    world.after.append(lambda: _no_threads(service))


@scenario(2, 2)
def shutdown_beside_a_shutdown(world: World) -> None:
    """Two shut it down, one without waiting."""
    service = world.service()
    world.submit("body")
    world.thread(lambda: service.shutdown(wait=False))
    service.shutdown(wait=True)
    world.finds("body")
    world.after.append(lambda: _no_threads(service))


@scenario(2, 2)
def end_one_beside_a_submit(world: World) -> None:
    """A thread is woken to end while a submission that is accepted is signalled."""
    service = world.service(2)
    world.submit("first")
    world.thread(lambda: service.shutdown(wait=False), "closer")
    try:
        world.submit("second")
    except RuntimeError:
        pass
    world.after.append(lambda: _no_threads(service))
