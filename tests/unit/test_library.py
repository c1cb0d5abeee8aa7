"""The built-in templates: as hard as they say, and with results on databases that have no labels."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from spftsql.config import SandboxConfig
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.databases.values import Values
from spftsql.errors import UserError
from spftsql.synthesis.accepting import Tally, accepted, local_executors
from spftsql.synthesis.canonical import canonical_sql, parse
from spftsql.synthesis.filling import Sampler, fill, synthesize
from spftsql.synthesis.hardness import hardness
from spftsql.synthesis.library import library, read_templates, with_library, write_templates
from spftsql.synthesis.rendering import compile_template
from spftsql.synthesis.templates import Bindings, Template, extract

FIXTURES = Path(__file__).parents[1] / "fixtures" / "templates"
SHARES = {"easy": 0.25, "medium": 0.40, "hard": 0.20, "extra": 0.15}


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.text_factory = lambda data: data.decode(errors="replace")
        yield connection


def first_result(
    template: Template, schema: Schema, values: Values, connection: sqlite3.Connection, tries: int
) -> tuple[str, Bindings] | None:
    """A statement of the template that gives something else than nothing or NULL."""
    rng = random.Random(0)
    for _ in range(tries):
        filled = fill(template, (), schema, values, rng, 1.0)
        if filled is not None:
            ticks = iter(range(100))  # of 100,000 steps: what takes longer is left
            connection.set_progress_handler(lambda ticks=ticks: next(ticks, None) is None, 100_000)  # type: ignore[misc]
            try:
                rows = connection.execute(filled[0]).fetchmany(20)
            except sqlite3.OperationalError as error:
                assert str(error) == "interrupted"
                continue
            if any(cell is not None for row in rows for cell in row):
                return filled
    return None


def test_levels_have_their_shares_and_every_line_is_another() -> None:
    templates = library()
    assert len(templates) >= 150
    assert len({template.id for template in templates}) == len(templates)
    total = sum(template.count for template in templates)
    weights: Counter[str] = Counter()
    for template in templates:
        compile_template(template.sql)
        weights[template.hardness] += template.count
    for level, share in SHARES.items():
        assert weights[level] / total == pytest.approx(share, abs=0.02)


def test_fills_chinook_with_statements_as_hard_as_they_say(data_root: Path) -> None:
    path = data_root / "samples/chinook/Chinook_Sqlite.sqlite"
    schema, values = reflect("chinook", path), Values(path)
    missing = []
    with opened(path) as connection:
        for template in library():
            found = first_result(template, schema, values, connection, 40)
            if found is None:
                missing.append(template.sql)
                continue
            sql, bindings = found
            assert canonical_sql(sql, schema) == sql
            (shape,) = template.bindings
            if [len(s.tables) for s in bindings.scopes] == [len(s.tables) for s in shape.scopes]:  # without bridges
                assert hardness(parse(sql)) == template.hardness, sql
    assert len(missing) <= 0.05 * len(library()), missing


def test_two_keys_to_one_table_and_two_children_of_one_row_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "flights.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript((FIXTURES / "flights.sql").read_text(encoding="utf-8"))
    schema, values = reflect("flights", path), Values(path)
    repeated = [t for t in library() if any(1 < len(set(s.tables)) < len(s.tables) for s in t.bindings[0].scopes)]
    assert len(repeated) >= 8
    with opened(path) as connection:
        for template in repeated:
            found = first_result(template, schema, values, connection, 300)
            assert found is not None, template.sql
            assert canonical_sql(found[0], schema) == found[0]
            assert hardness(parse(found[0])) == template.hardness


@pytest.mark.long
def test_every_spider_database_gets_many_templates(data_root: Path) -> None:
    folders = sorted(path for path in (data_root / "spider/database").iterdir() if path.is_dir())
    filled = 0
    for folder in folders[:: len(folders) // 25]:
        path = folder / f"{folder.name}.sqlite"
        schema, values = reflect(folder.name, path), Values(path)
        if not any(table.rows for table in schema.tables):
            continue  # Spider ships some without a row
        filled += 1
        with opened(path) as connection:
            found = [first_result(template, schema, values, connection, 10) for template in library()]
        assert sum(one is not None for one in found) >= 30, folder.name
    assert filled >= 20


def test_synthesis_without_any_label(data_root: Path) -> None:
    path = data_root / "samples/chinook/Chinook_Sqlite.sqlite"
    schemas = {"chinook": reflect("chinook", path)}
    made = list(synthesize(library(), schemas, {"chinook": path}, 150, 0, 1.0, None, ()))
    again = list(synthesize(library(), schemas, {"chinook": path}, 150, 0, 1.0, None, ()))
    assert [statement.sql for statement in made] == [statement.sql for statement in again]
    assert len(made) == 150
    assert len({statement.template for statement in made}) > 60
    few = list(synthesize(library(), schemas, {"chinook": path}, 50, 0, 0.3, None, ()))
    assert len(few) == 50  # shapes are no bindings of a database, whatever the share of new columns


def test_a_file_reads_back_and_names_nothing(tmp_path: Path) -> None:
    path = tmp_path / "zoo.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            """CREATE TABLE keeper (nr INTEGER PRIMARY KEY, surname TEXT, chief INTEGER REFERENCES keeper (nr));
            CREATE TABLE beast (tag TEXT PRIMARY KEY, species TEXT, kilos REAL, nr INTEGER REFERENCES keeper (nr));
            INSERT INTO keeper VALUES (1, 'Ono', NULL), (2, 'Poe', 1);
            INSERT INTO beast VALUES ('x', 'ibis', 2.5, 2), ('y', 'gnu', 150.5, 1);"""
        )
    schema = reflect("zoo", path)
    labels = [
        "SELECT surname FROM keeper JOIN beast ON keeper.nr = beast.nr WHERE species = 'ibis'",
        "SELECT a.surname FROM keeper a JOIN keeper b ON a.chief = b.nr WHERE b.surname = 'Ono'",
        "SELECT surname FROM keeper LEFT JOIN beast ON keeper.nr = beast.nr WHERE kilos + 7 > 9",
        "SELECT surname FROM keeper JOIN (SELECT nr, COUNT(*) AS n FROM beast GROUP BY nr) t ON t.nr = keeper.nr",
    ]
    templates = [extract(sql, schema)[0] for sql in labels]
    text = write_templates(templates, {"zoo": schema})
    for word in ("keeper", "beast", "surname", "species", "kilos", "chief", "tag", '"nr"', "ibis", "Ono", "zoo"):
        assert word not in text
    for line in text.splitlines():
        assert {"id", "sql", "slots", "count", "hardness"} <= json.loads(line).keys()
    file = tmp_path / "templates.jsonl"
    file.write_text(text, encoding="utf-8")
    back = read_templates(file)
    assert [replace(t, bindings=()) for t in back] == [replace(t, bindings=()) for t in templates]
    assert write_templates(back, {}) == text
    with opened(path) as connection:
        assert all(first_result(t, schema, Values(path), connection, 50) is not None for t in back)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "holds no templates"),
        ("{", "line 1 is not a template"),
        ("[]", "line 1 is not a template"),
        ('{"id": "1"}', "'slots' is missing"),
        ('{"id": "1", "sql": "SELECT (", "slots": [], "count": 1, "hardness": "easy", "shapes": []}', "does not parse"),
        (
            '{"id": "1", "sql": "SELECT col_text_1", "slots": [], "count": 1, "hardness": "easy", "shapes": []}',
            "not described",
        ),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        read_templates(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_templates(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "joins",
    [
        [["", [[0, "fk", "key"]]]],
        [["", [[0, "fk", "key"]]], ["", [[5, "fk2", "key"]]]],
        [["", [[0, "fk", "key"]]], ["", [[2, "fk2", "key"]]]],
        [["", [[-1, "fk", "key"]]], ["", [[0, "fk2", "key"]]]],
    ],
    ids=["one too few", "no such table", "itself", "from behind"],
)
def test_joins_that_do_not_fit_their_tables_are_one_line(tmp_path: Path, joins: list[object]) -> None:
    (template,) = [t for t in library() if t.sql == "SELECT s1_2.col_text_1, s1_3.col_text_1"]
    line = json.loads(write_templates([template], {}))
    line["shapes"][0]["scopes"][0]["joins"] = joins
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1 is not a template: its joins do not fit its tables"):
        read_templates(file)


def test_accepted_sql_needs_no_label(data_root: Path) -> None:
    path = data_root / "samples/chinook/Chinook_Sqlite.sqlite"
    schemas = {"chinook": reflect("chinook", path)}
    tally = Tally()
    sampler = Sampler(with_library([], 1.0), schemas, {"chinook": path}, 0, 0.3)
    with local_executors({"chinook": str(path)}, SandboxConfig()) as executors:
        made = list(accepted(sampler, executors, 120, tally=tally))
    assert len(made) == tally.accepted == 120
    assert len({statement.template for statement in made}) > 60
