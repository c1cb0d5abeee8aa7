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

# Letters of scripts without blanks between words (or with endings written on: Hangul), for a class of characters: Thai,
# Lao, Burmese, Khmer, kana, Han, Hangul. And the signs of vowels and tones that belong to the letter before.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff"
)
_SIGNS = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4c\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecc\u102b-\u103e\u1056-\u1059\u17b4-\u17d3"
    "\uff9e\uff9f"
)
# Letters of those scripts are words, one by one. A run of other letters splits where its case says so: `StuID`,
# `XMLFile`, `homeTown`. Digits stand alone.
_PARTS = re.compile(rf"(?:(?=[^\W\d_])[{UNSPACED}][{_SIGNS}]*)|[^\W\d_{UNSPACED}]+|\d+(?:\.\d+)?")
_UNSPACED = re.compile(f"[{UNSPACED}]")
# Where a word may begin and end, for the same purpose as \b: beside letters of those scripts too.
WORD_START, WORD_END = rf"(?<![^\W{UNSPACED}])", rf"(?![^\W{UNSPACED}])"
_LETTERS_PER_WORD = 3  # of those scripts
_KANA = "\u3099\u309a"  # ga is no ka
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SHORTEST_PART = 2  # letters of a word within a glued identifier
LONGEST_WORD = 40  # letters of a word that is taken apart or compared by its letters
_stemmer = snowballstemmer.stemmer("english")
_CYRILLIC = re.compile(r"[\u0400-\u04ff]+")
_SHORTEST_STEM = 4  # letters that an ending leaves


def fold(text: str) -> str:
    """`text` without case and accents, its blanks made one."""
    return " ".join(_plain(text).casefold().split())


def words_of(text: str) -> list[str]:
    """The folded words of an identifier or a sentence, numbers included.

    In scripts without blanks between words each letter is one, so that any part of a text can be found in it.
    """
    return [word.casefold() for part in _PARTS.findall(_plain(text)) for word in _CAMEL.split(part)]


def placed_words(text: str) -> list[tuple[str, int, int]]:
    """The folded words of a sentence, each with its place (start, end); words written together stay so.

    As in `words_of`, each letter of a script without blanks is a word.
    """
    found = []
    for part in _PARTS.finditer(text):
        word = "".join(_PARTS.findall(fold(part[0])))
        if word:
            found.append((word, *part.span()))
    return found


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """The stem of an English word; a Cyrillic one without its ending; other words and numbers stay as they are."""
    if not 2 < len(word) <= LONGEST_WORD:
        return word
    if _CYRILLIC.fullmatch(word):
        return next((word[:at] for at in range(_SHORTEST_STEM, len(word)) if word[at:] in lexicon().endings), word)
    return str(_stemmer.stemWord(word)) if word.isascii() and word.isalpha() else word


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


def most_words(words: Sequence[str], spaced: int) -> int:
    """`spaced`, a bound on words, for words of which some are letters of scripts without blanks."""
    return spaced * _LETTERS_PER_WORD if any(map(_UNSPACED.match, words)) else spaced


def has_unspaced(text: str) -> bool:
    """Whether a text has letters of scripts without blanks between words."""
    return _UNSPACED.search(text) is not None


def _plain(text: str) -> str:
    """`text` without accents; Hangul and the marks that make kana other letters are put together again."""
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFKD", text)
    return unicodedata.normalize("NFC", "".join(c for c in apart if c in _KANA or not unicodedata.combining(c)))


class Lexicon:
    """What words of schemas and questions stand for beyond their letters; read from `lexicon.yaml`."""

    def __init__(self, tree: dict[str, Any]) -> None:
        """`tree` has `abbreviations` (word: words), `related` (lines of words that mean alike), and lines of others."""
        self.abbreviations = {word: text.split() for word, text in tree["abbreviations"].items()}
        self.stop = frozenset(" ".join(tree["stop"]).split())
        self.endings = frozenset(fold(" ".join(tree["endings"])).split())
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
