"""Common table expressions written where they are used, as derived tables, so that templates know one form only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlglot import exp


def inline_ctes(tree: exp.Query) -> exp.Query:
    """`tree`, changed in place, without WITH: every mention of a CTE becomes a derived table of the same name.

    Raises `ValueError` for a recursive one, and for one that names the columns of a `*`.
    """
    if tree.find(exp.With) is not None:
        _inline(tree, {})
    return tree


def _inline(node: exp.Expr, known: Mapping[str, exp.Expr]) -> None:
    with_ = node.args.get("with_")
    if with_ is not None:
        if with_.args.get("recursive"):
            raise ValueError("a recursive CTE is not supported")
        known = dict(known)
        for cte in with_.expressions:
            _inline(cte.this, known)
            _name_columns(cte.this, cte.args["alias"].columns)
            known[cte.alias.lower()] = cte.this
        node.set("with_", None)
    for child in list(node.iter_expressions()):
        query = known.get(child.name.lower()) if isinstance(child, exp.Table) and not child.db else None
        if query is None:
            _inline(child, known)
            continue
        label = exp.TableAlias(this=exp.to_identifier(child.alias or child.name))
        derived = exp.Subquery(this=query.copy(), alias=label)
        derived.set("joins", child.args.get("joins"))
        child.replace(derived)


def _name_columns(query: exp.Expr, names: Sequence[exp.Identifier]) -> None:
    """`WITH t(a, b) AS (SELECT x, y …)` as `SELECT x AS a, y AS b …`."""
    if not names:
        return
    while not isinstance(query, exp.Select):
        query = query.this
    if len(names) != len(query.expressions) or query.is_star:
        raise ValueError("the columns that a CTE names are not those of its query")
    for item, name in zip(list(query.expressions), names, strict=True):
        inner = item.this if isinstance(item, exp.Alias) else item
        item.replace(exp.Alias(this=inner.copy(), alias=name.copy()))
