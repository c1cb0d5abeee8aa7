"""What counts as a question: none of a model's remarks, all of what people asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.evaluation.sources import read_split
from spftsql.linking.literals import filter_literals
from spftsql.synthesis.question_form import is_question

SQL = "SELECT Song_Name FROM singer WHERE Age > 41 AND Country = 'France'"
QUESTIONS = """which songs do French singers over 41 sing
Select all songs from singers who are older than 41 and from France
List the songs of singers from France.
Welche Lieder singen Franzosen über 41?
41岁以上的法国歌手唱什么歌
SONGS FROM FRANCE BY SINGERS OVER 41?
What answer did 41 give?"""
OTHERS = """SELECT Song_Name FROM singer WHERE Age > 41
select song_name from singer where age > 41 and country = 'france'
sql: which songs?
The SQL query:
Here is the question:
41
France; 41
France
The question says: 41 and France
The answer is the songs of the French singers
This statement lists songs
What is the SQL code to retrieve the songs of France?
I am a seasoned SQLite, and what a question."""


@pytest.mark.parametrize("text", QUESTIONS.splitlines())
def test_questions(text: str) -> None:
    assert is_question(text, SQL, ["41", "France"])


@pytest.mark.parametrize("text", OTHERS.splitlines())
def test_what_is_none(text: str) -> None:
    assert not is_question(text, SQL, ["41", "France"])


def test_a_database_may_be_about_queries() -> None:
    assert is_question("which query ran longest", "SELECT name FROM query ORDER BY seconds DESC LIMIT 1")
    assert not is_question("which query ran longest", "SELECT name FROM runner ORDER BY seconds DESC LIMIT 1")


@given(st.text(), st.text(), st.lists(st.text()))
def test_no_text_is_too_odd(text: str, sql: str, values: list[str]) -> None:
    assert not is_question("", sql, values)
    assert is_question(text, sql, values) in (True, False)


@pytest.mark.parametrize("benchmark", ["spider", "geoquery", "bird"])
def test_all_that_people_asked_are_questions(data_root: Path, benchmark: str) -> None:
    rows = read_split(benchmark, data_root / benchmark, "dev").rows
    assert rows
    for row in rows:
        assert is_question(row.question, row.sql, filter_literals(row.sql, "sqlite")), row.question
