"""Attention over a forest of packed sequences (see `prefixes`), as an implementation that transformers can be told.

Each block of queries is one call of PyTorch's fused attention. A trunk is plain causal attention; the branches attend
to everything of their tree up to themselves under a mask. Keys and values are slices of the packed ones: no copy of a
shared beginning is made, and no matrix of scores is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from spftsql.errors import UserError
from spftsql.training.prefixes import Block

_NAME = "spftsql_forest"
_FAMILIES = ("qwen2", "qwen3", "llama", "mistral")
Masked = tuple[Block, Tensor | None]


def use_forest(causal: Any) -> None:
    """Tells a transformers model to attend over forests; without one it attends as before.

    Raises `UserError` for a model whose attention is more than causal attention with rotary positions.
    """
    from transformers import AttentionInterface

    config = causal.config
    window = config.model_type == "mistral" and config.sliding_window
    layers = {"sliding_attention"} if window else set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.model_type not in _FAMILIES or layers != {"full_attention"}:
        what = f"model type {config.model_type} with {', '.join(sorted(layers)).replace('_', ' ')}"
        raise UserError(f"{what} cannot share beginnings; set training.sharing to none")
    AttentionInterface.register(_NAME, attend)
    causal.set_attn_implementation(_NAME)


def masked_blocks(blocks: Sequence[Block], until: Tensor) -> list[Masked]:
    """Every block with its mask [end − start, end − keys]: true where a token is seen; None for a chain."""
    masked: list[Masked] = []
    for block in blocks:
        if block.chain:
            masked.append((block, None))
            continue
        key = torch.arange(block.keys, block.end, device=until.device)
        query = torch.arange(block.start, block.end, device=until.device)[:, None]
        masked.append((block, (key <= query) & (query < until[block.keys : block.end])))
    return masked


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    forest: Sequence[Masked] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: [batch, heads, tokens, size] to [batch, tokens, heads, size].

    With `forest` the tokens of the one packed sequence see each other by the tree; without, causally.
    """
    if forest is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    parts = [
        scaled_dot_product_attention(
            query[:, :, block.start : block.end],
            key[:, :, block.keys : block.end],
            value[:, :, block.keys : block.end],
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        for block, mask in forest
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None
