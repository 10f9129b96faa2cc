"""What the points in the instrumented source call, see `instrument`."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

from instrument import Site
from scheduler import MAPPED, Run, mark

_CONTAINERS = {list, deque, dict, OrderedDict, set}


class Mapped:
    """`map`, with a point before each of its steps."""

    def __init__(self, function: Callable[..., Any], *iterables: Any) -> None:
        self._function = function
        self._iterators = [iter(iterable) for iterable in iterables]

    def __iter__(self) -> Mapped:
        return self

    def __next__(self) -> Any:
        values = [next(iterator) for iterator in self._iterators]
        run = Run.current
        if run is not None and type(values[0]) in _CONTAINERS:
            run.touch(values[0], None, self._function is not len, MAPPED)
        return self._function(*values)


class Points:
    """The functions by name, for the points of `sites`."""

    def __init__(self) -> None:
        self.sites: list[Site] = []

    def functions(self) -> dict[str, Callable[..., Any]]:
        return {
            function.__name__: function
            for function in (
                mark, self.after, self.attribute, self.instance_dict, self.get_item,
                self.set_item, self.delete_item, self.method, self.look, self.lazily,
                self.by_name, self.container, self.each, self.spin,
            )
        }  # fmt: skip

    def after(self, value: Any) -> Any:
        """A call has returned `value`."""
        mark()
        return value

    def spin(self, thing: object) -> None:
        """A loop without a body looks at `thing` again."""
        run = Run.mine()
        if run is not None:
            run.spin(thing)

    def attribute(self, of: object, site: int) -> object:
        run = Run.current
        if run is not None:
            _, _, _, name, writes = self.sites[site]
            run.touch(of, name, writes, site)
        return of

    def instance_dict(self, of: object, site: int) -> object:
        run = Run.current
        if run is not None:
            run.keep_dict_of(of)
        return of

    def _touch_item(self, holder: object, index: object, site: int) -> None:
        run = Run.current
        if run is not None and type(holder) in _CONTAINERS:
            writes = self.sites[site].writes
            of = run.dicts.get(id(holder))
            if of is not None:
                run.touch(of, index, writes, site)
            else:
                run.touch(holder, index if isinstance(index, str) else None, writes, site)

    def get_item(self, holder: Any, index: Any, site: int) -> Any:
        self._touch_item(holder, index, site)
        return holder[index]

    def set_item(self, value: Any, holder: Any, index: Any, site: int) -> None:
        self._touch_item(holder, index, site)
        holder[index] = value

    def delete_item(self, holder: Any, index: Any, site: int) -> None:
        self._touch_item(holder, index, site)
        del holder[index]

    def method(self, site: int, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        run = Run.current
        of: object = getattr(function, "__self__", None)
        if run is not None and type(of) in _CONTAINERS:
            if args and isinstance(args[0], str):
                self._touch_item(of, args[0], site)
            else:
                run.touch(of, None, self.sites[site].writes, site)
                if args and type(args[0]) in _CONTAINERS:
                    run.touch(args[0], None, False, site, same=True)
        return function(*args, **kwargs)

    def look(self, site: int, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.container(args[0], site)
        return function(*args, **kwargs)

    def by_name(self, site: int, function: Any, /, *args: Any) -> Any:
        run = Run.current
        if run is not None:
            run.touch(args[0], args[1], self.sites[site].writes, site)
        return function(*args)

    def lazily(self, site: int, function: Any, /, *args: Any) -> Any:
        return self._steps(args[-1], function(*args), site)

    def each(self, thing: Any, site: int) -> Any:
        return self._steps(thing, thing, site)

    def _steps(self, thing: object, iterable: Any, site: int) -> Any:
        """`iterable`, which goes through `thing`: a point before each step."""
        if Run.current is None or type(thing) not in _CONTAINERS:
            return iterable

        def go() -> Iterator[Any]:
            iterator = iter(iterable)
            while True:
                self.container(thing, site)
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                yield item

        return go()

    def container(self, thing: object, site: int) -> object:
        run = Run.current
        # Not a counter, whose numbers only have to differ and to grow.
        if run is not None and type(thing) in _CONTAINERS:
            run.touch(thing, None, self.sites[site].writes, site)
        return thing
