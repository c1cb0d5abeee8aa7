"""The DuckDB runner. Runs inside the child process.

What it does follows DuckDB's own advice for untrusted SQL (https://duckdb.org/docs/current/operations_manual/
securing_duckdb/overview): a read-only database, no access to anything outside it, no extensions, limits, and a
configuration that cannot be changed; what a statement is and names is judged before (`duckdb_policy`). `GUARDS` names
each of these.

A runner holds a shared lock on its file: nobody can write to the database while one is open.
"""

from __future__ import annotations

import ctypes
import glob
import re
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import duckdb

from spftsql.errors import Fault
from spftsql.sandbox.cells import to_cell
from spftsql.sandbox.duckdb_grants import check_granted
from spftsql.sandbox.duckdb_policy import Names, Refused, checked_statements, refused_names
from spftsql.sandbox.result import Cell, Execution, Granted, Limits, RunStatus
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

_PLAN = "EXPLAIN (FORMAT JSON) "
_LEAST_MEMORY_MB = 192
_OWN_MEMORY_MB = 128  # the library, the catalogue and Python, before there is any data
_ROWS_AT_ONCE = 256
_RESTING_SHARE = 32  # of the memory limit that a database may keep while another is used

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

_names: dict[str, Names] = {}  # of this engine, once a database was opened


class DuckdbRunner:
    """Executes single SELECT statements on one database file.

    The constructor opens `database`; it raises `Fault` when that is not possible. `without` names guards to leave out:
    for the tests, which show what each of them stops.
    """

    engine = ENGINE
    _last: ClassVar[DuckdbRunner | None] = None  # the one of this process that was used last

    def __init__(self, database: Path, limits: Limits, without: frozenset[str] = frozenset()) -> None:
        self._database, self._limits = database, limits
        self._guards = frozenset(GUARDS) - without
        self._columns: tuple[str, ...] = ()
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._open()
        self._watchdog = Watchdog(limits.soft_seconds if "watchdog" in self._guards else threading.TIMEOUT_MAX)

    def _open(self) -> duckdb.DuckDBPyConnection:
        """The connection, opened if it is not."""
        last = DuckdbRunner._last
        if last is not self:
            if last:
                last._rest()
            DuckdbRunner._last = self
        if self._connection is None:
            try:
                self._connection = self._connect()
            except (MemoryError, duckdb.Error) as error:
                raise Fault(f"{self._database} cannot be opened: {_first_line(error)}") from None
        return self._connection

    def _rest(self) -> None:
        """Another database is used now: it shall not lack what this one keeps in memory."""
        if self._connection:
            query = "SELECT sum(memory_usage_bytes) FROM system.main.duckdb_memory()"
            try:
                (kept,) = self._connection.execute(query).fetchone() or (0,)
            except duckdb.Error:
                kept = float("inf")
            if kept > _memory_limit(self._limits) * 2**20 / _RESTING_SHARE:
                self._disconnect()

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None
            _give_memory_back()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        if "log" in self._guards and _has_log(self._database):
            raise Fault(f"{self._database} has a write-ahead log: open it for writing and let it checkpoint")
        settings = {"allow_unsigned_extensions": "false"}
        if "threads" in self._guards:
            settings |= {"threads": "1", "async_threads": "0"}
        if "memory limit" in self._guards:
            settings["memory_limit"] = f"{_memory_limit(self._limits)}MiB"
        if "spilling" in self._guards:
            settings |= {"temp_directory": "", "max_temp_directory_size": "0KiB"}
        connection = duckdb.connect(
            str(self._database), read_only="read-only open" in self._guards, config=dict(settings)
        )
        self._guard(connection)
        self._refused = _names.get(ENGINE) or _names.setdefault(ENGINE, refused_names(connection))
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

    def execute(self, sql: str, max_rows: int, granted: Granted | None = None) -> Execution:
        """See `Runner`. What is not granted is refused by what the plan of the statement scans."""
        return self._executed(sql, max_rows, granted)

    def plan(self, sql: str, granted: Granted | None = None) -> Execution:
        """See `Runner`: the statement by itself is checked, and then explained."""
        return self._executed(sql, self._limits.max_rows, granted, _PLAN)

    def _executed(self, sql: str, max_rows: int, granted: Granted | None, before: str = "") -> Execution:
        started = time.perf_counter()
        self._columns = ()
        rows: list[tuple[Cell, ...]] = []
        status, reason = self._run(sql, rows, max_rows, granted, before)
        elapsed = (time.perf_counter() - started) * 1000
        if elapsed > _HEAVY_MS:
            _give_memory_back()
        return Execution(status, reason, self._columns, rows, elapsed, ENGINE)

    def _run(
        self, sql: str, rows: list[tuple[Cell, ...]], max_rows: int, granted: Granted | None, before: str
    ) -> tuple[RunStatus, str]:
        cursor = self._open().cursor()  # a connection of its own, so that nothing is left of the statement
        self._watchdog.start(cursor.interrupt)
        try:
            statements = checked_statements(cursor, sql, self._refused, self._guards)
            if granted is not None:
                check_granted(cursor, sql, granted)
            for statement in statements:
                cursor.execute(before + sql if before else statement)
            if self._fetch(cursor, rows, max_rows):
                return "truncated", "too many rows or bytes"
            return "ran", ""
        except Refused as refusal:
            failure: tuple[RunStatus, str] = "error", f"refused: {refusal}"
        except duckdb.InterruptException:
            failure = "timeout", f"longer than {self._limits.soft_seconds:g} s"
        except UnicodeEncodeError:
            failure = "error", "refused: not Unicode text"
        except (MemoryError, duckdb.OutOfMemoryException):
            failure = "error", "memory"
            self._give_up(cursor)
        except duckdb.IOException as error:
            raise Fault(f"the database file cannot be read: {_first_line(error)}") from None
        except (duckdb.FatalException, duckdb.InternalException) as error:
            failure = "error", _first_line(error)
            self._give_up(cursor)
            self._open()  # a fault when it is the database's
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

    def _give_up(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """After an error of its own DuckDB does not go on with a database, and without memory it may lose some."""
        self._watchdog.stop()  # nothing that is closed can be interrupted
        cursor.close()
        self._disconnect()

    def close(self) -> None:
        """Closes the connection."""
        self._watchdog.close()
        self._disconnect()
        if DuckdbRunner._last is self:
            DuckdbRunner._last = None


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


def _has_log(database: Path) -> bool:
    places = {database, database.resolve()}
    logs = (log for place in places for log in place.parent.glob(f"{glob.escape(place.name)}.wal*"))
    return any(log.stat().st_size for log in logs)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).partition("\n")[0].split())[:500]
