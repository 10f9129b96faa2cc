"""The worker's loop: take, claim, execute, look, go on; then idle, or end.

A worker runs it on a thread of its own, where Python raises no `KeyboardInterrupt`. What
may come all the same is an exception set from outside (`PyThreadState_SetAsyncExc`), at
any step: `_bury` then finds in the worker's fields what it had taken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures.thread import BrokenThreadPool
from contextvars import Context
from typing import Any, Protocol

from .contexts import isolate, preset
from .describing import describe_arguments
from .lending import borrow, end_debts, fetch_or_refuse, lend_on
from .locking import exactly, guard, locked
from .outstanding import check_idle, fail_all, signal_or_fail
from .recording import NAMED, RAISED
from .reporting import Failure, name_of, report
from .slots import give_up_slot, hand_out, keep, look, open_one
from .state import SIGNAL, Slots, Worker, current_worker
from .submission import ENDING, FINISHED, RUNNING, Submission, clock


class LateCall(Protocol):
    """A submission without `args`: it says at its start what is to be called."""

    def start(
        self,
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any] | None, Context | None]: ...

    def leave(self) -> None:
        """The body is over, and its outcome about to be known."""

    def go_on(self) -> None:
        """Its outcome is known; the callbacks have not run. Still part of the body."""


def broken_error() -> BrokenThreadPool:
    return BrokenThreadPool("A thread initializer failed, the thread pool is not usable anymore")


def work(worker: Worker) -> None:
    """All that the thread of a worker does."""
    current_worker.set(worker)
    slots = worker.slots
    slots.recorder.began(worker)
    try:
        if slots.settings.initializer is not None:
            _initialize(worker, slots.settings.initializer)
        while worker.slot or _works_without(worker):
            _serve(worker)
            if worker.slot and not _idles(worker):
                break
        _leave_slot(worker)  # explore: end-leaves-slot
    except BaseException as exception:
        try:
            _bury(worker, exception)
        except BaseException:
            _bury(worker, exception)  # One more from outside. What is done is not done again.
        _report_end(worker, exception)
    finally:
        current_worker.set(None)
        worker.go_idle()
        slots.recorder.ended(worker)
        end_one(slots)  # explore: end-ends-next
        check_idle(slots)


def _initialize(worker: Worker, initializer: Callable[[], object]) -> None:
    slots = worker.slots
    with guard.lock:
        _prepare(worker, 1)
    try:
        if slots.propagate:
            context = Context()
            context.run(initializer)
            worker.presets = list(context.items())
        else:
            initializer()
    except BaseException as exception:
        _break(slots, exception)
    finally:
        with guard.lock:
            _prepare(worker, -1)


def _prepare(worker: Worker, change: int) -> None:
    """An initializer may take as long as a body: others are woken meanwhile."""
    slots = worker.slots
    if worker.slot:
        slots.preparing += change
        if worker.signalled:
            consume_signal(worker)  # explore: initializer-signal
    else:
        slots.preparing_for_lends += change
        if slots.fetcher is worker:
            slots.fetcher = None
            fetch_or_refuse(slots)


def _break(slots: Slots, exception: BaseException) -> None:
    report("exception in initializer:", exception=exception)
    slots.broken = True
    slots.refusal = broken_error
    slots.checked = True
    fail_all(slots, broken_error, "a submission")


# With a slot.


def _serve(worker: Worker) -> None:
    """Execute what is queued until nothing is, or the slot is needed elsewhere."""
    slots = worker.slots
    while worker.slot:
        if slots.resuming or slots.opened > slots.bound:
            with guard.lock:
                if not keep(worker):  # explore: give-way
                    break
        if not slots.queue:
            break
        worker.look_at_clock()
        try:
            # Into the field at once: an exception from outside cannot come in between.
            for worker.future in worker.pops:  # noqa: B020  # explore: take-then-consume
                if worker.signalled:
                    consume_signal(worker)
                future: Any = worker.future
                try:
                    # The claim and the state; nothing is called in between.
                    fn = future.fn  # explore: claim-by-worker
                    del future.fn
                    future.state = RUNNING
                    worker.fn = fn
                except AttributeError:
                    pass_over(worker, future)
                    continue
                _execute(worker, future, fn)
                future = fn = None
                if not worker.slot or worker.lend is not None or worker.debts:
                    _settle(worker)
                if not worker.slot or slots.resuming or slots.opened > slots.bound:
                    break
        except IndexError:
            if worker.future is not None:
                raise
            worker.missed += 1
            break
    if worker.signalled:
        consume_signal(worker)


def pass_over(worker: Worker, future: Submission[Any]) -> None:
    """It was cancelled, or has started with a lent slot."""
    worker.passed += 1
    worker.future = None
    slots = worker.slots
    if (slots.dead or slots.uncounted) and future.cancelled():
        exactly(slots.drop_dead)


def _settle(worker: Worker) -> None:
    """A body is over that has lent its slot, has a lent one, or has given one away."""
    with guard.lock:
        end_debts(worker)  # explore: end-debts
    if worker.slots.observers:
        check_idle(worker.slots)


def consume_signal(worker: Worker) -> None:
    """The signal has arrived: others may signal again, and this worker looks for them."""
    slots = worker.slots
    worker.signalled = False
    slots.quiet[SIGNAL] = slots.free  # explore: consume-signal
    if not slots.free and slots.opened < slots.bound:
        with guard.lock:
            open_one(slots)  # explore: open-next-slot
    if len(slots.queue) > slots.preparing:
        look(slots)  # explore: consumed-so-look


def _idles(worker: Worker) -> bool:
    """Wait in `free` until it is woken; False where the thread is to end."""
    slots = worker.slots
    if slots.ending and not slots.queue:
        return False
    be_free(worker)
    return worker.gate.acquire(True, worker.patience) or not _gives_up(worker)


def be_free(worker: Worker) -> None:
    """Have a worker that has nothing to do be idle in `free`, and its slot with it."""
    slots = worker.slots
    worker.go_idle()
    if (slots.dead or slots.uncounted) and not slots.queue:
        exactly(slots.drop_dead)
    # explore: idle-signalled
    worker.signalled = True  # Where `signal` takes it out of `free`, that is with the signal.
    # Idle and free in one step. From here on it looks for what others may have added
    # before they could see this.
    slots.free.append(worker.wake)  # explore: idle-and-free
    if slots.resuming:
        with guard.lock:
            hand_out(slots)  # explore: idle-serves-resuming
    if slots.queue:
        look(slots)  # explore: idle-so-look
    if slots.observers:
        check_idle(slots)  # explore: idle-notifies
    if slots.ending:
        end_one(slots)  # explore: idle-ends-next


def _gives_up(worker: Worker) -> bool:
    """Its time in `free` or `spare` is up; False where it was taken out in this moment."""
    with guard.lock:
        if _is_taken_out(worker):
            return True
    worker.gate.acquire()  # explore: woken-at-timeout
    return False


def _is_taken_out(worker: Worker) -> bool:
    """Take an idle worker out of where it waits; False where another has."""
    slots = worker.slots
    try:
        # `free` or `spare`: it may have been moved meanwhile.
        # explore: timeout-in-free-or-spare
        (slots.free if worker.slot else slots.spare).remove(worker.wake)
    except ValueError:
        return False
    return True


def _leave_slot(worker: Worker) -> None:
    """Have the slot of a worker that is about to end free, with another worker."""
    slots = worker.slots
    worker.signalled = False
    if worker.slot:
        with guard.lock:
            give_up_slot(worker)  # explore: leave-slot-free
    signal_or_fail(slots)  # explore: left-so-look


def end_one(slots: Slots) -> None:
    """After shutdown, end one idle thread, which ends the next. Never blocks.

    All at once, they would only wait for each other.
    """
    if slots.ending:
        locked(_end_one, slots)
        look(slots)  # One may have been submitted while the last entry was out.


def _end_one(slots: Slots) -> None:
    # Between taking a worker and waking it, or putting it back, no signal is looked for.
    try:
        for wake in slots.frees:
            if wake.worker.begun:
                for _ in wake:
                    return
            # explore: end-puts-back
            slots.free.insert(0, wake)  # Those that have a thread come last.
            break
    except IndexError:
        pass
    try:
        for wake in slots.spares:
            if wake.worker.begun:
                for _ in wake:
                    break
            else:
                slots.workers.pop(wake.worker, None)
            break
    except IndexError:
        pass


# Without a slot.


def _works_without(worker: Worker) -> bool:
    """Fetch lends and execute, then idle in `spare`; whether it came to a slot.

    False where the thread is to end.
    """
    slots = worker.slots
    executed = False
    while True:
        with guard.lock:
            # In one section: the lender that is woken by this may lend again at once, and
            # finds this worker idle, or at work on another lend.
            borrowed = _borrow_next(worker, executed)
            ends = slots.ending
            idles = not (borrowed or worker.slot or ends)
            if idles:
                worker.go_idle()
                slots.spare.append(worker.wake)
        if executed and slots.observers:
            check_idle(slots)
        executed = borrowed
        if borrowed:
            worker.since = clock()
            if worker.notes is not None:
                worker.turn_page()
            _execute(worker, worker.future, worker.fn)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        elif idles and not worker.gate.acquire(True, worker.patience) and _gives_up(worker):
            return False
        elif worker.slot:
            return True
        elif ends:
            return False


def _borrow_next(worker: Worker, executed: bool) -> bool:
    """Have it fetch a lend, after giving back what it has `executed` with; whether it did."""
    if executed:
        if lend_on(worker):
            return True
        end_debts(worker)
    return not worker.slot and borrow(worker)


# The body.


def _execute(worker: Worker, future: Submission[Any], fn: Any) -> None:
    """Run a submission whose claim this worker has, callbacks included."""
    if worker.slots.broken:
        _refuse(worker, future)
        return
    notes = worker.notes
    if notes is not None:
        if fn is not worker.named:
            _note_name(worker, future, fn)
        try:
            notes += (clock(), future.serial, future.value)
        except AttributeError:  # It was submitted before somebody recorded.
            notes += (clock(), future.serial, None)
    late: Any = future if future.args is None else None
    if late is not None:
        worker.fn, future.args, future.kwargs, future.context = late.start()
        fn = worker.fn
    args: Any = future.args
    run = _prepared(worker, future.context) if future.context or worker.presets else worker.call
    try:
        if future.kwargs is None:
            future.value = run(fn, *args) if args else run(fn)
        else:
            future.value = run(fn, *args, **future.kwargs)
    except BaseException as exception:
        future.failure = _failure(worker, future, fn, exception)
        worker.failed += 1
    args = future.args = ()
    if late is not None:
        late.leave()
    future.state = ENDING  # explore: stored-then-watch
    if late is None and future.watch is None:
        future.state = FINISHED
    else:
        end(worker, future, run, late)
    if future.context is None and worker.blank:
        worker.renew_context()
    future.kwargs = future.context = None
    worker.future = worker.fn = None
    del future, fn, run, late  # Tracebacks lead here, by `f_back`.


def _failure(
    worker: Worker, future: Submission[Any], fn: object, exception: BaseException
) -> Failure:
    # Without the frame of `_execute`, which goes on to other submissions.
    trace = exception.__traceback__
    exception = exception.with_traceback(trace and trace.tb_next)
    try:
        return failure_of(worker, future, fn, exception)
    finally:
        del trace, exception


def failure_of(
    worker: Worker, future: Submission[Any], fn: object, exception: BaseException
) -> Failure:
    worker.note(0, future.serial, RAISED)
    future.note_failure(exception)
    details = describe_arguments(future)
    try:
        return Failure(exception, name_of(fn), not future.reported, future.context, details)
    finally:
        del exception  # Its traceback may hold this frame.


def _refuse(worker: Worker, future: Submission[Any]) -> None:
    """The initializer has failed."""
    future.fail(broken_error(), "a submission")
    worker.future = worker.fn = None
    worker.failed += 1


def _note_name(worker: Worker, future: Submission[Any], fn: object) -> None:
    # Of a run, only that knows what it calls.
    worker.named = None if future.args is None else fn
    worker.note(name_of(future.callee() if future.args is None else fn), 0, NAMED)


def note_start(worker: Worker, future: Submission[Any], fn: object) -> None:
    """Make the note that `_execute` makes."""
    worker.turn_page()
    if fn is not worker.named:
        _note_name(worker, future, fn)
    worker.note(clock(), future.serial, getattr(future, "value", None))


def _prepared(worker: Worker, context: Context | None) -> Callable[..., Any]:
    """What runs a body in `context`, or in a blank one, with what the initializer set."""
    if context is None:
        context = worker.blank
    context.run(preset, worker.presets)
    isolate(context)
    return context.run


def end(
    worker: Worker, future: Submission[Any], run: Callable[..., Any], late: LateCall | None
) -> None:
    """Finish a submission whose outcome is stored, where somebody watches it or others
    follow it."""
    future.close()  # explore: end-closes
    if late is not None:
        late.go_on()
    if future.watch is not None and future.watch.callbacks:
        # One may wait for the lender, which is to go on as soon as the future is over.
        for debt in worker.debts:
            node = debt.lender.node
            if node is not None:
                node.ring()  # explore: end-rings-lender
        run(future.call_back)


def _bury(worker: Worker, exception: BaseException) -> None:
    """A worker ends unexpectedly: with it goes only what it was executing. Repeatable."""
    slots = worker.slots
    future, claimed = worker.future, worker.fn is not None
    if future is not None and (claimed or future.claim()):
        if future.state is RUNNING:
            future.fail(exception, "a submission whose worker ended")
        else:
            future.settle()
        worker.failed += 1
    worker.future = worker.fn = None
    with guard.lock:
        _is_taken_out(worker)
        if slots.fetcher is worker:
            slots.fetcher = None
            fetch_or_refuse(slots)
        end_debts(worker)  # explore: bury-debts
    if worker.signalled:
        slots.quiet[SIGNAL] = slots.free  # explore: bury-signal
    _leave_slot(worker)  # explore: bury-slot


def _report_end(worker: Worker, exception: BaseException) -> None:
    # Not in `work`: a frame of the traceback that named these would keep them, and itself.
    args = type(exception), exception, exception.__traceback__, worker
    threading.excepthook(threading.ExceptHookArgs(args))
