"""A slot is lent where it starts something, not where another one does so already."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import LIMIT, NewService

from boundedexec._core import lending

DEPTH = 200


def test_a_chain_of_waits_lends_once_for_each_level(
    new_service: NewService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The bodies at the top hold slots, and wait for what leads to each new submission. When
    # one of their slots came back unused it was lent to the next, at every level: the cost
    # of a chain was the square of its depth.
    service = new_service(8)
    lent: list[object] = []
    lend_to_queued = lending.lend_to_queued

    def counting(lender: Any, future: Any) -> None:
        lent.append(future)
        lend_to_queued(lender, future)

    monkeypatch.setattr(lending, "lend_to_queued", counting)

    def body(level: int) -> int:
        return service.submit(body, level + 1).result() if level < DEPTH else level

    for _ in range(3):
        assert service.submit(body, 1).result(LIMIT) == DEPTH
    assert len(lent) <= 3 * (DEPTH + 16)
