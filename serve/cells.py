"""Rows as JSON can say them."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from math import isfinite
from typing import Any

from spftsql.sandbox.result import Execution


def json_safe(value: Any) -> Any:
    """A cell as JSON can say it: bytes in hexadecimal; dates, decimals and the non-finite numbers as text."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()  # lone surrogates have no UTF-8
    if isinstance(value, date | datetime | Decimal):
        return str(value)
    return value if value is None or isinstance(value, bool | int) else str(value)


def rows_of(shown: Execution, cut: bool) -> dict[str, Any]:
    """Columns and rows of an execution as JSON has them; `cut` says whether there are more."""
    ran = shown.status in ("ran", "truncated")
    return {
        "columns": [json_safe(name) for name in shown.columns] if ran else [],
        "rows": [[json_safe(cell) for cell in row] for row in shown.rows],
        "truncated": cut,
    }
