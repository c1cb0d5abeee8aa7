"""Files of predictions: every form that is recognised, how it is paired with the questions, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.errors import UserError
from spftsql.evaluation.predictions import Predictions, read_predictions
from spftsql.evaluation.sources import Question, read_split

QUESTIONS = (
    Question("shop", "how many", "SELECT count(*) FROM item", id="11"),
    Question("shop", "which", "SELECT name FROM item", id="12"),
    Question("zoo", "which", "SELECT name FROM animal", id="13"),
)
ROWS: list[dict[str, Any]] = [
    {"question_id": 13, "db_id": "zoo", "question": "which", "predicted_sql": "SELECT 3"},
    {"question_id": 11, "db_id": "shop", "question": "how  many", "predicted_sql": "SELECT 1"},
    {"question_id": 12, "db_id": "shop", "question": "which", "predicted_sql": "SELECT 2"},
]
PAIRED = ("SELECT 1", "SELECT 2", "SELECT 3")


def read(
    tmp_path: Path, text: str, questions: Sequence[Question] = QUESTIONS, name: str = "predictions.txt"
) -> Predictions:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return read_predictions(file, questions)


def without(*names: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in names} for row in ROWS]


def test_lines_end_at_the_first_tab_and_may_be_empty(tmp_path: Path) -> None:
    assert read(tmp_path, "SELECT 1\tshop\n\nSELECT 3;\r\n").statements == ("SELECT 1", "", "SELECT 3;")
    assert read(tmp_path, "SELECT 1\n\n\n\n").statements == ("SELECT 1", "", "")
    found = read(tmp_path, "SELECT '\u2028'\nSELECT 2\nSELECT 3")
    assert found.statements == ("SELECT '\u2028'", "SELECT 2", "SELECT 3")
    assert found.pairing == "by position (lines)"
    assert found.notes == ()


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.sql").write_bytes(b"SELECT\r1\r\nSELECT\x0c2\nSELECT 3\r\n")
    assert read_predictions(tmp_path / "p.sql", QUESTIONS).statements == ("SELECT\r1", "SELECT\x0c2", "SELECT 3")


def test_a_line_that_goes_on_after_a_tab_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, "SELECT 1\nSELECT 2\t FROM item\nSELECT 3")
    assert found.statements == PAIRED
    assert found.notes == ("1 lines go on after a tab: as in Spider's evaluator, a statement ends there",)


def test_birds_json_is_read_by_its_numbers(tmp_path: Path) -> None:
    questions = [Question("db", "q", "SELECT 1")] * 12
    rows = {str(i): f"SELECT {i}\t----- bird -----\tdb" for i in range(12)}
    shuffled = {key: rows[key] for key in sorted(rows)}  # "10" before "2", as json.dump(sort_keys=True) writes
    found = read(tmp_path, json.dumps(shuffled), questions)
    assert found.statements == tuple(f"SELECT {i}" for i in range(12))
    assert found.pairing == "by number"


def test_birds_json_may_have_the_ids_of_the_questions(tmp_path: Path) -> None:
    found = read(tmp_path, json.dumps({"13": "SELECT 3", "11": "SELECT 1", "12": 0}))
    assert (found.statements, found.pairing) == (("SELECT 1", "", "SELECT 3"), "by id")
    twice = (*QUESTIONS[:2], Question("shop", "which", "SELECT name FROM item", id="12"))
    assert read(tmp_path, json.dumps({"11": "SELECT 1", "12": "SELECT 2"}), twice).statements[1:] == ("SELECT 2",) * 2
    with pytest.raises(UserError, match='two different questions have the id "12"'):
        read(tmp_path, json.dumps({"11": "a", "12": "b"}), (*QUESTIONS[:2], Question("zoo", "q", "SELECT 1", id="12")))


def test_a_list_of_statements(tmp_path: Path) -> None:
    found = read(tmp_path, json.dumps(["SELECT 1", None, "SELECT 3\t----- bird -----\tzoo"]))
    assert (found.statements, found.pairing) == (("SELECT 1", "", "SELECT 3"), "by position (JSON list)")


@pytest.mark.parametrize(
    ("rows", "pairing"),
    [
        (ROWS, "by id"),
        ([{**row, "index": row["question_id"] - 11} for row in ROWS], "by index"),
        (without("question_id"), "by db_id and question"),
        ([{**row, "question_id": row["question_id"] - 11} for row in ROWS], "by number"),
        ([{"gold_sql": QUESTIONS[row["question_id"] - 11].sql + ";", **row} for row in without()], "by id"),
        (
            [{"gold": QUESTIONS[r["question_id"] - 11].sql, "db": r["db_id"], "sql": r["predicted_sql"]} for r in ROWS],
            "by db_id and gold",
        ),
    ],
)
def test_rows_with_a_key_may_have_any_order_and_form(tmp_path: Path, rows: list[dict[str, Any]], pairing: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for found in (
        read(tmp_path, json.dumps(rows)),
        read(tmp_path, lines),
        read(tmp_path, lines, name="p.jsonl"),
        read_predictions(table, QUESTIONS),
    ):
        assert (found.statements, found.pairing) == (PAIRED, pairing)


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv"])
def test_rows_of_drawn_questions_say_how_many_these_are(tmp_path: Path, name: str) -> None:
    rows = [
        {"index": i, "db_id": db_id, "predicted_sql": f"SELECT {i}", "questions_drawn": 2}
        for i, db_id in ((2, "zoo"), (0, "shop"))
    ]

    def found(rows: list[dict[str, Any]]) -> Predictions:
        path = tmp_path / name
        with path.open("w", newline="") as file:
            if name.endswith("csv"):
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
        return read_predictions(path, QUESTIONS)

    drawn = found(rows)
    assert (drawn.statements, drawn.indices, drawn.pairing) == (("SELECT 0", "SELECT 2"), (0, 2), "by index")
    assert drawn.notes == ("2 of 3 questions, those that were drawn (`spftsql evaluate --limit`)",)
    for bad, complaint in (
        (rows[:1], "has 1 predictions for 2 questions that were drawn"),
        ([rows[0], rows[0]], "rows 0, 1 are all for index 2"),
        ([rows[0], {**rows[1], "index": 7}], "row 1 is for index 7, which no question has"),
        ([rows[0], {**rows[1], "db_id": "zoo"}], "row 1 has the database zoo, question 0 has shop"),
        ([rows[0], {**rows[1], "questions_drawn": 3}], "says in questions_drawn both 2 and 3"),
    ):
        with pytest.raises(UserError, match=complaint):
            found(bad)


def test_rows_in_an_object_by_id(tmp_path: Path) -> None:
    rows = {str(row["question_id"]): {"sql": row["predicted_sql"], "db_id": row["db_id"]} for row in ROWS}
    assert read(tmp_path, json.dumps(rows)).statements == PAIRED


def test_rows_without_a_key_belong_by_position(tmp_path: Path) -> None:
    ordered = [{"db_id": question.db_id, "pred": sql} for question, sql in zip(QUESTIONS, PAIRED, strict=True)]
    found = read(tmp_path, json.dumps(ordered))
    assert (found.statements, found.pairing) == (PAIRED, "by position (rows)")
    with pytest.raises(UserError, match="row 0 has the database zoo, question 0 has shop"):
        read(tmp_path, json.dumps(ordered[::-1]))


def test_fences_are_told_and_left(tmp_path: Path) -> None:
    found = read(tmp_path, "```sql SELECT 1```\nSELECT 2\nSELECT 3")
    assert found.statements[0] == "```sql SELECT 1```"
    assert found.notes == ("1 of 3 predictions begin with ```: no SQL, and scored as it is",)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("SELECT 1\n", "has 1 predictions for 3 questions"),
        ("SELECT 1\n" * 4, "has 4 predictions for 3 questions"),
        ("SELECT 1\tshop\nSELECT 2\tzoo\nSELECT 3\tshop", "prediction 1 is for database zoo, question 1 is about shop"),
        ('{"0": "SELECT 1", "1": "SELECT 2", "3": "SELECT 3"}', 'questions\' ids: "3" is neither'),
        ('{"0": "SELECT 1", "1": "SELECT 2"}', 'questions\' ids: "2" is missing'),
        ('{"11": "SELECT 1", "12": "SELECT 2"}', 'questions\' ids: "13" is missing'),
        ('{"0": "SELECT 1", "0": "SELECT 2"}', 'the key "0" is there twice'),
        ('{"0": ', "begins like JSON but is not"),
        ('{"sql": "SELECT 1"}\n{"sql": ', "line 2 is not JSON"),
        (json.dumps(ROWS[:2]), "has 2 predictions for 3 questions: none for id 12"),
        (json.dumps([*ROWS, ROWS[0]]), "rows 0, 3 are all for id 13"),
        (json.dumps([*ROWS, {**ROWS[0], "question_id": 99}]), "row 3 is for id 99, which no question has"),
        (json.dumps([{**row, "db_id": "zoo"} for row in ROWS]), "row 1 has the database zoo, question 0 has shop"),
        (json.dumps([{**row, "gold": "SELECT 0"} for row in ROWS]), "shifted, or for another version"),
        (json.dumps([{"id": "a", "sql": "SELECT 1"}] * 3), "its ids are neither the benchmark's nor 0 to 2"),
        (json.dumps([{"sql": "SELECT 1"}]), "has 1 predictions for 3 questions; give each row an index"),
        (json.dumps(without("predicted_sql")), "which column is the prediction"),
        (json.dumps([{**row, "sql": "a", "query": "b"} for row in without("predicted_sql")]), "sql and query may both"),
        (json.dumps([ROWS[0], ROWS[1], {"question_id": 12}]), "row 2 has no predicted_sql"),
        (json.dumps(without("question_id", "db_id")), "2 questions have question which, so its predictions cannot be"),
        ("[]", "has 0 predictions for 3 questions"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError) as refusal:
        read(tmp_path, text)
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_predictions(tmp_path / "none", QUESTIONS)
    (tmp_path / "latin").write_bytes("SELECT 'é'".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_predictions(tmp_path / "latin", QUESTIONS)
    with pytest.raises(UserError, match="is not CSV"):
        read(tmp_path, 'sql,id\n"SELECT 1', name="p.csv")
    with pytest.raises(UserError, match="has no predictions"):
        read(tmp_path, "sql,id\n", name="p.csv")


@pytest.mark.parametrize("name", ["deep.json", "deep.jsonl"])
def test_json_that_is_too_deep(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="JSON"):
        read(tmp_path, "[" * 200_000, name=name)


@given(st.permutations(range(8)), st.sampled_from(["index", "question_id", "question"]))
def test_the_order_of_keyed_rows_does_not_matter(order: list[int], key: str) -> None:
    questions = [Question("shop", f"question {i}", f"SELECT {i}", id=f"q{i}") for i in range(8)]
    rows = [
        {"index": i, "sql": f"SELECT {i}"}
        if key == "index"
        else {key: getattr(q, key.removeprefix("question_")), "sql": f"SELECT {i}"}
        for i, q in enumerate(questions)
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = read(Path(folder), json.dumps([rows[i] for i in order]), questions)
    assert found.statements == tuple(f"SELECT {i}" for i in range(8))
    assert found.pairing == {"index": "by index", "question_id": "by id", "question": "by question"}[key]


def test_equal_questions_need_not_be_told_apart(tmp_path: Path) -> None:
    twins = (QUESTIONS[0], QUESTIONS[0])
    one = [{"question": "how many", "sql": "SELECT 1"}]
    assert read(tmp_path, json.dumps(one), twins).statements == ("SELECT 1", "SELECT 1")
    two = [{"question": "how many", "sql": f"SELECT {n}"} for n in (1, 2)]
    assert read(tmp_path, json.dumps(two), twins).statements == ("SELECT 1", "SELECT 2")
    same_gold = (Question("shop", "a", "SELECT 1"), Question("shop", "b", "SELECT 1"))
    equal = [{"db_id": "shop", "gold": "SELECT 1", "sql": "SELECT 7"}] * 2
    assert read(tmp_path, json.dumps(equal), same_gold).statements == ("SELECT 7", "SELECT 7")
    differing = [{**row, "sql": f"SELECT {n}"} for n, row in enumerate(equal)]
    with pytest.raises(UserError, match="cannot be told apart; give each row an index"):
        read(tmp_path, json.dumps(differing), same_gold)


def test_the_published_prediction_files_are_recognised() -> None:
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        pytest.skip("SPFTSQL_DATA is not set")
    root = Path(data)
    spider = read_split("spider", root / "spider").rows
    folder = root / "predictions" / "spider-dev"
    pairings = {
        "dail-sql/DAIL-SQL+GPT-4.txt": "by position (lines)",
        "graphix/predict.sql": "by position (lines)",
        "din-sql/CodeX/CodeX_few-shot.csv": "by db_id and question",
    }
    for name, pairing in pairings.items():
        assert read_predictions(folder / name, spider).pairing == pairing
    bird = read_split("bird", root / "bird").rows
    codes = root / "predictions" / "bird-dev" / "codes" / "predict_dev-codes-7b-bird-with-evidence.json"
    assert read_predictions(codes, bird).pairing == "by number"
    with pytest.raises(UserError, match="1034 predictions for 1534 questions"):
        read_predictions(folder / "graphix/predict.sql", bird)
