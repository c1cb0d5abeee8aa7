"""How hard a statement is, by counting its components: the levels that the Spider benchmark made common."""

from __future__ import annotations

from sqlglot import exp

LEVELS = ("easy", "medium", "hard", "extra")
_CONDITIONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.In, exp.Between, exp.Is, exp.Exists)


def hardness(tree: exp.Query) -> str:
    """`easy`, `medium`, `hard` or `extra`: from clauses used, nested queries, and clauses with several parts."""
    outer = tree
    while isinstance(outer, exp.SetOperation):
        outer = outer.this
    args = outer.args
    clauses = [args.get(key) for key in ("where", "group", "order", "limit")]
    parts = sum(clause is not None for clause in clauses) + len(args.get("joins") or [])
    where = args.get("where")
    conditions = [
        node for node in (where.find_all(*_CONDITIONS) if where is not None else []) if node.parent_select is outer
    ]
    if where is not None:
        parts += sum(node.parent_select is outer for node in where.find_all(exp.Or, exp.Like))
    nested = sum(1 for _ in tree.find_all(exp.Select)) - 1
    group = args.get("group")
    several = sum(
        (
            sum(node.parent_select is outer for node in outer.find_all(exp.AggFunc)) > 1,
            len(outer.expressions) > 1,
            len(conditions) > 1,
            group is not None and len(group.expressions) > 1,
        )
    )
    if parts <= 1 and several == 0 and nested == 0:
        return "easy"
    if nested == 0 and ((several <= 2 and parts <= 1) or (parts <= 2 and several < 2)):
        return "medium"
    if (
        (nested == 0 and several > 2 and parts <= 2)
        or (nested == 0 and 2 < parts <= 3 and several <= 2)
        or (nested <= 1 and parts <= 1 and several == 0)
    ):
        return "hard"
    return "extra"
