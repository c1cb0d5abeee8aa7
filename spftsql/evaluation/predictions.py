"""Reads a file of predicted SQL: one statement a line, or JSON as BIRD has it.

Predictions belong to questions by position. What can be told about a shift is told: another count, numbered
keys that are not 0..n-1, and a database named beside a statement that is not the question's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spftsql.errors import UserError

_BIRD_SEPARATOR = "\t----- bird -----\t"


def read_predictions(path: Path, db_ids: Sequence[str]) -> list[str]:
    """One statement per question, in the questions' order; an empty line, or JSON that is no string, is empty.

    `db_ids` are the databases of the questions. A line's statement ends at its first tab. A JSON object has
    the keys "0" to "n-1", in any order. Raises `UserError` when predictions and questions cannot belong to
    each other.
    """
    if not path.is_file():
        raise UserError(f"predictions file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"predictions file {path} is not UTF-8 (byte {error.start})") from None
    rows = _json_rows(path, text) if text.lstrip()[:1] in ("{", "[") else _lines(text, len(db_ids))
    if len(rows) != len(db_ids):
        raise UserError(
            f"{path} has {len(rows)} predictions for {len(db_ids)} questions; "
            "they belong together by position, so one statement per question is needed"
        )
    known = set(db_ids)
    for index, ((_, named), expected) in enumerate(zip(rows, db_ids, strict=True)):
        if named in known and named != expected:
            raise UserError(
                f"{path}: prediction {index} is for database {named}, question {index} is about {expected}; "
                "the predictions are in another order than the questions"
            )
    return [sql for sql, _ in rows]


def _lines(text: str, expected: int) -> list[tuple[str, str]]:
    lines = text.removesuffix("\n").split("\n")
    while len(lines) > expected and not lines[-1].strip():
        lines.pop()
    fields = [line.rstrip("\r").split("\t") for line in lines]
    return [(field[0].strip(), field[1].strip() if len(field) > 1 else "") for field in fields]


def _json_rows(path: Path, text: str) -> list[tuple[str, str]]:
    try:
        tree: Any = json.loads(text)
    except ValueError as error:
        raise UserError(f"predictions file {path} begins like JSON but is not: {error}") from None
    if isinstance(tree, dict):
        keys = [str(index) for index in range(len(tree))]
        if set(keys) != set(tree):
            raise UserError(
                f'{path}: the keys of the JSON object must be "0" to "{len(tree) - 1}", the questions\' order'
            )
        tree = [tree[key] for key in keys]
    # A number or null is what some systems write for a question that they gave up.
    parts = [row.partition(_BIRD_SEPARATOR) if isinstance(row, str) else ("", "", "") for row in tree]
    return [(sql.strip(), database.strip()) for sql, _, database in parts]
