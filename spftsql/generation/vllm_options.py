"""What vLLM is told when it loads a model: on a GPU, and on the CPU. Imports nothing of vLLM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spftsql.config import Config

QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
# torch.compile costs more than it gains on a CPU, and the engine's own processes import everything again.
ON_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
_CPU_SEQUENCES = 64  # full-length sequences that the KV cache on the CPU has room for
_CPU_CACHE_BYTES = 1024**3
_CPU_PREFILL_TOKENS = 8192
_CPU_BLOCK = 32  # tokens; of a shared prefix only whole blocks are shared, and vLLM's own default here is 128
_GPU_ADAPTERS = 8  # in one batch; others wait for a place
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM has kernels for


def environment(cpu: bool) -> dict[str, str]:
    """The environment variables under which vLLM must be imported."""
    return QUIET | ON_CPU if cpu else dict(QUIET)


def padded_rank(rank: int) -> int:
    """The smallest rank of adapters that vLLM has kernels for and that holds `rank`."""
    return next((size for size in _RANKS if size >= rank), rank)


def adapter_options(ranks: Sequence[int], *, cpu: bool) -> dict[str, Any]:
    """The arguments for an engine that serves adapters of these `ranks` beside their base, in the same batches.

    On a CPU vLLM 0.32 gives a request for the base the adapter in the last place (vllm-project/vllm#48421), so there is
    one place more than adapters, and it stays empty.
    """
    if not ranks:
        return {}
    places = len(ranks) + 1 if cpu else min(len(ranks), _GPU_ADAPTERS)
    return {"enable_lora": True, "max_lora_rank": padded_rank(max(ranks)), "max_loras": places}


def engine_options(config: Config, base: str, max_length: int, rank: int, *, cpu: bool) -> dict[str, Any]:
    """The arguments of `vllm.LLM` for the model in `base`, with sequences of `max_length` tokens.

    `rank` is that of its LoRA adapters, 0 for none. Throughput is what counts: nobody waits for a single answer.
    """
    options: dict[str, Any] = {
        "model": base,
        "skip_tokenizer_init": True,  # token ids go in and come out; `Checkpoint` has the tokenizer
        "generation_config": "vllm",
        "max_model_len": max_length,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": config.seed,
    }
    if rank:
        options |= {"enable_lora": True, "max_lora_rank": rank}
    if cpu:
        return options | cpu_options(base, max_length)
    return options | {
        "dtype": config.model.dtype,
        "tensor_parallel_size": config.generation.tensor_parallel_size,
        "gpu_memory_utilization": config.generation.gpu_memory_utilization,
        "enforce_eager": False,  # CUDA graphs
        "enable_chunked_prefill": True,
        # Twice the sequences and tokens that vLLM takes at once by default on the GPU at hand, and larger graphs.
        "performance_mode": "throughput",
    }


def cpu_options(base: str, max_length: int) -> dict[str, Any]:
    """The arguments that a CPU needs, whatever the engine is for."""
    return {
        "dtype": "float32",
        "enforce_eager": True,
        "kv_cache_memory_bytes": cache_bytes(base, max_length),
        "block_size": _CPU_BLOCK,
        # A prompt cut in two by the scheduler makes vLLM rewind the row's generator, which torch cannot on a CPU.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_CPU_PREFILL_TOKENS, max_length),
    }


def cache_bytes(base: str, max_length: int) -> int:
    """KV cache on the CPU: for 64 sequences of full length, at most 1 GiB but never less than for one sequence."""
    settings = json.loads((Path(base) / "config.json").read_text(encoding="utf-8"))
    heads = settings.get("num_key_value_heads") or settings["num_attention_heads"]
    width = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    sequence = 2 * 4 * int(settings["num_hidden_layers"]) * heads * width * max_length
    return int(max(min(_CPU_SEQUENCES * sequence, _CPU_CACHE_BYTES), 2 * sequence))


def weight_bytes(base: str) -> int:
    """The size of a model's weights on disk."""
    return sum(file.stat().st_size for file in Path(base).glob("*.safetensors"))
