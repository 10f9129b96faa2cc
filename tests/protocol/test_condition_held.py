"""The stdlib's waits hold a future's condition, and release what they find there then."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest
from helpers import LIMIT, wait_until

import boundedexec
from boundedexec import Service


def test_a_thread_that_holds_the_condition_of_what_ends_does_not_call_back() -> None:
    gate, called = threading.Event(), list[str]()

    def callback(_: object) -> None:
        called.append(threading.current_thread().name)

    with Service(1, "worker") as service:
        future: Any = service.submit(gate.wait, LIMIT)
        future.add_done_callback(callback)
        future._condition.acquire()
        gate.set()
        wait_until(lambda: future.state == "ENDING")
        future._condition.release()
    assert called == ["worker_0"]


@pytest.mark.parametrize("kind", [boundedexec.Future, Future])
def test_who_holds_a_condition_may_take_the_lock_of_the_slow_path(
    kind: type[Future[None]],
) -> None:
    """The stdlib's `wait` holds it, and the garbage collector may end a service there."""
    awaited: Any = kind()
    with Service(3) as service, Service(1) as another:
        first = service.submit(boundedexec.wait, [awaited])
        wait_until(lambda: awaited._waiters)
        awaited._condition.acquire()
        try:
            others = [service.submit(first.result)]
            if kind is boundedexec.Future:  # Another's is asked for no lock of this package.
                others.append(service.submit(awaited.result))
            wait_until(lambda: all(other.running() for other in others))
            time.sleep(0.01)  # They come to it; later, this tests nothing.
            # In another thread: that of the test is to go on.
            ending = threading.Thread(target=another.shutdown, kwargs={"wait": False}, daemon=True)
            ending.start()
            ending.join(LIMIT)
            assert not ending.is_alive()
        finally:
            awaited._condition.release()
            awaited.set_result(None)
        for body in (first, *others):
            body.result(LIMIT)
