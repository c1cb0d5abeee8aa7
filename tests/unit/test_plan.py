"""The arithmetic of --dry-run, against numbers worked out elsewhere and against a real model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spftsql.config import Config, LoraConfig
from spftsql.planning.dry_run import dry_run, models_trained
from spftsql.planning.shapes import GIB, KNOWN, TrainingMemory, generation_memory, shape_of_directory, training_memory
from spftsql.recipes import resolve

SEVEN = KNOWN["Qwen/Qwen2.5-Coder-7B-Instruct"]


@pytest.mark.parametrize(
    ("name", "billions"),  # as the models' cards give them
    [
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", 1.54),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", 7.62),
        ("Qwen/Qwen2.5-Coder-14B-Instruct", 14.77),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", 32.76),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8.03),
        ("deepseek-ai/deepseek-coder-7b-instruct-v1.5", 6.91),
    ],
)
def test_parameters_of_the_known_models(name: str, billions: float) -> None:
    assert KNOWN[name].parameters / 1e9 == pytest.approx(billions, abs=0.006)


def test_kv_cache_of_a_token() -> None:
    assert SEVEN.kv_bytes(2) == 57_344  # 2 × 28 layers × 4 heads × 128 × 2 bytes


def memory(workers: int = 1, zero: int = 0, offload: bool = False, lora: LoraConfig | None = None) -> TrainingMemory:
    return training_memory(
        SEVEN,
        workers=workers,
        zero_stage=zero,
        offload=offload,
        lora=lora,
        value_bytes=2,
        tokens=4096,
        scored=512,
        device="cuda",
        checkpointing=True,
    )


def test_full_fine_tuning_takes_sixteen_bytes_a_parameter_and_zero_shards_them() -> None:
    states = [memory(4, zero).total - memory(4, zero).activations for zero in range(4)]
    count = SEVEN.parameters
    assert states == pytest.approx([16 * count, 7 * count, 5.5 * count, 4 * count])


def test_offloading_moves_the_optimizer_to_the_host() -> None:
    there, here = memory(4, 3, offload=True), memory(4, 3)
    assert there.optimizer == 0
    assert there.host == pytest.approx(4 * here.optimizer) == pytest.approx(12 * SEVEN.parameters)


def test_adapters_cost_little_beside_the_frozen_weights() -> None:
    lora = memory(lora=LoraConfig(rank=32))
    assert lora.weights == pytest.approx(2 * SEVEN.parameters, rel=0.02)
    assert lora.gradients + lora.optimizer < 0.1 * lora.weights


def test_checkpointing_saves_most_activations() -> None:
    assert SEVEN.activation_bytes(4096, 2, True) < 0.1 * SEVEN.activation_bytes(4096, 2, False)


def test_logits_exist_some_at_a_time() -> None:
    few, many, more = (SEVEN.logit_bytes(tokens, "cuda") for tokens in (100, 10_000, 100_000))
    assert few == 100 * 152_064 * 12
    assert many == more == 2**27 * 12
    assert SEVEN.logit_bytes(1_000, "cpu") == 2**23 * 12


def activations(*overrides: str) -> str:
    """What the dry run says of the largest pass."""
    lines = dry_run(resolve("spider-qwen2.5-coder-1.5b", ["model.max_length=2048", *overrides])).lines
    (line,) = (line for line in lines if "activations" in line)
    return line.partition("passes of up to ")[2].partition(" tokens")[0]


@pytest.mark.parametrize(
    ("overrides", "tokens"),
    [
        (["training.micro_batch=4"], 4 * (2048 + 256)),  # a prompt once, two answers
        (["training.micro_batch=4", "training.sharing=none"], 4 * 2 * 2048),
        (["training.micro_batch=4", "selfplay.iterations=0"], 4 * 2048),
        (["training.micro_batch=64"], 16_384),  # micro_tokens
        (["training.micro_batch=64", "training.micro_tokens=5000"], 5_000),
        (["training.micro_batch=64", "training.micro_tokens=100"], 2048 + 256),  # one row may be longer
    ],
)
def test_a_pass_is_as_large_as_rows_and_tokens_allow(overrides: list[str], tokens: int) -> None:
    assert activations("generation.max_tokens=256", *overrides) == f"{tokens:,}"


def test_tensor_parallelism_makes_room_for_the_cache() -> None:
    shape = KNOWN["Qwen/Qwen2.5-Coder-32B-Instruct"]
    one, two = (
        generation_memory(shape, gpu_bytes=80 * GIB, utilization=0.9, tensor_parallel=n, value_bytes=2, length=2048)
        for n in (1, 2)
    )
    assert two.weights == one.weights / 2
    assert two.sequences > 4 * one.sequences > 0


def test_parameters_of_a_real_model_directory(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=1000,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(tmp_path)
    assert shape_of_directory(tmp_path).parameters == pytest.approx(model.num_parameters(), rel=0.01)
    config = resolve("demo", ["model.scratch=null", f"model.path={tmp_path}"])
    assert dry_run(config).problems == [
        f"model {tmp_path} has no chat template: set model.chat_template to a Jinja file"
    ]


def problems(*overrides: str, recipe: str = "spider-qwen2.5-coder-7b") -> list[str]:
    return [p for p in dry_run(resolve(recipe, overrides)).problems if not p.startswith("data.root is not set")]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["training.lora=null"], "per GPU and 72.0 GiB are usable"),
        (["profile=1x24", "model.max_length=32768"], "generation holds"),
        (["model.max_length=40000"], "beyond the model's 32768 tokens"),
        (["generation.tensor_parallel_size=8", "generation.gpus=8"], "does not divide the model's 28 heads"),
        (["generation.tensor_parallel_size=2", "cluster.gpus=2"], "set both alike"),
        (["training.workers=2"], "2 GPUs are needed and cluster.gpus says 1"),
        (["training.validate_steps=50"], "2 GPUs are needed and cluster.gpus says 1"),  # an engine beside the worker
        (["cluster.cpus=4"], "CPUs are needed at a time"),
        (["model.path=/nowhere/model"], "the directory /nowhere/model does not exist"),
        (["model.path=somebody/unheard-of"], "not a model whose size is known"),
        (["generation.max_tokens=2048"], "leaves no room for a prompt"),
        (["data.root=/nowhere/spider"], "data.root: /nowhere/spider is not a directory"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(overrides: list[str], problem: str) -> None:
    found = problems(*overrides)
    assert any(problem in line for line in found)
    assert not any("\n" in line for line in found)


def test_what_was_never_run_is_marked_in_the_plan() -> None:
    config = resolve("spider-qwen2.5-coder-7b", ["training.lora={rank: 8, bits: 4}"])
    (line,) = [line for line in dry_run(config).lines if line.startswith("training:")]
    assert "4-bit weights (not yet seen working" in line
    assert not any("not yet seen working" in line for line in dry_run(resolve("spider-qwen2.5-coder-7b")).lines)


def test_an_unknown_architecture_is_a_problem(tmp_path: Path) -> None:
    tree = {
        "architectures": ["MambaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
    }
    (tmp_path / "config.json").write_text(json.dumps(tree))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "model.safetensors").touch()
    (found,) = problems(f"model.path={tmp_path}")
    assert found.startswith("architecture MambaForCausalLM is not one of")


def test_every_model_of_the_run_is_counted() -> None:
    config: Config = resolve("demo", ["vbi.rounds=2", "selfplay.iterations=2"])
    assert models_trained(config) == [
        *("sft", "question-0", "question-1", "vbi-1", "vbi-2", "control"),
        *("spft-a-1", "spft-a-2", "spin-1", "spin-2"),
    ]


def test_models_of_folds_are_counted() -> None:
    fold = ["sft", "question-0", "vbi-1", "spft-a-1"]  # no control and no baselines
    models = models_trained(resolve("demo", ["gate.folds=2"]))
    assert models == [
        *("sft", "question-0", "vbi-1", "control", "spft-a-1", "spin-1"),
        *(f"{name}-fold-{number}" for number in (1, 2) for name in fold),
    ]
    assert len(models_trained(resolve("demo", ["gate.folds=2", "gate.enabled=false"]))) == 6
    assert "14 models (sft, " in disk_line("demo", "gate.folds=2") and "and the base" in disk_line("demo")


@pytest.mark.parametrize(
    ("overrides", "models"),
    [
        (
            ["data.label_share=0", "gate.folds=2", "vbi.rounds=2"],
            ["question-1", "vbi-1", "vbi-2", "spft-a-1", "spin-1"],
        ),
        (["vbi.control=false", "selfplay.baselines=[]"], ["sft", "question-0", "vbi-1", "spft-a-1"]),
        (["vbi.rounds=0"], ["sft", "question-0"]),  # self-play needs the questions of VBI-FT
        (["vbi.play_pairs=0"], ["sft", "question-0", "vbi-1", "control"]),
    ],
)
def test_models_that_are_never_trained_are_not_counted(overrides: list[str], models: list[str]) -> None:
    assert models_trained(resolve("demo", overrides)) == models


def disk_line(recipe: str, *overrides: str) -> str:
    """What the dry run says of the disk."""
    (line,) = (line for line in dry_run(resolve(recipe, overrides)).lines if line.startswith("disk: "))
    return line


def test_adapters_are_counted_as_adapters() -> None:
    seven = "spider-qwen2.5-coder-7b"
    assert "of 0.2 GiB" in disk_line(seven) and "of 14.2 GiB" in disk_line(seven, "training.lora.keep=merged")
    assert "of 14.2 GiB" in disk_line(seven, "profile=8x80") and "the base" not in disk_line(seven)


def test_a_dry_run_starts_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from spftsql.recipes import resolve; from spftsql.planning.dry_run import dry_run; "
        "assert dry_run(resolve('demo')).problems == []; "
        "print(*({'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
