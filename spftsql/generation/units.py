"""How the requests of a stage are shared out to engines: whole databases, in units that are about equally long.

The prompts about one database begin alike, and an engine reads that beginning once. So the rows of a database stay
together on one engine: a unit is one model with one large database or several small ones. Only a database that is
more than the fair share of one engine is cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_BATCHES = 8  # in a unit, at most: an engine runs empty at the end of each
_PER_ENGINE = 4  # units, where there are rows for so many: the last ones to finish are shared out


@dataclass(frozen=True)
class Group:
    """Rows of one model and one database that stand together; `samples` is how many completions they ask for."""

    model: str
    db_id: str
    rows: int
    samples: int


@dataclass(frozen=True)
class Span:
    """Rows `start` up to `stop` (of all rows in their order), all of one model."""

    start: int
    stop: int
    model: str
    samples: int


def plan(groups: Sequence[Group], engines: int, batch_size: int) -> list[Span]:
    """The units of work over all rows of `groups`, in the order in which to hand them out: by model, longest first.

    By model, because an engine on a GPU holds one at a time. `batch_size` rows are the least that is worth a unit,
    unless there are too few rows to keep all engines busy.
    """
    spans: list[Span] = []
    start = 0
    for model in dict.fromkeys(group.model for group in groups):
        mine = [group for group in groups if group.model == model]
        found = _of_model(mine, start, engines, batch_size)
        spans += sorted(found, key=lambda span: (-span.samples, span.start))
        start += sum(group.rows for group in mine)
    return spans


def _of_model(groups: Sequence[Group], start: int, engines: int, batch_size: int) -> list[Span]:
    """The units of one model in the order of the rows, which begin at `start`."""
    total = sum(group.rows for group in groups)
    fair = math.ceil(total / engines)
    wanted = max(min(batch_size, fair), min(_BATCHES * batch_size, math.ceil(fair / _PER_ENGINE)))
    spans: list[Span] = []
    rows = samples = 0  # of the unit that is being filled
    model = groups[0].model

    def close() -> None:
        nonlocal start, rows, samples
        if rows:
            spans.append(Span(start, start + rows, model, samples))
        start, rows, samples = start + rows, 0, 0

    for group in groups:
        if rows and rows + group.rows > wanted:
            close()
        # On a single engine a cut costs nothing: the next unit finds the schema in its cache.
        most = wanted if engines == 1 else fair
        parts = math.ceil(group.rows / most)
        for part in range(parts):
            size = group.rows * (part + 1) // parts - group.rows * part // parts
            rows, samples = rows + size, samples + round(group.samples * size / group.rows)
            if part < parts - 1 or rows >= wanted:
                close()
    close()
    return spans
