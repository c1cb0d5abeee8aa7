"""Choosing among candidates by what they return: the majority of equal results wins.

Results are compared by the digest of a `Verdict`. A result with rows beats an empty one, and both beat a
statement that failed, however many candidates failed alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spftsql.records import Verdict
from spftsql.sandbox.result import Execution

_WITH_ROWS, _TOO_LONG, _EMPTY, _FAILED = 3, 2, 1, 0


@dataclass(frozen=True)
class Ballot:
    """One result and the candidates that agree on it: `sql` is the most frequent, `votes` their number."""

    sql: str
    votes: int
    verdict: Verdict


@dataclass(frozen=True)
class Contest:
    """What the execution of candidates gave: a verdict on each, in their order, and the rows of the one that won."""

    verdicts: list[Verdict]
    shown: Execution


def vote(candidates: Sequence[str], verdicts: Sequence[Verdict]) -> list[Ballot]:
    """The results of `candidates`, best first; `verdicts` are in the order of the candidates.

    Among results of one kind the one with more votes wins, then the one that came first. The votes sum to the
    number of candidates.
    """
    groups: dict[tuple[int, str], list[int]] = {}
    for index, (sql, verdict) in enumerate(zip(candidates, verdicts, strict=True)):
        rank = _rank(verdict)
        groups.setdefault((rank, sql if rank in (_FAILED, _TOO_LONG) else verdict.digest), []).append(index)
    order = sorted(groups, key=lambda key: (-key[0], -len(groups[key]), groups[key][0]))
    return [_ballot([(candidates[i], verdicts[i]) for i in groups[key]]) for key in order]


def _rank(verdict: Verdict) -> int:
    if verdict.status == "truncated":
        return _TOO_LONG
    if verdict.status != "ran":
        return _FAILED
    return _EMPTY if verdict.row_count == 0 or verdict.constant_null else _WITH_ROWS


def _ballot(members: Sequence[tuple[str, Verdict]]) -> Ballot:
    statements = [sql for sql, _ in members]
    sql = max(statements, key=statements.count)  # the first of the most frequent
    return Ballot(sql, len(members), next(verdict for text, verdict in members if text == sql))
