"""Whether a question says every value that its SQL filters on: in its words, as a number, as a date.

A pair whose question leaves a value out teaches the model to guess it. The comparison is lenient about form (case,
plural, accents, `1,000` or "a thousand", `2010-03-05` or "March 5, 2010", a letter or two) and strict about the value.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

from rapidfuzz import fuzz
from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

from spftsql.linking.dates import dates_in, times_in
from spftsql.linking.numbers import numbers_in
from spftsql.linking.words import has_unspaced, stem, words_of

_COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.ILike, exp.Glob, exp.In, exp.Between)
_AROUND = (  # a value stays itself in these
    *(exp.Paren, exp.Neg, exp.Cast, exp.Collate, exp.Tuple, exp.Values, exp.Array, exp.Any),
    *(exp.Lower, exp.Upper, exp.Trim, exp.Date, exp.StrToDate, exp.StrToTime),
)
_ALIKE = 88.0  # rapidfuzz.fuzz.ratio from which words are the same but for their spelling
_SHORTEST = 5  # letters of a text that is compared in this way
_DATE = re.compile(r"(\d{4})-(\d{2})(?:-(\d{2}))?(?:[ T](\d{2}:\d{2})(?::\d{2}(?:\.\d+)?)?)?")
_ENDS_OF_A_DAY = ("00:00", "23:59")  # nobody says these
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")


def filter_literals(sql: str, dialect: str) -> list[str]:
    """The literals that a statement compares with, each once, `%` and `_` of patterns left out; LIMITs beyond 1 too.

    Empty text, numbers in formulas and arguments of functions are no values. Raises `ValueError` when the SQL does not
    parse.
    """
    try:
        tree = parse_one(sql, dialect=dialect)
    except SqlglotError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    found: dict[str, None] = {}
    for literal in tree.find_all(exp.Literal):
        if isinstance(literal.find_ancestor(exp.Limit, exp.Offset, exp.Select), exp.Limit):
            if literal.this != "1":
                found[literal.this] = None
            continue
        comparison = comparison_with(literal)
        if isinstance(comparison, exp.Like | exp.ILike | exp.Glob):
            found |= dict.fromkeys(part.strip() for part in re.split(r"[%_*?]", literal.this) if part.strip())
        elif comparison is not None and literal.this.strip():
            sign = "-" if isinstance(literal.find_ancestor(exp.Neg, type(comparison)), exp.Neg) else ""
            found[sign + literal.this] = None
    return list(found)


def comparison_with(literal: exp.Literal) -> exp.Expr | None:
    """The comparison, or the WHEN of a CASE with an operand, whose operand the literal is; None where there is none.

    A number in a formula (`x * 100 > y`) and an argument of a function (`SUBSTR(x, 1, 4)`) are no operands.
    """
    operand: exp.Expr = literal
    above = literal.parent
    while above is not None and _is_around(above, operand):
        operand, above = above, above.parent
    if isinstance(above, exp.If):
        case = above.parent
        return above if isinstance(case, exp.Case) and case.this is not None and operand.arg_key == "this" else None
    return above if isinstance(above, _COMPARISONS) else None


def _is_around(above: exp.Expr, operand: exp.Expr) -> bool:
    """Whether `above` is the value of `operand` in another form; `DATE('now')` is no value of its own."""
    if isinstance(above, exp.DPipe):
        return above.find(exp.Column) is None
    if isinstance(above, exp.Date) and operand.name.casefold() == "now":
        return False
    return isinstance(above, _AROUND) and operand.arg_key in ("this", "expressions")


def unsaid(question: str, sql: str, dialect: str) -> tuple[str, ...]:
    """The values of `filter_literals` that the question does not say. Raises `ValueError` for SQL that does not parse.

    Two numbers are not said by one: "more than 3" does not say `a > 3 AND b > 5`.
    """
    return tuple(literal for literal in filter_literals(sql, dialect) if not says(question, literal))


def says(question: str, literal: str) -> bool:
    """Whether a question says one value."""
    literal = literal.strip()
    date = _DATE.fullmatch(literal)
    if date is not None:
        verbatim = re.search(rf"(?<![\d-]){re.escape(literal)}(?![\d-])", question)
        return verbatim is not None or _says_date(question, *date.groups())
    if _NUMBER.fullmatch(literal):
        return Decimal(literal) in numbers_in(question)
    return _says_text(question, literal)


def _says_text(question: str, literal: str) -> bool:
    wanted, said = _stems(literal), _stems(question)
    if not wanted:  # nothing but signs: `+`, `#`
        return literal in question
    size = len(wanted)
    if any(said[start : start + size] == wanted for start in range(len(said) - size + 1)):
        return True
    folded = " ".join(words_of(literal))
    if len(folded) < _SHORTEST or any(char.isdigit() for char in folded) or has_unspaced(folded):
        return False  # where one character more or less is another value
    words = tuple(words_of(question))
    windows = (" ".join(words[start : start + n]) for n in {size, size + 1} for start in range(len(words) - n + 1))
    return any(fuzz.ratio(folded, window) >= _ALIKE for window in windows)


def _says_date(question: str, year: str, month: str, day: str | None, time: str | None) -> bool:
    if time is not None and time not in _ENDS_OF_A_DAY:
        hour, _, minute = time.partition(":")
        if (int(hour), int(minute)) not in times_in(question):
            return False
    elif (month, day) in (("01", "01"), ("12", "31")) and re.search(rf"(?<!\d){year}(?!\d)", question):
        return True  # "since 2010" says that much
    return (int(year), int(month), int(day) if day else None) in dates_in(question)


@lru_cache(maxsize=4096)
def _stems(text: str) -> tuple[str, ...]:
    return tuple(stem(word) for word in words_of(text))
