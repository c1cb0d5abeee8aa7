"""Comparison of results: vectors from the original evaluators, and properties against brute force."""

import itertools
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spftsql.records import Policy
from spftsql.sandbox.location import Engine
from spftsql.sandbox.result import Cell, Execution, RunStatus
from spftsql.verdicts import compare, digest, nondeterminism, ordered_at_top_level, verdict_of

FIXTURES = Path(__file__).parents[1] / "fixtures" / "verdicts"
Rows = list[tuple[Cell, ...]]


def vectors(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FIXTURES / name).read_text(encoding="utf-8").splitlines()]


def rows(values: list[list[Cell]]) -> Rows:
    return [tuple(row) for row in values]


@pytest.mark.parametrize("case", vectors("benchmark_vectors.jsonl"), ids=str)
def test_policies_agree_with_the_original_evaluators(case: dict[str, Any]) -> None:
    prediction, gold = rows(case["prediction"]), rows(case["gold"])
    assert compare(prediction, gold, "spider", ordered=False) is case["spider"]
    assert compare(prediction, gold, "spider", ordered=True) is case["spider_ordered"]
    for ordered in (False, True):
        assert compare(prediction, gold, "bird", ordered) is case["bird"]


@pytest.mark.parametrize("case", vectors("strict_vectors.jsonl"), ids=lambda case: case["why"])
def test_strict(case: dict[str, Any]) -> None:
    prediction, gold = rows(case["prediction"]), rows(case["gold"])
    for one, other in ((prediction, gold), (gold, prediction)):
        assert compare(one, other, "strict", ordered=False) is case["bag"]
        assert compare(one, other, "strict", ordered=True) is case["ordered"]


def test_benchmark_vectors_are_all_there() -> None:
    assert len(vectors("benchmark_vectors.jsonl")) == 15


cells = st.sampled_from([0, 1, 1.0, "1", None, 2.5, b"1"])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Rows, Rows]:
    """Two results, often one with its columns and rows shuffled and a cell changed."""
    width, height = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    table = st.lists(st.tuples(*[cells] * width), min_size=height, max_size=height)
    one: Rows = draw(table)
    if draw(st.booleans()):
        return one, draw(table)
    order = draw(st.permutations(range(width)))
    other = [tuple(row[column] for column in order) for row in one]
    if draw(st.booleans()):
        other = draw(st.permutations(other))
    if other and draw(st.booleans()):
        changed = list(other[0])
        changed[draw(st.integers(0, width - 1))] = draw(cells)
        other[0] = tuple(changed)
    return one, other


def brute_force(one: Rows, other: Rows, ordered: bool) -> bool:
    if len(one) != len(other):
        return False
    if not one:
        return True
    permuted = (
        [tuple(row[column] for column in order) for row in one] for order in itertools.permutations(range(len(one[0])))
    )
    return any(p == other if ordered else Counter(p) == Counter(other) for p in permuted)


@settings(max_examples=600, deadline=None)
@given(pairs(), st.booleans())
def test_column_permutation_agrees_with_brute_force(pair: tuple[Rows, Rows], ordered: bool) -> None:
    one, other = pair
    assert compare(one, other, "spider", ordered) is brute_force(one, other, ordered)


look_alikes = st.integers(2, 5).flatmap(
    lambda width: st.lists(st.tuples(*[st.integers(0, 1)] * width), min_size=1, max_size=5)
)


@settings(max_examples=400, deadline=None)
@given(look_alikes, st.randoms(use_true_random=False), st.booleans())
def test_columns_that_look_alike(one: Rows, chance: random.Random, change: bool) -> None:
    order = chance.sample(range(len(one[0])), len(one[0]))
    other = [tuple(row[column] for column in order) for row in chance.sample(one, len(one))]
    if change:
        row = chance.randrange(len(other))
        other[row] = tuple(chance.sample(other[row], len(order)))
    assert compare(one, other, "spider", ordered=False) is brute_force(one, other, ordered=False)


# Near each other in chains whose ends are not near, with whole numbers among them.
near = st.sampled_from(
    [0, 5e-13, 1.2e-12, 1, 1 + 8e-10, 1 + 1.6e-9, 3e9, 3e9 + 0.5, 3000000001, 3e9 + 1.5, -1e-12, "1", None, b"1"]
)


@settings(max_examples=600, deadline=None)
@given(st.integers(1, 2).flatmap(lambda w: st.lists(st.tuples(*[st.tuples(near, near)] * w), max_size=4)), st.randoms())
def test_strict_bags_are_equal_when_some_pairing_of_rows_is(
    twins: list[tuple[tuple[Cell, Cell], ...]], chance: random.Random
) -> None:
    one, other = ([tuple(pair[side] for pair in row) for row in twins] for side in (0, 1))
    chance.shuffle(other)
    pairings = itertools.permutations(other)
    expected = any(all(map(rows_are_near, one, pairing)) for pairing in pairings)
    assert compare(one, other, "strict", ordered=False) is expected
    assert compare(other, one, "strict", ordered=False) is expected
    assert compare(one, other, "strict", ordered=True) is all(map(rows_are_near, one, other))


def rows_are_near(one: tuple[Cell, ...], other: tuple[Cell, ...]) -> bool:
    def near(a: Any, b: Any) -> bool:
        if a == b or not {type(a), type(b)} <= {int, float}:
            return bool(a == b)
        return bool((a % 1 or b % 1) and abs(a - b) <= max(1e-9 * max(abs(a), abs(b)), 1e-12))

    return all(map(near, one, other))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.tuples(near), min_size=1, max_size=3), max_size=4),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_ties_split_the_rows_into_bags(groups: list[Rows], chance: random.Random, moved: bool) -> None:
    gold = [row for group in groups for row in group]
    prediction = [row for group in groups for row in chance.sample(group, len(group))]
    if moved:
        chance.shuffle(prediction)
    ties = list(itertools.accumulate(map(len, groups)))
    starts = [0, *ties]
    expected = all(
        compare(prediction[start:end], gold[start:end], "strict", ordered=False)
        for start, end in zip(starts, ties, strict=False)
    )
    assert compare(prediction, gold, "strict", ordered=True, ties=ties) is expected
    assert moved or expected


def test_large_results_are_compared_in_seconds() -> None:
    chance = random.Random(0)
    gold: Rows = [(i, f"name {i % 900}", 2458849.5 + i / 300, chance.random(), None) for i in range(30_000)]
    noisy: Rows = [(a, b, c, float(d) * (1 + 2e-16), e) for a, b, c, d, e in chance.sample(gold, len(gold))]  # type: ignore[arg-type]
    wrong = [*noisy[1:], (0, "name 0", 2458849.5, 2.0, None)]
    turned = [tuple(reversed(row)) for row in noisy]
    started = time.process_time()
    assert compare(noisy, gold, "strict", ordered=False)
    assert not compare(wrong, gold, "strict", ordered=False)
    assert compare(gold[::-1], gold, "strict", ordered=True, ties=[len(gold)])
    assert compare(turned, noisy, "spider", ordered=False)
    assert not compare(turned, wrong, "spider", ordered=False)
    assert time.process_time() - started < 20  # about 2


@settings(max_examples=300, deadline=None)
@given(pairs())
def test_digest_is_the_name_of_a_bag(pair: tuple[Rows, Rows]) -> None:
    one, other = pair
    assert (digest(one) == digest(other)) is (Counter(one) == Counter(other))


def incidence(cycles: list[list[int]], width: int) -> Rows:
    """A row per edge, a column per node: alike for all cycles of one total length, as far as counting goes."""
    edges = [(c[i], c[(i + 1) % len(c)]) for c in cycles for i in range(len(c))]
    return [tuple(int(node in edge) for node in range(width)) for edge in edges]


def test_column_permutation_does_not_explode() -> None:
    shuffled = random.Random(0).sample(range(40), 40)
    one = incidence([list(range(40))], 40)
    started = time.monotonic()
    assert compare(one, incidence([shuffled], 40), "spider", ordered=False)
    assert not compare(one, incidence([list(range(20)), list(range(20, 40))], 40), "spider", ordered=False)
    same = [(0,) * 300, (1,) * 300]
    assert not compare(same, [(0,) * 300, (1,) * 299 + (0,)], "spider", ordered=False)
    assert time.monotonic() - started < 10


def run(status: RunStatus = "ran", values: Rows | None = None, reason: str = "", width: int = 1) -> Execution:
    return Execution(status, reason, tuple("c" * width), values or [], 1.0, "sqlite")


GOLD = run(values=[(1,), (2,)])


@pytest.mark.parametrize(
    ("prediction", "gold", "gold_sql", "expected"),
    [
        (run(values=[(2,), (1,)]), GOLD, "SELECT x FROM t", "equal"),
        (run(values=[(2,), (1,)]), GOLD, "SELECT x FROM t ORDER BY x", "different"),
        (run(values=[(2,), (1,)]), GOLD, "SELECT x FROM (SELECT x FROM t ORDER BY x)", "equal"),
        (run(values=[(3,)]), GOLD, "SELECT x FROM t", "different"),
        (run("error", reason="no such column: y"), GOLD, "SELECT x FROM t", "error"),
        (run("error", reason="encoding"), GOLD, "SELECT x FROM t", "error"),
        (run("timeout"), GOLD, "SELECT x FROM t", "timeout"),
        (run("truncated", [(1,)]), GOLD, "SELECT x FROM t", "truncated"),
        (GOLD, run("timeout"), "SELECT x FROM t", "unverifiable"),
        (GOLD, run("error", reason="no such table"), "SELECT x FROM t", "unverifiable"),
        (GOLD, run("truncated", [(1,)]), "SELECT x FROM t", "unverifiable"),
        (run("error"), run("timeout"), "SELECT x FROM t", "unverifiable"),
        (GOLD, run("error", reason="encoding"), "SELECT x FROM t", "unverifiable"),
        (GOLD, GOLD, "SELECT x FROM t ORDER BY random()", "unverifiable"),
        (run(width=2), run(width=1), "SELECT x FROM t", "different"),
    ],
)
def test_verdict(prediction: Execution, gold: Execution, gold_sql: str, expected: str) -> None:
    assert verdict_of(prediction, gold, gold_sql, "strict")[0] == expected


def test_verdict_names_encoding_and_chance() -> None:
    assert verdict_of(GOLD, run("error", reason="encoding"), "SELECT x", "spider") == ("unverifiable", "encoding")
    status, reason = verdict_of(GOLD, GOLD, "SELECT x FROM t", "strict", sql="SELECT abs(random()) FROM t")
    assert (status, "random()" in reason) == ("unverifiable", True)


@pytest.mark.parametrize("policy", ["spider", "bird"])
def test_benchmark_policies_ignore_columns_of_empty_results(policy: Policy) -> None:
    assert verdict_of(run(width=2), run(width=1), "SELECT x FROM t", policy)[0] == "equal"


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("SELECT a FROM t order\n  by a LIMIT 3", True),
        ("WITH x AS (SELECT 1) SELECT * FROM x UNION SELECT 2 ORDER BY 1", True),
        ("SELECT * FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
        ("SELECT group_concat(a, ',' ORDER BY a) FROM t", False),
        ("SELECT 'order by' FROM t", False),
        ('SELECT "order by" FROM t -- order by a', False),
        ("SELECT orders FROM t", False),
    ],
)
def test_ordered_at_top_level(sql: str, expected: bool) -> None:
    assert ordered_at_top_level(sql) is expected


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT random()", "random()"),
        ("SELECT abs(RANDOM ()) % 2", "random()"),
        ("SELECT RANDOM/* here */()", "random()"),
        ("SELECT date\n -- of today\n ()", "date()"),
        ('SELECT "random" ()', "random()"),
        ("SELECT `julianday`()", "julianday()"),
        ("SELECT [random]\n()", "random()"),
        ("SELECT timediff('now', d) FROM t", "timediff()"),
        ("SELECT current_time", "current_time"),
        ('SELECT current_date_id, "Date" FROM t WHERE time > 1', None),
        ("SELECT randomblob(3)", "randomblob()"),
        ("SELECT date('now')", "date()"),
        ("SELECT datetime(' NOW ', 'localtime')", "datetime()"),
        ("SELECT strftime('%Y', 'now') - strftime('%Y', born) FROM t", "strftime()"),
        ("SELECT julianday() - julianday(born) FROM t", "julianday()"),
        ("SELECT strftime('%Y')", "strftime()"),
        ('SELECT date("now")', "date()"),
        ("SELECT unixepoch('subsec')", "unixepoch()"),
        ("SELECT unixepoch(d, 'subsec') FROM t", None),
        ("SELECT a FROM t WHERE d < CURRENT_TIMESTAMP", "current_timestamp"),
        ("SELECT date(d), date, time FROM t", None),
        ("SELECT strftime('%Y', d, 'start of month') FROM t", None),
        ("SELECT 'now', 'random()', \"current_date\" FROM t", None),
        ("SELECT a FROM t WHERE status = 'now'", None),
        ("SELECT strftime('%Y', (SELECT max(d) FROM t))", None),
    ],
)
def test_nondeterminism(sql: str, found: str | None) -> None:
    assert nondeterminism(sql) == found


@pytest.mark.parametrize(
    ("engine", "sql", "found"),
    [
        ("sqlite", 'SELECT "random"()', "random()"),
        ("sqlite", "SELECT [random]()", "random()"),
        ("sqlite", "SELECT now(), uuid(), localtime FROM t", None),
        ("postgresql", "SELECT now()", "now()"),
        ("postgresql", 'SELECT pg_catalog."now"()', "now()"),
        ("postgresql", "SELECT clock_timestamp() - born FROM t", "clock_timestamp()"),
        ("postgresql", "SELECT a FROM t WHERE d < LOCALTIMESTAMP", "localtimestamp"),
        ("postgresql", "SELECT age(born) FROM t", "age()"),
        ("postgresql", "SELECT age(died, born), age FROM t", None),
        ("postgresql", "SELECT a FROM t WHERE d > ' Yesterday '", "'yesterday'"),
        ("postgresql", "SELECT 'today'::date", "'today'"),
        ("postgresql", "SELECT $$now$$::timestamp", "'now'"),
        ("postgresql", "SELECT date(d), date_trunc('day', d), extract(year FROM d) FROM t WHERE a = 'nowhere'", None),
        ("postgresql", "SELECT gen_random_uuid()", "gen_random_uuid()"),
        ("postgresql", "SELECT random() FROM t", "random()"),
        ("postgresql", "SELECT txid_current()", "txid_current()"),
        ("postgresql", "SELECT pg_backend_pid()", "pg_backend_pid()"),
        ("postgresql", "SELECT pg_is_in_recovery()", "pg_is_in_recovery()"),
        ("postgresql", "SELECT pg_total_relation_size('t')", "pg_total_relation_size()"),
        ("postgresql", "SELECT pg_typeof(a), pg_size_pretty(b), pg_get_viewdef('v') FROM t", None),
        ("postgresql", "SELECT nextval('s')", "nextval()"),
        ("postgresql", "SELECT * FROM t TABLESAMPLE system (10)", "tablesample"),
        ("postgresql", 'SELECT "current_date", t.localtime, random FROM t', None),
        ("duckdb", "SELECT uuid()", "uuid()"),
        ("duckdb", "SELECT today() - d FROM t", "today()"),
        ("duckdb", "SELECT current_date", "current_date"),
        ("duckdb", "SELECT * FROM t USING SAMPLE 10", "using sample"),
        ("duckdb", "SELECT a FROM t JOIN u USING (sample)", None),
        ("duckdb", "SELECT date_diff('day', a, b), strftime(d, '%Y'), 'now' FROM t", None),
    ],
)
def test_nondeterminism_of_other_dialects(engine: Engine, sql: str, found: str | None) -> None:
    assert nondeterminism(sql, engine) == found


def test_every_function_that_duckdb_says_may_vary_is_known() -> None:
    import duckdb

    # They depend on the statement and the search path, or do something and are refused.
    others = {
        "current_schema",
        "current_schemas",
        "in_search_path",
        "error",
        "sleep_ms",
        "stats",
        "vector_type",
        "write_log",
    }
    functions = duckdb.connect().execute("SELECT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'")
    names = {name for (name,) in functions.fetchall()}
    assert len(names) > 20
    assert {name for name in names if nondeterminism(f"SELECT {name}()", "duckdb") is None} == others
