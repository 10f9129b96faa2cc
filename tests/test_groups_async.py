"""A TaskGroup whose block is a coroutine's: no thread waits, and failures interrupt the block."""

# pyright: reportPossiblyUnboundVariable=false
# For what is bound in a block that `pytest.raises` is about.

from __future__ import annotations

import asyncio
import sys
import threading
import time
from concurrent.futures import Executor, Future
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import LIMIT, Boom, fail

from boundedexec import Service, TaskGroup


def test_the_end_waits_while_the_loop_goes_on(pool: Executor, limit: int | None) -> None:
    async def main() -> None:
        gate = threading.Event()
        async with TaskGroup(pool, limit=limit) as group:
            first: Future[bool] = group.submit(gate.wait, LIMIT)
            for _ in range(20):
                group.submit(str)
            threads = set(threading.enumerate())
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, lambda: seen.extend(set(threading.enumerate()) - threads))
            # By the loop, while the block's end waits.
            loop.call_later(0.02, gate.set)
        assert first.done()
        assert group.results() == [True] + [""] * 20

    seen: list[threading.Thread] = []
    asyncio.run(asyncio.wait_for(main(), LIMIT))
    # But for the pool's own.
    assert all(type(thread).__module__ != "threading" or "Pool" in thread.name for thread in seen)


def test_what_it_returns_can_be_awaited(pool: Executor, limit: int | None) -> None:
    async def main() -> None:
        async with TaskGroup(pool, limit=limit) as group:
            futures = [group.submit(pow, number, 2) for number in range(10)]
            squares = await asyncio.gather(*map(asyncio.wrap_future, futures))
            assert squares == [number**2 for number in range(10)]

    asyncio.run(asyncio.wait_for(main(), LIMIT))


def test_what_bodies_submit_is_waited_for(pool: Executor, limit: int | None) -> None:
    async def main() -> None:
        def nest(depth: int) -> None:
            if depth:
                group.submit(nest, depth - 1)

        async with TaskGroup(pool, limit=limit) as group:
            group.submit(nest, 10)
        assert len(group.results()) == 11

    asyncio.run(asyncio.wait_for(main(), LIMIT))


def test_a_failure_interrupts_the_block(pool: Executor, limit: int | None) -> None:
    error = Boom()

    async def main() -> str:
        try:
            async with TaskGroup(pool, limit=limit) as group:
                group.submit(fail, error)
                await asyncio.sleep(LIMIT)
        except* Boom as raised:
            assert raised.exceptions == (error,)
        # The task is not cancelled any more.
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()
        await asyncio.sleep(0)
        return "went on"

    assert asyncio.run(asyncio.wait_for(main(), LIMIT)) == "went on"


def test_a_failure_at_the_end_is_raised_there(pool: Executor, limit: int | None) -> None:
    async def main() -> None:
        gate = threading.Event()
        with pytest.raises(ExceptionGroup) as raised:
            async with TaskGroup(pool, limit=limit) as group:
                group.submit(lambda: gate.wait(LIMIT) and fail(Boom()))
                queued = [group.submit(int) for _ in range(10)]
                asyncio.get_running_loop().call_later(0.01, gate.set)
        assert [type(error) for error in raised.value.exceptions] == [Boom]
        assert all(future.done() for future in queued)
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), LIMIT))


def test_the_exception_of_the_block_cancels(pool: Executor, limit: int | None) -> None:
    async def main() -> None:
        with pytest.raises(ExceptionGroup) as raised:
            async with TaskGroup(pool, limit=limit) as group:
                group.submit(int)
                raise Boom
        assert [type(error) for error in raised.value.exceptions] == [Boom]
        assert group.cancelled

    asyncio.run(main())


@pytest.mark.parametrize("where", ["in the block", "at its end"])
def test_a_coroutine_that_is_cancelled_waits_for_what_runs(where: str) -> None:
    started, cancelled, over = threading.Event(), threading.Event(), threading.Event()

    async def block() -> None:
        def body() -> None:
            started.set()
            assert cancelled.wait(LIMIT)
            over.set()

        async with TaskGroup(service) as group:
            group.submit(body)
            queued.append(group.submit(int))
            if where == "in the block":
                await asyncio.sleep(LIMIT)

    async def main() -> None:
        task = asyncio.create_task(block())
        while not started.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        assert queued[0].cancelled()
        cancelled.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert over.is_set()

    queued: list[Future[int]] = []
    with Service(1) as service:
        asyncio.run(asyncio.wait_for(main(), LIMIT))


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio's does not, either")
def test_a_cancel_of_the_task_is_not_lost_where_a_member_fails() -> None:
    """As in asyncio's: the next await raises it."""
    started, gate = threading.Event(), threading.Event()

    def body() -> None:
        started.set()
        assert gate.wait(LIMIT)
        raise Boom

    async def block() -> None:
        with pytest.raises(ExceptionGroup):
            async with TaskGroup(service) as group:
                group.submit(body)
        reached.append(True)
        await asyncio.sleep(LIMIT)

    async def main() -> None:
        task = asyncio.create_task(block())
        while not started.is_set():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, LIMIT / 2)
        assert reached and task.cancelling() == 1

    reached: list[bool] = []
    with Service(1) as service:
        asyncio.run(main())


def test_a_second_block_is_refused_and_changes_nothing() -> None:
    async def main() -> None:
        with pytest.raises(ExceptionGroup) as raised:
            async with TaskGroup(service) as group:
                with pytest.raises(RuntimeError, match="once"):
                    async with group:
                        pass
                group.submit(fail, Boom())
                await asyncio.sleep(LIMIT)  # Interrupted.
        assert [type(error) for error in raised.value.exceptions] == [Boom]

    with Service(1) as service:
        asyncio.run(asyncio.wait_for(main(), LIMIT / 2))


def test_cancel_ends_the_block_quietly(pool: Executor, limit: int | None) -> None:
    async def main() -> None:
        gate = threading.Event()
        async with TaskGroup(pool, limit=limit) as group:
            futures = [group.submit(gate.wait, LIMIT) for _ in range(10)]
            group.cancel()
            gate.set()
        assert all(future.done() for future in futures)

    asyncio.run(main())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("cancelled_before", [False, True])
def test_cancel_is_quiet_where_the_block_awaits_a_member(
    limit: int | None, nested: bool, cancelled_before: bool
) -> None:
    """No matter what has become of the task before, which is not cancelled by that."""

    async def block(group: TaskGroup) -> None:
        async with group:
            group.submit(gate.wait, LIMIT)
            queued = group.submit(int)
            loop = asyncio.get_running_loop()
            loop.call_soon(group.cancel)
            loop.call_soon(gate.set)
            if nested:
                async with TaskGroup(service):
                    await asyncio.wrap_future(queued)
            else:
                await asyncio.wrap_future(queued)

    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None
        if cancelled_before:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(LIMIT)
        await block(TaskGroup(service, limit=limit))
        return task.cancelling()

    gate = threading.Event()
    with Service(1) as service:
        assert asyncio.run(main()) == cancelled_before


def test_a_cancel_of_the_task_in_a_cancelled_group_is_not_lost() -> None:
    async def block() -> None:
        async with TaskGroup(service) as group:
            group.cancel()
            await asyncio.sleep(LIMIT)

    async def main() -> None:
        task = asyncio.create_task(block())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Service(1) as service:
        asyncio.run(main())


@pytest.mark.parametrize("where", ["in the block", "at its end"])
def test_a_timeout_interrupts_the_block_and_its_end(
    pool: Executor, limit: int | None, where: str
) -> None:
    gate, started = threading.Event(), threading.Event()

    def body() -> None:
        started.set()
        assert gate.wait(LIMIT)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with TaskGroup(pool, limit=limit, timeout=0.1) as group:
                futures.append(group.submit(body))
                if where == "in the block":
                    await asyncio.sleep(LIMIT)
        assert group.cancelled
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()
        await asyncio.sleep(0)

    futures: list[Future[Any]] = []
    asyncio.run(asyncio.wait_for(main(), LIMIT))
    # On a slow machine it has not even started.
    assert futures[0].cancelled() or (started.is_set() and not futures[0].done())
    gate.set()


def test_a_timer_of_the_loop_that_is_early_is_the_timeout(
    monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    """As uvloop's are, by up to a millisecond."""
    gate = threading.Event()
    late = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() - late[0])
    monkeypatch.setattr("boundedexec.groups.time", clock)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with TaskGroup(service, limit=limit, timeout=0.1) as group:
                late[0] = LIMIT
                group.submit(gate.wait, LIMIT)
                queued.append(group.submit(int))
                await asyncio.sleep(LIMIT)
        assert group.cancelled

    queued: list[Future[int]] = []
    with Service(1) as service:
        try:
            asyncio.run(asyncio.wait_for(main(), LIMIT / 2))
            assert queued[0].cancelled()
        finally:
            gate.set()


def test_a_block_that_overruns_is_out_of_time_though_it_goes_on(limit: int | None) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with TaskGroup(service, limit=limit, timeout=0.01) as group:
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.sleep(LIMIT)
        assert group.cancelled

    with Service(1) as service:
        asyncio.run(main())


def test_groups_of_one_loop_share_a_service() -> None:
    async def one(number: int) -> list[int]:
        async with TaskGroup(service, limit=2) as group:
            for each in range(20):
                group.submit(pow, number, each)
        return group.results()

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(one(number) for number in range(10)))

    with Service(3) as service:
        results = asyncio.run(asyncio.wait_for(main(), LIMIT))
    assert results == [[number**each for each in range(20)] for number in range(10)]
