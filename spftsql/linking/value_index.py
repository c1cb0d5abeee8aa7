"""The text cells of a database in a SQLite FTS5 file of our own, whatever engine the database is on.

Built once for each content of a database and kept in the cache directory. What it holds is bounded: a column counts
with its most frequent values, and long texts, which no question quotes whole, are left out.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from spftsql.cache import cache_folder
from spftsql.databases.reading import Query, plain, quoted, reader
from spftsql.databases.schema import Schema, Table
from spftsql.errors import Fault, UserError
from spftsql.linking.words import fold, most_words, stem, words_of
from spftsql.records import content_hash
from spftsql.sandbox.location import Location

FORMAT = 2  # of the file and of what goes into it; another number is another file
_ROWS = 1_000_000  # rows of a table that are read
_MOST_PER_COLUMN = 100_000  # distinct values of a column that are kept, the most frequent first
_LEAST_PER_COLUMN = 1_000  # where many columns share what a database may have
_PER_DATABASE = 1_000_000
_LONGEST = 100  # characters of a value that is kept
_MOST_WORDS = 12
_KINDS = ("text", "date")

_TABLES = """
    CREATE TABLE columns (id INTEGER PRIMARY KEY, table_name TEXT NOT NULL, column_name TEXT NOT NULL);
    CREATE TABLE cells (id INTEGER PRIMARY KEY, column_id INTEGER NOT NULL, value TEXT NOT NULL, key TEXT NOT NULL,
                        count INTEGER NOT NULL);
    CREATE VIRTUAL TABLE words USING fts5 (key, content='', detail=none, tokenize="ascii tokenchars '.'");
    CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, row);
    CREATE VIRTUAL TABLE spellings USING fts5 (word, detail=full, tokenize='trigram');
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """A distinct value of a column. `key` is the stems of its words, `count` the rows that hold it."""

    table: str
    column: str
    value: str
    key: str
    count: int


class ValueIndex:
    """Looks cells up in a file that `open_index` built. One connection; several threads may call at once."""

    def __init__(self, path: Path) -> None:
        """Raises `apsw.Error` for a file that is not an index."""
        self._path = path
        self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        self._turn = threading.Lock()  # a connection refuses who comes while another thread uses it
        columns: list[Any] = self._connection.execute("SELECT * FROM columns").fetchall()
        self._columns = {number: (table, column) for number, table, column in columns}

    def with_keys(self, keys: Sequence[str]) -> list[Cell]:
        """The cells whose words are one of `keys` (stems with a blank between)."""
        marks = ", ".join("?" * len(keys))
        return self._cells(f"SELECT * FROM cells WHERE key IN ({marks}) ORDER BY id", keys)

    def with_words(self, stems: Sequence[str], limit: int) -> list[Cell]:
        """The `limit` cells that best hold any of the stems, by BM25."""
        if not stems:
            return []
        query = " OR ".join(quoted(word) for word in stems)
        found = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank, rowid LIMIT ?"
        return self._cells(f"SELECT * FROM cells WHERE id IN ({found}) ORDER BY id", (query, limit))

    def frequencies(self, stems: Sequence[str]) -> dict[str, int]:
        """How many cells hold each of the stems; those that none holds are missing."""
        query = "SELECT term, doc FROM vocabulary WHERE term = ?"
        return dict(row for word in stems for row in self._rows(query, (word,)))

    def spelled_like(self, word: str, limit: int) -> list[str]:
        """Words of cells that share the most letter triples with `word`, the best first."""
        triples = {word[i : i + 3] for i in range(len(word) - 2)}
        if not triples:
            return []
        query = " OR ".join(quoted(triple) for triple in sorted(triples))
        found = "SELECT word FROM spellings WHERE spellings MATCH ? ORDER BY rank, rowid LIMIT ?"
        return [word for (word,) in self._rows(found, (query, limit))]

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def _rows(self, sql: str, bindings: Sequence[Any] = ()) -> Iterable[tuple[Any, ...]]:
        try:
            with self._turn:
                return self._connection.execute(sql, bindings).fetchall()
        except (apsw.CorruptError, apsw.IOError) as error:
            raise Fault(f"{self._path} cannot be read: {error}; remove it, and it is made again") from None

    def _cells(self, sql: str, bindings: Sequence[Any]) -> list[Cell]:
        return [
            Cell(*self._columns[column], value, key, count)
            for _, column, value, key, count in self._rows(sql, bindings)
        ]


def open_index(content: str, schema: Schema, database: str | Path | Location) -> ValueIndex:
    """The index of the database with that content hash, built now where the cache does not have it.

    Raises `UserError` when the database cannot be opened or the cache directory not be written, and `Fault` when the
    database stops answering.
    """
    columns = [(t.name, t.rows, c.name, c.kind, c.distinct) for t in schema.tables for c in t.columns]
    path = cache_folder("values") / f"{content}-{content_hash(FORMAT, columns)}.sqlite"
    if path.is_file():
        try:
            return ValueIndex(path)
        except apsw.Error:
            path.unlink(missing_ok=True)  # damaged: made again
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with reader(database) as query:
            _build(temporary, schema, query)
        temporary.replace(path)
    except (OSError, apsw.FullError, apsw.IOError, apsw.CantOpenError) as error:
        advice = "make room, or set SPFTSQL_CACHE to a directory that can be written"
        raise UserError(
            f"no values of database {schema.db_id} can be kept in {path.parent}: {error}; {advice}"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return ValueIndex(path)


def _build(path: Path, schema: Schema, query: Query) -> None:
    path.unlink(missing_ok=True)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode = off; PRAGMA synchronous = off")
        with connection:
            connection.execute(_TABLES)
            spellings: dict[str, None] = {}
            number = 0
            for column_number, (table, column, values) in enumerate(_columns(schema, query)):
                connection.execute("INSERT INTO columns VALUES (?, ?, ?)", (column_number, table, column))
                for value, key, count in values:
                    number += 1
                    row = (number, column_number, value, key, count)
                    connection.execute("INSERT INTO cells VALUES (?, ?, ?, ?, ?)", row)
                    connection.execute("INSERT INTO words (rowid, key) VALUES (?, ?)", (number, key))
                    spellings.update(dict.fromkeys(w for w in words_of(fold(value)) if len(w) > 3 and w.isalpha()))
            connection.executemany("INSERT INTO spellings (word) VALUES (?)", ((word,) for word in spellings))
            connection.execute("CREATE INDEX cells_by_key ON cells (key)")
            connection.execute("INSERT INTO words (words) VALUES ('optimize')")
            connection.execute("INSERT INTO spellings (spellings) VALUES ('optimize')")


def _columns(schema: Schema, query: Query) -> Iterator[tuple[str, str, Iterator[tuple[str, str, int]]]]:
    columns = [(table, column.name) for table in schema.tables for column in table.columns if column.kind in _KINDS]
    limit = max(_LEAST_PER_COLUMN, min(_MOST_PER_COLUMN, _PER_DATABASE // max(len(columns), 1)))
    for table, column in columns:
        try:
            rows = query(_select(table, column, limit))
        except Exception as error:  # each driver has its own classes
            message = " ".join(str(error).split())[:500]
            raise Fault(f"database {schema.db_id}: {table.name}.{column} cannot be read: {message}") from None
        yield table.name, column, _values(rows)


def _select(table: Table, column: str, limit: int) -> str:
    """Distinct values with their counts, in SQL that every engine reads; of a large table its first rows alone."""
    name, source = quoted(column), quoted(table.name)
    if table.rows > _ROWS:
        order = ", ".join(quoted(key) for key in table.primary_key)
        source = f"(SELECT {name} FROM {source}{f' ORDER BY {order}' if order else ''} LIMIT {_ROWS}) AS first_rows"
    return (
        f"SELECT {name}, COUNT(*) FROM {source} WHERE {name} IS NOT NULL "
        f"GROUP BY {name} ORDER BY COUNT(*) DESC, {name} LIMIT {limit}"
    )


def _values(rows: Iterable[Sequence[Any]]) -> Iterator[tuple[str, str, int]]:
    for cell, count in rows:
        value = plain(cell)
        if isinstance(value, str) and len(value) <= _LONGEST and value.isprintable() and "\ufffd" not in value:
            key = key_of(value)
            if key and key.count(" ") < most_words(key, _MOST_WORDS):
                yield value, key, int(count)


def key_of(text: str) -> str:
    """What two texts share when they differ in case, accents, punctuation and endings alone."""
    return " ".join(stem(word) for word in words_of(fold(text)))
