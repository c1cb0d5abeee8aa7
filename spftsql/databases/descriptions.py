"""What people wrote about tables and columns beside the database, as comments of the schema.

Two published forms are read: BIRD's folder of CSV files, one per table with `original_column_name`, `column_name` and
`column_description`; and Spider's `tables.json` (BIRD's `dev_tables.json`), with a readable name for each identifier.
A comment that only repeats the words of the name is left out.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from spftsql.databases.schema import Schema, Table
from spftsql.errors import UserError

_LONGEST = 300  # characters of a comment
_WORDS = re.compile(r"[^\W_]+")

Comments = Mapping[tuple[str, str], str]  # by table and column, lower case; column "" is the table itself


def described(schema: Schema, place: Path) -> Schema:
    """`schema` with the comments found at `place`, a folder of CSV files or a JSON file; its own come first.

    Names that the schema does not have are passed over. Raises `UserError` when `place` is missing or broken.
    """
    comments = _from_folder(place) if place.is_dir() else _from_json(place, schema.db_id)
    return replace(schema, tables=tuple(_commented(table, comments) for table in schema.tables))


def _commented(table: Table, comments: Comments) -> Table:
    def comment(column: str, name: str, own: str) -> str:
        found = own or comments.get((table.name.lower(), column.lower()), "")
        return "" if _letters(found) == _letters(name) else found

    columns = tuple(replace(c, comment=comment(c.name, c.name, c.comment)) for c in table.columns)
    return replace(table, columns=columns, comment=comment("", table.name, table.comment))


def _from_folder(folder: Path) -> Comments:
    comments = {}
    for file in sorted(folder.glob("*.csv")):
        for row in csv.DictReader(_text(file).splitlines(keepends=True)):
            fields = {str(key or "").strip().lower(): str(value or "") for key, value in row.items()}
            name = fields.get("original_column_name", "").strip()
            parts = [_line(fields.get(key, "")) for key in ("column_name", "column_description")]
            parts = [part for part in parts if part and _letters(part) != _letters(name)]
            if len(parts) == 2 and _letters(parts[0]) in _letters(parts[1]):
                parts = parts[1:]
            comments[file.stem.lower(), name.lower()] = ": ".join(parts)[:_LONGEST]
    return comments


def _from_json(file: Path, db_id: str) -> Comments:
    entry = _entries(file, file.stat().st_mtime_ns if file.is_file() else 0).get(db_id)
    if entry is None:
        return {}
    try:
        tables = [name.lower() for name in entry["table_names_original"]]
        comments = {(table, ""): _line(said) for table, said in zip(tables, entry["table_names"], strict=True)}
        pairs = zip(entry["column_names_original"], entry["column_names"], strict=True)
        comments |= {(tables[at], name.lower()): _line(said) for (at, name), (_, said) in pairs if at >= 0}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{file}: the entry of {db_id} has not the form of Spider's tables.json ({error})") from None
    return comments


@lru_cache(maxsize=4)
def _entries(file: Path, changed: int) -> dict[str, Any]:
    try:
        return {entry["db_id"]: entry for entry in json.loads(_text(file))}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} has not the form of Spider's tables.json ({error})") from None


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"descriptions {file} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")  # as some of BIRD's are


def _line(text: str) -> str:
    return " ".join(text.split())


def _letters(text: str) -> str:
    return "".join(_WORDS.findall(text)).casefold()
