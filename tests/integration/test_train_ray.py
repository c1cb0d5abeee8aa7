"""Ray Train with DeepSpeed: the same losses as the plain loop, and a worker's death in between."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from spftsql.config import Config, LoraConfig, ModelConfig, Optimization, ScratchConfig, TrainingConfig
from spftsql.errors import Fault, UserError
from spftsql.records import TrainRow, write_records
from spftsql.training.artefact import check_tokenizer
from spftsql.training.job import TrainJob
from spftsql.training.local import train_local
from spftsql.training.scratch import build_scratch_model

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]

SCRATCH = ScratchConfig(hidden_size=64, layers=2, heads=2, intermediate_size=96, vocabulary=400, dropout=0.0)
STEPS = 6
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]


def rows_of(mode: str, words: int) -> list[TrainRow]:
    rows = []
    for n in range(40):
        tail = " ".join(NUMBERS[(n * k) % 8] for k in range(words))
        rows.append(
            TrainRow(
                id=str(n),
                db_id="db",
                prompt=f"<|user|>{NUMBERS[n % 8]} {NUMBERS[n // 8]} ?<|assistant|>",
                chosen=f"select {NUMBERS[n % 8]} {tail}",
                rejected=None if mode == "sft" else f"select {NUMBERS[n // 8]}",
                reward=None if mode == "sft" else n % 2,
                source="label",
                replay=mode != "sft" and n % 5 == 0,
            )
        )
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("ray") / "base"
    build_scratch_model(SCRATCH, 128, [row.prompt + row.chosen for row in rows_of("sft", 4)], target, seed=0)
    return target


def config_of(**training: Any) -> Config:
    values: dict[str, Any] = {"workers": 2, "micro_batch": 4, "prompt_loss": 0.3} | training
    return Config(
        name="t",
        data={"benchmark": "demo"},  # type: ignore[arg-type]
        model=ModelConfig(scratch=SCRATCH, max_length=128),
        training=TrainingConfig(**values),
    )


def jobs_of(base: Path, folder: Path, words: int = 4, batch_size: int = 15) -> list[TrainJob]:
    jobs = []
    for mode in ("sft", "spft-a"):
        data = folder / f"{mode}.parquet"
        write_records(data, rows_of(mode, words), TrainRow)
        optimization = Optimization(steps=STEPS, batch_size=batch_size, learning_rate=5e-3)
        jobs.append(TrainJob(mode, base, data, folder / mode, mode, optimization, seed=1))  # type: ignore[arg-type]
    return jobs


def losses(metrics: Path) -> dict[tuple[str, int], float]:
    """The loss of every step; of a step that was repeated, the last one."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {(line["job"], line["step"]): line["loss"] for line in lines}


def assert_as_local(jobs: list[TrainJob], config: Config, metrics: Path, folder: Path) -> None:
    local = [replace(job, output=folder / job.name) for job in jobs]
    train_local(local, config, folder / "metrics.jsonl", lambda *_: None)
    expected, found = losses(folder / "metrics.jsonl"), losses(metrics)
    assert found.keys() == expected.keys()
    for step in expected:
        assert found[step] == pytest.approx(expected[step], abs=1e-5), step
    for job, reference in zip(jobs, local, strict=True):
        check_tokenizer(job.output)
        file = "adapter_model.safetensors" if config.training.lora else "model.safetensors"
        weights = load_file(job.output / file)
        for name, value in load_file(reference.output / file).items():
            torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=0)


def check_equal(base: Path, folder: Path, **training: Any) -> None:
    from spftsql.training.distributed import train_ray

    jobs, config = jobs_of(base, folder), config_of(**training)
    calls: list[tuple[str, int, int]] = []
    results = train_ray(jobs, config, folder / "metrics.jsonl", lambda *call: calls.append(call))
    assert [(result.name, result.steps) for result in results] == [("sft", STEPS), ("spft-a", STEPS)]
    assert calls == [(job.name, step, STEPS) for job in jobs for step in range(1, STEPS + 1)]
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    assert_as_local(jobs, config, folder / "metrics.jsonl", folder / "local")
    assert train_ray(jobs, config, folder / "metrics.jsonl", lambda *_: None) == results


def test_two_workers_have_the_losses_of_the_plain_loop(base: Path, tmp_path: Path) -> None:
    check_equal(base, tmp_path, zero_stage=2)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_every_stage_has_the_losses_of_the_plain_loop(
    base: Path, tmp_path: Path, zero_stage: int, workers: int
) -> None:
    check_equal(base, tmp_path, zero_stage=zero_stage, workers=workers)


@pytest.mark.long
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_adapters_have_the_losses_of_the_plain_loop(base: Path, tmp_path: Path, zero_stage: int) -> None:
    check_equal(base, tmp_path, zero_stage=zero_stage, lora=LoraConfig(rank=4, alpha=8))


def train_and_kill(jobs: list[TrainJob], config: Config, metrics: Path) -> None:
    """Kills the worker of rank 1 by SIGKILL once step 4 of the first job is seen."""
    from spftsql.training.distributed import train_ray

    killed: list[int] = []

    def progress(job: str, step: int, steps: int) -> None:
        if step >= 4 and not killed:
            workers = [
                process
                for process in psutil.Process().children(recursive=True)
                if process.is_running() and "RayTrainWorker" in " ".join(process.cmdline())
            ]
            assert len(workers) == config.training.workers
            killed.append(workers[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    try:
        train_ray(jobs, config, metrics, progress)
    finally:
        assert killed


def repeated(metrics: Path) -> list[int]:
    """The steps of the first job at which training began again."""
    seen = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"sft"' in line]
    return [step for previous, step in pairwise(seen) if step <= previous]


def check_resume(
    base: Path, folder: Path, run: Callable[[list[TrainJob], Config, Path], None], **training: Any
) -> None:
    # Long rows: a checkpoint is surely kept only some time after its report, so the steps must take a while.
    jobs = jobs_of(base, folder, words=60, batch_size=240)
    config = config_of(checkpoint_steps=1, collective_timeout_s=30, **training)
    run(jobs, config, folder / "metrics.jsonl")
    assert all(step > 1 for step in repeated(folder / "metrics.jsonl"))  # it did not begin again at the beginning
    assert_as_local(jobs, config, folder / "metrics.jsonl", folder / "local")


def test_a_killed_worker_costs_a_few_steps(base: Path, tmp_path: Path) -> None:
    check_resume(base, tmp_path, train_and_kill, zero_stage=2, max_failures=1)


@pytest.mark.long
def test_the_same_jobs_go_on_where_a_failed_run_ended(base: Path, tmp_path: Path) -> None:
    from spftsql.training.distributed import train_ray

    def run(jobs: list[TrainJob], config: Config, metrics: Path) -> None:
        with pytest.raises(Fault, match="training failed more than 0 times"):
            train_and_kill(jobs, config, metrics)
        train_ray(jobs, config, metrics, lambda *_: None)

    check_resume(base, tmp_path, run, zero_stage=2, max_failures=0)


def test_jobs_that_can_never_run_are_refused(base: Path, tmp_path: Path) -> None:
    from spftsql.training.distributed import train_ray

    metrics = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="each need 1000 CPUs, but the Ray session has"):
        train_ray(jobs_of(base, tmp_path), config_of(cpus=500), metrics, lambda *_: None)
    jobs = [replace(job, data=tmp_path / "none.parquet") for job in jobs_of(base, tmp_path)]
    with pytest.raises(UserError, match=r"sft: training data .* does not exist"):
        train_ray(jobs, config_of(), metrics, lambda *_: None)


@pytest.mark.long
def test_what_a_restart_cannot_mend_is_not_retried(base: Path, tmp_path: Path) -> None:
    from spftsql.training.distributed import train_ray

    sft, play = jobs_of(base, tmp_path)
    other = tmp_path / "other"
    build_scratch_model(SCRATCH, 128, ["other words"] * 9, other, seed=0)
    jobs, metrics = [sft, replace(play, reference=other)], tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="different tokenizers"):
        train_ray(jobs, config_of(workers=1, max_failures=3), metrics, lambda *_: None)
    assert sft.output.is_dir()  # what was done stays done
    assert list(losses(metrics)) == [("sft", step) for step in range(1, STEPS + 1)]
