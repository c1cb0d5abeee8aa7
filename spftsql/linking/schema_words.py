"""The words of a schema's names and comments, laid out so that a question is compared with all of them at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process

from spftsql.databases.schema import Schema
from spftsql.linking.words import (
    LONGEST_WORD,
    abbreviates,
    lexicon,
    most_words,
    ngrams,
    stem,
    stems_of,
    unglued,
    words_of,
)

Floats = NDArray[np.float64]
Ends = tuple[tuple[int, int], ...]  # of a foreign key: the numbers of its columns, each with that of what it refers to

# How much a word of a question counts for a word of the schema: the same stem, what it is short for, alike in meaning,
# its beginning or end, its letters (`dept`), nearly its spelling.
_SHORT, _RELATED, _PART, _LETTERS, _SPELLED = 0.9, 0.5, 0.7, 0.6, 0.8
_ALIKE = 80.0  # rapidfuzz.fuzz.ratio
_SHORTEST = 4  # letters of a word that is compared by letters
_SHORTEST_GLUED = 5
_LONGEST_NAME = 6  # words of a name that is looked for as a whole


class Names:
    """The words of some names, each name once per word; `shares` and `masses` are arrays over the names."""

    def __init__(self, names: Sequence[Sequence[str]], vocabulary: Mapping[str, int], idf: Floats) -> None:
        """`vocabulary` numbers the stems, `idf` weighs them."""
        pairs = [(number, vocabulary[word]) for number, words in enumerate(names) for word in dict.fromkeys(words)]
        self._count = len(names)
        self._name = np.array([name for name, _ in pairs], dtype=np.intp)
        self._word = np.array([word for _, word in pairs], dtype=np.intp)
        self._weight = idf[self._word]
        self._total = np.maximum(self._sum(self._weight), 1e-9)

    def masses(self, said: Floats) -> Floats:
        """The summed weight of each name's words that are said; `said` is over the vocabulary, 0 to 1."""
        return self._sum(self._weight * said[self._word])

    def shares(self, said: Floats) -> Floats:
        """The same as a share of the name."""
        shares: Floats = self.masses(said) / self._total
        return shares

    def _sum(self, values: Floats) -> Floats:
        return np.bincount(self._name, weights=values, minlength=self._count).astype(np.float64)


class SchemaWords:
    """A schema as words. Tables and columns are numbered in the order of the schema; `table_of` maps columns."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.columns = [(table, column) for table in schema.tables for column in table.columns]
        self.number_of = {(t.name.lower(), c.name.lower()): number for number, (t, c) in enumerate(self.columns)}
        places = [number for number, table in enumerate(schema.tables) for _ in table.columns]
        self.table_of = np.array(places, dtype=np.intp)
        known = self._known_words()
        tables = [_expanded(table.name, known) for table in schema.tables]
        columns = [_expanded(column.name, known) for _, column in self.columns]
        table_comments = [_content(table.comment) for table in schema.tables]
        comments = [_content(column.comment) for _, column in self.columns]
        self._vocabulary: dict[str, int] = {}
        for words in [*tables, *columns, *table_comments, *comments]:
            for word in words:
                self._vocabulary.setdefault(word, len(self._vocabulary))
        self._spelled = list(self._vocabulary)
        holders = np.zeros(len(self._vocabulary))
        for texts in [*tables, *([*a, *b] for a, b in zip(columns, comments, strict=True))]:
            for word in set(texts):
                holders[self._vocabulary[word]] += 1
        idf = np.log(1 + (len(tables) + len(columns)) / (0.5 + holders))
        own = [
            [word for word in words if word not in tables[table]] or words
            for words, table in zip(columns, places, strict=True)
        ]
        self.table_names = Names(tables, self._vocabulary, idf)
        self.column_names = Names(columns, self._vocabulary, idf)
        self.own_names = Names(own, self._vocabulary, idf)  # without the words of the table's name
        self.table_comments = Names(table_comments, self._vocabulary, idf)
        self.column_comments = Names(comments, self._vocabulary, idf)
        self._table_phrases = _phrases(tables, table_comments)
        self._column_phrases = _phrases(columns, comments)
        self._meant = self._meanings()
        self._by_letter: dict[str, list[str]] = defaultdict(list)
        for word in self._vocabulary:
            self._by_letter[word[0]].append(word)
        self.key_ends = self._key_ends()
        self.links = [ends for ends in self.key_ends if ends is not None]

    def said(self, stems: Sequence[str]) -> Floats:
        """How far a question of these stems says each word of the vocabulary: 0 to 1."""
        said = np.zeros(len(self._vocabulary))
        for word in dict.fromkeys(stems):
            meant = self._meant.get(word) or self._by_letters(word)
            for number, weight in meant:
                said[number] = max(said[number], weight)
        return said

    def phrases(self, stems: Sequence[str]) -> tuple[Floats, Floats]:
        """1 for each table, and for each column, whose whole name or comment is said in a row."""
        tables, columns = np.zeros(len(self.schema.tables)), np.zeros(len(self.columns))
        for start, end in ngrams(stems, most_words(stems, _LONGEST_NAME)):
            phrase = "".join(stems[start:end])
            tables[self._table_phrases.get(phrase, [])] = 1
            columns[self._column_phrases.get(phrase, [])] = 1
        return tables, columns

    def _known_words(self) -> set[str]:
        """Words that a glued identifier may consist of: of the schema itself, and those that people glue."""
        texts = [text for table in self.schema.tables for text in (table.name, table.comment)]
        texts += [column.comment for _, column in self.columns]
        return set(lexicon().parts).union(word for text in texts for word in words_of(text) if len(word) > 2)

    def _meanings(self) -> dict[str, list[tuple[int, float]]]:
        """What each word of a question stands for: (number in the vocabulary, weight)."""
        meant: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for word, number in self._vocabulary.items():
            meant[word].append((number, 1.0))
            for long in lexicon().abbreviations.get(word, ()):
                meant[stem(long)].append((number, _SHORT))
            for other in lexicon().related.get(word, ()):
                meant[other].append((number, _RELATED))
        return dict(meant)

    def _by_letters(self, word: str) -> list[tuple[int, float]]:
        if not _SHORTEST <= len(word) <= LONGEST_WORD or not word.isalpha() or word in lexicon().stop:
            return []
        found = []
        for other in self._by_letter.get(word[0], ()):
            if len(other) >= _SHORTEST and (other.startswith(word) or word.startswith(other)):
                found.append((self._vocabulary[other], _PART))
            elif abbreviates(other, word):
                found.append((self._vocabulary[other], _LETTERS))
        found += [(self._vocabulary[word[i:]], _PART) for i in range(1, len(word) - 3) if word[i:] in self._vocabulary]
        alike = process.extract(word, self._spelled, scorer=fuzz.ratio, score_cutoff=_ALIKE, limit=5)
        return found + [(number, _SPELLED * ratio / 100) for _, ratio, number in alike]

    def _key_ends(self) -> list[Ends | None]:
        """The foreign keys (`Schema.constraints`); None for one over a column that the schema does not have."""
        found: list[Ends | None] = []
        for keys in self.schema.constraints:
            ends = [
                (
                    self.number_of.get((key.table.lower(), key.column.lower())),
                    self.number_of.get((key.target.lower(), key.target_column.lower())),
                )
                for key in keys
            ]
            known = tuple((left, right) for left, right in ends if left is not None and right is not None)
            found.append(known if len(known) == len(keys) else None)
        return found


def _expanded(name: str, known: Collection[str]) -> list[str]:
    """The stems of an identifier: taken apart, and compounds written out (`fname` is first name)."""
    words: list[str] = []
    for word in words_of(name):
        for part in [word] if len(word) < _SHORTEST_GLUED else unglued(word, known):
            long = lexicon().abbreviations.get(part, [])
            words += long if len(long) > 1 else [part]
    return [stem(word) for word in words]


def _content(text: str) -> list[str]:
    return [word for word in stems_of(text) if word not in lexicon().stop]


def _phrases(names: Sequence[Sequence[str]], comments: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for number, texts in enumerate(zip(names, comments, strict=True)):
        for text in {"".join(words) for words in texts if 0 < len(words) <= most_words(words, _LONGEST_NAME)}:
            found[text].append(number)
    return dict(found)
