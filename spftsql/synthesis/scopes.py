"""Which table does a column of a query belong to: name resolution over a sqlglot tree, by SQLite's rules.

`resolve` annotates a parsed query with its scopes (one per SELECT), the sources of their FROM clauses, and the source
of every column. Double-quoted names that resolve to nothing become string literals, as SQLite reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sqlglot import exp

from spftsql.databases.schema import Schema, Table

_ROW_IDS = {"rowid", "oid", "_rowid_"}
_CLAUSES = ("expressions", "from_", "joins", "where", "group", "having", "windows", "order", "limit", "offset")
_SELECT = ("with_", *_CLAUSES)
_SET_OPERATION = ("with_", "this", "expression", "order", "limit", "offset")


@dataclass(eq=False)
class Output:
    """A column of a query's result: its alias, and the column that it is a plain copy of (if it is one)."""

    alias: exp.Alias | None
    column: exp.Column | None

    @property
    def name(self) -> str:
        """The name by which the outside refers to it, empty where it has none."""
        if self.alias is not None:
            return str(self.alias.alias)
        return str(self.column.name) if self.column is not None else ""


@dataclass(eq=False)
class Source:
    """One item of a FROM clause: a table of the schema (`table`), or a derived table or CTE (`outputs`)."""

    node: exp.Table | exp.Subquery
    label: str  # the name that the query uses for it, lower case
    table: Table | None
    outputs: list[Output]
    scope: Scope

    def column(self, name: str) -> str | Output | None:
        """The column of that name: as the schema spells it, or the output of a derived table."""
        if self.table is None:
            return next((o for o in self.outputs if o.name.lower() == name.lower()), None)
        found = self.table.column(name)
        if found is not None:
            return found.name
        return name.lower() if name.lower() in _ROW_IDS else None


@dataclass(eq=False)
class Scope:
    """A SELECT with its sources. `index` is its place in the statement (see `selects`)."""

    select: exp.Select
    parent: Scope | None
    sources: list[Source] = field(default_factory=list)
    index: int = 0

    @property
    def outputs(self) -> list[Output]:
        """The columns of the result, in order."""
        found = []
        for item in self.select.expressions:
            inner = item.this if isinstance(item, exp.Alias) else item
            column = inner if isinstance(inner, exp.Column) and not isinstance(inner.this, exp.Star) else None
            found.append(Output(item if isinstance(item, exp.Alias) else None, column))
        return found

    def path_to(self, outer: Scope) -> list[Scope]:
        """The scopes from this one up to, and without, `outer`."""
        path, scope = [], self
        while scope is not outer:
            path.append(scope)
            if scope.parent is None:
                break
            scope = scope.parent
        return path


@dataclass(eq=False)
class Reference:
    """A column in the text: the scope it stands in, and its source and column, or the output alias it names."""

    node: exp.Column
    scope: Scope
    source: Source | None
    column: str | Output
    bare: bool = False  # ORDER BY of a set operation: never qualified


@dataclass(eq=False)
class Resolved:
    """A parsed statement with its scopes (in the order of `selects`) and all column references."""

    tree: exp.Query
    scopes: list[Scope]
    references: list[Reference]


def selects(node: exp.Expr) -> Iterator[exp.Select]:
    """All SELECTs of a statement, each before those inside it, in one fixed order of clauses."""
    found: list[exp.Select] = []
    _add_selects(node, found)
    return iter(found)


def _add_selects(node: exp.Expr, found: list[exp.Select]) -> None:
    args = node.args
    order: Iterable[str] = args
    if isinstance(node, exp.Select):
        found.append(node)
        order = _SELECT
    elif isinstance(node, exp.SetOperation):
        order = _SET_OPERATION
    for key in order:
        value = args.get(key)
        if isinstance(value, exp.Expr):
            _add_selects(value, found)
        elif isinstance(value, list):
            for child in value:
                if isinstance(child, exp.Expr):
                    _add_selects(child, found)


def resolve(tree: exp.Query, schema: Schema) -> Resolved:
    """Resolves every name of `tree` (changed in place). Raises `ValueError` for an unknown table or column."""
    resolver = _Resolver(schema)
    resolver.query(tree, None, {})
    by_select = {id(scope.select): scope for scope in resolver.scopes}
    ordered = [by_select[id(select)] for select in selects(tree) if id(select) in by_select]
    for index, scope in enumerate(ordered, 1):
        scope.index = index
    return Resolved(tree, ordered, resolver.references)


class _Resolver:
    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.scopes: list[Scope] = []
        self.references: list[Reference] = []

    def query(self, node: exp.Expr, parent: Scope | None, ctes: dict[str, list[Output]]) -> Scope:
        """Resolves a query and returns the scope whose outputs name its columns."""
        with_ = node.args.get("with_")
        if with_ is not None:
            ctes = dict(ctes)
            for cte in with_.expressions:
                if with_.args.get("recursive") or cte.args["alias"].columns:
                    raise ValueError("a recursive CTE, or one that names its columns, is not supported")
                ctes[cte.alias.lower()] = self.query(cte.this, None, ctes).outputs
        if isinstance(node, exp.Subquery):
            return self.query(node.this, parent, ctes)
        if isinstance(node, exp.SetOperation):
            if node.this.args.get("limit") or node.this.args.get("order"):
                raise ValueError("ORDER BY or LIMIT before a set operation")
            first = self.query(node.this, parent, ctes)
            self.query(node.expression, parent, ctes)
            for key in ("order", "limit", "offset"):
                self.walk(node.args.get(key), first, ctes, ordering=key == "order", bare=True)
            return first
        if not isinstance(node, exp.Select):
            raise ValueError(f"{node.key.upper()} is not a query")
        return self.select(node, parent, ctes)

    def select(self, node: exp.Select, parent: Scope | None, ctes: dict[str, list[Output]]) -> Scope:
        scope = Scope(node, parent)
        self.scopes.append(scope)
        from_ = node.args.get("from_")
        joins = node.args.get("joins") or []
        for item in ([from_.this] if from_ else []) + [join.this for join in joins]:
            scope.sources.append(self.source(item, scope, ctes))
        for key in _CLAUSES:
            if key == "joins":
                for join in joins:
                    self.walk(join.args.get("on"), scope, ctes)
            elif key != "from_":
                value = node.args.get(key)
                for child in value if isinstance(value, list) else [value]:
                    self.walk(child, scope, ctes, ordering=key == "order")
        return scope

    def source(self, item: exp.Expr, scope: Scope, ctes: dict[str, list[Output]]) -> Source:
        if isinstance(item, exp.Subquery) and not item.args.get("joins") and isinstance(item.this, exp.Query):
            outputs = self.query(item.this, scope.parent, ctes).outputs
            return Source(item, item.alias.lower(), None, outputs, scope)
        if not isinstance(item, exp.Table) or item.args.get("joins") or not isinstance(item.this, exp.Identifier):
            raise ValueError("a FROM clause of this form is not supported")
        label = (item.alias or item.name).lower()
        if item.name.lower() in ctes:
            return Source(item, label, None, ctes[item.name.lower()], scope)
        table = self.schema.table(item.name)
        if table is None:
            raise ValueError(f"no table {item.name}")
        return Source(item, label, table, [], scope)

    def walk(
        self,
        node: exp.Expr | None,
        scope: Scope,
        ctes: dict[str, list[Output]],
        ordering: bool = False,
        bare: bool = False,
    ) -> None:
        if node is None:
            return
        if isinstance(node, exp.Query) and not isinstance(node, exp.Table):
            self.query(node, scope, ctes)
        elif isinstance(node, exp.Column):
            self.column(node, scope, ordering, bare)
        else:
            for child in list(node.iter_expressions()):
                self.walk(child, scope, ctes, ordering, bare)

    def column(self, node: exp.Column, scope: Scope, ordering: bool, bare: bool) -> None:
        if isinstance(node.this, exp.Star):
            source = _labelled(scope, node.table)
            if source is None:
                raise ValueError(f"no table {node.table}")
            self.references.append(Reference(node, scope, source, "*"))
            return
        found = _find(node, scope, ordering)
        if found is not None:
            self.references.append(Reference(node, scope, *found, bare))
        elif node.this.args.get("quoted") and not node.table:
            node.replace(exp.Literal.string(node.name))
        else:
            raise ValueError(f"no column {node.sql('sqlite')}")


def _find(node: exp.Column, scope: Scope, ordering: bool) -> tuple[Source | None, str | Output] | None:
    """The source and column that a name means; a result column comes first in ORDER BY, last elsewhere."""
    name, at = node.name, scope
    if not node.table and ordering:
        for output in scope.outputs:
            if output.alias is not None and output.name.lower() == name.lower():
                return None, output
            if output.alias is None and output.name.lower() == name.lower() and output.column is not None:
                found = _find(output.column, scope, ordering=False)
                if found is not None:
                    return found
    up: Scope | None = at
    while up is not None:
        if node.table:
            source = _labelled(up, node.table)
            column = source.column(name) if source is not None else None
            if source is not None and column is not None:
                return source, column
        else:
            for source in up.sources:
                column = source.column(name)
                if column is not None:
                    return source, column
            for output in up.outputs:
                if output.alias is not None and output.name.lower() == name.lower():
                    return None, output
        up = up.parent
    return None


def _labelled(scope: Scope, label: str) -> Source | None:
    return next((source for source in scope.sources if source.label == label.lower()), None)
