"""Single values for instances: what satisfies a condition of a gold, what just fails it, and what is new."""

from __future__ import annotations

import random
import re
from datetime import date, timedelta

from spftsql.suites.golds import Condition
from spftsql.suites.source import Cell, SourceColumn

_WORDS = ("al", "on", "river", "b", "o7", "Kim", "z", "north")
_PRINTED = 10  # characters of a date without its time


def stored(column: SourceColumn, value: Cell) -> Cell:
    """The value as rows of the column have it: numbers as text where the column keeps text."""
    if isinstance(value, float) and value.is_integer() and column.kind == "integer":
        value = int(value)
    if isinstance(value, str) and column.kind in ("integer", "real") and not column.as_text:
        try:
            return int(value) if column.kind == "integer" else float(value)
        except ValueError:
            return value
    return str(value) if column.as_text and isinstance(value, int | float) else value


def meeting(condition: Condition, column: SourceColumn, holds: bool, rng: random.Random) -> Cell:
    """A value for which the condition holds, or by a narrow margin does not; None where there is none."""
    sign, values = condition.sign, condition.values
    if sign == "!=":
        sign, holds = "=", not holds
    if sign in ("=", "in"):
        value = rng.choice(values)
        return stored(column, value) if holds else _beside(column, value, values, rng)
    if sign == "like":
        return _like(column, str(values[0]), holds, rng)
    numbers = [_number(value) for value in values]
    low, high = numbers[0], numbers[-1]
    if low is None or high is None:
        return _beside_text(condition, column, holds, rng)
    step = column.step if float(low).is_integer() or column.kind == "real" else 1
    near = {
        "<": ((low - step, low - 2 * step), (low, low + step)),
        "<=": ((low, low - step), (low + step,)),
        ">": ((low + step, low + 2 * step), (low, low - step)),
        ">=": ((low, low + step), (low - step,)),
        "between": ((low, high, (low + high) // 2), (low - step, high + step)),
    }[sign][0 if holds else 1]
    fitting = [v for v in near if v >= 0 or column.low < 0]
    return _spelled(column, rng.choice(fitting)) if fitting else None


def fresh(column: SourceColumn, taken: set[Cell], rng: random.Random) -> Cell:
    """A value that is not among the taken ones, of the column's looks."""
    if column.kind in ("integer", "real") or not column.values:
        highest = max((int(v) for v in (_number(cell) for cell in taken) if v is not None), default=0)
        return _spelled(column, max(highest, int(column.high)) + rng.randint(1, 3))
    if column.kind == "date":
        day = date(2000, 1, 1) + timedelta(days=rng.randrange(7_000))
        while day.isoformat() in taken:
            day += timedelta(days=1)
        return day.isoformat()
    base = rng.choice(column.values)
    if isinstance(base, bytes):
        return base + rng.randbytes(4)
    number = 2
    while f"{base}{number}" in taken:
        number += 1
    return f"{base}{number}"


def moved(column: SourceColumn, value: Cell, rng: random.Random) -> Cell:
    """Another number within the bounds of the column, of the same number of digits where it is text."""
    number = _number(value)
    if number is None or column.closed:
        return value
    low, high = column.low, column.high
    if column.kind == "real":
        steps = max(1, round((high - low) / max(column.step, 0.5)))
        return _spelled(column, low + rng.randint(0, steps) * max(column.step, 0.5))
    other = rng.randint(int(low), max(int(low), int(high)))
    if column.as_text and len(str(other)) != len(str(value)):
        return value
    return _spelled(column, other)


def _beside(column: SourceColumn, value: Cell, values: tuple[Cell, ...], rng: random.Random) -> Cell:
    """A value that is not among `values`: a neighbour for numbers, else another of the source."""
    number = _number(value)
    if column.kind in ("integer", "real") and number is not None and not column.closed:
        near = [n for n in (number + column.step, number - column.step) if n >= 0 or column.low < 0]
        return _spelled(column, rng.choice(near))
    others = [v for v in column.values if v not in values and str(v) not in map(str, values)]
    if not others and len(column.values) == 1 and isinstance(column.values[0], str):
        return f"{column.values[0]}2"  # always the same in the source, but the gold expects that it need not be
    return rng.choice(others) if others else None


def _beside_text(condition: Condition, column: SourceColumn, holds: bool, rng: random.Random) -> Cell:
    """For comparisons of text, such as dates: a value of the source on the wanted side, the bound itself at times."""
    low, high = str(condition.values[0]), str(condition.values[-1])
    texts = [v for v in column.values if isinstance(v, str)] + [low, high]
    if column.kind == "date":
        texts += [day for bound in (low, high) for day in _days_beside(bound)]
    fitting = [text for text in texts if _compares(text, condition.sign, low, high) == holds]
    return rng.choice(fitting) if fitting else None


def _compares(text: str, sign: str, low: str, high: str) -> bool:
    if sign == "between":
        return low <= text <= high
    return {"<": text < low, "<=": text <= low, ">": text > low, ">=": text >= low}[sign]


def _days_beside(text: str) -> list[str]:
    try:
        day = date.fromisoformat(text[:_PRINTED])
        return [(day + timedelta(days=days)).isoformat() + text[_PRINTED:] for days in (-1, 1)]
    except (ValueError, OverflowError):
        return []


def _like(column: SourceColumn, pattern: str, holds: bool, rng: random.Random) -> Cell:
    """Text that matches a LIKE pattern; or that has its words in the wrong place, or not at all."""
    rule = re.compile(
        "".join({"%": ".*", "_": "."}.get(char, re.escape(char)) for char in pattern), re.IGNORECASE | re.DOTALL
    )
    known = [v for v in column.values if isinstance(v, str) and (rule.fullmatch(v) is not None) == holds]
    if known and (column.closed or rng.random() < 0.3):
        return rng.choice(known)
    if column.closed:
        return None
    core = pattern.strip("%").replace("%", f" {rng.choice(_WORDS)} ").replace("_", rng.choice("aeiou"))
    word = rng.choice(_WORDS)
    shapes = [
        core,
        f"{core} {word}",
        f"{word} {core}",
        f"{word} {core} {word}",
        f"{word}{core}{word}",
        core.swapcase(),
        core[:-1],
    ]
    fitting = [text for text in shapes if (rule.fullmatch(text) is not None) == holds]
    return stored(column, rng.choice(fitting)) if fitting else (rng.choice(known) if known else None)


def _number(value: Cell) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, int | float):
        return value if value == value and abs(value) < 2**53 else None
    return None


def _spelled(column: SourceColumn, number: float) -> Cell:
    if column.kind == "integer" or (column.kind != "real" and float(number).is_integer()):
        return stored(column, int(number))
    return stored(column, round(float(number), 2))
