"""After `fork` the child's services are empty and work, and the parent's go on."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures.thread import BrokenThreadPool
from contextvars import ContextVar
from threading import current_thread
from typing import Any

import pytest
from helpers import LIMIT, forking, holding, in_child, run_script

from boundedexec import Service

variable: ContextVar[str] = ContextVar("variable", default="unset")


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("bound", [2, 0])
def test_after_fork_the_childs_copy_is_empty_and_works(bound: int) -> None:
    with Service(bound, "forked", variable.set, ("initializer's",)) as service:

        def check() -> None:
            assert service.block_till_done(0)
            assert service.max_workers == (bound or None)
            with holding(service, 2):
                more = service.submit(int, "5")
                if bound:
                    assert not more.done()
            assert more.result(LIMIT) == 5
            assert service.submit(variable.get).result(LIMIT) == "initializer's"
            assert service.submit(lambda: service.submit(int, "6").result()).result(LIMIT) == 6
            assert service.submit(service.yield_slot, int, "7").result(LIMIT) == 7
            name = service.submit(lambda: current_thread().name).result(LIMIT)
            assert name.startswith("forked_")
            service.shutdown()
            with pytest.raises(RuntimeError):
                service.submit(int)

        assert service.submit(int).result(LIMIT) == 0
        assert in_child(check) == 0
        with holding(service, 2):
            service.submit(int)
            assert in_child(check) == 0
        assert service.submit(int).result(LIMIT) == 0


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
def test_futures_unfinished_at_the_fork_are_cancelled_in_the_child() -> None:
    called: list[object] = []
    parent = os.getpid()
    in_parent: list[bool] = []
    with Service(1) as service:
        finished = service.submit(int, "5")
        failed = service.submit(divmod, 1, 0)
        assert finished.result(LIMIT) == 5
        assert failed.exception(LIMIT)
        entered, release = threading.Event(), threading.Event()

        def body() -> None:
            entered.set()
            release.wait(LIMIT)

        running = service.submit(body)
        queued = service.submit(int)
        watched = service.submit(int)
        unfinished: list[Future[Any]] = [running, queued, watched]
        assert entered.wait(LIMIT)
        watched.add_done_callback(called.append)
        running.add_done_callback(called.append)
        running.add_done_callback(lambda _: in_parent.append(os.getpid() == parent))

        def check() -> None:
            for future in unfinished:
                with pytest.raises(CancelledError):
                    future.result()
                with pytest.raises(CancelledError):
                    future.exception(LIMIT)
                assert future.cancelled() and future.done() and not future.running()
                future.cancel()
            assert wait(unfinished, LIMIT).done == set(unfinished)
            assert finished.result() == 5
            assert isinstance(failed.exception(), ZeroDivisionError)
            assert service.block_till_done(LIMIT)
            assert service.submit(int).result(LIMIT) == 0
            assert called == []

        assert in_child(check) == 0
        # The parent does not notice.
        assert not any(future.done() for future in unfinished)
        release.set()
        assert watched.result(LIMIT) == 0
    assert in_parent == [True]
    assert len(called) == 2


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_service_that_was_shut_down_stays_so_in_the_child() -> None:
    service, without_wait = Service(1), Service(1)
    service.shutdown()
    with holding(without_wait):
        without_wait.shutdown(wait=False)

        def check() -> None:
            for each in (service, without_wait):
                with pytest.raises(RuntimeError, match="after shutdown"):
                    each.submit(int)
                assert each.block_till_done(LIMIT)
                each.shutdown()

        assert in_child(check) == 0


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_broken_service_stays_so_in_the_child() -> None:
    def initializer() -> None:
        raise ValueError

    with Service(1, initializer=initializer) as service:
        with pytest.raises(BrokenThreadPool):
            service.submit(int).result(LIMIT)

        def check() -> None:
            with pytest.raises(BrokenThreadPool):
                service.submit(int)

        assert in_child(check) == 0


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_fork_in_a_body_leaves_a_service_that_works() -> None:
    with Service(1) as service:

        def check() -> None:
            assert service.submit(int, "5").result(LIMIT) == 5
            assert [*service.map(int, "123")] == [1, 2, 3]

        assert service.submit(in_child, check).result(LIMIT) == 0
        assert service.submit(service.yield_slot, in_child, check).result(LIMIT) == 0
        assert service.submit(int).result(LIMIT) == 0


@forking
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_process_that_is_forked_in_a_body_ends_well() -> None:
    lines = run_script(
        """
        import multiprocessing, threading
        from boundedexec import Service

        def work():
            print(threading.current_thread() is threading.main_thread())
            print(service.submit(int, "5").result(), len(threading.enumerate()), flush=True)

        def fork():
            process = multiprocessing.get_context("fork").Process(target=work)
            process.start()
            process.join()
            return process.exitcode, threading.current_thread().name

        with Service(1, "worker") as service:
            print(*service.submit(fork).result(), flush=True)
            print(*service.submit(fork).result(), flush=True)
        """,
        "-W",
        "ignore",
    )
    # In the child: the main thread, and the one that its service has started.
    assert lines == ["True", "5 2", "0 worker_0"] * 2


@pytest.mark.skipif(sys.version_info < (3, 14), reason="concurrent.interpreters is of Python 3.14")
def test_a_sub_interpreter_has_services_of_its_own() -> None:
    lines = run_script("""
        from concurrent import interpreters

        source = '''if True:
            from boundedexec import Service
            with Service(2) as service:
                print(service.submit(pow, 2, 5).result(), list(service.map(int, "123")))
            try:
                Service(1, daemon=True)
            except RuntimeError as error:
                print(error)
            Service(2).submit(print, "finished at the end")
        '''
        for _ in range(5):
            interpreter = interpreters.create()
            interpreter.exec(source)
            interpreter.close()
    """)
    assert sorted(lines) == sorted(
        [
            "32 [1, 2, 3]",
            "finished at the end",
            "this sub-interpreter has no daemon threads: daemon must be False",
        ]
        * 5
    )


def test_forks_in_the_middle_of_everything_leave_services_that_work() -> None:
    over, traffic = threading.Event(), threading.Event()

    def nested(service: Service) -> int:
        return service.submit(int, "5").result()

    def use(service: Service) -> int:
        count = 0
        while not over.is_set():
            traffic.wait(LIMIT)
            service.submit(nested, service)
            service.submit(service.yield_slot, int).add_done_callback(lambda _: None)
            service.submit(int).cancel()
            service.submit(int).result(LIMIT)
            count += 1
        return count

    with Service(1) as one, Service(3) as three, Service.unbounded() as others:
        users = [others.submit(use, service) for service in (one, three) for _ in range(2)]

        def check() -> None:
            for service in (one, three):
                assert service.block_till_done(0)
                assert service.submit(nested, service).result(LIMIT) == 5
                assert service.block_till_done(LIMIT)
                service.shutdown()

        try:
            for _ in range(20):
                traffic.set()
                time.sleep(0.005)
                # It gives way: a busy machine may not run a new process for half a minute.
                assert in_child(check, meanwhile=traffic.clear) == 0
        finally:
            over.set()
            traffic.set()
        assert all(user.result(LIMIT) for user in users)


@forking
def test_a_child_that_exits_finishes_what_it_accepted_itself() -> None:
    lines = run_script(
        """
        import os, sys, threading
        from boundedexec import Service
        service = Service(1)
        entered, release = threading.Event(), threading.Event()
        running = service.submit(lambda: (entered.set(), release.wait(), print("parent's")))
        queued = service.submit(print, "parent's")
        entered.wait()
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            release.set()
        else:
            service.submit(print, "child's")
            sys.exit(0)
        """,
        "-W",
        "ignore",
    )
    assert lines == ["child's", "parent's", "parent's"]


@forking
def test_a_service_made_before_multiprocessing_forks_works_in_its_workers() -> None:
    lines = run_script(
        """
        import multiprocessing
        from boundedexec import Service
        service = Service(2)
        def work(number):
            return sum(service.map(int, range(number)))
        if __name__ == "__main__":
            print(service.submit(int, "5").result())
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(work, [3, 4]))
        """,
        "-W",
        "ignore",
    )
    assert lines == ["5", "[3, 6]"]
