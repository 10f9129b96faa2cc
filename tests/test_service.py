"""The executor's surface: submit, map, waits for all, shutdown, and what it refuses."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import logging
import math
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextvars import Context, ContextVar
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
from conftest import LIMIT, holding, run_script, wait_until

import boundedexec
from boundedexec import Service

variable: ContextVar[str] = ContextVar("variable", default="unset")


class Oops(BaseException):
    """What no `except Exception` catches."""


class Thing:
    """Can be referred to weakly, and called."""

    def __call__(self, *args: object, **kwargs: object) -> Thing:
        return Thing()


def fail(exception: BaseException, *_: object) -> None:
    raise exception


def all_gone(kept: Iterable[weakref.ref[Any]]) -> bool:
    return all(reference() is None for reference in kept)


def logged(log: SimpleQueue[logging.LogRecord]) -> logging.LogRecord:
    """The next record."""
    wait_until(lambda: not log.empty())
    return log.get()


# Making one.


def test_the_positional_parameters_are_those_of_the_standard_pool() -> None:
    seen: SimpleQueue[int] = SimpleQueue()
    with Service(1, "named", seen.put, (7,)) as service:
        name = service.submit(lambda: threading.current_thread().name).result(LIMIT)
        assert service.max_workers == 1
        assert seen.get(timeout=LIMIT) == 7
        assert name.startswith("named_")
        assert isinstance(service, concurrent.futures.Executor)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_the_default_bound_is_four_times_the_cpus_this_process_may_use() -> None:
    lines = run_script(
        """
        import os
        from boundedexec import Service
        print(Service().max_workers == 4 * len(os.sched_getaffinity(0)))
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(Service().max_workers)
        """
    )
    assert lines == ["True", "4"]


@pytest.mark.skipif(not hasattr(os, "process_cpu_count"), reason="not in this Python")
def test_the_default_bound_heeds_process_cpu_count() -> None:
    source = "from boundedexec import Service; print(Service().max_workers)"
    assert run_script(source, PYTHON_CPU_COUNT="3") == ["12"]


@pytest.mark.parametrize("none", [0, -1])
def test_no_bound_at_all_for_zero_and_less(none: int) -> None:
    with Service(none) as service:
        assert service.max_workers is None
        with holding(service, 70):
            assert service.submit(int, "7").result(LIMIT) == 7


@pytest.mark.timeout(10)
def test_a_bound_beyond_any_number_of_threads_costs_nothing() -> None:
    with Service(10**12) as service:
        assert service.max_workers == 10**12
        with holding(service, 20):
            assert service.submit(int, "7").result(LIMIT) == 7
        assert service.block_till_done(LIMIT)


def test_bounded_and_unbounded_say_it_by_name() -> None:
    with Service.bounded(3, thread_name_prefix="b", idle_timeout=1) as service:
        assert type(service) is Service
        assert service.max_workers == 3
    with Service.unbounded(thread_name_prefix="u", idle_timeout=1) as service:
        assert type(service) is Service
        assert service.max_workers is None


def test_bounded_and_unbounded_of_a_subclass_are_of_the_subclass() -> None:
    class Mine(Service):
        pass

    assert type(Mine.bounded(1)) is Mine
    assert type(Mine.unbounded()) is Mine


# Submitting.


def test_submit_returns_a_standard_future_of_the_call() -> None:
    with Service(2) as service:
        future = service.submit(divmod, 17, 5)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(LIMIT) == (3, 2)
        assert future.done() and not future.cancelled() and not future.running()


def test_submit_passes_every_keyword_on() -> None:
    def keywords(**kwargs: int) -> dict[str, int]:
        return kwargs

    with Service(1) as service:
        given = {"self": 1, "fn": 2, "args": 3, "timeout": 4}
        assert service.submit(keywords, **given).result(LIMIT) == given


def test_submit_never_blocks_while_slots_are_held() -> None:
    with Service(2) as service:
        with holding(service, 2):
            before = threading.active_count()
            futures = [service.submit(int, str(i)) for i in range(10_000)]
            # No thread for what has no slot.
            assert threading.active_count() == before
            assert not any(future.done() or future.running() for future in futures)
        assert [future.result(LIMIT) for future in futures] == list(range(10_000))


def test_submit_may_be_called_from_a_body() -> None:
    with Service(1) as service:
        inner = service.submit(lambda: service.submit(int, "5")).result(LIMIT)
        assert inner.result(LIMIT) == 5


def test_submit_may_be_called_from_a_done_callback() -> None:
    with Service(1) as service:
        inner: SimpleQueue[Future[int]] = SimpleQueue()
        with holding(service):
            future = service.submit(int, "1")
            future.add_done_callback(lambda _: inner.put(service.submit(int, "5")))
        assert inner.get(timeout=LIMIT).result(LIMIT) == 5


def test_submit_may_be_called_from_a_weakref_callback() -> None:
    with Service(1) as service:
        inner: list[Future[int]] = []
        thing = Thing()
        reference = weakref.ref(thing, lambda _: inner.append(service.submit(int, "5")))
        del thing
        gc.collect()
        assert reference() is None
        assert inner.pop().result(LIMIT) == 5


def test_submit_may_be_called_from_many_threads_at_once() -> None:
    with Service(3) as service, Service.unbounded() as others:
        together = threading.Barrier(8)

        def submitter(name: int) -> list[Future[int]]:
            together.wait(LIMIT)
            return [service.submit(int, str(name + i)) for i in range(500)]

        for name, each in [(n, others.submit(submitter, n)) for n in range(8)]:
            got = [future.result(LIMIT) for future in each.result(LIMIT)]
            assert got == list(range(name, name + 500))


def test_a_service_is_what_run_in_executor_takes() -> None:
    async def main(service: Service) -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(service, int, "7") == 7
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(service, divmod, 1, 0)
        with holding(service):
            queued = loop.run_in_executor(service, int, "7")
            queued.cancel()
            with pytest.raises(asyncio.CancelledError):
                await queued

    with Service(1) as service:
        asyncio.run(main(service))


# The context.


def test_a_body_sees_the_context_of_its_submitter_as_it_was_at_submit() -> None:
    def here() -> Future[str]:
        variable.set("before")
        future = service.submit(variable.get)
        variable.set("after")
        return future

    with Service(1) as service:
        with holding(service):
            future = Context().run(here)
        assert future.result(LIMIT) == "before"


def test_a_body_submitted_by_a_body_sees_what_that_body_set() -> None:
    def outer() -> str:
        variable.set("outer")
        return service.submit(variable.get).result()

    with Service(1) as service:
        assert service.submit(outer).result(LIMIT) == "outer"
        assert variable.get() == "unset"


@pytest.mark.parametrize("context", [Context(), None], ids=["empty", "with values"])
def test_nothing_that_a_body_sets_reaches_another(context: Context | None) -> None:
    other: ContextVar[str] = ContextVar("other", default="unset")

    def body(count: int) -> str:
        found = other.get()
        other.set(f"set by {count}")
        return found

    def here() -> list[Future[str]]:
        if context is None:
            variable.set("a value")
        return [service.submit(body, i) for i in range(20)]

    with Service(1) as service:
        futures = (context or Context()).run(here)
        assert {future.result(LIMIT) for future in futures} == {"unset"}
        assert other.get() == "unset"


def test_nothing_that_a_done_callback_sets_reaches_another_body() -> None:
    with Service(1) as service:
        for _ in range(3):
            with holding(service):
                first = Context().run(service.submit, int)
                first.add_done_callback(lambda _: variable.set("by a callback"))
                second = Context().run(service.submit, variable.get)
            assert second.result(LIMIT) == "unset"


def test_nothing_that_a_failing_body_sets_reaches_another() -> None:
    def body() -> None:
        variable.set("by a failure")
        raise Oops

    with Service(1) as service:
        failing = Context().run(service.submit, body)
        assert Context().run(service.submit, variable.get).result(LIMIT) == "unset"
        assert isinstance(failing.exception(LIMIT), Oops)


def test_a_reused_thread_does_not_show_its_first_submitters_context() -> None:
    with Service(1) as service:
        with_value = Context()
        with_value.run(variable.set, "of the first")
        assert with_value.run(service.submit, variable.get).result(LIMIT) == "of the first"
        assert Context().run(service.submit, variable.get).result(LIMIT) == "unset"


def test_map_calls_see_the_context_of_its_caller() -> None:
    def look(_: int) -> str:
        return variable.get()

    def here() -> list[str]:
        variable.set("mapper")
        return list(service.map(look, range(3)))

    with Service(2) as service:
        assert Context().run(here) == ["mapper"] * 3


# What a body raises, and what is kept.


@pytest.mark.parametrize(
    "exception", [ValueError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Oops()]
)
def test_whatever_a_body_raises_goes_into_its_future(exception: BaseException) -> None:
    with Service(1) as service:
        before = service.submit(threading.current_thread).result(LIMIT)
        future = service.submit(fail, exception)
        assert future.exception(LIMIT) is exception
        with pytest.raises(type(exception)):
            future.result(LIMIT)
        # Neither the slot nor the thread is lost.
        assert service.submit(threading.current_thread).result(LIMIT) is before
    assert not before.is_alive()


def test_the_service_keeps_nothing_of_a_body_that_is_over() -> None:
    with Service(2) as service:
        fn, argument, keyword = Thing(), Thing(), Thing()
        future = service.submit(fn, argument, key=keyword)
        result = future.result(LIMIT)
        kept = [weakref.ref(each) for each in (fn, argument, keyword, result, future)]
        del fn, argument, keyword, result, future
        wait_until(lambda: all_gone(kept))


def test_the_service_keeps_nothing_of_a_body_that_failed() -> None:
    with Service(2) as service:
        argument, exception = Thing(), Oops()
        future = service.submit(fail, exception, argument)
        assert future.exception(LIMIT) is exception
        kept = [weakref.ref(each) for each in (argument, exception, future)]
        # The traceback has the frame of the body, and with it `argument`.
        exception.__traceback__ = None
        del argument, exception, future
        wait_until(lambda: all_gone(kept))


def test_a_thread_that_goes_on_keeps_nothing_of_the_body_before() -> None:
    with Service(1) as service:
        release = threading.Event()
        with holding(service):
            fn, argument = Thing(), Thing()
            future = service.submit(fn, argument)
            running = service.submit(release.wait)
            kept = [weakref.ref(each) for each in (fn, argument, future)]
            del fn, argument, future
        wait_until(lambda: all_gone(kept))
        assert not running.done()
        release.set()


def test_a_future_that_is_kept_keeps_neither_callable_nor_arguments() -> None:
    with Service(1) as service:
        fn, argument = Thing(), Thing()
        kept = [weakref.ref(fn), weakref.ref(argument)]
        future = service.submit(fn, argument)
        future.result(LIMIT)
        del fn, argument
        wait_until(lambda: all_gone(kept))


def test_nothing_is_kept_of_a_submission_that_was_lent_a_slot() -> None:
    def outer() -> weakref.ref[Thing]:
        argument = Thing()
        service.submit(Thing(), argument).result()
        return weakref.ref(argument)

    with Service(1) as service:
        kept = service.submit(outer).result(LIMIT)
        wait_until(lambda: kept() is None)


# Done-callbacks.


def test_done_callbacks_run_in_order_on_the_bodys_thread_with_its_future() -> None:
    seen: list[tuple[str, object, object]] = []

    def callback(name: str, future: object) -> None:
        seen.append((name, future, threading.current_thread()))

    with Service(1) as service:
        with holding(service):
            future = service.submit(threading.current_thread)
            for name in "abc":
                future.add_done_callback(partial(callback, name))
        thread = future.result(LIMIT)
    assert seen == [(name, future, thread) for name in "abc"]


def test_a_done_callback_of_what_is_over_is_called_at_once_by_its_caller() -> None:
    seen: list[object] = []
    with Service(1) as service:
        future = service.submit(int)
        assert service.block_till_done(LIMIT)
        future.add_done_callback(lambda _: seen.append(threading.current_thread()))
        assert seen == [threading.current_thread()]


def test_a_done_callback_holds_the_slot() -> None:
    with Service(1) as service:
        entered, release = threading.Event(), threading.Event()

        def callback(_: object) -> None:
            entered.set()
            release.wait(LIMIT)

        with holding(service):
            service.submit(int).add_done_callback(callback)
            second = service.submit(int)
        assert entered.wait(LIMIT)
        assert not second.running() and not second.done()
        assert not service.block_till_done(0)
        release.set()
        assert second.result(LIMIT) == 0


def test_a_done_callback_may_lend_its_slot() -> None:
    with Service(1) as service:
        got: SimpleQueue[int] = SimpleQueue()
        with holding(service):
            service.submit(int).add_done_callback(
                lambda _: got.put(service.submit(int, "5").result())
            )
        assert got.get(timeout=LIMIT) == 5


def test_a_done_callback_may_yield_its_slot() -> None:
    with Service(1) as service:
        got: SimpleQueue[int] = SimpleQueue()
        with holding(service):
            second: Future[int]
            service.submit(int).add_done_callback(
                lambda _: got.put(service.yield_slot(second.result, LIMIT))
            )
            second = service.submit(int, "5")
        assert got.get(timeout=LIMIT) == 5
        assert service.block_till_done(LIMIT)


@pytest.mark.parametrize("refused", ["block_till_done", "shutdown"])
def test_a_done_callback_may_not_wait_for_its_own_service(refused: str) -> None:
    with Service(1) as service:
        raised: SimpleQueue[object] = SimpleQueue()

        def callback(_: object) -> None:
            with pytest.raises(RuntimeError) as caught:
                getattr(service, refused)()
            raised.put(caught.value)

        with holding(service):
            service.submit(int).add_done_callback(callback)
        assert isinstance(raised.get(timeout=LIMIT), RuntimeError)
        assert service.submit(int).result(LIMIT) == 0


@pytest.mark.parametrize("exception", [ValueError("callback"), Oops("callback")])
def test_a_done_callback_that_raises_loses_nothing_and_is_logged(
    exception: BaseException, log: SimpleQueue[logging.LogRecord]
) -> None:
    with Service(1) as service:
        called: SimpleQueue[object] = SimpleQueue()
        with holding(service):
            future = service.submit(int)
            future.add_done_callback(lambda _: fail(exception))
            future.add_done_callback(called.put)
        assert called.get(timeout=LIMIT) is future
        assert future.result(LIMIT) == 0
        assert service.submit(int).result(LIMIT) == 0
        record = logged(log)
        assert record.exc_info is not None and record.exc_info[1] is exception


def test_the_done_callbacks_of_what_was_cancelled_are_waited_for() -> None:
    with Service(1) as service, Service(1) as other:
        entered, release = threading.Event(), threading.Event()

        def callback(_: object) -> None:
            entered.set()
            release.wait(LIMIT)

        with holding(service):
            future = service.submit(int)
            future.add_done_callback(callback)
            cancelling = other.submit(future.cancel)
            assert entered.wait(LIMIT)
        assert not service.block_till_done(0.02)
        release.set()
        assert service.block_till_done(LIMIT)
        assert cancelling.result(LIMIT)


def test_the_done_callback_of_what_was_cancelled_may_not_wait_for_its_own_service() -> None:
    raised: SimpleQueue[object] = SimpleQueue()

    def callback(_: object) -> None:
        try:
            service.block_till_done(0.01)
        except RuntimeError as error:
            raised.put(error)

    with Service(1) as service:
        with holding(service):
            first, second = service.submit(int), service.submit(int)
            first.add_done_callback(callback)
            second.add_done_callback(callback)
            assert first.cancel()
            service.shutdown(wait=False, cancel_futures=True)
            assert second.cancelled()
        assert raised.qsize() == 2


def test_a_cancelled_submission_never_runs() -> None:
    ran: list[int] = []
    with Service(1) as service:
        with holding(service):
            futures = [service.submit(ran.append, i) for i in range(10)]
            assert all(future.cancel() for future in futures[::2])
            assert all(future.cancelled() and future.done() for future in futures[::2])
        for future in futures[::2]:
            with pytest.raises(CancelledError):
                future.result(LIMIT)
    assert ran == [1, 3, 5, 7, 9]


def test_what_runs_or_is_over_cannot_be_cancelled() -> None:
    with Service(1) as service:
        entered, release = threading.Event(), threading.Event()

        def body() -> None:
            entered.set()
            release.wait(LIMIT)

        future = service.submit(body)
        assert entered.wait(LIMIT)
        assert future.running() and not future.cancel()
        release.set()
        assert future.result(LIMIT) is None
        assert not future.cancel() and not future.cancelled()
        with pytest.raises(InvalidStateError):
            future.set_result(None)


# map.


def test_map_gives_the_results_in_order() -> None:
    first = threading.Event()

    def body(index: int) -> int:
        if index == 0:
            assert first.wait(LIMIT)
        elif index == 1:
            first.set()
        return index

    with Service(2) as service:
        assert list(service.map(body, range(10))) == list(range(10))


def test_map_takes_several_iterables_and_ends_with_the_shortest() -> None:
    with Service(2) as service:
        assert list(service.map(divmod, [7, 8, 9], itertools.repeat(2))) == [
            (3, 1),
            (4, 0),
            (4, 1),
        ]
        assert list(service.map(int, [])) == []
        assert list(service.map(int)) == []


def test_map_submits_at_once() -> None:
    ran: SimpleQueue[int] = SimpleQueue()
    with Service(1) as service:
        iterator = service.map(ran.put, range(3))
        assert [ran.get(timeout=LIMIT) for _ in range(3)] == [0, 1, 2]
        del iterator


def test_map_raises_what_a_call_raised_and_cancels_the_rest() -> None:
    ran: list[int] = []
    cancelled = threading.Event()

    def body(index: int) -> int:
        ran.append(index)
        if index == 1:
            raise ValueError(index)
        if index > 1:
            cancelled.wait(LIMIT)
        return index

    with Service(1) as service:
        iterator = service.map(body, range(100))
        assert next(iterator) == 0
        with pytest.raises(ValueError):
            next(iterator)
        assert list(iterator) == []
        cancelled.set()
    assert len(ran) <= 3


def test_map_raises_when_its_time_is_up() -> None:
    with Service(1) as service:
        with holding(service):
            iterator = service.map(int, ["1"], timeout=0.01)
            with pytest.raises(concurrent.futures.TimeoutError):
                next(iterator)
        assert list(service.map(int, ["1"], timeout=LIMIT)) == [1]


def test_map_accepts_a_chunksize() -> None:
    with Service(2) as service:
        assert list(service.map(int, "123", chunksize=2)) == [1, 2, 3]


def test_a_map_that_is_dropped_half_way_cancels_what_has_not_started() -> None:
    ran: list[int] = []
    release = threading.Event()

    def body(index: int) -> None:
        ran.append(index)
        if index:
            release.wait(LIMIT)

    with Service(1) as service:
        iterator = service.map(body, range(1000))
        next(iterator)
        del iterator
        gc.collect()
        release.set()
    assert len(ran) <= 2


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_map_with_a_buffersize_submits_no_more_than_that_ahead(size: int) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    with Service(2) as service:
        iterator = service.map(int, numbers(), buffersize=size)
        for got in range(20):
            assert len(taken) == min(size + got, 20)
            assert next(iterator) == got
        assert next(iterator, None) is None


def test_map_with_a_buffersize_takes_an_endless_iterable() -> None:
    with Service(2) as service:
        iterator = service.map(divmod, itertools.count(), itertools.repeat(2), buffersize=3)
        assert list(itertools.islice(iterator, 50)) == [divmod(i, 2) for i in range(50)]


def test_map_with_a_buffersize_and_little_or_nothing_to_do() -> None:
    with Service(2) as service:
        assert list(service.map(int, "12", buffersize=5)) == [1, 2]
        assert list(service.map(int, "", buffersize=1)) == []
        assert list(service.map(int, buffersize=1)) == []


def test_map_with_a_buffersize_raises_in_place() -> None:
    with Service(2) as service:
        iterator = service.map(divmod, [1, 1, 1, 1], [1, 1, 0, 1], buffersize=1)
        assert [next(iterator), next(iterator)] == [(1, 0), (1, 0)]
        with pytest.raises(ZeroDivisionError):
            next(iterator)
        assert next(iterator, None) is None


def test_map_with_a_buffersize_ends_when_its_service_is_gone() -> None:
    service = Service(2)
    iterator = service.map(int, itertools.repeat("1"), buffersize=4)
    reference = weakref.ref(service)
    del service
    gc.collect()
    assert reference() is None
    assert list(iterator) == [1] * 4


@pytest.mark.parametrize("buffersize", [None, 2])
def test_the_iterator_of_map_keeps_no_result_that_it_gave(buffersize: int | None) -> None:
    with Service(2) as service:
        for thing in service.map(Thing(), range(10), buffersize=buffersize):
            kept = [weakref.ref(thing)]
            del thing
            wait_until(partial(all_gone, kept))


def test_map_goes_through_submit() -> None:
    class Counting(Service):
        count = 0

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return super().submit(*args, **kwargs)

    with Counting(2) as service:
        assert list(service.map(int, "123")) == [1, 2, 3]
        assert list(service.map(int, "123", buffersize=1)) == [1, 2, 3]
        assert service.count == 6


# block_till_done.


def test_block_till_done_of_a_service_that_did_nothing_is_true() -> None:
    with Service(1) as service:
        assert service.block_till_done() is True
        assert service.block_till_done(0) is True
    assert service.block_till_done() is True


def test_block_till_done_is_false_when_the_timeout_passed_first() -> None:
    with Service(1) as service:
        with holding(service):
            begin = time.monotonic()
            assert service.block_till_done(0.05) is False
            assert time.monotonic() - begin >= 0.045
            assert service.block_till_done(0) is False
            assert service.block_till_done(-1) is False
        assert service.block_till_done(LIMIT) is True


@pytest.mark.parametrize("bound", [1, 3, 0])
def test_block_till_done_returns_once_everything_is_over(bound: int) -> None:
    with Service(bound) as service:
        for _ in range(100):
            futures = [service.submit(int) for _ in range(7)]
            assert service.block_till_done(LIMIT)
            assert all(future.done() for future in futures)


@pytest.mark.parametrize("bound", [1, 3, 0])
def test_block_till_done_waits_for_what_bodies_and_callbacks_submit(bound: int) -> None:
    over: list[int] = []

    def body(left: int) -> None:
        if left % 2:
            service.submit(body, left - 1)
        elif left:
            service.submit(int).add_done_callback(lambda _: body(left - 1))
        else:
            over.append(1)

    with Service(bound) as service:
        for round_ in range(1, 51):
            for _ in range(3):
                service.submit(body, 10)
            assert service.block_till_done(LIMIT)
            assert len(over) == 3 * round_


def test_block_till_done_waits_for_a_body_that_yielded() -> None:
    with Service(1) as service:
        yielded, release = threading.Event(), threading.Event()

        def wait() -> bool:
            yielded.set()
            return release.wait(LIMIT)

        future = service.submit(service.yield_slot, wait)
        assert yielded.wait(LIMIT)
        assert not service.block_till_done(0.01)
        release.set()
        assert service.block_till_done(LIMIT)
        assert future.done()


def test_block_till_done_waits_for_a_body_that_waited_without_its_slot() -> None:
    waited, release = threading.Event(), threading.Event()

    def body() -> None:
        # Held elsewhere, so that the wait is one.
        held = other.submit(time.sleep, 0.01)

        def without_slot() -> None:
            held.result()
            waited.set()
            release.wait(LIMIT)

        service.yield_slot(without_slot)

    with Service(1) as service, Service(1) as other:
        future = service.submit(body)
        assert waited.wait(LIMIT)
        try:
            assert not service.block_till_done(0.01)
        finally:
            release.set()
        assert service.block_till_done(LIMIT)
        assert future.done()


def test_block_till_done_waits_for_callbacks_of_what_was_cancelled_twice() -> None:
    called, release = threading.Event(), threading.Event()

    def call_back(_: object) -> None:
        called.set()
        release.wait(LIMIT)

    with Service(1) as service, Service(2) as others:
        with holding(service):
            future = service.submit(int)
            future.add_done_callback(call_back)
            first = others.submit(future.cancel)
            assert called.wait(LIMIT)
            assert future.cancel()
        try:
            assert not service.block_till_done(0.01)
        finally:
            release.set()
        assert first.result(LIMIT)
        assert service.block_till_done(LIMIT)


def test_block_till_done_does_not_wait_for_what_was_cancelled() -> None:
    with Service(1) as service:
        with holding(service):
            futures = [service.submit(int) for _ in range(100)]
            assert all(future.cancel() for future in futures)
        assert service.block_till_done(LIMIT)


def test_many_threads_may_block_till_done_at_once() -> None:
    with Service(2) as service, Service.unbounded() as others:
        with holding(service, 2):
            waiting = [others.submit(service.block_till_done) for _ in range(10)]
            done, not_done = concurrent.futures.wait(waiting, timeout=0.02)
            assert not done and len(not_done) == 10
        assert all(future.result(LIMIT) for future in waiting)


def test_block_till_done_is_safe_beside_submit() -> None:
    with Service(2) as service, Service.unbounded() as others:
        submitters = threading.Barrier(3)

        def submit_all() -> None:
            submitters.wait(LIMIT)
            for _ in range(300):
                future = service.submit(int)
                assert service.block_till_done(LIMIT)
                # Accepted before, so over.
                assert future.done()

        for each in [others.submit(submit_all) for _ in range(3)]:
            each.result(LIMIT)


def test_a_body_may_not_block_till_its_own_service_is_done() -> None:
    with Service(1) as service:
        with pytest.raises(RuntimeError):
            service.submit(service.block_till_done).result(LIMIT)
        with pytest.raises(RuntimeError):
            service.submit(service.block_till_done, 0).result(LIMIT)
        with pytest.raises(RuntimeError):
            service.submit(service.yield_slot, service.block_till_done).result(LIMIT)
        assert service.block_till_done(LIMIT)


def test_a_body_may_block_till_another_service_is_done() -> None:
    with Service(1) as service, Service(1) as other:
        future = other.submit(int)
        assert service.submit(other.block_till_done).result(LIMIT) is True
        assert future.done()


# Shutdown.


def test_shutdown_finishes_what_was_accepted_and_its_threads_are_gone() -> None:
    service = Service(2)
    futures = [service.submit(threading.current_thread) for _ in range(100)]
    service.shutdown()
    assert all(future.done() for future in futures)
    threads = {future.result() for future in futures}
    assert not any(thread.is_alive() for thread in threads)
    assert not threads & set(threading.enumerate())


def test_shutdown_waits_for_done_callbacks_and_for_bodies_that_yielded() -> None:
    over: list[str] = []
    service = Service(1)
    with holding(service):
        service.submit(int).add_done_callback(
            lambda _: service.yield_slot(time.sleep, 0.01) or over.append("callback")  # type: ignore[func-returns-value]
        )
        service.submit(lambda: service.yield_slot(time.sleep, 0.02) or over.append("body"))  # type: ignore[func-returns-value]
    service.shutdown()
    assert sorted(over) == ["body", "callback"]


def test_shutdown_without_wait_returns_at_once_and_loses_nothing() -> None:
    service = Service(1)
    with holding(service):
        future = service.submit(int, "5")
        service.shutdown(wait=False)
        assert not future.done()
    assert future.result(LIMIT) == 5


def test_shutdown_may_be_repeated_and_waited_for_by_many() -> None:
    service = Service(1)
    with Service.unbounded() as others:
        with holding(service):
            futures = [others.submit(service.shutdown) for _ in range(4)]
            service.shutdown(wait=False)
        for future in futures:
            future.result(LIMIT)
    service.shutdown()


def test_shutdown_with_cancel_futures_cancels_what_has_not_started() -> None:
    service = Service(1)
    ran: list[int] = []
    told: SimpleQueue[Future[None]] = SimpleQueue()
    with holding(service):
        futures = [service.submit(ran.append, i) for i in range(100)]
        futures[0].add_done_callback(told.put)
        service.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in futures)
        assert told.get(timeout=LIMIT) is futures[0]
    service.shutdown()
    assert ran == []


@pytest.mark.parametrize("bound", [1, 5])
def test_cancel_futures_spares_what_only_waits_for_its_thread(bound: int) -> None:
    # The threads that it takes are idle, or about to start: as under the stdlib's
    # pool, where `submit` waits for its thread, it counts as started.
    for warm in range(bound + 1):
        service = Service(bound)
        ran: list[int] = []
        if warm:
            with holding(service, warm):
                pass
            assert service.block_till_done(LIMIT)
        futures = [service.submit(ran.append, i) for i in range(100)]
        service.shutdown(cancel_futures=True)
        assert not any(future.cancelled() for future in futures[:bound])
        assert futures[-1].cancelled() or len(ran) == 100
        assert all(future.done() for future in futures)
        assert sorted(ran) == [i for i in range(100) if not futures[i].cancelled()]


def test_an_unbounded_service_has_nothing_that_has_not_started_to_cancel() -> None:
    service = Service.unbounded()
    futures = [service.submit(int) for _ in range(10)]
    service.shutdown(cancel_futures=True)
    assert [future.result(LIMIT) for future in futures] == [0] * 10


def test_what_was_accepted_may_lend_and_yield_after_shutdown() -> None:
    service = Service(1)
    shut = threading.Event()

    def body() -> tuple[int, int]:
        first, second = service.submit(int, "5"), service.submit(int, "6")
        ready.set()
        shut.wait(LIMIT)
        return first.result(), service.yield_slot(second.result, LIMIT)

    ready = threading.Event()
    future = service.submit(body)
    assert ready.wait(LIMIT)
    service.shutdown(wait=False)
    shut.set()
    assert future.result(LIMIT) == (5, 6)
    service.shutdown()


def test_submit_after_shutdown_raises_in_the_standard_words() -> None:
    service = Service(1)
    service.shutdown()
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        service.submit(int)
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        service.map(int, "1")


def test_submit_after_shutdown_raises_from_bodies_and_callbacks_too() -> None:
    service = Service(1)
    raised: SimpleQueue[BaseException] = SimpleQueue()

    def try_it(_: object = None) -> None:
        try:
            service.submit(int)
        except RuntimeError as error:
            raised.put(error)

    with holding(service):
        service.submit(try_it).add_done_callback(try_it)
        service.shutdown(wait=False)
    for _ in range(2):
        assert str(raised.get(timeout=LIMIT)) == "cannot schedule new futures after shutdown"


def test_a_body_may_not_wait_for_the_shutdown_of_its_own_service() -> None:
    with Service(1) as service:

        def body() -> Future[int]:
            queued = service.submit(int, "5")
            for _ in range(2):
                with pytest.raises(RuntimeError):
                    service.shutdown(cancel_futures=True)
            with pytest.raises(RuntimeError):
                service.yield_slot(service.shutdown)
            return queued

        # Before any effect.
        assert service.submit(body).result(LIMIT).result(LIMIT) == 5
        assert service.submit(int).result(LIMIT) == 0


def test_a_body_may_shut_its_own_service_down_without_waiting() -> None:
    service = Service(1)

    def body() -> Future[int]:
        queued = service.submit(int, "5")
        service.shutdown(wait=False, cancel_futures=True)
        return queued

    assert service.submit(body).result(LIMIT).cancelled()
    service.shutdown()


def test_a_body_may_shut_another_service_down() -> None:
    with Service(1) as service:
        other = Service(1)
        future = other.submit(int)
        service.submit(other.shutdown).result(LIMIT)
        assert future.done()
        with pytest.raises(RuntimeError):
            other.submit(int)


@pytest.mark.parametrize("cancel", [False, True])
def test_what_is_submitted_beside_shutdown_is_refused_or_done(cancel: bool) -> None:
    def submit_until_refused(service: Service, together: threading.Barrier) -> list[Future[int]]:
        accepted: list[Future[int]] = []
        together.wait(LIMIT)
        try:
            for _ in range(1000):
                accepted.append(service.submit(int))
        except RuntimeError:
            pass
        return accepted

    with Service.unbounded() as others:
        for _ in range(100):
            service, together = Service(2), threading.Barrier(3)
            submitters = [others.submit(submit_until_refused, service, together) for _ in range(2)]
            together.wait(LIMIT)
            service.shutdown(cancel_futures=cancel)
            for submitter in submitters:
                for future in submitter.result(LIMIT):
                    if not (cancel and future.cancelled()):
                        assert future.result(LIMIT) == 0


def test_the_with_block_shuts_down_and_waits() -> None:
    with Service(1) as service:
        future = service.submit(time.sleep, 0.01)
    assert future.done()
    with pytest.raises(RuntimeError):
        service.submit(int)


# Interrupts.


class Interrupted(BaseException):
    """What the signal handler raises, as Ctrl-C would."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Has the main thread interrupted once, in a moment."""
    arrived = threading.Event()

    def handler(*_: object) -> None:
        if not arrived.is_set():
            arrived.set()
            raise Interrupted

    def send() -> None:
        main = threading.main_thread().ident
        assert main is not None
        # Again where it came just before the main thread blocked.
        while not arrived.wait(0.05):
            signal.pthread_kill(main, signal.SIGVTALRM)

    before = signal.signal(signal.SIGVTALRM, handler)
    sender = threading.Thread(target=send)
    yield sender.start
    arrived.set()
    sender.join()
    signal.signal(signal.SIGVTALRM, before)


WAITS: dict[str, Callable[[Service, Future[int]], object]] = {
    "result": lambda service, future: future.result(),
    "exception": lambda service, future: future.exception(LIMIT),
    "block_till_done": lambda service, future: service.block_till_done(),
    "with a timeout": lambda service, future: service.block_till_done(LIMIT),
    "wait": lambda service, future: boundedexec.wait([future]),
    "as_completed": lambda service, future: next(boundedexec.as_completed([future])),
    "map": lambda service, future: next(service.map(int, "5")),
    "shutdown": lambda service, future: service.shutdown(),
}


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no such signals here")
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_an_interrupt_ends_any_wait_and_loses_nothing(
    interrupt: Callable[[], None], wait: Callable[[Service, Future[int]], object]
) -> None:
    with Service(1) as service:
        with holding(service):
            future = service.submit(int, "5")
            with pytest.raises(Interrupted):
                interrupt()
                wait(service, future)
        assert future.result(LIMIT) == 5
        assert service.block_till_done(LIMIT)


# Nothing fails in silence.


def test_an_exception_that_nobody_asked_for_is_logged_when_its_future_is_dropped(
    log: SimpleQueue[logging.LogRecord],
) -> None:
    with Service(1) as service:
        exception = ValueError("of nobody's interest")
        future = service.submit(fail, exception)
        concurrent.futures.wait([future], LIMIT)
        assert log.empty()
        del future
        gc.collect()
        record = logged(log)
        assert record.levelno == logging.ERROR
        assert record.exc_info is not None and record.exc_info[1] is exception
        assert "of nobody's interest" in logging.Formatter().format(record)
    assert log.empty()


def test_what_fails_after_its_future_was_dropped_is_logged_too(
    log: SimpleQueue[logging.LogRecord],
) -> None:
    with Service(1) as service:
        service.submit(fail, Oops())
        record = logged(log)
        assert record.exc_info is not None and record.exc_info[0] is Oops


def ask_for_result(future: Future[None]) -> None:
    with pytest.raises(Oops):
        future.result()


def ask_for_exception(future: Future[None]) -> None:
    assert isinstance(future.exception(), Oops)


@pytest.mark.parametrize("ask", [ask_for_exception, ask_for_result])
def test_an_exception_that_was_asked_for_is_not_logged(
    ask: Callable[[Future[None]], object], log: SimpleQueue[logging.LogRecord]
) -> None:
    with Service(1) as service:
        future = service.submit(fail, Oops())
        ask(future)
        with holding(service):
            future = service.submit(fail, Oops())
            future.add_done_callback(ask)
            del future
    gc.collect()
    assert log.empty()


def test_success_and_cancelling_are_not_logged(log: SimpleQueue[logging.LogRecord]) -> None:
    with Service(1) as service:
        with holding(service):
            service.submit(int)
            assert service.submit(fail, ValueError()).cancel()
    gc.collect()
    assert log.empty()


def test_an_exception_that_asyncio_was_given_is_not_logged_again(
    log: SimpleQueue[logging.LogRecord],
) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await asyncio.get_running_loop().run_in_executor(service, divmod, 1, 0)

    with Service(1) as service:
        asyncio.run(main())
    gc.collect()
    assert log.empty()


def test_an_abandoned_map_is_not_logged(log: SimpleQueue[logging.LogRecord]) -> None:
    with Service(1) as service:
        iterator = service.map(divmod, [1, 1, 1], [1, 0, 0])
        assert next(iterator) == (1, 0)
        del iterator
        gc.collect()
        assert service.block_till_done(LIMIT)
        never_started = service.map(divmod, [1, 1], [0, 0])
        assert service.block_till_done(LIMIT)
        del never_started
        dropped_at_once = service.map(divmod, [1, 1], [0, 0], buffersize=1)
        del dropped_at_once
    gc.collect()
    assert log.empty()


def test_a_failing_log_handler_does_no_harm() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise Oops

    handler = Broken()
    logging.getLogger("boundedexec").addHandler(handler)
    try:
        with Service(1) as service:
            service.submit(fail, ValueError())
            assert service.submit(int).result(LIMIT) == 0
    finally:
        logging.getLogger("boundedexec").removeHandler(handler)


# Bad input.


@pytest.mark.parametrize("fn", [None, 5, "int"])
def test_what_is_not_callable_is_refused_at_once(fn: Any) -> None:
    with Service(1) as service:
        with pytest.raises(TypeError, match=repr(fn)):
            service.submit(fn)
        with pytest.raises(TypeError):
            service.submit(service.yield_slot, fn).result(LIMIT)
        with pytest.raises(TypeError):
            Service(1, initializer=5)  # type: ignore[arg-type]
        assert service.submit(int).result(LIMIT) == 0


def test_submit_without_a_callable_is_refused() -> None:
    with Service(1) as service, pytest.raises(TypeError):
        service.submit()  # type: ignore[call-arg]


@pytest.mark.parametrize("bound", ["4", 2.0, math.nan, [], object])
def test_a_bound_that_is_no_int_is_refused(bound: Any) -> None:
    with pytest.raises(TypeError):
        Service(bound)
    with pytest.raises(TypeError):
        Service.bounded(bound)


@pytest.mark.parametrize(
    ("idle_timeout", "error"),
    [
        (-1, ValueError),
        (-0.5, ValueError),
        (math.nan, ValueError),
        ("1", TypeError),
        ([], TypeError),
    ],
)
def test_an_idle_timeout_that_is_no_time_is_refused(
    idle_timeout: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Service(1, idle_timeout=idle_timeout)


@pytest.mark.parametrize("forever", [None, math.inf, 1e10, 0])
def test_any_time_is_an_idle_timeout(forever: float | None) -> None:
    with Service(1, idle_timeout=forever) as service:
        assert service.submit(int).result(LIMIT) == 0


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-3, ValueError), ("1", TypeError), (1.5, TypeError)]
)
def test_a_buffersize_that_is_none_is_refused_at_the_call(
    size: Any, error: type[Exception]
) -> None:
    taken = itertools.count()
    with Service(1) as service:
        with pytest.raises(error, match="^buffersize must be"):
            service.map(int, taken, buffersize=size)
        assert next(taken) == 0
