"""Templates: what is a slot, what stays, and that a template with its own bindings is its label again."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
import yaml

from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.records import Example
from spftsql.synthesis.canonical import canonical_sql
from spftsql.synthesis.joins import key_graph
from spftsql.synthesis.rendering import compile_template, render
from spftsql.synthesis.templates import Bindings, extract, extract_pool

CASES = Path(__file__).parents[1] / "fixtures" / "templates"
GEOGRAPHY_KEYS = [
    f"{column} = state.state_name"
    for column in ("city.state_name", "border_info.state_name", "border_info.border", "river.traverse",
                   "lake.state_name", "mountain.state_name", "highlow.state_name")
]  # fmt: skip


@pytest.fixture(scope="module")
def shop_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript((CASES / "shop.sql").read_text(encoding="utf-8"))
    return path


@pytest.fixture(scope="module")
def shop(shop_file: Path) -> Schema:
    return reflect("shop", shop_file)


def comes_back(sql: str, schema: Schema) -> bool:
    template, bindings = extract(sql, schema)
    return render(compile_template(template.sql), bindings, key_graph(schema)) == canonical_sql(sql, schema)


@pytest.mark.parametrize("case", yaml.safe_load((CASES / "templates.yaml").read_text(encoding="utf-8")))
def test_structure_and_round_trip(case: dict[str, str], shop: Schema) -> None:
    template, _ = extract(case["sql"], shop)
    assert template.sql == case["template"]
    assert comes_back(case["sql"], shop)


@pytest.mark.parametrize("case", yaml.safe_load((CASES / "canonical.yaml").read_text(encoding="utf-8")))
def test_every_canonical_case_comes_back(case: dict[str, str], shop: Schema) -> None:
    assert comes_back(case["sql"], shop)


def same_result(sql: str, schema: Schema, database: Path) -> bool:
    template, bindings = extract(sql, schema)
    back = render(compile_template(template.sql), bindings, key_graph(schema))
    with sqlite3.connect(database) as connection:
        label, filled = (Counter(connection.execute(text or "").fetchall()) for text in (sql, back))
    return bool(label) and label == filled


STRUCTURES = (CASES / "structures.sql").read_text(encoding="utf-8").splitlines()[1:]


@pytest.mark.parametrize("sql", STRUCTURES)
def test_every_structure_gives_its_result_again(sql: str, shop: Schema, shop_file: Path) -> None:
    assert same_result(sql, shop, shop_file)


@pytest.mark.parametrize("sql", STRUCTURES)
def test_templates_name_nothing_of_the_database(sql: str, shop: Schema) -> None:
    words = set(re.findall(r"\w+", extract(sql, shop)[0].sql.lower()))
    names = {table.name.lower() for table in shop.tables} | {c.name.lower() for t in shop.tables for c in t.columns}
    assert not words & (names - {"order"}), words & names


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 3) SELECT n FROM t", "recursive"),
        ("WITH t(a) AS (SELECT id, name FROM customer) SELECT a FROM t", "columns that a CTE names"),
        ("WITH t(a) AS (SELECT * FROM customer) SELECT a FROM t", "columns that a CTE names"),
        ("SELECT name FROM customer NATURAL JOIN employee", "NATURAL"),
        ("SELECT name FROM customer WHERE id > ALL (SELECT 1)", "ALL"),
    ],
)
def test_what_has_no_template_says_why(sql: str, reason: str, shop: Schema) -> None:
    with pytest.raises(ValueError, match=reason):
        extract(sql, shop)


def test_slots_know_their_column_and_comparison(shop: Schema) -> None:
    sql = "SELECT name FROM customer WHERE City = 'Turin' AND born > '1990-01-01' GROUP BY name HAVING COUNT(*) > 2"
    template, bindings = extract(sql, shop)
    values = {slot.name: slot for slot in template.slots if slot.role == "value"}
    assert [slot.operator for slot in values.values()] == ["equal", "range", "count"]
    assert [bindings.columns[slot.of[0]] for slot in values.values() if slot.of] == [
        ("customer", "City"),
        ("customer", "born"),
    ]
    assert bindings.values == {"value_1": "Turin", "value_2": "1990-01-01", "value_3": 2}


def test_joins_are_kept_only_where_keys_do_not_give_them(shop: Schema) -> None:
    _, over_key = extract("SELECT title FROM product JOIN line ON line.product_id = product.id", shop)
    _, over_name = extract("SELECT title FROM customer JOIN employee ON customer.name = employee.name, product", shop)
    assert over_key.scopes[0].joins is None
    assert over_name.scopes[0].joins is not None


@pytest.mark.parametrize(
    ("sql", "derived"),
    [
        ("SELECT title FROM course JOIN held ON course.dept = held.dept AND course.number = held.number", True),
        ("SELECT title FROM course JOIN held ON course.number = held.number AND course.dept = held.dept", False),
        ("SELECT title FROM course JOIN held ON course.dept = held.dept WHERE room = 'a'", False),
        ("SELECT title FROM course JOIN held USING (number) WHERE held.dept = 'b'", False),
        ("SELECT dept, COUNT(*) FROM course GROUP BY dept", True),
        ("SELECT a.title FROM course a JOIN course b ON a.dept = b.dept WHERE b.number = 2", False),
    ],
)
def test_labels_over_keys_of_two_columns_and_over_half_of_them(sql: str, derived: bool, tmp_path: Path) -> None:
    path = tmp_path / "campus.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE course (dept TEXT, number INT, title TEXT, PRIMARY KEY (dept, number));"
            "CREATE TABLE held (room TEXT, dept TEXT, number INT, FOREIGN KEY (dept, number) REFERENCES course);"
            "INSERT INTO course VALUES ('a', 1, 'x'), ('a', 2, 'y'), ('b', 1, 'z');"
            "INSERT INTO held VALUES ('a', 'a', 1), ('b', 'b', 1);"
        )
    campus = reflect("campus", path)
    _, bindings = extract(sql, campus)
    assert (bindings.scopes[0].joins is None) == derived
    assert comes_back(sql, campus)
    assert same_result(sql, campus, path)


def test_pool_counts_and_sets_aside(shop: Schema) -> None:
    labels = [
        "SELECT name FROM customer WHERE City = 'Turin'",
        "SELECT title FROM product WHERE title = 'desk'",
        "SELECT name FROM employee WHERE name = 'Kim'",
        "SELECT broken",
        "SELECT name FROM customer WHERE City = 'Bern'",
    ]
    examples = [Example(f"e{i}", "shop", "?", sql, "label", "") for i, sql in enumerate(labels)]
    examples.append(Example("e5", "elsewhere", "?", "SELECT 1", "label", ""))
    pool, problems = extract_pool(examples, {"shop": shop})
    assert sorted((template.sql, template.count) for template in pool) == [
        ("SELECT col_text_1 WHERE col_text_1 = value_1", 2),
        ("SELECT col_text_1 WHERE col_text_2 = value_1", 2),
    ]
    assert [(problem.index, problem.example_id) for problem in problems] == [(3, "e3"), (5, "e5")]
    assert all(len(template.bindings) == 2 for template in pool)


def test_a_label_too_deep_to_read_is_set_aside(shop: Schema) -> None:
    deep = "SELECT name FROM customer WHERE " + " AND ".join(f"id <> {i}" for i in range(3_000))
    labels = [
        Example("deep", "shop", "?", deep, "label", ""),
        Example("e", "shop", "?", "SELECT id FROM customer", "", ""),
    ]
    pool, problems = extract_pool(labels, {"shop": shop})
    assert len(pool) == 1 and [(problem.example_id, problem.reason) for problem in problems] == [
        ("deep", "nested too deeply")
    ]


def test_labels_of_one_structure_take_time_in_proportion(shop: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every binding is looked up, none compared with all the others."""
    compared = 0
    equal = Bindings.__eq__

    def counted(one: Bindings, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(one, other)

    monkeypatch.setattr(Bindings, "__eq__", counted)
    labels = [
        Example(str(n), "shop", "?", f"SELECT name FROM customer WHERE id > {n % 60}", "label", "") for n in range(80)
    ]
    (template,), _ = extract_pool(labels, {"shop": shop})
    assert template.count == 80 and compared <= 80
    assert [bindings.values["value_1"] for bindings in template.bindings] == list(range(60))


def test_geoquery_coverage(data_root: Path) -> None:
    schema = reflect("geography", data_root / "geoquery/geography-db.added-in-2020.sqlite", GEOGRAPHY_KEYS)
    golds = [e["sql"][0] for e in json.loads((data_root / "geoquery/geography.json").read_text(encoding="utf-8"))]
    covered = 0
    for sql in golds:
        try:
            extract(sql, schema)
        except ValueError:
            continue
        covered += 1
        assert comes_back(sql, schema), sql
    assert covered >= 0.98 * len(golds)


def test_spider_coverage(data_root: Path) -> None:
    lines = (data_root / "spider/train_gold.sql").read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split("\t")) for line in lines if line.strip()][::23]
    schemas: dict[str, Schema] = {}
    tried = covered = 0
    for sql, name in pairs:
        path = data_root / "spider/database" / name / f"{name}.sqlite"
        if not path.exists():
            continue
        if name not in schemas:
            schemas[name] = reflect(name, path)
        schema = schemas[name]
        tried += 1
        try:
            extract(sql, schema)
        except ValueError:
            continue
        covered += 1
        assert comes_back(sql, schema), sql
    assert covered >= 0.98 * tried
