"""The stdlib's waits hold a future's condition, and release what they find there then."""

from __future__ import annotations

import threading
from typing import Any

from helpers import LIMIT, wait_until

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
