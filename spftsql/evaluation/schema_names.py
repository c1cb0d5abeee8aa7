"""What exact match has to know of a database: its columns, and which of them foreign keys make equal."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from spftsql.errors import UserError
from spftsql.evaluation.components import Names
from spftsql.evaluation.sources import read_text
from spftsql.sandbox.location import Location

_FILES = {  # of the layouts in `spftsql.evaluation.sources`, and beside Spider's robustness sets
    "spider": ("test_tables.json", "tables.json", "../spider/tables.json"),
    "bird": ("dev_tables.json", "mini_dev_sqlite_tables.json", "train_tables.json"),
}


def read_names(benchmark: str, root: Path, databases: Mapping[str, Location | None]) -> dict[str, Names]:
    """The names of each database: from the benchmark's own list of tables, else from the SQLite file itself.

    Of other engines, and without a file (None), nothing is known: columns then go by the name that they have in a
    statement.

    Raises `UserError` for a list that cannot be read.
    """
    listed: dict[str, Names] = {}
    for name in _FILES.get(benchmark, ()):
        file = root / name
        if file.is_file():
            listed = {**_listed(file), **listed}
    return {db_id: listed.get(db_id) or _declared(location) for db_id, location in databases.items()}


def _listed(file: Path) -> dict[str, Names]:
    """Spider's form: original names of tables and columns, foreign keys as pairs of column numbers."""
    try:
        return {entry["db_id"]: _of_entry(entry) for entry in json.loads(read_text(file))}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{file} has not the form of Spider's tables.json: {error!r}") from None


def _of_entry(entry: Mapping[str, Any]) -> Names:
    tables = [name.lower() for name in entry["table_names_original"]]
    columns = [(tables[table] if table >= 0 else "", name.lower()) for table, name in entry["column_names_original"]]
    # BIRD lists a primary key of several columns as a list, and never so a foreign one.
    keys = [(columns[one], columns[other]) for one, other in entry["foreign_keys"]]
    return _names(columns, keys)


def _declared(location: Location | None) -> Names:
    if location is None or location.engine != "sqlite":
        return Names({})
    address = f"{Path(location.address).resolve().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as connection:
            columns = connection.execute(
                "SELECT lower(m.name), lower(c.name) FROM sqlite_master m, pragma_table_info(m.name) c "
                "WHERE m.type IN ('table', 'view') ORDER BY m.rowid, c.cid"
            ).fetchall()
            # Without a named target the key goes to the primary key, in its order.
            keys = connection.execute(
                'SELECT lower(m.name), lower(k."from"), lower(k."table"), lower(coalesce(k."to", p.name)) '
                "FROM sqlite_master m, pragma_foreign_key_list(m.name) k "
                "LEFT JOIN pragma_table_info(k.\"table\") p ON p.pk = k.seq + 1 WHERE m.type = 'table'"
            ).fetchall()
    except sqlite3.DatabaseError as error:
        raise UserError(f"{location}: {error}") from None
    return _names(columns, [((a, b), (c, d)) for a, b, c, d in keys if d])


def _names(columns: Sequence[tuple[str, str]], keys: Iterable[tuple[tuple[str, str], tuple[str, str]]]) -> Names:
    """Columns that keys connect go by the name of the first; a key joins the first group that has an end of it."""
    order = {column: number for number, column in enumerate(columns)}
    groups: list[set[tuple[str, str]]] = []
    for key in keys:
        group = next((group for group in groups if group & set(key)), None)
        if group is None:
            groups.append(group := set())
        group.update(key)
    same = {}
    for group in groups:
        first = min(group, key=lambda column: order.get(column, len(order)))
        same.update({".".join(column): ".".join(first) for column in group})
    by_table: dict[str, set[str]] = {}
    for table, column in columns:
        by_table.setdefault(table, set()).add(column)
    return Names({table: frozenset(names) for table, names in by_table.items()}, same)
