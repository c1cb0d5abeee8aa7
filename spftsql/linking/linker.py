"""What a prompt says of one database: its schema, or the part that a question is about, and the values it mentions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

from spftsql.databases.schema import Schema
from spftsql.databases.schema_text import column_text, key_text, schema_text, table_text
from spftsql.linking.schema_words import Floats, SchemaWords
from spftsql.linking.scoring import WEIGHTS, scores
from spftsql.linking.selection import Costs, restricted, select
from spftsql.linking.value_index import FORMAT, ValueIndex
from spftsql.linking.value_matching import ValueMatch, matching_values
from spftsql.records import content_hash

VERSION = 2  # of the method; another number is another prompt

_VALUES = 8  # shown with a question
_PER_COLUMN = 2
_SHRINK = 0.95


@dataclass(frozen=True, slots=True)
class Linked:
    """The part of a schema for one question, its text, and the values to show."""

    schema: Schema
    text: str
    values: tuple[ValueMatch, ...]


def fingerprint() -> str:
    """A hash of everything but the databases that linking depends on."""
    lexicon = (resources.files("spftsql.linking") / "lexicon.yaml").read_text(encoding="utf-8")
    return content_hash(VERSION, FORMAT, WEIGHTS, lexicon)


class Linker:
    """Links questions to one database. Not for use in several threads at once."""

    def __init__(
        self, schema: Schema, index: ValueIndex | None, count_tokens: Callable[[str], int], budget: int
    ) -> None:
        """`budget` is in the tokens of `count_tokens`; without an `index` no value is found."""
        self._schema, self._index, self._count, self._budget = schema, index, count_tokens, budget
        self._words = SchemaWords(schema)
        self._whole = next(
            (text for text in (schema_text(schema), schema_text(schema, "kinds")) if count_tokens(text) <= budget), None
        )
        self._costs = self._piece_costs() if self._whole is None else None

    def link(self, text: str) -> Linked:
        """The schema and values for a question with its evidence, or for a statement.

        All of the schema where it fits the budget, and then the same text for every question; else its best part.
        """
        values = matching_values(text, self._index) if self._index is not None else []
        logits = scores(self._words, text, values)
        if self._whole is not None:
            return Linked(self._schema, self._whole, self._shown(values, logits, self._schema))
        part, part_text = self._part(logits)
        return Linked(part, part_text, self._shown(values, logits, part))

    def close(self) -> None:
        """Closes the index."""
        if self._index is not None:
            self._index.close()

    def _part(self, logits: Floats) -> tuple[Schema, str]:
        """The best part whose text is within the budget; the best column alone where nothing is."""
        assert self._costs is not None
        budget = float(self._budget)
        while kept := select(self._words, logits, self._costs, budget):
            part = restricted(self._words, kept)
            text = schema_text(part, "kinds")
            if self._count(text) <= self._budget:
                return part, text
            budget *= _SHRINK  # pieces joined can have more tokens than apart
        part = restricted(self._words, [int(logits.argmax())])
        return part, schema_text(part, "kinds")

    def _piece_costs(self) -> Costs:
        dialect = self._schema.dialect
        keys = zip(self._schema.constraints, self._words.key_ends, strict=True)
        return Costs(
            [self._count(table_text(table, dialect, "kinds") + "\n") for table in self._schema.tables],
            [self._count(", " + column_text(column, dialect, "kinds")) for _, column in self._words.columns],
            [self._count(key_text(columns, dialect) + "\n") for columns, ends in keys if ends is not None],
        )

    def _shown(self, values: Sequence[ValueMatch], logits: Floats, part: Schema) -> tuple[ValueMatch, ...]:
        """The best matches in columns that are kept: by how they match, then by how likely their column is."""

        def order(match: ValueMatch) -> tuple[float, float, int]:
            return (
                -match.score,
                -float(logits[self._words.number_of[match.table.lower(), match.column.lower()]]),
                -match.count,
            )

        kept = {(table.name, column.name) for table in part.tables for column in table.columns}
        shown: list[ValueMatch] = []
        for match in sorted(values, key=order):
            column = match.table, match.column
            before = sum((other.table, other.column) == column for other in shown)
            if column in kept and before < _PER_COLUMN and len(shown) < _VALUES:
                shown.append(match)
        return tuple(shown)
