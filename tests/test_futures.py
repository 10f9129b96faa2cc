"""The future: one of the stdlib's to whoever looks, and nothing that fails is lost."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
)
from functools import partial
from typing import Any, NoReturn

import pytest

import boundedexec
from boundedexec import Service

#: Seconds that nothing here takes unless it hangs.
LIMIT = 20
AnyFuture = Future[Any]


class Boom(Exception):
    """What bodies raise here; instances can be weakly referenced."""


def fail(exception: BaseException) -> NoReturn:
    try:
        raise exception
    finally:
        del exception  # Else its traceback leads back to it.


@pytest.fixture
def new_service() -> Iterator[Callable[[int], Service]]:
    made: list[Service] = []

    def make(bound: int) -> Service:
        made.append(Service(bound, daemon=True))
        return made[-1]

    yield make
    for service in made:
        service.shutdown(wait=False, cancel_futures=True)


@pytest.fixture
def busy(new_service: Callable[[int], Service]) -> Iterator[tuple[Service, threading.Event]]:
    """A service whose only slot is held until the event is set."""
    service, gate, held = new_service(1), threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        gate.wait()

    service.submit(hold)
    assert held.wait(LIMIT)
    yield service, gate
    gate.set()


@pytest.fixture
def often() -> Iterator[None]:
    """Have threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def cancel_all(futures: Iterable[AnyFuture]) -> list[bool]:
    return [future.cancel() for future in futures]


def completed(futures: Iterable[AnyFuture]) -> list[AnyFuture]:
    return list(concurrent.futures.as_completed(futures, LIMIT))


def raised_by(future: AnyFuture) -> Boom:
    try:
        future.result(LIMIT)
        raise AssertionError("it did not raise")
    except Boom as exception:
        return exception
    finally:
        del future  # Else the traceback leads back to it.


def comes_true(condition: Callable[[], bool]) -> bool:
    """Whether it is so, or soon: without a GIL the thread that made an object frees it,
    which may be one that is just ending."""
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def logged(caplog: pytest.LogCaptureFixture) -> list[BaseException]:
    """The exceptions logged on `boundedexec`, each with its traceback."""
    records = [record for record in caplog.records if record.name == "boundedexec"]
    found: list[BaseException] = []
    for record in records:
        assert record.levelno >= logging.ERROR
        assert record.exc_info and record.exc_info[1] and record.exc_info[2]
        found.append(record.exc_info[1])
    return found


# A Future for the stdlib


def test_submit_returns_a_stdlib_future(new_service: Callable[[int], Service]) -> None:
    future = new_service(1).submit(int, "3")
    assert isinstance(future, Future)
    assert isinstance(future, boundedexec.Future)
    assert future.result(LIMIT) == 3
    assert future.exception(LIMIT) is None
    assert future.done() and not future.running() and not future.cancelled()


def test_a_future_takes_attributes_and_weak_references(
    new_service: Callable[[int], Service],
) -> None:
    future: Any = new_service(1).submit(int)
    future.tag = "mine"
    assert {future: future.tag}[future] == "mine"
    assert weakref.ref(future)() is future


def test_a_future_shows_every_state(busy: tuple[Service, threading.Event]) -> None:
    service, gate = busy
    entered, leave = threading.Event(), threading.Event()

    def body() -> None:
        entered.set()
        leave.wait()

    future = service.submit(body)
    assert not future.running() and not future.done() and not future.cancelled()
    gate.set()
    assert entered.wait(LIMIT)
    assert future.running() and not future.done() and not future.cancelled()
    leave.set()
    future.result(LIMIT)
    assert not future.running() and future.done() and not future.cancelled()


@pytest.mark.parametrize("exception", [Boom(), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_a_body_raises_goes_into_its_future(
    new_service: Callable[[int], Service], exception: BaseException
) -> None:
    service = new_service(1)
    future: Future[int] = service.submit(fail, exception)
    assert future.exception(LIMIT) is exception
    with pytest.raises(type(exception)) as caught:
        future.result(LIMIT)
    assert caught.value is exception
    assert service.submit(int).result(LIMIT) == 0, "the slot is lost"


def test_stdlib_wait_sees_first_completed_in_a_mix(busy: tuple[Service, threading.Event]) -> None:
    service, _ = busy
    theirs = Future[int]()
    queued = service.submit(int)
    threading.Timer(0.01, theirs.set_result, [1]).start()
    done, not_done = concurrent.futures.wait([queued, theirs], LIMIT, FIRST_COMPLETED)
    assert done == {theirs} and not_done == {queued}


def test_stdlib_wait_sees_first_exception_in_a_mix(
    new_service: Callable[[int], Service],
) -> None:
    service, gate, boom = new_service(3), threading.Event(), threading.Event()
    theirs = Future[bool]()

    def failing() -> None:
        boom.wait()
        raise Boom

    good, bad, held = service.submit(int), service.submit(failing), service.submit(gate.wait)
    threading.Timer(0.01, boom.set).start()
    futures: list[AnyFuture] = [good, bad, held, theirs]
    done, not_done = concurrent.futures.wait(futures, LIMIT, FIRST_EXCEPTION)
    assert bad in done and not_done - {good} == {held, theirs}
    assert isinstance(bad.exception(), Boom)
    gate.set()
    theirs.set_result(True)
    assert concurrent.futures.wait(futures, LIMIT).not_done == set()
    # One that failed before ends it at once.
    futures.append(Future())
    assert bad in concurrent.futures.wait(futures, LIMIT, FIRST_EXCEPTION).done


def test_stdlib_wait_counts_a_cancelled_future_as_done(
    busy: tuple[Service, threading.Event],
) -> None:
    service, _ = busy
    before, meanwhile = service.submit(int), service.submit(int)
    assert before.cancel()
    threading.Timer(0.01, meanwhile.cancel).start()
    done, _ = concurrent.futures.wait([before, meanwhile], LIMIT)
    assert done == {before, meanwhile}


@pytest.mark.parametrize("fast", [False, True])
def test_as_completed_reports_each_future_once_while_bodies_end(
    new_service: Callable[[int], Service], fast: bool, request: pytest.FixtureRequest
) -> None:
    if fast:
        request.getfixturevalue("often")
    service = new_service(3)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(60):
            futures: list[AnyFuture] = []
            for _ in range(12):
                futures.append(service.submit(int))
                futures.append(service.submit(fail, Boom()))
                futures.append(pool.submit(int))
                futures.append(service.submit(time.sleep, 0))
            canceller = threading.Thread(target=cancel_all, args=[futures[::4]])
            canceller.start()
            reported = Counter(concurrent.futures.as_completed(futures, LIMIT))
            canceller.join()
            assert reported == Counter(futures)
            for future in futures:
                assert future.cancelled() or future.exception(LIMIT) or True


def test_two_waiters_are_both_told_of_every_end(
    new_service: Callable[[int], Service], often: None
) -> None:
    service = new_service(2)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(100):
            futures = [service.submit(int) for _ in range(10)]
            one = pool.submit(concurrent.futures.wait, futures, LIMIT)
            other = pool.submit(completed, futures)
            assert one.result().done == set(futures)
            assert Counter(other.result()) == Counter(futures)


def test_result_returns_in_every_thread_that_waits(
    busy: tuple[Service, threading.Event],
) -> None:
    service, gate = busy
    future = service.submit(int, "7")
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(future.result, LIMIT) for _ in range(4)]
        gate.set()
        assert [result.result(LIMIT) for result in results] == [7] * 4


# asyncio


def test_asyncio_awaits_results_and_exceptions(new_service: Callable[[int], Service]) -> None:
    service = new_service(2)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await asyncio.wrap_future(service.submit(int, "5")) == 5
        assert await loop.run_in_executor(service, int, "6") == 6
        with pytest.raises(Boom):
            await asyncio.wrap_future(service.submit(fail, Boom()))
        with pytest.raises(Boom):
            await loop.run_in_executor(service, fail, Boom())
        results = await asyncio.gather(
            *(loop.run_in_executor(service, int, n) for n in range(1000))
        )
        assert results == list(range(1000))

    asyncio.run(asyncio.wait_for(main(), LIMIT))


def test_cancelling_the_asyncio_future_cancels_a_queued_submission(
    busy: tuple[Service, threading.Event],
) -> None:
    service, gate = busy
    ran: list[int] = []

    async def main() -> None:
        queued = service.submit(ran.append, 1)
        wrapped = asyncio.wrap_future(queued)
        in_executor = asyncio.get_running_loop().run_in_executor(service, ran.append, 2)
        await asyncio.sleep(0)
        wrapped.cancel()
        in_executor.cancel()
        await asyncio.sleep(0)
        assert queued.cancelled()
        with pytest.raises(asyncio.CancelledError):
            await in_executor

    asyncio.run(asyncio.wait_for(main(), LIMIT))
    gate.set()
    assert service.block_till_done(LIMIT)
    assert ran == []


def test_cancelling_a_submission_cancels_the_asyncio_future(
    busy: tuple[Service, threading.Event],
) -> None:
    service, _ = busy

    async def main() -> None:
        queued = service.submit(int)
        wrapped = asyncio.wrap_future(queued)
        assert queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(asyncio.wait_for(main(), LIMIT))


def test_a_running_body_goes_on_when_its_asyncio_future_is_cancelled(
    new_service: Callable[[int], Service], caplog: pytest.LogCaptureFixture
) -> None:
    service, entered, gate = new_service(1), threading.Event(), threading.Event()

    def body() -> str:
        entered.set()
        gate.wait()
        return "done"

    async def main() -> Future[str]:
        running = service.submit(body)
        wrapped = asyncio.wrap_future(running)
        entered.wait(LIMIT)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wrapped, 0.01)
        assert not running.cancelled()
        gate.set()
        # asyncio calls the loop from the body's thread, which a loop that is closed refuses.
        assert service.block_till_done(LIMIT)
        return running

    assert asyncio.run(asyncio.wait_for(main(), LIMIT)).result(LIMIT) == "done"
    assert caplog.records == []


def test_an_exception_that_asyncio_took_over_is_not_reported(
    new_service: Callable[[int], Service], caplog: pytest.LogCaptureFixture
) -> None:
    service = new_service(1)

    async def main() -> None:
        with pytest.raises(Boom):
            await asyncio.get_running_loop().run_in_executor(service, fail, Boom())

    asyncio.run(asyncio.wait_for(main(), LIMIT))
    service.shutdown()
    gc.collect()
    assert logged(caplog) == []


# cancel


def test_a_queued_submission_can_be_cancelled_and_never_runs(
    busy: tuple[Service, threading.Event],
) -> None:
    service, gate = busy
    ran: list[str] = []
    before = service.submit(ran.append, "before")
    future = service.submit(ran.append, "cancelled")
    after = service.submit(ran.append, "after")
    assert future.cancel() and future.cancel()
    assert future.cancelled() and future.done() and not future.running()
    with pytest.raises(CancelledError):
        future.result(LIMIT)
    with pytest.raises(CancelledError):
        future.exception(LIMIT)
    gate.set()
    assert service.block_till_done(LIMIT)
    assert before.done() and after.done()
    assert ran == ["before", "after"]


def test_what_runs_or_is_over_cannot_be_cancelled(new_service: Callable[[int], Service]) -> None:
    service, entered, gate = new_service(1), threading.Event(), threading.Event()

    def body() -> int:
        entered.set()
        gate.wait()
        return 1

    future = service.submit(body)
    assert entered.wait(LIMIT)
    assert not future.cancel() and not future.cancelled()
    gate.set()
    assert future.result(LIMIT) == 1
    assert not future.cancel() and not future.cancelled()
    assert future.result(LIMIT) == 1


def test_cancel_wakes_who_waits(busy: tuple[Service, threading.Event]) -> None:
    service, _ = busy
    future = service.submit(int)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(future.exception, LIMIT)
        assert future.cancel()
        assert isinstance(waiting.exception(LIMIT), CancelledError)


@pytest.mark.parametrize("bound", [1, 3, 0])
def test_a_submission_is_cancelled_or_runs_and_never_both(
    new_service: Callable[[int], Service], bound: int, often: None
) -> None:
    service = new_service(bound)
    ran: list[int] = []
    cancelled: list[int] = []
    told: list[AnyFuture] = []
    futures: list[AnyFuture] = []
    for n in range(2000):
        future = service.submit(ran.append, n)
        futures.append(future)
        if n % 2:
            future.add_done_callback(told.append)
        if future.cancel():
            cancelled.append(n)
    assert service.block_till_done(LIMIT)
    assert sorted(ran + cancelled) == list(range(2000))
    assert [n for n, future in enumerate(futures) if future.cancelled()] == cancelled
    assert Counter(told) == Counter(futures[1::2])


def test_of_many_who_cancel_all_hear_the_same(
    busy: tuple[Service, threading.Event], often: None
) -> None:
    service, gate = busy
    together = threading.Barrier(4)

    def cancel_together(futures: list[Future[None]]) -> list[bool]:
        together.wait(LIMIT)
        return cancel_all(futures)

    told: list[AnyFuture] = []
    ran: list[int] = []
    futures = [service.submit(ran.append, n) for n in range(500)]
    for future in futures:
        future.add_done_callback(told.append)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(cancel_together, futures) for _ in range(3)]
        together.wait(LIMIT)
        gate.set()
        heard = [answer.result(LIMIT) for answer in answers]
    assert service.block_till_done(LIMIT)
    assert heard[0] == heard[1] == heard[2] == [future.cancelled() for future in futures]
    assert ran == [n for n, cancelled in enumerate(heard[0]) if not cancelled]
    assert Counter(told) == Counter(futures)


# Done-callbacks


def test_callbacks_run_in_order_on_the_thread_of_the_body(
    busy: tuple[Service, threading.Event],
) -> None:
    service, gate = busy
    calls: list[tuple[str, AnyFuture, int]] = []
    future = service.submit(threading.get_ident)

    def note(name: str, done: AnyFuture) -> None:
        calls.append((name, done, threading.get_ident()))

    for name in "abc":
        future.add_done_callback(partial(note, name))
    assert calls == []
    gate.set()
    assert service.block_till_done(LIMIT)
    thread = future.result(LIMIT)
    assert thread != threading.get_ident()
    assert calls == [(name, future, thread) for name in "abc"]


def test_a_callback_that_is_added_twice_runs_twice(busy: tuple[Service, threading.Event]) -> None:
    service, gate = busy
    calls: list[AnyFuture] = []
    future = service.submit(int)
    future.add_done_callback(calls.append)
    future.add_done_callback(calls.append)
    gate.set()
    assert service.block_till_done(LIMIT)
    assert calls == [future, future]


def test_a_callback_added_while_the_body_runs_is_called_at_its_end(
    new_service: Callable[[int], Service],
) -> None:
    service, entered, gate = new_service(1), threading.Event(), threading.Event()

    def body() -> int:
        entered.set()
        gate.wait()
        return threading.get_ident()

    future = service.submit(body)
    assert entered.wait(LIMIT)
    calls: list[int] = []
    future.add_done_callback(lambda _: calls.append(threading.get_ident()))
    assert calls == []
    gate.set()
    assert service.block_till_done(LIMIT)
    assert calls == [future.result(LIMIT)]


@pytest.mark.parametrize("how", ["returned", "raised", "cancelled"])
def test_a_callback_added_when_it_is_over_is_called_here_and_now(
    busy: tuple[Service, threading.Event], how: str
) -> None:
    service, gate = busy
    future: AnyFuture = service.submit(fail, Boom()) if how == "raised" else service.submit(int)
    if how == "cancelled":
        assert future.cancel()
    else:
        gate.set()
    assert concurrent.futures.wait([future], LIMIT).done
    calls: list[tuple[AnyFuture, int]] = []
    future.add_done_callback(lambda f: calls.append((f, threading.get_ident())))
    assert calls == [(future, threading.get_ident())]
    assert how == "cancelled" or bool(future.exception()) == (how == "raised")


def test_callbacks_of_a_cancelled_submission_run_where_it_is_cancelled(
    busy: tuple[Service, threading.Event],
) -> None:
    service, _ = busy
    calls: list[tuple[bool, int]] = []
    future = service.submit(int)
    future.add_done_callback(lambda f: calls.append((f.cancelled(), threading.get_ident())))
    assert future.cancel() and future.cancel()
    assert calls == [(True, threading.get_ident())]


def test_a_callback_sees_the_future_done(busy: tuple[Service, threading.Event]) -> None:
    service, gate = busy
    seen: list[int] = []
    future = service.submit(int, "4")

    def callback(done: Future[int]) -> None:
        assert done.done()
        seen.append(done.result())
        done.add_done_callback(lambda again: seen.append(again.result() + 1))

    future.add_done_callback(callback)
    gate.set()
    assert service.block_till_done(LIMIT)
    assert seen == [4, 5]


def test_whoever_waits_goes_on_before_the_callbacks_are_over(
    busy: tuple[Service, threading.Event],
) -> None:
    service, gate = busy
    resumed = threading.Event()
    heard: list[bool] = []
    future = service.submit(int)
    future.add_done_callback(lambda _: heard.append(resumed.wait(LIMIT)))
    gate.set()
    future.result(LIMIT)
    concurrent.futures.wait([future], LIMIT)
    resumed.set()
    assert service.block_till_done(LIMIT)
    assert heard == [True]


def test_a_callback_that_raises_is_logged_and_the_rest_is_called(
    busy: tuple[Service, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    service, gate = busy
    calls: list[AnyFuture] = []
    boom = Boom()
    future = service.submit(int, "1")
    future.add_done_callback(lambda _: fail(boom))
    future.add_done_callback(calls.append)
    gate.set()
    assert service.block_till_done(LIMIT)
    assert calls == [future]
    assert future.result() == 1
    assert logged(caplog) == [boom]
    future.add_done_callback(lambda _: fail(boom))
    assert logged(caplog) == [boom, boom]
    cancelled = boundedexec.Future[int]()
    cancelled.add_done_callback(lambda _: fail(boom))
    assert cancelled.cancel()
    assert logged(caplog) == [boom, boom, boom]


@pytest.mark.parametrize("exception", [SystemExit(), KeyboardInterrupt()])
def test_a_callback_that_raises_an_exit_loses_no_slot_and_is_logged(
    busy: tuple[Service, threading.Event],
    caplog: pytest.LogCaptureFixture,
    exception: BaseException,
) -> None:
    service, gate = busy
    future = service.submit(int, "1")
    future.add_done_callback(lambda _: fail(exception))
    gate.set()
    assert service.submit(int, "2").result(LIMIT) == 2
    assert future.result(LIMIT) == 1
    assert service.block_till_done(LIMIT)
    assert logged(caplog) == [exception]


def test_a_callback_added_while_the_body_ends_runs_once(
    new_service: Callable[[int], Service], often: None
) -> None:
    service = new_service(2)
    calls: list[AnyFuture] = []
    futures: list[AnyFuture] = []
    for n in range(3000):
        future = service.submit(int)
        futures.append(future)
        if n % 3:
            concurrent.futures.wait([future], 0)
        future.add_done_callback(calls.append)
    assert service.block_till_done(LIMIT)
    assert Counter(calls) == Counter(futures)


# Timeouts


@pytest.mark.parametrize("timeout", [0, -1, 0.0, 0.03])
def test_a_wait_with_a_timeout_ends_when_it_says(
    busy: tuple[Service, threading.Event], timeout: float
) -> None:
    service, gate = busy
    future = service.submit(int, "9")
    for wait in (future.result, future.exception):
        start = time.monotonic()
        with pytest.raises(concurrent.futures.TimeoutError):
            wait(timeout)
        assert max(0, timeout) * 0.99 <= time.monotonic() - start < LIMIT
    gate.set()
    assert future.result(LIMIT) == 9
    assert future.result(timeout) == 9, "what is over needs no time"
    assert future.exception(timeout) is None


def test_a_timeout_is_no_failure_of_the_body(busy: tuple[Service, threading.Event]) -> None:
    service, gate = busy
    future: Future[object] = service.submit(fail, TimeoutError("its own"))
    gate.set()
    with pytest.raises(TimeoutError, match="its own"):
        future.result(LIMIT)
    assert isinstance(future.exception(0), TimeoutError)


# A bare future, in the hands of another executor

FutureClass = type[Future[Any]]
both = pytest.mark.parametrize("make", [Future, boundedexec.Future])


@both
def test_a_bare_future_is_set_by_whoever_made_it(make: FutureClass) -> None:
    future = make()
    calls: list[AnyFuture] = []
    future.add_done_callback(calls.append)
    assert not future.done() and not future.running()
    assert future.set_running_or_notify_cancel()
    assert future.running() and not future.cancel()
    future.set_result("x")
    assert future.done() and future.result(0) == "x" and calls == [future]
    failed, boom = make(), Boom()
    failed.set_exception(boom)
    assert failed.exception(0) is boom
    with pytest.raises(Boom):
        failed.result(0)


@both
def test_a_bare_future_is_set_once(make: FutureClass) -> None:
    finished, failed, cancelled = make(), make(), make()
    finished.set_result(1)
    failed.set_exception(Boom())
    assert cancelled.cancel()
    assert not cancelled.set_running_or_notify_cancel()
    for future in (finished, failed, cancelled):
        with pytest.raises(InvalidStateError):
            future.set_result(2)
        with pytest.raises(InvalidStateError):
            future.set_exception(ValueError())
    assert finished.result(0) == 1
    assert isinstance(failed.exception(0), Boom)
    assert cancelled.cancelled()


@both
def test_a_bare_future_starts_once(make: FutureClass) -> None:
    future = make()
    assert future.set_running_or_notify_cancel()
    with pytest.raises(RuntimeError):
        future.set_running_or_notify_cancel()
    assert future.running()


@both
def test_a_bare_future_wakes_who_waits(make: FutureClass) -> None:
    future, other = make(), make()
    with ThreadPoolExecutor(3) as pool:
        result = pool.submit(future.result, LIMIT)
        wait = pool.submit(concurrent.futures.wait, [future, other], LIMIT)
        steps = pool.submit(completed, [future, other])
        time.sleep(0.01)
        future.set_result(3)
        other.set_exception(Boom())
        assert result.result(LIMIT) == 3
        assert wait.result(LIMIT).done == {future, other}
        assert Counter(steps.result(LIMIT)) == Counter([future, other])
    assert isinstance(other.exception(), Boom)


@both
def test_a_bare_future_can_be_awaited(make: FutureClass) -> None:
    async def main() -> int:
        future = make()
        threading.Timer(0.01, future.set_result, [8]).start()
        result = await asyncio.wait_for(asyncio.wrap_future(future), LIMIT)
        assert isinstance(result, int)
        return result

    assert asyncio.run(main()) == 8


def test_of_many_who_set_a_bare_future_one_succeeds(often: None) -> None:
    together = threading.Barrier(4)
    futures = [boundedexec.Future[int]() for _ in range(300)]
    told: list[AnyFuture] = []
    for future in futures:
        future.add_done_callback(told.append)

    def set_all(which: int) -> list[bool]:
        together.wait(LIMIT)
        succeeded: list[bool] = []
        for future in futures:
            if which == 0:
                succeeded.append(future.cancel())
                continue
            try:
                future.set_result(which) if which == 1 else future.set_exception(Boom())
                succeeded.append(True)
            except InvalidStateError:
                succeeded.append(False)
        return succeeded

    with ThreadPoolExecutor(4) as pool:
        parts = [part.result() for part in [pool.submit(set_all, n % 3) for n in range(4)]]
    for future, *successes in zip(futures, *parts, strict=True):
        cancelled, resulted, failed, cancelled_too = successes
        assert [cancelled or cancelled_too, resulted, failed].count(True) == 1
        assert future.cancelled() == (cancelled or cancelled_too)
        if not future.cancelled():
            assert (future.exception(0) is None) == resulted
    assert Counter(told) == Counter(futures)


# Nothing fails in silence


def test_an_exception_nobody_asked_for_is_logged_when_its_future_is_dropped(
    new_service: Callable[[int], Service], caplog: pytest.LogCaptureFixture
) -> None:
    service, boom = new_service(1), Boom("nobody asked")
    future: AnyFuture = service.submit(fail, boom)
    service.shutdown()
    assert logged(caplog) == []
    del future
    assert comes_true(lambda: logged(caplog) == [boom])


def test_a_failure_whose_future_was_thrown_away_is_logged(
    new_service: Callable[[int], Service], caplog: pytest.LogCaptureFixture
) -> None:
    service, boom = new_service(1), Boom("fire and forget")
    service.submit(fail, boom)
    service.submit(int)
    service.shutdown()
    assert comes_true(lambda: logged(caplog) == [boom])


def test_a_failure_dropped_while_others_are_logged_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    booms = [Boom(number) for number in range(3)]
    futures: list[boundedexec.Future[int]] = []
    for boom in booms:
        futures.append(boundedexec.Future())
        try:
            raise boom
        except Boom:
            futures[-1].set_exception(boom)

    class Dropping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if futures:
                futures.pop()

    handler = Dropping()
    logging.getLogger("boundedexec").addHandler(handler)
    try:
        futures.pop()
    finally:
        logging.getLogger("boundedexec").removeHandler(handler)
    assert logged(caplog) == booms[::-1]


def test_a_bare_future_reports_too(caplog: pytest.LogCaptureFixture) -> None:
    boom = Boom("bare")
    future = boundedexec.Future[int]()
    try:
        raise boom
    except Boom:
        future.set_exception(boom)
    del future
    assert logged(caplog) == [boom]


@pytest.mark.parametrize("ask", ["result", "exception", "callback"])
def test_an_exception_that_was_asked_for_is_not_logged(
    new_service: Callable[[int], Service], caplog: pytest.LogCaptureFixture, ask: str
) -> None:
    service, gate = new_service(1), threading.Event()

    def failing() -> None:
        gate.wait()
        raise Boom

    future = service.submit(failing)
    if ask == "callback":
        future.add_done_callback(lambda done: done.exception())
    gate.set()
    if ask == "result":
        with pytest.raises(Boom):
            future.result(LIMIT)
    if ask == "exception":
        future.exception(LIMIT)
    service.shutdown()
    del future
    gc.collect()
    assert logged(caplog) == []


def test_an_exception_that_a_body_asked_for_is_not_logged(
    new_service: Callable[[int], Service], caplog: pytest.LogCaptureFixture
) -> None:
    service = new_service(1)
    inner = service.submit(lambda: service.submit(fail, Boom()).exception())
    assert isinstance(inner.result(LIMIT), Boom)
    service.shutdown()
    del inner
    gc.collect()
    assert logged(caplog) == []


def test_results_and_cancelled_submissions_are_not_logged(
    busy: tuple[Service, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    service, gate = busy
    assert service.submit(int).cancel()
    service.submit(int)
    gate.set()
    service.shutdown()
    gc.collect()
    assert caplog.records == []


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_what_an_abandoned_map_raised_is_not_reported(
    new_service: Callable[[int], Service], caplog: pytest.LogCaptureFixture, taken: int
) -> None:
    service = new_service(2)

    def body(n: int) -> int:
        if n:
            raise Boom(n)
        return n

    results = service.map(body, range(10))
    if taken:
        assert next(results) == 0
    if taken == 2:
        with pytest.raises(Boom):
            next(results)
    assert service.block_till_done(LIMIT)
    del results
    service.shutdown()
    gc.collect()
    assert logged(caplog) == []


def test_a_map_abandoned_while_its_bodies_run_is_not_reported(
    new_service: Callable[[int], Service], caplog: pytest.LogCaptureFixture
) -> None:
    service, entered, gate = new_service(2), threading.Barrier(3), threading.Event()

    def body(n: int) -> None:
        entered.wait(LIMIT)
        gate.wait()
        raise Boom(n)

    results = service.map(body, range(2))
    entered.wait(LIMIT)
    del results
    gate.set()
    service.shutdown()
    gc.collect()
    assert logged(caplog) == []


# Garbage


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("ask", ["result", "exception", "result with a timeout", "wait"])
def test_a_failed_body_leaves_no_cycle(
    new_service: Callable[[int], Service], no_collector: None, ask: str
) -> None:
    service = new_service(1)
    entered, gate = threading.Event(), threading.Event()

    def failing() -> None:
        entered.set()
        gate.wait()
        raise Boom

    future = service.submit(failing)
    if ask != "result with a timeout":
        gate.set()
    else:
        threading.Timer(0.01, gate.set).start()
    if ask == "wait":
        concurrent.futures.wait([future], LIMIT)
    gone: Callable[[], object]
    if ask.startswith("result"):
        gone = weakref.ref(raised_by(future))
    else:
        exception = future.exception(LIMIT)
        assert exception is not None
        gone = weakref.ref(exception)
        del exception
    future_gone = weakref.ref(future)
    service.shutdown()
    assert gone() is not None
    del future
    assert comes_true(lambda: future_gone() is None and gone() is None)


def test_a_failed_body_that_was_waited_for_in_a_body_leaves_no_cycle(
    new_service: Callable[[int], Service], no_collector: None
) -> None:
    service = new_service(1)
    gone: list[weakref.ref[BaseException]] = []

    def outer() -> None:
        inner: AnyFuture = service.submit(fail, Boom())
        try:
            inner.result()
        except Boom as exception:
            gone.append(weakref.ref(exception))
        del inner  # Else the traceback that goes through here leads back to it.

    service.submit(outer).result(LIMIT)
    service.shutdown()
    assert comes_true(lambda: gone[0]() is None)


def test_arguments_and_results_of_what_is_over_are_not_kept(
    new_service: Callable[[int], Service], no_collector: None
) -> None:
    class Thing:
        def method(self, other: Thing) -> Thing:
            return Thing()

    service, fn_of, argument = new_service(1), Thing(), Thing()
    future = service.submit(fn_of.method, argument)
    assert service.block_till_done(LIMIT)
    alive = [weakref.ref(fn_of), weakref.ref(argument)]
    result = weakref.ref(future.result(LIMIT))
    del fn_of, argument
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        assert [ref() for ref in alive] == [None, None], "kept until the service ends"
    assert result() is not None
    del future
    service.shutdown()
    assert comes_true(lambda: [ref() for ref in [*alive, result]] == [None] * 3)
