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
from rich.console import Console
from typer.testing import CliRunner

from spftsql.cli import app
from spftsql.errors import UserError
from spftsql.synthesis.command import extract_templates
from spftsql.synthesis.library import read_templates

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


def test_templates_of_a_file_are_filled(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "templates.jsonl"
    labels = ["SELECT name FROM customer WHERE City = 'Turin'", "SELECT title FROM product WHERE title = 'desk'"]
    rows = [{"db_id": "shop", "question": "?", "sql": sql} for sql in labels]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    extract_templates("jsonl", tmp_path, "train", file, Console(quiet=True))
    options = ("--set", f"synthesis.templates={file}", "--set", "synthesis.column_substitution=1.0")
    synthesize(recipe, tmp_path / "a.jsonl", *options)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    known = {template.id for template in read_templates(file)}
    assert rows and {row["template"] for row in rows} <= known
    pool = read_templates(tmp_path / "runs" / "shop" / "templates.jsonl")
    assert {template.id for template in pool} == known


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "templates.jsonl cannot be read: No such file or directory"),
        (b"\xff\xfe", "templates.jsonl cannot be read: it is no UTF-8 text"),
        (b'{"id": "x"}\n', "templates.jsonl, line 1 is not a template: 'slots' is missing"),
        (b"", "templates.jsonl holds no templates"),
    ],
)
def test_a_file_that_holds_no_templates_ends_in_one_line(
    content: bytes | None, message: str, recipe: Path, tmp_path: Path
) -> None:
    file = tmp_path / "templates.jsonl"
    if content is not None:
        file.write_bytes(content)
    result = CliRunner().invoke(app, ["synthesize", str(recipe), "--set", f"synthesis.templates={file}"])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception) and "\n" not in str(result.exception)
