"""A `__del__` may wait at any place of a wait. Here it does at a place that is chosen."""

from __future__ import annotations

import threading
from typing import Any

from helpers import LIMIT

from boundedexec import Service
from boundedexec._core.blocking import block
from boundedexec._core.graph import Node


class _SlotIsBack(Node):
    """A wait until what its body had lent has come back."""

    def over(self) -> bool:
        return self.worker.slot


class _Interrupted(Node):
    """A wait for a future; between a look whether that is over and the sleep there is
    another wait, in which the future ends and the slot comes back."""

    def __init__(self, future: Any, lent: threading.Event) -> None:
        super().__init__()
        self.single = future
        self.pending = {future: None}
        self._lent = lent

    def over(self) -> bool:
        over = bool(self.single.done())
        if self.worker.lend is not None and not self._lent.is_set():
            self._lent.set()
            block(_SlotIsBack(), None)
        return over


def test_what_rings_a_wait_in_a_wait_is_heard_by_the_outer_one_too() -> None:
    with Service(1) as service:
        lent = threading.Event()

        def outer() -> bool:
            inner = service.submit(lent.wait, LIMIT)
            return block(_Interrupted(inner, lent), None)

        assert service.submit(outer).result(LIMIT)
