"""Reflection reads what synthesis and prompts build on, from databases as people have them."""

import json
import sqlite3
from pathlib import Path

import duckdb
import pytest

from spftsql.config import DatabaseConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.databases.files import database_file, database_location, file_hash
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import ForeignKey, Schema
from spftsql.databases.schema_text import fitting_schema_text, schema_text
from spftsql.errors import UserError

SCRIPT = """
CREATE TABLE town (id INTEGER PRIMARY KEY, name TEXT, founded DATE, size INT, "order" TEXT);
CREATE TABLE shop (id INTEGER PRIMARY KEY, town_id INTEGER REFERENCES town (id), label TEXT, mayor TEXT);
INSERT INTO town VALUES (1, 'Ulm', '0854-07-22', 126000, 'x'), (2, 'Köln', '0050-01-01', NULL, 'y');
INSERT INTO town VALUES (3, 'Ulm', NULL, 5, 'z');
INSERT INTO shop VALUES (1, 1, 'a', NULL), (2, 1, 'b', NULL);
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "towns.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(SCRIPT)
    connection.close()
    return path


def test_tables_columns_kinds_and_counts(file: Path) -> None:
    town = reflect("towns", file).table("TOWN")
    assert town is not None and town.rows == 3 and town.primary_key == ("id",)
    kinds = {column.name: column.kind for column in town.columns}
    assert kinds == {"id": "number", "name": "text", "founded": "date", "size": "number", "order": "text"}
    name = town.column("name")
    assert name is not None and (name.distinct, name.nulls, name.samples) == (2, 0, ("Ulm", "Köln"))


def test_declared_and_added_foreign_keys(file: Path) -> None:
    declared = ForeignKey("shop", "town_id", "town", "id")
    assert reflect("towns", file).foreign_keys == (declared,)
    added = reflect("towns", file, ["shop.mayor = town.name"]).foreign_keys
    assert added == (declared, ForeignKey("shop", "mayor", "town", "name"))
    with pytest.raises(UserError, match="does not name two columns"):
        reflect("towns", file, ["shop.nobody = town.name"])


COMPOSITE = """
CREATE TABLE course (dept TEXT, number INTEGER, title TEXT, PRIMARY KEY (dept, number));
CREATE TABLE student (id INTEGER PRIMARY KEY, dept TEXT);
CREATE TABLE enrolment (student INTEGER REFERENCES student (id), dept TEXT, number INTEGER, best INTEGER, of TEXT,
    FOREIGN KEY (dept, number) REFERENCES course (dept, number),
    FOREIGN KEY (of, best) REFERENCES course (dept, number));
"""


def composite_keys(schema: Schema) -> set[frozenset[tuple[str, str]]]:
    return {
        frozenset((key.column, f"{key.target}.{key.target_column}") for key in keys)
        for keys in schema.constraints
        if keys[0].table == "enrolment"
    }


WHOLE = {
    frozenset({("student", "student.id")}),
    frozenset({("dept", "course.dept"), ("number", "course.number")}),
    frozenset({("of", "course.dept"), ("best", "course.number")}),
}


@pytest.mark.parametrize("engine", ["sqlite", "duckdb"])
@pytest.mark.parametrize("named", [True, False])
def test_a_key_of_several_columns_stays_together(tmp_path: Path, engine: str, named: bool) -> None:
    path = tmp_path / f"campus.{engine}"
    script = COMPOSITE if named else COMPOSITE.replace("course (dept, number)", "course")
    if engine == "duckdb":
        with duckdb.connect(str(path)) as database:
            database.execute(script)
    else:
        with sqlite3.connect(path) as connection:
            connection.executescript(script)
    schema = reflect("campus", path)
    assert composite_keys(schema) == WHOLE
    assert [key.constraint for key in schema.foreign_keys if key.target == "student"] == [0]
    assert Schema.from_json(schema.to_json()) == schema
    text = schema_text(schema)
    assert "enrolment.student = student.id\n" in text + "\n"
    assert "enrolment.dept = course.dept AND enrolment.number = course.number\n" in text + "\n"


def test_one_key_declared_twice_is_one(tmp_path: Path) -> None:
    path = tmp_path / "campus.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(COMPOSITE.replace("(of, best)", "(dept, number)"))
    assert composite_keys(reflect("campus", path)) == {key for key in WHOLE if "of" not in dict(key)}
    assert len(reflect("campus", path).foreign_keys) == 3


def test_keys_of_one_column_are_written_as_ever(file: Path) -> None:
    """The text of a schema without keys of several columns names what is kept of it, so it must not change."""
    keys = json.loads(reflect("towns", file).to_json())["foreign_keys"]
    assert keys == [{"table": "shop", "column": "town_id", "target": "town", "target_column": "id"}]


def test_reading_does_not_touch_the_file(file: Path) -> None:
    before = file_hash(file)
    reflect("towns", file)
    assert file_hash(file) == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_schema_survives_json_and_names_everything(file: Path) -> None:
    schema = reflect("towns", file)
    assert Schema.from_json(schema.to_json()) == schema
    text = schema_text(schema)
    assert "table town: id (number; primary key), name (text; e.g. Ulm | Köln)" in text
    assert "shop.town_id = town.id" in text


def test_a_small_budget_drops_detail_not_columns(file: Path) -> None:
    schema = reflect("towns", file)
    full = fitting_schema_text(schema, 10_000, len)
    names = fitting_schema_text(schema, 1, len)
    assert full == schema_text(schema) and len(names) < len(full)
    assert all(column.name in names for table in schema.tables for column in table.columns)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), (b"not a database at all", "is not a SQLite database")]
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "wrong.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        database_file(str(path))


def test_other_engines_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="only SQLite"):
        database_file("postgresql://localhost/sales")
    with pytest.raises(UserError, match="not an address that can be used"):
        database_location("mysql://localhost/sales")


def test_an_empty_database_says_so(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "empty.sqlite").close()
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(UserError, match="has no tables"):
        open_catalogue([DatabaseConfig(name="empty", url=str(tmp_path / "empty.sqlite"))])


FULL_TEXT = """
CREATE TABLE plain (id INTEGER PRIMARY KEY, note TEXT);
INSERT INTO plain VALUES (1, 'x'), (2, 'y');
CREATE VIRTUAL TABLE f USING fts5 (title, body);
INSERT INTO f VALUES ('first', 'one two'), ('second', 'two three'), ('third', 'three four');
CREATE VIRTUAL TABLE four USING fts4 (text);
INSERT INTO four VALUES ('one'), ('two');
CREATE VIRTUAL TABLE box USING rtree (id, low, high);
INSERT INTO box VALUES (1, 0.0, 1.0);
"""


def test_the_insides_of_virtual_tables_are_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "texts.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(FULL_TEXT)
    connection.close()
    schema = reflect("texts", path)
    columns = {table.name: [column.name for column in table.columns] for table in schema.tables}
    assert columns == {"plain": ["id", "note"], "f": ["title", "body"], "four": ["text"], "box": ["id", "low", "high"]}
    f = schema.table("f")
    assert f is not None and f.rows == 3 and f.columns[0].samples == ("first", "second", "third")


def test_a_table_named_like_the_insides_of_another_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "texts.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript("CREATE TABLE f (a); CREATE TABLE f_data (b); CREATE TABLE box_node (c)")
    connection.close()
    assert [table.name for table in reflect("texts", path).tables] == ["box_node", "f", "f_data"]


VIEWS = """
CREATE VIEW town AS SELECT column1 AS id, column2 AS name FROM (VALUES (1, 'Ulm'), (2, 'Bonn'), (3, 'Ulm'));
CREATE VIEW large AS SELECT name FROM town WHERE id > 1;
"""


def test_of_a_database_of_views_alone_the_views_are_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "views.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(VIEWS)
    connection.close()
    database = open_catalogue([DatabaseConfig(name="views", url=str(path))])["views"]
    assert [(table.name, table.rows, table.primary_key) for table in database.schema.tables] == [
        ("large", 2, ()), ("town", 3, ()),
    ]  # fmt: skip
    town = database.schema.table("town")
    assert town is not None
    assert [(c.name, c.kind, c.samples) for c in town.columns] == [
        ("id", "number", (1, 2, 3)), ("name", "text", ("Ulm", "Bonn")),
    ]  # fmt: skip
    assert database.schema.foreign_keys == ()


def test_beside_tables_views_are_not_reflected(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE VIEW large AS SELECT name FROM town")
    connection.close()
    assert {table.name for table in reflect("towns", file).tables} == {"town", "shop"}


def test_a_view_over_what_is_gone_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "views.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript("CREATE TABLE t (a); CREATE VIEW v AS SELECT a FROM t; DROP TABLE t")
    connection.close()
    with pytest.raises(UserError, match=r"^database .*views\.sqlite cannot be read: .*no such table: main\.t"):
        reflect("views", path)


def test_names_are_unique(file: Path) -> None:
    config = DatabaseConfig(name="towns", url=str(file))
    with pytest.raises(UserError, match="two databases"):
        open_catalogue([config, config])


def test_schema_of_a_duckdb_file(tmp_path: Path) -> None:
    path = tmp_path / "towns.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            """
            CREATE TABLE town (id INTEGER PRIMARY KEY, name VARCHAR, founded DATE, tags VARCHAR[], size DECIMAL(10, 1));
            CREATE TABLE shop (id INTEGER, town_id INTEGER REFERENCES town (id), open BOOLEAN);
            CREATE VIEW large AS SELECT name FROM town WHERE size > 10;
            CREATE SCHEMA other; CREATE TABLE other.elsewhere (x INTEGER);
            COMMENT ON TABLE town IS 'where people live'; COMMENT ON COLUMN town.name IS 'what people call it';
            INSERT INTO town VALUES (1, 'Ulm', '0854-07-22', ['x'], 12.5), (2, 'Bonn', NULL, NULL, 3);
            INSERT INTO shop VALUES (1, 1, true), (2, 1, NULL);
            """
        )
    schema = reflect("towns", path)
    assert schema.dialect == "duckdb"
    assert {table.name: table.rows for table in schema.tables} == {"shop": 2, "town": 2, "large": 1}
    town, shop = schema.table("town"), schema.table("shop")
    assert town is not None and (town.primary_key, town.comment) == (("id",), "where people live")
    kinds = {column.name: (column.kind, column.distinct, column.samples) for column in town.columns}
    assert kinds == {
        "id": ("number", 2, (1, 2)),
        "name": ("text", 2, ("Bonn", "Ulm")),
        "founded": ("date", 1, ("0854-07-22",)),
        "tags": ("other", 1, ()),
        "size": ("number", 2, (3, 12.5)),
    }
    assert town.columns[1].comment == "what people call it"
    assert shop is not None and shop.columns[2].kind == "boolean" and shop.columns[2].samples == ("true",)
    assert schema.foreign_keys == (ForeignKey("shop", "town_id", "town", "id"),)
    assert open_catalogue([DatabaseConfig(name="towns", url=str(path))])["towns"].content == file_hash(path)
