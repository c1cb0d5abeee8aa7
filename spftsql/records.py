"""The rows that travel between stages, and their Parquet form.

Every stage reads a Parquet dataset of one of these types and writes one of another. The types are frozen
dataclasses; `write_records` and `read_records` convert them, with the Arrow schema derived from the annotations, so
that a column cannot be missing or of another type without an error. Files from before a column was there are read with
its default, where the type gives one.
"""

from __future__ import annotations

import hashlib
import json
import os
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:  # imported where it is used: commands that write no Parquet start without it
    import pyarrow as pa

Status = Literal["ran", "equal", "different", "error", "timeout", "truncated", "unverifiable"]
Policy = Literal["spider", "bird", "strict"]
POLICIES: tuple[Policy, ...] = typing.get_args(Policy)
Mode = Literal["sft", "spin", "dpo", "spft-a", "spft-b"]
Filter = Literal["none", "round_trip", "ranked", "confident_disagreement"]


@dataclass(frozen=True, slots=True)
class Example:
    """A question and the SQL that answers it.

    `source` says where it comes from (`label` or `synthetic`); `template` is the id of the SQL structure it is an
    instance of; `confidence` is the share of votes that confirm a synthetic pair (1.0 for labels).
    """

    id: str
    db_id: str
    question: str
    sql: str
    source: str
    template: str
    hardness: str = "unknown"
    evidence: str = ""
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class Statement:
    """A synthesized SQL statement, before it has a question."""

    id: str
    db_id: str
    sql: str
    template: str
    bindings: str  # JSON: slot -> column or value, and the tables used
    seed: int


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt for one model: `n` samples wanted. `model` is the directory of a checkpoint."""

    id: str
    db_id: str
    prompt: str
    model: str
    n: int
    temperature: float
    max_tokens: int
    seed: int


SET_ASIDE = "set aside: "  # begins the error of a request that engines failed with, again and again


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion. A request that cannot be served gives one row with `error` set and `index` 0."""

    id: str
    db_id: str
    model: str
    index: int
    text: str
    tokens: int
    finish_reason: str  # stop | length | error
    error: str | None = None

    @property
    def fault(self) -> str | None:
        """Why it is not known what the model would have said: engines failed. None where the model is to blame."""
        return self.error if self.error is not None and self.error.startswith(SET_ASIDE) else None


@dataclass(frozen=True, slots=True)
class VerificationRequest:
    """A statement to execute on `db_id`, compared with `gold_sql` under `policy` where there is a gold."""

    id: str
    db_id: str
    sql: str
    gold_sql: str | None
    policy: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What execution says about a statement. `fault` set means that nothing is known about the SQL.

    `digest` identifies the (order-free) result, so that equal results can be found without moving rows; `row_count`
    and `constant_null` (every cell is NULL) let synthesis drop empty results. `elapsed_ms` is the statement's own time.
    """

    id: str
    db_id: str
    status: str
    reason: str
    elapsed_ms: float
    row_count: int
    constant_null: bool
    digest: str
    engine: str
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One training example as text: completions are what the model shall write after `prompt`.

    `rejected` and `reward` (R of the method: 1 when the rejected SQL is wrong, 0 when it is right) are set for the
    pair losses only. `replay` rows contribute the NLL of `chosen` and nothing else, in every mode.
    """

    id: str
    db_id: str
    prompt: str
    chosen: str
    rejected: str | None
    reward: int | None
    source: str
    replay: bool = False


@dataclass(frozen=True, slots=True)
class PairRow:
    """A synthetic statement and what became of it: kept in one of the sets (`part`), or dropped for `reason`.

    Hashes say what it was made from: `database` the content, `question_prompt` the text that asked for its questions,
    `prompt_builder` wording and settings of all prompts, `question_model` and `voter` the checkpoints. `sql_engine` is
    the engine that executed the SQL, with its version. `candidates` is JSON: for each question its text, the values
    that it does not say, its agreement, and its votes (SQL, status, milliseconds). `confidence` is the agreement of the
    chosen one. `sql_ms` and `votes_ms` are what the database took for the SQL and for that of all votes,
    `questions_written_ms` and `votes_written_ms` how long engines had the requests for the questions and for the votes,
    which they answer beside others. What is None is not known, or was not asked.
    """

    id: str
    round: int
    db_id: str
    database: str
    template: str
    bindings: str
    seed: int
    sql: str
    sql_status: str
    sql_rows: int
    sql_ms: float
    question_model: str | None
    question_seed: int | None
    voter: str | None
    candidates: str
    question: str | None
    votes: int
    votes_ms: float
    confidence: float | None
    part: str  # train | play | selection, or empty
    kept: bool
    reason: str
    sql_engine: str | None = None
    prompt_builder: str | None = None
    question_prompt: str | None = None
    questions_written_ms: float | None = None
    votes_written_ms: float | None = None


Record = Example | Statement | GenerationRequest | Sample | VerificationRequest | Verdict | TrainRow | PairRow
R = TypeVar("R", Example, Statement, GenerationRequest, Sample, VerificationRequest, Verdict, TrainRow, PairRow)


def arrow_schema(record: type[Record]) -> pa.Schema:
    """The Arrow schema of a record type; optional fields are nullable, the others are not."""
    import pyarrow as pa

    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    hints = typing.get_type_hints(record)
    columns = []
    for field in fields(record):
        hint, nullable = hints[field.name], False
        if isinstance(hint, types.UnionType):
            hint, nullable = next(a for a in typing.get_args(hint) if a is not type(None)), True
        columns.append(pa.field(field.name, arrow[hint], nullable=nullable))
    return pa.schema(columns)


def to_table(rows: Sequence[R], record: type[R]) -> pa.Table:
    """Rows as an Arrow table of `record`'s schema."""
    import pyarrow as pa

    schema = arrow_schema(record)
    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def from_table(table: pa.Table, record: type[R]) -> list[R]:
    """The rows of an Arrow table; raises `KeyError` when a column without a default is missing."""
    there = set(table.column_names)
    columns = [
        table.column(field.name).to_pylist()
        if field.name in there or field.default is MISSING
        else [field.default] * len(table)
        for field in fields(record)
    ]
    return [record(*row) for row in zip(*columns, strict=True)]


def write_records(path: Path, rows: Iterable[R], record: type[R], chunk: int = 20_000) -> int:
    """Writes one Parquet file atomically (temporary file, then rename) and returns the number of rows."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with pq.ParquetWriter(temporary, arrow_schema(record)) as writer:
            buffer: list[R] = []
            for row in rows:
                buffer.append(row)
                if len(buffer) >= chunk:
                    writer.write_table(to_table(buffer, record))
                    count, buffer = count + len(buffer), []
            writer.write_table(to_table(buffer, record))
            count += len(buffer)
    except BaseException:  # a full disk above all, which it would keep full
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    return count


def read_records(path: Path, record: type[R]) -> list[R]:
    """All rows of a Parquet file, or of a directory of Parquet files (in file-name order)."""
    return list(iterate_records(path, record))


def iterate_records(path: Path, record: type[R]) -> Iterator[R]:
    """The rows of a Parquet file or directory, one batch in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        for batch in pq.ParquetFile(file).iter_batches():
            yield from from_table(pa.Table.from_batches([batch]), record)


def content_hash(*parts: object) -> str:
    """A short, stable hash of JSON-serialisable values, used for ids and for stage keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
