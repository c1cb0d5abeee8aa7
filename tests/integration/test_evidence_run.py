"""A unit of the evidence, made small: its cells are read off what the loop stored, and stages are shared."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.evidence.cells import Unit
from benchmarks.evidence.runs import measure
from benchmarks.evidence.self_play import PlayUnit, play_cells
from benchmarks.evidence.self_play_runs import measure_play
from spftsql.records import PairRow, read_records
from spftsql.selfplay.lineage import pair_files
from spftsql.selfplay.table import read_outcomes
from tests import trainings

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(1800)]

SMALL = {
    "model.scratch": {"hidden_size": 64, "layers": 1, "heads": 2, "intermediate_size": 128, "dropout": 0.0},
    "generation.max_tokens": 30,
    "training.threads": 1,
    "sft.steps": 60,
    "question_model.steps": 60,
    "vbi.optimization.steps": 20,
    "vbi.train_pairs": 30,
    "vbi.play_pairs": 15,
    "vbi.selection_pairs": 15,
    "synthesis.candidates": 4,
    "synthesis.votes": 2,
}


def test_cells_of_geoquery(tmp_path: Path, data_root: Path) -> None:
    unit = Unit("geoquery", "question", 10, True, "values", "none", 0)
    first = {one.name.split("/")[4]: one for one in measure(unit, data_root, tmp_path, None, SMALL)}
    assert list(first) == ["sft", "control", "vbi-1", "vbi-2"]
    assert {len(one.right) for one in first.values()} == {len(one.covered) for one in first.values()} == {279}
    assert len({one.covered for one in first.values()}) == 1
    assert 0.1 < first["sft"].covered.count("1") / 279 < 0.8
    assert first["vbi-2"].pairs and not first["sft"].pairs
    folder = tmp_path / unit.folder
    result = json.loads((folder / "result.json").read_text())
    assert {row["candidate"]: row["correct"] for row in result["rows"]} == {
        name: one.right.count("1") for name, one in first.items()
    }

    other = measure(replace(unit, filter="ranked"), data_root, tmp_path, None, SMALL)
    assert [one.name.split("/")[4] for one in other] == ["vbi-1", "vbi-2"]
    built = [
        event["name"]
        for event in map(json.loads, (folder / "events.jsonl").read_text().splitlines())
        if event["event"] == "stage" and event["outcome"] == "built"
    ]
    assert built.count("base") == built.count("train-labels") == built.count("generate-questions-1") == 1
    assert built.count("generate-votes-1") == 1  # the filter's own; where it changes nothing, training is shared too
    assert not {one.key for one in other} & {one.key for one in first.values()}


def test_pairs_made_of_labels(tmp_path: Path, data_root: Path) -> None:
    unit = Unit("geoquery", "question", 30, True, "recombined", "none", 0)
    found = measure(unit, data_root, tmp_path, None, {**SMALL, "synthesis.recombination": 0.7})
    assert [one.name.split("/")[4] for one in found] == ["vbi-1", "vbi-2"]
    for file in pair_files(tmp_path / unit.folder):
        rows = read_records(file, PairRow)
        made = [row for row in rows if "parents" in json.loads(row.bindings)]
        trained = [row for row in made if row.part == "train"]
        assert 10 < len(trained) < sum(row.part == "train" for row in rows)  # templates give the others
        assert all(row.question and row.question_model is None for row in trained)
        assert all(row.sql_rows > 0 and row.sql_status == "ran" for row in trained)
        assert all(id_.startswith("geoquery-train-") for row in made for id_ in json.loads(row.bindings)["parents"])


def test_self_play_from_one_start(tmp_path: Path, data_root: Path) -> None:
    """Greedy and voted cells of the same models, on stages that the settings of a seed share."""
    settings = {
        **SMALL,
        "sft.steps": 400,
        "vbi.optimization.steps": 300,
        "vbi.train_pairs": 60,
        "synthesis.recombination": 0.3,
    }
    first = measure_play(PlayUnit("recipe", 0), data_root, tmp_path, settings)
    names = [one.name.split("self-play/")[1] for one in first]
    assert names == [one.name.split("self-play/")[1] for one in play_cells(PlayUnit("recipe", 0))]
    found = dict(zip(names, first, strict=True))
    assert {len(one.right) for one in first} == {279} and len({one.covered for one in first}) == 1
    folder = tmp_path / PlayUnit("recipe", 0).folder
    outcomes = read_outcomes(folder)
    start = found["recipe/start/greedy/s0"]
    # The loop has the gold in canonical form, the evaluation as it was published; the answers are the same.
    assert abs(start.right.count("1") - sum(outcomes.right[outcomes.start].values())) <= 2 < start.right.count("1")
    assert start.right != found["recipe/start/voted/s0"].right
    voted = found["recipe/start/voted/s0"]
    for name, one in found.items():
        assert one.start == (None if "/start/" in name else voted.right if "voted" in name else start.right), name
    played = found["recipe/sft/1/greedy/s0"].pairs
    assert 5 < played == found["recipe/spin/1/greedy/s0"].pairs <= 15 and not start.pairs
    assert len(list((folder / "evaluations").iterdir())) == 6

    near = measure_play(PlayUnit("near-misses-2", 0), data_root, tmp_path, settings)
    assert [one.name.split("near-misses-2/")[-1] for one in near[2:]] == [
        f"{mode}/1/{answers}/s0" for mode in ("sft", "spft-a") for answers in ("greedy", "voted")
    ]
    assert [(one.key, one.right) for one in near[:2]] == [(one.key, one.right) for one in first[:2]]
    assert near[2].pairs == near[4].pairs > 2 * played  # the control takes as many steps
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    built = Counter(e["name"] for e in events if e["event"] == "stage" and e["outcome"] == "built")
    assert built["base"] == built["train-labels"] == built["train-round-1"] == built["verify-near-misses"] == 1
    assert built["train-play-1"] == 2


def test_cells_without_labels(tmp_path: Path, data_root: Path) -> None:
    base = trainings.taught(tmp_path / "taught", "which singers have concerts ?")
    unit = Unit("spider", "concert_singer", 0, True, "library", "none", 0)
    short = {"steps": 2, "batch_size": 8}
    settings = {
        "model.max_length": 1024,
        "prompt.max_schema_tokens": 200,
        "generation.max_tokens": 12,
        "question_model": short,
        "vbi.optimization": short,
        "vbi.train_pairs": 20,
        "vbi.play_pairs": 5,
        "vbi.selection_pairs": 5,
    }
    found = measure(unit, data_root, tmp_path, base, settings)
    assert [one.name.split("/")[4] for one in found] == ["sft", "vbi-1", "vbi-2"]
    assert {len(one.right) for one in found} == {45} and {one.covered for one in found} == {"0" * 45}
