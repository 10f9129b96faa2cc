"""What nested waits cost grows with how deep they nest, not with how much is queued."""

from __future__ import annotations

import threading
import time

import pytest
from helpers import LIMIT, NewService

import boundedexec


def test_a_thousand_nested_waits_finish_on_two_slots(new_service: NewService) -> None:
    service = new_service(2)

    def level(n: int) -> int:
        return 1 + service.submit(level, n - 1).result() if n else 0

    assert service.submit(level, 1000).result(LIMIT) == 1000


def test_a_deep_chain_across_two_services_finishes(new_service: NewService) -> None:
    services = [new_service(1), new_service(2)]

    def level(n: int) -> int:
        return 1 + services[n % 2].submit(level, n - 1).result() if n else 0

    assert services[1].submit(level, 300).result(LIMIT) == 300


def test_a_wide_tree_of_waits_finishes_on_few_threads(new_service: NewService) -> None:
    service, threads = new_service(2), set[int]()

    def fibonacci(n: int) -> int:
        threads.add(threading.get_ident())
        if n < 2:
            return n
        children = [service.submit(fibonacci, n - back) for back in (1, 2)]
        return sum(child.result() for child in children)

    assert service.submit(fibonacci, 14).result(LIMIT) == 377
    # Twelve hundred bodies, thirteen waits deep.
    assert len(threads) < 60


def test_a_wait_for_many_own_submissions_is_not_quadratic(new_service: NewService) -> None:
    service = new_service(1)

    def seconds(count: int) -> float:
        futures = [service.submit(int) for _ in range(count)]
        start = time.process_time()  # What other processes do is not asked.
        boundedexec.wait(futures)
        return time.process_time() - start

    def times(count: int) -> list[float]:
        return [service.submit(seconds, count).result(LIMIT) for _ in range(3)]

    # The slowest and the best: without a GIL a wait takes a third of its usual time where
    # its threads happen not to get in each other's way.
    few, many = max(times(1000)), min(times(8000))
    assert many < 30 * few, "eight times as many take eight times as long, not sixty-four"


@pytest.mark.timeout(180)  # Ten seconds, on a machine with nothing else to do.
def test_a_hundred_thousand_bodies_that_wait_need_few_threads(new_service: NewService) -> None:
    service = new_service(4, idle_timeout=None)  # So those ever started are those at once.
    threads: list[str] = []
    seen = threading.local()
    begin = time.monotonic()

    def count() -> None:
        if not hasattr(seen, "after"):
            seen.after = time.monotonic() - begin
            threads.append(f"{threading.current_thread().name} after {seen.after:.2f} s")

    def inner(n: int) -> int:
        count()
        return n

    def outer(n: int) -> int:
        count()
        return service.submit(inner, n).result()

    futures = [service.submit(outer, n) for n in range(100_000)]
    assert service.block_till_done(150)
    assert sum(future.result(0) for future in futures) == sum(range(100_000))
    assert len(threads) <= 16, threads
