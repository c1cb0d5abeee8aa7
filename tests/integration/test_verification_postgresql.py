"""Verification on PostgreSQL: what is kept of a server's answers, and replicas that go and come back under a stage."""

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spftsql.config import Config, SandboxConfig, VerificationConfig
from spftsql.recipes import validate
from spftsql.records import Verdict, VerificationRequest, read_records, write_records
from spftsql.verification import worker
from spftsql.verification.local import verify_dataset
from spftsql.verification.worker import Verifier
from tests.postgres import Server

pytestmark = pytest.mark.integration

LIMITS = SandboxConfig(soft_seconds=5, hard_seconds=10, max_rows=1000)


@pytest.fixture(scope="module")
def numbers(postgres: Server) -> Iterator[list[str]]:
    """A database and its copy."""
    names = ("numbers", "numbers_copy")
    postgres.run("CREATE DATABASE numbers")
    postgres.run("CREATE TABLE t AS SELECT i FROM generate_series(0, 99) AS i; GRANT SELECT ON t TO reader", "numbers")
    postgres.run("CREATE DATABASE numbers_copy TEMPLATE numbers")
    yield [postgres.url(name) for name in names]
    for name in names:
        postgres.run(f"DROP DATABASE {name} WITH (FORCE)")


def requests(count: int) -> list[VerificationRequest]:
    return [
        VerificationRequest(
            f"r{i}",
            "numbers",
            f"SELECT 0 * max(t.i) + {i} % 7 FROM t, t AS u, t AS v WHERE v.i < 30",  # some 10 ms
            "SELECT 3",
            "bird",
        )
        for i in range(count)
    ]


def wanted(count: int) -> list[str]:
    return ["equal" if i % 7 == 3 else "different" for i in range(count)]


def test_golds_are_kept_as_long_as_the_content_stays(
    postgres: Server, numbers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_WORTH_KEEPING_MS", math.inf)  # only golds are kept, however slow a prediction was
    asked = [
        VerificationRequest(str(i), "numbers", f"SELECT count(*) + 0 * {i} FROM t", "SELECT count(*) FROM t", "bird")
        for i in range(4)
    ]
    with Verifier({"numbers": numbers[1]}, LIMITS) as verifier:
        executed = []
        for sql in ("SELECT 1", "INSERT INTO t VALUES (100)", "SELECT 1", "DELETE FROM t WHERE i = 100"):
            postgres.run(sql, "numbers_copy")
            assert [v.status for v in verifier.verify(asked)] == ["equal"] * 4
            executed.append(verifier.stats()["executed"])
    assert executed == [5, 10, 14, 19]


def test_replicas_that_go_and_come_back_cost_no_row(postgres: Server, numbers: list[str], tmp_path: Path) -> None:
    base = validate({"name": "test", "data": {"benchmark": "demo"}, "model": {"path": "unused"}}, where="test")
    workers = VerificationConfig(workers=2, batch_size=8, node_cache=None)
    config: Config = base.model_copy(update={"sandbox": LIMITS, "verification": workers})
    stop = threading.Event()
    times = []

    def allow(name: str, allowed: bool) -> None:
        postgres.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {str(allowed).lower()}")
        postgres.run(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND NOT {allowed}"
        )

    def toggle() -> None:
        for away in ("numbers", "numbers_copy", "both") * 20:
            names = ["numbers", "numbers_copy"] if away == "both" else [away]
            for name in names:
                allow(name, False)
            stopped = stop.wait(0.3)
            for name in names:
                allow(name, True)
            times.append(away)
            if stopped or stop.wait(0.3):
                return

    write_records(tmp_path / "requests.parquet", requests(400), VerificationRequest)
    toggling = threading.Thread(target=toggle)
    toggling.start()
    try:
        verify_dataset(
            tmp_path / "requests.parquet", tmp_path / "verdicts", {"numbers": numbers}, config, lambda done, total: None
        )
    finally:
        stop.set()
        toggling.join()
    verdicts = read_records(tmp_path / "verdicts", Verdict)
    assert [v.fault for v in verdicts if v.fault] == []
    assert [v.status for v in verdicts] == wanted(400)
    assert len(times) >= 3
