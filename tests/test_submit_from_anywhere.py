"""`submit` from signal handlers, `__del__` and in the middle of anything else is never lost."""

from __future__ import annotations

import gc
import signal
import threading
import time
from concurrent.futures import Future

import pytest
from helpers import (
    LIMIT,
    Cycle,
    at_each_look,
    check_every_slot,
    fail,
    holding,
    shallow,
    traced,
    wait_until,
)

from boundedexec import Service


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
            check_every_slot(service)


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
                check_every_slot(service)
    finally:
        gc.set_threshold(*before)


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
        check_every_slot(service)


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

        threading.settrace(at_each_look(interrupt))
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
        check_every_slot(service)
