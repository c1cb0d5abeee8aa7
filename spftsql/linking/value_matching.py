"""Cells of a database that a question speaks of: said word for word, in another form, in part, or misspelled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz import fuzz

from spftsql.linking.value_index import Cell, ValueIndex
from spftsql.linking.words import LONGEST_WORD, lexicon, most_words, ngrams, placed_words, stem

How = Literal["verbatim", "folded", "part"]

_MOST_WORDS = 400  # of a question with its evidence
_LONGEST = 8  # words of a value that is looked for as a whole
_FREQUENT = 2_000  # a word that more cells hold than this finds no cells by itself
_CANDIDATES = 200  # cells looked at for a match in part
_ALIKE = 88.0  # rapidfuzz.fuzz.ratio from which a word is taken for a misspelling of another
_SPELLINGS = 20
_ENOUGH = 0.7  # share of a cell's letters that the question must hold


@dataclass(frozen=True, slots=True)
class ValueMatch:
    """A cell that a question mentions at `start:end`; `score` is 1 for the very words, less for less."""

    table: str
    column: str
    value: str
    how: How
    score: float
    start: int
    end: int
    count: int


@dataclass(frozen=True, slots=True)
class _Word:
    stem: str  # of the word, or of the word of a cell that it seems to misspell
    start: int
    end: int
    stop: bool
    likeness: float = 1.0


def matching_values(text: str, index: ValueIndex) -> list[ValueMatch]:
    """The cells that `text` mentions, best first; a shorter mention inside a longer one is left out."""
    words = _words(text, index)
    found = _whole(text, words, index)
    covered = [(match.start, match.end) for match in found]
    free = [word for word in words if not any(start <= word.start and word.end <= end for start, end in covered)]
    found += _partial(words, free, index)
    return sorted(found, key=lambda m: (-m.score, -(m.end - m.start), -m.count, m.table, m.column, m.value))


def _words(text: str, index: ValueIndex) -> list[_Word]:
    placed = placed_words(text)[:_MOST_WORDS]
    known = index.frequencies(sorted({stem(word) for word, _, _ in placed}))
    stop = lexicon().stop
    words = []
    for word, start, end in placed:
        root, likeness = stem(word), 1.0
        if root not in known and word not in stop and 4 < len(word) <= LONGEST_WORD and word.isalpha():
            spelled = [(fuzz.ratio(word, other), other) for other in index.spelled_like(word, _SPELLINGS)]
            alike, other = max(spelled, default=(0.0, ""))
            if alike >= _ALIKE:
                root, likeness = stem(other), alike / 100
        words.append(_Word(root, start, end, word in stop, likeness))
    return words


def _whole(text: str, words: Sequence[_Word], index: ValueIndex) -> list[ValueMatch]:
    """Cells all of whose words stand in a row in the text, longest first."""
    places: dict[str, list[tuple[int, int]]] = {}
    longest = most_words([word.stem for word in words], _LONGEST)
    for start, end in ngrams(words, longest):
        places.setdefault(" ".join(word.stem for word in words[start:end]), []).append((start, end))
    cells: dict[str, list[Cell]] = {}
    for cell in index.with_keys(list(places)):
        cells.setdefault(cell.key, []).append(cell)
    found: list[ValueMatch] = []
    taken: list[tuple[int, int]] = []
    for key, spans in places.items():  # longest first
        for start, end in spans:
            if key not in cells or any(s <= start and end <= e and (s, e) != (start, end) for s, e in taken):
                continue
            said = words[start:end]
            matches = [_match(text, said, cell) for cell in cells[key]]
            if all(word.stop for word in said):  # "in" is Indiana where it is written as the cell is
                matches = [m for m in matches if m.how == "verbatim" and not m.value.islower() and start > 0]
            if matches:
                taken.append((start, end))
                found += matches
    return list({(m.table, m.column, m.value): m for m in reversed(found)}.values())


def _match(text: str, said: Sequence[_Word], cell: Cell) -> ValueMatch:
    start, end = said[0].start, said[-1].end
    likeness = min(word.likeness for word in said)
    verbatim = text[start:end] == cell.value.strip()
    alike = likeness if likeness < 1 else 1.0 if verbatim else 0.9 + 0.09 * _same_form(text[start:end], cell.value)
    how: How = "verbatim" if verbatim else "folded"
    return ValueMatch(cell.table, cell.column, cell.value, how, alike, start, end, cell.count)


def _same_form(said: str, value: str) -> float:
    return fuzz.ratio(said.casefold(), value.strip().casefold()) / 100


def _partial(words: Sequence[_Word], free: Iterable[_Word], index: ValueIndex) -> list[ValueMatch]:
    """Cells of which the text holds some words, most of their letters."""
    content = {word.stem: word for word in free if not word.stop and len(word.stem) > 2}
    frequencies = index.frequencies(sorted(content))
    rare = [root for root in content if frequencies.get(root, 0) <= _FREQUENT and root in frequencies]
    here = {word.stem: word for word in words}
    found = []
    for cell in index.with_words(rare, _CANDIDATES):
        parts = cell.key.split()
        said = [here[part] for part in parts if part in here]
        share = sum(len(word.stem) * word.likeness for word in said) / sum(map(len, parts))
        if len(parts) > 1 and share >= _ENOUGH:
            start, end = min(word.start for word in said), max(word.end for word in said)
            found.append(ValueMatch(cell.table, cell.column, cell.value, "part", 0.8 * share, start, end, cell.count))
    return found
