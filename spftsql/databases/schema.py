"""What the project knows about a database: tables, columns, keys and sample values.

`Schema` is plain data (JSON in the run directory), so that synthesis, prompts and serving work without a connection.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

Kind = Literal["text", "number", "date", "boolean", "other"]


@dataclass(frozen=True)
class Column:
    """A column; `kind` is what synthesis matches on, `sql_type` what the database declares.

    `distinct` and `nulls` count over all rows; `samples` are up to a few frequent values, as stored.
    """

    name: str
    kind: Kind
    sql_type: str
    primary_key: bool = False
    distinct: int = 0
    nulls: int = 0
    samples: tuple[str | int | float, ...] = ()
    comment: str = ""


@dataclass(frozen=True)
class Table:
    """A table and its number of rows."""

    name: str
    columns: tuple[Column, ...]
    rows: int = 0
    comment: str = ""

    def column(self, name: str) -> Column | None:
        """The column of that name, case ignored."""
        return next((c for c in self.columns if c.name.lower() == name.lower()), None)

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Names of the primary key's columns, empty where none is declared."""
        return tuple(c.name for c in self.columns if c.primary_key)


@dataclass(frozen=True)
class ForeignKey:
    """`table.column` refers to `target.target_column`.

    A key of several columns is several of these, with a number (`constraint`, from 1) that no other key of the table
    has; a key of one column has 0.
    """

    table: str
    column: str
    target: str
    target_column: str
    constraint: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The key as JSON has it: the number only where there is one."""
        tree = asdict(self)
        return tree if self.constraint else {name: tree[name] for name in tree if name != "constraint"}


@dataclass(frozen=True)
class Schema:
    """A database as the method sees it. `dialect` is sqlglot's name for it."""

    db_id: str
    dialect: str
    tables: tuple[Table, ...]
    foreign_keys: tuple[ForeignKey, ...] = ()

    @cached_property
    def _tables(self) -> dict[str, Table]:
        return {table.name.lower(): table for table in self.tables}

    def table(self, name: str) -> Table | None:
        """The table of that name, case ignored."""
        return self._tables.get(name.lower())

    @cached_property
    def constraints(self) -> tuple[tuple[ForeignKey, ...], ...]:
        """The foreign keys, all columns of one key together: their tables are joined over all of them."""
        found: dict[object, list[ForeignKey]] = {}
        for number, key in enumerate(self.foreign_keys):
            found.setdefault((key.table.lower(), key.constraint) if key.constraint else number, []).append(key)
        return tuple(map(tuple, found.values()))

    def to_json(self) -> str:
        """The schema as JSON text; `from_json` reads it back."""
        tree = asdict(self) | {"foreign_keys": [key.to_dict() for key in self.foreign_keys]}
        return json.dumps(tree, ensure_ascii=False, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Schema:
        """The schema that `to_json` wrote."""
        tree: dict[str, Any] = json.loads(text)
        tables = tuple(
            Table(
                table["name"],
                tuple(Column(**{**column, "samples": tuple(column["samples"])}) for column in table["columns"]),
                table["rows"],
                table.get("comment", ""),
            )
            for table in tree["tables"]
        )
        keys = tuple(ForeignKey(**key) for key in tree["foreign_keys"])
        return Schema(tree["db_id"], tree["dialect"], tables, keys)
