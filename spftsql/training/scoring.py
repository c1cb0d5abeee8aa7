"""Log-probabilities of target tokens from hidden states, without the logits of all of them at once."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

from spftsql.errors import UserError
from spftsql.planning.shapes import LOGITS_AT_A_TIME


def check_logits(config: Any) -> None:
    """Raises `UserError` for a model that scales or caps its logits: what is computed here would be something else."""
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1.0):
            raise UserError(f"model type {config.model_type} cannot be trained: it changes its logits ({name})")


def score_targets(head: nn.Module) -> None:
    """Makes the call `head(hidden, target)` of an output layer return `target_logps`; `head(hidden)` stays as it was.

    It is a call of the layer itself, and one only, so that weights that are partitioned over workers (ZeRO-3) are put
    together for it, in the forward and in the backward pass, equally often on all of them.
    """
    plain = head.forward

    def forward(layer: Any, hidden: Tensor, target: Tensor | None = None) -> Tensor:
        if target is None:
            logits: Tensor = plain(hidden)
            return logits
        return target_logps(hidden, layer.weight, layer.bias, target)

    head.forward = types.MethodType(forward, head)


def target_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """The values of log softmax(hidden·Wᵀ + b) at `target`: [N, H] and [N] to [N], float32.

    Logits exist for some rows at a time and are made again in the backward pass; sums over the vocabulary are float32.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype) if bias is not None else None
    logps: Tensor = _TargetLogps.apply(hidden, weight, bias, target)  # type: ignore[no-untyped-call]
    return logps


class _TargetLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        parts = []
        for rows in _chunks(len(target), weight):
            logits = nn.functional.linear(hidden[rows], weight, bias)
            parts.append(-nn.functional.cross_entropy(_wide(logits), target[rows], reduction="none"))
        ctx.save_for_backward(hidden, weight, bias, target)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (grad,) = outputs
        hidden, weight, bias, target = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        for rows in _chunks(len(target), weight):
            # d log p_t / d logits = onehot(t) − softmax(logits)
            logits = nn.functional.linear(hidden[rows], weight, bias)
            slope = torch.softmax(_wide(logits), dim=-1).mul_(-grad[rows, None])
            slope[torch.arange(len(slope), device=slope.device), target[rows]] += grad[rows]
            slope = slope.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = slope @ weight
            if grad_weight is not None:
                grad_weight.addmm_(slope.T, hidden[rows])
            if grad_bias is not None:
                grad_bias += slope.sum(0)
        return grad_hidden, grad_weight, grad_bias, None


def _chunks(rows: int, weight: Tensor) -> list[slice]:
    size = max(1, LOGITS_AT_A_TIME.get(weight.device.type, LOGITS_AT_A_TIME["cpu"]) // weight.shape[0])
    return [slice(start, start + size) for start in range(0, max(rows, 1), size)]


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
