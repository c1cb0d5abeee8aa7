"""vLLM in this process: its start is dear, so all models and questions share one engine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from spftsql.config import Config
from spftsql.errors import Fault
from spftsql.generation.engine import Engine, open_engine
from spftsql.generation.model_folders import ModelFolders, directory_key
from spftsql.recipes import validate
from spftsql.records import GenerationRequest
from tests.model_copies import exchange_weights

pytestmark = pytest.mark.integration

WEIGHTS = "adapter_model.safetensors"
QUESTIONS = [
    f"{words} {i} ?" for i, words in enumerate(["which states border", "how long is the river", "cities in"] * 8)
]


def settings(engine: str, **generation: object) -> Config:
    tree = {
        "name": "test",
        "data": {"benchmark": "demo"},
        "model": {"path": "unused", "max_length": 96},
        "generation": {"engine": engine, **generation},
    }
    return validate(tree, "test")


def ask(model: str, text: str, **changes: object) -> GenerationRequest:
    request = GenerationRequest(f"{model}/{text}", "geo", f"<|user|>{text}<|assistant|>", model, 1, 0.0, 24, 7)
    return replace(request, **changes)  # type: ignore[arg-type]


def make_adapter(base: str, folder: Path) -> str:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Everything here is answered from copies of the models."""
    return settings("vllm", node_cache=tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def vllm(node: Config) -> Iterator[Engine]:
    pytest.importorskip("vllm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spftsql.generation.vllm_engine._CPU_MODELS_KEPT", 3)
        engine = open_engine(node)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def transformers() -> Engine:
    return open_engine(settings("transformers"))


def test_greedy_equals_transformers_for_models_side_by_side(
    vllm: Engine, transformers: Engine, tiny_models: list[str]
) -> None:
    requests = [ask(model, question) for question in QUESTIONS for model in tiny_models]
    expected = transformers.generate(requests)
    assert vllm.generate(requests) == expected
    begin = time.monotonic()
    assert vllm.generate(requests) == expected
    assert time.monotonic() - begin < 5.0, "the models were loaded again"
    assert len({sample.text for sample in expected}) > len(QUESTIONS)


@pytest.mark.long
def test_more_models_than_are_kept(vllm: Engine, transformers: Engine, tiny_models: list[str], tmp_path: Path) -> None:
    # The same weights under another name are another model to the engine, and push the oldest one out.
    other = tmp_path / "other"
    other.symlink_to(tiny_models[1], target_is_directory=True)
    requests = [ask(model, QUESTIONS[0]) for model in [*tiny_models, str(other)]]
    expected = transformers.generate(requests)
    assert vllm.generate(requests) == expected
    assert vllm.generate(requests[:1]) == expected[:1]


def test_samples_depend_on_the_row_and_not_on_the_batch(vllm: Engine, tiny_models: list[str]) -> None:
    requests = [
        ask(tiny_models[0], q, n=3, temperature=1.0, seed=i, max_tokens=10 + i) for i, q in enumerate(QUESTIONS)
    ]
    together = vllm.generate(requests)
    alone = [sample for request in requests[:4] for sample in vllm.generate([request])]
    assert together[: len(alone)] == alone
    assert len({sample.text for sample in together}) > len(requests)


def test_many_seeded_rows_of_long_prompts(vllm: Engine, tiny_models: list[str]) -> None:
    # More prompt tokens than one step of the scheduler takes: vLLM on a CPU fails when it cuts a seeded prompt in two.
    long = "texas " * 60
    requests = [ask(tiny_models[0], f"{long}{i}", temperature=1.0, max_tokens=4, seed=i) for i in range(200)]
    assert [sample.error for sample in vllm.generate(requests)] == [None] * 200


def test_unservable_rows_become_error_rows(vllm: Engine, tiny_models: list[str]) -> None:
    good = ask(tiny_models[0], QUESTIONS[0], n=2, temperature=1.0)
    bad = [ask(tiny_models[0], "empty", prompt=""), ask(tiny_models[0], "long", prompt="texas " * 200)]
    samples = vllm.generate([bad[0], good, bad[1]])
    assert [(s.finish_reason, s.index) for s in (samples[0], samples[-1])] == [("error", 0)] * 2
    assert samples[1:-1] == vllm.generate([good])


def test_adapter_over_its_base(vllm: Engine, transformers: Engine, tiny_models: list[str], tmp_path: Path) -> None:
    adapter = make_adapter(tiny_models[0], tmp_path / "adapter")
    requests = [ask(model, q) for q in QUESTIONS[:4] for model in (adapter, tiny_models[0])]
    expected = transformers.generate(requests)
    assert vllm.generate(requests) == expected
    assert expected[0].text != expected[1].text


def test_weights_of_base_and_adapter_are_those_of_the_copies(
    vllm: Engine, node: Config, transformers: Engine, tiny_models: list[str], tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_models[0], tmp_path / "base")
    adapter, other = (make_adapter(model, tmp_path / str(i)) for i, model in enumerate((str(base), tiny_models[1])))
    shutil.copyfile(Path(adapter) / WEIGHTS, Path(other) / WEIGHTS)
    exchange_weights(ModelFolders(node.generation), base, Path(tiny_models[1]))
    found = vllm.generate([ask(model, q) for model in (str(base), adapter) for q in QUESTIONS[:4]])
    expected = transformers.generate([ask(model, q) for model in (tiny_models[1], other) for q in QUESTIONS[:4]])
    assert [sample.text for sample in found] == [sample.text for sample in expected]
    assert [sample.model for sample in found] == [str(base)] * 4 + [adapter] * 4
    assert isinstance(node.generation.node_cache, Path)
    assert (node.generation.node_cache / "models" / directory_key(Path(adapter))).is_dir()


def test_model_that_cannot_be_loaded_is_a_fault_and_the_others_still_work(
    vllm: Engine, transformers: Engine, tiny_models: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(tiny_models[0]).iterdir():
        content = b"" if file.suffix == ".safetensors" else file.read_bytes()
        (broken / file.name).write_bytes(content)
    with pytest.raises(Fault, match="broken"):
        vllm.generate([ask(str(broken), QUESTIONS[0])])
    request = ask(tiny_models[1], QUESTIONS[0])
    assert vllm.generate([request]) == transformers.generate([request])
