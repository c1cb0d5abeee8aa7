"""Filling: valid, canonical, deterministic SQL over the database, and an end where nothing is left to make."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.databases.values import Values
from spftsql.records import Example, Statement
from spftsql.synthesis.canonical import canonical_sql
from spftsql.synthesis.filling import Sampler, fill, synthesize
from spftsql.synthesis.library import library, read_templates, write_templates
from spftsql.synthesis.templates import Template, extract, extract_pool

CASES = Path(__file__).parents[1] / "fixtures" / "templates"
LABELS = [case["sql"] for case in yaml.safe_load((CASES / "templates.yaml").read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript((CASES / "shop.sql").read_text(encoding="utf-8"))
    return path


def pool_of(labels: list[str], schema: Schema) -> list[Template]:
    pool, problems = extract_pool(
        [Example(str(i), schema.db_id, sql, sql, "label", "") for i, sql in enumerate(labels)], {schema.db_id: schema}
    )
    assert not problems
    return pool


def statements(path: Path, labels: list[str], count: int = 200, **options: object) -> list[Statement]:
    schema = reflect("shop", path)
    settings: dict[str, object] = {"seed": 0, "column_substitution": 0.5, "weights": None, "exclude": set()} | options
    return list(synthesize(pool_of(labels, schema), {"shop": schema}, {"shop": path}, count, **settings))  # type: ignore[arg-type]


def test_statements_run_are_canonical_and_distinct(shop: Path) -> None:
    schema, connection = reflect("shop", shop), sqlite3.connect(shop)
    found = statements(shop, LABELS)
    assert len(found) > 100
    assert len({statement.sql for statement in found}) == len({statement.id for statement in found}) == len(found)
    for statement in found:
        connection.execute(statement.sql).fetchall()
        assert canonical_sql(statement.sql, schema) == statement.sql


@given(seed=st.integers(0, 2**32), substitution=st.sampled_from([0.0, 0.5, 1.0]), which=st.integers(0, len(LABELS) - 1))
def test_filled_slots_have_their_type(shop: Path, seed: int, substitution: float, which: int) -> None:
    schema = reflect("shop", shop)
    (template,) = pool_of([LABELS[which]], schema)
    filled = fill(template, template.bindings, schema, Values(shop), random.Random(seed), substitution)
    if filled is None:
        return
    _, bindings = filled
    for slot in template.slots:
        if slot.role == "column":
            table, name = bindings.columns[slot.name]
            column = schema.table(table).column(name)  # type: ignore[union-attr]
            assert column is not None and column.kind == slot.kind
    assert set(bindings.values) == {slot.name for slot in template.slots if slot.role == "value"}


def test_labels_are_never_produced(shop: Path) -> None:
    label = "SELECT name FROM customer WHERE City = 'Turin'"
    found = {s.sql for s in statements(shop, [label], column_substitution=0.0, exclude={label})}
    assert found == {"SELECT name FROM customer WHERE City = 'Bern'", "SELECT name FROM customer WHERE City = 'Oslo'"}


def test_a_template_without_freedom_ends(shop: Path) -> None:
    label = "SELECT COUNT(*) FROM customer"
    assert statements(shop, [label], column_substitution=0.0, exclude={label}) == []
    assert [s.sql for s in statements(shop, [label], column_substitution=0.0)] == [label]


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("SELECT a.title FROM piece AS a JOIN piece AS b ON a.parent = b.id WHERE b.title = 'p1'",
         "SELECT employee1.name FROM employee AS employee1 JOIN employee AS employee2 "
         "ON employee1.boss_id = employee2.id WHERE employee2.name = 'Kim'"),
        ("SELECT a.title, b.title FROM piece AS a JOIN piece AS b ON a.id = b.parent",
         "SELECT employee1.name, employee2.name FROM employee AS employee1 JOIN employee AS employee2 "
         "ON employee1.id = employee2.boss_id"),
    ],
)  # fmt: skip
def test_self_joins_of_labels_find_other_tables(shop: Path, tmp_path: Path, label: str, found: str) -> None:
    path = tmp_path / "kit.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE piece (id INTEGER PRIMARY KEY, title TEXT, parent INT REFERENCES piece (id));"
            "INSERT INTO piece VALUES (1, 'p1', NULL), (2, 'p2', 1), (3, 'p3', 1);"
        )
    schemas = {"kit": reflect("kit", path), "shop": reflect("shop", shop)}
    pool, problems = extract_pool([Example("1", "kit", label, label, "label", "")], schemas)
    assert not problems
    files = {"kit": path, "shop": shop}
    made = {s.sql for s in synthesize(pool, schemas, files, 50, 0, 1.0, None, ())}
    assert found in made
    back = [s.sql for s in synthesize(pool, schemas, {"kit": path}, 50, 0, 0.0, None, ())]
    assert all("piece1" in sql for sql in back) and back


WEDDINGS = """
CREATE TABLE church (id INTEGER PRIMARY KEY, title TEXT);
CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, age INT);
CREATE TABLE wedding (church INT REFERENCES church (id), he INT REFERENCES person (id), she INT REFERENCES person (id),
                      year INT);
CREATE TABLE hobby (person INT REFERENCES person (id), hobby TEXT);
INSERT INTO church VALUES (1, 'St Anna'), (2, 'St Paul');
INSERT INTO person VALUES (1, 'Ada', 40), (2, 'Bo', 41), (3, 'Cy', 42), (4, 'Di', 43);
INSERT INTO wedding VALUES (1, 1, 2, 2001), (2, 3, 4, 2002), (1, 3, 2, 2003);
INSERT INTO hobby VALUES (1, 'chess'), (2, 'chess'), (2, 'go'), (3, 'go');
"""


@pytest.mark.parametrize(
    ("label", "joined"),
    [
        (
            "SELECT b.name, c.name FROM wedding AS a JOIN person AS b ON a.he = b.id JOIN person AS c ON a.she = c.id",
            {
                "FROM flight JOIN airport AS airport1 ON flight.origin = airport1.id "
                "JOIN airport AS airport2 ON flight.goal = airport2.id",
                "FROM flight JOIN airport AS airport1 ON flight.goal = airport1.id "
                "JOIN airport AS airport2 ON flight.origin = airport2.id",
            },
        ),
        (
            "SELECT d.title FROM wedding AS a JOIN person AS b ON a.he = b.id JOIN person AS c ON a.she = c.id "
            "JOIN church AS d ON a.church = d.id WHERE b.age > 40 OR c.age > 40",
            {
                "FROM flight JOIN airport AS airport1 ON flight.origin = airport1.id "
                "JOIN airport AS airport2 ON flight.goal = airport2.id JOIN airline ON flight.airline = airline.id",
                "FROM flight JOIN airport AS airport1 ON flight.goal = airport1.id "
                "JOIN airport AS airport2 ON flight.origin = airport2.id JOIN airline ON flight.airline = airline.id",
            },
        ),
        (
            "SELECT p.name FROM person AS p JOIN hobby AS a ON p.id = a.person JOIN hobby AS b ON p.id = b.person "
            "WHERE a.hobby = 'chess' AND b.hobby = 'go'",
            {
                "FROM airline JOIN office AS office1 ON airline.id = office1.airline "
                "JOIN office AS office2 ON airline.id = office2.airline",
                "FROM airport JOIN office AS office1 ON airport.id = office1.airport "
                "JOIN office AS office2 ON airport.id = office2.airport",
            },
        ),
    ],
    ids=["two keys to one table", "and a third table", "two children of one row"],
)
@pytest.mark.parametrize("stored", [False, True], ids=["labels", "a file of templates"])
def test_self_joins_with_other_tables_find_other_tables(
    tmp_path: Path, label: str, joined: set[str], stored: bool
) -> None:
    files = {name: tmp_path / f"{name}.sqlite" for name in ("wedding", "flight")}
    flights = (CASES / "flights.sql").read_text(encoding="utf-8")
    for path, script in zip(files.values(), (WEDDINGS, flights), strict=True):
        with sqlite3.connect(path) as connection:
            connection.executescript(script)
    schemas = {name: reflect(name, path) for name, path in files.items()}
    pool, problems = extract_pool([Example("1", "wedding", label, label, "label", "")], schemas)
    assert not problems
    if stored:
        (tmp_path / "templates.jsonl").write_text(write_templates(pool, schemas), encoding="utf-8")
        pool = read_templates(tmp_path / "templates.jsonl")
    made = [s for s in synthesize(pool, schemas, files, 100, 0, 1.0, None, ()) if s.db_id == "flight"]
    assert {"FROM" + s.sql.split(" FROM")[1].split(" WHERE")[0] for s in made} == joined
    with sqlite3.connect(files["flight"]) as connection:
        for statement in made:
            connection.execute(statement.sql)
            assert canonical_sql(statement.sql, schemas["flight"]) == statement.sql
            assert extract(statement.sql, schemas["flight"])[0].sql == pool[0].sql


def test_a_self_join_that_a_database_cannot_hold_gives_nothing(shop: Path, tmp_path: Path) -> None:
    path = tmp_path / "wedding.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(WEDDINGS)
    schemas = {"wedding": reflect("wedding", path), "shop": reflect("shop", shop)}
    label = "SELECT b.name FROM wedding AS a JOIN person AS b ON a.he = b.id JOIN person AS c ON a.she = c.id"
    pool, _ = extract_pool([Example("1", "wedding", label, label, "label", "")], schemas)
    sampler = Sampler(pool, {"shop": schemas["shop"]}, {"shop": shop}, 0, 1.0)
    assert sampler.draw() is None and set(sampler.counts) == {"no-columns"}


def test_a_glob_keeps_its_wildcards(shop: Path) -> None:
    found = [s.sql for s in statements(shop, ["SELECT name FROM customer WHERE City GLOB '*ur*'"])]
    assert found and all("GLOB '*" in sql and "*'" in sql for sql in found)


def test_words_of_a_label_stay_with_its_columns(shop: Path) -> None:
    label = "SELECT title, CASE WHEN price > 20 THEN 'dear' ELSE 'cheap' END FROM product"
    assert statements(shop, [label], column_substitution=1.0) == []
    assert len(statements(shop, [label], column_substitution=0.0)) > 1


def test_weights_choose_templates(shop: Path) -> None:
    schema = reflect("shop", shop)
    wanted = pool_of(LABELS, schema)[0].id
    weights = {template.id: 0.0 for template in pool_of(LABELS, schema)} | {wanted: 1.0}
    assert {s.template for s in statements(shop, LABELS, weights=weights)} == {wanted}


def test_new_columns_join_over_keys(shop: Path) -> None:
    label = LABELS[9]  # customer, order, line and product
    found = {s.sql for s in statements(shop, [label], column_substitution=1.0)}
    assert any(" JOIN " in sql for sql in found)
    assert all("ON" in sql for sql in found if " JOIN " in sql)


SCRIPT = """
import sys
from pathlib import Path
from spftsql.databases.reflection import reflect
from spftsql.records import Example
from spftsql.synthesis.filling import synthesize
from spftsql.synthesis.templates import extract_pool
path = Path(sys.argv[1])
schema = reflect("shop", path)
examples = [Example(str(i), "shop", sql, sql, "label", "") for i, sql in enumerate(sys.argv[2:])]
pool, _ = extract_pool(examples, {"shop": schema})
for statement in synthesize(pool, {"shop": schema}, {"shop": path}, 100, 7, 0.5, None, set()):
    print(statement.sql, statement.bindings)
"""


def test_same_seed_same_statements_in_any_process(shop: Path) -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(shop), *LABELS],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 100


def test_values_of_a_column(shop: Path) -> None:
    values = Values(shop)
    assert values.column("customer", "City") == [("Turin", 2), ("Bern", 1), ("Oslo", 1)]
    assert values.column("customer", "born")[0] == ("1985-05-06", 1)
    drawn = {values.draw_row(random.Random(i), "customer", ["name", "City"]) for i in range(50)}
    assert drawn == {("Ada", "Turin"), ("Bo", "Bern"), ("O'Hara", "Turin"), ("Eve", "Oslo")}


def test_a_value_that_the_question_does_not_say_is_kept(shop: Path) -> None:
    schemas = {"shop": reflect("shop", shop)}
    label = "SELECT name FROM customer WHERE id > 1 AND City = 'Turin'"
    pool, _ = extract_pool([Example("1", "shop", "late customers in turin", label, "label", "")], schemas)
    made = [s.sql for s in synthesize(pool, schemas, {"shop": shop}, 9, 0, 0.0, None, ())]
    assert len(made) == 3 and all("id > 1 AND City = " in sql for sql in made)


@pytest.fixture
def campus(tmp_path: Path) -> Path:
    """Courses are told apart by department and number; whoever is enrolled refers to both."""
    path, rng = tmp_path / "campus.sqlite", random.Random(0)
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE course (dept TEXT, number INT, title TEXT, PRIMARY KEY (dept, number));"
            "CREATE TABLE enrolment (student TEXT, dept TEXT, number INT, grade INT,"
            " FOREIGN KEY (dept, number) REFERENCES course);"
        )
        courses = [(dept, number, f"{dept} {number}") for dept in ("math", "bio", "art") for number in range(1, 8)]
        rows = [(f"S{n % 20}", *rng.choice(courses)[:2], rng.randint(1, 6)) for n in range(60)]
        connection.executemany("INSERT INTO course VALUES (?, ?, ?)", courses)
        connection.executemany("INSERT INTO enrolment VALUES (?, ?, ?, ?)", rows)
    return path


def test_a_key_of_two_columns_is_joined_whole_and_halves_are_no_keys(campus: Path) -> None:
    schemas = {"campus": reflect("campus", campus)}
    made = [s.sql for s in synthesize(library(), schemas, {"campus": campus}, 600, 0, 1.0, None, ())]
    joined = [sql for sql in made if " JOIN " in sql]
    whole = ("dept = course.dept AND enrolment.number = course.number",
             "dept = enrolment.dept AND course.number = enrolment.number")  # fmt: skip
    assert len(joined) > 20
    assert all(any(text in sql for text in whole) for sql in joined)
    assert not [
        sql for sql in made if "GROUP BY course.number" in sql or "(number)" in sql.replace("COUNT(number)", "")
    ]
