"""Reads benchmarks as they are published: questions with gold SQL, one *split* at a time.

Layouts (below the root directory; the first file that is there is taken):

- spider: splits `train` (`train_spider.json`, with `train_others.json` where there), `dev` (`dev.json`, or
  Spider-DK's `Spider-DK.json`, or `spider-realistic.json`; Spider-Syn's files have Spider's names) and `test`
  (`test.json`). `dev_gold.sql` and `test_gold.sql` are what Spider's own evaluator reads: where they are, they
  must fit the questions, and their SQL is the gold.
- bird: splits `train`, `dev` (`dev.json` with `dev.sql`), `mini_dev`, `mini_dev_postgresql`, `mini_dev_mysql`.
- geoquery: `geography.json` of text2sql-data. Placeholders are filled into question and SQL, the gold is the first
  of the listed SQL variants, and questions keep the order of the file. Splits `train`, `dev`, `test` of the
  question split, `query-train`, `query-dev`, `query-test` of the query split.
- jsonl: a split is the name of a file, `train.jsonl`, `test.jsonl`, …; rows with db_id, question, sql and optionally
  id, evidence and difficulty.

Where their databases are is said in `spftsql.evaluation.locations`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spftsql.errors import UserError
from spftsql.evaluation.spider_parse import parsed_hardness

Part = Literal["train", "gate", "test"]
PUBLISHED = ("geoquery", "spider", "bird", "jsonl")
GEOQUERY_DATABASE = "geography"

_GEOQUERY_FILE = "geography.json"
_GEOQUERY_SPLITS = ("test", "dev", "train", "query-test", "query-dev", "query-train")
_TEXTS = ("question", "SpiderSynQuestion")
_IDS = ("question_id", "id", "instance_id")


@dataclass(frozen=True)
class Question:
    """A question as published. `hardness` is the benchmark's own word for it, and `id` its own name; else empty."""

    db_id: str
    question: str
    sql: str
    evidence: str = ""
    hardness: str = ""
    id: str = ""


@dataclass(frozen=True)
class Questions:
    """One split of a benchmark, or some of its questions, and the files that it was read from.

    `notes` are lines for the person who scores; `chosen` are the places in the split of those that are here, where that
    is not all of it.
    """

    rows: tuple[Question, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    split: str = ""
    chosen: tuple[int, ...] | None = None

    @property
    def indices(self) -> Sequence[int]:
        """The place in the split of every question that is here."""
        return range(len(self.rows)) if self.chosen is None else self.chosen

    def only(self, indices: Iterable[int]) -> Questions:
        """Those of a whole split that have these places, in its order."""
        chosen = tuple(sorted(indices))
        return replace(self, rows=tuple(self.rows[index] for index in chosen), chosen=chosen)


@dataclass(frozen=True)
class _Layout:
    """Where a split is: the first of `questions` that exists, all of `more` that do, the first of `golds` that does."""

    questions: tuple[str, ...]
    advice: str
    more: tuple[str, ...] = ()
    golds: tuple[str, ...] = ()
    texts: tuple[str, ...] = _TEXTS


_SPIDER = {
    "dev": _Layout(
        ("dev.json", "Spider-DK.json", "spider-realistic.json"),
        "it comes with the download of Spider, Spider-Syn, Spider-DK or Spider-Realistic",
        golds=("dev_gold.sql",),
    ),
    "test": _Layout(("test.json",), "it comes with the Spider download since February 2024", golds=("test_gold.sql",)),
    "train": _Layout(
        ("train_spider.json",),
        "it comes with the Spider download; Spider-Syn's file of that name holds the same questions",
        more=("train_others.json",),
        texts=("question", "SpiderQuestion"),
    ),
}
_BIRD = {
    "dev": _Layout(("dev.json", "dev/dev.json"), "it comes with BIRD's dev download", golds=("dev.sql", "dev/dev.sql")),
    **{
        name: _Layout(
            (f"{stem}.json", f"MINIDEV/{stem}.json"),
            "it comes with BIRD's mini_dev download",
            golds=(f"{stem}_gold.sql", f"MINIDEV/{stem}_gold.sql"),
        )
        for name, stem in (
            ("mini_dev", "mini_dev_sqlite"),
            ("mini_dev_postgresql", "mini_dev_postgresql"),
            ("mini_dev_mysql", "mini_dev_mysql"),
        )
    },
    "train": _Layout(("train.json", "train/train.json"), "it comes with BIRD's train download"),
}


def splits(benchmark: str, root: Path) -> tuple[str, ...]:
    """The names of the splits of a benchmark, the one that is scored by default first."""
    there = existing_splits(benchmark, root)
    if benchmark == "jsonl":
        return there or ("test",)
    every = {"geoquery": _GEOQUERY_SPLITS, "spider": tuple(_SPIDER), "bird": tuple(_BIRD)}[benchmark]
    return tuple(dict.fromkeys([*(name for name in there if name != "train"), *every]))


def existing_splits(benchmark: str, root: Path) -> tuple[str, ...]:
    """The names of the splits whose file is there, `test` or `dev` first."""
    if benchmark == "geoquery":
        return _GEOQUERY_SPLITS if (root / _GEOQUERY_FILE).is_file() else ()
    if benchmark == "jsonl":
        found = sorted(file.stem for file in root.glob("*.jsonl"))
        return tuple(sorted(found, key=lambda name: name != "test"))
    layouts = _SPIDER if benchmark == "spider" else _BIRD
    return tuple(name for name in layouts if any((root / file).is_file() for file in layouts[name].questions))


def read_split(benchmark: str, root: Path, split: str | None = None) -> Questions:
    """The questions of one split, in published order; without `split`, of the first one that is there.

    Raises `UserError` for an unknown benchmark or split, and for a missing or broken file.
    """
    if benchmark not in PUBLISHED:
        raise UserError(f"unknown benchmark {benchmark}; known: {', '.join(PUBLISHED)}")
    if not root.is_dir():
        raise UserError(f"{benchmark}: {root} is not a directory; set data.root (or --root) to the benchmark's")
    known = splits(benchmark, root)
    chosen = split or known[0]
    if chosen not in known and benchmark != "jsonl":
        raise UserError(f"{benchmark} has no split {chosen}; known: {', '.join(known)}")
    if benchmark == "jsonl":
        questions = _jsonl(root, chosen)
    elif benchmark == "geoquery":
        questions = _geoquery(root, chosen)
    elif benchmark == "spider":
        questions = _published(benchmark, root, _SPIDER[chosen], ("query",))
    else:
        questions = _published(benchmark, root, _BIRD[chosen], ("SQL",))
    return replace(questions, split=chosen)


def read_questions(
    benchmark: str, root: Path, part: Part, split: Literal["question", "query"] = "question"
) -> Questions:
    """The questions of a part of a run, in published order; no rows for a gate set that the benchmark does not have.

    The test part of Spider and BIRD is their dev split. `split` chooses between GeoQuery's question and query split.
    Raises `UserError` for a missing or broken file.
    """
    if benchmark == "geoquery":
        name = {"train": "train", "gate": "dev", "test": "test"}[part]
        return read_split(benchmark, root, name if split == "question" else f"query-{name}")
    if part == "gate" and (benchmark != "jsonl" or (root.is_dir() and not (root / "gate.jsonl").is_file())):
        return Questions((), ())
    return read_split(benchmark, root, "dev" if benchmark != "jsonl" and part == "test" else part)


def read_text(file: Path) -> str:
    """A text file in UTF-8, with or without a mark at its beginning. Raises `UserError` when it is none."""
    try:
        # A lone carriage return stays: it is white space within a statement, and no end of a line.
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None


def _geoquery(root: Path, split: str) -> Questions:
    file = _existing("geoquery", root, (_GEOQUERY_FILE,), "it is data/geography.json of text2sql-data")
    key, wanted = "question-split", split
    if split.startswith("query-"):
        key, wanted = "query-split", split.removeprefix("query-")
    rows = []
    try:
        for entry in _json_rows(file):
            for sentence in entry["sentences"]:
                if (entry if key == "query-split" else sentence)[key] == wanted:
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


def _published(benchmark: str, root: Path, layout: _Layout, sqls: Sequence[str]) -> Questions:
    """Spider and BIRD: JSON lists of questions, and the file of golds that their evaluators read."""
    files = [_existing(benchmark, root, layout.questions, layout.advice)]
    files += [root / name for name in layout.more if (root / name).is_file()]
    rows = [_question(row, file, i, layout.texts, sqls) for file in files for i, row in enumerate(_json_rows(file))]
    golds = next((root / name for name in layout.golds if (root / name).is_file()), None)
    if golds is None:
        return Questions(tuple(rows), tuple(files))
    fitted, notes = _with_golds(rows, files[0], golds, parsed=benchmark == "spider")
    return Questions(fitted, (*files, golds), notes)


def _with_golds(
    rows: Sequence[Question], file: Path, golds: Path, parsed: bool
) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    """The questions with the SQL of the gold file, after a look that the two belong together.

    `parsed`: the hardness was read from the parse of the SQL, and does not hold for another one.
    """
    lines = [line for line in read_text(golds).split("\n") if line.strip()]
    if len(lines) != len(rows):
        raise UserError(
            f"{golds} has {len(lines)} golds for the {len(rows)} questions of {file}: take both from one release"
        )
    fitted, other = [], 0
    for index, (row, line) in enumerate(zip(rows, lines, strict=True)):
        sql, tab, db_id = line.rpartition("\t")
        if not tab or db_id.strip() != row.db_id:
            raise UserError(
                f"{golds}, line {index + 1} is about {db_id.strip() if tab else 'no database'}, question {index} of "
                f"{file} about {row.db_id}: the golds are in another order than the questions"
            )
        same = sql.split() == row.sql.split()
        other += not same
        fitted.append(replace(row, sql=sql.strip(), hardness=row.hardness if same or not parsed else ""))
    notes = (f"{other} golds of {golds.name} differ from those of {file.name}; {golds.name} is used",) if other else ()
    return tuple(fitted), notes


def _jsonl(root: Path, split: str) -> Questions:
    file = _existing("jsonl", root, (f"{split}.jsonl",), "one JSON object a line, with db_id, question and sql")
    rows = [_question(row, file, i, ("question",), ("sql",)) for i, row in enumerate(_json_lines(file))]
    return Questions(tuple(rows), (file,))


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
    name = next((str(fields[key]) for key in _IDS if isinstance(fields.get(key), str | int)), "")
    hardness = fields.get("difficulty") or parsed_hardness(fields.get("sql")) or ""
    return Question(db_id, question, sql, str(fields.get("evidence") or ""), str(hardness), name)


def _json_rows(file: Path) -> list[Any]:
    try:
        rows = json.loads(read_text(file))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise UserError(f"{file} must hold a JSON list of questions")
    return rows


def _json_lines(file: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{file}, line {number} is not JSON: {error}") from None
    return rows
