"""Canonical SQL as the other engines read it, with the result that SQLite gives.

Templates and canonical SQL know one dialect. For a schema of PostgreSQL or DuckDB a filled template is rewritten once,
at the end: sqlglot writes functions and the place of NULLs, and what depends on the types of columns is done here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from sqlglot import exp
from sqlglot.generators.redshift import RedshiftGenerator

from spftsql.databases.schema import Column, Schema
from spftsql.synthesis.canonical import parse, quoted, write
from spftsql.synthesis.scopes import Output, Reference, Resolved, Scope, resolve

# SQLite's own come from its list (`quoted`); these are reserved in PostgreSQL and DuckDB beyond them.
_RESERVED = RedshiftGenerator.RESERVED_KEYWORDS | {"asof", "positional", "qualify", "pivot", "unpivot", "summarize"}
_ColumnOf = Callable[[exp.Expr], Column | None]


def in_dialect(sql: str, schema: Schema) -> str:
    """`sql`, canonical over `schema`, in the schema's dialect.

    Raises `ValueError` for what has no equal there: a column that is neither grouped by nor determined by it, GLOB.
    """
    if schema.dialect == "sqlite":
        return sql
    tree = parse(sql)
    resolved = resolve(tree, schema)
    references = {id(reference.node): reference for reference in resolved.references}

    def column_of(node: exp.Expr) -> Column | None:
        reference = references.get(id(node))
        if reference is None or reference.source is None or reference.source.table is None:
            return None
        return reference.source.table.column(str(reference.column))

    _group_fully(resolved, references)
    outer = any(join.side for join in tree.find_all(exp.Join))
    for node in reversed(list(tree.find_all(exp.Like, exp.Glob, exp.DPipe, exp.Div, exp.Ordered, exp.EQ, exp.NEQ))):
        if isinstance(node, exp.Glob):
            raise ValueError(f"GLOB has no equal in {schema.dialect}")
        if isinstance(node, exp.Like):
            text, negate = _as_text(node.this, column_of), node.args.get("negate")
            node.replace(exp.ILike(this=text, expression=node.expression, negate=negate))
        elif isinstance(node, exp.DPipe):
            for side in (node.this, node.expression):
                if (text := _as_text(side, column_of)) is not side:
                    side.replace(text)
        elif isinstance(node, exp.Div):
            if _integer(node.this, column_of) and _integer(node.expression, column_of):
                divisor = exp.Nullif(this=node.expression, expression=exp.Literal.number(0))
                node.replace(exp.IntDiv(this=node.this, expression=divisor))
        elif isinstance(node, exp.Ordered):
            if not outer and _never_null(node.this, column_of):  # then nothing needs to be said about NULLs
                node.set("nulls_first", schema.dialect == "postgres" and bool(node.args.get("desc")))
        elif isinstance(node, exp.EQ | exp.NEQ):
            _as_boolean(node, column_of)
    for identifier in tree.find_all(exp.Identifier):
        identifier.set("quoted", not _plain(identifier.name))
    return write(tree, schema.dialect)


@lru_cache(maxsize=100_000)
def _plain(name: str) -> bool:
    return name == name.lower() and name not in _RESERVED and quoted(name) == name


def _as_text(node: exp.Expr, column_of: _ColumnOf) -> exp.Expr:
    column = column_of(node)
    return exp.cast(node.copy(), "TEXT") if column is not None and column.kind != "text" else node


def _as_boolean(node: exp.Binary, column_of: _ColumnOf) -> None:
    """`flag = 1` as `flag = TRUE`."""
    column, other = column_of(node.this), node.expression
    if column is not None and column.kind == "boolean" and isinstance(other, exp.Literal) and other.name in ("0", "1"):
        other.replace(exp.Boolean(this=other.name == "1"))


def _never_null(node: exp.Expr, column_of: _ColumnOf) -> bool:
    if isinstance(node, exp.Count):
        return True
    if isinstance(node, exp.Paren | exp.Sum | exp.Max | exp.Min | exp.Avg | exp.Length):
        return _never_null(node.this, column_of)
    if isinstance(node, exp.Add | exp.Sub | exp.Mul):
        return _never_null(node.this, column_of) and _never_null(node.expression, column_of)
    column = column_of(node)
    return column is not None and column.nulls == 0


def _integer(node: exp.Expr, column_of: _ColumnOf) -> bool:
    """Whether SQLite divides these as integers."""
    if isinstance(node, exp.Literal):
        return not node.is_string and node.name.isdigit()
    if isinstance(node, exp.Count):
        return True
    if isinstance(node, exp.Paren | exp.Neg | exp.Sum | exp.Max | exp.Min | exp.Abs):
        return _integer(node.this, column_of)
    if isinstance(node, exp.Add | exp.Sub | exp.Mul | exp.Div | exp.IntDiv | exp.Nullif):
        return _integer(node.this, column_of) and _integer(node.expression, column_of)
    column = column_of(node)
    return column is not None and "INT" in column.sql_type.upper()


def _group_fully(resolved: Resolved, references: dict[int, Reference]) -> None:
    """Adds to GROUP BY the columns that a grouped primary key determines: SQLite takes them without."""
    for scope in resolved.scopes:
        group = scope.select.args.get("group")
        if group is None and not any(_aggregates(node, scope) for node in scope.select.find_all(exp.AggFunc)):
            continue
        keys = list(group.expressions) if group is not None else []
        texts = {key.sql() for key in keys}
        for reference in list(references.values()):
            node = reference.node
            if (
                reference.scope is not scope
                or node.parent_select is not scope.select
                or isinstance(node.this, exp.Star)
            ):
                continue
            if reference.source is None or (
                isinstance(reference.column, Output) and reference.column.alias is not None
            ):
                continue
            if node.find_ancestor(exp.Where, exp.Join, exp.From, exp.Group, exp.Select) is not scope.select:
                continue
            if _inside(node, scope, texts) or node.sql() in texts:
                continue
            if group is None or not _determined(reference, keys, references):
                raise ValueError(f"{node.sql()} is neither grouped nor aggregated")
            group.append("expressions", node.copy())
            texts.add(node.sql())


def _inside(node: exp.Expr, scope: Scope, texts: set[str]) -> bool:
    """Whether the column stands inside an aggregate, or inside an expression that is grouped by."""
    above = node.parent
    while above is not None and above is not scope.select:
        if (isinstance(above, exp.AggFunc) and _aggregates(above, scope)) or above.sql() in texts:
            return True
        above = above.parent
    return False


def _aggregates(node: exp.Expr, scope: Scope) -> bool:
    window = isinstance(node.parent, exp.Window) and node.parent.this is node
    return node.parent_select is scope.select and not window


def _determined(reference: Reference, keys: list[exp.Expr], references: dict[int, Reference]) -> bool:
    """Whether the primary key of the column's table is grouped by."""
    source = reference.source
    if source is None or source.table is None:
        return False
    grouped = {str(r.column) for key in keys if (r := references.get(id(key))) is not None and r.source is source}
    primary = set(source.table.primary_key)
    return bool(primary) and primary <= grouped
