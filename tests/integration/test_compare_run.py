"""`spftsql compare` for real: what methods have in common is done once, and a method alone gives the same."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spftsql.comparison.command import run_compare
from spftsql.config import Config
from spftsql.progress import Reporter
from spftsql.recipes import resolve
from spftsql.reporting.run_record import read_run
from spftsql.selfplay.retention import has_weights
from spftsql.selfplay.run import run
from spftsql.selfplay.table import load_result
from tests import loops

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(1800)]

LOCAL = {"execution": "local", "generation.engine": "transformers"}


def recipe(run_dir: Path, **settings: Any) -> Config:
    overrides = {**loops.SMALL, **LOCAL, "run_dir": str(run_dir), **settings}
    return resolve("demo", [f"{name}={value}" for name, value in overrides.items()])


def built(*runs: Path) -> Counter[str]:
    events = [json.loads(line) for run in runs for line in (run / "events.jsonl").read_text().splitlines()]
    return Counter(f"{e['name']}-{e['key']}" for e in events if e.get("outcome") == "built")


def test_methods_share_what_they_have_in_common_and_resume(tmp_path: Path) -> None:
    out = tmp_path / "compare.json"
    config = recipe(tmp_path)
    run_compare(config, ["vbi", "sft", "spft-a"], 1, out, Reporter(), Console())
    root = tmp_path / "demo-compare" / "seed-0"
    runs = [root / method for method in ("vbi", "sft", "spft-a")]
    once = built(*runs)
    assert set(once.values()) == {1}
    names = Counter(name.rpartition("-")[0] for name in once)
    assert names["base"] == names["train-round-1"] == names["generate-round-1"] == 1
    assert names["train-play-1"] == names["generate-play-1"] == 2  # sft and spft-a
    table = json.loads(out.read_text())
    assert [row["method"] for row in table["methods"]] == ["vbi", "sft", "spft-a"]
    results = [load_result(one) for one in runs]
    assert [row["seeds"][0]["right"] for row in table["methods"]] == [one.rows[-1].correct for one in results]
    assert [one.rows[:3] for one in results] == [results[0].rows] * 3  # SFT, its control, VBI-FT
    assert read_run(runs[2]).finished

    run_compare(config, ["vbi", "sft", "spft-a", "spin"], 1, out, Reporter(), Console())
    again = built(*runs, root / "spin") - once
    assert {name.rpartition("-")[0] for name in again} == {"train-play-1", "generate-play-1", "verify-play-1"}

    base = next((root / "stages").glob("base-*"))
    shutil.copytree(base, tmp_path / "demo" / "stages" / base.name)
    alone = run(recipe(tmp_path, **{"selfplay.baselines": "[]"}), Reporter())
    assert alone.rows == results[2].rows and alone.decisions == results[2].decisions


def test_weights_that_nobody_needs_go_and_come_back_when_settings_ask_for_them(tmp_path: Path) -> None:
    settings = {"retention": "needed", "selfplay.baselines": "[]", "gate.enabled": "false"}
    whole = run(recipe(tmp_path / "all", **{**settings, "retention": "all"}), Reporter())
    base = next((tmp_path / "all" / "demo" / "stages").glob("base-*"))
    shutil.copytree(base, tmp_path / "few" / "demo" / "stages" / base.name)
    first = run(recipe(tmp_path / "few", **settings), Reporter())
    assert first.rows == whole.rows
    stages = tmp_path / "few" / "demo" / "stages"
    models = {path.parent.name: has_weights(path.parent) for path in stages.glob("train-*/*/spftsql.json")}
    assert {name for name, there in models.items() if there} == {first.served}
    assert len(models) == 5  # sft, question-0, vbi-1, control, spft-a-1

    before = built(tmp_path / "few" / "demo")
    assert run(recipe(tmp_path / "few", **settings), Reporter()) == first
    assert built(tmp_path / "few" / "demo") == before  # a resume of the same settings needs no weights

    events = tmp_path / "few" / "demo" / "events.jsonl"
    seen = len(events.read_text().splitlines())
    # The question model has other questions to write, and everybody answers them.
    more = run(recipe(tmp_path / "few", **settings, **{"synthesis.candidates": "5"}), Reporter())
    told = [json.loads(line) for line in events.read_text().splitlines()[seen:]]
    trained = [event["name"] for event in told if event["event"] == "trained"]
    assert "question-0" in trained and "sft" in trained and trained.index("question-0") < trained.index("vbi-1")
    assert len(more.rows) == len(first.rows)
