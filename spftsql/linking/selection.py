"""Chooses columns by score within a budget, together with the keys that join their tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from spftsql.databases.schema import Column, Schema
from spftsql.linking.schema_words import Floats, SchemaWords

_BRIDGED = -2.0  # logit from which a column's table is joined to the kept ones through a further table


@dataclass(frozen=True)
class Costs:
    """What it costs to keep things: each table, each column, each foreign key (in the order of `SchemaWords.links`)."""

    tables: Sequence[float]
    columns: Sequence[float]
    links: Sequence[float]


def select(words: SchemaWords, scores: Floats, costs: Costs, budget: float) -> list[int]:
    """The numbers of the kept columns, in the order of the schema: best first, as long as the budget lasts.

    A table comes with its primary key and, if the budget allows it, with the foreign keys to the tables already there;
    one that no key joins to them comes with the table between, where there is one.
    """
    choice = _Choice(words, costs, budget)
    cheapest = min(costs.columns, default=0)
    for column in np.lexsort((np.arange(len(scores)), -scores)).tolist():
        if choice.left < cheapest:
            break
        if column not in choice.columns:
            joined = choice.with_keys(column, bridge=scores[column] >= _BRIDGED)
            _ = choice.add(joined) or choice.add({column} | choice.primary_key(column))
    return sorted(choice.columns)


def restricted(words: SchemaWords, kept: Sequence[int]) -> Schema:
    """The schema with the kept columns alone; tables and keys that lost theirs are gone."""
    schema, chosen = words.schema, set(kept)
    columns: dict[int, list[Column]] = {}
    for number in sorted(chosen):
        columns.setdefault(int(words.table_of[number]), []).append(words.columns[number][1])
    keys = zip(schema.constraints, words.key_ends, strict=True)
    whole = [columns for columns, ends in keys if ends is not None and chosen.issuperset(chain.from_iterable(ends))]
    return replace(
        schema,
        tables=tuple(replace(schema.tables[table], columns=tuple(own)) for table, own in columns.items()),
        foreign_keys=tuple(chain.from_iterable(whole)),
    )


class _Choice:
    """What is kept so far, and what is left of the budget."""

    def __init__(self, words: SchemaWords, costs: Costs, budget: float) -> None:
        self.columns: set[int] = set()
        self._tables: list[int] = []
        self._at = words.table_of.tolist()
        self.left = budget
        self._costs = costs
        self._links = [set(chain.from_iterable(ends)) for ends in words.links]
        self._primary: dict[int, set[int]] = {}
        self._near: dict[
            int, list[tuple[int, set[int]]]
        ] = {}  # table: (other table, the columns of both that join them)
        self._of_column: dict[int, list[int]] = {}
        for number, (_, column) in enumerate(words.columns):
            if column.primary_key:
                self._primary.setdefault(self._at[number], set()).add(number)
        for number, ((left, right), *_) in enumerate(words.links):
            for own, other in ((left, right), (right, left)):
                self._near.setdefault(self._at[own], []).append((self._at[other], self._links[number]))
            for end in self._links[number]:
                self._of_column.setdefault(end, []).append(number)

    def with_keys(self, column: int, bridge: bool) -> set[int]:
        """The column, and where its table is new: that one's primary key and the keys that join it to the others."""
        table = self._at[column]
        if table in self._tables:
            return {column}
        wanted = {column} | self.primary_key(column)
        direct = [columns for there, columns in self._near.get(table, ()) if there in self._tables]
        return wanted.union(*direct) if direct or not bridge else wanted | self._bridge(table)

    def primary_key(self, column: int) -> set[int]:
        """The primary key of the column's table."""
        return self._primary.get(self._at[column], set())

    def add(self, columns: set[int]) -> bool:
        """Keeps the columns if the budget allows it."""
        new = columns - self.columns
        tables = dict.fromkeys(self._at[column] for column in sorted(new))
        fresh = [table for table in tables if table not in self._tables]
        both = self.columns | new
        links = {number for column in new for number in self._of_column.get(column, ()) if self._links[number] <= both}
        cost = (
            sum(self._costs.columns[column] for column in new)
            + sum(self._costs.tables[table] for table in fresh)
            + sum(self._costs.links[number] for number in links)
        )
        if cost > self.left:
            return False
        self.left -= cost
        self.columns |= new
        self._tables += fresh
        return True

    def _bridge(self, table: int) -> set[int]:
        """The key columns by which one further table joins `table` to the best of the kept ones it can."""
        kept = {there: place for place, there in reversed(list(enumerate(self._tables)))}
        paths = [
            (kept[end], middle, near | far)
            for middle, near in self._near.get(table, ())
            for end, far in self._near.get(middle, ())
            if end in kept and middle != table
        ]
        return min(paths, key=lambda path: path[:2])[2] if paths else set()
