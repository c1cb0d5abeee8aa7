"""The DuckDB runner. Runs inside the child process.

What it does follows DuckDB's own advice for untrusted SQL (https://duckdb.org/docs/current/operations_manual/
securing_duckdb/overview): a read-only database, no access to anything outside it, no extensions, limits, and a
configuration that cannot be changed. DuckDB has no authorizer; which functions and tables a statement names is read off
its own parser's tree. `GUARDS` names each of these.

A runner holds a shared lock on its file: nobody can write to the database while one is open.
"""

from __future__ import annotations

import ctypes
import glob
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from spftsql.errors import Fault
from spftsql.sandbox.cells import to_cell
from spftsql.sandbox.result import Cell, Execution, Limits, RunStatus
from spftsql.sandbox.watchdog import Watchdog

ENGINE = f"duckdb {duckdb.__version__}"

GUARDS = {
    "read-only open": "writes to the database",
    "writing CTE": "WITH x AS (DELETE …), also INSERT, UPDATE, TRUNCATE and COPY",
    "outside": "files, the network, extensions, secrets and the Python variables around a call",
    "file system": "files, below what lets a statement ask for them: of the database only what is open already",
    "lock": "SET and RESET of all that is configured here",
    "memory limit": "tables, sorts and joins of more than about a half of what the process may have",
    "spilling": "temporary files in a folder beside the database",
    "threads": "more than one thread, and rows whose order differs from run to run",
    "depth": "expressions nested more than 250 deep",
    "SQL_LENGTH": "statements beyond 50,000 bytes",
    "NUL": "text that not every reader reads to its end",
    "stacked": "a second statement",
    "SELECT": "statements that are no query: temporary tables, PREPARE, CALL, EXPLAIN, PRAGMA, …",
    "functions": "functions with side effects, about the machine, or that run SQL from a string",
    "tables": "the engine's tables about the machine and its settings",
    "SHOW": "SHOW, DESCRIBE and SUMMARIZE",
    "watchdog": "statements beyond the soft limit, where DuckDB looks",
    "rows": "results of more rows than asked for",
    "bytes": "results of more bytes than allowed",
    "log": "a write-ahead log, which is no part of the file by whose content results are known",
}

_LEAST_MEMORY_MB = 192
_OWN_MEMORY_MB = 128  # the library, the catalogue and Python, before there is any data
_SQL_LENGTH = 50_000
_ROWS_AT_ONCE = 256

# In this order: some cannot be set once access to the outside is taken away.
_OUTSIDE = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_extension_repositories": "forbidden",
    "allow_persistent_secrets": "false",
    "python_enable_replacements": "false",
    "enable_external_file_cache": "false",
    "enable_external_access": "false",
}

# The engine says of its functions which have side effects; of these, only the first may be called. The others are about
# the machine or run SQL given as text (the table functions, of which only the listed ones may be called), or take the
# inner states of aggregates for what they are.
_HARMLESS = {"random", "uuid", "uuidv4", "uuidv7", "gen_random_uuid", "error"}
_REFUSED_FUNCTIONS = {
    *("current_setting", "getvariable", "txid_current", "pg_sleep", "get_block_size"),
    *("json_serialize_plan", "index_key", "to_aggregate_state", "finalize", "combine", "combine_aggr"),
}
_TABLE_FUNCTIONS = {"unnest", "range", "generate_series", "repeat", "repeat_row", "json_each", "json_tree"}
_SCHEMA_TABLES = {
    *("sqlite_master", "sqlite_schema", "duckdb_columns", "duckdb_constraints", "duckdb_indexes"),
    *("duckdb_schemas", "duckdb_tables", "duckdb_types", "duckdb_views"),
}

_WRITES = {"insert", "update", "delete", "truncate", "merge", "copy"}

_WORD = re.compile(r"[^\W\d]\w*")
_SHOWS = {"show", "describe", "desc", "summarize", "summarise"}
# These words at another place than that of a column or at the end of ORDER BY.
_SHOW = re.compile(
    rf"\b(?:{'|'.join(_SHOWS)})\b(?!\s*(?:[,);]|\Z|(?:limit|offset|union|except|intersect)\b))", re.IGNORECASE
)
_BY_GUARDS = re.compile(
    r"attached in read-only mode|configuration has been locked|disabled (?:by|through) configuration"
)
# Types whose Python values are cells as they are.
_CELL_TYPES = frozenset(
    ["TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "VARCHAR", "BLOB"]
)

_libc = ctypes.CDLL(None)
_M_ARENA_MAX = -8
# `Allocator::FlushAll`, which SQL has no name for: gives back what DuckDB has freed.
_library = ctypes.CDLL(sys.modules[duckdb.DuckDBPyConnection.__module__].__file__)
_flush_allocator = getattr(_library, "_ZN6duckdb9Allocator8FlushAllEv", None)
_HEAVY_MS = 20.0


class _Refused(Exception):
    """The statement is against the policy; the message says why."""


@dataclass(frozen=True, slots=True)
class Names:
    """What statements may not name, in lower case."""

    functions: frozenset[str]
    table_functions: frozenset[str]
    tables: frozenset[str]
    words: frozenset[str]  # all of these, and those that write


_names: dict[str, Names] = {}  # of this engine, once a database was opened


class DuckdbRunner:
    """Executes single SELECT statements on one database file.

    The constructor opens `database`; it raises `Fault` when that is not possible. `without` names guards to leave out:
    for the tests, which show what each of them stops.
    """

    engine = ENGINE

    def __init__(self, database: Path, limits: Limits, without: frozenset[str] = frozenset()) -> None:
        self._database, self._limits = database, limits
        self._guards = frozenset(GUARDS) - without
        self._columns: tuple[str, ...] = ()
        if "log" in self._guards and _has_log(database):
            raise Fault(f"{database} has a write-ahead log: open it for writing and let it checkpoint")
        self._connection = self._open()
        self._watchdog = Watchdog(limits.soft_seconds if "watchdog" in self._guards else threading.TIMEOUT_MAX)

    def _open(self) -> duckdb.DuckDBPyConnection:
        settings = {"allow_unsigned_extensions": "false"}
        if "threads" in self._guards:
            settings |= {"threads": "1", "async_threads": "0"}
        if "memory limit" in self._guards:
            settings["memory_limit"] = f"{_memory_limit(self._limits)}MiB"
        if "spilling" in self._guards:
            settings |= {"temp_directory": "", "max_temp_directory_size": "0KiB"}
        try:
            connection = duckdb.connect(
                str(self._database), read_only="read-only open" in self._guards, config=dict(settings)
            )
            self._guard(connection)
            self._refused = _names.get(ENGINE) or _names.setdefault(ENGINE, refused_names(connection))
        except duckdb.Error as error:
            raise Fault(f"{self._database} cannot be opened: {_first_line(error)}") from None
        return connection

    def _guard(self, connection: duckdb.DuckDBPyConnection) -> None:
        settings = {"TimeZone": "UTC"}  # what local time is must not depend on the machine
        if "depth" in self._guards:
            settings["max_expression_depth"] = "250"
        if "outside" in self._guards:
            settings |= _OUTSIDE
        if "file system" in self._guards:
            settings["disabled_filesystems"] = "LocalFileSystem"
        if "lock" in self._guards:
            settings["lock_configuration"] = "true"
        for name, value in settings.items():
            connection.execute(f"SET GLOBAL {name} = '{value}'")

    def execute(self, sql: str, max_rows: int) -> Execution:
        """Runs one statement. Raises `Fault` when the database file, not the statement, is at fault."""
        started = time.perf_counter()
        self._columns = ()
        rows: list[tuple[Cell, ...]] = []
        status, reason = self._run(sql, rows, max_rows)
        elapsed = (time.perf_counter() - started) * 1000
        if elapsed > _HEAVY_MS:
            _give_memory_back()
        return Execution(status, reason, self._columns, rows, elapsed, ENGINE)

    def _run(self, sql: str, rows: list[tuple[Cell, ...]], max_rows: int) -> tuple[RunStatus, str]:
        cursor = self._connection.cursor()  # a connection of its own, so that nothing is left of the statement
        self._watchdog.start(cursor.interrupt)
        try:
            for statement in self._checked(cursor, sql):
                cursor.execute(statement)
            if self._fetch(cursor, rows, max_rows):
                return "truncated", "too many rows or bytes"
            return "ran", ""
        except _Refused as refusal:
            failure: tuple[RunStatus, str] = "error", f"refused: {refusal}"
        except duckdb.InterruptException:
            failure = "timeout", f"longer than {self._limits.soft_seconds:g} s"
        except UnicodeEncodeError:
            failure = "error", "refused: not Unicode text"
        except (MemoryError, duckdb.OutOfMemoryException):
            failure = "error", "memory"
            self._reopen(cursor)
        except duckdb.IOException as error:
            raise Fault(f"the database file cannot be read: {_first_line(error)}") from None
        except (duckdb.FatalException, duckdb.InternalException) as error:
            failure = "error", _first_line(error)
            self._reopen(cursor)
        except (duckdb.Error, ValueError, OverflowError) as error:
            message = _first_line(error)
            if "orrupt database" in message:
                raise Fault(f"the database file cannot be read: {message}") from None
            failure = "error", f"refused: {message}" if _BY_GUARDS.search(message) else message
        finally:
            self._watchdog.stop()
            cursor.close()
        rows.clear()
        return failure

    def _checked(self, cursor: duckdb.DuckDBPyConnection, sql: str) -> list[duckdb.Statement]:
        """The statement, parsed, when the policy allows it."""
        if "SQL_LENGTH" in self._guards and len(sql.encode()) > _SQL_LENGTH:
            raise _Refused(f"longer than {_SQL_LENGTH:,} bytes")
        if "NUL" in self._guards and "\0" in sql:
            raise _Refused("a NUL character")
        statements = cursor.extract_statements(sql)
        if not statements:
            raise _Refused("no statement")
        if "stacked" in self._guards and len(statements) > 1:
            raise _Refused("more than one statement")
        if "SELECT" in self._guards:
            for kind in map(_kind, statements):
                if kind != "SELECT":
                    raise _Refused(f"{kind}, not a query")
        if self._is_suspect(sql):
            self._check_tree(self._tree(cursor, sql))
        return statements

    def _is_suspect(self, sql: str) -> bool:
        """Whether the text has a word that may not be named at all places; a name is in it letter by letter."""
        words = set(_WORD.findall(sql.lower()))
        return not words.isdisjoint(self._refused.words) or (not words.isdisjoint(_SHOWS) and bool(_SHOW.search(sql)))

    def _tree(self, cursor: duckdb.DuckDBPyConnection, sql: str) -> Any:
        answer = cursor.execute("SELECT system.main.json_serialize_sql(?)", [sql]).fetchone()
        try:
            tree = json.loads(answer[0]) if answer else {"error": True}
        except RecursionError:
            raise _Refused("nested too deeply to be checked") from None
        if tree["error"] and "SELECT" in self._guards:
            raise _Refused("cannot be checked")
        return tree

    def _check_tree(self, tree: Any) -> None:
        for node in _nodes(tree):
            kind = str(node.get("type"))
            if kind.endswith("_QUERY_NODE") and "writing CTE" in self._guards:
                raise _Refused(f"{kind.removesuffix('_QUERY_NODE')} in WITH")
            if kind == "SHOW_REF" and "SHOW" in self._guards:
                raise _Refused("SHOW, DESCRIBE or SUMMARIZE")
            if kind == "BASE_TABLE" and "tables" in self._guards:
                name = str(node["table_name"]).lower()
                if name in self._refused.tables:
                    raise _Refused(f"table {name}")
            if "function_name" in node and "functions" in self._guards:
                name = str(node["function_name"]).lower()
                if name in self._refused.functions or (kind == "None" and name in self._refused.table_functions):
                    raise _Refused(f"function {name}")

    def _fetch(self, cursor: duckdb.DuckDBPyConnection, rows: list[tuple[Cell, ...]], max_rows: int) -> bool:
        """Appends rows, which DuckDB makes as they are asked for; True when the result was cut."""
        description = cursor.description or []
        self._columns = tuple(column[0] for column in description)
        other = [place for place, column in enumerate(description) if str(column[1]) not in _CELL_TYPES]
        left: float = self._limits.max_bytes if "bytes" in self._guards else float("inf")
        most: float = max_rows if "rows" in self._guards else float("inf")
        while batch := cursor.fetchmany(_ROWS_AT_ONCE):
            for values in batch:
                row = values
                if other:
                    cells = list(values)
                    for place in other:
                        cells[place] = to_cell(cells[place])
                    row = tuple(cells)
                left -= 8 * len(row)
                for cell in row:
                    if type(cell) is str or type(cell) is bytes:
                        left -= len(cell)
                if left < 0 or len(rows) >= most:
                    return True
                rows.append(row)
            if len(batch) < _ROWS_AT_ONCE:
                break
        return False

    def _reopen(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """After an error of its own DuckDB gives up an open database, and without memory it may lose some for good.

        Raises `Fault` when it cannot be opened again.
        """
        self._watchdog.stop()  # nothing that is closed can be interrupted
        cursor.close()
        self._connection.close()
        self._connection = self._open()

    def close(self) -> None:
        """Closes the connection."""
        self._watchdog.close()
        self._connection.close()


def limit_process(limits: Limits) -> None:
    """One heap for all threads, because each would reserve 64 MB."""
    _libc.mallopt(_M_ARENA_MAX, 1)


def open_database(address: str, limits: Limits) -> DuckdbRunner:
    """Opens a file; raises `Fault` as `DuckdbRunner`, and where there is too little memory for DuckDB itself."""
    if limits.memory_mb < _LEAST_MEMORY_MB:
        raise Fault(f"DuckDB needs sandbox.memory_mb of at least {_LEAST_MEMORY_MB}")
    return DuckdbRunner(Path(address), limits)


def _give_memory_back() -> None:
    """To the system, so that what a statement can have does not depend on those before it."""
    if _flush_allocator:
        _flush_allocator()
    _libc.malloc_trim(0)


def _memory_limit(limits: Limits) -> int:
    """MiB for the tables, sorts and joins; as much again is left for texts and lists, which DuckDB does not count."""
    return (limits.memory_mb - _OWN_MEMORY_MB) // 2


def refused_names(connection: duckdb.DuckDBPyConnection) -> Names:
    """What the engine says of itself, less what is harmless; a database may have functions of the same names."""
    functions_query = (
        "SELECT function_name, function_type, has_side_effects, internal FROM system.main.duckdb_functions()"
    )
    functions = connection.execute(functions_query).fetchall()
    views_query = "SELECT view_name, schema_name, internal FROM system.main.duckdb_views()"
    views = connection.execute(views_query).fetchall()
    known = {(name.lower(), kind, effects) for name, kind, effects, internal in functions if internal}
    of_tables = {name for name, kind, _ in known if kind in ("table", "table_macro")} - _TABLE_FUNCTIONS
    with_effects = {name for name, kind, effects in known if effects and kind != "table"} - _HARMLESS
    scalar = with_effects | _REFUSED_FUNCTIONS
    tables = {name for name, schema, internal in views if internal and schema != "information_schema"} - _SCHEMA_TABLES
    return Names(*map(frozenset, (scalar, of_tables, tables, scalar | of_tables | tables | _WRITES)))


def _has_log(database: Path) -> bool:
    places = {database, database.resolve()}
    logs = (log for place in places for log in place.parent.glob(f"{glob.escape(place.name)}.wal*"))
    return any(log.stat().st_size for log in logs)


def _kind(statement: duckdb.Statement) -> str:
    try:
        return statement.type.name
    except ValueError:  # a kind that the Python library does not know
        return "something else"


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON tree; the function of a table function has no `type`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if node.get("type") == "TABLE_FUNCTION":
                yield {"function_name": node["function"]["function_name"]}
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).partition("\n")[0].split())[:500]
