"""A short name for a result, so that equal results are found without moving their rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain

from spftsql.sandbox.result import Cell


def digest(rows: Sequence[tuple[Cell, ...]]) -> str:
    """32 hexadecimal digits that are the same for equal bags of rows, in whatever order, with 1 = 1.0 and exact floats.

    Types are kept apart otherwise ('1' is not 1, text is not a blob). The number of columns of an empty result, and
    the engine that gave the rows, are not in it: keep the engine beside a digest that is stored.
    """
    kinds = set(map(type, chain.from_iterable(rows)))
    lines = sorted(map(_line if float in kinds else repr, rows))
    return hashlib.blake2b("\n".join(lines).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _line(row: tuple[Cell, ...]) -> str:
    return repr(tuple([int(cell) if type(cell) is float and cell.is_integer() else cell for cell in row]))
