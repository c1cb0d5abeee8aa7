"""The SQLite runner, on APSW, whose bundled SQLite makes results the same on every machine.

Runs inside the child process. What it does follows SQLite's own advice for untrusted SQL
(https://sqlite.org/security.html): a read-only, immutable, defensive connection, lowered limits, a heap limit, a
progress handler, and an authorizer that allows what is listed and nothing else.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw

from spftsql.errors import Fault
from spftsql.sandbox.result import Cell, Execution, Limits, RunStatus

ENGINE = f"sqlite {apsw.sqlite_lib_version()}"

_FUNCTION_NAMES = """
    abs avg acos acosh asin asinh atan atan2 atanh bm25 ceil ceiling char coalesce concat concat_ws cos cosh
    count cume_dist current_date current_time current_timestamp date datetime degrees dense_rank exp first_value floor
    glob group_concat hex highlight if ifnull iif instr json json_array json_array_length json_each json_error_position
    json_extract json_group_array json_group_object json_insert json_object json_patch json_pretty json_quote
    json_remove json_replace json_set json_tree json_type json_valid julianday lag last_value lead
    length like likelihood likely ln log log10 log2 lower ltrim match max median min mod nth_value ntile nullif
    octet_length percent_rank percentile percentile_cont percentile_disc pi pow power quote radians random rank regexp
    replace round row_number rtrim sign sin sinh snippet soundex sqlite_version sqrt strftime string_agg substr
    substring subtype sum tan tanh time timediff total trim trunc typeof unhex unicode unistr unixepoch
    unlikely upper -> ->>
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_TABLES_OF_ENGINE = ("sqlite_master", "sqlite_schema", "sqlite_sequence", "json_each", "json_tree")
_LIMITS = {
    apsw.SQLITE_LIMIT_LENGTH: 1_000_000,
    apsw.SQLITE_LIMIT_SQL_LENGTH: 50_000,
    apsw.SQLITE_LIMIT_ATTACHED: 0,
    apsw.SQLITE_LIMIT_EXPR_DEPTH: 200,
    apsw.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    apsw.SQLITE_LIMIT_VDBE_OP: 250_000,
    apsw.SQLITE_LIMIT_FUNCTION_ARG: 100,
    apsw.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    apsw.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_PROGRESS_STEPS = 1_000  # VM steps between two looks at the clock: about 0.1 ms


class _Refused(Exception):
    """The statement is against the policy; the message says why."""


class SqliteRunner:
    """Executes single SELECT statements on one database file.

    The constructor opens `database`; it raises `Fault` when that is not possible.
    """

    engine = ENGINE

    def __init__(self, database: Path, limits: Limits) -> None:
        self._limits = limits
        self._deadline = float("inf")
        self._rest = self._denied = ""
        self._columns: tuple[str, ...] = ()
        log = Path(f"{database}-wal")
        if log.exists() and log.stat().st_size:
            # An immutable connection would silently not see what is in the log.
            raise Fault(f"{database} has an unfinished write-ahead log: close its writers and checkpoint it")
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        try:
            self._connection = apsw.Connection(f"file:{quote(str(database))}?mode=ro&immutable=1", flags=flags)
            self._tables = self._guard()
        except apsw.Error as error:
            raise Fault(f"{database} cannot be opened: {error}") from None

    def _guard(self) -> frozenset[str]:
        connection = self._connection
        for pragma in ("query_only=1", "temp_store=memory", "trusted_schema=0", "cell_size_check=1"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        self._modules = frozenset(name for (name,) in connection.execute("SELECT name FROM pragma_module_list"))
        names = connection.execute("SELECT lower(name) FROM sqlite_master WHERE type IN ('table', 'view')")
        tables = frozenset(name for (name,) in names) | frozenset(_TABLES_OF_ENGINE)
        for option, value in (
            (apsw.SQLITE_DBCONFIG_DEFENSIVE, 1),
            (apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0),
            (apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0),
            (apsw.SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, 0),
            (apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0),
            (apsw.SQLITE_DBCONFIG_DQS_DML, int(self._limits.double_quoted_strings)),
        ):
            connection.config(option, value)
        for limit, value in _LIMITS.items():
            connection.limit(limit, value)
        connection.set_progress_handler(self._late, _PROGRESS_STEPS)
        connection.exec_trace = self._trace
        connection.authorizer = self._authorize
        return tables

    def execute(self, sql: str, max_rows: int) -> Execution:
        """Runs one statement. Raises `Fault` when the database file, not the statement, is at fault."""
        started = time.perf_counter()
        self._deadline = time.monotonic() + self._limits.soft_seconds
        self._rest, self._denied, self._columns = sql, "", ()
        rows: list[tuple[Cell, ...]] = []
        status, reason = self._run(sql, rows, max_rows)
        elapsed = (time.perf_counter() - started) * 1000
        return Execution(status, reason, self._columns, rows, elapsed, ENGINE)

    def _run(self, sql: str, rows: list[tuple[Cell, ...]], max_rows: int) -> tuple[RunStatus, str]:
        cursor: apsw.Cursor | None = None
        try:
            if "\0" in sql:
                raise _Refused("a NUL character")
            cursor = self._connection.cursor()
            if self._fetch(cursor.execute(sql), rows, max_rows):
                return "truncated", "too many rows or bytes"
            if not self._columns:
                raise _Refused("no statement")
            return "ran", ""
        except _Refused as refusal:
            failure: tuple[RunStatus, str] = "error", f"refused: {refusal}"
        except apsw.InterruptError:
            failure = "timeout", f"longer than {self._limits.soft_seconds:g} s"
        except UnicodeEncodeError:
            failure = "error", "refused: not Unicode text"
        except UnicodeDecodeError:
            failure = "error", "encoding"
        except (MemoryError, apsw.NoMemError):
            failure = "error", "memory"
        except (apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError) as error:
            raise Fault(f"the database file cannot be read: {error}") from None
        except apsw.Error as error:
            failure = "error", f"refused: {self._denied}" if self._denied else _one_line(error)
        finally:
            if cursor is not None:
                cursor.close(force=True)
        rows.clear()
        return failure

    def _fetch(self, cursor: apsw.Cursor, rows: list[tuple[Cell, ...]], max_rows: int) -> bool:
        """Appends rows; True when the result was cut."""
        left = self._limits.max_bytes
        for row in cursor:
            left -= 8 * len(row)
            for cell in row:
                if type(cell) is str or type(cell) is bytes:
                    left -= len(cell)
            if left < 0 or len(rows) >= max_rows:
                return True
            rows.append(row)
        return False

    def _late(self) -> bool:
        return time.monotonic() > self._deadline

    def _trace(self, cursor: apsw.Cursor, sql: str, bindings: Any) -> bool:
        """Called after a statement is prepared and before it runs; APSW would go on to any that follow it."""
        self._rest = self._rest[len(sql) :]
        if _is_blank(sql):
            return True
        if self._columns or not _is_blank(self._rest):
            raise _Refused("more than one statement")
        if cursor.is_explain:
            raise _Refused("EXPLAIN")
        columns = tuple(column[0] for column in cursor.get_description())
        if not columns or not cursor.is_readonly:
            raise _Refused("not a query")
        self._columns = columns
        return True

    def _authorize(self, operation: int, one: str | None, two: str | None, db: str | None, by: str | None) -> int:
        if operation in (apsw.SQLITE_SELECT, apsw.SQLITE_RECURSIVE):
            return apsw.SQLITE_OK
        if operation == apsw.SQLITE_READ and self._readable((one or "").lower(), column=two):
            return apsw.SQLITE_OK
        if operation == apsw.SQLITE_FUNCTION and (two or "").lower() in _FUNCTIONS:
            return apsw.SQLITE_OK
        action = str(apsw.mapping_authorizer_function[operation]).removeprefix("SQLITE_")
        self._denied = " ".join(part for part in (action, one, two) if part)
        return apsw.SQLITE_DENY

    def _readable(self, table: str, column: str | None) -> bool:
        # Without a column the "table" may be a common table expression, which only the engine's own tables are not.
        return table in self._tables or (not column and table not in self._modules)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close(force=True)


def limit_process(limits: Limits) -> None:
    """Bounds SQLite's own memory in this process to a half of what the process may have."""
    apsw.hard_heap_limit(limits.memory_mb * 2**20 // 2)


def open_database(address: str, limits: Limits) -> SqliteRunner:
    """Opens a file; raises `Fault` as `SqliteRunner`."""
    return SqliteRunner(Path(address), limits)


def _is_blank(sql: str) -> bool:
    """Whether nothing but white space, comments and semicolons is left."""
    position = 0
    while position < len(sql):
        if sql[position] in " \t\n\f\r;":
            position += 1
        elif sql.startswith("--", position):
            end = sql.find("\n", position)
            position = len(sql) if end < 0 else end + 1
        elif sql.startswith("/*", position):
            end = sql.find("*/", position + 2)
            position = len(sql) if end < 0 else end + 2
        else:
            return False
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
