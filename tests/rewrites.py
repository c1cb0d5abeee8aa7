"""Other ways to write the same statement: each function gives an equivalent tree, or None where it finds nothing."""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp
from sqlglot.optimizer.pushdown_predicates import pushdown_predicates
from sqlglot.optimizer.qualify import qualify

from spftsql.databases.schema import Schema
from spftsql.synthesis.canonical import canonical_sql, parse
from spftsql.synthesis.scopes import resolve

_NEGATED = {exp.LT: exp.GTE, exp.LTE: exp.GT, exp.GT: exp.LTE, exp.GTE: exp.LT, exp.EQ: exp.NEQ, exp.NEQ: exp.EQ}
_MIRRORED = {exp.LT: exp.GT, exp.LTE: exp.GTE, exp.GT: exp.LT, exp.GTE: exp.LTE, exp.EQ: exp.EQ, exp.NEQ: exp.NEQ}

Rewrite = Callable[[exp.Query], exp.Expr | None]


def commuted(tree: exp.Query) -> exp.Expr | None:
    """The sides of every AND and OR exchanged."""
    return _replaced(tree, (exp.And, exp.Or), lambda n: type(n)(this=n.expression.copy(), expression=n.this.copy()))


def mirrored(tree: exp.Query) -> exp.Expr | None:
    """`a < 1` as `1 > a`."""
    return _replaced(
        tree, tuple(_MIRRORED), lambda n: _MIRRORED[type(n)](this=n.expression.copy(), expression=n.this.copy())
    )


def negated_twice(tree: exp.Query) -> exp.Expr | None:
    """`a < 1` as `NOT a >= 1`."""

    def edit(node: exp.Expr) -> exp.Expr:
        inner = _NEGATED[type(node)](this=node.this.copy(), expression=node.expression.copy())
        return exp.Paren(this=exp.Not(this=exp.Paren(this=inner)))

    return _replaced(tree, tuple(_NEGATED), edit)


def members_as_or(tree: exp.Query) -> exp.Expr | None:
    """`a IN (1, 2)` as `a = 1 OR a = 2`."""

    def edit(node: exp.Expr) -> exp.Expr | None:
        if not node.expressions:
            return None
        return exp.Paren(this=exp.or_(*[exp.EQ(this=node.this.copy(), expression=e.copy()) for e in node.expressions]))

    return _replaced(tree, (exp.In,), edit)


def or_as_members(tree: exp.Query) -> exp.Expr | None:
    """`a = 1` as `a IN (1)`, and `a = 1 OR a = 2` as `a IN (1, 2)`."""

    def edit(node: exp.Expr) -> exp.Expr | None:
        sides = [node.this, node.expression]
        equal = [side for side in sides if isinstance(side, exp.EQ) and isinstance(side.expression, exp.Literal)]
        if len(equal) < 2 or equal[0].this != equal[1].this:
            return None
        return exp.In(this=equal[0].this.copy(), expressions=[side.expression.copy() for side in equal])

    return _replaced(tree, (exp.Or,), edit)


def ranges_split(tree: exp.Query) -> exp.Expr | None:
    """`a BETWEEN 1 AND 2` as `a >= 1 AND a <= 2`."""

    def edit(node: exp.Expr) -> exp.Expr:
        low = exp.GTE(this=node.this.copy(), expression=node.args["low"].copy())
        high = exp.LTE(this=node.this.copy(), expression=node.args["high"].copy())
        return exp.Paren(this=exp.and_(low, high))

    return _replaced(tree, (exp.Between,), edit)


def wrapped(tree: exp.Query) -> exp.Expr | None:
    """The rows of a statement whose order is open, through a derived table."""
    if tree.args.get("order") or tree.args.get("limit") or tree.args.get("with_"):
        return None
    names = [output.alias_or_name for output in tree.selects]
    if len(set(names)) < len(names) or not all(names):
        return None
    return exp.select("*").from_(tree.copy().subquery("q"))


def renamed(tree: exp.Query, schema: Schema) -> exp.Expr | None:
    """Every aliased table under another alias."""
    resolved = resolve(tree.copy(), schema)  # type: ignore[type-var]
    labels = {id(source): f"renamed_{place}" for place, source in enumerate(_sources(resolved))}
    changed = False
    for reference in resolved.references:
        if reference.source is not None and reference.node.table:
            reference.node.set("table", exp.to_identifier(labels[id(reference.source)]))
    for source in _sources(resolved):
        if source.node.alias:
            changed = True
        source.node.set("alias", exp.TableAlias(this=exp.to_identifier(labels[id(source)])))
    return resolved.tree if changed else None


def pushed_down(tree: exp.Query, schema: Schema) -> exp.Expr | None:
    """Predicates moved into the joins that they are about, by sqlglot."""
    return pushdown_predicates(qualified(tree, schema), dialect="sqlite")


def qualified(tree: exp.Query, schema: Schema) -> exp.Expr | None:
    """Every name qualified and aliased by sqlglot."""
    literal = resolve(tree.copy(), schema).tree  # type: ignore[type-var]
    tables = {table.name: {column.name: "text" for column in table.columns} for table in schema.tables}
    return qualify(literal, schema=tables, dialect="sqlite", validate_qualify_columns=False, quote_identifiers=True)


def de_morgan(tree: exp.Query) -> exp.Expr | None:
    """`a AND b` as `NOT (NOT a OR NOT b)`."""

    def edit(node: exp.Expr) -> exp.Expr:
        other = exp.Or if isinstance(node, exp.And) else exp.And
        sides = [exp.Not(this=exp.Paren(this=side.copy())) for side in (node.this, node.expression)]
        return exp.Not(this=exp.Paren(this=other(this=sides[0], expression=sides[1])))

    return _replaced(tree, (exp.And, exp.Or), edit)


PLAIN: tuple[Rewrite, ...] = (
    commuted,
    mirrored,
    negated_twice,
    members_as_or,
    or_as_members,
    ranges_split,
    wrapped,
    de_morgan,
)


def rewrites(sql: str, schema: Schema) -> dict[str, str]:
    """Every rewrite that changes the text of a statement, by name. Raises `ValueError` for one that is not resolved."""
    tree = resolve(parse(sql), schema).tree
    found = {rewrite.__name__: rewrite(tree) for rewrite in PLAIN}
    found |= {rewrite.__name__: rewrite(tree, schema) for rewrite in (renamed, qualified, pushed_down)}
    texts = {name: other.sql("sqlite") for name, other in found.items() if other is not None}
    texts["canonical"] = canonical_sql(sql, schema)
    return {name: text for name, text in texts.items() if text != tree.sql("sqlite")}


def _sources(resolved):  # type: ignore[no-untyped-def]
    return [source for scope in resolved.scopes for source in scope.sources]


def _replaced(
    tree: exp.Query, kinds: tuple[type[exp.Expr], ...], edit: Callable[[exp.Expr], exp.Expr | None]
) -> exp.Expr | None:
    copy, changed = tree.copy(), False
    for node in reversed(list(copy.find_all(*kinds))):
        if type(node) in kinds and (other := edit(node)) is not None:
            node.replace(other)
            changed = True
    return copy if changed else None
