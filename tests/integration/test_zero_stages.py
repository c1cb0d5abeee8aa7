"""Every ZeRO stage over twenty steps of pairs that share schemas: the losses of the plain loop, whatever is shared."""

from __future__ import annotations

import json
import os
import socket
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from spftsql.config import Config, LoraConfig, ModelConfig, Optimization, ScratchConfig, TrainingConfig
from spftsql.records import TrainRow, write_records
from spftsql.training.job import TrainJob, claim_work
from spftsql.training.local import train_local
from spftsql.training.scratch import build_scratch_model

pytestmark = [pytest.mark.integration, pytest.mark.long]

STEPS = 20
SCRATCH = ScratchConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, vocabulary=400, dropout=0.0)
TABLES = ["city", "state", "river", "lake", "road", "mountain"]


def rows_of() -> list[TrainRow]:
    """Five schemas of unlike length, some with one question and some with six; two replay rows."""
    rows = []
    for schema in range(5):
        text = " , ".join(f"{TABLES[(n * (schema + 1)) % 6]} ( {TABLES[n % 6]} )" for n in range(8 + 6 * schema))
        for n, table in enumerate(TABLES[: 1 if schema == 2 else 6]):
            rows.append(
                TrainRow(
                    id=f"{schema}/{table}",
                    db_id=str(schema),
                    prompt=f"<|user|>{text} question : {table} ?<|assistant|>",
                    chosen=f"select {table} from {TABLES[(n + schema) % 6]}",
                    rejected=f"select {table}" + " , river" * (n % 4),
                    reward=n % 2,
                    source="label",
                    replay=n == 5 and schema < 2,
                )
            )
    return rows


def losses(metrics: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]


def worker(rank: int, port: int, tasks: list[tuple[TrainJob, Config, Path]]) -> None:
    """One of two workers, in a process group without Ray; does the trainings one after another."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "DS_LOG_LEVEL": "error", "LOCAL_RANK": str(rank)}
    from torch import distributed

    from spftsql.training.distributed import train_job

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for job, config, metrics in tasks:
        train_job(job, config, metrics, torch.device("cpu"))
    distributed.barrier()
    os._exit(0)  # at the end of a process gloo's threads and Python's do not always agree on the order


def test_every_stage_has_the_losses_of_the_dense_plain_loop(tmp_path: Path) -> None:
    base, data = tmp_path / "base", tmp_path / "rows.parquet"
    build_scratch_model(SCRATCH, 256, [row.prompt + row.chosen for row in rows_of()], base, seed=0)
    write_records(data, rows_of(), TrainRow)
    optimization = Optimization(steps=STEPS, batch_size=11, learning_rate=3e-3)
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0)

    def task(name: str, **training: Any) -> tuple[TrainJob, Config, Path]:
        # Few tokens per pass: steps differ in their number of passes, and a worker may have no rows in the last one.
        config = Config(
            name="t",
            data={"benchmark": "demo"},  # type: ignore[arg-type]
            model=ModelConfig(scratch=SCRATCH, max_length=256),
            training=TrainingConfig(micro_batch=4, micro_tokens=400, **training),
        )
        job = TrainJob(name, base, data, tmp_path / name, "spft-a", optimization, seed=1, lambda_=0.5, nll_weight=0.1)
        return job, config, tmp_path / f"{name}.jsonl"

    stages = {f"stage-{stage}": task(f"stage-{stage}", zero_stage=stage, workers=2) for stage in range(4)}
    stages["stage-3-lora"] = task("stage-3-lora", zero_stage=3, workers=2, lora=lora)
    expected = {}
    for kind, adapters in (("full", None), ("lora", lora)):
        job, config, metrics = task(f"dense-{kind}", sharing="none", lora=adapters)
        train_local([job], config, metrics, lambda *_: None)
        expected[kind] = losses(metrics)
        assert len(expected[kind]) == STEPS and len(set(expected[kind])) == STEPS

    for job, config, _ in stages.values():
        claim_work(job, config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, port, list(stages.values()))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    for name, (_, _, metrics) in stages.items():
        assert losses(metrics) == pytest.approx(expected["lora" if "lora" in name else "full"], abs=1e-5), name
