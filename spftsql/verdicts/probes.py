"""Statements that tell whether another correct execution of a statement could give another result on this database.

SQL leaves some things open: which rows a LIMIT keeps of those that tie, which row's value stands beside an aggregate,
in which order an aggregate sees its rows. Whether that can be seen is a matter of the data, so it is asked of the data:
a probe is a pair of statements, derived from the original by deciding what is open in two opposite ways. Where the two
results agree the data leaves no choice. A cut with ties is decided by the projection as further sort keys, once
ascending and once descending: the smallest and the largest choice of tied rows are equal only if all choices are.

A subquery that leaves something open is asked for by itself, since the extremes of its choices could agree by luck in
the result of the whole; as a part of the whole only where it refers to the outside and is a column of the result. So a
choice that the whole does not show is counted as visible: a statement that is called variable may not be, but not the
other way round.

Not asked for: which of the spellings that a collation holds equal DISTINCT or GROUP BY keeps; sort keys that differ by
the rounding of a sum alone (sums are tried in two orders); columns of a system catalogue.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import TypeVar

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from spftsql.sandbox.location import Engine
from spftsql.verdicts.bare_columns import bare_columns, decide_bare_columns, dependence_pair
from spftsql.verdicts.input_order import (
    loose_aggregates,
    loose_windows,
    row_number_bounds,
    sort_aggregated_rows,
    sort_windows,
    star_window_pair,
    take_first_rows,
)
from spftsql.verdicts.reading import DIALECTS
from spftsql.verdicts.ties import (
    break_ties,
    cut_reason,
    hidden_keys_pair,
    is_single_row,
    keeps_ties,
    orders,
    orders_by_what_distinct_hides,
    star_cut_pair,
    uncertain_prefixes,
    width,
)

_LEAVES_OPEN = re.compile(r"\(|\b(?:limit|offset|fetch|order|group|having)\b", re.IGNORECASE)  # or surely nothing
_UNREADABLE = re.compile(r"\b(limit|offset|fetch|over|group)\b|concat|_agg\b", re.IGNORECASE)

_MOST = 40  # probes of one statement

_Query = TypeVar("_Query", bound=exp.Query)
_Change = Callable[[exp.Query, bool], object]  # decides what is open in a query, in one way or the other


@dataclass(frozen=True, slots=True)
class Probe:
    """Pairs of statements whose results are equal as bags unless the original may vary, for the reason that is given.

    Of several pairs, the first that can be executed decides; where none can, the original counts as variable. `ties`:
    the pair is the original with its ties sorted up and down, so it also shows where they are. `cut`: the rows
    themselves are in question, else only their order. `order`: the two must also be equal as lists for the order of
    the original to be known.
    """

    reason: str
    pairs: tuple[tuple[str, str], ...] = ()
    ties: bool = False
    cut: bool = True
    order: bool = False


@lru_cache(maxsize=2_000)
def probes(sql: str, columns: int, rows: int, engine: Engine = "sqlite") -> tuple[Probe, ...]:
    """The probes for a statement that gave so many columns and rows; none where its text leaves nothing open.

    A statement that sqlglot cannot read, or a very long one, gets a probe without pairs if it may leave something open.
    """
    if not _LEAVES_OPEN.search(sql):
        return ()
    dialect = DIALECTS[engine]
    try:
        statement = _Statement(sql, dialect)
        found = list(islice(_of_statement(statement, columns, rows), _MOST + 1))
    except (SqlglotError, RecursionError):
        return (Probe("a statement that cannot be parsed"),) if _UNREADABLE.search(sql) else ()
    return tuple(found) if len(found) <= _MOST else (Probe("a statement with very many parts"),)


class _Statement:
    """A statement as a tree. It is parsed again for every change to it, which is faster than a copy."""

    def __init__(self, sql: str, dialect: str) -> None:
        self._sql, self.dialect = sql, dialect
        self.root = self.fresh()

    def fresh(self) -> exp.Expr:
        return sqlglot.parse_one(self._sql, read=self.dialect)

    def both(self, index: int, change: _Change) -> tuple[str, str]:
        """The statement with the query of that index changed, in the one way and in the other."""
        return _both(self.fresh, index, change, self.dialect)


def _of_statement(statement: _Statement, columns: int, rows: int) -> Iterator[Probe]:
    if isinstance(statement.root, exp.Query):
        yield from _of_whole(statement, statement.root, columns, rows)
        for index, query in enumerate(_queries(statement.root)):
            yield from _of_part(statement, index, query)


def _queries(root: exp.Expr) -> list[exp.Query]:
    """All queries in the tree, the root first, in an order that its like has too."""
    return list(root.find_all(exp.Select, exp.SetOperation, exp.Subquery, bfs=False))


def _of_whole(statement: _Statement, root: exp.Query, columns: int, rows: int) -> Iterator[Probe]:
    """What LIMIT and ORDER BY of the whole statement leave open."""
    change = partial(break_ties, columns=columns, dialect=statement.dialect)
    places = () if is_single_row(root) else uncertain_prefixes(root, rows)
    if places is None:
        yield Probe(cut_reason(root))
    for place in places or ():
        if place is not None:
            yield Probe(cut_reason(root), (statement.both(0, partial(change, first=place)),))
    cut = places is not None and None in places
    if cut or (rows > 1 and orders(root)):
        pair = statement.both(0, partial(change, first=rows if keeps_ties(root) else None))
        yield Probe(cut_reason(root), (pair,), ties=True, cut=cut)
    if orders_by_what_distinct_hides(root):
        pair = hidden_keys_pair(root, statement.dialect)
        yield Probe("DISTINCT rows sorted by what they do not show", (pair,), cut=bool(places))


def _of_part(statement: _Statement, index: int, query: exp.Query) -> Iterator[Probe]:
    """What one query, the root or a subquery, leaves open beyond the order of the whole."""
    dialect, parent, is_whole = statement.dialect, query.parent, query is statement.root
    in_whole = partial(statement.both, index)

    def by_itself(change: _Change, in_place: bool = True) -> tuple[tuple[str, str], ...]:
        alone = () if is_whole else (_both(partial(_detached, query), 0, change, dialect),)
        return (*alone, in_whole(change)) if is_whole or (in_place and _is_shown(query)) else alone

    if not (is_whole or isinstance(parent, exp.Exists) or _ends_recursion(query) or is_single_row(query)):
        columns = width(query)
        change = partial(break_ties, columns=columns or 1, dialect=dialect)
        places = uncertain_prefixes(query)
        for place in (None,) if places is None else places:
            pairs: tuple[tuple[str, str], ...] = ()
            if places is not None and columns:
                pairs = by_itself(partial(change, first=place), in_place=place is None)
            elif places is not None and (pair := star_cut_pair(_detached(query), place, dialect)):
                pairs = (pair,)
            yield Probe(f"{cut_reason(query)} in a subquery", pairs)
        if isinstance(parent, exp.Array) and not places:
            up, down = _both(partial(_detached, query), 0, change, dialect)
            arrays = (f"SELECT ARRAY({up})", f"SELECT ARRAY({down})")
            shown = isinstance(parent.parent, exp.Select) and parent.parent is statement.root
            yield Probe("an array of rows in any order", (arrays, in_whole(change)) if shown else (arrays,))
        elif dialect == "sqlite" and not places and _is_scalar(query):
            yield Probe("more than one row where one value is taken", by_itself(partial(change, first=1)))
    if not isinstance(query, exp.Select):
        return
    bare = bare_columns(query) if dialect == "sqlite" else None
    if bare and (is_whole or not bare.sorting):
        counted = bare.star or bare.extreme is not None or not bare.shown
        pairs = (dependence_pair(_detached(query)),) if counted else by_itself(decide_bare_columns)
        yield Probe("a column that is neither grouped nor aggregated", pairs, cut=not bare.sorting)
    if loose_aggregates(query, is_whole):
        change = partial(sort_aggregated_rows, is_whole=is_whole)
        yield Probe("an aggregate over rows in any order", by_itself(change), order=is_whole)
    if loose_windows(query):
        reason = "a window function over ties"
        if query.is_star:
            yield Probe(reason, (star_window_pair(_detached(query), dialect),))
        elif bounds := row_number_bounds(query):
            for bound in bounds:
                up, down = (take_first_rows(_detached(query), way, bound, dialect) for way in (False, True))
                yield Probe(reason, ((up, down),))
        else:
            yield Probe(reason, by_itself(sort_windows), order=is_whole)


def _is_scalar(query: exp.Query) -> bool:
    """Whether the subquery stands for one value, for which SQLite takes its first row."""
    node = query.parent
    if isinstance(query, exp.Subquery) or not isinstance(node, exp.Subquery):
        return False
    while isinstance(node.parent, exp.Subquery):
        node = node.parent
    around = (exp.From, exp.Join, exp.Lateral, exp.In, exp.SetOperation, exp.CTE, exp.Any, exp.All)
    return node.parent is not None and not isinstance(node.parent, around)


def _is_shown(query: exp.Query) -> bool:
    """Whether the subquery is a column of the whole result, so that all of its values can be seen there."""
    node = query.parent
    while isinstance(node, exp.Subquery):
        query, node = node, node.parent
    column = query.parent if isinstance(query.parent, exp.Alias) else query
    whole = column.parent
    if not isinstance(whole, exp.Select) or whole.parent is not None or column.arg_key != "expressions":
        return False
    return not any(map(whole.args.get, ("distinct", "group", "limit", "offset")))


def _ends_recursion(query: exp.Query) -> bool:
    """Whether it is the body of a recursive common table expression, which a LIMIT ends."""
    cte = query.parent
    if not isinstance(cte, exp.CTE) or not isinstance(query, exp.SetOperation):
        return False
    return bool(isinstance(cte.parent, exp.With) and cte.parent.args.get("recursive"))


def _both(fresh: Callable[[], exp.Expr], index: int, change: _Change, dialect: str) -> tuple[str, str]:
    both = []
    for descending in (False, True):
        tree = fresh()
        change(_queries(tree)[index], descending)
        both.append(tree.sql(dialect, copy=False))
    return both[0], both[1]


def _detached(query: _Query) -> _Query:
    """A copy of a subquery as a statement of its own, with the common table expressions that it may use."""
    tree = query.copy()
    tree.set("alias", None)
    tables: dict[str, exp.Expr] = {}
    recursive = False
    node: exp.Expr | None = query
    while node is not None:
        if (clause := node.args.get("with_")) is not None:
            recursive = recursive or bool(clause.args.get("recursive"))
            tables = {cte.alias: cte for cte in clause.expressions if cte.alias not in tables} | tables
        node = node.parent
    if tables:
        tree.set("with_", exp.With(expressions=[cte.copy() for cte in tables.values()], recursive=recursive))
    return tree
