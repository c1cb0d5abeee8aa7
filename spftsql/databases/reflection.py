"""Reads a database into a `Schema`: SQLAlchemy for tables, columns and keys, plain queries for counts and values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from spftsql.databases.schema import Column, ForeignKey, Kind, Schema, Table
from spftsql.errors import UserError

SAMPLES = 5
_DATE_PREFIX = 10  # characters of an ISO date


def reflect(db_id: str, path: Path, foreign_keys: Sequence[str] = ()) -> Schema:
    """The schema of a SQLite file; `foreign_keys` ("a.b = c.d") adds keys that the database does not declare.

    Raises `UserError` for a database without tables and for a key over unknown columns.
    """
    address = f"sqlite:///file:{path.resolve()}?mode=ro&immutable=1&uri=true"
    engine = sa.create_engine(address, poolclass=sa.pool.NullPool)
    with engine.connect() as connection, warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.exc.SAWarning)  # SQLite takes types such as INTEGER(11); so do we
        inspector = sa.inspect(connection)
        names = [n for n in inspector.get_table_names() if not n.startswith("sqlite_")]
        if not names:
            raise UserError(f"database {path} has no tables")
        tables = tuple(_table(connection, inspector, name) for name in names)
        keys = [key for name in names for key in _foreign_keys(inspector, name, tables)]
    engine.dispose()
    schema = Schema(db_id, "sqlite", tables, ())
    keys += [_parse_key(text, schema) for text in foreign_keys]
    return Schema(db_id, "sqlite", tables, tuple(dict.fromkeys(keys)))


def _table(connection: sa.Connection, inspector: sa.Inspector, name: str) -> Table:
    primary = {column.lower() for column in inspector.get_pk_constraint(name)["constrained_columns"]}
    source = sa.table(name)
    rows = connection.execute(sa.select(sa.func.count()).select_from(source)).scalar_one()
    columns = []
    for info in inspector.get_columns(name):
        column: sa.ColumnClause[Any] = sa.column(info["name"])
        distinct, filled = connection.execute(
            sa.select(sa.func.count(sa.distinct(column)), sa.func.count(column)).select_from(source)
        ).one()
        frequent = (
            sa.select(column)
            .select_from(source)
            .where(column.is_not(None))
            .group_by(column)
            .order_by(sa.func.count().desc(), column)
            .limit(SAMPLES)
        )
        values = [value for (value,) in connection.execute(frequent) if isinstance(value, str | int | float)]
        sql_type = _type_name(info["type"])
        columns.append(
            Column(
                name=info["name"],
                kind=_kind(sql_type, values),
                sql_type=sql_type,
                primary_key=info["name"].lower() in primary,
                distinct=distinct,
                nulls=rows - filled,
                samples=tuple(values),
                comment=info.get("comment") or "",
            )
        )
    return Table(name, tuple(columns), rows)


def _type_name(kind: sa.types.TypeEngine[Any]) -> str:
    try:
        return str(kind)
    except sa.exc.CompileError:
        return ""


def _kind(sql_type: str, values: Sequence[str | int | float]) -> Kind:
    """The kind of a column: by its values where it has some (SQLite's types are advice), else by its declared type."""
    declared = sql_type.upper()
    if "BOOL" in declared:
        return "boolean"
    if values and all(isinstance(v, str) and _is_date(v) for v in values):
        return "date"
    if values and all(isinstance(v, int | float) for v in values):
        return "number"
    if any(word in declared for word in ("DATE", "TIME")):
        return "date"
    if not values and any(word in declared for word in ("INT", "REAL", "NUM", "DEC", "FLOA", "DOUB")):
        return "number"
    return "text"


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text[:_DATE_PREFIX])
    except ValueError:
        return False
    return True


def _foreign_keys(inspector: sa.Inspector, name: str, tables: Sequence[Table]) -> list[ForeignKey]:
    by_name = {table.name.lower(): table for table in tables}
    keys = []
    for info in inspector.get_foreign_keys(name):
        target = by_name.get(info["referred_table"].lower())
        if target is None:
            continue  # a key to a table that is not there cannot be joined over
        referred = info["referred_columns"] or list(target.primary_key)
        for column, target_column in zip(info["constrained_columns"], referred, strict=False):
            keys.append(ForeignKey(name, column, target.name, target_column))
    return keys


def _parse_key(text: str, schema: Schema) -> ForeignKey:
    ends = [end.strip().split(".") for end in text.split("=")]
    if len(ends) == 2 and all(len(end) == 2 for end in ends):
        (table, column), (target, target_column) = ends
        left, right = schema.table(table), schema.table(target)
        if left and right and left.column(column) and right.column(target_column):
            return ForeignKey(left.name, left.column(column).name, right.name, right.column(target_column).name)  # type: ignore[union-attr]
    raise UserError(f"foreign key {text!r} of database {schema.db_id} does not name two columns as a.b = c.d")
