"""The package under the scheduler's control: a copy of it for one mode."""

from __future__ import annotations

import builtins
import concurrent.futures._base
import functools
import itertools
import logging
import os
import sys
import threading
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import instrument
from points import Mapped, Points
from scheduler import Lock, LockedEvent, RLock, Run

#: Another copy can be explored, to try a change.
SOURCE = Path(os.environ.get("EXPLORED", Path(__file__).parents[3] / "boundedexec"))
#: The modules of the package, dependencies first.
MODULES = [
    *(
        f"_core.{name}"
        for name in (
            "recording", "debugging", "reporting", "locking", "threads", "submission",
            "state", "describing", "contexts", "graph", "slots", "lending", "blocking",
            "stdlib_waits", "future", "waits", "outstanding", "loop", "pool", "runs", "wrapping",
        )
    ),
    "checking",
    "service",
    "coalescer",
    "limiting",
]  # fmt: skip
#: Those without points: what threads share in them is touched by one, or in single steps.
PLAIN = {
    "checking",
    *(
        f"_core.{name}"
        for name in (
            "recording", "debugging", "reporting", "threads", "describing", "contexts", "wrapping",
        )
    ),
}  # fmt: skip
MODES: tuple[str, ...] = ("gil", "free")


class _Thread:
    """What the package's threads use of `threading.Thread`."""

    def __init__(self, *, name: str, daemon: bool) -> None:
        self.name = name
        self.ident = None
        self._started = SimpleNamespace(set=int, is_set=lambda: True)


def _silent(name: str) -> logging.Logger:
    logger = logging.Logger(name)
    logger.addHandler(logging.NullHandler())
    return logger


def _ignored(_: object) -> None:
    """What is to be called at exit is not, and what a worker is ended by is not printed."""


def _ident() -> int:
    run = Run.current
    return 0 if run is None else run.running.number + 1


def _threading() -> Any:
    table: dict[int, Any] = {}
    main = object()
    return SimpleNamespace(
        RLock=RLock,
        Lock=Lock,
        Thread=_Thread,
        Event=LockedEvent,
        Condition=lambda: threading.Condition(RLock()),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        TIMEOUT_MAX=threading.TIMEOUT_MAX,
        _active=table,
        _register_atexit=_ignored,
        current_thread=lambda: table.get(_ident(), main),
        main_thread=lambda: main,
        getprofile=lambda: None,
        gettrace=lambda: None,
        excepthook=_ignored,
        ExceptHookArgs=tuple,
        __file__=threading.__file__,
    )


def _stdlib_futures(replaced: Mapping[str, Any]) -> Any:
    """`concurrent.futures`, whose waits take their locks in an order that is repeatable."""
    module = types.ModuleType("concurrent.futures._base")
    source = Path(concurrent.futures._base.__file__)

    def import_(name: str, *args: Any) -> Any:
        return replaced.get(name) or builtins.__import__(name, *args)

    vars(module)["__builtins__"] = {**vars(builtins), "__import__": import_}
    vars(module)["id"] = lambda future: getattr(future, "serial", 0) or id(future)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    exec(compile(source.read_text(encoding="utf-8"), str(source), "exec"), vars(module))
    rooms: Any = module
    broken = type("BrokenThreadPool", (rooms.BrokenExecutor,), {})
    return SimpleNamespace(
        **{name: value for name, value in vars(module).items() if not name.startswith("__")},
        __file__=str(source.parent / "__init__.py"),
        _base=rooms,
        ThreadPoolExecutor=concurrent.futures.ThreadPoolExecutor,
        thread=SimpleNamespace(BrokenThreadPool=broken),
    )


class Package:
    """One instrumented copy of the package, with a GIL or without."""

    def __init__(self, mode: str, sources: Mapping[str, str] | None = None) -> None:
        self.gil = mode == "gil"
        points = Points()
        #: Whether a thread cannot be started now.
        self.fails_to_start: Callable[[], bool] = lambda: False
        compiled, points.sites = _compiled() if sources is None else _compile(sources)
        self.sites = points.sites
        functions = {f"__{name}__": each for name, each in points.functions().items()}
        rooms: dict[str, Any] = {
            **instrument.load(
                "instrumented", compiled, {**functions, "map": Mapped}, self._replaced()
            )
        }
        self.rooms = SimpleNamespace(**rooms)
        # In sets, in an order that is repeatable.
        self._numbers = itertools.count()
        for kind in rooms["submission"].Submission, rooms["threads"].ListedThread:
            kind.__hash__ = lambda thing: self._hash(thing)  # pyright: ignore[reportUnknownLambdaType]
        #: Whether a done-callback was called under the lock of the slow path.
        self.called_locked = False
        call_one = rooms["submission"].Submission.call_one

        def look_and_call(future: Any, callback: Any) -> None:
            self.called_locked |= self.rooms.locking.guard.lock.is_mine()
            call_one(future, callback)

        rooms["submission"].Submission.call_one = look_and_call
        self.Service = rooms["service"].Service
        self.Coalescer = rooms["coalescer"].Coalescer
        self.Limiter = rooms["limiting"].Limiter
        self.Future = rooms["future"].Future

    def _replaced(self) -> dict[str, Any]:
        """What the package gets where it imports these."""
        # The newest Python, as far as the package asks.
        fake_sys = SimpleNamespace(**vars(sys))
        fake_sys.version_info = (3, 14)
        fake_sys._current_frames = dict
        fake_threading = _threading()
        self.stdlib = _stdlib_futures({"threading": fake_threading})
        return {
            "_thread": SimpleNamespace(
                RLock=RLock,
                allocate_lock=Lock,
                get_ident=_ident,
                get_native_id=_ident,
                start_new_thread=self._start,
                start_joinable_thread=self._start_joinable,
                _make_thread_handle=_ignored,
            ),
            "concurrent": SimpleNamespace(futures=self.stdlib),
            "concurrent.futures": self.stdlib,
            "concurrent.futures.thread": self.stdlib.thread,
            # What is logged, the scenarios provoke.
            "logging": SimpleNamespace(getLogger=_silent),
            # Nothing forks.
            "os": SimpleNamespace(path=os.path, sep=os.sep, cpu_count=os.cpu_count),
            "sys": fake_sys,
            "sysconfig": SimpleNamespace(get_config_var=lambda _: int(not self.gil)),  # pyright: ignore[reportUnknownLambdaType]
            "threading": fake_threading,
        }

    def _hash(self, thing: Any) -> int:
        number: int = vars(thing).setdefault("_number", next(self._numbers))  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return number  # pyright: ignore[reportUnknownVariableType]

    def _start(self, function: Callable[..., object], args: tuple[Any, ...]) -> int:
        run = Run.current
        assert run is not None
        if self.fails_to_start():
            raise RuntimeError("can't start new thread")
        worker = getattr(function, "__self__", None)
        number = sum(task.worker is not None for task in run.tasks) + 1
        run.spawn(function, args, f"worker {number}", worker)
        return 0

    def _start_joinable(self, function: Callable[..., object], *, daemon: bool) -> int:
        return self._start(function, ())

    def reset(self) -> None:
        """Forget what an execution that was broken off has left."""
        self._numbers = itertools.count()
        self.called_locked = False
        self.rooms.pool._everything.slots.clear()
        for values in self.rooms.state.current_worker, self.rooms.pool.admitting:
            values.forget()
        self.rooms.locking.guard.renew()
        self.rooms.graph.graph.forget()
        self.fails_to_start = lambda: False


def _compile(
    sources: Mapping[str, str],
) -> tuple[dict[str, types.CodeType], list[instrument.Site]]:
    return instrument.instrument(sources, PLAIN)


@functools.cache
def _compiled() -> tuple[dict[str, types.CodeType], list[instrument.Site]]:
    """The package as it is."""
    return _compile(instrument.read(SOURCE, MODULES))
