"""Where else a self-join holds: FROM clauses that name a table more than once, moved to other tables of the key graph.

Such a clause is matched whole: its tables become others that the same joins, over keys again, put together. Its joins
are given by key roles (`spftsql.synthesis.library.shape`); one role of one table is one column, so that of a flight's
two foreign keys to airports the second is `fk2`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from spftsql.synthesis.joins import ColumnName, Join, KeyGraph
from spftsql.synthesis.templates import Tables

_TRIES = 300  # pairs of columns, before a search is given up

_Needs = tuple[tuple[str, str], ...]  # kinds and key roles of columns
_End = tuple[str, str]  # of a join: the letter of a table, and the role of its column
_Found = tuple[Mapping[str, str], Mapping[_End, str]]  # the table of each letter, the column of each end


def joins_itself(tables: Tables) -> bool:
    """Whether a FROM clause names a table more than once."""
    return len(set(tables.tables)) < len(tables.tables)


def moved(
    scopes: Sequence[Tables], needs: Mapping[str, _Needs], graph: KeyGraph, rng: random.Random
) -> tuple[Mapping[str, str], list[Tables]] | None:
    """Tables for the letters of these FROM clauses, and the clauses over them; None where none were found.

    A table has rows, and a column of its own for each of its letter's `needs`.
    """
    if any(scope.joins is None or any(len(join.equalities) != 1 for join in scope.joins) for scope in scopes):
        return None
    search = _Search([pair for scope in scopes for pair in _ends(scope)], needs, graph, rng)
    found = search.extended(0, ({}, {}))
    if found is None:
        return None
    tables, columns = found
    return tables, [
        Tables(
            tuple(tables[letter] for letter in scope.tables),
            tuple(
                replace(join, equalities=((join.equalities[0][0], columns[left], columns[own]),))
                for join, (left, own) in zip(scope.joins or (), _ends(scope), strict=True)
            ),
        )
        for scope in scopes
    ]


def _ends(scope: Tables) -> list[tuple[_End, _End]]:
    """The two ends of each join."""
    joins: Sequence[Join] = scope.joins or ()
    return [
        ((scope.tables[left], role), (scope.tables[place], own))
        for place, join in enumerate(joins, 1)
        for left, role, own in join.equalities
    ]


class _Search:
    """Backtracking over joins: their columns are tried in random order, each that fits what was found before it."""

    def __init__(
        self,
        joins: Sequence[tuple[_End, _End]],
        needs: Mapping[str, _Needs],
        graph: KeyGraph,
        rng: random.Random,
    ) -> None:
        self._joins, self._needs, self._graph, self._rng = joins, needs, graph, rng
        self._tries = _TRIES

    def extended(self, at: int, found: _Found) -> _Found | None:
        """`found` and what the joins from this one on need; None where nothing fits."""
        if at == len(self._joins):
            return found
        left, own = self._joins[at]
        for column in self._choices(left, found):
            begun = self._with(left, column, found)
            if begun is None:
                continue
            for other in self._shuffled(self._graph.tied(column, _role(own))):
                self._tries -= 1
                if self._tries < 0:
                    return None
                both = self._with(own, other, begun)
                complete = self.extended(at + 1, both) if both is not None else None
                if complete is not None:
                    return complete
        return None

    def _choices(self, end: _End, found: _Found) -> Iterator[ColumnName]:
        """The columns that an end may be."""
        tables, columns = found
        if end in columns:
            return iter([(tables[end[0]], columns[end])])
        wanted = tables.get(end[0])
        return self._shuffled([c for c in self._graph.with_role(_role(end)) if wanted in (None, c[0])])

    def _shuffled(self, columns: Sequence[ColumnName]) -> Iterator[ColumnName]:
        return iter(self._rng.sample(columns, len(columns)))

    def _with(self, end: _End, column: ColumnName, found: _Found) -> _Found | None:
        """`found`, and this column at the end; None where it cannot be: of another table, or at another end already."""
        tables, columns = found
        letter, (table, name) = end[0], column
        if letter not in tables:
            if table in tables.values() or table not in self._graph.tables_with(self._needs.get(letter, ())):
                return None
        elif tables[letter] != table:
            return None
        if end not in columns:
            if any(one[0] == letter and taken == name for one, taken in columns.items()):
                return None
        elif columns[end] != name:
            return None
        return {**tables, letter: table}, {**columns, end: name}


def _role(end: _End) -> str:
    return end[1].rstrip("0123456789")
