"""Which statements may be executed on DuckDB, judged before they are: by its own parser, never by another.

DuckDB has no authorizer. Its parser shows a statement as a tree (`json_serialize_sql`), of which every function, table
and kind of node is looked at; that takes as long as a small query, so it is asked for only where the text has a word
that could matter. A name cannot be written otherwise than letter by letter: DuckDB knows no escapes in identifiers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

import duckdb

_LENGTH = 50_000

# The engine says of its functions which have side effects; of these, only the first may be called. The others are about
# the machine or run SQL given as text (the table functions, of which only the listed ones may be called), or take the
# inner states of aggregates for what they are.
_HARMLESS = {"random", "uuid", "uuidv4", "uuidv7", "gen_random_uuid", "error"}
_REFUSED_FUNCTIONS = {
    *("current_setting", "getvariable", "txid_current", "pg_sleep", "get_block_size"),
    *("json_serialize_plan", "index_key", "to_aggregate_state", "finalize", "combine", "combine_aggr"),
}
TABLE_FUNCTIONS = {"unnest", "range", "generate_series", "repeat", "repeat_row", "json_each", "json_tree"}
_SCHEMA_TABLES = {
    *("sqlite_master", "sqlite_schema", "duckdb_columns", "duckdb_constraints", "duckdb_indexes"),
    *("duckdb_schemas", "duckdb_tables", "duckdb_types", "duckdb_views"),
}

_WRITES = {"insert", "update", "delete", "truncate", "merge", "copy"}

_WORD = re.compile(r"[^\W\d]\w*")
_SHOWS = {"show", "describe", "desc", "summarize", "summarise"}
# These words at another place than that of a column or at the end of ORDER BY.
_SHOW = re.compile(
    rf"\b(?:{'|'.join(_SHOWS)})\b(?!\s*(?:[,);]|\Z|(?:limit|offset|union|except|intersect)\b))", re.IGNORECASE
)


class Refused(Exception):
    """The statement is against the policy; the message says why."""


@dataclass(frozen=True, slots=True)
class Names:
    """What statements may not name, in lower case."""

    functions: frozenset[str]
    table_functions: frozenset[str]
    tables: frozenset[str]
    words: frozenset[str]  # all of these, and those that write


def checked_statements(
    cursor: duckdb.DuckDBPyConnection, sql: str, names: Names, guards: Set[str]
) -> list[duckdb.Statement]:
    """The statement, parsed, when the policy allows it (one, unless the guard against more is off).

    Raises:
        Refused: it does not.
        duckdb.Error: it cannot be parsed.
    """
    if "SQL_LENGTH" in guards and len(sql.encode()) > _LENGTH:
        raise Refused(f"longer than {_LENGTH:,} bytes")
    if "NUL" in guards and "\0" in sql:
        raise Refused("a NUL character")
    statements = cursor.extract_statements(sql)
    if not statements:
        raise Refused("no statement")
    if "stacked" in guards and len(statements) > 1:
        raise Refused("more than one statement")
    if "SELECT" in guards:
        for kind in map(_kind, statements):
            if kind != "SELECT":
                raise Refused(f"{kind}, not a query")
    if is_suspect(sql, names):
        _check_tree(_tree(cursor, sql, guards), names, guards)
    return statements


def is_suspect(sql: str, names: Names) -> bool:
    """Whether the text has a word that may not be named at all places; a name is in it letter by letter."""
    words = set(_WORD.findall(sql.lower()))
    return not words.isdisjoint(names.words) or (not words.isdisjoint(_SHOWS) and bool(_SHOW.search(sql)))


def _tree(cursor: duckdb.DuckDBPyConnection, sql: str, guards: Set[str]) -> Any:
    answer = cursor.execute("SELECT system.main.json_serialize_sql(?)", [sql]).fetchone()
    try:
        tree = json.loads(answer[0]) if answer else {"error": True}
    except RecursionError:
        raise Refused("nested too deeply to be checked") from None
    if tree["error"] and "SELECT" in guards:
        raise Refused("cannot be checked")
    return tree


def _check_tree(tree: Any, names: Names, guards: Set[str]) -> None:
    for node in json_objects(tree):
        kind = str(node.get("type"))
        if kind.endswith("_QUERY_NODE") and "writing CTE" in guards:
            raise Refused(f"{kind.removesuffix('_QUERY_NODE')} in WITH")
        if kind == "SHOW_REF" and "SHOW" in guards:
            raise Refused("SHOW, DESCRIBE or SUMMARIZE")
        if kind == "BASE_TABLE":
            _check_name(node["table_name"], names.tables, "table", guards)
        if kind == "TABLE_FUNCTION":
            _check_name(node["function"]["function_name"], names.table_functions, "function", guards)
        if "function_name" in node:
            _check_name(node["function_name"], names.functions, "function", guards)


def _check_name(name: str, refused: Set[str], what: str, guards: Set[str]) -> None:
    if name.lower() in refused and f"{what}s" in guards:
        raise Refused(f"{what} {name.lower()}")


def _kind(statement: duckdb.Statement) -> str:
    try:
        return statement.type.name
    except ValueError:  # a kind that the Python library does not know
        return "something else"


def json_objects(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON tree."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def refused_names(connection: duckdb.DuckDBPyConnection) -> Names:
    """What the engine says of itself, less what is harmless; a database may have functions of the same names."""
    functions_query = (
        "SELECT function_name, function_type, has_side_effects, internal FROM system.main.duckdb_functions()"
    )
    functions = connection.execute(functions_query).fetchall()
    views_query = "SELECT view_name, schema_name, internal FROM system.main.duckdb_views()"
    views = connection.execute(views_query).fetchall()
    known = {(name.lower(), kind, effects) for name, kind, effects, internal in functions if internal}
    of_tables = {name for name, kind, _ in known if kind in ("table", "table_macro")} - TABLE_FUNCTIONS
    with_effects = {name for name, kind, effects in known if effects and kind != "table"} - _HARMLESS
    scalar = with_effects | _REFUSED_FUNCTIONS
    tables = {name for name, schema, internal in views if internal and schema != "information_schema"} - _SCHEMA_TABLES
    return Names(*map(frozenset, (scalar, of_tables, tables, scalar | of_tables | tables | _WRITES)))
