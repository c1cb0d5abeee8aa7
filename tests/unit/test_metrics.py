"""Intervals, paired tests and accuracy tables, against values computed by hand or printed in textbooks."""

from __future__ import annotations

import pytest

from spftsql.evaluation.metrics import mcnemar, paired_difference, questions_to_decide, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_widens_with_confidence_and_refuses_impossible_counts() -> None:
    low, high = wilson(50, 100, confidence=0.99)
    assert low < wilson(50, 100)[0] < 0.5 < wilson(50, 100)[1] < high
    with pytest.raises(ValueError, match="11 successes of 10"):
        wilson(11, 10)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(9, 1, 22 / 1024), (1, 9, 22 / 1024), (5, 0, 2 / 32), (3, 3, 1.0), (0, 0, 1.0), (10, 2, 158 / 4096)],
)
def test_mcnemar_is_the_exact_binomial_test(only_a: int, only_b: int, p: float) -> None:
    a = [True] * only_a + [False] * only_b + [True, False] * 20
    b = [False] * only_a + [True] * only_b + [True, False] * 20
    result = mcnemar(a, b)
    assert (result.only_a, result.only_b) == (only_a, only_b)
    assert result.p == pytest.approx(p)


def test_mcnemar_of_many_disagreements_does_not_overflow() -> None:
    assert mcnemar([True] * 3000, [False] * 3000).p < 1e-300
    with pytest.raises(ValueError):
        mcnemar([True], [True, False])


def test_questions_to_decide() -> None:
    assert questions_to_decide(10, 2, n=100) == 0  # p = .039 already
    assert questions_to_decide(4, 4, n=100) is None
    assert questions_to_decide(0, 0, n=100) is None
    # 6 against 2 grows by k = 2.395 until (4k - 1) / sqrt(8k) = 1.96
    assert questions_to_decide(6, 2, n=100) == 140
    assert questions_to_decide(2, 6, n=100) == 140
    assert questions_to_decide(5, 0, n=10, alpha=0.0625) >= 1  # p is alpha, which does not decide
    assert questions_to_decide(10, 2, n=100, alpha=0.01) == pytest.approx(50, abs=15)


@pytest.mark.parametrize(
    ("only_a", "only_b", "neither_nor", "difference", "low", "high"),
    [
        # By hand: centre (2 - 8) / 23, variance ((2 + 8) / 23 - (6 / 23)²) / 23. These are the data on which Fagerland,
        # Lydersen and Laake 2014 compare such intervals.
        (7, 1, 13, -6 / 21, -0.5084, -0.0134),
        (1, 7, 13, 6 / 21, 0.0134, 0.5084),
        (0, 0, 98, 0.0, -0.0277, 0.0277),
        (5, 5, 90, 0.0, -0.0666, 0.0666),
    ],
)
def test_paired_difference(
    only_a: int, only_b: int, neither_nor: int, difference: float, low: float, high: float
) -> None:
    a = [True] * only_a + [False] * only_b + [True] * neither_nor
    b = [False] * only_a + [True] * only_b + [True] * neither_nor
    assert paired_difference(a, b) == pytest.approx((difference, low, high), abs=1e-4)


def test_paired_difference_of_nothing_and_of_unlike_lengths() -> None:
    assert paired_difference([], []) == (0.0, -1.0, 1.0)
    with pytest.raises(ValueError):
        paired_difference([True], [])
