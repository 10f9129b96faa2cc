"""`map` gives results in order, submits `buffersize` ahead, and cancels what is not asked for."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import Any

import pytest
from helpers import LIMIT, Thing, all_gone, ended, holding, wait_until

from boundedexec import Service


def test_map_gives_the_results_in_order() -> None:
    first = threading.Event()

    def body(index: int) -> int:
        if index == 0:
            assert first.wait(LIMIT)
        elif index == 1:
            first.set()
        return index

    with Service(2) as service:
        assert list(service.map(body, range(10))) == list(range(10))


def test_map_takes_several_iterables_and_ends_with_the_shortest() -> None:
    with Service(2) as service:
        assert list(service.map(divmod, [7, 8, 9], itertools.repeat(2))) == [
            (3, 1),
            (4, 0),
            (4, 1),
        ]
        assert list(service.map(int, [])) == []
        assert list(service.map(int)) == []


def test_map_submits_at_once() -> None:
    ran: SimpleQueue[int] = SimpleQueue()
    with Service(1) as service:
        iterator = service.map(ran.put, range(3))
        assert [ran.get(timeout=LIMIT) for _ in range(3)] == [0, 1, 2]
        del iterator


def test_map_raises_what_a_call_raised_and_cancels_the_later_calls() -> None:
    ran: list[int] = []
    cancelled = threading.Event()

    def body(index: int) -> int:
        ran.append(index)
        if index == 1:
            raise ValueError(index)
        if index > 1:
            cancelled.wait(LIMIT)
        return index

    with Service(1) as service:
        iterator = service.map(body, range(100))
        assert next(iterator) == 0
        with pytest.raises(ValueError):
            next(iterator)
        assert list(iterator) == []
        cancelled.set()
    assert len(ran) <= 3


def test_map_raises_when_its_time_is_up() -> None:
    with Service(1) as service:
        with holding(service):
            iterator = service.map(int, ["1"], timeout=0.01)
            with pytest.raises(concurrent.futures.TimeoutError):
                next(iterator)
        assert list(service.map(int, ["1"], timeout=LIMIT)) == [1]


def test_map_accepts_a_chunksize() -> None:
    with Service(2) as service:
        assert list(service.map(int, "123", chunksize=2)) == [1, 2, 3]


def test_a_map_that_is_dropped_half_way_cancels_what_has_not_started() -> None:
    ran: list[int] = []
    release = threading.Event()

    def body(index: int) -> None:
        ran.append(index)
        if index:
            release.wait(LIMIT)

    with Service(1) as service:
        iterator = service.map(body, range(1000))
        next(iterator)
        del iterator
        gc.collect()
        release.set()
    assert len(ran) <= 2


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_map_with_a_buffersize_submits_no_more_than_that_ahead(size: int) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    with Service(2) as service:
        iterator = service.map(int, numbers(), buffersize=size)
        for got in range(20):
            assert len(taken) == min(size + got, 20)
            assert next(iterator) == got
        assert next(iterator, None) is None


def test_map_with_a_buffersize_takes_an_endless_iterable() -> None:
    with Service(2) as service:
        iterator = service.map(divmod, itertools.count(), itertools.repeat(2), buffersize=3)
        assert list(itertools.islice(iterator, 50)) == [divmod(i, 2) for i in range(50)]


def test_map_with_a_buffersize_and_little_or_nothing_to_do() -> None:
    with Service(2) as service:
        assert list(service.map(int, "12", buffersize=5)) == [1, 2]
        assert list(service.map(int, "", buffersize=1)) == []
        assert list(service.map(int, buffersize=1)) == []


def test_map_with_a_buffersize_raises_in_place() -> None:
    with Service(2) as service:
        iterator = service.map(divmod, [1, 1, 1, 1], [1, 1, 0, 1], buffersize=1)
        assert [next(iterator), next(iterator)] == [(1, 0), (1, 0)]
        with pytest.raises(ZeroDivisionError):
            next(iterator)
        assert next(iterator, None) is None


def test_map_with_a_buffersize_ends_when_its_service_is_gone() -> None:
    service = Service(2)
    iterator = service.map(int, itertools.repeat("1"), buffersize=4)
    reference = weakref.ref(service)
    del service
    gc.collect()
    assert reference() is None
    assert list(iterator) == [1] * 4


@pytest.mark.parametrize("buffersize", [None, 2])
def test_the_iterator_of_map_keeps_no_result_that_it_gave(buffersize: int | None) -> None:
    with Service(2) as service:
        for thing in service.map(Thing(), range(10), buffersize=buffersize):
            kept = [weakref.ref(thing)]
            del thing
            wait_until(partial(all_gone, kept))


def test_map_goes_through_submit() -> None:
    class Counting(Service):
        count = 0

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return super().submit(*args, **kwargs)

    with Counting(2) as service:
        assert list(service.map(int, "123")) == [1, 2, 3]
        assert list(service.map(int, "123", buffersize=1)) == [1, 2, 3]
        assert service.count == 6


def this_thread(_: object) -> Thread:
    return current_thread()


# Collected without shutdown


@pytest.mark.parametrize("buffersize", [None, 3])
def test_the_iterator_of_map_does_not_keep_its_service_alive(buffersize: int | None) -> None:
    service = Service(2, idle_timeout=None)
    iterator = service.map(this_thread, range(5), buffersize=buffersize)
    first = next(iterator)
    reference = weakref.ref(service)
    del service
    gc.collect()
    assert reference() is None
    assert all(ended(thread) for thread in [first, *iterator])
