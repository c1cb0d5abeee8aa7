"""Who is trained and who answers: candidates, the exams that they sit, their answers, and the trainings wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spftsql.config import Optimization
from spftsql.records import Example, Mode, TrainRow, Verdict

NEAR_MISS = "near-miss"  # who wrote an answer that no candidate wrote (see `near_misses.py`)
FAULT = "fault"  # among verdicts: it is not known what the answer would have been
TRIED_PER_NEAR_MISS = 4  # statements that are executed for each one wanted: some give what the gold gives


@dataclass(frozen=True)
class Candidate:
    """A trained model: where it lies and what it was made from."""

    name: str
    path: str
    key: str


@dataclass(frozen=True)
class Answer:
    """One sample of one candidate for one question, as SQL and with its verdict."""

    example: Example
    candidate: str
    text: str
    sql: str
    verdict: Verdict

    @property
    def correct(self) -> bool:
        """Whether the SQL gives the gold's result."""
        return self.verdict.status == "equal"

    @property
    def known(self) -> bool:
        """Whether there is an answer at all; a fault of ours says nothing about the candidate."""
        return self.verdict.fault is None

    @property
    def outcome(self) -> str:
        """The status of the verdict, by which answers are counted; `FAULT` where there is none."""
        return self.verdict.status if self.known else FAULT


@dataclass(frozen=True)
class Exam:
    """Questions that candidates answer, `samples` times each; temperature 0 is greedy."""

    questions: Sequence[Example]
    samples: int = 1
    temperature: float = 0.0


@dataclass(frozen=True)
class Training:
    """One training wanted from `Stages.train`; the fields are those of `TrainJob`."""

    name: str
    start: Candidate
    rows: Sequence[TrainRow]
    optimization: Optimization
    mode: Mode = "sft"
    reference: Candidate | None = None
    synthetic_share: float | None = None
    selection: Sequence[Example] = ()  # questions that decide when it stops, with `training.validate_steps`
    details: Mapping[str, object] = field(default_factory=dict)  # for the model card


def accuracy(answers: Sequence[Answer]) -> float:
    """Execution accuracy over the answers that are known; 0 for none."""
    return sum(answer.correct for answer in answers) / max(sum(answer.known for answer in answers), 1)
