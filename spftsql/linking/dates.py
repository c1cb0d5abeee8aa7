"""The dates and times of the day that a text says, in figures or with English names of months."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

from spftsql.linking.words import fold, words_of

Date = tuple[int, int, int | None]  # year, month, day

_MONTHS = words_of("january february march april may june july august september october november december")
_TIME = re.compile(
    r"(?<![\d:.])(?P<hour>\d{1,2})(?:[:h](?P<minute>\d{2})(?::\d{2}(?:\.\d+)?)?(?! ?[ap]\.?m)"
    r"|(?:[:.](?P<minute12>\d{2}))? ?(?P<half>[ap])\.?m\b\.?)"
)
_YEAR_FIRST = re.compile(r"(?<!\d)(\d{4})[-/.年년] ?(\d{1,2})(?:[-/.月월] ?(\d{1,2})(?!\d)|[月월]|(?![-/.\d]))")
_YEAR_LAST = re.compile(r"(?<!\d)(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})(?!\d)")
_IN_ONE = re.compile(r"(?<!\d)(\d{4})(\d{2})(\d{2})(?!\d)")
_PIECE = re.compile(r"\d+|[^\W\d_]+|[^\w\s]")
_FILLERS = frozenset(["of", "in", "the", "year", "on", "day", "st", "nd", "rd", "th", ".", "-", "/", ","])
_JOINERS = frozenset(["and", "or", "to", "from", "between", "through", "until", "till", ","])  # of a range, of a list


@dataclass
class _Part:
    """What is said of one date."""

    years: list[int] = field(default_factory=list)
    months: list[int] = field(default_factory=list)
    days: list[int] = field(default_factory=list)


@lru_cache(maxsize=4096)
def dates_in(text: str) -> frozenset[Date]:
    """Every date with its year: 2010-03-05, 3/5/2010 (read both ways), March 5, 2010, 5th of March 2010, March 2010.

    In "from March 5 to April 10, 2010" the year belongs to both; where no year stands beside a month, that is of any
    year of the text. The month of a date is a date too, without a day.
    """
    text = _TIME.sub(" ; ", fold(text))
    found = {(int(y), int(m), int(d) if d else None) for y, m, d in _YEAR_FIRST.findall(text)}
    found |= {(int(y), int(m), int(d)) for y, m, d in _IN_ONE.findall(text)}
    for one, other, year in _YEAR_LAST.findall(text):
        found |= {(int(year), int(one), int(other)), (int(year), int(other), int(one))}
    for figures in (_YEAR_FIRST, _YEAR_LAST, _IN_ONE):
        text = figures.sub(" ; ", text)
    years = [int(year) for year in re.findall(r"(?<!\d)\d{4}(?!\d)", text)]
    found.update(date for parts in _with_months(text) for date in _dates(parts, years))
    return frozenset(found | {(year, month, None) for year, month, _ in found})


@lru_cache(maxsize=4096)
def times_in(text: str) -> frozenset[tuple[int, int]]:
    """Every (hour, minute) of a text: 14:30, 2:30 pm, 2 pm, noon."""
    text = fold(text)
    found = {(12, 0)} if "noon" in words_of(text) else set()
    for time in _TIME.finditer(text):
        hour = int(time["hour"])
        if time["half"]:
            hour = hour % 12 + 12 * (time["half"] == "p")
        found.add((hour, int(time["minute"] or time["minute12"] or 0)))
    return frozenset(found)


def _with_months(text: str) -> Iterator[list[_Part]]:
    """The runs of words that say dates, each cut where one date ends and another begins."""
    parts = [_Part()]
    pieces = _PIECE.findall(text)
    for piece, after in zip(pieces, [*pieces[1:], ""], strict=True):
        month = next((n for n, name in enumerate(_MONTHS, 1) if len(piece) > 2 and name.startswith(piece)), None)
        if month is not None:
            parts[-1].months.append(month)
        elif piece.isdecimal() and len(piece) == 4:
            parts[-1].years.append(int(piece))
        elif piece.isdecimal() and len(piece) < 3:
            parts[-1].days.append(int(piece))
        elif piece in _JOINERS and not (piece == "," and after.isdecimal() and len(after) == 4):
            parts.append(_Part())
        elif piece not in _FILLERS:
            yield parts
            parts = [_Part()]
    yield parts


def _dates(parts: list[_Part], years: list[int]) -> Iterator[Date]:
    """The dates of a run; one that lacks its month or its year has that of a neighbour."""
    parts = [part for part in parts if part.years or part.months or part.days]
    for at, part in enumerate(parts):
        before, behind = parts[at::-1], parts[at:]
        own_months = next((other.months for other in [*before, *behind] if other.months), [])
        own_years = next((other.years for other in [*behind, *before] if other.years), years)
        days: list[int | None] = [*part.days] or [None]
        yield from product(own_years, own_months, days)
