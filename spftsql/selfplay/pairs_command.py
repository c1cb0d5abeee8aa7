"""`spftsql pairs`: a run's synthetic pairs by SQL.

DuckDB reads the Parquet files into memory and is locked down before it sees what the user wrote: no file, no network,
no extension, no other setting, one SELECT.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import duckdb
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spftsql.errors import UserError
from spftsql.records import PairRow, arrow_schema
from spftsql.selfplay.lineage import pair_files

DEFAULT_COLUMNS = "round, part, reason, db_id, question, sql, confidence"
_PAIRS = """
    CREATE TABLE pairs AS SELECT * FROM columns UNION ALL BY NAME SELECT * FROM read_parquet(?, union_by_name = true)
"""
_LOCKED = (
    "SET memory_limit = '1GB'",
    "SET threads = 1",
    "SET temp_directory = ''",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET python_enable_replacements = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)


def show_pairs(
    run: Path, where: str | None, columns: str | None, limit: int, as_json: bool, as_csv: bool, console: Console
) -> None:
    """Prints the pairs as a table, as JSON lines or as CSV. Raises `UserError`."""
    if as_json and as_csv:
        raise UserError("--json and --csv: choose one")
    names, rows = query_pairs(run, where, columns, limit)
    if as_json:
        for row in rows:
            print(json.dumps(_json(dict(zip(names, row, strict=True))), ensure_ascii=False, default=str))
    elif as_csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([names, *rows])
        print(text.getvalue(), end="")
    else:
        table = Table(*names)
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        console.print(table)
        console.print(f"{len(rows)} rows" + (f" (--limit {limit})" if len(rows) == limit else ""), highlight=False)


def query_pairs(
    run: Path, where: str | None, columns: str | None, limit: int
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of `SELECT columns FROM pairs WHERE where` in the order of the rounds.

    With an aggregate beside other columns (`reason, count(*)`) there is a row for each of their values. Raises
    `UserError` for a run without pairs, and for a condition that is not one.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a directory; name a run as RUN_DIR/NAME")
    files = pair_files(run)
    if not files:
        raise UserError(f"{run} has no pairs yet: they are written when a round of VBI-FT has its questions")
    # A line comment would hide what follows, so what the user wrote ends with its line.
    condition = f"WHERE (\n{where}\n)" if where is not None and where.strip() else ""
    plain = f"SELECT {columns or DEFAULT_COLUMNS}\nFROM pairs\n{condition}\nLIMIT {limit}"
    grouped = f"SELECT {columns or DEFAULT_COLUMNS}\nFROM pairs\n{condition}\nGROUP BY ALL ORDER BY ALL LIMIT {limit}"
    with duckdb.connect(":memory:") as connection:
        try:
            connection.register("columns", arrow_schema(PairRow).empty_table())  # an older file lacks some
            connection.execute(_PAIRS, [[str(file) for file in files]])
            connection.unregister("columns")
        except duckdb.Error as error:
            raise UserError(f"the pairs of {run} cannot be read: {_first_line(error)}; run the recipe again") from None
        for statement in _LOCKED:
            connection.execute(statement)
        try:
            try:
                found = _select(connection, plain)
            except duckdb.BinderException as error:
                if "GROUP BY" not in str(error):
                    raise
                found = _select(connection, grouped)
            names = [str(column[0]) for column in found.description]
            return names, found.fetchall()
        except duckdb.Error as error:
            known = ", ".join(row[0] for row in connection.execute("DESCRIBE pairs").fetchall())
            raise UserError(f"not a condition over pairs: {_first_line(error)}; columns: {known}") from None


def _select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyConnection:
    statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise UserError("--where takes one condition and --columns names or expressions, not statements")
    return connection.execute(statements[0])


def _first_line(error: Exception) -> str:
    return next(line.strip() for line in str(error).splitlines() if line.strip())


def _json(value: Any) -> Any:
    """A value as JSON has it: NaN and the infinities, which it does not know, are null; keys are texts."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: object) -> str:
    if value is None:
        return "–"
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return escape("".join(char if char.isprintable() else " " for char in text))
