"""What a question asks for, as a phrase that fits into another question; and values and columns said in questions.

English, by the first words of a question and the names of the schema; a question of another form gives no phrase. A
model that phrases questions by itself does not need this: it is for labels that are few and models that are small.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from spftsql.databases.schema import Schema
from spftsql.linking.words import placed_words, stem, stems_of

_ASKS = re.compile(
    r"(?:please\s+)?(?:(?:can|could) you\s+)?"
    r"(?:(?:what|which|who)(?:\s+(?:is|are|was|were)\b|\s*['’]?s\b)"
    r"|(?:tell|give|show|list|name|find|return|display|print)\b(?:\s+(?:me|us)\b)?)\s*(?:all\b\s*)?(?:of\s+)?(?:the\b\s*)?",
    re.IGNORECASE,
)
_WHICH = re.compile(r"(?:what|which)\s+", re.IGNORECASE)
_HELPS = re.compile(r"(?:do|does|did)\s+", re.IGNORECASE)
_OPPOSITES = {
    "largest": "smallest", "biggest": "smallest", "highest": "lowest", "longest": "shortest", "tallest": "shortest",
    "greatest": "smallest", "oldest": "youngest", "newest": "oldest", "latest": "earliest", "heaviest": "lightest",
    "most": "fewest", "maximum": "minimum", "best": "worst", "fastest": "slowest", "richest": "poorest",
}  # fmt: skip
_OPPOSITES |= {low: high for high, low in reversed(_OPPOSITES.items())} | {
    "least": "most",
    "cheapest": "most expensive",
}
_NOUN_WORDS = 3  # words between "which" and the end of the noun
_LONGEST = 16  # words of a phrase


def schema_stems(schema: Schema) -> frozenset[str]:
    """The stems of the words that a schema's names are made of."""
    names = [table.name for table in schema.tables] + [c.name for table in schema.tables for c in table.columns]
    return frozenset(word for name in names for word in stems_of(name) if len(word) > 2)


def asked_phrase(question: str, nouns: Collection[str]) -> str | None:
    """What `question` asks for: "which states border texas" is about "the states that border texas".

    `nouns` are stems of the words that the schema is about: where the question begins with "which", its noun ends with
    one of them. None where the question has another form, or is long.
    """
    text = question.strip().rstrip("?.! ").strip()
    if len(text.split()) > _LONGEST:
        return None
    if asks := _ASKS.match(text):
        rest = text[asks.end() :]
        return f"the {rest}" if rest else None
    which = _WHICH.match(text)
    if which is None:
        return None
    rest = text[which.end() :]
    for word, _, end in placed_words(rest)[:_NOUN_WORDS]:
        if stem(word) in nouns:
            tail = rest[end:].strip()
            tail = _HELPS.sub("", tail, count=1) if _HELPS.match(tail) else tail
            return f"the {rest[:end]} that {tail}" if tail else None
    return None


def put_phrase(question: str, place: tuple[int, int], phrase: str, nouns: Collection[str]) -> str:
    """`question` with a phrase in the place of a value; `nouns` as for `asked_phrase`.

    Nouns around the value that the phrase says too go: "the [ohio] river" is "the longest river", and "the state of
    [texas]" is "the state that …".
    """
    before, after = question[: place[0]].rstrip(), question[place[1] :].lstrip()
    words = {stem(word) for word, _, _ in placed_words(phrase)} & set(nouns)
    if before.lower().endswith(" of"):
        kept, _, noun = before[:-3].rpartition(" ")
        before = kept if stem(noun.lower()) in words else before
    first, _, rest = after.partition(" ")
    if first and stem(first.lower()) in words:
        after = rest
    if before.lower() == "the" or before.lower().endswith(" the"):
        before = before[:-3].rstrip()
    return " ".join(part for part in (before, phrase, after) if part)


def opposite_extreme(question: str, apart: Collection[str]) -> str | None:
    """`question` asking for the other extreme: "the largest city", "the smallest city".

    None where it does not name just one extreme, or where that word is of `apart` (stems; a column `highest_point`).
    """
    found = [(start, end) for word, start, end in placed_words(question) if word in _OPPOSITES]
    if len(found) != 1:
        return None
    start, end = found[0]
    word = question[start:end].lower()
    return None if stem(word) in apart else question[:start] + _OPPOSITES[word] + question[end:]


def said_once(question: str, text: str) -> tuple[int, int] | None:
    """Where `question` says `text`, whole words, case ignored; None where it does not, or more than once."""
    found = list(re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", question, re.IGNORECASE))
    return found[0].span() if len(found) == 1 else None


def name_said_once(question: str, name: str) -> tuple[int, int] | None:
    """Where `question` says the words of a name in a row (`highest_point`: "highest points"), if just once."""
    wanted, words = stems_of(name), placed_words(question)
    stems = [stem(word) for word, _, _ in words]
    places = [at for at in range(len(words) - len(wanted) + 1) if stems[at : at + len(wanted)] == wanted]
    if not wanted or len(places) != 1:
        return None
    return words[places[0]][1], words[places[0] + len(wanted) - 1][2]
