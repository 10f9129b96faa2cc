"""TaskGroup: a part of what an executor does is waited for, cancelled and collected as one.

A thread notes the failure of a body on its way out, before it takes what is queued behind.
Nothing is locked: who adds to what another thread looks through looks itself afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from ._core.blocking import DeadlockError
from ._core.waits import wait
from .limiting import Call, Line
from .service import Service, slots_of

if TYPE_CHECKING:
    from typing import Self

    from .async_block import AsyncBlock

P = ParamSpec("P")
T = TypeVar("T")
#: After `bool` alone, type checkers take a block to end anywhere.
_Handled: TypeAlias = "bool | None"
#: What is raised bare.
_BARE = KeyboardInterrupt, SystemExit, GeneratorExit
#: So many are waited for at once; most of those behind them end meanwhile.
_CHUNK = 100


class _Refused(RuntimeError, CancelledError):
    """What `submit` raises in a cancelled group: a body that ends with it was cancelled."""


class TaskGroup:
    """Waits at the end of its `with` block for all that was submitted to it.

    Args:
        executor: any `concurrent.futures.Executor`. Several groups may share one.
        limit: so many of the group's submissions are with the executor at most; the others
            wait here, in order. Each that is there takes a waiting thread, fails with what
            the executor's `submit` raises, and is cancelled by the group alone: it fails
            with `CancelledError`. On a `Service`, a body lends its place to one it waits for.
        timeout: seconds for the block as a whole. Then the group is cancelled, and the end
            raises `TimeoutError`, beside failures, without waiting for what runs.

    The end waits for what the block and the bodies submit (done-callbacks may be too late, and
    `submit` raises); in a body it lends the slot. The first failure of a body, an exception in
    the block, or a Ctrl-C there or at the end cancels the group: what has not started is
    cancelled, what runs is waited for. (A second Ctrl-C does not wait.) Then the end raises an
    `ExceptionGroup` of all failures in order of submission, the block's own last, but
    `KeyboardInterrupt` and `SystemExit` bare; `DeadlockError` if it could never come. A body
    that ends with `CancelledError`, or with what `submit` raises in a cancelled group, was
    cancelled, and did not fail.

    The block of a thread is not interrupted: `submit`, `cancelled` and the end look. That of a
    coroutine, `async with`, is, where it awaits; no thread waits for it. Raises `TypeError` or
    `ValueError` for arguments that are none of these. After asyncio's `TaskGroup`, trio's
    nursery, and Go's `errgroup`, whose `SetLimit` blocks.
    """

    def __init__(
        self, executor: Executor, *, limit: int | None = None, timeout: float | None = None
    ) -> None:
        if not callable(getattr(executor, "submit", None)):
            raise TypeError(f"a TaskGroup needs an executor with submit, not {executor!r}")
        if timeout is not None and not hasattr(timeout, "__float__"):
            raise TypeError(f"timeout must be seconds or None, not {timeout!r}")
        # Whether bodies are executed here. (A subclass of the stdlib's may do so elsewhere.)
        self._here = type(executor) is ThreadPoolExecutor or (
            isinstance(executor, Service) and slots_of(executor).executes
        )
        self._line = None if limit is None else Line(executor, limit)
        self._submit: Callable[..., Future[Any]] = (self._line or executor).submit
        self._timeout = None if timeout is None else float(timeout)
        self._call: Call | None = None  # The last one: mostly there is one callable for all.
        self._deadline: float | None = None  # On the monotonic clock.
        self._expired = self._cancelled = False
        self._closed: str | None = "has not been entered"  # Why `submit` refuses.
        self._futures: list[Future[Any]] = []  # All that was submitted, in order.
        self._block: AsyncBlock | None = None  # Where it is a coroutine's.

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submit `fn(*args, **kwargs)` to the executor, or put it in line for that.

        Blocks only if the executor's `submit` does. Raises what that raises; `RuntimeError`
        outside the block and when the group is cancelled; `TypeError` if `fn` is no callable.
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {fn!r}")
        if self._closed is not None:
            raise RuntimeError(f"this TaskGroup {self._closed}")
        if self._cancelled or (self._deadline is not None and self.cancelled):
            raise _Refused("this TaskGroup is cancelled")
        call: Any = fn  # Itself where bodies are executed elsewhere, so that it pickles.
        if self._here:
            call = self._call
            if call is None or call.func is not fn:
                call = self._call = Call(fn, self._note)
        future = self._submit(call, *args, **kwargs) if kwargs else self._submit(call, *args)
        if not self._here or self._line is not None:  # Whose own failures nothing else notes.
            future.add_done_callback(lambda over: self._note(_failure(over)))
        self._futures.append(future)
        if self._cancelled:  # It is known, so look.
            future.cancel()
        return future

    def _note(self, error: BaseException | None) -> None:
        """A body has ended with `error`."""
        if error is not None and not isinstance(error, CancelledError):
            if not self._cancelled:
                self.cancel()
            if self._block is not None:
                self._block.interrupt()

    def cancel(self) -> None:
        """Cancel what has not started; the block's end waits for what runs, and raises
        nothing for this. Never blocks but for done-callbacks; may be called from anywhere."""
        self._cancelled = True
        for future in self._futures.copy():
            future.cancel()
        if self._line is not None:
            self._line.cancel()

    @property
    def cancelled(self) -> bool:
        """Whether the group was cancelled, also as its time is over: for long bodies."""
        if not self._expired and self._seconds_left() == 0:
            self._expired = True
            self.cancel()
        return self._cancelled

    def _seconds_left(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0)

    def results(self) -> list[Any]:
        """The results in order of submission. Blocks and raises as `Future.result` does."""
        return [future.result() for future in self._futures.copy()]

    def __enter__(self) -> Self:
        if self._closed != "has not been entered":
            raise RuntimeError("a TaskGroup can be entered once")
        self._deadline = None if self._timeout is None else time.monotonic() + self._timeout
        self._closed = None
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> _Handled:
        try:
            try:
                error = self._own(error)
                self._wait()
            except BaseException as another:
                self.cancel()
                if not isinstance(another, DeadlockError) and not isinstance(error, _BARE):
                    self._wait()
                raise
            return self._conclude(error)
        finally:
            self._leave()
            del error, trace

    def _own(self, error: BaseException | None) -> BaseException | None:
        """The block's exception, which cancels the group unless it follows from that."""
        if self._cancelled and isinstance(error, CancelledError):
            return None
        if error is not None or self._expired:
            self.cancel()
        return error

    def _wait(self) -> None:
        for pending in self._unfinished():
            wait(pending, self._seconds_left())

    def _unfinished(self) -> Iterator[list[Future[Any]]]:
        """Some that are to be waited for, until none are; then the group is closed."""
        seen = 0
        for self._closed in (None, "is over"):  # Closed, so look, for what came from elsewhere.
            while seen < len(self._futures):
                chunk = self._futures[seen : seen + _CHUNK]
                pending = [future for future in chunk if not future.done()]
                if not pending:
                    seen += len(chunk)
                elif self.cancelled and self._expired:
                    return
                else:
                    yield pending

    def _conclude(self, own: BaseException | None) -> bool:
        """Raise what there is to raise; whether the block's `own` exception is done with."""
        if isinstance(own, _BARE):
            return False
        errors = [error for error in map(_failure, self._futures) if error is not None]
        bare = [error for error in errors if isinstance(error, _BARE)]
        errors += [own] if own is not None else []
        if self._expired:
            errors.append(TimeoutError(f"not over after {self._timeout} seconds"))
        try:
            if bare or (self._expired and len(errors) == 1):
                raise (bare or errors)[0]
            if errors:
                raise BaseExceptionGroup("unhandled errors in a TaskGroup", errors) from None
            return True
        finally:
            del self, errors, bare, own

    def _leave(self) -> None:
        self._closed = "is over"
        self._deadline = self._call = None
        if self._line is not None:
            self._line.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        from .async_block import AsyncBlock  # noqa: PLC0415  # Which imports asyncio.

        self._block = AsyncBlock(self._timeout)
        self.__enter__()
        await self._block.enter()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> _Handled:
        block: Any = self._block
        interrupt: BaseException | None = None
        try:
            if await block.leave(kind, error, trace):
                error, self._expired = None, not self.cancelled or self._expired
            error = self._own(error)
            if isinstance(error, block.Interrupt):
                interrupt, error = error, None
            for pending in self._unfinished():
                try:
                    await block.wait(pending[-1], self._seconds_left())
                except block.Interrupt as another:
                    interrupt = another
                    self.cancel()
            over = self._conclude(error)
            if interrupt is not None:
                raise interrupt
            return over
        finally:
            self._leave()
            del error, interrupt, trace


def _failure(future: Future[Any]) -> BaseException | None:
    try:
        error = future.exception(0)
    except (CancelledError, TimeoutError):
        return None
    return None if isinstance(error, CancelledError) else error
