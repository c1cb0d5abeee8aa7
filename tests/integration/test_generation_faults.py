"""Generation on a machine of two CPUs with two engines: who gets what, and every row once whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from spftsql.config import Config
from spftsql.generation.engine import open_engine
from spftsql.generation.stage import generate_dataset_ray
from spftsql.generation.vllm_options import ON_CPU
from spftsql.generation.work import read_lineage
from spftsql.recipes import validate
from spftsql.records import SET_ASIDE, GenerationRequest, Sample, read_records, write_records
from tests.conftest import CHECKOUT
from tests.engines import POISON, PoisonedActor, TogetherActor

pytestmark = pytest.mark.integration

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "TORCHDYNAMO_DISABLE": "1"}


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    """A Ray session with two CPUs and no more."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
        runtime_env={"env_vars": ENVIRONMENT},
    )
    yield
    ray.shutdown()


def settings(**generation: object) -> Config:
    tree = {
        "name": "test",
        "data": {"benchmark": "demo"},
        "model": {"path": "unused", "max_length": 96},
        "generation": {"engine": "transformers", "actors": 2, "cpus": 1, "batch_size": 8, **generation},
    }
    return validate(tree, "test")


def ask(number: int, model: str, databases: int = 6, **changes: Any) -> GenerationRequest:
    prompt = f"<|user|>name the {number} longest rivers<|assistant|>"
    fields = {"id": f"{Path(model).name}/{number}", "db_id": f"db{number % databases}", "prompt": prompt}
    fields |= {"model": model, "n": 2, "temperature": 1.0, "max_tokens": 24, "seed": number}
    return GenerationRequest(**(fields | changes))


def ordered(samples: list[Sample]) -> list[Sample]:
    return sorted(samples, key=lambda s: (s.id, s.index))


def served(folder: Path) -> dict[str, set[str]]:
    """The engines that worked on each database, as the parts say."""
    engines = defaultdict(set)
    for file in folder.glob("*.parquet"):
        for row in read_records(file, Sample):
            engines[row.db_id].add(read_lineage(file)["engine"])
    return engines


def no_progress(done: int, total: int) -> None:
    """Nobody looks."""


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.long)])
def test_two_engines_answer_every_row_once_and_share_no_schema(
    tiny_models: list[str], tmp_path: Path, engine: str
) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm")
    requests = [ask(i, tiny_models[0]) for i in range(120)]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    config = settings(engine=engine)
    generate_dataset_ray(tmp_path / "requests.parquet", tmp_path / "samples", config, no_progress, actor=TogetherActor)
    samples = read_records(tmp_path / "samples", Sample)
    assert sorted((s.id, s.index) for s in samples) == sorted((r.id, k) for r in requests for k in range(2))
    engines = served(tmp_path / "samples")
    assert {len(found) for found in engines.values()} == {1}
    assert len(set.union(*engines.values())) == 2
    if engine == "transformers":
        assert ordered(samples) == ordered(open_engine(settings()).generate(requests))


@pytest.mark.long
@pytest.mark.usefixtures("two_cpus")
@pytest.mark.timeout(900)
def test_request_that_kills_its_actor_every_time_is_set_aside(tiny_models: list[str], tmp_path: Path) -> None:
    requests = [ask(i, tiny_models[0]) for i in range(60)]
    poison = ask(60, tiny_models[0], prompt=f"<|user|>{POISON}<|assistant|>")
    write_records(tmp_path / "requests.parquet", [*requests, poison], GenerationRequest)
    config = settings(actors=1)
    generate_dataset_ray(tmp_path / "requests.parquet", tmp_path / "samples", config, no_progress, actor=PoisonedActor)
    samples = ordered(read_records(tmp_path / "samples", Sample))
    (aside,) = [sample for sample in samples if sample.error]
    assert aside.id == poison.id
    assert (aside.error or "").startswith(f"{SET_ASIDE}the engine failed 4 times")
    assert [s for s in samples if not s.error] == ordered(open_engine(config).generate(requests))


@pytest.mark.long
@pytest.mark.usefixtures("two_cpus")
@pytest.mark.timeout(900)
def test_engine_that_is_dead_while_its_actor_lives_is_replaced(
    tiny_models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With vLLM's core in a process of its own, as on a GPU; that process is killed in the middle of its work."""
    pytest.importorskip("vllm")
    monkeypatch.setitem(ON_CPU, "VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    requests = [ask(i, tiny_models[0], max_tokens=60) for i in range(400)]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    killed: list[tuple[int, int]] = []

    def kill_core(done: int, total: int) -> None:
        if done and not killed:
            for process in psutil.Process().children(recursive=True):
                if "EngineCore" in "".join(process.cmdline()):
                    killed.append((process.pid, process.ppid()))
                    process.kill()

    config = settings(engine="vllm", actors=1, batch_size=16)
    generate_dataset_ray(tmp_path / "requests.parquet", tmp_path / "samples", config, kill_core)
    assert killed
    samples = read_records(tmp_path / "samples", Sample)
    assert sorted((s.id, s.index) for s in samples) == sorted((r.id, k) for r in requests for k in range(2))
    assert not any(sample.error for sample in samples)
    lineages = [read_lineage(file) for file in (tmp_path / "samples").glob("*.parquet")]
    pids = {note["pid"] for note in lineages}
    assert len(pids) == 2
    assert killed[0][1] in pids


DRIVER = """
import sys
from pathlib import Path
import ray
from spftsql.generation.stage import generate_dataset_ray
from tests.integration.test_generation_faults import ENVIRONMENT, settings
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
         runtime_env={"env_vars": ENVIRONMENT})
folder = Path(sys.argv[1])
generate_dataset_ray(folder / "requests.parquet", folder / "samples", settings(), lambda done, total: None)
"""


@pytest.mark.long
@pytest.mark.usefixtures("two_cpus")
@pytest.mark.timeout(900)
def test_killed_driver_costs_nothing_that_was_stored(tiny_models: list[str], tmp_path: Path) -> None:
    requests = [ask(i, tiny_models[0], max_tokens=60) for i in range(400)]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    parts = tmp_path / ".samples.work" / "parts"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        _wait(lambda: parts.is_dir() and len(list(parts.glob("part-*"))) >= 4)
        children = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    psutil.wait_procs(children, timeout=60)  # what it started ends by itself
    stored = {file.name: file.stat().st_mtime_ns for file in parts.glob("part-*")}
    assert not (tmp_path / "samples").exists()
    generate_dataset_ray(tmp_path / "requests.parquet", tmp_path / "samples", settings(), no_progress)
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "samples").glob("*.parquet")}
    assert stored.items() <= after.items()
    samples = ordered(read_records(tmp_path / "samples", Sample))
    assert samples == ordered(open_engine(settings()).generate(requests))


def _wait(condition: Callable[[], bool], timeout_s: float = 300) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.usefixtures("two_cpus")
def test_killed_actor_costs_only_what_it_was_working_on(tiny_models: list[str], tmp_path: Path) -> None:
    requests = [ask(i, tiny_models[i % 2], max_tokens=48) for i in range(160)]
    requests += [ask(999, tiny_models[0], prompt=""), ask(998, tiny_models[0], prompt="rivers " * 100)]
    write_records(tmp_path / "requests.parquet", requests, GenerationRequest)
    parts = tmp_path / ".samples.work" / "parts"
    killed: list[int] = []
    kept: dict[str, int] = {}

    def kill_one() -> None:
        _wait(lambda: parts.is_dir() and len(list(parts.glob("part-*"))) >= 2)
        kept.update({file.name: file.stat().st_mtime_ns for file in parts.glob("part-*")})
        lineage = read_lineage(parts / sorted(kept)[0])
        os.kill(lineage["pid"], signal.SIGKILL)
        killed.append(lineage["pid"])

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    steps: list[int] = []
    generate_dataset_ray(
        tmp_path / "requests.parquet", tmp_path / "samples", settings(), lambda done, total: steps.append(done)
    )
    killer.join(timeout=10)
    assert killed
    assert steps == sorted(steps)
    assert steps[-1] == len(requests)
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "samples").glob("*.parquet")}
    assert kept.items() <= after.items()
    samples = ordered(read_records(tmp_path / "samples", Sample))
    assert samples == ordered(open_engine(settings()).generate(requests))
    assert sum(sample.error is not None for sample in samples) == 2
