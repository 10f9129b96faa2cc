"""An owed re-run is outstanding: shutdown, exit and fork treat it as a submission."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from concurrent.futures import Future

import pytest
from helpers import LIMIT, executing, run_script

from boundedexec import Coalescer, Service


def test_an_owed_rerun_is_outstanding(service: Service, switching: None) -> None:
    coalescer = Coalescer[str](service)
    for _ in range(50):
        with executing(coalescer):
            owed = coalescer.submit("key", str, "again")
            assert not service.block_till_done(0)
        assert service.block_till_done(LIMIT)
        assert owed.done()
        assert len(coalescer) == 0


def test_there_is_no_instant_between_runs_at_which_nothing_is_outstanding(
    service: Service, switching: None
) -> None:
    coalescer = Coalescer[str](service)
    ran = 0

    def run(left: int) -> None:
        nonlocal ran
        ran += 1
        if left:
            coalescer.submit("key", run, left - 1)

    for length in [0, 1, 2, 3, 5, 300, 1000]:
        ran = 0
        coalescer.submit("key", run, length)
        assert service.block_till_done(LIMIT)
        assert ran == length + 1


def test_a_rerun_that_was_cancelled_is_not_outstanding(service: Service) -> None:
    coalescer = Coalescer[str](service)
    with executing(coalescer):
        assert coalescer.submit("key", int).cancel()
    assert service.block_till_done(LIMIT)
    assert len(coalescer) == 0


def test_shutdown_lets_an_owed_rerun_run_and_waits_for_it(service: Service) -> None:
    coalescer = Coalescer[str](service)
    with executing(coalescer):
        owed = coalescer.submit("key", str, "again")
        service.shutdown(wait=False)
        assert not owed.done()
    service.shutdown(wait=True)
    assert owed.result(0) == "again"
    assert len(coalescer) == 0


def test_after_shutdown_submit_raises_also_while_a_run_executes() -> None:
    service = Service(1)
    coalescer = Coalescer[str](service)
    inside: list[str] = []

    def submit_inside() -> None:
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            coalescer.submit("key", inside.append, "never")

    with executing(coalescer, end=submit_inside) as run:
        coalescer.submit("queued", inside.append, "queued")
        coalescer.submit("key", inside.append, "owed")
        service.shutdown(wait=False)
        for key in "key", "queued", "new":
            with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
                coalescer.submit(key, inside.append, "never")
    service.shutdown()
    run.result(0)
    assert sorted(inside) == ["owed", "queued"]
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        coalescer.submit("key", int)
    assert len(coalescer) == 0


@pytest.mark.parametrize("joined", [1, 2])
def test_cancel_futures_cancels_what_is_queued_and_what_is_owed(joined: int) -> None:
    service = Service(1)
    coalescer = Coalescer[str](service)
    with executing(coalescer) as run:
        owed = [coalescer.submit("key", int) for _ in range(joined)]
        queued = [coalescer.submit("queued", int) for _ in range(joined)]
        service.shutdown(wait=False, cancel_futures=True)
    service.shutdown()
    assert run.result(0) == ""
    assert all(future.cancelled() for future in owed + queued)
    assert concurrent.futures.wait(owed + queued, 0).not_done == set()
    assert len(coalescer) == 0


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_what_is_submitted_beside_shutdown_is_refused_or_done(
    cancel_futures: bool, switching: None
) -> None:
    def submit(coalescer: Coalescer[str]) -> list[Future[int]]:
        futures: list[Future[int]] = []
        try:
            while True:
                futures.append(coalescer.submit("key", int))
                submitted.release()
        except RuntimeError:
            return futures

    with Service(2) as others:
        for _ in range(40):
            submitted = threading.Semaphore(0)
            service = Service(2)
            coalescer = Coalescer[str](service)
            submitting = [others.submit(submit, coalescer) for _ in range(2)]
            for _ in range(10):
                assert submitted.acquire(timeout=LIMIT)
            service.shutdown(cancel_futures=cancel_futures)
            futures = [future for each in submitting for future in each.result(LIMIT)]
            assert all(future.done() for future in futures)
            assert cancel_futures or not any(future.cancelled() for future in futures)
            assert len(coalescer) == 0


def test_at_exit_an_owed_rerun_is_finished_first() -> None:
    assert run_script("""
        import threading, time
        from boundedexec import Coalescer, Service

        service = Service(1)
        coalescer = Coalescer(service)
        started, at_end = threading.Event(), threading.Event()

        def run():
            started.set()
            at_end.wait()
            time.sleep(0.1)  # Until the program exits.
            print("run")

        coalescer.submit("key", run)
        started.wait()
        coalescer.submit("key", print, "again")
        coalescer.submit("queued", print, "queued")
        at_end.set()
    """) == ["run", "queued", "again"]


def test_at_exit_an_owed_rerun_of_a_daemon_is_cancelled() -> None:
    assert run_script("""
        import atexit, threading

        # Registered before the package: called after whatever it does at exit.
        atexit.register(lambda: print(owed.cancelled(), queued.cancelled(), run.done()))

        from boundedexec import Coalescer, Service

        service = Service(1, daemon=True)
        coalescer = Coalescer(service)
        started = threading.Event()

        def stuck():
            started.set()
            threading.Event().wait()

        run = coalescer.submit("key", stuck)
        started.wait()
        owed = coalescer.submit("key", print, "again")
        queued = coalescer.submit("queued", print, "queued")
    """) == ["True True False"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_fork_the_childs_coalescers_are_empty_and_work() -> None:
    source = """
        import concurrent.futures, os, threading
        from boundedexec import Coalescer, Service

        def use(executor):
            coalescer = Coalescer(executor)
            started, release = threading.Event(), threading.Event()

            def run():
                started.set()
                release.wait()
                return "run"

            futures = [coalescer.submit("key", run)]
            started.wait()
            futures.append(coalescer.submit("key", str, "owed"))
            futures.append(coalescer.submit("queued", str, "queued"))
            for future in futures:
                future.add_done_callback(lambda future: called.append(future))
            called = []
            child = os.fork()
            if not child:
                print(len(coalescer), "key" in coalescer, len(called), flush=True)
                if isinstance(executor, Service):
                    print(*[future.cancelled() for future in futures])
                    again = coalescer.submit("key", str, "child").result(10)
                    print(again, executor.block_till_done(10), len(coalescer), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            release.set()
            print(*[future.result() for future in futures], flush=True)

        use(Service(1))
        use(concurrent.futures.ThreadPoolExecutor(1))
    """
    assert run_script(source, "-Wignore") == [
        "0 False 0",
        "True True True",
        "child True 0",
        "run owed queued",
        "0 False 0",
        "run owed queued",
    ]
