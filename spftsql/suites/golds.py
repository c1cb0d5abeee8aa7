"""What gold statements say about the values of a database: what its columns are compared with, and with each other.

An instance that knows this can hold the rows on which a query and its neighbours differ: at the literals, just beside
them, and across columns that are joined, intersected or subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from spftsql.databases.schema import Schema
from spftsql.synthesis.canonical import parse
from spftsql.synthesis.scopes import Output, Reference, Resolved, Scope, resolve

Value = str | int | float
Name = tuple[str, str]  # table and column, as the schema spells them

_SIGNS: dict[type[exp.Expr], str] = {
    exp.EQ: "=",
    exp.NEQ: "!=",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.Like: "like",
    exp.Glob: "like",
    exp.In: "in",
    exp.Between: "between",
}
# A condition on one of these is met by values for which the column itself meets it.
_WRAPPERS = (exp.Paren, exp.Cast, exp.Lower, exp.Upper, exp.Min, exp.Max, exp.Sum, exp.Avg)
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True, slots=True)
class Condition:
    """A column compared with literals; `sign` is `=`, `!=`, `<`, `<=`, `>`, `>=`, `like`, `in` or `between`.

    `source` tells the items of the FROM clauses of one statement apart, which may be the same table.
    """

    table: str
    column: str
    sign: str
    values: tuple[Value, ...]
    source: int = 0


@dataclass(frozen=True, slots=True)
class GoldFacts:
    """What one statement says, in the order of its text.

    `conditions` on columns, also on their MIN, MAX, SUM and AVG; `pairs` of columns whose values it equates; `repeated`
    columns, which it takes to hold a value more than once (it groups the rows of one table by them, or intersects
    them with themselves).
    """

    conditions: tuple[Condition, ...] = ()
    pairs: tuple[tuple[Name, Name], ...] = ()
    repeated: tuple[Name, ...] = ()


def read_golds(golds: Sequence[str], schema: Schema) -> list[GoldFacts]:
    """The facts of each statement; empty ones for a statement that sqlglot or the schema does not resolve."""
    found = []
    for sql in golds:
        try:
            resolved = resolve(parse(sql), schema)
        except ValueError:
            found.append(GoldFacts())
            continue
        nodes = {id(reference.node): reference for reference in resolved.references}
        sources = [source for scope in resolved.scopes for source in scope.sources]
        places = {id(source): place for place, source in enumerate(sources)}
        conditions = dict.fromkeys(c for r in resolved.references if (c := _condition(r, places)) is not None)
        pairs = dict.fromkeys(_pairs(resolved, nodes))
        repeated = dict.fromkeys([*_grouped(resolved, nodes), *_intersected(resolved, nodes)])
        found.append(GoldFacts(tuple(conditions), tuple(pairs), tuple(repeated)))
    return found


def _name(reference: Reference | None) -> Name | None:
    """The column of a table that a reference means; None for columns of derived tables."""
    if reference is None or reference.source is None:
        return None
    if reference.source.table is not None and isinstance(reference.column, str):
        column = reference.source.table.column(reference.column)
        return (reference.source.table.name, column.name) if column is not None else None
    return None


def _condition(reference: Reference, places: Mapping[int, int]) -> Condition | None:
    name = _name(reference)
    node, parent = reference.node, reference.node.parent
    while isinstance(parent, _WRAPPERS):
        node, parent = parent, parent.parent  # type: ignore[assignment]
    sign = _SIGNS.get(type(parent)) if parent is not None else None
    if name is None or parent is None or sign is None:
        return None
    if sign == "in":
        operands = parent.expressions
    elif sign == "between":
        operands = [parent.args["low"], parent.args["high"]]
    elif parent.this is node:
        operands = [parent.expression]
    else:
        operands, sign = [parent.this], _MIRRORED.get(sign, sign)
    values = [_literal(operand) for operand in operands]
    known = tuple(value for value in values if value is not None)
    if not known or len(known) < len(values):
        return None
    return Condition(*name, sign, known, places[id(reference.source)])


def _literal(node: exp.Expr) -> Value | None:
    while isinstance(node, exp.Paren | exp.Cast | exp.Lower | exp.Upper):
        node = node.this
    negative = isinstance(node, exp.Neg)
    if isinstance(node, exp.Neg):
        node = node.this
    if not isinstance(node, exp.Literal):
        return None
    if node.is_string:
        return str(node.this)
    try:
        number = int(node.this) if node.is_int else float(node.this)
    except ValueError:
        return None
    return -number if negative else number


def _pairs(resolved: Resolved, nodes: dict[int, Reference]) -> Iterator[tuple[Name, Name]]:
    for node in resolved.tree.find_all(exp.EQ, exp.In, exp.SetOperation):
        if isinstance(node, exp.EQ):
            sides = [(_name(nodes.get(id(node.this))), _name(nodes.get(id(node.expression))))]
        elif isinstance(node, exp.In):
            query = node.args.get("query")
            outputs = _outputs(query.this, resolved, nodes) if query is not None else []
            sides = [(_name(nodes.get(id(node.this))), outputs[0])] if outputs else []
        else:
            left, right = (_outputs(side, resolved, nodes) for side in (node.this, node.expression))
            sides = list(zip(left, right, strict=False))
        for one, other in sides:
            if one is not None and other is not None and one != other:
                yield one, other


def _grouped(resolved: Resolved, nodes: dict[int, Reference]) -> Iterator[Name]:
    """Columns by which one table alone is grouped."""
    for scope in resolved.scopes:
        group = scope.select.args.get("group")
        if group is not None and len(scope.sources) == 1 and len(group.expressions) == 1:
            name = _name(nodes.get(id(group.expressions[0])))
            if name is not None:
                yield name


def _intersected(resolved: Resolved, nodes: dict[int, Reference]) -> Iterator[Name]:
    """A column of which one table alone is asked for the values that two of its rows may share."""
    for node in resolved.tree.find_all(exp.Intersect):
        sides = [_outputs(side, resolved, nodes) for side in (node.this, node.expression)]
        plain = all(
            isinstance(side, exp.Select) and not side.args.get("joins") for side in (node.this, node.expression)
        )
        if plain and len(sides[0]) == 1 and sides[0] == sides[1] and sides[0][0] is not None:
            yield sides[0][0]


def _outputs(query: exp.Expr, resolved: Resolved, nodes: dict[int, Reference]) -> list[Name | None]:
    """The plain columns that a query gives, None for the others."""
    while isinstance(query, exp.SetOperation | exp.Subquery):
        query = query.this
    scope: Scope | None = next((scope for scope in resolved.scopes if scope.select is query), None)
    outputs: list[Output] = scope.outputs if scope is not None else []
    return [_name(nodes.get(id(output.column))) for output in outputs]
