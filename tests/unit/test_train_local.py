"""The plain torch loop: what it learns, what it leaves behind, and that an interruption changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spftsql.config import Config, LoraConfig, ModelConfig, Optimization, ScratchConfig, TrainingConfig
from spftsql.errors import Fault, UserError
from spftsql.records import TrainRow, write_records
from spftsql.training import reference, steps
from spftsql.training.artefact import check_tokenizer, read_manifest
from spftsql.training.job import Prepared, TrainJob, prepare
from spftsql.training.local import LocalEngine, train_local
from spftsql.training.scratch import build_scratch_model

STATES = ["texas", "ohio", "utah", "iowa", "maine", "idaho", "nevada", "kansas"]
SCRATCH = ScratchConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, vocabulary=400, dropout=0.1)
QUICK = Optimization(steps=6, batch_size=8, learning_rate=5e-3)


def sft_rows() -> list[TrainRow]:
    return [
        TrainRow(
            id=f"{kind}/{state}",
            db_id="geo",
            prompt=f"<|user|>{kind} of {state} ?<|assistant|>",
            chosen=f"select {kind} from state where name = '{state}'",
            rejected=None,
            reward=None,
            source="synthetic" if kind == "area" else "label",
        )
        for kind in ("area", "population")
        for state in STATES
    ]


def pair_rows() -> list[TrainRow]:
    rows = [
        replace(row, rejected="select name from state" if i % 3 else row.chosen, reward=int(i % 3 > 0))
        for i, row in enumerate(sft_rows())
    ]
    return rows + [replace(row, id=f"replay/{row.id}", replay=True) for row in sft_rows()[:4]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("local") / "base"
    texts = [text for row in sft_rows() for text in (row.prompt, row.chosen)]
    build_scratch_model(SCRATCH, 64, texts, target, seed=0)
    return target


def config_of(**training: Any) -> Config:
    return Config(
        name="t",
        data={"benchmark": "demo"},  # type: ignore[arg-type]
        model=ModelConfig(scratch=SCRATCH, max_length=64),
        training=TrainingConfig(micro_batch=4, prompt_loss=0.3, **training),
    )


def job_of(base: Path, folder: Path, rows: list[TrainRow], name: str = "job", **changes: Any) -> TrainJob:
    data = folder / f"{name}.parquet"
    write_records(data, rows, TrainRow)
    values: dict[str, Any] = {"mode": "sft", "optimization": QUICK, "seed": 1} | changes
    return TrainJob(name=name, model=base, data=data, output=folder / name, **values)


def train(job: TrainJob, config: Config, metrics: Path) -> list[dict[str, Any]]:
    train_local([job], config, metrics, lambda *_: None)
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_sft_learns_and_writes_a_complete_model(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    optimization = QUICK.model_copy(update={"steps": 120, "learning_rate": 1e-2})
    job = job_of(base, tmp_path, sft_rows(), optimization=optimization, synthetic_share=0.5)
    seen: list[tuple[str, int, int]] = []
    (result,) = train_local([job], config_of(), tmp_path / "metrics.jsonl", lambda *call: seen.append(call))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seen == [("job", step, 120) for step in range(1, 121)]
    assert [line["step"] for line in lines] == list(range(1, 121))
    assert lines[0]["loss"] > 4 and result.loss < 0.5
    assert result.loss == pytest.approx(sum(line["loss"] for line in lines[-12:]) / 12)
    assert lines[-1].keys() >= {"job", "loss", "lr", "grad_norm", "tokens_per_second"}
    check_tokenizer(job.output)
    assert read_manifest(job.output)["tokenizer"] == read_manifest(base)["tokenizer"]
    assert read_manifest(job.output)["dropout"] == SCRATCH.dropout
    assert (job.output / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    causal = AutoModelForCausalLM.from_pretrained(job.output)
    assert causal.config.attention_dropout == SCRATCH.dropout and causal.config.tie_word_embeddings
    prompt = tokenizer("<|user|>population of ohio ?<|assistant|>", add_special_tokens=False, return_tensors="pt")
    output = causal.generate(prompt["input_ids"], max_new_tokens=30, do_sample=False)[0]
    answer = tokenizer.decode(output[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.strip().startswith("select ") and answer.endswith("'")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_finished_job_is_not_trained_again(base: Path, tmp_path: Path) -> None:
    job, metrics = job_of(base, tmp_path, sft_rows()), tmp_path / "metrics.jsonl"
    first = train_local([job], config_of(), metrics, lambda *_: None)
    size = metrics.stat().st_size
    assert train_local([job], config_of(), metrics, lambda *_: None) == first
    assert metrics.stat().st_size == size


@pytest.mark.parametrize(
    ("mode", "lora"),
    [
        ("sft", None),
        ("spft-a", None),
        ("sft", LoraConfig(rank=4, alpha=8, dropout=0.1)),
        ("sft", LoraConfig(rank=4, alpha=8, keep="merged")),
    ],
)
def test_an_interrupted_job_ends_with_the_same_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, lora: LoraConfig | None
) -> None:
    rows = pair_rows() if mode != "sft" else sft_rows()
    config = config_of(checkpoint_steps=2, lora=lora)
    whole = job_of(base, tmp_path / "whole", rows, mode=mode)
    broken = job_of(base, tmp_path / "broken", rows, mode=mode)
    train(whole, config, tmp_path / "whole.jsonl")

    original = LocalEngine.step

    def step(self: LocalEngine, learning_rate: float) -> float:
        if monkeypatch_state["left"] == 0:
            raise KeyboardInterrupt
        monkeypatch_state["left"] -= 1
        return original(self, learning_rate)

    monkeypatch_state = {"left": 5}
    monkeypatch.setattr(LocalEngine, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train(broken, config, tmp_path / "broken.jsonl")
    monkeypatch.setattr(LocalEngine, "step", original)
    assert not broken.output.exists()
    lines = train(broken, config, tmp_path / "broken.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]  # step 5 was done twice
    file = "adapter_model.safetensors" if lora and lora.keep == "adapter" else "model.safetensors"
    expected, found = (load_file(job.output / file) for job in (whole, broken))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    if lora is None:
        initial = load_file(base / "model.safetensors")
        assert any(not torch.equal(expected[name], value) for name, value in initial.items())


@pytest.mark.parametrize("mode", ["sft", "spft-a"])
def test_micro_batches_do_not_change_the_loss(base: Path, tmp_path: Path, mode: str) -> None:
    losses = []
    for micro_batch in (2, 3, 8):
        config = config_of().model_copy(update={"training": TrainingConfig(micro_batch=micro_batch, prompt_loss=0.3)})
        folder = tmp_path / str(micro_batch)
        quiet = without_dropout(base, folder / "base")
        job = job_of(quiet, folder, sft_rows() if mode == "sft" else pair_rows(), mode=mode)
        losses.append([line["loss"] for line in train(job, config, folder / "metrics.jsonl")])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=1e-5)


def without_dropout(base: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(base, target)
    manifest = read_manifest(target) | {"dropout": 0.0}
    (target / "spftsql.json").write_text(json.dumps(manifest))
    return target


@pytest.mark.parametrize("mode", ["spin", "dpo", "spft-a", "spft-b"])
def test_pair_modes_start_at_the_reference(base: Path, tmp_path: Path, mode: str) -> None:
    job = job_of(base, tmp_path, pair_rows(), mode=mode, lambda_=0.5)
    first, *_, last = train(job, config_of(), tmp_path / "metrics.jsonl")
    assert first["margin"] == pytest.approx(0, abs=1e-5)  # no dropout, and π = ρ before the first step
    assert 0 < first["wrong"] < 1
    assert last["margin"] > 0.05
    assert first.keys() >= {"preferred", "chosen_logp", "rejected_logp"}


def test_the_reference_is_frozen_and_may_be_another_model(base: Path, tmp_path: Path) -> None:
    trained = job_of(base, tmp_path, sft_rows(), name="trained")
    train(trained, config_of(), tmp_path / "a.jsonl")
    job = job_of(trained.output, tmp_path, pair_rows(), name="play", mode="spft-a", reference=base)
    prepared = prepare(job, config_of())
    values = reference_of(prepared)
    pairs = [i for i, row in enumerate(prepared.rows) if row.rejected is not None]
    assert (values[pairs] < 0).all() and (values[len(pairs) :] == 0).all()
    first = train(job, config_of(), tmp_path / "b.jsonl")[0]
    assert abs(first["margin"]) > 1e-3


def test_the_reference_is_computed_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPFTSQL_CACHE", str(tmp_path / "cache"))
    loads: list[Path] = []
    original = reference.load_causal_lm
    monkeypatch.setattr(reference, "load_causal_lm", lambda *call: loads.append(call[0]) or original(*call))
    config = config_of()
    job = job_of(base, tmp_path, pair_rows(), mode="spft-a")
    values = reference_of(prepare(job, config))
    other_mode = replace(job, mode="spin", seed=5, lambda_=0.7)  # asks for the same numbers
    assert torch.equal(reference_of(prepare(other_mode, config)), values) and len(loads) == 1
    fewer = job_of(base, tmp_path, pair_rows()[1:], name="fewer", mode="spft-a")
    reference_of(prepare(fewer, config))
    assert len(loads) == 2
    changed = without_dropout(base, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    weights["model.norm.weight"][-1] += 1e-3  # one number of all
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    assert not torch.equal(reference_of(prepare(replace(job, reference=changed), config)), values)
    assert len(loads) == 3


def reference_of(prepared: Prepared, rank: int = 0, workers: int = 1) -> Tensor:
    cpu = torch.device("cpu")
    return reference.reference_logps(
        prepared, config_of().training, torch.float32, cpu, rank, workers, lambda sums: sums
    )


def test_two_workers_share_the_reference_rows(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for rank, workers in ((0, 1), (0, 2), (1, 2)):
        prepared = prepare(job_of(base, tmp_path / f"{rank}{workers}", pair_rows(), mode="spin"), config_of())
        monkeypatch.setenv("SPFTSQL_CACHE", str(tmp_path / f"cache{rank}{workers}"))
        parts.append(reference_of(prepared, rank, workers))
    torch.testing.assert_close(parts[1] + parts[2], parts[0], atol=1e-5, rtol=0)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    optimization = Optimization(learning_rate=1.0, warmup=0.1)
    rates = [steps.learning_rate(step, 100, optimization) for step in range(101)]
    assert rates[:10] == sorted(rates[:10]) and rates[0] > 0
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_a_loss_that_is_not_finite_stops_the_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LocalEngine.forward
    monkeypatch.setattr(LocalEngine, "forward", lambda self, micro: original(self, micro) * float("nan"))
    job = job_of(base, tmp_path, sft_rows())
    with pytest.raises(Fault, match="job: the loss of step 1 is nan") as caught:
        train(job, config_of(), tmp_path / "metrics.jsonl")
    prepared = prepare(job, config_of())
    assert all(prepared.rows[i].id in str(caught.value) for i in prepared.batches[0])  # it names the batch
    monkeypatch.undo()
    monkeypatch.setattr(LocalEngine, "step", lambda self, rate: float("inf"))
    with pytest.raises(Fault, match="job: the gradient of step 1 is inf"):
        train(job, config_of(), tmp_path / "metrics.jsonl")
    assert not (tmp_path / "job").exists()


def test_jobs_that_cannot_be_trained_are_refused(base: Path, tmp_path: Path) -> None:
    config, metrics = config_of(), tmp_path / "metrics.jsonl"
    job = job_of(base, tmp_path, sft_rows())
    with pytest.raises(UserError, match="does not exist"):
        train(replace(job, data=tmp_path / "none.parquet"), config, metrics)
    with pytest.raises(UserError, match="there is no such directory"):
        train(replace(job, model=tmp_path / "none"), config, metrics)
    other = tmp_path / "other"
    build_scratch_model(SCRATCH, 64, ["other words"] * 9, other, seed=0)
    with pytest.raises(UserError, match="different tokenizers"):
        train(replace(job, reference=other), config, metrics)
