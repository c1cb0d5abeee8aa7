"""Reads benchmarks as they are published: questions with gold SQL, and the database files beside them.

Layouts (below the root directory; the first that is there is taken):

- geoquery: `geography.json` of text2sql-data and one `.sqlite` file. Placeholders are filled into question
  and SQL, the gold is the first of the listed SQL variants, and questions keep the order of the file.
- spider: `dev.json`; `train_spider.json` with `train_others.json` where there; `database/DB/DB.sqlite`.
- bird: `dev.json` or `dev/dev.json`, `train.json` or `train/train.json`,
  `{dev,train}_databases/DB/DB.sqlite`.
- jsonl: `train.jsonl`, `gate.jsonl` (optional), `test.jsonl`, rows with db_id, question, sql and optionally
  evidence and difficulty; `database/DB/DB.sqlite` or `DB.sqlite`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spftsql.config import DatabaseConfig
from spftsql.errors import UserError

Part = Literal["train", "gate", "test"]
PUBLISHED = ("geoquery", "spider", "bird", "jsonl")

GEOQUERY_DATABASE = "geography"
# The SQLite file declares no keys. These are the ones of geography-schema.csv, with their targets.
GEOQUERY_KEYS = (
    "border_info.state_name = state.state_name",
    "border_info.border = state.state_name",
    "city.state_name = state.state_name",
    "highlow.state_name = state.state_name",
    "lake.state_name = state.state_name",
    "mountain.state_name = state.state_name",
    "river.traverse = state.state_name",
    "state.capital = city.city_name",
)
_GEOQUERY_PARTS = {"train": "train", "gate": "dev", "test": "test"}
_DATABASE_FILES = ("database/*/*.sqlite", "*_databases/*/*.sqlite", "*/*_databases/*/*.sqlite", "*.sqlite")


@dataclass(frozen=True)
class Question:
    """A question as published. `hardness` is the benchmark's own word for it, empty where it has none."""

    db_id: str
    question: str
    sql: str
    evidence: str = ""
    hardness: str = ""


@dataclass(frozen=True)
class Questions:
    """One part of a benchmark, and the files that it was read from."""

    rows: tuple[Question, ...]
    files: tuple[Path, ...]


def read_questions(benchmark: str, root: Path, part: Part, split: str = "question") -> Questions:
    """The questions of one part, in published order; no rows for a gate set that the benchmark does not have.

    `split` chooses between GeoQuery's question and query split. Raises `UserError` for a missing or broken
    file.
    """
    if not root.is_dir():
        raise UserError(f"{benchmark}: {root} is not a directory; set data.root (or --root) to the benchmark's")
    return _READERS[benchmark](root, part, split)


def database_configs(benchmark: str, root: Path) -> dict[str, DatabaseConfig]:
    """The databases found below the root, by name.

    Raises `UserError` when GeoQuery's is missing or not the only one.
    """
    if benchmark == "geoquery":
        files = sorted(root.glob("*.sqlite"))
        if len(files) != 1:
            raise UserError(f"geoquery: {root} must hold one .sqlite file, the GeoQuery database; found {len(files)}")
        name = GEOQUERY_DATABASE
        return {name: DatabaseConfig(name=name, url=str(files[0]), foreign_keys=GEOQUERY_KEYS)}
    found: dict[str, DatabaseConfig] = {}
    for pattern in _DATABASE_FILES:
        for path in sorted(root.glob(pattern)):
            if path.parent == root or path.stem == path.parent.name:
                found.setdefault(path.stem, DatabaseConfig(name=path.stem, url=str(path)))
    return found


def _geoquery(root: Path, part: Part, split: str) -> Questions:
    file = _existing("geoquery", root, ("geography.json",), "it is data/geography.json of text2sql-data")
    wanted = _GEOQUERY_PARTS[part]
    rows = []
    try:
        for entry in _json_rows(file):
            for sentence in entry["sentences"]:
                if (sentence["question-split"] if split == "question" else entry["query-split"]) == wanted:
                    fill = _filler(sentence["variables"])
                    rows.append(Question(GEOQUERY_DATABASE, fill(sentence["text"]), fill(entry["sql"][0])))
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{file} has not the form of text2sql-data's geography.json: no {error}") from None
    return Questions(tuple(rows), (file,))


def _filler(values: Mapping[str, str]) -> Callable[[str], str]:
    if not values:
        return str
    names = re.compile(r"\b(" + "|".join(map(re.escape, values)) + r")\b")
    return lambda text: names.sub(lambda match: values[match[0]], text)


def _spider(root: Path, part: Part, split: str) -> Questions:
    if part == "gate":
        return Questions((), ())
    if part == "test":
        files = [_existing("spider", root, ("dev.json",), "it comes with the Spider download")]
        texts = ("question", "SpiderSynQuestion")
    else:
        advice = "it comes with the Spider download; Spider-Syn's file of that name holds the same questions"
        files = [_existing("spider", root, ("train_spider.json",), advice)]
        files += [file for file in [root / "train_others.json"] if file.is_file()]
        texts = ("question", "SpiderQuestion")
    rows = [_question(row, file, i, texts, ("query",)) for file in files for i, row in enumerate(_json_rows(file))]
    return Questions(tuple(rows), tuple(files))


def _bird(root: Path, part: Part, split: str) -> Questions:
    if part == "gate":
        return Questions((), ())
    name = "dev" if part == "test" else "train"
    file = _existing("bird", root, (f"{name}.json", f"{name}/{name}.json"), f"it comes with BIRD's {name} download")
    rows = [_question(row, file, i, ("question",), ("SQL",)) for i, row in enumerate(_json_rows(file))]
    return Questions(tuple(rows), (file,))


def _jsonl(root: Path, part: Part, split: str) -> Questions:
    if part == "gate" and not (root / "gate.jsonl").is_file():
        return Questions((), ())
    advice = "one JSON object a line, with db_id, question and sql"
    file = _existing("jsonl", root, (f"{part}.jsonl",), advice)
    rows = [_question(row, file, i, ("question",), ("sql",)) for i, row in enumerate(_json_lines(file))]
    return Questions(tuple(rows), (file,))


_READERS: dict[str, Callable[[Path, Part, str], Questions]] = {
    "geoquery": _geoquery,
    "spider": _spider,
    "bird": _bird,
    "jsonl": _jsonl,
}


def _existing(benchmark: str, root: Path, names: Sequence[str], advice: str) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise UserError(f"{benchmark}: {' or '.join(names)} is missing in {root}; {advice}")


def _question(row: Any, file: Path, index: int, texts: Sequence[str], sqls: Sequence[str]) -> Question:
    """A row of a JSON file; `texts` and `sqls` are the keys that may hold the question and the gold."""
    fields = row if isinstance(row, dict) else {}
    values = [next((fields[k] for k in keys if k in fields), None) for keys in (("db_id",), texts, sqls)]
    if not all(isinstance(value, str) and value.strip() for value in values):
        keys = f"db_id, {' or '.join(texts)}, and {' or '.join(sqls)}"
        raise UserError(f"{file}: row {index} needs non-empty text in {keys}")
    db_id, question, sql = map(str, values)
    return Question(db_id, question, sql, str(fields.get("evidence") or ""), str(fields.get("difficulty") or ""))


def _json_rows(file: Path) -> list[Any]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise UserError(f"{file} must hold a JSON list of questions")
    return rows


def _json_lines(file: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{file}, line {number} is not JSON: {error}") from None
    return rows
