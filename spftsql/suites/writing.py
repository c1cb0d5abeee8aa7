"""Writes the rows of an instance as a SQLite file, and reads them back in another order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import apsw

from spftsql.errors import UserError
from spftsql.suites.source import Row, Source, SourceTable, quoted

_PAGE = 1024  # bytes; instances are small and have many tables


def write_instance(source: Source, rows: Mapping[str, Sequence[Row]], target: Path) -> int:
    """Writes one instance and returns the number of its rows: the same input gives the same bytes.

    Rows that break a constraint of the schema (a CHECK that the maker of rows knows nothing of) are left out, and
    with them those that refer to them.
    """
    connection = apsw.Connection(":memory:")
    try:
        for pragma in (f"page_size = {_PAGE}", *source.pragmas):
            connection.execute(f"PRAGMA {pragma}")
        with connection:
            try:
                for statement in source.statements:
                    connection.execute(statement)
            except apsw.Error as error:
                raise UserError(f"no instance can be made of this database, its schema needs more: {error}") from None
            for table in source.tables:
                _insert(connection, table.name, [c.name for c in table.columns], rows.get(table.name, ()))
            while any([_drop_dangling(connection, table) for table in source.tables]):
                pass
            for statement in source.later:
                connection.execute(statement)
        connection.execute("VACUUM")
        kept = sum(_count(connection, table.name) for table in source.tables)
        target.write_bytes(connection.serialize("main"))
        return kept
    finally:
        connection.close()


def write_twin(instance: Path, target: Path, rng: random.Random) -> None:
    """Writes the same rows in another order, without keys and indexes.

    A statement that gives another result there depends on the order in which rows are found, if only in the last digits
    of a sum.
    """
    source = apsw.Connection(str(instance), flags=apsw.SQLITE_OPEN_READONLY)
    twin = apsw.Connection(":memory:")
    try:
        twin.execute(f"PRAGMA page_size = {_PAGE}")
        with twin:
            listing = list(source.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
            for kind, name, _ in listing:
                if kind != "table" or name.startswith("sqlite_"):
                    continue
                columns = [
                    row[1] for row in source.execute("SELECT * FROM pragma_table_xinfo(?)", (name,)) if row[6] != 1
                ]
                declared = []
                for column in columns:
                    typed, collation, *_ = source.column_metadata("main", name, column)
                    declared.append(f"{quoted(column)} {typed or ''} COLLATE {collation or 'BINARY'}")
                twin.execute(f"CREATE TABLE {quoted(name)} ({', '.join(declared)})")
                rows = list(source.execute(f"SELECT {', '.join(map(quoted, columns))} FROM {quoted(name)}"))
                rng.shuffle(rows)
                _insert(twin, name, columns, rows)
            for kind, _, statement in listing:
                if kind == "view":
                    twin.execute(statement)
        target.write_bytes(twin.serialize("main"))
    finally:
        source.close()
        twin.close()


def _insert(connection: apsw.Connection, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    if not columns:
        return
    names, marks = ", ".join(map(quoted, columns)), ", ".join("?" * len(columns))
    statement = f"INSERT OR IGNORE INTO {quoted(table)} ({names}) VALUES ({marks})"
    for row in rows:
        try:
            connection.execute(statement, row)
        except apsw.ConstraintError:
            continue  # such as a value of the wrong type in a STRICT table, which OR IGNORE does not cover
        except apsw.MismatchError:
            continue


def _drop_dangling(connection: apsw.Connection, table: SourceTable) -> bool:
    before = connection.total_changes()
    for link in table.links:
        same = " AND ".join(
            f"p.{quoted(parent)} = {quoted(table.name)}.{quoted(table.columns[own].name)}"
            for own, parent in zip(link.columns, _names(connection, link.parent, link.parent_columns), strict=True)
        )
        filled = " AND ".join(f"{quoted(table.columns[own].name)} IS NOT NULL" for own in link.columns)
        connection.execute(
            f"DELETE FROM {quoted(table.name)} WHERE {filled} "
            f"AND NOT EXISTS (SELECT 1 FROM {quoted(link.parent)} p WHERE {same})"
        )
    return connection.total_changes() > before


def _names(connection: apsw.Connection, table: str, places: Sequence[int]) -> list[str]:
    columns = [row[1] for row in connection.execute("SELECT * FROM pragma_table_xinfo(?)", (table,)) if row[6] == 0]
    return [columns[place] for place in places]


def _count(connection: apsw.Connection, table: str) -> int:
    return int(next(iter(connection.execute(f"SELECT count(*) FROM {quoted(table)}")))[0])
