"""The one form in which synthesis writes SQL, and into which labels can be rewritten.

In canonical SQL a table has an alias only where it stands twice in one FROM clause or is hidden by an inner query
(`city1`, `city2`), derived tables are `d1`, `d2` (CTEs too, written where they are used), result columns have a name
only where something refers to it (`field1`), columns are qualified only where there is more than one table, inner joins
are written `JOIN … ON` with the key equality alone, and double-quoted strings are single-quoted. Numbers whose name a
table or column of the statement has are left out. The result of the statement stays the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import apsw
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from spftsql.databases.schema import Schema
from spftsql.synthesis.ctes import inline_ctes
from spftsql.synthesis.scopes import Output, Reference, Resolved, Scope, Source, resolve
from spftsql.synthesis.spacing import spaced, unspaced

__all__ = ["canonical_sql", "canonicalize", "literals_of", "mask_literals", "spaced", "unspaced"]

P = ParamSpec("P")
R = TypeVar("R")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.Glob, exp.In, exp.Between, exp.Is)


def not_too_deep(read: Callable[P, R]) -> Callable[P, R]:
    """`read`, which raises `ValueError` where a statement is nested too deeply (thousands of ANDs) to be walked."""

    @wraps(read)
    def bounded(*args: P.args, **named: P.kwargs) -> R:
        try:
            return read(*args, **named)
        except RecursionError:
            raise ValueError("nested too deeply") from None

    return bounded


@not_too_deep
def write(tree: exp.Expr, dialect: str = "sqlite") -> str:
    """The SQL text of a tree, NOT where people write it: `x NOT IN (…)`, `x IS NOT NULL`."""
    tree = tree.copy()
    for node in reversed(list(tree.find_all(exp.Not))):
        inner = node.this
        if isinstance(inner, exp.Is) and not isinstance(inner.expression, exp.Not):
            inner.set("expression", exp.Not(this=inner.expression))
        elif isinstance(inner, exp.In | exp.Like | exp.ILike | exp.Between | exp.Glob):
            inner.set("this", exp.Var(this=f"{inner.this.sql(dialect)} NOT"))
        else:
            continue
        if node is tree:
            tree = inner
        else:
            node.replace(inner)
    return tree.sql(dialect, copy=False)


def canonical_sql(sql: str, schema: Schema) -> str:
    """`sql`, in the schema's dialect, in canonical form, which is SQLite's.

    Raises `ValueError` with a short reason when it does not parse or resolve.
    """
    return write(canonicalize(sql, schema).tree)


@not_too_deep
def canonicalize(sql: str, schema: Schema) -> Resolved:
    """The canonical form as a tree, with its scopes and column references. Raises `ValueError`."""
    resolved = resolve(_as_sqlite(inline_ctes(parse(sql, schema.dialect))), schema)
    _simplify(resolved.tree)
    nodes = {id(reference.node): reference for reference in resolved.references}
    for scope in resolved.scopes:
        _rewrite_joins(scope, resolved, nodes)
    _name_outputs(resolved)
    _name_sources(resolved)
    return resolved


def _as_sqlite(tree: exp.Query) -> exp.Query:
    """What other dialects spell out and SQLite does by itself: LIKE without case, text as time."""
    for like in list(tree.find_all(exp.ILike)):
        like.replace(exp.Like(this=like.this, expression=like.expression, negate=like.args.get("negate")))
    for part in tree.find_all(exp.TimeToStr):
        if isinstance(part.this, exp.Cast) and part.this.to.is_type(*exp.DataType.TEMPORAL_TYPES):
            part.set("this", exp.TsOrDsToTimestamp(this=part.this.this))
    return tree


def parse(sql: str, dialect: str = "sqlite") -> exp.Query:
    """One query, as a sqlglot tree. Raises `ValueError` when it is something else."""
    try:
        trees = [tree for tree in sqlglot.parse(sql, read=dialect) if tree is not None]
    except SqlglotError as error:
        raise ValueError(f"does not parse: {' '.join(str(error).split())[:200]}") from None
    except RecursionError:
        raise ValueError("does not parse: nested too deeply") from None
    if len(trees) != 1 or not isinstance(trees[0], exp.Query):
        raise ValueError("not a single query")
    return trees[0]


@not_too_deep
def mask_literals(sql: str) -> str:
    """The structure of `sql`: canonical SQL with every literal replaced by `?`. Raises `ValueError`."""
    tree = parse(sql)
    for literal in list(tree.find_all(exp.Literal)):
        literal.replace(exp.Placeholder())
    return write(tree)


@not_too_deep
def literals_of(sql: str) -> list[str]:
    """The values that a question about `sql` has to mention, in their order and each once.

    These are the strings and numbers that something is compared with (LIKE without its `%` signs), and LIMIT's
    number when it is above 1. Raises `ValueError`.
    """
    found: dict[str, None] = {}
    for literal in _literals(parse(sql)):
        parent = literal.parent
        while isinstance(parent, exp.Paren | exp.Neg | exp.Cast):
            parent = parent.parent
        text = literal.name
        if isinstance(parent, exp.Like | exp.Glob):
            text = text.strip("%*")
        if isinstance(parent, exp.Limit):
            if text == "1":
                continue
        elif not isinstance(parent, _COMPARISONS):
            continue
        if text:
            found[f"-{text}" if isinstance(literal.parent, exp.Neg) else text] = None
    return list(found)


def _literals(node: exp.Expr) -> Iterator[exp.Literal]:
    """The literals below `node` in the order of the text (sqlglot keeps LIMIT ahead of WHERE)."""
    if isinstance(node, exp.Literal):
        yield node
    for key in sorted(node.args, key=lambda key: key in ("limit", "offset")):
        value = node.args[key]
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, exp.Expr):
                yield from _literals(child)


@lru_cache(maxsize=100_000)
def identifier(name: str) -> exp.Identifier:
    """`name` as an identifier, quoted only where it has to be. Shared: copy it before it enters a tree."""
    return exp.Identifier(this=name, quoted=not _plain(name))


@lru_cache(maxsize=100_000)
def quoted(name: str) -> str:
    """A name as it stands in canonical SQL."""
    return identifier(name).sql("sqlite")


def _plain(name: str) -> bool:
    if not _PLAIN.fullmatch(name) or name.upper() in apsw.keywords:
        return False
    text = (
        f"SELECT {name}, {name} * 2, -{name}, {name} || 'a', x.{name}, SUM({name}) OVER (PARTITION BY {name}) "
        f"FROM {name} JOIN {name} AS {name}1 ON {name}.{name} = {name}1.{name} WHERE {name} = 1 AND NOT {name} IS NULL "
        f"GROUP BY {name} HAVING {name} > 1 ORDER BY {name}, {name} DESC LIMIT 1"
    )
    try:
        return sqlglot.parse_one(text, read="sqlite").sql("sqlite") == text
    except SqlglotError:
        return False


def conjuncts(node: exp.Expr | None) -> Iterator[exp.Expr]:
    """The conditions that AND joins at the top of `node`, without outer parentheses."""
    while isinstance(node, exp.Paren):
        node = node.this
    if isinstance(node, exp.And):
        yield from conjuncts(node.this)
        yield from conjuncts(node.expression)
    elif node is not None:
        yield node


def _simplify(tree: exp.Query) -> None:
    for count in list(tree.find_all(exp.Count)):
        if isinstance(count.this, exp.Literal) and not count.this.is_string:
            count.set("this", exp.Star())
    for clause in list(tree.find_all(exp.Where, exp.Having)):
        clause.set("this", _all_of(list(conjuncts(clause.this))))


def _all_of(conditions: list[exp.Expr]) -> exp.Expr:
    if len(conditions) == 1:
        return conditions[0]
    return exp.and_(*conditions, copy=False)


def _rewrite_joins(scope: Scope, resolved: Resolved, nodes: dict[int, Reference]) -> None:
    """Inner joins become `JOIN … ON` with the equalities that link them; other conditions move to WHERE."""
    select = scope.select
    joins: list[exp.Join] = select.args.get("joins") or []
    star = any(isinstance(item, exp.Star) for item in select.expressions)
    for join, source in zip(joins, scope.sources[1:], strict=True):
        if join.args.get("method") or (star and join.args.get("using")):
            raise ValueError("NATURAL JOIN, or USING with *, is not supported")
        if join.args.get("using"):
            _using_to_on(join, source, scope, resolved, nodes)
    if any(join.side for join in joins):
        for join in joins:
            join.set("kind", None)
        return
    if not joins:
        return
    linked: list[exp.Expr] = []
    other: list[exp.Expr] = []
    for join in joins:
        for condition in conjuncts(join.args.get("on")):
            (linked if _ends(condition, scope, nodes) else other).append(condition)
    where = select.args.get("where")
    wheres = list(conjuncts(where.this)) if where is not None else []
    possible = [condition for condition in wheres if _ends(condition, scope, nodes)]

    placed, remaining = [scope.sources[0]], scope.sources[1:]
    rewritten = []
    while remaining:
        source, conditions = remaining[0], []
        for candidate in remaining[:1] if star else remaining:
            found = [c for c in linked if _links(c, candidate, placed, scope, nodes)]
            found = found or [c for c in possible if _links(c, candidate, placed, scope, nodes)]
            if found:
                source, conditions = candidate, found
                break
        for condition in conditions:
            if nodes[id(condition.this)].source is source:
                left, right = condition.this, condition.expression
                condition.set("this", right)
                condition.set("expression", left)
        linked = [c for c in linked if not any(c is used for used in conditions)]
        wheres = [c for c in wheres if not any(c is used for used in conditions)]
        possible = [c for c in possible if not any(c is used for used in conditions)]
        rewritten.append(exp.Join(this=source.node, on=_all_of(conditions) if conditions else None))
        placed.append(source)
        remaining.remove(source)
    scope.sources = placed
    select.set("joins", rewritten)
    rest = linked + other + wheres
    select.set("where", exp.Where(this=_all_of(rest)) if rest else None)


def _ends(condition: exp.Expr, scope: Scope, nodes: dict[int, Reference]) -> tuple[Source, Source] | None:
    """The two sources of this scope that an equality of columns links."""
    if not isinstance(condition, exp.EQ):
        return None
    left, right = nodes.get(id(condition.this)), nodes.get(id(condition.expression))
    if left is None or right is None or left.source is None or right.source is None or left.source is right.source:
        return None
    if left.source.scope is not scope or right.source.scope is not scope:
        return None
    return left.source, right.source


def _links(
    condition: exp.Expr, source: Source, placed: list[Source], scope: Scope, nodes: dict[int, Reference]
) -> bool:
    ends = _ends(condition, scope, nodes)
    return ends is not None and ((ends[0] is source and ends[1] in placed) or (ends[1] is source and ends[0] in placed))


def _using_to_on(join: exp.Join, source: Source, scope: Scope, resolved: Resolved, nodes: dict[int, Reference]) -> None:
    conditions: list[exp.Expr] = []
    for name in join.args["using"]:
        left = next((s for s in scope.sources if s is not source and s.column(name.name)), None)
        ends = []
        for end in (left, source):
            column = end.column(name.name) if end is not None else None
            if end is None or column is None:
                raise ValueError(f"no column {name.name} to join over")
            node = exp.Column(this=name.copy())
            reference = Reference(node, scope, end, column)
            resolved.references.append(reference)
            nodes[id(node)] = reference
            ends.append(node)
        conditions.append(exp.EQ(this=ends[0], expression=ends[1]))
    join.set("using", None)
    join.set("on", _all_of(conditions))


def _name_outputs(resolved: Resolved) -> None:
    """Names result columns `field1`, `field2` where something refers to them, and drops their aliases elsewhere."""
    wanted = {
        id(reference.column.alias)
        for reference in resolved.references
        if isinstance(reference.column, Output) and reference.column.alias is not None
    }
    tables = [source.table for scope in resolved.scopes for source in scope.sources if source.table is not None]
    number = 0
    for scope in resolved.scopes:
        for output in scope.outputs:
            if output.alias is None:
                continue
            if id(output.alias) in wanted:
                number += 1
                while any(table.column(f"field{number}") for table in tables):
                    number += 1
                output.alias.set("alias", exp.to_identifier(f"field{number}"))
            else:
                output.alias.replace(output.alias.this)


class Numbers:
    """The aliases that a statement invents: `city1`, `city2`, … without those that are `taken`."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {name.lower() for name in taken}
        self._last: Counter[str] = Counter()

    def next(self, base: str) -> str:
        """`base` with the next number."""
        self._last[base] += 1
        while f"{base}{self._last[base]}".lower() in self._taken:
            self._last[base] += 1
        name = f"{base}{self._last[base]}"
        self._taken.add(name.lower())
        return name


def _name_sources(resolved: Resolved) -> None:
    hidden = _hidden(resolved)
    numbers = Numbers(_base(source) for scope in resolved.scopes for source in scope.sources)
    labels: dict[int, str] = {}
    for scope in resolved.scopes:
        names = Counter(_base(source) for source in scope.sources)
        for own in scope.sources:
            base = _base(own)
            numbered = base == "" or names[base] > 1 or id(own) in hidden
            labels[id(own)] = numbers.next(base or "d") if numbered else base
            _rename(own, labels[id(own)], alias=numbered)
    for reference in resolved.references:
        source, node = reference.source, reference.node
        qualified = source is not None and not reference.bare
        if qualified and source is not None and source.scope is reference.scope:
            qualified = len(reference.scope.sources) > 1
        if reference.column == "*":
            if not qualified:
                node.replace(exp.Star())
                continue
        else:
            column = reference.column
            node.set("this", identifier(column.name if isinstance(column, Output) else column).copy())
        node.set("table", identifier(labels[id(source)]).copy() if qualified else None)


def _base(source: Source) -> str:
    """The name of a table or CTE; empty for a derived table."""
    if source.table is not None:
        return source.table.name
    return str(source.node.name).lower() if isinstance(source.node, exp.Table) else ""


def _hidden(resolved: Resolved) -> set[int]:
    """Sources that an inner query refers to across a source of the same name."""
    found = set()
    for reference in resolved.references:
        source = reference.source
        if source is None or source.scope is reference.scope:
            continue
        between = reference.scope.path_to(source.scope)
        if any(_base(other) == _base(source) for scope in between for other in scope.sources):
            found.add(id(source))
    return found


def _rename(source: Source, label: str, alias: bool) -> None:
    node = source.node
    if isinstance(node, exp.Table):
        node.set("this", identifier(_base(source)).copy())
        node.set("db", None)
    node.set("alias", exp.TableAlias(this=identifier(label).copy()) if alias else None)
