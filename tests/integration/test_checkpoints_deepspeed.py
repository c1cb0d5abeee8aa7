"""A training under DeepSpeed that is stopped and goes on: on as many workers bit by bit, on others within rounding.

The process group is made here, without Ray: what Ray adds to a stop is in `test_train_ray.py` and `tests/chaos`.
"""

from __future__ import annotations

import json
import os
import socket
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spftsql.config import Config, LoraConfig, ModelConfig, Optimization, ScratchConfig, TrainingConfig
from spftsql.records import TrainRow, write_records
from spftsql.training.job import TrainJob, claim_work
from spftsql.training.scratch import build_scratch_model

pytestmark = pytest.mark.integration

SCRATCH = ScratchConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, vocabulary=400, dropout=0.1)
STEPS = 6


class Stopped(Exception):
    """What stands for a kill: nothing after it is done."""


def worker(rank: int, workers: int, port: int, tasks: list[tuple[TrainJob, Config, Path, int | None]]) -> None:
    """Does all the trainings, one after another; one with a number of steps is stopped after it."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "DS_LOG_LEVEL": "error", "LOCAL_RANK": str(rank)}
    from torch import distributed

    from spftsql.training.distributed import train_job
    from spftsql.training.engine import DeepSpeedEngine

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    original = DeepSpeedEngine.step
    for job, config, metrics, stop in tasks:
        left = [stop]

        def step(self: DeepSpeedEngine, rate: float, left: list[int | None] = left) -> float:
            if left[0] == 0:
                raise Stopped
            left[0] = None if left[0] is None else left[0] - 1
            return original(self, rate)

        DeepSpeedEngine.step = step  # type: ignore[method-assign]
        try:
            train_job(job, config, metrics, torch.device("cpu"))
            assert stop is None
        except Stopped:
            assert stop is not None
    distributed.barrier()
    os._exit(0)  # at the end of a process gloo's threads and Python's do not always agree on the order


def run(workers: int, tasks: list[tuple[TrainJob, Config, Path, int | None]]) -> None:
    for job, config, _, _ in tasks:
        claim_work(job, config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, workers, port, tasks)) for rank in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * workers


def rows(pairs: bool) -> list[TrainRow]:
    words = ["zero", "one", "two", "three", "four", "five"]
    return [
        TrainRow(
            id=str(n),
            db_id="db",
            prompt=f"<|user|>{words[n % 6]} {words[n // 6]} ?<|assistant|>",
            chosen=f"select {words[n % 6]}",
            rejected=f"select {words[n // 6]}" if pairs else None,
            reward=n % 2 if pairs else None,
            source="label",
        )
        for n in range(30)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("checkpoints") / "base"
    build_scratch_model(SCRATCH, 64, [row.prompt + row.chosen for row in rows(False)], target, seed=0)
    return target


def config_of(**training: Any) -> Config:
    return Config(
        name="t",
        data={"benchmark": "demo"},  # type: ignore[arg-type]
        model=ModelConfig(scratch=SCRATCH, max_length=64),
        training=TrainingConfig(micro_batch=2, checkpoint_steps=2, **training),
    )


def task(base: Path, folder: Path, config: Config, mode: str = "sft", stop: int | None = None) -> Any:
    write_records(folder / "data.parquet", rows(mode != "sft"), TrainRow)
    optimization = Optimization(steps=STEPS, batch_size=10, learning_rate=5e-3)
    job = TrainJob("job", base, folder / "data.parquet", folder / "out", mode, optimization, seed=1)  # type: ignore[arg-type]
    return job, config, folder / "metrics.jsonl", stop


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))  # each once, also those that were repeated
    return [line["loss"] for line in lines]


LORA = LoraConfig(rank=4, alpha=8)
CASES = {
    "zero-0": {"zero_stage": 0},
    "zero-1": {"zero_stage": 1},
    "zero-2": {"zero_stage": 2},
    "zero-2-offload": {"zero_stage": 2, "offload": True},
    "zero-2-adapter": {"zero_stage": 2, "lora": LORA},
    "zero-3": {"zero_stage": 3},
    "zero-3-adapter": {"zero_stage": 3, "lora": LORA},
}


def same_workers(base: Path, tmp_path: Path, cases: list[str]) -> None:
    """Stopped after 5 of 6 steps, hence to go on from the checkpoint of step 4; dropout is on."""
    tasks = []
    for name in cases:
        config = config_of(workers=2, **CASES[name])
        tasks.append(task(base, tmp_path / name / "whole", config))
        tasks += [task(base, tmp_path / name / "broken", config, stop=stop) for stop in (5, None)]
    run(2, tasks)
    for name in cases:
        expected, found = (weights(tmp_path / name / kind / "out") for kind in ("whole", "broken"))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
        assert losses(tmp_path / name / "broken") == losses(tmp_path / name / "whole")
        assert not (tmp_path / name / "broken" / ".out.work").exists()


def test_a_stop_changes_no_bit(base: Path, tmp_path: Path) -> None:
    same_workers(base, tmp_path, ["zero-2", "zero-3-adapter"])


@pytest.mark.long
def test_a_stop_changes_no_bit_under_any_stage(base: Path, tmp_path: Path) -> None:
    same_workers(base, tmp_path, list(CASES))


@pytest.mark.long
@pytest.mark.parametrize("mode", ["sft", "spft-a"])
def test_a_training_goes_on_with_fewer_and_with_more_workers(base: Path, tmp_path: Path, mode: str) -> None:
    """Two workers, then one; one, then two; and from one ZeRO stage to another. Without dropout, which has its own
    random numbers on every worker."""
    still = tmp_path / "still"
    build_scratch_model(
        SCRATCH.model_copy(update={"dropout": 0.0}), 64, [row.prompt + row.chosen for row in rows(False)], still, seed=0
    )
    whole = tmp_path / "whole"
    stages = [name for name in CASES if "adapter" not in name]
    configs = {name: config_of(workers=[1, 2], **CASES[name]) for name in stages}

    def tasks(first: int, stop: int | None) -> list[Any]:
        """Of every stage: as it begins on `first` workers, or as it goes on, with another stage, on the others."""
        made = []
        for name, config in configs.items():
            after = config_of(workers=[1, 2], zero_stage=(config.training.zero_stage + 1) % 4)
            made.append(task(still, tmp_path / f"{name}-{first}", config if stop else after, mode, stop))
        return made

    run(2, [task(still, whole, config_of(workers=2), mode), *tasks(2, stop=5)])
    run(1, tasks(1, stop=5))
    run(1, tasks(2, stop=None))
    run(2, tasks(1, stop=None))
    for name in stages:
        for first in (1, 2):
            assert losses(tmp_path / f"{name}-{first}") == pytest.approx(losses(whole), abs=1e-4), (name, first)
