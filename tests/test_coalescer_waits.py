"""A body that waits for a run lends its slot to it, and a circle through a run is an error."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from concurrent.futures import Future
from queue import SimpleQueue

import pytest
from helpers import LIMIT, Inline, Wait, every_wait, executing, holding

import boundedexec
from boundedexec import Coalescer, DeadlockError, Service


@every_wait
def test_a_body_that_waits_for_a_queued_run_lends_it_its_slot(
    wait: Wait,
) -> None:
    order: list[str] = []
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def body() -> None:
            service.submit(order.append, "queued")
            coalescer.submit("key", order.append, "superseded")
            wait(coalescer.submit("key", order.append, "run"))
            order.append("body")

        service.submit(body).result(LIMIT)
        assert service.block_till_done(LIMIT)
    assert order == ["run", "body", "queued"]


@every_wait
def test_a_body_that_waits_for_an_owed_rerun_lends_it_its_slot(
    wait: Wait,
) -> None:
    """The re-run is owed when the wait begins; then it is queued behind what waits for the body."""
    waiting, release = threading.Event(), threading.Event()
    with Service(2) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer) as run:
            owed = coalescer.submit("key", str, "again")

            def body() -> None:
                waiting.set()
                wait(owed)
                release.set()

            future = service.submit(body)
            assert waiting.wait(LIMIT)
            blocked = service.submit(release.wait, LIMIT)
        future.result(LIMIT)
        assert blocked.result(LIMIT)
        assert run.done() and owed.result(LIMIT) == "again"


def test_a_body_that_waits_for_the_rerun_of_a_run_it_waited_for_lends_again() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def run() -> Future[str]:
            return coalescer.submit("key", str, "again")

        def body() -> str:
            return coalescer.submit("key", run).result().result()

        assert service.submit(body).result(LIMIT) == "again"


def test_runs_that_wait_for_runs_lend_along_the_chain() -> None:
    with Service(1) as service:
        coalescer = Coalescer[Hashable](service)

        def run(depth: int) -> int:
            if not depth:
                return 0
            if depth % 2:
                return service.submit(run, depth - 1).result() + 1
            return coalescer.submit(depth, run, depth - 1).result() + 1

        assert coalescer.submit("start", run, 100).result(LIMIT) == 100
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0


def test_runs_lend_across_services() -> None:
    with Service(1) as service, Service(1) as other:
        coalescer, on_other = Coalescer[str](service), Coalescer[str](other)

        def outer() -> str:
            return on_other.submit("key", middle).result()

        def middle() -> str:
            return coalescer.submit("inner", str, "inner").result()

        assert coalescer.submit("key", outer).result(LIMIT) == "inner"


def test_bodies_may_wait_for_the_same_run(switching: None) -> None:
    def join(coalescer: Coalescer[str]) -> str:
        return coalescer.submit("key", str, "run").result()

    for bound in [1, 2, 3] * 20:
        with Service(bound) as service:
            coalescer = Coalescer[str](service)
            with holding(service, bound):
                future = coalescer.submit("key", str, "run")
                bodies = [service.submit(future.result) for _ in range(4)]
                bodies.append(service.submit(join, coalescer))
            assert [body.result(LIMIT) for body in bodies] == ["run"] * 5


def test_a_body_may_wait_for_a_run_that_is_joined_while_it_waits(switching: None) -> None:
    def join(coalescer: Coalescer[str], text: str) -> int:
        return coalescer.submit("key", int, text).result()

    for _ in range(50):
        with Service(1) as service:
            coalescer = Coalescer[str](service)
            future = service.submit(join, coalescer, "1")
            joined = coalescer.submit("key", int, "2")
            assert future.result(LIMIT) in (1, 2)
            assert joined.result(LIMIT) in (1, 2)


def test_a_wait_with_a_timeout_lends_the_slot_to_a_run() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def body() -> str:
            return coalescer.submit("key", str, "run").result(LIMIT / 2)

        assert service.submit(body).result(LIMIT) == "run"


@every_wait
def test_a_run_that_waits_for_itself_raises(wait: Wait) -> None:
    known = threading.Event()
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def a_certain_run() -> None:
            assert known.wait(LIMIT)
            with pytest.raises(DeadlockError, match="a_certain_run"):
                wait(future)

        future = coalescer.submit("key", a_certain_run)
        known.set()
        future.result(LIMIT)


@every_wait
def test_a_run_that_waits_for_the_rerun_that_it_holds_up_raises(
    service: Service, wait: Wait
) -> None:
    coalescer = Coalescer[str](service)

    def a_certain_run() -> Future[str]:
        owed = coalescer.submit("key", str, "again")
        with pytest.raises(DeadlockError, match="a_certain_run"):
            wait(owed)
        return owed

    assert coalescer.submit("key", a_certain_run).result(LIMIT).result(LIMIT) == "again"
    assert service.block_till_done(LIMIT)


def test_a_run_that_waits_for_its_rerun_with_a_timeout_is_not() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def run() -> Future[str]:
            owed = coalescer.submit("key", str, "again")
            with pytest.raises(boundedexec.TimeoutError):
                owed.result(0.01)
            return owed

        assert coalescer.submit("key", run).result(LIMIT).result(LIMIT) == "again"


def test_of_runs_that_wait_for_each_others_reruns_one_raises() -> None:
    together = threading.Barrier(2)
    raised: list[str] = []
    with Service(2) as service:
        coalescer = Coalescer[str](service)

        def run(other: str) -> None:
            together.wait(LIMIT)
            owed = coalescer.submit(other, str, "again")
            together.wait(LIMIT)
            try:
                assert owed.result() == "again"
            except DeadlockError:
                raised.append(other)

        futures = [coalescer.submit("a", run, "b"), coalescer.submit("b", run, "a")]
        for future in futures:
            future.result(LIMIT)
    assert len(raised) == 1


def test_a_run_may_wait_for_one_that_waits_for_the_rerun_with_a_way_out() -> None:
    """The other body gives up: no circle, for its wait ends by itself."""
    with Service(1) as service:
        coalescer = Coalescer[str](service)

        def impatient(owed: Future[str]) -> None:
            with pytest.raises(boundedexec.TimeoutError):
                owed.result(0.01)

        def run() -> Future[str]:
            owed = coalescer.submit("key", str, "again")
            service.submit(impatient, owed).result()
            return owed

        assert coalescer.submit("key", run).result(LIMIT).result(LIMIT) == "again"


@every_wait
@pytest.mark.parametrize("owed", [False, True], ids=["new", "owed"])
def test_a_done_callback_may_wait_for_the_next_run(
    service: Service, owed: bool, wait: Wait
) -> None:
    coalescer = Coalescer[str](service)
    waited: SimpleQueue[object] = SimpleQueue()

    def callback(_: object) -> None:
        try:
            wait(again := coalescer.submit("key", str, "again"))
            waited.put(again.result(0))
        except BaseException as exception:
            waited.put(exception)

    with executing(coalescer) as run:
        run.add_done_callback(callback)
        if owed:
            coalescer.submit("key", str, "owed")
    assert waited.get(timeout=LIMIT) == "again"
    assert service.block_till_done(LIMIT)


def test_a_done_callback_may_wait_for_the_rerun_that_was_owed_inline() -> None:
    coalescer = Coalescer[str](Inline())
    waited: list[str] = []

    def first() -> None:
        owed = coalescer.submit("key", second)
        owed.add_done_callback(lambda _: waited.append(third[0].result(9)))

    def second() -> None:
        third.append(coalescer.submit("key", str, "third"))

    third: list[Future[str]] = []
    coalescer.submit("key", first)
    assert waited == ["third"]


def test_a_done_callback_may_wait_for_the_rerun_that_was_owed(service: Service) -> None:
    coalescer = Coalescer[str](service)
    waited: SimpleQueue[object] = SimpleQueue()
    with executing(coalescer) as run:
        owed = coalescer.submit("key", str, "again")

        def callback(_: object) -> None:
            try:
                waited.put(owed.result())
            except BaseException as exception:
                waited.put(exception)

        run.add_done_callback(callback)
    assert waited.get(timeout=LIMIT) == "again"
