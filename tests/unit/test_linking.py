"""Of a schema too large for the prompt, the part that a question is about is kept, with the keys that join it."""

import sqlite3
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.databases.descriptions import described
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Column, ForeignKey, Schema, Table
from spftsql.databases.schema_text import fitting_schema_text, schema_text, sql_name
from spftsql.errors import UserError
from spftsql.linking.linker import Linker
from spftsql.linking.schema_words import SchemaWords
from spftsql.linking.scoring import WEIGHTS, signs
from spftsql.linking.value_index import open_index
from spftsql.linking.words import abbreviates, unglued, words_of

LARGE = 100_000  # tokens


def count(text: str) -> int:
    """A stand-in for a tokenizer."""
    return -(-len(text) // 4)


def table(name: str, columns: str, comment: str = "") -> Table:
    """A table from `name kind` pairs; `id` is the primary key."""
    pairs = [column.split() for column in columns.split(", ")]
    return Table(name, tuple(Column(c, k, k, c == "id") for c, k in pairs), 10, comment)  # type: ignore[arg-type]


SHOP = Schema(
    "shop",
    "sqlite",
    (
        table("customer", "id number, first_name text, last_name text, birthdate date, city text"),
        table("product", "id number, title text, unit_price number, weight number"),
        table("purchase", "id number, customer_id number, sold_on date"),
        table("purchase_line", "id number, purchase_id number, product_id number, qty number"),
        table("employee", "id number, fname text, salary number, dept_id number"),
        table("department", "id number, name text, budget number"),
        *(table(f"log_{word}", "id number, moment date, text text") for word in ("alpha", "beta", "gamma", "delta")),
    ),
    (
        ForeignKey("purchase", "customer_id", "customer", "id"),
        ForeignKey("purchase_line", "purchase_id", "purchase", "id"),
        ForeignKey("purchase_line", "product_id", "product", "id"),
        ForeignKey("employee", "dept_id", "department", "id"),
    ),
)
SMALL = 60  # tokens: about a quarter of the shop


def kept(question: str, budget: int = SMALL, schema: Schema = SHOP) -> set[str]:
    linked = Linker(schema, None, count, budget).link(question)
    assert count(linked.text) <= budget
    return {f"{t.name}.{c.name}" for t in linked.schema.tables for c in t.columns}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("StuID", "stu id"),
        ("home_town-2", "home town 2"),
        ("XMLHttpRequest", "xml http request"),
        ("Größe", "große".replace("ß", "ss").replace("o", "o")),
        ("A11", "a 11"),
        ("What's 3.5 % of Köln?", "what s 3.5 of koln"),
        ("__", ""),
        ("在東京のNewYork3店", "在 東 京 の new york 3 店"),
        ("서울에", "서 울 에"),
    ],
)
def test_identifiers_and_sentences_as_words(text: str, words: str) -> None:
    assert words_of(text) == words.split()


def test_glued_words_come_apart_and_abbreviations_are_known() -> None:
    assert unglued("customername", {"custom", "customer", "name", "ername"}) == ["customer", "name"]
    assert unglued("rhythm", {"customer"}) == ["rhythm"]
    assert abbreviates("dept", "department") and abbreviates("qty", "quantity")
    assert not abbreviates("dept", "deep") and not abbreviates("part", "department")


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("What is the price per unit of each product?", "product.unit_price"),
        ("How old are the customers?", "customer.birthdate"),
        ("Which quantity was bought?", "purchase_line.qty"),
        ("What do the staff of each department earn?", "employee.salary employee.dept_id department.id"),
        ("titels and wieght of the prodcuts", "product.title product.weight"),
        ("budgets of divisions", "department.budget"),
        ("customers and what they bought: product titles", "customer.id product.title"),
        (
            "customer names with their purchases",
            "customer.first_name customer.last_name purchase.customer_id customer.id",
        ),
    ],
)
def test_the_columns_of_a_question_are_kept(question: str, wanted: str) -> None:
    assert set(wanted.split()) <= kept(question)


def test_a_table_between_two_that_are_asked_for_comes_with_its_keys() -> None:
    wanted = {"department.name", "product.title", "shelf.department_id", "shelf.product_id"}
    shelf = table("shelf", "id number, department_id number, product_id number, remark text, seen date, depth number")
    keys = (
        ForeignKey("shelf", "department_id", "department", "id"),
        ForeignKey("shelf", "product_id", "product", "id"),
    )
    schema = replace(SHOP, tables=(*SHOP.tables, shelf), foreign_keys=keys)
    assert wanted <= kept("title of each product and name of its department", 75, schema)


def test_everything_that_fits_is_kept_in_the_same_words_for_every_question() -> None:
    linker = Linker(SHOP, None, count, LARGE)
    texts = {linker.link(question).text for question in ("products", "who?", "salary of customers")}
    assert texts == {schema_text(SHOP)}
    budget = count(schema_text(SHOP, "kinds"))
    assert Linker(SHOP, None, count, budget).link("products").schema == SHOP
    assert Linker(SHOP, None, count, budget - 1).link("products").schema != SHOP


def test_the_part_is_in_the_order_of_the_database_and_the_same_every_time() -> None:
    question = "salary of employees by customer city and product title"
    first = Linker(SHOP, None, count, SMALL).link(question)
    order = [(t.name, c.name) for t in SHOP.tables for c in t.columns]
    part = [(t.name, c.name) for t in first.schema.tables for c in t.columns]
    assert part == sorted(part, key=order.index)
    again = Linker(SHOP, None, count, SMALL)
    again.link("something else before")
    assert again.link(question) == first


@pytest.mark.parametrize(
    ("value", "question"),
    [("Buenos Aires", "how many are in buenos aires"), ("东京", "在东京有多少"), ("Москва", "сколько в Москве")],
)
def test_a_value_leads_to_a_column_that_the_question_does_not_name(tmp_path: Path, value: str, question: str) -> None:
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        for number in range(12):
            connection.execute(f"CREATE TABLE t{number} (id INTEGER PRIMARY KEY, a{number} TEXT, b{number} INT)")
        connection.execute("INSERT INTO t7 VALUES (1, ?, 4)", (value,))
    connection.close()
    schema = reflect("shop", path)
    linked = Linker(schema, open_index(value, schema, path), count, 30).link(question)
    assert "a7" in linked.text
    assert [(match.column, match.value) for match in linked.values] == [("a7", value)]


def test_values_shown_are_few_and_of_kept_columns(tmp_path: Path) -> None:
    path = tmp_path / "many.sqlite"
    with sqlite3.connect(path) as connection:
        for number in range(12):
            connection.execute(f"CREATE TABLE t{number} (name TEXT, other TEXT)")
            connection.executemany(f"INSERT INTO t{number} VALUES (?, ?)", [("Ulm", "x"), ("ULM", "y"), ("ulm.", "z")])
    connection.close()
    schema = reflect("many", path)
    linker = Linker(schema, open_index("b", schema, path), count, 1_000)
    values = linker.link("people in Ulm").values
    assert len(values) == 8 and values[0].value == "Ulm"
    assert max(sum((v.table, v.column) == (w.table, w.column) for w in values) for v in values) <= 2
    part = Linker(schema, open_index("b", schema, path), count, 25).link("people in Ulm")
    assert {match.table for match in part.values} <= {t.name for t in part.schema.tables}


def test_comments_speak_for_cryptic_columns() -> None:
    columns = tuple(Column(f"A{n}", "number", "INT") for n in range(40))
    bare = Schema("bank", "sqlite", (Table("district", columns),))
    said = tuple(replace(c, comment="average salary" if c.name == "A11" else f"figure {c.name}") for c in columns)
    schema = replace(bare, tables=(Table("district", said),))
    assert "district.A11" in kept("districts with a high average salary", 50, schema)


def test_the_comment_of_a_table_speaks_for_it() -> None:
    said = table("t_042", "a1 text", comment="customers who complained")
    others = tuple(table(f"t_{number:03}", "b text, c text") for number in range(12))
    assert "t_042.a1" in kept("how many customers complained?", 30, Schema("x", "sqlite", (*others, said)))


@pytest.mark.parametrize(
    ("names", "question", "wanted"),
    [
        ("公司 名称 城市", "在东京有多少家公司", "公司.城市"),
        ("公司 名称 城市", "每家公司的名称", "公司.名称"),
        ("会社 会社名 所在地", "東京の会社の所在地はどこですか", "会社.所在地"),
        ("เมือง ชื่อ ประชากร", "ประชากรของเมืองนี้", "เมือง.ประชากร"),
    ],
)
def test_names_in_scripts_without_blanks_are_found(names: str, question: str, wanted: str) -> None:
    name, first, second = names.split()
    others = tuple(table(f"表_{number}", f"型_{number} text, 値_{number} text") for number in range(12))
    schema = Schema("local", "sqlite", (*others, table(name, f"{first} text, {second} text")))
    assert wanted in kept(question, 20, schema)


def test_weights_belong_to_the_signs() -> None:
    found = signs(SchemaWords(SHOP), "price of products in 1999", [])
    assert set(found) == set(WEIGHTS) and {len(values) for values in found.values()} == {35}


NAMES = st.text(string.ascii_letters + "_ 0é\"'.;-", max_size=12)


@given(
    st.lists(st.tuples(NAMES, st.lists(NAMES, min_size=1, max_size=6, unique_by=str.lower)), min_size=1, max_size=6),
    st.lists(st.tuples(*[st.integers(0, 5)] * 4), max_size=4),
    st.text(max_size=60),
    st.integers(1, 150),
)
def test_any_schema_and_question_give_a_part_within_the_budget(
    outline: list[tuple[str, list[str]]], keys: list[tuple[int, int, int, int]], question: str, budget: int
) -> None:
    tables = tuple(
        Table(f"{number}{name}", tuple(Column(c, "text", "TEXT", c == columns[0]) for c in columns))
        for number, (name, columns) in enumerate(outline)
    )

    def end(at: int, column: int) -> tuple[str, str]:
        owner = tables[at % len(tables)]
        return owner.name, owner.columns[column % len(owner.columns)].name

    links = dict.fromkeys(ForeignKey(*end(a, b), *end(c, d)) for a, b, c, d in keys)
    schema = Schema("any", "sqlite", tables, tuple(links))
    linked = Linker(schema, None, count, budget).link(question)
    names = {(t.name, c.name) for t in linked.schema.tables for c in t.columns}
    assert names and names <= {(t.name, c.name) for t in tables for c in t.columns}
    assert count(linked.text) <= budget or len(names) == 1
    for key in linked.schema.foreign_keys:
        assert {(key.table, key.column), (key.target, key.target_column)} <= names


def test_a_key_of_two_columns_is_kept_whole_or_not_at_all() -> None:
    keys = tuple(ForeignKey("lesson", name, "course", name, 1) for name in ("dept", "number"))
    others = tuple(table(f"part_{n}", ", ".join(f"item_{n}_{m} text" for m in range(20))) for n in range(9))
    lesson, course = "dept text, number number, room text", "dept text, number number, title text"
    schema = Schema("campus", "sqlite", (*others, table("course", course), table("lesson", lesson)), keys)
    linked = Linker(schema, None, count, 90).link("the title of the course of each lesson, and its room")
    assert "lesson.dept = course.dept AND lesson.number = course.number" in linked.text
    for budget in range(9, 60):
        assert len(Linker(schema, None, count, budget).link("number of the lesson").schema.foreign_keys) in (0, 2)


def test_two_thousand_columns() -> None:
    tables = tuple(table(f"part_{n}", ", ".join(f"item_{n}_{m} text" for m in range(100))) for n in range(20))
    schema = Schema("wide", "sqlite", (*tables, *SHOP.tables), SHOP.foreign_keys)
    part = kept("unit price of products, and item 7 31", 1_500, schema)
    assert {"product.unit_price", "part_7.item_7_31"} <= part and len(part) > 50


@pytest.mark.parametrize("script", ["CREATE TABLE t (a INT)", "CREATE TABLE t (a, b); CREATE TABLE u (c)"])
def test_one_table_no_keys_no_rows(tmp_path: Path, script: str) -> None:
    path = tmp_path / "bare.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(script)
    connection.close()
    schema = reflect("bare", path)
    index = open_index("c", schema, path)
    assert Linker(schema, index, count, LARGE).link("a?").text == schema_text(schema)
    assert "a" in Linker(schema, index, count, 1).link("a?").text


# Names as databases have them that people made with other tools.
ODD = ["order", "Order Details", "1st", 'a"b', "a'b", "Größe", "北京", "x-y", "a.b", "select", "name", "ID_2", " ", "%"]


@pytest.mark.parametrize("dialect", ["sqlite", "duckdb"])
def test_names_are_written_as_the_engine_reads_them(dialect: str) -> None:
    if dialect == "sqlite":
        import apsw

        connection, names = apsw.Connection(":memory:"), ODD + sorted(word.lower() for word in apsw.keywords)
        run = lambda sql: list(connection.execute(sql))  # noqa: E731
    else:
        duckdb = pytest.importorskip("duckdb")
        database = duckdb.connect()
        words = database.execute("SELECT keyword_name FROM duckdb_keywords()").fetchall()
        names = list(dict.fromkeys(ODD + [word for (word,) in words]))
        run = lambda sql: database.execute(sql).fetchall()  # noqa: E731
    for name in names:
        exact = '"' + name.replace('"', '""') + '"'
        run(f"CREATE TABLE {exact} ({exact} INT)")
        run(f"INSERT INTO {exact} VALUES (42)")
        written = sql_name(name, dialect)
        assert run(f"SELECT {written} FROM {written} WHERE {written}.{written} = 42") == [(42,)], name
        run(f"DROP TABLE {exact}")


def test_plain_names_stay_plain_and_postgresql_keeps_its_capitals() -> None:
    assert [sql_name(name, "sqlite") for name in ("StuID", "key", "first", "_x9")] == ["StuID", "key", "first", "_x9"]
    assert [sql_name(name, "postgres") for name in ("StuID", "stuid", "user")] == ['"StuID"', "stuid", '"user"']


def test_odd_texts_do_not_break_the_lines_of_the_schema_text() -> None:
    column = Column("order", "text", "TEXT", samples=("two\nlines", "x" * 99), comment="first\n\nsecond " + "y" * 200)
    text = schema_text(Schema("odd", "sqlite", (Table("t", (column,), comment="a\ttable"),)))
    assert text.startswith('table t (a table): "order" (text; first second yyy') and "\n" not in text
    assert "e.g. two lines | " + "x" * 29 + "…" in text and len(text) < 200


def test_without_linking_detail_goes_before_columns() -> None:
    texts = [fitting_schema_text(SHOP, budget, count) for budget in (LARGE, count(schema_text(SHOP)) - 1, 1)]
    assert texts[0] == schema_text(SHOP) and texts[2] == schema_text(SHOP, "names")


def test_descriptions_become_comments(tmp_path: Path) -> None:
    folder = tmp_path / "database_description"
    folder.mkdir()
    head = "original_column_name,column_name,column_description,data_format,value_description\n"
    (folder / "Customer.csv").write_text(
        head + 'city ,place,"the town\nof the customer",text,\nbirthdate,,born on,date,\nlast_name,last name,,text,\n'
        "nobody,x,y,text,\n",
        encoding="utf-8-sig",
    )
    (folder / "product.csv").write_bytes((head + "unit_price,prix à l'unité,,integer,\n").encode("cp1252"))
    schema = described(SHOP, folder)
    said = {f"{t.name}.{c.name}": c.comment for t in schema.tables for c in t.columns if c.comment}
    assert said == {
        "customer.city": "place: the town of the customer",
        "customer.birthdate": "born on",
        "product.unit_price": "prix à l'unité",
    }
    listed = tmp_path / "tables.json"
    listed.write_text(
        '[{"db_id": "shop", "table_names_original": ["customer"], "table_names": ["buyers"], "column_names_original": '
        '[[-1, "*"], [0, "city"], [0, "last_name"]], "column_names": [[-1, "*"], [0, "home town"], [0, "last name"]]}]'
    )
    customer = described(SHOP, listed).table("customer")
    assert customer is not None and customer.comment == "buyers"
    assert [c.comment for c in customer.columns] == ["", "", "", "", "home town"]
    assert described(replace(SHOP, db_id="another"), listed).tables == SHOP.tables


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "not the form"),
        ("[1]", "not the form"),
        ('[{"db_id": "shop"}]', "of shop has not"),
    ],
)
def test_broken_descriptions_are_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "tables.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        described(SHOP, file)
