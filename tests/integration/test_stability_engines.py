"""The cases of stability.yaml in the sandbox of every engine, whose guards must let the probes through."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
import yaml

from spftsql.config import SandboxConfig
from spftsql.records import VerificationRequest
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.location import Engine, locate
from spftsql.verdicts import stability
from spftsql.verdicts.probes import probes
from spftsql.verification.worker import Verifier

if TYPE_CHECKING:
    from tests.postgres import Server

pytestmark = pytest.mark.integration

FIXTURES = Path(__file__).parents[1] / "fixtures" / "verdicts"
CASES: list[dict[str, Any]] = yaml.safe_load((FIXTURES / "stability.yaml").read_text())
ENGINES: tuple[Engine, ...] = ("sqlite", "duckdb", "postgresql")
LIMITS = SandboxConfig(soft_seconds=10.0, hard_seconds=20.0, max_rows=1000)


@pytest.fixture(scope="module", params=ENGINES)
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the database."""
    script, folder = (FIXTURES / "zoo.sql").read_text(), tmp_path_factory.mktemp("zoo")
    if request.param == "sqlite":
        with closing(sqlite3.connect(folder / "zoo.sqlite")) as connection:
            connection.executescript(script)
        return str(folder / "zoo.sqlite")
    if request.param == "duckdb":
        with closing(duckdb.connect(str(folder / "zoo.duckdb"))) as database:
            database.execute(script)
        return str(folder / "zoo.duckdb")
    server: Server = request.getfixturevalue("postgres")
    server.run("CREATE DATABASE zoo")
    server.run(script, "zoo")
    server.run("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", "zoo")
    return server.url("zoo")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as opened:
        yield opened


def test_stability_in_the_sandbox(zoo: str, sandbox: Sandbox) -> None:
    wrong, engine = [], locate(zoo).engine
    for case in CASES:
        if engine not in case.get("only", ENGINES):
            continue
        (gold,) = sandbox.execute(zoo, [case["sql"]])
        assert gold.status == "ran", (case["sql"], gold.reason)
        asked = probes(case["sql"], len(gold.columns), len(gold.rows), engine)
        statements = list({sql for probe in asked for pair in probe.pairs for sql in pair})
        found = stability(gold, asked, dict(zip(statements, sandbox.execute(zoo, statements), strict=True)))
        as_said = bool(found.varies) is bool(case["varies"]) and case["varies"] in found.varies
        if not as_said or ("for all that can be told" in found.varies) is not case.get("untold", False):
            wrong.append((case["sql"], found))
    assert wrong == []


def test_verdicts_where_rows_tie(zoo: str) -> None:
    cut, ordered = "SELECT name FROM animal ORDER BY age LIMIT 3", "SELECT name FROM animal ORDER BY age"
    asked = {
        (cut, cut): "unverifiable",
        (f"{ordered}, name DESC", ordered): "equal",
        (f"{ordered}, name", ordered): "equal",
        (f"{ordered} DESC", ordered): "different",
        ("SELECT name FROM animal WHERE age = 2", "SELECT name FROM animal ORDER BY age LIMIT 1"): "equal",
        ("SELECT name FROM animal", "SELECT name FROM animal WHERE random() < 2"): "unverifiable",
        ("SELECT 1", "SELECT CURRENT_TIMESTAMP"): "unverifiable",
    }
    requests = [VerificationRequest(str(i), "zoo", sql, gold, "strict") for i, (sql, gold) in enumerate(asked)]
    with Verifier({"zoo": zoo}, LIMITS) as verifier:
        verdicts = verifier.verify(requests)
    assert [verdict.fault for verdict in verdicts] == [None] * len(asked)
    assert [verdict.status for verdict in verdicts] == list(asked.values())
