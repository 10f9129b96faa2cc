"""Which keys are in flight, and who may cancel a run."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Executor, Future
from typing import Any

import pytest
from helpers import LIMIT, Key, Manual, executing, fail, holding

from boundedexec import Coalescer, Service

# Which keys are in flight


def test_len_and_in_show_which_keys_are_in_flight() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        assert (len(coalescer), "key" in coalescer) == (0, False)
        with executing(coalescer):
            coalescer.submit("queued", int)
            assert len(coalescer) == 2
            assert "key" in coalescer and "queued" in coalescer and "other" not in coalescer
            coalescer.submit("key", int)
            coalescer.submit("queued", int)
            assert len(coalescer) == 2
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0
        assert "key" not in coalescer and "queued" not in coalescer


@pytest.mark.parametrize("end", [int, lambda: fail(ValueError())], ids=["returns", "raises"])
def test_a_key_whose_future_is_done_is_not_in_flight(
    executor: Executor, switching: None, end: Callable[[], Any]
) -> None:
    coalescer = Coalescer[str](executor)
    for _ in range(300):
        coalescer.submit("key", end).exception(LIMIT)
        assert "key" not in coalescer
    assert len(coalescer) == 0


def test_a_key_that_was_cancelled_is_not_in_flight() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with holding(service):
            assert coalescer.submit("key", int).cancel()
            assert len(coalescer) == 0 and "key" not in coalescer


def test_equal_keys_are_one_key(pool: Executor) -> None:
    coalescer = Coalescer[Key](pool)
    with executing(coalescer, Key("a")):
        assert coalescer.submit(Key("a"), int) is coalescer.submit(Key("a"), int)
        assert Key("a") in coalescer and Key("c") not in coalescer
        other = coalescer.submit(Key("c"), int)
        assert coalescer.submit(Key("a"), int) is not other
        assert len(coalescer) >= 1


@pytest.mark.parametrize("key", [None, False, 0, "", (), frozenset({1}), int])
def test_anything_hashable_is_a_key(key: Hashable) -> None:
    executor = Manual()
    coalescer = Coalescer[Hashable](executor)
    future = coalescer.submit(key, str, "run")
    owed = coalescer.submit(key, str, "again")
    assert key in coalescer
    executor.run()
    assert (future.result(0), owed.result(0), len(coalescer)) == ("run", "again", 0)


# Cancelling


def test_a_queued_run_that_one_submit_asked_for_can_be_cancelled() -> None:
    ran: list[str] = []
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with holding(service):
            future = coalescer.submit("key", ran.append, "cancelled")
            assert future.cancel() and future.cancelled()
            assert concurrent.futures.wait([future], LIMIT).not_done == set()
            again = coalescer.submit("key", ran.append, "again")
            assert again is not future
        again.result(LIMIT)
    assert ran == ["again"]


def test_an_owed_rerun_that_one_submit_asked_for_can_be_cancelled(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    ran: list[str] = []
    with executing(coalescer):
        future = coalescer.submit("key", ran.append, "cancelled")
        assert future.cancel() and future.cancelled()
        assert concurrent.futures.wait([future], LIMIT).not_done == set()
        with pytest.raises(CancelledError):
            future.result(LIMIT)
        again = coalescer.submit("key", ran.append, "again")
        assert again is not future
    again.result(LIMIT)
    with executing(coalescer):
        assert coalescer.submit("key", ran.append, "cancelled").cancel()
    coalescer.submit("other", int).result(LIMIT)
    assert ran == ["again"]


def test_a_run_handed_to_another_executor_can_be_cancelled_until_it_executes() -> None:
    ran: list[str] = []
    executor = Manual()
    coalescer = Coalescer[str](executor)
    assert coalescer.submit("key", ran.append, "cancelled").cancel()
    executor.run()
    assert len(coalescer) == 0
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        coalescer = Coalescer[str](threads)
        with executing(coalescer) as run:
            assert not run.cancel()
            queued = coalescer.submit("queued", ran.append, "cancelled")
            assert queued.cancel() and queued.cancelled()
            assert concurrent.futures.wait([queued], LIMIT).not_done == set()
    assert ran == []


def test_a_run_that_two_submits_joined_cannot_be_cancelled_by_one_of_them() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            owed = coalescer.submit("key", str, "first")
            coalescer.submit("key", str, "owed")
            queued = coalescer.submit("queued", str, "first")
            coalescer.submit("queued", str, "queued")
            for _ in range(2):
                assert not owed.cancel() and not owed.cancelled()
                assert not queued.cancel() and not queued.cancelled()
        assert owed.result(LIMIT) == "owed"
        assert queued.result(LIMIT) == "queued"


def test_a_run_that_executes_or_is_over_cannot_be_cancelled(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    with executing(coalescer) as run:
        assert not run.cancel()
        assert not run.cancelled()
    assert not run.cancel()
    assert run.result(LIMIT) == ""


def test_the_done_callbacks_of_what_was_cancelled_are_called(pool: Executor) -> None:
    coalescer = Coalescer[str](pool)
    called: list[object] = []
    with executing(coalescer):
        owed = coalescer.submit("key", int)
        owed.add_done_callback(called.append)
        owed.cancel()
        assert called == [owed]


@pytest.mark.parametrize("state", ["queued", "owed"])
def test_of_a_cancel_beside_a_join_one_is_first(state: str, switching: None) -> None:
    rounds = 300
    together = threading.Barrier(2)

    def join() -> list[Future[str]]:
        joined: list[Future[str]] = []
        for key in range(rounds):
            together.wait(LIMIT)
            joined.append(coalescer.submit(key, str, "joined"))
        return joined

    def cancel() -> list[tuple[Future[str], bool]]:
        cancelled: list[tuple[Future[str], bool]] = []
        for key in range(rounds):
            if state == "owed":
                coalescer.submit(key, str)  # Handed over, and so it counts as started.
            future = coalescer.submit(key, str, "first")
            together.wait(LIMIT)
            cancelled.append((future, future.cancel()))
        return cancelled

    with Service(1) as service, Service(1) as other:
        manual = Manual()
        coalescer = Coalescer[int](manual if state == "owed" else service)
        with holding(service):
            joining = other.submit(join)
            pairs = cancel()
            joined = joining.result(LIMIT)
        manual.run()
        for (first, cancelled), future in zip(pairs, joined, strict=True):
            assert future.result(LIMIT) == "joined"
            assert first.cancelled() == cancelled == (first is not future)
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0
