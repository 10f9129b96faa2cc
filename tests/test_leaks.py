"""Nothing grows: some thousand uses of every kind; `leaks.py` makes a million."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from helpers import FREE_THREADED
from leaks import USES, grows, traced

from boundedexec import Service


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_nothing_grows(use: Callable[[Service], None], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "boundedexec")  # They fail on purpose.
    count = max(2000 // USES[use], 50)
    # What grows, grows each time. Without a GIL the allocator's own needs vary.
    tries = 5 if FREE_THREADED else 2
    found: list[str] = []
    with traced():
        while len(found) < tries and (grown := grows(use, count)):
            found.append(grown)
    assert len(found) < tries, found
