"""`score`: predictions against golds over the real sandbox, and predictions that do not fit the questions."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from spftsql.errors import UserError
from spftsql.evaluation.predictions import read_predictions
from spftsql.evaluation.scoring import NO_DATABASE, ScoreResult, render, score_command, spider_text

GOLDS = [
    "SELECT name FROM city ORDER BY population",
    "SELECT DISTINCT name FROM city",
    'SELECT name FROM city WHERE name = "Oslo"',
    "SELECT count(*) FROM city",
    "SELECT broken FROM city",
]
ANSWERS = [
    "SELECT name FROM city ORDER BY population DESC",
    "SELECT name FROM city",
    "SELECT 'Oslo' ;",
    "SELECT nothing_here FROM city",
    "SELECT broken FROM city",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "towns.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE city (name TEXT, population INTEGER);"
            "INSERT INTO city VALUES ('Oslo', 700000), ('Bergen', 290000), ('Bergen', 1);"
        )
    rows = [{"db_id": "towns", "question": f"question {i}", "sql": sql} for i, sql in enumerate(GOLDS)]
    write_questions(tmp_path, rows)
    return tmp_path


def write_questions(root: Path, rows: list[dict[str, str]]) -> None:
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def score(root: Path, answers: list[str], **options: object) -> ScoreResult:
    predictions = root / "predictions.sql"
    predictions.write_text("\n".join(answers) + "\n")
    return score_command("jsonl", root, predictions, **options)  # type: ignore[arg-type]


def verdicts(result: ScoreResult) -> list[str]:
    return [item.verdict for item in result.items]


def test_every_prediction_gets_a_verdict(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = score(root, ANSWERS, progress=lambda done, total: seen.append((done, total)))
    assert verdicts(result) == ["different", "different", "equal", "error", "unverifiable"]
    assert result.accuracy == pytest.approx(0.2)
    assert seen[0] == (0, 5) and seen[-1] == (5, 5)
    tree = json.loads(result.to_json())
    assert list(tree) == ["accuracy", "policy", "versions", "items"]
    assert tree["policy"] == "strict"
    assert set(tree["versions"]) == {"spftsql", "benchmark", "databases", "engine"}
    assert tree["versions"]["engine"]
    assert list(tree["items"][0]) == ["index", "db_id", "verdict", "reason"]
    assert [item["index"] for item in tree["items"]] == [0, 1, 2, 3, 4]


def test_policies_differ_where_they_should(root: Path) -> None:
    assert verdicts(score(root, ANSWERS, policy="bird"))[:2] == ["equal", "equal"]
    assert verdicts(score(root, ANSWERS, policy="spider"))[:2] == ["different", "equal"]
    kept = score(root, ANSWERS, policy="spider", keep_distinct=True)
    assert verdicts(kept)[:2] == ["different", "different"]


def test_more_workers_give_the_same_result(root: Path) -> None:
    rows = [{"db_id": "towns", "question": str(i), "sql": f"SELECT {i} FROM city"} for i in range(100)]
    write_questions(root, rows)
    answers = [f"SELECT {i - i % 2} FROM city" for i in range(100)]
    alone, shared = (score(root, answers, workers=workers) for workers in (1, 2))
    assert alone == shared
    assert alone.accuracy == 0.5


def test_questions_without_a_database_count_as_wrong_and_are_told(root: Path) -> None:
    rows = [{"db_id": name, "question": "q", "sql": "SELECT count(*) FROM city"} for name in ("towns", "atlantis")]
    write_questions(root, rows)
    result = score(root, ["SELECT 3", "SELECT 3"])
    assert verdicts(result) == ["equal", "unverifiable"]
    assert result.items[1].reason == NO_DATABASE
    assert result.accuracy == 0.5
    assert "1 questions have no database file (atlantis)" in render(result)
    assert "over the 1 others 1.0000" in render(result)
    (root / "towns.sqlite").unlink()
    with pytest.raises(UserError, match="no database file for any question"):
        score(root, ["SELECT 3", "SELECT 3"])


def test_the_rendered_result_has_interval_hardness_and_verdicts(root: Path) -> None:
    text = render(score(root, ANSWERS))
    assert "execution accuracy 0.2000 (1 of 5, 95 % interval 0.0362 to 0.6245)" in text
    assert "| easy | 0.200 | 1 | 5 |" in text
    assert "| unverifiable | 1 |" in text


@pytest.mark.parametrize(
    ("sql", "without", "kept"),
    [
        ("SELECT DISTINCT a FROM t", "SELECT  a FROM t", "SELECT DISTINCT a FROM t"),
        ("SELECT count(distinct a) FROM t", "SELECT count( a) FROM t", "SELECT count(distinct a) FROM t"),
        ("SELECT a WHERE b > = 1 AND c ! = 2", "SELECT a WHERE b >= 1 AND c != 2", "SELECT a WHERE b >= 1 AND c != 2"),
        (
            "SELECT 'distinct > = it''s' FROM t",
            "SELECT 'distinct > = it''s' FROM t",
            "SELECT 'distinct > = it''s' FROM t",
        ),
        ('SELECT "distinct" FROM t', 'SELECT "distinct" FROM t', 'SELECT "distinct" FROM t'),
        ("SELECT distinctive FROM t", "SELECT distinctive FROM t", "SELECT distinctive FROM t"),
    ],
)
def test_spiders_text(sql: str, without: str, kept: str) -> None:
    assert spider_text(sql, keep_distinct=False) == without
    assert spider_text(sql, keep_distinct=True) == kept


def read(tmp_path: Path, text: str, db_ids: list[str]) -> list[str]:
    file = tmp_path / "predictions"
    file.write_text(text, encoding="utf-8")
    return read_predictions(file, db_ids)


def test_lines_end_at_the_first_tab_and_may_be_empty(tmp_path: Path) -> None:
    assert read(tmp_path, "SELECT 1\ta\n\nSELECT 3;\r\n", ["a", "a", "a"]) == ["SELECT 1", "", "SELECT 3;"]
    assert read(tmp_path, "SELECT 1\n\n\n", ["a", "a"]) == ["SELECT 1", ""]
    assert read(tmp_path, "SELECT '\u2028'\nSELECT 2", ["a", "a"]) == ["SELECT '\u2028'", "SELECT 2"]


def test_bird_json_is_read_by_its_numbers(tmp_path: Path) -> None:
    rows = {str(i): f"SELECT {i}\t----- bird -----\tdb" for i in range(12)}
    shuffled = {key: rows[key] for key in sorted(rows)}  # "10" before "2", as json.dump(sort_keys=True) writes
    assert read(tmp_path, json.dumps(shuffled), ["db"] * 12) == [f"SELECT {i}" for i in range(12)]
    assert read(tmp_path, json.dumps(["SELECT 1", 0]), ["db", "db"]) == ["SELECT 1", ""]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("SELECT 1\n", "has 1 predictions for 2 questions"),
        ("SELECT 1\nSELECT 2\nSELECT 3\n", "has 3 predictions for 2 questions"),
        ("SELECT 1\tb\nSELECT 2\ta\n", "prediction 0 is for database b, question 0 is about a"),
        ('{"0": "SELECT 1", "2": "SELECT 2"}', 'must be "0" to "1"'),
        ('{"0": ', "begins like JSON but is not"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read(tmp_path, text, ["a", "b"])


def test_a_missing_predictions_file_is_named(root: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        score_command("jsonl", root, root / "none.sql")
    with pytest.raises(UserError, match="unknown benchmark wikisql"):
        score_command("wikisql", root, root / "none.sql")


def test_scoring_imports_neither_ray_nor_torch(root: Path) -> None:
    (root / "predictions.sql").write_text("\n".join(ANSWERS))
    code = (
        "import sys; from pathlib import Path; from spftsql.evaluation.scoring import score_command;"
        f"root = Path({str(root)!r}); score_command('jsonl', root, root / 'predictions.sql');"
        "print([name for name in ('ray', 'torch', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_spider_dev_agrees_with_the_official_evaluator() -> None:
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        pytest.skip("SPFTSQL_DATA is not set")
    folder = Path(data) / "predictions" / "spider-dev"
    official = json.loads((folder / "official_verdicts.json").read_text())
    name = "dail-sql/DAIL-SQL+GPT-4.txt"
    for keep_distinct, key in ((False, "exec"), (True, "exec_keep_distinct")):
        result = score_command("spider", Path(data) / "spider", folder / name, keep_distinct=keep_distinct)
        assert "".join("01"[right] for right in result.correct) == official[name][key]


def test_the_runnable_part_of_bird_dev() -> None:
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        pytest.skip("SPFTSQL_DATA is not set")
    folder = Path(data) / "predictions" / "bird-dev"
    files = {
        "codes/predict_dev-codes-7b-bird-with-evidence.json": 107,
        "bird-chatgpt/turbo_output_kg/predict_dev.json": 84,
    }
    for name, right in files.items():
        assert sum(score_command("bird", Path(data) / "bird", folder / name).correct) == right
