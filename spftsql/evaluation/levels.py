"""Spider's four levels of hardness (Yu et al. 2018), from three counts of a query."""

from __future__ import annotations

from typing import Literal

Hardness = Literal["easy", "medium", "hard", "extra", "unknown"]


def level(clauses: int, nesting: int, extras: int) -> Hardness:
    """The level of a query.

    `clauses` are WHERE, GROUP BY, ORDER BY, LIMIT, every joined table, every OR and LIKE; `nesting` sub-queries inside
    conditions, and set operations; `extras` how many of these are several: aggregates, selected columns, conditions,
    grouping columns.
    """
    if nesting == 0:
        if clauses <= 1 and extras == 0:
            return "easy"
        if (clauses <= 1 and extras <= 2) or (clauses <= 2 and extras < 2):
            return "medium"
        if (clauses <= 2 and extras > 2) or (clauses == 3 and extras <= 2):
            return "hard"
    elif nesting == 1 and clauses <= 1 and extras == 0:
        return "hard"
    return "extra"
