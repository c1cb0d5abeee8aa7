"""A database as the maker of instances sees it: its schema text, keys and links, a sample of its rows, its habits.

A habit is what the rows keep to although the schema does not ask for it: a column that never repeats or is never NULL,
a column that follows from another. Right SQL may rely on it, so instances keep to it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cell = None | int | float | str | bytes
Row = tuple[Cell, ...]
ColumnKind = Literal["integer", "real", "date", "text", "other"]


@dataclass(frozen=True)
class SourceColumn:
    """A column that rows are inserted with.

    `kind` is what its values are, whatever they are stored as: `text` says that numbers stand there as text. `unique`
    and `required` (never NULL) hold by the schema or by habit; `closed` columns take no value that the source and the
    golds do not have. `low` and `high` bound numbers, `step` is the smallest difference between them.
    """

    name: str
    kind: ColumnKind
    as_text: bool
    unique: bool
    required: bool
    closed: bool
    nulls: float
    values: tuple[Cell, ...]
    low: float = 0
    high: float = 100
    step: float = 1


@dataclass(frozen=True)
class Link:
    """Columns (by position) that refer to those of another table, as a declared foreign key or as golds use them.

    `copies` are further columns that say what a column of the parent says (position here, position there).
    """

    columns: tuple[int, ...]
    parent: str
    parent_columns: tuple[int, ...]
    copies: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class SourceTable:
    """A table: its sampled rows, keys (sets of positions), links, and blocks of columns that belong together."""

    name: str
    columns: tuple[SourceColumn, ...]
    rows: tuple[Row, ...]
    total: int
    keys: tuple[tuple[int, ...], ...]
    links: tuple[Link, ...]
    blocks: tuple[tuple[int, ...], ...]

    def index(self, column: str) -> int | None:
        """The position of a column, case ignored."""
        return next((i for i, c in enumerate(self.columns) if c.name.lower() == column.lower()), None)


@dataclass(frozen=True)
class Source:
    """A database; `tables` stand in an order in which parents come before their children, as far as there is one."""

    tables: tuple[SourceTable, ...]
    statements: tuple[str, ...]  # CREATE of tables and indexes
    later: tuple[str, ...]  # CREATE of views and triggers, for when the rows are in
    pragmas: tuple[str, ...]

    def table(self, name: str) -> SourceTable | None:
        """The table of that name, case ignored."""
        return next((table for table in self.tables if table.name.lower() == name.lower()), None)


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
