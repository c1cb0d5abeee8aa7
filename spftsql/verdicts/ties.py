"""Queries that leave out rows by their position, or order them, where rows tie: see `probes`."""

from __future__ import annotations

import sqlglot
from sqlglot import exp

from spftsql.verdicts.tree import binary, is_aggregate, order_of, own_nodes, same_text, sort_key, source_rows

_MAKES_ROWS = (exp.Explode, exp.Unnest, exp.GenerateSeries, exp.Anonymous)  # or, being unknown, may do so


def width(query: exp.Query) -> int | None:
    """The number of columns; None where a star hides it."""
    inner: object = query
    while isinstance(inner, exp.SetOperation | exp.Subquery):
        inner = inner.this
    if not isinstance(inner, exp.Select) or inner.is_star:
        return None
    return len(inner.expressions)


def uncertain_prefixes(query: exp.Query, rows: int | None = None) -> tuple[int | None, ...] | None:
    """How many first rows must be certain for those that LIMIT, OFFSET, FETCH or DISTINCT ON keep to be certain.

    None among them stands for the query as it is. Empty when no row is left out; `rows` is how many were left, if that
    is known. None when the numbers are not written out.

    A window into the sorted rows is certain if and only if the rows before it are, and those up to its end: of two
    unlike rows that tie across such a place, either could stand next to it, within the window.
    """
    if _orders_by_all(query):
        return ()
    limit, offset = query.args.get("limit"), query.args.get("offset")
    skipped = 0 if offset is None else _number(offset.expression)
    kept = -1 if limit is None or keeps_ties(query) else _count(limit)
    if skipped is None or (skipped and kept is None):
        return None
    ends = kept is None or (kept >= 0 and (rows is None or rows >= kept))
    places: list[int | None] = [None] if _distinct_on(query) or (ends and not skipped) else []
    if skipped:
        places.append(skipped)
        if ends and kept is not None:
            places.append(skipped + kept)
    return tuple(places)


def keeps_ties(query: exp.Query) -> bool:
    """Whether it has FETCH … WITH TIES."""
    limit = query.args.get("limit")
    options = limit.args.get("limit_options") if limit else None
    return bool(options and options.args.get("with_ties"))


def orders(query: exp.Query) -> bool:
    """Whether rows are sorted in an order that may not tell all of them apart."""
    return query.args.get("order") is not None and not _orders_by_all(query)


def cut_reason(query: exp.Query) -> str:
    """What may make a query vary that cuts, or orders."""
    if _distinct_on(query):
        return "DISTINCT ON over ties"
    if query.args.get("limit") is None and query.args.get("offset") is None:
        return "ORDER BY over ties"
    return "LIMIT over ties" if query.args.get("order") else "LIMIT without ORDER BY"


def is_single_row(query: exp.Query) -> bool:
    """Whether the query makes one row of all that it reads, or reads nothing."""
    if not isinstance(query, exp.Select) or query.args.get("group"):
        return False
    nodes = [node for column in query.expressions for node in own_nodes(column)]
    if query.args.get("from_") is None:
        return not any(isinstance(node, _MAKES_ROWS) for node in nodes)
    return any(map(is_aggregate, nodes))


def break_ties(query: exp.Query, descending: bool, columns: int, dialect: str, first: int | None = None) -> None:
    """Sorts rows that tie by what they show; with `first`, keeps so many rows instead of those that it keeps."""
    order = order_of(query)
    if (on := _distinct_on(query)) and not order.expressions:
        for key in on.expressions if isinstance(on, exp.Tuple) else [on]:
            order.append("expressions", sort_key(key.copy(), False))
    for number in range(1, columns + 1):
        order.append("expressions", sort_key(binary(exp.Literal.number(number), dialect), descending))
    if first is not None:
        query.set("limit", exp.Limit(expression=exp.Literal.number(first)))
        query.set("offset", None)


def star_cut_pair(query: exp.Query, first: int | None, dialect: str) -> tuple[str, str] | None:
    """For columns that a star hides: the number of first rows with all that tie with the last; without those.

    `first` as in `uncertain_prefixes`. None where this cannot be asked so simply.
    """
    if first is None and (limit := query.args.get("limit")) is not None:
        first = _count(limit)
    if not isinstance(query, exp.Select) or not first or query.args.get("distinct") or query.args.get("group"):
        return None
    order = query.args["order"].sql(dialect) if query.args.get("order") else ""
    place = exp.alias_(sqlglot.parse_one(f"rank() OVER ({order})", read=dialect), "place")
    places = source_rows(query, [place]).sql(dialect)
    rows = source_rows(query, [exp.alias_(exp.Literal.number(1), "one")]).sql(dialect)
    return (
        f"SELECT count(*) FROM ({places}) AS q WHERE place <= {first}",
        f"SELECT count(*) FROM ({rows} LIMIT {first}) AS q",
    )


def orders_by_what_distinct_hides(query: exp.Query) -> bool:
    """Whether rows are made distinct and then sorted by something that they do not show, as SQLite allows."""
    if not isinstance(query, exp.Select) or not query.args.get("distinct") or not query.args.get("order"):
        return False
    if query.is_star or query.args.get("group") or is_single_row(query):
        return False
    return bool(_hidden_keys(query))


def hidden_keys_pair(query: exp.Query, dialect: str) -> tuple[str, str]:
    """The number of distinct rows with the hidden sort keys shown, and without: equal where each row has one key."""
    assert isinstance(query, exp.Select)
    shown = [exp.alias_(column.unalias().copy(), f"c{i}") for i, column in enumerate(query.expressions)]
    hidden = [exp.alias_(binary(key.this.copy(), dialect), f"k{i}") for i, key in enumerate(_hidden_keys(query))]
    more, fewer = (source_rows(query, columns).sql(dialect) for columns in ([*shown, *hidden], shown))
    count = "SELECT count(*) FROM (SELECT DISTINCT * FROM ({}) AS q) AS q"
    return count.format(more), count.format(fewer)


def _hidden_keys(query: exp.Select) -> list[exp.Ordered]:
    names = {column.alias_or_name.lower() for column in query.expressions}

    def is_shown(key: exp.Expr) -> bool:
        if isinstance(key, exp.Literal) or (isinstance(key, exp.Column) and key.name.lower() in names):
            return True
        return any(same_text(key, column.unalias()) for column in query.expressions)

    return [key for key in query.args["order"].expressions if not is_shown(key.this)]


def _orders_by_all(query: exp.Query) -> bool:
    """Whether it has DuckDB's ORDER BY ALL, by every column."""
    order = query.args.get("order")
    return order is not None and any(isinstance(key.this, exp.Var) and key.name == "ALL" for key in order.expressions)


def _distinct_on(query: exp.Query) -> exp.Expr | None:
    distinct = query.args.get("distinct")
    return distinct.args.get("on") if isinstance(distinct, exp.Distinct) else None


def _count(limit: exp.Expr) -> int | None:
    """The number of rows in LIMIT or FETCH, as `_number`."""
    options = limit.args.get("limit_options")
    if options and options.args.get("percent"):
        return None
    return _number(limit.args.get("expression") or limit.args.get("count"))


def _number(node: exp.Expr | None) -> int | None:
    """The number of rows in LIMIT or OFFSET, negative for all of them; None when it is no plain number."""
    if isinstance(node, exp.Neg | exp.Null) or (isinstance(node, exp.Var) and node.name.upper() == "ALL"):
        return -1
    return int(node.this) if isinstance(node, exp.Literal) and node.is_int else None
