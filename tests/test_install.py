"""install: the names of `concurrent.futures` are this package's until it is undone."""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
import concurrent.futures.thread
import importlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import LIMIT, run_script

import boundedexec
from boundedexec import DeadlockError, install, installed

Standard = concurrent.futures.ThreadPoolExecutor
NAMES = ["ThreadPoolExecutor", "wait", "as_completed"]
STANDARD = {name: getattr(concurrent.futures, name) for name in NAMES}
PLACES = [
    *((concurrent.futures, name) for name in NAMES),
    (concurrent.futures.thread, "ThreadPoolExecutor"),
    *((importlib.import_module("concurrent.futures._base"), name) for name in NAMES[1:]),
]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    assert are_standard()


def are_standard() -> bool:
    return all(getattr(module, name) is STANDARD[name] for module, name in PLACES)


def are_ours() -> bool:
    return all(getattr(module, name) is getattr(boundedexec, name) for module, name in PLACES)


def test_every_place_that_has_a_name_has_ours() -> None:
    assert are_standard()
    undo = install()
    assert are_ours()
    undo()


@pytest.mark.parametrize(
    "way",
    [
        "import concurrent.futures; it = concurrent.futures.ThreadPoolExecutor",
        "import concurrent.futures as f; it = f.thread.ThreadPoolExecutor",
        "import concurrent.futures.thread as t; it = t.ThreadPoolExecutor",
        "from concurrent.futures import ThreadPoolExecutor as it",
        "from concurrent.futures import *; it = ThreadPoolExecutor",
        "from concurrent.futures.thread import ThreadPoolExecutor as it",
        "import concurrent; it = getattr(concurrent.futures, 'ThreadPoolExecutor')",
    ],
)
def test_every_way_to_import_it_gives_ours(way: str) -> None:
    lines = run_script(f"""
        import boundedexec
        boundedexec.install()
        {way}
        print(it is boundedexec.ThreadPoolExecutor)
    """)
    assert lines == ["True"]


@pytest.mark.parametrize("kind", ["ProcessPoolExecutor", "InterpreterPoolExecutor"])
def test_the_other_pools_of_the_standard_library_work(kind: str) -> None:
    # The second derives from the stdlib's ThreadPoolExecutor, and is imported late.
    if not hasattr(concurrent.futures, kind):
        pytest.skip(f"this Python has no {kind}")
    lines = run_script(f"""
        import boundedexec
        boundedexec.install()
        from concurrent.futures import {kind}, wait
        with {kind}(1) as pool:
            print(wait([pool.submit(pow, 2, 3)]).done.pop().result())
    """)
    assert lines == ["8"]


def test_undo_may_be_called_again() -> None:
    undo, other = install(), install()
    undo()
    undo()
    assert are_ours()
    other()
    assert are_standard()
    undo()
    other()
    assert are_standard()


def test_of_several_installs_undone_in_any_order_the_last_undo_counts() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(50):
        undos = [install() for _ in range(chance.randrange(1, 6))]
        chance.shuffle(undos)
        for undo in undos:
            assert are_ours()
            undo()
        assert are_standard()


def test_threads_install_and_undo_at_once() -> None:
    start = threading.Barrier(4)

    def install_often() -> bool:
        start.wait(LIMIT)
        for _ in range(200):
            with installed():
                if not are_ours():
                    return False
        return True

    with boundedexec.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(install_often) for _ in range(4)]
        assert all(future.result() for future in futures)


def test_the_with_block_undoes_it_when_it_raises() -> None:
    with pytest.raises(ZeroDivisionError), installed():
        assert are_ours()
        with installed():
            pass
        assert are_ours()
        raise ZeroDivisionError
    assert are_standard()


def test_what_another_module_put_in_place_of_ours_stays() -> None:
    theirs = object()
    name = "wait"
    with installed():
        setattr(concurrent.futures, name, theirs)
    try:
        assert getattr(concurrent.futures, name) is theirs
    finally:
        setattr(concurrent.futures, name, STANDARD[name])


def test_the_program_that_hangs_a_pool_finishes() -> None:
    def outer(how: Callable[[concurrent.futures.Future[int]], int]) -> int:
        return how(pool.submit(pow, 5, 2))

    with installed():
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert pool.submit(outer, lambda inner: inner.result()).result(LIMIT) == 25
            by_wait = pool.submit(
                outer, lambda inner: concurrent.futures.wait([inner]).done.pop().result()
            )
            assert by_wait.result(LIMIT) == 25
            by_step = pool.submit(
                outer, lambda inner: next(concurrent.futures.as_completed([inner])).result()
            )
            assert by_step.result(LIMIT) == 25


def test_bodies_that_wait_for_each_other_raise() -> None:
    both = threading.Barrier(2)
    futures: list[concurrent.futures.Future[Any]] = []
    known = threading.Event()

    def ask(other: int) -> Any:
        both.wait(LIMIT)
        known.wait(LIMIT)
        return futures[other].result()

    with installed():
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            futures += [pool.submit(ask, 1), pool.submit(ask, 0)]
            known.set()
            failures = [future.exception(LIMIT) for future in futures]
    assert [type(failure) for failure in failures] == [DeadlockError, DeadlockError]


def test_wait_and_as_completed_take_every_package_s_futures() -> None:
    with installed(), Standard(2) as theirs, concurrent.futures.ThreadPoolExecutor(2) as ours:
        futures = [pool.submit(pow, 2, n) for n in range(4) for pool in (theirs, ours)]
        done, not_done = concurrent.futures.wait(futures, timeout=LIMIT)
        assert (done, not_done) == (set(futures), set())
        assert set(concurrent.futures.as_completed(futures, timeout=LIMIT)) == set(futures)
        assert set(concurrent.futures.as_completed(futures)) == set(futures)


def test_our_pools_are_instances_of_both_classes_whenever_they_were_made() -> None:
    before = boundedexec.ThreadPoolExecutor(1)
    with installed():
        during = concurrent.futures.ThreadPoolExecutor(1)
        for pool in before, during:
            assert isinstance(pool, concurrent.futures.ThreadPoolExecutor)
            assert isinstance(pool, Standard)
    for pool in before, during:
        assert isinstance(pool, concurrent.futures.ThreadPoolExecutor)


def test_pools_that_exist_go_on() -> None:
    with Standard(1) as pool:
        with installed():
            assert pool.submit(pow, 2, 3).result(LIMIT) == 8
            assert isinstance(pool, Standard)
        assert pool.submit(pow, 2, 3).result(LIMIT) == 8
    with installed():
        ours = concurrent.futures.ThreadPoolExecutor(1)
    assert ours.submit(pow, 2, 3).result(LIMIT) == 8
    ours.shutdown()


class Once(type):
    """A metaclass that has nothing to do with pools, as programs have them."""


def test_programs_that_derive_from_the_pool_work() -> None:
    with installed():

        class Counting(concurrent.futures.ThreadPoolExecutor):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.count = 0

            def submit(
                self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
            ) -> concurrent.futures.Future[Any]:
                self.count += 1
                return super().submit(fn, *args, **kwargs)

        class Abstract(Counting, abc.ABC):
            pass

        class Single(Counting, metaclass=Once):
            pass

    for kind in Counting, Abstract, Single:
        with kind(max_workers=2, thread_name_prefix="mine") as pool:
            assert list(pool.map(pow, range(4), range(4))) == [1, 1, 4, 27]
            assert pool.count == 4
            assert isinstance(pool, Standard)


def test_asyncio_uses_and_accepts_it() -> None:
    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        # asyncio's own default executor, made now.
        name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
        by_thread = await asyncio.to_thread(pow, 2, 3)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            loop.set_default_executor(pool)
            return [name, by_thread, await loop.run_in_executor(None, pow, 2, 4)]

    with installed():
        name, *results = asyncio.run(main())
    assert str(name).startswith("asyncio_")
    assert results == [8, 16]


def test_nothing_is_counted_or_wrapped() -> None:
    submit = boundedexec.ThreadPoolExecutor.submit
    with installed():
        assert concurrent.futures.ThreadPoolExecutor.submit is submit
