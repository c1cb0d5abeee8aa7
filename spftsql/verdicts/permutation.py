"""Equality of two results up to one permutation of the columns, as the test-suite evaluator of Spider asks for.

Trying all permutations is hopeless for wide results, and with unordered rows the question is one of graph
isomorphism (rows, columns and cells). So it is answered as graph isomorphism is in practice: colours of rows and
columns are refined until they are stable; where columns remain alike, one is singled out and each of its possible
partners is tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from spftsql.sandbox.result import Cell

_Grid = list[list[int]]  # rows of cell numbers; equal cells have equal numbers


def equal_under_permutation(one: Sequence[tuple[Cell, ...]], other: Sequence[tuple[Cell, ...]], ordered: bool) -> bool:
    """Whether one permutation of the columns makes the rows equal, as lists when `ordered`, else as bags.

    Two empty results are equal, whatever their columns. Cells are equal as Python says (1 = 1.0, '1' is not 1).
    """
    if len(one) != len(other):
        return False
    if not one:
        return True
    if len(one[0]) != len(other[0]):
        return False
    if ordered:
        return one == other or Counter(zip(*one, strict=True)) == Counter(zip(*other, strict=True))
    if Counter(one) == Counter(other):
        return True
    kinds: dict[frozenset[tuple[Cell, int]], int] = {}  # of columns, by what is in them
    ours, theirs = (
        [kinds.setdefault(frozenset(Counter(column).items()), len(kinds)) for column in zip(*rows, strict=True)]
        for rows in (one, other)
    )
    if sorted(ours) != sorted(theirs):
        return False
    if len(set(ours)) == len(ours):  # the usual case: there is but one permutation that can be
        order = [ours.index(kind) for kind in theirs]
        return Counter(tuple([row[column] for column in order]) for row in one) == Counter(other)
    numbers: dict[Cell, int] = {}
    grids = tuple([[numbers.setdefault(cell, len(numbers)) for cell in row] for row in rows] for rows in (one, other))
    return _match(grids[0], grids[1], ours, theirs)


def _match(one: _Grid, other: _Grid, one_colours: list[int], other_colours: list[int]) -> bool:
    """Whether some permutation that keeps the colours of the columns makes the grids equal as bags of rows."""
    refined = _refine(one, other, one_colours, other_colours)
    if refined is None:
        return False
    one_colours, other_colours = refined
    # Columns of one colour and the same content are interchangeable: only the others need to be told apart.
    contents = list(zip(*one, strict=True)), list(zip(*other, strict=True))
    classes: dict[int, tuple[dict[tuple[int, ...], int], dict[tuple[int, ...], int]]] = {}
    for side, colours in enumerate(refined):
        for column, colour in enumerate(colours):
            classes.setdefault(colour, ({}, {}))[side].setdefault(contents[side][column], column)
    open_classes = [columns for columns in classes.values() if max(map(len, columns)) > 1]
    if not open_classes:
        return _sorted_rows(one, one_colours) == _sorted_rows(other, other_colours)
    ours, theirs = min(open_classes, key=lambda columns: len(columns[1]))
    chosen, fresh = next(iter(ours.values())), len(one_colours)
    return any(
        _match(one, other, _singled_out(one_colours, chosen, fresh), _singled_out(other_colours, partner, fresh))
        for partner in theirs.values()
    )


def _refine(
    one: _Grid, other: _Grid, one_colours: list[int], other_colours: list[int]
) -> tuple[list[int], list[int]] | None:
    """Splits the colours of the columns by what is in them until nothing splits; None when the sides disagree."""
    while True:
        rows: dict[Hashable, int] = {}
        columns: dict[Hashable, int] = {}
        refined: list[list[int]] = []
        row_bags = []
        for grid, colours in ((one, one_colours), (other, other_colours)):
            row_colours = [rows.setdefault(tuple(sorted(zip(colours, row, strict=True))), len(rows)) for row in grid]
            row_bags.append(sorted(row_colours))
            refined.append(
                [
                    columns.setdefault((colour, tuple(sorted(zip(row_colours, cells, strict=True)))), len(columns))
                    for colour, cells in zip(colours, zip(*grid, strict=True), strict=True)
                ]
            )
        if row_bags[0] != row_bags[1] or sorted(refined[0]) != sorted(refined[1]):
            return None
        if len(set(refined[0])) == len(set(one_colours)):
            return refined[0], refined[1]
        one_colours, other_colours = refined


def _singled_out(colours: list[int], column: int, fresh: int) -> list[int]:
    return [fresh if index == column else colour for index, colour in enumerate(colours)]


def _sorted_rows(grid: _Grid, colours: list[int]) -> list[list[int]]:
    order = sorted(range(len(colours)), key=colours.__getitem__)
    return sorted([row[column] for column in order] for row in grid)
