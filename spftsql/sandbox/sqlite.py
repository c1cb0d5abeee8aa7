"""The SQLite runner, on APSW, whose bundled SQLite makes results the same on every machine.

Runs inside the child process. What it does follows SQLite's own advice for untrusted SQL
(https://sqlite.org/security.html): a read-only, immutable, defensive connection, lowered limits, a heap limit, a
progress handler, and an authorizer that allows what is listed and nothing else. `GUARDS` names each of these.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import apsw

from spftsql.errors import Fault
from spftsql.sandbox.result import Cell, Execution, Granted, Limits, RunStatus
from spftsql.sandbox.sqlite_program import Trees, columns_read, trees_of

ENGINE = f"sqlite {apsw.sqlite_lib_version()}"

GUARDS = {
    "read-only open": "writes to the file, also the rollback of a journal that somebody left",
    "immutable": "locks, and -wal and -shm files beside the database",
    "query_only": "writes, below the statement that asks for them",
    "temp_store": "temporary files of large sorts and joins",
    "cell_size_check": "answers from a damaged page",
    "trusted_schema": "functions and virtual tables with side effects inside the database's own views",
    "DEFENSIVE": "writable_schema, and writes to shadow tables",
    "triggers": "the database's own triggers",
    "double-quoted strings": 'a column that does not exist, written "name", taken for a string',
    "LENGTH": "strings, blobs and rows beyond a million bytes",
    "SQL_LENGTH": "statements beyond 50,000 bytes",
    "ATTACHED": "ATTACH and VACUUM INTO",
    "EXPR_DEPTH": "expressions nested more than 200 deep",
    "COMPOUND_SELECT": "UNION of more than 50",
    "VDBE_OP": "programs of more than 250,000 instructions",
    "FUNCTION_ARG": "calls with more than 100 arguments",
    "heap limit": "more memory than a half of what the process may have",
    "progress handler": "statements beyond the soft limit, at an instruction's end",
    "authorizer": "every action but SELECT, READ, FUNCTION and RECURSIVE",
    "functions": "functions that are not listed",
    "tables": "tables of the engine that are not listed",
    "NUL": "text that SQLite would not read to its end",
    "stacked": "a second statement",
    "EXPLAIN": "EXPLAIN, which answers with the engine's own program",
    "query": "statements that return no columns or may write",
    "rows": "results of more rows than asked for",
    "bytes": "results of more bytes than allowed",
    "journal": "a file whose log or journal holds what an immutable connection does not see",
}

_FUNCTION_NAMES = """
    abs avg acos acosh asin asinh atan atan2 atanh bm25 ceil ceiling char coalesce concat concat_ws cos cosh
    count cume_dist current_date current_time current_timestamp date datetime degrees dense_rank exp first_value floor
    glob group_concat hex highlight if ifnull iif instr json json_array json_array_insert json_array_length
    json_error_position json_extract json_group_array json_group_object json_insert json_object json_patch json_pretty
    json_quote json_remove json_replace json_set json_type json_valid jsonb jsonb_array jsonb_array_insert
    jsonb_extract jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch jsonb_remove jsonb_replace
    jsonb_set julianday lag last_value lead length like likelihood likely ln log log10 log2 lower ltrim match max
    median min mod nth_value ntile nullif octet_length percent_rank percentile percentile_cont percentile_disc pi pow
    power quote radians random rank replace round row_number rtrim sign sin sinh snippet sqlite_version sqrt strftime
    string_agg substr substring subtype sum tan tanh time timediff total trim trunc typeof unhex unicode unistr
    unistr_quote unixepoch unlikely upper -> ->>
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_TABLE_FUNCTIONS = frozenset(["json_each", "json_tree", "jsonb_each", "jsonb_tree"])
_TABLES_OF_ENGINE = _TABLE_FUNCTIONS | {"sqlite_master", "sqlite_schema", "sqlite_sequence"}
_PRAGMAS = {"query_only": "1", "temp_store": "memory", "trusted_schema": "0", "cell_size_check": "1"}
_LIMITS = {
    "LENGTH": (apsw.SQLITE_LIMIT_LENGTH, 1_000_000),
    "SQL_LENGTH": (apsw.SQLITE_LIMIT_SQL_LENGTH, 50_000),
    "ATTACHED": (apsw.SQLITE_LIMIT_ATTACHED, 0),
    "EXPR_DEPTH": (apsw.SQLITE_LIMIT_EXPR_DEPTH, 200),
    "COMPOUND_SELECT": (apsw.SQLITE_LIMIT_COMPOUND_SELECT, 50),
    "VDBE_OP": (apsw.SQLITE_LIMIT_VDBE_OP, 250_000),
    "FUNCTION_ARG": (apsw.SQLITE_LIMIT_FUNCTION_ARG, 100),
}
_PLAN = "EXPLAIN QUERY PLAN "
_PROGRAM, _QUERY_PLAN = 1, 2  # what SQLite calls a statement with EXPLAIN, and with that
_PROGRESS_STEPS = 1_000  # VM steps between two looks at the clock: about 0.1 ms
_OF_GUARDS = re.compile("^unsafe use of |may not be modified$")  # trusted_schema, DEFENSIVE
_JOIN_BY_NAME = re.compile(r"\b(?:natural|using)\b", re.IGNORECASE)
_HOT_JOURNAL = bytes.fromhex("d9d505f920a163d7")  # the first bytes of a rollback journal that is not finished


_Answer = TypeVar("_Answer")


class _Refused(Exception):
    """The statement is against the policy; the message says why."""


class SqliteRunner:
    """Executes single SELECT statements on one database file.

    The constructor opens `database`; it raises `Fault` when that is not possible. `without` names guards to leave out:
    for the tests, which show what each of them stops.
    """

    engine = ENGINE

    def __init__(self, database: Path, limits: Limits, without: frozenset[str] = frozenset()) -> None:
        self._limits = limits
        self._guards = frozenset(GUARDS) - without
        self._deadline = time.monotonic() + limits.soft_seconds
        self._rest = self._denied = ""
        self._only_check, self._explained = False, 0
        self._columns: tuple[str, ...] = ()
        self._granted: Granted | None = None
        self._trees = Trees()
        if "journal" in self._guards and _is_unfinished(database):
            raise Fault(f"{database} has an unfinished write-ahead log or journal: close its writers and checkpoint it")
        read_only = "read-only open" in self._guards
        uri = f"file:{quote(str(database))}?mode={'ro' if read_only else 'rw'}"
        flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
        if "immutable" in self._guards:
            uri += "&immutable=1"
        try:
            self._connection = apsw.Connection(uri, flags=flags | apsw.SQLITE_OPEN_URI)
            self._guard()
        except apsw.Error as error:
            raise Fault(f"{database} cannot be opened: {error}") from None

    def _guard(self) -> None:
        connection, guards = self._connection, self._guards
        if "progress handler" in guards:
            connection.set_progress_handler(self._late, _PROGRESS_STEPS)
        for pragma in guards & _PRAGMAS.keys():
            connection.execute(f"PRAGMA {pragma}={_PRAGMAS[pragma]}").fetchall()
        if "DEFENSIVE" in guards:
            connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
        if "triggers" in guards:
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        if "double-quoted strings" in guards:
            connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, int(self._limits.double_quoted_strings))
        self._tables = _TABLES_OF_ENGINE.union(map(str.lower, self._names("type IN ('table', 'view')")))
        self._connect_virtual_tables()
        # The list grows as modules are used; these come with their first use.
        modules = connection.execute("SELECT name FROM pragma_module_list")
        self._modules = frozenset(name for (name,) in modules) | {"carray"}
        for limit, value in (_LIMITS[name] for name in guards & _LIMITS.keys()):
            connection.limit(limit, value)
        connection.exec_trace = self._trace
        if "authorizer" in guards:
            connection.authorizer = self._authorize

    def _connect_virtual_tables(self) -> None:
        """Some (rtree) prepare their writes when first used, which the authorizer, not yet there, would not allow."""
        for name in self._names("type = 'table' AND rootpage = 0"):
            quoted = name.replace('"', '""')
            try:
                self._connection.execute(f'SELECT 1 FROM "{quoted}" LIMIT 0').fetchall()
            except apsw.Error:
                continue  # a statement that uses it will say what is wrong with it

    def _names(self, condition: str) -> list[str]:
        # As bytes, because names that are not UTF-8 must not hide the others.
        rows: list[Any] = self._connection.execute(
            f"SELECT CAST(name AS BLOB) FROM sqlite_master WHERE {condition}"
        ).fetchall()
        return [name.decode(errors="replace") for (name,) in rows]

    def execute(self, sql: str, max_rows: int, granted: Granted | None = None) -> Execution:
        """See `Runner`. What is not granted is refused by the authorizer, while SQLite resolves the names."""
        started = time.perf_counter()
        self._deadline = time.monotonic() + self._limits.soft_seconds
        self._granted = granted
        rows: list[tuple[Cell, ...]] = []
        status, reason = self._run(sql, rows, max_rows)
        elapsed = (time.perf_counter() - started) * 1000
        return Execution(status, reason, self._columns, rows, elapsed, ENGINE)

    def plan(self, sql: str, granted: Granted | None = None) -> Execution:
        """See `Runner`: the statement is prepared and checked by itself, and only then explained."""
        self._only_check = True
        try:
            checked = self.execute(sql, 0, granted)
        finally:
            self._only_check = False
        if checked.status != "ran":
            return checked
        self._explained = _QUERY_PLAN
        try:
            return self.execute(_PLAN + sql, self._limits.max_rows, granted)
        finally:
            self._explained = 0

    def _run(self, sql: str, rows: list[tuple[Cell, ...]], max_rows: int) -> tuple[RunStatus, str]:
        self._rest, self._denied, self._columns = sql, "", ()
        cursor: apsw.Cursor | None = None
        try:
            if "\0" in sql and "NUL" in self._guards:
                raise _Refused("a NUL character")
            cursor = self._connection.cursor()
            if self._granted is not None and not self._explained and _JOIN_BY_NAME.search(sql):
                self._check_program(cursor, sql, self._granted)
            # A statement out of APSW's cache is not authorized again, and may be that of another caller.
            if self._fetch(cursor.execute(sql, can_cache=self._granted is None), rows, max_rows):
                return "truncated", "too many rows or bytes"
            if not self._columns and "query" in self._guards:
                raise _Refused("no statement")
            return "ran", ""
        except apsw.ExecTraceAbort:
            return "ran", ""  # checked, and not to be executed
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
            failure = "error", _reason(error, self._denied)
        finally:
            if cursor is not None:
                cursor.close(force=True)
        rows.clear()
        return failure

    def _check_program(self, cursor: apsw.Cursor, sql: str, granted: Granted) -> None:
        """Refuses what the program reads and is not granted; for joins by name, of which the authorizer is not told."""
        self._trees = self._trees or self._unguarded(trees_of)
        self._explained = _PROGRAM
        try:
            program = cursor.execute(f"EXPLAIN {sql}", can_cache=False).fetchall()
        finally:
            self._explained, self._rest, self._columns = 0, sql, ()
        for table, column in columns_read(program, self._trees):
            if table not in granted or (granted[table] and column not in ("", *granted[table])):
                raise _Refused(f"READ {table} {column}")

    def _unguarded(self, ask: Callable[[apsw.Connection], _Answer]) -> _Answer:
        """What a question of our own gives, of which the guards would refuse the statements."""
        connection = self._connection
        authorizer, trace = connection.authorizer, connection.exec_trace
        connection.authorizer = connection.exec_trace = None
        try:
            return ask(connection)
        finally:
            connection.authorizer, connection.exec_trace = authorizer, trace

    def _fetch(self, cursor: apsw.Cursor, rows: list[tuple[Cell, ...]], max_rows: int) -> bool:
        """Appends rows; True when the result was cut."""
        left: float = self._limits.max_bytes if "bytes" in self._guards else float("inf")
        most: float = max_rows if "rows" in self._guards else float("inf")
        for row in cursor:
            left -= 8 * len(row)
            for cell in row:
                if type(cell) is str or type(cell) is bytes:
                    left -= len(cell)
            if left < 0 or len(rows) >= most:
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
        if "stacked" in self._guards and (self._columns or not _is_blank(self._rest)):
            raise _Refused("more than one statement")
        if "EXPLAIN" in self._guards and cursor.is_explain != self._explained:
            raise _Refused("EXPLAIN")
        columns = tuple(column[0] for column in cursor.get_description())
        if "query" in self._guards and (not columns or not cursor.is_readonly):
            raise _Refused("not a query")
        self._columns = columns
        return bool(self._explained) or not self._only_check

    def _authorize(self, operation: int, one: str | None, two: str | None, db: str | None, by: str | None) -> int:
        if operation in (apsw.SQLITE_SELECT, apsw.SQLITE_RECURSIVE):
            return apsw.SQLITE_OK
        if operation == apsw.SQLITE_READ and self._readable((one or "").lower(), (two or "").lower()):
            return apsw.SQLITE_OK
        if operation == apsw.SQLITE_FUNCTION and self._callable((two or "").lower()):
            return apsw.SQLITE_OK
        if operation == apsw.SQLITE_PRAGMA and one == "data_version" and two is None and self._columns:
            return apsw.SQLITE_OK  # FTS5 asks this while a query runs; a statement's own PRAGMA is asked before
        action = str(apsw.mapping_authorizer_function[operation]).removeprefix("SQLITE_")
        self._denied = " ".join(part for part in (action, one, two) if part)
        return apsw.SQLITE_DENY

    def _readable(self, table: str, column: str) -> bool:
        if self._granted is not None and table in self._tables and not self._columns:  # later: the tables of an index
            columns = self._granted.get(table)
            return table in _TABLE_FUNCTIONS or (columns is not None and (not columns or column in ("", *columns)))
        if table in self._tables or "tables" not in self._guards:
            return True
        # Without a column the "table" may be a common table expression, which only the engine's own tables are not.
        return not column and table not in self._modules and not table.startswith(("pragma_", "sqlite_"))

    def _callable(self, function: str) -> bool:
        return function in _FUNCTIONS or "functions" not in self._guards

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close(force=True)


def limit_process(limits: Limits) -> None:
    """Bounds SQLite's own memory in this process to a half of what the process may have."""
    apsw.hard_heap_limit(limits.memory_mb * 2**20 // 2)


def open_database(address: str, limits: Limits) -> SqliteRunner:
    """Opens a file; raises `Fault` as `SqliteRunner`."""
    return SqliteRunner(Path(address), limits)


def _is_unfinished(database: Path) -> bool:
    """Whether a writer left (or is writing) a log or journal; an immutable connection would silently not look at it."""
    database = database.resolve()  # where SQLite looks for them too
    log, journal = Path(f"{database}-wal"), Path(f"{database}-journal")
    try:
        with journal.open("rb") as file:
            hot = file.read(len(_HOT_JOURNAL)) == _HOT_JOURNAL
    except OSError:
        hot = False
    return hot or (log.exists() and log.stat().st_size > 0)


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


def _reason(error: Exception, denied: str) -> str:
    """The error's message; `refused: …` where one of the guards and not the statement itself is behind it."""
    if denied:
        return f"refused: {denied}"
    message = " ".join(str(error).split())[:500]
    return f"refused: {message}" if _OF_GUARDS.search(message) else message
