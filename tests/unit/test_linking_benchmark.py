"""The benchmark of linking counts the gold's own tables and columns, and the targets hold on benchmark data."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.linking.cases import Case, Gold, Source, gold_of, groups, merged, moved
from spftsql.databases.schema import Column, ForeignKey, Schema, Table
from tests.conftest import CHECKOUT


def columns(names: str) -> tuple[Column, ...]:
    return tuple(Column(name, "text", "TEXT") for name in names.split())


SCHEMA = Schema(
    "school",
    "sqlite",
    (
        Table("Student", columns("id name age")),
        Table("Course", columns("id title")),
        Table("Takes", columns("sid cid")),
    ),
    (ForeignKey("Takes", "sid", "Student", "id"),),
)


@pytest.mark.parametrize(
    ("sql", "tables", "expected"),
    [
        ("SELECT count(*) FROM student", "student", ""),
        ("SELECT * FROM Student WHERE AGE > 3", "student", "student.age"),
        ('SELECT name FROM student WHERE name = "Title"', "student", "student.name"),
        (
            "SELECT T1.Name, title FROM Student T1 JOIN takes AS T2 ON T1.id = T2.sid JOIN course ON course.id = cid",
            "student takes course",
            "student.name course.title student.id takes.sid course.id takes.cid",
        ),
        ("SELECT a.n FROM (SELECT name AS n FROM student) AS a", "student", "student.name"),
        (
            "SELECT title FROM course WHERE id IN (SELECT cid FROM takes) EXCEPT SELECT name FROM student",
            "student takes course",
            "course.title course.id takes.cid student.name",
        ),
    ],
)
def test_gold_columns(sql: str, tables: str, expected: str) -> None:
    gold = gold_of(sql, SCHEMA)
    assert gold.tables == set(tables.split())
    assert {f"{table}.{column}" for table, column in gold.columns} == set(expected.split())


def test_databases_are_merged_under_names_of_their_own(tmp_path: Path) -> None:
    sources = {"a": Source(SCHEMA, None), "b": Source(replace(SCHEMA, db_id="b"), None)}
    source, renamed = merged(sources, ["a", "b"], tmp_path)
    assert [table.name for table in source.schema.tables] == [
        "Student", "Course", "Takes", "Student_2", "Course_2", "Takes_2",
    ]  # fmt: skip
    assert source.schema.foreign_keys[1] == ForeignKey("Takes_2", "sid", "Student_2", "id")
    case = Case("b", "?", "", "", Gold(frozenset({"student"}), frozenset({("student", "age")})))
    assert moved(case, renamed).gold.columns == {("student_2", "age")}
    assert groups("abcdefg", 2) == groups(reversed("abcdefg"), 2)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_targets_hold(data_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.linking"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    for name, least in (("Spider dev", 0.98), ("BIRD dev, schema only", 0.97)):
        assert figures[f"{name}, 1500 tokens"]["recall"] >= least
        part = figures[f"{name}, merged, 15% of the columns"]
        assert part["recall"] >= 0.95 and part["columns_kept"] <= 0.15
    assert figures["values, Spider dev"]["recall"] >= 0.9
