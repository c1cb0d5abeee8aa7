"""Query plans: what each engine says of a statement as one kind of tree, and that explaining is held to the policy."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from spftsql.config import SandboxConfig
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.query_plan import Step, plan_steps
from tests.hostile import read_corpus

LIMITS = SandboxConfig(soft_seconds=0.5, hard_seconds=1.5, memory_mb=256)
SCRIPT = """
CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, city TEXT, secret TEXT);
CREATE TABLE orders (id INTEGER PRIMARY KEY, person_id INTEGER, total REAL);
CREATE INDEX of_city_and_secret ON person (city, secret);
INSERT INTO person VALUES (1, 'Ada', 'Paris', 'x'), (2, 'Bob', 'Rome', 'y');
INSERT INTO orders VALUES (1, 1, 9.5), (2, 1, 20), (3, 2, 3);
"""
JOIN = "SELECT name, sum(total) AS s FROM person JOIN orders ON person_id = person.id WHERE city = 'Paris' GROUP BY 1"


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plans")
    paths = {"sqlite": folder / "shop.sqlite", "duckdb": folder / "shop.duckdb"}
    with sqlite3.connect(paths["sqlite"]) as connection:
        connection.executescript(SCRIPT)
    with duckdb.connect(str(paths["duckdb"])) as connection:
        connection.execute(SCRIPT)
    return paths


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as opened:
        yield opened


def flat(steps: tuple[Step, ...]) -> list[Step]:
    return [found for step in steps for found in (step, *flat(step.children))]


def test_sqlite_says_which_index_it_uses(sandbox: Sandbox, databases: dict[str, Path]) -> None:
    plan = sandbox.plan(databases["sqlite"], JOIN + " ORDER BY s")
    assert (plan.status, plan.columns[-1]) == ("ran", "detail")
    names = [step.name for step in flat(plan_steps(plan.engine, plan.rows))]
    assert "SEARCH person USING INDEX of_city_and_secret (city=?)" in names or "SCAN orders" in names
    assert "USE TEMP B-TREE FOR ORDER BY" in names
    union = sandbox.plan(databases["sqlite"], "SELECT 1 FROM person WHERE city = 'a' UNION ALL SELECT 2 FROM orders")
    (compound,) = plan_steps(union.engine, union.rows)
    assert [step.name for step in compound.children] == ["LEFT-MOST SUBQUERY", "UNION ALL"]
    hidden = [step.name for step in flat(plan_steps(union.engine, union.rows, index_names=False))]
    assert "SEARCH person USING COVERING INDEX (city=?)" in hidden


def test_duckdb_gives_its_operators_with_estimates(sandbox: Sandbox, databases: dict[str, Path]) -> None:
    plan = sandbox.plan(databases["duckdb"], JOIN)
    steps = flat(plan_steps(plan.engine, plan.rows))
    join = next(step for step in steps if step.name == "HASH JOIN")
    assert len(join.children) == 2 and "Join Type: INNER" in join.detail
    scans = [step for step in steps if "orders" in step.detail and "SCAN" in step.name]
    assert scans and scans[0].rows == 3


@pytest.mark.parametrize("engine", ["sqlite", "duckdb"])
def test_nothing_is_executed_to_explain_it(sandbox: Sandbox, databases: dict[str, Path], engine: str) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    assert sandbox.execute(databases[engine], [endless])[0].status == "timeout"
    assert sandbox.plan(databases[engine], endless).status == "ran"


@pytest.mark.parametrize("engine", ["sqlite", "duckdb"])
def test_what_may_not_be_executed_is_not_explained_either(
    sandbox: Sandbox, databases: dict[str, Path], engine: str
) -> None:
    refused = {
        case.sql
        for number, case in enumerate(read_corpus(engine))
        if case.allowed == {"refused"} and len(case.sql) < 2_000 and number % 3 == 0
    }
    more = {"DELETE FROM person", "EXPLAIN SELECT 1", "SELECT 1; SELECT 2", "", "VACUUM", "ANALYZE SELECT 1"}
    database = databases[engine]
    statements = sorted(refused | more)
    executed = sandbox.execute(database, statements)
    explained = [sandbox.plan(database, sql) for sql in statements]
    assert len(statements) > 30
    for sql, one, other in zip(statements, executed, explained, strict=True):
        if one.status == "error":
            assert (other.status, other.reason, other.rows) == ("error", one.reason, []), sql
    assert sandbox.execute(database, ["SELECT count(*) FROM person"])[0].rows == [(2,)]


def test_the_statement_after_a_plan_is_executed_again(sandbox: Sandbox, databases: dict[str, Path]) -> None:
    assert sandbox.plan(databases["sqlite"], "SELECT nowhere FROM person").reason == "no such column: nowhere"
    assert sandbox.execute(databases["sqlite"], ["SELECT count(*) FROM orders"])[0].rows == [(3,)]
    assert sandbox.execute(databases["sqlite"], ["EXPLAIN QUERY PLAN SELECT 1"])[0].reason == "refused: EXPLAIN"


def test_a_plan_that_nests_without_end_is_not_shown() -> None:
    text = '[{"name": "A", "children": ' * 1000 + "[]" + "}]" * 1000
    assert [step.name for step in plan_steps("duckdb 1", [("physical_plan", text)])] == [
        "nested too deeply to be shown"
    ]
