"""How likely it is that the SQL for a question uses a column: a logistic model over a few lexical signs.

The weights were fitted on Spider's training questions (and Spider-Syn's, which avoid the schema's own words) over
schemas merged from many databases: `python -m benchmarks.linking --fit` does it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from spftsql.linking.schema_words import Floats, SchemaWords
from spftsql.linking.value_matching import ValueMatch
from spftsql.linking.words import stem, words_of

# One weight for each of the `signs`.
WEIGHTS: dict[str, float] = {
    "constant": -5.91,
    "name": 3.13,
    "comment": 1.41,
    "whole name": 1.83,
    "value": 2.65,
    "table": 2.84,
    "table mass": 1.86,
    "table's best column": 1.92,
    "table's value": 1.55,
    "neighbour table": 1.68,
    "table and neighbour": -2.12,
    "table and name": 1.6,
    "key to a table": 1.05,
    "key between tables": 1.53,
    "date": -0.98,
    "date and year": 1.62,
}

_MOST_WORDS = 1_000  # of a text that are looked at
_SHORT_VALUE = 3  # characters below which a value found is taken for chance half of the time


def scores(words: SchemaWords, text: str, values: Sequence[ValueMatch]) -> Floats:
    """The logit of every column, in the order of the schema, for a question (with its evidence) and its values.

    Rounded, so that machines whose last bits differ choose the same columns.
    """
    found = signs(words, text, values)
    logits = sum((weight * found[name] for name, weight in WEIGHTS.items()), start=np.zeros(len(words.columns)))
    return logits.round(6)


def signs(words: SchemaWords, text: str, values: Iterable[ValueMatch]) -> dict[str, Floats]:
    """The signs of every column, by name: arrays in the order of the schema."""
    stems = [stem(word) for word in words_of(text)[:_MOST_WORDS]]
    said = words.said(stems)
    table_phrase, column_phrase = words.phrases(stems)
    at = words.table_of
    tables = len(words.schema.tables)
    own = words.own_names.shares(said)
    value = _value_signs(words, values)
    table_share = np.maximum(words.table_names.shares(said), words.table_comments.shares(said))
    named = np.maximum(table_share, table_phrase)
    best, table_value = np.zeros(tables), np.zeros(tables)
    np.maximum.at(best, at, own * words.own_names.masses(said) / 10)
    np.maximum.at(table_value, at, value)
    meant = np.maximum(named, table_value)
    near, linked = np.zeros(tables), np.zeros(len(own))
    for left, right in chain.from_iterable(words.links):
        near[at[left]] = max(near[at[left]], meant[at[right]])
        near[at[right]] = max(near[at[right]], meant[at[left]])
        linked[left] = max(linked[left], meant[at[right]])
        linked[right] = max(linked[right], meant[at[left]])
    year = any(len(word) == 4 and word.isdigit() and "1700" < word < "2100" for word in stems)
    dates = np.array([column.kind == "date" for _, column in words.columns], dtype=float)
    return {
        "constant": np.ones(len(own)),
        "name": words.column_names.masses(said) / 10,
        "comment": words.column_comments.shares(said),
        "whole name": column_phrase,
        "value": value,
        "table": table_share[at],
        "table mass": words.table_names.masses(said)[at] / 10,
        "table's best column": best[at],
        "table's value": table_value[at],
        "neighbour table": near[at],
        "table and neighbour": (near * meant)[at],
        "table and name": named[at] * own,
        "key to a table": linked,
        "key between tables": linked * meant[at],
        "date": dates,
        "date and year": dates * year,
    }


def _value_signs(words: SchemaWords, values: Iterable[ValueMatch]) -> Floats:
    signs = np.zeros(len(words.columns))
    for match in values:
        number = words.number_of.get((match.table.lower(), match.column.lower()))
        if number is not None and match.how != "part":
            weight = match.score if match.end - match.start >= _SHORT_VALUE else match.score / 2
            signs[number] = max(signs[number], weight)
    return signs
