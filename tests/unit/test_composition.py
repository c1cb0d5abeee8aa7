"""Structures made of known ones: SQL of the structure that was meant, with lineage, and in the share asked for."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.databases.values import Values
from spftsql.synthesis.canonical import canonical_sql
from spftsql.synthesis.composition import compose, with_composed
from spftsql.synthesis.filling import fill, synthesize
from spftsql.synthesis.library import library, read_templates, write_templates
from spftsql.synthesis.mutations import ONE, TWO, Part, is_simple, numbered
from spftsql.synthesis.rendering import compile_template
from spftsql.synthesis.templates import Template, extract

SCRIPT = (Path(__file__).parents[1] / "fixtures/templates/shop.sql").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(SCRIPT)
        for i in range(5, 60):
            connection.execute(
                "INSERT INTO customer VALUES (?, ?, ?, ?)",
                (i, f"c{i}", ["Turin", "Bern", "Oslo"][i % 3], f"19{i + 30}-03-04"),
            )
            connection.execute("INSERT INTO product VALUES (?, ?, ?)", (i, f"thing {i}", i / 2))
            connection.execute(
                'INSERT INTO "order" VALUES (?, ?, ?, ?)', (i, 1 + i % 7, f"2024-0{1 + i % 9}-05", 1.5 * i)
            )
            connection.execute("INSERT INTO line VALUES (?, ?, ?, ?)", (i, 1 + i % 9, i % 5, i / 3))
    return path


@pytest.fixture(scope="module")
def schema(shop: Path) -> Schema:
    return reflect("shop", shop)


def part_of(sql: str, schema: Schema) -> Part:
    template, bindings = extract(sql, schema)
    columns = {slot: table for slot, (table, _) in bindings.columns.items()}
    return Part(template.sql, {slot.name: slot for slot in template.slots}, columns, {}, bindings.scopes)


LISTS = "SELECT name FROM customer WHERE City = 'Turin'"
PRICES = "SELECT title FROM product WHERE price > 3"
COUNTS = "SELECT City, COUNT(*) FROM customer GROUP BY City"
MEANS = "SELECT AVG(total), MAX(total) FROM \"order\" WHERE day > '2024-01-01'"

EXPECTED = [
    ("add-condition", [LISTS], "SELECT col_text_1 WHERE col_text_2 = value_1 AND col_"),
    ("swap-aggregate", [MEANS], "col_number_1)"),
    ("aggregate", [LISTS], "SELECT COUNT(*) WHERE col_text_1 = value_1"),
    ("add-order", [LISTS], "SELECT col_text_1 WHERE col_text_2 = value_1 ORDER BY col_number_3"),
    ("rank-groups", [COUNTS], "GROUP BY col_text_1 ORDER BY COUNT(*)"),
    ("add-having", [COUNTS], "GROUP BY col_text_1 HAVING "),
    ("add-group", [MEANS], "SELECT col_text_1, AVG(col_number_2), MAX(col_number_2) WHERE col_date_3 > value_1"),
    ("add-output", [LISTS], "SELECT col_text_1, col_"),
    ("extreme", [LISTS], "WHERE col_text_2 = value_1 AND col_number_3 "),
    ("nest-in", [LISTS, PRICES], "IN (SELECT col_any_fk_4 WHERE col_number_5 > value_2)"),
    ("compare-with-group", [LISTS, PRICES], "(SELECT "),
    ("combine", [LISTS, PRICES], " SELECT col_text_1 WHERE col_number_3 > value_2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "labels", "expected"), EXPECTED, ids=[case[0] for case in EXPECTED])
def test_what_a_mutation_makes(name: str, labels: list[str], expected: str, schema: Schema) -> None:
    parts = [part_of(sql, schema) for sql in labels]
    seen = set()
    for seed in range(12):
        rng = random.Random(seed)
        changed = ONE[name](parts[0], rng) if name in ONE else TWO[name](parts[0], parts[1], rng)
        assert changed is not None
        sql, slots, bindings = numbered(changed)
        assert expected in sql
        compiled = compile_template(sql)
        assert len(compiled.parents) == len(bindings.scopes)
        assert {m.slot for m in compiled.mentions} - {"*"} <= {slot.name for slot in slots}
        assert set(bindings.columns) == {slot.name for slot in slots if slot.role == "column"}
        assert all(name in bindings.columns for slot in slots for name in slot.of)
        seen.add(sql)
    assert seen
    assert {case[0] for case in EXPECTED} == {*ONE, *TWO}


def test_a_template_with_itself_keeps_its_columns(schema: Schema) -> None:
    part = part_of(LISTS, schema)
    changed = TWO["combine"](part, part, random.Random(0))
    assert changed is not None
    sql, slots, _ = numbered(changed)
    assert sql.startswith("SELECT col_text_1 WHERE col_text_2 = value_1 ")
    assert sql.endswith(" SELECT col_text_1 WHERE col_text_2 = value_2")
    assert [slot.of for slot in slots if slot.role == "value"] == [("col_text_2",)] * 2


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a.name FROM employee a JOIN employee b ON a.boss_id = b.id",
        "SELECT MAX(n) FROM (SELECT City, COUNT(*) AS n FROM customer GROUP BY City)",
        "SELECT name FROM customer UNION SELECT name FROM employee",
        "SELECT name FROM customer WHERE id IN (SELECT customer_id FROM \"order\")",
    ],
)  # fmt: skip
def test_what_no_mutation_changes(sql: str, schema: Schema) -> None:
    assert not is_simple(part_of(sql, schema))


def test_derived_templates_fill_with_their_structure(shop: Path, schema: Schema) -> None:
    pool = library()
    derived = compose(pool, {"shop": schema}, {"shop": shop}, 0, 60)
    assert len(derived) == 60
    known, values = {template.id for template in pool}, Values(shop)
    ids = known | {template.id for template in derived}
    rng, filled = random.Random(1), 0
    with sqlite3.connect(shop) as connection:
        for template in derived:
            assert template.id not in known
            assert template.parents and set(template.parents) <= ids
            assert template.hardness in ("easy", "medium", "hard", "extra")
            for _ in range(4):
                one = fill(template, (), schema, values, rng, 1.0)
                if one is not None:
                    filled += 1
                    connection.execute(one[0]).fetchall()
                    assert canonical_sql(one[0], schema) == one[0]
    assert filled > 100
    assert len({template.sql for template in derived}) == 60


def test_the_same_seed_derives_the_same(shop: Path, schema: Schema) -> None:
    databases = {"shop": shop}
    first, again, other = (compose(library(), {"shop": schema}, databases, seed, 25) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_derived_templates_are_data(shop: Path, schema: Schema, tmp_path: Path) -> None:
    derived = compose(library(), {"shop": schema}, {"shop": shop}, 2, 20)
    file = tmp_path / "derived.jsonl"
    file.write_text(write_templates(derived, {}), encoding="utf-8")
    assert read_templates(file) == derived


def test_they_are_drawn_with_their_share(shop: Path, schema: Schema) -> None:
    labels = [LISTS, PRICES, COUNTS, MEANS]
    pool: list[Template] = [extract(sql, schema)[0] for sql in labels]
    own = {template.id for template in pool}
    assert with_composed(pool, 0.0, {"shop": schema}, {"shop": shop}, 0) == pool
    mixed = with_composed(pool, 0.5, {"shop": schema}, {"shop": shop}, 0, 40)
    assert sum(t.count for t in mixed if t.id in own) == pytest.approx(sum(t.count for t in mixed) / 2, rel=1e-3)
    made = list(synthesize(mixed, {"shop": schema}, {"shop": shop}, 200, 0, 0.5, None, ()))
    assert 50 < sum(statement.template not in own for statement in made) < 150


def test_nothing_to_derive_from(shop: Path, schema: Schema) -> None:
    odd = extract("SELECT a.name FROM employee a JOIN employee b ON a.boss_id = b.id", schema)[0]
    assert compose([odd], {"shop": schema}, {"shop": shop}, 0) == []
    assert [t.id for t in with_composed([odd], 0.5, {"shop": schema}, {"shop": shop}, 0)] == [odd.id]
