"""One run of the command: it measures row after row and reports each when it is done."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..screen import Screen
from . import report
from .chart import chart
from .estimate import Estimate
from .pairs import Measure, Outcome, Verdict, judge, measure_in_a_process, measure_row
from .row import Row

FAILED = 1
INTERRUPTED = 130


class Session:
    """What was measured up to now, on the screen and in the files that were asked for."""

    def __init__(
        self,
        rows: Sequence[Row],
        screen: Screen,
        *,
        repeat: int,
        scale: float,
        json_file: Path | None,
        plot: Path | None,
        measure: Measure = measure_in_a_process,
    ) -> None:
        self._rows = rows
        self._screen = screen
        self._repeat = repeat
        self._scale = scale
        self._json_file = json_file
        self._plot = plot
        self._measure = measure
        self._estimate = Estimate(rows, repeat, scale)
        self._before = report.Processors.now()
        self._outcomes: list[Outcome] = []
        self._verdicts: list[Verdict] = []

    def measure(self) -> int:
        """Measure until all rows are done or the user interrupts; return the exit status."""
        for text in report.heading(self._repeat, self._scale):
            self._screen.line(text)
        self._screen.line()
        self._screen.as_it_is(report.TABLE_HEAD)
        try:
            interrupted = self._measure_rows()
            self._end(interrupted)
        except _NotWritten:
            return FAILED
        if interrupted:
            return INTERRUPTED
        return FAILED if any(outcome.failed for outcome in self._outcomes) else 0

    def _measure_rows(self) -> bool:
        """Measure and report each row; return whether the user interrupted that."""
        try:
            for index, row in enumerate(self._rows):
                outcome = self._measure_row(index, row)
                if outcome.pairs or not outcome.interrupted:
                    self._add(outcome)
                if outcome.interrupted:
                    return True
        except KeyboardInterrupt:
            return True
        return False

    def _measure_row(self, index: int, row: Row) -> Outcome:
        name = f"[{index + 1}/{len(self._rows)}] {row.name}"
        self._screen.step(f"{name}; {self._estimate.left(index, 0)}")

        def begin(pair: int) -> None:
            left = self._estimate.left(index, pair)
            number = f"pair {pair + 1} of {row.pairs(self._repeat)}"
            self._screen.progress(f"{name}, {number}; {left}")

        return measure_row(row, self._scale, self._repeat, measure=self._measure, begin=begin)

    def _add(self, outcome: Outcome) -> None:
        verdicts = judge(outcome, conclusive=self._scale == 1)
        self._outcomes.append(outcome)
        self._verdicts += verdicts
        for verdict in verdicts:
            self._screen.as_it_is(report.table_line(verdict))
        self._save()

    def _save(self) -> None:
        """Write the files after each row: a run takes minutes, and may be killed."""
        if self._json_file is not None:
            whole = [outcome for outcome in self._outcomes if not outcome.interrupted]
            document = report.document(
                self._outcomes,
                self._verdicts,
                complete=len(whole) == len(self._rows),
                repeat=self._repeat,
                scale=self._scale,
                others=self._others_busy(),
            )
            _write(self._json_file, json.dumps(document, indent=2) + "\n")
        if self._plot is not None:
            _write(self._plot, chart(self._verdicts, title=report.title()))

    def _end(self, interrupted: bool) -> None:
        if note := report.note_on_others(self._others_busy()):
            self._screen.line()
            self._screen.line(note)
        if interrupted:
            self._screen.line()
            whole = sum(not outcome.interrupted for outcome in self._outcomes)
            self._screen.line(f"Interrupted after {whole} of {len(self._rows)} rows.")
            # The interrupt may have come between a row and its place in the files.
            self._save()

    def _others_busy(self) -> float | None:
        return report.others_busy(self._before, report.Processors.now())


class _NotWritten(Exception):
    """A file that was asked for cannot be written, so the rest need not be measured."""


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"python -m boundedexec bench: cannot write {path}: {error}", file=sys.stderr)
        raise _NotWritten from error
