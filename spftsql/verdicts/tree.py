"""Small questions about a query's sqlglot tree, and small pieces of a tree."""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

_AGGREGATES = {"TOTAL", "PERCENTILE", "JSONB_GROUP_ARRAY", "JSONB_GROUP_OBJECT"}  # those that sqlglot does not know
_LOOSE = (
    *(exp.GroupConcat, exp.ArrayAgg, exp.JSONArrayAgg, exp.JSONObjectAgg, exp.JSONBObjectAgg),
    *(exp.AnyValue, exp.First, exp.Last, exp.ArgMax, exp.ArgMin),
)
_LOOSE_NAMES = {"JSONB_AGG", "XMLAGG", "ARBITRARY", "JSONB_GROUP_ARRAY", "JSONB_GROUP_OBJECT"}
_WRAPPERS = (exp.Filter, exp.IgnoreNulls, exp.RespectNulls, exp.WithinGroup)


def clauses(query: exp.Select, *names: str) -> list[exp.Expr]:
    """The columns of the query, and of its other clauses (`having`, `order`, `qualify`) those named that it has."""
    return [*query.expressions, *filter(None, map(query.args.get, names))]


def own_nodes(node: exp.Expr) -> Iterator[exp.Expr]:
    """The nodes of a clause that belong to the query itself and not to a subquery."""
    return node.walk(prune=lambda inner: isinstance(inner, exp.Query))


def is_aggregate(node: exp.Expr) -> bool:
    """Whether the node is a call, perhaps with a FILTER, that makes one value of a group's rows (not of a window's)."""
    if isinstance(node, _WRAPPERS):
        return is_aggregate(node.this)
    if isinstance(node, exp.Anonymous):
        known = node.name.upper() in _AGGREGATES | _LOOSE_NAMES
    else:
        known = isinstance(node, exp.AggFunc) and not (isinstance(node, exp.Min | exp.Max) and node.expressions)
    if not known:
        return False
    around = node.parent
    while isinstance(around, _WRAPPERS):
        node, around = around, around.parent
    return not (isinstance(around, exp.Window) and around.this is node)


def is_loose(node: exp.Expr) -> bool:
    """Whether the node is a call whose value depends on the order of the rows that it aggregates."""
    return isinstance(node, _LOOSE) or (isinstance(node, exp.Anonymous) and node.name.upper() in _LOOSE_NAMES)


def is_sum(node: exp.Expr) -> bool:
    """Whether the node is a call that adds up numbers, which for floats is rounded at every step."""
    return isinstance(node, exp.Sum | exp.Avg) or (isinstance(node, exp.Anonymous) and node.name.upper() == "TOTAL")


def is_result_column(query: exp.Select, node: exp.Expr) -> bool:
    """Whether the node, perhaps under another name, is a column of the query's result."""
    column = node.parent if isinstance(node.parent, exp.Alias) else node
    return column.parent is query and column.arg_key == "expressions"


def unwrapped(node: exp.Expr) -> exp.Expr:
    """The call itself, without FILTER and the like around it."""
    while isinstance(node, _WRAPPERS):
        node = node.this
    return node


def same_text(one: exp.Expr, other: exp.Expr) -> bool:
    """Whether two expressions are written alike, apart from case and blanks."""
    return type(one) is type(other) and one.sql().lower() == other.sql().lower()


def order_of(node: exp.Expr) -> exp.Order:
    """The ORDER BY of a query or window, which gets an empty one where it has none."""
    order = node.args.get("order")
    if not isinstance(order, exp.Order):
        order = exp.Order(expressions=[])
        node.set("order", order)
    return order


def sort_key(node: exp.Expr, descending: bool) -> exp.Ordered:
    """A sort key with NULLs at opposite ends for the two directions, whatever an engine's own habit."""
    return exp.Ordered(this=node, desc=descending, nulls_first=not descending)


def binary(node: exp.Expr, dialect: str) -> exp.Expr:
    """The expression compared byte by byte: a column of SQLite may be declared to hold spellings equal."""
    return exp.Collate(this=node, expression=exp.Var(this="BINARY")) if dialect == "sqlite" else node


def source_rows(query: exp.Select, columns: list[exp.Expr]) -> exp.Select:
    """The rows that the query starts from, neither grouped nor cut, with these columns."""
    source = query.copy()
    for part in ("group", "having", "order", "limit", "offset", "distinct", "windows", "qualify"):
        source.set(part, None)
    source.set("expressions", [column.copy() for column in columns])
    return source
