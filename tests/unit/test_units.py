"""How requests are shared out to engines."""

from __future__ import annotations

import math
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from spftsql.generation.units import Group, plan

sizes = st.lists(st.lists(st.integers(1, 5000), min_size=1, max_size=30), min_size=1, max_size=4)


def groups(*models: list[int]) -> list[Group]:
    return [Group(f"m{m}", f"db{d}", rows, rows) for m, mine in enumerate(models) for d, rows in enumerate(mine)]


@given(sizes, st.integers(1, 16), st.integers(1, 512))
def test_every_row_is_in_one_unit_of_its_model(models: list[list[int]], engines: int, batch: int) -> None:
    given_groups = groups(*models)
    owner = [(g.model, g.db_id) for g in given_groups for _ in range(g.rows)]
    spans = plan(given_groups, engines, batch)
    covered = sorted((span.start, span.stop) for span in spans)
    assert [stop for _, stop in covered[:-1]] == [start for start, _ in covered[1:]]
    assert (covered[0][0], covered[-1][1]) == (0, len(owner))
    assert all({model for model, _ in owner[s.start : s.stop]} == {s.model} for s in spans)


@given(sizes, st.integers(2, 16), st.integers(1, 512))
def test_a_database_is_cut_only_beyond_the_fair_share_of_an_engine(
    models: list[list[int]], engines: int, batch: int
) -> None:
    given_groups = groups(*models)
    spans = plan(given_groups, engines, batch)
    at = 0
    for group in given_groups:
        touching = [span for span in spans if span.start < at + group.rows and span.stop > at]
        fair = math.ceil(sum(g.rows for g in given_groups if g.model == group.model) / engines)
        assert len(touching) <= math.ceil(group.rows / fair)
        at += group.rows


@given(sizes, st.integers(1, 16))
def test_models_follow_each_other_and_long_units_come_first(models: list[list[int]], engines: int) -> None:
    spans = plan(groups(*models), engines, 64)
    runs = [(model, [span.samples for span in mine]) for model, mine in groupby(spans, key=lambda span: span.model)]
    assert len(runs) == len(models)
    assert all(samples == sorted(samples, reverse=True) for _, samples in runs)


def test_no_engine_has_much_more_than_another() -> None:
    # Handed out longest first, each unit to the engine that is free first.
    rows = [300, 20, 20, 250, 60, 90, 10, 400, 35, 35, 70, 80]
    for engines in (2, 3, 4):
        busy = [0] * engines
        for span in plan(groups(rows), engines, 32):
            busy[busy.index(min(busy))] += span.samples
        assert max(busy) <= 1.35 * sum(rows) / engines


def test_small_databases_share_a_unit_and_one_engine_takes_large_bites() -> None:
    assert len(plan(groups([10] * 20), 1, 256)) == 1
    assert len(plan(groups([10] * 20), 2, 256)) == 2
    assert [span.stop - span.start for span in plan(groups([4096]), 1, 256)] == [1024] * 4
    assert [span.stop - span.start for span in plan(groups([4096]), 2, 256)] == [2048] * 2
