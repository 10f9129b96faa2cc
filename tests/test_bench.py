"""The benchmark reports what it measured, and nothing else."""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from boundedexec._commands import bench as bench_command
from boundedexec._commands.bench import rows
from boundedexec._commands.bench.pairs import MeasurementFailed, Verdict, judge, measure_row
from boundedexec._commands.bench.report import (
    Processors,
    note_on_others,
    others_busy,
    table_line,
)
from boundedexec._commands.bench.row import Kind, Line, Row, Side
from boundedexec._commands.bench.tools import Figures, NotMeasured

pytestmark = pytest.mark.timeout(120)

SVG = "{http://www.w3.org/2000/svg}"


def bench(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    bench_command.add_arguments(parser)
    return bench_command.run(parser.parse_args(arguments))


def never(size: int) -> Figures:
    raise AssertionError("this test must not run the row itself")


def row_with(*lines: Line, floor: bool = False) -> Row:
    sides = dict.fromkeys([Side.STDLIB, Side.SERVICE], never)
    if floor:
        sides[Side.FLOOR] = never
    return Row("row", "what it does", 100, sides, lines, seconds=1)


RATIO = Line("time", "µs", Kind.RATIO, 0.5)
LIMIT = Line("time", "ms", Kind.LIMIT, 10)
NEVER_ABOVE = Line("time", "threads", Kind.NEVER_ABOVE, 9)
AT_LEAST = Line("time", "×", Kind.AT_LEAST, 1.8)
INFORMATIVE = Line("time", "µs", Kind.INFORMATIVE)


def verdict_of(
    line: Line, stdlib: Sequence[float], service: Sequence[float], *, conclusive: bool = True
) -> Verdict:
    """Return the verdict about `line` where these are the figures of its pairs."""
    left = {Side.STDLIB: list(stdlib), Side.SERVICE: list(service)}

    def measure(row: Row, side: Side, size: int) -> Figures:
        return {"time": left[side].pop(0)}

    outcome = measure_row(row_with(line), 1, len(service), measure=measure)
    (verdict,) = judge(outcome, conclusive=conclusive)
    return verdict


def test_cheap_rows_are_measured_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file, svg_file = tmp_path / "bench.json", tmp_path / "bench.svg"
    status = bench(
        *["--only", "throughput-8", "million", "--scale", "0.001", "--repeat", "2"],
        *["--json", str(json_file), "--plot", str(svg_file)],
    )
    output = capsys.readouterr().out
    assert status == 0, output
    for what in ("throughput-8", "million, wall", "million, peak memory", "million, threads"):
        assert re.search(rf"^{what}  ", output, re.MULTILINE), output

    document = json.loads(json_file.read_text(encoding="utf-8"))
    assert document["complete"] is True
    assert document["repeat"] == 2
    assert document["machine"]["python"] == sys.version.split()[0].rstrip("+")
    throughput, wall, _, threads = document["lines"]
    assert throughput["row"] == "throughput-8"
    assert throughput["size"] == 100
    assert throughput["target"] == 0.20
    assert throughput["met"] is None
    assert [len(throughput["measurements"][side]) for side in ("stdlib", "service", "floor")] == [
        2,
        2,
        2,
    ]
    assert throughput["ratio"] > 0
    assert throughput["spread"][0] <= throughput["ratio"] <= throughput["spread"][1]
    assert wall["unit"] == "s"
    assert "floor" not in wall["measurements"]
    assert threads["kind"] == "never above"
    assert threads["ratio"] is None

    chart_root = ElementTree.parse(svg_file).getroot()
    assert chart_root.tag == f"{SVG}svg"
    assert "throughput-8" in {text.text for text in chart_root.iter(f"{SVG}text")}


@pytest.mark.parametrize(
    ("name", "side"),
    [(row.name, side) for row in rows.all_rows() for side in row.sides],
)
def test_every_row_gives_the_figures_of_its_lines(name: str, side: Side) -> None:
    (row,) = [row for row in rows.all_rows() if row.name == name]
    figures = row.sides[side](row.scaled(0.001))
    if (side is Side.SERVICE or Side.SERVICE not in row.sides) and sys.platform == "linux":
        assert set(figures) == {line.figure for line in row.lines}
    assert all(math.isfinite(value) for value in figures.values())


def test_a_table_from_a_busy_machine_has_a_warning() -> None:
    before = Processors(wall=100, busy=50, own=10)
    others = others_busy(before, Processors(wall=110, busy=68, own=15))
    assert others == 1.3
    assert "1.3 processors" in note_on_others(others)
    assert note_on_others(others_busy(before, Processors(wall=110, busy=60, own=20))) == ""
    assert note_on_others(others_busy(before, None)) == ""


def test_list_prints_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--list") == 0
    output = capsys.readouterr().out
    for row in rows.all_rows():
        assert re.search(rf"^{row.name}  ", output, re.MULTILINE)


def test_only_takes_several_names_and_patterns(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--list", "--only", "throughput-?", "idle", "--only", "map") == 0
    names = re.findall(r"^(\S+)", capsys.readouterr().out, re.MULTILINE)
    assert names == ["throughput-1", "throughput-8", "map", "idle"]


def test_an_unknown_row_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--only", "idle", "no-such-row") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "'no-such-row'" in captured.err
    assert "'idle'" not in captured.err
    assert "throughput-8" in captured.err


def test_a_missing_directory_is_reported_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    assert bench("--json", str(missing / "bench.json")) == 2
    assert str(missing) in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--repeat", "0"], ["--scale", "0"], ["--repeat", "x"]])
def test_an_invalid_number_is_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench(*arguments)
    assert caught.value.code == 2


def test_the_sides_of_a_pair_alternate_in_going_first() -> None:
    order: list[Side] = []

    def measure(row: Row, side: Side, size: int) -> Figures:
        order.append(side)
        return {"time": 1.0}

    measure_row(row_with(RATIO, floor=True), 1, 3, measure=measure)
    stdlib, service, floor = Side
    assert order == [stdlib, service, floor, service, stdlib, floor, stdlib, service, floor]


def test_a_ratio_is_the_median_of_the_ratios_within_the_pairs() -> None:
    verdict = verdict_of(RATIO, [10, 20, 10, 40, 10], [1, 6, 4, 4, 9])
    # Each is one division of whole numbers, which rounds as the literal does.
    assert verdict.ratio == 0.3
    assert verdict.spread == (0.1, 0.9)
    assert verdict.met is True
    assert "0.300" in table_line(verdict)


@pytest.mark.parametrize(
    ("line", "service", "met"),
    [
        (RATIO, [5] * 5, True),
        (RATIO, [4, 4, 6, 6, 6], False),
        (LIMIT, [9, 9, 10, 20, 20], True),
        (LIMIT, [11] * 5, False),
        (NEVER_ABOVE, [9] * 5, True),
        (NEVER_ABOVE, [9, 9, 9, 9, 10], False),
        (AT_LEAST, [1.9] * 5, True),
        (AT_LEAST, [1.7] * 5, False),
    ],
)
def test_a_target_is_met_by_the_measurements(line: Line, service: list[float], met: bool) -> None:
    assert verdict_of(line, [10] * 5, service).met is met


def test_an_informative_line_has_figures_and_no_verdict() -> None:
    verdict = verdict_of(INFORMATIVE, [10] * 5, [7] * 5)
    assert (verdict.stdlib, verdict.service, verdict.met) == (10, 7, None)
    assert "≤" not in table_line(verdict)


def test_a_row_may_have_the_floor_alone() -> None:
    row = Row("row", "what it does", 100, {Side.FLOOR: never}, (INFORMATIVE,), seconds=1)
    outcome = measure_row(row, 1, 2, measure=lambda row, side, size: {"time": 3.0})
    (verdict,) = judge(outcome, conclusive=True)
    assert outcome.pairs == [{Side.FLOOR: {"time": 3.0}}] * 2
    assert (verdict.stdlib, verdict.service, verdict.floor, verdict.met) == (None, None, 3.0, None)


def test_there_is_no_verdict_from_too_few_pairs_or_at_another_size() -> None:
    assert verdict_of(RATIO, [10] * 4, [1] * 4).met is None
    assert verdict_of(RATIO, [10] * 5, [1] * 5, conclusive=False).met is None


def raising(error: Exception) -> Callable[[Row, Side, int], Figures]:
    def measure(row: Row, side: Side, size: int) -> Figures:
        if side is Side.SERVICE:
            raise error
        return {"time": 1.0}

    return measure


def test_a_row_that_this_machine_cannot_measure_has_the_reason_in_the_table() -> None:
    outcome = measure_row(row_with(RATIO), 1, 5, measure=raising(NotMeasured("no memory")))
    (verdict,) = judge(outcome, conclusive=True)
    assert (verdict.ratio, verdict.met) == (None, None)
    assert "not measured here: no memory" in table_line(verdict)


def test_a_figure_that_this_machine_does_not_report_is_named_in_the_table() -> None:
    peak = Line("peak", "MB", Kind.RATIO, 0.15, "peak")

    def measure(row: Row, side: Side, size: int) -> Figures:
        return {"time": 1.0}

    outcome = measure_row(row_with(RATIO, peak), 1, 5, measure=measure)
    measured, missing = judge(outcome, conclusive=True)
    assert measured.ratio == 1.0
    assert (missing.ratio, missing.met) == (None, None)
    assert "not measured here" in table_line(missing)


def test_a_failed_measurement_is_reported_and_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The process that measures does not know a row that exists only in this one.
    monkeypatch.setattr(bench_command, "all_rows", lambda: (row_with(RATIO),))
    assert bench("--repeat", "1") == 1
    output = capsys.readouterr().out
    assert re.search(r"^row  failed: stdlib: exit status 1", output, re.MULTILINE)


def test_a_failed_measurement_gives_no_verdict() -> None:
    outcome = measure_row(row_with(RATIO), 1, 5, measure=raising(MeasurementFailed("it hangs")))
    (verdict,) = judge(outcome, conclusive=True)
    assert (verdict.ratio, verdict.met) == (None, None)
    assert "failed: it hangs" in table_line(verdict)


def test_rows_and_targets_for_free_threading_hold_only_without_a_gil(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def names() -> set[str]:
        return {row.name for row in rows.all_rows() if row.name.startswith("free-")}

    def targets() -> list[float | None]:
        return [
            row.lines[0].target for row in rows.all_rows() if row.name in {"cancel", "round-trip"}
        ]

    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    assert (names(), targets()) == (set(), [0.60, 0.75])
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False)
    assert (names(), targets()) == ({"free-scaling", "free-throughput"}, [0.70, 1.00])


def test_every_line_has_a_target_unless_it_is_informative() -> None:
    for row in rows.all_rows():
        for line in row.lines:
            assert (line.target is None) == (line.kind is Kind.INFORMATIVE), (row, line)


def test_the_http_server_ends_with_its_standard_input() -> None:
    script = Path(bench_command.__file__).with_name("http_server.py")
    with subprocess.Popen(
        [sys.executable, "-I", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        assert int(server.stdout.readline()) > 0
        server.stdin.close()
        assert server.wait(timeout=30) == 0
