"""`wait` and `as_completed` give what the stdlib's give, in bodies and outside."""

from __future__ import annotations

import concurrent.futures
import threading
import weakref
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future

import pytest
from helpers import A_WHILE, LIMIT, AnyFuture, NewService, wait_until

import boundedexec
from boundedexec import ThreadPoolExecutor

# The results of the stdlib's wait and as_completed


@pytest.mark.parametrize("inside", [False, True])
def test_wait_and_as_completed_have_the_stdlibs_results(
    new_service: NewService, inside: bool
) -> None:
    service = new_service(1)
    good: AnyFuture = Future()
    bad: AnyFuture = Future()
    gone: AnyFuture = boundedexec.Future[int]()
    open_: AnyFuture = boundedexec.Future[int]()
    good.set_result(1)
    bad.set_exception(OSError())
    gone.cancel()

    def check() -> None:
        done, not_done = both = boundedexec.wait([good, bad, good, gone])
        assert (done, not_done) == ({good, bad, gone}, set())
        assert both.done is done and both.not_done is not_done
        assert type(both) is type(concurrent.futures.wait([good]))
        assert boundedexec.wait([]) == (set(), set())
        assert boundedexec.wait(iter([good])).done == {good}
        assert boundedexec.wait({bad, open_}, None, FIRST_EXCEPTION) == ({bad}, {open_})
        assert boundedexec.wait({good, open_}, None, FIRST_COMPLETED) == ({good}, {open_})
        assert boundedexec.wait(fs=[open_], timeout=0.01).not_done == {open_}
        with pytest.raises(ValueError):
            boundedexec.wait([good, open_], return_when="SOMETIME")
        none: list[AnyFuture] = []
        assert list(boundedexec.as_completed(none)) == none
        again: list[AnyFuture] = [good, bad, gone, good]
        completed = list(boundedexec.as_completed(iter(again)))
        assert len(completed) == 3 and set(completed) == {good, bad, gone}
        steps = boundedexec.as_completed(fs=[open_, good], timeout=0.01)
        assert next(steps) is good
        with pytest.raises(concurrent.futures.TimeoutError):
            next(steps)

    service.submit(check).result(LIMIT) if inside else check()


def test_as_completed_yields_everything_once_in_a_body(
    new_service: NewService, switching: None
) -> None:
    service, other = new_service(2), new_service(2)

    def body() -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            futures: list[AnyFuture] = [
                executor.submit(int, n) for n in range(10) for executor in (service, other, pool)
            ]
            futures[3].cancel()
            seen = list(boundedexec.as_completed(futures + futures))
        assert len(seen) == len(futures) and set(seen) == set(futures)

    for future in [service.submit(body) for _ in range(20)]:
        future.result(LIMIT)


@pytest.mark.parametrize("first", ["main", "body"])
def test_as_completed_may_be_stepped_by_bodies_and_threads_in_turn(
    new_service: NewService, first: str
) -> None:
    service, gate = new_service(2), threading.Event()

    def step() -> object:
        return next(steps)

    held = service.submit(gate.wait)
    awaited: list[AnyFuture] = [service.submit(str, n) for n in range(4)]
    assert boundedexec.wait(awaited, LIMIT).done
    steps = boundedexec.as_completed([*awaited, held])
    seen: list[object] = []
    for turn in range(4):
        in_body = (turn % 2 == 0) == (first == "body")
        seen.append(service.submit(step).result(LIMIT) if in_body else step())
    threading.Timer(A_WHILE, gate.set).start()
    if first == "main":
        seen.append(service.submit(step).result(LIMIT))
    else:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(step).result(LIMIT))
    assert set(seen) == {*awaited, held} and seen[-1] is held
    assert next(steps, None) is None


def test_a_step_of_as_completed_lends_the_slot_of_the_body_that_makes_it(
    new_service: NewService,
) -> None:
    service = new_service(1)
    over = service.submit(int)
    over.result(LIMIT)

    def body() -> tuple[list[AnyFuture], bool]:
        queued = service.submit(int)
        decoy = service.submit(int)
        steps = boundedexec.as_completed([over, queued])
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert pool.submit(next, steps).result(LIMIT) is over
        assert list(steps) == [queued]
        return [over, queued], decoy.cancel()

    assert service.submit(body).result(LIMIT)[1]


def test_an_abandoned_as_completed_leaves_nothing_behind(new_service: NewService) -> None:
    service = new_service(1)

    def body() -> None:
        futures = [service.submit(int) for _ in range(3)]
        steps = boundedexec.as_completed(futures)
        assert next(steps) in futures
        del steps
        assert boundedexec.wait(futures).not_done == set()

    service.submit(body).result(LIMIT)


# The programs that documentation shows: an import is all that changes


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_as_completed_keeps_no_future_that_it_gave(timeout: float | None) -> None:
    with ThreadPoolExecutor(1) as pool:
        steps = boundedexec.as_completed([pool.submit(int), pool.submit(int)], timeout)
        given = weakref.ref(next(steps))
        wait_until(lambda: given() is None)
        assert next(steps).result() == 0
