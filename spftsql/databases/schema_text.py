"""The schema as the model reads it: one line per table, columns with kind, keys, comment and a few values.

Names are written as SQL of the database's dialect would write them, quoted where they must be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

from spftsql.databases.schema import Column, ForeignKey, Schema, Table

Detail = Literal["values", "kinds", "names"]

_VALUE_LENGTH = 30  # characters of a sample value that are shown
_VALUES = 3
_COMMENT_LENGTH = 80
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def schema_text(schema: Schema, detail: Detail = "values") -> str:
    """The schema in the order of the database; foreign keys follow the tables.

    `detail` says what is told of a column: its name alone, its kind, key and comment too, or a few values as well.
    """
    lines = []
    for table in schema.tables:
        columns = ", ".join(column_text(column, schema.dialect, detail) for column in table.columns)
        lines.append(table_text(table, schema.dialect, detail) + columns)
    lines += [key_text(key, schema.dialect) for key in schema.constraints]
    return "\n".join(lines)


def fitting_schema_text(schema: Schema, budget: int, count_tokens: Callable[[str], int]) -> str:
    """The most detailed schema text of at most `budget` tokens; the barest one where none fits."""
    details: tuple[Detail, ...] = ("values", "kinds")
    for detail in details:
        text = schema_text(schema, detail)
        if count_tokens(text) <= budget:
            return text
    return schema_text(schema, "names")


def table_text(table: Table, dialect: str, detail: Detail = "values") -> str:
    """The head of a table's line, up to its columns."""
    comment = f" ({_short(table.comment, _COMMENT_LENGTH)})" if table.comment and detail != "names" else ""
    return f"table {sql_name(table.name, dialect)}{comment}: "


def column_text(column: Column, dialect: str, detail: Detail = "values") -> str:
    """A column as it stands in its table's line."""
    name = sql_name(column.name, dialect)
    if detail == "names":
        return name
    notes = [column.kind] + (["primary key"] if column.primary_key else [])
    if column.comment:
        notes.append(_short(column.comment, _COMMENT_LENGTH))
    if detail == "values" and column.kind != "number" and column.samples:
        notes.append("e.g. " + " | ".join(_short(str(value), _VALUE_LENGTH) for value in column.samples[:_VALUES]))
    return f"{name} ({'; '.join(notes)})"


def key_text(columns: Sequence[ForeignKey], dialect: str) -> str:
    """A foreign key, given by its columns, as the condition that joins its tables."""

    def name(table: str, column: str) -> str:
        return f"{sql_name(table, dialect)}.{sql_name(column, dialect)}"

    pairs = [f"{name(key.table, key.column)} = {name(key.target, key.target_column)}" for key in columns]
    return " AND ".join(pairs)


def sql_name(name: str, dialect: str) -> str:
    """A name as SQL writes it: quoted when it is a reserved word, or not made of ASCII letters, digits and `_`.

    PostgreSQL folds what is not quoted to lower case, so capitals are quoted there too.
    """
    plain = _PLAIN.fullmatch(name) and name.lower() not in _reserved(dialect)
    if plain and not (dialect == "postgres" and name != name.lower()):
        return name
    return '"' + name.replace('"', '""') + '"'


@cache
def _reserved(dialect: str) -> frozenset[str]:
    """The words that cannot be a name without quotes, by the engine's own account where it can be asked."""
    if dialect == "sqlite":
        import apsw

        connection = apsw.Connection(":memory:")

        def refused(word: str) -> bool:
            try:
                connection.execute(f"SELECT x.{word}, {word} FROM (SELECT 1 AS {word}) AS x")
                connection.execute(f"WITH {word} AS (SELECT 1 AS a) SELECT {word}.a FROM {word}")
            except apsw.SQLError:
                return True
            return False

        return frozenset(word.lower() for word in apsw.keywords if refused(word))
    if dialect == "duckdb":
        import duckdb

        words = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
        with duckdb.connect() as database:
            return frozenset(name for (name,) in database.execute(words).fetchall())
    from sqlalchemy.dialects.postgresql.base import RESERVED_WORDS

    return frozenset(RESERVED_WORDS)


def _short(text: str, longest: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"
