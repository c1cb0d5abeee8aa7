"""What a statement reads, by the plan that the server makes of it: views are resolved there, and all names.

`EXPLAIN (VERBOSE)` writes every column as it is reached through the name of its scan, which is unique in a plan. Only
one list says more than is read: below nodes that compute their own columns a scan hands on all columns of its table,
because that saves a copy (https://github.com/postgres/postgres/blob/REL_15_STABLE/src/backend/optimizer/plan/createplan.c,
`use_physical_tlist`). What such a node takes of them stands in its own lists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from spftsql.sandbox.postgresql.policy import Refused, tokenize

# The functions of the database itself, which may read what they like; those of extensions are the server's.
OWN_FUNCTIONS = """
    SELECT DISTINCT proname FROM pg_proc AS p
    WHERE pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
        AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e')
"""
SCHEMAS = "SELECT unnest(current_schemas(false))"  # in which tables are found by their bare names
# The tables that a partition belongs to, within the same schema.
ANCESTORS = """
    WITH RECURSIVE above (oid) AS (
        SELECT inhparent FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE relnamespace = $1::text::regnamespace AND relname = $2
        UNION SELECT inhparent FROM pg_inherits JOIN above ON inhrelid = above.oid
    )
    SELECT relname FROM above JOIN pg_class USING (oid) WHERE relnamespace = $1::text::regnamespace
"""

# Nodes that compute their own columns, below which a scan may hand on more than is read.
_COMPUTING = {"Aggregate", "Group", "Hash Join", "Merge Join", "Nested Loop", "ProjectSet", "Result", "WindowAgg"}
_NO_EXPRESSIONS = {
    *("Node Type", "Relation Name", "Schema", "Alias", "Index Name", "Join Type", "Strategy", "Partial Mode"),
    *("Parent Relationship", "Subplan Name", "CTE Name", "Scan Direction", "Command", "Function Name"),
}
_PARAMETER = re.compile(r"\$\d+")
_ROW = "*"


@dataclass
class Reads:
    """A table that a statement scans, and the columns that it refers to (`*`: the whole row)."""

    schema: str
    table: str
    columns: set[str] = field(default_factory=set)


def explaining(sql: bytes) -> bytes:
    """A statement whose answer is for `reads_of`; it has a subquery, because a lone table's columns get no prefix."""
    return b"EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) SELECT * FROM (" + sql.rstrip(b"; \n") + b"\n) AS explained"


def reads_of(explained: str) -> list[Reads]:
    """The scans of a plan. Raises `Refused` where it cannot be read."""
    try:
        (plan,) = (each["Plan"] for each in json.loads(explained))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused("the server's plan cannot be read") from None
    nodes = list(_nodes(plan, ""))
    scans = {
        str(node.get("Alias", node["Relation Name"])): Reads(str(node["Schema"]), str(node["Relation Name"]))
        for node, _ in nodes
        if "Relation Name" in node
    }
    for node, parent in nodes:
        if node["Node Type"] in ("Foreign Scan", "Custom Scan") and "Relation Name" not in node:
            raise Refused("what is read elsewhere cannot be checked")
        is_child = node.get("Parent Relationship") in ("Outer", "Inner")  # and no plan of its own, whose list is exact
        hands_on = is_child and "Relation Name" in node and parent in _COMPUTING
        for name, value in node.items():
            if name not in _NO_EXPRESSIONS and not (name == "Output" and hands_on):
                for text in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
                    if isinstance(text, str):
                        _note(text, scans)
    return list(scans.values())


def _nodes(node: dict[str, Any], parent: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Every node with the type of the one above it."""
    yield node, parent
    for child in node.get("Plans", ()):
        yield from _nodes(child, str(node["Node Type"]))


def _note(expression: str, scans: dict[str, Reads]) -> None:
    tokens = tokenize(_PARAMETER.sub("NULL", expression))
    for scan, dot, column in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if scan.is_name and dot.symbol == "." and scan.text in scans:
            scans[scan.text].columns.add(column.text if column.is_name else _ROW)
