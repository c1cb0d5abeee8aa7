"""Whether a question says every value that its SQL filters on: in its words, as a number, as a date.

A pair whose question leaves a value out teaches the model to guess it. The comparison is lenient about form (case,
plural, accents, `1,000` or "a thousand", `2010-03-05` or "March 5, 2010", a letter or two) and strict about the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from rapidfuzz import fuzz
from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

from spftsql.linking.words import fold, stem, words_of

_COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.ILike, exp.Glob, exp.In, exp.Between)
_ALIKE = 88.0  # rapidfuzz.fuzz.ratio from which words are the same but for their spelling
_SHORTEST = 5  # letters of a text that is compared in this way
_DATE = re.compile(r"(\d{4})-(\d{2})(?:-(\d{2}))?(?:[ T]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+")
_UP_TO_19 = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: float(number) for number, word in enumerate(words_of(_UP_TO_19))}
_WORDS |= {word: 10.0 * number for number, word in enumerate(words_of(_TENS), 2)}
_WORDS |= {"once": 1.0, "twice": 2.0, "single": 1.0, "dozen": 12.0, "no": 0.0}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "k": 1e3, "million": 1e6, "m": 1e6, "billion": 1e9}
_MONTHS = words_of("january february march april may june july august september october november december")


def filter_literals(sql: str, dialect: str) -> list[str]:
    """The literals that a statement compares with, each once, `%` and `_` of patterns left out; LIMITs beyond 1 too.

    Empty text, and numbers in formulas, are no values. Raises `ValueError` when the SQL does not parse.
    """
    try:
        tree = parse_one(sql, dialect=dialect)
    except SqlglotError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    found: dict[str, None] = {}
    for literal in tree.find_all(exp.Literal):
        limit = literal.find_ancestor(exp.Limit, exp.Offset, exp.Select)
        if isinstance(limit, exp.Limit):
            if literal.this != "1":
                found[literal.this] = None
            continue
        comparison = literal.find_ancestor(*_COMPARISONS)
        if comparison is None or literal.find_ancestor(exp.Select) is not comparison.find_ancestor(exp.Select):
            continue
        if literal.find_ancestor(exp.Anonymous, exp.TimeToStr, exp.StrToTime) is not None:
            continue  # an argument such as a format of dates
        if isinstance(comparison, exp.Like | exp.ILike | exp.Glob):
            found |= dict.fromkeys(part.strip() for part in re.split(r"[%_*?]", literal.this) if part.strip())
        elif literal.this.strip():
            sign = "-" if isinstance(literal.parent, exp.Neg) else ""
            found[sign + literal.this] = None
    return list(found)


def unsaid(question: str, sql: str, dialect: str) -> tuple[str, ...]:
    """The values of `filter_literals` that the question does not say. Raises `ValueError` for SQL that does not parse.

    Two numbers are not said by one: "more than 3" does not say `a > 3 AND b > 5`.
    """
    return tuple(literal for literal in filter_literals(sql, dialect) if not says(question, literal))


def says(question: str, literal: str) -> bool:
    """Whether a question says one value."""
    date = _DATE.fullmatch(literal.strip())
    if date is not None:
        return literal.strip() in question or _says_date(question, *date.groups())
    number = _as_number(literal)
    if number is not None:
        return any(_same(number, said) for said in _numbers(question)) or _says_text(question, literal)
    return _says_text(question, literal)


def _says_text(question: str, literal: str) -> bool:
    wanted, said = _stems(literal), _stems(question)
    if not wanted:  # nothing but signs: `+`, `#`
        return literal in question
    size = len(wanted)
    if any(said[start : start + size] == wanted for start in range(len(said) - size + 1)):
        return True
    folded = " ".join(words_of(literal))
    if len(folded) < _SHORTEST or any(char.isdigit() for char in folded):
        return False
    words = tuple(words_of(question))
    windows = (" ".join(words[start : start + n]) for n in {size, size + 1} for start in range(len(words) - n + 1))
    return any(fuzz.ratio(folded, window) >= _ALIKE for window in windows)


def _says_date(question: str, year: str, month: str, day: str | None) -> bool:
    words = words_of(question)
    if year not in words and not any(year in word for word in words if word.isdigit() and len(word) > 4):
        return False
    of_the_year = (month, day) in (("01", "01"), ("12", "31"))  # "since 2010" says that much
    name = _MONTHS[int(month) - 1] if 1 <= int(month) <= 12 else ""
    month_said = any(len(word) > 2 and name.startswith(word) for word in words) or _in_figures(words, int(month))
    day_said = day is None or _in_figures(words, int(day))
    return of_the_year or (month_said and day_said)


def _in_figures(words: list[str], number: int) -> bool:
    """The number as it stands in dates: 5, 05, and 5th, which is split at the letters."""
    return any(word.isdigit() and len(word) < 3 and int(word) == number for word in words)


def _as_number(literal: str) -> float | None:
    try:
        return float(literal)
    except ValueError:
        return None


def _same(wanted: float, said: float) -> bool:
    return any(abs(wanted - value) <= 1e-12 * max(1.0, abs(wanted)) for value in (said, said / 100))


def _numbers(question: str) -> Iterator[float]:
    """Every number of a question, in figures or in words, with what scales it: 1,500; 2.5 million; twenty-five."""
    text = fold(question).replace("-", " ") if not re.search(r"-\d", question) else fold(question)
    before: float | None = None
    for piece in re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?|\.\d+|[a-z]+", text):
        value = _WORDS.get(piece)
        if value is None and _NUMBER.fullmatch(piece):
            value = float(piece.replace(",", ""))
        if value is not None:
            yield value
            if before is not None and before >= 20 and before % 10 == 0 and 0 < value < 10:
                yield before + value  # twenty-five
                value += before
            before = value
        elif piece in _SCALES:
            before = (1.0 if before is None else before) * _SCALES[piece]
            yield before
        elif piece != "and":
            before = None


@lru_cache(maxsize=4096)
def _stems(text: str) -> tuple[str, ...]:
    return tuple(stem(word) for word in words_of(text))
