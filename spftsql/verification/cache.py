"""Results of statements that were executed before: in memory, and on disk for the workers of a node and later runs.

A result is kept under a key of everything that it depends on (`result_key`), and only where executing the statement
again would give the same (`repeatable`). Values carry a checksum over key and content: a damaged one is no result.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib import metadata, resources
from pathlib import Path

import apsw
import msgpack  # type: ignore[import-untyped]
from filelock import FileLock

from spftsql.config import SandboxConfig, VerificationConfig
from spftsql.node_cache import node_folder
from spftsql.sandbox.location import Engine
from spftsql.sandbox.result import Execution
from spftsql.verdicts.reading import nondeterminism

_CHECKSUM_BYTES = 8
_LARGEST = 4 << 20  # bytes of one result; larger ones are cheaper to have again than to keep
_PAGE_BYTES = 4096
_BUSY_MS = 2_000
_REBUILD_S = 5.0
_EVICTED = 0.1  # share of the entries that goes when the store is full
_HOUR_S = 3600
_FORMAT = 1  # of the store's file

# What engines read as a blank; Python's `\s` knows many more. A comment with another in it is not read alike by all.
_BLANK = r"(?:[ \t\n\f\r]|--[^\n]*|/\*(?:(?!/\*|\*/).)*\*/)+"
_PIECES = re.compile(
    rf"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|(?P<blank>{_BLANK})|(?P<odd>/\*)""",
    re.DOTALL,
)
_COLLAPSIBLE = ("  ", "\n", "\t", "\r", "\f", "--", "/*")
_AMBIGUOUS = ("\\", "$", "[", "\0")  # escapes, dollar quotes, bracketed names: not read alike by all engines

_log = logging.getLogger(__name__)


def canonical_sql(sql: str) -> str:
    """The statement with white space and comments outside of quotes collapsed, and no semicolon at its end.

    Statements with the same canonical text mean the same, whatever the engine. The converse is not tried: a parser
    would cost as much as executing most statements does.
    """
    # Most statements leave here: looking for texts costs a twentieth of looking for a pattern.
    if not any(text in sql for text in _COLLAPSIBLE) and sql[-1:] not in (" ", ";") and sql[:1] != " ":
        return sql
    if any(text in sql for text in _AMBIGUOUS):
        return sql
    if "/*" in sql and any(piece["odd"] for piece in _PIECES.finditer(sql)):
        return sql
    return _PIECES.sub(_collapsed, sql).strip(" ").rstrip("; ")


def _collapsed(piece: re.Match[str]) -> str:
    if piece["blank"] is None:
        return piece[0]
    text, start, end = piece.string, piece.start(), piece.end()
    # Two string literals with a line break between them are one literal, with a mere blank between them an error.
    return piece[0] if text[start - 1 : start] == text[end : end + 1] == "'" else " "


def result_key(content: str, sql: str, limits: SandboxConfig, engine: str) -> bytes:
    """16 bytes that name the result of `sql` on a database of this content, under these limits, by this engine.

    `content` is the hash of the database's bytes, `engine` its name and version as in `Execution.engine`. The source
    of the sandbox is part of the key, too.
    """
    return result_keys(content, [sql], limits, engine)[sql]


def result_keys(content: str, statements: Iterable[str], limits: SandboxConfig, engine: str) -> dict[str, bytes]:
    """The `result_key` of every statement."""
    prefix = _key_prefix(content, limits, engine)
    keys = {}
    for sql in statements:
        state = prefix.copy()
        state.update(canonical_sql(sql).encode("utf-8", "surrogatepass"))
        keys[sql] = state.digest()
    return keys


@lru_cache(maxsize=1000)
def _key_prefix(content: str, limits: SandboxConfig, engine: str) -> hashlib.blake2b:
    prefix = "\0".join((source_hash("spftsql.sandbox"), content, limits.model_dump_json(), engine, ""))
    return hashlib.blake2b(prefix.encode(), digest_size=16)


@lru_cache(maxsize=8)
def source_hash(*packages: str) -> str:
    """A hash of the Python source of packages, for what must not outlive a change of it."""
    state = hashlib.blake2b(digest_size=16)
    for package in packages:
        root = Path(str(resources.files(package)))
        for file in sorted(root.rglob("*.py")):
            state.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return state.hexdigest()


@lru_cache(maxsize=4)
def engine_version(engine: Engine) -> str | None:
    """What `Execution.engine` says of an engine that is a library; None for a server."""
    if engine == "sqlite":
        return f"sqlite {apsw.sqlite_lib_version()}"
    return f"duckdb {metadata.version('duckdb')}" if engine == "duckdb" else None


def repeatable(sql: str, result: Execution, engine: Engine = "sqlite") -> bool:
    """Whether the same statement on the same content gives this result again.

    A time limit, the memory that a process has left and its being killed depend on the moment; being cut at so many
    rows does not.
    """
    if result.status == "timeout" or (result.status == "error" and result.reason in ("memory", "killed")):
        return False
    return nondeterminism(sql, engine) is None


def encode(key: bytes, result: Execution) -> bytes:
    """A result as bytes that only `decode` with the same key takes for one."""
    fields = (result.status, result.reason, result.columns, result.rows, result.elapsed_ms, result.engine)
    body: bytes = msgpack.packb(fields, unicode_errors="surrogatepass")
    return _checksum(key, body) + body


def decode(key: bytes, value: bytes) -> Execution | None:
    """The result that was encoded under `key`; None when the bytes are damaged."""
    body = value[_CHECKSUM_BYTES:]
    if value[:_CHECKSUM_BYTES] != _checksum(key, body):
        return None
    status, reason, columns, rows, elapsed, engine = msgpack.unpackb(
        body, use_list=False, unicode_errors="surrogatepass"
    )
    return Execution(status, reason, columns, list(rows), elapsed, engine)


def _checksum(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=key, digest_size=_CHECKSUM_BYTES).digest()


class ResultStore:
    """Results in a SQLite file of ours, of at most `max_bytes`, that the processes of one machine share.

    Any number of them may read and write at once and be killed while they do. Nothing is raised: a damaged file is
    made anew; when the file cannot be used (disk full, no permission) the store says so in the log, once, and finds
    and keeps nothing from then on. When it is full, what was not used for the longest goes first (by the hour).
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Opens or creates the file, for this user alone. It must be on a disk of this machine."""
        self._path, self._max_pages = path, max(16, max_bytes // _PAGE_BYTES)
        self._lock = threading.Lock()
        self._connection: apsw.Connection | None = None
        self._inode = 0
        with self._lock, self._guarded():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open()

    @property
    def active(self) -> bool:
        """False when the store was closed, or has switched itself off."""
        return self._connection is not None

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, Execution]:
        """The results that are there, by key."""
        encoded = self.get_encoded(keys).items()
        return {key: result for key, value in encoded if (result := decode(key, value)) is not None}

    def put_many(self, results: Mapping[bytes, Execution]) -> None:
        """Keeps results, except those above 4 MiB. Whether they are `repeatable` is for the caller to say."""
        self.put_encoded({key: encode(key, result) for key, result in results.items()})

    def get_encoded(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """As `get_many`, neither decoded nor checked."""
        wanted, hour = list(keys), int(time.time()) // _HOUR_S
        found: dict[bytes, bytes] = {}
        with self._lock, self._guarded():
            if self._connection is None or not wanted:
                return {}
            marks = ",".join("?" * len(wanted))
            stale = []
            for key, used, value in self._connection.execute(
                f"SELECT key, used, value FROM results WHERE key IN ({marks})", wanted
            ):
                found[key] = value
                if used != hour:
                    stale.append((hour, key))
            if stale:
                with _transaction(self._connection):
                    self._connection.executemany("UPDATE results SET used = ? WHERE key = ?", stale)
        return found

    def put_encoded(self, values: Mapping[bytes, bytes]) -> None:
        """As `put_many`, of what `encode` gave."""
        hour = int(time.time()) // _HOUR_S
        rows = [(key, hour, value) for key, value in values.items() if len(value) <= _LARGEST]
        with self._lock, self._guarded():
            if self._connection is None or not rows:
                return
            while True:
                try:
                    return self._insert(self._connection, rows)
                except apsw.FullError:  # its own limit, or that of the disk: then removing fails as well
                    if not self._evict(self._connection):
                        return None

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Keeps the trouble of the file from whoever asks for results."""
        try:
            yield
        except apsw.BusyError:
            pass  # others write; what is not kept will be executed again
        except (apsw.CorruptError, apsw.NotADBError, ValueError):  # the last: a text that is none
            try:
                self._rebuild()
            except (apsw.Error, OSError) as error:
                self._switch_off(error)
        except (apsw.Error, OSError) as error:
            self._switch_off(error)

    def _open(self) -> None:
        self._connection = connection = apsw.Connection(str(self._path))
        self._inode = os.stat(self._path).st_ino
        connection.set_busy_timeout(_BUSY_MS)
        os.chmod(self._path, 0o600)
        # Without waiting for the disk, from the first one on: a power cut may damage the file, which is then made anew.
        for pragma in ("synchronous=off", "journal_mode=wal", "temp_store=memory", "journal_size_limit=4194304"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute(f"PRAGMA max_page_count={self._max_pages}").fetchall()
        ((version,),) = connection.execute("PRAGMA user_version")
        if version not in (0, _FORMAT):
            raise apsw.NotADBError(f"format {version}")
        if version == 0:
            with _transaction(connection):
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, used INTEGER NOT NULL, value BLOB);"
                    f"PRAGMA user_version = {_FORMAT}"
                )

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close(True)
        self._connection = None

    def _rebuild(self) -> None:
        self._close()
        with FileLock(f"{self._path}.lock", timeout=_REBUILD_S):
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._path).st_ino == self._inode:  # else another process has done it
                    for suffix in ("", "-wal", "-shm"):
                        Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            self._open()
        _log.warning("the result store %s was damaged and is made anew", self._path)

    def _switch_off(self, error: Exception) -> None:
        with contextlib.suppress(apsw.Error):
            self._close()
        self._connection = None
        _log.warning("results are not kept on disk any more: %s: %s", self._path, error)

    @staticmethod
    def _insert(connection: apsw.Connection, rows: list[tuple[bytes, int, bytes]]) -> None:
        with _transaction(connection):
            connection.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", rows)

    @staticmethod
    def _evict(connection: apsw.Connection) -> bool:
        """Removes what was not used for the longest; False when there is nothing left."""
        with _transaction(connection):
            ((count,),) = connection.execute("SELECT count(*) FROM results")
            connection.execute(
                "DELETE FROM results WHERE rowid IN (SELECT rowid FROM results ORDER BY used, rowid LIMIT ?)",
                (1 + int(count * _EVICTED),),
            )
        return bool(count)


@contextlib.contextmanager
def _transaction(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # SQLite itself gives it up when the disk is full
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


class ResultCache:
    """The results used last, as many as have `max_bytes` when encoded, and a store behind them where one is given."""

    def __init__(self, max_bytes: int, store: ResultStore | None = None) -> None:
        self._max_bytes, self._store = max_bytes, store
        self._bytes = 0
        self._values: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, Execution]:
        """The results that are there, by key."""
        found: dict[bytes, bytes] = {}
        missing = []
        with self._lock:
            for key in keys:
                if key in self._values:
                    self._values.move_to_end(key)
                    found[key] = self._values[key]
                else:
                    missing.append(key)
        if self._store is not None and missing:
            stored = self._store.get_encoded(missing)
            self._remember(stored)
            found |= stored
        return {key: result for key, value in found.items() if (result := decode(key, value)) is not None}

    def put_many(self, results: Mapping[bytes, Execution], durable: bool) -> None:
        """Keeps results, in the store too where `durable`. Whether they are `repeatable` is for the caller to say."""
        values = {key: encode(key, result) for key, result in results.items()}
        self._remember(values)
        if durable and self._store is not None:
            self._store.put_encoded(values)

    def close(self) -> None:
        """Closes the store; results in memory stay."""
        if self._store is not None:
            self._store.close()

    def _remember(self, values: Mapping[bytes, bytes]) -> None:
        with self._lock:
            for key, value in values.items():
                self._bytes += len(value) - len(self._values.pop(key, b""))
                self._values[key] = value
            while self._bytes > self._max_bytes:
                _, oldest = self._values.popitem(last=False)
                self._bytes -= len(oldest)


def open_results(config: VerificationConfig) -> ResultCache:
    """The results that `verification` lets a process keep, with those of the machine behind them."""
    folder = node_folder(config.node_cache, "results")
    store = ResultStore(folder / "results.sqlite", config.results_mb << 20) if folder else None
    return ResultCache(config.memory_mb << 20, store)
