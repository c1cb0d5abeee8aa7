"""What people say of the endpoint's answers, kept as labelled pairs that the next run can learn from.

One small Parquet file for each entry, written whole or not at all, so that any number of replicas may store into one
folder and nothing is lost with any of them. A confirmed answer is a label with the answer's SQL, a corrected one with
the correction; an answer that was only called wrong is kept too, and is no label.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from spftsql.errors import UserError, disk_faults
from spftsql.records import Example, content_hash

Rating = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Feedback:
    """One entry. `sql` is the label, empty where there is none; `answer` is what the model wrote.

    The rest says where it comes from: the time (UTC), the served model and its prompts' hash, key and request.
    """

    id: str
    db_id: str
    question: str
    evidence: str
    sql: str
    answer: str
    rating: str
    corrected: bool
    comment: str
    time: str
    model: str
    prompt_hash: str
    key: str
    request: str


def store_feedback(
    folder: Path,
    *,
    database: str,
    question: str,
    answer: str,
    rating: Rating,
    corrected: str = "",
    evidence: str = "",
    comment: str = "",
    model: str = "",
    prompt_hash: str = "",
    key: str = "",
    request: str = "",
) -> Feedback:
    """Stores one entry and returns it. Raises `Fault` when the disk is full."""
    now = datetime.now(UTC)
    entry = Feedback(
        id=uuid.uuid4().hex,
        db_id=database,
        question=question,
        evidence=evidence,
        sql=corrected or (answer if rating == "up" else ""),
        answer=answer,
        rating=rating,
        corrected=bool(corrected),
        comment=comment,
        time=now.isoformat(timespec="microseconds"),
        model=model,
        prompt_hash=prompt_hash,
        key=key,
        request=request,
    )
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{now:%Y%m%dT%H%M%S%f}-{entry.id[:8]}.parquet", entry)
    return entry


def read_feedback(folder: Path) -> list[Feedback]:
    """All entries, oldest first. Raises `UserError` for a folder that is not there or holds something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not folder.is_dir():
        raise UserError(f"feedback: {folder} is not a folder")
    names = [field.name for field in fields(Feedback)]
    entries = []
    for file in sorted(folder.glob("*.parquet")):
        try:
            rows = pq.read_table(file, columns=names).to_pylist()
            entries += [Feedback(**row) for row in rows]
        except (pa.ArrowException, OSError, TypeError) as error:
            raise UserError(f"feedback: {file} cannot be read: {str(error).splitlines()[0]}") from None
    return sorted(entries, key=lambda entry: entry.time)


def labelled_examples(folder: Path, databases: Iterable[str]) -> list[Example]:
    """The labels in `folder` about these databases; of several for one question the last that was given.

    An answer that was called wrong after it was confirmed is no label any more. Raises as `read_feedback`.
    """
    known = set(databases)
    latest: dict[tuple[str, str, str], Feedback] = {}
    for entry in read_feedback(folder):
        asked = entry.db_id, " ".join(entry.question.lower().split()), entry.evidence
        before = latest.get(asked)
        if entry.sql or (before is not None and before.sql == entry.answer):
            latest[asked] = entry
    return [
        Example(
            id=f"feedback-{content_hash(entry.db_id, entry.question, entry.sql)}",
            db_id=entry.db_id,
            question=entry.question,
            sql=entry.sql,
            source="label",
            template="",
            evidence=entry.evidence,
        )
        for entry in latest.values()
        if entry.sql and entry.db_id in known
    ]


def _write(path: Path, entry: Feedback) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        pq.write_table(pa.Table.from_pylist([asdict(entry)]), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
