"""Splits of the published layouts, and where their databases are found."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spftsql.errors import UserError
from spftsql.evaluation.locations import database_configs, given_databases
from spftsql.evaluation.sources import read_questions, read_split, splits


def make_database(path: Path, value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"CREATE TABLE t (x); INSERT INTO t VALUES ({value})")
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def row(number: int, db_id: str = "one") -> dict[str, Any]:
    return {"db_id": db_id, "question": f"question {number}", "query": f"SELECT x + {number} FROM t"}


@pytest.fixture
def spider(tmp_path: Path) -> Path:
    """Both of Spider's layouts in one folder, as since 2024: the database `one` differs between them."""
    root = tmp_path / "spider"
    write_rows(root / "dev.json", [row(1), row(2, "two")])
    (root / "dev_gold.sql").write_text("SELECT x + 1  FROM t\tone\nSELECT x + 2 FROM t\ttwo\n\n")
    write_rows(root / "test.json", [row(3), row(4)])
    (root / "test_gold.sql").write_text("SELECT x + 3 FROM t\tone\nSELECT x + 5 FROM t\tone\n")
    make_database(root / "database" / "one" / "one.sqlite")
    make_database(root / "database" / "two" / "two.sqlite")
    make_database(root / "test_database" / "one" / "one.sqlite", value=7)
    return root


def test_spiders_two_layouts(spider: Path) -> None:
    dev, test = read_split("spider", spider), read_split("spider", spider, "test")
    assert (dev.split, test.split) == ("dev", "test")
    assert [file.name for file in test.files] == ["test.json", "test_gold.sql"]
    assert [question.sql for question in dev.rows] == ["SELECT x + 1  FROM t", "SELECT x + 2 FROM t"]
    assert dev.notes == ()
    # Spider's evaluator reads the file of golds.
    assert [question.sql for question in test.rows] == ["SELECT x + 3 FROM t", "SELECT x + 5 FROM t"]
    assert test.notes == ("1 golds of test_gold.sql differ from those of test.json; test_gold.sql is used",)
    assert database_configs("spider", spider)["one"].url == str(spider / "database" / "one" / "one.sqlite")
    of_test = database_configs("spider", spider, "test")
    assert of_test["one"].url == str(spider / "test_database" / "one" / "one.sqlite")
    assert of_test["two"].url == str(spider / "database" / "two" / "two.sqlite")


def test_a_folder_with_the_test_layout_alone(spider: Path) -> None:
    (spider / "dev.json").unlink()
    assert read_split("spider", spider).split == "test"
    with pytest.raises(UserError, match=r"spider: dev\.json .* is missing"):
        read_split("spider", spider, "dev")
    with pytest.raises(UserError, match="spider has no split challenge; known: test, dev, train"):
        read_split("spider", spider, "challenge")


@pytest.mark.parametrize(
    ("golds", "complaint"),
    [
        ("SELECT 1\tone\n", "has 1 golds for the 2 questions"),
        ("SELECT 2\ttwo\nSELECT 1\tone\n", "line 1 is about two, question 0 of .* about one"),
        ("SELECT 1\nSELECT 2\n", "line 1 is about no database"),
    ],
)
def test_golds_that_do_not_fit_the_questions_are_refused(spider: Path, golds: str, complaint: str) -> None:
    (spider / "dev_gold.sql").write_text(golds)
    with pytest.raises(UserError, match=complaint):
        read_split("spider", spider)


def test_robustness_sets_find_spiders_databases_beside_them(spider: Path) -> None:
    dk = spider.parent / "spider-dk"
    write_rows(dk / "Spider-DK.json", [row(1), row(2, "new_two")])
    make_database(dk / "database" / "new_two" / "new_two.sqlite")
    found = database_configs("spider", dk)
    assert found["new_two"].url == str(dk / "database" / "new_two" / "new_two.sqlite")
    assert found["one"].url == str(spider / "database" / "one" / "one.sqlite")
    assert [question.db_id for question in read_split("spider", dk).rows] == ["one", "new_two"]
    assert read_questions("spider", dk, "test").rows == read_split("spider", dk, "dev").rows
    syn = spider.parent / "spider-syn"
    both = {"SpiderQuestion": "old", "SpiderSynQuestion": "new"}
    write_rows(syn / "dev.json", [{"db_id": "one", "query": "SELECT x FROM t", **both}])
    assert read_split("spider", syn).rows[0].question == "new"


def test_birds_splits(tmp_path: Path) -> None:
    def bird(number: int) -> dict[str, Any]:
        return {**row(number), "SQL": f"SELECT {number}", "question_id": number, "difficulty": "simple"}

    write_rows(tmp_path / "mini_dev_sqlite.json", [bird(1471)])
    assert splits("bird", tmp_path)[0] == "mini_dev"
    (question,) = read_split("bird", tmp_path).rows
    assert (question.id, question.sql, question.hardness) == ("1471", "SELECT 1471", "simple")
    write_rows(tmp_path / "dev" / "dev.json", [bird(0)])
    (tmp_path / "dev" / "dev.sql").write_text("SELECT 0\tone")
    dev = read_split("bird", tmp_path)
    assert (dev.split, [file.name for file in dev.files]) == ("dev", ["dev.json", "dev.sql"])
    make_database(tmp_path / "dev" / "dev_databases" / "one" / "one.sqlite")
    assert set(database_configs("bird", tmp_path)) == {"one"}


def test_jsonl_splits_are_files_and_its_databases_may_be_listed(tmp_path: Path) -> None:
    for name in ("test", "hard"):
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps({"db_id": "one", "question": name, "sql": "SELECT 1"}) + "\n"
        )
    assert splits("jsonl", tmp_path) == ("test", "hard")
    assert read_split("jsonl", tmp_path, "hard").rows[0].question == "hard"
    with pytest.raises(UserError, match=r"easy\.jsonl is missing"):
        read_split("jsonl", tmp_path, "easy")
    make_database(tmp_path / "one.sqlite")
    (tmp_path / "databases.yaml").write_text("two: below/two.sqlite\nthree: postgresql://reader@host/three\n")
    urls = {name: config.url for name, config in database_configs("jsonl", tmp_path).items()}
    assert urls == {
        "one": str(tmp_path / "one.sqlite"),
        "two": str(tmp_path / "below" / "two.sqlite"),
        "three": "postgresql://reader@host/three",
    }


def test_files_that_are_no_text(spider: Path) -> None:
    (spider / "dev_gold.sql").write_bytes("SELECT 'é'\tone\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"dev_gold\.sql is not UTF-8 \(byte 8\)"):
        read_split("spider", spider)
    (spider / "dev.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"dev\.json is not UTF-8"):
        read_split("spider", spider)
    (spider / "dev.json").write_bytes(b"\xef\xbb\xbf[]")
    (spider / "dev_gold.sql").unlink()
    assert read_split("spider", spider).rows == ()


def test_databases_that_the_user_names(tmp_path: Path) -> None:
    one = make_database(tmp_path / "databases" / "one" / "one.sqlite")
    two = make_database(tmp_path / "databases" / "two.db")
    found = given_databases(tmp_path / "databases", ["one=elsewhere.sqlite", "three=postgresql://h/three"])
    urls = {name: config.url for name, config in found.items()}
    assert urls == {"one": "elsewhere.sqlite", "two": str(two), "three": "postgresql://h/three"}
    listed = tmp_path / "mine.yaml"
    listed.write_text(f"one: {one}\n")
    assert given_databases(listed, [])["one"].url == str(one)
    for text in ("- one\n", "one: 1\n", "one: [\n"):
        listed.write_text(text)
        with pytest.raises(UserError, match="name: file or URL"):
            given_databases(listed, [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no database file in it"):
        given_databases(tmp_path / "empty", [])
    with pytest.raises(UserError, match="neither a folder nor a YAML file"):
        given_databases(tmp_path / "none", [])
    with pytest.raises(UserError, match="--db takes NAME=URL"):
        given_databases(None, ["=x"])


def test_the_published_sets() -> None:
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        pytest.skip("SPFTSQL_DATA is not set")
    sizes = {"spider": 1034, "spider-syn": 1034, "spider-dk": 535, "spider-realistic": 508}
    for name, size in sizes.items():
        root = Path(data) / name
        questions = read_split("spider", root)
        assert (len(questions.rows), questions.notes) == (size, ())
        assert {question.db_id for question in questions.rows} <= set(database_configs("spider", root))
    bird = Path(data) / "bird"
    assert len(read_split("bird", bird, "dev").rows) == 1534
    assert {len(read_split("bird", bird, f"mini_dev{engine}").rows) for engine in ("", "_mysql", "_postgresql")} == {
        500
    }
    geoquery = Path(data) / "geoquery"
    counts = {name: len(read_split("geoquery", geoquery, name).rows) for name in splits("geoquery", geoquery)}
    assert counts == {"test": 279, "dev": 49, "train": 549, "query-test": 182, "query-dev": 159, "query-train": 536}


def test_the_folder_that_one_is_in_is_a_root_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "database" / "one").mkdir(parents=True)
    (tmp_path / "tables.json").write_text("[]")
    for path in (tmp_path / "shop.sqlite", tmp_path / "database" / "one" / "one.sqlite"):
        sqlite3.connect(path).execute("CREATE TABLE t (a)").connection.close()
    monkeypatch.chdir(tmp_path)
    found = database_configs("jsonl", Path())
    assert {name: config.url for name, config in found.items()} == {
        "shop": "shop.sqlite",
        "one": "database/one/one.sqlite",
    }
    assert found["shop"].descriptions is None and found["one"].descriptions is not None
    assert found["one"].descriptions.absolute() == tmp_path / "tables.json"
    monkeypatch.chdir(tmp_path / "database")
    inside = given_databases(Path(), ())
    assert inside["one"].descriptions is not None and inside["one"].descriptions.absolute() == tmp_path / "tables.json"
