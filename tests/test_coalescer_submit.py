"""A submit gets the future of a run that starts after it; submits for one key join."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, cast

import pytest
from helpers import EXECUTORS, LIMIT, Manual, Oops, Passing, executing, fail, holding

from boundedexec import Coalescer, Service, ThreadPoolExecutor

# What a submit gets


def test_a_submit_gets_the_standard_future_of_its_call(executor: Executor) -> None:
    coalescer = Coalescer[str](executor)
    future = coalescer.submit("key", int, "21", base=3)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(LIMIT) == 7
    failure = ValueError()
    assert coalescer.submit("key", fail, failure).exception(LIMIT) is failure


def test_every_keyword_is_passed_on(executor: Executor) -> None:
    keywords: dict[str, Any] = {"self": 1, "key": 2, "fn": 3, "executor": 4, "context": 5}
    submit: Any = Coalescer[str](executor).submit
    assert submit("key", dict, **keywords).result(LIMIT) == keywords


def test_submits_for_different_keys_have_nothing_to_do_with_each_other(pool: Executor) -> None:
    coalescer = Coalescer[int](pool)
    futures = [coalescer.submit(key, str, key) for key in range(50)]
    assert [future.result(LIMIT) for future in futures] == [str(key) for key in range(50)]


def test_two_coalescers_on_one_executor_have_nothing_to_do_with_each_other() -> None:
    with Service(1) as service, holding(service):
        one, other = Coalescer[str](service), Coalescer[str](service)
        assert one.submit("key", int) is not other.submit("key", int)
        assert (len(one), len(other)) == (1, 1)


def test_a_future_is_what_the_standard_wait_as_completed_and_asyncio_take(pool: Executor) -> None:
    coalescer = Coalescer[int](pool)

    async def main(future: Future[str]) -> str:
        return await asyncio.wrap_future(future)

    futures = [coalescer.submit(key, str, key) for key in range(3)]
    assert concurrent.futures.wait(futures, LIMIT).done == set(futures)
    assert set(concurrent.futures.as_completed(futures, LIMIT)) == set(futures)
    with executing(coalescer, 7):
        owed = coalescer.submit(7, str, 7)
    assert asyncio.run(main(owed)) == "7"


def test_done_callbacks_get_the_future_that_submit_returned(executor: Executor) -> None:
    called: SimpleQueue[object] = SimpleQueue()
    future = Coalescer[str](executor).submit("key", int)
    future.add_done_callback(called.put)
    assert called.get(timeout=LIMIT) is future


# Joining


def test_a_submit_joins_the_run_that_is_queued_and_the_latest_is_what_runs(
    service: Service,
) -> None:
    service = Service(1)
    coalescer = Coalescer[str](service)
    ran: list[str] = []
    with service, holding(service):
        first = coalescer.submit("key", ran.append, "first")
        assert coalescer.submit("key", ran.append, "second") is first
        latest = coalescer.submit("key", sorted, "latest", reverse=True)
        assert cast(object, latest) is first
    assert cast(object, first.result(LIMIT)) == sorted("latest", reverse=True)
    assert ran == []


def test_submits_beside_a_run_that_executes_join_the_one_rerun(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    ran: list[str] = []
    with executing(coalescer) as run:
        owed = coalescer.submit("key", ran.append, "first")
        assert coalescer.submit("key", ran.append, "second") is owed
        latest = coalescer.submit("key", sorted, "latest", reverse=True)
        assert cast(object, latest) is owed
        assert owed is not run
        assert not owed.done() and not run.done()
    assert cast(object, owed.result(LIMIT)) == sorted("latest", reverse=True)
    assert ran == []


def test_a_run_counts_as_started_once_it_is_handed_to_an_executor_that_is_not_a_service() -> None:
    executor = Manual()
    coalescer = Coalescer[str](executor)
    first = coalescer.submit("key", str, "first")
    second = coalescer.submit("key", str, "second")
    third = coalescer.submit("key", str, "third")
    assert first is not second and second is third
    assert len(executor.handed) == 1
    executor.run()
    assert (first.result(0), second.result(0)) == ("first", "third")


@pytest.mark.parametrize(
    "end", [str, lambda: fail(ValueError()), lambda: fail(Oops())], ids=["", "raises", "exits"]
)
def test_the_rerun_starts_however_the_run_ended(pool: Executor, end: Callable[[], Any]) -> None:
    coalescer = Coalescer[str](pool)
    with executing(coalescer, end=end) as run:
        owed = coalescer.submit("key", str, "again")
    assert owed.result(LIMIT) == "again"
    assert isinstance(run.exception(LIMIT), (ValueError, Oops, type(None)))


def test_the_rerun_starts_when_the_run_was_cancelled() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        coalescer = Coalescer[str](executor)
        with holding(executor):
            run = coalescer.submit("key", str, "cancelled")
            owed = coalescer.submit("key", str, "again")
            assert run.cancel()
        assert owed.result(LIMIT) == "again"
        assert run.cancelled()


def test_the_rerun_starts_when_the_executor_cancelled_the_run() -> None:
    executor = Manual()
    coalescer = Coalescer[str](executor)
    run = coalescer.submit("key", str, "cancelled")
    owed = coalescer.submit("key", str, "again")
    assert executor.handed[0][0].cancel()
    assert run.cancelled()
    executor.run_until(owed)
    assert owed.result(0) == "again"


def test_the_run_is_over_when_its_rerun_starts(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    for _ in range(100):
        with executing(coalescer) as run:
            owed = coalescer.submit("key", run.done)
        assert owed.result(LIMIT)


def test_a_run_that_submits_its_own_key_joins_its_rerun(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)

    def run() -> Future[str]:
        coalescer.submit("key", str, "superseded")
        return coalescer.submit("key", str, "again")

    assert coalescer.submit("key", run).result(LIMIT).result(LIMIT) == "again"


def test_a_done_callback_that_submits_the_key_gets_a_new_run(executor: Executor) -> None:
    coalescer = Coalescer[str](executor)
    again: SimpleQueue[Future[str]] = SimpleQueue()
    future = coalescer.submit("key", int)
    future.add_done_callback(lambda _: again.put(coalescer.submit("key", str, "again")))
    assert again.get(timeout=LIMIT).result(LIMIT) == "again"


def test_a_done_callback_that_raises_does_not_hold_up_the_rerun(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    logging.disable()
    try:
        with executing(coalescer) as run:
            run.add_done_callback(lambda _: fail(ValueError()))
            owed = coalescer.submit("key", str, "again")
        assert owed.result(LIMIT) == "again"
    finally:
        logging.disable(logging.NOTSET)


variable = contextvars.ContextVar("variable", default="default")


def submit_in_context(coalescer: Coalescer[str], value: str) -> Future[str]:
    def submit() -> Future[str]:
        variable.set(value)
        return coalescer.submit("key", variable.get)

    return contextvars.copy_context().run(submit)


def test_the_context_of_the_latest_submit_is_the_one_that_runs(service: Service) -> None:
    if isinstance(service, ThreadPoolExecutor):
        service = Service(2)  # The drop-in's bodies run in their threads' context.
    coalescer = Coalescer[str](service)
    assert submit_in_context(coalescer, "alone").result(LIMIT) == "alone"
    with executing(coalescer):
        submit_in_context(coalescer, "first")
        owed = submit_in_context(coalescer, "latest")
    assert owed.result(LIMIT) == "latest"
    with executing(coalescer):
        owed = submit_in_context(coalescer, "first")
        coalescer.submit("key", variable.get)
    assert owed.result(LIMIT) == "default"


def test_the_context_of_the_latest_submit_is_the_one_of_a_run_that_is_queued() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with holding(service):
            submit_in_context(coalescer, "first")
            joined = submit_in_context(coalescer, "latest")
        assert joined.result(LIMIT) == "latest"


def test_what_a_body_sets_in_a_context_that_was_empty_reaches_no_other() -> None:
    def see_and_set() -> str:
        seen = variable.get()
        variable.set("changed")
        return seen

    with Service(1) as service:
        coalescer = Coalescer[int](service)
        runs = [contextvars.Context().run(coalescer.submit, n, see_and_set) for n in range(3)]
        assert [run.result(LIMIT) for run in runs] == ["default"] * 3


def test_another_executor_is_called_in_the_context_of_the_latest_submit() -> None:
    executor = Passing(manual := Manual())
    coalescer = Coalescer[str](executor)
    values: list[str] = []
    coalescer.submit("key", str)
    submit_in_context(coalescer, "first")
    submit_in_context(coalescer, "latest")
    executor.before = lambda: values.append(variable.get())
    manual.run()
    assert values == ["latest"]


# The queue


def test_a_rerun_goes_to_the_end_of_the_queue() -> None:
    order: list[str] = []
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            service.submit(order.append, "before")
            coalescer.submit("key", order.append, "again")
            service.submit(order.append, "after")
        assert service.block_till_done(LIMIT)
        service.submit(order.append, "last").result(LIMIT)
    assert order == ["before", "after", "again", "last"]


def test_a_hot_key_does_not_keep_a_slot() -> None:
    order: list[str] = []

    def hot() -> None:
        order.append("hot")
        if len(order) < 20:
            coalescer.submit("key", hot)
            service.submit(order.append, "other")

    with Service(1) as service:
        coalescer = Coalescer[str](service)
        coalescer.submit("key", hot)
        assert service.block_till_done(LIMIT)
    assert order == ["hot", "other"] * 10 + ["hot"]


def test_other_submissions_have_their_turn_while_a_key_is_hot(switching: None) -> None:
    ending = threading.Event()

    def hot() -> None:
        if not ending.is_set():
            coalescer.submit("key", hot)

    with Service(1) as service:
        coalescer = Coalescer[str](service)
        coalescer.submit("key", hot)
        for _ in range(100):
            service.submit(int).result(LIMIT)
        assert "key" in coalescer
        ending.set()


def test_a_coalesced_body_has_a_slot_that_it_may_yield() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def run() -> str:
            return service.yield_slot(service.submit(str, "other").result, LIMIT)

        assert coalescer.submit("key", run).result(LIMIT) == "other"


def test_a_coalesced_body_may_not_block_till_its_service_is_done() -> None:
    with Service(2) as service:
        coalescer = Coalescer[str](service)
        future = coalescer.submit("key", service.block_till_done)
        assert isinstance(future.exception(LIMIT), RuntimeError)


# Bad input


@pytest.mark.parametrize("executor", [None, 3, object(), "submit"])
def test_what_has_no_submit_is_refused(executor: Any) -> None:
    with pytest.raises(TypeError, match="submit|[Ee]xecutor"):
        Coalescer[str](executor)


@pytest.mark.parametrize("state", ["new", "executing", "queued"])
def test_a_key_that_is_not_hashable_is_refused(state: str) -> None:
    with Service(1) as service:
        coalescer = Coalescer[Any](service)
        with executing(coalescer), pytest.raises(TypeError, match="unhashable|hash"):
            coalescer.submit([], int)
        with pytest.raises(TypeError, match="unhashable|hash"):
            coalescer.submit({}, int)
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0


@pytest.mark.parametrize("make", EXECUTORS.values(), ids=EXECUTORS)
@pytest.mark.parametrize("fn", [None, 3, "text"])
def test_what_is_not_callable_is_refused_at_once(make: Callable[[], Executor], fn: Any) -> None:
    with make() as executor:
        coalescer = Coalescer[str](executor)
        with pytest.raises(TypeError, match="callable"):
            coalescer.submit("key", fn)
        assert len(coalescer) == 0


def test_what_is_not_callable_changes_nothing_of_what_is_in_flight(pool: Executor) -> None:
    fn: Any = None
    coalescer = Coalescer[str](pool)
    with executing(coalescer):
        with pytest.raises(TypeError, match="callable"):
            coalescer.submit("key", fn)
        owed = coalescer.submit("key", str, "again")
        with pytest.raises(TypeError, match="callable"):
            coalescer.submit("key", fn)
        assert len(coalescer) == 1
    assert owed.result(LIMIT) == "again"


def test_a_submit_without_key_or_callable_is_refused() -> None:
    submit: Any = Coalescer[str](Manual()).submit
    with pytest.raises(TypeError):
        submit()
    with pytest.raises(TypeError):
        submit("key")
