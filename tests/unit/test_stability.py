"""What the data decides about a statement: ties, bare columns, orders that nothing fixes, asked of real engines."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apsw
import duckdb
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spftsql.sandbox.cells import to_cell
from spftsql.sandbox.location import Engine
from spftsql.sandbox.result import Execution
from spftsql.verdicts import Stability, stability, verdict_of
from spftsql.verdicts.compare import compare
from spftsql.verdicts.probes import probes

FIXTURES = Path(__file__).parents[1] / "fixtures" / "verdicts"
CASES: list[dict[str, Any]] = yaml.safe_load((FIXTURES / "stability.yaml").read_text())
Run = Callable[[str], Execution]


def sqlite(script: str, reverse: bool = False) -> Run:
    connection = apsw.Connection(":memory:")
    connection.execute(script)
    connection.pragma("reverse_unordered_selects", int(reverse))

    columns: tuple[str, ...] = ()

    def trace(cursor: apsw.Cursor, sql: str, bindings: Any) -> bool:  # without rows the cursor does not tell
        nonlocal columns
        columns = tuple(column[0] for column in cursor.get_description())
        return True

    connection.exec_trace = trace

    def run(sql: str) -> Execution:
        try:
            rows = connection.execute(sql).fetchall()
            return Execution("ran", "", columns, rows, 0.0, "sqlite 3")
        except apsw.Error as error:
            return Execution("error", str(error), (), [], 0.0, "sqlite 3")

    return run


def duck(script: str) -> Run:
    connection = duckdb.connect(":memory:")
    connection.execute(script)

    def run(sql: str) -> Execution:
        try:
            cursor = connection.execute(sql)
            columns = tuple(column[0] for column in cursor.description or ())
            rows = [tuple(map(to_cell, row)) for row in cursor.fetchall()]
            return Execution("ran", "", columns, rows, 0.0, "duckdb 1")
        except duckdb.Error as error:
            return Execution("error", str(error), (), [], 0.0, "duckdb 1")

    return run


ENGINES: dict[Engine, Callable[[str], Run]] = {"sqlite": sqlite, "duckdb": duck}


@pytest.fixture(scope="module")
def zoo() -> dict[Engine, Run]:
    script = (FIXTURES / "zoo.sql").read_text()
    return {engine: start(script) for engine, start in ENGINES.items()}


def stability_of(sql: str, run: Run, engine: Engine = "sqlite") -> tuple[Execution, Stability]:
    gold = run(sql)
    assert gold.status == "ran", gold.reason
    asked = probes(sql, len(gold.columns), len(gold.rows), engine)
    return gold, stability(gold, asked, {s: run(s) for probe in asked for pair in probe.pairs for s in pair})


@pytest.mark.parametrize(
    ("engine", "case"),
    [(engine, case) for case in CASES for engine in case.get("only", ENGINES) if engine in ENGINES],
    ids=lambda value: value if isinstance(value, str) else value["sql"],
)
def test_stability(zoo: dict[Engine, Run], engine: Engine, case: dict[str, Any]) -> None:
    _, found = stability_of(case["sql"], zoo[engine], engine)
    assert bool(found.varies) is bool(case["varies"]), found
    assert case["varies"] in found.varies
    assert ("for all that can be told" in found.varies) is case.get("untold", False), found
    if " ORDER BY " in case["sql"].rpartition(")")[2] and not case["varies"]:
        expected = case.get("ties", ())
        assert found.ties == (None if expected == "unknown" else tuple(expected))


values = st.sampled_from(["NULL", "1", "2", "2", "'x'"])
tables = st.lists(st.tuples(values, values, values), min_size=1, max_size=6)
STATEMENTS = """
SELECT {x} FROM t ORDER BY {y} LIMIT {n}
SELECT {x}, {y} FROM t ORDER BY {z} DESC LIMIT {n} OFFSET 1
SELECT {x} FROM t LIMIT {n}
SELECT * FROM t ORDER BY {x} LIMIT {n}
SELECT {x}, {y} FROM t ORDER BY {z}
SELECT DISTINCT {x} FROM t ORDER BY {y} LIMIT {n}
SELECT DISTINCT {x} FROM t ORDER BY {y}
SELECT {x}, {y} FROM t GROUP BY {x}
SELECT {x}, {y}, max({z}) FROM t GROUP BY {x}
SELECT {x}, min({y}) FROM t
SELECT *, max({x}) FROM t GROUP BY {y}
SELECT {x} FROM t GROUP BY {x} HAVING {y} > 1
SELECT {x} FROM t GROUP BY {x} HAVING {y} = 2
SELECT {x} FROM t GROUP BY {x} HAVING group_concat({y}) = '2,1'
SELECT {x} FROM t GROUP BY {x} ORDER BY group_concat({y}), {x} LIMIT 1
SELECT {x} FROM t WHERE 2 = (SELECT u.{y} FROM t AS u WHERE u.{x} = t.{x})
SELECT DISTINCT {y} FROM t GROUP BY {x}
SELECT {x} + 0 FROM t GROUP BY {y} ORDER BY {x} = 1 LIMIT {n}
SELECT count(*) FROM (SELECT {x}, row_number() OVER (ORDER BY {z}) AS r FROM t) WHERE r = 1 AND {x} = 2
SELECT {x} FROM (SELECT {x}, {y}, row_number() OVER (PARTITION BY {y} ORDER BY {z} DESC) AS r FROM t) WHERE r = {n}
SELECT {x} FROM (SELECT {x}, row_number() OVER (PARTITION BY {y} ORDER BY {z} DESC) AS r FROM t) WHERE r < {n}
SELECT * FROM (SELECT {x}, row_number() OVER (ORDER BY {z}) AS r FROM t) WHERE r <= {n}
SELECT {x}, max({y}) FILTER (WHERE {z} = 2) FROM t
SELECT u.* FROM (SELECT {x}, row_number() OVER (ORDER BY {z}) AS r FROM t) AS u WHERE r <= {n}
SELECT {x}, first_value({y}) OVER (ORDER BY {z}) FROM t
SELECT {x} FROM t UNION SELECT group_concat({y}) FROM t GROUP BY {z}
SELECT {x} FROM t GROUP BY {x} ORDER BY {y}, {x} LIMIT {n}
SELECT {x}, count(*) FROM t GROUP BY {x} ORDER BY count(*) DESC LIMIT {n}
SELECT {x}, count(*) FROM t GROUP BY {x} ORDER BY 2
SELECT {x}, group_concat({y}) FROM t GROUP BY {x}
SELECT {x}, group_concat({y} ORDER BY {z}) FROM t GROUP BY {x}
SELECT {x}, {y}, row_number() OVER (PARTITION BY {x} ORDER BY {z}) FROM t
SELECT {x}, lag({y}) OVER (ORDER BY {z}) FROM t ORDER BY {z}
SELECT {x} FROM (SELECT {x}, row_number() OVER (ORDER BY {z}) AS r FROM t) WHERE r <= {n}
SELECT {x} FROM (SELECT *, row_number() OVER (ORDER BY {z}) AS r FROM t) WHERE r <= {n}
SELECT {x}, sum({y}) OVER (ORDER BY {z} ROWS 1 PRECEDING) FROM t
SELECT count(*) FROM t WHERE {x} = (SELECT {x} FROM t WHERE {y} > 1)
SELECT {x} FROM t WHERE {y} = (SELECT {y} FROM t ORDER BY {z} LIMIT 1)
SELECT sum({x}) FROM (SELECT * FROM t ORDER BY {y} LIMIT {n})
SELECT {x}, (SELECT u.{y} FROM t AS u WHERE u.{x} = t.{x} ORDER BY u.{z} LIMIT 1) FROM t
SELECT {x}, (SELECT u.{y} FROM t AS u WHERE u.{x} = t.{x}) FROM t ORDER BY {x}
WITH u AS (SELECT {x}, {y} FROM t ORDER BY {z} LIMIT {n}) SELECT {x} FROM u ORDER BY {y} LIMIT 2
SELECT {x} FROM t UNION ALL SELECT {y} FROM t ORDER BY 1 LIMIT {n}
SELECT {x} FROM t WHERE {y} IN (SELECT {y} FROM t LIMIT {n})
""".strip().splitlines()


@settings(max_examples=500)
@given(
    tables, st.permutations("abc"), st.integers(1, 3), st.sampled_from(STATEMENTS), st.randoms(use_true_random=False)
)
def test_no_order_of_the_rows_in_the_file_makes_the_same_statement_different(
    table: list[tuple[str, ...]], columns: Sequence[str], n: int, statement: str, chance: random.Random
) -> None:
    sql = statement.format(x=columns[0], y=columns[1], z=columns[2], n=n)
    gold, found = stability_of(sql, loaded(table))
    for reverse in (False, True):
        for _ in range(4):
            shuffled = chance.sample(table, len(table))
            status, reason = verdict_of(loaded(shuffled, reverse)(sql), gold, sql, "strict", sql, found)
            assert status in ("equal", "unverifiable"), (shuffled, reason, found)


def loaded(table: Sequence[tuple[str, ...]], reverse: bool = False) -> Run:
    rows = ", ".join(f"({', '.join(row)})" for row in table)
    return sqlite(f"CREATE TABLE t (a, b, c); INSERT INTO t VALUES {rows}", reverse)


small = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=5)


@settings(max_examples=300)
@given(
    small,
    st.sampled_from(["a", "b", "a, b"]),
    st.sampled_from(["c", "b", "a, c"]),
    st.integers(1, 4),
    st.integers(0, 2),
)
def test_a_cut_varies_exactly_when_two_ways_to_break_ties_show_different_rows(
    table: list[tuple[int, ...]], shown: str, keys: str, n: int, skipped: int
) -> None:
    sql = f"SELECT {shown} FROM t ORDER BY {keys} LIMIT {n} OFFSET {skipped}"
    picked = [["abc".index(name) for name in names.split(", ")] for names in (shown, keys)]
    outcomes = set()
    for order in itertools.permutations(table):
        kept = sorted(order, key=lambda row: [row[i] for i in picked[1]])[skipped : skipped + n]
        outcomes.add(tuple(tuple(row[i] for i in picked[0]) for row in kept))
    _, found = stability_of(sql, loaded([tuple(map(str, row)) for row in table]))
    assert bool(found.varies) is (len({frozenset(Counter(outcome).items()) for outcome in outcomes}) > 1)
    if not found.varies:  # what may stand first in the list, and so on: the groups are just those
        assert found.ties is not None
        gold = next(iter(outcomes))
        for rows in itertools.permutations(gold):
            assert compare(rows, gold, "strict", ordered=True, ties=found.ties) is (rows in outcomes)


def test_ties_are_free_and_the_order_of_groups_is_not(zoo: dict[Engine, Run]) -> None:
    sql = "SELECT name, age FROM animal ORDER BY age"
    gold, found = stability_of(sql, zoo["sqlite"])
    rows = gold.rows
    swapped = [rows[0], rows[1], rows[3], rows[2], rows[5], rows[4]]
    moved = [rows[1], rows[0], *rows[2:]]
    assert compare(swapped, rows, "strict", ordered=True, ties=found.ties or ())
    assert not compare(moved, rows, "strict", ordered=True, ties=found.ties or ())
    assert not compare(swapped, rows, "strict", ordered=True)


def test_only_strict_minds_what_the_data_leaves_open(zoo: dict[Engine, Run]) -> None:
    sql = "SELECT name FROM animal ORDER BY age DESC LIMIT 1"
    gold, found = stability_of(sql, zoo["sqlite"])
    other = zoo["sqlite"]("SELECT name FROM animal ORDER BY age DESC, name DESC LIMIT 1")
    assert other.rows != gold.rows
    assert verdict_of(other, gold, sql, "strict", "", found) == (
        "unverifiable",
        "gold not deterministic: LIMIT over ties",
    )
    assert verdict_of(gold, gold, sql, "strict", "", found)[0] == "unverifiable"
    assert verdict_of(other, gold, sql, "spider", "", found)[0] == "different"
    assert verdict_of(other, gold, sql, "bird", "", found)[0] == "different"
    assert verdict_of(gold, gold, sql, "spider", "", found)[0] == "equal"


def test_order_that_cannot_be_told_is_no_difference(zoo: dict[Engine, Run]) -> None:
    sql = "SELECT kind FROM animal GROUP BY kind ORDER BY age"
    gold, found = stability_of(sql, zoo["sqlite"])
    assert found == Stability(ties=None)
    turned = zoo["sqlite"]("SELECT kind FROM animal GROUP BY kind ORDER BY max(age) DESC, kind")
    assert turned.rows != gold.rows
    assert verdict_of(turned, gold, sql, "strict", "", found)[0] == "unverifiable"
    assert verdict_of(gold, gold, sql, "strict", "", found)[0] == "equal"
    fewer = zoo["sqlite"]("SELECT kind FROM animal GROUP BY kind LIMIT 2")
    assert verdict_of(fewer, gold, sql, "strict", "", found)[0] == "different"


def test_probes_that_fail_leave_the_statement_open() -> None:
    sql = "SELECT a FROM t ORDER BY b LIMIT 1"
    gold = Execution("ran", "", ("a",), [(1,)], 0.0, "sqlite 3")
    asked = probes(sql, 1, 1)
    failed = Execution("timeout", "longer than 1 s", (), [], 0.0, "sqlite 3")
    found = stability(gold, asked, {s: failed for probe in asked for pair in probe.pairs for s in pair})
    assert found.varies == "LIMIT over ties, for all that can be told"
    ordered = probes("SELECT a FROM t ORDER BY b", 1, 2)
    assert stability(gold, ordered, {s: failed for probe in ordered for pair in probe.pairs for s in pair}).ties is None


def test_statements_that_cannot_be_read_or_are_very_long() -> None:
    assert probes("SELECT FROM WHERE LIMIT 1", 1, 1)[0].pairs == ()
    assert probes("SELECT (FROM WHERE", 1, 1) == ()
    many = " UNION ALL ".join(["SELECT (SELECT a FROM t LIMIT 1)"] * 100)
    assert [probe.pairs for probe in probes(many, 1, 100)] == [()]
    deep = "SELECT a FROM t WHERE a IN (" * 3000 + "SELECT 1 LIMIT 1" + ")" * 3000
    assert [probe.pairs for probe in probes(deep, 1, 1)] == [()]


def test_statements_that_leave_nothing_open_cost_nothing() -> None:
    for sql in (
        "SELECT a FROM t WHERE b = 'limit'",
        "SELECT count(*), max(a) FROM t",
        "SELECT a, sum(b) FROM t GROUP BY a",
    ):
        assert probes(sql, 1, 1) == ()
    assert probes("SELECT a FROM t ORDER BY b", 1, 1) == ()
    assert probes("SELECT a FROM t ORDER BY b LIMIT 5", 1, 1) == ()
