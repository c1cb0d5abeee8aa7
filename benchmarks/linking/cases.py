"""Questions with the columns that their gold SQL uses, on databases alone and on many merged into one."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import traverse_scope

from spftsql.databases.descriptions import described
from spftsql.databases.files import file_hash
from spftsql.databases.reading import quoted
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Column, ForeignKey, Kind, Schema, Table
from spftsql.linking.value_index import ValueIndex, open_index
from spftsql.records import content_hash

_KINDS: dict[str, Kind] = {
    "number": "number",
    "integer": "number",
    "real": "number",
    "time": "date",
    "date": "date",
    "datetime": "date",
    "boolean": "boolean",
}


@dataclass(frozen=True)
class Gold:
    """Tables and (table, column) pairs that a statement reads, in lower case."""

    tables: frozenset[str]
    columns: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    """A question on a database, and what its gold reads there."""

    db_id: str
    question: str
    evidence: str
    sql: str
    gold: Gold


@dataclass(frozen=True)
class Source:
    """A schema, and the file with its rows where there is one."""

    schema: Schema
    file: Path | None

    def index(self) -> ValueIndex | None:
        """The index of its values."""
        return open_index(file_hash(self.file), self.schema, self.file) if self.file else None


def gold_of(sql: str, schema: Schema) -> Gold:
    """The tables and columns that `sql` reads, by sqlglot's qualification against the schema; `*` names no column.

    Raises `ValueError` for SQL that sqlglot cannot resolve.
    """
    names = {t.name.lower(): {c.name.lower(): "TEXT" for c in t.columns} for t in schema.tables}
    try:
        tree = qualify(
            sqlglot.parse_one(sql, dialect="sqlite"),
            schema=names,
            dialect="sqlite",
            expand_stars=False,
            validate_qualify_columns=False,
            identify=False,
        )
    except sqlglot.errors.SqlglotError as error:
        raise ValueError(str(error)) from None
    columns = set()
    for scope in traverse_scope(tree):
        for column in scope.columns:
            source = scope.sources.get(column.table)
            if isinstance(source, exp.Table) and column.name.lower() in names.get(source.name.lower(), ()):
                columns.add((source.name.lower(), column.name.lower()))
    tables = {table.name.lower() for table in tree.find_all(exp.Table)} & set(names)
    return Gold(frozenset(tables), frozenset(columns))


def cases(rows: Iterable[Sequence[str]], sources: dict[str, Source]) -> tuple[list[Case], int]:
    """Cases of (db_id, question, SQL, evidence) rows, and how many had no database or could not be resolved."""
    found, left_out = [], 0
    for db_id, question, sql, evidence in rows:
        try:
            found.append(Case(db_id, question, evidence, sql, gold_of(sql, sources[db_id].schema)))
        except (KeyError, ValueError):
            left_out += 1
    return found, left_out


def spider_sources(root: Path, names: Iterable[str]) -> dict[str, Source]:
    """Spider's databases with the names that tables.json gives their columns."""
    files = {name: root / "database" / name / f"{name}.sqlite" for name in sorted(set(names))}
    return {
        name: Source(described(reflect(name, file), root / "tables.json"), file)
        for name, file in files.items()
        if file.is_file()
    }


def published_sources(file: Path) -> dict[str, Source]:
    """Schemas alone, from a file of the form of tables.json: no rows, no values."""
    return {entry["db_id"]: Source(described(_published(entry), file), None) for entry in _json(file)}


def rows_of(file: Path, question: str = "question", sql: str = "query") -> list[tuple[str, str, str, str]]:
    """(db_id, question, SQL, evidence) of a benchmark's JSON file."""
    return [(row["db_id"], row[question], row[sql], row.get("evidence", "")) for row in _json(file)]


def merged(sources: dict[str, Source], names: Sequence[str], folder: Path) -> tuple[Source, dict[tuple[str, str], str]]:
    """All of the databases as one; a table whose name is taken gets a number. Also (database, table): new name.

    The rows are copied into a file in `folder`, of those databases that have any.
    """
    renamed: dict[tuple[str, str], str] = {}
    taken: set[str] = set()
    tables: list[Table] = []
    keys: list[ForeignKey] = []
    for name in names:
        for table in sources[name].schema.tables:
            new, number = table.name, 1
            while new.lower() in taken:
                number += 1
                new = f"{table.name}_{number}"
            taken.add(new.lower())
            renamed[name, table.name.lower()] = new
            tables.append(replace(table, name=new))
        for key in sources[name].schema.foreign_keys:
            ends = renamed[name, key.table.lower()], renamed[name, key.target.lower()]
            keys.append(replace(key, table=ends[0], target=ends[1]))
    schema = Schema("merged", "sqlite", tuple(tables), tuple(keys))
    files = {name: file for name in names if (file := sources[name].file) is not None}
    return Source(schema, _merged_file(files, renamed, folder) if files else None), renamed


def moved(case: Case, renamed: dict[tuple[str, str], str]) -> Case:
    """A case on the merged database."""
    new = {table: renamed[case.db_id, table].lower() for table in case.gold.tables}
    gold = Gold(frozenset(new.values()), frozenset((new[table], column) for table, column in case.gold.columns))
    return replace(case, db_id="merged", gold=gold)


def groups(names: Iterable[str], count: int) -> list[list[str]]:
    """The databases dealt into `count` groups, the same ones every time."""
    order = sorted(set(names))
    random.Random(0).shuffle(order)
    return [order[start::count] for start in range(count)]


def _published(entry: dict[str, Any]) -> Schema:
    columns = list(enumerate(zip(entry["column_names_original"], entry["column_types"], strict=True)))
    primary = {n for key in entry["primary_keys"] for n in (key if isinstance(key, list) else [key])}
    names = entry["table_names_original"]
    tables = tuple(
        Table(
            table,
            tuple(
                Column(column, _KINDS.get(kind, "text"), kind, number in primary)
                for number, ((at, column), kind) in columns
                if at == place
            ),
        )
        for place, table in enumerate(names)
    )
    places = [name for name, _ in (pair for _, pair in columns)]
    keys = tuple(
        ForeignKey(names[places[left][0]], places[left][1], names[places[right][0]], places[right][1])
        for left, right in entry["foreign_keys"]
    )
    return Schema(entry["db_id"], "sqlite", tables, keys)


def _merged_file(files: dict[str, Path], renamed: dict[tuple[str, str], str], folder: Path) -> Path:
    path = folder / f"merged-{content_hash({name: file_hash(file) for name, file in files.items()})}.sqlite"
    if path.is_file():
        return path
    temporary = path.with_suffix(".part")
    temporary.unlink(missing_ok=True)
    connection = sqlite3.connect(temporary, isolation_level=None)
    connection.text_factory = bytes
    for name, file in files.items():
        connection.execute("ATTACH ? AS other", (f"{file}",))
        for (database, table), new in renamed.items():
            if database == name:
                connection.execute(f"CREATE TABLE {quoted(new)} AS SELECT * FROM other.{quoted(table)}")
        connection.execute("DETACH other")
    connection.close()
    temporary.replace(path)
    return path


def _json(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return rows
