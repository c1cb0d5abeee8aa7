"""The demo's loop with its shop on other engines: a DuckDB file, and PostgreSQL with two replicas."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.demo.database import build_database
from spftsql.demo.questions import load_labels
from spftsql.records import PairRow, Verdict, read_records
from spftsql.sandbox.location import locate
from spftsql.synthesis.canonical import canonical_sql
from spftsql.synthesis.dialects import in_dialect
from tests import loops
from tests.postgres import PASSWORD, Server

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(1800)]

TABLES = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.sqlite"
    build_database(path, seed=0)
    return path


def tables(shop: Path) -> list[tuple[str, str, list[tuple[Any, ...]]]]:
    """Name, DDL and rows of every table; SQLite's declarations are read by the other engines too."""
    with sqlite3.connect(shop) as connection:
        return [
            (name, ddl, connection.execute(f'SELECT * FROM "{name}"').fetchall())
            for name, ddl in connection.execute(TABLES).fetchall()
        ]


def in_order(shop: Path) -> list[str]:
    """The tables, those that others refer to first."""
    schema = reflect("shop", shop)
    left = {t.name: {k.target for k in schema.foreign_keys if k.table == t.name != k.target} for t in schema.tables}
    order: list[str] = []
    while left:
        ready = sorted(name for name, needed in left.items() if needed <= set(order))
        order += ready
        for name in ready:
            del left[name]
    return order


def run(folder: Path, shop: Path, there: Schema, database: dict[str, Any], environment: dict[str, str]) -> Path:
    """The demo's labels in the engine's dialect, and the small loop over them; returns the run directory."""
    here = reflect("shop", shop)
    rows: dict[str, list[dict[str, str]]] = {"train": [], "gate": [], "test": []}
    for label in load_labels(shop, seed=0):
        sql = in_dialect(canonical_sql(label.sql, here), there)
        rows[label.split].append({"db_id": "shop", "question": label.question, "sql": sql})
    root = folder / "labels"
    root.mkdir()
    for split, questions in rows.items():
        (root / f"{split}.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions[:60]))
    data = {"benchmark": "jsonl", "root": str(root), "databases": [database], "canonical_sql": True}
    recipe = folder / "shop.yaml"
    recipe.write_text(yaml.safe_dump({"extends": "demo", "name": "shop", "data": data, "run_dir": str(folder)}))
    overrides = {
        **loops.SMALL,
        "execution": "local",
        "generation.engine": "transformers",
        "synthesis.library": "0.5",
        "question_model.steps": "400",  # so that some questions say their values
    }
    command = [sys.executable, "-c", loops.LIGHT, "run", str(recipe)]
    done = subprocess.run(
        [*command, *(f"--set={key}={value}" for key, value in overrides.items())],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "shop"


def check(run_directory: Path, engine: str) -> None:
    result = json.loads((run_directory / "result.json").read_text())
    assert {row["candidate"] for row in result["rows"]} == {"sft", "control", "vbi-1", "spin-1", "spft-a-1"}
    assert all(row["n"] == sum(row["verdicts"].values()) == 60 for row in result["rows"])
    pairs = read_records(run_directory / "pairs" / "round-1.parquet", PairRow)
    made = Counter(pair.sql_status for pair in pairs)
    assert made["ran"] > 0.9 * len(pairs), made
    assert sum(pair.kept for pair in pairs) >= 30
    (verified,) = (run_directory / "stages").glob("verify-round-1-*")
    assert {v.engine.partition(" ")[0] for v in read_records(verified / "verdicts", Verdict) if v.engine} == {engine}
    assert PASSWORD not in "".join(path.read_text() for path in run_directory.glob("*.*") if path.suffix != ".sqlite")


def test_the_loop_on_duckdb(tmp_path: Path, shop: Path) -> None:
    path, here = tmp_path / "shop.duckdb", reflect("shop", shop)
    found = {name: (ddl, rows) for name, ddl, rows in tables(shop)}
    with duckdb.connect(str(path)) as connection:
        for name in in_order(shop):
            ddl, rows = found[name]
            connection.execute(ddl)
            own = any(key.table == key.target == name for key in here.foreign_keys)
            size = 1 if own else 2000  # a row cannot refer to one that comes with the same statement
            parts = [rows[start : start + size] for start in range(0, len(rows), size)]
            while parts:
                part = parts.pop(0)
                marks = ", ".join(["(" + ", ".join(["?"] * len(part[0])) + ")"] * len(part))
                try:
                    connection.execute(f'INSERT INTO "{name}" VALUES {marks}', [cell for row in part for cell in row])
                except duckdb.ConstraintException:  # what it refers to comes later
                    assert own
                    parts.append(part)
    schema = reflect("shop", locate(path))
    check(run(tmp_path, shop, schema, {"name": "shop", "url": str(path)}, {}), "duckdb")


def test_the_loop_on_postgresql_with_two_replicas(tmp_path: Path, shop: Path, postgres: Server) -> None:
    found = {name: (ddl, rows) for name, ddl, rows in tables(shop)}
    postgres.run("CREATE DATABASE loop")
    with postgres.connect("loop") as connection, connection.cursor() as cursor:
        for name in in_order(shop):
            ddl, rows = found[name]
            cursor.execute(ddl.encode())
            with cursor.copy(f'COPY "{name}" FROM STDIN'.encode()) as copy:
                for row in rows:
                    copy.write_row(row)
        cursor.execute(b"GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    postgres.run("CREATE DATABASE loop_copy TEMPLATE loop")
    try:
        urls = [f"postgresql://reader@127.0.0.1:{postgres.port}/{name}" for name in ("loop", "loop_copy")]
        schema = reflect("shop", locate(postgres.url("loop")))
        count = "SELECT datname, xact_commit FROM pg_stat_database WHERE datname IN ('loop', 'loop_copy')"
        before = dict(postgres.run(count))
        database = {"name": "shop", "url": urls[0], "replicas": urls[1:]}
        check(run(tmp_path, shop, schema, database, {"PGPASSWORD": PASSWORD}), "postgresql")
        after = dict(postgres.run(count))
        assert all(after[name] > before[name] + 20 for name in ("loop", "loop_copy")), "a replica had nothing to do"  # type: ignore[operator]
    finally:
        for name in ("loop", "loop_copy"):
            postgres.run(f"DROP DATABASE {name} WITH (FORCE)")
