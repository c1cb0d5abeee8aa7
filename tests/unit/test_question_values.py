"""Whether a question says what its SQL filters on, and what of a question hides behind placeholders."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spftsql.config import DatabaseConfig, PromptConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.databases.schema import Column, Schema, Table
from spftsql.linking.column_words import column_words
from spftsql.linking.literals import filter_literals, says, unsaid
from spftsql.linking.placeholders import hidden_values, linked_values
from spftsql.linking.value_index import open_index
from spftsql.linking.value_matching import ValueMatch
from spftsql.prompts import PromptBuilder
from spftsql.recipes import validate
from spftsql.records import Sample, Statement
from spftsql.selfplay.round_trip import RoundTrip

CASES = yaml.safe_load((Path(__file__).parents[1] / "fixtures" / "questions" / "says.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("question", "value", "said"), CASES)
def test_says(question: str, value: str, said: bool) -> None:
    assert says(question, value) is said


@given(st.integers(min_value=0, max_value=10**9))
def test_every_whole_number_is_said_with_and_without_commas(number: int) -> None:
    assert says(f"more than {number:,} people", str(number)) and says(f"more than {number} people", str(number))
    assert not says(f"more than {number} people", str(number + 1))


@given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_any_text_has_an_answer(question: str, value: str) -> None:
    assert says(question, value) in (True, False)


@pytest.mark.parametrize(
    ("sql", "literals"),
    [
        ("SELECT a FROM t WHERE b = 'x' AND c > 3", ["x", "3"]),
        ("SELECT a * 2 FROM t WHERE b LIKE '%lake%'", ["lake"]),
        ("SELECT a FROM t WHERE b IN ('x', 'y') AND c BETWEEN 1 AND -2", ["x", "y", "1", "-2"]),
        ("SELECT a FROM t GROUP BY a HAVING COUNT(*) > 5 ORDER BY a LIMIT 3", ["5", "3"]),
        ("SELECT a FROM t ORDER BY a LIMIT 1", []),
        ("SELECT a FROM t WHERE strftime('%Y', b) = '2010' AND c = ''", ["2010"]),
        ("SELECT a FROM t WHERE b > (SELECT AVG(b) + 1 FROM t WHERE c = 'x')", ["x"]),
        ("SELECT a FROM t WHERE b = 'x' UNION SELECT a FROM t WHERE b = 'x'", ["x"]),
        ("SELECT a FROM t WHERE SUBSTR(d, 1, 4) = '2012'", ["2012"]),
        ("SELECT a FROM t WHERE ROUND(x, 2) > 5", ["5"]),
        ("SELECT a FROM t WHERE CAST(x AS REAL) * 100 / y > 50", ["50"]),
        ("SELECT a FROM t WHERE CAST(x AS DECIMAL(10, 2)) > (5)", ["5"]),
        ("SELECT a FROM t GROUP BY a HAVING SUM(CASE WHEN b = 'x' THEN 1 ELSE 0 END) > 2", ["x", "2"]),
        ("SELECT a FROM t GROUP BY a HAVING SUM(CASE b WHEN 'x' THEN 1 ELSE 0 END) > 2", ["x", "2"]),
        ("SELECT a FROM t WHERE x > 0.5 * (SELECT AVG(x) FROM t) AND x - 5 > y", []),
        ("SELECT COUNT(*) FILTER (WHERE b = 'x') FROM t", ["x"]),
        ("SELECT a FROM t WHERE b = 'x' COLLATE NOCASE AND LOWER(c) = LOWER('Y')", ["x", "Y"]),
        ("SELECT a FROM t WHERE (a, b) IN (VALUES (1, 'x')) AND (a, b) = (2, 'y')", ["1", "x", "2", "y"]),
        (
            "SELECT a FROM t WHERE d > DATE('2010-03-05') AND e < CAST('2011-01-01' AS DATE)",
            ["2010-03-05", "2011-01-01"],
        ),
        ("SELECT a FROM t WHERE d > DATE('now', '-7 days') AND COALESCE(x, 0) <= -(5)", ["-5"]),
        ("SELECT a FROM t WHERE b LIKE '%' || 'x' || '%'", ["x"]),
    ],
)
def test_what_a_statement_filters_on(sql: str, literals: list[str]) -> None:
    assert sorted(filter_literals(sql, "sqlite")) == sorted(literals)


def test_what_a_question_leaves_out() -> None:
    sql = "SELECT name FROM city WHERE state = 'texas' AND population > 150000"
    assert unsaid("large cities in Texas", sql, "sqlite") == ("150000",)
    assert unsaid("cities in Texas with over 150,000 people", sql, "sqlite") == ()
    with pytest.raises(ValueError, match=r".+"):
        filter_literals("SELECT FROM WHERE (", "sqlite")


@pytest.mark.parametrize(
    ("text", "question", "missing"),
    [
        ("the 5 largest cities in state0", "the 5 largest cities in texas", ()),
        ("the five largest cities in state0", "the five largest cities in texas", ()),
        ("which large cities are in state0", "which large cities are in texas", ("5",)),
        ("the 5 largest cities", "the 5 largest cities", ("texas",)),
        ("the 5 largest cities in state1", "the 5 largest cities in state1", ("texas",)),
    ],
)
def test_questions_with_hidden_values_say_the_limit_too(
    tmp_path: Path, text: str, question: str, missing: tuple[str, ...]
) -> None:
    path = tmp_path / "geo.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE city (name TEXT, state TEXT, size INT)")
    sql = "SELECT name FROM city WHERE state = 'texas' ORDER BY size DESC LIMIT 5"
    tree = {
        "name": "test",
        "data": {"benchmark": "demo"},
        "model": {"path": "unused"},
        "synthesis": {"hide_values": True},
    }
    trip = RoundTrip(
        tmp_path,
        validate(tree, "test"),
        PromptBuilder(PromptConfig(), None),
        open_catalogue([DatabaseConfig(name="geo", url=str(path))]),
        1,
        {"q": Statement("s", "geo", sql, "t", "{}", 1)},
        "model",
    )
    ((phrasing,),) = trip.phrasings([Sample("q", "geo", "model", 0, text, 9, "stop")]).values()
    assert (phrasing.text, phrasing.missing) == (question, missing)


@given(st.text(min_size=1, max_size=20))
def test_any_value_is_said_by_a_question_that_quotes_it(value: str) -> None:
    assert says(f"which rows have {value} in them", value)


def own(column: tuple[str, str]) -> tuple[str, str]:
    """Every column is a domain of its own."""
    return column


def match(question: str, value: str, column: str, count: int = 1) -> ValueMatch:
    start = question.lower().index(value)
    return ValueMatch("t", column, value, "folded", 0.99, start, start + len(value), count)


def test_values_of_a_question_hide_in_its_sql_and_come_back() -> None:
    question = "cities in New York with more than 5000 people beside o'hare"
    hidden = hidden_values(question, [match(question, "new york", "state"), match(question, "o'hare", "airport")], own)
    assert hidden.question == "cities in state0 with more than number0 people beside airport0"
    sql = "SELECT name FROM city WHERE state = 'new york' AND pop > 5000 AND a LIKE '%o''hare%' LIMIT 3"
    shown = "SELECT name FROM city WHERE state = 'state0' AND pop > 'number0' AND a LIKE '%airport0%' LIMIT 3"
    assert hidden.hide(sql) == shown
    assert hidden.show(shown) == sql


def test_a_value_of_several_columns_has_one_name_and_the_longer_match_wins() -> None:
    question = "is new york city in new york"
    found = [match(question, "new york", "state"), match(question, "new york city", "city")]
    late = ValueMatch("t", "state", "new york", "folded", 0.99, 20, 28, 9)
    also = ValueMatch("u", "city", "new york", "folded", 0.99, 20, 28, 2)
    hidden = hidden_values(question, [*found, late, also], own)
    assert hidden.question == "is city0 in state0"  # more rows hold it as a state
    joined = {("u", "city"): ("s", "state"), ("t", "city"): ("t", "state")}
    assert hidden_values(question, [late, also], lambda column: joined.get(column, column)).question.endswith(
        "in state0"
    )
    assert hidden.show("SELECT 1 FROM t WHERE a = 'city0' AND b = 'city1'") == (
        "SELECT 1 FROM t WHERE a = 'new york city' AND b = 'city1'"
    )


def test_placeholders_are_few_and_stand_for_what_the_question_means(tmp_path: Path) -> None:
    path = tmp_path / "rivers.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE state (state_name TEXT PRIMARY KEY);"
            "CREATE TABLE river (river_name TEXT, traverse TEXT REFERENCES state(state_name));"
            "CREATE TABLE highlow (state_name TEXT REFERENCES state(state_name), lowest_point TEXT);"
            "CREATE TABLE mountain (mountain_name TEXT);"
            "INSERT INTO state VALUES ('ohio'), ('kentucky'), ('indiana');"
            "INSERT INTO river VALUES ('ohio', 'ohio'), ('ohio', 'kentucky'), ('wabash', 'indiana');"
            "INSERT INTO highlow VALUES ('ohio', 'ohio river'), ('kentucky', 'mississippi river');"
            "INSERT INTO mountain VALUES ('longs');"
        )
    connection.close()
    (database,) = open_catalogue([DatabaseConfig(name="rivers", url=str(path))]).values()
    with closing(open_index(database.content, database.schema, database.location)) as index:
        questions = {
            "how long is the ohio river": "how long is the state_name0 river",  # no mountain; the river, not the point
            "where is Mississippi River": "where is lowest_point0",  # no river of that name
            "does the wabash cross indiana": "does the river_name0 cross state_name0",
        }
        for question, asked in questions.items():
            assert linked_values(question, database.schema, index).question == asked
        hidden = linked_values("how long is the ohio river", database.schema, index)
    assert hidden.hide("SELECT 1 WHERE river_name = 'ohio'") == "SELECT 1 WHERE river_name = 'state_name0'"


def test_identifiers_that_look_like_placeholders_stay() -> None:
    hidden = hidden_values("cities of texas", [match("cities of texas", "texas", "city")], own)
    assert hidden.show("SELECT city0.name FROM city AS city0 WHERE city0.name = 'city0'") == (
        "SELECT city0.name FROM city AS city0 WHERE city0.name = 'texas'"
    )


@given(
    st.text(st.characters(exclude_categories=["Cs", "Nd"]), min_size=1).filter(
        lambda t: "%" not in t and t == t.strip()
    )
)
def test_any_value_comes_back(value: str) -> None:
    hidden = hidden_values(value, [ValueMatch("t", "c", value, "verbatim", 1.0, 0, len(value), 1)], own)
    sql = "SELECT a FROM t WHERE c = '" + value.replace("'", "''") + "'"
    assert hidden.question == "c0"
    assert hidden.show(hidden.hide(sql)) == sql


def test_cryptic_columns_are_said_in_words() -> None:
    columns = (
        Column("cust_nm", "text", "TEXT", comment="full legal name"),
        Column("name", "text", "TEXT"),
        Column("CustId", "number", "INT"),
        Column("OrderId", "number", "INT"),
    )
    schema = Schema("shop", "sqlite", (Table("cust", columns, comment="people who buy"), Table("orders", ())))
    lines = column_words("SELECT cust_nm, name, CustId, OrderId FROM cust", schema)
    assert lines == [
        "cust: customer; people who buy",
        "cust.cust_nm: customer nm; full legal name",
        "cust.CustId: customer id",
    ]
    assert column_words("SELECT name FROM orders", schema) == column_words("SELEC(", schema) == []
