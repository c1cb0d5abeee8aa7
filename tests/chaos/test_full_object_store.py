"""Ray's object store full to the brim under a stage: it spills, and no row is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spftsql.cluster.session import end_session
from spftsql.config import SandboxConfig, ServeConfig, VerificationConfig
from spftsql.recipes import validate
from spftsql.records import GenerationRequest, Sample, Verdict, VerificationRequest, read_records, write_records
from tests.chaos.test_verifiers_killed import database
from tests.conftest import CHECKOUT
from tests.pool_processes import wanted

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

MIB = 1 << 20
STORE, HELD = 80 * MIB, 74 * MIB
ROWS, PADDING = 2000, 12_000  # 24 MB of statements: several times what is left


@pytest.fixture
def full_store() -> Iterator[None]:
    """A session whose object store is full of arrays that are in use, which nothing can evict."""
    import numpy as np
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=STORE,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}},
    )
    held = [ray.get(ray.put(np.zeros(2 * MIB, np.uint8))) for _ in range(HELD // (2 * MIB))]
    yield
    assert all(array.sum() == 0 for array in held)
    end_session()


@pytest.mark.usefixtures("full_store")
def test_stages_go_on_with_a_full_object_store(tmp_path: Path, tiny_models: list[str]) -> None:
    from spftsql.generation.stage import generate_dataset_ray
    from spftsql.verification.stage import verify_dataset_ray

    base = validate(
        {
            "name": "test",
            "data": {"benchmark": "demo"},
            "model": {"path": "unused", "max_length": 96},
            "generation": {"engine": "transformers", "batch_size": 16},
        },
        where="test",
    )
    config = base.model_copy(
        update={
            "sandbox": SandboxConfig(max_rows=100),
            "verification": VerificationConfig(workers=2, cpus=0.1, batch_size=16, node_cache=None),
            "serve": ServeConfig(port=0),
        }
    )
    padding = "x" * PADDING
    statements = [
        VerificationRequest(
            str(i), "shop", f"SELECT {i} /* {padding} */", f"SELECT {i + i % 3 // 2} /* {padding} */", "strict"
        )
        for i in range(ROWS)
    ]
    write_records(tmp_path / "statements.parquet", statements, VerificationRequest)
    databases = {"shop": str(database(tmp_path / "0" / "shop.sqlite"))}
    verify_dataset_ray(tmp_path / "statements.parquet", tmp_path / "verdicts", databases, config, lambda *_: None)
    verdicts = sorted(read_records(tmp_path / "verdicts", Verdict), key=lambda verdict: int(verdict.id))
    assert [v.id for v in verdicts] == [str(i) for i in range(ROWS)]
    assert [v.status for v in verdicts] == wanted(ROWS)

    prompt = "<|user|>name the longest rivers<|assistant|>"
    requests = [
        GenerationRequest(
            id=str(i), db_id="shop", prompt=prompt, model=tiny_models[0], n=2, temperature=1.0, max_tokens=8, seed=i
        )
        for i in range(64)
    ]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    generate_dataset_ray(tmp_path / "requests.parquet", tmp_path / "samples", config, lambda done, total: None)
    samples = read_records(tmp_path / "samples", Sample)
    assert sorted((s.id, s.index) for s in samples) == sorted((r.id, k) for r in requests for k in range(2))
