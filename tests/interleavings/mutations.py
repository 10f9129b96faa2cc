"""The package with one step broken: the scenarios must notice each.

A mutation replaces a text, which must be there exactly once, in one module. What
stands there is what the comment beside the step in the package says must not be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Mutation(NamedTuple):
    #: What is broken.
    name: str
    module: str
    old: str
    new: str
    #: The scenario that notices.
    scenario: str

    def apply(self, sources: Mapping[str, str]) -> dict[str, str]:
        """The sources with this mutation. Raises `ValueError` where it does not fit."""
        source = sources[self.module]
        if source.count(self.old) != 1:
            raise ValueError(f"{self.module}.py does not contain it exactly once")
        return {**sources, self.module: source.replace(self.old, self.new)}


MUTATIONS = [
    Mutation(
        "a slot is freed and nobody looks again",
        "slots",
        """                if self.resumers or self.queue:
                    self.dispatch_or_fail()
                if self._observers:
""",
        "                if self._observers:\n",
        "submit_beside_an_end",
    ),
    Mutation(
        "a submission looks for a slot before it is queued",
        "service",
        """        slots.queue.append(future)
""",
        """        if (slots.free or slots.endless) and not slots.last.woken.fresh:
            slots.queue.append(future)
            slots.wake(future)
            return future
        slots.queue.append(future)
        return future
""",
        "submit_beside_an_end",
    ),
    Mutation(
        "a worker parks after its slot is free",
        "slots",
        """        # that in `rest`: there may be no memory to call it.
""",
        """        if not debts and not self.resumers and slot is not None:
            self.release(slot)
            self.crew.park(body)
            return
""",
        "submit_beside_an_end",
    ),
    Mutation(
        "the claim is two steps, in `cancel`",
        "futures",
        """                del self._fn
                claimed = True  # No signal is looked for in between.
""",
        """                claimed = hasattr(self, "_fn")
                del self._fn
""",
        "cancel_beside_a_start",
    ),
    Mutation(
        "the claim is two steps, in a worker",
        "slots",
        """                fn = future._fn
                del future._fn
            except AttributeError:
                continue  # Cancelled, or lent a slot.
""",
        """                fn = future._fn
            except AttributeError:
                continue
            try:
                del future._fn
            except AttributeError:
                pass
""",
        "cancel_beside_a_start",
    ),
    Mutation(
        "a worker claims before it says what it executes",
        "slots",
        """            try:
                fn = future._fn
                del future._fn
            except AttributeError:
                continue  # Cancelled, or lent a slot.
""",
        """            body.future = None
            try:
                fn = future._fn
                del future._fn
            except AttributeError:
                continue
            body.future = future
""",
        "cancel_beside_a_start",
    ),
    Mutation(
        "idle() looks at the slots once",
        "slots",
        """        if not len(self.free) == len(slots) == len(self.all):
            return False
        return uses == sum(slot.uses for slot in slots)
""",
        "        return True\n",
        "idle_beside_an_end",
    ),
    Mutation(
        "idle() does not see that a slot was taken and given back",
        "slots",
        "        return uses == sum(slot.uses for slot in slots)\n",
        "        return True\n",
        "idle_beside_a_yield",
    ),
    Mutation(
        "idle() counts only once it has seen the slots free",
        "slots",
        """        uses = sum(slot.uses for slot in slots)
        if len(self.free) != len(slots) or self.away or self.queue:
            return False
""",
        """        uses = sum(slot.uses for slot in slots)
        if self.away or self.queue:
            return False
""",
        "idle_beside_a_yield",
    ),
    Mutation(
        "who waits for everything does not look once it can be told",
        "slots",
        """        if self.is_stalled():
            self.dispatch_or_fail()
        self.check_idle()
""",
        """        if self.is_stalled():
            self.dispatch_or_fail()
""",
        "block_till_done_beside_the_last_end",
    ),
    Mutation(
        "a slot is freed and who waits for everything is not told",
        "slots",
        """                if self.resumers or self.queue:
                    self.dispatch_or_fail()
                if self._observers:
                    self.check_idle()
""",
        """                if self.resumers or self.queue:
                    self.dispatch_or_fail()
""",
        "block_till_done_beside_the_last_end",
    ),
    Mutation(
        "a slot is put back and who waits for everything is not told",
        "slots",
        """                    # Whoever looked meanwhile has seen one slot too few.
                    done += map(self.free.append, (slot,))
                    self.check_idle()
""",
        """                    done += map(self.free.append, (slot,))
""",
        "a_slot_looked_for_in_vain",
    ),
    Mutation(
        "what is being cancelled is not outstanding",
        "futures",
        """            owner.away.add(mark)
            try:
                del self._fn
""",
        """            try:
                del self._fn
""",
        "block_till_done_beside_a_cancel",
    ),
    Mutation(
        "a body that yields is outstanding only after its slot is free",
        "slots",
        """        self.away.add(body)
        try:
            body.slot = None
            given += map(self.free.append, (slot,))
""",
        """        try:
            body.slot = None
            given += map(self.free.append, (slot,))
            self.away.add(body)
""",
        "yielded_beside_block_till_done",
    ),
    Mutation(
        "who waits does not look once it can be told",
        "futures",
        """            # Published, so look again: who ended it before did not tell us.
            if not self.done():
""",
        "            if True:\n",
        "result_beside_an_end",
    ),
    Mutation(
        "who waits enters itself without the lock of the Watch",
        "futures",
        """                holding(watch.lock, watch.waiters.append, sleeper)
""",
        "                watch.waiters.append(sleeper)\n",
        "two_watch_beside_an_end",
    ),
    Mutation(
        "who makes a Watch does not look for an outcome",
        "futures",
        """            if late:
                self._end(watch)
        except""",
        """            late = False
        except""",
        "a_body_waits_beside_an_end",
    ),
    Mutation(
        "a Watch is made in two steps",
        "futures",
        """            watch = self.__dict__.setdefault("_watch", made)
""",
        """            watch = self._watch or made
            self._watch = watch
""",
        "two_watch_beside_an_end",
    ),
    Mutation(
        "whether a future has told is read off what may be taken meanwhile",
        "waiting",
        """        if not self._watched.get(future, True):
            self._watched[future] = True
""",
        """        if not (self.finished and self.finished[-1] is future):
""",
        "as_completed_beside_two_ends",
    ),
    Mutation(
        "a callback is entered without the lock of the Watch",
        "futures",
        """            if watch is made or holding(watch.lock, self._add_callback, watch, fn):
""",
        """            if watch is made or self._add_callback(watch, fn):
""",
        "callback_beside_an_end",
    ),
    Mutation(
        "a callback whose Watch comes when it is over is left to whoever ended it",
        "futures",
        """                or (self._state is FINISHED and bool(made.callbacks))
""",
        "",
        "callback_beside_an_end",
    ),
    Mutation(
        "a woken worker is no longer fresh before it has taken something",
        "slots",
        """        while not self.resumers:
            try:
                future = self.queue.popleft()
""",
        """        while not self.resumers:
            if body.fresh:
                body.fresh = False
                if self.is_stalled():
                    self.dispatch()
            try:
                future = self.queue.popleft()
""",
        "one_submission_one_thread",
    ),
    Mutation(
        "a woken worker does not look whether there is more",
        "slots",
        """                self.preparing.discard(body)
                while True:
""",
        """                while False:
""",
        "two_slots_two_bodies",
    ),
    Mutation(
        "a woken worker looks and only then is no longer fresh",
        "slots",
        """                body.fresh = False
                self.preparing.discard(body)
                while True:
""",
        """                if self.queue and (self.free or self.endless):
                    self.dispatch()
                body.fresh = False
                while False:
""",
        "two_slots_two_bodies",
    ),
    Mutation(
        "a worker that has an initializer to run does not look whether there is more",
        "slots",
        """            body.fresh = False
            if self.is_stalled():
                self.dispatch_or_fail()
""",
        """            body.fresh = False
""",
        "two_initializers",
    ),
    Mutation(
        "a worker wakes another before its initializer, whether there is more or not",
        "slots",
        "            len(self.queue) > len(self.preparing)\n",
        "            bool(self.queue)\n",
        "an_initializer_beside_a_submit",
    ),
    Mutation(
        "a worker goes on to the queue before those who resume",
        "slots",
        "        while not self.resumers:\n            try:\n",
        "        while True:\n            try:\n",
        "resumers_go_first",
    ),
    Mutation(
        "a body that resumes does not look once it can be found",
        "slots",
        """            self.ask(body)
            # Whoever asked looks, also where others ask, and where it has been given a slot
            # by then: its own may have come back since, and be free for what is queued.
            self.dispatch_or_fail()
""",
        """            self.ask(body)
""",
        "two_resume_beside_an_end",
    ),
    Mutation(
        "who lacks memory to look at who waits leaves it to others",
        "slots",
        """            except MemoryError:
                continue  # Nobody else may look: what stirs may wait for what is queued.
""",
        "",
        "resume_beside_who_lacks_memory",
    ),
    Mutation(
        "a submission does not look for a shutdown once it is queued",
        "service",
        "        if slots.refusal is not None and slots.refuses() and slots.take_back(future):\n",
        "        if False:\n",
        "shutdown_beside_a_submit",
    ),
    Mutation(
        "a submission looks for a shutdown only once it has woken a thread",
        "service",
        """        slots.queue.append(future)
""",
        """        slots.queue.append(future)
        if (slots.free or slots.endless) and not slots.last.woken.fresh:
            slots.wake(future)
""",
        "shutdown_beside_a_submit",
    ),
    Mutation(
        "a thread does not look whether it should end once it is parked",
        "threads",
        """        if self.ending and self.withdraw(worker):
            return None
""",
        "",
        "shutdown_beside_an_end",
    ),
    Mutation(
        "an idle thread ends without taking itself out",
        "threads",
        """        if self.withdraw(worker):
            return None
        # Taken""",
        """        self.withdraw(worker)
        return None
        # Taken""",
        "idle_time_out_beside_a_hand_over",
    ),
    Mutation(
        "a lender looks for a worker before its lend can be found",
        "waiting",
        """        queued += map(slots.lends.append, (lend,))
        slots.fetch_lends()
""",
        """        slots.fetch_lends()
        queued += map(slots.lends.append, (lend,))
""",
        "lend_beside_a_submit",
    ),
    Mutation(
        "a worker that has fetched a lend does not look whether there are more",
        "slots",
        """                body.fetching = False
                self.preparing_for_lends.discard(body)
                if len(self.lends) > len(self.preparing_for_lends):
                    self.fetch_or_refuse_lends()
            future""",
        """                body.fetching = False
            future""",
        "two_lend_at_once",
    ),
    Mutation(
        "a worker that was called in vain does not look again",
        "slots",
        """                if self.is_stalled():
                    self.dispatch_or_fail()
                self.fetch_or_refuse_lends()
""",
        """                if self.is_stalled():
                    self.dispatch_or_fail()
""",
        "lends_one_after_the_other",
    ),
    Mutation(
        "a lend for which there is no thread is dropped",
        "slots",
        """                if not lend.refuse(error):
""",
        """                if not lend:
""",
        "a_lend_whose_start_fails",
    ),
    Mutation(
        "a body that lent in vain is not told of the end",
        "waiting",
        """        if self._watching or self._watch():
            super().go_on(body)
""",
        "        super().go_on(body)\n",
        "lend_to_a_thread_that_parks",
    ),
    Mutation(
        "a lent slot is given back without a word with the lender",
        "waiting",
        """            if not self._closed:
                self._closed.extend(map(_last, (self._open,)))
""",
        "            pass\n",
        "a_lender_goes_on",
    ),
    Mutation(
        "a lender goes on without a word with the borrower",
        "waiting",
        """            if not self._abandoned:
                self._abandoned.extend(map(_last, (self._open,)))
""",
        "            pass\n",
        "a_lender_goes_on",
    ),
    Mutation(
        "a lender that goes on does not take what is just coming back",
        "waiting",
        """            while not self.ended:
                self._wait.lock.acquire()
            try:
""",
        "            try:\n",
        "a_lender_goes_on",
    ),
    Mutation(
        "a lender that goes on without its slot is not outstanding",
        "waiting",
        "            body.slots.away.add(body)\n            body.slots.ask(body)\n",
        "            body.slots.ask(body)\n",
        "a_lender_goes_on_beside_block_till_done",
    ),
    Mutation(
        "a lender that goes on asks once it has abandoned the lend",
        "waiting",
        """            body.slots.ask(body)
            lend.abandon()
""",
        """            lend.abandon()
            body.slots.ask(body)
""",
        "a_lender_goes_on_before_what_is_queued",
    ),
    Mutation(
        "a body that asked and was given a slot does not look",
        "slots",
        "        if body.slot is None or body.asked:\n",
        "        if body.slot is None:\n",
        "a_lender_goes_on_with_another_slot",
    ),
    Mutation(
        "who waits for all is not told of what failed for want of a thread",
        "slots",
        """            self.away.discard(mark)
            self.check_idle()
        except BaseException:
            self.away.discard(mark)
""",
        """            self.away.discard(mark)
        except BaseException:
            self.away.discard(mark)
""",
        "starts_that_fail_beside_block_till_done",
    ),
    Mutation(
        "a lend has ended before the slot is back",
        "waiting",
        """            self.returned[0] = slot
            self.ended = True
""",
        """            self.ended = True
            self.returned[0] = slot
""",
        "a_lender_goes_on_before_what_is_queued",
    ),
    Mutation(
        "a submit joins a run that is being started",
        "coalescer",
        '        return not self.closing or self.links.setdefault("work", work) is work\n',
        "        return True\n",
        "coalesced_beside_an_end",
    ),
    Mutation(
        "a submit does not see that its work was taken",
        "coalescer",
        "            call = work.pop()\n",
        '            call, self.links["work"] = work.pop(), _GONE\n',
        "coalesced_beside_an_end",
    ),
    Mutation(
        "what a run executes is taken in two steps",
        "coalescer",
        "            call = work.pop()\n",
        "            call = work.copy()[0]\n            work.clear()\n",
        "coalesced_interrupted_beside_its_run",
    ),
    Mutation(
        "a run is started and nobody is told that it closes",
        "coalescer",
        """        self.closing = True
        work = self.links.setdefault("work", self.latest)
""",
        """        work = self.links.setdefault("work", self.latest)
        self.closing = True
""",
        "coalesced_beside_an_end",
    ),
    Mutation(
        "a run is cancelled and nobody is told that it closes",
        "coalescer",
        """        run.closing = True
        if run.shared and not even_shared:
            return False
""",
        "",
        "coalesced_beside_a_cancel",
    ),
    Mutation(
        "a run that is over does not leave",
        "coalescer",
        """                if following is _OVER:
                    self._lines.leave(line)
                else:
""",
        """                if following is not _OVER:
""",
        "coalesced_by_two",
    ),
    Mutation(
        "a run is over, or is followed, in two steps",
        "coalescer",
        """            following: Any = run.links.setdefault("next", _OVER)
            line = run.line
""",
        """            following: Any = run.links.get("next") or _OVER
            run.links["next"] = following
            line = run.line
""",
        "coalesced_by_two_while_it_runs",
    ),
    Mutation(
        "a line is added whichever were added while keys were compared",
        "coalescer",
        """                if holding(self._lock, group.replace, lines, (*lines, line)):
                    return run
""",
        """                while not holding(self._lock, group.replace, lines, (*lines, line)):
                    lines = group.lines or ()
                return run
""",
        "entered_by_two_beside_an_equal_hash",
    ),
    Mutation(
        "a line is added to a group that is in use no more",
        "coalescer",
        """                    del self._groups[line.hash]
                    group.lines = None
""",
        """                    del self._groups[line.hash]
""",
        "entered_by_two_beside_an_equal_hash",
    ),
    Mutation(
        "what follows a run is linked in two steps",
        "coalescer",
        """            following: Any = line.links.setdefault("next", run)
            if""",
        """            following: Any = line.links.get("next") or run
            line.links["next"] = following
            if""",
        "coalesced_by_two_while_it_runs",
    ),
    Mutation(
        "a run is not outstanding before it is queued",
        "coalescer",
        "            self._era.away.add(run.future)\n            entered,",
        "            entered,",
        "coalesced_join_beside_block_till_done",
    ),
    Mutation(
        "a run is let go before it is over",
        "coalescer",
        """        self._finish()
        # Over, and only then let go, see `hold`. By name, see `_Run.hold`.
        let_go(self, run.inner, run.executing)
""",
        """        let_go(self)
        self._finish()
""",
        "coalesced_beside_an_end",
    ),
    Mutation(
        "a re-run that is held is not looked at again",
        "coalescer",
        """            hold(self.future, other)
            held = other
""",
        """            hold(self.future, other)
            return
""",
        "coalesced_wait_beside_an_end",
    ),
    Mutation(
        "a re-run that is held is looked at again only once it was handed over",
        "coalescer",
        "            if other is None or other is held:\n",
        "            if other is None or other is held or (held and self.inner is None):\n",
        "held_by_three_at_once",
    ),
    Mutation(
        "what held a run before is not let go by name",
        "coalescer",
        """                let_go(self.future, held)
            hold(""",
        """                let_go(self.future)
            hold(""",
        "held_by_three_at_once",
    ),
    Mutation(
        "what held a run is not let go by name at its end",
        "coalescer",
        "let_go(self, run.inner, run.executing)",
        "let_go(self)",
        "held_by_three_beside_its_end",
    ),
    Mutation(
        "what is over already is held for ever",
        "waiting",
        """    if future.done():
        # It was over before""",
        """    if False:
        # It was over before""",
        "coalesced_beside_an_end",
    ),
]
