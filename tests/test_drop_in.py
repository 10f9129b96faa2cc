"""`ThreadPoolExecutor` passes for the stdlib's class and behaves as it does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import concurrent.futures.thread
import contextvars
import decimal
import functools
import gc
import inspect
import logging
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from helpers import LIMIT, THREADS_INHERIT_CONTEXT, fail, holding, run_script

import boundedexec
from boundedexec import BrokenThreadPool, Future, Service, ThreadPoolExecutor

Standard = concurrent.futures.ThreadPoolExecutor


# What it is


def test_it_is_a_service_and_an_instance_of_the_standard_class() -> None:
    assert issubclass(ThreadPoolExecutor, Standard)
    assert issubclass(ThreadPoolExecutor, Service)
    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool, Standard) and isinstance(pool, Service)
        assert isinstance(pool, concurrent.futures.Executor)
        assert pool.submit(pow, 323, 1235).result(LIMIT) == pow(323, 1235)
        assert isinstance(pool.submit(int), Future)


def test_a_service_is_not_an_instance_of_the_standard_class() -> None:
    assert not issubclass(Service, Standard)
    assert not isinstance(Service(1), Standard)


def test_it_has_the_standard_number_of_workers() -> None:
    standard = Standard()._max_workers
    pool = ThreadPoolExecutor()
    assert pool.max_workers == pool._max_workers == standard
    assert ThreadPoolExecutor(None).max_workers == standard
    assert ThreadPoolExecutor(7).max_workers == 7


@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in Python 3.13")
def test_it_has_the_standard_number_of_workers_for_a_number_of_cpus_that_is_given() -> None:
    source = """
        import boundedexec, concurrent.futures
        for module in boundedexec, concurrent.futures:
            print(module.ThreadPoolExecutor()._max_workers)
    """
    for cpus in 1, 3, 100:
        assert run_script(source, "-X", f"cpu_count={cpus}") == [str(min(32, cpus + 4))] * 2


@pytest.mark.parametrize("workers", [0, -1, -100])
def test_no_workers_are_refused_as_by_the_standard_class(workers: int) -> None:
    for pool in Standard, ThreadPoolExecutor:
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            pool(workers)
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            pool(max_workers=workers)


@pytest.mark.parametrize("workers", ["4", [], 1j])
def test_workers_that_are_no_number_are_refused(workers: Any) -> None:
    with pytest.raises(TypeError):
        ThreadPoolExecutor(workers)


@pytest.mark.parametrize("initializer", [3, "text"])
def test_an_initializer_that_is_not_callable_is_refused(initializer: Any) -> None:
    for pool in Standard, ThreadPoolExecutor:
        with pytest.raises(TypeError, match="initializer must be a callable"):
            pool(1, initializer=initializer)


def test_its_parameters_are_the_standard_ones_and_those_of_a_service() -> None:
    standard = list(inspect.signature(Standard).parameters)[:4]
    own = inspect.signature(ThreadPoolExecutor).parameters
    assert list(own)[:4] == standard
    assert set(inspect.signature(Service).parameters) == set(own)
    assert own["max_workers"].default is None and own["idle_timeout"].default is None


def test_it_takes_the_parameters_of_a_service() -> None:
    with ThreadPoolExecutor(1, "name", idle_timeout=0.01, lending=False, daemon=True) as pool:
        assert pool.submit(lambda: threading.current_thread().name).result(LIMIT) == "name_0"
        with pytest.raises(boundedexec.TimeoutError):
            pool.submit(lambda: pool.submit(int).result(0.01)).result(LIMIT)


def test_it_has_what_a_service_has() -> None:
    with ThreadPoolExecutor(1) as pool:

        def body() -> int:
            with pool.slot_yielded():
                first = pool.submit(int, "1").result(LIMIT)
            return first + pool.yield_slot(pool.submit(int, "2").result, LIMIT)

        assert pool.submit(body).result(LIMIT) == 3
        assert pool.block_till_done(LIMIT)


def standard_machinery() -> Iterator[tuple[Any, str]]:
    for name, value in vars(Standard).items():
        if name == "submit":
            continue  # What replaces it takes effect on the drop-in.
        if inspect.isfunction(value) or isinstance(value, classmethod):
            yield Standard, name
    for name, value in vars(concurrent.futures.thread).items():
        own = getattr(value, "__module__", "") == Standard.__module__ and value is not Standard
        if own and not (inspect.isclass(value) and issubclass(value, BaseException)):
            yield concurrent.futures.thread, name


def test_it_runs_none_of_the_standard_machinery(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the stdlib's machinery")

    for owner, name in list(standard_machinery()):
        monkeypatch.setattr(owner, name, refuse)
    with ThreadPoolExecutor(2, "name", initializer=int) as pool:
        assert pool.submit(int, "3").result(LIMIT) == 3
        assert list(pool.map(int, "123")) == [1, 2, 3]
        assert not isinstance(pool._work_queue, (queue.Queue, queue.SimpleQueue))
        assert pool._work_queue.qsize() == 0
        threads: Any = pool.submit(threading.enumerate).result(LIMIT)
        registered: Any = getattr(concurrent.futures.thread, "_threads_queues", {})
        assert not set(threads) & set(registered)
    pool.shutdown(wait=True, cancel_futures=True)


# As the stdlib's


def test_its_threads_stay_until_shutdown() -> None:
    with ThreadPoolExecutor(3, "staying") as pool:
        with holding(pool, 3):
            names = {thread.name for thread in threading.enumerate()}
        time.sleep(0.2)  # However long: a test is right if it is too short.
        assert names <= {thread.name for thread in threading.enumerate()}
        assert len(pool._threads) == 3
        with holding(pool, 3):
            assert len(pool._threads) == 3
    assert not any(thread.name.startswith("staying") for thread in threading.enumerate())


def test_its_threads_are_gone_after_shutdown() -> None:
    before = threading.active_count()
    with ThreadPoolExecutor(4) as pool, holding(pool, 4):
        assert threading.active_count() == before + 4
    assert threading.active_count() == before


def test_its_threads_are_named_by_prefix_and_number() -> None:
    def names(pool: Standard) -> set[str]:
        together = threading.Barrier(2)

        def name() -> str:
            together.wait(LIMIT)
            return threading.current_thread().name

        return {future.result(LIMIT) for future in [pool.submit(name), pool.submit(name)]}

    with ThreadPoolExecutor(2, "name") as pool:
        assert names(pool) == {"name_0", "name_1"}
    with ThreadPoolExecutor(2) as one, ThreadPoolExecutor(2) as other:
        assert not names(one) & names(other)


def test_one_worker_keeps_the_state_of_its_thread() -> None:
    local = threading.local()

    def count_once(_: int) -> int:
        local.count = getattr(local, "count", 0) + 1
        return int(local.count)

    with ThreadPoolExecutor(1) as pool:
        assert [pool.submit(count_once, 0).result(LIMIT) for _ in range(100)] == list(range(1, 101))
        assert list(pool.map(count_once, range(100))) == list(range(101, 201))


def test_one_worker_keeps_a_database_connection_of_its_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        connection = pool.submit(sqlite3.connect, ":memory:").result(LIMIT)
        pool.submit(connection.execute, "create table numbers (number)").result(LIMIT)
        insert = "insert into numbers values (?)"
        for future in [pool.submit(connection.execute, insert, (n,)) for n in range(10)]:
            future.result(LIMIT)
        rows = pool.submit(connection.execute, "select sum(number) from numbers").result(LIMIT)
        assert pool.submit(rows.fetchone).result(LIMIT) == (45,)
        pool.submit(connection.close).result(LIMIT)


def test_an_initializer_prepares_the_state_of_each_thread() -> None:
    local = threading.local()
    together = threading.Barrier(3)

    def prepare(name: str) -> None:
        local.name = name

    def name() -> str:
        together.wait(LIMIT)
        return str(local.name)

    with ThreadPoolExecutor(3, initializer=prepare, initargs=("prepared",)) as pool:
        futures = [pool.submit(name) for _ in range(3)]
        assert [future.result(LIMIT) for future in futures] == ["prepared"] * 3


def test_a_decimal_context_that_an_initializer_sets_is_in_force() -> None:
    def prepare() -> None:
        decimal.getcontext().prec = 5

    def replace() -> None:
        decimal.setcontext(decimal.Context(prec=7))

    third = functools.partial(lambda: str(decimal.Decimal(1) / 3))
    decimal.getcontext()  # The submitter has one of its own.
    for initializer, expected in (prepare, "0.33333"), (replace, "0.3333333"):
        with ThreadPoolExecutor(2, initializer=initializer) as pool:
            assert {pool.submit(third).result(LIMIT) for _ in range(20)} == {expected}


def test_an_initializer_that_fails_breaks_it_as_the_standard_one() -> None:
    logging.disable()
    try:
        with ThreadPoolExecutor(1, initializer=fail, initargs=(ValueError(),)) as pool:
            with pytest.raises(concurrent.futures.thread.BrokenThreadPool):
                pool.submit(int).result(LIMIT)
            with pytest.raises(BrokenThreadPool):
                pool.submit(int)
    finally:
        logging.disable(logging.NOTSET)


def test_a_map_for_its_effects_alone_has_them_all() -> None:
    seen: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        pool.map(seen.append, range(1000))
    assert sorted(seen) == list(range(1000))
    pool = ThreadPoolExecutor(2)
    pool.map(seen.append, range(1000))
    gc.collect()
    pool.shutdown()
    assert len(seen) == 2000


def test_submit_after_shutdown_raises_in_the_standard_words() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        pool.submit(int)
    with pytest.raises(RuntimeError, match="^cannot schedule new futures after shutdown$"):
        pool.map(int, "1")


def test_cancel_futures_cancels_what_has_not_started() -> None:
    pool = ThreadPoolExecutor(1)
    with holding(pool):
        futures = [pool.submit(int) for _ in range(5)]
        pool.shutdown(wait=False, cancel_futures=True)
    pool.shutdown()
    assert all(future.cancelled() for future in futures)


def test_at_exit_what_was_submitted_is_finished_first() -> None:
    assert run_script("""
        import time
        from boundedexec import ThreadPoolExecutor as Pool

        pool = Pool(1)
        pool.submit(time.sleep, 0.1)
        for n in range(3):
            pool.submit(print, n)
        Pool(2).map(print, "a")
        pool.submit(print, "last")
    """) in (
        ["a", "0", "1", "2", "last"],
        ["0", "a", "1", "2", "last"],
        ["0", "1", "a", "2", "last"],
        ["0", "1", "2", "a", "last"],
        ["0", "1", "2", "last", "a"],
    )


def test_the_standard_wait_and_as_completed_take_its_futures_beside_others() -> None:
    with ThreadPoolExecutor(2) as pool, Standard(2) as standard:
        futures = [each.submit(pow, n, 2) for n in range(20) for each in (pool, standard)]
        done = concurrent.futures.as_completed(futures, LIMIT)
        assert sorted(future.result() for future in done) == sorted(
            n * n for n in range(20) for _ in range(2)
        )
        assert concurrent.futures.wait(futures, LIMIT).not_done == set()


# Subclasses and attributes


@pytest.mark.parametrize("make", [Service, ThreadPoolExecutor])
def test_instances_accept_attributes(make: Callable[[int], Any]) -> None:
    with make(1) as pool:
        pool.name = "mine"
        pool.submit_count = 0
        assert pool.name == "mine"
        own = pool.submit

        def submit(*args: Any) -> Any:
            pool.submit_count += 1
            return own(*args)

        pool.submit = submit
        assert pool.submit(int, "3").result(LIMIT) == 3
        assert list(pool.map(int, "12")) == [1, 2]
        assert pool.submit_count == 3


def test_map_goes_through_the_submit_of_a_subclass() -> None:
    submitted: list[object] = []

    class Traced(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            submitted.append(args)
            return super().submit(fn, *args, **kwargs)

    with Traced(2) as pool:
        assert list(pool.map(pow, [2, 3], [4, 5])) == [16, 243]
        assert list(pool.map(int, "12", buffersize=1)) == [1, 2]
    assert submitted == [(2, 4), (3, 5), ("1",), ("2",)]


def test_a_subclass_may_copy_the_context_as_those_of_the_stdlib_do() -> None:
    variable = contextvars.ContextVar("variable", default="default")

    class WithContext(ThreadPoolExecutor):
        def __init__(self, workers: int, *, label: str) -> None:
            super().__init__(max_workers=workers, thread_name_prefix=label)
            self.label = label

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            context = contextvars.copy_context()
            return super().submit(functools.partial(context.run, fn, *args, **kwargs))

    variable.set("submitter's")
    with WithContext(1, label="labelled") as pool:
        assert pool.submit(variable.get).result(LIMIT) == "submitter's"
        assert list(pool.map(variable.get, "12")) == ["submitter's"] * 2
        assert pool.label == "labelled"


def test_a_subclass_may_mix_in_another_class() -> None:
    class Mixin:
        def double(self: Any, number: int) -> int:
            return int(self.submit(lambda: number * 2).result(LIMIT))

    class Mixed(Mixin, ThreadPoolExecutor):
        pass

    with Mixed(1) as pool:
        assert pool.double(4) == 8
        assert isinstance(pool, Standard)


# What other libraries read


MAKES: dict[str, Callable[[], Service]] = {
    "service": lambda: Service(2),
    "drop-in": lambda: ThreadPoolExecutor(2),
    "unbounded": Service.unbounded,
}

every_service = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@every_service
def test_max_workers_can_be_read_and_is_a_positive_int(make: Callable[[], Any]) -> None:
    with make() as service:
        for _ in range(2):
            assert isinstance(service._max_workers, int) and service._max_workers > 0
            assert service.max_workers in (None, service._max_workers)
            assert list(service.map(int, "1234567")) == [1, 2, 3, 4, 5, 6, 7]
    assert service._max_workers > 0


@every_service
def test_the_length_of_threads_can_be_read(make: Callable[[], Any]) -> None:
    with make() as service:
        assert len(service._threads) == 0
        with holding(service):
            assert len(service._threads) == 1
            with holding(service):
                assert len(service._threads) == 2
        assert service.block_till_done(LIMIT)


@pytest.mark.parametrize("make", [Service, ThreadPoolExecutor])
def test_how_much_is_queued_can_be_read(make: Callable[[int], Any]) -> None:
    with make(1) as service:
        assert service._work_queue.qsize() == 0
        with holding(service):
            assert service._work_queue.qsize() == 0
            for queued in range(1, 6):
                service.submit(int)
                assert service._work_queue.qsize() == queued
        assert service.block_till_done(LIMIT)
        assert service._work_queue.qsize() == 0


@every_service
def test_a_queue_that_is_empty_says_so(make: Callable[[], Any]) -> None:
    with make() as service:
        with pytest.raises(queue.Empty):
            service._work_queue.get(block=False)
        service.submit(int).result(LIMIT)
        with pytest.raises(queue.Empty):
            service._work_queue.get(block=False)
        with pytest.raises(queue.Empty):
            service._work_queue.get(False)


@pytest.mark.parametrize("make", [Service, ThreadPoolExecutor])
def test_what_is_taken_out_of_the_queue_is_what_was_submitted(make: Callable[[int], Any]) -> None:
    with make(1) as service, holding(service):
        service.submit(pow, 2, 5, mod=3)
        item = service._work_queue.get(block=False)
        assert (item.fn, item.args, item.kwargs) == (pow, (2, 5), {"mod": 3})
        # How the stdlib's has them from Python 3.14 on, and google-cloud-pubsub reads it.
        assert item.task == (pow, (2, 5), {"mod": 3})


@pytest.mark.parametrize("make", [Service, ThreadPoolExecutor, Standard])
def test_the_work_queue_can_be_emptied_from_outside(make: Callable[[int], Any]) -> None:
    """What programs did before `shutdown` took `cancel_futures`, and some still does."""
    ran: list[int] = []
    with make(1) as service:
        with holding(service):
            futures = [service.submit(ran.append, n) for n in range(5)]
            while True:
                try:
                    item = service._work_queue.get(block=False)
                except queue.Empty:
                    break
                if item is not None:
                    assert item.future.cancel()
            assert service._work_queue.qsize() == 0
            assert all(future.cancelled() for future in futures)
        assert service.submit(int, "3").result(LIMIT) == 3
        if isinstance(service, Service):
            assert service.block_till_done(LIMIT)
    assert ran == []


# asyncio


def test_asyncio_takes_it_as_the_default_executor() -> None:
    variable = contextvars.ContextVar("variable", default="default")
    pool = ThreadPoolExecutor(2, "default")

    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(pool)
        variable.set("task's")
        name = threading.current_thread
        results: list[object] = [
            (await asyncio.to_thread(name)).name[:8],
            (await loop.run_in_executor(None, name)).name[:8],
            await asyncio.to_thread(variable.get),
            await loop.run_in_executor(None, variable.get),
            *await asyncio.gather(*(asyncio.to_thread(pow, n, 2) for n in range(4))),
        ]
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError):
            await asyncio.to_thread(int)
        return results

    # `to_thread` takes the task's context along; in the body's own it is the thread's.
    own = "task's" if THREADS_INHERIT_CONTEXT else "default"
    expected: list[object] = ["default_", "default_", "task's", own, 0, 1, 4, 9]
    assert asyncio.run(main()) == expected
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)


def test_asyncio_shuts_it_down_as_its_default_executor_when_a_program_ends() -> None:
    pool = ThreadPoolExecutor(1)
    done: list[int] = []

    def slowly() -> None:
        time.sleep(0.05)
        done.append(1)

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(pool)
        pool.submit(slowly)

    asyncio.run(main())
    assert done == [1]
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(int)


def test_asyncio_refuses_a_service_as_the_default_executor() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        with pytest.raises(TypeError):
            loop.set_default_executor(Service(1))

    asyncio.run(main())


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(1), lambda: Service(1)])
def test_asyncio_takes_it_as_the_target_of_run_in_executor(make: Callable[[], Service]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with make() as pool:
            assert await loop.run_in_executor(pool, pow, 2, 10) == 1024
            with pytest.raises(ZeroDivisionError):
                await loop.run_in_executor(pool, divmod, 1, 0)
            with holding(pool):
                queued = loop.run_in_executor(pool, int)
                inner = pool.submit(int)
                queued.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await queued
            assert await asyncio.wrap_future(inner) == 0
            numbers = await asyncio.wait_for(
                asyncio.gather(*(loop.run_in_executor(pool, int, str(n)) for n in range(100))),
                LIMIT,
            )
            assert numbers == list(range(100))

    asyncio.run(main())


# The programs that documentation shows: an import is all that changes


def test_a_work_queue_of_ones_own_warns_and_does_no_harm() -> None:
    class Limited(ThreadPoolExecutor):
        """It counts on a submit to block, which the queue's limit has no effect on here."""

        def __init__(self, limit: int) -> None:
            super().__init__(2)
            self._work_queue: queue.Queue[Any] = queue.Queue(limit)  # type: ignore[assignment]

        def limit(self) -> int:
            return self._work_queue.maxsize

    with pytest.warns(RuntimeWarning, match="max_queued") as warned:
        with Limited(3) as pool:
            assert pool.submit(int).result(LIMIT) == 0
            assert pool.submit(int).result(LIMIT) == 0
            assert pool.limit() == 3
    assert len(warned) == 1
