"""Plain read-only queries of our own on any engine: what a database holds, never what a model wrote.

Statements that come from a model run in the sandbox and nowhere else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

from spftsql.errors import UserError
from spftsql.sandbox.location import Location, locate

SCANNED = 1_000_000  # rows of a server's table that are looked at
Query = Callable[[str], Sequence[tuple[Any, ...]]]


@contextmanager
def reader(database: str | Path | Location) -> Iterator[Query]:
    """A function that runs one SELECT and gives its rows, over one read-only connection.

    Not for use in several threads at once. Raises `UserError` when the database cannot be opened.
    """
    location = database if isinstance(database, Location) else locate(database)
    try:
        connection = _connect(location)
    except UserError:
        raise
    except Exception as error:  # each driver has its own classes
        raise UserError(f"database {location} cannot be opened: {str(error).strip().splitlines()[0]}") from None
    try:
        yield lambda sql: connection.execute(sql).fetchall()
    finally:
        connection.close()


def quoted(name: str) -> str:
    """A name as any of the engines reads it, whatever it is made of."""
    return '"' + name.replace('"', '""') + '"'


def rows_of(location: Location, table: str, columns: Sequence[str]) -> str:
    """A table as the source of a SELECT over `columns`: of a server's table the first million rows alone."""
    if location.engine != "postgresql":
        return quoted(table)
    names = ", ".join(quoted(column) for column in columns)  # the role may not be allowed to read all columns
    return f"(SELECT {names} FROM {quoted(table)} LIMIT {SCANNED}) AS beginning"


def plain(cell: Any) -> str | int | float | None:
    """A cell as text or number: dates in ISO form, decimals as numbers; None for NULL and for what is neither."""
    if isinstance(cell, bool):
        return int(cell)
    if cell is None or isinstance(cell, str | int | float):
        return cell
    if isinstance(cell, Decimal):
        return int(cell) if cell == cell.to_integral_value() else float(cell)
    if isinstance(cell, datetime):
        return cell.isoformat(sep=" ")
    return cell.isoformat() if isinstance(cell, date | time) else None


def _connect(location: Location) -> Any:
    if location.engine == "sqlite":
        connection = sqlite3.connect(f"{Path(location.address).as_uri()}?mode=ro&immutable=1", uri=True)
        connection.text_factory = lambda raw: raw.decode("utf-8", errors="replace")
        return connection
    if location.engine == "duckdb":
        import duckdb

        return duckdb.connect(location.address, read_only=True)
    from spftsql.databases.server import connect

    return connect(location)
