"""The model in training: loading, adapters, dropout, and log-probabilities at the tokens that count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spftsql.config import GenerationConfig, LoraConfig
from spftsql.errors import UserError
from spftsql.generation.model_folders import ModelFolders
from spftsql.training.artefact import named_base, resolve_model
from spftsql.training.attention import masked_blocks, use_forest
from spftsql.training.batches import Micro, Sharing
from spftsql.training.scoring import check_logits, score_targets


class CompletionModel(nn.Module):
    """A causal language model that returns log-probabilities of chosen tokens only.

    The vocabulary projection runs at the positions that predict a scored token, never over the whole prompt, and in
    chunks whose logits are not kept.
    """

    def __init__(self, causal: Any, sharing: Sharing) -> None:
        """Wraps a transformers causal LM; its output layer learns to score targets (`scoring.score_targets`).

        Raises `UserError` for a model that cannot share beginnings, where `sharing` asks for it, and for one whose
        logits are more than a projection.
        """
        super().__init__()
        check_logits(causal.config)
        self.causal = causal
        if sharing == "tree":
            use_forest(causal)
        score_targets(causal.get_output_embeddings())

    def forward(self, micro: Micro) -> Tensor:
        """The log-probability of every scored token [N], float32.

        No attention mask is needed for dense passes: attention is causal, so a token never sees the padding behind it.
        """
        settings: dict[str, Any] = {}
        if micro.depth is not None and micro.until is not None:
            settings = {"position_ids": micro.depth[None], "forest": masked_blocks(micro.blocks, micro.until)}
        decoder = self.causal.get_decoder()
        hidden = decoder(input_ids=micro.input_ids, use_cache=False, **settings).last_hidden_state
        logps: Tensor = self.causal.get_output_embeddings()(hidden.flatten(0, 1)[micro.position], micro.target)
        return logps[micro.scored]


def sequence_sums(token_logps: Tensor, micro: Micro) -> Tensor:
    """The summed completion log-probability of every sequence [S]; tokens of the prompt do not count."""
    completion = ~micro.in_prompt
    sums = token_logps.new_zeros(micro.row.shape[0])
    return sums.index_add(0, micro.sequence[completion], token_logps[completion])


def load_causal_lm(folder: Path, dtype: torch.dtype, node: GenerationConfig | None = None) -> Any:
    """A causal LM on the CPU, with PyTorch's fused attention; an adapter is merged into its base.

    `node` says whether weights are read from copies on this machine (see `ModelFolders`). Raises `UserError` when
    `folder` holds none.
    """
    base = named_base(folder)
    with ModelFolders(node) as folders:
        if base is None:
            return _load_base(folder, folders, dtype, None)
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(_load_base(resolve_model(base), folders, dtype, None), folders.of(folder))
    return adapted.merge_and_unload().requires_grad_(True)  # peft had frozen the base


def _load_base(folder: Path, folders: ModelFolders, dtype: torch.dtype, bits: int | None) -> Any:
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if bits == 4:
        from transformers import BitsAndBytesConfig

        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        settings["device_map"] = {"": torch.cuda.current_device()}  # it is packed on the GPU
    try:
        return AutoModelForCausalLM.from_pretrained(folders.of(folder), **settings)
    except ImportError as error:
        raise UserError(f"training.lora.bits needs bitsandbytes: pip install 'spftsql[gpu]' ({error})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"no causal language model can be loaded from {folder}: {str(error).splitlines()[0]}") from None


def load_with_adapters(
    folder: Path, dtype: torch.dtype, config: LoraConfig, dropout: bool, node: GenerationConfig | None = None
) -> tuple[Any, Any]:
    """A causal LM with low-rank adapters on all linear layers, in place; everything else is frozen.

    Returns the model and the peft model around it. An adapter directory goes on with its adapter, anything else begins
    with a new one; `node` is that of `load_causal_lm`. Raises `UserError` for an adapter of another size: it cannot go
    on, and over its merged form the next adapter would have no base that is on disk.
    """
    from peft import LoraConfig as PeftConfig
    from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training

    base = named_base(folder)
    with ModelFolders(node) as folders:
        causal = _load_base(resolve_model(base) if base is not None else folder, folders, dtype, config.bits)
    if config.bits:
        causal = prepare_model_for_kbit_training(causal, use_gradient_checkpointing=False)
    probability = config.dropout if dropout else 0.0
    if base is None:
        settings = PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=probability,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        return causal, get_peft_model(causal, settings)
    settings = PeftConfig.from_pretrained(str(folder))
    if (settings.r, settings.lora_alpha) != (config.rank, config.alpha):
        raise UserError(
            f"{folder} is an adapter with rank {settings.r} and alpha {settings.lora_alpha}, and training.lora asks "
            f"for {config.rank} and {config.alpha}: set them alike, or merge it first (`spftsql export --merge`)"
        )
    settings.lora_dropout, settings.inference_mode = probability, False
    with ModelFolders(node) as folders:
        return causal, PeftModel.from_pretrained(causal, folders.of(folder), is_trainable=True, config=settings)


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
    sharing: Sharing,
    seed: int,
    node: GenerationConfig | None = None,
) -> tuple[CompletionModel, Any]:
    """Loads `folder` for training; returns the module to call and the peft model (None without adapters).

    `dropout` None switches every dropout off, as the pair losses need it: π and its reference must agree at the start.
    Adapters are initialised from `seed`; `node` is that of `load_causal_lm`.
    """
    adapted = None
    if lora is None:
        causal = load_causal_lm(folder, dtype, node)
    else:
        torch.manual_seed(seed)
        causal, adapted = load_with_adapters(folder, dtype, lora, dropout is not None, node)
    set_dropout(causal, dropout or 0.0)
    if gradient_checkpointing:
        causal.gradient_checkpointing_enable({"use_reentrant": False})
        if adapted is not None:
            causal.enable_input_require_grads()
    return CompletionModel(causal, sharing).train(), adapted
