"""Synthetic pairs that repeat a held-out question: with them in training, the gate and the test would measure memory.

Structures alone are no leak (a test question may well have the structure of a label). A pair leaks when its question is
that of a held-out pair about the same database, or nearly so with the same SQL but for the literals, or when its SQL is
that of a held-out pair, literals and all: then it is the same question in other words. SQL without any condition or
limit, which any two sets about a database have in common, is no such sign.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from spftsql.linking.words import UNSPACED
from spftsql.records import Example

_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_N = 3  # words of an n-gram


@dataclass(frozen=True)
class Leak:
    """A synthetic pair, the held-out pair that it repeats, and the share of n-grams that their questions share."""

    pair: str
    question: str
    held_out: str
    held_out_question: str
    overlap: float
    same_structure: bool
    same_sql: bool = False

    def sentence(self) -> str:
        """The finding in words."""
        but = "" if self.same_sql else " but for literals"
        same = f"the same SQL{but}" if self.same_structure else "other SQL"
        return f"{self.pair} {self.question!r} repeats {self.held_out} {self.held_out_question!r} ({same})"


def find_leaks(
    pairs: Iterable[Example],
    held_out: Sequence[Example],
    structure: Callable[[Example], str],
    overlap: float,
    telling: Callable[[Example], str | None] = lambda example: None,
) -> list[Leak]:
    """The pairs that repeat a held-out question, each with the one that it is most like.

    `structure` gives the id of a statement's SQL with its literals masked, `telling` the SQL with them where it says so
    much that another question with the same SQL must be the same question. A pair leaks when the n-gram overlap of the
    questions (Jaccard, word triples) is 1, or at least `overlap` where the structure is the same, or whatever it is
    where the telling SQL is the same.
    """
    grams = [ngrams(example.question) for example in held_out]
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, (example, found) in enumerate(zip(held_out, grams, strict=True)):
        for gram in found:
            places[example.db_id, gram].append(number)
    statements = _by_statement(held_out, telling)
    tested = {example.db_id for example in held_out}
    structures: dict[int, str] = {}
    leaks = []
    for pair in pairs:
        if pair.db_id not in tested:
            continue
        own = ngrams(pair.question)
        shared = Counter(number for gram in own for number in places.get((pair.db_id, gram), ()))
        twins = statements.get((pair.db_id, telling(pair)), ())
        best: Leak | None = None
        for number in dict.fromkeys([*twins, *shared]):
            share, twin = shared[number] / len(own | grams[number]), number in twins
            if (share < overlap and not twin) or (best is not None and share <= best.overlap):
                continue
            other = held_out[number]
            if number not in structures:
                structures[number] = structure(other)
            same = twin or structures[number] == structure(pair)
            if same or share == 1:
                best = Leak(pair.id, pair.question, other.id, other.question, round(share, 3), same, twin)
        if best is not None:
            leaks.append(best)
    return leaks


def _by_statement(
    held_out: Sequence[Example], telling: Callable[[Example], str | None]
) -> dict[tuple[str, str | None], list[int]]:
    """The places of held-out pairs by database and SQL, where it is telling."""
    found: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for number, example in enumerate(held_out):
        if (sql := telling(example)) is not None:
            found[example.db_id, sql].append(number)
    return found


def ngrams(question: str) -> frozenset[str]:
    """The word triples of a question, case and signs ignored; all of a shorter one is its only n-gram.

    Where a script has no blanks, triples of characters.
    """
    words = _WORD.findall(question.casefold())
    if len(words) <= _N:
        return frozenset([" ".join(words)])
    return frozenset(" ".join(words[start : start + _N]) for start in range(len(words) - _N + 1))
