"""Answers, pairs and curves of a run, as its stages stored them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from spftsql.records import Example, PairRow, TrainRow, Verdict, VerificationRequest
from spftsql.reporting.damage import parquet_files, stored_rows
from spftsql.reporting.run_record import RunRecord, fold_of, read_lines
from spftsql.selfplay.lineage import pair_files

T = TypeVar("T")
Damaged = list[str] | None  # gets a line about what cannot be read, which raises `UserError` without it
Curves = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class StoredAnswer:
    """One answer of a candidate to a question, with its verdict."""

    example: Example
    sql: str
    status: str
    reason: str

    @property
    def right(self) -> bool:
        """Whether the SQL gives the gold's result."""
        return self.status == "equal"


@dataclass(frozen=True)
class PlayPair:
    """A pair of self-play: the gold, and what the opponent wrote; `reward` is 1 where that is wrong."""

    training: str
    db_id: str
    question: str
    chosen: str
    rejected: str
    reward: int


Answers = Mapping[tuple[str, str], Sequence[StoredAnswer]]  # by candidate and exam


def read_exams(root: Path, damaged: Damaged = None) -> dict[str, dict[str, Example]]:
    """The questions of each exam, by their ids; empty for a run from before they were kept."""
    return {
        path.stem: {example.id: example for example in stored_rows(root, path, Example, damaged)}
        for path in sorted((root / "exams").glob("*.parquet"))
    }


def read_answers(record: RunRecord, exams: Mapping[str, Mapping[str, Example]], damaged: Damaged = None) -> Answers:
    """All verified answers of the run's own candidates whose questions are known."""
    found: dict[tuple[str, str], list[StoredAnswer]] = {}
    for folder in _folders(record, "verify-"):
        requests = stored_rows(record.root, folder / "requests.parquet", VerificationRequest, damaged)
        if not any(_parts(request.id) for request in requests[:1]):
            continue
        verdicts = {one.id: one for one in stored_rows(record.root, folder / "verdicts", Verdict, damaged)}
        fresh: dict[tuple[str, str], list[StoredAnswer]] = {}
        for request in requests:
            parts = _parts(request.id)
            if parts is None or parts[2] not in exams.get(parts[1], {}) or request.id not in verdicts:
                continue
            candidate, exam, example = parts
            verdict = verdicts[request.id]
            answer = StoredAnswer(exams[exam][example], request.sql, verdict.status, verdict.reason)
            fresh.setdefault((candidate, exam), []).append(answer)
        found |= fresh
    return found


def read_pairs(record: RunRecord, damaged: Damaged = None) -> list[PairRow]:
    """The synthetic statements of all rounds and what became of them; what a fold has left there is not the run's."""
    rounds = {event.get("round") for event in record.of("phrased")}
    rows = (row for file in pair_files(record.root) for row in stored_rows(record.root, file, PairRow, damaged))
    return [row for row in rows if row.round in rounds]


def read_play(record: RunRecord, exams: Mapping[str, Mapping[str, Example]], damaged: Damaged = None) -> list[PlayPair]:
    """The pairs of all self-play trainings but those of folds."""
    pairs = []
    for folder in _folders(record, "train-play-"):
        for file in parquet_files(folder):
            for row in stored_rows(record.root, file, TrainRow, damaged):
                if row.rejected is not None:
                    example = exams.get("play", {}).get(row.id.rsplit("/", 2)[0])
                    question = example.question if example else row.prompt
                    pairs.append(PlayPair(file.stem, row.db_id, question, row.chosen, row.rejected, row.reward or 0))
    return pairs


def read_curves(root: Path, key: str) -> Curves:
    """A value of `metrics.jsonl` over the steps of each of the run's own trainings that has it."""
    found: dict[str, dict[float, float]] = {}
    for row in read_lines(root / "metrics.jsonl"):
        job = str(row.get("job", ""))
        if isinstance(row.get(key), int | float) and job and fold_of(job) is None and "step" in row:
            found.setdefault(job, {})[float(row["step"])] = float(row[key])
    return {job: sorted(points.items()) for job, points in found.items()}


def spread(rows: Sequence[T], most: int) -> list[T]:
    """At most `most` of the rows, evenly over all of them."""
    return [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else list(rows)


def _folders(record: RunRecord, begins: str) -> list[Path]:
    """The folders of the run's own built stages whose names begin so, as far as they are there."""
    stages = [stage for stage in record.stages if stage.state == "built" and stage.fold is None]
    return [f for stage in stages if stage.name.startswith(begins) and (f := stage.folder(record.root)).is_dir()]


def _parts(identity: str) -> tuple[str, str, str] | None:
    """Candidate, exam and question of a request's id `CANDIDATE/EXAM/QUESTION/INDEX`."""
    parts = identity.split("/", 2)
    if len(parts) < 3 or "/" not in parts[2]:
        return None
    return parts[0], parts[1], parts[2].rsplit("/", 1)[0]
