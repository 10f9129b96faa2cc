"""How a body blocks: it stands in the graph, lends, and has its slot again at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from .describing import describe
from .graph import Node, graph
from .lending import CannotEnd, go_on, seek, withdraw
from .locking import guard, headroom
from .slots import close_lend, free_slot, look, serve_resuming
from .state import Slots, Worker, current_body
from .submission import clock

T = TypeVar("T")


class DeadlockError(RuntimeError):
    """A wait that could never end: bodies that wait for each other in a circle.

    Raised from the wait that closes the circle. The message names each body, its
    arguments shortened, its thread and the line where it waits.
    """


def seconds_left(deadline: float | None) -> float:
    """What a lock's `acquire` takes: -1 for ever."""
    if deadline is None:
        return -1
    return min(max(deadline - time.monotonic(), 0), threading.TIMEOUT_MAX)


def block(node: Node, deadline: float | None) -> bool:
    """Block until `node` is over or `deadline` has passed; whether it is over.

    In a body it lends the slot, and returns with it; but where the time ran out while the
    borrower executes, the slot comes back when that is over.
    """
    body = current_body()
    if body is None:
        while not node.over() and node.lock.acquire(True, seconds_left(deadline)):
            pass
        return node.over()
    headroom()
    try:
        _block(node, body, deadline)
    except CannotEnd as error:
        circle = error.circle
    else:
        return node.over()
    if body.slots.recorder is not None:
        body.slots.recorder.refused_circle()
    node.frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    names = " -> ".join(describe(each.worker, each.frame) for each in circle)
    node.frame = None
    del node, body, circle  # The traceback holds this frame.
    raise DeadlockError(f"this wait could never end: the bodies wait in a circle, {names}")


def _block(node: Node, body: Worker, deadline: float | None) -> None:
    before = body.node
    node.timed = deadline is not None
    node.frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    had_slot = body.slot
    try:
        with guard.lock:
            graph.enter(node, body)
            if body.slots.recorder is not None:
                body.slots.recorder.waits(body, node)
            _look(seek, node, body, before)
        while not node.over() and node.lock.acquire(True, seconds_left(deadline)):
            if node.over():
                break
            with guard.lock:
                if node.error is not None:
                    raise type(node.error)(*node.error.args) from node.error
                had_slot = had_slot or body.slot
                if body.slot or node.changed:
                    _look(go_on, node, body, before)
    finally:
        node.frame = None
        _leave(node, body, before, deadline, had_slot)
        if body.slots.recorder is not None:
            body.slots.recorder.goes_on(body)
        del node, body, before  # A traceback may hold this frame.


def _look(
    step: Callable[[Node], None], node: Node, body: Worker, before: Node | None
) -> None:
    """Lend where that helps; a wait that can never end leaves the graph, under the lock.

    Of several that close a circle, the others need not raise then.
    """
    try:
        if not node.over():
            step(node)
    except CannotEnd:
        graph.leave(body, before)
        raise


def _leave(
    node: Node, body: Worker, before: Node | None, deadline: float | None, had_slot: bool
) -> None:
    with guard.lock:
        graph.leave(body, before)
        # Without one from the start, its slot is yielded, or with an earlier borrower.
        if body.slot or not had_slot:
            return
        if body.lend is not None and withdraw(body):  # explore: leave-withdraws
            return
        body.slots.unslotted.add(body)
        if deadline is not None and body.lend is not None and not node.over():
            if body.slots.recorder is not None:
                body.slots.recorder.ran_out()
            return
    resume(body, deadline)  # explore: leave-resumes


class _WaitForSlot(Node):
    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.pending = {}
        self.wants = slots

    def over(self) -> bool:
        return self.worker is not None and self.worker.slot


def resume(body: Worker, deadline: float | None = None) -> None:
    """Return when `body` has a slot again. Goes before what has not started.

    With a `deadline`, it goes on without one then, if its own is still lent.
    """
    slots = body.slots
    if body.lend is None:
        deadline = None
    before = body.node
    node = _WaitForSlot(slots)
    with guard.lock:
        if body.slot:
            return  # What it had lent came back in this moment.  # explore: resume-came-back
        slots.unslotted.add(body)
        slots.resuming.append(body)
        graph.enter(node, body)
        # After it stands there: who frees a slot from now on sees it.
        serve_resuming(slots)  # explore: resume-looks
        if not body.slot:
            try:
                seek(node)
            except RuntimeError:
                pass  # No thread for what it could lend; it goes on waiting.
            if slots.recorder is not None:
                slots.recorder.resumes(body)
    try:
        while not body.slot and node.lock.acquire(True, seconds_left(deadline)):
            pass
    finally:
        with guard.lock:
            graph.leave(body, before)
            if not body.slot:
                slots.resuming.remove(body)


def give_away(body: Worker) -> None:
    """Give the slot of `body` to the next in line."""
    slots = body.slots
    with guard.lock:
        close_lend(body)
        body.moved = clock()
        slots.unslotted.add(body)  # explore: yield-unslotted
        if body.slot:
            body.slot = False
            free_slot(slots)  # explore: yield-frees
    if slots.recorder is not None:
        slots.recorder.yielded(body)
    look(slots)  # explore: yielded-so-look


class SlotYielded:
    """`yield_slot` as a `with` block; for one body, and one block at a time."""

    def __init__(self, slots: Slots, body: Worker | None) -> None:
        self._slots = slots
        self._body = body
        self._future = None if body is None else body.future

    def __enter__(self) -> None:
        headroom()
        body = self._body
        # Nested, the slot is given away already.
        if body is None or not (body.slot or body.lend is not None):
            self._body = None
        else:
            give_away(body)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        body = self._body
        self._body = None
        try:
            # The block may outlive its body, in a generator that something keeps.
            if body is not None and current_body() is body and body.future is self._future:
                resume(body)
                if body.slots.recorder is not None:
                    body.slots.recorder.resumed(body)
        finally:
            self._future = None
            del exception, traceback, body
