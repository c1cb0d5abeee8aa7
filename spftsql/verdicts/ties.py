"""Queries that leave out rows by their position, or order them, where rows tie: see `probes`."""

from __future__ import annotations

import sqlglot
from sqlglot import exp

from spftsql.verdicts.tree import binary, is_aggregate, order_of, own_nodes, same_text, sort_key, source_rows


def width(query: exp.Query) -> int | None:
    """The number of columns; None where a star hides it."""
    inner: object = query
    while isinstance(inner, exp.SetOperation | exp.Subquery):
        inner = inner.this
    if not isinstance(inner, exp.Select) or inner.is_star:
        return None
    return len(inner.expressions)


def cuts(query: exp.Query) -> bool:
    """Whether rows are left out by position: LIMIT, OFFSET, FETCH or DISTINCT ON."""
    if _distinct_on(query):
        return True
    limit, offset, order = map(query.args.get, ("limit", "offset", "order"))
    options = limit.args.get("limit_options") if limit else None
    if options and options.args.get("with_ties"):
        return False
    if order and any(isinstance(key.this, exp.Var) and key.name == "ALL" for key in order.expressions):
        return False  # DuckDB's ORDER BY ALL: by every column
    return limit is not None or offset is not None


def cut_reason(query: exp.Query) -> str:
    """What may make a query vary that cuts, or orders."""
    if _distinct_on(query):
        return "DISTINCT ON over ties"
    if query.args.get("limit") is None and query.args.get("offset") is None:
        return "ORDER BY over ties"
    return "LIMIT over ties" if query.args.get("order") else "LIMIT without ORDER BY"


def reaches_the_end(query: exp.Query, rows: int) -> bool:
    """Whether the query's LIMIT had nothing to leave out, since its result has fewer rows."""
    limit = query.args.get("limit")
    if limit is None or limit.args.get("limit_options") or query.args.get("offset") or _distinct_on(query):
        return False
    count = _count(query)
    return count is not None and rows < count


def is_single_row(query: exp.Query) -> bool:
    """Whether the query makes one row of all that it reads, or reads nothing."""
    if not isinstance(query, exp.Select) or query.args.get("group"):
        return False
    if query.args.get("from_") is None:
        return True
    return any(is_aggregate(node) for column in query.expressions for node in own_nodes(column))


def break_ties(query: exp.Query, descending: bool, columns: int, dialect: str, limit: int | None = None) -> None:
    """Sorts rows that tie by what they show; with `limit`, keeps so many rows."""
    order = order_of(query)
    if (on := _distinct_on(query)) and not order.expressions:
        for key in on.expressions if isinstance(on, exp.Tuple) else [on]:
            order.append("expressions", sort_key(key.copy(), False))
    for number in range(1, columns + 1):
        order.append("expressions", sort_key(binary(exp.Literal.number(number), dialect), descending))
    if limit is not None:
        query.set("limit", exp.Limit(expression=exp.Literal.number(limit)))


def star_cut_pair(query: exp.Query, dialect: str) -> tuple[str, str] | None:
    """For columns that a star hides: the number of rows that LIMIT keeps with all that tie with them; that it keeps.

    None where this cannot be asked so simply.
    """
    count = _count(query)
    if not isinstance(query, exp.Select) or count is None:
        return None
    if any(map(query.args.get, ("offset", "distinct", "group"))):
        return None
    order = query.args["order"].sql(dialect) if query.args.get("order") else ""
    place = exp.alias_(sqlglot.parse_one(f"rank() OVER ({order})", read=dialect), "place")
    places = source_rows(query, [place]).sql(dialect)
    rows = source_rows(query, [exp.alias_(exp.Literal.number(1), "one")]).sql(dialect)
    return (
        f"SELECT count(*) FROM ({places}) AS q WHERE place <= {count}",
        f"SELECT count(*) FROM ({rows} LIMIT {count}) AS q",
    )


def orders_by_what_distinct_hides(query: exp.Query) -> bool:
    """Whether rows are made distinct and then sorted by something that they do not show, as SQLite allows."""
    if not isinstance(query, exp.Select) or not query.args.get("distinct") or not query.args.get("order"):
        return False
    if query.is_star or query.args.get("group") or is_single_row(query):
        return False
    return bool(_hidden_keys(query))


def decide_hidden_keys(query: exp.Query, descending: bool, columns: int, dialect: str) -> None:
    """Of the equal rows that DISTINCT makes one, takes the smallest or the largest of each hidden sort key."""
    assert isinstance(query, exp.Select)
    for key in _hidden_keys(query):
        key.set("this", (exp.Max if descending else exp.Min)(this=key.this))
    query.set("distinct", None)
    query.set("group", exp.Group(expressions=[column.unalias().copy() for column in query.expressions]))
    break_ties(query, False, columns, dialect)


def _hidden_keys(query: exp.Select) -> list[exp.Ordered]:
    names = {column.alias_or_name.lower() for column in query.expressions}

    def is_shown(key: exp.Expr) -> bool:
        if isinstance(key, exp.Literal) or (isinstance(key, exp.Column) and key.name.lower() in names):
            return True
        return any(same_text(key, column.unalias()) for column in query.expressions)

    return [key for key in query.args["order"].expressions if not is_shown(key.this)]


def _distinct_on(query: exp.Query) -> exp.Expr | None:
    distinct = query.args.get("distinct")
    return distinct.args.get("on") if isinstance(distinct, exp.Distinct) else None


def _count(query: exp.Query) -> int | None:
    """The number in LIMIT or FETCH."""
    limit = query.args.get("limit")
    count = (limit.args.get("expression") or limit.args.get("count")) if limit else None
    return int(count.this) if isinstance(count, exp.Literal) and count.is_int else None
