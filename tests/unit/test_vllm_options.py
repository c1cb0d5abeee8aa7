"""What vLLM is told, on a GPU and on the CPU. The GPU's options are checked here against vLLM's own names only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from spftsql.config import Config
from spftsql.generation.vllm_options import adapter_options, cache_bytes, engine_options, environment, padded_rank
from spftsql.recipes import validate


def settings(**sections: object) -> Config:
    tree = {"name": "test", "data": {"benchmark": "demo"}, "model": {"path": "unused", "dtype": "bfloat16"}, **sections}
    return validate(tree, "test")


@pytest.fixture
def base(tmp_path: Path) -> str:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    return str(tmp_path)


def test_gpu_is_used_for_throughput(base: str) -> None:
    config = settings(generation={"gpus": 2, "tensor_parallel_size": 2, "gpu_memory_utilization": 0.8})
    options = engine_options(config, base, 4096, 0, cpu=False)
    assert options == {
        "model": base,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "max_model_len": 4096,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.8,
        "enforce_eager": False,
        "enable_chunked_prefill": True,
        "performance_mode": "throughput",
    }
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in environment(cpu=False)
    assert "TORCHDYNAMO_DISABLE" not in environment(cpu=False)


def test_adapters_get_room_for_their_rank(base: str) -> None:
    for cpu in (True, False):
        options = engine_options(settings(), base, 1024, padded_rank(20), cpu=cpu)
        assert (options["enable_lora"], options["max_lora_rank"]) == (True, 32)
        assert "enable_lora" not in engine_options(settings(), base, 1024, 0, cpu=cpu)


def test_cpu_has_a_bounded_cache_and_whole_prompts(base: str) -> None:
    options = engine_options(settings(), base, 1024, 0, cpu=True)
    sequence = 2 * 4 * 2 * 2 * 64 * 1024  # keys and values, bytes, layers, heads, width, tokens
    assert options["kv_cache_memory_bytes"] == 64 * sequence
    assert cache_bytes(base, 1024 * 1024) == 2 * 1024 * sequence
    assert cache_bytes(base, 32 * 1024) == 1024**3
    assert options["dtype"] == "float32"
    assert options["enable_chunked_prefill"] is False
    assert options["max_num_batched_tokens"] >= options["max_model_len"]
    assert not {"gpu_memory_utilization", "performance_mode", "tensor_parallel_size"} & set(options)


@pytest.mark.long
def test_vllm_knows_every_option(base: str) -> None:
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for cpu in (True, False):
        assert set(engine_options(settings(), base, 1024, 8, cpu=cpu)) <= known


def test_on_a_cpu_one_place_for_adapters_stays_empty() -> None:
    """vLLM's CPU kernels take the last place for a request without an adapter."""
    assert adapter_options([], cpu=True) == adapter_options([], cpu=False) == {}
    assert adapter_options([4, 12], cpu=True) == {"enable_lora": True, "max_lora_rank": 16, "max_loras": 3}
    assert adapter_options([8] * 20, cpu=True)["max_loras"] == 21
    assert adapter_options([8] * 20, cpu=False)["max_loras"] == 8
    assert adapter_options([8], cpu=False)["max_loras"] == 1
