"""The losses of the five modes, as pure functions over log-probabilities.

Notation: x is the prompt, y the gold answer (chosen), y′ the answer it is compared with (rejected), π the model in
training, ρ its frozen reference, R the reward (1: y′ is wrong, 0: y′ is right), λ the regularisation, and ℓ one of

    logistic  ℓ(t) = log(1 + e^(−t)) = softplus(−t)
    hinge     ℓ(t) = max(0, 1 − t)

log π(y|x) is the *sum* over the tokens of y and of the end token after it, or their *mean* (`normalised`). Every pair
loss is elementwise: tensors of one shape or of shapes that broadcast give one value per pair. Several opponent samples
of a question are [questions, 1] for what belongs to y against [questions, samples] for what belongs to y′ and R. The
caller averages over the pairs of the global batch, those with R = 0 included, so that the value does not depend on how
rows are spread over workers and forward passes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

PairMode = Literal["spin", "dpo", "spft-a", "spft-b"]
LossForm = Literal["logistic", "hinge"]
Normalise = Literal["sum", "mean"]


def ell(margin: Tensor, form: LossForm = "logistic") -> Tensor:
    """ℓ(t): log(1 + e^(−t)), or max(0, 1 − t). Both are in Chen et al. 2024 (arXiv 2401.01335), section 4.1."""
    return softplus(-margin) if form == "logistic" else relu(1 - margin)


def normalised(summed: Tensor, tokens: Tensor, normalise: Normalise) -> Tensor:
    """Sums of log-probabilities over `tokens` tokens as the loss takes them: the sums, or the means over the tokens."""
    return summed if normalise == "sum" else summed / tokens


def sft_loss(
    token_logps: Tensor, in_prompt: Tensor, completion_tokens: float, prompt_tokens: float, prompt_weight: float
) -> Tensor:
    """Supervised fine-tuning: −1/C Σ_completion log π(token) − w/P Σ_prompt log π(token).

    `token_logps` [tokens] may be a part of the global batch: C and P are the whole batch's `completion_tokens` and
    `prompt_tokens`, and the values of the parts add up to the loss. `in_prompt` [tokens] is true for tokens of the
    prompt; `prompt_weight` is w. With w = 0 it is the usual token mean of the negative log-likelihood.
    """
    loss = -token_logps[~in_prompt].sum() / completion_tokens
    if prompt_weight:
        loss = loss - prompt_weight * token_logps[in_prompt].sum() / prompt_tokens
    return loss


def margins(
    chosen_logp: Tensor, rejected_logp: Tensor, ref_chosen_logp: Tensor, ref_rejected_logp: Tensor, lambda_: float
) -> Tensor:
    """λ[(log π/ρ)(y) − (log π/ρ)(y′)] per row: the difference of the implicit rewards (Rafailov et al. 2023)."""
    return lambda_ * ((chosen_logp - ref_chosen_logp) - (rejected_logp - ref_rejected_logp))


def spin(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor,
    lambda_: float,
    form: LossForm = "logistic",
) -> Tensor:
    """SPIN: ℓ(λ[(log π/ρ)(y) − (log π/ρ)(y′)]), ρ the previous iterate, every y′ taken as wrong.

    Source: Chen et al. 2024 (arXiv 2401.01335), equation 4.7.
    """
    return ell(margins(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, lambda_), form)


def dpo(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor,
    reward: Tensor,
    lambda_: float,
    form: LossForm = "logistic",
) -> Tensor:
    """DPO over wrong samples of the main model: R·ℓ(λ[(log π/ρ)(y) − (log π/ρ)(y′)]), ρ main before the round.

    Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 7 with β = λ; a right y′ is not dispreferred: R = 0.
    """
    return reward * spin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, lambda_, form)


def spft_a(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor,
    reward: Tensor,
    lambda_: float,
    form: LossForm = "logistic",
) -> Tensor:
    """SPFT-SQL, form A: ℓ(λ(log π/ρ)(y) − R·λ(log π/ρ)(y′)), ρ the opponent.

    A right answer of the opponent loses its penalty; the gold is still raised above the opponent. Source: equation 3
    of SPFT-SQL (arXiv 2509.03937), in the reading that fits its text best.
    """
    gain = lambda_ * (chosen_logp - ref_chosen_logp)
    penalty = lambda_ * (rejected_logp - ref_rejected_logp)
    return ell(gain - reward * penalty, form)


def spft_b(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor,
    reward: Tensor,
    lambda_: float,
    form: LossForm = "logistic",
) -> Tensor:
    """SPFT-SQL, form B: R·ℓ(λ[(log π/ρ)(y) − (log π/ρ)(y′)]), ρ the opponent; right answers drop out.

    Source: the other reading of equation 3 of SPFT-SQL (arXiv 2509.03937), which is the rule of ExSPIN. As a function
    it equals `dpo`; the two modes differ in who writes y′ and in the reference.
    """
    return reward * spin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, lambda_, form)


def pair_losses(
    mode: PairMode,
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor,
    reward: Tensor,
    lambda_: float,
    nll: Tensor,
    nll_weight: float,
    form: LossForm = "logistic",
) -> Tensor:
    """The loss of every pair in `mode`, plus w·NLL(y).

    `nll` is the negative log-likelihood of y per token (its sum divided by its length), so that its weight means the
    same for short and long answers; w is `nll_weight`.
    """
    logps = (chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    if mode == "spin":
        losses = spin(*logps, lambda_, form)
    else:
        losses = {"dpo": dpo, "spft-a": spft_a, "spft-b": spft_b}[mode](*logps, reward, lambda_, form)
    return losses + nll_weight * nll if nll_weight else losses


def pair_sums(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen_logp: Tensor,
    ref_rejected_logp: Tensor,
    reward: Tensor,
    lambda_: float,
) -> dict[str, Tensor]:
    """Sums over the pairs of what one watches in pair training; divided by the number of pairs they are means.

    `margin` as in `margins`; `wrong` counts R = 1; `preferred` counts pairs whose margin is above 0 (the accuracy of
    the implicit reward); `chosen_logp` and `rejected_logp` and how far each has drifted from the reference: both fall
    together when a run goes astray.
    """
    with torch.no_grad():
        margin = margins(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp, lambda_)
        return {
            "margin": margin.sum(),
            "wrong": reward.sum(),
            "preferred": (margin > 0).to(margin.dtype).sum(),
            "chosen_logp": chosen_logp.sum(),
            "rejected_logp": rejected_logp.sum(),
            "chosen_drift": (chosen_logp - ref_chosen_logp).sum(),
            "rejected_drift": (rejected_logp - ref_rejected_logp).sum(),
        }
