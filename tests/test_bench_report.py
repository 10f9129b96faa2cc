"""The benchmark reports each row when it is done, and keeps what it has."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from commands import COMMAND, ENVIRONMENT, LIMIT

from boundedexec._commands.bench import rows, session
from boundedexec._commands.bench.chart import LEGEND, chart
from boundedexec._commands.bench.estimate import Estimate
from boundedexec._commands.bench.pairs import Verdict, judge, measure_row
from boundedexec._commands.bench.report import TABLE_HEAD, table_line
from boundedexec._commands.bench.row import Kind, Line, Row, Side
from boundedexec._commands.bench.tools import Figures
from boundedexec._commands.screen import Screen

pytestmark = pytest.mark.timeout(120)

SVG = "{http://www.w3.org/2000/svg}"
RATIO = Line("time", "µs", Kind.RATIO, 0.5)


def never(size: int) -> Figures:
    raise AssertionError("this test must not run the row itself")


def row(name: str, *, seconds: float = 1, times: int = 1) -> Row:
    sides = dict.fromkeys([Side.STDLIB, Side.SERVICE], never)
    return Row(name, "what it does", 100, sides, (RATIO,), seconds, times)


def verdict_of(stdlib: Sequence[float], service: Sequence[float]) -> Verdict:
    left = {Side.STDLIB: list(stdlib), Side.SERVICE: list(service)}
    outcome = measure_row(
        row("row"), 1, len(service), measure=lambda row, side, size: {"time": left[side].pop(0)}
    )
    (verdict,) = judge(outcome, conclusive=True)
    return verdict


class Terminal:
    """The measurements of a session, and what was printed before each."""

    def __init__(self, capsys: pytest.CaptureFixture[str], interrupted_at: int | None) -> None:
        self.printed: list[str] = []
        self._capsys = capsys
        self._interrupted_at = interrupted_at

    def measure(self, row: Row, side: Side, size: int) -> Figures:
        self.printed.append("".join(self._capsys.readouterr()))
        if len(self.printed) - 1 == self._interrupted_at:
            raise KeyboardInterrupt
        return {"time": 1.0}


def run(
    capsys: pytest.CaptureFixture[str],
    measured: Sequence[Row],
    json_file: Path | None = None,
    interrupted_at: int | None = None,
) -> tuple[int, list[str], str]:
    """Measure with two pairs; return the status, what was printed before each, and after."""
    terminal = Terminal(capsys, interrupted_at)
    status = session.Session(
        measured,
        Screen(sys.stdout, sys.stderr, unencodable="replace"),
        repeat=2,
        scale=1,
        json_file=json_file,
        plot=None,
        measure=terminal.measure,
    ).measure()
    return status, terminal.printed, "".join(capsys.readouterr())


def test_each_row_is_printed_before_the_next_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, before, after = run(capsys, [row("one"), row("two")])
    assert status == 0
    assert TABLE_HEAD in before[0]
    assert "[1/2] one; about 5 s left\n" in before[0]
    assert before[1:4] == ["", "", ""]
    assert re.match(r"one .* 1\.000", before[4])
    assert re.search(r"^\[2/2\] two; about \d+ s left\n", before[4], re.MULTILINE)
    assert after.startswith("two ")


def test_an_interrupted_run_keeps_every_complete_pair(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "bench.json"
    # In the second half of the second pair of the second row.
    status, _, after = run(
        capsys, [row("one"), row("two"), row("three")], file, interrupted_at=4 + 3
    )
    assert status == 130
    assert after.startswith("two ")
    assert after.endswith("Interrupted after 1 of 3 rows.\n")
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["complete"] is False
    measured = {line["row"]: len(line["measurements"]["service"]) for line in document["lines"]}
    assert measured == {"one": 2, "two": 1}


def test_the_file_is_written_after_each_row(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[str]] = []

    def note(path: Path, text: str) -> None:
        written.append([line["row"] for line in json.loads(text)["lines"]])

    monkeypatch.setattr(session, "_write", note)
    run(capsys, [row("one"), row("two")], tmp_path / "bench.json")
    assert written == [["one"], ["one", "two"]]


def test_a_file_that_cannot_be_written_ends_it_after_the_first_row(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, before, after = run(capsys, [row("one"), row("two")], tmp_path)
    assert (status, len(before)) == (1, 4)
    assert after.startswith("one ")
    assert f"cannot write {tmp_path}: " in after


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_ctrl_c_ends_it_with_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    arguments = ["--only", "cancel", "idle", "--scale", "0.01", "--json", str(file)]
    with subprocess.Popen(
        [*COMMAND, "bench", *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout
        printed = ""
        while not re.search("^cancel ", printed, re.MULTILINE):
            printed += process.stdout.readline()
        # The next row takes seconds.
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert "Interrupted after 1 of 2 rows." in output
    assert "Traceback" not in errors
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["lines"][0]["what"] == "cancel"
    assert len(document["lines"][0]["measurements"]["stdlib"]) == 5


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that stands at the number in this list."""
    now = [0.0]
    monkeypatch.setattr("boundedexec._commands.bench.estimate.time.monotonic", lambda: now[0])
    yield now


def test_what_is_left_is_told_from_what_the_rest_took(clock: list[float]) -> None:
    measured = [row("one", seconds=1), row("two", seconds=2, times=3), row("three", seconds=100)]
    estimate = Estimate(measured, 5, scale=1)
    # 5 of 1 s, 15 of 2 s, 5 of 100 s.
    assert estimate.left(0, 0) == "about 9 min left"
    # This machine is ten times as fast.
    clock[0] = 3.5
    assert estimate.left(2, 0) == "about 50 s left"
    clock[0] = 43.5
    assert estimate.left(2, 4) == "about 10 s left"
    assert estimate.left(2, 5) == "about 5 s left"


def test_the_table_fits_80_columns() -> None:
    assert max(map(len, TABLE_HEAD.splitlines())) <= 80
    for each in rows.all_rows():
        for line in each.lines:
            measured = Verdict(
                each,
                line,
                stdlib=123_456.0,
                service=0.01234,
                floor=12_345.6 if Side.FLOOR in each.sides else None,
                ratio=0.123,
                spread=(0.1234, 0.2345),
                met=False,
            )
            assert len(table_line(measured)) <= 80
            failed = Verdict(each, line, failed="service: " + "a reason " * 20)
            assert max(map(len, table_line(failed).splitlines())) <= 80


def parsed(verdicts: Sequence[Verdict], title: str = "title") -> ElementTree.Element[Any]:
    return ElementTree.fromstring(chart(verdicts, title=title))


@pytest.mark.parametrize(
    ("service", "colour"),
    [
        ([1] * 5, "less"),
        ([9] * 5, "less"),
        ([11] * 5, "more"),
        ([1, 1, 1, 1, 11], "unclear"),
        ([10] * 5, "unclear"),
    ],
)
def test_a_colour_says_more_or_less_than_the_stdlib(service: list[float], colour: str) -> None:
    # A target is missed with nine of ten, and that has no colour.
    root = parsed([verdict_of([10] * 5, service)])
    drawn = [mark.attrib["class"] for mark in root.iter(f"{SVG}rect")]
    legend = [name for name, _, _ in LEGEND]
    assert drawn == ["back", *legend, colour]


def test_the_legend_says_what_each_colour_means() -> None:
    root = parsed([verdict_of([10] * 5, [1] * 5)])
    said = " ".join(text.text or "" for text in root.iter(f"{SVG}text"))
    for word in ("faster", "slower", "no clear difference", "median", "the stdlib"):
        assert word in said
    assert not re.search("target|missed|met", said)


@pytest.mark.parametrize("service", [[1] * 5, [100_000] * 5, [0.0] * 5])
def test_a_chart_is_well_formed_whatever_the_ratios_are(service: list[float]) -> None:
    root = parsed([verdict_of([10] * 5, service)], title="<&>")
    width = float(root.attrib["width"])
    for mark in [*root.iter(f"{SVG}rect"), *root.iter(f"{SVG}line")]:
        for name, value in mark.attrib.items():
            if name in {"x", "x1", "x2", "width"}:
                assert 0 <= float(value) <= width


def test_a_chart_of_nothing_is_well_formed() -> None:
    parsed([])
