"""How many questions a run has, before its labels are drawn."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from spftsql.config import Config, DataConfig
from spftsql.errors import UserError
from spftsql.evaluation.benchmarks import PARTS

LETTERS_PER_TOKEN = 3.2  # of questions and SQL
UNKNOWN_QUESTION, UNKNOWN_ANSWER = 20, 40  # tokens, where there are no questions to measure

# Published numbers of questions, for where the files are not here.
_PUBLISHED = {"spider": (8659, 0, 1034), "bird": (9428, 0, 1534), "geoquery": (549, 49, 279)}


@dataclass(frozen=True)
class Sizes:
    """Questions of a run, before it is drawn, and tokens of a question and of its SQL, on average."""

    train: int
    gate: int
    test: int
    question: int = UNKNOWN_QUESTION
    answer: int = UNKNOWN_ANSWER
    assumed: bool = False


def sizes_of(config: Config) -> Sizes:
    """How many labels, gate and test questions a run has: counted where the files are here, else as published.

    Labels of `data.feedback` are counted where the folder is here, also those that the run will leave out because they
    ask what is tested. Raises `UserError` when there is nothing to count, and for a folder that holds something else.
    """
    sizes, data = _benchmark_sizes(config.data), config.data
    if data.feedback is None or not data.feedback.is_dir():
        return sizes
    from spftsql.serving.feedback import labelled_examples, read_feedback

    own = {database.name for database in data.databases}
    labels = labelled_examples(data.feedback, own or {entry.db_id for entry in read_feedback(data.feedback)})
    if data.benchmark == "none":
        question, answer = _lengths([(label.question, label.sql) for label in labels])
        sizes = replace(sizes, question=question, answer=answer)
    return replace(sizes, train=sizes.train + len(labels))


def _benchmark_sizes(data: DataConfig) -> Sizes:
    if data.benchmark == "none":
        return Sizes(0, 0, 0)
    if data.benchmark == "demo":
        return _demo_sizes(data.label_share, data.gate_share)
    question, answer, assumed = UNKNOWN_QUESTION, UNKNOWN_ANSWER, False
    if data.root is not None and data.root.is_dir():
        from spftsql.evaluation.locations import database_configs
        from spftsql.evaluation.sources import read_questions

        rows = {
            part: ()
            if part == "train" and not data.label_share  # then there need not be labels
            else read_questions(data.benchmark, data.root, part, data.split).rows
            for part in PARTS
        }
        found = database_configs(data.benchmark, data.root) if data.benchmark != "geoquery" else {}  # it has only one
        here = {*found, *(database.name for database in data.databases)}
        if any(row.db_id in here for part in PARTS for row in rows[part]):  # else they are where the run will be
            rows = {part: tuple(row for row in rows[part] if row.db_id in here) for part in PARTS}
        train, gate, test = (len(rows[part]) for part in PARTS)
        question, answer = _lengths([(row.question, row.sql) for part in PARTS for row in rows[part]])
    elif data.benchmark in _PUBLISHED:
        (train, gate, test), assumed = _PUBLISHED[data.benchmark], True
    else:
        raise UserError("data.root is not set: --set data.root=FOLDER of the questions, which are counted")
    train = _drawn(train, data.label_share)
    if not gate and train > 1:
        gate = _drawn(train, data.gate_share)
        train -= gate
    return Sizes(train, gate, test, question, answer, assumed)


def _drawn(count: int, share: float) -> int:
    """How many of `count` the run draws (`evaluation.benchmarks`): one at least, unless the share is 0."""
    return min(count, max(1, round(share * count))) if share else 0


@cache
def _demo_sizes(label_share: float, gate_share: float) -> Sizes:
    """Those of the embedded benchmark, whose database is made to count its questions."""
    from spftsql.evaluation.benchmarks import load_benchmark

    data = DataConfig(benchmark="demo", label_share=label_share, gate_share=gate_share)
    with tempfile.TemporaryDirectory() as folder:
        found = load_benchmark(data, 0, Path(folder))
    parts = found.train, found.gate, found.test
    question, answer = _lengths([(e.question, e.sql) for part in parts for e in part])
    return Sizes(len(parts[0]), len(parts[1]), len(parts[2]), question, answer)


def _lengths(rows: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """Tokens of a question and of its SQL, on average."""
    count = max(len(rows), 1)
    question, answer = (sum(len(row[place]) for row in rows) / count / LETTERS_PER_TOKEN for place in (0, 1))
    return round(question) or UNKNOWN_QUESTION, round(answer) or UNKNOWN_ANSWER
