"""A slot is lent where it starts something, not where another one does so already."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import LIMIT, NewService

from boundedexec._core import lending
from boundedexec._core.state import Lend

DEPTH = 200


def test_a_chain_of_waits_lends_once_for_each_level(
    new_service: NewService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The bodies at the top hold slots, and wait for what leads to each new submission. When
    # one of their slots came back unused it was lent to the next, at every level: the cost
    # of a chain was the square of its depth.
    service = new_service(8)
    lent: list[Any] = []

    class Counted(Lend):
        def __init__(self, lender: Any, future: Any) -> None:
            super().__init__(lender, future)
            lent.append(self)

    monkeypatch.setattr(lending, "Lend", Counted)

    def body(level: int) -> int:
        return service.submit(body, level + 1).result() if level < DEPTH else level

    for _ in range(3):
        assert service.submit(body, 1).result(LIMIT) == DEPTH
    assert len(lent) <= 3 * (DEPTH + 16)
