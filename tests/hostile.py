"""The corpora of hostile statements, `fixtures/hostile/ENGINE.sql`: reading them, and what makes two of them different.

A corpus is made of blocks. Each starts with a line `--# family | outcomes that are right` (`refused`, `error`,
`timeout`, `truncated`, `ran`) and holds one statement. Three notations stand for what a text file cannot hold well:
`«U+0000»` is a code point, `«text×5000»` a repetition, and `«FOLDER»` the folder of the database, in which there is
also a file `secret.txt` and a database `secret.sqlite`, both holding `CANARY` (and more such files for DuckDB).
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import apsw
import duckdb

from spftsql.errors import Fault
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.result import Execution
from spftsql.synthesis.canonical import mask_literals

CANARY = "canary-7f3a91c2"

_NOTATION = re.compile(r"«(?:U\+(?P<code>[0-9A-F]+)|(?P<text>[^»]+)×(?P<times>\d+))»")
_TOKENS = re.compile(
    r"""(?P<string>[xXeEbB]?'(?:[^']|'')*'?) | (?P<number>(?<![\w$])\d[\w.]*(?:(?<=[eE])[+-]\d+)?) | (?P<space>\s+)""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Hostile:
    family: str
    allowed: frozenset[str]
    sql: str


def read_corpus(engine: str, folder: Path = Path("FOLDER")) -> list[Hostile]:
    """The statements for an engine, about a database in `folder`."""
    return [
        Hostile(family, allowed, _NOTATION.sub(_expand, sql.replace("«FOLDER»", str(folder))))
        for family, allowed, sql in _blocks(engine)
    ]


def structures(engine: str) -> dict[str, set[str]]:
    """By family, the statements of a corpus as they are without their literals; repetitions are not written out."""
    found: dict[str, set[str]] = {}
    for family, _, sql in _blocks(engine):
        found.setdefault(family, set()).add(masked(sql))
    return found


def masked(sql: str) -> str:
    """A statement without its literals; where it does not parse, without case and layout too."""
    try:
        return mask_literals(sql)
    except (ValueError, RecursionError):
        return _TOKENS.sub(lambda match: " " if match["space"] else "?", sql).strip().lower()


def _blocks(engine: str) -> Iterator[tuple[str, frozenset[str], str]]:
    text = (Path(__file__).parent / "fixtures" / "hostile" / f"{engine}.sql").read_text(encoding="utf-8")
    for block in text.split("\n--# ")[1:]:
        header, _, sql = block.partition("\n")
        family, _, allowed = header.partition(" | ")
        yield family.strip(), frozenset(allowed.split()), sql.removesuffix("\n")


def _expand(match: re.Match[str]) -> str:
    if match["code"]:
        return chr(int(match["code"], 16))
    return match["text"] * int(match["times"])


def timed(sandbox: Sandbox, database: str | Path, sql: str, limit: float) -> tuple[Execution | Fault, float]:
    """The answer and its seconds, starting a new child included; past `limit` the better of two attempts.

    A machine that is busy with something else makes one statement late, and hardly the same one twice.
    """
    seconds = float("inf")
    for _ in range(2):
        started = time.monotonic()
        answer: Execution | Fault
        try:
            (answer,) = sandbox.execute(database, [sql])
        except Fault as fault:
            answer = fault
        seconds = min(seconds, time.monotonic() - started)
        if seconds <= limit:
            break
    return answer, seconds


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file in a folder; other folders in it are just there."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.iterdir()
    }


def make_sqlite_database(folder: Path) -> Path:
    """The database that SQLite's corpus is about, with the secrets beside it. Its name has letters that URIs know."""
    path = folder / "people & co?.sqlite"
    connection = apsw.Connection(str(path))  # APSW's SQLite has every extension that the tables need
    connection.execute(
        """
        CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
        WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT 2000)
            INSERT INTO people SELECT i, 'name ' || i, i % 90 FROM n;
        CREATE VIEW adults AS SELECT * FROM people WHERE age >= 18;
        CREATE VIEW places AS SELECT file FROM pragma_database_list;
        CREATE TABLE broken (x TEXT);
        INSERT INTO broken VALUES (CAST(x'ff41' AS TEXT));
        CREATE TRIGGER gone AFTER DELETE ON broken BEGIN DELETE FROM people; END;
        CREATE VIRTUAL TABLE notes USING fts5(title, body);
        INSERT INTO notes VALUES ('a fox', 'the quick brown fox');
        CREATE VIRTUAL TABLE areas USING rtree(id, x0, x1);
        INSERT INTO areas VALUES (1, 0, 1);
        """
    )
    connection.close()
    (folder / "secret.txt").write_text(CANARY)
    secret = sqlite3.connect(folder / "secret.sqlite")
    secret.execute("CREATE TABLE hidden (x TEXT)")
    secret.execute("INSERT INTO hidden VALUES (?)", (CANARY,))
    secret.commit()
    secret.close()
    return path


def make_duckdb_database(folder: Path) -> Path:
    """The database that DuckDB's corpus is about, with the secrets beside it, in every form that DuckDB reads."""
    path = folder / "people & co's.duckdb"
    with duckdb.connect(str(path), config={"threads": "1"}) as connection:
        connection.execute(
            """
            CREATE TABLE people (id INTEGER PRIMARY KEY, name VARCHAR, age INTEGER);
            INSERT INTO people SELECT i, 'name ' || i, i % 90 FROM range(2000) t(i);
            CREATE VIEW adults AS SELECT * FROM people WHERE age >= 18;
            CREATE SEQUENCE numbers;
            CREATE MACRO twice(x) AS x + x;
            CREATE MACRO from_macro(place) AS TABLE SELECT * FROM read_csv(place);
            """
        )
    with duckdb.connect(str(folder / "secret.duckdb")) as connection:
        connection.execute(f"CREATE TABLE hidden AS SELECT '{CANARY}' AS x")
        for kind in ("csv", "parquet", "json"):
            connection.execute("COPY hidden TO '" + str(folder / f"secret.{kind}").replace("'", "''") + "'")
    (folder / "secret.txt").write_text(CANARY)
    with sqlite3.connect(folder / "secret.sqlite") as secret:
        secret.execute("CREATE TABLE hidden (x TEXT)")
        secret.execute("INSERT INTO hidden VALUES (?)", (CANARY,))
    secret.close()
    return path
