"""What is wrapped round the stdlib class's `submit` takes effect on the drop-in."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor as StdlibPool
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import pytest
from contract_helpers import (
    LIMIT,
    Gate,
    check_slots,
    fork_and_say,
    full,
    in_thread,
    new_service,
    run_script,
)
from helpers import at_each_look

import boundedexec
from boundedexec import Coalescer, QueueFull, Service


def new_pool(max_workers: int = 1, **options: Any) -> Any:
    return boundedexec.ThreadPoolExecutor(max_workers, daemon=True, **options)


@pytest.fixture
def wrapped(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a wrapper round the stdlib class's `submit` saw, as sentry-sdk makes one."""
    seen: list[Any] = []
    original = StdlibPool.submit

    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        seen.append(fn)

        def instrumented(*args: Any, **kwargs: Any) -> Any:
            return "wrapped", fn(*args, **kwargs)

        return original(self, instrumented, *args, **kwargs)

    monkeypatch.setattr(StdlibPool, "submit", submit)
    return seen


def test_a_wrapper_of_the_stdlibs_submit_takes_effect_once(wrapped: list[Any]) -> None:
    pool = boundedexec.ThreadPoolExecutor(1, daemon=True)
    future: Any = pool.submit(pow, 2, 3)
    assert future.result(LIMIT) == ("wrapped", 8)
    assert wrapped == [pow]
    assert isinstance(future, boundedexec.Future)
    assert list(pool.map(abs, [-1, -2])) == [("wrapped", 1), ("wrapped", 2)]
    assert wrapped == [pow, abs, abs]


def test_a_wrapped_submission_still_lends(wrapped: list[Any]) -> None:
    pool = boundedexec.ThreadPoolExecutor(1, daemon=True)
    outer: Any = pool.submit(lambda: pool.submit(pow, 2, 3).result())
    assert outer.result(LIMIT) == ("wrapped", ("wrapped", 8))
    check_slots(pool, 1)


def test_a_wrapper_leaves_a_service_alone(wrapped: list[Any]) -> None:
    assert new_service(1).submit(pow, 2, 3).result(LIMIT) == 8
    assert wrapped == []


def test_a_wrapper_takes_effect_on_subclasses_once(wrapped: list[Any]) -> None:
    class Sub(boundedexec.ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            return super().submit(fn, *args, **kwargs)

    assert Sub(1, daemon=True).submit(pow, 2, 3).result(LIMIT) == ("wrapped", 8)
    assert wrapped == [pow]


def test_a_wrapper_that_came_before_the_import_takes_effect() -> None:
    assert run_script("""
        import concurrent.futures
        original = concurrent.futures.ThreadPoolExecutor.submit

        def submit(self, fn, /, *args, **kwargs):
            return original(self, lambda *args: ("wrapped", fn(*args)), *args, **kwargs)

        concurrent.futures.ThreadPoolExecutor.submit = submit
        import boundedexec
        with boundedexec.ThreadPoolExecutor(1) as pool:
            print(pool.submit(pow, 2, 3).result())
            print(pool.submit(lambda: pool.submit(pow, 2, 3).result()).result())
        with boundedexec.Service(1) as service:
            print(service.submit(pow, 2, 3).result())
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            print(pool.submit(pow, 2, 3).result())
        """) == ["('wrapped', 8)", "('wrapped', ('wrapped', 8))", "8", "('wrapped', 8)"]


def test_a_wrapper_that_is_taken_away_again_has_no_effect() -> None:
    original: Any = StdlibPool.submit
    pool: Any = boundedexec.ThreadPoolExecutor(1, daemon=True)

    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return original(self, lambda: "wrapped", **kwargs)

    StdlibPool.submit = submit  # type: ignore[method-assign]
    try:
        assert pool.submit(pow, 2, 3).result(LIMIT) == "wrapped"
    finally:
        StdlibPool.submit = original  # type: ignore[method-assign]
    assert pool.submit(pow, 2, 3).result(LIMIT) == 8


# In whatever way it is wrapped.


def mark(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What a wrapper submits in the place of `fn`."""
    return lambda *args, **kwargs: ("wrapped", fn(*args, **kwargs))


class Descriptor:
    """A wrapper that is no function but binds as one, as wrapt's."""

    def __init__(self, original: Any) -> None:
        self.original = original

    @property
    def __code__(self) -> Any:
        return self.original.__code__

    def __get__(self, pool: Any, owner: type) -> Any:
        if pool is None:
            return self
        return functools.partial(self, pool)

    def __call__(self, pool: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self.original(pool, mark(fn), *args, **kwargs)


def test_a_wrapper_that_is_a_descriptor_takes_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StdlibPool, "submit", Descriptor(StdlibPool.submit))
    pool = new_pool()
    assert pool.submit(pow, 2, 3).result(LIMIT) == ("wrapped", 8)
    assert pool.submit(int, "11", base=2).result(LIMIT) == ("wrapped", 3)
    check_slots_of_wrapped(pool)


def check_slots_of_wrapped(pool: Any) -> None:
    """Its slots are free again."""
    assert pool.block_till_done(LIMIT)
    gates = [Gate() for _ in range(pool.max_workers)]
    futures = [pool.submit(gate) for gate in gates]
    for gate in gates:
        gate.wait_entered()
    for gate in gates:
        gate.open()
    for future in futures:
        future.result(LIMIT)


@pytest.fixture
def rewritten(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Rewrites the code of a function so that it wraps what it was, as ddtrace does."""
    undo: list[Callable[[], None]] = []

    def rewrite(function: Any) -> None:
        module: Any = ModuleType("wrapper_of_this_test")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        code = function.__code__
        inner = FunctionType(code, function.__globals__, closure=function.__closure__)

        def wrapper(pool: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
            return inner(pool, mark(fn), *args, **kwargs)

        module.submit = wrapper

        def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            # Nothing of this module is there: the code runs in the stdlib's.
            module: Any = __import__("wrapper_of_this_test")
            return module.submit(self, fn, *args, **kwargs)

        undo.append(lambda: setattr(function, "__code__", code))
        function.__code__ = submit.__code__.replace(co_filename=code.co_filename)

    yield rewrite
    for step in undo:
        step()


def test_rewriting_the_code_of_the_stdlibs_submit_takes_effect(
    rewritten: Callable[[Any], None],
) -> None:
    pool = new_pool()
    assert pool.submit(pow, 2, 3).result(LIMIT) == 8
    rewritten(StdlibPool.submit)
    assert pool.submit(pow, 2, 3).result(LIMIT) == ("wrapped", 8)
    outer = pool.submit(lambda: pool.submit(pow, 2, 3).result())
    assert outer.result(LIMIT) == ("wrapped", ("wrapped", 8))
    assert new_service().submit(pow, 2, 3).result(LIMIT) == 8


def test_several_wrappers_take_effect_once_each(
    wrapped: list[Any], rewritten: Callable[[Any], None]
) -> None:
    original = vars(StdlibPool)["submit"].__closure__
    functions = [cell.cell_contents for cell in original if callable(cell.cell_contents)]
    rewritten(functions[0])
    assert new_pool().submit(pow, 2, 3).result(LIMIT) == ("wrapped", ("wrapped", 8))
    assert wrapped == [pow]


# While `install` has the stdlib's name be ours.


def test_a_wrapper_put_round_the_installed_class_takes_effect_once_and_leaves_a_service_alone() -> (
    None
):
    assert run_script("""
        import boundedexec, concurrent.futures
        boundedexec.install()
        Pool = concurrent.futures.ThreadPoolExecutor
        original = Pool.submit

        def submit(self, fn, /, *args, **kwargs):
            return original(self, lambda *args: ("wrapped", fn(*args)), *args, **kwargs)

        class Sub(Pool):
            def submit(self, fn, /, *args, **kwargs):
                return super().submit(fn, *args, **kwargs)

        before = Pool(1)
        Pool.submit = submit
        for pool in before, Pool(1), Sub(1):
            print(pool.submit(pow, 2, 3).result(), list(pool.map(abs, [-1])))
        print(boundedexec.Service(1).submit(pow, 2, 3).result())
        Pool.submit = original
        print(before.submit(pow, 2, 3).result())
        """) == [*["('wrapped', 8) [('wrapped', 1)]"] * 3, "8", "8"]


def test_rewriting_the_code_of_the_installed_submit_leaves_a_service_alone(
    rewritten: Callable[[Any], None], wrapped: list[Any]
) -> None:
    rewritten(boundedexec.ThreadPoolExecutor.submit)
    # Once by each: the rewritten code, and the wrapper of the stdlib's.
    assert new_pool().submit(pow, 2, 3).result(LIMIT) == ("wrapped", ("wrapped", 8))
    assert len(wrapped) == 1
    service = new_service()
    assert service.submit(pow, 2, 3).result(LIMIT) == 8
    plain: Any = Coalescer[str](service)
    assert plain.submit("key", pow, 2, 3).result(LIMIT) == 8
    runs: Any = Coalescer[str](new_pool())
    assert runs.submit("key", pow, 2, 3).result(LIMIT) == ("wrapped", ("wrapped", 8))


# What a wrapper may do.


@pytest.fixture
def wrap(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Replaces the stdlib's `submit` by `wrapper(original, pool, fn, *args, **kwargs)`."""

    def replace(wrapper: Any) -> None:
        original = StdlibPool.submit

        def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            return wrapper(original, self, fn, *args, **kwargs)

        monkeypatch.setattr(StdlibPool, "submit", submit)

    return replace


def test_the_future_that_a_wrapper_gets_is_ours_in_all_but_name(wrap: Any) -> None:
    seen = SimpleNamespace(futures=[], done=[])

    def counting(original: Any, pool: Any, fn: Any, *args: Any) -> Any:
        future: Any = original(pool, fn, *args)
        assert all(isinstance(future, kind) for kind in (Future, boundedexec.Future))
        assert not future.cancelled()
        future.label = "mine"
        future.add_done_callback(seen.done.append)
        seen.futures.append(future)
        return future

    wrap(counting)
    pool = new_pool()
    gate = Gate()
    held, queued = pool.submit(gate), pool.submit(pow, 2, 3)
    assert [type(queued)] == [boundedexec.Future]
    assert queued.label == "mine"
    gate.open()
    assert seen.futures[1].result(LIMIT) == queued.result(LIMIT) == 8
    assert pool.block_till_done(LIMIT)
    assert seen.done == [held, queued]


def test_a_wrapper_may_wait_for_the_future(wrap: Any) -> None:
    def at_once(original: Any, pool: Any, fn: Any, *args: Any) -> Any:
        future = original(pool, fn, *args)
        boundedexec.wait([future], LIMIT)
        assert future.result(LIMIT) is not None
        return future

    wrap(at_once)
    pool = new_pool()
    assert pool.submit(pow, 2, 3).done()
    # In a body it lends.
    assert pool.submit(lambda: pool.submit(pow, 2, 3).result(0)).result(0) == 8


def test_a_wrapper_may_cancel_the_future(wrap: Any) -> None:
    def cancelling(original: Any, pool: Any, fn: Any, *args: Any) -> Any:
        future = original(pool, fn, *args)
        if fn is pow:
            assert future.cancel()
        return future

    pool = new_pool()
    with full(pool):
        wrap(cancelling)
        assert pool.submit(pow, 2, 3).cancelled()
    check_slots_of_wrapped(pool)


def test_a_wrapper_may_submit_more_than_one_call_or_none(wrap: Any) -> None:
    ran: list[str] = []
    done: Future[str] = Future()
    done.set_result("mine")

    def more_or_none(original: Any, pool: Any, fn: Any, *args: Any) -> Any:
        if fn is pow:
            return done
        original(pool, ran.append, "first")
        return original(pool, fn, *args)

    wrap(more_or_none)
    pool = new_pool()
    assert pool.submit(pow, 2, 3) is done
    assert pool.submit(str, 5).result(LIMIT) == "5"
    assert ran == ["first"]


def test_a_wrapper_sees_the_pool(wrap: Any) -> None:
    seen: list[Any] = []

    class Sub(boundedexec.ThreadPoolExecutor):
        calls = 0

    def looking(original: Any, pool: Any, fn: Any, *args: Any) -> Any:
        assert isinstance(pool, Sub)
        assert isinstance(pool, StdlibPool)
        pool.calls += 1
        seen.append((pool._max_workers, pool._thread_name_prefix, pool._work_queue.qsize()))
        return original(pool, fn, *args)

    wrap(looking)
    pool = Sub(1, "mine", daemon=True)
    with full(pool):
        futures = [pool.submit(int) for _ in range(2)]
    assert [future.result(LIMIT) for future in futures] == [0, 0]
    assert seen == [(1, "mine", 0), (1, "mine", 0), (1, "mine", 1)]
    assert pool.calls == 3


def test_a_wrapper_hears_of_what_is_refused(wrap: Any) -> None:
    heard: list[str] = []

    def hearing(original: Any, pool: Any, fn: Any, *args: Any) -> Any:
        try:
            return original(pool, fn, *args)
        except RuntimeError as error:
            heard.append(str(error))
            raise

    wrap(hearing)
    pool = new_pool(max_queued=0)
    with full(pool), pytest.raises(QueueFull):
        pool.submit(int)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(int)
    with pytest.raises(TypeError, match="callable"):
        pool.submit(3)
    assert len(heard) == 2


def test_what_a_wrapper_raises_comes_out_of_submit(wrap: Any) -> None:
    def failing(original: Any, pool: Any, fn: Any, *args: Any) -> Any:
        if fn is pow:
            raise KeyError("mine")
        return original(pool, fn, *args)

    wrap(failing)
    pool = new_pool()
    with pytest.raises(KeyError, match="mine"):
        pool.submit(pow, 2, 3)
    check_slots_of_wrapped(pool)


def test_overriding_what_the_stdlibs_submit_uses_does_not_break_a_wrapped_pool(
    wrapped: list[Any],
) -> None:
    import queue  # noqa: PLC0415

    class Own(boundedexec.ThreadPoolExecutor):
        def _adjust_thread_count(self) -> None:
            raise AssertionError("called")

    with pytest.warns(RuntimeWarning):
        pool: Any = Own(1, daemon=True)
        pool._work_queue = queue.Queue(maxsize=1)
    with pool._shutdown_lock:
        futures = [pool.submit(pow, 2, 3) for _ in range(3)]
    assert [future.result(LIMIT) for future in futures] == [("wrapped", 8)] * 3
    assert len(wrapped) == 3


# From anywhere.


def test_submit_may_interrupt_a_wrapped_submit(wrapped: list[Any]) -> None:
    """As a signal handler or a `__del__` does; here it comes before each line of the stdlib's
    `submit`, which holds a lock that is not reentrant."""
    pool = new_pool()
    inner: list[Any] = []

    def interrupt(frame: Any, event: str, arg: Any) -> Any:
        if "concurrent" not in frame.f_code.co_filename:
            return None
        if event == "line":
            inner.append(pool.submit(pow, 2, 4))
        return interrupt

    def submit() -> Any:
        sys.settrace(interrupt)
        try:
            return pool.submit(pow, 2, 3)
        finally:
            sys.settrace(None)

    assert in_thread(submit).result(LIMIT) == ("wrapped", 8)
    assert len(inner) > 5
    assert {future.result(LIMIT) for future in inner} <= {16, ("wrapped", 16)}
    # And afterwards it takes effect again, on any thread.
    assert in_thread(lambda: pool.submit(pow, 2, 3)).result(LIMIT) == ("wrapped", 8)
    check_slots_of_wrapped(pool)


def test_an_interrupted_wrapped_submit_leaves_everything_as_it_was(wrapped: list[Any]) -> None:
    """By a Ctrl-C, at each place of the package at which CPython looks for one."""
    pool = new_pool()

    def interrupt() -> None:
        raise KeyboardInterrupt

    trace = at_each_look(interrupt)

    def is_interrupted() -> bool:
        sys._getframe().f_trace_opcodes = True  # pyright: ignore[reportPrivateUsage]
        sys.settrace(trace)
        try:
            pool.submit(pow, 2, 3)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    def interrupt_at_every_place() -> int:
        times = 0
        while is_interrupted():
            times += 1
            assert pool.submit(pow, 2, 3).result(LIMIT) == ("wrapped", 8)
        return times

    assert in_thread(interrupt_at_every_place, 60) > 20
    check_slots_of_wrapped(pool)


def test_many_threads_submit_while_a_wrapper_comes_and_goes() -> None:
    pool = new_pool(4)
    original: Any = StdlibPool.submit
    stop = threading.Event()

    def submit(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return original(self, mark(fn), *args, **kwargs)

    def nest(depth: int) -> Any:
        if depth == 0:
            return 0
        inner = pool.submit(nest, depth - 1).result()
        return inner if inner == 0 else inner[1]

    def work() -> None:
        while not stop.is_set():
            futures = [pool.submit(nest, 3) for _ in range(5)]
            assert {future.result(LIMIT) for future in futures} <= {0, ("wrapped", 0)}

    threads = [StdlibPool(1) for _ in range(3)]
    working = [original(thread, work) for thread in threads]
    try:
        for _ in range(200):
            StdlibPool.submit = submit  # type: ignore[method-assign]
            assert pool.submit(pow, 2, 3).result(LIMIT) == ("wrapped", 8)
            StdlibPool.submit = original  # type: ignore[method-assign]
            assert pool.submit(pow, 2, 3).result(LIMIT) == 8
    finally:
        StdlibPool.submit = original  # type: ignore[method-assign]
        stop.set()
    for future in working:
        future.result(LIMIT)
    check_slots(pool, 4)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_it_takes_effect_in_the_child_of_a_fork(wrapped: list[Any]) -> None:
    pool = new_pool()
    pool.submit(pow, 2, 3).result(LIMIT)
    assert fork_and_say(lambda: pool.submit(pow, 2, 3).result(LIMIT)) == ("wrapped", 8)
    in_a_body = pool.submit(lambda: fork_and_say(lambda: pool.submit(pow, 2, 3).result(LIMIT)))
    assert in_a_body.result(LIMIT) == ("wrapped", ("wrapped", 8))


def test_bodies_may_submit_at_the_end_of_a_wrapped_program() -> None:
    assert run_script("""
        import concurrent.futures, time
        original = concurrent.futures.ThreadPoolExecutor.submit

        def submit(self, fn, /, *args, **kwargs):
            return original(self, lambda *args: fn(*args), *args, **kwargs)

        concurrent.futures.ThreadPoolExecutor.submit = submit
        from boundedexec import ThreadPoolExecutor
        pool = ThreadPoolExecutor(1)

        def body(n):
            print(n, flush=True)
            time.sleep(0.05)
            if n:
                pool.submit(body, n - 1)

        pool.submit(body, 3)
        """) == ["3", "2", "1", "0"]


# Coalescers.


def test_the_runs_of_a_coalescer_on_a_wrapped_pool_are_wrapped(wrapped: list[Any]) -> None:
    pool = new_pool()
    runs: Any = Coalescer[str](pool)
    gate = Gate()
    first = runs.submit("key", gate)
    gate.wait_entered()
    again = [runs.submit("key", str, n) for n in range(100)]
    assert len(set(again)) == 1
    gate.open()
    assert first.result(LIMIT) == ("wrapped", None)
    assert again[0].result(LIMIT) == ("wrapped", "99")
    assert len(wrapped) == 2
    outer: Any = pool.submit(lambda: runs.submit("key", str, 7).result())
    assert outer.result(LIMIT) == ("wrapped", ("wrapped", "7"))
    assert pool.block_till_done(LIMIT)
    assert len(runs) == 0


def test_the_runs_of_a_coalescer_that_was_there_before_the_wrapper_are_wrapped(
    request: pytest.FixtureRequest,
) -> None:
    pool = new_pool()
    runs: Any = Coalescer[str](pool)
    gate = Gate()
    first = runs.submit("key", gate)
    gate.wait_entered()
    wrapped: list[Any] = request.getfixturevalue("wrapped")
    again = [runs.submit("key", str, n) for n in range(100)]
    joined = runs.join("key", str, 100)
    gate.open()
    assert len(set(again)) == 1
    assert joined is first
    assert first.result(LIMIT) is None
    # Of the submit that came last, and once.
    assert again[0].result(LIMIT) == ("wrapped", "99")
    assert len(wrapped) == 101
    outer: Any = pool.submit(lambda: runs.submit("key", str, 7).result())
    assert outer.result(LIMIT) == ("wrapped", ("wrapped", "7"))
    assert pool.block_till_done(LIMIT)
    assert len(runs) == 0
    pool.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        runs.submit("key", str, 8)


def test_the_runs_of_a_coalescer_that_was_there_before_a_wrapper_of_the_installed_class() -> None:
    assert run_script("""
        import boundedexec, concurrent.futures
        boundedexec.install()
        Pool = concurrent.futures.ThreadPoolExecutor
        runs = boundedexec.Coalescer(Pool(1))
        service_runs = boundedexec.Coalescer(boundedexec.Service(1))
        original = Pool.submit

        def submit(self, fn, /, *args, **kwargs):
            assert isinstance(self, Pool)
            return original(self, lambda *args: ("wrapped", fn(*args)), *args, **kwargs)

        Pool.submit = submit
        for each in runs, service_runs:
            print(each.submit("key", pow, 2, 3).result())
        Pool.submit = original
        print(runs.submit("key", pow, 2, 3).result())
        """) == ["('wrapped', 8)", "8", "8"]


# What it costs where there is no wrapper.


def test_without_a_wrapper_submit_runs_the_code_of_a_service() -> None:
    pool = boundedexec.ThreadPoolExecutor
    assert pool.submit is not Service.submit
    assert pool.submit.__code__ is Service.submit.__code__
    assert pool.submit.__doc__ == Service.submit.__doc__
    assert not hasattr(pool.submit, "__wrapped__")
