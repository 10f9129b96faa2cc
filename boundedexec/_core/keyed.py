"""A table of what is in flight, by key; taking something out calls no user code.

Not a dictionary by keys: there, to take out one key can mean to compare it with another of
the same hash, and that may raise when nobody is there to hear of it. Here keys are grouped
by hash, and what is taken out is found by identity.

Nothing is called between a look and the change that relies on it, so with a GIL neither a
thread nor a signal handler comes in between. Without one it is used under a lock.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar


class Entry(Protocol):
    key: Any
    hash: int


E = TypeVar("E", bound=Entry)


class Keyed(Generic[E]):
    """Entries by their `key`, of which `hash` is the hash."""

    def __init__(self) -> None:
        #: By hash. Tuples are replaced, never changed, and never empty.
        self._groups: dict[int, tuple[E, ...]] = {}

    def find_or_enter(self, entry: E) -> E:
        """The entry with an equal key, which is `entry` itself where there was none.

        Raises what a key's `__eq__` raises, and changes nothing then.
        """
        number = entry.hash
        groups = self._groups
        while True:
            group = groups.get(number)
            if group is None:
                if number not in groups:
                    groups[number] = (entry,)
                    return entry
                continue
            found = _find(group, entry.key)
            if found is not None:
                return found
            if number in groups and groups[number] is group:  # explore: key-entered-once
                groups[number] = (*group, entry)
                return entry

    def find(self, number: int, key: object) -> E | None:
        """The entry with that key, of which `number` is the hash."""
        return _find(self._groups.get(number, ()), key)

    def has(self, entry: E) -> bool:
        """Whether this very entry is in it."""
        return any(other is entry for other in self._groups.get(entry.hash, ()))

    def leave(self, entry: E, successor: E | None = None) -> None:
        """Take `entry` out, or have `successor`, which has the same key, in its place.

        Harmless when repeated.
        """
        groups, number = self._groups, entry.hash
        while True:
            group = groups.get(number, ())
            others = tuple([other for other in group if other is not entry])
            if len(others) == len(group):
                return
            if successor is not None:
                others = (*others, successor)
            if number in groups and groups[number] is group:  # explore: key-left-once
                if others:
                    groups[number] = others
                else:
                    del groups[number]
                return

    def __len__(self) -> int:
        return sum(map(len, list(self._groups.values())))


def _find(group: tuple[E, ...], key: object) -> E | None:
    for entry in group:
        if entry.key is key or entry.key == key:
            return entry
    return None
