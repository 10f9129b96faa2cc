"""What `Service` and `submit` take, refuse and return, and from where `submit` may be called."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import math
import os
import threading
import weakref
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import pytest
from helpers import LIMIT, Thing, holding, run_script

from boundedexec import Service

# Making one


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
def test_the_default_bound_follows_process_cpu_count() -> None:
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


# Submitting


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


# Bad input


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
