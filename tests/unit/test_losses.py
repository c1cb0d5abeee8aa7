"""The losses against hand-computed values, against each other, and against numerical gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from spftsql.training.losses import LossForm, PairMode, normalised, pair_losses, pair_sums, sft_loss

MODES = get_args(PairMode)
NLL = torch.tensor([0.5])


def row(*values: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def row3(*values: float) -> Tensor:
    return torch.tensor([float(value) for value in values])


GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "losses.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['mode']}-{case['why']}")
def test_golden_values(case: dict[str, Any]) -> None:
    loss = pair_losses(
        case["mode"], *row(*case["logps"]), *row(case["reward"]), case["lambda"], NLL, case["nll_weight"], case["form"]
    )
    assert loss.item() == pytest.approx(case["loss"], abs=1e-12)


@pytest.mark.parametrize("form", ["logistic", "hinge"])
def test_several_samples_of_a_question(form: LossForm) -> None:
    """[questions, 1] against [questions, samples] is every pair by itself."""
    generator = torch.Generator().manual_seed(3)
    chosen, ref_chosen = (-9 * torch.rand(4, 1, generator=generator) for _ in range(2))
    rejected, ref_rejected = (-9 * torch.rand(4, 3, generator=generator) for _ in range(2))
    reward = torch.randint(0, 2, (4, 3), generator=generator).float()
    for mode in MODES:
        losses = pair_losses(mode, chosen, rejected, ref_chosen, ref_rejected, reward, 0.3, -chosen / 7, 0.1, form)
        assert losses.shape == (4, 3)
        for sample in range(3):
            one = [values[:, sample] for values in (rejected, ref_rejected, reward)]
            alone = pair_losses(
                mode, chosen[:, 0], one[0], ref_chosen[:, 0], one[1], one[2], 0.3, -chosen[:, 0] / 7, 0.1, form
            )
            torch.testing.assert_close(losses[:, sample], alone)


def test_means_over_tokens() -> None:
    summed, tokens = torch.tensor([-6.0, -3.0]), torch.tensor([3.0, 2.0])
    assert normalised(summed, tokens, "sum").tolist() == [-6, -3]
    assert normalised(summed, tokens, "mean").tolist() == [-2, -1.5]


@pytest.mark.parametrize("mode", MODES)
def test_nll_is_added_with_its_weight(mode: PairMode) -> None:
    logps = (*row(-2, -3, -4, -2), *row(1))
    without = pair_losses(mode, *logps, 0.5, NLL, 0.0)
    assert (pair_losses(mode, *logps, 0.5, NLL, 2.0) - without).item() == pytest.approx(1.0)


@pytest.mark.parametrize("form", ["logistic", "hinge"])
def test_modes_agree_where_every_answer_is_wrong(form: LossForm) -> None:
    """With R = 1, the same y′ and the same reference, `spin`, `spft-a`, `spft-b` and `dpo` are one function."""
    generator = torch.Generator().manual_seed(0)
    logps = [-20 * torch.rand(50, generator=generator) for _ in range(4)]
    losses = [pair_losses(mode, *logps, torch.ones(50), 0.1, torch.zeros(50), 0.0, form) for mode in MODES]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])


def test_every_mode_differs_on_one_set_of_questions() -> None:
    """Each mode with its own y′ (the previous iterate's, main's, the opponent's) and its own reference."""
    gold = torch.tensor([-4.0, -6.0, -3.0])  # log π(y), the same for all
    of_opponent = (torch.tensor([-9.0, -6.0, -8.0]), gold - 2, torch.tensor([-3.0, -4.5, -5.0]), row3(1, 1, 0))
    settings: dict[PairMode, tuple[Tensor, Tensor, Tensor, Tensor]] = {
        "spin": (torch.tensor([-5.0, -4.0, -7.0]), gold - 0.5, torch.tensor([-4.0, -4.5, -6.0]), row3(1, 1, 1)),
        "dpo": (torch.tensor([-5.0, -3.0, -7.5]), gold - 0.2, torch.tensor([-4.5, -4.0, -7.0]), row3(1, 0, 1)),
        "spft-a": of_opponent,
        "spft-b": of_opponent,
    }
    values = {}
    for mode, (rejected, ref_gold, ref_rejected, reward) in settings.items():
        losses = pair_losses(mode, gold, rejected, ref_gold, ref_rejected, reward, 0.5, -gold, 0.0)
        values[mode] = round(losses.mean().item(), 6)
    values["sft"] = round(sft_loss(gold, torch.zeros(3, dtype=torch.bool), 20, 1, 0.0).item(), 6)  # type: ignore[index]
    assert len(set(values.values())) == 5, values


def test_modes_differ_where_some_answers_are_right() -> None:
    logps, reward = row(-2, -3, -4, -2), row(0)
    values = {mode: pair_losses(mode, *logps, *reward, 0.5, NLL, 0.0).item() for mode in MODES}
    assert len({values["spin"], values["spft-a"], values["spft-b"]}) == 3
    assert values["dpo"] == values["spft-b"] == 0


@pytest.mark.parametrize("form", ["logistic", "hinge"])
@pytest.mark.parametrize("mode", MODES)
def test_pair_gradients(mode: PairMode, form: LossForm) -> None:
    generator = torch.Generator().manual_seed(1)
    policy = [(-5 * torch.rand(6, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    reference = [-5 * torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2)]
    reward = torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.float64)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return pair_losses(mode, chosen, rejected, *reference, reward, 0.7, -chosen / 3, 0.2, form).mean()

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
        "chosen_drift": 1,  # 2 and −1
        "rejected_drift": 0,  # −1 and 1
    }
