"""Words: of identifiers, of comments and of questions, brought to one form in which they can be compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import snowballstemmer
import yaml

# A run of letters splits where its case says so: `StuID`, `XMLFile`, `homeTown`. Digits stand alone.
_PARTS = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SHORTEST_PART = 2  # letters of a word within a glued identifier
LONGEST_WORD = 40  # letters of a word that is taken apart or compared by its letters
_stemmer = snowballstemmer.stemmer("english")


def fold(text: str) -> str:
    """`text` without case and accents, its blanks made one."""
    return " ".join(_plain(text).casefold().split())


def words_of(text: str) -> list[str]:
    """The folded words of an identifier or a sentence, numbers included."""
    return [word.casefold() for part in _PARTS.findall(_plain(text)) for word in _CAMEL.split(part)]


def placed_words(text: str) -> list[tuple[str, int, int]]:
    """The folded words of a sentence, each with its place (start, end); words written together stay so."""
    found = []
    for part in _PARTS.finditer(text):
        word = "".join(_PARTS.findall(fold(part[0])))
        if word:
            found.append((word, *part.span()))
    return found


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """The stem of an English word; numbers, and words of other scripts, stay as they are."""
    english = word.isascii() and word.isalpha() and 2 < len(word) <= LONGEST_WORD
    return str(_stemmer.stemWord(word)) if english else word


def stems_of(text: str) -> list[str]:
    """The stems of the words of a text."""
    return [stem(word) for word in words_of(text)]


def unglued(word: str, vocabulary: Collection[str]) -> list[str]:
    """An identifier written in one piece (`stuid`, `birthdate`) as the words of `vocabulary` that make it up.

    The fewest words win, then the longest first one. [`word`] where it cannot be taken apart.
    """
    if len(word) > LONGEST_WORD:
        return [word]
    best: list[list[str] | None] = [[]] + [None] * len(word)
    for end in range(1, len(word) + 1):
        for start in range(end - _SHORTEST_PART, -1, -1):
            before, part = best[start], word[start:end]
            if before is None or part not in vocabulary or part == word:
                continue
            if best[end] is None or len(before) + 1 < len(best[end]):  # type: ignore[arg-type]
                best[end] = [*before, part]
    return best[-1] or [word]


def abbreviates(short: str, long: str) -> bool:
    """Whether `short` can stand for `long`: its letters in order from the first one on (`dept`, `qty`, `addr`)."""
    if not 3 <= len(short) <= 0.75 * len(long) or short[0] != long[0]:
        return False
    letters = iter(long)
    return all(letter in letters for letter in short)


def ngrams(items: Sequence[object], longest: int) -> Iterable[tuple[int, int]]:
    """Every (start, end) of at most `longest` neighbouring items, longest first."""
    for size in range(min(longest, len(items)), 0, -1):
        for start in range(len(items) - size + 1):
            yield start, start + size


def _plain(text: str) -> str:
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


class Lexicon:
    """What words of schemas and questions stand for beyond their letters; read from `lexicon.yaml`."""

    def __init__(self, tree: dict[str, Any]) -> None:
        """`tree` has `abbreviations` (word: words), `related` (lines of words that mean alike) and `stop` words."""
        self.abbreviations = {word: text.split() for word, text in tree["abbreviations"].items()}
        self.stop = frozenset(" ".join(tree["stop"]).split())
        self.parts = frozenset(" ".join(tree["parts"]).split()) | set(self.abbreviations)
        self.related: dict[str, frozenset[str]] = {}
        for line in tree["related"]:
            group = [stem(word) for word in line.split()]
            for word in group:
                self.related[word] = self.related.get(word, frozenset()) | (set(group) - {word})


@cache
def lexicon() -> Lexicon:
    """The lexicon that comes with the package."""
    text = (resources.files("spftsql.linking") / "lexicon.yaml").read_text(encoding="utf-8")
    return Lexicon(yaml.safe_load(text))
