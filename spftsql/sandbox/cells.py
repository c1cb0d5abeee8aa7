"""The canonical form of a cell, whatever engine it comes from: `None | int | float | str | bytes`.

Cells of that form travel as MessagePack, can be hashed, and are equal exactly when they stand for the same value. Only
light modules are imported here, because the child process of the sandbox imports this one.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import singledispatch
from typing import Any

from spftsql.sandbox.result import Cell

_INT64 = range(-(2**63), 2**63)
_EXACT_BELOW = 2.0**53  # whole floats below are exact integers


@singledispatch
def to_cell(value: object) -> Cell:
    r"""The cell for a value that a database driver gives.

    - bool: 0 or 1. int: itself; beyond 64 bits, which MessagePack cannot carry, its decimal digits as text.
    - float: itself, infinities too; NaN is the text `NaN`, so that it equals itself.
    - Decimal: as an int where it is whole; else the nearest float, which drops digits beyond the 17th; as plain decimal
      text where that float would be infinite or zero.
    - bytes, bytearray, memoryview: bytes. str: itself.
    - date: `2024-02-29`. datetime: `2024-02-29 13:05:00.25` (a blank, no trailing zeros, as the engines write it); one
      with a zone is converted to UTC and ends in `+00:00`. time: `13:05:00.25`; one with a zone keeps its offset,
      because without a date it cannot be moved to another.
    - timedelta: ISO 8601 in days and less, `-P1DT2H30M` (a month is what the driver makes of it).
    - list, tuple, dict: JSON text without blanks, keys sorted, 1.0 written as 1, bytes as `\x` and hexadecimal digits;
      what JSON has no form for is written as text.
    - anything else (UUID, addresses, ranges, enumerations): its `str()`.

    Raises:
        TypeError: the value has no text of its own.
        ValueError: lists or objects nested too deeply for Python's JSON writer.
    """
    kind = type(value)
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        raise TypeError(f"a value of type {kind.__name__} has no canonical form")
    return str(value)


@to_cell.register(type(None))
@to_cell.register(bytes)
@to_cell.register(str)
def _same(value: Any) -> Cell:
    return value  # type: ignore[no-any-return]


@to_cell.register
def _bool(value: bool) -> Cell:
    return int(value)


@to_cell.register
def _int(value: int) -> Cell:
    return int(value) if value in _INT64 else str(Decimal(value))  # `str(int)` refuses more than 4,300 digits


@to_cell.register
def _float(value: float) -> Cell:
    return "NaN" if math.isnan(value) else float(value)


@to_cell.register
def _decimal(value: Decimal) -> Cell:
    if not value.is_finite():
        return "NaN" if value.is_nan() else float(value)
    if not value or value.adjusted() < 19:
        whole = int(value)
        if whole == value and whole in _INT64:
            return whole
    nearest = float(value)
    if value == value.to_integral_value() or math.isinf(nearest) or nearest == 0:
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    return nearest


@to_cell.register(bytearray)
@to_cell.register(memoryview)
def _bytes(value: bytearray | memoryview) -> Cell:
    return bytes(value)


@to_cell.register
def _datetime(value: datetime) -> Cell:
    if value.tzinfo is None:
        return _clock_text(value, sep=" ")
    try:
        value = value.astimezone(UTC)
    except OverflowError:  # the first or last day that Python knows: in UTC it would be outside
        return value.isoformat(sep=" ")
    return _clock_text(value.replace(tzinfo=None), sep=" ") + "+00:00"


@to_cell.register
def _date(value: date) -> Cell:
    return value.isoformat()


@to_cell.register
def _time(value: time) -> Cell:
    offset = value.isoformat()[len(value.replace(tzinfo=None).isoformat()) :]
    return _clock_text(value.replace(tzinfo=None)) + offset


def _clock_text(value: datetime | time, **separator: str) -> str:
    text = value.isoformat(**separator)
    return text.rstrip("0") if "." in text else text


@to_cell.register
def _timedelta(value: timedelta) -> Cell:
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    minutes, seconds = divmod(value.seconds, 60)
    fraction = f".{value.microseconds:06d}".rstrip("0") if value.microseconds else ""
    parts = [(minutes // 60, "", "H"), (minutes % 60, "", "M"), (seconds, fraction, "S")]
    clock = "".join(f"{number}{rest}{unit}" for number, rest, unit in parts if number or rest)
    if not value:
        return "PT0S"
    return f"{sign}P" + (f"{value.days}D" if value.days else "") + (f"T{clock}" if clock else "")


@to_cell.register(list)
@to_cell.register(tuple)
@to_cell.register(dict)
def _json_text(value: Any) -> Cell:
    try:
        return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    except RecursionError:
        raise ValueError("a value is nested too deeply") from None


def _plain(value: object) -> object:
    """What the JSON writer takes: here true is not 1, as in JSON itself, and whole numbers may have any length."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(_json_text([key]))[1:-1]: _plain(v) for key, v in value.items()}
    cell = to_cell(value)
    if isinstance(cell, float):
        if math.isinf(cell):
            return str(cell)
        return int(cell) if cell.is_integer() and abs(cell) < _EXACT_BELOW else cell
    return "\\x" + cell.hex() if isinstance(cell, bytes) else cell
