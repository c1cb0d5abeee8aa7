"""The loop from databases alone: templates from the library, questions by the base model, no labels, no gate, no test.

The base model is a tiny one of random weights, in one process: what it writes is noise, and the loop takes it as it is.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.planning.dry_run import dry_run
from spftsql.progress import Reporter
from spftsql.recipes import validate
from spftsql.records import PairRow, read_records
from spftsql.selfplay.run import run as run_loop
from spftsql.synthesis.library import read_templates
from tests import loops, trainings

SHOP = Path(__file__).parents[1] / "fixtures" / "templates" / "shop.sql"
SETTINGS = {
    "execution": "local",
    "model": {"dtype": "float32", "max_length": 1024},
    "prompt": {"max_schema_tokens": 200},
    "generation": {"engine": "transformers", "max_tokens": 12, "batch_size": 64},
    "training": {"micro_batch": 8},
    "question_model": {"steps": 2, "batch_size": 8},
    "synthesis": {"candidates": 2, "filter": "confident_disagreement", "votes": 2},
    "vbi": {
        "rounds": 2,
        "train_pairs": 12,
        "play_pairs": 6,
        "selection_pairs": 6,
        "optimization": {"steps": 2, "batch_size": 8},
    },
    "selfplay": {"optimization": {"steps": 2, "batch_size": 8}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.taught(tmp_path_factory.mktemp("base"), "which artists have albums ?")


def tree(tmp_path: Path, databases: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    """A recipe with databases and no benchmark; `section__key` settings are laid over it."""
    found: dict[str, Any] = {
        "name": "free",
        "run_dir": str(tmp_path),
        "data": {"databases": [{"name": name, "url": url} for name, url in databases.items()]},
        **SETTINGS,
    }
    for path, value in settings.items():
        section, _, key = path.partition("__")
        found[section] = {**found.get(section, {}), key: value}
    return found


def free(tmp_path: Path, databases: dict[str, str], base: Path) -> Config:
    return validate(tree(tmp_path, databases, {"model__path": str(base)}), "recipe")


def run(tmp_path: Path, databases: dict[str, str], base: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """`spftsql run` with a model path; checks that nothing heavy was imported."""
    recipe = tmp_path / "free.yaml"
    recipe.write_text(yaml.safe_dump(tree(tmp_path, databases, {"model__path": str(base), **settings})))
    return subprocess.run(
        [sys.executable, "-c", loops.LIGHT, "run", str(recipe)], capture_output=True, text=True, timeout=900
    )


def check(done: subprocess.CompletedProcess[str], folder: Path, databases: set[str]) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no labels: templates from the library, questions by the base model" in done.stderr
    assert "no gate set" in done.stderr and "no test set" in done.stderr
    assert "No test set: accuracy on the synthetic questions" in done.stdout
    result = json.loads((folder / "result.json").read_text())
    assert result["exam"] == "selection" and not result["decisions"]
    methods = {row["method"]: row for row in result["rows"]}
    assert set(methods) == {"base model", "+ VBI-FT, round 1", "+ VBI-FT, round 2", "+ SPFT-SQL"}
    assert methods["base model"]["candidate"] == "base" and methods["+ VBI-FT, round 2"]["candidate"] == "vbi-2"
    names = {path.name.rpartition("-")[0] for path in (folder / "stages").iterdir()}
    assert not {"train-labels", "verify-labels", "base"} & names and "generate-votes-1" in names

    for round_ in (1, 2):
        rows = read_records(folder / "pairs" / f"round-{round_}.parquet", PairRow)
        assert {row.db_id for row in rows} == databases
        parts = Counter(row.part for row in rows if row.kept)
        assert parts["train"] and (round_ == 2 or (parts["play"] and parts["selection"]))
        assert all(row.kept == (not row.reason) == bool(row.part) for row in rows)
        assert all(row.question and row.votes == 2 and row.voter and row.question_model for row in rows if row.kept)
    templates = read_templates(folder / "templates.jsonl")
    assert {row.template for row in rows} <= {template.id for template in templates}


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_a_loop_without_labels(tmp_path: Path, base: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.sqlite") as connection:
        connection.executescript(SHOP.read_text(encoding="utf-8"))
    databases = {"shop": str(tmp_path / "shop.sqlite")}
    check(run(tmp_path, databases, base), tmp_path / "free", {"shop"})


@pytest.mark.integration
def test_a_model_that_writes_no_question_is_named_as_the_reason(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.sqlite") as connection:
        connection.executescript(SHOP.read_text(encoding="utf-8"))
    base = trainings.taught(tmp_path, "SELECT name FROM table")
    done = run(tmp_path, {"shop": str(tmp_path / "shop.sqlite")}, base, synthesis__temperature=0.05)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    complaint = done.stderr.splitlines()[-1]
    assert "none of 31 synthetic statements got a question (31 no question)" in complaint


@pytest.mark.integration
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_chinook_and_a_database_of_spider_without_labels(tmp_path: Path, base: Path, data_root: Path) -> None:
    chinook = next((data_root / "samples" / "chinook").glob("*.sqlite"))
    spider = data_root / "spider" / "database" / "concert_singer" / "concert_singer.sqlite"
    databases = {"chinook": str(chinook), "concert_singer": str(spider)}
    check(run(tmp_path, databases, base), tmp_path / "free", set(databases))


@pytest.mark.integration
def test_what_cannot_work_is_said_in_one_line(tmp_path: Path, base: Path) -> None:
    with sqlite3.connect(tmp_path / "empty.sqlite") as connection:
        connection.executescript("CREATE TABLE a (x INTEGER PRIMARY KEY, y TEXT); CREATE TABLE b (z TEXT)")
    empty = {"empty": str(tmp_path / "empty.sqlite")}
    for settings, complaint in (
        ({"model__path": str(base)}, "no synthetic SQL can be written: the databases have no rows"),
        ({"model__scratch": {}}, "without labels a model from scratch has no words"),
        ({"model__path": str(base), "vbi__rounds": 0}, "without labels there is nothing to train on"),
    ):
        with pytest.raises(UserError, match=complaint):
            run_loop(validate(tree(tmp_path, empty, settings), "recipe"), Reporter())
    assert any("database empty: 2 tables, 0 rows" in line for line in dry_run(free(tmp_path, empty, base)).lines)
    missing = dry_run(free(tmp_path, {"gone": str(tmp_path / "gone.sqlite")}, base)).problems
    assert len(missing) == 1 and "gone.sqlite" in missing[0]
    with pytest.raises(UserError, match=r"set data.benchmark, or data.databases to learn without labels"):
        validate(tree(tmp_path, {}, {"model__path": str(base)}), "recipe")
