"""Execution within synthesis: what is kept, why the rest is dropped, and that workers and batches change nothing."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spftsql.config import SandboxConfig
from spftsql.databases.reflection import reflect
from spftsql.databases.values import Values
from spftsql.records import Statement, Verdict, VerificationRequest
from spftsql.synthesis.accepting import Executor, Tally, accepted, counts_of, local_executors
from spftsql.synthesis.checks import checks_of, executed, objection
from spftsql.synthesis.filling import Sampler
from spftsql.synthesis.joins import key_graph
from spftsql.synthesis.library import library
from spftsql.synthesis.rendering import compile_template
from spftsql.synthesis.rules import Filled, broken_column_rule, broken_value_rule
from spftsql.synthesis.seen import Seen, key_of
from spftsql.synthesis.templates import Bindings, Template, extract
from spftsql.synthesis.uses import uses_of

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHECKED = yaml.safe_load((FIXTURES / "synthesis/checks.yaml").read_text(encoding="utf-8"))
TOWNS = ["Bern", "Oslo", "Turin", "Zug"]


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two databases of one structure, with enough rows for most templates."""
    rng, paths = random.Random(0), {}
    for name in ("north", "south"):
        path = paths[name] = tmp_path_factory.mktemp(name) / f"{name}.sqlite"
        with sqlite3.connect(path) as connection:
            connection.executescript(
                """CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, town TEXT, born DATE, points INT);
                CREATE TABLE sale (id INTEGER PRIMARY KEY, customer_id INT REFERENCES customer (id),
                    day DATE, total REAL);
                CREATE TABLE hollow (id INTEGER PRIMARY KEY, word TEXT);"""
            )
            connection.executemany(
                "INSERT INTO customer VALUES (?, ?, ?, ?, ?)",
                [(i, f"{name} {i}", rng.choice(TOWNS), f"19{50 + i % 50}-0{1 + i % 9}-11", i * i) for i in range(60)],
            )
            connection.executemany(
                "INSERT INTO sale VALUES (?, ?, ?, ?)",
                [(i, rng.randrange(60), f"2024-0{1 + i % 9}-0{1 + i % 8}", i / 4) for i in range(150)],
            )
    return paths


def sampler_of(shops: dict[str, Path], pool: Sequence[Template], **options: object) -> Sampler:
    schemas = {name: reflect(name, path) for name, path in shops.items()}
    settings: dict[str, object] = {"seed": 3, "column_substitution": 1.0} | options
    return Sampler(pool, schemas, shops, **settings)  # type: ignore[arg-type]


def kept(
    shops: dict[str, Path], count: int, workers: int = 1, batch_size: int | None = 64, **options: object
) -> tuple[list[Statement], Tally]:
    tally = Tally()
    sampler = sampler_of(shops, library(), **options)
    with local_executors({n: str(p) for n, p in shops.items()}, SandboxConfig(), workers) as executors:
        return list(accepted(sampler, executors, count, batch_size, tally)), tally


def test_workers_and_batches_change_nothing(shops: dict[str, Path]) -> None:
    first, tally = kept(shops, 600)
    assert len(first) == 600
    for workers, batch_size in ((2, 64), (2, 7), (1, 1000), (1, None)):
        again, counts = kept(shops, 600, workers, batch_size)
        assert again == first
        assert counts_of(counts) == counts_of(tally)
    other, _ = kept(shops, 600, seed=4)
    assert other != first


def test_what_is_kept_runs_and_says_something(shops: dict[str, Path]) -> None:
    made, tally = kept(shops, 400)
    assert len({(s.db_id, s.sql) for s in made}) == len({s.id for s in made}) == 400
    for statement in made:
        with sqlite3.connect(shops[statement.db_id]) as connection:
            rows = connection.execute(statement.sql).fetchall()
        assert any(cell is not None for row in rows for cell in row), statement.sql
        assert "hollow" not in statement.sql
    assert tally.accepted == 400 <= tally.drawn
    assert tally.dropped["empty"] > 0
    assert len({statement.template for statement in made}) > 80
    assert {statement.db_id for statement in made} == set(shops)


def test_what_is_kept_obeys_the_rules(shops: dict[str, Path]) -> None:
    """Read back from its SQL, as if it were a label."""
    schemas = {name: reflect(name, path) for name, path in shops.items()}
    values = {name: Values(path) for name, path in shops.items()}
    made, _ = kept(shops, 200)
    for statement in made:
        schema = schemas[statement.db_id]
        template, bindings = extract(statement.sql, schema)
        slots = compile_template(template.sql).scope_slots
        one = Filled(uses_of(template.sql), bindings, key_graph(schema), values[statement.db_id], slots)
        assert broken_column_rule(one) is None, statement.sql
        assert broken_value_rule(one) is None, statement.sql


def test_a_slow_executor_changes_nothing(shops: dict[str, Path]) -> None:
    """Whichever executor is late: what was drawn does not depend on who answers first."""
    databases = {name: str(path) for name, path in shops.items()}

    def late(executor: Executor, seconds: float) -> Executor:
        def call(batch: Sequence[VerificationRequest]) -> Sequence[Verdict]:
            time.sleep(seconds)
            return executor(batch)

        return call

    found = []
    for pauses in ((0.0, 0.02), (0.02, 0.0)):
        with local_executors(databases, SandboxConfig(), 2) as executors:
            slowed = [late(executor, pause) for executor, pause in zip(executors, pauses, strict=True)]
            found.append(list(accepted(sampler_of(shops, library()), slowed, 300, 50)))
    assert found[0] == found[1]


def labelled(shops: dict[str, Path], sql: str) -> Template:
    return extract(sql, reflect("north", shops["north"]))[0]


def answers(**fields: object) -> Executor:
    """An executor that gives every statement this verdict."""
    base = Verdict("", "north", "ran", "", 1.0, 1, False, "d", "sqlite")

    def call(batch: Sequence[VerificationRequest]) -> Sequence[Verdict]:
        return [replace(base, id=request.id, **fields) for request in batch]  # type: ignore[arg-type]

    return call


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": "error"}, "error"),
        ({"status": "timeout"}, "timeout"),
        ({"status": "truncated"}, "truncated"),
        ({"row_count": 0}, "empty"),
        ({"constant_null": True}, "constant-null"),
        ({"row_count": 3}, "same-result"),
    ],
)
def test_every_drop_has_its_reason(shops: dict[str, Path], fields: dict[str, object], reason: str) -> None:
    template = labelled(shops, "SELECT name FROM customer WHERE town = 'Oslo'")
    tally = Tally()
    sampler = sampler_of({"north": shops["north"]}, [template], column_substitution=0.0)
    made = list(accepted(sampler, [answers(**fields)], 10, tally=tally))
    assert len(made) == (reason == "same-result")
    assert tally.dropped[reason] == 4 - len(made)


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case["sql"])
def test_what_execution_says_against_a_statement(shops: dict[str, Path], case: dict[str, str]) -> None:
    """As a template that is filled with what it had, and as it stands."""
    sql, reason = case["sql"], case["reason"]
    template = labelled(shops, sql)
    template = replace(template, bindings=tuple(map(_unsaid, template.bindings)))
    only, tally = {"north": shops["north"]}, Tally()
    sampler = sampler_of(only, [template], column_substitution=0.0)
    statement, checks = Statement("1", "north", sql, "", "", 0), checks_of(sql)
    with local_executors({"north": str(shops["north"])}, SandboxConfig()) as executors:
        made = list(accepted(sampler, executors, 1, tally=tally))
        verdicts = executed([(statement, checks)], executors[0], at_once=False)
    assert objection(statement, checks, verdicts) == reason
    assert (len(made), tally.dropped[reason]) == ((0, 1) if reason else (1, 0))


@pytest.mark.parametrize(
    ("sql", "is_open", "choices", "conditions"),
    [
        ("SELECT name FROM customer WHERE town = 'Oslo' ORDER BY name", False, 0, 0),
        ("SELECT town, COUNT(*) FROM customer WHERE points > 7 GROUP BY town", False, 0, 0),
        ("SELECT name FROM customer ORDER BY town LIMIT 3", False, 1, 0),
        ("SELECT name FROM customer GROUP BY town ORDER BY COUNT(*) LIMIT 3", False, 2, 0),
        ("SELECT * FROM customer ORDER BY town LIMIT 3", True, 0, 0),
        ("SELECT name FROM customer WHERE points > (SELECT AVG(points) FROM customer)", True, 0, 0),
        ("SELECT town FROM customer GROUP BY town HAVING COUNT(*) > 2", False, 0, 1),
    ],
)
def test_what_a_template_asks_for(
    shops: dict[str, Path], sql: str, is_open: bool, choices: int, conditions: int
) -> None:
    """As little as its form asks for, and that as templates where it can be."""
    for text in (labelled(shops, sql).sql, sql):
        found = checks_of(text)
        asked = (found.open, len(found.pairs), len(found.conditions))
        assert asked == (is_open, choices, conditions)


def test_ties_are_asked_about_where_a_sum_is_sorted_too() -> None:
    """Only what asks for the order of a sum's rows may be left out for integers."""
    found = checks_of("SELECT town FROM customer GROUP BY town ORDER BY SUM(points ORDER BY name) DESC LIMIT 3")
    assert any("COLLATE BINARY DESC" in texts[1] for texts in found.choices)
    assert all("COLLATE BINARY DESC" not in texts[1] for texts in found.sums)


@pytest.mark.parametrize(
    ("sql", "executions"),
    [
        ("SELECT name, COUNT(*) FROM customer GROUP BY id", 1),
        ("SELECT name, COUNT(*) FROM customer JOIN sale ON customer.id = customer_id GROUP BY customer.id", 1),
        ("SELECT day, name FROM customer JOIN sale ON customer.id = customer_id GROUP BY customer.id", 3),
        ("SELECT name, COUNT(*) FROM customer GROUP BY town", 3),
        ("SELECT name FROM customer ORDER BY points DESC LIMIT 3", 1),
        ("SELECT total FROM sale ORDER BY day DESC LIMIT 3", 3),
        ("SELECT DISTINCT town FROM customer ORDER BY points LIMIT 3", 2),
        ("SELECT town, COUNT(*) FROM customer GROUP BY town HAVING AVG(points) > 900", 2),
        ("SELECT day, COUNT(*) FROM sale GROUP BY day HAVING SUM(total) > 20", 4),
        ("SELECT town, COUNT(*) FROM customer GROUP BY town HAVING AVG(points + 1) > 900", 4),
        ("SELECT name FROM customer GROUP BY town HAVING AVG(points) > 1000000", 1),
    ],
)
def test_what_is_known_is_not_asked(shops: dict[str, Path], sql: str, executions: int) -> None:
    """By keys and values, and by the statement's own result."""
    template = labelled(shops, sql)
    template = replace(template, bindings=tuple(map(_unsaid, template.bindings)))
    one = sampler_of({"north": shops["north"]}, [template], column_substitution=0.0).draw()
    assert one is not None
    asked: list[VerificationRequest] = []
    with local_executors({"north": str(shops["north"])}, SandboxConfig()) as executors:
        executed([(one.statement, one.checks)], lambda batch: (asked.extend(batch), executors[0](batch))[1], False)
    assert len(asked) == executions


def test_what_did_not_end_in_time_is_not_drawn_again_with_other_values(shops: dict[str, Path]) -> None:
    template = labelled(shops, "SELECT name FROM customer WHERE points > 7")
    tally, asked = Tally(), 0

    def slow(batch: Sequence[VerificationRequest]) -> Sequence[Verdict]:
        nonlocal asked
        asked += len(batch)
        return answers(status="timeout")(batch)

    sampler = sampler_of({"north": shops["north"]}, [template], column_substitution=0.0)
    first = sampler.draw()
    assert first is not None and not sampler.tell(first, accepted=False, in_time=False)
    assert sampler.draw() is None and sampler.counts["too-slow"] > 0
    assert not list(accepted(sampler_of(shops, library()), [slow], 5, tally=tally))
    assert asked == tally.dropped["timeout"] and tally.dropped["too-slow"] > 0


def _unsaid(bindings: Bindings) -> Bindings:
    """Bindings whose values are kept, and not judged by the rules."""
    return replace(bindings, unsaid=frozenset(bindings.values))


def test_what_is_kept_is_right_for_its_own_verifier(shops: dict[str, Path]) -> None:
    made, tally = kept(shops, 500)
    assert tally.dropped["not-deterministic"] > 0 < tally.dropped["no-effect"]
    requests = [VerificationRequest(one.id, one.db_id, one.sql, one.sql, "strict") for one in made]
    with local_executors({n: str(p) for n, p in shops.items()}, SandboxConfig()) as executors:
        assert {verdict.status for verdict in executors[0](requests)} == {"equal"}


def test_equal_counts_of_different_things_are_different_questions(shops: dict[str, Path]) -> None:
    template = labelled(shops, "SELECT COUNT(*) FROM customer WHERE town = 'Oslo'")
    only = {"north": shops["north"]}
    made = list(accepted(sampler_of(only, [template], column_substitution=0.0), [answers()], 10))
    assert len(made) == 4  # one for each town, all with one result


def test_equal_results_of_different_bounds_are_one_question(shops: dict[str, Path]) -> None:
    template = labelled(shops, "SELECT name FROM customer WHERE points > 100")
    only, tally = {"north": shops["north"]}, Tally()
    made = list(accepted(sampler_of(only, [template], column_substitution=0.0), [answers()], 10, tally=tally))
    assert len(made) == 1
    assert tally.dropped["same-result"] > 5


def test_a_limit_that_cuts_nothing_is_dropped(shops: dict[str, Path]) -> None:
    template = labelled(shops, "SELECT name FROM customer WHERE points > 100 ORDER BY points LIMIT 5")
    only, tally = {"north": shops["north"]}, Tally()
    sampler = sampler_of(only, [template], column_substitution=0.0)
    made = list(accepted(sampler, [answers(row_count=4)], 1000, tally=tally))
    assert tally.dropped["limit-without-effect"] > 0
    assert all(int(s.sql.rpartition(" ")[2]) <= 4 for s in made)


def test_faults_are_tried_again_and_never_verdicts(shops: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spftsql.synthesis.accepting._PAUSES_S", (0.0, 0.0))
    template = labelled(shops, "SELECT name FROM customer WHERE town = 'Oslo'")
    only = {"north": shops["north"]}
    calls: Counter[str] = Counter()

    def flaky(batch: Sequence[VerificationRequest]) -> Sequence[Verdict]:
        calls.update(request.id for request in batch)
        good = answers()(batch)
        return [replace(v, status="unverifiable", fault="lost") if calls[v.id] == 1 else v for v in good]

    made = list(accepted(sampler_of(only, [template], column_substitution=0.0), [flaky], 10))
    assert len(made) == 4
    tally = Tally()
    broken = answers(status="unverifiable", fault="gone")
    assert not list(accepted(sampler_of(only, [template], column_substitution=0.0), [broken], 10, tally=tally))
    assert tally.dropped["fault"] == 4


def test_no_more_than_asked_for_of_one_structure(shops: dict[str, Path]) -> None:
    template = labelled(shops, "SELECT name FROM customer WHERE born > '1960-01-01'")
    only = {"north": shops["north"]}
    for most in (1, 3):
        tally = Tally()
        sampler = sampler_of(only, [template], column_substitution=0.0, per_structure=most)
        with local_executors({"north": str(shops["north"])}, SandboxConfig()) as executors:
            assert len(list(accepted(sampler, executors, 50, tally=tally))) == most
        assert tally.dropped["structure"] > 0


def test_closing_early_leaves_no_thread(shops: dict[str, Path]) -> None:
    before = threading.active_count()
    with local_executors({n: str(p) for n, p in shops.items()}, SandboxConfig()) as executors:
        stream = accepted(sampler_of(shops, library()), executors, 1000)
        next(stream)
        stream.close()
        assert threading.active_count() <= before


def test_weights_of_failures_choose_templates(shops: dict[str, Path]) -> None:
    chosen = {template.id for template in library()[:5]}
    weights = {template.id: float(template.id in chosen) for template in library()}
    made, _ = kept(shops, 50, weights=weights)
    assert {statement.template for statement in made} <= chosen


@given(keys=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20), max_size=300))
def test_seen_counts_as_a_counter_does(keys: list[int]) -> None:
    seen, counter = Seen(), Counter[int]()
    for key in keys:
        assert seen.add(key) == counter[key]
        counter[key] += 1
    assert len(seen) == len(counter)
    assert all(seen.count(key) == counter[key] and key in seen for key in counter)
    assert 1 not in seen or 1 in counter


def test_seen_grows_and_stays_small() -> None:
    seen = Seen()
    for number in range(20_000):
        assert not seen.add(key_of(str(number)))
    assert all(key_of(str(number)) in seen for number in range(0, 20_000, 7))
    assert key_of("20000") not in seen
    assert seen.bytes <= 27 * len(seen)
