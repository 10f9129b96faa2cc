"""The semaphore: who may execute, in what order, and that no slot is ever lost."""

from __future__ import annotations

import gc
import itertools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import CodeType, FrameType
from typing import Any, NoReturn

import pytest
from conftest import LIMIT, Starts, holding, shallow, wait_until

import boundedexec
from boundedexec import Service


class Oops(BaseException):
    """What no `except Exception` catches."""


class Executing:
    """Counts those who execute: `with executing:` around what needs a slot."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.peak = 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.peak = max(self.peak, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1

    @contextmanager
    def pause(self) -> Generator[None]:
        """Around what a body does without a slot, or may."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


class Blocking:
    """Tells from outside that a thread is blocked on a lock."""

    def __init__(self) -> None:
        self._steps = 0

    def watch(self) -> None:
        """Watch this thread from now on."""
        sys.setprofile(self._profile)

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        # Called, returned, raised: an odd number while it is inside.
        if event.startswith("c_") and arg.__name__ == "acquire":
            self._steps += 1

    def wait(self) -> None:
        """Return when the thread has been inside one `acquire` for a while."""
        end = time.monotonic() + LIMIT
        while True:
            steps = self._steps
            time.sleep(0.01)
            if steps % 2 and steps == self._steps:
                return
            assert time.monotonic() < end


def check_every_slot(service: Service, bound: int) -> None:
    """Each of `bound` slots can be used, all at once, and there are no more."""
    assert service.block_till_done(LIMIT)
    together = threading.Barrier(bound + 1)
    release = threading.Event()

    def body() -> None:
        together.wait(LIMIT)
        release.wait(LIMIT)

    bodies = [service.submit(body) for _ in range(bound)]
    more = service.submit(int)
    together.wait(LIMIT)
    assert not more.running() and not more.done()
    release.set()
    assert [each.result(LIMIT) for each in bodies] == [None] * bound
    assert more.result(LIMIT) == 0


def fail(exception: BaseException) -> NoReturn:
    raise exception


# Order and bound.


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
        check_every_slot(service, bound)


@pytest.mark.parametrize("bound", [2, 5])
def test_no_slot_is_left_idle_while_a_submission_waits(bound: int) -> None:
    with Service(bound) as service, Service.unbounded() as others:
        for _ in range(200):
            # Ends only if all of them hold a slot at once.
            together = threading.Barrier(bound)
            submitters = [
                others.submit(service.submit, together.wait, LIMIT) for _ in range(bound)
            ]
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
        check_every_slot(service, 2)


@pytest.mark.parametrize("exception", [ValueError(), SystemExit(), Oops()])
def test_a_body_that_raises_costs_no_slot(exception: BaseException) -> None:
    with Service(2) as service:
        futures = [service.submit(fail, exception) for _ in range(20)]
        assert all(future.exception(LIMIT) is exception for future in futures)
        check_every_slot(service, 2)


# Yielding.


def test_yield_slot_returns_what_its_callable_returns_and_runs_it_here() -> None:
    with Service(1) as service:

        def body() -> None:
            thread = threading.current_thread()
            assert service.yield_slot(threading.current_thread) is thread
            assert service.yield_slot(int, "11", base=2) == 3
            given = {"self": 1, "fn": 2}
            assert service.yield_slot(dict, **given) == given

        service.submit(body).result(LIMIT)
        check_every_slot(service, 1)


def test_yield_slot_lets_others_execute_meanwhile() -> None:
    with Service(1) as service:

        def body() -> int:
            return service.yield_slot(service.submit(int, "5").result, LIMIT)

        assert service.submit(body).result(LIMIT) == 5


def test_slot_yielded_lets_others_execute_meanwhile() -> None:
    with Service(1) as service:

        def body() -> tuple[int, bool, bool]:
            inner = service.submit(int, "5")
            with service.slot_yielded():
                got = inner.result(LIMIT)
            later = service.submit(int)
            return got, later.running(), later.done()

        # It has a slot again after the block.
        assert service.submit(body).result(LIMIT) == (5, False, False)
        check_every_slot(service, 1)


@pytest.mark.parametrize("exception", [ValueError(), SystemExit(), Oops()])
def test_a_body_has_a_slot_again_before_yield_raises(exception: BaseException) -> None:
    executing = Executing()

    def other() -> None:
        with executing:
            time.sleep(0)

    with Service(1) as service:

        def body() -> None:
            with executing:
                for _ in range(3):
                    service.submit(other)
                with pytest.raises(type(exception)), executing.pause():
                    service.yield_slot(fail, exception)
                with pytest.raises(type(exception)), executing.pause():
                    with service.slot_yielded():
                        raise exception

        # `pause` counts itself in when it has left: the slot must be there by then.
        for future in [service.submit(body) for _ in range(20)]:
            future.result(LIMIT)
        assert executing.peak == 1
        check_every_slot(service, 1)


def test_bodies_that_resume_go_before_submissions_that_have_not_started() -> None:
    order: list[str] = []
    go_on = threading.Event()
    asking = Blocking()

    def first() -> None:
        def wait() -> None:
            go_on.wait(LIMIT)
            asking.watch()

        service.yield_slot(wait)
        order.append("resumed")

    def second() -> None:
        for _ in range(5):
            service.submit(order.append, "queued")
        go_on.set()
        asking.wait()

    with Service(1) as service:
        with holding(service):
            service.submit(first)
            service.submit(second)
        assert service.block_till_done(LIMIT)
    assert order == ["resumed"] + ["queued"] * 5


def test_a_nested_yield_just_runs() -> None:
    with Service(1) as service:

        def body() -> int:
            with service.slot_yielded():
                with service.slot_yielded():
                    inner = service.yield_slot(
                        lambda: service.yield_slot(lambda: service.submit(int, "5"))
                    )
                # Still given away: else this would not end.
                got = inner.result(LIMIT)
                assert service.submit(int, "6").result(LIMIT) == 6
            return got

        assert service.submit(body).result(LIMIT) == 5
        check_every_slot(service, 1)


def test_a_nested_yield_passes_on_what_is_raised() -> None:
    with Service(1) as service:

        def body() -> int:
            with service.slot_yielded():
                with pytest.raises(Oops):
                    service.yield_slot(fail, Oops())
                return service.submit(int, "5").result(LIMIT)

        assert service.submit(body).result(LIMIT) == 5
        check_every_slot(service, 1)


def test_a_slot_given_away_may_start_one_more_body_on_one_more_thread() -> None:
    together = threading.Barrier(50)

    def body() -> str:
        service.yield_slot(together.wait, LIMIT)
        return threading.current_thread().name

    with Service(1) as service:
        futures = [service.submit(body) for _ in range(50)]
        assert len({future.result(LIMIT) for future in futures}) == 50
        check_every_slot(service, 1)


def test_on_an_unbounded_service_yield_just_runs_wherever_it_is_called() -> None:
    with Service.unbounded() as service:
        assert service.yield_slot(int, "5") == 5
        with service.slot_yielded():
            pass
        with pytest.raises(Oops):
            service.yield_slot(fail, Oops())
        with pytest.raises(Oops), service.slot_yielded():
            raise Oops
        assert service.submit(service.yield_slot, int, "5").result(LIMIT) == 5


def test_yield_outside_a_body_is_refused_and_changes_nothing() -> None:
    called: list[int] = []

    def refused(service: Service) -> None:
        with pytest.raises(RuntimeError):
            service.yield_slot(called.append, 1)
        with pytest.raises(RuntimeError):
            with service.slot_yielded():
                called.append(2)

    with Service(2) as service, Service(1) as other, Service.unbounded() as unbounded:
        refused(service)
        other.submit(refused, service).result(LIMIT)
        unbounded.submit(refused, service).result(LIMIT)
        refused(service)
        assert called == []
        check_every_slot(service, 2)
        check_every_slot(other, 1)


def test_a_thread_that_a_body_started_holds_no_slot() -> None:
    with Service(1) as service:

        def body() -> None:
            raised: SimpleQueue[object] = SimpleQueue()

            def try_it() -> None:
                with pytest.raises(RuntimeError) as caught:
                    service.yield_slot(int)
                raised.put(caught.value)

            threading.Thread(target=try_it).start()
            assert isinstance(raised.get(timeout=LIMIT), RuntimeError)

        service.submit(body).result(LIMIT)
        check_every_slot(service, 1)


def test_a_body_yields_the_slot_of_its_own_service_alone() -> None:
    with Service(1) as service, Service(1) as other:

        def outer() -> None:
            other.submit(inner).result(LIMIT)

        def inner() -> None:
            assert other.yield_slot(other.submit(int, "5").result, LIMIT) == 5
            with pytest.raises(RuntimeError):
                service.yield_slot(int)

        service.submit(outer).result(LIMIT)
        check_every_slot(service, 1)
        check_every_slot(other, 1)


# From anywhere.


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals here")
@pytest.mark.parametrize("bound", [1, 3, 0])
def test_submissions_from_a_signal_handler_are_never_lost(bound: int) -> None:
    from_handler: list[Future[int]] = []
    others_may_go_on = threading.Event()
    others_may_go_on.set()

    def act() -> None:
        from_handler.append(service.submit(int, "7"))

    def submitter() -> list[Future[int]]:
        mine: list[Future[int]] = []
        while others_may_go_on.is_set():
            mine.append(service.submit(int, "5"))
            if len(mine) % 50 == 0:
                mine[-1].result(LIMIT)
        return mine

    with Service(bound) as service, Service.unbounded() as others:
        before = signal.signal(signal.SIGALRM, shallow(act))
        submitters = [others.submit(submitter) for _ in range(2)]
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            here: list[Future[int]] = []
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                here.append(service.submit(int, "3"))
                service.submit(int).cancel()
                service.submit(int).add_done_callback(lambda _: None)
                assert here[-1].result() == 3
                service.block_till_done(0.002)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            others_may_go_on.clear()
            signal.signal(signal.SIGALRM, before)
        assert from_handler
        assert {future.result(LIMIT) for future in from_handler} == {7}
        assert {future.result(LIMIT) for future in here} == {3}
        for each in submitters:
            assert {future.result(LIMIT) for future in each.result(LIMIT)} <= {5}
        assert service.block_till_done(LIMIT)
        if bound:
            check_every_slot(service, bound)


class Cycle:
    """Garbage that only the collector finds, and that submits when it does."""

    def __init__(self, submit: Callable[[], object]) -> None:
        self._submit = submit
        self._self = self

    def __del__(self) -> None:
        self._submit()


@pytest.mark.parametrize("bound", [1, 3, 0])
def test_submissions_from_a_del_during_collection_are_never_lost(bound: int) -> None:
    from_del: list[Future[int]] = []

    def submit_from_del() -> None:
        from_del.append(service.submit(int, "7"))

    def submitter() -> list[Future[list[int]]]:
        mine: list[Future[list[int]]] = []
        for _ in range(300):
            Cycle(submit_from_del)
            # Makes things that the collector tracks, and so calls it.
            mine.append(service.submit(lambda *args: [len(args)], [], {}, ()))
        return mine

    before = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        with Service(bound) as service, Service.unbounded() as others:
            submitters = [others.submit(submitter) for _ in range(3)]
            for each in submitters:
                for future in each.result(LIMIT):
                    assert future.result(LIMIT) == [3]
            # Does nothing while another thread collects.
            wait_until(lambda: gc.collect() >= 0 and len(from_del) == 900)
            assert service.block_till_done(LIMIT)
            assert {future.result(LIMIT) for future in from_del} == {7}
            if bound:
                check_every_slot(service, bound)
    finally:
        gc.set_threshold(*before)


PACKAGE = str(Path(boundedexec.__file__).parent)


def interrupting(interrupt: Callable[[], object]) -> Any:
    """A trace function that calls `interrupt` once at each line of the package's code."""
    seen: set[tuple[CodeType, int]] = set()

    def local(frame: FrameType, event: str, _: Any) -> Any:
        where = frame.f_code, frame.f_lineno
        if event == "line" and where not in seen:
            seen.add(where)
            interrupt()
        return local

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(PACKAGE) else None

    return enter


@contextmanager
def traced(interrupt: Callable[[], object]) -> Generator[None]:
    before = sys.gettrace()
    sys.settrace(interrupting(interrupt))
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("held", [0, 1, 2])
def test_submit_may_be_called_in_the_middle_of_anything(held: int) -> None:
    inner: list[Future[int]] = []

    with Service(2) as service:

        def interrupt() -> None:
            inner.append(service.submit(int, "7"))

        def use() -> None:
            # Twice: the second finds what the first left.
            for _ in range(2):
                with traced(interrupt):
                    future = service.submit(int, "5")
                futures.append(future)
            with traced(interrupt):
                service.submit(int).cancel()
            with traced(interrupt):
                service.submit(int).add_done_callback(lambda _: None)
            with traced(interrupt):
                service.block_till_done(0)
            with traced(interrupt):
                service.submit(int).running()

        futures: list[Future[int]] = []
        if held:
            with holding(service, held):
                use()
        else:
            use()
        with traced(interrupt):
            assert futures[-1].result() == 5
        with traced(interrupt):
            assert service.block_till_done()
        assert [future.result(LIMIT) for future in futures] == [5, 5]
        assert len(inner) > 50
        assert {future.result(LIMIT) for future in inner} == {7}
        check_every_slot(service, 2)


def test_submit_may_be_called_in_the_middle_of_what_a_thread_of_the_service_does() -> None:
    inner: list[Future[int]] = []

    def interrupt() -> None:
        try:
            inner.append(service.submit(int, "7"))
        except RuntimeError:
            pass  # After the end of the test.

    with Service(2) as service:

        def nested() -> int:
            with service.slot_yielded():
                service.submit(int).result(LIMIT)
            # Lends.
            return service.submit(int, "5").result() + service.submit(int, "6").result()

        threading.settrace(interrupting(interrupt))
        try:
            for _ in range(3):
                futures = [service.submit(nested) for _ in range(6)]
                failing = service.submit(fail, ValueError())
                assert [future.result(LIMIT) for future in futures] == [11] * 6
                assert isinstance(failing.exception(LIMIT), ValueError)
                assert service.block_till_done(LIMIT)
        finally:
            threading.settrace(None)
        assert len(inner) > 50
        assert {future.result(LIMIT) for future in inner} == {7}
        check_every_slot(service, 2)


# Random mixes.


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
                assert ran == 0, error  # No thread for it, and no caller to tell.
            else:
                assert ran == 1
        check_every_slot(self.service, bound)
        self.service.shutdown()


@pytest.fixture(params=[None, 1e-6], ids=["", "switching"])
def switching(request: pytest.FixtureRequest) -> Iterator[None]:
    """Once as it is, once with threads that are switched as often as can be."""
    before = sys.getswitchinterval()
    if request.param:
        sys.setswitchinterval(request.param)
    yield
    sys.setswitchinterval(before)


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
