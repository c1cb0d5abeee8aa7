"""`spftsql synthesize`: distinct SQL that gives results, in the file that was asked for, the same every time."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from spftsql.cli import app

SHOP = Path(__file__).parents[1] / "fixtures" / "templates" / "shop.sql"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "shop.sqlite") as connection:
        connection.executescript(SHOP.read_text(encoding="utf-8"))
    tree = {
        "name": "shop",
        "run_dir": str(tmp_path / "runs"),
        "execution": "local",
        "data": {"databases": [{"name": "shop", "url": str(tmp_path / "shop.sqlite")}]},
        "model": {"path": "never loaded"},
        "verification": {"workers": 1},
    }
    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def synthesize(recipe: Path, out: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["synthesize", str(recipe), "--count", "30", "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_sql_alone_in_every_format(recipe: Path, tmp_path: Path) -> None:
    assert "30 statements, all in" in synthesize(recipe, tmp_path / "a.jsonl")
    rows: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len({row["sql"] for row in rows}) == 30 and all(row["question"] is None for row in rows)
    with sqlite3.connect(tmp_path / "shop.sqlite") as connection:
        assert all(len(connection.execute(row["sql"]).fetchall()) == row["rows"] > 0 for row in rows)
    synthesize(recipe, tmp_path / "a.csv")
    synthesize(recipe, tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == rows
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [row["sql"] for row in csv.DictReader(file)] == [row["sql"] for row in rows]
    synthesize(recipe, tmp_path / "b.jsonl", "--set", "seed=1")
    assert (tmp_path / "b.jsonl").read_text() != (tmp_path / "a.jsonl").read_text()


def test_another_kind_of_file_is_refused_before_the_work(recipe: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["synthesize", str(recipe), "--out", str(tmp_path / "a.xlsx")])
    assert "name a file in a folder that is there, ending in .jsonl, .csv, .parquet" in str(result.exception)
    assert not (tmp_path / "runs").exists()
