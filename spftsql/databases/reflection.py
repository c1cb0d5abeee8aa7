"""Reads a database into a `Schema`: the outline from its catalogue, counts and values by plain queries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from spftsql.databases.outline import OutlineColumn, OutlineTable, outline
from spftsql.databases.reading import SCANNED, Query, plain, quoted, reader, rows_of
from spftsql.databases.schema import Column, ForeignKey, Kind, Schema, Table
from spftsql.errors import UserError
from spftsql.sandbox.location import Engine, Location, locate

SAMPLES = 5
_DIALECTS = {"sqlite": "sqlite", "duckdb": "duckdb", "postgresql": "postgres"}  # as sqlglot calls them
_DATE_PREFIX = 10  # characters of an ISO date
_NUMBER = re.compile(r"INT|REAL|NUM|DEC|FLOA|DOUB")
_OTHER = re.compile(
    r"\[\d*\]|JSON|XML|BYTEA|BLOB|BIT|INTERVAL|RANGE|POINT|POLYGON|LINE|LSEG|CIRCLE|BOX|PATH|TSVECTOR|STRUCT|MAP|UNION"
)
_WITHOUT_EQUALITY = re.compile(r"^(JSON|XML|POINT|POLYGON|LINE|LSEG|CIRCLE|BOX|PATH)\b")


def reflect(db_id: str, database: str | Path | Location, foreign_keys: Sequence[str] = ()) -> Schema:
    """The schema of a file or of a server's database; `foreign_keys` ("a.b = c.d") adds keys that are not declared.

    Of a server's tables beyond a million rows, counts and values are those of the first million.

    Raises `UserError` for a database that cannot be read or has no tables, and for a key over unknown columns.
    """
    location = database if isinstance(database, Location) else locate(database)
    with reader(location) as query:
        try:
            outlines = outline(location, query)
            if not outlines:
                server = location.engine == "postgresql"
                which = " that its role may read, on its search path" if server else " and no views"
                raise UserError(f"database {location} has no tables{which}")
            tables = tuple(_table(query, location, table) for table in outlines)
        except UserError:
            raise
        except Exception as error:  # each driver has its own classes
            raise UserError(f"database {location} cannot be read: {' '.join(str(error).split())[:500]}") from None
    keys = [key for table in outlines for key in _foreign_keys(table, tables)]
    schema = Schema(db_id, _DIALECTS[location.engine], tables, ())
    keys += [_parse_key(text, schema) for text in foreign_keys]
    return Schema(db_id, _DIALECTS[location.engine], tables, tuple(dict.fromkeys(keys)))


def _table(query: Query, location: Location, table: OutlineTable) -> Table:
    engine, primary = location.engine, {column.lower() for column in table.primary_key}
    source = rows_of(location, table.name, [column.name for column in table.columns])
    ((rows,),) = query(f"SELECT count(*) FROM {source}")
    columns = tuple(
        _column(query, engine, source, rows, column, column.name.lower() in primary) for column in table.columns
    )
    if engine == "postgresql" and rows == SCANNED:
        rows = max(rows, table.estimated_rows or 0)
    return Table(table.name, columns, rows, table.comment)


def _column(query: Query, engine: Engine, source: str, rows: int, column: OutlineColumn, primary_key: bool) -> Column:
    value = quoted(column.name)
    if _WITHOUT_EQUALITY.match(column.sql_type.upper()):
        value = f"CAST({value} AS TEXT)"
    ((distinct, filled),) = query(f"SELECT count(DISTINCT {value}), count({value}) FROM {source}")
    frequent = query(
        f"SELECT {value} FROM {source} WHERE {value} IS NOT NULL "
        f"GROUP BY {value} ORDER BY count(*) DESC, {value} LIMIT {SAMPLES}"
    )
    values = [cell for (raw,) in frequent if (cell := _sample(raw)) is not None]
    return Column(
        name=column.name,
        kind=_kind(column.sql_type, values, advice=engine == "sqlite"),
        sql_type=column.sql_type,
        primary_key=primary_key,
        distinct=distinct,
        nulls=rows - filled,
        samples=tuple(values),
        comment=column.comment,
    )


def _sample(value: object) -> str | int | float | None:
    """As it is written in SQL; a boolean, which SQLite does not have, is no number to the others."""
    return str(value).lower() if isinstance(value, bool) else plain(value)


def _kind(sql_type: str, values: Sequence[str | int | float], advice: bool) -> Kind:
    """The kind of a column: by its values where it has some, else by its declared type.

    `advice` says that the declared type need not be that of the values, as in SQLite.
    """
    declared = sql_type.upper()
    if "BOOL" in declared:
        return "boolean"
    if not advice and _OTHER.search(declared):
        return "other"
    if values and all(isinstance(v, str) and _is_date(v) for v in values):
        return "date"
    if values and all(isinstance(v, int | float) for v in values):
        return "number"
    if any(word in declared for word in ("DATE", "TIME")):
        return "date"
    if not values and _NUMBER.search(declared):
        return "number"
    return "text"


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text[:_DATE_PREFIX])
    except ValueError:
        return False
    return True


def _foreign_keys(table: OutlineTable, tables: Sequence[Table]) -> list[ForeignKey]:
    by_name = {table.name.lower(): table for table in tables}
    keys: list[ForeignKey] = []
    whole: set[frozenset[tuple[str, str, str]]] = set()
    for key in table.keys:
        target = by_name.get(key.target.lower())
        if target is None:
            continue  # a key to a table that is not there cannot be joined over
        pairs = list(zip(key.columns, key.target_columns, strict=False))  # SQLite takes keys that refer to fewer
        same = frozenset((target.name, *pair) for pair in pairs)
        if same not in whole:
            whole.add(same)
            number = len(whole) if len(pairs) > 1 else 0
            keys += [ForeignKey(table.name, column, target.name, referred, number) for column, referred in pairs]
    return keys


def _parse_key(text: str, schema: Schema) -> ForeignKey:
    ends = [end.strip().split(".") for end in text.split("=")]
    if len(ends) == 2 and all(len(end) == 2 for end in ends):
        (table, column), (target, target_column) = ends
        left, right = schema.table(table), schema.table(target)
        if left and right and left.column(column) and right.column(target_column):
            return ForeignKey(left.name, left.column(column).name, right.name, right.column(target_column).name)  # type: ignore[union-attr]
    raise UserError(f"foreign key {text!r} of database {schema.db_id} does not name two columns as a.b = c.d")
