"""A query as Spider's exact match sees it: its clauses, with names resolved and values left out.

Written after what the evaluator of Spider does (Yu et al. 2018, "Evaluation Metrics"; taoyds/spider), on sqlglot's
trees instead of a grammar of its own. So it also reads what that grammar does not know: `INNER JOIN`, `<>`, names for
selected columns, quoted names, outer joins, CTEs, windows. What a query has beyond Spider's clauses has to be equal.

Columns are named `table.column`, through the aliases of the query; a column that a foreign key makes equal to
another goes by one name with it. Literals, DISTINCT (except in nested queries, where Spider's evaluator counts it) and
what stands on the right of a comparison (sub-queries apart) are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sqlglot import Dialect, Token, TokenType, exp
from sqlglot.errors import SqlglotError

from spftsql.evaluation.hardness import negated

Value = str | tuple[object, ...]

_OPERATORS: dict[type[exp.Expr], str] = {
    exp.EQ: "=",
    exp.NEQ: "!=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.Like: "like",
    exp.Glob: "glob",
    exp.In: "in",
    exp.Between: "between",
    exp.Is: "is",
    exp.Exists: "exists",
}
_PLACES = {  # of clauses; 0 begins a query
    TokenType.SELECT: 0,
    TokenType.FROM: 1,
    TokenType.WHERE: 2,
    TokenType.GROUP_BY: 3,
    TokenType.HAVING: 4,
    TokenType.ORDER_BY: 5,
    TokenType.LIMIT: 6,
}
_QUERY = exp.Select | exp.SetOperation
_LEFT_OUT = exp.Literal | exp.Null | exp.Boolean
# A compiled parser ends the process where a deep statement exhausts its stack.
_MOST_TOKENS = 20_000
_DEEPEST = 100
_WRAPPERS = exp.Paren | exp.Alias | exp.Ordered


@dataclass(frozen=True)
class Names:
    """The tables of a database and their columns, and for each column of a foreign key the name it goes by."""

    columns: Mapping[str, frozenset[str]]
    same: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """One comparison: `queries` are the sub-queries on its right."""

    negated: bool
    operator: str
    value: Value
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Conditions:
    """Comparisons and the words between them, in the order of the text, whatever the parentheses."""

    atoms: tuple[Condition, ...] = ()
    connectors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Query:
    """The components of one SELECT; `rest` is the set operation that follows it, with the query on its right.

    `select` holds (aggregate or "", value); `direction` is that of the last ordered column that has one; `distinct` is
    set in nested queries only.
    """

    select: tuple[tuple[str, Value], ...] = ()
    tables: tuple[Value | Query, ...] = ()
    on: Conditions = Conditions()
    where: Conditions = Conditions()
    group: tuple[Value, ...] = ()
    having: Conditions = Conditions()
    order: tuple[Value, ...] = ()
    direction: str = ""
    limit: bool = False
    rest: tuple[str, Query] | None = None
    distinct: bool = False


def components(sql: str, names: Names, dialect: str = "sqlite") -> Query | None:
    """The components of a statement; None for text that is not a query, or too deep or long to be read safely."""
    language = Dialect.get_or_raise(dialect)
    try:
        tokens = _in_place(language.tokenize(sql))
        if len(tokens) > _MOST_TOKENS or _depth(tokens) > _DEEPEST:
            return None
        trees = language.parser().parse(tokens, sql)
        if len(trees) != 1 or not isinstance(trees[0], _QUERY | exp.Subquery):
            return None
        return _query(trees[0], names, {}, nested=False)
    except (SqlglotError, RecursionError):
        return None


def _depth(tokens: list[Token]) -> int:
    """How deep the parentheses go."""
    steps = ((t.token_type == TokenType.L_PAREN) - (t.token_type == TokenType.R_PAREN) for t in tokens)
    return max(itertools.accumulate(steps), default=0)


def _in_place(tokens: list[Token]) -> list[Token]:
    """The tokens up to a clause after its place (`GROUP BY … WHERE …`): there Spider's evaluator stops reading."""
    depth, latest = 0, -1
    for index, token in enumerate(tokens):
        kind = token.token_type
        depth += (kind == TokenType.L_PAREN) - (kind == TokenType.R_PAREN)
        if depth == 0 and kind in _PLACES:
            if _PLACES[kind] and _PLACES[kind] <= latest:
                return tokens[:index]
            latest = _PLACES[kind]
    return tokens


def _query(tree: exp.Expr, names: Names, outer: Mapping[str, str], nested: bool) -> Query:
    """A query as a chain: in text, `a UNION b EXCEPT c ORDER BY d` reads as a, then b, then c with the ORDER BY."""
    selects, operations = _chain(tree)
    tables = _tables(selects[0])
    # As in Spider's evaluator, foreign keys count for columns of the first query's tables, and not in nested queries.
    same = {} if nested else {c: name for c, name in names.same.items() if c.partition(".")[0] in tables}
    built: Query | None = None
    for position in range(len(selects) - 1, -1, -1):
        scope = _Scope(selects[position], Names(names.columns, same), outer, nested)
        ending = tree if position == len(selects) - 1 else selects[position]
        built = scope.query(ending, (operations[position], built) if built is not None else None)
    assert built is not None
    return built


def _chain(tree: exp.Expr) -> tuple[list[exp.Select], list[str]]:
    while isinstance(tree, exp.Subquery | exp.Paren):
        tree = tree.this
    if isinstance(tree, exp.SetOperation):
        left, operations = _chain(tree.left)
        right, more = _chain(tree.right)
        word = type(tree).__name__.lower() + ("" if tree.args.get("distinct") is not False else " all")
        return [*left, *right], [*operations, word, *more]
    return ([tree], []) if isinstance(tree, exp.Select) else ([exp.Select()], [])


def _sources(select: exp.Select) -> list[exp.Expr]:
    start, joins = select.args.get("from_"), select.args.get("joins") or []
    return [*([start.this] if start else []), *(join.this for join in joins)]


def _tables(select: exp.Select) -> list[str]:
    return [source.name.lower() for source in _sources(select) if isinstance(source, exp.Table)]


class _Scope:
    """The names that one SELECT can use."""

    def __init__(self, select: exp.Select, names: Names, outer: Mapping[str, str], nested: bool) -> None:
        self._select, self._names, self._is_nested = select, names, nested
        self._sources, self._tables = _sources(select), _tables(select)
        self._joins: list[exp.Join] = select.args.get("joins") or []
        own = {table: table for table in self._tables}
        for source in self._sources:
            if isinstance(source, exp.Table) and source.alias:
                own[source.alias.lower()] = source.name.lower()
        self._aliases = {**outer, **own}

    def query(self, ending: exp.Expr, rest: tuple[str, Query] | None) -> Query:
        """The components; ORDER BY and LIMIT are those of `ending`, which for the last of a chain is the chain."""
        args = self._select.args
        order, group = ending.args.get("order"), args.get("group")
        words = ["desc" if term.args.get("desc") else "asc" for term in (order.expressions if order else [])]
        explicit = [w for w, t in zip(words, order.expressions if order else [], strict=True) if "desc" in t.args]
        return Query(
            select=tuple(self._selected(column) for column in self._select.expressions),
            tables=tuple(self._sourced()),
            on=self._joined(),
            where=self._conditions(args.get("where")),
            group=tuple(self._value(column) for column in (group.expressions if group else [])),
            having=self._conditions(args.get("having")),
            order=tuple(self._value(term) for term in (order.expressions if order else [])),
            direction=(explicit or words)[-1] if words else "",
            limit=ending.args.get("limit") is not None,
            rest=rest,
            distinct=self._is_nested and args.get("distinct") is not None,
        )

    def _selected(self, column: exp.Expr) -> tuple[str, Value]:
        column = column.unalias()
        while isinstance(column, exp.Paren):
            column = column.this
        if isinstance(column, exp.AggFunc):
            return type(column).__name__.lower(), self._value(column.this) if column.this is not None else "*"
        return "", self._value(column)

    def _sourced(self) -> Iterator[Value | Query]:
        with_ = self._select.args.get("with_")
        for cte in with_.expressions if with_ else []:
            yield ("with", self._value(cte.this))
        kinds = [""] * (len(self._sources) - len(self._joins)) + [join.side for join in self._joins]
        for source, kind in zip(self._sources, kinds, strict=True):
            name: Value | Query = source.name.lower() if isinstance(source, exp.Table) else self._nested(source)
            yield (kind.lower(), name) if kind else name

    def _joined(self) -> Conditions:
        conditions = [self._flat(join.args["on"]) for join in self._joins if join.args.get("on") is not None]
        atoms = [atom for atoms, _ in conditions for atom in atoms]
        words = [word for index, (_, own) in enumerate(conditions) for word in (["and"] if index else []) + own]
        return Conditions(tuple(atoms), tuple(words))

    def _conditions(self, clause: exp.Expr | None) -> Conditions:
        if clause is None:
            return Conditions()
        atoms, words = self._flat(clause.this)
        return Conditions(tuple(atoms), tuple(words))

    def _flat(self, node: exp.Expr) -> tuple[list[Condition], list[str]]:
        if isinstance(node, exp.Paren):
            return self._flat(node.this)
        if isinstance(node, exp.And | exp.Or):
            left, right = self._flat(node.left), self._flat(node.right)
            return left[0] + right[0], [*left[1], type(node).__name__.lower(), *right[1]]
        return [self._condition(node)], []

    def _condition(self, node: exp.Expr) -> Condition:
        is_negated = negated(node)
        node = node.this if isinstance(node, exp.Not) else node
        while isinstance(node, exp.Paren):
            node = node.this
        operator = _OPERATORS.get(type(node), "")
        if operator == "exists":
            return Condition(is_negated, operator, "", (self._nested(node.this),))
        if not operator:
            return Condition(is_negated, "", self._value(node), ())
        right = [value for key, value in node.args.items() if key != "this"]
        return Condition(is_negated, operator, self._value(node.this), tuple(self._nested(q) for q in _queries(right)))

    def _nested(self, node: exp.Expr) -> Query:
        return _query(node, self._names, self._aliases, nested=True)

    def _value(self, node: object) -> Value:
        """An expression with its columns named and its literals left out."""
        if isinstance(node, list):
            return tuple(self._value(item) for item in node)
        if not isinstance(node, exp.Expr):
            return "" if node is None else str(node)
        if isinstance(node, exp.Column):
            return self._column(node)
        if isinstance(node, exp.Distinct) and not self._is_nested:
            return self._value(node.expressions[0]) if len(node.expressions) == 1 else self._value(node.expressions)
        if isinstance(node, _WRAPPERS):
            return self._value(node.this)
        if isinstance(node, _QUERY | exp.Subquery):
            return ("query", self._nested(node))
        if isinstance(node, exp.Star):
            return "*"
        if isinstance(node, _LEFT_OUT):
            return "value"
        parts = [self._value(value) for key, value in node.args.items() if value is not None and key != "big_int"]
        return (type(node).__name__.lower(), *parts)

    def _column(self, column: exp.Column) -> Value:
        name = column.name.lower()
        if isinstance(column.this, exp.Star):
            return "*"
        table = self._aliases.get(column.table.lower(), column.table.lower()) if column.table else self._owner(name)
        if table is None:
            # SQLite takes a double-quoted name that is no column for a string.
            return "value" if column.this.args.get("quoted") else name
        full = f"{table}.{name}"
        return self._names.same.get(full, full)

    def _owner(self, column: str) -> str | None:
        for table in [*self._tables, *self._aliases.values()]:
            if column in self._names.columns.get(table, ()):
                return table
        return None


def _queries(nodes: Iterable[object]) -> Iterator[exp.Expr]:
    """The outermost queries below the nodes."""
    for node in nodes:
        if isinstance(node, list):
            yield from _queries(node)
        elif isinstance(node, _QUERY):
            yield node
        elif isinstance(node, exp.Expr):
            yield from _queries(node.args.values())
