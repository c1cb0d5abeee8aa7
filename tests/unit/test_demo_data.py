"""The demo's generated database and its labelled questions."""

import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlglot

from spftsql.demo.database import build_database
from spftsql.demo.questions import (
    GATE_SIZE,
    TRAIN_SIZE,
    LabelledQuestion,
    load_labels,
    load_structures,
    placeholders,
    sample_question,
)
from spftsql.errors import UserError

TABLES = {
    "category", "supplier", "product", "tag", "product_tag",
    "store", "employee", "customer", "purchase", "order_line",
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("demo") / "shop.sqlite"
    build_database(file)
    return file


@pytest.fixture(scope="module")
def shop(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def labels(path: Path) -> list[LabelledQuestion]:
    return load_labels(path)


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(path: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.sqlite", tmp_path / "new" / "other.sqlite"
    again.write_text("something old")
    build_database(again)
    build_database(other, seed=1)
    assert again.read_bytes() == path.read_bytes()
    assert other.read_bytes() != path.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.sqlite", "new"]


def test_size_and_tables(path: Path, shop: sqlite3.Connection) -> None:
    tables = {row[0] for row in shop.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    counts = {table: shop.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in tables}
    assert tables == TABLES
    assert path.stat().st_size < 2_000_000
    assert min(counts.values()) >= 10
    assert counts["customer"] == 900 and counts["purchase"] == 4200 and counts["order_line"] > 8000


def test_keys_are_declared_and_hold(shop: sqlite3.Connection) -> None:
    foreign = {table: shop.execute(f"PRAGMA foreign_key_list({table})").fetchall() for table in TABLES}
    assert sum(map(len, foreign.values())) == 11
    assert {row[2] for row in foreign["product_tag"]} == {"product", "tag"}
    assert shop.execute("PRAGMA foreign_key_check").fetchall() == []
    for table in TABLES:
        assert any(column[5] for column in shop.execute(f"PRAGMA table_info({table})")), table


@pytest.mark.parametrize(
    "column",
    ["supplier.rating", "product.color", "product.retired", "store.city", "employee.manager_id",
     "employee.left_on", "customer.email", "customer.birth_year", "purchase.shipped", "purchase.employee_id"],
)  # fmt: skip
def test_some_values_are_null_and_most_columns_are_not(shop: sqlite3.Connection, column: str) -> None:
    table, name = column.split(".")
    rows, present = shop.execute(f"SELECT COUNT(*), COUNT({name}) FROM {table}").fetchone()
    assert 0 < present < rows


def test_popularity_is_skewed(shop: sqlite3.Connection) -> None:
    cities = [row[0] for row in shop.execute("SELECT COUNT(*) FROM customer GROUP BY city ORDER BY 1 DESC")]
    sold = [row[0] for row in shop.execute("SELECT COUNT(*) FROM order_line GROUP BY product_id ORDER BY 1 DESC")]
    assert cities[0] > 5 * cities[len(cities) // 2 + 2]
    assert sum(sold[: len(sold) // 10]) > 0.3 * sum(sold)


def test_sales_follow_the_seasons_and_dates_are_in_order(shop: sqlite3.Connection) -> None:
    months = dict(shop.execute("SELECT SUBSTR(ordered, 6, 2), COUNT(*) FROM purchase GROUP BY 1").fetchall())
    impossible = """
        SELECT COUNT(*) FROM purchase JOIN customer USING (customer_id) JOIN store USING (store_id)
        JOIN order_line USING (purchase_id) JOIN product USING (product_id)
        WHERE ordered < joined OR ordered < opened OR shipped < ordered
        OR ordered < launched OR ordered > retired"""
    assert months["12"] > 2 * months["02"]
    assert shop.execute(impossible).fetchone() == (0,)


def test_structures_are_distinct_and_complete() -> None:
    structures = load_structures()
    masked = {re.sub(r"'[^']*'|{\w+}", "?", structure.sql) for structure in structures}
    assert len(masked) == len(structures) >= 70
    assert {structure.hardness for structure in structures} == {"easy", "medium", "hard"}
    for structure in structures:
        slots = {name for names in structure.slots for name in names}
        assert slots == set(placeholders(structure.sql)), structure.id
        assert 4 <= len(set(structure.questions)) == len(structure.questions) <= 7, structure.id
        for question in structure.questions:
            assert set(placeholders(question)) == slots, question


@pytest.mark.parametrize("seed", range(4))
def test_labels_and_their_split(path: Path, seed: int) -> None:
    labels = load_labels(path, seed)
    assert labels == load_labels(path, seed)
    assert [label.index for label in labels] == list(range(len(labels)))
    sizes = Counter(label.split for label in labels)
    assert sizes["train"] == TRAIN_SIZE and sizes["gate"] == GATE_SIZE and sizes["test"] >= 220

    questions = Counter(label.question.casefold() for label in labels)
    assert max(questions.values()) == 1, "a question text occurs twice, so it could be in two splits"
    assert not any(set("{}") & set(label.question + label.sql) for label in labels)

    seen = {label.structure for label in labels if label.split == "train"}
    for split in ("gate", "test"):
        shares = [label.structure in seen for label in labels if label.split == split]
        assert 0.7 <= sum(shares) / len(shares) <= 0.8


def test_another_seed_chooses_other_labels(path: Path, labels: list[LabelledQuestion]) -> None:
    assert {label.question for label in labels} != {label.question for label in load_labels(path, seed=1)}


@pytest.mark.parametrize("data_seed", [0, 1])
def test_every_gold_parses_runs_quickly_and_finds_something(tmp_path: Path, data_seed: int) -> None:
    file = tmp_path / "shop.sqlite"
    build_database(file, data_seed)
    labels = load_labels(file)
    connection = sqlite3.connect(file)
    filled = 0
    for label in labels:
        sqlglot.parse_one(label.sql, read="sqlite")
        assert "\n" not in label.sql
        started = time.thread_time()
        rows = connection.execute(label.sql).fetchall()
        assert time.thread_time() - started < 0.05, label.sql
        filled += any(value is not None for row in rows for value in row)
    connection.close()
    assert filled >= 0.97 * len(labels)


def test_a_ranking_that_ties_is_not_asked(path: Path, tmp_path: Path) -> None:
    tied = tmp_path / "tied.sqlite"
    tied.write_bytes(path.read_bytes())
    with sqlite3.connect(tied) as connection:
        connection.execute("UPDATE product SET price = 1000 WHERE product_id IN (1, 2)")
    connection.close()
    assert "most_expensive_product" in {label.structure for label in load_labels(path)}
    assert "most_expensive_product" not in {label.structure for label in load_labels(tied)}


def test_the_question_asked_at_the_end_is_a_test_question_that_was_answered_right(
    labels: list[LabelledQuestion],
) -> None:
    test = [label for label in labels if label.split == "test"]
    hard = next(label for label in test if label.hardness == "hard")
    *_, easy = (label for label in test if label.hardness == "easy")
    assert sample_question(labels, {hard.id, easy.id, labels[0].id}) == easy
    assert sample_question(labels, {hard.id}) == hard
    none = sample_question(labels, set())
    assert none.split == "test" and none.hardness == "easy"
    assert none.structure in {label.structure for label in labels if label.split == "train"}


def test_a_wrong_database_is_a_clear_error(tmp_path: Path) -> None:
    empty = tmp_path / "empty.sqlite"
    with pytest.raises(UserError, match="no demo database"):
        load_labels(empty)
    sqlite3.connect(empty).execute("CREATE TABLE other (x)").connection.close()
    with pytest.raises(UserError, match="not the demo database"):
        load_labels(empty)
