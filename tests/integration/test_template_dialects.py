"""Templates on DuckDB and PostgreSQL: what the library makes of a shop gives the same there as on SQLite."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

from spftsql.databases.reading import plain
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.sandbox.location import locate
from spftsql.synthesis.dialects import in_dialect
from spftsql.synthesis.filling import synthesize
from spftsql.synthesis.joins import key_graph
from spftsql.synthesis.library import library
from spftsql.synthesis.rendering import compile_template, render
from spftsql.synthesis.templates import extract
from tests.postgres import start_server

pytestmark = pytest.mark.integration

TABLES = """
    CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, "City" TEXT, born DATE, regular BOOLEAN);
    CREATE TABLE product (id INTEGER PRIMARY KEY, title TEXT, kind TEXT, price DOUBLE PRECISION, stock INTEGER);
    CREATE TABLE "order" (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customer (id), day DATE,
        total DOUBLE PRECISION, state TEXT);
    CREATE TABLE line (order_id INTEGER REFERENCES "order" (id), product_id INTEGER REFERENCES product (id),
        amount INTEGER, "unit price" DOUBLE PRECISION, PRIMARY KEY (order_id, product_id));
    CREATE TABLE employee (id INTEGER PRIMARY KEY, name TEXT, "City" TEXT, boss_id INTEGER REFERENCES employee (id),
        "user" TEXT, salary INTEGER, hired DATE);
"""
NAMES = ("Ada", "Bo", "Eve", "Kim", "Lee", "Max", "Nia", "O'Hara", "Åse", "Zoë")
CITIES = ("Turin", "Bern", "Oslo", "turin west", "Köln")
Rows = dict[str, list[tuple[Any, ...]]]


def shop_rows() -> Rows:
    rng = random.Random(0)

    def day() -> str:
        return (date(2020, 1, 1) + timedelta(days=rng.randrange(1500))).isoformat()

    def maybe(value: Any) -> Any:
        return None if rng.random() < 0.1 else value

    return {
        "customer": [
            (i, f"{rng.choice(NAMES)} {i}", maybe(rng.choice(CITIES)), maybe(day()), rng.random() < 0.5)
            for i in range(1, 41)
        ],
        "product": [
            (i, f"{rng.choice(('pen', 'desk', 'Lamp'))} {i}", rng.choice(("office", "home", "Garden")),
             maybe(rng.randrange(4, 800) / 4), rng.randrange(50))
            for i in range(1, 26)
        ],
        '"order"': [
            (i, maybe(rng.randrange(1, 31)), day(), rng.randrange(4, 4000) / 4, rng.choice(("open", "paid", "sent")))
            for i in range(1, 121)
        ],
        "line": [
            (order, product, rng.randrange(1, 9), rng.randrange(4, 800) / 4)
            for order in range(1, 121)
            for product in rng.sample(range(1, 21), rng.randrange(1, 4))
        ],
        "employee": [
            (i, f"{rng.choice(NAMES)} {i}", rng.choice(CITIES), None if i == 1 else rng.randrange(1, i),
             f"u{i}", rng.randrange(20, 90) * 100, day())
            for i in range(1, 16)
        ],
    }  # fmt: skip


def insertions(mark: str) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    for table, rows in shop_rows().items():
        yield f"INSERT INTO {table} VALUES ({', '.join([mark] * len(rows[0]))})", rows


@pytest.fixture(scope="module")
def sqlite_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(TABLES)
        for statement, rows in insertions("?"):
            connection.executemany(statement, rows)
    return path


Engine = tuple[Schema, str, Callable[[str], Sequence[tuple[Any, ...]]]]


@pytest.fixture(scope="module", params=["duckdb", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The same shop elsewhere: its schema, its address, and how to run a statement there."""
    if request.param == "duckdb":
        path = tmp_path_factory.mktemp("shop") / "shop.duckdb"
        with duckdb.connect(str(path)) as connection:
            connection.execute(TABLES)
            for statement, rows in insertions("?"):
                connection.executemany(statement, rows)
        with duckdb.connect(str(path), read_only=True) as connection:
            url = f"duckdb:///{path}"
            yield reflect("shop", locate(url)), url, lambda sql: connection.execute(sql).fetchall()
        return
    with start_server() as server:
        server.run("CREATE DATABASE store")
        server.run(TABLES + "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;", "store")
        with server.connect("store") as connection:
            for statement, rows in insertions("%s"):
                connection.cursor().executemany(statement.encode(), rows)
            url = server.url("store")
            yield reflect("shop", locate(url)), url, lambda sql: connection.execute(sql.encode()).fetchall()


def bag(rows: Sequence[tuple[Any, ...]]) -> Counter[tuple[Any, ...]]:
    """Rows as every engine gives them: numbers to nine digits, dates as text."""

    def cell(value: Any) -> Any:
        value = plain(value)
        return float(f"{value:.9g}") if isinstance(value, int | float) else value

    return Counter(tuple(map(cell, row)) for row in rows)


def test_the_library_gives_the_same_everywhere(sqlite_shop: Path, engine: Engine) -> None:
    here = reflect("shop", sqlite_shop)
    there, _, run = engine
    assert there.dialect in ("duckdb", "postgres")
    made = list(synthesize(library(), {"shop": here}, {"shop": sqlite_shop}, 500, 0, 1.0, None, ()))
    different, refused = [], []
    with sqlite3.connect(sqlite_shop) as connection:
        for statement in made:
            expected = bag(connection.execute(statement.sql).fetchall())
            sql = in_dialect(statement.sql, there)
            try:
                found = bag(run(sql))
            except (duckdb.Error, psycopg.Error) as error:
                refused.append((sql, str(error)))
                continue
            if found != expected:
                different.append((statement.sql, sql))
    # Which of equals stands within a LIMIT is nobody's to say, and SQLite's UPPER knows ASCII only.
    assert not [pair for pair in different if " LIMIT " not in pair[0] and "UPPER(" not in pair[0]]
    assert not refused
    assert len(different) <= 0.05 * len(made)


def test_synthesis_writes_the_dialect_of_the_database(engine: Engine) -> None:
    schema, address, run = engine
    made = list(synthesize(library(), {"shop": schema}, {"shop": locate(address)}, 200, 0, 1.0, None, ()))
    assert len(made) == 200
    for statement in made:
        run(statement.sql)
    assert any(" ILIKE " in statement.sql for statement in made)


def test_labels_in_the_dialect_have_templates_that_come_back(engine: Engine) -> None:
    schema, address, run = engine
    made = list(synthesize(library(), {"shop": schema}, {"shop": locate(address)}, 150, 1, 1.0, None, ()))
    wrong = []
    for label in made:
        template, bindings = extract(label.sql, schema)
        back = render(compile_template(template.sql), bindings, key_graph(schema))
        if back is None or bag(run(in_dialect(back, schema))) != bag(run(label.sql)):
            wrong.append((label.sql, back))
    assert not [pair for pair in wrong if " LIMIT " not in pair[0]]
    assert len(wrong) <= 0.05 * len(made)


CASES = {
    "SELECT SUM(amount) / COUNT(*) FROM line": True,
    "SELECT amount / 2, amount / 2.0 FROM line": True,
    "SELECT id FROM customer WHERE regular = 1": True,
    "SELECT name FROM customer WHERE born LIKE '2021%' AND NOT City LIKE 'TURIN%'": True,
    "SELECT stock || title FROM product": True,
    "SELECT user FROM employee ORDER BY hired": True,
    "SELECT id FROM \"order\" ORDER BY customer_id, id LIMIT 30": True,
    "SELECT id FROM \"order\" ORDER BY customer_id DESC, id LIMIT 115": True,
    "SELECT ROUND(AVG(price), 2), ROUND(AVG(stock), 1) FROM product": True,
    "SELECT IIF(salary > 5000, 'high', 'low') FROM employee": True,
    "SELECT product.title, COUNT(*) FROM product JOIN line ON product.id = line.product_id GROUP BY product.id": True,
    "SELECT name, COUNT(*) FROM customer GROUP BY City": False,
    "SELECT name, MAX(salary) FROM employee": False,
    "SELECT name FROM customer WHERE name GLOB 'A*'": False,
}  # fmt: skip


@pytest.mark.parametrize("sql", CASES)
def test_what_depends_on_types(sql: str, sqlite_shop: Path, engine: Engine) -> None:
    schema, _, run = engine
    if not CASES[sql]:
        with pytest.raises(ValueError):
            in_dialect(sql, schema)
        return
    with sqlite3.connect(sqlite_shop) as connection:
        expected = connection.execute(sql).fetchall()
    assert bag(run(in_dialect(sql, schema))) == bag(expected)
