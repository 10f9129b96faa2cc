"""Event loops: an executor for their blocking calls, futures to await, a service to await.

Where uvloop is installed, as in the environment `clients`, all of it runs on uvloop too.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib
import importlib.util
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest
from helpers import (
    LIMIT,
    THREADS_INHERIT_CONTEXT,
    Boom,
    NewService,
    every_executor,
    fail,
    holding,
    logged_exceptions,
    run_script,
    shallow,
    wait_until,
)

from boundedexec import Coalescer, Service, ThreadPoolExecutor

# asyncio


def test_cancelling_a_submission_cancels_the_asyncio_future(
    busy: tuple[Service, threading.Event],
) -> None:
    service, _ = busy

    async def main() -> None:
        queued = service.submit(int)
        wrapped = asyncio.wrap_future(queued)
        assert queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(asyncio.wait_for(main(), LIMIT))


def test_a_running_body_goes_on_when_its_asyncio_future_is_cancelled(
    new_service: NewService, caplog: pytest.LogCaptureFixture
) -> None:
    service, entered, gate = new_service(1), threading.Event(), threading.Event()

    def body() -> str:
        entered.set()
        gate.wait()
        return "done"

    async def main() -> Future[str]:
        running = service.submit(body)
        wrapped = asyncio.wrap_future(running)
        entered.wait(LIMIT)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wrapped, 0.01)
        assert not running.cancelled()
        gate.set()
        # asyncio calls the loop from the body's thread, which a loop that is closed refuses.
        assert service.block_till_done(LIMIT)
        return running

    assert asyncio.run(asyncio.wait_for(main(), LIMIT)).result(LIMIT) == "done"
    assert caplog.records == []


def test_an_exception_that_asyncio_took_over_is_not_reported(
    new_service: NewService, caplog: pytest.LogCaptureFixture
) -> None:
    service = new_service(1)

    async def main() -> None:
        with pytest.raises(Boom):
            await asyncio.get_running_loop().run_in_executor(service, fail, Boom())

    asyncio.run(asyncio.wait_for(main(), LIMIT))
    service.shutdown()
    gc.collect()
    assert logged_exceptions(caplog) == []


T = TypeVar("T")

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}


if importlib.util.find_spec("uvloop") is not None:
    LOOPS["uvloop"] = importlib.import_module("uvloop").new_event_loop

Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(params=LOOPS.values(), ids=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run[Any]:
    """`asyncio.run` on a loop of either kind, with a time limit."""

    def run(main: Coroutine[Any, Any, T]) -> T:
        loop: asyncio.AbstractEventLoop = request.param()
        try:
            return loop.run_until_complete(asyncio.wait_for(main, LIMIT))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    return run


# An executor for blocking calls


@every_executor
def test_run_in_executor_gives_results_and_exceptions(run: Run[None], make: NewService) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with make(2) as executor:
            calls = [loop.run_in_executor(executor, pow, n, 2) for n in range(200)]
            assert await asyncio.gather(*calls) == [n * n for n in range(200)]
            with pytest.raises(ZeroDivisionError):
                await loop.run_in_executor(executor, divmod, 1, 0)

    run(main())


@every_executor
def test_cancelling_what_is_awaited_cancels_what_is_queued_and_not_what_runs(
    run: Run[None], make: NewService
) -> None:
    started, release = threading.Event(), threading.Event()

    def body() -> str:
        started.set()
        release.wait(LIMIT)
        return "finished"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with make(1) as executor:
            running: Future[str] = executor.submit(body)
            queued = [executor.submit(int) for _ in range(3)]
            futures: list[Future[Any]] = [running, *queued]
            wrapped = [asyncio.wrap_future(future) for future in futures]
            in_executor = loop.run_in_executor(executor, int)
            assert started.wait(LIMIT)
            for each in [*wrapped[:3], in_executor]:
                each.cancel()
            await asyncio.sleep(0)
            assert [future.cancelled() for future in queued] == [True, True, False]
            assert running.running() and not running.cancelled()
            release.set()
            assert await wrapped[3] == 0
            assert running.result(LIMIT) == "finished"
            for each in [*wrapped[:3], in_executor]:
                with pytest.raises(asyncio.CancelledError):
                    await each

    run(main())


def test_a_wait_for_that_is_late_cancels_what_is_queued(run: Run[None]) -> None:
    async def main() -> None:
        with Service(1) as service, holding(service):
            queued = service.submit(int)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(queued), 0.01)
            assert queued.cancelled()

    run(main())


def test_the_drop_in_is_a_default_executor_for_threads_and_names(run: Run[None]) -> None:
    variable = contextvars.ContextVar("variable", default="default")
    own = "task's" if THREADS_INHERIT_CONTEXT else "default"
    pool = ThreadPoolExecutor(2, "default")

    def where() -> tuple[str, str]:
        return threading.current_thread().name.rpartition("_")[0], variable.get()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(pool)
        variable.set("task's")
        assert await asyncio.to_thread(where) == ("default", "task's")
        # Without `to_thread` it is the thread's own context, as on the stdlib's pool.
        assert await loop.run_in_executor(None, where) == ("default", own)
        infos = await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        assert ("127.0.0.1", 80) in [info[4] for info in infos]
        # A number needs no look-up; a name does, whatever it is.
        for name in "localhost", "no.such.host.invalid":
            try:
                assert await loop.getaddrinfo(name, 80)
            except socket.gaierror:
                pass
        host, _ = await loop.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST)
        assert host == "127.0.0.1"
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match="shutdown"):
            pool.submit(int)

    run(main())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("default_")]


def test_names_are_looked_up_on_the_default_executor(
    run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def look_up(*_: object, **__: object) -> list[Any]:
        threads.append(threading.current_thread().name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        if type(loop).__module__.startswith("uvloop"):
            return  # It looks names up by itself.
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        loop.set_default_executor(ThreadPoolExecutor(1, "names"))
        infos = await loop.getaddrinfo("a.name", 80)
        assert infos[0][4] == ("192.0.2.1", 80)
        assert threads == ["names_0"]

    run(main())


def test_shutting_the_default_executor_down_waits_and_does_not_block_the_loop(
    run: Run[None],
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        release = threading.Event()
        body = loop.run_in_executor(None, release.wait, LIMIT)
        end = asyncio.ensure_future(loop.shutdown_default_executor())
        await asyncio.sleep(0.01)
        assert not end.done()
        release.set()
        await end
        assert await body

    run(main())


@every_executor
def test_a_body_that_runs_a_loop_of_its_own_may_wait_for_its_service(
    run: Run[None], make: NewService
) -> None:
    def body(executor: Service) -> int:
        async def inner() -> int:
            # It blocks its own loop, which is the body's; it lends as any body does.
            return executor.submit(pow, 2, 5).result()

        return asyncio.run(inner())

    async def main() -> None:
        with make(1) as executor:
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(executor, body, executor) == 32

    run(main())


# A service that is awaited


def test_awaiting_a_service_that_did_nothing_is_true(run: Run[bool]) -> None:
    for service in Service(1), Service.unbounded(), ThreadPoolExecutor(1):
        assert run(service.async_block_till_done()) is True
        assert run(service.async_block_till_done(0)) is True
        service.shutdown()
        assert run(service.async_block_till_done()) is True


@pytest.mark.parametrize("bound", [0, 1, 4])
def test_awaiting_is_over_once_everything_is(run: Run[None], bound: int) -> None:
    async def main() -> None:
        with Service(bound) as service:
            for _ in range(20):
                futures = [service.submit(pow, n, 2) for n in range(50)]
                assert await service.async_block_till_done(LIMIT)
                assert all(future.done() for future in futures)
                assert await service.async_block_till_done()

    run(main())


def test_awaiting_waits_for_what_callbacks_submit_and_for_what_is_owed(run: Run[None]) -> None:
    ran: list[int] = []

    async def main() -> None:
        with Service(1) as service:
            with holding(service):
                future = service.submit(ran.append, 1)
                future.add_done_callback(lambda _: service.submit(ran.append, 2))
                waiting = asyncio.ensure_future(service.async_block_till_done())
                await asyncio.sleep(0.01)
                assert not waiting.done()
            assert await waiting
            assert ran == [1, 2]
            runs = Coalescer[str](service)
            for n in 3, 4, 5:
                runs.submit("key", ran.append, n)
            assert await service.async_block_till_done()
            assert ran[-1] == 5 and not len(runs)

    run(main())


def test_awaiting_waits_for_a_body_that_yielded(run: Run[None]) -> None:
    answered = threading.Event()

    async def main() -> None:
        with Service(1) as service:
            service.submit(lambda: service.yield_slot(answered.wait, LIMIT))
            service.submit(int)
            assert not await service.async_block_till_done(0.02)
            answered.set()
            assert await service.async_block_till_done()

    run(main())


def test_the_loop_goes_on_while_a_service_is_awaited_and_no_thread_is_made(
    run: Run[None],
) -> None:
    async def main() -> None:
        with Service(2, "awaited") as service:
            with holding(service, 2):
                before = threading.active_count()
                waiting = asyncio.ensure_future(service.async_block_till_done(LIMIT))
                for _ in range(6):
                    await asyncio.sleep(0.005)
                assert not waiting.done()
                assert threading.active_count() == before
            assert await waiting

    run(main())


@pytest.mark.parametrize("timeout", [0, -1, 0.01])
def test_awaiting_is_false_when_the_timeout_passed_first(run: Run[None], timeout: float) -> None:
    async def main() -> None:
        with Service(1) as service, holding(service):
            start = time.monotonic()
            assert await service.async_block_till_done(timeout) is False
            assert time.monotonic() - start < LIMIT / 2

    run(main())


@pytest.mark.parametrize("timeout", [1e6, 1e15, float("inf")])
def test_any_time_is_a_timeout_of_awaiting(run: Run[None], timeout: float) -> None:
    async def main() -> None:
        with Service(1) as service:
            with holding(service):
                waiting = asyncio.ensure_future(service.async_block_till_done(timeout))
                await asyncio.sleep(0.01)
                assert not waiting.done()
            assert await waiting

    run(main())


def test_awaiting_may_be_cancelled_and_cancels_nothing(run: Run[None]) -> None:
    async def main() -> None:
        with Service(1) as service:
            with holding(service):
                queued = service.submit(int, "3")
                waiting = asyncio.ensure_future(service.async_block_till_done())
                await asyncio.sleep(0.01)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(service.async_block_till_done(), 0.01)
            assert await asyncio.wrap_future(queued) == 3
            assert await service.async_block_till_done()

    run(main())


def test_many_may_await_a_service_on_many_loops_beside_threads(run: Run[None]) -> None:
    service = Service(2)
    notified: list[bool] = []

    def in_a_thread() -> None:
        notified.append(service.block_till_done(LIMIT))

    def on_a_loop() -> None:
        notified.append(asyncio.run(service.async_block_till_done(LIMIT)))

    async def main() -> None:
        with holding(service, 2):
            threads = [threading.Thread(target=target) for target in [in_a_thread, on_a_loop] * 3]
            for thread in threads:
                thread.start()
            waiting = [asyncio.ensure_future(service.async_block_till_done()) for _ in range(10)]
            await asyncio.sleep(0.05)
            assert not notified and not any(each.done() for each in waiting)
        assert all(await asyncio.gather(*waiting))
        for thread in threads:
            thread.join(LIMIT)
        assert notified == [True] * 6

    run(main())
    service.shutdown()


def test_awaiting_is_safe_beside_submit(run: Run[None]) -> None:
    async def main() -> None:
        with Service(2) as service:
            stop = threading.Event()

            def submit_many() -> None:
                while not stop.is_set():
                    service.submit(int)

            submitter = threading.Thread(target=submit_many)
            submitter.start()
            try:
                for _ in range(50):
                    await service.async_block_till_done(0.002)
            finally:
                stop.set()
                submitter.join(LIMIT)
            assert await service.async_block_till_done()

    run(main())


def test_a_loop_that_is_closed_while_a_service_is_awaited_harms_nobody(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for new_loop in LOOPS.values():
        service = Service(1)
        with holding(service):
            loop = new_loop()
            # Kept, so that nothing but the loop's end happens to it.
            waiting: Any = loop.create_task(service.async_block_till_done())
            loop.run_until_complete(asyncio.sleep(0.01))
            loop.close()
            queued = service.submit(int, "3")
        assert queued.result(LIMIT) == 3
        assert service.block_till_done(LIMIT)
        assert asyncio.run(service.async_block_till_done())
        waiting.get_coro().close()
        waiting._log_destroy_pending = False
        service.shutdown()
    assert "Traceback" not in capfd.readouterr().err


def test_a_loop_in_a_body_may_not_await_its_own_service(run: Run[None]) -> None:
    async def main() -> None:
        with Service(1) as service, Service(1) as other:
            other.submit(int)

            def body() -> bool:
                with pytest.raises(RuntimeError, match="own service"):
                    asyncio.run(service.async_block_till_done())
                with pytest.raises(RuntimeError, match="own service"):
                    asyncio.run(service.async_block_till_done(0))
                return asyncio.run(other.async_block_till_done())

            assert await asyncio.wrap_future(service.submit(body))
            assert await service.async_block_till_done()

    run(main())


def test_awaiting_without_a_loop_says_so() -> None:
    with Service(1) as service, holding(service):
        waiting = service.async_block_till_done()
        with pytest.raises(RuntimeError, match="no running event loop"):
            waiting.send(None)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer's signal")
def test_a_signal_handler_may_submit_while_a_service_is_awaited() -> None:
    service = Service(1)
    ran: list[int] = []

    async def main() -> None:
        for _ in range(300):
            service.submit(int)
            assert await service.async_block_till_done(LIMIT)

    before = signal.signal(signal.SIGALRM, shallow(lambda: service.submit(ran.append, 1)))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        asyncio.run(main())
        wait_until(lambda: bool(ran))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    service.shutdown()


def test_an_interrupt_ends_awaiting_a_service() -> None:
    assert run_script("""
        import asyncio, signal, threading
        from boundedexec import Service
        # A program that is started in the background of a shell ignores it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        service, release = Service(1), threading.Event()
        service.submit(release.wait)

        async def main():
            asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
            await service.async_block_till_done()

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted")
        release.set()
        print(service.block_till_done())
    """) == ["interrupted", "True"]


def test_importing_the_package_does_not_import_asyncio() -> None:
    assert run_script("""
        import sys, boundedexec
        print("asyncio" in sys.modules)
        with boundedexec.Service(1) as service:
            print(service.submit(int).result(), service.block_till_done())
        print("asyncio" in sys.modules)
    """) == ["False", "0 True", "False"]
