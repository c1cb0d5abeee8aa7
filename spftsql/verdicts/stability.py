"""What the probes of a statement say about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spftsql.sandbox.result import Cell, Execution
from spftsql.verdicts.compare import Row, compare

if TYPE_CHECKING:
    from spftsql.verdicts.probes import Probe


@dataclass(frozen=True, slots=True)
class Stability:
    """Whether another correct execution of a statement could give another result on this database.

    `varies`: what the statement leaves open and the data does not settle; empty when all rows are certain. `ties`: the
    ends of the groups of rows whose order among each other is open; empty when it is open nowhere, None if unknown.
    """

    varies: str = ""
    ties: tuple[int, ...] | None = ()


def stability(gold: Execution, asked: Sequence[Probe], results: Mapping[str, Execution]) -> Stability:
    """The stability of the statement that gave `gold`, from the results of the statements in its probes."""
    ties: tuple[int, ...] | None = ()
    for probe in asked:
        pair = next((found for found in (_both(pair, results) for pair in probe.pairs) if found), None)
        if pair is None:
            if probe.cut:
                return Stability(f"{probe.reason}, for all that can be told")
            ties = None
        elif not compare(pair[0], pair[1], "strict", ordered=False):
            if probe.cut:
                return Stability(probe.reason)
            ties = None
        elif probe.ties and ties is not None:
            ties = _ties(gold.rows, *pair)
            if ties is None and probe.cut:  # what was derived is not the statement that ran
                return Stability(f"{probe.reason}, for all that can be told")
        elif probe.order and not compare(pair[0], pair[1], "strict", ordered=True):
            ties = None
    return Stability(ties=ties)


def _both(pair: tuple[str, str], results: Mapping[str, Execution]) -> tuple[list[Row], list[Row]] | None:
    one, other = (results[statement] for statement in pair)
    return (one.rows, other.rows) if one.status == other.status == "ran" else None


def _ties(gold: Sequence[Row], up: Sequence[Row], down: Sequence[Row]) -> tuple[int, ...] | None:
    """The ends of the groups of tied rows, from the same rows with the ties sorted up and down.

    A group ends wherever both have had the same rows so far: inside a group this happens only between equal rows. None
    when the gold has not the rows of these groups.
    """
    ends = []
    surplus: Counter[Row] = Counter()
    open_rows = 0  # those that one side has had more often than the other
    for end, pair in enumerate(zip(map(_rounded, up), map(_rounded, down), strict=False), start=1):
        for row, step in zip(pair, (1, -1), strict=True):
            before = surplus[row]
            surplus[row] = before + step
            open_rows += (before == 0) - (before + step == 0)
        if open_rows == 0:
            ends.append(end)
    if open_rows or not compare(up, gold, "strict", ordered=True, ties=ends):
        return None
    return () if len(ends) == len(gold) else tuple(ends)


def _rounded(row: Row) -> Row:
    """The row without the last digits of floats, which another plan of execution may change."""
    if float not in map(type, row):
        return row
    return tuple(_without_last_digits(cell) if type(cell) is float else cell for cell in row)


def _without_last_digits(cell: float) -> Cell:
    return float(f"{cell:.11e}")
