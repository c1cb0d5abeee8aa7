"""Soft-F1, VES and R-VES: vectors from BIRD's programs, and their edge cases."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spftsql.evaluation.result_metrics import r_ves, soft_f1, time_ratio, ves

FIXTURE = Path(__file__).parents[1] / "fixtures" / "evaluation" / "soft_f1.jsonl"
VECTORS = [json.loads(line) for line in FIXTURE.read_text().splitlines()]


def test_all_vectors_are_there() -> None:
    assert len(VECTORS) == 15


@pytest.mark.parametrize("case", VECTORS, ids=str)
def test_soft_f1_agrees_with_minidevs_program(case: dict[str, Any]) -> None:
    prediction, gold = ([tuple(row) for row in case[side]] for side in ("prediction", "gold"))
    assert soft_f1(prediction, gold) == pytest.approx(case["soft_f1"], abs=5e-5)


cells = st.sampled_from([0, 1, 1.0, "1", None, b"1"])
results = st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[cells] * width), max_size=4))


@given(results, results)
def test_soft_f1_is_a_share_and_one_for_a_result_and_itself(prediction: list[Any], gold: list[Any]) -> None:
    assert 0.0 <= soft_f1(prediction, gold) <= 1.0
    assert soft_f1(gold, gold) == pytest.approx(1.0)
    assert soft_f1([*gold, *gold], gold) == pytest.approx(1.0)


def test_soft_f1_takes_null_for_a_value() -> None:
    # The example of mini_dev's own description, which says 0.8 because it takes NULL for absent.
    gold = [("Apple", 325), ("Orange", None), ("Banana", 119)]
    prediction = [(325, "Apple"), (191, "Orange"), (None, "Banana")]
    assert soft_f1(prediction, gold) == pytest.approx(2 / 3, abs=5e-4)


def test_time_ratio_is_the_mean_ratio_of_paired_runs() -> None:
    assert time_ratio([2.0, 4.0], [1.0, 1.0]) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="above 0"):
        time_ratio([1.0], [0.0])
    with pytest.raises(ValueError, match="at least one"):
        time_ratio([], [])


def test_time_ratio_drops_what_is_three_deviations_away() -> None:
    usual = [1.0, 1.1] * 50
    assert time_ratio([*usual, 500.0], [1.0] * 101) == pytest.approx(1.05)
    # One of ten can never be three deviations from their mean: it stays.
    assert time_ratio([*usual[:9], 500.0], [1.0] * 10) > 50


def test_equal_ratios_are_all_dropped_as_in_the_original() -> None:
    assert time_ratio([2.0] * 100, [1.0] * 100) == 0.0
    assert ves(time_ratio([2.0] * 100, [1.0] * 100)) == 0.0


@pytest.mark.parametrize(
    ("ratio", "reward"),
    [
        (3.0, 1.25),
        (2.0, 1.25),
        (1.99, 1.0),
        (1.0, 1.0),
        (0.99, 0.75),
        (0.5, 0.75),
        (0.49, 0.5),
        (0.25, 0.5),
        (0.2, 0.25),
        (0.0, 0.0),
    ],
)
def test_rewards(ratio: float, reward: float) -> None:
    assert r_ves(ratio) == pytest.approx(100 * math.sqrt(reward))
    assert ves(ratio) == pytest.approx(100 * math.sqrt(ratio))


def test_the_highest_reward() -> None:
    assert r_ves(1000.0) == pytest.approx(111.8, abs=0.01)
