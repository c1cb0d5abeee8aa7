from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.generation import transformers_engine
from spftsql.generation.engine import Recent, open_engine
from spftsql.generation.local import generate_dataset
from spftsql.generation.model_folders import ModelFolders
from spftsql.generation.transformers_engine import TransformersEngine
from spftsql.recipes import validate
from spftsql.records import GenerationRequest, Sample, read_records, write_records
from tests.model_copies import exchange_weights

QUESTIONS = [
    "which states border texas ?",
    "how long is the red river ?",
    "what is the capital of the state with the most people in the whole country ?",
    "cities in ohio",
    "name every river",
]


def settings(**generation: object) -> Config:
    tree = {
        "name": "test",
        "data": {"benchmark": "demo"},
        "model": {"path": "unused", "max_length": 96},
        "generation": {"engine": "transformers", **generation},
    }
    return validate(tree, "test")


def ask(model: str, text: str, **changes: object) -> GenerationRequest:
    request = GenerationRequest(text, "geo", f"<|user|>{text}<|assistant|>", model, 1, 0.0, 24, 7)
    return replace(request, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(settings())


def test_greedy_equals_the_model_on_its_own(engine: TransformersEngine, tiny_models: list[str]) -> None:
    requests = [
        ask(model, q, id=f"{model}/{q}", db_id=str(i % 2)) for model in tiny_models for i, q in enumerate(QUESTIONS)
    ]
    samples = engine.generate(requests)
    assert [sample.id for sample in samples] == [request.id for request in requests]
    for request, sample in zip(requests, samples, strict=True):
        tokenizer = AutoTokenizer.from_pretrained(request.model)
        model = AutoModelForCausalLM.from_pretrained(request.model, dtype=torch.float32)
        ids = tokenizer(request.prompt, add_special_tokens=False, return_tensors="pt")
        output = model.generate(**ids, do_sample=False, max_new_tokens=24)[0][ids["input_ids"].shape[1] :]
        assert sample.tokens == len(output)
        assert sample.text == tokenizer.decode(output, skip_special_tokens=True).lstrip()
        stopped = output[-1] == tokenizer.eos_token_id
        assert sample.finish_reason == ("stop" if stopped else "length")


def test_what_prompts_about_a_database_begin_with_is_read_once(
    engine: TransformersEngine, tiny_models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ["name every river", "cities in ohio", "every river in ohio", "the cities in ohio", "name cities"]
    schemas = {"geo": "name every river " * 4, "other": "how long is the red river ? " * 3}
    wanted = [
        ask(tiny_models[0], f"{schema}\n{q}", id=f"{db_id}/{q}", db_id=db_id, n=2, temperature=1.0, seed=i)
        for i, q in enumerate(short)
        for db_id, schema in schemas.items()
    ]
    tokenizer = AutoTokenizer.from_pretrained(tiny_models[0])
    schema_tokens = [len(tokenizer(schema)["input_ids"]) for schema in schemas.values()]
    monkeypatch.setattr(transformers_engine, "_SHARED", 16)
    assert min(schema_tokens) > 16
    prompts = sum(len(tokenizer(request.prompt)["input_ids"]) for request in wanted)
    alone = [sample for request in wanted for sample in engine.generate([request])]
    read = []
    forward = Qwen2ForCausalLM.forward

    def counted(self: Qwen2ForCausalLM, *arguments: Any, **named: Any) -> Any:
        read.append(named["input_ids"].numel())
        return forward(self, *arguments, **named)

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", counted)
    monkeypatch.setattr(transformers_engine, "_FULL_BATCH", 2 * len(short))
    assert engine.generate(wanted) == alone
    assert not any(sample.error for sample in alone)
    written = sum(sample.tokens for sample in alone)
    assert sum(read) < prompts - 3 * sum(schema_tokens) + written  # of five times each
    read.clear()
    monkeypatch.setattr(transformers_engine, "_SHARED", 10**6)
    assert engine.generate(wanted) == alone
    assert sum(read) > prompts + written / 2  # so the count above tells something


def test_samples_depend_on_the_row_and_not_on_the_batch(engine: TransformersEngine, tiny_models: list[str]) -> None:
    requests = [
        ask(tiny_models[0], q, n=3, temperature=1.0, seed=i, max_tokens=10 + i) for i, q in enumerate(QUESTIONS)
    ]
    together = engine.generate(requests)
    alone = [sample for request in reversed(requests) for sample in engine.generate([request])]
    assert sorted(together, key=lambda s: (s.id, s.index)) == sorted(alone, key=lambda s: (s.id, s.index))
    assert len({sample.text for sample in together}) > len(requests)
    assert engine.generate([replace(requests[0], seed=99)]) != together[:3]


def test_samples_follow_the_models_probabilities(engine: TransformersEngine, tiny_models: list[str]) -> None:
    request = ask(tiny_models[0], QUESTIONS[0], n=2000, temperature=4.0, max_tokens=1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_models[0])
    model = AutoModelForCausalLM.from_pretrained(tiny_models[0], dtype=torch.float32)
    ids = tokenizer(request.prompt, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        expected = (model(**ids).logits[0, -1] / 4.0).softmax(0)
    likeliest = int(expected.argmax())
    text = tokenizer.decode([likeliest], skip_special_tokens=True).lstrip()
    share = sum(sample.text == text for sample in engine.generate([request])) / 2000
    same = [i for i in range(len(tokenizer)) if tokenizer.decode([i], skip_special_tokens=True).lstrip() == text]
    probability = float(expected[same].sum())
    assert abs(share - probability) < 5 * (probability * (1 - probability) / 2000) ** 0.5 + 1e-9


def test_unservable_rows_become_error_rows(engine: TransformersEngine, tiny_models: list[str]) -> None:
    good = ask(tiny_models[0], QUESTIONS[0], n=2, temperature=1.0)
    bad = [
        ask(tiny_models[0], "empty", prompt="", n=3),
        ask(tiny_models[0], "long", prompt="texas " * 200),
        ask(tiny_models[0], "none", n=0),
        ask(tiny_models[0], "no room", max_tokens=0),
    ]
    samples = engine.generate([*bad[:2], good, *bad[2:]])
    assert [s.id for s in samples] == ["empty", "long", good.id, good.id, "none", "no room"]
    for sample in samples:
        if sample.id == good.id:
            assert sample.error is None
        else:
            assert (sample.finish_reason, sample.index, sample.text) == ("error", 0, "")
            assert sample.error
    assert [s for s in samples if s.id == good.id] == engine.generate([good])


def test_answer_is_cut_at_the_models_length(engine: TransformersEngine, tiny_models: list[str]) -> None:
    (sample,) = engine.generate([ask(tiny_models[0], "x", prompt="texas " * 45, max_tokens=500, temperature=1.0)])
    assert sample.error is None
    assert sample.tokens < 96


def test_adapter_directory_is_loaded_over_its_base(
    engine: TransformersEngine, tiny_models: list[str], tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_models[0], tmp_path / "adapter")
    request = ask(tiny_models[0], QUESTIONS[0])
    with_adapter = engine.generate([replace(request, model=adapter)])
    assert with_adapter[0].error is None
    assert with_adapter[0].text != engine.generate([request])[0].text


def test_weights_are_read_from_the_copies_on_this_machine(
    engine: TransformersEngine, tiny_models: list[str], tmp_path: Path
) -> None:
    base, other = tiny_models[:2]
    adapter, over_other = make_adapter(base, tmp_path / "adapter"), make_adapter(other, tmp_path / "other")
    shutil.copyfile(
        tmp_path / "adapter" / "adapter_model.safetensors", tmp_path / "other" / "adapter_model.safetensors"
    )
    config = settings(node_cache=tmp_path / "cache")
    wanted = [ask(model, q) for model in (base, adapter) for q in QUESTIONS]
    assert TransformersEngine(config).generate(wanted) == engine.generate(wanted)
    copies = ModelFolders(config.generation)
    exchange_weights(copies, Path(base), Path(other))
    copies.close()
    copied = TransformersEngine(config)
    found = copied.generate(wanted)
    assert [sample.model for sample in found] == [request.model for request in wanted]
    expected = engine.generate([ask(model, q) for model in (other, over_other) for q in QUESTIONS])
    assert [sample.text for sample in found] == [sample.text for sample in expected]
    assert expected != engine.generate(wanted)

    (large := tmp_path / "large").mkdir()
    (large / "model.safetensors").write_bytes(bytes(1 << 20))
    room = config.generation.model_copy(update={"copies_mb": 1})
    assert ModelFolders(room).of(large) == large  # what is loaded is in use
    copied.close()
    assert ModelFolders(room).of(large) != large


def make_adapter(base: str, folder: Path) -> str:
    """A peft adapter with random weights on all linear layers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=8, lora_alpha=64, target_modules="all-linear", init_lora_weights=False),
    )
    model.save_pretrained(folder)
    return str(folder)


def test_missing_model_is_the_users_error(engine: TransformersEngine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a model directory"):
        engine.generate([ask(str(tmp_path / "absent"), "x")])


def test_foreign_tokenizer_is_refused(engine: TransformersEngine, tiny_models: list[str], tmp_path: Path) -> None:
    model = shutil.copytree(tiny_models[0], tmp_path / "model")
    file = model / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match="tokenizer"):
        engine.generate([ask(str(model), "x")])


def test_callers_in_several_threads(engine: TransformersEngine, tiny_models: list[str]) -> None:
    expected = engine.generate([ask(tiny_models[i % 2], q) for i, q in enumerate(QUESTIONS)])
    found: list[Sample | None] = [None] * len(QUESTIONS)

    def call(i: int) -> None:
        (found[i],) = engine.generate([ask(tiny_models[i % 2], QUESTIONS[i])])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(QUESTIONS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_least_recently_used_leaves_before_the_next_comes() -> None:
    events: list[str] = []
    recent: Recent[str] = Recent(2, lambda value: events.append(f"drop {value}"))

    def get(key: str) -> None:
        recent.get(key, lambda: events.append(f"make {key}") or key)  # type: ignore[func-returns-value]

    for key in ["a", "b", "a", "c", "a", "b"]:
        get(key)
    assert events == ["make a", "make b", "drop b", "make c", "drop c", "make b"]


def test_dataset_in_one_process(tiny_models: list[str], tmp_path: Path) -> None:
    config = settings(batch_size=3)
    requests = [ask(m, q, id=f"{m}/{q}", n=2, temperature=1.0) for q in QUESTIONS for m in tiny_models]
    requests.append(ask(tiny_models[1], "empty", prompt=""))
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    steps: list[tuple[int, int]] = []
    generate_dataset(tmp_path / "requests.parquet", tmp_path / "samples", config, lambda *s: steps.append(s))
    samples = read_records(tmp_path / "samples", Sample)
    direct = open_engine(config).generate(requests)
    assert sorted(samples, key=lambda s: (s.id, s.index)) == sorted(direct, key=lambda s: (s.id, s.index))
    assert steps[-1] == (len(requests), len(requests))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
