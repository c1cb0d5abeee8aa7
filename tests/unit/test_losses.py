"""The losses against hand-computed values, against each other, and against numerical gradients."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from spftsql.training.losses import PairMode, pair_losses, pair_sums, sft_loss

MODES = get_args(PairMode)
NLL = torch.tensor([0.5])


def row(*values: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


# log π(y), log π(y′), log ρ(y), log ρ(y′), R, λ -> loss. With λ = 0.5: gain of y = 0.5·(−2 + 4) = 1, of y′
# = 0.5·(−3 + 2) = −0.5, so the margin is 1.5 and ℓ(t) = log(1 + e^−t)
# gives ℓ(1.5) = 0.201413, ℓ(1) = 0.313262, ℓ(0) = 0.693147.
GOLDEN = [
    ("spin", (-2, -3, -4, -2), 1, 0.5, 0.2014132779827524),
    ("spin", (-2, -3, -4, -2), 0, 0.5, 0.2014132779827524),  # spin takes every sample as wrong
    ("dpo", (-2, -3, -4, -2), 1, 0.5, 0.2014132779827524),
    ("dpo", (-2, -3, -4, -2), 0, 0.5, 0.0),
    ("spft-a", (-2, -3, -4, -2), 1, 0.5, 0.2014132779827524),
    ("spft-a", (-2, -3, -4, -2), 0, 0.5, 0.31326168751822286),  # the gold is still raised
    ("spft-b", (-2, -3, -4, -2), 1, 0.5, 0.2014132779827524),
    ("spft-b", (-2, -3, -4, -2), 0, 0.5, 0.0),
    ("spin", (-7, -9, -7, -9), 1, 0.1, math.log(2)),  # π = ρ
    ("spft-a", (-7, -9, -7, -9), 0, 0.1, math.log(2)),
    ("spft-a", (-500, -1, -1, -500), 1, 1.0, 998.0),  # far on the wrong side: linear, no overflow
]


@pytest.mark.parametrize(("mode", "logps", "reward", "lambda_", "expected"), GOLDEN)
def test_golden_values(mode: PairMode, logps: tuple[float, ...], reward: int, lambda_: float, expected: float) -> None:
    loss = pair_losses(mode, *row(*logps), *row(reward), lambda_, NLL, 0.0)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_nll_is_added_with_its_weight(mode: PairMode) -> None:
    logps = (*row(-2, -3, -4, -2), *row(1))
    without = pair_losses(mode, *logps, 0.5, NLL, 0.0)
    assert (pair_losses(mode, *logps, 0.5, NLL, 2.0) - without).item() == pytest.approx(1.0)


def test_modes_agree_where_every_answer_is_wrong() -> None:
    generator = torch.Generator().manual_seed(0)
    logps = [-20 * torch.rand(50, generator=generator) for _ in range(4)]
    losses = [pair_losses(mode, *logps, torch.ones(50), 0.1, torch.zeros(50), 0.0) for mode in MODES]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])


def test_modes_differ_where_some_answers_are_right() -> None:
    logps, reward = row(-2, -3, -4, -2), row(0)
    values = {mode: pair_losses(mode, *logps, *reward, 0.5, NLL, 0.0).item() for mode in MODES}
    assert len({values["spin"], values["spft-a"], values["spft-b"]}) == 3
    assert values["dpo"] == values["spft-b"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_pair_gradients(mode: PairMode) -> None:
    generator = torch.Generator().manual_seed(1)
    policy = [(-5 * torch.rand(6, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    reference = [-5 * torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2)]
    reward = torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.float64)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return pair_losses(mode, chosen, rejected, *reference, reward, 0.7, -chosen / 3, 0.2).mean()

    assert torch.autograd.gradcheck(loss, policy)


def test_a_right_answer_of_the_opponent_is_not_pushed_down() -> None:
    for mode, moves in (("spin", True), ("spft-a", False), ("spft-b", False), ("dpo", False)):
        chosen, rejected, *rest = row(-2, -3, -4, -2)
        rejected.requires_grad_()
        loss = pair_losses(mode, chosen.requires_grad_(), rejected, *rest, *row(0), 0.5, NLL, 0.0)
        (gradient,) = torch.autograd.grad(loss, rejected, allow_unused=True)
        assert (gradient is not None and gradient.item() > 0) is moves, mode


def test_sft_is_the_token_mean_and_its_parts_add_up() -> None:
    logps = torch.tensor([-1.0, -2.0, -3.0, -4.0, -6.0])
    in_prompt = torch.tensor([True, False, False, True, False])
    assert sft_loss(logps, in_prompt, 3, 2, 0.0).item() == pytest.approx(11 / 3)
    assert sft_loss(logps, in_prompt, 3, 2, 0.3).item() == pytest.approx(11 / 3 + 0.3 * 5 / 2)
    parts = sft_loss(logps[:2], in_prompt[:2], 3, 2, 0.3) + sft_loss(logps[2:], in_prompt[2:], 3, 2, 0.3)
    assert parts.item() == pytest.approx(sft_loss(logps, in_prompt, 3, 2, 0.3).item())


def test_sft_gradient() -> None:
    logps = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    in_prompt = torch.tensor([True, False, False])
    assert torch.autograd.gradcheck(lambda values: sft_loss(values, in_prompt, 2, 1, 0.3), (logps,))


def test_sums_for_the_metrics() -> None:
    chosen, rejected = torch.tensor([-2.0, -5.0]), torch.tensor([-3.0, -1.0])
    sums = pair_sums(
        chosen, rejected, torch.tensor([-4.0, -4.0]), torch.tensor([-2.0, -2.0]), torch.tensor([1.0, 0.0]), 0.5
    )
    assert {name: value.item() for name, value in sums.items()} == {
        "margin": 0.5,  # 1.5 and −1
        "wrong": 1,
        "preferred": 1,
        "chosen_logp": -7,
        "rejected_logp": -4,
    }
