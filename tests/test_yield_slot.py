"""A body gives its slot to the next in line, and has one again before it goes on."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue

import pytest
from helpers import LIMIT, Blocking, Executing, Oops, check_every_slot, fail, holding

from boundedexec import Service


def test_yield_slot_returns_what_its_callable_returns_and_runs_it_here() -> None:
    with Service(1) as service:

        def body() -> None:
            thread = threading.current_thread()
            assert service.yield_slot(threading.current_thread) is thread
            assert service.yield_slot(int, "11", base=2) == 3
            given = {"self": 1, "fn": 2}
            assert service.yield_slot(dict, **given) == given

        service.submit(body).result(LIMIT)
        check_every_slot(service)


def test_yield_slot_lets_others_execute_during_the_call() -> None:
    with Service(1) as service:

        def body() -> int:
            return service.yield_slot(service.submit(int, "5").result, LIMIT)

        assert service.submit(body).result(LIMIT) == 5


def test_slot_yielded_lets_others_execute_during_the_block() -> None:
    with Service(1) as service:

        def body() -> tuple[int, bool, bool]:
            inner = service.submit(int, "5")
            with service.slot_yielded():
                got = inner.result(LIMIT)
            later = service.submit(int)
            return got, later.running(), later.done()

        # It has a slot again after the block.
        assert service.submit(body).result(LIMIT) == (5, False, False)
        check_every_slot(service)


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
        check_every_slot(service)


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
                # Still given away: otherwise this would not end.
                got = inner.result(LIMIT)
                assert service.submit(int, "6").result(LIMIT) == 6
            return got

        assert service.submit(body).result(LIMIT) == 5
        check_every_slot(service)


def test_a_nested_yield_passes_on_what_is_raised() -> None:
    with Service(1) as service:

        def body() -> int:
            with service.slot_yielded():
                with pytest.raises(Oops):
                    service.yield_slot(fail, Oops())
                return service.submit(int, "5").result(LIMIT)

        assert service.submit(body).result(LIMIT) == 5
        check_every_slot(service)


def test_a_slot_given_away_may_start_one_more_body_on_one_more_thread() -> None:
    together = threading.Barrier(50)

    def body() -> str:
        service.yield_slot(together.wait, LIMIT)
        return threading.current_thread().name

    with Service(1) as service:
        futures = [service.submit(body) for _ in range(50)]
        assert len({future.result(LIMIT) for future in futures}) == 50
        check_every_slot(service)


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
        check_every_slot(service)
        check_every_slot(other)


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
        check_every_slot(service)


def test_a_body_yields_the_slot_of_its_own_service_alone() -> None:
    with Service(1) as service, Service(1) as other:

        def outer() -> None:
            other.submit(inner).result(LIMIT)

        def inner() -> None:
            assert other.yield_slot(other.submit(int, "5").result, LIMIT) == 5
            with pytest.raises(RuntimeError):
                service.yield_slot(int)

        service.submit(outer).result(LIMIT)
        check_every_slot(service)
        check_every_slot(other)
