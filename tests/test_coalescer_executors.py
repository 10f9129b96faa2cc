"""A Coalescer on executors that block, refuse, run inline, or are not a Service."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from helpers import (
    LIMIT,
    Chained,
    Inline,
    Manual,
    Oops,
    Overriding,
    Passing,
    Starts,
    executing,
    fail,
)

from boundedexec import BrokenThreadPool, Coalescer, Service

# Executors that block and that refuse


@pytest.mark.parametrize("make", [lambda: Passing(Service(2)), lambda: Overriding(2)])
def test_no_submit_waits_for_another_that_blocks_in_its_executor(
    make: Callable[[], Any],
) -> None:
    blocking, release = threading.Event(), threading.Event()
    executor = make()
    coalescer = Coalescer[str](executor)

    def block() -> None:
        executor.before = int
        blocking.set()
        assert release.wait(LIMIT)

    with Service(1) as others:
        executor.before = block
        first = others.submit(coalescer.submit, "key", str, "first")
        assert blocking.wait(LIMIT)
        joined = coalescer.submit("key", str, "joined")
        assert coalescer.submit("other", str, "other").result(LIMIT) == "other"
        assert "key" in coalescer
        assert not first.done() and not joined.done()
        release.set()
        assert joined.result(LIMIT) == "joined"
        assert first.result(LIMIT).result(LIMIT) in ("first", "joined")
    executor.shutdown()
    assert len(coalescer) == 0


def test_what_joins_a_run_that_is_being_handed_over_is_outstanding() -> None:
    blocking, release = threading.Event(), threading.Event()
    service = Overriding(2)
    coalescer = Coalescer[str](service)

    def block() -> None:
        service.before = int
        blocking.set()
        assert release.wait(LIMIT)

    with service, Service(1) as others:
        service.before = block
        first = others.submit(coalescer.submit, "key", str, "first")
        assert blocking.wait(LIMIT)
        joined = coalescer.submit("key", str, "joined")
        assert not service.block_till_done(0.02)
        release.set()
        assert service.block_till_done(LIMIT)
        assert joined.done()
        first.result(LIMIT)


@pytest.mark.parametrize("refusal", [OSError(), Oops()], ids=["error", "exit"])
@pytest.mark.parametrize("make", [lambda: Passing(Inline()), lambda: Overriding(1)])
def test_a_submit_that_the_executor_refuses_raises_and_leaves_nothing(
    make: Callable[[], Any], refusal: BaseException
) -> None:
    executor = make()
    with executor:
        coalescer = Coalescer[str](executor)
        executor.before = lambda: fail(refusal)
        with pytest.raises(type(refusal)):
            coalescer.submit("key", int)
        assert len(coalescer) == 0 and "key" not in coalescer
        executor.before = int
        assert coalescer.submit("key", str, "again").result(LIMIT) == "again"
        assert isinstance(executor, Passing) or executor.block_till_done(LIMIT)


@pytest.mark.parametrize("make", [lambda: Passing(Inline()), lambda: Overriding(1)])
def test_what_joined_a_run_that_is_then_refused_is_not_left_unresolved(
    make: Callable[[], Any],
) -> None:
    executor = make()
    joined: list[Future[str]] = []
    refusal = OSError()

    def join_and_refuse() -> None:
        executor.before = int
        joined.append(coalescer.submit("key", str, "joined"))
        raise refusal

    with executor:
        coalescer = Coalescer[str](executor)
        executor.before = join_and_refuse
        try:
            coalescer.submit("key", int)
        except OSError as error:
            assert error is refusal
        assert joined[0].exception(LIMIT) in (None, refusal)
        assert isinstance(executor, Passing) or executor.block_till_done(LIMIT)
        assert len(coalescer) == 0


@pytest.mark.parametrize("refusal", [OSError(), Oops()], ids=["error", "exit"])
def test_a_rerun_that_another_executor_refuses_has_that_error(refusal: BaseException) -> None:
    executor = Manual()
    coalescer = Coalescer[str](executor)
    run = coalescer.submit("key", str, "run")
    owed = coalescer.submit("key", int)
    assert coalescer.submit("key", int) is owed
    executor.refusal = refusal
    try:
        executor.run()
    except Oops:
        pass  # It is the executor's, whose thread this is.
    assert run.result(0) == "run"
    assert owed.exception(0) is refusal
    executor.refusal = None
    assert len(coalescer) == 0
    again = coalescer.submit("key", str, "again")
    executor.run()
    assert again.result(0) == "again"


def test_a_rerun_that_an_overridden_submit_refuses_has_that_error() -> None:
    refusal = OSError()
    with Overriding(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            owed = coalescer.submit("key", int)
            service.before = lambda: fail(refusal)
        assert owed.exception(LIMIT) is refusal
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0


@pytest.mark.parametrize("cancel_futures", [False, True])
def test_nothing_is_left_unresolved_when_another_executor_shuts_down(cancel_futures: bool) -> None:
    pool = concurrent.futures.ThreadPoolExecutor(1)
    coalescer = Coalescer[str](pool)
    with executing(coalescer) as run:
        owed = coalescer.submit("key", int)
        queued = coalescer.submit("queued", str, "queued")
        owed_too = coalescer.submit("queued", int)
        pool.shutdown(wait=False, cancel_futures=cancel_futures)
    pool.shutdown()
    assert run.result(0) == ""
    for future in owed, owed_too:
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            future.result(LIMIT)
    assert queued.cancelled() if cancel_futures else queued.result(0) == "queued"
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        coalescer.submit("key", int)
    assert len(coalescer) == 0


def test_a_submit_for_which_no_thread_starts_raises_and_leaves_nothing(starts: Starts) -> None:
    with Service(1) as service:
        coalescer = Coalescer[str](service)
        starts.fail()
        with pytest.raises(RuntimeError, match="thread"):
            coalescer.submit("key", int)
        assert len(coalescer) == 0
        assert service.block_till_done(LIMIT)
        starts.fail(False)
        assert coalescer.submit("key", str, "again").result(LIMIT) == "again"


def test_a_rerun_needs_no_thread_but_that_of_its_run(starts: Starts) -> None:
    with Service(2) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            starts.fail()
            owed = coalescer.submit("key", str, "again")
        assert owed.result(LIMIT) == "again"
        assert service.block_till_done(LIMIT)


def test_a_broken_service_breaks_its_coalescer() -> None:
    logging.disable()
    try:
        with Service(1, initializer=fail, initargs=(ValueError(),)) as service:
            coalescer = Coalescer[str](service)
            future = coalescer.submit("key", int)
            assert isinstance(future.exception(LIMIT), BrokenThreadPool)
            assert len(coalescer) == 0
            with pytest.raises(BrokenThreadPool):
                coalescer.submit("key", int)
            assert len(coalescer) == 0
    finally:
        logging.disable(logging.NOTSET)


# What another executor is handed


def test_another_executor_is_handed_the_callers_own_callable() -> None:
    executor = Manual()
    coalescer = Coalescer[str](executor)

    def own(*args: object, **kwargs: object) -> None: ...

    coalescer.submit("key", own, 1, word=2)
    coalescer.submit("key", int)
    coalescer.submit("key", own, 3, word=4)
    _, fn, args, kwargs = executor.handed[0]
    assert fn is own
    assert (tuple(args), dict(kwargs)) == ((1,), {"word": 2})
    executor.run()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_it_works_on_a_pool_of_processes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ProcessPoolExecutor(1) as pool:
        coalescer = Coalescer[str](pool)
        assert coalescer.submit("key", pow, 2, 10).result(LIMIT) == 1024
        run = coalescer.submit("key", pipe.read_text)
        with pipe.open("w") as writer:
            owed = coalescer.submit("key", pow, 2, 3)
            assert coalescer.submit("key", pow, 2, 4) is owed
            writer.write("read")
        assert run.result(LIMIT) == "read"
        assert owed.result(LIMIT) == 16
        unpicklable = coalescer.submit("key", lambda: None)
        assert isinstance(
            unpicklable.exception(LIMIT), (pickle.PicklingError, AttributeError, TypeError)
        )
        # It dies once the other is owed, for a pool that is broken takes nothing.
        dying = f"import os; open({str(pipe)!r}).read(); os._exit(1)"
        dead = coalescer.submit("key", exec, dying)
        with pipe.open("w"):
            owed = coalescer.submit("key", pow, 2, 5)
        assert isinstance(dead.exception(LIMIT), BrokenExecutor)
        assert isinstance(owed.exception(LIMIT), BrokenExecutor)
        assert len(coalescer) == 0


def test_an_overridden_submit_is_called_for_every_run() -> None:
    with Overriding(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            coalescer.submit("key", int)
            coalescer.submit("key", int)
        coalescer.submit("other", int)
        assert service.block_till_done(LIMIT)
        assert service.submits == 3


def test_an_overridden_submit_may_return_other_futures() -> None:
    with Chained(1) as service:
        coalescer = Coalescer[str](service)
        with executing(coalescer):
            owed = coalescer.submit("key", str, "again")
        assert cast(object, owed.result(LIMIT)) == ("again", "chained")
        assert service.block_till_done(LIMIT)
        assert len(coalescer) == 0
