"""From what PostgreSQL writes to cells.

Values come as text, because that is what the server itself defines for each of its types, those of extensions and of
users too. What has a canonical form as a cell is read (`_READERS`); anything else stays the text that it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.adapt import AdaptersMap, Loader, Transformer
from psycopg.pq.abc import PGresult
from psycopg.types.numeric import FloatLoader, IntLoader, NumericLoader
from psycopg.types.string import ByteaLoader, TextLoader

from spftsql.sandbox.cells import to_cell
from spftsql.sandbox.result import Cell

_INTERVAL = re.compile(
    r"(?:(?P<years>-?\d+) years? ?)?(?:(?P<months>[+-]?\d+) mons? ?)?(?:(?P<days>[+-]?\d+) days? ?)?"
    r"(?:(?P<sign>[+-]?)(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d)(?:\.(?P<fraction>\d+))?)?"
)


def _interval(text: str) -> object:
    """As PostgreSQL compares intervals: a month is 30 days, a day is 24 hours."""
    parts = _INTERVAL.fullmatch(text)
    if parts is None:
        return text
    number = {name: int(value or 0) for name, value in parts.groupdict().items() if name not in ("sign", "fraction")}
    micros = int((parts["fraction"] or "0").ljust(6, "0"))
    clock = timedelta(hours=number["hours"], minutes=number["minutes"], seconds=number["seconds"], microseconds=micros)
    days = 30 * (12 * number["years"] + number["months"]) + number["days"]
    return timedelta(days=days) + (-clock if parts["sign"] == "-" else clock)


def _moment(text: str) -> object:
    """A time stamp with a zone."""
    return text[:-3] + "+00:00" if text.endswith("+00") else datetime.fromisoformat(text)


def _json(text: str) -> object:
    return json.loads(text, parse_float=Decimal)


def _loader(read: Callable[[str], object]) -> type[Loader]:
    class Reader(Loader):
        """Falls back to the text for what Python has no value for: infinity, years BC, very long numbers."""

        def load(self, data: Any) -> object:
            text = bytes(data).decode()
            try:
                return read(text)
            except (ValueError, OverflowError, RecursionError) as error:
                if isinstance(error, UnicodeDecodeError):
                    raise
                return text

    return Reader


_LOADERS: dict[str, type[Loader]] = {
    **dict.fromkeys(("int2", "int4", "int8", "oid"), IntLoader),
    **dict.fromkeys(("float4", "float8"), FloatLoader),
    **dict.fromkeys(("text", "varchar", "bpchar", "name", "uuid", "date", "timestamp", "time"), TextLoader),
    "numeric": NumericLoader,
    "bool": _loader(lambda text: text == "t"),
    "bytea": ByteaLoader,
    "timestamptz": _loader(_moment),
    "timetz": _loader(time.fromisoformat),
    "interval": _loader(_interval),
    "json": _loader(_json),
    "jsonb": _loader(_json),
}
_AS_THEY_ARE = frozenset(
    psycopg.postgres.types[name].oid
    for name in (
        "int2",
        "int4",
        "int8",
        "oid",
        "text",
        "varchar",
        "bpchar",
        "name",
        "uuid",
        "date",
        "timestamp",
        "time",
    )
)


def _adapters() -> AdaptersMap:
    adapters = AdaptersMap()
    adapters.register_loader(0, TextLoader)  # for every type that is not registered
    for name, loader in _LOADERS.items():
        kind = psycopg.postgres.types[name]
        adapters.register_loader(kind.oid, loader)
        kind.register(adapters)  # arrays of it
    return adapters


_ADAPTERS = _adapters()


class Reader:
    """Reads the parts of one result. Raises `UnicodeDecodeError` for text that is not UTF-8."""

    def __init__(self, first: PGresult) -> None:
        self.columns = tuple((first.fname(i) or b"").decode() for i in range(first.nfields))
        self._transformer = Transformer(_ADAPTERS)
        self._transformer.set_pgresult(first)
        self._plain = all(first.ftype(i) in _AS_THEY_ARE for i in range(first.nfields))

    def rows(self, part: PGresult) -> Iterable[tuple[Cell, ...]]:
        """The rows of one part. Those that cost something are read one by one, so that one can stop in between."""
        self._transformer.set_pgresult(part, set_loaders=False)
        if self._plain:
            return self._transformer.load_rows(0, part.ntuples, tuple)
        return (self._row(part, row) for row in range(part.ntuples))

    def _row(self, part: PGresult, row: int) -> tuple[Cell, ...]:
        values = self._transformer.load_row(row, tuple) or ()
        try:
            return tuple(map(to_cell, values))
        except ValueError:  # nested more deeply than Python's JSON can follow
            return tuple(_cell_or_text(value, part.get_value(row, column)) for column, value in enumerate(values))


def _cell_or_text(value: object, text: bytes | None) -> Cell:
    try:
        return to_cell(value)
    except ValueError:
        return (text or b"").decode()
