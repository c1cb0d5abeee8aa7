"""What stops self-play before it does harm, and what says that it cannot do good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from spftsql.evaluation.metrics import fewest_to_decide
from spftsql.records import Example
from spftsql.selfplay.candidates import Answer, accuracy
from spftsql.selfplay.gate import decide

LossForm = Literal["logistic", "hinge"]
_SATURATED: dict[LossForm, float] = {"logistic": 2.0, "hinge": 1.0}


def collapse(
    before: Sequence[Answer], after: Sequence[Answer], manifest: Mapping[str, Any], alpha: float
) -> str | None:
    """Why an iteration is not to be followed by another: its model answers the selection set worse than its main did.

    By the gate's paired test, on the `before` and `after` answers to the same questions. `manifest` is that of the
    trained model: a loss that fell meanwhile is the mark of a collapse, since nothing in it shows the harm. None where
    the test does not say worse.
    """
    found = decide(after, before, alpha)
    if found.outcome != "worse":
        return None
    start, end = manifest.get("loss_start"), manifest.get("loss")
    told = ""
    if isinstance(start, float) and isinstance(end, float):
        told = f" while the loss {'fell' if end < start else 'rose'} from {start:.3f} to {end:.3f}"
    return (
        f"collapse: accuracy on the selection set fell from {accuracy(before):.3f} to {accuracy(after):.3f} "
        f"(p = {found.p:.2g}){told}"
    )


def blindness(selection: Sequence[Example], alpha: float) -> str | None:
    """Why no collapse can be seen: on so few questions no test says worse. None where there are enough."""
    fewest = fewest_to_decide(alpha)
    if len(selection) >= fewest:
        return None
    return (
        f"a selection set of {len(selection)} questions cannot show a collapse, which takes {fewest} at least: raise "
        "vbi.train_pairs or vbi.selection_pairs"
    )


def saturation(margin: float | None, form: LossForm) -> str | None:
    """Why a training cannot learn much: main and opponent are so far apart that the loss is flat from the start.

    `margin` is the mean of λ[(log π/ρ)(y) − (log π/ρ)(y′)] before the first step. The slope of the logistic loss is
    σ(−margin), from 1/2 where both are alike to 0; the hinge has none beyond 1. None where there is slope enough.
    """
    if margin is None or margin < _SATURATED[form]:
        return None
    slope = 1 / (1 + math.exp(margin)) if form == "logistic" else 0.0
    return (
        f"the pairs start at a mean margin of {margin:.2f}, where the loss has a slope of {slope:.2g}: choose a nearer "
        "opponent (selfplay.opponent=previous or pool), selfplay.reference=main, or a lower selfplay.lambda"
    )
