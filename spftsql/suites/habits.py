"""What rows keep to although no schema says so: kinds of values, columns that follow from others or repeat them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from spftsql.suites.source import Cell, ColumnKind, Link, Row, SourceColumn

_CHANCE = 0.01  # how likely it may be that a table shows a dependency between columns by accident
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?([ T].*)?")
_WHOLE = ("INT", "NUM", "DEC", "BOOL")
_FRACTIONS = ("REAL", "FLOA", "DOUB")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value) is not None)


def kind_of(values: Sequence[Cell], declared: str, asked: Sequence[Cell]) -> tuple[ColumnKind, bool]:
    """What the values of a column are, and whether they are stored as text.

    Without values the declared type (upper case) and the literals decide that golds compare the column with.
    """
    if any(isinstance(value, bytes) for value in values):
        return "other", False
    if not values:
        if any(word in declared for word in _FRACTIONS):
            return "real", False
        whole = any(word in declared for word in _WHOLE)
        if whole or any(isinstance(value, int | float) for value in asked):
            return "integer", not whole
        return ("date" if "DATE" in declared or "TIME" in declared else "text"), True
    if all(map(_is_number, values)):
        if any(map(_has_meaning_in_its_zeros, values)):
            return "text", True
        whole = all(float(value).is_integer() for value in values if isinstance(value, int | float | str))
        return "integer" if whole else "real", any(isinstance(value, str) for value in values)
    if all(isinstance(value, str) and _DATE.fullmatch(value) for value in values):
        return "date", True
    return "text", True


def _has_meaning_in_its_zeros(value: Cell) -> bool:
    """Whether text of digits is more than a number, such as a zip code: `02139`, `1.50`."""
    if not isinstance(value, str):
        return False
    whole, point, decimals = value.lstrip("-").partition(".")
    return (len(whole) > 1 and whole[0] == "0") or (bool(point) and len(decimals) > 1 and decimals[-1] == "0")


def step_of(values: Iterable[Cell]) -> float:
    """The smallest difference that the values of a column of fractions show, at least 0.01."""
    decimals = [len(str(value).partition(".")[2]) for value in values if isinstance(value, float | str)]
    return float(10 ** -min(2, max(decimals, default=1)))


def blocks(rows: Sequence[Row], columns: Sequence[SourceColumn], linked: set[int]) -> tuple[tuple[int, ...], ...]:
    """Sets of columns (by position) to be drawn together; `linked` are those that refer to other tables.

    These are columns of which one follows from the other in the rows, dates, and what names an entity in words: a code
    goes with its name, so that it does not matter by which of them a row is found. Numbers as keys go with nothing.
    """
    group = list(range(len(columns)))

    def join(one: int, other: int) -> None:
        low, high = sorted((group[one], group[other]))
        group[:] = [low if g == high else g for g in group]

    free = [i for i, column in enumerate(columns) if not column.unique and len(column.values) > 1]
    for one in free:
        for other in free:
            if one != other and group[one] != group[other] and _follows(rows, one, other, _CHANCE / len(free) ** 2):
                join(one, other)
    dates = [i for i in free if columns[i].kind == "date" and i not in linked]
    names = [i for i, column in enumerate(columns) if column.unique and column.kind == "text" and i not in linked]
    for together in (dates, names):
        for other in together[1:]:
            join(together[0], other)
    members: dict[int, list[int]] = {}
    for index, number in enumerate(group):
        members.setdefault(number, []).append(index)
    return tuple(map(tuple, members.values()))


def _follows(rows: Sequence[Row], one: int, other: int, chance: float) -> bool:
    """Whether column `other` is a function of column `one` in these rows, which by accident has less than a chance."""
    seen: dict[Cell, Cell] = {}
    repeats = 0
    for row in rows:
        if row[one] is None:
            continue
        if row[one] in seen:
            if seen[row[one]] != row[other]:
                return False
            repeats += 1
        else:
            seen[row[one]] = row[other]
    counts = Counter(row[other] for row in rows)
    alike = sum((count / len(rows)) ** 2 for count in counts.values())  # that two rows agree by chance
    return repeats > 0 and alike**repeats < chance


def copies(link: Link, rows: Sequence[Row], parents: Sequence[Row]) -> tuple[tuple[int, int], ...]:
    """Pairs of columns, here and in the parent, that say the same in all rows that `link` joins, not by accident."""
    by_key = {tuple(str(row[i]) for i in link.parent_columns): row for row in parents}
    keys = [tuple(str(row[i]) for i in link.columns) for row in rows]
    joined = [(row, by_key[key]) for row, key in zip(rows, keys, strict=True) if key in by_key]
    if not joined:
        return ()
    found = []
    for own in set(range(len(joined[0][0]))) - set(link.columns):
        for other in set(range(len(joined[0][1]))) - set(link.parent_columns):
            if all(row[own] == parent[other] for row, parent in joined):
                counts = Counter(parent[other] for _, parent in joined)
                alike = sum((count / len(joined)) ** 2 for count in counts.values())
                if alike ** len(by_key.keys() & set(keys)) < _CHANCE:
                    found.append((own, other))
    return tuple(sorted(found))
