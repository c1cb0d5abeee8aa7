"""The vote among candidates."""

from __future__ import annotations

import pytest

from spftsql.records import Verdict
from spftsql.serving.voting import vote


def verdict(status: str = "ran", digest: str = "", rows: int = 1, null: bool = False) -> Verdict:
    return Verdict("1", "db", status, "", 1.0, rows, null, digest, "sqlite")


A, B = verdict(digest="a"), verdict(digest="b")
EMPTY, NULL = verdict(digest="e", rows=0), verdict(digest="n", null=True)
ERROR, TIMEOUT, CUT = verdict("error"), verdict("timeout"), verdict("truncated", rows=9)


@pytest.mark.parametrize(
    ("verdicts", "winner", "votes"),
    [
        ([A], 0, 1),
        ([A, B, B], 1, 2),
        ([A, B], 0, 1),  # a tie goes to the first
        ([EMPTY, EMPTY, A], 2, 1),
        ([NULL, NULL, A], 2, 1),
        ([ERROR, TIMEOUT, EMPTY], 2, 1),
        ([ERROR, EMPTY, CUT], 2, 1),
        ([CUT, A], 1, 1),
        ([ERROR, TIMEOUT], 0, 1),
    ],
)
def test_the_majority_of_results_with_rows_wins(verdicts: list[Verdict], winner: int, votes: int) -> None:
    candidates = [f"SELECT {i}" for i in range(len(verdicts))]
    ballots = vote(candidates, verdicts)
    assert (ballots[0].sql, ballots[0].votes, ballots[0].verdict) == (candidates[winner], votes, verdicts[winner])
    assert sum(ballot.votes for ballot in ballots) == len(candidates)


def test_the_most_frequent_statement_stands_for_a_result() -> None:
    (ballot,) = vote(["SELECT 1", "SELECT 2", "SELECT 2"], [A, A, A])
    assert (ballot.sql, ballot.votes) == ("SELECT 2", 3)


def test_failures_do_not_agree_with_each_other() -> None:
    assert [b.votes for b in vote(["x", "y", "y"], [ERROR, ERROR, ERROR])] == [2, 1]
