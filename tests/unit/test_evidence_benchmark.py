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
    play_gain,
    read_results,
    section,
    write_section,
)
from benchmarks.evidence.runs import USUAL
from benchmarks.evidence.self_play import (
    MODES,
    SETTINGS,
    PlayCell,
    Player,
    PlayUnit,
    cells_of,
    play_cell,
    play_cells,
    whole_queue,
)
from spftsql.recipes import resolve

FIRST = Unit("geoquery", "question", 30, True, "values", "none", 0)


def measured(unit: Unit, method: str, right: str, covered: str = "11110000") -> Measured:
    one = cell(unit, method)  # type: ignore[arg-type]
    return Measured(one.key, one.name, right, covered, 600, 60.0, "a machine")


def test_cells_are_named_by_what_they_are_about() -> None:
    every = cells(grid())
    assert len({one.key for one in every}) == len({one.name for one in every}) == len(every)
    assert cell(replace(FIRST, filter="ranked"), "control") == cell(FIRST, "control")
    assert cell(replace(FIRST, filter="ranked"), "vbi-1") != cell(FIRST, "vbi-1")
    longer = replace(FIRST, templates="recombined-x4-steps-x3")  # more steps: its control is another
    assert cell(longer, "control") != cell(FIRST, "control") and cell(longer, "sft") == cell(FIRST, "sft")
    assert methods_of(longer) == ("control", "vbi-1", "vbi-2")
    fewer = replace(FIRST, templates="recombined-steps-x3")  # as many steps, so the same control
    assert cell(fewer, "control") == cell(longer, "control") and methods_of(fewer) == ("vbi-1", "vbi-2")


def test_measured_cells_keep_their_keys() -> None:
    """Of these there are lines in `results.jsonl`."""
    assert cell(FIRST, "control").key == "9d4185cf8a35d47e"
    assert cell(replace(FIRST, templates="recombined"), "vbi-1").key == "054c9dbf9f0c3cb3"
    every = {one.key: one.name for unit in whole_queue() for one in cells_of(unit)}
    lines = map(json.loads, (queue.HERE / "results.jsonl").read_text().splitlines())
    assert all(every[line["key"]] == line["name"] for line in lines)


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
    write_section(tmp_path / "new.md", text)  # a long measurement does not end because there is no report yet
    assert (tmp_path / "new.md").read_text().startswith("## Evidence\n")


def test_results_are_appended_and_the_last_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read_results(path) == {}
    append_results(path, [measured(FIRST, "sft", "10000000")])
    append_results(path, [measured(FIRST, "sft", "11000000"), measured(FIRST, "control", "00000000")])
    found = read_results(path)
    assert len(found) == 2 and found[cell(FIRST, "sft").key].right == "11000000"


RECIPE = PlayUnit("recipe", 0)


def played(unit: PlayUnit, player: Player, right: str, iteration: int = 1, voted: bool = False) -> Measured:
    one = play_cell(unit, player, iteration if player != "start" else 0, voted)
    return Measured(one.key, one.name, right, "11110000", 450, 60.0, "a machine")


def test_self_play_stands_after_the_first_cells_of_vbi_ft() -> None:
    units = whole_queue(range(3), range(5))
    assert units[:3] == grid()[:3] and units[3:8] == [PlayUnit("recipe", seed) for seed in range(5)]
    plays = [unit for unit in units if isinstance(unit, PlayUnit)]
    assert units[3 : 3 + len(plays)] == plays and units[3 + len(plays) :] == grid()[3:]
    assert list(dict.fromkeys(unit.setting for unit in plays)) == list(SETTINGS)
    assert len({unit.folder for unit in plays}) == 5  # what settings have in common is built once for a seed


def test_a_cell_of_self_play_for_each_mode_greedy_and_voted() -> None:
    names = [one.name.removeprefix("geoquery/question/30%/linked/self-play/") for one in play_cells(RECIPE)]
    assert names[:2] == ["recipe/start/greedy/s0", "recipe/start/voted/s0"]
    assert names[2:4] == ["recipe/sft/1/greedy/s0", "recipe/sft/1/voted/s0"]
    assert len(names) == 2 * (1 + len(MODES))
    every = list(dict.fromkeys(one for unit in whole_queue() for one in cells_of(unit)))
    assert len({one.key for one in every}) == len({one.name for one in every}) == len(every)
    three = {(one.player, one.iteration) for one in play_cells(PlayUnit("iterations-3", 0)) if one.player != "start"}
    assert three == {(mode, number) for mode in ("sft", "spin", "spft-a") for number in (1, 2, 3)}


def test_a_setting_has_its_own_control_where_it_changes_that() -> None:
    own = {setting for setting in SETTINGS if "sft" in PlayUnit(setting, 0).modes}
    assert own == {
        "recipe", "pool-4-samples", "questions-x4", "questions-x4-pool-4-samples", "near-misses-2", "rate-x10",
        "rate-x100", "epochs-3", "iterations-3", "no-replay", "start-x4-steps-x3",
    }  # fmt: skip
    assert play_cell(PlayUnit("lambda-0.3", 2), "sft", 1, True) == PlayCell(PlayUnit("recipe", 2), "sft", 1, True)
    starts = {setting: play_cell(PlayUnit(setting, 0), "start", 0, False).unit.setting for setting in SETTINGS}
    assert {setting for setting, start in starts.items() if start != "recipe"} == {
        "questions-x4", "questions-x4-pool-4-samples", "start-x4-steps-x3",
    }  # fmt: skip


def test_settings_are_what_their_names_say() -> None:
    config = resolve("geoquery")
    assert (config.vbi.play_pairs, config.selfplay.optimization.learning_rate) == (450, 1e-4)
    assert (config.selfplay.optimization.epochs, config.selfplay.opponent, config.selfplay.replay) == (
        1,
        "weakest",
        0.5,
    )
    usual = resolve("geoquery", [f"{key}={value}" for key, value in USUAL.items()])
    for setting, overrides in SETTINGS.items():
        changed = resolve("geoquery", [f"{key}={json.dumps(value)}" for key, value in {**USUAL, **overrides}.items()])
        assert (changed == usual) == (setting == "recipe")
        assert (changed == config) == (setting == "start-x4-steps-x3")


def test_a_gain_of_self_play_is_paired_with_start_and_control_of_its_kind() -> None:
    done = [
        played(RECIPE, "start", "11000000"),
        played(RECIPE, "start", "11111100", voted=True),
        played(RECIPE, "sft", "11100000"),
        played(RECIPE, "spin", "10000000"),
        played(RECIPE, "spin", "11111111", voted=True),
    ]
    by_key = {one.key: one for one in done}
    spin = play_cell(RECIPE, "spin", 1, False)
    assert play_gain([spin], by_key, "start") == ([-0.125], [1.0])
    assert play_gain([spin], by_key, "control") == ([-0.25], [0.5])
    assert play_gain([replace(spin, voted=True)], by_key, "start") == ([0.25], [0.5])
    assert play_gain([replace(spin, voted=True)], by_key, "control") == ([], [])  # there is no voted control
    sft = play_cell(RECIPE, "sft", 1, False)
    assert play_gain([sft], by_key, "start")[0] == [0.125] and play_gain([sft], by_key, "control") == ([], [])


def test_the_table_of_self_play() -> None:
    units = [PlayUnit(setting, seed) for setting in ("recipe", "lambda-0.3") for seed in (0, 1)]
    done = [
        played(units[0], "start", "11000000"),
        played(units[1], "start", "11100000"),
        played(units[0], "sft", "11110000"),
        played(units[0], "spft-a", "11111100"),
        played(units[1], "spft-a", "11111110"),
        played(units[2], "spft-a", "11111110"),
        played(units[2], "spft-a", "11111111", voted=True),
    ]
    text = section(units, {one.key: one for one in done}, {units[3]: "needs a thing"})
    rows = [line for line in text.splitlines() if line.startswith(("| recipe", "| lambda"))]
    assert len(rows) == 2 * (1 + len(MODES)) + 2
    assert rows[0] == "| recipe | start | 0 | greedy | 0.312 (-0.482 to 1.107) | – | – | – | – | 2 |"
    assert "| recipe | sft | 1 | greedy | 0.500 | +0.250 | 0.5 | – | – | 1 (missing: 1) |" in rows
    (spft,) = [row for row in rows if row.startswith("| recipe | spft-a | 1 | greedy")]
    assert spft.endswith("| +0.500 (+0.500 to +0.500) | 0.12, 0.12 | +0.250 | 0.5 | 2 |")
    assert "| recipe | spin | 1 | voted | missing |  |  |  |  | 0 |" in rows
    # Start and control are those of the recipe; there is no voted start.
    assert rows[-2] == "| lambda-0.3 | spft-a | 1 | greedy | 0.875 | +0.625 | 0.062 | +0.375 | 0.25 | 1 (missing: 1) |"
    assert rows[-1] == "| lambda-0.3 | spft-a | 1 | voted | 1.000 | – | – | – | – | 1 (missing: 1) |"
    assert "needs a thing" in section(units[3:], {}, {units[3]: "needs a thing"})
    assert "Self-play" not in section([FIRST], {}, {})


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "data" / "geoquery").mkdir(parents=True)
    (tmp_path / "RESULTS.md").write_text("# Results\n")
    monkeypatch.setenv("SPFTSQL_DATA", str(tmp_path / "data"))
    return [f"--results={tmp_path / 'results.jsonl'}", f"--report={tmp_path / 'RESULTS.md'}", "--seeds=1"]


def test_the_queue_measures_what_is_missing_and_only_that(
    places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Unit | PlayUnit] = []

    def start(unit: Unit | PlayUnit) -> None:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(unit)

    def measure(unit: Unit, data: Path, runs: Path, model: Path | None) -> list[Measured]:
        start(unit)
        return [measured(unit, method, "11110000") for method in methods_of(unit)]

    def measure_play(unit: PlayUnit, data: Path, runs: Path) -> list[Measured]:
        start(unit)
        marks = {"start": "11000000", "sft": "11100000"}
        return [played(unit, o.player, marks.get(o.player, "11110000"), o.iteration, o.voted) for o in play_cells(unit)]

    monkeypatch.setattr(queue, "measure", measure)
    monkeypatch.setattr(queue, "measure_play", measure_play)
    wanted = whole_queue([0], [0])
    with pytest.raises(KeyboardInterrupt):
        queue.main(places)
    assert ran == wanted[:2] and len(read_results(tmp_path / "results.jsonl")) == 4 + 12
    ran.clear()
    with pytest.raises(KeyboardInterrupt):
        queue.main(places)
    assert ran == wanted[2:4]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 16 + 2 + 2  # the start was there
    assert "missing" in (tmp_path / "RESULTS.md").read_text()
    capsys.readouterr()

    queue.main([*places, "--list"])
    *lines, last = capsys.readouterr().out.splitlines()
    summary = json.loads(last)
    assert summary["measured"] == 20 == sum("measured" in line for line in lines)
    assert summary["gains"] == {f"geoquery/question/30%/linked/vbi-{n}/values/none": 0.0 for n in (1, 2)}
    name = "geoquery/question/30%/linked/self-play/previous/spft-a/1/voted"
    assert summary["self_play"][name] == {"start": 0.25, "control": 0.125}
    ran.clear()
    queue.main([*places, "--only", "10%/linked"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert [unit for unit in ran if isinstance(unit, Unit) and unit.label_share == 10] == ran
    assert json.loads(last)["measured"] == 27
    ran.clear()
    queue.main([*places, "--only", "self-play/rate-x10/"])
    assert ran == [PlayUnit("rate-x10", 0)]
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
    monkeypatch.setattr(queue, "measure_play", lambda *_: pytest.fail("it would end too late"))
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
    monkeypatch.setattr(queue, "measure_play", lambda *_: pytest.fail("nothing can be measured"))
    (tmp_path / "data" / "geoquery").rmdir()
    queue.main([*places, "--only", "self-play/previous"])
    assert "| previous | spft-a | 1 | voted | missing: no geoquery in SPFTSQL_DATA |" in capsys.readouterr().out


def test_a_run_of_another_start_is_paired_with_that(tmp_path: Path) -> None:
    """The same seed trained by other code, or on another machine, gives another start."""
    done = [
        played(RECIPE, "start", "11000000"),
        played(RECIPE, "sft", "11100000"),
        replace(played(RECIPE, "spin", "11110000"), start="11111000"),
    ]
    append_results(tmp_path / "results.jsonl", done)
    by_key = read_results(tmp_path / "results.jsonl")
    spin, sft = play_cell(RECIPE, "spin", 1, False), play_cell(RECIPE, "sft", 1, False)
    assert play_gain([spin], by_key, "start")[0] == [-0.125]
    assert play_gain([spin], by_key, "control") == ([], [])  # the control had another start
    assert play_gain([sft], by_key, "start")[0] == [0.125]
    by_key[sft.key] = replace(by_key[sft.key], start="11111000")
    assert play_gain([spin], by_key, "control")[0] == [0.125]
    assert play_gain([sft], by_key, "start")[0] == [-0.25]
