"""What a user asks next: pickling, reprs, subclasses, other processes, daemon threads."""

from __future__ import annotations

import copy
import pickle
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from helpers import (
    LIMIT,
    AnyFuture,
    NewService,
    every_executor,
    fail,
    holding,
    run_script,
    submit_knowing,
)

import boundedexec
from boundedexec import Coalescer, Service, ThreadPoolExecutor

# Pickling and copying


@every_executor
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_what_stands_for_threads_says_why_not(make: NewService, protocol: int) -> None:
    with make(1) as service:
        future = service.submit(int)
        coalescer = Coalescer[str](service)
        for each, words in (
            (service, "a Service cannot be pickled"),
            (coalescer, "a Service cannot be pickled|a Coalescer cannot be pickled"),
            (future, "a Future cannot be pickled"),
            (partial_of(service), "a Service cannot be pickled"),
        ):
            with pytest.raises(TypeError, match=words):
                pickle.dumps(each, protocol)
        assert future.result(LIMIT) == 0


def partial_of(service: Service) -> object:
    """What holds a service, as the body that is handed to a process pool may."""
    return {"inside": [service]}


def test_copying_what_stands_for_threads_says_why_not() -> None:
    with Service(1) as service:
        for each in service, service.submit(int):
            for copying in copy.copy, copy.deepcopy:
                with pytest.raises(TypeError, match="cannot be pickled"):
                    copying(each)


def test_a_pool_of_processes_says_why_it_cannot_take_a_service_along() -> None:
    lines = run_script("""
        import multiprocessing
        from boundedexec import Service
        if __name__ == "__main__":
            with Service(1) as service:
                Process = multiprocessing.get_context("spawn").Process
                try:
                    Process(target=print, args=(service,)).start()
                except TypeError as error:
                    print(error)
    """)
    assert lines == ["a Service cannot be pickled: its threads are in this process"]


# Reprs


@every_executor
def test_a_service_says_its_bound_what_runs_what_is_queued_and_its_state(
    make: NewService,
) -> None:
    name = make.__name__
    service = make(2)
    assert repr(service) == f"<{name} max_workers=2 running=0 queued=0 open>"
    with holding(service):
        assert repr(service) == f"<{name} max_workers=2 running=1 queued=0 open>"
        with holding(service):
            futures = [service.submit(int) for _ in range(120)]
            assert str(service) == f"<{name} max_workers=2 running=2 queued=120 open>"
            service.shutdown(wait=False)
            assert repr(service) == f"<{name} max_workers=2 running=2 queued=120 shut down>"
    service.shutdown()
    assert all(future.done() for future in futures)
    assert repr(service) == f"<{name} max_workers=2 running=0 queued=0 shut down>"


def test_an_unbounded_service_says_so() -> None:
    with Service.unbounded() as service, holding(service, 3):
        assert repr(service) == "<Service max_workers=None running=3 queued=0 open>"


def test_a_body_that_waits_or_yields_is_said_to_run() -> None:
    with Service(1) as service:

        def inner() -> str:
            return repr(service)

        def outer() -> str:
            return service.submit(inner).result()

        said = service.submit(outer).result(LIMIT)
        assert re.fullmatch("<Service max_workers=1 running=2 queued=[01] open>", said)
        assert service.submit(lambda: service.yield_slot(inner)).result(LIMIT) == (
            "<Service max_workers=1 running=1 queued=0 open>"
        )


def test_a_broken_service_says_so(caplog: pytest.LogCaptureFixture) -> None:
    service = Service(1, initializer=fail, initargs=(ValueError("no"),))
    with pytest.raises(RuntimeError):
        service.submit(int).result(LIMIT)
    assert repr(service).endswith("broken>")
    service.shutdown()


def test_a_service_that_was_never_made_has_a_repr() -> None:
    class Half(Service):
        def __init__(self) -> None:
            """Forgets the one of the class above."""

    assert repr(Half()) == "<Half not initialized>"


def test_a_repr_beside_everything_else_never_raises() -> None:
    stop = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        while not stop.is_set():
            seen.add(re.sub(r"\d+", "n", f"{service!r} {coalescer!r}"))

    service = Service(2, idle_timeout=0)
    coalescer = Coalescer[int](service)
    looking = [threading.Thread(target=look) for _ in range(2)]
    for thread in looking:
        thread.start()
    for n in range(300):
        coalescer.submit(n % 3, int)
        service.submit(lambda: service.submit(int).result()).add_done_callback(repr)
    assert service.block_till_done(LIMIT)
    service.shutdown()
    stop.set()
    for thread in looking:
        thread.join(LIMIT)
    assert seen
    for each in seen:
        assert re.fullmatch(
            r"<Service max_workers=n running=n queued=n (open|shut down)> "
            r"<Coalescer keys=n of <Service max_workers=n running=n queued=n (open|shut down)>>",
            each,
        )


def test_a_coalescer_says_how_many_keys_are_in_flight_and_where() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        with holding(service):
            coalescer.submit("key", int)
            coalescer.submit("key", int)
            coalescer.submit("other", int)
            assert repr(coalescer) == f"<Coalescer keys=2 of {service!r}>"
        assert service.block_till_done(LIMIT)
        assert repr(coalescer) == f"<Coalescer keys=0 of {service!r}>"


def said(future: AnyFuture) -> str:
    """Its `repr`, without the address."""
    return re.sub(r" at 0x\w+ ", " ", repr(future))


def test_a_future_says_its_state_its_callable_and_what_came_of_it() -> None:
    with Service(1) as service:
        with holding(service):
            pending, cancelled = service.submit(int), service.submit(partial(int, "3"))
            assert said(cancelled) == "<Future of int state=pending>"
            cancelled.cancel()
            assert said(pending) == "<Future of int state=pending>"
            assert said(cancelled) == "<Future state=cancelled>"
        failed = service.submit(divmod, 1, 0)
        running = submit_knowing(service, said)
        assert service.block_till_done(LIMIT)
        assert running.result(LIMIT) == "<Future of said state=running>"
        assert said(pending) == "<Future state=finished returned int>"
        assert said(failed) == "<Future of divmod state=finished raised ZeroDivisionError>"
        assert isinstance(failed.exception(LIMIT), ZeroDivisionError)


def test_a_future_whose_callable_has_no_name_and_no_truth_says_its_type() -> None:
    class Odd:
        def __bool__(self) -> bool:
            raise AssertionError("asked whether it is true")

        def __call__(self) -> str:
            return said(odd)

    with Service(1) as service:
        with holding(service):
            odd = service.submit(Odd())
            assert re.fullmatch(r"<Future of \S*Odd state=pending>", said(odd))
        assert re.fullmatch(r"<Future of \S*Odd state=running>", odd.result(LIMIT))


def test_a_run_says_its_callable_while_it_is_queued_or_owed_and_while_it_executes() -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        entered, gate = threading.Event(), threading.Event()

        def body() -> str:
            entered.set()
            gate.wait(LIMIT)
            return said(queued)

        with holding(service):
            queued = coalescer.submit("key", body)
            assert re.fullmatch(r"<Future of \S*body state=pending>", said(queued))
        assert entered.wait(LIMIT)
        owed = coalescer.submit("key", divmod, 1, 1)
        assert said(owed) == "<Future of divmod state=pending>"
        gate.set()
        assert re.fullmatch(r"<Future of \S*body state=running>", queued.result(LIMIT))


def test_a_bare_future_says_its_state_alone() -> None:
    future = boundedexec.Future[int]()
    assert said(future) == "<Future state=pending>"
    future.set_exception(KeyError())
    assert said(future) == "<Future state=finished raised KeyError>"
    assert isinstance(future.exception(), KeyError)


# Subclasses


@pytest.mark.parametrize("base", [Service, ThreadPoolExecutor])
def test_a_subclass_that_overrides_submit_is_used_by_map_and_by_a_coalescer(
    base: type[Service],
) -> None:
    class Counting(base):  # type: ignore[valid-type, misc]
        count = 0

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return super().submit(fn, *args, **kwargs)

    with Counting(2) as service:
        assert list(service.map(int, "123")) == [1, 2, 3]
        assert service.count == 3
        coalescer = Coalescer[str](service)
        assert coalescer.submit("key", int, "4").result(LIMIT) == 4
        assert service.count == 4
        with holding(service, 2):
            runs = [coalescer.submit("key", int, str(n)) for n in range(5)]
        assert service.block_till_done(LIMIT)
        assert {run.result(LIMIT) for run in runs} == {4}
        assert service.count == 4 + 2 + 1


# Other processes, other threads


@every_executor
def test_a_service_handed_to_a_forked_process_works_there(make: NewService) -> None:
    lines = run_script(
        f"""
        import multiprocessing
        from boundedexec import {make.__name__} as Executor

        def work(service, number):
            print(service.submit(pow, number, 2).result(), list(service.map(int, "12")))
            print(service.block_till_done(), flush=True)

        service = Executor(2)
        print(service.submit(int, "5").result(), flush=True)
        Process = multiprocessing.get_context("fork").Process
        processes = [Process(target=work, args=(service, n)) for n in (3, 4)]
        for process in processes:
            process.start()
            process.join()
            print(process.exitcode, flush=True)
        print(service.submit(int, "6").result())
        """,
        "-W",
        "ignore",
    )
    assert lines == ["5", "9 [1, 2]", "True", "0", "16 [1, 2]", "True", "0", "6"]


@every_executor
def test_a_service_may_be_used_in_a_daemon_thread(make: NewService) -> None:
    with make(1) as service:
        got: list[int] = []

        def work() -> None:
            got.extend(service.map(int, "123"))
            got.append(service.submit(int, "4").result())

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(LIMIT)
        assert got == [1, 2, 3, 4]


def test_a_daemon_thread_that_goes_on_submitting_does_not_hold_up_the_exit() -> None:
    lines = run_script("""
        import threading, time
        from boundedexec import Service
        service, used = Service(2), threading.Event()

        def work():
            try:
                while True:
                    service.submit(int).result()
                    used.set()
            except RuntimeError as error:
                print(error, flush=True)

        threading.Thread(target=work, daemon=True).start()
        used.wait()
        service.submit(time.sleep, 0.05).add_done_callback(lambda _: print("finished", flush=True))
    """)
    # The daemon thread may be frozen before it has said so.
    after = "cannot schedule new futures after interpreter shutdown"
    assert sorted(lines) in (["finished"], [after, "finished"])
