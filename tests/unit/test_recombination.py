"""Pairs made of labelled pairs: what a question asks for as a phrase, and SQL and question changed together."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from spftsql.config import DatabaseConfig, VbiConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.databases.schema import Schema
from spftsql.records import Example
from spftsql.selfplay.splits import split_pairs
from spftsql.synthesis.canonical import mask_literals
from spftsql.synthesis.phrases import asked_phrase, name_said_once, opposite_extreme, put_phrase, said_once
from spftsql.synthesis.recombination import Recombined, recombine
from spftsql.synthesis.templates import extract

NOUNS = {"state", "river", "citi", "point"}
DATABASE = """
CREATE TABLE state (state_name TEXT PRIMARY KEY, capital TEXT, country TEXT, population INT, area INT);
CREATE TABLE river (river_name TEXT, length INT, traverse TEXT REFERENCES state(state_name));
CREATE TABLE highlow (
    state_name TEXT REFERENCES state(state_name), highest_point TEXT, lowest_point TEXT,
    highest_elevation INT, lowest_elevation INT
);
INSERT INTO state VALUES ('texas', 'austin', 'usa', 9, 5), ('ohio', 'columbus', 'usa', 7, 2),
    ('iowa', 'ames', 'us', 3, 3);
INSERT INTO river VALUES ('red', 8, 'texas'), ('wabash', 5, 'ohio'), ('cedar', 3, 'iowa');
INSERT INTO highlow VALUES ('texas', 'peak', 'gulf', 9, 0), ('ohio', 'hill', 'river', 4, 1),
    ('iowa', 'knob', 'bed', 3, 2);
"""
LABELS = {
    "what is the capital of texas": "SELECT capital FROM state WHERE state_name = 'texas'",
    "which state has the longest river": (
        "SELECT traverse FROM river WHERE length = (SELECT MAX(length) FROM river)"
    ),
    "which rivers do not run through the state of ohio": (
        "SELECT river_name FROM river WHERE river_name NOT IN (SELECT river_name FROM river WHERE traverse = 'ohio')"
    ),
    "what state has the largest population": (
        "SELECT state_name FROM state WHERE population = (SELECT MAX(population) FROM state)"
    ),
    "how many rivers does iowa have": "SELECT COUNT(river_name) FROM river WHERE traverse = 'iowa'",
    "what is the highest point": (
        "SELECT highest_point FROM highlow WHERE highest_elevation = (SELECT MAX(highest_elevation) FROM highlow)"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("question", "phrase"),
    [
        ("what is the capital of texas?", "the capital of texas"),
        ("What are all the rivers in utah", "the rivers in utah"),
        ("give me the cities in virginia", "the cities in virginia"),
        ("Please list all states", "the states"),
        ("which states border texas", "the states that border texas"),
        ("what major rivers run through ohio ?", "the major rivers that run through ohio"),
        ("which states does the red river run through", "the states that the red river run through"),
        ("what's the longest river", "the longest river"),
        ("how many rivers are in texas", None),  # a number stands for no value
        ("where is austin", None),
        ("which is", None),
        ("which one of them flows into texas", None),
        ("what is " + "the state that borders " * 6 + "ohio", None),  # too long
    ],
)
def test_what_a_question_asks_for(question: str, phrase: str | None) -> None:
    assert asked_phrase(question, NOUNS) == phrase


@pytest.mark.parametrize(
    ("question", "value", "phrase", "put"),
    [
        ("how long is the ohio river", "ohio", "the longest river", "how long is the longest river"),
        ("rivers in the state of texas", "texas", "the state that grows", "rivers in the state that grows"),
        ("what does the ohio run by", "ohio", "the rivers that run", "what does the rivers that run run by"),
        ("capital of texas", "texas", "the largest state", "capital of the largest state"),
        ("texas rivers", "texas", "the states", "the states rivers"),
    ],
)
def test_a_phrase_in_the_place_of_a_value(question: str, value: str, phrase: str, put: str) -> None:
    place = said_once(question, value)
    assert place is not None
    assert put_phrase(question, place, phrase, NOUNS) == put


@pytest.mark.parametrize(
    ("question", "turned"),
    [
        ("what is the Largest city", "what is the smallest city"),
        ("which state has the fewest rivers", "which state has the most rivers"),
        ("the longest river of the largest state", None),
        ("how high is the highest point", None),  # which is a column's name
        ("cities", None),
    ],
)
def test_the_other_extreme(question: str, turned: str | None) -> None:
    assert opposite_extreme(question, {"highest", "point"}) == turned


def test_what_is_said_once() -> None:
    assert said_once("Texas or ohio or texas", "texas") is None and said_once("texan", "texas") is None
    assert name_said_once("the highest points of ohio", "highest_point") == (4, 18)
    assert name_said_once("points, the highest", "highest_point") is None


@pytest.fixture
def rivers(tmp_path: Path) -> tuple[Path, Schema]:
    path = tmp_path / "rivers.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(DATABASE)
    return path, open_catalogue([DatabaseConfig(name="rivers", url=str(path))])["rivers"].schema


def made(
    schema: Schema,
    seed: int = 0,
    without: frozenset[str] = frozenset(),
    weights: dict[str, float] | None = None,
    labels: dict[str, str] = LABELS,
    most: int = 300,
) -> list[Recombined]:
    examples = [Example(question, "rivers", question, sql, "label", "") for question, sql in labels.items()]
    return list(islice(recombine(examples, {"rivers": schema}, seed, without, weights), most))


def test_pairs_are_right(rivers: tuple[Path, Schema]) -> None:
    path, schema = rivers
    with closing(sqlite3.connect(path)) as connection:
        answers = {
            one.question: sorted(row[0] for row in connection.execute(one.statement.sql)) for one in made(schema)
        }
    assert answers["what is the capital of the state that has the longest river"] == ["austin"]
    assert answers["which rivers do not run through the state that has the largest population"] == ["cedar", "wabash"]
    assert answers["what state has the largest area"] == ["texas"]
    assert answers["what is the country of the state that has the longest river"] == ["usa"]  # changed twice
    assert answers["how many rivers does the state that has the largest area have"] == [1]
    assert answers["what is the capital of the state that has the shortest river"] == ["ames"]  # the other extreme
    assert "what is the lowest point" not in answers  # its statement would still look for the highest elevation


def test_new_the_same_for_a_seed_and_traced(rivers: tuple[Path, Schema]) -> None:
    _, schema = rivers
    found = made(schema)
    assert found == made(schema) and found != made(schema, seed=1)
    assert len({one.statement.sql for one in found}) == len(found) > 10
    assert not {one.statement.sql for one in found} & set(LABELS.values())
    assert all(one.parents and set(one.parents) <= set(LABELS) for one in found)
    first = found[0].statement.sql
    assert first not in {one.statement.sql for one in made(schema, without=frozenset({first}))}


def test_a_pair_has_the_template_of_its_statement(rivers: tuple[Path, Schema]) -> None:
    _, schema = rivers
    found = made(schema)
    assert all(one.statement.template == extract(one.statement.sql, schema)[0].id for one in found)
    pool = {question: extract(sql, schema)[0].id for question, sql in LABELS.items()}
    templates = {one.question: one.statement.template for one in found}
    assert templates["what state has the largest area"] == pool["what state has the largest population"]
    assert all(set(one.templates) == {pool[parent] for parent in one.parents} for one in found)


def test_statements_that_differ_in_literals_share_their_template(rivers: tuple[Path, Schema]) -> None:
    labels = dict(list(LABELS.items())[:2]) | {
        f"how long is the {name}": f"SELECT length FROM river WHERE traverse = '{name}'" for name in ("iowa", "ohio")
    }
    labels["what is the country of texas"] = "SELECT country FROM state WHERE state_name = 'texas'"
    found: dict[str, set[str]] = {}
    for one in made(rivers[1], labels=labels, seed=3):
        found.setdefault(mask_literals(one.statement.sql), set()).add(one.statement.template)
    assert found and all(len(templates) == 1 for templates in found.values())


def test_a_pair_without_a_template_has_a_hash_of_its_structure(rivers: tuple[Path, Schema]) -> None:
    sql = "SELECT rowid FROM state WHERE state_name = 'texas' AND area > {}"
    labels = {f"what is the rowid of texas {n}": sql.format(n) for n in (1, 2)} | LABELS
    plain = {one.statement.template for one in made(rivers[1])}
    odd = [one for one in made(rivers[1], labels=labels) if "SELECT rowid" in one.statement.sql]
    assert odd and not {one.statement.template for one in odd} & plain


def test_labels_are_drawn_by_the_weights_of_their_templates(rivers: tuple[Path, Schema]) -> None:
    _, schema = rivers
    pool = {question: extract(sql, schema)[0].id for question, sql in LABELS.items()}
    failed = "how many rivers does iowa have"

    def share(weights: dict[str, float] | None) -> float:
        """Of the first pairs, over seeds, those made of the label that failed."""
        pairs = [one for seed in range(12) for one in made(schema, seed, weights=weights, most=8)]
        return sum(failed in one.parents for one in pairs) / len(pairs)

    weights = {template: 0.02 for template in pool.values()} | {pool[failed]: 0.98}
    assert share(weights) > 2 * share(None)
    assert share({}) == pytest.approx(share(None), abs=0.15)  # nothing is known of any
    assert made(schema, weights=weights) == made(schema, weights=weights)


def test_the_selection_set_of_recombined_pairs_has_templates_of_its_own(data_root: Path) -> None:
    path = data_root / "geoquery/geography-db.added-in-2020.sqlite"
    keys = tuple(f"{column} = state.state_name" for column in ("border_info.border", "river.traverse"))
    schema = open_catalogue([DatabaseConfig(name="geo", url=str(path), foreign_keys=keys)])["geo"].schema
    entries = json.loads((data_root / "geoquery/geography.json").read_text(encoding="utf-8"))[:40]
    labels = []
    for number, entry in enumerate(entries):
        sentence, sql = entry["sentences"][0], entry["sql"][0]
        question = sentence["text"]
        for name, value in sentence["variables"].items():
            question, sql = question.replace(name, value), sql.replace(name, value)
        labels.append(Example(str(number), "geo", question, sql, "label", ""))
    found = list(islice(recombine(labels, {"geo": schema}, 1), 260))
    pairs = [Example(o.statement.id, "geo", o.question, o.statement.sql, "", o.statement.template) for o in found]
    sets = split_pairs(pairs, VbiConfig(train_pairs=200, play_pairs=30, selection_pairs=15), 0)
    assert (len(sets.train), len(sets.play), len(sets.selection)) == (200, 30, 15)
    learned = {extract(pair.sql, schema)[0].id for pair in (*sets.train, *sets.play)}
    assert not {extract(pair.sql, schema)[0].id for pair in sets.selection} & learned


def test_labels_that_cannot_take_part() -> None:
    schema = Schema("rivers", "sqlite", ())
    labels = [Example("1", "rivers", "which", "SELECT FROM", "label", ""), Example("2", "x", "y", "z", "label", "")]
    assert list(recombine(labels, {"rivers": schema}, 0)) == []
