"""A wait with a timeout ends when it says, in a circle too, and says what it waited for."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any

import pytest
from helpers import LIMIT, AnyFuture, Later, NewService, TimedWait, submit_knowing

import boundedexec

TIMED: dict[str, TimedWait] = {
    "result": lambda future, timeout: future.result(timeout),
    "exception": lambda future, timeout: future.exception(timeout),
    "as_completed": lambda future, timeout: list(boundedexec.as_completed([future], timeout)),
}

every_timed_wait = pytest.mark.parametrize("wait", TIMED.values(), ids=TIMED)


@every_timed_wait
def test_a_timeout_on_what_runs_does_not_blame_the_slots(
    new_service: NewService, wait: TimedWait
) -> None:
    service, gate, entered = new_service(2), threading.Event(), threading.Event()
    running = service.submit(lambda: entered.set() or gate.wait())  # type: ignore[func-returns-value]
    assert entered.wait(LIMIT)

    def body() -> str:
        with pytest.raises(concurrent.futures.TimeoutError) as caught:
            wait(running, 0.01)
        return str(caught.value)

    message = service.submit(body).result(LIMIT)
    gate.set()
    assert "yield_slot" not in message


@every_timed_wait
def test_a_wait_with_a_timeout_is_served_by_another_slot(
    new_service: NewService, wait: TimedWait
) -> None:
    service = new_service(2)
    service.submit(lambda: wait(service.submit(int), LIMIT)).result(LIMIT)


@every_timed_wait
def test_a_circle_with_a_timeout_in_it_ends_by_itself(
    new_service: NewService, wait: TimedWait
) -> None:
    service = new_service(2)
    alice, bob = Later(), Later()

    def patient() -> Any:
        return bob.get().result()

    def hasty() -> str:
        with pytest.raises(concurrent.futures.TimeoutError):
            wait(alice.get(), 0.03)
        return "gave up"

    alice.set(service.submit(patient))
    bob.set(service.submit(hasty))
    assert alice.get().result(LIMIT) == "gave up"

    def alone(me: AnyFuture) -> None:
        with pytest.raises(concurrent.futures.TimeoutError):
            wait(me, 0.01)

    submit_knowing(service, alone).result(LIMIT)
