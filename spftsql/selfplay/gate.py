"""The promotion gate: a candidate is served only if a paired test on the gate set says that it is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spftsql.evaluation.metrics import mcnemar
from spftsql.selfplay.stages import Answer

Outcome = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Decision:
    """What the gate found: questions that only one of the two got right, and the exact two-sided p."""

    challenger: str
    incumbent: str
    outcome: Outcome
    only_challenger: int
    only_incumbent: int
    n: int
    p: float


def decide(challenger: Sequence[Answer], incumbent: Sequence[Answer], alpha: float) -> Decision:
    """Exact McNemar over the same questions. `better` and `worse` need p < alpha; otherwise the old one stays."""
    pairs = _paired(challenger, incumbent)
    test = mcnemar([new for new, _ in pairs], [old for _, old in pairs])
    outcome: Outcome = "undecided"
    if test.p < alpha:
        outcome = "better" if test.only_a > test.only_b else "worse"
    return Decision(
        challenger[0].candidate, incumbent[0].candidate, outcome, test.only_a, test.only_b, len(pairs), test.p
    )


def _paired(challenger: Sequence[Answer], incumbent: Sequence[Answer]) -> list[tuple[bool, bool]]:
    old = {answer.example.id: answer.correct for answer in incumbent}
    return [(answer.correct, old[answer.example.id]) for answer in challenger if answer.example.id in old]
