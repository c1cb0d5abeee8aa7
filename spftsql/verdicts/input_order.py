"""Aggregates and window functions that depend on the order of rows which no ORDER BY tells apart: see `probes`."""

from __future__ import annotations

from collections.abc import Iterator

import sqlglot
from sqlglot import exp

from spftsql.verdicts.tree import (
    clauses,
    is_aggregate,
    is_loose,
    is_result_column,
    is_sum,
    order_of,
    own_nodes,
    sort_key,
    source_rows,
    unwrapped,
)

_BY_POSITION = (exp.RowNumber, exp.Ntile, exp.Lag, exp.Lead, exp.FirstValue, exp.LastValue, exp.NthValue)
_CONSTANTS = (exp.Literal, exp.Null, exp.Star)


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
    """Sorts the rows of these aggregates by their arguments, after what they sort them by already.

    Those that are not shown as they are become columns of their own, for all groups.
    """
    assert isinstance(query, exp.Select)
    aggregates = loose_aggregates(query, is_whole)
    for node in aggregates:
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
    hidden = [node for node in aggregates if not (is_sum(node) or is_result_column(query, node))]
    for node in hidden:
        query.append("expressions", node.copy())
    if hidden:
        for part in ("having", "order", "limit", "offset", "distinct"):
            query.set(part, None)


def loose_windows(query: exp.Select) -> list[exp.Window]:
    """The calls of window functions that tell apart rows which tie in the window's order, such as `row_number`."""
    found = []
    for window in _windows(clauses(query, "order", "qualify")):
        function = unwrapped(window.this)
        by_rows = isinstance(function, exp.AggFunc) and _frames_single_rows(_definition(query, window))
        if by_rows or is_loose(function) or isinstance(function, _BY_POSITION):
            found.append(window)
    return found


def _frames_single_rows(window: exp.Window) -> bool:
    """Whether the frame is counted in rows and is not the whole partition."""
    spec = window.args.get("spec")
    if spec is None or spec.args.get("kind") != "ROWS":
        return False
    return not spec.args.get("start") == spec.args.get("end") == "UNBOUNDED"


def sort_windows(query: exp.Query, descending: bool) -> None:
    """Sorts the rows that tie in such a window by what they show and by what the window functions take.

    The functions become row numbers beside what they took, because those differ upwards and downwards as soon as two
    rows do: what `lag` gives may be the same both ways and another one between.
    """
    assert isinstance(query, exp.Select)
    windows = loose_windows(query)
    shown = [column.unalias() for column in query.expressions if not column.find(exp.Window, exp.Query)]
    arguments = [unwrapped(window.this).args.get("this") for window in _windows(clauses(query, "order", "qualify"))]
    taken = [value.copy() for value in arguments if isinstance(value, exp.Expr) and not isinstance(value, _CONSTANTS)]
    keys = [value.copy() for value in shown if not isinstance(value, _CONSTANTS)] + taken
    for definition in {id(window): window for window in (_definition(query, window) for window in windows)}.values():
        for key in keys:
            order_of(definition).append("expressions", sort_key(key.copy(), descending))
    for window in windows:
        window.set("this", exp.RowNumber())
    for value in taken:
        query.append("expressions", value.copy())


def row_number_bounds(query: exp.Select) -> set[int]:
    """The numbers of first rows that are taken by a row number; empty when it has another use, or is not the only one.

    Everything outside may only ask of the row number whether it is small enough, as in `WHERE n <= 3`.
    """
    windows = loose_windows(query)
    alias = windows[0].parent
    if len(windows) > 1 or not isinstance(windows[0].this, exp.RowNumber) or not isinstance(alias, exp.Alias):
        return set()
    if not is_result_column(query, windows[0]) or query.parent is None:
        return set()
    if any(not isinstance(star.parent, exp.Count) for star in query.root().find_all(exp.Star)):
        return set()  # which may show the number
    bounds = set()
    for column in query.root().find_all(exp.Column):
        if column.name.lower() == alias.alias.lower():
            bound = _upper_bound(column)
            if bound is None:
                return set()
            bounds.add(bound)
    return bounds


def _upper_bound(column: exp.Column) -> int | None:
    comparison = column.parent
    if not isinstance(comparison, exp.LT | exp.LTE | exp.EQ) or comparison.this is not column:
        return None
    number = comparison.expression
    if not isinstance(number, exp.Literal) or not number.is_int:
        return None
    bound = int(number.this)
    if isinstance(comparison, exp.EQ):
        return 1 if bound == 1 else None
    return bound - isinstance(comparison, exp.LT)


def take_first_rows(query: exp.Query, descending: bool, bound: int, dialect: str) -> str:
    """The rows that the query numbers up to `bound`, without the number, ties sorted by what they show."""
    assert isinstance(query, exp.Select)
    sort_windows(query, descending)
    columns = [exp.alias_(column.unalias(), f"c{i}") for i, column in enumerate(query.expressions)]
    number = next(i for i, column in enumerate(query.expressions) if column.find(exp.RowNumber))
    query.set("expressions", columns)
    shown = ", ".join(f"c{i}" for i in range(len(columns)) if i != number)
    return f"SELECT {shown or 1} FROM ({query.sql(dialect)}) AS q WHERE c{number} <= {bound}"


def _definition(query: exp.Select, window: exp.Window) -> exp.Window:
    """Where the window's order is written: in the call, or under its name in the WINDOW clause."""
    named = {definition.name.lower(): definition for definition in query.args.get("windows") or ()}
    definition: exp.Window = named.get(window.alias.lower(), window)
    return definition


def star_window_pair(query: exp.Select, dialect: str) -> tuple[str, str]:
    """For columns that a star hides: the sum of the ranks, and of the row numbers, which differ where any rows tie."""

    def numbered(function: str) -> str:
        columns: list[exp.Expr] = []
        for i, window in enumerate(_definition(query, window) for window in loose_windows(query)):
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
