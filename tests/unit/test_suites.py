"""Test suites: mutants, perturbed instances, which of them are chosen, and what that says about predictions."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.errors import Fault, UserError
from spftsql.evaluation.scoring import spider_text
from spftsql.records import VerificationRequest
from spftsql.sandbox.execute import Sandbox
from spftsql.suites import Suite, build_suite, mutants
from spftsql.suites.building import LIMITS
from spftsql.suites.determinism import cuts, nulls_elsewhere
from spftsql.suites.golds import read_golds
from spftsql.suites.instances import make_rows, style
from spftsql.suites.reader import read_source
from spftsql.suites.selection import Outcome, Target, choose, on_candidate, on_original
from spftsql.suites.writing import write_instance, write_twin
from spftsql.synthesis.canonical import parse
from spftsql.verification.worker import Verifier
from tests.rewrites import rewrites

FIXTURES = Path(__file__).parents[1] / "fixtures" / "suites"
STATEMENTS = yaml.safe_load((FIXTURES / "statements.yaml").read_text())
GOLDS = [entry["gold"] for entry in STATEMENTS]
REFERENCES = """
    SELECT count(*) FROM book WHERE publisher_id NOT IN (SELECT id FROM publisher);
    SELECT count(*) FROM author WHERE mentor_id NOT IN (SELECT author_id FROM author);
    SELECT count(*) FROM writes WHERE author_id NOT IN (SELECT author_id FROM author);
    SELECT count(*) FROM writes WHERE isbn NOT IN (SELECT isbn FROM book);
    SELECT count(*) FROM loan WHERE isbn NOT IN (SELECT isbn FROM book);
    SELECT count(*) FROM fine WHERE loan_id NOT IN (SELECT id FROM loan);
    SELECT count(*) FROM repair WHERE isbn IS NOT NULL AND (isbn, number) NOT IN (SELECT isbn, number FROM copy);
    SELECT count(*) FROM branch WHERE manager_id NOT IN (SELECT id FROM clerk);
    SELECT count(*) FROM clerk WHERE branch_id NOT IN (SELECT id FROM branch)
"""
# What holds in the library although nothing in its schema says so.
HABITS = {
    "names do not repeat": "SELECT count(*) - count(DISTINCT name) FROM author",
    "titles do not repeat": "SELECT count(*) - count(DISTINCT title) FROM book",
    "years are known": "SELECT count(*) FROM book WHERE year IS NULL",
    "a city lies in one region": "SELECT count(DISTINCT city || region) - count(DISTINCT city) FROM loan",
    "a loan repeats the publisher": (
        "SELECT count(*) FROM loan WHERE (isbn, publisher_id) NOT IN (SELECT isbn, publisher_id FROM book)"
    ),
    "whole days": "SELECT count(*) FROM loan WHERE typeof(days) != 'integer' OR days < 0",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return database(tmp_path_factory.mktemp("library") / "library.sqlite", (FIXTURES / "library.sql").read_text())


@pytest.fixture(scope="module")
def schema(library: Path) -> Schema:
    return reflect("library", library)


@pytest.fixture(scope="module")
def suite(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return build_suite("library", library, GOLDS, 6, tmp_path_factory.mktemp("suites"), workers=2)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as shared:
        yield shared


def database(path: Path, script: str) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


def instance(library: Path, target: Path, number: int, seed: int = 0) -> Path:
    schema = reflect("library", library)
    facts = read_golds(GOLDS, schema)
    source = read_source(library, schema, facts, seed)
    rng = random.Random(f"{seed} {number}")
    write_instance(source, make_rows(source, facts, style(number, rng), rng), target)
    return target


def query(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def verdicts(files: Sequence[Path], gold: str, predictions: list[str], policy: str = "strict") -> dict[str, str]:
    """`equal` where a prediction is that on every file, else the first other verdict."""
    names = {str(place): path for place, path in enumerate(files)}
    requests = [
        VerificationRequest(f"{name} {index}", name, sql, gold, policy)
        for index, sql in enumerate(predictions)
        for name in names
    ]
    found = dict.fromkeys(predictions, "equal")
    with Verifier(names, LIMITS) as verifier:
        for request, verdict in zip(requests, verifier.verify(requests), strict=True):
            assert verdict.fault is None
            if found[request.sql] == "equal":
                found[request.sql] = verdict.status
    return found


# Mutants


@pytest.mark.parametrize("case", yaml.safe_load((FIXTURES / "mutants.yaml").read_text()), ids=lambda case: case["sql"])
def test_mutants_of_every_kind(case: dict[str, Any], schema: Schema) -> None:
    found = {(mutant.kind, mutant.sql) for mutant in mutants(case.pop("sql"), schema)}
    never = case.pop("never", [])
    assert {(kind, text) for kind, texts in case.items() for text in texts} <= found
    assert not {text for _, text in found} & set(never)


COLUMNS = st.sampled_from(["title", "isbn", "year", "pages", "price", "in_print", "publisher_id"])
PREDICATES = st.one_of(
    st.builds("{} {} {}".format, COLUMNS, st.sampled_from(["=", "<", ">=", "!="]), st.integers(0, 2000)),
    st.builds("{} LIKE '%{}%'".format, COLUMNS, st.sampled_from("abc")),
    st.builds("{} IN ('T', '{}')".format, COLUMNS, st.sampled_from("abc")),
    st.builds("{} BETWEEN {} AND 1600".format, COLUMNS, st.integers(1, 1500)),
    st.builds("isbn NOT IN (SELECT isbn FROM loan WHERE days > {})".format, st.integers(0, 30)),
)
QUERIES = st.builds(
    "SELECT {}{} FROM book{}{}{}".format,
    st.sampled_from(["", "DISTINCT "]),
    st.one_of(COLUMNS, st.builds("count({})".format, COLUMNS), st.builds("max({}), title".format, COLUMNS)),
    st.one_of(st.just(""), st.builds(" WHERE {} {} {}".format, PREDICATES, st.sampled_from(["AND", "OR"]), PREDICATES)),
    st.one_of(st.just(""), st.builds(" GROUP BY {} HAVING count(*) > 1".format, COLUMNS)),
    st.one_of(st.just(""), st.builds(" ORDER BY {} DESC LIMIT {}".format, COLUMNS, st.integers(1, 5))),
)


@given(
    sql=st.one_of(QUERIES, st.builds("{} EXCEPT {}".format, *[st.builds("SELECT {} FROM book".format, COLUMNS)] * 2))
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutants_differ_parse_and_repeat(sql: str, schema: Schema) -> None:
    found = mutants(sql, schema)
    texts = [mutant.sql for mutant in found]
    assert texts and len(set(texts)) == len(texts)
    assert sql not in texts and parse(sql).sql("sqlite") not in texts
    assert all(parse(text) for text in texts)
    assert mutants(sql, schema) == found
    assert len(mutants(sql)) > 0  # also without knowing the database


def test_what_does_not_parse_has_no_mutants() -> None:
    assert mutants("SELECT FROM WHERE") == []
    assert mutants("DROP TABLE book") == []


# Instances


@pytest.mark.parametrize("number", range(12))
def test_an_instance_keeps_schema_keys_and_habits(number: int, library: Path, tmp_path: Path) -> None:
    made = instance(library, tmp_path / "made.sqlite", number)
    objects = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
    assert query(made, objects) == query(library, objects)
    assert query(made, "PRAGMA integrity_check") == [("ok",)]  # UNIQUE, NOT NULL and CHECK with it
    assert query(made, "PRAGMA foreign_key_check") == []
    assert [query(made, sql) for sql in REFERENCES.split(";")] == [[(0,)]] * 9
    assert {name: query(made, sql)[0][0] for name, sql in HABITS.items()} == dict.fromkeys(HABITS, 0)
    assert query(made, "SELECT count(*) FROM loan") != [(0,)]
    assert query(made, "SELECT count(*) FROM fine") != [(0,)]  # the library has none
    assert query(made, "SELECT * FROM loan ORDER BY 1") != query(library, "SELECT * FROM loan ORDER BY 1")


def test_instances_vary_what_the_schema_leaves_open(library: Path, tmp_path: Path) -> None:
    made = [instance(library, tmp_path / f"{number}.sqlite", number) for number in range(24)]

    def seen(sql: str) -> set[Any]:
        return {row[0] for path in made for row in query(path, sql)}

    assert seen("SELECT count(*) > 0 FROM publisher WHERE id NOT IN (SELECT publisher_id FROM book)") == {0, 1}
    assert seen("SELECT died IS NULL FROM author") == {0, 1}
    assert seen("SELECT count(*) < count(DISTINCT days) + 1 FROM loan") == {0, 1}  # ties and no ties
    assert {299, 300, 301} <= seen("SELECT pages FROM book")  # at and beside a literal
    assert seen("SELECT title LIKE '%messenger' FROM book WHERE title LIKE '%messenger%'") == {0, 1}
    assert len(seen("SELECT count(*) FROM loan")) > 5
    assert seen("SELECT in_print FROM book") == {"T", "F"}


def test_the_same_seed_gives_the_same_bytes(library: Path, tmp_path: Path) -> None:
    one, same, other = (instance(library, tmp_path / str(i), 5, seed) for i, seed in enumerate([1, 1, 2]))
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()


def test_a_large_table_is_sampled_with_what_it_refers_to_and_what_golds_ask_for(tmp_path: Path) -> None:
    script = """
        CREATE TABLE town (id INTEGER PRIMARY KEY, name TEXT);
        CREATE TABLE visit (id INTEGER PRIMARY KEY, town_id INTEGER REFERENCES town (id), guest TEXT);
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
            INSERT INTO town SELECT i, 'town ' || i FROM n;
        INSERT INTO visit SELECT id, id, 'guest ' || (id % 7) FROM town;
    """
    path = database(tmp_path / "large.sqlite", script)
    schema = reflect("large", path)
    facts = read_golds(["SELECT count(*) FROM town WHERE name = 'town 19999'"], schema)
    source = read_source(path, schema, facts, 0)
    rows = {table.name: table.rows for table in source.tables}
    assert all(len(found) < 1000 for found in rows.values())
    assert (19999, "town 19999") in rows["town"]
    assert {town for _, town, _ in rows["visit"][:50]} <= {town for town, _ in rows["town"]}
    made = tmp_path / "made.sqlite"
    rng = random.Random(0)
    write_instance(source, make_rows(source, facts, style(4, rng), rng), made)
    assert 0 < query(made, "SELECT count(*) FROM town")[0][0] <= 120


def test_text_that_is_not_unicode_does_not_stop_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "latin.sqlite"
    database(path, "CREATE TABLE t (name TEXT); INSERT INTO t VALUES (CAST(x'4be96c6e' AS TEXT)), ('plain')")
    schema = reflect("latin", path)
    source = read_source(path, schema, [], 0)
    assert {row[0] for row in source.tables[0].rows} == {"K\ufffdln", "plain"}


# Which instances count for a gold


@pytest.mark.parametrize(
    ("gold", "values", "usable"),
    [
        ("SELECT name FROM t ORDER BY n LIMIT 1", "('a', 1), ('b', 2)", True),
        ("SELECT name FROM t ORDER BY n LIMIT 1", "('a', 1), ('b', 1)", False),
        ("SELECT name FROM t ORDER BY n LIMIT 1", "('a', 1), ('a', 1)", False),  # looks alike, but there are two
        ("SELECT name FROM t ORDER BY n LIMIT 1", "('a', NULL), ('b', 1)", False),
        ("SELECT name FROM t ORDER BY n DESC LIMIT 1", "('a', NULL), ('b', 1)", False),
        ("SELECT name FROM t ORDER BY n DESC LIMIT 5", "('a', 3), ('b', 1)", True),
        ("SELECT name FROM t ORDER BY n", "('a', 1), ('b', 1)", False),  # equal predictions may order ties otherwise
        ("SELECT name FROM t GROUP BY name ORDER BY count(*) DESC LIMIT 1", "('a', 1), ('b', 1)", False),
        ("SELECT name FROM t GROUP BY name ORDER BY count(*) DESC LIMIT 1", "('a', 1), ('b', 1), ('b', 2)", True),
        ("SELECT n FROM t WHERE name = (SELECT name FROM t ORDER BY n LIMIT 1)", "('a', 1), ('b', 1)", False),
        ("SELECT n, name FROM t GROUP BY n", "('a', 1), ('b', 1)", False),
        ("SELECT n, name FROM t GROUP BY n", "('a', 1), ('b', 2)", True),
        ("SELECT max(n), name FROM t", "('a', 1), ('b', 2)", True),
        ("SELECT name FROM t WHERE n > 1", "('a', 1), ('b', 1)", True),
        ("SELECT group_concat(n) FROM t", "('a', 1), ('b', 2), ('c', 3)", False),
        ("SELECT DISTINCT name FROM t", "('Ann', 1), ('ANN', 2), ('ann', 3)", False),  # of which spelling is open
        ("SELECT nonsense FROM t", "('a', 1)", False),
    ],
)
def test_an_instance_counts_where_the_gold_leaves_nothing_open(
    gold: str, values: str, usable: bool, sandbox: Sandbox, tmp_path: Path
) -> None:
    path = database(
        tmp_path / "t.sqlite", f"CREATE TABLE t (name TEXT COLLATE NOCASE, n REAL); INSERT INTO t VALUES {values}"
    )
    write_twin(path, tmp_path / "twin.sqlite", random.Random(1))
    found = on_candidate(sandbox, path, tmp_path / "twin.sqlite", {7: Target(gold, (), 0)})
    assert (7 in found) == usable


def test_the_twin_has_the_same_rows_in_another_order(library: Path, tmp_path: Path) -> None:
    write_twin(library, tmp_path / "twin.sqlite", random.Random(0))
    for table in ("book", "loan", "writes", "long_book"):
        rows, others = (query(path, f"SELECT * FROM {table}") for path in (library, tmp_path / "twin.sqlite"))
        assert sorted(rows, key=str) == sorted(others, key=str)
        assert rows != others


def test_cuts_find_the_last_row_and_the_next() -> None:
    cut, inner = cuts(
        "SELECT a AS x FROM t WHERE b = (SELECT c FROM u ORDER BY d LIMIT 2) ORDER BY x, e LIMIT 1 OFFSET 1"
    )
    assert (cut.sql, cut.keys, cut.rows) == (
        "SELECT a AS x, a, e FROM t WHERE b = (SELECT c FROM u ORDER BY d LIMIT 2) ORDER BY x, e",
        2,
        2,
    )
    assert cut.is_tie([("p", 1, 1), ("q", 1, 2), ("r", 1, 2)])
    assert not cut.is_tie([("p", 1, 1), ("q", 1, 2), ("q", 1, 3)])
    assert not cut.is_tie([("p", 1, 1), ("q", 1, 1)])  # nothing is cut off
    assert (inner.sql, inner.keys, inner.rows) == ("SELECT c, d FROM u ORDER BY d", 1, 2)
    assert cuts("SELECT a FROM t ORDER BY a") == cuts("not sql") == []
    assert nulls_elsewhere("SELECT a FROM t ORDER BY a, b DESC") == (
        "SELECT a FROM t ORDER BY a NULLS LAST, b DESC NULLS FIRST"
    )
    assert nulls_elsewhere("SELECT a FROM t") is None


def test_mutants_that_do_not_run_are_no_mutants(sandbox: Sandbox, library: Path, schema: Schema) -> None:
    gold = "SELECT title FROM book WHERE pages > 300"
    found = on_original(sandbox, library, gold, mutants(gold, schema))
    assert found is not None and found.mutants and found.dead
    broken = "SELECT title FROM book WHERE no_such_column > 300"
    assert on_original(sandbox, library, broken, mutants(broken, schema)) is None
    assert on_original(sandbox, library, "SELECT random()", []) is None


def test_a_gold_that_is_slow_on_the_original_has_instances_all_the_same(tmp_path: Path) -> None:
    script = """
        CREATE TABLE t (a INTEGER, b INTEGER);
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
            INSERT INTO t SELECT i, i % 100 FROM n;
    """
    path = database(tmp_path / "slow.sqlite", script)
    gold = "SELECT count(*) FROM t AS x, t AS y WHERE x.a < y.b"
    suite = build_suite("slow", path, [gold], 2, tmp_path / "cache")
    assert len(suite.usable(gold)) == 3 and suite.report.mutants == 0
    wrong = "SELECT count(*) FROM t AS x, t AS y WHERE x.a <= y.b"
    assert verdicts(suite.usable(gold)[1:], gold, [gold, wrong]) == {gold: "equal", wrong: "different"}


def test_choice_prefers_what_is_not_yet_killed_and_golds_with_rows() -> None:
    target = Target("g", tuple(mutants("SELECT a FROM t WHERE b > 1")[:4]), dead=0b0001)
    outcomes = {
        0: Outcome(True, 0b0011),
        1: Outcome(True, 0b0110),
        2: Outcome(False, 0b1000),
        3: Outcome(True, 0b0001),
        4: Outcome(False, 0b0000),
    }
    assert choose(target, outcomes, 2) == [1, 0]
    assert choose(target, outcomes, 9) == [1, 0, 3, 2]


# Suites


def test_a_suite_kills_more_than_the_original(suite: Suite, library: Path) -> None:
    report = suite.report
    assert report.golds == len(GOLDS) and report.alone == 0
    assert report.mutants - report.killed_original > 2 * (report.mutants - report.killed_suite)
    assert report.killed_suite > 0.9 * report.mutants
    assert report.killed_suite == sum(later for _, _, later in report.kinds.values())
    assert all(first <= later <= total for total, first, later in report.kinds.values())
    assert suite.instances[0] == library
    for gold in GOLDS:
        usable = suite.usable(gold)
        assert usable[0] == library and 1 < len(usable) <= 7
    with pytest.raises(KeyError):
        suite.usable("SELECT 1")


@pytest.mark.parametrize("entry", STATEMENTS, ids=GOLDS)
def test_wrong_statements_are_unmasked_and_right_ones_are_not(entry: dict[str, Any], suite: Suite) -> None:
    found = verdicts(suite.usable(entry["gold"]), entry["gold"], entry["right"] + entry["wrong"])
    assert {sql: found[sql] for sql in entry["right"]} == dict.fromkeys(entry["right"], "equal")
    assert {sql: found[sql] for sql in entry["wrong"]} == dict.fromkeys(entry["wrong"], "different")


def test_some_wrong_statements_agree_on_the_original(sandbox: Sandbox, library: Path) -> None:
    lucky = 0
    for entry in STATEMENTS:
        gold, *others = sandbox.execute(library, [entry["gold"], *entry["wrong"]])
        lucky += sum(other.status == "ran" and sorted(other.rows) == sorted(gold.rows) for other in others)
    assert lucky >= 10


@pytest.mark.parametrize("gold", GOLDS)
def test_rewrites_stay_equal(gold: str, suite: Suite, schema: Schema) -> None:
    others = list(rewrites(gold, schema).values())
    assert len(others) >= 2
    assert verdicts(suite.usable(gold), gold, others) == dict.fromkeys(others, "equal")


def test_killed_mutants_are_different(suite: Suite, schema: Schema) -> None:
    alive = total = 0
    for gold in GOLDS:
        texts = [mutant.sql for mutant in mutants(gold, schema)]
        found = verdicts(suite.usable(gold), gold, texts, policy="spider")
        assert set(found.values()) <= {"equal", "different"}
        alive += list(found.values()).count("equal")
        total += len(texts)
    assert (total, total - alive) == (suite.report.mutants, suite.report.killed_suite)


def test_a_gold_that_cannot_be_used_has_only_the_original(library: Path, tmp_path: Path) -> None:
    golds = ["SELECT broken FROM book", "SELECT random()", "SELECT title FROM book WHERE pages > 100"]
    suite = build_suite("library", library, golds, 2, tmp_path)
    assert suite.usable(golds[0]) == suite.usable(golds[1]) == (library,)
    assert len(suite.usable(golds[2])) == 3
    assert (suite.report.golds, suite.report.alone) == (3, 2)


# The cache


def test_a_suite_is_built_once(library: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def build(**changed: Any) -> Suite:
        given = {"golds": GOLDS[:2], "k": 2, "seed": 0} | changed
        return build_suite(
            "a b/c", library, cache=tmp_path / "new" / "cache", progress=lambda *n: told.append(n), **given
        )

    first = build()
    assert told[0] == (0, told[-1][1]) and told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    count = len(told)
    again = build(golds=[*reversed(GOLDS[:2]), GOLDS[0]])
    assert again == first and len(told) == count
    assert {path.name for path in (tmp_path / "new" / "cache").iterdir() if not path.name.startswith(".")} == {
        first.instances[1].parent.name
    }
    others = [build(seed=1), build(k=3), build(golds=GOLDS[:3])]
    assert len({other.instances[1].parent for other in [first, *others]}) == 4
    first.instances[1].unlink()
    mended = build()
    assert mended == first and all(path.is_file() for path in mended.instances)
    (first.instances[1].parent / "suite.json").write_text("{")
    assert build() == first


def test_workers_change_nothing_but_the_time(library: Path, tmp_path: Path) -> None:
    one, three = (build_suite("l", library, GOLDS[:4], 3, tmp_path / str(n), workers=n) for n in (1, 3))
    assert one.chosen == three.chosen and one.report == three.report
    assert [path.read_bytes() for path in one.instances] == [path.read_bytes() for path in three.instances]


def test_another_content_of_the_database_is_another_suite(tmp_path: Path) -> None:
    path = database(tmp_path / "t.sqlite", "CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1), (2), (3)")
    first = build_suite("t", path, ["SELECT a FROM t"], 1, tmp_path / "cache")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO t VALUES (4)")
        connection.commit()
    assert build_suite("t", path, ["SELECT a FROM t"], 1, tmp_path / "cache").instances[1] != first.instances[1]


def _build_in_process(library: Path, cache: Path, results: Any) -> None:
    suite = build_suite("library", library, GOLDS[:3], 2, cache)
    results.put([str(path) for path in suite.instances])


def test_two_processes_build_one_suite(library: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_build_in_process, args=(library, tmp_path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    one, other = results.get(timeout=120), results.get(timeout=120)
    for process in processes:
        process.join(timeout=60)
    assert one == other and all(Path(path).is_file() for path in one)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_what_a_killed_builder_left_is_cleared(library: Path, tmp_path: Path) -> None:
    suite = build_suite("library", library, GOLDS[:1], 1, tmp_path)
    folder = suite.instances[1].parent
    draft = tmp_path / f".{folder.name}.draft"
    folder.rename(draft)
    (draft / "instance-9999.sqlite").write_bytes(b"half of a file")
    again = build_suite("library", library, GOLDS[:1], 1, tmp_path)
    assert again == suite and not draft.exists()
    assert {path.name for path in folder.iterdir()} == {"suite.json", *(path.name for path in suite.instances[1:])}


def test_mistakes_are_told(library: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1 instance"):
        build_suite("library", library, GOLDS, 0, tmp_path)
    with pytest.raises(UserError, match=r"does not exist|cannot be"):
        build_suite("library", tmp_path / "none.sqlite", GOLDS, 1, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises((UserError, Fault), match="cannot be"):
        build_suite("library", library, GOLDS[:1], 1, tmp_path / "file")


# Spider dev


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_spider_dev_golds_rewritten_stay_equal_and_their_mutants_die(data_root: Path, tmp_path: Path) -> None:
    """Under the policy `spider`, on the instances: what ties in the originals do is no matter of suites."""
    golds: dict[str, dict[str, None]] = {}
    for row in json.loads((data_root / "spider" / "dev.json").read_text()):
        golds.setdefault(row["db_id"], {})[spider_text(row["query"], keep_distinct=False)] = None
    punished, tried, reports = [], 0, []
    for db_id, statements in golds.items():
        path = data_root / "spider" / "database" / db_id / f"{db_id}.sqlite"
        suite = build_suite(db_id, path, list(statements), 4, tmp_path, workers=os.cpu_count() or 1)
        reports.append(suite.report)
        schema = reflect(db_id, path)
        for gold in statements:
            texts = list(rewrites(gold, schema).values())
            found = verdicts(suite.usable(gold)[1:], gold, texts, policy="spider")
            tried += len(found)
            punished += [(gold, sql, status) for sql, status in found.items() if status != "equal"]
    assert punished == [] and tried > 2000
    mutated = sum(report.mutants for report in reports)
    assert sum(report.killed_original for report in reports) < 0.78 * mutated
    assert sum(report.killed_suite for report in reports) > 0.88 * mutated
