"""The schema as the model reads it: one line per table, columns with kind, keys and a few values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from spftsql.databases.schema import Column, Schema, Table

Detail = Literal["values", "kinds", "names"]
_VALUE_LENGTH = 30  # characters of a sample value that are shown
_VALUES = 3


def schema_text(schema: Schema, detail: Detail = "values") -> str:
    """The schema in the order of the database; foreign keys follow the tables.

    `detail` says what is told of a column: its name alone, its kind and key too, or a few values as well.
    """
    lines = [_table_line(table, detail) for table in schema.tables]
    lines += [f"{k.table}.{k.column} = {k.target}.{k.target_column}" for k in schema.foreign_keys]
    return "\n".join(lines)


def fitting_schema_text(schema: Schema, budget: int, count_tokens: Callable[[str], int]) -> str:
    """The most detailed schema text of at most `budget` tokens; the barest one where none fits."""
    details: tuple[Detail, ...] = ("values", "kinds")
    for detail in details:
        text = schema_text(schema, detail)
        if count_tokens(text) <= budget:
            return text
    return schema_text(schema, "names")


def _table_line(table: Table, detail: Detail) -> str:
    return f"table {table.name}: " + ", ".join(_column_text(column, detail) for column in table.columns)


def _column_text(column: Column, detail: Detail) -> str:
    if detail == "names":
        return column.name
    notes = [column.kind] + (["primary key"] if column.primary_key else [])
    if column.comment:
        notes.append(column.comment)
    if detail == "values" and column.kind != "number" and column.samples:
        notes.append("e.g. " + " | ".join(str(value)[:_VALUE_LENGTH] for value in column.samples[:_VALUES]))
    return f"{column.name} ({'; '.join(notes)})"
