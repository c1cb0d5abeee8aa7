"""Generation under Ray Data: every row once, whatever happens to the actors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from spftsql.config import Config
from spftsql.errors import Fault, UserError
from spftsql.generation.engine import open_engine
from spftsql.generation.stage import generate_dataset_ray
from spftsql.recipes import validate
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
