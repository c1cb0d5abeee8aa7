"""When two results are equal, under the policies `spider`, `bird` and `strict`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from spftsql.records import Policy
from spftsql.sandbox.result import Cell
from spftsql.verdicts.permutation import equal_under_permutation

Row = tuple[Cell, ...]

RELATIVE_TOLERANCE = 1e-9
ABSOLUTE_TOLERANCE = 1e-12  # what is left where a sum of floats cancels out
_EXACT_BELOW = 2.0**53  # whole floats below are exact integers
_NUMBERS = frozenset([int, float])
_MATCHED_ROWS = 500  # alike rows up to which all partners are tried; building the graph takes their square


def compare(
    prediction: Sequence[Row], gold: Sequence[Row], policy: Policy, ordered: bool, ties: Sequence[int] = ()
) -> bool:
    """Whether the two results are equal. In every policy 1 = 1.0, '1' is not 1, and NULL = NULL.

    `spider`: the rule of the test-suite evaluator (taoyds/test-suite-sql-eval). Two empty results are equal; otherwise
    some one permutation of the columns must make the rows equal, as a bag, or as a list when `ordered`. No tolerance.
    (The original also rejects some results that mix 1 with 1.0, by sorting cells as text first; here they are equal.)

    `bird`: the rows are equal as sets; `ordered` is ignored. No tolerance.

    `strict`: the rows are equal as bags, or as lists when `ordered`, with the columns in their places. Numbers of
    which one at least is not whole may differ by 1e-9 of the larger one or by 1e-12; whole numbers may not differ.
    Near numbers may be near to different others, so bags are equal when some pairing of their rows, not just any,
    makes all pairs equal. `ties` are the ends of the gold's groups of rows that its ORDER BY does not tell apart
    (2, 3 for two rows and one row): within a group the order is free. Without `ties` every row is a group.
    """
    if policy == "spider":
        return equal_under_permutation(prediction, gold, ordered)
    if policy == "bird":
        return set(prediction) == set(gold)
    if policy == "strict":
        if len(prediction) != len(gold):
            return False
        if not ordered:
            return _same_bag(prediction, gold)
        if not ties or prediction == gold:
            return prediction == gold or all(map(_same_row, prediction, gold))
        return all(_same_bag(prediction[a:b], gold[a:b]) for a, b in zip((0, *ties), ties, strict=False))
    raise ValueError(f"unknown policy {policy!r}")


def _same_bag(one: Sequence[Row], other: Sequence[Row]) -> bool:
    """Whether the rows, as many here as there, can be paired so that all pairs are equal within the tolerance."""
    if len(one) == 1:
        return _same_row(one[0], other[0])
    ours, theirs = Counter(one), Counter(other)
    if ours == theirs:
        return True
    left, right = list((ours - theirs).elements()), list((theirs - ours).elements())
    if not (_has_fraction(left) or _has_fraction(right)):
        return False
    return _paired(left, right, thorough=False) or _paired(one, other, thorough=True)


def _has_fraction(rows: Iterable[Row]) -> bool:
    return any(type(cell) is float and not _is_whole(cell) for row in rows for cell in row)


def _paired(left: Sequence[Row], right: Sequence[Row], thorough: bool) -> bool:
    """Pairs only rows whose cells are the same but for numbers that are near each other, directly or in a chain.

    Among such rows the pairs follow the order of the numbers, which is right for one column of measurements. When that
    fails and `thorough`, a matching is looked for.
    """
    chain_of = _chains(cell for rows in (left, right) for row in rows for cell in row if type(cell) in _NUMBERS)
    if not chain_of:
        return False  # no two rows are near each other without being equal
    alike: dict[Row, tuple[list[Row], list[Row]]] = {}
    for side, rows in enumerate((left, right)):
        for row in rows:
            key = tuple([chain_of.get(cell, cell) for cell in row])
            alike.setdefault(key, ([], []))[side].append(row)
    if any(len(ours) != len(theirs) for ours, theirs in alike.values()):
        return False
    for ours, theirs in alike.values():
        if len(ours) > 1:
            ours.sort(key=_numbers)
            theirs.sort(key=_numbers)
        if all(map(_same_row, ours, theirs)):
            continue
        if not thorough or len(ours) > _MATCHED_ROWS or not _matched(ours, theirs):
            return False
    return True


def _chains(cells: Iterable[Cell]) -> dict[Cell, Any]:
    """Names the chains of numbers, each near enough to the next; numbers without a neighbour are in none."""
    chains: dict[Cell, Any] = {}
    name, last = 0, None
    for number in sorted(set(cells)):  # type: ignore[type-var]
        if last is not None and _near(last, number):
            chains[last] = chains[number] = (name,)  # a tuple is no cell
        else:
            name += 1
        last = number
    return chains


def _numbers(row: Row) -> tuple[int | float, ...]:
    return tuple(cell for cell in row if isinstance(cell, int | float))


def _matched(ours: Sequence[Row], theirs: Sequence[Row]) -> bool:
    """Whether a perfect matching of equal rows exists (Hopcroft and Karp)."""
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(range(len(ours)))
    graph.add_edges_from(
        (i, -1 - j) for i, one in enumerate(ours) for j, other in enumerate(theirs) if _same_row(one, other)
    )
    return len(nx.bipartite.hopcroft_karp_matching(graph, range(len(ours)))) == 2 * len(ours)


def _same_row(one: Row, other: Row) -> bool:
    return one == other or (len(one) == len(other) and all(map(_same_cell, one, other)))


def _same_cell(one: Any, other: Any) -> bool:
    if one == other:
        return True
    if type(one) not in _NUMBERS or type(other) not in _NUMBERS:
        return False
    return not (_is_whole(one) and _is_whole(other)) and _near(one, other)


def _near(one: Any, other: Any) -> bool:
    return math.isclose(one, other, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)


def _is_whole(number: int | float) -> bool:
    return isinstance(number, int) or (number.is_integer() and abs(number) < _EXACT_BELOW)
