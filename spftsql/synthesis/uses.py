"""What a template does with its slots: which column it sums, groups, orders, compares, and with which value.

Read once from the text of a template, so that the rules (`spftsql.synthesis.rules`) look up what they need at every
fill without parsing anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal

from sqlglot import exp

from spftsql.synthesis.canonical import conjuncts, parse
from spftsql.synthesis.scopes import selects

Comparison = Literal["=", "!=", "<", "<=", ">", ">=", "between", "in", "like", "null", "not null"]
Place = tuple[str, str]  # a column slot, and the qualifier of its table ("" where the column alone tells it)

_OPERATORS: dict[type[exp.Expr], Comparison] = {
    exp.EQ: "=",
    exp.NEQ: "!=",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
_MIRRORED: dict[Comparison, Comparison] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod)


@dataclass(frozen=True)
class Condition:
    """A column compared with values (slots, or numbers that the template itself holds); without any for NULL tests.

    `binding` says that the statement needs it to hold: it is joined by AND at the top of its WHERE clause.
    `counted` marks a comparison of COUNT, whose `column` is empty.
    """

    column: Place
    operator: Comparison
    values: tuple[str | int | float, ...]
    scope: int
    binding: bool
    counted: bool = False


@dataclass(frozen=True)
class Select:
    """One SELECT: its plain output columns, what it groups by, what it orders by; whether it is an aggregate alone."""

    outputs: tuple[Place, ...]
    groups: tuple[Place, ...]  # the plain columns among them
    partitions: tuple[tuple[Place, ...], ...]  # the same of each of its windows
    orders: tuple[Place, ...]
    limit: str | int | None
    others: bool  # it has outputs that are no plain columns


@dataclass(frozen=True)
class Uses:
    """The uses of every slot in a template."""

    summed: frozenset[str]  # inside SUM, TOTAL or AVG, or in arithmetic
    extremes: frozenset[str]  # MAX, MIN, or ordered by in a window, or ordered by and cut with LIMIT
    ranged: frozenset[str]  # compared by <, >, BETWEEN
    told_apart: frozenset[str]  # selected, grouped, ordered, counted, compared: needs several values
    conditions: tuple[Condition, ...]
    alternatives: tuple[tuple[Condition, ...], ...]  # those that OR joins
    selects: tuple[Select, ...]
    links: tuple[tuple[str, str], ...]  # column slots that are compared for equality, IN or by a set operation
    subtracted: tuple[tuple[str, str], ...]  # a column slot, and the one whose values NOT IN or EXCEPT takes away
    excluding: tuple[str, ...]  # the column slots of NOT IN (SELECT …) that may give NULL if the column has it
    words: frozenset[str]  # texts that it puts into its result, such as THEN 'high'
    trivial: bool  # it compares something with itself


@lru_cache(maxsize=50_000)
def uses_of(sql: str) -> Uses:
    """The uses in the text of a template. Raises `ValueError` when it does not parse."""
    tree = parse(sql)
    numbers = {id(select): number for number, select in enumerate(selects(tree))}
    summed = {
        slot
        for node in tree.find_all(exp.Sum, exp.Avg, exp.Anonymous, *_ARITHMETIC)
        if not isinstance(node, exp.Anonymous) or node.name.upper() == "TOTAL"
        for inner in node.find_all(exp.Column)
        if (slot := _slot(inner)) and inner.find_ancestor(exp.Count) is None and _reaches(inner, node)
    }
    extremes = {slot for node in tree.find_all(exp.Max, exp.Min) if (slot := _slot(_distinct(node.this)))}
    ranged, trivial = set[str](), False
    told = {slot for node in tree.find_all(exp.Count) if (slot := _slot(_distinct(node.this)))}
    for window in tree.find_all(exp.Window):
        order = window.args.get("order")
        orders = [place for item in (order.expressions if order is not None else ()) if (place := _slot(item.this))]
        extremes.update(orders)
        told.update(orders)
    for node in tree.find_all(*_OPERATORS, exp.Between):
        sides = [node.this, *(node.args.get(key) for key in ("expression", "low", "high"))]
        trivial = trivial or (isinstance(node, exp.Binary) and sides[0] == sides[1])
        slots = [slot for side in sides if side is not None and (slot := _slot(side))]
        if not isinstance(node, exp.EQ | exp.NEQ) and (len(slots) < 2 or slots[0] != slots[1]):
            ranged.update(slots)  # a.key < b.key only keeps pairs from coming twice
        told.update(slots)
    found = []
    for select in selects(tree):
        one = _select(select)
        found.append(one)
        told.update(slot for slot, _ in (*one.outputs, *one.groups, *chain(*one.partitions), *one.orders))
        if one.limit is not None:
            extremes.update(slot for slot, _ in one.orders)
    found_in = dict(_conditions(tree, numbers))
    return Uses(
        frozenset(summed),
        frozenset(extremes),
        frozenset(ranged),
        frozenset(told),
        tuple(found_in.values()),
        tuple(_alternatives(tree, found_in)),
        tuple(found),
        tuple(pair for pair, _ in _links(tree)),
        tuple(pair for pair, subtracts in _links(tree) if subtracts),
        tuple(_excluding(tree)),
        frozenset(_words(tree)),
        trivial,
    )


def _distinct(node: exp.Expr) -> exp.Expr:
    """What stands behind DISTINCT."""
    return node.expressions[0] if isinstance(node, exp.Distinct) else node


def _reaches(inner: exp.Expr, outer: exp.Expr) -> bool:
    """Whether nothing but arithmetic, rounding and a choice stands between a column and what takes it as a number."""
    below, node = inner, inner.parent
    while node is not None and node is not outer:
        if isinstance(node, exp.Select | exp.EQ | exp.NEQ | exp.In | exp.Like | exp.TimeToStr | exp.Length):
            return False
        if isinstance(node, exp.Case | exp.If) and below.arg_key == "this":
            return False  # what is chosen by, not what is chosen
        below, node = node, node.parent
    return True


def _select(select: exp.Select) -> Select:
    places = [_place(item.this if isinstance(item, exp.Alias) else item) for item in select.expressions]
    group = select.args.get("group")
    keys = [_place(key) for key in group.expressions] if group is not None else []
    order = select.args.get("order")
    orders = [_place(item.this) for item in order.expressions] if order is not None else []
    windows = [item for output in select.expressions for item in output.find_all(exp.Window)]
    partitions = [
        tuple(place for item in window.args.get("partition_by") or () if (place := _place(item))) for window in windows
    ]
    limit = select.args.get("limit")
    number: str | int | None = None
    if limit is not None:
        number = int(limit.expression.name) if limit.expression.name.isdigit() else str(limit.expression.name)
    return Select(
        tuple(place for place in places if place),
        tuple(key for key in keys if key),
        tuple(partition for partition in partitions if partition),
        tuple(place for place in orders if place),
        number,
        not all(places),
    )


def _conditions(tree: exp.Expr, numbers: dict[int, int]) -> Iterator[tuple[int, Condition]]:
    """The conditions, each by the `id` of its node."""
    binding = {
        id(part)
        for select in tree.find_all(exp.Select)
        if select.args.get("where") is not None
        for part in conjuncts(select.args["where"].this)
    }
    for node in tree.find_all(*_OPERATORS, exp.Between, exp.In, exp.Like, exp.Is):
        select = node.find_ancestor(exp.Select)
        if select is None or node.find_ancestor(exp.Where, exp.Having, exp.Select) is select:
            continue  # of what is selected, not of what is asked
        scope, needed = numbers[id(select)], id(node) in binding
        if isinstance(node.parent, exp.Not):
            needed = id(node.parent) in binding
        one = _condition(node, scope, needed)
        if one is not None:
            yield id(node), one


def _alternatives(tree: exp.Expr, conditions: Mapping[int, Condition]) -> Iterator[tuple[Condition, ...]]:
    for node in tree.find_all(exp.Or):
        if not isinstance(node.parent, exp.Or):
            parts = [part.unnest() for part in node.flatten()]
            yield tuple(conditions[id(part)] for part in parts if id(part) in conditions)


def _excluding(tree: exp.Expr) -> Iterator[str]:
    """A NULL among what NOT IN looks at makes it hold for nothing; a condition on the column itself keeps NULL out."""
    for node in tree.find_all(exp.In):
        query = node.args.get("query")
        inner = query.this if isinstance(query, exp.Subquery) else query
        if not isinstance(node.parent, exp.Not) or not isinstance(inner, exp.Select):
            continue
        where, slot = inner.args.get("where"), _slot(inner.expressions[0])
        parts = conjuncts(where.this if where is not None else None)
        kept = {_slot(part.this.this if isinstance(part, exp.Not) else part.this) for part in parts}
        if slot and slot not in kept:
            yield slot


def _words(tree: exp.Expr) -> Iterator[str]:
    """The texts that branches of CASE, or outputs, are."""
    for literal in tree.find_all(exp.Literal):
        branch = isinstance(literal.parent, exp.If | exp.Case) and literal.arg_key in ("true", "false", "default")
        output = isinstance(literal.parent, exp.Select) and literal.arg_key == "expressions"
        if literal.is_string and (branch or output):
            yield str(literal.name)


def _condition(node: exp.Expr, scope: int, needed: bool) -> Condition | None:
    column = _place(node.this)
    negated = isinstance(node.parent, exp.Not) or bool(node.args.get("negate"))
    if isinstance(node, exp.Is):
        inner = node.expression
        negated = negated or isinstance(inner, exp.Not)
        inner = inner.this if isinstance(inner, exp.Not) else inner
        if not column or not isinstance(inner, exp.Null):
            return None
        return Condition(column, "not null" if negated else "null", (), scope, needed)
    if negated:
        return None  # what NOT does to NULLs is left to execution
    if isinstance(node, exp.Between):
        values = [_value(node.args[key]) for key in ("low", "high")]
        operator: Comparison = "between"
    elif isinstance(node, exp.In):
        values, operator = [_value(item) for item in node.expressions], "in"
    elif isinstance(node, exp.Like):
        values, operator = [_value(node.expression)], "like"
    else:
        operator = _OPERATORS[type(node)]
        values = [_value(node.expression)]
        if values[0] is None and (first := _value(node.this)) is not None:
            column, values, operator = _place(node.expression), [first], _MIRRORED.get(operator, operator)
    known = tuple(value for value in values if value is not None)
    if not values or len(known) < len(values):
        return None
    if column:
        return Condition(column, operator, known, scope, needed)
    counted = isinstance(node.this, exp.Count)
    return Condition(("", ""), operator, known, scope, needed, counted=True) if counted else None


def _links(tree: exp.Expr) -> Iterator[tuple[tuple[str, str], bool]]:
    """Pairs of column slots, and whether the values of the second are taken away from those of the first."""
    for node in tree.find_all(exp.EQ, exp.In, exp.SetOperation):
        if isinstance(node, exp.SetOperation):
            sides = [_outputs(node.this), _outputs(node.expression)]
            pairs = list(zip(*sides, strict=False))
        else:
            other = node.args.get("query") if isinstance(node, exp.In) else node.expression
            inner = other.this if isinstance(other, exp.Subquery) else other
            pairs = [(node.this, _outputs(inner)[0] if isinstance(inner, exp.Query) else inner)]
        for one, another in pairs:
            left, right = (_slot(side) if side is not None else "" for side in (one, another))
            if left and right and left != right:
                yield (left, right), isinstance(node, exp.Except) or isinstance(node.parent, exp.Not)


def _outputs(query: exp.Expr) -> list[exp.Expr]:
    while isinstance(query, exp.SetOperation | exp.Subquery):
        query = query.this
    return list(query.expressions)


def _slot(node: object) -> str:
    place = _place(node)
    return place[0] if place else ""


def _place(node: object) -> Place | tuple[()]:
    """The column slot that an expression plainly is; () for anything else."""
    while isinstance(node, exp.Paren | exp.Alias):
        node = node.this
    if isinstance(node, exp.Column) and node.name.startswith("col_"):
        return str(node.name), str(node.table)
    return ()


def _value(node: exp.Expr) -> str | int | float | None:
    """The value slot, or the number, that an expression is."""
    if isinstance(node, exp.Column) and node.name.startswith("value_"):
        return str(node.name)
    if isinstance(node, exp.Literal):
        if node.is_string:
            return next((part for part in [node.name.strip("%*")] if part.startswith("value_")), None)
        return float(node.name) if not node.name.isdigit() else int(node.name)
    if isinstance(node, exp.Neg):
        inner = _value(node.this)
        return -inner if isinstance(inner, int | float) else None
    return None
