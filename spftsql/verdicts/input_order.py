"""Aggregates and window functions that depend on the order of rows which no ORDER BY tells apart: see `probes`."""

from __future__ import annotations

from collections.abc import Iterator

import sqlglot
from sqlglot import exp

from spftsql.verdicts.tree import (
    clauses,
    is_aggregate,
    is_loose,
    is_sum,
    order_of,
    own_nodes,
    sort_key,
    source_rows,
    unwrapped,
)

_BY_POSITION = (exp.RowNumber, exp.Ntile, exp.Lag, exp.Lead, exp.FirstValue, exp.LastValue, exp.NthValue)


def loose_aggregates(query: exp.Select, is_whole: bool) -> list[exp.Expr]:
    """The aggregates of the query whose value depends on the order of their rows, such as `group_concat`.

    The last digits of a sum of floats do so, too. They count where the sum is compared or may be: not among the columns
    of the whole statement, where the comparison of results is tolerant.
    """
    found = [node for clause in clauses(query, "having", "order", "qualify") for node in own_nodes(clause)]
    shown = {id(node) for column in query.expressions for node in own_nodes(column)} if is_whole else ()
    return [
        node for node in found if is_aggregate(node) and (is_loose(node) or (is_sum(node) and id(node) not in shown))
    ]


def sort_aggregated_rows(query: exp.Query, descending: bool, is_whole: bool) -> None:
    """Sorts the rows of these aggregates by their arguments, after what they sort them by already."""
    assert isinstance(query, exp.Select)
    for node in loose_aggregates(query, is_whole):
        separator = node.args.get("separator")
        arguments = [child for child in node.iter_expressions() if child is not separator]
        order = next((child for child in arguments if isinstance(child, exp.Order)), None)
        if order is None:  # it is written behind the last argument
            order = exp.Order(this=arguments[-1].copy(), expressions=[])
            arguments.pop().replace(order)
            arguments.append(order)
        for argument in arguments:
            value = argument.this if isinstance(argument, exp.Order) else argument
            for key in value.expressions if isinstance(value, exp.Distinct) else [value]:
                order.append("expressions", sort_key(key.copy(), descending))


def loose_windows(query: exp.Select) -> list[exp.Window]:
    """The windows of the query, or their named definitions, in which rows that tie are told apart by a function."""
    definitions = {window.name.lower(): window for window in query.args.get("windows") or ()}
    found: dict[int, exp.Window] = {}
    for window in _windows(clauses(query, "order", "qualify")):
        definition = definitions.get(window.alias.lower(), window)
        function, spec = unwrapped(window.this), definition.args.get("spec")
        by_rows = spec is not None and spec.args.get("kind") == "ROWS" and isinstance(function, exp.AggFunc)
        if by_rows and spec.args.get("start") == spec.args.get("end") == "UNBOUNDED":
            by_rows = False
        if by_rows or is_loose(function) or isinstance(function, _BY_POSITION):
            found[id(definition)] = definition
    return list(found.values())


def sort_windows(query: exp.Query, descending: bool) -> None:
    """Sorts the rows that tie in such a window by what they show and by what the window functions take."""
    assert isinstance(query, exp.Select)
    keys = [column.unalias() for column in query.expressions if not column.find(exp.Window, exp.Query)]
    keys += [unwrapped(window.this).this for window in _windows(query.expressions)]
    keys = [key.copy() for key in keys if isinstance(key, exp.Expr) and not isinstance(key, exp.Literal | exp.Null)]
    for window in loose_windows(query):
        for key in keys:
            order_of(window).append("expressions", sort_key(key.copy(), descending))


def star_window_pair(query: exp.Select, dialect: str) -> tuple[str, str]:
    """For columns that a star hides: the sum of the ranks, and of the row numbers, which differ where any rows tie."""

    def numbered(function: str) -> str:
        columns: list[exp.Expr] = []
        for i, window in enumerate(loose_windows(query)):
            keys = ", ".join(key.sql(dialect) for key in window.args.get("partition_by") or ())
            order = window.args["order"].sql(dialect) if window.args.get("order") else ""
            over = f"{f'PARTITION BY {keys}' if keys else ''} {order}"
            columns.append(exp.alias_(sqlglot.parse_one(f"{function}() OVER ({over})", read=dialect), f"w{i}"))
        sums = ", ".join(f"sum(w{i})" for i in range(len(columns)))
        return f"SELECT {sums} FROM ({source_rows(query, columns).sql(dialect)}) AS q"

    return numbered("rank"), numbered("row_number")


def _windows(nodes: list[exp.Expr]) -> Iterator[exp.Window]:
    for clause in nodes:
        yield from (node for node in own_nodes(clause) if isinstance(node, exp.Window))
