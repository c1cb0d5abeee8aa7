"""Thousands of random and mutated statements change nothing, read nothing outside, and all get an answer in time."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import reduce
from pathlib import Path
from random import Random

import apsw
import duckdb
import pytest

from spftsql.records import Verdict, VerificationRequest
from spftsql.verdicts.reading import nondeterminism
from spftsql.verification.worker import Verifier
from tests import fuzz
from tests.hostile import CANARY, contents, make_sqlite_database, read_corpus
from tests.unguarded import guards_off

EXECUTED = 0.3

# Name, kinds of the arguments, kind of the result.
SQLITE_FUNCTIONS = """
    abs n n, round nn n, length t n, instr tt n, coalesce nn n, max nn n, sqrt n n, iif nnn n, unicode t n, random - n,
    julianday t n, glob tt n, lower t t, substr tnn t, replace ttt t, trim t t, quote t t, hex t t, nullif tt t,
    strftime tt t, json_extract tt t, json_array tn t, typeof n t, char nn t, printf tn t, load_extension t t
"""
DUCKDB_FUNCTIONS = """
    abs n n, round n n, length t n, instr tt n, coalesce nn n, greatest nn n, sqrt n n, hash t n, unicode t n,
    random - n, lower t t, left tn t, replace ttt t, trim t t, reverse t t, md5 t t, nullif tt t, printf tn t,
    regexp_replace ttt t, json_extract tt t, concat tn t, typeof n t, string_split tt t, getenv t t
"""


def functions_of(text: str) -> list[tuple[str, str, str]]:
    entries = (entry.split() for entry in text.split(","))
    return [(name, arguments.strip("-"), result) for name, arguments, result in entries]


@pytest.fixture
def sqlite_engine(tmp_path: Path) -> fuzz.Engine:
    path = make_sqlite_database(tmp_path)
    own = {"adults": {"id": "n", "name": "t", "age": "n"}, "sqlite_master": {"name": "t", "rootpage": "n"}}
    return sqlite(path, columns_of(path) | own, golds=[])


def sqlite(path: Path, tables: dict[str, dict[str, str]], golds: list[str]) -> fuzz.Engine:
    return fuzz.Engine(
        name="sqlite",
        database=path,
        tables=tables,
        functions=functions_of(SQLITE_FUNCTIONS),
        state=lambda: contents(path.parent),
        syntax_error=re.compile("syntax error|unrecognized token|incomplete input|more than one|NUL|no statement"),
        golds=golds,
        hostile=[case.sql for case in read_corpus("sqlite", path.parent)],
    )


@pytest.fixture
def duckdb_engine(tmp_path: Path) -> fuzz.Engine:
    path = tmp_path / "people.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE people AS SELECT i AS id, 'name ' || i AS name, i % 90 AS age FROM range(2000) t(i)"
        )
        connection.execute(
            "CREATE TABLE pets (owner INTEGER, kind VARCHAR); INSERT INTO pets VALUES (1, 'dog'), (2, NULL)"
        )
        connection.execute("CREATE VIEW adults AS SELECT * FROM people WHERE age >= 18")
    (tmp_path / "secret.txt").write_text(CANARY)
    return fuzz.Engine(
        name="duckdb",
        database=path,
        tables={
            "people": {"id": "n", "name": "t", "age": "n"},
            "pets": {"owner": "n", "kind": "t"},
            "adults": {"id": "n", "name": "t", "age": "n"},
        },
        functions=functions_of(DUCKDB_FUNCTIONS),
        state=lambda: contents(tmp_path),
        syntax_error=re.compile("Parser Error|syntax error|more than one|NUL|no statement|not Unicode"),
        hostile=[case.sql for case in read_corpus("duckdb", tmp_path)],
        config=fuzz.LIMITS.model_copy(update={"memory_mb": 512}),
    )


def columns_of(path: Path) -> dict[str, dict[str, str]]:
    """The columns of the ordinary tables of a SQLite file, and whether they hold numbers or texts."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    rows = connection.execute(
        "SELECT t.name, c.name, c.type FROM sqlite_master AS t JOIN pragma_table_info(t.name) AS c "
        "WHERE t.type = 'table' AND t.rootpage > 0 AND t.name NOT GLOB '*_*'"
    ).fetchall()
    connection.close()
    tables: dict[str, dict[str, str]] = {}
    for table, column, kind in rows:
        tables.setdefault(str(table), {})[str(column)] = (
            "n" if re.match("(?i)int|num|real|dou|flo|dec", str(kind)) else "t"
        )
    return tables


def keeps_the_promise(report: fuzz.Report, engine: str) -> None:
    print(f"{engine}: {report}")
    assert report.broken == []
    assert report.executed >= EXECUTED * report.statements


@pytest.mark.parametrize("engine", ["sqlite", "duckdb"])
def test_hundreds_of_statements(engine: str, request: pytest.FixtureRequest) -> None:
    keeps_the_promise(fuzz.run(request.getfixturevalue(f"{engine}_engine"), count=300, seed=1), engine)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ["sqlite", "duckdb"])
def test_ten_thousand_statements(engine: str, request: pytest.FixtureRequest) -> None:
    keeps_the_promise(fuzz.run(request.getfixturevalue(f"{engine}_engine"), count=10_000, seed=2), engine)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_statements_from_the_golds_of_benchmarks(data_root: Path, tmp_path: Path) -> None:
    golds = benchmark_golds(data_root)
    total = fuzz.Report()
    for number, (database, statements) in enumerate(golds.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(database, folder)
        engine = sqlite(folder / database.name, columns_of(database), statements)
        total += fuzz.run(engine, count=10_000 // len(golds) + 1, seed=number)
    assert total.statements >= 10_000
    keeps_the_promise(total, f"SQLite, {len(golds)} databases")


def benchmark_golds(root: Path) -> dict[Path, list[str]]:
    """The golds of GeoQuery and of Spider's dev set by database."""
    geoquery = [
        reduce(
            lambda sql, variable: sql.replace(*variable), entry["sentences"][0]["variables"].items(), entry["sql"][0]
        )
        for entry in json.loads((root / "geoquery" / "geography.json").read_text())
    ]
    golds = {next((root / "geoquery").glob("*.sqlite")): geoquery}
    for entry in json.loads((root / "spider" / "dev.json").read_text()):
        name = entry["db_id"]
        golds.setdefault(root / "spider" / "database" / name / f"{name}.sqlite", []).append(entry["query"])
    return golds


def test_a_verdict_follows_from_content_statement_limits_and_engine(sqlite_engine: fuzz.Engine, tmp_path: Path) -> None:
    """Whoever executed what before, in whatever order, on whichever copy of the database."""
    statements = [sql for sql in fuzz.statements(sqlite_engine, 400, seed=3) if nondeterminism(sql, "sqlite") is None]
    golds = [*statements[1:], statements[0]]
    requests = [
        VerificationRequest(str(number), "db", sql, gold, "strict")
        for number, (sql, gold) in enumerate(zip(statements, golds, strict=True))
    ]
    requests += [replace(request, id=f"same {request.id}", gold_sql=request.sql) for request in requests]
    other = tmp_path / "elsewhere" / "copy.sqlite"
    other.parent.mkdir()
    shutil.copy(sqlite_engine.database, other)
    one, two = (
        {verdict.id: verdict for verdict in verdicts(path, order)}
        for path, order in (
            (Path(sqlite_engine.database), requests),
            (other, Random(0).sample(requests, len(requests))),
        )
    )
    # How long a statement takes is not among what it follows from: those near the limit are left out.
    near = {r.sql for r in requests if max(one[r.id].elapsed_ms, two[r.id].elapsed_ms) > 50}
    # Nor how long the statements take that look whether a gold is certain.
    untold = "for all that can be told"
    near |= {r.gold_sql for r in requests if untold in one[r.id].reason or untold in two[r.id].reason}
    known = [r.id for r in requests if not {r.sql, r.gold_sql} & near]
    assert len(known) > 500
    assert {one[name].status for name in known} == {"equal", "different", "error", "truncated", "unverifiable"}
    assert [replace(one[name], elapsed_ms=0) for name in known] == [replace(two[name], elapsed_ms=0) for name in known]


def verdicts(database: Path, requests: list[VerificationRequest]) -> list[Verdict]:
    with Verifier({"db": database}, fuzz.LIMITS) as verifier:
        return verifier.verify(requests)


def test_what_gets_through_is_seen(sqlite_engine: fuzz.Engine) -> None:
    writing = {"authorizer", "query", "query_only", "read-only open", "immutable", "FSIZE", "Landlock"}
    with guards_off(writing):
        report = fuzz.run(sqlite_engine, count=100, seed=1)
    assert any("changed something" in line for line in report.broken)
