"""The queue of evidence: cells that are named by what they are about, tables over seeds, a queue that goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.evidence import __main__ as queue
from benchmarks.evidence.cells import Unit, cell, cells, grid, methods_of
from benchmarks.evidence.results import (
    BEGIN,
    END,
    Measured,
    append_results,
    gain,
    mean_with_interval,
    read_results,
    section,
    write_section,
)

FIRST = Unit("geoquery", "question", 30, True, "values", "none", 0)


def measured(unit: Unit, method: str, right: str, covered: str = "11110000") -> Measured:
    one = cell(unit, method)  # type: ignore[arg-type]
    return Measured(one.key, one.name, right, covered, 600, 60.0, "a machine")


def test_cells_are_named_by_what_they_are_about() -> None:
    every = cells(grid())
    assert len({one.key for one in every}) == len({one.name for one in every}) == len(every)
    assert cell(replace(FIRST, filter="ranked"), "control") == cell(FIRST, "control")
    assert cell(replace(FIRST, filter="ranked"), "vbi-1") != cell(FIRST, "vbi-1")


def test_the_smallest_grid_comes_first_and_holds_what_is_asked_for() -> None:
    units = grid()
    assert units[:3] == [replace(FIRST, seed=seed) for seed in (0, 1, 2)]
    assert {unit.linking for unit in units[:6]} == {True, False}
    assert {unit.label_share for unit in units} == {30, 10, 100, 0}
    assert methods_of(FIRST) == ("sft", "control", "vbi-1", "vbi-2")
    assert methods_of(replace(FIRST, filter="ranked")) == ("vbi-1", "vbi-2")  # the others are there already


def test_accuracy_covered_and_not() -> None:
    one = measured(FIRST, "sft", "11100010")
    assert (one.accuracy(), one.accuracy(covered=True), one.accuracy(covered=False)) == (0.5, 0.75, 0.25)
    assert measured(FIRST, "sft", "1", "1").accuracy(covered=False) is None


def test_a_gain_is_paired_with_the_control_of_its_seed() -> None:
    done = [measured(FIRST, "control", "10000000"), measured(FIRST, "vbi-1", "11111110")]
    gains, ps = gain([cell(FIRST, "vbi-1")], {one.key: one for one in done})
    assert gains == [0.75] and ps == [pytest.approx(2 / 2**6)]
    assert gain([cell(FIRST, "vbi-1")], {done[1].key: done[1]}) == ([], [])


def test_intervals_over_seeds() -> None:
    assert mean_with_interval([0.5]) == "0.500"
    assert mean_with_interval([0.4, 0.5, 0.6]) == "0.500 (0.252 to 0.748)"  # t = 4.303, s = 0.1
    assert mean_with_interval([0.1, -0.1], signed=True).startswith("+0.000 (")


def test_the_section_says_what_is_missing_and_replaces_itself(tmp_path: Path) -> None:
    units = [FIRST, replace(FIRST, seed=1)]
    done = [measured(FIRST, "control", "10000000"), measured(FIRST, "vbi-1", "11111110")]
    text = section(units, {one.key: one for one in done}, {FIRST: "needs a thing"})
    rows = [line for line in text.splitlines() if line.startswith("| geoquery")]
    assert len(rows) == 4
    assert "missing: needs a thing" in rows[0] and "| 0 |" in rows[0]
    assert "0.875 | 1.000 | 0.750 | +0.750 | 0.031 | 1 (missing: 1) |" in rows[2]
    report = tmp_path / "RESULTS.md"
    report.write_text("# Results\n\n## Other\n\ntext\n")
    write_section(report, text)
    assert report.read_text().startswith("# Results\n\n## Other\n\ntext\n\n## Evidence\n")
    report.write_text(report.read_text() + "\n## After\n")
    write_section(report, text)
    write_section(report, text.replace("0.875", "0.625"))
    whole = report.read_text()
    assert whole.count(BEGIN) == whole.count(END) == 1 and "0.625" in whole and "0.875" not in whole
    assert whole.endswith("\n## After\n")


def test_results_are_appended_and_the_last_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read_results(path) == {}
    append_results(path, [measured(FIRST, "sft", "10000000")])
    append_results(path, [measured(FIRST, "sft", "11000000"), measured(FIRST, "control", "00000000")])
    found = read_results(path)
    assert len(found) == 2 and found[cell(FIRST, "sft").key].right == "11000000"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "data" / "geoquery").mkdir(parents=True)
    (tmp_path / "RESULTS.md").write_text("# Results\n")
    monkeypatch.setenv("SPFTSQL_DATA", str(tmp_path / "data"))
    return [f"--results={tmp_path / 'results.jsonl'}", f"--report={tmp_path / 'RESULTS.md'}", "--seeds=1"]


def test_the_queue_measures_what_is_missing_and_only_that(
    places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Unit] = []

    def measure(unit: Unit, data: Path, runs: Path, model: Path | None) -> list[Measured]:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(unit)
        return [measured(unit, method, "11110000") for method in methods_of(unit)]

    monkeypatch.setattr(queue, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        queue.main(places)
    assert ran == grid([0])[:2] and len(read_results(tmp_path / "results.jsonl")) == 8
    ran.clear()
    with pytest.raises(KeyboardInterrupt):
        queue.main(places)
    assert ran == grid([0])[2:4]
    assert "missing" in (tmp_path / "RESULTS.md").read_text()
    capsys.readouterr()

    queue.main([*places, "--list"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["measured"] == 12 == sum("measured" in line for line in lines)
    ran.clear()
    queue.main([*places, "--only", "10%/linked"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert {unit.label_share for unit in ran} == {10} and json.loads(last)["measured"] == 18
    with pytest.raises(SystemExit, match="no cell is named nothing"):
        queue.main([*places, "--only", "nothing"])


def test_no_run_is_started_that_would_end_too_late(
    places: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 100_000, 150))  # seconds: each look at the clock is 2.5 minutes later
    monkeypatch.setattr(queue.time, "monotonic", lambda: float(next(clock)))
    ran: list[Unit] = []

    def measure(unit: Unit, data: Path, runs: Path, model: Path | None) -> list[Measured]:
        ran.append(unit)
        return [measured(unit, method, "1111", "1111") for method in methods_of(unit)]

    monkeypatch.setattr(queue, "measure", measure)
    queue.main([*places, "--max-minutes", "8"])
    assert len(ran) == 1
    assert "stopped after" in capsys.readouterr().out


def test_a_cell_that_needs_what_is_not_there_is_missing_with_the_reason(
    places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(queue, "measure", lambda *_: pytest.fail("nothing can be measured"))
    (tmp_path / "data" / "spider").mkdir()
    queue.main([*places, "--only", "spider/"])
    assert "needs --model, a pre-trained one" in capsys.readouterr().out
