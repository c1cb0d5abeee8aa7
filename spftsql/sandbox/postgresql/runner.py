"""The PostgreSQL runner, on libpq by way of psycopg.

Runs inside the child process. The server cannot be fenced from here, so each statement goes through layers that do not
trust each other: a list of what may be asked for (`policy`), a role without the rights of a superuser, the extended
protocol, which takes exactly one statement, a transaction that is read only and always rolled back, limits that the
server holds, a second connection that cancels, and a session that is made new after every statement.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGresult

from spftsql.errors import Fault, UserError
from spftsql.sandbox.location import Location
from spftsql.sandbox.postgresql.cells import Reader
from spftsql.sandbox.postgresql.connection import Connection, Lost, Overdue, one_line
from spftsql.sandbox.postgresql.grants import ANCESTORS, OWN_FUNCTIONS, SCHEMAS, Reads, explaining, reads_of
from spftsql.sandbox.postgresql.policy import FUNCTIONS, Refused, check
from spftsql.sandbox.postgresql.session import ROLE_PROBLEM, connection_string, role_advice
from spftsql.sandbox.result import Cell, Execution, Granted, Limits, RunStatus

GUARDS = {
    "policy": "what is no query, functions that are not listed, names of the system",
    "role": "superusers, and roles that may read the server's files",
    "read-only transaction": "writes, below the statement that asks for them",
    "rollback": "what a read-only transaction lets through, such as large objects",
    "reset": "settings, locks and prepared statements that outlive their transaction",
    "statement_timeout": "statements beyond the soft limit",
    "cancel": "statements beyond the soft limit that the server does not end by itself",
    "give up": "waiting for a statement that no cancel ends",
    "connection check": "statements that run on when the child is killed",
    "leftovers": "more and more statements that nothing ends",
    "lock_timeout": "waiting for a lock that somebody else holds, taken for a slow statement",
    "work_mem": "more of the server's memory for each sort and hash table",
    "rows": "results of more rows than asked for",
    "bytes": "results of more bytes than allowed",
}

_PLAN = b"EXPLAIN (FORMAT JSON) "
_PART = 64  # rows that libpq collects before it hands them over
_LEFTOVERS = 4  # statements of this role that may run beyond their limit before no other is sent
_CHECK_MS = 250  # how often a busy server looks whether its client is still there
_QUERY_CANCELED, _OUT_OF_MEMORY, _CONFIGURATION_LIMIT = "57014", "53200", "53400"
_REFUSED = ("25006", "42501")  # a write in a read-only transaction; insufficient privilege
_ENCODING = ("22021", "22P05")
# Classes and codes (https://www.postgresql.org/docs/15/errcodes-appendix.html) that say nothing about the statement:
# connection, time-outs of a session, conflict with recovery or deadlock, resources, lock, intervention, system, damage.
_FAULTS = ("080", "25P03", "25P04", "40", "53", "55P03", "57", "58", "F0", "XX001", "XX002")
_ROWS = (ExecStatus.TUPLES_OK, ExecStatus.TUPLES_CHUNK)
_OPTIONAL = "client_connection_check_interval"  # not before version 14

# Of the database's own functions those are let through that are declared to depend on their arguments alone.
_UNLISTED = """
    SELECT DISTINCT proname FROM pg_proc
    WHERE CASE pronamespace WHEN 'pg_catalog'::regnamespace THEN proname <> ALL ($1)
        ELSE provolatile <> 'i' OR prosecdef END
"""
# Sessions of sandboxes say in their name how long a statement may take at the most.
_OVERDUE = """
    SELECT count(*) FROM pg_stat_activity
    WHERE usename = current_user AND state = 'active' AND pid <> pg_backend_pid()
        AND clock_timestamp() - query_start > (substring(application_name FROM '^spftsql ([0-9.]+ s)$'))::interval
"""
_MAY_LIMIT_FILES = "SELECT has_parameter_privilege('temp_file_limit', 'SET')"
# What names the content: on a primary the transactions that can be seen (every change is one, while the log also grows
# by reading) and the time line, with which the name of a log file begins; on a standby how far it has replayed the log.
# Some providers hide the log.
_STATES = (
    """
    SELECT concat_ws(' ', system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()),
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()::text
        ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) || ' ' || pg_current_snapshot() END)
    FROM pg_control_system()
    """,
    "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_snapshot()::text END",
)

_Outcome = tuple[RunStatus, str]
_NO_COLUMNS: _Outcome = ("error", "refused: no columns")


class PostgresRunner:
    """Executes single queries on one database of a server.

    The constructor connects; it raises `Fault` when that is not possible or the role has rights that it must not have.
    `without` names guards to leave out: for the tests, which show what each of them stops.
    """

    def __init__(self, address: str, limits: Limits, without: frozenset[str] = frozenset()) -> None:
        self._location, self._limits = Location("postgresql", address), limits
        self._guards = frozenset(GUARDS) - without
        self._fault: Fault | None = None
        self._left, self._started, self._elapsed_ms = 0, 0.0, 0.0
        self._settings = self._session_settings()
        self._connect()

    def _session_settings(self) -> dict[str, str]:
        soft, hard = self._limits.soft_seconds, self._limits.hard_seconds
        of_guards = {
            "statement_timeout": ("statement_timeout", _milliseconds(soft)),
            "lock_timeout": ("lock_timeout", _milliseconds(soft / 2)),
            "read-only transaction": ("default_transaction_read_only", "on"),
            "connection check": (_OPTIONAL, f"{_CHECK_MS}ms"),
            "work_mem": ("work_mem", f"{max(1, self._limits.memory_mb // 16)}MB"),
        }
        settings = dict(setting for guard, setting in of_guards.items() if guard in self._guards)
        return settings | {"idle_in_transaction_session_timeout": _milliseconds(hard)}

    def _connect(self) -> None:
        try:
            self._connection = self._open()
            ((version,),) = self._connection.ask("SELECT current_setting('server_version')")
            ((problem, role),) = self._connection.ask(ROLE_PROBLEM)
            if problem and "role" in self._guards:
                raise Fault(role_advice(role, problem))
            if self._connection.server_version >= 150000 and self._connection.ask(_MAY_LIMIT_FILES) == [("t",)]:
                self._settings["temp_file_limit"] = f"{2 * self._limits.memory_mb}MB"
                self._connection.close()
                self._connection = self._open()
            ((overdue,),) = self._connection.ask(_OVERDUE)
            if int(overdue) >= _LEFTOVERS and "leftovers" in self._guards:
                raise Fault(f"{self._location}: {overdue} statements that could not be cancelled still run there")
            listed = "{" + ",".join(FUNCTIONS) + "}"
            self._unlisted = frozenset(name for (name,) in self._connection.ask(_UNLISTED, listed))
            self._own_functions = frozenset(name for (name,) in self._connection.ask(OWN_FUNCTIONS))
            self._schemas = frozenset(name for (name,) in self._connection.ask(SCHEMAS))
        except Lost as lost:
            raise Fault(f"{self._location} cannot be opened: {lost}") from None
        except Overdue:
            raise Fault(f"{self._location} cannot be opened: it does not answer") from None
        except UserError as error:
            raise Fault(str(error)) from None
        self.engine = f"postgresql {version.split()[0]}"

    def _open(self) -> Connection:
        def connect() -> Connection:
            string = connection_string(self._location.address, self._settings, name)
            return Connection(string, "cancel" in self._guards, "give up" in self._guards)

        name = f"spftsql {self._limits.hard_seconds:.3f} s"
        try:
            connection = connect()
        except Lost as lost:
            if _OPTIONAL not in str(lost) or not self._settings.pop(_OPTIONAL, None):
                raise
            connection = connect()
        connection.start_clock(self._limits.hard_seconds, 2 * self._limits.hard_seconds)
        return connection

    def execute(self, sql: str, max_rows: int, granted: Granted | None = None) -> Execution:
        """See `Runner`. What is not granted is refused by what the server's plan of the statement reads."""
        return self._executed(sql, max_rows, granted)

    def plan(self, sql: str, granted: Granted | None = None) -> Execution:
        """See `Runner`: the statement by itself is checked, and then explained."""
        return self._executed(sql, self._limits.max_rows, granted, _PLAN)

    def _executed(self, sql: str, max_rows: int, granted: Granted | None, before: bytes = b"") -> Execution:
        if self._fault:
            raise self._fault
        self._started = time.perf_counter()
        self._elapsed_ms = 0.0
        rows: list[tuple[Cell, ...]] = []
        columns: tuple[str, ...] = ()
        try:
            if "policy" in self._guards:
                check(sql, self._unlisted if granted is None else self._unlisted | self._own_functions)
            failure = None if granted is None else self._check_granted(sql.encode(), granted)
            if failure:
                status, reason = failure
            else:
                (status, reason), columns = self._run(before + sql.encode(), rows, max_rows)
        except Refused as refusal:
            status, reason = "error", f"refused: {refusal}"
        except UnicodeEncodeError:
            status, reason = "error", "refused: not Unicode text"
        except Lost as lost:
            self._connection.close()
            if "memory" not in str(lost):  # libpq had none left for what the server sent
                raise Fault(f"{self._location}: {lost}") from None
            status, reason = "error", "memory"
        except Overdue:
            self._connection.close()
            status, reason = "timeout", f"longer than {self._limits.soft_seconds:g} s, and no cancel ended it"
        elapsed = self._elapsed_ms or (time.perf_counter() - self._started) * 1000
        if status not in ("ran", "truncated"):
            columns = ()
            rows.clear()
        if not self._connection.is_open:
            self._reconnect()
        return Execution(status, reason, columns, rows, elapsed, self.engine)

    def _check_granted(self, sql: bytes, granted: Granted) -> _Outcome | None:
        """Raises `Refused` where the plan reads something else; the failure of a statement that has no plan."""
        self._connection.start_clock(self._limits.soft_seconds, self._limits.hard_seconds)
        self._connection.send([explaining(sql)])
        failure, text = None, ""
        while part := self._connection.next():
            if part.status in _ROWS:
                text += "".join((part.get_value(row, 0) or b"").decode() for row in range(part.ntuples))
            else:
                failure = failure or self._failure(part)
        self._connection.skip_groups(1)
        if failure is None:
            for reads in reads_of(text):
                self._check_read(reads, granted)
        return failure

    def _check_read(self, reads: Reads, granted: Granted) -> None:
        if reads.schema not in self._schemas:
            raise Refused(f"table {reads.schema}.{reads.table} is not granted")
        columns = granted.get(reads.table.lower())
        if columns is None:  # a partition has the name of its own
            above = self._connection.ask(ANCESTORS, reads.schema, reads.table)
            columns = next((granted[name.lower()] for (name,) in above if name.lower() in granted), None)
        if columns is None:
            raise Refused(f"table {reads.table} is not granted")
        for column in sorted(reads.columns) if columns else ():
            if column.lower() not in columns:
                raise Refused(f"column {column} of {reads.table} is not granted")

    def _reconnect(self) -> None:
        """At once, so that the time that it takes is not that of the next statement."""
        try:
            self._connect()
        except Fault as fault:
            self._fault = fault

    def _run(self, sql: bytes, rows: list[tuple[Cell, ...]], max_rows: int) -> tuple[_Outcome, tuple[str, ...]]:
        begin = b"BEGIN READ ONLY" if "read-only transaction" in self._guards else b"BEGIN"
        end = b"ROLLBACK" if "rollback" in self._guards else b"COMMIT"
        reset = b"DISCARD ALL" if "reset" in self._guards else b"SELECT 1"
        connection = self._connection
        connection.start_clock(self._limits.soft_seconds, self._limits.hard_seconds)
        self._started = time.perf_counter()
        connection.send([begin, sql], [end], [reset])
        begun = connection.next()
        if begun is not None and begun.status != ExecStatus.COMMAND_OK:
            self._failure(begun)
            raise Lost(one_line(begun.get_error_message()))
        connection.next()
        connection.expect_parts(_PART)
        outcome, columns = self._outcome(rows, max_rows)
        self._elapsed_ms = (time.perf_counter() - self._started) * 1000
        if connection.skip_groups(3):
            connection.close()  # a cancel came late and hit what follows
        return outcome, columns

    def _outcome(self, rows: list[tuple[Cell, ...]], max_rows: int) -> tuple[_Outcome, tuple[str, ...]]:
        """Appends rows; the rest of a result that is cut or cannot be read is cancelled and thrown away."""
        reader: Reader | None = None
        ended: _Outcome | None = None
        self._left = self._limits.max_bytes
        while part := self._connection.next():
            if ended:
                continue
            if part.status not in _ROWS:
                ended = self._failure(part)
                continue
            try:
                reader = reader or Reader(part)
                ended = self._take(reader.rows(part), rows, max_rows) if reader.columns else _NO_COLUMNS
            except UnicodeDecodeError:
                ended = "error", "encoding"
            except MemoryError:
                rows.clear()
                ended = "error", "memory"
            if ended:
                self._connection.cancel()
        return ended or ("ran", ""), reader.columns if reader else ()

    def _take(self, new: Iterable[tuple[Cell, ...]], rows: list[tuple[Cell, ...]], max_rows: int) -> _Outcome | None:
        for row in new:
            self._left -= 8 * len(row)
            for cell in row:
                if type(cell) is str or type(cell) is bytes:
                    self._left -= len(cell)
            if (self._left < 0 and "bytes" in self._guards) or (len(rows) >= max_rows and "rows" in self._guards):
                return "truncated", "too many rows or bytes"
            rows.append(row)
        return None

    def _failure(self, part: PGresult) -> _Outcome:
        """What an error of the server says about the statement. Raises `Fault` when it says nothing about it."""
        if part.status != ExecStatus.FATAL_ERROR:
            return "error", "refused: not a query"
        code = (part.error_field(DiagnosticField.SQLSTATE) or b"").decode()
        if not code:  # of libpq, not of the server
            raise Lost(one_line(part.get_error_message()))
        message = one_line((part.error_field(DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace"))
        if code == _QUERY_CANCELED and (self._connection.cancelled or self._is_late()):
            return "timeout", f"longer than {self._limits.soft_seconds:g} s"
        if code == _OUT_OF_MEMORY:
            return "error", "memory"
        if code in _ENCODING:
            return "error", "encoding"
        if code.startswith(_FAULTS) and code != _CONFIGURATION_LIMIT:
            raise Fault(f"{self._location}: {message}")
        return "error", f"refused: {message}" if code in _REFUSED else message

    def _is_late(self) -> bool:
        return time.monotonic() > self._connection.soft_at - 0.05 * self._limits.soft_seconds

    def state(self) -> str:
        """Names the content of the database as it is now; "" where that is not known.

        Equal texts mean equal content; different ones may be of equal content. Costs one way to the server and back.
        Raises `Fault` when the server does not answer.
        """
        if self._fault:
            raise self._fault
        self._connection.start_clock(self._limits.soft_seconds, self._limits.hard_seconds)
        try:
            for query in _STATES:
                try:
                    return self._connection.ask(query)[0][0]
                except Lost:
                    if not self._connection.is_open:
                        raise
        except (Lost, Overdue) as failure:
            self._connection.close()
            raise Fault(f"{self._location}: {failure or 'no answer'}") from None
        return ""

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def limit_process(limits: Limits) -> None:
    """Nothing to limit: the memory that statements take is the server's, and not in this process."""


def open_database(address: str, limits: Limits) -> PostgresRunner:
    """Connects to a server's URL; raises `Fault` as `PostgresRunner`."""
    return PostgresRunner(address, limits)


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"
