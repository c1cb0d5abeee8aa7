"""Generation under Ray Data: every row once, whatever happens to the actors."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from spftsql.config import Config, validate
from spftsql.errors import Fault, UserError
from spftsql.generation.engine import open_engine
from spftsql.generation.stage import generate_dataset_ray
from spftsql.records import GenerationRequest, Sample, read_records, write_records

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]


def settings(**generation: object) -> Config:
    tree = {
        "name": "test",
        "data": {"benchmark": "demo"},
        "model": {"path": "unused", "max_length": 96},
        "generation": generation,
    }
    return validate(tree, "test")


def ask(number: int, model: str, **changes: object) -> GenerationRequest:
    fields: dict[str, object] = {
        "id": f"{model}/{number}",
        "db_id": f"db{number % 3}",
        "prompt": f"<|user|>name the {number} longest rivers<|assistant|>",
        "model": model,
        "n": 1,
        "temperature": 0.0,
        "max_tokens": 16,
        "seed": number,
    }
    return GenerationRequest(**(fields | changes))  # type: ignore[arg-type]


def ordered(samples: list[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda s: (s.id, s.index))


def test_killed_actor_loses_no_row(tiny_models: list[str], tmp_path: Path) -> None:
    config = settings(engine="transformers", actors=2, cpus=1, batch_size=10)
    requests = [ask(i, model, n=4, temperature=1.0, max_tokens=64) for i in range(100) for model in tiny_models[:2]]
    requests += [ask(1000, tiny_models[0], prompt=""), ask(1001, tiny_models[1], prompt="rivers " * 100)]
    source, target = tmp_path / "requests.parquet", tmp_path / "samples"
    write_records(source, requests, GenerationRequest)
    steps: list[int] = []
    killed: list[int] = []

    def kill_one() -> None:
        """Waits until an actor is at work on its second or third batch, and kills it."""
        while len(steps) < 2:
            time.sleep(0.05)
        actors = [p for p in psutil.Process().children(recursive=True) if "EngineActor" in "".join(p.cmdline())]
        os.kill(actors[0].pid, signal.SIGKILL)
        killed.append(actors[0].pid)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    generate_dataset_ray(source, target, config, lambda done, total: steps.append(done))
    killer.join(timeout=10)

    assert killed
    assert steps == sorted(steps)
    assert steps[-1] == len(requests)
    samples = ordered(read_records(target, Sample))
    assert samples == ordered(open_engine(config).generate(requests))
    assert sum(sample.error is not None for sample in samples) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests.parquet", "samples"]


def test_vllm_actor_serves_several_models(tiny_models: list[str], tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    requests = [ask(i, model) for i in range(20) for model in tiny_models]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    config = settings(engine="vllm", batch_size=64)
    generate_dataset_ray(tmp_path / "requests.parquet", tmp_path / "samples", config, lambda done, total: None)
    expected = open_engine(settings(engine="transformers")).generate(requests)
    assert ordered(read_records(tmp_path / "samples", Sample)) == ordered(expected)


def test_missing_model_is_the_users_error_and_leaves_nothing(tmp_path: Path) -> None:
    write_records(tmp_path / "requests.parquet", [ask(1, str(tmp_path / "absent"))], GenerationRequest)
    with pytest.raises(UserError, match="not a model directory"):
        generate_dataset_ray(tmp_path / "requests.parquet", tmp_path / "samples", settings(), lambda d, t: None)
    assert [path.name for path in tmp_path.iterdir()] == ["requests.parquet"]


def test_model_that_cannot_be_loaded_is_a_fault_that_names_it(tiny_models: list[str], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_models[0], tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"")
    write_records(tmp_path / "requests.parquet", [ask(1, str(broken))], GenerationRequest)
    config = settings(engine="transformers")
    with pytest.raises(Fault, match=r"cannot load .*broken") as caught:
        generate_dataset_ray(tmp_path / "requests.parquet", tmp_path / "samples", config, lambda d, t: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "samples").exists()
