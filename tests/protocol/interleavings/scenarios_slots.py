"""Submitting, starting, parking, and the slots: opened, freed, resumed, bounded."""

from __future__ import annotations

from functools import partial
from typing import Any

from scenarios import scenario
from scheduler import DECLARED, Run, declare
from world import Gate, World, meeting, nap, same

# Submitting beside workers.


@scenario()
def submit_beside_an_end(world: World) -> None:
    """A submission is queued while the only worker ends a body or parks: one thread does both."""
    world.service()
    world.most_threads = 1
    world.submit("first")
    world.submit("second")


@scenario()
def submit_beside_a_signal(world: World) -> None:
    """The signal is consumed beside two submits that rely on it."""
    world.service()
    world.most_threads = 1
    for name in "first", "second", "third":
        world.submit(name)


@scenario()
def two_submitters(world: World) -> None:
    """Two threads submit to an idle service."""
    world.service()
    world.most_threads = 1
    world.thread(lambda: world.submit("other"))
    world.submit("mine")


@scenario(2, 2)
def two_submitters_two_slots(world: World) -> None:
    """Two threads submit bodies that need each other, so both slots must be taken."""
    world.service(2)
    world.most_threads = 2
    meet = meeting(2)
    world.thread(lambda: world.submit("other", meet[0]))
    world.submit("mine", meet[1])


@scenario()
def two_slots(world: World) -> None:
    """Two bodies that need each other: the second slot is opened by who took the first."""
    world.service(2)
    world.most_threads = 2
    for number, meet in enumerate(meeting(2)):
        world.submit(f"body {number}", meet)


@scenario(2, 1)
def three_slots(world: World) -> None:
    """Three bodies that need each other, and a fourth that must not run beside them."""
    world.service(3)
    world.most_threads = 3
    for number, meet in enumerate(meeting(3)):
        world.submit(f"body {number}", meet)
    world.submit("fourth")


@scenario()
def no_bound(world: World) -> None:
    """Each of two bodies that need each other has a thread at once."""
    world.service(0)
    for number, meet in enumerate(meeting(2)):
        world.submit(f"body {number}", meet)


@scenario(modes=("gil",))
def one_submission_one_thread(world: World) -> None:
    """One submission wakes one thread, however many slots there may be."""
    service = world.service(2)
    world.most_threads = 1
    world.submit("body")
    assert service.block_till_done()
    world.finds("body")


@scenario(2, 2)
def queued_in_order(world: World) -> None:
    """What one thread submits to one slot runs in that order, in which a worker that parks
    is woken or goes on by itself."""
    world.service()
    for name in "abc":
        world.submit(name)
    world.after.append(lambda: same(world.ended, ["a", "b", "c"]))


@scenario()
def idle_time_out_beside_a_submit(world: World) -> None:
    """A thread's idle time is over while it is signalled."""
    world.service(idle_timeout=1.0)
    world.submit("first").result()
    world.submit("second")


@scenario(2, 1)
def two_idle_time_outs(world: World) -> None:
    """Two idle threads' time is over while one of them is signalled."""
    world.service(2, idle_timeout=1.0)
    futures = [world.submit(f"body {n}", meet) for n, meet in enumerate(meeting(2))]
    for future in futures:
        future.result()
    world.submit("third")


@scenario(2, 1)
def idle_time_out_of_a_borrower(world: World) -> None:
    """A thread that was lent a slot times out in `spare` beside the next lend."""
    service = world.service(idle_timeout=1.0)

    def outer() -> None:
        for name in "first", "second":
            inner = world.submit(name)
            world.without_slot(inner.result)
            nap()

    world.accept(service.submit(world.body("outer", outer)))
    world.after.append(lambda: same([w for w in service._slots.workers if w.begun], []))


# Threads that cannot be started.


@scenario()
def a_start_that_fails(world: World) -> None:
    """A thread cannot be started while another's body ends: nothing is lost."""
    world.service(2)
    gate = Gate()
    world.submit("first", gate.wait)
    world.package.fails_to_start = lambda: True
    world.submit("second")
    gate.open()


@scenario(2, 2)
def a_start_that_fails_beside_a_submit(world: World) -> None:
    """One start fails; another thread submits meanwhile, and may rely on its signal."""
    service = world.service()
    fails = [True, False, False, False]
    world.package.fails_to_start = lambda: fails.pop(0)

    def submit(name: str) -> None:
        try:
            future = service.submit(world.body(name))
        except RuntimeError as error:
            same(str(error), "can't start new thread")
        else:
            futures.append(future)

    futures: list[Any] = []
    world.thread(lambda: submit("other"))
    submit("mine")

    def check() -> None:
        assert all(future.done() for future in futures), "a submission was lost"
        assert len(futures) - sum(f.failure is not None for f in futures) == len(world.ran)
        for future in futures:
            if future.failure is not None:
                future.failure.asked = True

    world.after.append(check)


@scenario(2, 2)
def starts_that_fail_beside_block_till_done(world: World) -> None:
    """Two submit where no thread can be started, and one relies on the other's signal."""
    service = world.service()
    world.package.fails_to_start = lambda: True

    def submit() -> None:
        try:
            world.accept(service.submit(int))
        except RuntimeError as error:
            same(str(error), "can't start new thread")

    world.thread(submit, "first")
    world.thread(submit, "second")
    assert service.block_till_done()


@scenario(2, 2)
def a_start_that_fails_beside_a_resume(world: World) -> None:
    """A start fails for which a free slot was taken while a body wants one again."""
    service = world.service()
    yielded = Gate()
    world.submit("body", yielding(world, yielded.wait))
    world.package.fails_to_start = lambda: True
    world.thread(yielded.open)
    second = service.submit(int)
    world.after.append(lambda: same(second.done(), True))


@scenario(2, 2)
def a_start_that_fails_beside_a_worker_that_ends(world: World) -> None:
    """A worker's idle time is over while something is submitted, and no other can start."""
    service = world.service(idle_timeout=1.0)
    world.submit("first").result()
    world.package.fails_to_start = lambda: True
    futures: list[Any] = []
    try:
        futures.append(service.submit(int))
    except RuntimeError as error:
        same(str(error), "can't start new thread")

    def check() -> None:
        for future in futures:
            assert future.done(), "a submission was lost"
            if future.failure is not None:
                future.failure.asked = True

    world.after.append(check)


@scenario(2, 1)
def a_start_for_a_burst_fails(world: World) -> None:
    """The start of a second thread fails where the first goes on: it runs all of them."""
    world.service(2)
    world.package.fails_to_start = lambda: world.threads() >= 1
    for name in "abc":
        world.submit(name)


# Initializers.


@scenario(2, 1)
def two_initializers(world: World) -> None:
    """Two threads whose initializers need each other, so neither may wait for the other's."""
    world.service(2, initializer=meeting_once(2))
    world.submit("first")
    world.submit("second")


def meeting_once(count: int) -> Any:
    bodies = meeting(count)
    return lambda: bodies.pop()()


@scenario(2, 2)
def an_initializer_beside_a_submit(world: World) -> None:
    """However long an initializer takes, a submission has one thread."""
    world.service(6, initializer=nap)
    # One that has prepared and taken nothing yet is not counted.
    world.most_threads = 4
    world.submit("first")
    world.submit("second")


@scenario(2, 2)
def an_initializer_that_fails(world: World) -> None:
    """What is queued while an initializer fails gets that error, or is refused."""
    service = world.service(initializer=partial(int, "no number"))
    broken = world.package.stdlib.thread.BrokenThreadPool
    for name in "first", "second":
        try:
            future = world.accept(service.submit(world.body(name)))
        except broken:
            continue
        world.after.append(
            lambda future=future: same(type(future.failure.exception), broken)  # type: ignore[misc]
        )


# Yielding and resuming.


def yielding(world: World, inside: Any = int) -> Any:
    service = world.services[0]
    return lambda: world.without_slot(lambda: service.yield_slot(inside))


@scenario(3, 2)
def resume_beside_a_submit(world: World) -> None:
    """A body wants its slot back while something new is queued: neither is forgotten."""
    world.service()
    world.submit("first", yielding(world))
    world.submit("second")


@scenario(2, 2)
def two_resume(world: World) -> None:
    """Two bodies want their slot back while each gives it up: both end, in turn."""
    world.service()
    world.submit("first", yielding(world))
    world.submit("second", yielding(world))


@scenario()
def resume_beside_a_parking_worker(world: World) -> None:
    """A body wants its slot back while the worker that has it parks."""
    world.service()
    gate = Gate()
    world.submit("first", yielding(world, gate.wait))
    world.submit("second", gate.open)


@scenario(2, 2)
def resumed_before_what_is_queued(world: World) -> None:
    """A body that wants its slot back has it before what has not started."""
    slots = world.service()._slots
    gate = Gate()
    log: list[str] = []

    def first() -> None:
        yielding(world, gate.wait)()
        log.append("first")

    def second() -> None:
        gate.open()
        assert Run.current is not None
        Run.current.touch(slots.resuming, None, False, DECLARED)
        if slots.resuming:
            log.append("first waits")

    def third() -> None:
        assert "first waits" not in log or "first" in log, "it went before a body that resumes"

    world.submit("first", first)
    world.submit("second", second)
    world.submit("third", third)


@scenario(2, 1)
def two_slots_two_resume(world: World) -> None:
    """Of two slots one comes free while two bodies want one."""
    world.service(2)
    world.submit("first", yielding(world))
    world.submit("second", yielding(world))
    world.submit("third")


# The bound.


@scenario(2, 2)
def a_larger_bound_beside_a_submit(world: World) -> None:
    """Two bodies need each other; the second slot is there once the bound allows it."""
    service = world.service(1)
    meet = meeting(2)
    world.submit("first", meet[0])
    world.thread(lambda: world.submit("second", meet[1]))
    service.max_workers = 2


@scenario(2, 2)
def a_larger_bound_beside_a_resume(world: World) -> None:
    """A body that wants its slot back gets the one that is opened."""
    service = world.service(1)
    started, gate = Gate(), Gate()

    def second() -> None:
        started.open()
        gate.wait()

    def first() -> None:
        yielding(world, started.wait)()
        gate.open()

    world.submit("first", first)
    world.submit("second", second)
    started.wait()
    service.max_workers = 2


@scenario(2, 1)
def resume_takes_the_last_free_slot(world: World) -> None:
    """Then the next one is opened all the same: three bodies need each other."""
    world.service(3)
    started = Gate()
    meet = meeting(3)

    def first() -> None:
        yielding(world, started.wait)()
        world.submit("third", meet[2])
        meet[0]()

    def second() -> None:
        started.open()
        meet[1]()

    world.submit("first", first)
    world.submit("second", second)


@scenario(2, 1)
def resume_beside_an_opening(world: World) -> None:
    """A body resumes between the take of the last free entry and the opening of the next."""
    world.service(3)
    started = Gate()
    meet = meeting(3)

    def first() -> None:
        yielding(world, started.wait)()
        meet[0]()

    def second() -> None:
        started.open()
        meet[1]()

    world.submit("first", first)
    world.submit("second", second)
    world.submit("third", meet[2])


@scenario(2, 1)
def resume_that_opens_beside_a_submit(world: World) -> None:
    """What is submitted while a body takes the only free slot starts on the next that opens."""
    service = world.service()
    meet = meeting(2)

    def set_bound() -> None:
        service.max_workers = 2

    def first() -> None:
        yielding(world, set_bound)()
        meet[0]()

    world.submit("first", first)
    world.submit("second", meet[1])


@scenario(2, 1)
def yield_to_a_resuming_body(world: World) -> None:
    """A body yields its slot until another, which wants one back, is over."""
    world.service()
    started, over = Gate(), Gate()

    def first() -> None:
        yielding(world, started.wait)()
        over.open()

    def second() -> None:
        started.open()
        yielding(world, over.wait)()

    world.submit("first", first)
    world.submit("second", second)


@scenario(2, 2)
def a_smaller_bound_beside_submits(world: World) -> None:
    """A slot above the bound is closed as its body ends, or while it is free."""
    service = world.service(2)
    world.beyond = 1
    world.submit("first")
    world.submit("second")
    service.max_workers = 1
    world.submit("third")
    world.after.append(lambda: same(service._slots.opened, 1))


@scenario(2, 1)
def down_and_up_beside_a_submit(world: World) -> None:
    """The bound goes down and up again beside a body that ends and one that is queued."""
    service = world.service(2)
    world.beyond = 1
    world.submit("first")
    world.thread(lambda: world.submit("second"))
    service.max_workers = 1
    service.max_workers = 2


@scenario(2, 1)
def a_smaller_bound_beside_a_yield(world: World) -> None:
    """A slot is yielded while there is one too many: it is closed or resumed, not both."""
    service = world.service(2)
    world.beyond = 1
    world.submit("first", yielding(world))
    world.submit("second")
    service.max_workers = 1
    world.after.append(lambda: same(service._slots.opened, 1))


# Workers that end unexpectedly.


def _end_from_outside(world: World, number: int = 0) -> None:
    """Set an exception on a worker's thread, as `PyThreadState_SetAsyncExc` does.

    It is raised in the worker's loop; before that and after it nothing is promised.
    """
    run = Run.current
    assert run is not None
    workers = world.package.rooms.state.current_worker.values
    run.interrupts = lambda task: task.number + 1 in workers
    task = [task for task in run.tasks if task.worker is not None][number]
    declare(task)
    task.exception = SystemExit("from outside")


@scenario(1, modes=("gil",))
def a_worker_ended_while_idle(world: World) -> None:
    """An exception from outside reaches an idle worker when it is woken, or parks: what it
    was woken for runs on another thread."""
    world.service()
    world.submit("first").result()
    _end_from_outside(world)
    second = world.services[0].submit(lambda: world.ended.append("second"))
    world.futures.append(second)

    def check() -> None:
        assert ("second" in world.ended) is (second.failure is None), "lost, or run and failed"

    world.after.append(check)


@scenario(2, modes=("gil",))
def a_worker_ended_while_two_are_queued(world: World) -> None:
    """With a worker goes at most what it was executing."""
    world.service()
    started = Gate()
    futures = [world.submit(name, started.open) for name in "abc"]
    started.wait()
    _end_from_outside(world)

    def check() -> None:
        failures = [future for future in futures if future.failure is not None]
        assert len(failures) <= 1, "it took more with it"

    world.after.append(check)


@scenario(2, modes=("gil",))
def a_borrower_ended(world: World) -> None:
    """One that was lent a slot ends: the slot comes back."""
    service = world.service()
    lent = Gate()

    def outer() -> None:
        inner = world.submit("inner", lent.open)
        try:
            world.without_slot(inner.result)
        except SystemExit:
            pass

    world.submit("outer", outer)
    lent.wait()
    _end_from_outside(world, 1)
    assert service.block_till_done()
