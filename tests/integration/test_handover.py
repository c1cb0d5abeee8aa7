"""Engines and trainers take turns on the same cards: what a stage has taken is free before the next one asks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spftsql.config import Config, Optimization
from spftsql.recipes import validate
from spftsql.records import GenerationRequest, Sample, TrainRow, read_records, write_records
from spftsql.training.job import TrainJob
from tests.conftest import CHECKOUT
from tests.killing import descendants, title

pytestmark = [pytest.mark.integration, pytest.mark.long]

PROMPT = "<|user|>name the longest rivers<|assistant|>"


@pytest.fixture
def one_card() -> Iterator[None]:
    """A session with a single card, which each stage wants whole."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        resources={"card": 1},
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(CHECKOUT), "RAY_TRAIN_V2_ENABLED": "1"}},
    )
    yield
    ray.shutdown()


def settings() -> Config:
    tree = {
        "name": "test",
        "data": {"benchmark": "demo"},
        "model": {"path": "unused", "max_length": 96, "dtype": "float32"},
        "generation": {"engine": "transformers", "resources": {"card": 1}, "batch_size": 8},
        "training": {"resources": {"card": 1}, "micro_batch": 4},
    }
    return validate(tree, "test")


def generate(folder: Path, model: str) -> None:
    from spftsql.generation.stage import generate_dataset_ray

    requests = [
        GenerationRequest(id=str(i), db_id="db", prompt=PROMPT, model=model, n=1, temperature=0.0, max_tokens=6, seed=i)
        for i in range(16)
    ]
    folder.mkdir()
    write_records(folder / "requests.parquet", requests, GenerationRequest)
    generate_dataset_ray(folder / "requests.parquet", folder / "samples", settings(), lambda done, total: None)
    assert len(read_records(folder / "samples", Sample)) == 16


def train(folder: Path, model: str) -> Path:
    from spftsql.training.distributed import train_ray

    folder.mkdir()
    rows = [TrainRow(str(i), "db", PROMPT, f"select {i}", None, None, "label") for i in range(8)]
    write_records(folder / "rows.parquet", rows, TrainRow)
    steps = Optimization(steps=2, batch_size=4)
    job = TrainJob("sft", Path(model), folder / "rows.parquet", folder / "sft", "sft", steps, seed=0)
    train_ray([job], settings(), folder / "metrics.jsonl", lambda *_: None)
    return job.output


def seconds_until_the_card_is_free(holder: bytes) -> float:
    import ray

    begin = time.monotonic()
    while ray.available_resources().get("card", 0) < 1:
        assert time.monotonic() - begin < 20, "the card is still taken"
        time.sleep(0.05)
    free = time.monotonic() - begin
    while any(holder in title(pid) for pid in descendants(os.getpid())):
        assert time.monotonic() - begin < 20, "whoever had the card still lives"
        time.sleep(0.05)
    return free


@pytest.mark.usefixtures("one_card")
def test_a_stage_leaves_its_card_before_the_next_one_asks(tiny_models: list[str], tmp_path: Path) -> None:
    generate(tmp_path / "first", tiny_models[0])
    waited = [seconds_until_the_card_is_free(b"EngineActor")]
    trained = train(tmp_path / "training", tiny_models[0])
    waited.append(seconds_until_the_card_is_free(b"RayTrainWorker"))
    generate(tmp_path / "second", str(trained))
    waited.append(seconds_until_the_card_is_free(b"EngineActor"))
    print(f"free after {waited} s")
    assert max(waited) < 5
