"""That a statement on DuckDB reads what is granted and nothing else, by the plan that DuckDB itself makes of it.

The plan is the bound one, before it is optimized: views and macros are resolved in it, and every scan says its table
and the columns that are referred to by whatever name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import duckdb

from spftsql.sandbox.duckdb_policy import TABLE_FUNCTIONS, Refused, json_objects
from spftsql.sandbox.result import Granted


def check_granted(cursor: duckdb.DuckDBPyConnection, sql: str, granted: Granted) -> None:
    """Raises `Refused` where the plan reads something else, or cannot be looked at."""
    literal = "'" + sql.replace("'", "''") + "'"
    query = f"SELECT system.main.json_serialize_plan({literal}, optimize := false)"
    answer = cursor.execute(query).fetchone()
    try:
        plan = json.loads(answer[0]) if answer else {"error": True}
    except RecursionError:
        raise Refused("nested too deeply to be checked") from None
    if plan["error"]:
        raise Refused(f"cannot be checked: {' '.join(str(plan.get('error_message', 'no plan')).split())[:300]}")
    for node in json_objects(plan):
        if node.get("type") == "LOGICAL_GET":
            _check_scan(node, granted)


def _check_scan(scan: Mapping[str, Any], granted: Granted) -> None:
    data = scan.get("function_data")
    if not isinstance(data, Mapping) or "table" not in data:
        function = scan["qname"]["path"][-1]
        if function not in TABLE_FUNCTIONS:
            raise Refused(f"{function} is not granted")
        return
    table = str(data["table"]).lower()
    columns = granted.get(table) if data.get("schema") == "main" else None
    if columns is None:
        raise Refused(f"table {table} is not granted")
    names = [str(name).lower() for name in scan["names"]]
    for column in scan["column_indexes"] if columns else ():
        place = column["index"]
        if place >= len(names) or names[place] not in columns:  # beyond them: rowid and the like
            raise Refused(f"column {names[place] if place < len(names) else 'rowid'} of {table} is not granted")
