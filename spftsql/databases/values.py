"""The values of a database, for filling SQL: distinct values of columns with their counts, read once and kept."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any

from spftsql.databases import reading
from spftsql.databases.reading import Query, plain, quoted, reader, rows_of
from spftsql.sandbox.location import Location, locate

Value = str | int | float
Row = tuple[Value, ...]

_CAP = 5_000  # distinct values kept per column
_COMBINATIONS = 32  # of columns whose rows are kept: there are too many for all
_ROWS = 500  # kept of each
_OPEN = 256  # databases
_CONNECTED = 8  # of them on servers: docs/postgresql.md advises 20 connections for all that a run does there
_EXACT = 2**23  # see `adds_up`
_LONGEST = 60  # characters of a value that a question could still mention


class Values:
    """Reads a database through one read-only connection. Not for use in several threads at once.

    Of a server's table beyond a million rows, values are those of the first million.
    """

    def __init__(self, database: str | Path | Location) -> None:
        """Raises `UserError` when the database cannot be opened."""
        self._location = database if isinstance(database, Location) else locate(database)
        self._open = ExitStack()
        self._reader: Query | None = self._open.enter_context(reader(self._location))
        self._columns: dict[tuple[str, str], list[tuple[Value, int]]] = {}
        self._rows: OrderedDict[tuple[str, tuple[str, ...]], tuple[list[Row], list[float]]] = OrderedDict()
        self._shared: dict[tuple[tuple[str, str], ...], tuple[list[Value], list[float]]] = {}
        self._ordered: dict[tuple[str, str], list[Value]] = {}
        self._members: dict[tuple[str, str], frozenset[Value]] = {}
        self._in_common: dict[tuple[tuple[str, str], tuple[str, str]], bool] = {}
        self._bounds: dict[tuple[str, str], tuple[Value, Value] | None] = {}
        self._adds_up: dict[tuple[str, str], bool] = {}
        self._whole: dict[str, bool] = {}

    @property
    def on_server(self) -> bool:
        """Whether the connection is one to a server."""
        return self._location.engine == "postgresql"

    def close(self) -> None:
        """Closes the connection. What was read stays known, and what is asked beyond it opens another one."""
        self._reader = None
        self._open.close()

    def column(self, table: str, column: str) -> list[tuple[Value, int]]:
        """The distinct values of a column with their counts, most frequent first; no NULL, no blob."""
        key = (table, column)
        if key not in self._columns:
            self._columns[key] = [(row[0], count) for row, count in self._read(table, (column,))]
        return self._columns[key]

    def draw(self, rng: random.Random, columns: Sequence[tuple[str, str]]) -> Value | None:
        """A value that all of `columns` have (else one of the first), mildly preferring frequent ones."""
        key = tuple(columns)
        if key not in self._shared:
            first = self.column(*key[0])
            others = [{value for value, _ in self.column(*name)} for name in key[1:]]
            common = [pair for pair in first if all(pair[0] in other for other in others)] or first
            kept = [pair for pair in common if _sayable(pair[0])]
            self._shared[key] = [value for value, _ in kept], _cumulative([count for _, count in kept])
        choices, weights = self._shared[key]
        return rng.choices(choices, cum_weights=weights)[0] if choices else None

    def draw_row(self, rng: random.Random, table: str, columns: Sequence[str]) -> Row | None:
        """Values of several columns that stand together in a row of `table`."""
        key = (table, tuple(columns))
        if key not in self._rows:
            if len(self._rows) >= _COMBINATIONS:
                self._rows.popitem(last=False)
            found = [(row, count) for row, count in self._read(*key, _ROWS) if all(map(_sayable, row))]
            self._rows[key] = [row for row, _ in found], _cumulative([count for _, count in found])
        self._rows.move_to_end(key)
        rows, weights = self._rows[key]
        return rng.choices(rows, cum_weights=weights)[0] if rows else None

    def threshold(self, rng: random.Random, table: str, column: str) -> Value | None:
        """A value to compare a column with by `<` or `>`: between its outer tenths, round half of the time."""
        key = (table, column)
        if key not in self._ordered:
            sayable = [value for value, _ in self.column(table, column) if _sayable(value)]
            self._ordered[key] = sorted(sayable, key=lambda v: (isinstance(v, str), v))
        values = self._ordered[key]
        if not values:
            return None
        value = values[int((0.1 + 0.8 * rng.random()) * len(values))]
        if isinstance(value, str) or rng.random() < 0.5:
            return value
        rounded = type(value)(f"{value:.2g}") if isinstance(value, float) else int(float(f"{value:.2g}"))
        low, high = values[0], values[-1]
        inside = not isinstance(low, str) and not isinstance(high, str) and low < rounded < high
        return rounded if inside else value

    def holds(self, table: str, column: str, value: Value) -> bool | None:
        """Whether a column has a value; None where it has values that are not known, and this is none of the others."""
        key = (table, column)
        if key not in self._members:
            self._members[key] = frozenset(value for value, _ in self.column(table, column))
        if value in self._members[key]:
            return True
        return None if len(self._members[key]) >= _CAP or not self._is_whole(table) else False

    def in_common(self, one: tuple[str, str], other: tuple[str, str]) -> bool:
        """Whether two columns have a value in common, for all that can be told: not all values are kept."""
        key = (one, other)
        if key not in self._in_common:
            found = (self.holds(*other, value) is not False for value, _ in self.column(*one))
            self._in_common[key] = any(found) or len(self.column(*one)) >= _CAP
        return self._in_common[key]

    def bounds(self, table: str, column: str) -> tuple[Value, Value] | None:
        """The least and the greatest value of a column, blobs apart.

        None where it has numbers beside texts, no value, or rows that are not looked at.
        """
        key = (table, column)
        if key not in self._bounds:
            values = [value for value, _ in self.column(table, column)]
            if len(values) >= _CAP:
                name = quoted(column)
                cells = self._query(f"SELECT MIN({name}), MAX({name}) {self._from(table, (column,))}")[0]
                values = [value for value in map(plain, cells) if value is not None]
            texts = sum(isinstance(value, str) for value in values)
            unknown = not values or 0 < texts < len(values) or not self._is_whole(table)
            self._bounds[key] = None if unknown else (min(values), max(values))
        return self._bounds[key]

    def adds_up(self, table: str, column: str) -> bool:
        """Whether SQLite adds up any rows of a column to the same sum and mean in every order; elsewhere False.

        So it is with integers of at most 2²³: of fewer than 2³⁰ rows the sum fits a double.
        """
        key = (table, column)
        if key not in self._adds_up:
            name = quoted(column)
            other = f"typeof({name}) NOT IN ('integer', 'null') OR {name} NOT BETWEEN {-_EXACT} AND {_EXACT}"
            query = f"SELECT 1 FROM {quoted(table)} WHERE {other} LIMIT 1"
            self._adds_up[key] = self._location.engine == "sqlite" and not self._query(query)
        return self._adds_up[key]

    def _is_whole(self, table: str) -> bool:
        """Whether all rows of a table are looked at."""
        if not self.on_server:
            return True
        if table not in self._whole:
            beyond = f"SELECT 1 FROM {quoted(table)} LIMIT 1 OFFSET {reading.SCANNED}"
            self._whole[table] = not self._query(beyond)
        return self._whole[table]

    def _query(self, sql: str) -> Sequence[tuple[Any, ...]]:
        if self._reader is None:
            self._reader = self._open.enter_context(reader(self._location))
        return self._reader(sql)

    def _from(self, table: str, columns: tuple[str, ...]) -> str:
        """FROM and WHERE of a query over the rows in which none of `columns` is NULL or a blob."""
        kinds = "typeof({}) IN ('text', 'integer', 'real')" if self._location.engine == "sqlite" else "{} IS NOT NULL"
        wanted = " AND ".join(kinds.format(quoted(column)) for column in columns)
        return f"FROM {rows_of(self._location, table, columns)} WHERE {wanted}"

    def _read(self, table: str, columns: tuple[str, ...], most: int = _CAP) -> list[tuple[Row, int]]:
        names = ", ".join(quoted(column) for column in columns)
        query = (
            f"SELECT {names}, COUNT(*) {self._from(table, columns)} "
            f"GROUP BY {names} ORDER BY COUNT(*) DESC, {names} LIMIT {most}"
        )
        found = []
        for *cells, count in self._query(query):
            row = [value for value in map(plain, cells) if value is not None]
            if len(row) == len(cells):
                found.append((tuple(row), int(count)))
        return found


class OpenValues:
    """The values of databases by their name, opened when they are asked for; only those used last stay open.

    Of those on servers few stay connected, and what was read of them is kept for longer.
    """

    def __init__(self, databases: Mapping[str, str | Path | Location], most: int = _OPEN) -> None:
        """Opens nothing yet. `most` databases are open at once."""
        self._databases, self._most = databases, most
        self._open: OrderedDict[str, Values] = OrderedDict()
        self._connected: OrderedDict[str, Values] = OrderedDict()

    def __getitem__(self, name: str) -> Values:
        """Raises `KeyError` for an unknown name, `UserError` for a database that cannot be opened."""
        if name not in self._open:
            self._open[name] = Values(self._databases[name])
            if len(self._open) > self._most:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(name)
        found = self._open[name]
        if found.on_server:
            self._connected[name] = found
            self._connected.move_to_end(name)
            if len(self._connected) > _CONNECTED:
                self._connected.popitem(last=False)[1].close()
        return found

    def close(self) -> None:
        """Closes all."""
        while self._open:
            self._open.popitem()[1].close()


def _cumulative(counts: Sequence[int]) -> list[float]:
    return list(accumulate(count**0.5 for count in counts))


def _sayable(value: Value) -> bool:
    """Whether a question can mention the value: short, printable, no blanks at its ends."""
    if not isinstance(value, str):
        return value == value and abs(value) < 1e15
    return 0 < len(value) <= _LONGEST and value == value.strip() and value.isprintable() and "\ufffd" not in value
