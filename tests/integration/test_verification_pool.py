"""The verifier pool on real Ray: a stage over it, with a worker killed while it works."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spftsql.config import Config, SandboxConfig, ServeConfig, VerificationConfig
from spftsql.errors import Fault, UserError
from spftsql.recipes import validate
from spftsql.records import Verdict, VerificationRequest, read_records, write_records
from tests.pool_processes import (
    await_work,
    counts,
    cpu_seconds,
    sandbox_children,
    wanted,
    worker_processes,
)
from tests.small_disk import small_disk

pytestmark = pytest.mark.integration

ROWS = 500


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("databases")
    paths = {name: folder / f"{name}.sqlite" for name in ("shop", "zoo")}
    for path in paths.values():
        connection = sqlite3.connect(path)
        connection.executescript("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO t VALUES (1, 'a')")
        connection.close()
    return paths


@pytest.fixture(scope="module")
def config() -> Config:
    base = validate({"name": "test", "data": {"benchmark": "demo"}, "model": {"path": "unused"}}, where="test")
    return base.model_copy(
        update={
            "sandbox": SandboxConfig(soft_seconds=30, hard_seconds=60, max_rows=100),
            "verification": VerificationConfig(workers=2, cpus=0.25, batch_size=16),
            "serve": ServeConfig(port=0),
        }
    )


@pytest.fixture(scope="module")
def ray_session() -> Iterator[str]:
    """A session with two CPUs, and the address of its dashboard."""
    import ray

    context = ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
    yield f"http://{context.dashboard_url}"
    ray.shutdown()


@pytest.fixture(scope="module")
def busy_cpu(ray_session: str) -> Iterator[None]:
    """An actor that holds one of the two CPUs, as a generation engine would."""
    import ray

    @ray.remote(num_cpus=1)
    class Engine:
        def ready(self) -> bool:
            return True

    engine = Engine.remote()
    assert ray.get(engine.ready.remote(), timeout=60)
    yield
    ray.kill(engine)


def verify(
    requests: list[VerificationRequest], databases: dict[str, Path], config: Config, folder: Path
) -> list[Verdict]:
    from spftsql.verification.stage import verify_dataset_ray

    write_records(folder / "requests.parquet", requests, VerificationRequest)
    verify_dataset_ray(folder / "requests.parquet", folder / "verdicts", databases, config, lambda *_: None)
    return sorted(read_records(folder / "verdicts", Verdict), key=lambda verdict: int(verdict.id))


def test_pool_runs_and_is_reused(busy_cpu: None, databases: dict[str, Path], config: Config) -> None:
    from spftsql.verification.pool import PoolClient, pool_stats, start_pool

    start_pool(config)

    async def ask() -> None:
        client = PoolClient(databases, config.sandbox)
        contest = await client.contest("shop", ["SELECT 1", "SELECT id, name FROM t", "SELECT id, name  FROM t"], 10)
        assert (contest.shown.status, contest.shown.rows) == ("ran", [(1, "a")])
        assert [verdict.status for verdict in contest.verdicts] == ["ran"] * 3
        cut = PoolClient({"other": databases["zoo"]}, config.sandbox.model_copy(update={"max_rows": 1}))
        requests = [VerificationRequest("1", "other", "SELECT 1 UNION SELECT 2", None, "strict")]
        assert [v.status for v in await cut.verify(requests)] == ["truncated"]  # its own limits, in the same pool
        with pytest.raises(UserError, match="known: other"):
            await cut.contest("shop", ["SELECT 1"], 1)

    asyncio.run(ask())
    workers = worker_processes()
    start_pool(config)
    start_pool(config.model_copy(update={"verification": config.verification.model_copy(update={"workers": 7})}))
    assert worker_processes() == workers
    assert len(workers) == 2
    stats = pool_stats()
    assert {worker["pid"] for worker in stats} == workers
    assert sum(worker["executed"] for worker in stats) == 4
    assert all(worker["ongoing"] == 0 for worker in stats)


def test_every_row_gets_one_verdict_though_a_worker_dies(
    busy_cpu: None, databases: dict[str, Path], config: Config, tmp_path: Path
) -> None:
    requests = counts(ROWS)
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 300
        while not killed and time.monotonic() < deadline:
            time.sleep(0.05)
            for worker in worker_processes():
                if any(cpu_seconds(child) > 0.5 for child in sandbox_children(worker)):  # in the midst of its rows
                    os.kill(worker, signal.SIGKILL)
                    killed.append(worker)
                    break

    killer = threading.Thread(target=kill_one)
    killer.start()
    verdicts = verify(requests, databases, config, tmp_path)
    killer.join()
    assert killed
    assert [v.id for v in verdicts] == [r.id for r in requests]
    assert [v.fault for v in verdicts if v.fault] == []
    assert [v.status for v in verdicts] == wanted(ROWS)
    assert killed[0] not in worker_processes()


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ((3, 1), ROWS),
        pytest.param((1, 3, 2, 3, 1), 4 * ROWS, marks=pytest.mark.long),
        pytest.param((3, 1, 3, 1, 3, 1), 4 * ROWS, marks=pytest.mark.long),
    ],
)
def test_scaling_up_and_down_loses_and_repeats_no_verdict(
    busy_cpu: None,
    ray_session: str,
    databases: dict[str, Path],
    config: Config,
    tmp_path: Path,
    sizes: tuple[int, ...],
    rows: int,
) -> None:
    from spftsql.cluster.scaling import PoolScaler, scale_verifiers

    numbers: list[int] = []

    def scale() -> None:
        await_work()
        for count in sizes:
            scale_verifiers(count, ray_session, timeout_s=200)
            numbers.append(len(worker_processes()))

    with ThreadPoolExecutor(1) as thread:
        scaling = thread.submit(scale)
        verdicts = verify(counts(rows), databases, config, tmp_path)
        scaling.result()
    assert tuple(numbers) == sizes
    assert [v.id for v in verdicts] == [str(i) for i in range(rows)]
    assert [v.fault for v in verdicts if v.fault] == []
    assert [v.status for v in verdicts] == wanted(rows)
    with pytest.raises(UserError, match=r"of 9 verifiers run, \d wait for .* more CPU"):
        scale_verifiers(9, ray_session, timeout_s=5)
    PoolScaler(ray_session).ask_for(2)


class Over(Exception):
    """Ends the policy loop."""


@pytest.mark.long
def test_the_policy_loop_follows_the_load_between_its_bounds(
    busy_cpu: None, ray_session: str, databases: dict[str, Path], config: Config, tmp_path: Path
) -> None:
    from spftsql.cluster.scaling import PoolScaler, follow_load, scale_verifiers
    from spftsql.verification.pool import start_pool

    start_pool(config)
    scale_verifiers(1, ray_session, timeout_s=200)
    scaler, over, said = PoolScaler(ray_session), threading.Event(), list[str]()

    def pause(seconds: float) -> None:
        time.sleep(5)  # not 15: the test would take minutes
        if over.is_set() and scaler.state().wanted == 1:
            raise Over

    def follow() -> None:
        with pytest.raises(Over):
            follow_load(scaler, 1, 3, said.append, pause)

    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(follow)
        verdicts = verify(counts(8 * ROWS), databases, config, tmp_path)
        over.set()
        following.result(timeout=200)
    sizes = [line.split(": ")[1] for line in said]
    assert sizes[:2] == ["1 -> 2", "2 -> 3"]
    assert sizes[-1].endswith("-> 1")
    assert [v.id for v in verdicts] == [str(i) for i in range(8 * ROWS)]
    assert [v.status for v in verdicts] == wanted(8 * ROWS)
    scale_verifiers(2, ray_session, timeout_s=200)


@pytest.mark.long
def test_a_full_disk_is_a_fault_and_the_stage_can_be_run_again(
    busy_cpu: None, databases: dict[str, Path], config: Config, tmp_path: Path
) -> None:
    from spftsql.verification.stage import verify_dataset_ray

    requests = [
        VerificationRequest(f"{i}-{os.urandom(60).hex()}", "shop", "SELECT 1", None, "bird") for i in range(500)
    ]
    write_records(tmp_path / "requests.parquet", requests, VerificationRequest)
    with small_disk(tmp_path / "disk", "64k") as disk:
        (disk / "ballast").write_bytes(bytes(50_000))
        with pytest.raises(Fault, match="No space left"):
            verify_dataset_ray(
                tmp_path / "requests.parquet", disk / "verdicts", databases, config, lambda done, total: None
            )
        assert not (disk / "verdicts").exists()
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        verify_dataset_ray(
            tmp_path / "requests.parquet", disk / "verdicts", databases, config, lambda done, total: None
        )
        assert {v.id for v in read_records(disk / "verdicts", Verdict)} == {request.id for request in requests}


def test_bad_rows_do_not_stop_the_stage(
    busy_cpu: None, databases: dict[str, Path], config: Config, tmp_path: Path
) -> None:
    requests = [
        VerificationRequest("0", "shop", "DROP TABLE t", None, "strict"),
        VerificationRequest("1", "nowhere", "SELECT 1", "SELECT 1", "strict"),
        VerificationRequest("2", "zoo", "SELECT 1", "SELECT 1", "bird"),
    ]
    verdicts = verify(requests, databases, config, tmp_path)
    assert [v.status for v in verdicts] == ["error", "unverifiable", "equal"]
    assert [v.fault is None for v in verdicts] == [True, False, True]


def test_no_rows_give_no_verdicts(busy_cpu: None, databases: dict[str, Path], config: Config, tmp_path: Path) -> None:
    assert verify([], databases, config, tmp_path) == []


def test_pool_is_taken_down(busy_cpu: None, databases: dict[str, Path], config: Config) -> None:
    from ray import serve

    from spftsql.verification.pool import APP, start_pool, stop_pool

    start_pool(config)
    stop_pool()
    assert APP not in serve.status().applications
    stop_pool()
