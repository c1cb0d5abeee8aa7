"""Values hidden from a question and its SQL come back, and only those that both have are hidden."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.synthesis.placeholders import hide_in_question, hide_values, show_values


def test_shared_values_get_typed_names() -> None:
    sql = "SELECT name FROM city WHERE state = 'new york' AND population > 150000"
    hidden = hide_values(sql, "sqlite", "big cities in New York")
    assert hidden.sql == "SELECT name FROM city WHERE state = 'state0' AND population > 150000"
    assert hide_in_question("big cities in New York", hidden) == "big cities in state0"


def test_a_value_used_twice_keeps_one_name() -> None:
    hidden = hide_values("SELECT 1 FROM t WHERE a = 'x' AND b IN (SELECT b FROM u WHERE a = 'x')", "sqlite")
    assert hidden.values == (("a0", "x"),)


def test_like_keeps_its_wildcards() -> None:
    hidden = hide_values("SELECT a FROM t WHERE a LIKE '%lake%'", "sqlite", "names with lake in them")
    assert hidden.sql == "SELECT a FROM t WHERE a LIKE '%a0%'"


def test_limits_are_no_values() -> None:
    assert hide_values("SELECT a FROM t ORDER BY a LIMIT 3", "sqlite").values == ()


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        ("SELECT a FROM t WHERE SUBSTR(d, 1, 4) = '2012'", {"2012"}),
        ("SELECT a FROM t WHERE ROUND(x, 2) * 100 > 5", {"5"}),
        ("SELECT a FROM t GROUP BY a HAVING SUM(CASE b WHEN 'x' THEN 1 ELSE 0 END) > 2", {"x", "2"}),
    ],
)
def test_what_nobody_would_say_stays(sql: str, values: set[str]) -> None:
    assert {value for _, value in hide_values(sql, "sqlite").values} == values


def test_a_question_that_lost_a_value_is_refused() -> None:
    hidden = hide_values("SELECT a FROM t WHERE a = 'x' AND b = 'y'", "sqlite")
    assert show_values("what about a0", hidden) is None
    assert show_values("what about a0 and b0", hidden) == "what about x and y"
    assert show_values("what about a0 and b0 of river_name0", hidden) is None  # it stands for nothing
    assert show_values("what about a0 and b0 in 1999", hidden) == "what about x and y in 1999"


def test_placeholders_need_no_blanks_around_them() -> None:
    question = "在东京有多少家超过30人的公司"
    hidden = hide_values("SELECT a FROM t WHERE city = '东京' AND 人数 > 30", "sqlite", question)
    assert hide_in_question(question, hidden) == "在city0有多少家超过人数0人的公司"
    assert show_values("在city0有多少家超过人数0人的公司", hidden) == question
    assert show_values("在city0有多少家公司", hidden) is None


@given(
    st.text("abc xyz", min_size=1).filter(lambda v: v.strip() == v),
    st.sampled_from(["where is {}", "{} today"]),
)
def test_hiding_and_showing_is_the_identity(value: str, pattern: str) -> None:
    question = pattern.format(value)
    hidden = hide_values(f"SELECT a FROM t WHERE q = '{value}'", "sqlite", question)
    if hidden.values:
        assert show_values(hide_in_question(question, hidden), hidden) == question
