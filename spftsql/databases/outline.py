"""The outline of a database: its tables, columns, keys and comments, without any of its rows.

SQLAlchemy's inspector reads it where there is a dialect; DuckDB is asked for its own catalogue.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from spftsql.databases.reading import Query
from spftsql.sandbox.location import Location


@dataclass(frozen=True)
class OutlineColumn:
    """A column; `sql_type` as the database declares it, empty where it declares none."""

    name: str
    sql_type: str
    comment: str = ""


@dataclass(frozen=True)
class OutlineKey:
    """`columns` refer to `target_columns` of `target`, in their order."""

    columns: tuple[str, ...]
    target: str
    target_columns: tuple[str, ...]


@dataclass(frozen=True)
class OutlineTable:
    """A table or view. `primary_key` are names of columns; `estimated_rows` is what the engine believes, if it does."""

    name: str
    columns: tuple[OutlineColumn, ...]
    primary_key: tuple[str, ...] = ()
    keys: tuple[OutlineKey, ...] = ()
    comment: str = ""
    estimated_rows: int | None = None


def outline(location: Location, query: Query) -> list[OutlineTable]:
    """The tables of a file, or those of a server's database that can be read and named without their schema.

    `query` asks the same database. Raises what the engine's driver raises where the database cannot be read.
    """
    if location.engine == "duckdb":
        return _duckdb(query)
    return _postgresql(location) if location.engine == "postgresql" else _sqlite(Path(location.address))


def _sqlite(path: Path) -> list[OutlineTable]:
    """The tables, without those that hold the inside of virtual ones; the views where there is no table."""
    uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=sa.pool.NullPool)
    with engine.connect() as connection, warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.exc.SAWarning)  # SQLite takes types such as INTEGER(11); so do we
        inspector = sa.inspect(connection)
        listed = connection.exec_driver_sql("PRAGMA main.table_list").fetchall()
        inside = {name for _, name, kind, *_ in listed if kind == "shadow"}
        names = [name for name in inspector.get_table_names() if not name.startswith("sqlite_") and name not in inside]
        tables = []
        for name in names or inspector.get_view_names():
            columns = [OutlineColumn(info["name"], _type_name(info["type"])) for info in inspector.get_columns(name)]
            tables.append(_table(inspector, name, None, columns))
        return tables


def _type_name(kind: sa.types.TypeEngine[object]) -> str:
    try:
        return str(kind)
    except sa.exc.CompileError:
        return ""


_READABLE = """
    SELECT c.relname, n.nspname, c.reltuples::bigint, coalesce(obj_description(c.oid, 'pg_class'), ''), (
        SELECT json_object_agg(a.attname, format_type(a.atttypid, a.atttypmod)) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            AND has_column_privilege(c.oid, a.attnum, 'SELECT')
    )
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition AND pg_table_is_visible(c.oid)
        AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND has_schema_privilege(n.oid, 'USAGE')
        AND has_any_column_privilege(c.oid, 'SELECT') AND NOT EXISTS (
            SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e'
        )
    ORDER BY c.oid
"""


def _postgresql(location: Location) -> list[OutlineTable]:
    """Tables, views and foreign tables on the search path that the role may read; of partitioned ones the whole."""
    from spftsql.databases.server import connect

    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: connect(location), poolclass=sa.pool.NullPool)
    tables = []
    with engine.connect() as connection, warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.exc.SAWarning)  # types of extensions have no class, and need none
        inspector = sa.inspect(connection)
        for name, schema, estimate, comment, types in connection.exec_driver_sql(_READABLE).fetchall():
            columns = [
                OutlineColumn(info["name"], types[info["name"]], info["comment"] or "")
                for info in inspector.get_columns(name, schema)
                if info["name"] in types
            ]
            tables.append(_table(inspector, name, schema, columns, comment, max(estimate, 0)))
    return tables


_DUCKDB_RELATIONS = """
    SELECT table_name, comment, estimated_size FROM duckdb_tables() WHERE {here}
    UNION ALL SELECT view_name, comment, NULL FROM duckdb_views() WHERE {here}
"""
_DUCKDB_COLUMNS = "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE {here}"
_DUCKDB_KEYS = """
    SELECT table_name, constraint_type, constraint_column_names, referenced_table, referenced_column_names
    FROM duckdb_constraints() WHERE {here} AND constraint_type IN ('PRIMARY KEY', 'FOREIGN KEY')
"""


def _duckdb(query: Query) -> list[OutlineTable]:
    here = "database_name = current_database() AND schema_name = current_schema()"
    columns: dict[str, list[OutlineColumn]] = defaultdict(list)
    for table, column, kind, comment in query(_DUCKDB_COLUMNS.format(here=here)):
        columns[table].append(OutlineColumn(column, kind, comment or ""))
    primary: dict[str, list[str]] = defaultdict(list)
    keys: dict[str, list[OutlineKey]] = defaultdict(list)
    for table, kind, names, target, targets in query(_DUCKDB_KEYS.format(here=here)):
        if kind == "PRIMARY KEY":
            primary[table] += names
        else:
            keys[table].append(OutlineKey(tuple(names), target, tuple(targets)))
    return [
        OutlineTable(name, tuple(columns[name]), tuple(primary[name]), tuple(keys[name]), comment or "", rows)
        for name, comment, rows in query(_DUCKDB_RELATIONS.format(here=f"{here} AND NOT internal"))
    ]


def _table(
    inspector: sa.Inspector,
    name: str,
    schema: str | None,
    columns: Sequence[OutlineColumn],
    comment: str = "",
    estimated_rows: int | None = None,
) -> OutlineTable:
    keys = [
        OutlineKey(tuple(info["constrained_columns"]), info["referred_table"], tuple(info["referred_columns"]))
        for info in inspector.get_foreign_keys(name, schema)
    ]
    primary = inspector.get_pk_constraint(name, schema)["constrained_columns"]
    return OutlineTable(name, tuple(columns), tuple(primary), tuple(keys), comment, estimated_rows)
