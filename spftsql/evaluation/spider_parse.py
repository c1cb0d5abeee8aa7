"""Hardness read from the parse that Spider publishes with each of its queries (the field `sql` of its JSON files).

The rule is that of `spftsql.evaluation.hardness`; here the counting was done by Spider's own parser, so no statement
has to be parsed again and the levels are the benchmark's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spftsql.evaluation.levels import Hardness, level

_LIKE = 9  # its place among Spider's comparison operators
_SET_OPERATIONS = ("intersect", "union", "except")


def parsed_hardness(parse: Any) -> Hardness | None:
    """Spider's level of a query from its published parse; None for what has not the form of one."""
    try:
        return _hardness(parse)
    except (KeyError, IndexError, TypeError):
        return None


def _hardness(parse: dict[str, Any]) -> Hardness:
    joined, where, having = parse["from"]["conds"], parse["where"], parse["having"]
    selected, grouped, ordered = parse["select"][1], parse["groupBy"], parse["orderBy"]
    lists = (joined, where, having)
    conditions = [condition for clause in lists for condition in clause[::2]]
    clauses = sum(map(bool, (where, grouped, ordered, parse["limit"])))
    clauses += max(0, len(parse["from"]["table_units"]) - 1)
    clauses += sum(clause[1::2].count("or") for clause in lists)
    clauses += sum(condition[1] == _LIKE for condition in conditions)
    nesting = sum(isinstance(value, dict) for condition in conditions for value in condition[3:5])
    nesting += sum(bool(parse[name]) for name in _SET_OPERATIONS)
    # The evaluator counts whatever begins with something true: a condition's NOT and the words between HAVINGs, too.
    terms = [side for unit in (ordered[1] if ordered else ()) for side in unit[1:3] if side]
    aggregates = sum(map(_marked, (*selected, *where[::2], *grouped, *terms, *having)))
    extras = sum(count > 1 for count in (aggregates, len(selected), len(where[::2]), len(grouped)))
    return level(clauses, nesting, extras)


def _marked(unit: Sequence[Any]) -> bool:
    return bool(unit[0])
