"""Accuracies with their uncertainty, and paired comparisons of two systems on the same questions.

Pure functions over counts and booleans. The interval is Wilson's score interval (1927); the comparison is
McNemar's test in its exact form, a two-sided binomial test over the questions on which the two disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

# Student's t at .975, by degrees of freedom from 1 on.
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class McNemar:
    """A paired comparison: questions only a or only b answers, and the two-sided p-value of such a split."""

    only_a: int
    only_b: int
    p: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; (0, 1) when nothing was observed.

    Raises `ValueError` when `successes` is not within 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    z = _quantile(1 - confidence)
    share = successes / n
    centre = share + z * z / (2 * n)
    margin = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> McNemar:
    """Exact two-sided McNemar test of two systems.

    `a` and `b` say whether they are right, on the same questions in the same order.
    Raises `ValueError` when the lengths differ.
    """
    pairs = list(zip(a, b, strict=True))
    only_a = sum(x and not y for x, y in pairs)
    only_b = sum(y and not x for x, y in pairs)
    return McNemar(only_a, only_b, _binomial_p(only_a, only_b))


def paired_difference(a: Sequence[bool], b: Sequence[bool], confidence: float = 0.95) -> tuple[float, float, float]:
    """Accuracy of b minus accuracy of a on the same questions, with its interval: (difference, low, high).

    The interval is Wald's with the adjustment of Bonett and Price (2012): one question is added to each of the two
    kinds of disagreement. (0, -1, 1) when nothing was observed. Raises `ValueError` when the lengths differ.
    """
    pairs = list(zip(a, b, strict=True))
    if not pairs:
        return 0.0, -1.0, 1.0
    n = len(pairs)
    only_a, only_b = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    loss, gain = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    margin = _quantile(1 - confidence) * math.sqrt((loss + gain - (gain - loss) ** 2) / (n + 2))
    centre = gain - loss
    return (only_b - only_a) / n, max(-1.0, centre - margin), min(1.0, centre + margin)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of independent values with Student's 95 % interval: (mean, low, high).

    Of a single value nothing is known about the spread: the interval is then without bounds. Raises `ValueError` for
    none.
    """
    if not values:
        raise ValueError("no values")
    mean = math.fsum(values) / len(values)
    freedom = len(values) - 1
    if not freedom:
        return mean, -math.inf, math.inf
    t = _T_975[freedom - 1] if freedom <= len(_T_975) else _quantile(0.05)
    margin = t * math.sqrt(math.fsum((value - mean) ** 2 for value in values) / freedom / len(values))
    return mean, mean - margin, mean + margin


def fewest_to_decide(alpha: float) -> int:
    """The size of the smallest set on which the McNemar test can reach p < `alpha`: all questions on one side."""
    n = 1
    while _binomial_p(n, 0) >= alpha:
        n += 1
    return n


def questions_to_decide(only_a: int, only_b: int, n: int, alpha: float = 0.05) -> int | None:
    """About how many more questions would bring the McNemar test below `alpha`, if the rates seen on `n` hold.

    0 when it is there already, None when the two are level, so that no number would. The estimate inverts the
    continuity-corrected normal approximation of the test; chance alone moves the true number by a lot.
    """
    if _binomial_p(only_a, only_b) < alpha:
        return 0
    lead, split = abs(only_a - only_b), only_a + only_b
    if lead == 0:
        return None
    # (lead * k - 1) / sqrt(split * k) = z, a quadratic in sqrt(k); k is the factor by which n must grow.
    z = _quantile(alpha)
    root = (z * math.sqrt(split) + math.sqrt(z * z * split + 4 * lead)) / (2 * lead)
    return max(1, math.ceil((root * root - 1) * n))


def _binomial_p(only_a: int, only_b: int) -> float:
    split = only_a + only_b
    tail = sum(math.comb(split, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / (1 << split))


def _quantile(alpha: float) -> float:
    return NormalDist().inv_cdf(1 - alpha / 2)
