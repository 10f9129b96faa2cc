"""A Coalescer's runs: their order under lending, their memory, keys that raise."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from contract_helpers import LIMIT, Gate, check_slots, collected, full, new_service

import boundedexec
from boundedexec import Coalescer, Service


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_awaited_runs_go_in_the_order_of_submission_with_others(timeout: float | None) -> None:
    service = new_service(1)
    order: list[Any] = []
    coalescer: Coalescer[str] = Coalescer(service)

    def body() -> None:
        futures = [
            service.submit(order.append, "a"),
            coalescer.submit("b", order.append, "b"),
            service.submit(order.append, "c"),
            coalescer.submit("d", order.append, "d"),
            service.submit(order.append, "e"),
        ]
        # A later submit of a queued key changes what runs, and not its place.
        assert coalescer.submit("b", order.append, "B") is futures[1]
        boundedexec.wait([futures[n] for n in (4, 3, 1, 0)], timeout)
        order.append("body")

    service.submit(body).result(LIMIT)
    assert service.block_till_done(LIMIT)
    assert order == ["a", "B", "d", "e", "body", "c"]
    check_slots(service, 1)


def test_an_awaited_rerun_goes_at_its_place_at_the_end_of_the_queue() -> None:
    service = new_service(2)
    order: list[Any] = []
    coalescer: Coalescer[str] = Coalescer(service)
    run, waiting = Gate(), Gate()
    coalescer.submit("key", run)
    run.wait_entered()
    owed = coalescer.submit("key", order.append, "rerun")

    def body() -> None:
        queued = [service.submit(order.append, n) for n in range(2)]
        waiting.entered.set()
        boundedexec.wait([owed, *queued])

    with full(service) as release:
        future = service.submit(body)
        release()
        waiting.wait_entered()
        run.open()
        future.result(LIMIT)
    assert sorted(map(str, order)) == ["0", "1", "rerun"]
    check_slots(service, 2)


def test_a_run_that_is_joined_by_who_waits_is_lent_to_once() -> None:
    service = new_service(1)
    ran: list[Any] = []
    coalescer: Coalescer[str] = Coalescer(service)

    def body() -> None:
        futures = [coalescer.submit("key", ran.append, n) for n in range(5)]
        boundedexec.wait(futures)
        assert len(set(map(id, futures))) == 1

    service.submit(body).result(LIMIT)
    assert ran == [4]
    check_slots(service, 1)


def test_many_submits_to_a_running_key_cost_one_rerun() -> None:
    service, gate = new_service(1), Gate()
    coalescer: Coalescer[str] = Coalescer(service)
    ran: list[int] = []
    coalescer.submit("key", gate)
    gate.wait_entered()
    for n in range(1000):
        coalescer.submit("key", ran.append, n)
    gc.collect()
    before = sys.getallocatedblocks()
    owed: Any = None
    for n in range(20_000):
        owed = coalescer.submit("key", ran.append, n)
    gc.collect()  # A submit may leave a cycle; when it is freed differs between builds.
    assert sys.getallocatedblocks() - before < 1000
    assert len(coalescer) == 1
    gate.open()
    owed.result(LIMIT)
    assert service.block_till_done(LIMIT)
    assert ran == [19_999]
    assert len(coalescer) == 0


# Keys.


class Key:
    """A key that raises where it is told to."""

    def __init__(self) -> None:
        self.raising = ""

    def __hash__(self) -> int:
        if self.raising == "hash":
            raise KeyError("hash")
        return 1

    def __eq__(self, other: object) -> bool:
        if self.raising == "eq" or getattr(other, "raising", "") == "eq":
            raise KeyError("eq")
        return self is other

    def __repr__(self) -> str:
        raise KeyError("repr")


def submit(coalescer: Coalescer[Any], key: Key) -> Any:
    return coalescer.submit(key, pow, 2, 3)


def join(coalescer: Coalescer[Any], key: Key) -> Any:
    return coalescer.join(key, pow, 2, 3)


def contains(coalescer: Coalescer[Any], key: Key) -> Any:
    return key in coalescer


@pytest.mark.parametrize("call", [submit, join, contains])
@pytest.mark.parametrize("what", ["eq", "hash"])
def test_a_key_that_raises_changes_nothing(
    call: Callable[[Coalescer[Any], Key], Any], what: str
) -> None:
    service, gate = new_service(1), Gate()
    coalescer: Coalescer[Any] = Coalescer(service)
    key, other = Key(), Key()
    run = coalescer.submit(key, gate, "run")
    gate.wait_entered()
    owed = coalescer.submit(key, pow, 2, 4)
    other.raising = what
    with pytest.raises(KeyError, match=what):
        call(coalescer, other)
    other.raising = ""
    assert len(coalescer) == 1
    assert key in coalescer
    assert other not in coalescer
    gate.open()
    assert (run.result(LIMIT), owed.result(LIMIT)) == ("run", 16)
    check_slots(service, 1)
    assert len(coalescer) == 0
    assert submit(coalescer, other).result(LIMIT) == 8


@pytest.mark.parametrize("what", ["eq", "hash"])
@pytest.mark.parametrize("end", ["returned", "raised", "cancelled"])
def test_no_future_is_left_where_a_key_raises_when_its_run_ends(what: str, end: str) -> None:
    service = new_service(1)
    coalescer: Coalescer[Any] = Coalescer(service)
    keys = [Key() for _ in range(3)]
    futures: list[Any] = []
    with full(service):
        for key in keys:
            futures.append(coalescer.submit(key, int, "x" if end == "raised" else "1"))
        for key in keys:
            key.raising = what
        if end == "cancelled":
            assert [future.cancel() for future in futures] == [True] * 3
    _, not_done = boundedexec.wait(futures, LIMIT)
    assert not not_done
    if end == "returned":
        assert [future.result(0) for future in futures] == [1] * 3
    check_slots(service, 1)
    for key in keys:
        key.raising = ""
    assert submit(coalescer, Key()).result(LIMIT) == 8
    check_slots(service, 1)


@pytest.mark.parametrize("what", ["eq", "hash"])
def test_an_owed_rerun_runs_though_its_key_raises_when_the_run_ends(what: str) -> None:
    service, gate = new_service(1), Gate()
    coalescer: Coalescer[Any] = Coalescer(service)
    key, other = Key(), Key()
    run = coalescer.submit(key, gate)
    coalescer.submit(other, pow, 2, 3)
    gate.wait_entered()
    owed = coalescer.submit(key, pow, 2, 4)
    key.raising = other.raising = what
    gate.open()
    run.result(LIMIT)
    assert owed.result(LIMIT) == 16
    check_slots(service, 1)


def test_a_key_whose_repr_raises_can_be_used_and_printed_about() -> None:
    service, gate = new_service(1), Gate()
    coalescer: Coalescer[Any] = Coalescer(service)
    run = coalescer.submit(Key(), gate, "run")
    gate.wait_entered()
    repr(coalescer)
    repr(run)
    gate.open()
    assert run.result(LIMIT) == "run"


def test_keys_with_one_hash_are_different_keys() -> None:
    service = new_service(1)
    coalescer: Coalescer[Any] = Coalescer(service)
    with full(service):
        futures = [coalescer.submit(Key(), pow, 2, n) for n in range(20)]
        assert len(coalescer) == 20
    assert [future.result(LIMIT) for future in futures] == [2**n for n in range(20)]
    assert service.block_till_done(LIMIT)
    assert len(coalescer) == 0


def test_a_key_that_is_done_leaves_nothing() -> None:
    service = new_service(1)
    coalescer: Coalescer[Any] = Coalescer(service)
    key = Key()
    reference = weakref.ref(key)
    assert submit(coalescer, key).result(LIMIT) == 8
    del key
    assert service.block_till_done(LIMIT)
    assert collected(reference)
    assert len(coalescer) == 0


def test_a_submit_for_the_same_key_in_the_middle_of_the_executors_submit() -> None:
    class Reentrant(Service):
        again: Any = None

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            if self.again is None:
                self.again = False
                self.again = coalescer.submit("key", pow, 2, 4)
            return super().submit(fn, *args, **kwargs)

    service = Reentrant(1, daemon=True)
    coalescer: Coalescer[str] = Coalescer(service)
    future = coalescer.submit("key", pow, 2, 3)
    assert future.result(LIMIT) in (8, 16)
    assert service.again.result(LIMIT) == 16
    check_slots(service, 1)
    assert len(coalescer) == 0
