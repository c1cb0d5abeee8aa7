"""Metrics over the rows and times of one prediction and its gold, as BIRD defines them. Pure functions.

VES is of BIRD (Li et al. 2023, "Evaluation Metrics"); R-VES and soft-F1 are of BIRD's mini_dev. What is stated here is
what their published programs compute, which is not always what the texts say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from spftsql.sandbox.result import Cell

Row = tuple[Cell, ...]

_REWARDS = ((2.0, 1.25), (1.0, 1.0), (0.5, 0.75), (0.25, 0.5))  # from this ratio on, this reward


def soft_f1(prediction: Sequence[Row], gold: Sequence[Row]) -> float:
    """How much of the gold's cells a prediction has, in 0..1, as mini_dev's soft-F1 counts it.

    Rows that are there twice count once. Rows are paired by position: their order decides, also where none is asked
    for; the order of columns does not. In a pair, each cell counts as 1 / (columns of the gold), by whether the other
    row has it anywhere. A row without partner counts as 1. NULL is a value like others; two empty results are equal.
    """
    if not prediction and not gold:
        return 1.0
    ours, theirs = list(dict.fromkeys(prediction)), list(dict.fromkeys(gold))
    agree = 0.0
    only_prediction = float(max(0, len(ours) - len(theirs)))
    only_gold = float(max(0, len(theirs) - len(ours)))
    for mine, right in zip(ours, theirs, strict=False):
        found = sum(cell in right for cell in mine)
        agree += found / len(right)
        only_prediction += (len(mine) - found) / len(right)
        only_gold += sum(cell not in mine for cell in right) / len(right)
    precision = agree / (agree + only_prediction) if agree else 0.0
    recall = agree / (agree + only_gold) if agree else 0.0
    return 2 * precision * recall / (precision + recall) if agree else 0.0


def time_ratio(gold_ms: Sequence[float], prediction_ms: Sequence[float]) -> float:
    """How many times faster than the gold a correct prediction is: the mean of the ratios of paired runs.

    Ratios that are not strictly within three standard deviations of their mean are dropped first. Where all are
    equal, this drops all of them, and the result is 0: so do BIRD's programs. Raises `ValueError` without runs, for
    lengths that differ and for a time that is not positive.
    """
    if not gold_ms or min(*gold_ms, *prediction_ms) <= 0:
        raise ValueError("times of at least one run, all above 0, are needed")
    ratios = [gold / prediction for gold, prediction in zip(gold_ms, prediction_ms, strict=True)]
    mean = math.fsum(ratios) / len(ratios)
    spread = 3 * math.sqrt(math.fsum((ratio - mean) ** 2 for ratio in ratios) / len(ratios))
    kept = [ratio for ratio in ratios if mean - spread < ratio < mean + spread]
    return math.fsum(kept) / len(kept) if kept else 0.0


def ves(ratio: float) -> float:
    """The valid efficiency score of one correct prediction: 100 times the root of its time ratio; a wrong one has 0."""
    return 100 * math.sqrt(ratio)


def r_ves(ratio: float) -> float:
    """The reward-based score of one correct prediction, in 0..111.8: 100 times the root of a reward in five steps."""
    if ratio <= 0:
        return 0.0
    reward = next((reward for least, reward in _REWARDS if ratio >= least), 0.25)
    return 100 * math.sqrt(reward)
