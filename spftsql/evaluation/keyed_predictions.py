"""Pairs rows that carry a prediction with the questions that they are about.

A row says where it belongs in one of four ways, and the first that the file has decides: an index (0 to n-1), the
benchmark's own id, database and question, database and gold. Rows with none of them belong by position. Whatever else a
row carries must agree: another database, question or gold than the question's is refused, because it shows a shift or
another version of the benchmark.

Rows about questions that were drawn from the benchmark say how many these are (`DRAWN`), and have its indices.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spftsql.errors import UserError
from spftsql.evaluation.sources import Question, Questions

Row = Mapping[str, Any]
_Key = str | tuple[str | None, str] | None

# Names of columns as people write them, in lower case with _ for anything else than letters and digits.
_SQL = (
    *("predicted_sql", "pred_sql", "predict_sql", "sql_pred", "predicted_query", "prediction", "predictions"),
    *("predicted", "predict", "pred", "generated_sql", "generated_query", "generated", "model_sql", "output_sql"),
)
_PLAIN_SQL = ("sql", "query")  # the gold's name too, in some benchmarks: only without a better one
DRAWN = "questions_drawn"
_INDEX = ("index", "idx", "position")
_ID = ("question_id", "id", "key", "qid", "instance_id", "example_id")
_DATABASE = ("db_id", "database", "db", "db_name", "database_id", "database_name")
_QUESTION = ("question", "nlq", "utterance", "nl_question")
_GOLD = ("gold_sql", "gold", "gold_query", "ground_truth", "reference_sql", "reference")


@dataclass(frozen=True)
class _Keyed:
    """One row, read: None for what it does not carry."""

    number: int  # of the row in its file
    sql: str
    index: str | None
    id: str | None
    db_id: str | None
    question: str | None
    gold: str | None


@dataclass(frozen=True)
class Paired:
    """The statements in the questions' order, how they were paired, and the places of those that were drawn."""

    statements: list[str]
    pairing: str
    indices: tuple[int, ...] | None = None


def drawn_mark(questions: Questions) -> dict[str, object]:
    """What every row of predictions for these questions says besides, where they were drawn from a split."""
    return {} if questions.chosen is None else {DRAWN: len(questions.rows)}


def pair_rows(path: Path, rows: Sequence[Row], questions: Sequence[Question]) -> Paired:
    """The rows' statements, paired with the questions of a whole split.

    Raises `UserError` for rows without a statement, keys that are unknown, missing or there twice, questions that the
    key does not tell apart, and rows that contradict the question they belong to.
    """
    keyed = _read(path, rows)
    drawn = _drawn(path, rows, keyed, len(questions))
    indices = range(len(questions)) if drawn is None else drawn
    asked = [questions[index] for index in indices]
    chosen, pairing = _pair(path, keyed, asked, [str(index) for index in indices])
    for index, row, question in zip(indices, chosen, asked, strict=True):
        _check(path, row, index, question)
    return Paired([row.sql for row in chosen], pairing, drawn)


def _drawn(path: Path, rows: Sequence[Row], keyed: Sequence[_Keyed], of: int) -> tuple[int, ...] | None:
    """The places of the questions that were drawn, by the rows' indices; None where none say that any were."""
    said = sorted({str(row[DRAWN]) for row in rows if row.get(DRAWN) is not None})
    if not said:
        return None
    if len(said) > 1:
        raise UserError(f"{path} says in {DRAWN} both {said[0]} and {said[1]}: it was put together from several files")
    numbers = [str(index) for index in range(of)]
    for row in keyed:
        if row.index not in numbers:
            raise UserError(f"{path}: row {row.number} is for index {row.index}, which no question has")
    found = sorted({int(row.index or 0) for row in keyed})
    if str(len(rows)) != said[0]:
        raise UserError(
            f"{path} has {len(rows)} predictions for {said[0]} questions that were drawn; run `spftsql evaluate` again"
        )
    return tuple(found)


def _read(path: Path, rows: Sequence[Row]) -> list[_Keyed]:
    if not rows:
        raise UserError(f"{path} has no predictions")
    columns = {name: _spelled(name) for name in dict.fromkeys(name for row in rows for name in row)}
    by_spelling: dict[str, str] = {}
    for name, spelled in columns.items():
        by_spelling.setdefault(spelled, name)

    def column(spellings: Sequence[str]) -> str | None:
        return next((by_spelling[spelling] for spelling in spellings if spelling in by_spelling), None)

    sql = column(_SQL)
    if sql is None:
        plain = [by_spelling[spelling] for spelling in _PLAIN_SQL if spelling in by_spelling]
        if len(plain) != 1:
            what = f"{' and '.join(plain)} may both be it" if plain else f"its columns are {', '.join(columns)}"
            raise UserError(f"{path}: which column is the prediction? {what}; name it predicted_sql")
        sql = plain[0]
    names = [column(spellings) for spellings in (_INDEX, _ID, _DATABASE, _QUESTION, _GOLD)]
    keyed = []
    for number, row in enumerate(rows):
        if sql not in row:
            raise UserError(f"{path}: row {number} has no {sql}")
        values = [None if name is None or row.get(name) is None else str(row[name]).strip() for name in names]
        keyed.append(_Keyed(number, row[sql].strip() if isinstance(row[sql], str) else "", *values))
    return keyed


def _spelled(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _pair(
    path: Path, rows: Sequence[_Keyed], questions: Sequence[Question], numbers: Sequence[str]
) -> tuple[list[_Keyed], str]:
    for name, of_questions, of_rows in _ways(rows, questions, numbers):
        if None not in of_rows:
            return _match(path, rows, questions, of_questions, of_rows, name), f"by {name}"
    if any(row.id is not None for row in rows):
        raise UserError(
            f"{path}: its ids are neither the benchmark's nor 0 to {len(questions) - 1}; give each row an index"
        )
    if len(rows) != len(questions):
        raise UserError(f"{path} has {len(rows)} predictions for {len(questions)} questions; give each row an index")
    return list(rows), "by position (rows)"


def _ways(
    rows: Sequence[_Keyed], questions: Sequence[Question], numbers: Sequence[str]
) -> Iterator[tuple[str, Sequence[_Key], Sequence[_Key]]]:
    """Each way to pair: its name, the keys of the questions, the keys of the rows (None where a row has none)."""
    ids = [question.id for question in questions]
    row_ids = [row.id for row in rows]
    yield "index", numbers, [row.index for row in rows]
    if all(ids) and set(ids) & set(row_ids):
        yield "id", ids, row_ids
    elif set(row_ids) <= set(numbers):
        yield "number", numbers, row_ids
    with_database = all(row.db_id is not None for row in rows)
    beside = "db_id and " if with_database else ""

    def key(db_id: str | None, text: str | None) -> _Key:
        return None if text is None else (db_id if with_database else "", _plain(text))

    asked = [key(question.db_id, question.question) for question in questions]
    yield f"{beside}question", asked, [key(row.db_id, row.question) for row in rows]
    golds = [key(question.db_id, question.sql) for question in questions]
    yield f"{beside}gold", golds, [key(row.db_id, row.gold) for row in rows]


def _match(
    path: Path,
    rows: Sequence[_Keyed],
    questions: Sequence[Question],
    of_questions: Sequence[_Key],
    of_rows: Sequence[_Key],
    name: str,
) -> list[_Keyed]:
    """The row of each question, where keys are equal."""
    asked: dict[_Key, list[Question]] = {}
    for key, question in zip(of_questions, questions, strict=True):
        asked.setdefault(key, []).append(question)
    found: dict[_Key, list[_Keyed]] = {}
    for key, row in zip(of_rows, rows, strict=True):
        if key not in asked:
            raise UserError(f"{path}: row {row.number} is for {name} {_shown(key)}, which no question has")
        found.setdefault(key, []).append(row)
    missing = [key for key in asked if key not in found]
    if missing:
        raise UserError(
            f"{path} has {len(rows)} predictions for {len(questions)} questions: "
            f"none for {name} {_shown(missing[0])}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    for key, group in found.items():
        _refuse_ambiguous(path, f"{name} {_shown(key)}", asked[key], group)
    waiting = {key: itertools.cycle(group) for key, group in found.items()}
    return [next(waiting[key]) for key in of_questions]


def _refuse_ambiguous(path: Path, key: str, asked: Sequence[Question], rows: Sequence[_Keyed]) -> None:
    """Several questions or rows of one key are right only where it does not matter which belongs to which."""
    if len(rows) > len(asked):
        raise UserError(f"{path}: rows {', '.join(str(row.number) for row in rows)} are all for {key}")
    same_question = len({(question.db_id, _plain(question.question), _plain(question.sql)) for question in asked}) == 1
    if len(asked) == 1 or (same_question and len(rows) in (1, len(asked))):
        return
    if len(rows) == len(asked) and len({row.sql for row in rows}) == 1:
        return
    raise UserError(
        f"{path}: {len(asked)} questions have {key}, so its predictions cannot be told apart; give each row an index"
    )


def _check(path: Path, row: _Keyed, index: int, question: Question) -> None:
    for what, ours, theirs in (
        ("database", row.db_id, question.db_id),
        ("question", row.question, question.question),
        ("gold", row.gold, question.sql),
    ):
        if ours is not None and _plain(ours) != _plain(theirs):
            raise UserError(
                f"{path}: row {row.number} has the {what} {_shown(ours)}, question {index} has {_shown(theirs)}; "
                "the predictions are shifted, or for another version of the benchmark"
            )


def _plain(text: str | None) -> str:
    return " ".join((text or "").rstrip("; \n\t").split())


def _shown(key: _Key) -> str:
    text = " ".join(str(part) for part in key if part) if isinstance(key, tuple) else str(key)
    return text if len(text) <= 80 else f"{text[:77]}..."
