"""The numbers that a text says: in figures or in English words, with their sign and what scales them."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

from spftsql.linking.words import WORD_END, WORD_START, fold, words_of

_UP_TO_19 = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: Decimal(number) for number, word in enumerate(words_of(_UP_TO_19))}
_WORDS |= {"once": Decimal(1), "twice": Decimal(2), "single": Decimal(1), "no": Decimal(0)}
_SMALL = "|".join(_WORDS)
_WORDS |= {word: Decimal(10 * number) for number, word in enumerate(words_of(_TENS), 2)}
_HUNDRED = {"hundred": Decimal(100), "dozen": Decimal(12)}
_SCALES = {"thousand": Decimal(10**3), "k": Decimal(10**3), "million": Decimal(10**6), "m": Decimal(10**6)}
_SCALES |= {"billion": Decimal(10**9), "bn": Decimal(10**9)}
_HUNDREDTHS = ("%", "percent", "percentage", "per cent", "pct", "cent", "cents")

_FIGURE = r"\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)(?:\.\d+)?|\d+(?:\.\d+)*(?:e[-+]?\d{1,3})?|(?<!\w)\.\d+"
_BELOW_100 = rf"(?:(?:{_TENS.replace(' ', '|')})(?:[ -](?:{_SMALL}))?|{_SMALL})\b"
_BELOW_1000 = rf"(?:(?:(?:{_BELOW_100}|a)[ -])?hundred(?:(?: and)?[ -]{_BELOW_100}(?! hundred))?|{_BELOW_100})\b"
_LARGE = r"(?:thousand|million|billion)\b"
_SPOKEN = rf"{_BELOW_1000}(?:[ -]{_LARGE}(?: and)?[ -]{_BELOW_1000}(?![ -]{_LARGE}))?|{_LARGE}|dozen\b"
_NUMBER = re.compile(
    rf"(?P<sign>(?:minus |negative |{WORD_START}(?<!\.)(?<!\d )-)\$?)?"
    rf"(?:(?P<figure>{_FIGURE})|{WORD_START}(?P<spoken>{_SPOKEN}))"
)
_UNITS = "|".join(map(re.escape, (*_HUNDREDTHS, *_HUNDRED, *_SCALES)))
_UNIT = re.compile(rf"[ -]?(?P<unit>{_UNITS}){WORD_END}")
_BETWEEN = re.compile(r"[\s,$-]*(?:and|or|to)?[\s$]*")  # numbers that one unit belongs to: 10 and 20 percent


@lru_cache(maxsize=4096)
def numbers_in(text: str) -> frozenset[Decimal]:
    """Every number of a text: 1,500; -5; 2.5 million; twenty-five; 20 % as 20 and as 0.2.

    The number before "million" counts by itself too, since columns may count in millions.
    """
    text = fold(text).translate({0x2010: "-", 0x2013: "-", 0x2212: "-"})
    said: set[Decimal] = set()
    before: list[Decimal] = []
    end = 0
    for found in _NUMBER.finditer(text):
        values = _spoken(found["spoken"]) if found["spoken"] else _figures(found["figure"])
        if found["sign"]:
            values = [-value for value in values]
        before = [*before, *values] if before and _BETWEEN.fullmatch(text, end, found.start()) else values
        end = found.end()
        unit = _UNIT.match(text, end)
        if unit is None:
            said.update(values)
            continue
        end = unit.end()
        if unit["unit"] not in _HUNDRED:
            said.update(values)
        said.update(value * _scale(unit["unit"]) for value in before)
        before = []
    return frozenset(said)


def _scale(unit: str) -> Decimal:
    return Decimal("0.01") if unit in _HUNDREDTHS else (_HUNDRED | _SCALES)[unit]


def _figures(figure: str) -> list[Decimal]:
    """The number that is written; each part of 2.0.1 and 5.3.2010."""
    parts = figure.split(".") if figure.count(".") > 1 else [figure.replace(",", "")]
    return [Decimal(part) for part in parts]


def _spoken(words: str) -> list[Decimal]:
    """The number of some words, first; and its parts, which "and" may as well keep apart."""
    parts = words.split(" and ")
    return [_value(words), *(_value(part) for part in parts if len(parts) > 1)]


def _value(words: str) -> Decimal:
    total = current = Decimal(0)
    for word in words.replace("-", " ").split():
        if word in _SCALES:
            total, current = total + (current or 1) * _SCALES[word], Decimal(0)
        elif word in _HUNDRED:
            current = (current or 1) * _HUNDRED[word]
        else:
            current += _WORDS.get(word, 0)
    return total + current
