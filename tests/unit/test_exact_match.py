"""Exact match: single cases, the official evaluator's printed example, and its verdicts on real predictions."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spftsql.evaluation.components import Names, components
from spftsql.evaluation.exact_match import COMPONENTS, Match, match, partial_scores
from spftsql.evaluation.hardness import spider_hardness
from spftsql.evaluation.predictions import read_predictions
from spftsql.evaluation.schema_names import read_names
from spftsql.evaluation.sources import read_split
from spftsql.sandbox.location import locate

FIXTURES = Path(__file__).parents[1] / "fixtures" / "evaluation"
CASES = [json.loads(line) for line in (FIXTURES / "exact_match.jsonl").read_text().splitlines()]
NAMES = Names(
    {
        "city": frozenset({"id", "name", "population", "state_id"}),
        "state": frozenset({"id", "name"}),
        "trip": frozenset({"from_id", "to_id"}),
    },
    dict.fromkeys(["city.state_id", "state.id", "trip.from_id", "trip.to_id"], "city.state_id"),
)
# Its grammar takes an alias for the whole text, so that one used twice for different tables stops it.
ALIAS_USED_TWICE = (65, 66, 237, 239, 240)


@pytest.fixture
def published() -> Path:
    root = os.environ.get("SPFTSQL_DATA")
    if not root:
        pytest.skip("SPFTSQL_DATA is not set")
    return Path(root)


def matched(prediction: str, gold: str, names: Names) -> Match:
    parsed = components(gold, names)
    assert parsed is not None
    return match(components(prediction, names), parsed)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_match(case: dict[str, Any]) -> None:
    found = matched(case["prediction"], case["gold"], NAMES)
    assert found.exact is case["exact"]
    assert [name for name, part in found.parts.items() if not part.right] == case.get("wrong", [])
    assert found.tables is case.get("tables", True)
    itself = matched(case["gold"], case["gold"], NAMES)
    assert itself.exact


def test_partial_scores_count_only_where_a_component_is() -> None:
    pairs = [
        ("SELECT name FROM city ORDER BY id", "SELECT name FROM city ORDER BY id"),
        ("SELECT name FROM city ORDER BY name", "SELECT name FROM city ORDER BY id"),
        ("SELECT name FROM city", "SELECT name FROM city ORDER BY id"),
        ("SELECT name FROM city", "SELECT name FROM city"),
    ]
    scores = partial_scores(matched(prediction, gold, NAMES) for prediction, gold in pairs)
    order = scores["order"]
    assert (order.accuracy, order.recall) == (1 / 2, 1 / 3)
    assert order.f1 == pytest.approx(0.4)
    assert scores["select"].f1 == 1.0
    assert tuple(scores) == COMPONENTS


def test_names_of_a_file_without_a_list_of_tables(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE State (ID INTEGER PRIMARY KEY, Name TEXT);"
            "CREATE TABLE City (Name TEXT, State INTEGER REFERENCES State, Other INTEGER REFERENCES State (id));"
        )
    names = read_names("jsonl", tmp_path, {"x": locate(tmp_path / "x.sqlite")})["x"]
    assert names.columns == {"state": {"id", "name"}, "city": {"name", "state", "other"}}
    assert names.same == dict.fromkeys(["state.id", "city.state", "city.other"], "state.id")


def test_the_printed_example_of_the_official_evaluator(published: Path) -> None:
    """Item by item and number by number.

    The example was printed in September 2018, when tables were compared for golds with a join only; since October 2018
    the evaluator compares them always, and so do we. On 29 questions with one table this makes a difference.
    """
    folder = published / "predictions" / "spider-exact-match-example"
    golds = [line.split("\t") for line in (folder / "gold_example.txt").read_text().splitlines()]
    predictions = [line.split("\t")[0] for line in (folder / "pred_example.txt").read_text().splitlines()]
    printed = (folder / "eval_result_example.txt").read_text().splitlines()
    names = read_names("spider", published / "spider", {db_id: None for _, db_id in golds})
    levels = [spider_hardness(gold) for gold, _ in golds]
    matches, in_2018, now = [], [], []
    for index, ((gold, db_id), prediction) in enumerate(zip(golds, predictions, strict=True)):
        found = matched("" if index in ALIAS_USED_TWICE else prediction, gold, names[db_id])
        parsed = components(gold, names[db_id])
        assert parsed is not None
        matches.append(found)
        in_2018.append(all(part.right for part in found.parts.values()) and (found.tables or len(parsed.tables) == 1))
        now.append(found.exact)
    said_wrong = Counter(
        (line.partition(" pred: ")[2].strip(), after.partition(" gold: ")[2].strip())
        for line, after in itertools.pairwise(printed)
        if " pred: " in line
    )
    found_wrong = Counter(
        (prediction.strip(), gold.strip())
        for (gold, _), prediction, right in zip(golds, predictions, in_2018, strict=True)
        if not right
    )
    assert found_wrong == said_wrong
    assert sum(in_2018) - sum(now) == 29
    table = {line[:20].strip(): line[20:].split() for line in printed if line[:20].strip() in ("count", "exact match")}
    order = ("easy", "medium", "hard", "extra")
    assert table["count"] == [str(levels.count(level)) for level in order] + ["1034"]  # type: ignore[arg-type]
    shares = [
        sum(right for right, own in zip(in_2018, levels, strict=True) if own == level or level == "all")
        / (len(levels) if level == "all" else levels.count(level))  # type: ignore[arg-type]
        for level in (*order, "all")
    ]
    assert [f"{share:.3f}" for share in shares] == table["exact match"]
    for level in (*order, "all"):
        column = (*order, "all").index(level)
        scores = partial_scores(m for m, own in zip(matches, levels, strict=True) if level in (own, "all"))
        for title, field in (("ACCURACY", "accuracy"), ("RECALL", "recall"), ("F1", "f1")):
            start = next(i for i, line in enumerate(printed) if f"PARTIAL MATCHING {title}" in line)
            lines = {line[:20].strip(): line[20:].split() for line in printed[start + 1 : start + 1 + len(COMPONENTS)]}
            ours = {name: f"{getattr(scores[name], field):.3f}" for name in COMPONENTS}
            assert ours == {name: lines[name][column] for name in COMPONENTS}, (level, title)


@pytest.mark.parametrize(("name", "unread"), [("spider", 0), ("spider-dk", 1)])
def test_every_gold_matches_itself(published: Path, name: str, unread: int) -> None:
    test = read_split("spider", published / name)
    names = read_names("spider", published / name, {question.db_id: None for question in test.rows})
    for question in test.rows:
        parsed = components(question.sql, names[question.db_id])
        unread -= parsed is None  # Spider-DK has a gold that lacks a comma, and runs nowhere
        assert parsed is None or match(parsed, parsed).exact, question.sql
    assert unread == 0


def test_real_predictions_match_as_the_official_evaluator_says(published: Path) -> None:
    """All that its grammar reads; what it cannot read (an alias without AS, INNER JOIN, <>) is wrong there."""
    test = read_split("spider", published / "spider")
    names = read_names("spider", published / "spider", {question.db_id: None for question in test.rows})
    golds = {question.sql: components(question.sql, names[question.db_id]) for question in test.rows}
    official = json.loads((FIXTURES / "exact_match_official.json").read_text())["verdicts"]
    assert len(official) == 5
    for name in ("codes/pred_sqls-codes-7b-spider.txt", "graphix/predict.sql"):
        file = read_predictions(published / "predictions" / "spider-dev" / name, test.rows)
        for index, (question, sql) in enumerate(zip(test.rows, file.statements, strict=True)):
            gold = golds[question.sql]
            assert gold is not None
            if official[name][index] != "-":
                found = match(components(sql, names[question.db_id]), gold)
                assert found.exact == (official[name][index] == "1"), (name, index)
