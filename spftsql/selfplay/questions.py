"""Questions for synthetic SQL: several candidates, what a round trip says of each, and the choice among them.

SPFT-SQL, section 3.1.2: a SQL-to-text model phrases the question; the Text-to-SQL model answers it, and execution says
whether its SQL agrees. How agreement is used is a setting, because the round trip of a weak model rejects mostly what
it would have learned from (measured at toy scale).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from spftsql.records import Filter

_SAYS_NOTHING = frozenset({"timeout", "truncated", "unverifiable"})  # about whether the question fits


@dataclass(frozen=True)
class Vote:
    """One SQL of the Text-to-SQL model for a question, with its verdict against the SQL that was to be phrased."""

    sql: str
    status: str
    digest: str
    elapsed_ms: float


@dataclass(frozen=True)
class Phrasing:
    """A candidate question. `missing` are the values of the SQL that it does not say; `asks`: it is a question."""

    text: str
    missing: tuple[str, ...] = ()
    votes: tuple[Vote, ...] = ()
    asks: bool = True

    @property
    def complete(self) -> bool:
        """Whether it is a question that says every value."""
        return bool(self.text) and self.asks and not self.missing

    @property
    def agreement(self) -> float | None:
        """The share of votes that give the SQL's result; None without a vote that says anything."""
        said = [vote for vote in self.votes if vote.status not in _SAYS_NOTHING]
        return sum(vote.status == "equal" for vote in said) / len(said) if said else None

    @property
    def disagreement(self) -> float:
        """The largest share of votes that agree with each other on another result."""
        said = [vote for vote in self.votes if vote.status not in _SAYS_NOTHING]
        others = Counter(vote.digest for vote in said if vote.status == "different" and vote.digest)
        return max(others.values(), default=0) / len(said) if said else 0.0


@dataclass(frozen=True)
class Choice:
    """The chosen candidate's place, or None and the reason why the statement gets no question."""

    index: int | None
    reason: str = ""


def choose(phrasings: Sequence[Phrasing], how: Filter, agreement: float) -> Choice:
    """The question for a statement among its candidates, of which only questions that say every value count.

    `none`: the first. `round_trip`: the first whose share of agreeing votes is at least `agreement`. `ranked`: the one
    with the highest share, the first among equals, however low. `confident_disagreement`: the first of which not at
    least `agreement` of the votes (and more than agree with the SQL) agree on one other result. A candidate whose votes
    say nothing passes, but for `round_trip`.
    """
    if not any(phrasing.text and phrasing.asks for phrasing in phrasings):
        return Choice(None, "no question")
    complete = [i for i, phrasing in enumerate(phrasings) if phrasing.complete]
    if not complete:
        return Choice(None, "a value is not said")
    if how == "none":
        return Choice(complete[0])
    if how == "ranked":
        return Choice(max(complete, key=lambda i: (phrasings[i].agreement or 0.0, -i)))
    if how == "round_trip":
        passed = [i for i in complete if (phrasings[i].agreement or 0.0) >= agreement]
        return Choice(passed[0]) if passed else Choice(None, "round trip")
    passed = [i for i in complete if not _confident(phrasings[i], agreement)]
    return Choice(passed[0]) if passed else Choice(None, "confident disagreement")


def _confident(phrasing: Phrasing, agreement: float) -> bool:
    return phrasing.disagreement >= agreement and phrasing.disagreement > (phrasing.agreement or 0.0)
