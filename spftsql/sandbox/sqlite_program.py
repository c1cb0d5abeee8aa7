"""Which columns a statement on SQLite reads, by the program that SQLite makes of it (https://sqlite.org/opcode.html).

The authorizer hears of every column that a statement names, but not of those that NATURAL and USING compare (seen with
SQLite 3.54): whether there are rows would tell what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apsw

_OF_ROWID = {"Rowid", "SeekRowid", "NotExists", "SeekGE", "SeekGT", "SeekLE", "SeekLT"}
_VIRTUAL = 2  # what pragma_table_xinfo says of a generated column that is not stored
_EXPRESSION = "an expression"


@dataclass(frozen=True)
class _Tree:
    """A table or an index of it: its columns in the order in which they are stored, and the one that is the rowid."""

    table: str
    columns: tuple[str, ...]
    rowid: str | None
    is_index: bool


Trees = dict[int, _Tree]  # by root page
_CATALOGUE = _Tree("sqlite_master", (), None, False)


def trees_of(connection: apsw.Connection) -> Trees:
    """All tables and indexes of the database, which is asked without guards."""
    trees: Trees = {}
    tables: dict[str, list[tuple[Any, ...]]] = {}
    columns = "SELECT m.name, m.rootpage, x.name, upper(x.type), x.pk, x.hidden FROM sqlite_master AS m"
    columns += " JOIN pragma_table_xinfo(m.name) AS x WHERE m.type = 'table' AND m.rootpage > 0 ORDER BY m.name, x.cid"
    for name, *column in connection.execute(columns):
        tables.setdefault(name, []).append(tuple(column))
    for name, found in tables.items():
        keys = [column for _, column, kind, key, _ in found if key and kind == "INTEGER"]
        rowid = keys[0].lower() if len(keys) == sum(bool(key) for *_, key, _ in found) == 1 else None
        stored = tuple(column.lower() for _, column, _, _, hidden in found if hidden != _VIRTUAL)
        trees[found[0][0]] = _Tree(name.lower(), stored, rowid, False)
    indexes = "SELECT m.tbl_name, m.rootpage, x.cid, x.name FROM sqlite_master AS m"
    indexes += " JOIN pragma_index_xinfo(m.name) AS x WHERE m.type = 'index' AND m.rootpage > 0 AND x.key"
    for table, root, number, column in connection.execute(indexes):
        before = trees[root].columns if root in trees else ()
        name = _EXPRESSION if number < 0 or column is None else column.lower()
        trees[root] = _Tree(table.lower(), (*before, name), None, True)
    return trees


def columns_read(program: Sequence[Sequence[Any]], trees: Trees) -> Iterator[tuple[str, str]]:
    """What the rows of EXPLAIN read: tables (with column ""), and their columns.

    Of an index, and of a table that is one, all columns count.
    """
    opened: dict[int, _Tree] = {}
    for _, opcode, cursor, second, third, fourth, *_ in program:
        if opcode in ("OpenRead", "ReopenIdx") and third == 0:  # in the database itself
            opened[cursor] = tree = trees.get(second, _CATALOGUE)
            yield tree.table, ""
            if tree.is_index or str(fourth).startswith("k("):
                yield from ((tree.table, column) for column in tree.columns)
    for _, opcode, cursor, second, *_ in program:
        read = opened.get(cursor)
        if read is not None and opcode == "Column" and not read.is_index and second < len(read.columns):
            yield read.table, read.columns[second]
        elif read is not None and opcode in _OF_ROWID and read.rowid is not None:
            yield read.table, read.rowid
