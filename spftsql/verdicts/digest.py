"""A short name for a result, so that equal results are found without moving their rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from spftsql.sandbox.result import Cell


def digest(rows: Sequence[tuple[Cell, ...]]) -> str:
    """32 hexadecimal digits that are the same for equal bags of rows, in whatever order, with 1 = 1.0 and exact floats.

    Types are kept apart otherwise ('1' is not 1, text is not a blob). The number of columns of an empty result, and
    the engine that gave the rows, are not in it: keep the engine beside a digest that is stored.
    """
    lines = sorted(map(_line, rows))
    return hashlib.blake2b("\n".join(lines).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _line(row: tuple[Cell, ...]) -> str:
    if float in map(type, row):
        row = tuple(int(cell) if type(cell) is float and cell.is_integer() else cell for cell in row)
    return repr(row)
