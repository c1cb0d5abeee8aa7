"""Synthesis over databases that nobody would draw: odd names, no keys, no rows, one table, two thousand columns."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import sqlglot

from spftsql.config import SandboxConfig
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.records import Statement
from spftsql.synthesis.accepting import Tally, accepted, local_executors
from spftsql.synthesis.canonical import canonical_sql
from spftsql.synthesis.composition import compose
from spftsql.synthesis.dialects import in_dialect
from spftsql.synthesis.filling import Sampler
from spftsql.synthesis.joins import key_graph
from spftsql.synthesis.library import library
from spftsql.synthesis.rendering import compile_template, render
from spftsql.synthesis.templates import extract

NAMES = [
    "order", "select", "group", "two words", "it's", 'say "hi"', "back`tick", "Größe", "таблица", "数量", "1st", "a-b",
    "semi;colon", "per%cent", "[bracket]", "UPPER", "value_1", "col_text_1", "t1", "s1", "z0z", "zc1z", "null", "count",
    "under_score_", "_", "new\u00a0space", "emoji😀", "interval", "user", "rowid x", "end",
]  # fmt: skip


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def written(path: Path, names: list[str]) -> Path:
    """A parent and a child table, every name of which is odd."""
    parent, child, *columns = map(quoted, names)
    one, two, three, four = columns[:4]
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE {parent} ({one} INTEGER PRIMARY KEY, {two} TEXT, {three} INT)")
        connection.execute(
            f"CREATE TABLE {child} ({four} INTEGER PRIMARY KEY, {one} INT REFERENCES {parent} ({one}), {two} TEXT, "
            f"{three} REAL)"
        )
        rows = [(i, f"na'me {i % 7}", i * 3) for i in range(30)]
        connection.executemany(f"INSERT INTO {parent} VALUES (?, ?, ?)", rows)
        connection.executemany(
            f"INSERT INTO {child} VALUES (?, ?, ?, ?)", [(i, i % 30, f'"w" {i % 5}', i / 8) for i in range(90)]
        )
    return path


def made(path: Path, schema: Schema, count: int) -> tuple[list[Statement], Tally]:
    tally, sampler = Tally(), Sampler(library(), {"odd": schema}, {"odd": path}, 0, 1.0)
    with local_executors({"odd": str(path)}, SandboxConfig()) as executors:
        return list(accepted(sampler, executors, count, tally=tally)), tally


@pytest.mark.parametrize("start", range(0, len(NAMES), 4))
def test_odd_names(start: int, tmp_path: Path) -> None:
    names = [*NAMES, *NAMES][start : start + 6]
    path = written(tmp_path / "odd.sqlite", names)
    schema = reflect("odd", path)
    found, tally = made(path, schema, 60)
    assert len(found) == 60 and not tally.dropped["error"], tally
    for statement in found:
        assert canonical_sql(statement.sql, schema) == statement.sql
        template, bindings = extract(statement.sql, schema)
        assert render(compile_template(template.sql), bindings, key_graph(schema)) == statement.sql
    assert any(" JOIN " in statement.sql for statement in found)
    for dialect in ("postgres", "duckdb"):
        spoken = []
        for statement in found:
            try:
                spoken.append(in_dialect(statement.sql, replace(schema, dialect=dialect)))
            except ValueError as error:
                assert "grouped" in str(error) or "GLOB" in str(error)
        assert len(spoken) > 40
        for sql in spoken:
            tree = sqlglot.parse_one(sql, read=dialect)
            assert {table.name for table in tree.find_all(sqlglot.exp.Table)} <= set(names) | {"d1", "d2"}


def test_odd_names_on_duckdb(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    names = ["order", 'say "hi"', "Größe", "two words", "select", "it's"]
    parent, child, one, two, three, four = map(quoted, names)
    path = tmp_path / "odd.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(f"CREATE TABLE {parent} ({one} INTEGER PRIMARY KEY, {two} TEXT, {three} INT)")
        connection.execute(
            f"CREATE TABLE {child} ({four} INTEGER PRIMARY KEY, {one} INT REFERENCES {parent} ({one}), {two} TEXT)"
        )
        connection.execute(f"INSERT INTO {parent} SELECT i, 'n' || (i % 4), i * 2 FROM range(30) t(i)")
        connection.execute(f"INSERT INTO {child} SELECT i, i % 30, 'w' || (i % 3) FROM range(60) t(i)")
    schema = reflect("odd", path)
    found, tally = made(path, schema, 80)
    assert len(found) == 80
    assert tally.dropped["error"] <= 2, tally  # such as a date function over something that is no date


def test_without_foreign_keys_no_join_is_made_up(tmp_path: Path) -> None:
    path = tmp_path / "odd.sqlite"
    with sqlite3.connect(path) as connection:
        for table in ("a", "b"):
            connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, name TEXT, size INT)")
            connection.executemany(
                f"INSERT INTO {table} VALUES (?, ?, ?)", [(i, f"x{i % 6}", i * i) for i in range(40)]
            )
    found, _ = made(path, reflect("odd", path), 150)
    assert len(found) == 150
    assert not any(" JOIN " in s.sql and "FROM (" not in s.sql and " AS " not in s.sql for s in found)


def test_one_table_of_one_column(tmp_path: Path) -> None:
    path = tmp_path / "odd.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE words (word TEXT)")
        connection.executemany("INSERT INTO words VALUES (?)", [(f"w{i % 9}",) for i in range(30)])
    found, _ = made(path, reflect("odd", path), 30)
    assert len(found) == 30


def test_no_rows_no_statements_and_the_reasons(tmp_path: Path) -> None:
    path = tmp_path / "odd.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE a (id INTEGER PRIMARY KEY, name TEXT)")
    found, tally = made(path, reflect("odd", path), 10)
    assert found == [] and tally.drawn == 0
    assert set(tally.dropped) <= {"no-columns", "empty-table", "no-values"}
    assert sum(tally.dropped.values()) >= 200  # of every template, before it is given up


def test_empty_tables_beside_full_ones_are_left(tmp_path: Path) -> None:
    path = written(tmp_path / "odd.sqlite", ["full", "child", "id", "name", "size", "nr"])
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE hollow (hollow_id INTEGER PRIMARY KEY, id INT REFERENCES full (id), w TEXT)")
    found, _ = made(path, reflect("odd", path), 100)
    assert len(found) == 100
    assert not any("hollow" in statement.sql for statement in found)


def test_full_text_tables_are_written_about_and_their_insides_are_not(tmp_path: Path) -> None:
    path = tmp_path / "odd.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE VIRTUAL TABLE f USING fts5 (title, body)")
        connection.executemany("INSERT INTO f VALUES (?, ?)", [(f"t {i % 9}", f"body {i}") for i in range(40)])
        connection.execute("CREATE TABLE words (id INTEGER PRIMARY KEY, word TEXT)")
        connection.executemany("INSERT INTO words VALUES (?, ?)", [(i, f"w{i % 7}") for i in range(30)])
    connection.close()
    found, tally = made(path, reflect("odd", path), 80)
    assert len(found) == 80 and not tally.dropped["error"], tally
    read = {table.name for one in found for table in sqlglot.parse_one(one.sql).find_all(sqlglot.exp.Table)}
    assert {"f", "words"} <= read and not any(name.startswith("f_") for name in read)


def test_views_alone(tmp_path: Path) -> None:
    path = tmp_path / "odd.sqlite"
    rows = ", ".join(f"({i}, 'name {i % 7}', {i * 3})" for i in range(40))
    with sqlite3.connect(path) as connection:
        connection.execute(
            f"CREATE VIEW v AS SELECT column1 AS nr, column2 AS name, column3 AS size FROM (VALUES {rows})"
        )
    connection.close()
    found, tally = made(path, reflect("odd", path), 60)
    assert len(found) == 60 and not tally.dropped["error"], tally


@pytest.mark.long
def test_two_thousand_columns(tmp_path: Path) -> None:
    path = tmp_path / "odd.sqlite"
    with sqlite3.connect(path) as connection:
        columns = [f"c{i} {'TEXT' if i % 2 else 'INT'}" for i in range(1, 2000)]
        connection.execute(f"CREATE TABLE wide (id INTEGER PRIMARY KEY, {', '.join(columns)})")
        for row in range(12):
            cells = ", ".join(f"'t{(row + i) % 5}'" if i % 2 else str(row * i % 11) for i in range(1, 2000))
            connection.execute(f"INSERT INTO wide VALUES ({row}, {cells})")
    schema = reflect("odd", path)
    assert sum(len(table.columns) for table in schema.tables) == 2000
    found, _ = made(path, schema, 300)
    assert len(found) == 300
    derived = compose(library(), {"odd": schema}, {"odd": path}, 0, 10)
    assert len(derived) == 10
