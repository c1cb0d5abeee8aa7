"""Reads a file of predicted SQL and pairs each statement with its question.

What is recognised, by the file's beginning and its suffix:

- lines: one statement each, by position; what follows a tab is the database, as Spider's evaluator has it
- a JSON list of statements, by position
- BIRD's JSON object of statements, by number ("0" to "n-1", whatever their order in the file) or by the questions' ids
- rows (JSON list of objects, JSON lines, CSV, TSV), which say themselves what they belong to: see `keyed_predictions`

Statements are taken as they are. Files that cannot belong to the questions are refused: another count, an unknown,
missing or repeated key, another database, another gold.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spftsql.errors import UserError
from spftsql.evaluation.keyed_predictions import Paired, pair_rows
from spftsql.evaluation.sources import Question, Questions, read_text

_BIRD_SEPARATOR = "\t----- bird -----\t"
_LONGEST_FIELD = 1 << 24  # of CSV; Python's own limit is lower than some predictions are long
_FENCE = "```"
_FENCED_SHARE = 0.05  # from here on, fences are worth a note
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Predictions:
    """One statement per question, in the questions' order; how they were paired; notes for the person who scores.

    `indices` are the places of the questions that they are for, where these were drawn from the benchmark.
    """

    statements: tuple[str, ...]
    pairing: str
    notes: tuple[str, ...] = ()
    indices: tuple[int, ...] | None = None

    def at(self, indices: Sequence[int]) -> Predictions | None:
        """Those for the questions at these places; None where some are missing."""
        have = self.indices if self.indices is not None else range(len(self.statements))
        by_index = dict(zip(have, self.statements, strict=True))
        if not by_index.keys() >= set(indices):
            return None
        return replace(self, statements=tuple(by_index[index] for index in indices), indices=tuple(indices))


@dataclass(frozen=True)
class _Statement:
    """A statement, and what stands beside it: the name of a database, or nothing."""

    sql: str
    database: str = ""


def read_predictions(path: Path, questions: Sequence[Question]) -> Predictions:
    """The predictions of a file, one per question; empty where the file has an empty line, or JSON that is no text.

    Rows that say that their questions were drawn (`spftsql evaluate --limit`) are for these questions alone.
    Raises `UserError`, in one line, when predictions and questions cannot belong to each other.
    """
    if not path.is_file():
        raise UserError(f"predictions file {path} does not exist")
    found, notes = _paired(path, read_text(path), questions)
    if found.indices is not None:
        drawn = f"{len(found.indices)} of {len(questions)} questions, those that were drawn"
        notes.append(f"{drawn} (`spftsql evaluate --limit`)")
    statements = found.statements
    fenced = sum(sql.startswith(_FENCE) for sql in statements)
    if fenced > _FENCED_SHARE * len(statements):
        notes.append(f"{fenced} of {len(statements)} predictions begin with {_FENCE}: no SQL, and scored as it is")
    return Predictions(tuple(statements), found.pairing, tuple(notes), found.indices)


def of_same_questions(
    paths: Sequence[Path], files: Sequence[Predictions], whole: Questions
) -> tuple[Questions, Sequence[Predictions]]:
    """The questions of the first of `files`, and all predictions for these. Raises `UserError` where some lack."""
    if all(file.indices is None for file in files):
        return whole, files
    indices = files[0].indices if files[0].indices is not None else whole.indices
    chosen = []
    for path, file in zip(paths, files, strict=True):
        if (found := file.at(indices)) is None:
            raise UserError(
                f"{path} has predictions for {len(file.statements)} of the {len(whole.rows)} questions, and not for "
                f"all {len(indices)} of {paths[0]}"
            )
        chosen.append(found)
    return whole.only(indices), chosen


def _paired(path: Path, text: str, questions: Sequence[Question]) -> tuple[Paired, list[str]]:
    """The statements as they were paired, and notes."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return pair_rows(path, _table(path, text), questions), []
    if text.lstrip()[:1] not in ("{", "["):
        lines, notes = _lines(text, len(questions))
        return Paired(_by_position(path, lines, questions), "by position (lines)"), notes
    tree = _json(path, text)
    if isinstance(tree, dict):
        if all(isinstance(value, dict) for value in tree.values()) and tree:
            tree = [{"key": key, **value} for key, value in tree.items()]
        else:
            return _by_name(path, tree, questions), []
    if tree and all(isinstance(row, dict) for row in tree):
        found = pair_rows(path, tree, questions)
        return replace(found, statements=[_split(sql).sql for sql in found.statements]), []
    return Paired(_by_position(path, [_split(row) for row in tree], questions), "by position (JSON list)"), []


def _table(path: Path, text: str) -> list[dict[str, Any]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UserError(f"predictions file {path} is not CSV: {error}") from None
    return [{name: value for name, value in row.items() if name} for row in rows]


def _json(path: Path, text: str) -> Any:
    """A JSON tree; JSON lines are a list of their values. A name twice in one object is refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise UserError(f'{path}: the key "{twice}" is there twice')
        return tree

    decode = json.JSONDecoder(object_pairs_hook=unique).decode
    try:
        if path.suffix.lower() != ".jsonl":
            return decode(text)
    except (ValueError, RecursionError) as error:
        if not str(error).startswith("Extra data"):
            raise UserError(f"predictions file {path} begins like JSON but is not: {error}") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(decode(line))
            except (ValueError, RecursionError) as error:
                raise UserError(f"predictions file {path}, line {number} is not JSON: {error}") from None
    return rows


def _lines(text: str, expected: int) -> tuple[list[_Statement], list[str]]:
    lines = text.removesuffix("\n").split("\n")
    while len(lines) > expected and not lines[-1].strip():
        lines.pop()
    statements, cut = [], 0
    for line in lines:
        if _BIRD_SEPARATOR in line:
            statements.append(_split(line))
            continue
        sql, _, rest = line.rstrip("\r").partition("\t")
        name = rest.partition("\t")[0].strip()
        cut += bool(rest.strip()) and not _NAME.fullmatch(name)
        statements.append(_Statement(sql.strip(), name if _NAME.fullmatch(name) else ""))
    notes = [f"{cut} lines go on after a tab: as in Spider's evaluator, a statement ends there"] if cut else []
    return statements, notes


def _split(value: object) -> _Statement:
    # A number or null is what some systems write for a question that they gave up.
    sql, _, database = value.partition(_BIRD_SEPARATOR) if isinstance(value, str) else ("", "", "")
    return _Statement(sql.strip(), database.strip())


def _by_position(path: Path, found: Sequence[_Statement], questions: Sequence[Question]) -> list[str]:
    if len(found) != len(questions):
        raise UserError(
            f"{path} has {len(found)} predictions for {len(questions)} questions; "
            "they belong together by position, so one statement per question is needed"
        )
    for index, (statement, question) in enumerate(zip(found, questions, strict=True)):
        if statement.database and statement.database != question.db_id:
            raise UserError(
                f"{path}: prediction {index} is for database {statement.database}, question {index} is about "
                f"{question.db_id}; the predictions are in another order than the questions"
            )
    return [statement.sql for statement in found]


def _by_name(path: Path, tree: dict[str, Any], questions: Sequence[Question]) -> Paired:
    """BIRD's object: names are numbers of questions, or their ids."""
    numbers = [str(index) for index in range(len(questions))]
    ids = [question.id for question in questions]
    names, pairing = (numbers, "by number") if set(tree) == set(numbers) else (ids, "by id")
    if set(tree) != set(names):
        unknown = [name for name in tree if name not in ids and name not in numbers]
        lacking = [name for name in (ids if all(ids) and set(tree) & set(ids) else numbers) if name not in tree]
        what = f'"{unknown[0]}" is neither' if unknown else f'"{lacking[0]}" is missing'
        raise UserError(
            f"{path} has {len(tree)} predictions for {len(questions)} questions; the keys of the JSON object must be "
            f'"0" to "{len(questions) - 1}", the questions\' order, or the questions\' ids: {what}'
        )
    # Two questions with one id are told apart by nothing, so they must be the same question.
    first = {name: question for name, question in zip(reversed(names), reversed(questions), strict=True)}
    for name, question in zip(names, questions, strict=True):
        if (question.db_id, question.sql) != (first[name].db_id, first[name].sql):
            raise UserError(f'{path}: two different questions have the id "{name}"; number the predictions instead')
    return Paired(_by_position(path, [_split(tree[name]) for name in names], questions), pairing)
