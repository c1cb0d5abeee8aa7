"""Mutants of a query: the same statement with one small thing wrong, as people and models get it wrong.

The operators are the usual ones of mutation testing for SQL (Tuya, Suárez-Cabal and de la Riva 2007, "Mutating
database queries": clauses, operators, NULLs, identifiers), without those that only concern NULL, and with those that
Text-to-SQL models add: a join or a grouping too many or too few, another column, another literal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlglot import exp

from spftsql.databases.schema import Schema
from spftsql.synthesis.canonical import parse
from spftsql.synthesis.scopes import Reference, resolve

Edit = Callable[[exp.Expr], exp.Expr | None]  # changes the node in place, or returns what replaces it

_SWAPS = 2  # other columns, or tables, tried in the place of one
_AGGREGATES: dict[type[exp.Expr], tuple[type[exp.Expr], ...]] = {
    exp.Max: (exp.Min, exp.Avg),
    exp.Min: (exp.Max, exp.Avg),
    exp.Avg: (exp.Sum, exp.Max),
    exp.Sum: (exp.Avg, exp.Count),
    exp.Count: (exp.Sum, exp.Max),
}
_COMPARISONS: dict[type[exp.Expr], tuple[type[exp.Expr], ...]] = {
    exp.EQ: (exp.NEQ,),
    exp.NEQ: (exp.EQ,),
    exp.LT: (exp.LTE, exp.GT, exp.EQ),
    exp.LTE: (exp.LT, exp.GTE, exp.EQ),
    exp.GT: (exp.GTE, exp.LT, exp.EQ),
    exp.GTE: (exp.GT, exp.LTE, exp.EQ),
}
_ARITHMETIC: dict[type[exp.Expr], type[exp.Expr]] = {
    exp.Add: exp.Sub,
    exp.Sub: exp.Add,
    exp.Mul: exp.Div,
    exp.Div: exp.Mul,
}
_PREDICATES = (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.Like, exp.In, exp.Between, exp.Is, exp.Not)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A statement with one thing changed; `kind` names the change."""

    kind: str
    sql: str


def mutants(sql: str, schema: Schema | None = None) -> list[Mutant]:
    """The mutants of `sql`, each text once, none of them `sql` itself, always in the same order.

    With the `schema` of its database, double-quoted strings are told from names by it, and columns are also swapped
    for others of their kind; `sql` is in the schema's dialect, and in SQLite's without one. Whether a mutant means
    something else than `sql` is not known: some are equivalent. A statement that sqlglot does not parse has no mutants.
    """
    dialect = schema.dialect if schema is not None else "sqlite"
    try:
        tree = parse(sql, dialect)
    except ValueError:
        return []
    swaps = _read_names(tree, schema)
    found: dict[str, str] = {}
    nodes = list(tree.walk(bfs=False))
    for index, node in enumerate(nodes):
        for kind, edit in [*_edits(node), *swaps.get(id(node), ())]:
            copy = tree.copy()
            target = next(n for i, n in enumerate(copy.walk(bfs=False)) if i == index)
            replacement = edit(target)
            if replacement is not None and target is not copy:
                target.replace(replacement)
            elif replacement is not None:
                copy = replacement
            found.setdefault(copy.sql(dialect), kind)
    for same in (sql, tree.sql(dialect)):
        found.pop(same, None)
    return [Mutant(kind, text) for text, kind in found.items()]


def _read_names(tree: exp.Query, schema: Schema | None) -> dict[int, list[tuple[str, Edit]]]:
    """Turns double-quoted strings of `tree` into literals; returns the column swaps by the id of the node."""
    if schema is not None:
        trial = tree.copy()
        try:
            resolve(trial, schema)
        except ValueError:
            pass
        else:
            references = resolve(tree, schema).references
            swaps = {id(r.node): list(_column_swaps(r)) for r in references}
            swaps |= {id(literal): edits for r in references for literal, edits in _other_values(r)}
            return swaps | _table_swaps(tree, schema)
    for column in list(tree.find_all(exp.Column)):
        quoted = column.this.args.get("quoted") and not column.table
        if quoted and isinstance(column.parent, _PREDICATES) and column.parent.this is not column:
            column.replace(exp.Literal.string(column.name))
    return {}


def _column_swaps(reference: Reference) -> Iterator[tuple[str, Edit]]:
    """Other columns of the same table and kind, nearest first; not in joins, where they mostly give nothing."""
    source, node = reference.source, reference.node
    if source is None or source.table is None or not isinstance(reference.column, str):
        return
    columns = source.table.columns
    own = source.table.column(reference.column)
    if own is None or (isinstance(node.parent, exp.EQ) and node.find_ancestor(exp.Join)):
        return
    place = columns.index(own)
    # COUNT is the same for all columns that hold no NULL.
    never = isinstance(node.parent, exp.Count) and own.nulls == 0
    others = [
        index
        for index, column in enumerate(columns)
        if column.kind == own.kind and index != place and not (never and column.nulls == 0)
    ]
    for index in sorted(others, key=lambda index: abs(index - place))[:_SWAPS]:
        yield "column", _renamed(columns[index].name)


def _other_values(reference: Reference) -> Iterator[tuple[exp.Literal, list[tuple[str, Edit]]]]:
    """For the strings that a column is compared with: another value of that column."""
    table = reference.source.table if reference.source is not None else None
    column = table.column(reference.column) if table is not None and isinstance(reference.column, str) else None
    parent = reference.node.parent
    if column is None or not isinstance(parent, exp.EQ | exp.NEQ | exp.In):
        return
    for literal in parent.find_all(exp.Literal):
        if literal.is_string and literal.parent is parent:
            others = [text for text in column.samples if isinstance(text, str) and text != literal.name]
            yield literal, [("literal", _replacing(exp.Literal.string(text))) for text in others[:1]]


def _table_swaps(tree: exp.Query, schema: Schema) -> dict[int, list[tuple[str, Edit]]]:
    """Other tables, where a statement names no column that would tell which one is meant (`SELECT COUNT(*) FROM t`)."""
    nodes = list(tree.find_all(exp.Table))
    table = schema.table(nodes[0].name) if len(nodes) == 1 and tree.find(exp.Column) is None else None
    if table is None:
        return {}
    place = schema.tables.index(table)
    others = sorted((i for i in range(len(schema.tables)) if i != place), key=lambda i: abs(i - place))
    return {id(nodes[0].this): [("table", _replacing(_identifier(schema.tables[i].name))) for i in others[:_SWAPS]]}


def _identifier(name: str) -> exp.Identifier:
    return exp.to_identifier(name, quoted=not name.isidentifier() or None)


def _renamed(name: str) -> Edit:
    def edit(node: exp.Expr) -> None:
        node.set("this", _identifier(name))

    return edit


def _edits(node: exp.Expr) -> Iterator[tuple[str, Edit]]:
    if isinstance(node, exp.AggFunc):
        yield from _aggregate_edits(node)
    if type(node) in _COMPARISONS and not _joins(node):
        for other in _COMPARISONS[type(node)]:
            yield "comparison", _retyped(other)
    if type(node) in _ARITHMETIC:
        yield "arithmetic", _retyped(_ARITHMETIC[type(node)])
    if isinstance(node, exp.And | exp.Or):
        yield "connective", _retyped(exp.Or if isinstance(node, exp.And) else exp.And)
        yield "predicate dropped", lambda n: n.this.copy()
        yield "predicate dropped", lambda n: n.expression.copy()
    if isinstance(node, exp.Not):
        yield "negation", lambda n: n.this.copy()
    if isinstance(node, exp.In | exp.Like | exp.Between) and not isinstance(node.parent, exp.Not):
        yield "negation", lambda n: exp.Not(this=n.copy())
    if isinstance(node, exp.Literal):
        yield from _literal_edits(node)
    if isinstance(node, exp.Ordered):
        yield "order direction", _reversed
    if isinstance(node, exp.Limit) and isinstance(node.expression, exp.Literal) and node.expression.is_int:
        count = int(node.expression.this)
        for other_count in (count + 1, count - 1):
            if other_count > 0:
                yield "limit", _with("expression", exp.Literal.number(other_count))
    if isinstance(node, exp.Join):
        yield from _join_edits(node)
    if isinstance(node, exp.SetOperation):
        yield from _set_operation_edits(node)
    if isinstance(node, exp.Select):
        yield from _select_edits(node)
    if isinstance(node, exp.Query):
        yield from _query_edits(node)


def _aggregate_edits(node: exp.AggFunc) -> Iterator[tuple[str, Edit]]:
    inner = node.this
    if isinstance(inner, exp.Distinct):
        if len(inner.expressions) == 1:
            yield "distinct", _with("this", inner.expressions[0])
        return
    if isinstance(inner, exp.Star) or inner is None:
        return
    for other in _AGGREGATES.get(type(node), ()):
        yield "aggregate", _aggregated(other)
    if isinstance(node, exp.Count | exp.Sum | exp.Avg):
        yield "distinct", _with("this", exp.Distinct(expressions=[inner.copy()]))


def _aggregated(kind: type[exp.Expr]) -> Edit:
    return lambda node: kind(this=node.this.copy())


def _literal_edits(node: exp.Literal) -> Iterator[tuple[str, Edit]]:
    parent = node.parent
    if isinstance(parent, exp.Limit | exp.Offset) or node.find_ancestor(exp.Ordered, exp.Group):
        return
    if isinstance(parent, exp.Select) and isinstance(parent.parent, exp.Exists):
        return
    if isinstance(parent, exp.If | exp.Case) and parent.find_ancestor(exp.Count) and node is not parent.this:
        return  # what is counted is whether there is a value
    if node.is_string:
        texts = _other_texts(node.name, isinstance(parent, exp.Like))
        for text in dict.fromkeys(texts):
            if text != node.name:
                yield "literal", _replacing(exp.Literal.string(text))
        return
    if node.is_int:
        value = int(node.this)
        for other in (value + 1, value - 1, value * 10):
            # A negative number is a negation in sqlglot's tree; none of the questions asks for one.
            if other >= 0 and other != value:
                yield "literal", _replacing(exp.Literal.number(other))
    else:
        yield "literal", _replacing(exp.Literal.number(float(node.this) + 1))


def _other_texts(text: str, pattern: bool) -> Iterator[str]:
    if pattern:
        core = text.strip("%")
        yield from (f"{core}%", f"%{core}", f"%{core}%", core)
        return
    if text.lstrip("-").isdecimal():
        yield str(int(text) + 1)
        yield str(int(text) - 1)
        return
    yield text.swapcase()


def _join_edits(node: exp.Join) -> Iterator[tuple[str, Edit]]:
    if not node.args.get("on") and not node.args.get("using"):
        return
    if node.side == "LEFT":
        yield "join type", _joined("")
    elif not node.side:
        yield "join type", _joined("LEFT")
    select = node.parent
    label = node.this.alias_or_name.lower()
    if isinstance(select, exp.Select) and label and not _used(select, label, node):
        yield "join dropped", _dropped


def _used(select: exp.Select, label: str, join: exp.Join) -> bool:
    """Whether the label stands anywhere but in its own join condition; unqualified names may mean anything."""
    own = {id(column) for column in join.find_all(exp.Column)}
    columns = [column for column in select.find_all(exp.Column) if id(column) not in own]
    return any(not column.table or column.table.lower() == label for column in columns)


def _joined(side: str) -> Edit:
    def edit(node: exp.Expr) -> None:
        node.set("kind", None)
        node.set("side", side or None)

    return edit


def _dropped(node: exp.Expr) -> None:
    node.pop()


def _set_operation_edits(node: exp.SetOperation) -> Iterator[tuple[str, Edit]]:
    for other in (exp.Union, exp.Intersect, exp.Except):
        if not isinstance(node, other):
            yield "set operation", _retyped(other)
    if isinstance(node, exp.Union):
        yield "distinct", _with("distinct", not node.args.get("distinct"))
    for side in ("this", "expression"):
        yield "set operation", _only(side)


def _only(side: str) -> Edit:
    def edit(node: exp.Expr) -> exp.Expr:
        kept: exp.Expr = node.args[side].copy()
        for key in ("order", "limit", "offset", "with_"):
            if node.args.get(key) and not kept.args.get(key):
                kept.set(key, node.args[key].copy())
        return kept

    return edit


def _select_edits(node: exp.Select) -> Iterator[tuple[str, Edit]]:
    where, having, group = (node.args.get(key) for key in ("where", "having", "group"))
    if where is not None:
        yield "predicate dropped", _without("where")
    if having is not None:
        yield "predicate dropped", _without("having")
    if not _repeats_do_not_count(node):
        yield "distinct", _with("distinct", None if node.args.get("distinct") else exp.Distinct())
    if group is not None and not having:
        yield "grouping", _without("group")
    if group is not None and len(group.expressions) > 1:
        for index in range(len(group.expressions)):
            yield "grouping", _fewer_groups(index)


def _repeats_do_not_count(node: exp.Select) -> bool:
    """Whether DISTINCT plainly changes nothing: in IN, in a set operation, with one row or one row per group."""
    outer = node.parent.parent if isinstance(node.parent, exp.Subquery) else node.parent
    if isinstance(outer, exp.In | exp.Exists) and not node.args.get("limit"):
        return True
    if isinstance(outer, exp.SetOperation) and outer.args.get("distinct") is not False:
        return True
    group, items = node.args.get("group"), [item.unalias() for item in node.expressions]
    if group is None:
        return all(isinstance(item, exp.AggFunc) for item in items)
    return all(key in items for key in group.expressions)


def _query_edits(node: exp.Query) -> Iterator[tuple[str, Edit]]:
    order, limit = node.args.get("order"), node.args.get("limit")
    if order is not None:
        yield "order dropped", _without("order")
        if len(order.expressions) > 1:
            yield "order dropped", _first_key
    if limit is not None:
        yield "limit", _without("limit")


def _fewer_groups(index: int) -> Edit:
    def edit(node: exp.Expr) -> None:
        node.args["group"].expressions[index].pop()

    return edit


def _first_key(node: exp.Expr) -> None:
    for key in node.args["order"].expressions[1:]:
        key.pop()


def _reversed(node: exp.Expr) -> None:
    descending = not node.args.get("desc")
    node.set("desc", descending)
    node.set("nulls_first", not descending)  # as SQLite has it where nothing is said


def _joins(node: exp.Expr) -> bool:
    """Whether a comparison is a join condition: between columns of two tables."""
    sides = node.this, node.expression
    return all(isinstance(side, exp.Column) for side in sides) and node.this.table != node.expression.table


def _retyped(kind: type[exp.Expr]) -> Edit:
    # What SQLite means by `/`: whole numbers stay whole, and nothing is an error.
    extra = {"typed": True, "safe": True} if kind is exp.Div else {}

    def edit(node: exp.Expr) -> exp.Expr:
        kept = (
            node.args if issubclass(kind, exp.SetOperation) else {key: node.args[key] for key in ("this", "expression")}
        )
        return kind(**{key: _copied(value) for key, value in kept.items() if value is not None}, **extra)

    return edit


def _copied(value: object) -> object:
    if isinstance(value, exp.Expr):
        return value.copy()
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value


def _replacing(other: exp.Expr) -> Edit:
    return lambda node: other.copy()


def _with(key: str, value: object) -> Edit:
    def edit(node: exp.Expr) -> None:
        node.set(key, _copied(value))

    return edit


def _without(key: str) -> Edit:
    def edit(node: exp.Expr) -> None:
        node.set(key, None)

    return edit
