"""Reading benchmarks: parts, shares of labels, what is set aside, and what is refused."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spftsql.config import DatabaseConfig, DataConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.errors import UserError
from spftsql.evaluation.benchmarks import load_benchmark
from spftsql.evaluation.hardness import spider_hardness


@pytest.fixture
def published() -> Path:
    root = os.environ.get("SPFTSQL_DATA")
    if not root:
        pytest.skip("SPFTSQL_DATA is not set")
    return Path(root)


def make_database(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE city (name TEXT, population INTEGER);"
            "INSERT INTO city VALUES ('Oslo', 700000), ('Bergen', 290000), ('Bergen', 1);"
        )
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def question(number: int, db_id: str = "towns") -> dict[str, Any]:
    sql = f"SELECT name FROM city WHERE population > {number}"
    return {"db_id": db_id, "question": f"which cities exceed {number}", "sql": sql}


@pytest.fixture
def towns(tmp_path: Path) -> DataConfig:
    make_database(tmp_path / "database" / "towns" / "towns.sqlite")
    write_lines(tmp_path / "train.jsonl", [question(n) for n in range(40)])
    write_lines(tmp_path / "test.jsonl", [question(n) for n in range(100, 110)])
    return DataConfig(benchmark="jsonl", root=tmp_path, gate_share=0.25)


def test_label_share_and_gate_share_are_drawn_by_seed(towns: DataConfig, tmp_path: Path) -> None:
    half = towns.model_copy(update={"label_share": 0.5})
    first, again, other = (load_benchmark(half, seed, tmp_path) for seed in (0, 0, 1))
    assert (len(first.train), len(first.gate), len(first.test), first.withheld) == (15, 5, 10, 20)
    assert first == again
    assert {e.id for e in first.train} != {e.id for e in other.train}
    assert not {e.id for e in first.train} & {e.id for e in first.gate}
    assert [e.id for e in first.train] == sorted(e.id for e in first.train)
    assert first.test == other.test  # no seed chooses what the table reads


def test_a_gate_file_is_used_as_it_is(towns: DataConfig, tmp_path: Path) -> None:
    write_lines(tmp_path / "gate.jsonl", [question(n) for n in range(3)])
    benchmark = load_benchmark(towns, 0, tmp_path)
    assert (len(benchmark.train), len(benchmark.gate)) == (40, 3)


def test_examples_of_one_structure_share_a_template(towns: DataConfig, tmp_path: Path) -> None:
    other = question(0) | {"sql": "SELECT count(*) FROM city", "evidence": "all of them", "difficulty": "simple"}
    write_lines(tmp_path / "test.jsonl", [question(1), question(2), other])
    first, second, third = load_benchmark(towns, 0, tmp_path).test
    assert first.template == second.template != third.template
    assert (first.hardness, first.evidence, first.source) == ("easy", "", "label")
    assert (third.hardness, third.evidence) == ("simple", "all of them")


def test_the_version_follows_the_question_files(towns: DataConfig, tmp_path: Path) -> None:
    before = load_benchmark(towns, 0, tmp_path).version
    write_lines(tmp_path / "test.jsonl", [question(1)])
    assert load_benchmark(towns, 0, tmp_path).version != before


def test_questions_without_a_database_are_left_out_and_told(towns: DataConfig, tmp_path: Path) -> None:
    write_lines(tmp_path / "test.jsonl", [question(1), question(2, "atlantis")])
    benchmark = load_benchmark(towns, 0, tmp_path)
    assert len(benchmark.test) == 1
    assert benchmark.notes == ("1 of 2 test questions are left out: no database file for atlantis",)


def test_databases_can_be_configured(tmp_path: Path) -> None:
    file = make_database(tmp_path / "elsewhere" / "x.db")
    for part in ("train", "test"):
        write_lines(tmp_path / f"{part}.jsonl", [question(1), question(2)])
    databases = (DatabaseConfig(name="towns", url=str(file)),)
    config = DataConfig(benchmark="jsonl", root=tmp_path, databases=databases, gate_share=0)
    benchmark = load_benchmark(config, 0, tmp_path)
    assert benchmark.databases == databases
    assert (len(benchmark.train), len(benchmark.gate)) == (2, 0)


@pytest.mark.parametrize("benchmark", ["geoquery", "spider", "bird", "jsonl"])
def test_missing_files_are_named(benchmark: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is missing in .*"):
        load_benchmark(DataConfig(benchmark=benchmark, root=tmp_path), 0, tmp_path)
    with pytest.raises(UserError, match="not a directory"):
        load_benchmark(DataConfig(benchmark=benchmark, root=tmp_path / "none"), 0, tmp_path)
    with pytest.raises(UserError, match=r"set data\.root"):
        load_benchmark(DataConfig(benchmark=benchmark), 0, tmp_path)


def test_bad_files_are_refused(towns: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no labelled training questions"):
        load_benchmark(towns, 0, tmp_path)
    (tmp_path / "train.jsonl").write_text('{"db_id": "towns"}\n')
    with pytest.raises(UserError, match="row 0 needs non-empty text in db_id, question, and sql"):
        load_benchmark(towns, 0, tmp_path)
    (tmp_path / "train.jsonl").write_text("{}\nnonsense\n")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        load_benchmark(towns, 0, tmp_path)


def test_the_demo_has_all_three_parts(tmp_path: Path) -> None:
    benchmark = load_benchmark(DataConfig(benchmark="demo", canonical_sql=True), 0, tmp_path)
    assert min(len(benchmark.train), len(benchmark.gate), len(benchmark.test)) >= 100
    assert Path(benchmark.databases[0].url).is_file()
    assert load_benchmark(DataConfig(benchmark="demo", canonical_sql=True), 0, tmp_path) == benchmark


@pytest.mark.parametrize(("split", "sizes"), [("question", (165, 49, 279)), ("query", (161, 159, 182))])
def test_geoquery(published: Path, tmp_path: Path, split: str, sizes: tuple[int, int, int]) -> None:
    config = DataConfig(benchmark="geoquery", root=published / "geoquery", split=split, label_share=0.3)
    benchmark = load_benchmark(config, 0, tmp_path)
    assert (len(benchmark.train), len(benchmark.gate), len(benchmark.test)) == sizes
    assert len(open_catalogue(benchmark.databases)["geography"].schema.foreign_keys) == 8
    examples = benchmark.train + benchmark.gate + benchmark.test
    assert not [e for e in examples if "name0" in e.question or '_name0"' in e.sql]


def test_canonical_geoquery_golds_return_what_the_published_ones_return(published: Path, tmp_path: Path) -> None:
    config = DataConfig(benchmark="geoquery", root=published / "geoquery")
    plain = load_benchmark(config, 0, tmp_path)
    canonical = load_benchmark(config.model_copy(update={"canonical_sql": True}), 0, tmp_path)

    def outcome(connection: sqlite3.Connection, sql: str) -> Counter[Any] | None:
        try:
            return Counter(connection.execute(sql).fetchall())
        except sqlite3.Error:
            return None

    with closing(sqlite3.connect(f"file:{plain.databases[0].url}?mode=ro", uri=True)) as connection:
        for part in ("train", "gate", "test"):
            pairs = list(zip(getattr(plain, part), getattr(canonical, part), strict=True))
            results = [(outcome(connection, a.sql), outcome(connection, b.sql), b.sql) for a, b in pairs]
            assert not [sql for published_rows, rows, sql in results if published_rows != rows]
            failing = [sql for rows, _, sql in results if rows is None]
            assert len(failing) == {"train": 2, "gate": 1, "test": 2}[part]


def test_spider_trains_on_spider_syns_copy_of_the_questions(published: Path, tmp_path: Path) -> None:
    for name in ("dev.json", "database"):
        (tmp_path / name).symlink_to(published / "spider" / name)
    rows = json.loads((published / "spider-syn" / "train_spider.json").read_text())
    rows = [row for i, row in enumerate(rows) if i < 100 or row["db_id"] == "baseball_1"]
    (tmp_path / "train_spider.json").write_text(json.dumps(rows))
    benchmark = load_benchmark(DataConfig(benchmark="spider", root=tmp_path), 0, tmp_path)
    assert len(benchmark.test) == 1034
    assert benchmark.train[0].question == "How many heads of the departments are older than 56 ?"
    assert len(benchmark.gate) == round(0.1 * (len(benchmark.train) + len(benchmark.gate)))
    assert [note for note in benchmark.notes if "baseball_1" in note]


def test_hardness_counts_of_spider_dev(published: Path) -> None:
    """The four counts that Spider's evaluator prints for its dev set."""
    rows = json.loads((published / "spider" / "dev.json").read_text())
    levels = Counter(spider_hardness(row["query"]) for row in rows)
    assert levels == {"easy": 248, "medium": 446, "hard": 174, "extra": 166}


@pytest.mark.parametrize(
    ("sql", "level"),
    [
        ("SELECT count(*) FROM singer", "easy"),
        ("SELECT name FROM singer WHERE age > 20", "easy"),
        ("SELECT name, age FROM singer ORDER BY age", "medium"),
        ("SELECT T1.name FROM a AS T1 JOIN b AS T2 ON T1.i = T2.i WHERE T2.x = 1", "medium"),
        ("SELECT name FROM a WHERE id NOT IN (SELECT id FROM b)", "hard"),
        ("SELECT name FROM a UNION SELECT name FROM b", "hard"),
        ("SELECT name, max(x), min(y) FROM a WHERE p = 1 OR q LIKE '%b%' ORDER BY x LIMIT 3", "extra"),
        ("SELECT (", "unknown"),
        ("DROP TABLE a", "unknown"),
    ],
)
def test_hardness(sql: str, level: str) -> None:
    assert spider_hardness(sql) == level
