"""The rules against absurd SQL: what each stops, and what it lets through."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.databases.values import Values
from spftsql.synthesis.filling import Sampler
from spftsql.synthesis.joins import key_graph
from spftsql.synthesis.rendering import compile_template
from spftsql.synthesis.rules import (
    RULES,
    Filled,
    broken_column_rule,
    broken_value_rule,
    is_unique,
    names_identifier,
)
from spftsql.synthesis.templates import extract
from spftsql.synthesis.uses import uses_of

FIXTURES = Path(__file__).parents[1] / "fixtures"
CASES = yaml.safe_load((FIXTURES / "synthesis/rules.yaml").read_text(encoding="utf-8"))


def built(folder: Path, name: str, script: str) -> Path:
    path = folder / f"{name}.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(script)
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Schema, Values]:
    script = (FIXTURES / "templates/shop.sql").read_text(encoding="utf-8")
    path = built(tmp_path_factory.mktemp("shop"), "shop", script)
    return reflect("shop", path), Values(path)


def filled(sql: str, schema: Schema, values: Values) -> Filled:
    template, bindings = extract(sql, schema)
    slots = compile_template(template.sql).scope_slots
    return Filled(uses_of(template.sql), bindings, key_graph(schema), values, slots)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["sql"])
def test_the_first_rule_that_is_broken(case: dict[str, str | None], shop: tuple[Schema, Values]) -> None:
    one = filled(str(case["sql"]), *shop)
    assert (broken_column_rule(one) or broken_value_rule(one)) == case["rule"]


def test_every_rule_has_a_case_and_says_what_it_is() -> None:
    tested = {case["rule"] for case in CASES} - {None}
    assert tested | {"constant-column", "empty-table"} == set(RULES)
    assert all(rule.__doc__ for rule in RULES.values())


def test_columns_and_tables_that_hold_nothing(tmp_path: Path) -> None:
    path = built(
        tmp_path,
        "thin",
        "CREATE TABLE a (id INTEGER PRIMARY KEY, land TEXT, n INT); CREATE TABLE b (m INT);"
        "INSERT INTO a VALUES (1, 'usa', 4), (2, 'usa', 5);",
    )
    schema, values = reflect("thin", path), Values(path)
    for sql in ("SELECT land FROM a", "SELECT COUNT(DISTINCT land) FROM a", "SELECT n FROM a WHERE land = 'usa'"):
        assert broken_column_rule(filled(sql, schema, values)) == "constant-column"
    assert broken_column_rule(filled("SELECT m FROM b", schema, values)) == "empty-table"
    assert broken_column_rule(filled("SELECT n FROM a", schema, values)) is None


@pytest.mark.parametrize(
    ("sql", "rule"),
    [
        ("SELECT room FROM held JOIN course ON {whole}", "join-without-effect"),
        ("SELECT title FROM held JOIN course ON {whole} GROUP BY held.id", "group-by-unique"),
        ("SELECT room, COUNT(*) FROM held JOIN course ON {half} GROUP BY held.id", None),
        ("SELECT title FROM held JOIN course ON {whole} GROUP BY course.dept, course.number", None),
        ("SELECT COUNT(*) FROM course GROUP BY dept, number", "group-by-unique"),
        ("SELECT COUNT(*) FROM course GROUP BY number", None),
        ("SELECT AVG(number) FROM held", "sum-of-identifier"),
    ],
)
def test_keys_of_two_columns(sql: str, rule: str | None, tmp_path: Path) -> None:
    path = built(
        tmp_path,
        "campus",
        "CREATE TABLE course (dept TEXT, number INT, title TEXT, PRIMARY KEY (dept, number));"
        "CREATE TABLE held (id INTEGER PRIMARY KEY, room TEXT, dept TEXT, number INT,"
        " FOREIGN KEY (dept, number) REFERENCES course);"
        "INSERT INTO course VALUES ('a', 1, 'x'), ('a', 2, 'y'), ('b', 1, 'z');"
        "INSERT INTO held VALUES (1, 'p', 'a', 1), (2, 'q', 'b', 1), (3, 'p', 'a', 2);",
    )
    half = "held.dept = course.dept"
    whole = f"{half} AND held.number = course.number"
    assert broken_column_rule(filled(sql.format(half=half, whole=whole), reflect("campus", path), Values(path))) == rule


def test_what_a_question_does_not_say_is_not_judged(shop: tuple[Schema, Values]) -> None:
    one = filled("SELECT title FROM product WHERE price > 0.5", *shop)
    assert broken_value_rule(one) == "always-true"
    unsaid = replace(one.bindings, unsaid=frozenset(one.bindings.values))
    assert broken_value_rule(replace(one, bindings=unsaid)) is None


@pytest.mark.parametrize(
    "name",
    ["id", "order_id", "OrderID", "StuID", "stuid", "zip_code", "PostCode", "phone_number", "ISBN", "country code"],
)
def test_names_of_identifiers(name: str) -> None:
    assert names_identifier(name)


@pytest.mark.parametrize("name", ["", "paid", "humidity", "amount", "number_of_rooms", "grid", "year", "Ж", "age2"])
def test_other_names(name: str) -> None:
    assert not names_identifier(name)


def test_a_tiny_table_has_no_unique_names(shop: tuple[Schema, Values]) -> None:
    graph = key_graph(shop[0])
    assert is_unique(graph, ("customer", "id"))
    assert not is_unique(graph, ("customer", "name"))  # four different names of four customers
    assert not is_unique(graph, ("line", "order_id"))


def test_drops_are_counted_by_rule(shop: tuple[Schema, Values], tmp_path: Path) -> None:
    script = (FIXTURES / "templates/shop.sql").read_text(encoding="utf-8")
    path = built(tmp_path, "shop", script)
    template = extract("SELECT AVG(price) FROM product GROUP BY title", shop[0])[0]
    sampler = Sampler([template], {"shop": shop[0]}, {"shop": path}, 0, 1.0)
    while sampler.draw() is not None:
        pass
    assert sampler.counts["repeated"] >= 1
    assert set(sampler.counts) <= {"repeated", "no-columns", *RULES}


def test_labels_of_spider_break_few_rules(data_root: Path) -> None:
    """What people ask is not absurd: of labels over tables with rows, few break a rule about columns."""
    lines = (data_root / "spider/train_gold.sql").read_text(encoding="utf-8").splitlines()
    known: dict[str, tuple[Schema, Values]] = {}
    tried = broken = 0
    for sql, name in [line.split("\t") for line in lines if line.strip()][::29]:
        path = data_root / "spider/database" / name.strip() / f"{name.strip()}.sqlite"
        if not path.exists():
            continue
        if name not in known:
            known[name] = reflect(name, path), Values(path)
        try:
            one = filled(sql, *known[name])
        except ValueError:
            continue
        if not all(one.graph.rows(table) for tables in one.bindings.scopes for table in tables.tables):
            continue
        tried += 1
        broken += broken_column_rule(one) not in (None, "join-without-key")
    assert tried > 150
    assert broken <= 0.06 * tried
