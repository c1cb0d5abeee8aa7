"""What `data check` says about directories that hold all, some or none of a benchmark."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from spftsql.errors import UserError
from spftsql.evaluation.data_check import check_data, render_findings


@pytest.fixture
def spider(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        file = tmp_path / "database" / name / f"{name}.sqlite"
        file.parent.mkdir(parents=True)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE t (x)")
    rows = [{"db_id": name, "question": "how many", "query": "SELECT count(*) FROM t"} for name in ("one", "two")]
    for name in ("dev.json", "train_spider.json"):
        (tmp_path / name).write_text(json.dumps(rows))
    return tmp_path


def states(root: Path, benchmark: str = "spider") -> dict[str, str]:
    return {finding.item: finding.state for finding in check_data(root, benchmark)}


def test_a_complete_benchmark(spider: Path) -> None:
    assert states(spider) == {
        "train questions": "ok",
        "gate questions": "absent",
        "test questions": "ok",
        "databases": "ok",
    }
    text = render_findings(check_data(spider, "spider"))
    assert "2 over 2 databases (train_spider.json)" in text
    assert "2 of the 2 that the questions need" in text


def test_missing_questions_and_databases_come_with_advice(spider: Path) -> None:
    (spider / "train_spider.json").unlink()
    (spider / "database" / "two" / "two.sqlite").write_text("not a database, but long enough to look like a file")
    findings = {finding.item: finding for finding in check_data(spider, "spider")}
    assert findings["train questions"].state == "missing"
    assert "train_spider.json is missing" in findings["train questions"].detail
    assert findings["databases"].state == "partial"
    assert "1 of the 2 that the questions need; 1 of 2 questions cannot be used" in findings["databases"].detail
    assert "not a SQLite database" in findings["databases"].advice
    (spider / "database" / "two" / "two.sqlite").unlink()
    advice = check_data(spider, "spider")[-1].advice
    assert advice == "missing: two; each belongs at database/NAME/NAME.sqlite"


def test_further_splits_are_told(spider: Path) -> None:
    rows = [{"db_id": name, "question": "how many", "query": "SELECT count(*) FROM t"} for name in ("one", "three")]
    (spider / "test.json").write_text(json.dumps(rows))
    findings = {finding.item: finding for finding in check_data(spider, "spider")}
    assert findings["split test"].state == "partial"
    assert findings["split test"].detail == "2 over 2 databases (test.json), 1 of them missing"
    assert findings["split test"].advice == "missing: three"
    assert findings["databases"].state == "ok"
    (spider / "test_database" / "three").mkdir(parents=True)
    (spider / "database" / "two" / "two.sqlite").rename(spider / "test_database" / "three" / "three.sqlite")
    assert states(spider)["split test"] == "ok"
    (spider / "test_gold.sql").write_text("SELECT 1\tone\n")
    assert "has 1 golds for the 2 questions" in {f.item: f.detail for f in check_data(spider, "spider")}["split test"]


def test_a_folder_with_spiders_test_set_alone(spider: Path) -> None:
    (spider / "dev.json").rename(spider / "test.json")
    (spider / "train_spider.json").unlink()
    assert states(spider) == {
        "train questions": "missing",
        "gate questions": "absent",
        "test questions": "absent",
        "split test": "ok",
    }


def test_an_empty_directory_and_none_at_all(tmp_path: Path) -> None:
    assert set(states(tmp_path, "geoquery").values()) == {"missing"}
    with pytest.raises(UserError, match="is not a directory"):
        check_data(tmp_path / "none", "spider")
    with pytest.raises(UserError, match="unknown benchmark wikisql"):
        check_data(tmp_path, "wikisql")


def test_the_published_benchmarks() -> None:
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        pytest.skip("SPFTSQL_DATA is not set")
    assert set(states(Path(data) / "geoquery", "geoquery").values()) == {"ok"}
    for name in ("spider-syn", "spider-dk", "spider-realistic"):
        assert states(Path(data) / name, "spider")["test questions"] == "ok"
    assert states(Path(data) / "bird", "bird")["split mini_dev"] == "partial"
    bird = {finding.item: finding for finding in check_data(Path(data) / "bird", "bird")}
    assert bird["train questions"].state == "missing"
    assert bird["databases"].detail == ("1 of the 11 that the questions need; 1405 of 1534 questions cannot be used")


def test_databases_of_the_recipe_may_lie_elsewhere(tmp_path: Path) -> None:
    from spftsql.config import DatabaseConfig

    (tmp_path / "labels").mkdir()
    for name in ("train", "gate", "test"):
        row = {"db_id": "sales", "question": "how many", "sql": "SELECT COUNT(*) FROM orders"}
        (tmp_path / "labels" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    with closing(sqlite3.connect(tmp_path / "sales.sqlite")) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    assert check_data(tmp_path / "labels", "jsonl")[-1].state != "ok"
    given = {"sales": DatabaseConfig(name="sales", url=str(tmp_path / "sales.sqlite"))}
    assert check_data(tmp_path / "labels", "jsonl", given)[-1].state == "ok"
