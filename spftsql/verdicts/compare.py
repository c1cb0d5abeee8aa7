"""When two results are equal, under the policies `spider`, `bird` and `strict`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from spftsql.records import Policy
from spftsql.sandbox.result import Cell
from spftsql.verdicts.permutation import equal_under_permutation

Row = tuple[Cell, ...]

RELATIVE_TOLERANCE = 1e-9
_EXACT_BELOW = 2.0**53  # whole floats below are exact integers


def compare(prediction: Sequence[Row], gold: Sequence[Row], policy: Policy, ordered: bool) -> bool:
    """Whether the two results are equal. In every policy 1 = 1.0, '1' is not 1, and NULL = NULL.

    `spider`: the rule of the test-suite evaluator (taoyds/test-suite-sql-eval). Two empty results are equal; otherwise
    some one permutation of the columns must make the rows equal, as a bag, or as a list when `ordered`. No tolerance.
    (The original also rejects some results that mix 1 with 1.0, by sorting cells as text first; here they are equal.)

    `bird`: the rows are equal as sets; `ordered` is ignored. No tolerance.

    `strict`: the rows are equal as bags, or as lists when `ordered`, with the columns in their places. Numbers of
    which one at least is not whole may differ by 1e-9 of the larger one; whole numbers may not differ.
    """
    if policy == "spider":
        return equal_under_permutation(prediction, gold, ordered)
    if policy == "bird":
        return set(prediction) == set(gold)
    if policy == "strict":
        return _strictly_equal(prediction, gold, ordered)
    raise ValueError(f"unknown policy {policy!r}")


def _strictly_equal(prediction: Sequence[Row], gold: Sequence[Row], ordered: bool) -> bool:
    if len(prediction) != len(gold):
        return False
    if ordered:
        return all(map(_same_row, prediction, gold))
    ours, theirs = Counter(prediction), Counter(gold)
    if ours == theirs:
        return True
    left, right = list((ours - theirs).elements()), list((theirs - ours).elements())
    clusters = _clusters(left, right)
    left.sort(key=lambda row: _sort_key(row, clusters))
    right.sort(key=lambda row: _sort_key(row, clusters))
    return all(map(_same_row, left, right))


def _same_row(one: Row, other: Row) -> bool:
    return len(one) == len(other) and all(map(_same_cell, one, other))


def _same_cell(one: Cell, other: Cell) -> bool:
    if one == other:
        return True
    if not isinstance(one, int | float) or not isinstance(other, int | float):
        return False
    if _is_whole(one) and _is_whole(other):
        return False
    return math.isclose(one, other, rel_tol=RELATIVE_TOLERANCE, abs_tol=0.0)


def _is_whole(number: int | float) -> bool:
    return isinstance(number, int) or (number.is_integer() and abs(number) < _EXACT_BELOW)


def _clusters(*results: Sequence[Row]) -> dict[int | float, int]:
    """Gives numbers that may count as equal the same rank, so that rows sort alike on both sides."""
    numbers = sorted({cell for rows in results for row in rows for cell in row if isinstance(cell, int | float)})
    ranks: dict[int | float, int] = {}
    rank = 0
    for index, number in enumerate(numbers):
        if index and not _same_cell(numbers[index - 1], number):
            rank += 1
        ranks[number] = rank
    return ranks


def _sort_key(row: Row, clusters: dict[int | float, int]) -> tuple[object, ...]:
    """First what must be exactly equal, then the ranks of the numbers, then the numbers themselves."""
    exact = tuple("number" if isinstance(cell, int | float) else repr(cell) for cell in row)
    numbers = tuple(cell for cell in row if isinstance(cell, int | float))
    return exact, tuple(clusters[number] for number in numbers), numbers
