"""The fast engine: one `vllm.LLM` per base model, LoRA adapters over it, on CUDA or with vLLM's CPU build.

On the CPU the engine runs in the calling process, and several small models stay loaded side by side: the import takes
ten seconds, a further model a quarter of a second. Closing an in-process LLM tears down state that the others use
until the next one is created; hence one is closed only right before that, and when creation fails all are closed.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spftsql.config import Config
from spftsql.errors import Fault
from spftsql.generation.checkpoint import Checkpoint, Completion, Prompt, adapter_rank
from spftsql.generation.engine import CheckpointEngine, EngineDied, Recent

QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
# torch.compile costs more than it gains on a CPU, and the engine's own processes import everything again.
ON_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
_CPU_MODELS_KEPT = 16
_CPU_BYTES = 4 * 1024**3  # weights and caches that may lie in the CPU's memory side by side
_CPU_SEQUENCES = 64  # full-length sequences that the KV cache on the CPU has room for
_CPU_CACHE_BYTES = 1024**3
_CPU_PREFILL_TOKENS = 8192
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM has kernels for


def environment(cpu: bool) -> dict[str, str]:
    """The environment variables under which vLLM must be imported."""
    return QUIET | ON_CPU if cpu else dict(QUIET)


@dataclass
class _Loaded:
    """An LLM and the numbers under which it knows its adapters."""

    llm: Any
    size: int  # bytes of weights and cache; 0 on a GPU
    adapters: dict[str, int] = field(default_factory=dict)


class VllmEngine(CheckpointEngine):
    """`Engine` over vLLM."""

    def __init__(self, config: Config) -> None:
        """Imports vLLM; loads no model."""
        super().__init__(config)
        import torch

        self._cpu = not torch.cuda.is_available()
        for name, value in environment(self._cpu).items():
            os.environ.setdefault(name, value)
        import vllm

        self._vllm = vllm
        # On a GPU an engine takes all the memory that it may have, so there is room for one.
        self._models: Recent[_Loaded] = Recent(_CPU_MODELS_KEPT if self._cpu else 1, self._drop)
        self._held = 0  # bytes of the models on the CPU

    def close(self) -> None:
        """See `Engine`."""
        with self._lock:
            self._models.clear()

    def _complete(self, checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> list[list[Completion]]:
        from vllm.v1.engine.exceptions import EngineDeadError

        model = self._loaded(checkpoint)
        try:
            outputs = model.llm.generate(
                [{"prompt_token_ids": prompt.tokens} for prompt in prompts],
                [self._sampling(prompt, checkpoint) for prompt in prompts],
                lora_request=self._adapter(model, checkpoint),
                use_tqdm=False,
            )
        except EngineDeadError as error:
            raise EngineDied(f"the vLLM engine of {checkpoint.directory} died: {error}") from error
        except Exception as error:
            # A scheduler that was interrupted in a step keeps its unfinished requests; it cannot be used again.
            self._models.clear()
            raise Fault(f"vLLM failed with {checkpoint.directory}: {type(error).__name__}: {error}") from error
        return [
            [Completion(list(o.token_ids), o.finish_reason == "stop") for o in sorted(r.outputs, key=lambda o: o.index)]
            for r in outputs
        ]

    def _sampling(self, prompt: Prompt, checkpoint: Checkpoint) -> Any:
        request = prompt.request
        return self._vllm.SamplingParams(
            n=request.n if request.temperature > 0 else 1,  # vLLM gives sample i the seed `seed + i`
            temperature=request.temperature,
            max_tokens=prompt.room,
            seed=request.seed,
            stop_token_ids=sorted(checkpoint.stops),
            detokenize=False,
        )

    def _adapter(self, model: _Loaded, checkpoint: Checkpoint) -> Any:
        if checkpoint.directory == checkpoint.base:
            return None
        from vllm.lora.request import LoRARequest

        number = model.adapters.setdefault(checkpoint.directory, len(model.adapters) + 1)
        return LoRARequest(checkpoint.directory, number, checkpoint.directory)

    def _loaded(self, checkpoint: Checkpoint) -> _Loaded:
        rank = 0
        if checkpoint.directory != checkpoint.base:
            wanted = adapter_rank(checkpoint.directory)
            rank = next((size for size in _RANKS if size >= wanted), wanted)
        key = f"{checkpoint.base} rank {rank}"
        try:
            return self._models.get(key, lambda: self._load(checkpoint, rank))
        except Exception as error:
            self._models.clear()
            raise Fault(f"vLLM cannot load {checkpoint.directory}: {type(error).__name__}: {error}") from error

    def _load(self, checkpoint: Checkpoint, rank: int) -> _Loaded:
        options: dict[str, Any] = {}
        if rank:
            options |= {"enable_lora": True, "max_lora_rank": rank}
        size = 0
        if self._cpu:
            size = _weight_bytes(checkpoint.base) + _cache_bytes(checkpoint)
            if self._held + size > _CPU_BYTES:
                self._models.clear()
            options |= _cpu_options(checkpoint)
        else:
            options |= {"dtype": self._config.model.dtype}
        llm = self._vllm.LLM(
            checkpoint.base,
            skip_tokenizer_init=True,  # token ids go in and come out; `Checkpoint` has the tokenizer
            generation_config="vllm",
            max_model_len=checkpoint.max_length,
            enable_prefix_caching=True,
            tensor_parallel_size=self._config.generation.tensor_parallel_size,
            gpu_memory_utilization=self._config.generation.gpu_memory_utilization,
            disable_log_stats=True,
            seed=self._config.seed,
            **options,
        )
        self._held += size
        return _Loaded(llm, size)

    def _drop(self, model: _Loaded) -> None:
        model.llm.llm_engine.engine_core.shutdown()
        del model.llm
        gc.collect()
        self._held -= model.size


def _cpu_options(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "dtype": "float32",
        "enforce_eager": True,
        "kv_cache_memory_bytes": _cache_bytes(checkpoint),
        # A prompt cut in two by the scheduler makes vLLM rewind the row's generator, which torch cannot on a CPU.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_CPU_PREFILL_TOKENS, checkpoint.max_length),
    }


def _cache_bytes(checkpoint: Checkpoint) -> int:
    """KV cache on the CPU: for 64 sequences of full length, at most 1 GiB but never less than for one sequence."""
    settings = json.loads((Path(checkpoint.base) / "config.json").read_text(encoding="utf-8"))
    heads = settings.get("num_key_value_heads") or settings["num_attention_heads"]
    width = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    sequence = 2 * 4 * int(settings["num_hidden_layers"]) * heads * width * checkpoint.max_length
    return int(max(min(_CPU_SEQUENCES * sequence, _CPU_CACHE_BYTES), 2 * sequence))


def _weight_bytes(directory: str) -> int:
    return sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
