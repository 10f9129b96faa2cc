"""How a body blocks: it stands in the graph, lends, and has its slot again at the end."""

from __future__ import annotations

import sys
import threading
import time

from .describing import describe
from .graph import Node, graph, is_queued
from .lending import lend_for, withdraw
from .locking import exactly, guard, headroom
from .slots import give_up_slot, hand_out, look
from .state import Worker, current_body, current_worker
from .submission import clock


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
        worker: Worker | None = current_worker.get()
        if worker is not None and deadline is None:
            worker.may_wait(node)
        node.listen()
        while not node.over() and node.lock.acquire(True, seconds_left(deadline)):
            pass
        return node.over()
    headroom()
    node.frame = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    try:
        circle = _block(node, body, deadline)
        if not circle:
            return node.over()
        exactly(body.slots.count_circle)
        names = " -> ".join(describe(each.worker, each.frame) for each in circle)
        del circle
    finally:
        node.frame = None
        del node, body  # A traceback may hold this frame.
    raise DeadlockError(f"this wait could never end: the bodies wait in a circle, {names}")


def _block(node: Node, body: Worker, deadline: float | None) -> list[Node]:
    """Block as a body; the circle that this closes, if it could never end."""
    node.timed = deadline is not None
    had_slot = body.slot
    try:
        body.slots.recorder.waits(body, node)
        if not is_queued(node.single):
            node.listen()
        while (circle := _enter(node, body)) is None:
            node.listen()
        while not (circle or node.over()):
            if node.line is not None:
                line, node.line = node.line, None
                line.advance()
            if not node.lock.acquire(True, seconds_left(deadline)) or node.over():
                break
            node.listen()
            with guard.lock:
                if node.error is not None:
                    raise type(node.error)(*node.error.args) from node.error
                had_slot = had_slot or body.slot
                if body.slot or node.changed:
                    circle = lend_for(node)
        return circle or []
    finally:
        _leave(node, body, deadline, had_slot)
        body.slots.recorder.goes_on(body)
        del node, body  # A traceback may hold this frame.


def _enter(node: Node, body: Worker) -> list[Node] | None:
    with guard.lock:
        graph.enter(node, body)
        circle = lend_for(node)
        if circle is None:
            graph.leave(node, body)
    return circle


def _leave(node: Node, body: Worker, deadline: float | None, had_slot: bool) -> None:
    with guard.lock:
        graph.leave(node, body)
        late = deadline is not None and not node.over()
        # What it waits for had to be lent a slot, or has none yet.
        if late and (body.lend is not None or any(map(is_queued, node.pending))):
            body.slots.late += 1
        # Without one from the start, its slot is yielded, or with an earlier borrower.
        if body.slot or withdraw(body) or not had_slot:  # explore: leave-withdraws
            return
        if late and body.lend is not None:
            return
    resume(body, deadline)  # explore: leave-resumes


class _WaitForSlot(Node):
    resumes = True
    listening = True

    def over(self) -> bool:
        return self.worker.slot


def resume(body: Worker, deadline: float | None = None) -> None:
    """Return when `body` has a slot again. Goes before what has not started.

    With a `deadline`, it goes on without one then, if its own is still lent.
    """
    slots = body.slots
    node = _WaitForSlot()
    try:
        with guard.lock:
            if body.slot:
                return  # What it had lent came back in this moment.  # explore: resume-came-back
            if body.lend is None:
                deadline = None
            slots.resuming[body] = None
            graph.enter(node, body)
            # After it stands there: who frees a slot from now on sees it.
            hand_out(slots)  # explore: resume-looks
            try:
                lend_for(node)
            except RuntimeError:
                pass  # No thread for what it could lend; it goes on waiting.
            slots.recorder.resumes(body)
        while not body.slot and node.lock.acquire(True, seconds_left(deadline)):
            pass
    finally:
        with guard.lock:
            graph.leave(node, body)
            slots.resuming.pop(body, None)


class SlotYielded:
    """`yield_slot` as a `with` block; for one body, and one block at a time."""

    def __init__(self, body: Worker | None) -> None:
        self._body = body
        self._future = None if body is None else body.future

    def __enter__(self) -> None:
        headroom()
        body = self._body
        if body is None or not (body.slot or body.lend is not None):
            self._body = None  # Nested, the slot is given away already.
            return
        with guard.lock:
            body.moved = clock()
            body.lend = None  # Its borrower keeps what it had lent.
            body.slots.unslotted.add(body)  # explore: yield-unslotted
            if body.slot:
                give_up_slot(body)  # explore: yield-frees
        body.slots.recorder.yielded(body)
        look(body.slots)  # explore: yielded-so-look

    def __exit__(self, *exception: object) -> None:
        body, future = self._body, self._future
        self._body = self._future = None
        try:
            # The block may outlive its body, in a generator that something keeps.
            if body is not None and current_body() is body and body.future is future:
                resume(body)
                body.slots.recorder.resumed(body)
        finally:
            del exception, body, future
