"""The recipes that come with the package."""

from __future__ import annotations

from importlib import resources

import pytest
import yaml

from spftsql.errors import UserError
from spftsql.planning.dry_run import dry_run
from spftsql.planning.shapes import KNOWN
from spftsql.recipes import recipe_names, resolve

MODELS = {
    "qwen2.5-coder-1.5b": "Qwen/Qwen2.5-Coder-1.5B-Instruct",
    "qwen2.5-coder-7b": "Qwen/Qwen2.5-Coder-7B-Instruct",
    "qwen2.5-coder-14b": "Qwen/Qwen2.5-Coder-14B-Instruct",
    "qwen2.5-coder-32b": "Qwen/Qwen2.5-Coder-32B-Instruct",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B-Instruct",
    "deepseek-coder-7b": "deepseek-ai/deepseek-coder-7b-instruct-v1.5",
}
HARDWARE = {"1x24": (1, 24), "1x80": (1, 80), "2x80": (2, 80), "8x80": (8, 80)}
TOO_LARGE_FOR_24 = ("qwen2.5-coder-14b", "qwen2.5-coder-32b")
CASES = [
    (benchmark, model, hardware)
    for benchmark in ("spider", "bird")
    for model in MODELS
    for hardware in HARDWARE
    if not (hardware == "1x24" and model in TOO_LARGE_FOR_24)
]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_resolves_under_its_own_name(name: str) -> None:
    assert resolve(name).name == name


def test_there_is_a_recipe_for_each_model_and_benchmark() -> None:
    assert {f"{benchmark}-{model}" for benchmark, model, _ in CASES} <= set(recipe_names())


@pytest.mark.parametrize(("benchmark", "model", "hardware"), CASES)
def test_a_recipe_fits_its_hardware(benchmark: str, model: str, hardware: str) -> None:
    config = resolve(f"{benchmark}-{model}", [f"profile={hardware}"])
    assert (config.data.benchmark, config.model.path) == (benchmark, MODELS[model])
    assert (config.cluster.gpus, config.cluster.gpu_memory_gb) == HARDWARE[hardware]
    # All GPUs of the machine work in both stages.
    assert config.training.workers * config.training.gpus == config.cluster.gpus
    assert config.generation.actors * config.generation.gpus == config.cluster.gpus
    report = dry_run(config)
    assert report.problems == [f"data.root is not set: --set data.root=FOLDER of {benchmark}"]
    assert sum("  fits: " in line for line in report.lines) == 2


@pytest.mark.parametrize("model", TOO_LARGE_FOR_24)
def test_a_model_that_is_too_large_has_no_profile_for_the_small_gpu(model: str) -> None:
    with pytest.raises(UserError, match=r"no profile 1x24; known: 1x80, 2x80, 8x80"):
        resolve(f"bird-{model}", ["profile=1x24"])


def test_an_override_wins_over_the_profile() -> None:
    config = resolve("spider-qwen2.5-coder-7b", ["training.zero_stage=1", "profile=2x80"])
    assert (config.training.workers, config.training.zero_stage) == (2, 1)


def test_adapters_learn_faster_than_whole_models_and_never_by_accident() -> None:
    for benchmark, model, hardware in CASES:
        config = resolve(f"{benchmark}-{model}", [f"profile={hardware}"])
        rates = [config.sft, config.question_model, config.vbi.optimization, config.selfplay.optimization]
        expected = [1e-4, 1e-4, 1e-4, 1e-5] if config.training.lora else [1e-5, 1e-5, 1e-5, 1e-6]
        assert [rate.learning_rate for rate in rates] == pytest.approx(expected), (model, hardware)


def test_recipes_carry_the_defaults_of_the_method() -> None:
    for benchmark, model, _ in CASES:
        config = resolve(f"{benchmark}-{model}")
        assert (config.selfplay.lambda_, config.vbi.train_pairs, config.vbi.share) == (0.1, 3000, 0.3)
        assert config.verification.policy == benchmark


def test_no_part_is_left_over() -> None:
    folder = resources.files("jobs") / "recipes"
    used = {
        parent
        for name in recipe_names()
        for parent in yaml.safe_load((folder / f"{name}.yaml").read_text()).get("extends", [])
    }
    assert {f"parts/{entry.name.removesuffix('.yaml')}" for entry in (folder / "parts").iterdir()} <= used
    assert set(MODELS.values()) == set(KNOWN)
