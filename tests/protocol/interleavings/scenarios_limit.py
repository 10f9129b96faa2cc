"""A group's limit: who hands over the next, beside submits, ends and cancels; past the limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scenarios import scenario
from scheduler import declare
from world import World, same


class _Line:
    """A line of `limit` on a service, and how many of it execute."""

    def __init__(self, world: World, slots: int, limit: int = 1) -> None:
        self.world = world
        self.service = world.service(slots)
        self.limiter = world.package.Limiter(self.service, limit)
        self.limit = limit
        self.executing = 0

    def submit(self, name: str, inside: Callable[[], Any] = lambda: None) -> Any:
        def body() -> Any:
            declare(self)
            self.executing += 1
            assert self.executing <= self.limit, "the limit was exceeded"
            try:
                return inside()
            finally:
                declare(self)
                self.executing -= 1

        call = self.world.body(name, body)
        future = self.limiter.make(call, (), {}, lambda: None)
        self.limiter.put(future)
        return self.world.accept(future)

    def waits_for(self, future: Any) -> Any:
        """In a body of the line: it executes no more, until it has what it waits for."""
        declare(self)
        self.executing -= 1
        value = self.world.without_slot(future.result)
        declare(self)
        self.executing += 1
        return value


@scenario(2, 2)
def limited_beside_an_end(world: World) -> None:
    """One is put in line while the one before it ends: it is handed over, and in order."""
    line = _Line(world, 2)
    for name in ("first", "second", "third"):
        line.submit(name)
    world.after.append(lambda: same(world.ended, ["first", "second", "third"]))


@scenario(2, 2)
def limited_by_two(world: World) -> None:
    """Two threads put one in line each: both are handed over, one after the other."""
    line = _Line(world, 2)
    world.thread(lambda: line.submit("other"))
    line.submit("own")
    world.after.append(lambda: same(sorted(world.ended), ["other", "own"]))


@scenario(2, 2)
def limited_and_cancelled(world: World) -> None:
    """One is cancelled while it is handed over, starts or ends: the next has its place."""
    line = _Line(world, 1)
    first = line.submit("first")
    second = line.submit("second")
    world.thread(first.cancel)
    second.result()
    declare(world)
    assert world.ended in (["second"], ["first", "second"])


@scenario(2, 2)
def limited_and_cancelled_in_line(world: World) -> None:
    """One is cancelled in line while those before it end: those after it go on."""
    line = _Line(world, 1)
    line.submit("first")
    second = line.submit("second")
    third = line.submit("third")
    world.thread(second.cancel)
    third.result()
    declare(world)
    assert world.ended in (["first", "third"], ["first", "second", "third"])


@scenario(2, 2)
def limited_and_waited_for(world: World) -> None:
    """A body of the only slot waits for the last in line: each before it is lent the slot."""
    line = _Line(world, 1)

    def body() -> None:
        line.submit("first")
        second = line.submit("second")
        world.without_slot(second.result)

    world.submit("body", body)
    world.after.append(lambda: same(world.ended, ["first", "second", "body"]))


@scenario(2, 2)
def limited_and_nested(world: World) -> None:
    """A body waits for one in line behind it, beside another submit: it goes past the limit."""
    line = _Line(world, 2)

    def body() -> None:
        line.waits_for(line.submit("inner"))

    line.submit("outer", body)
    line.submit("other")
    world.after.append(lambda: same(len(world.ended), 3))
