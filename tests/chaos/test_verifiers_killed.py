"""The verifier pool under everything at once: every row gets exactly one verdict, or one counted fault."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spftsql.cluster.session import end_session
from spftsql.config import Config, SandboxConfig, ServeConfig, VerificationConfig
from spftsql.databases.places import Source, common_content
from spftsql.errors import Fault, UserError
from spftsql.recipes import validate
from spftsql.records import Verdict, VerificationRequest, read_records, write_records
from tests.pool_processes import await_work, counts, sandbox_children, session_processes, wanted, worker_processes

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

ROWS = 3000


def database(path: Path, rows: int = 1) -> Path:
    path.parent.mkdir(exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
    connection.executemany("INSERT INTO t VALUES (?, 'a')", [(i,) for i in range(rows)])
    connection.commit()
    connection.close()
    return path


@pytest.fixture
def databases(tmp_path: Path) -> dict[str, Source]:
    """Two databases, of three replicas each."""
    sources = {}
    for name in ("shop", "zoo"):
        paths = [database(tmp_path / "0" / f"{name}.sqlite")]
        for mount in ("1", "2"):
            (tmp_path / mount).mkdir(exist_ok=True)
            paths.append(tmp_path / mount / f"{name}.sqlite")
            paths[-1].write_bytes(paths[0].read_bytes())
        sources[name] = Source(tuple(map(str, paths)), common_content(name, paths))
    return sources


@pytest.fixture(scope="module")
def config() -> Config:
    base = validate({"name": "test", "data": {"benchmark": "demo"}, "model": {"path": "unused"}}, where="test")
    return base.model_copy(
        update={
            "sandbox": SandboxConfig(soft_seconds=30, hard_seconds=60, max_rows=100),
            "verification": VerificationConfig(workers=3, cpus=0.1, batch_size=16, node_cache=None),
            "serve": ServeConfig(port=0),
        }
    )


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    import ray

    context = ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
    yield f"http://{context.dashboard_url}"
    end_session()


@contextmanager
def again_and_again(*deeds: tuple[float, Callable[[], object]]) -> Iterator[None]:
    """Does each deed every so many seconds, from when the pool is at work until the end of the block."""
    stop = threading.Event()

    def repeat(seconds: float, deed: Callable[[], object]) -> None:
        await_work()
        while not stop.wait(seconds):
            deed()

    threads = [threading.Thread(target=repeat, args=deed) for deed in deeds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def kill_one(processes: list[int], killed: list[int], chance: random.Random) -> None:
    if processes:
        victim = chance.choice(processes)
        killed.append(victim)
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            killed.pop()


def verify(
    requests: list[VerificationRequest], databases: dict[str, Source], config: Config, folder: Path
) -> list[Verdict]:
    from spftsql.verification.stage import verify_dataset_ray

    write_records(folder / "requests.parquet", requests, VerificationRequest)
    verify_dataset_ray(folder / "requests.parquet", folder / "verdicts", databases, config, lambda *_: None)
    return sorted(read_records(folder / "verdicts", Verdict), key=lambda verdict: int(verdict.id))


def test_workers_and_children_killed_replicas_away_and_the_pool_scaled(
    dashboard: str, databases: dict[str, Source], config: Config, tmp_path: Path
) -> None:
    from spftsql.cluster.scaling import PoolScaler
    from spftsql.verification.pool import pool_stats, start_pool

    start_pool(config)
    chance = random.Random(0)
    workers: list[int] = []
    children: list[int] = []
    controllers: list[int] = []
    sizes: list[int] = []
    faults: dict[str, int] = {}
    scaler = PoolScaler(dashboard)

    def scale() -> None:
        with contextlib.suppress(Fault, UserError):  # the controller was just killed
            count = chance.choice([1, 2, 4, 6])
            scaler.ask_for(count)
            sizes.append(count)

    def take_a_replica_away() -> None:
        files = [Path(address) for source in databases.values() for address in source.addresses]
        for file in files:
            file.with_suffix(".away").rename(file) if file.with_suffix(".away").exists() else None
        away = chance.choice(files)
        away.rename(away.with_suffix(".away"))

    def kill_controller() -> None:
        for pid in session_processes(b"ServeController"):
            os.kill(pid, signal.SIGKILL)
            controllers.append(pid)

    def look() -> None:
        with contextlib.suppress(Fault, TimeoutError):
            for worker in pool_stats():
                faults[str(worker["pid"])] = sum(state["faults"] for state in worker["replicas"].values())

    with again_and_again(
        (0.7, lambda: kill_one([c for w in worker_processes() for c in sandbox_children(w)], children, chance)),
        (6.0, lambda: kill_one(list(worker_processes()), workers, chance)),
        (5.0, scale),
        (2.0, take_a_replica_away),
        (1.0, look),
        (25.0, kill_controller),
    ):
        verdicts = verify(counts(ROWS), databases, config, tmp_path)
    print(f"killed: {len(workers)} workers, {len(children)} children, {len(controllers)} controllers")
    print(f"sizes of the pool {sizes}; faults of replicas, by worker {faults}")
    assert controllers and len(workers) >= 2 and len(children) >= 10 and len(sizes) >= 2
    assert sum(faults.values()) > 0
    assert [v.id for v in verdicts] == [str(i) for i in range(ROWS)]
    assert [v.fault for v in verdicts if v.fault] == []
    assert [v.status for v in verdicts] == wanted(ROWS)


def test_a_database_that_changes_under_a_run_gives_no_verdict_from_other_data(
    dashboard: str, databases: dict[str, Source], config: Config, tmp_path: Path
) -> None:
    """All replicas of one database are replaced at once, by one in which every statement has another result."""
    from spftsql.verification.pool import start_pool

    start_pool(config)
    before = [Path(address) for address in databases["shop"].addresses]
    changed: list[bool] = []

    def change() -> None:
        if not changed:
            changed.append(True)
            for number, path in enumerate(before):
                database(tmp_path / f"new{number}" / "db.sqlite", rows=2).replace(path)

    with again_and_again((0.5, change)):
        verdicts = verify(counts(ROWS // 3), databases, config, tmp_path)
    faults = [v for v in verdicts if v.fault]
    assert 0 < len(faults) < ROWS // 6
    assert {v.db_id for v in faults} == {"shop"}
    assert all("is not what it was" in (v.fault or "") or "changed" in (v.fault or "") for v in faults)
    assert [v.id for v in verdicts] == [str(i) for i in range(ROWS // 3)]
    assert all(v.fault or v.status == status for v, status in zip(verdicts, wanted(ROWS // 3), strict=True))


def test_a_pool_that_is_taken_down_under_a_stage(
    dashboard: str, databases: dict[str, Source], config: Config, tmp_path: Path
) -> None:
    """Its rows are faults in the end, or the stage fails as one; a second run completes it."""
    from spftsql.verification.pool import start_pool, stop_pool

    start_pool(config)
    stopped: list[bool] = []

    def stop() -> None:
        if not stopped:
            stopped.append(True)
            stop_pool()

    with again_and_again((1.0, stop)):
        try:
            verdicts = verify(counts(ROWS // 3), databases, config, tmp_path)
        except Fault:
            verdicts = []
    assert stopped
    if verdicts:
        assert [v.id for v in verdicts] == [str(i) for i in range(ROWS // 3)]
        assert any(v.fault for v in verdicts)
        assert all(v.fault or v.status == status for v, status in zip(verdicts, wanted(ROWS // 3), strict=True))
    verdicts = verify(counts(ROWS // 3), databases, config, tmp_path)
    assert [v.status for v in verdicts] == wanted(ROWS // 3)
