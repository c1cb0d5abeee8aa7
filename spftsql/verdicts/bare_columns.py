"""Columns beside an aggregate, for which SQLite takes the value of any row of the group: see `probes`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlglot
from sqlglot import exp

from spftsql.verdicts.tree import binary, clauses, is_aggregate, is_result_column, own_nodes, same_text, source_rows


@dataclass(frozen=True, slots=True)
class BareColumns:
    """`star`: `*` is among them. `extreme`: the one min() or max() of the query, whose row is then taken.

    `shown`: each of them is a column of the result, as it is, for every group. `sorting`: the rows are only sorted by
    them.
    """

    columns: tuple[exp.Column, ...]
    star: bool
    extreme: exp.Expr | None
    shown: bool
    sorting: bool


def bare_columns(query: exp.Select) -> BareColumns | None:
    """The columns of a query that are neither grouped nor aggregated; None without any, or without aggregation.

    The rule is SQLite's (https://sqlite.org/lang_select.html, "Bare columns in an aggregate query").
    """
    nodes = [node for clause in clauses(query, "having", "order") for node in own_nodes(clause)]
    aggregates = [node for node in nodes if is_aggregate(node)]
    if not query.args.get("group") and not aggregates:
        return None
    keys = _group_keys(query)
    found = [node for column in query.expressions for node in _ungrouped(column, keys)]
    limit, offset = query.args.get("limit"), query.args.get("offset")
    aliases = {column.alias.lower() for column in query.expressions if column.alias}
    chosen_by, sorted_by = (
        [node for node in _ungrouped(clause, keys) if node.name.lower() not in aliases or node.text("table")]
        for clause in (query.args.get(name) or exp.Null() for name in ("having", "order"))
    )
    found += chosen_by
    sorting = not (found or limit or offset)
    found += sorted_by
    if not found:
        return None
    extremes = {node.sql().lower(): node for node in aggregates if isinstance(node, exp.Min | exp.Max)}
    one = next(iter(extremes.values())) if len(extremes) == 1 else None
    columns = tuple(node for node in found if isinstance(node, exp.Column) and not node.is_star)
    return BareColumns(
        columns,
        star=len(columns) < len(found),
        extreme=None if one and isinstance(one.parent, exp.Filter) else one,
        shown=not query.args.get("distinct") and all(is_result_column(query, node) for node in columns),
        sorting=sorting,
    )


def decide_bare_columns(query: exp.Query, descending: bool) -> None:
    """Takes the smallest or the largest value of every bare column; NULL counts as the largest."""
    assert isinstance(query, exp.Select)
    bare = bare_columns(query)
    for column in bare.columns if bare else ():
        value = binary(column.copy(), "sqlite")
        decided: exp.Expr = exp.Min(this=value)
        if descending:
            some_null = exp.LT(this=exp.Count(this=column.copy()), expression=exp.Count(this=exp.Star()))
            decided = exp.Case(ifs=[exp.If(this=some_null, true=exp.Null())], default=exp.Max(this=value))
        if column.parent is query:  # a column of a subquery keeps its name
            decided = exp.alias_(decided, column.name, quoted=True)
        column.replace(decided)


def dependence_pair(query: exp.Select) -> tuple[str, str]:
    """The number of groups, counted once for every choice of bare columns that the rows offer; the number of groups."""
    bare = bare_columns(query)
    assert bare is not None
    keys: list[exp.Expr] = [exp.alias_(key.copy(), f"g{i}") for i, key in enumerate(_group_keys(query))]
    keys = keys or [exp.alias_(exp.Literal.number(1), "g0")]
    shown: list[exp.Expr] = [exp.Star()] if bare.star else []
    shown += [exp.alias_(binary(column.copy(), "sqlite"), f"b{i}") for i, column in enumerate(bare.columns)]
    place = "1"
    if bare.extreme is not None:
        way = "ASC" if isinstance(bare.extreme, exp.Min) else "DESC"
        partition = ", ".join(key.unalias().sql("sqlite") for key in keys)
        value = bare.extreme.this.sql("sqlite")
        place = f"rank() OVER (PARTITION BY {partition} ORDER BY {value} {way} NULLS LAST)"
    shown.append(exp.alias_(sqlglot.parse_one(place, read="sqlite"), "place"))
    rows, groups = (source_rows(query, columns).sql("sqlite") for columns in (keys + shown, keys))
    return (
        f"SELECT count(*) FROM (SELECT DISTINCT * FROM ({rows}) AS q WHERE place = 1) AS q",
        f"SELECT count(*) FROM (SELECT DISTINCT * FROM ({groups}) AS q) AS q",
    )


def _group_keys(query: exp.Select) -> list[exp.Expr]:
    """What is grouped by; the column itself where its position or alias stands for it."""
    group = query.args.get("group")
    keys: list[exp.Expr] = []
    for key in group.expressions if group else ():
        while isinstance(key, exp.Paren):
            key = key.this
        if isinstance(key, exp.Literal) and key.is_int and 0 < int(key.this) <= len(query.expressions):
            key = query.expressions[int(key.this) - 1].unalias()
        elif isinstance(key, exp.Column) and not key.table:
            named = (column for column in query.expressions if column.alias.lower() == key.name.lower())
            key = next(named, key).unalias()
        keys.append(key)
    return keys


def _ungrouped(node: exp.Expr, keys: list[exp.Expr]) -> Iterator[exp.Expr]:
    """Columns and stars outside aggregates, subqueries and what is grouped by."""
    if isinstance(node, exp.Query) or is_aggregate(node) or any(_is_key(node, key) for key in keys):
        return
    if isinstance(node, exp.Column | exp.Star):
        yield node
        return
    for child in node.iter_expressions():
        if isinstance(node, exp.Window) and child is node.this:  # a window's function works on grouped rows
            for argument in child.iter_expressions():
                yield from _ungrouped(argument, keys)
        else:
            yield from _ungrouped(child, keys)


def _is_key(node: exp.Expr, key: exp.Expr) -> bool:
    if isinstance(node, exp.Column) and isinstance(key, exp.Column):
        tables = {node.table.lower(), key.table.lower()} - {""}
        return node.name.lower() == key.name.lower() and len(tables) < 2
    return not isinstance(node, exp.Literal) and same_text(node, key)
