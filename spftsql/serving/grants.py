"""What a caller may read of a database: a part of its schema, and SQL that cannot see anything else of it.

SQL is not searched for what it must not do; it is rewritten so that it cannot. Every table becomes a subquery of the
columns that are granted, under the name that the statement gives it, and what is executed is written anew from the
parsed statement: whatever the engine's parser would have made of the original text plays no part.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import sqlglot
from sqlglot import exp

from spftsql.databases.catalogue import Database
from spftsql.databases.schema import Schema, Table
from spftsql.errors import UserError
from spftsql.records import content_hash
from spftsql.sandbox.result import Granted

_HOME = {"sqlite": "main", "duckdb": "main", "postgres": "public"}  # the schema that tables without one are in
_TABLE_FUNCTIONS = {"json_each", "json_tree", "unnest", "generate_series", "range"}
# These name tables or run SQL given as text, or tell of the engine's catalogue.
_FUNCTIONS = re.compile(
    r"(pg_|has_|to_reg|row_security|txid_|dblink|lo_|duckdb_|query|table_to|schema_to|database_to|cursor_to|current_s"
    r"|col_desc|obj_desc|shobj_desc|getvariable|which_secret|sqlite_|load_|read_|fts|highlight|snippet|bm25|matchinfo)"
)
_FORBIDDEN = (exp.DML, exp.DDL, exp.Command, exp.Into, exp.Lock, exp.Pivot)
_TABLE_PARTS = {"this", "db", "catalog", "alias", "joins", "laterals"}


class NotGranted(Exception):
    """The statement asks for what is not granted, or cannot be shown not to; the message says what."""


@dataclass(frozen=True)
class Grant:
    """Tables by name (case ignored) with their columns; a table without columns is granted whole."""

    tables: Mapping[str, frozenset[str]]

    @staticmethod
    def parse(entries: Iterable[str]) -> Grant:
        """Reads `TABLE` and `TABLE.COLUMN`. Raises `UserError` for an empty name."""
        tables: dict[str, set[str]] = {}
        whole = set()
        for entry in entries:
            table, dot, column = entry.strip().lower().partition(".")
            if not table or (dot and not column):
                raise UserError(f"a grant is TABLE or TABLE.COLUMN, not {entry!r}")
            tables.setdefault(table, set())
            if not dot or column == "*":
                whole.add(table)
            tables[table].add(column)
        return Grant({table: frozenset() if table in whole else frozenset(c) for table, c in tables.items()})

    def unknown(self, schema: Schema) -> list[str]:
        """What the grant names and the schema does not have."""
        missing = []
        for name, columns in self.tables.items():
            table = schema.table(name)
            if table is None:
                missing.append(name)
            else:
                missing += [f"{name}.{column}" for column in sorted(columns) if table.column(column) is None]
        return missing

    def of(self, schema: Schema) -> Schema:
        """The granted part of a schema: tables, columns, and the keys between them."""
        tables = tuple(kept for table in schema.tables if (kept := self._table(table)) is not None)
        part = Schema(schema.db_id, schema.dialect, tables)

        def known(table: str, column: str) -> bool:
            found = part.table(table)
            return found is not None and found.column(column) is not None

        keys = tuple(
            key
            for columns in schema.constraints  # half of a key would join what does not belong together
            if all(known(key.table, key.column) and known(key.target, key.target_column) for key in columns)
            for key in columns
        )
        return replace(part, foreign_keys=keys)

    def _table(self, table: Table) -> Table | None:
        columns = self.tables.get(table.name.lower())
        if columns is None:
            return None
        kept = tuple(column for column in table.columns if not columns or column.name.lower() in columns)
        return replace(table, columns=kept) if kept else None


def granted_part(database: Database, grant: Grant) -> Database:
    """The database with the granted part of its schema, under a content of its own.

    So whatever is kept by content (prompts, values) is never that of another grant.
    """
    schema = grant.of(database.schema)
    return replace(database, schema=schema, content=f"{database.content}-{content_hash(schema.to_json())}")


def granted_columns(part: Schema, whole: Schema) -> Granted:
    """What the sandbox is told of a grant, so that the engine itself refuses whatever else a statement reads."""
    granted = {}
    for table in part.tables:
        full = whole.table(table.name)
        is_whole = full is not None and len(full.columns) == len(table.columns)
        granted[table.name.lower()] = () if is_whole else tuple(column.name.lower() for column in table.columns)
    return granted


def granted_sql(sql: str, part: Schema, whole: Schema) -> str:
    """`sql` so that it reads nothing but the granted `part` of the schema `whole`. Raises `NotGranted`."""
    try:
        statements = [tree for tree in sqlglot.parse(sql, dialect=part.dialect) if tree is not None]
    except (sqlglot.errors.SqlglotError, RecursionError):
        raise NotGranted("the statement cannot be checked against what this key may read") from None
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise NotGranted("only a single SELECT can be executed with this key")
    tree = statements[0]
    _check(tree, part.dialect)
    # All names are resolved before any is changed.
    resolved = [(table, _cte_of(table)) for table in tree.find_all(exp.Table)]
    renamed = _rename_ctes(tree)
    for table, cte in resolved:
        if cte is not None:
            _point_to(table, renamed[id(cte)])
        else:
            _confine(table, part, whole)
    try:
        return tree.sql(dialect=part.dialect, comments=False)
    except (sqlglot.errors.SqlglotError, RecursionError, ValueError):
        raise NotGranted("the statement cannot be checked against what this key may read") from None


def _check(tree: exp.Expr, dialect: str) -> None:
    for node in tree.walk():
        if isinstance(node, _FORBIDDEN) and not isinstance(node, exp.Query):
            raise NotGranted(f"{node.key.upper()} is not allowed with this key")
        if isinstance(node, exp.In) and node.args.get("field") is not None and dialect == "sqlite":
            raise NotGranted("IN with a table is not allowed with this key")  # SQLite's `x IN table`
        if isinstance(node, exp.Func):
            name = (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
            own = dialect == "duckdb" and isinstance(node, exp.Anonymous) and name not in _duckdb_functions()
            if _FUNCTIONS.match(name) or "_to_xml" in name or own:  # a macro of the database may read any table
                raise NotGranted(f"the function {name} is not allowed with this key")
        if isinstance(node, exp.Cast | exp.TryCast) and node.to.sql(dialect).lower().startswith("reg"):
            raise NotGranted("names of the catalogue are not allowed with this key")


@cache
def _duckdb_functions() -> frozenset[str]:
    """The functions of the engine itself."""
    import duckdb

    with duckdb.connect() as connection:
        rows = connection.execute("SELECT lower(function_name) FROM duckdb_functions() WHERE internal").fetchall()
    return frozenset(name for (name,) in rows)


def _cte_of(table: exp.Table) -> exp.CTE | None:
    """The common table expression that a table's name stands for at its place; None for a table of the database."""
    if table.args.get("db") is not None or not isinstance(table.this, exp.Identifier):
        return None
    name = table.name.lower()
    child: exp.Expr = table
    inside: exp.CTE | None = None
    while (node := child.parent) is not None:
        if isinstance(child, exp.CTE):
            inside = child
        clause = node.args.get("with_") or node.args.get("with")
        if isinstance(clause, exp.With):
            for cte in _visible(clause, inside if child is clause else None):
                if cte.alias.lower() == name:
                    return cte
        child = node
    return None


def _visible(clause: exp.With, inside: exp.CTE | None) -> Sequence[exp.CTE]:
    ctes: list[exp.CTE] = clause.expressions
    if inside is None or clause.args.get("recursive"):
        return ctes
    return ctes[: next(index for index, cte in enumerate(ctes) if cte is inside)]


def _rename_ctes(tree: exp.Expr) -> dict[int, str]:
    """Gives every common table expression a name that no table has; so a name misread leads nowhere."""
    numbers = itertools.count(1)
    names: dict[int, str] = {}
    for cte in tree.find_all(exp.CTE):
        names[id(cte)] = f"granted_cte_{next(numbers)}"
        cte.args["alias"].set("this", exp.to_identifier(names[id(cte)]))
    return names


def _point_to(table: exp.Table, name: str) -> None:
    if table.args.get("alias") is None:
        table.set("alias", exp.TableAlias(this=table.this.copy()))
    table.set("this", exp.to_identifier(name))


def _confine(table: exp.Table, part: Schema, whole: Schema) -> None:
    if not isinstance(table.this, exp.Identifier):
        name = table.this.name if isinstance(table.this, exp.Anonymous) else table.this.key
        if isinstance(table.this, exp.Func) and table.args.get("db") is None and name.lower() in _TABLE_FUNCTIONS:
            return
        raise NotGranted(f"{name or 'this'} is not allowed in FROM with this key")
    schema_name = table.db.lower()
    known = part.table(table.name)
    if known is None or table.catalog or schema_name not in ("", _HOME[part.dialect]):
        raise NotGranted(f"no table {table.sql(part.dialect, comments=False).split(' AS ')[0]} for this key")
    extra = {name for name, value in table.args.items() if value} - _TABLE_PARTS
    if extra:
        raise NotGranted(f"{', '.join(sorted(extra))} of a table cannot be used with this key")
    source = exp.to_identifier(known.name, quoted=True)
    alias = table.args.get("alias") or exp.TableAlias(this=table.this.copy())
    full = whole.table(known.name)
    if full is not None and len(full.columns) == len(known.columns):
        table.set("alias", alias)
        table.set("db", None)
        table.set("this", source)
        return
    columns = [exp.column(exp.to_identifier(column.name, quoted=True)) for column in known.columns]
    inner = exp.select(*columns).from_(exp.Table(this=source))
    subquery = exp.Subquery(this=inner, alias=alias)
    for name in ("joins", "laterals"):
        subquery.set(name, table.args.get(name))
    table.replace(subquery)
