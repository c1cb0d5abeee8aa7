"""The promotion gate: a candidate is served only if a paired test on the gate set says that it is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spftsql.evaluation.metrics import fewest_to_decide, mcnemar, questions_to_decide
from spftsql.selfplay.candidates import Answer

Outcome = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Decision:
    """What the gate found: questions that only one of the two got right, and the exact two-sided p.

    `more` estimates how many further questions would decide an undecided test; None where there is no telling.
    """

    challenger: str
    incumbent: str
    outcome: Outcome
    only_challenger: int
    only_incumbent: int
    n: int
    p: float
    more: int | None
    alpha: float = 0.05

    @property
    def too_small(self) -> bool:
        """Whether so few questions can decide nothing, whatever the answers."""
        return self.n < fewest_to_decide(self.alpha)

    def sentence(self) -> str:
        """The decision in words."""
        text = f"Gate, {self.finding()}"
        if self.outcome != "undecided":
            return text + "."
        if self.too_small:
            hint = f"; fewer than {fewest_to_decide(self.alpha)} questions cannot decide at p < {self.alpha:g}"
        else:
            hint = f"; about {self.more} more questions would decide" if self.more is not None else ""
        return f"{text}{hint}. {self.incumbent} stays."

    def finding(self) -> str:
        """What was found, without what follows from it."""
        return (
            f"{self.challenger} against {self.incumbent}: {self.outcome} ({self.only_challenger} questions right "
            f"that were wrong, {self.only_incumbent} the other way, n = {self.n}, p = {self.p:.3g})"
        )


def decide(challenger: Sequence[Answer], incumbent: Sequence[Answer], alpha: float) -> Decision:
    """Exact McNemar over the same questions. `better` and `worse` need p < alpha; otherwise the old one stays.

    Raises `ValueError` for a question that is there twice: it would count as two.
    """
    pairs = _paired(challenger, incumbent)
    test = mcnemar([new for new, _ in pairs], [old for _, old in pairs])
    outcome: Outcome = "undecided"
    if test.p < alpha:
        outcome = "better" if test.only_a > test.only_b else "worse"
    undecided = outcome == "undecided"
    return Decision(
        challenger=challenger[0].candidate,
        incumbent=incumbent[0].candidate,
        outcome=outcome,
        only_challenger=test.only_a,
        only_incumbent=test.only_b,
        n=len(pairs),
        p=test.p,
        more=questions_to_decide(test.only_a, test.only_b, len(pairs), alpha) if undecided else None,
        alpha=alpha,
    )


def _paired(challenger: Sequence[Answer], incumbent: Sequence[Answer]) -> list[tuple[bool, bool]]:
    for answers in (challenger, incumbent):
        twice = [name for name, count in Counter(answer.example.id for answer in answers).items() if count > 1]
        if twice:
            raise ValueError(f"the gate was given {twice[0]} twice")
    old = {answer.example.id: answer.correct for answer in incumbent if answer.known}
    return [
        (answer.correct, old[answer.example.id]) for answer in challenger if answer.known and answer.example.id in old
    ]
