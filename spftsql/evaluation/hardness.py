"""How hard a SQL statement is: Spider's levels, counted on a sqlglot tree.

As in Spider's own evaluator only the outermost SELECT is counted (of a set operation, the left one).
"""

from __future__ import annotations

import sqlglot
from sqlglot import exp

from spftsql.evaluation.levels import Hardness, level


def spider_hardness(sql: str, dialect: str = "sqlite") -> Hardness:
    """Spider's hardness of a query; `unknown` for text that does not parse as a query, or is nested too deeply."""
    try:
        return _hardness(sqlglot.parse_one(sql, dialect=dialect))
    except (sqlglot.errors.SqlglotError, RecursionError):
        return "unknown"


def _hardness(tree: exp.Expr) -> Hardness:
    if not isinstance(tree, exp.Query):
        return "unknown"
    operations = 0
    while isinstance(tree, exp.SetOperation):
        operations += 1
        tree = tree.this
    while isinstance(tree, exp.Subquery):
        tree = tree.this
    if not isinstance(tree, exp.Select):
        return "unknown"
    conditions = _conditions(tree)
    nesting = min(operations, 1) + sum(_subqueries(condition) for condition in conditions)
    return level(_clauses(tree, conditions), nesting, _extras(tree))


def negated(condition: exp.Expr) -> bool:
    """Whether a comparison has a NOT: before it (`NOT a IN …`), or in it (`a NOT LIKE …`)."""
    return isinstance(condition, exp.Not) or bool(condition.args.get("negate"))


def _conditions(select: exp.Select) -> list[exp.Expr]:
    """The conditions of ON, WHERE and HAVING."""
    joins = [join.args["on"] for join in select.args.get("joins") or [] if join.args.get("on")]
    clauses = [select.args[name].this for name in ("where", "having") if select.args.get(name)]
    return [*joins, *clauses]


def _atoms(condition: exp.Expr) -> list[exp.Expr]:
    """The comparisons that AND and OR connect."""
    if isinstance(condition, exp.Connector):
        return [*_atoms(condition.left), *_atoms(condition.right)]
    return _atoms(condition.this) if isinstance(condition, exp.Paren) else [condition]


def _subqueries(condition: exp.Expr) -> int:
    """How many queries a condition holds, without counting the ones inside of them."""
    queries = exp.Select | exp.SetOperation
    nodes = condition.walk(prune=lambda node: isinstance(node, queries))
    return sum(isinstance(node, queries) for node in nodes)


def _clauses(select: exp.Select, conditions: list[exp.Expr]) -> int:
    count = sum(bool(select.args.get(name)) for name in ("where", "group", "order", "limit"))
    count += len(select.args.get("joins") or [])
    for condition in conditions:
        atoms = _atoms(condition)
        count += _alternatives(condition)
        count += sum(isinstance(a.this if isinstance(a, exp.Not) else a, exp.Like) for a in atoms)
    return count


def _alternatives(condition: exp.Expr) -> int:
    if isinstance(condition, exp.Connector):
        own = int(isinstance(condition, exp.Or))
        return own + _alternatives(condition.left) + _alternatives(condition.right)
    return _alternatives(condition.this) if isinstance(condition, exp.Paren) else 0


def _extras(select: exp.Select) -> int:
    where, group, order = (select.args.get(name) for name in ("where", "group", "order"))
    grouped = group.expressions if group else []
    conditions = _atoms(where.this) if where else []
    aggregates = sum(_is_aggregate(column) for column in select.expressions)
    # Spider's evaluator takes a condition's NOT for an aggregate, and every HAVING connective too.
    aggregates += sum(map(negated, conditions))
    if order:
        aggregates += sum(len(list(term.find_all(exp.AggFunc))) for term in order.expressions)
    having = select.args.get("having")
    if having:
        atoms = _atoms(having.this)
        aggregates += len(atoms) - 1 + sum(map(negated, atoms))
    return sum(count > 1 for count in (aggregates, len(select.expressions), len(conditions), len(grouped)))


def _is_aggregate(column: exp.Expr) -> bool:
    return isinstance(column.unalias(), exp.AggFunc)
