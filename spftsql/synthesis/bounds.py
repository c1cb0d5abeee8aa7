"""What comparisons of one column with values say together: that nothing is left, or that nothing is cut."""

from __future__ import annotations

from collections.abc import Mapping

from spftsql.synthesis.uses import Comparison

Bound = tuple[Comparison, str | int | float]


def alike(one: Comparison, other: Comparison) -> bool:
    """Whether one of two such comparisons says nothing beside the other: both `>`, both `<`, or `=` and `<>`."""
    return one[0] == other[0] in ("<", ">") or {one, other} == {"=", "!="}


def covers(one: Bound, other: Bound) -> bool:
    """Whether every value meets one of the two: `x < 775 OR x > 640`, `x <> 1 OR x <> 2`."""
    (how, value), (how_other, value_other) = one, other
    if how == how_other == "!=":
        return value != value_other
    if how[0] != "<" or how_other[0] != ">" or not comparable(value, value_other):
        return False
    return value > value_other or (value == value_other and "=" in (how + how_other)[1:])  # type: ignore[operator]


def inside(operator: str, low: object, high: object, first: object, last: object) -> bool | None:
    """Whether all (True) or none (False) of the values from `low` to `high` meet `operator`."""
    meets: Mapping[str, tuple[bool, bool]] = {
        ">": (low > first, high <= first),  # type: ignore[operator]
        ">=": (low >= first, high < first),  # type: ignore[operator]
        "<": (high < first, low >= first),  # type: ignore[operator]
        "<=": (high <= first, low > first),  # type: ignore[operator]
        "between": (first <= low and high <= last, high < first or low > last),  # type: ignore[operator]
    }
    every, none = meets[operator]
    return True if every else False if none else None


def comparable(one: object, other: object) -> bool:
    """Whether two values have an order: both are texts, or both numbers."""
    return isinstance(one, str) == isinstance(other, str)
