"""Ray Train with DeepSpeed: the same losses as the plain loop, and a worker's death in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
import torch
from safetensors.torch import load_file

from spftsql.config import (
    ClusterConfig,
    Config,
    GenerationConfig,
    LoraConfig,
    ModelConfig,
    Optimization,
    ScratchConfig,
    TrainingConfig,
)
from spftsql.errors import Fault, UserError
from spftsql.generation.model_folders import directory_key
from spftsql.records import TrainRow, write_records
from spftsql.training.artefact import check_tokenizer, read_manifest
from spftsql.training.checkpoints import latest_checkpoint
from spftsql.training.job import TrainJob
from spftsql.training.local import train_local
from spftsql.training.scratch import build_scratch_model
from tests import trainings
from tests.small_disk import small_disk

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
    copies = config.model_copy(update={"generation": GenerationConfig(node_cache=folder / "node")})
    results = train_ray(jobs, copies, folder / "metrics.jsonl", lambda *call: calls.append(call))
    assert (folder / "node" / "models" / directory_key(base)).is_dir()
    assert [(result.name, result.steps) for result in results] == [("sft", STEPS), ("spft-a", STEPS)]
    assert calls == [(job.name, step, STEPS) for job in jobs for step in range(1, STEPS + 1)]
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    assert_as_local(jobs, config, folder / "metrics.jsonl", folder / "local")
    assert train_ray(jobs, config, folder / "metrics.jsonl", lambda *_: None) == results


@pytest.mark.long
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


# Long rows: the kill of a step comes while the next one is going on.
SLOW: dict[str, Any] = {"words": 60, "batch_size": 240}
# Steps of some seconds: Ray's workers live on for a moment when their driver is gone, and must not finish in it.
SLOWER: dict[str, Any] = {"words": 60, "batch_size": 1200}
SETTINGS: dict[str, Any] = {"zero_stage": 2, "checkpoint_steps": 1, "collective_timeout_s": 30}
WORKER, CONTROLLER = "RayTrainWorker", "TrainController"


def running(kind: str) -> list[psutil.Process]:
    """The processes of one kind that Ray runs for this one."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process.is_running() and kind in " ".join(process.cmdline())]


def train_and_kill(jobs: list[TrainJob], config: Config, metrics: Path, kind: str, step: int) -> None:
    """Kills a process of Ray Train by SIGKILL once a step of the first job is seen."""
    from spftsql.training.distributed import train_ray

    killed: list[int] = []

    def progress(job: str, done: int, steps: int) -> None:
        if done >= step and not killed:
            found = running(kind)
            assert len(found) == (config.training.workers if kind == WORKER else 1)
            killed.append(found[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    try:
        train_ray(jobs, config, metrics, progress)
    finally:
        assert killed


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nothing has disturbed."""
    return undisturbed(base, tmp_path_factory.mktemp("whole"), SLOW)


@pytest.fixture(scope="module")
def slower_whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(base, tmp_path_factory.mktemp("slower"), SLOWER)


def undisturbed(base: Path, folder: Path, size: dict[str, Any]) -> Path:
    """The folder of a training that nothing stopped."""
    from spftsql.training.distributed import train_ray

    train_ray(jobs_of(base, folder, **size)[:1], config_of(**SETTINGS), folder / "metrics.jsonl", lambda *_: None)
    return folder


def assert_same_bits(folder: Path, whole: Path) -> None:
    expected, found = (load_file(place / "sft" / "model.safetensors") for place in (whole, folder))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))  # each once, also those done twice
    assert losses(folder / "metrics.jsonl") == losses(whole / "metrics.jsonl")
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def check_kill(base: Path, folder: Path, whole: Path, kind: str, step: int) -> None:
    jobs = jobs_of(base, folder, **SLOW)[:1]
    train_and_kill(jobs, config_of(max_failures=1, **SETTINGS), folder / "metrics.jsonl", kind, step)
    assert_same_bits(folder, whole)
    assert reserved() == 0  # a dead controller's workers hold nothing, or the next one would wait for ever


def reserved() -> int:
    """The placement groups that hold something."""
    from ray.util.placement_group import placement_group_table

    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


@pytest.mark.parametrize("kind", [WORKER, CONTROLLER])
def test_a_killed_process_changes_no_bit(base: Path, tmp_path: Path, whole: Path, kind: str) -> None:
    check_kill(base, tmp_path, whole, kind, 4)


@pytest.mark.long
@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("kind", [WORKER, CONTROLLER])
def test_a_kill_after_any_step_changes_no_bit(base: Path, tmp_path: Path, whole: Path, kind: str, step: int) -> None:
    check_kill(base, tmp_path, whole, kind, step)


def run_driver(folder: Path, step: int) -> subprocess.CompletedProcess[str]:
    """Trains in a driver of its own, which kills itself once it hears of `step`."""
    command = [sys.executable, "-m", "tests.training_driver", str(folder / "jobs"), str(step)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


@pytest.mark.long
@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_driver_killed_after_any_step_changes_no_bit(
    base: Path, tmp_path: Path, slower_whole: Path, step: int
) -> None:
    """The same command again, at once: workers of the dead session may still be about."""
    jobs, config = jobs_of(base, tmp_path, **SLOWER)[:1], config_of(**SETTINGS)
    config = config.model_copy(update={"cluster": ClusterConfig(dashboard=False)})
    (tmp_path / "jobs").write_bytes(cloudpickle.dumps((jobs, config, tmp_path / "metrics.jsonl")))
    killed = run_driver(tmp_path, step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert not jobs[0].output.exists()  # it came before the end
    resumed = run_driver(tmp_path, 0)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert int(resumed.stdout) >= step  # what was told was kept, but for the step in which it was told
    assert_same_bits(tmp_path, slower_whole)


@pytest.mark.long
def test_the_same_jobs_go_on_where_a_failed_run_ended(base: Path, tmp_path: Path, whole: Path) -> None:
    from spftsql.training.distributed import train_ray

    jobs, metrics = jobs_of(base, tmp_path, **SLOW)[:1], tmp_path / "metrics.jsonl"
    config = config_of(max_failures=0, **SETTINGS)
    with pytest.raises(Fault, match="training failed more than 0 times"):
        train_and_kill(jobs, config, metrics, WORKER, 4)
    began: list[int] = []
    train_ray(jobs, config, metrics, lambda job, step, steps: began.append(step))
    assert min(began) > 1  # it did not begin again at the beginning
    assert_same_bits(tmp_path, whole)


@pytest.mark.long
def test_a_full_disk_ends_the_training_and_loses_nothing(base: Path, tmp_path: Path, whole: Path) -> None:
    """There is room for two checkpoints and not for a third."""
    from spftsql.training.distributed import train_ray

    config, metrics = config_of(**SETTINGS), tmp_path / "metrics.jsonl"
    size = (base / "model.safetensors").stat().st_size
    with small_disk(tmp_path / "disk", f"{14 * size}") as disk:
        job = replace(jobs_of(base, tmp_path, **SLOW)[0], output=disk / "sft")
        filler = disk / "filler"
        filler.write_bytes(bytes(13 * size // 2))
        with pytest.raises(Fault, match="make room, then run again"):
            train_ray([job], config, metrics, lambda *_: None)
        kept = latest_checkpoint(job.work)
        assert kept is not None and not job.output.exists()
        assert not list(job.work.glob("*.partial"))
        filler.unlink()
        train_ray([job], config, metrics, lambda *_: None)
        expected, found = (load_file(place / "sft" / "model.safetensors") for place in (whole, disk))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert losses(metrics) == losses(whole / "metrics.jsonl")


@pytest.mark.long
def test_a_training_ends_on_the_validation_of_its_reported_models(tmp_path: Path) -> None:
    """A real model whose answers are executed, in tasks of Ray Train's own; the output is the best of them."""
    from spftsql.training.distributed import train_ray

    config = trainings.config_of(workers=2, validate_steps=40, patience=1, checkpoint_steps=40)
    model = trainings.base_model(tmp_path)
    validate = trainings.selection(trainings.database(tmp_path), config)
    job = trainings.job_of(model, tmp_path, 400, validate=validate)
    (result,) = train_ray([job], config, tmp_path / "metrics.jsonl", lambda *_: None)
    validations = {entry["step"]: entry["accuracy"] for entry in read_manifest(job.output)["validations"]}
    best = max(validations.values())
    assert best > 0.9 and result.steps == min(step for step in validations if validations[step] == best)
    assert result.steps < max(validations) <= 400
    assert validate(job.output) == best
    told = [line for line in trainings.lines(tmp_path / "metrics.jsonl") if "event" in line]
    assert {line["step"]: line["accuracy"] for line in told} == validations


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
