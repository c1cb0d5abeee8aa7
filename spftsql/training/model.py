"""The model in training: loading, adapters, dropout, and log-probabilities at the tokens that count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spftsql.config import LoraConfig
from spftsql.errors import UserError
from spftsql.training.batches import Micro


class CompletionModel(nn.Module):
    """A causal language model that returns log-probabilities of chosen tokens only.

    The vocabulary projection runs at the positions that predict a scored token, never over the whole prompt.
    """

    def __init__(self, causal: Any) -> None:
        """Wraps a transformers causal LM."""
        super().__init__()
        self.causal = causal

    def forward(self, input_ids: Tensor, position: Tensor, target: Tensor) -> Tensor:
        """The log-probability of every target [N], float32.

        `input_ids` is [S, L], padded on the right; `position` [N] indexes the flattened [S·L]. No attention mask is
        needed: attention is causal, so a token never sees the padding behind it.
        """
        hidden = self.causal.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = self.causal.get_output_embeddings()(hidden.flatten(0, 1)[position])
        return -nn.functional.cross_entropy(logits.float(), target, reduction="none")


def sequence_sums(token_logps: Tensor, micro: Micro) -> Tensor:
    """The summed completion log-probability of every sequence [S]; tokens of the prompt do not count."""
    completion = ~micro.in_prompt
    sums = token_logps.new_zeros(micro.row.shape[0])
    return sums.index_add(0, micro.sequence[completion], token_logps[completion])


def load_causal_lm(folder: Path, dtype: torch.dtype) -> Any:
    """A causal LM on the CPU, with PyTorch's fused attention. Raises `UserError` when `folder` holds none."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise UserError(f"no causal language model can be loaded from {folder}: {str(error).splitlines()[0]}") from None


def add_adapters(causal: Any, config: LoraConfig, dropout: bool) -> Any:
    """Puts low-rank adapters on all linear layers, in place; everything else is frozen. Returns the peft model."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    settings = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout if dropout else 0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(causal, settings)


def set_dropout(causal: Any, probability: float) -> None:
    """Dropout while training: on attention weights, on the embeddings, and on what each block adds to the residual.

    The last two are forward hooks, so that the saved architecture stays the one that every engine knows.
    """

    def drop(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, probability, training=module.training)

    for name, module in causal.named_modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = probability
        if probability and name.rsplit(".", 1)[-1] in ("embed_tokens", "o_proj", "down_proj"):
            module.register_forward_hook(drop)


def prepare_for_training(
    folder: Path,
    dtype: torch.dtype,
    lora: LoraConfig | None,
    dropout: float | None,
    gradient_checkpointing: bool,
    seed: int,
) -> tuple[CompletionModel, Any]:
    """Loads `folder` for training; returns the module to call and the peft model (None without adapters).

    `dropout` None switches every dropout off, as the pair losses need it: π and its reference must agree at the start.
    Adapters are initialised from `seed`.
    """
    causal = load_causal_lm(folder, dtype)
    adapted = None
    if lora is not None:
        torch.manual_seed(seed)
        adapted = add_adapters(causal, lora, dropout=dropout is not None)
    set_dropout(causal, dropout or 0.0)
    if gradient_checkpointing:
        causal.gradient_checkpointing_enable({"use_reentrant": False})
        if adapted is not None:
            causal.enable_input_require_grads()
    return CompletionModel(causal).train(), adapted
