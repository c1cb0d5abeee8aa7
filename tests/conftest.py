"""What all tests share: a quiet, offline environment, the benchmark data, and a Ray session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.postgres import Server

# No deadline per example: how long one takes says more about the machine than about the code.
settings.register_profile("spftsql", deadline=None)
settings.load_profile("spftsql")

CHECKOUT = Path(__file__).parents[1]

# Set before a test module imports torch, transformers or ray, which read these once. One thread: tests run
# beside Ray's workers, and with more threads than cores small matrix products become slower, not faster.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# Nothing that a test keeps for later is found by another run of the tests.
_CACHE = tempfile.TemporaryDirectory(prefix="spftsql-test-cache-", ignore_cleanup_errors=True)
os.environ["SPFTSQL_CACHE"] = _CACHE.name


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of benchmark data that SPFTSQL_DATA names."""
    root = os.environ.get("SPFTSQL_DATA")
    if not root:
        pytest.skip("SPFTSQL_DATA is not set")
    return Path(root)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server; skips where there are no programs to start one."""
    from tests.postgres import start_server

    with start_server() as server:
        yield server


@pytest.fixture(scope="session")
def towns(postgres: Server) -> str:
    """The URL of the database `towns` on that server, as the role that may only read."""
    from tests.towns import TOWNS

    postgres.run("CREATE DATABASE towns")
    postgres.run(TOWNS, "towns")
    return postgres.url("towns")


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One local Ray session for the tests of a module; another module may need one of another kind.

    Its 8 CPUs are logical: pipelines of several actor pools wait for ever when a pool finds no CPU left.
    """
    import ray

    from spftsql.cluster.session import end_session

    ray.init(
        address="local",  # never joins a cluster that happens to run on this machine
        num_cpus=8,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        runtime_env={
            "env_vars": {
                "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(CHECKOUT),
                "TORCHDYNAMO_DISABLE": "1",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            }
        },
    )
    yield
    end_session()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three model directories of 100,000 weights, large ones: answers differ between prompts and between models."""
    import torch
    from transformers import AutoModelForCausalLM

    from spftsql.config import ScratchConfig
    from spftsql.training.scratch import build_scratch_model

    size = ScratchConfig(hidden_size=64, layers=2, heads=2, intermediate_size=128, vocabulary=320)
    texts = ["which states border texas ?", "how long is the red river ?", "name the cities in ohio"] * 8
    root = tmp_path_factory.mktemp("models")
    for seed in range(3):
        build_scratch_model(size, 128, texts, root / str(seed), seed)
        model = AutoModelForCausalLM.from_pretrained(root / str(seed))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(8 if weight.dim() > 1 else 1)
        model.save_pretrained(root / str(seed))
    return [str(root / str(seed)) for seed in range(3)]
