"""Nothing grows: some thousand uses of every kind; `leaks.py` makes a million."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable

import pytest
from leaks import USES, grows

from boundedexec import Service


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_nothing_grows(use: Callable[[Service], None], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "boundedexec")  # They fail on purpose.
    count = max(2000 // USES[use], 50)
    tracemalloc.start()
    try:
        # What grows, grows each time. Without a GIL the allocator's own needs vary.
        found = list[str]()
        while len(found) < 5 and (not found or found[-1]):
            found.append(grows(use, count))
    finally:
        tracemalloc.stop()
    assert not found[-1], found
