"""Who plays: the candidates with their answers, and the choice of main model and opponents among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spftsql.config import SelfPlayConfig
from spftsql.records import Mode
from spftsql.selfplay.candidates import Answer, Candidate, Exam, accuracy
from spftsql.selfplay.stages import Stages

FROM_LAST: tuple[Mode, ...] = ("sft", "spin", "dpo")  # modes that go on from their last model


@dataclass
class Players:
    """The questions that candidates answer, and the candidates so far, oldest first, with their answers.

    A candidate answers everything once, right after it was trained: `selection` greedily (its accuracy there chooses
    main model and opponent), `play` by sampling (what it would write as an opponent), `gate` and `test` greedily.
    Only the gate reads the answers to `gate`, only the table those to `test`.
    """

    exams: dict[str, Exam]
    candidates: list[Candidate]
    answers: dict[str, dict[str, list[Answer]]]

    @property
    def scores(self) -> dict[str, float]:
        """Accuracy on the selection set, by candidate name."""
        return {name: accuracy(exams["selection"]) for name, exams in self.answers.items() if "selection" in exams}

    def of(self, exam: str) -> dict[str, list[Answer]]:
        """Everybody's answers to one exam."""
        return {name: exams[exam] for name, exams in self.answers.items() if exam in exams}


def debut(stages: Stages, players: Players, title: str, candidates: Sequence[Candidate]) -> None:
    """New candidates answer all exams, in one start of their engines."""
    players.answers |= stages.answers(title, candidates, players.exams)
    for candidate in candidates:
        if candidate.name in players.scores:
            stages.run.event("selection", candidate=candidate.name, accuracy=round(players.scores[candidate.name], 4))


def strongest(candidates: Sequence[Candidate], scores: Mapping[str, float]) -> Candidate:
    """The candidate with the highest selection accuracy; among equals the newest."""
    return max(reversed(candidates), key=lambda candidate: scores[candidate.name])


def opponents_of(
    mode: Mode, play: SelfPlayConfig, main: Candidate, candidates: Sequence[Candidate], scores: Mapping[str, float]
) -> list[Candidate]:
    """Who writes y′: main itself for `spin` and `dpo`, else as `selfplay.opponent` says.

    `sft` has no y′: those of the spft modes say how often each gold is trained on, so that it takes as many steps.
    Several for a `pool` alone: evenly from the weakest to the strongest, all where there are fewer. Among equals the
    older one is the weaker.
    """
    if mode in ("spin", "dpo") or play.opponent == "previous":
        return [main]
    if play.opponent == "base":
        return [candidates[0]]
    ranked = sorted(candidates, key=lambda candidate: scores[candidate.name])
    if play.opponent == "weakest" or len(ranked) == 1:
        return ranked[:1]
    count = min(play.pool, len(ranked))
    return [ranked[round(place * (len(ranked) - 1) / (count - 1))] for place in range(count)]
