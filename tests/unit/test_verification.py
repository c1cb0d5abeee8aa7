"""The verifier without Ray: one verdict per request, caching, faults, and the stage in threads."""

import io
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from spftsql.config import Config, DatabaseConfig, SandboxConfig, VerificationConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.databases.files import file_hash
from spftsql.databases.places import Source
from spftsql.errors import Fault, UserError
from spftsql.execution import LocalExecution
from spftsql.progress import Reporter
from spftsql.recipes import validate
from spftsql.records import Verdict, VerificationRequest, read_records, write_records
from spftsql.runs import Run
from spftsql.sandbox.result import Execution, RunStatus
from spftsql.selfplay.stages import Stages
from spftsql.verification.batches import SMALLEST, Waiting, batches_by_database
from spftsql.verification.cache import ResultCache, ResultStore
from spftsql.verification.local import verify_dataset
from spftsql.verification.worker import Verifier
from tests.small_disk import small_disk

LIMITS = SandboxConfig(soft_seconds=1.0, hard_seconds=2.0, max_rows=100)
SLOW_GOLD = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 400000) SELECT count(*) FROM n"


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("databases")
    paths = {name: folder / f"{name}.sqlite" for name in ("shop", "zoo")}
    for name, path in paths.items():
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, price REAL, none TEXT)")
        connection.executemany(
            "INSERT INTO t VALUES (?, ?, ?, NULL)", [(i, f"{name} {i}", i * 0.1) for i in range(150)]
        )
        connection.commit()
        connection.close()
    return paths


@pytest.fixture(scope="module")
def verifier(databases: dict[str, Path]) -> Iterator[Verifier]:
    with Verifier(databases, LIMITS) as opened:
        yield opened


def request(sql: str, gold: str | None = None, db: str = "shop", id: str = "1") -> VerificationRequest:
    return VerificationRequest(id, db, sql, gold, "strict")


def test_one_verdict_per_request_in_order(verifier: Verifier) -> None:
    requests = [
        request("SELECT count(*) FROM t WHERE id < 5", "SELECT 5", id="equal"),
        request("SELECT name FROM t WHERE id = 3", "SELECT name FROM t WHERE id = 4", db="zoo", id="different"),
        request("SELECT nope FROM t", "SELECT 5", id="error"),
        request("SELECT id FROM t", "SELECT 5", id="truncated"),
        request("SELECT 5", "SELECT nope FROM t", id="unverifiable"),
        request("SELECT none FROM t WHERE id < 3", db="zoo", id="ran"),
        request("DROP TABLE t", "SELECT 5", id="refused"),
        request("SELECT count(*) FROM t WHERE id < 5", "SELECT 5", id="equal again"),
    ]
    verdicts = verifier.verify(requests)
    assert [v.id for v in verdicts] == [r.id for r in requests]
    assert [v.db_id for v in verdicts] == [r.db_id for r in requests]
    assert [v.status for v in verdicts] == [
        *("equal", "different", "error", "truncated", "unverifiable", "ran", "error", "equal")
    ]
    assert verdicts[6].reason.startswith("refused")
    assert (verdicts[5].row_count, verdicts[5].constant_null) == (3, True)
    assert (verdicts[0].row_count, verdicts[0].constant_null) == (1, False)
    assert verdicts[0].engine.startswith("sqlite 3.")
    assert verdicts[0].digest and not verdicts[2].digest and not verdicts[3].digest
    assert all(v.fault is None for v in verdicts)
    assert replace(verdicts[7], id="equal") == verdicts[0]


def test_equal_results_have_equal_digests(verifier: Verifier) -> None:
    one, other, third = verifier.verify(
        [
            request("SELECT id, name FROM t WHERE id < 9 ORDER BY id"),
            request("SELECT id * 1.0, name FROM t WHERE id < 9 ORDER BY name DESC"),
            request("SELECT id, name FROM t WHERE id < 8"),
        ]
    )
    assert one.digest == other.digest != third.digest


def test_gold_is_executed_once(databases: dict[str, Path]) -> None:
    with Verifier(databases, LIMITS) as verifier:
        seconds = []
        for number in range(10):
            started = time.perf_counter()
            (verdict,) = verifier.verify([request(f"SELECT 399999 + {number} * 0 + 1", SLOW_GOLD)])
            seconds.append(time.perf_counter() - started)
            assert verdict.status == "equal"
    assert sum(seconds[1:]) / 9 < seconds[0] / 3


def test_gold_of_a_changed_file_is_executed_again(tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    verdicts: list[Verdict] = []
    with Verifier({"shop": path}, LIMITS) as verifier:
        for number in (1, 2):
            path.unlink(missing_ok=True)
            connection = sqlite3.connect(path)
            connection.executescript(f"CREATE TABLE t (x); INSERT INTO t VALUES ({number})")
            connection.close()
            verdicts += verifier.verify([request("SELECT 1", "SELECT x FROM t")])
    assert [v.status for v in verdicts] == ["equal", "different"]


def test_results_are_kept_for_other_verifiers_and_later_runs(databases: dict[str, Path], tmp_path: Path) -> None:
    source = Source((str(databases["shop"]),), file_hash(databases["shop"]))
    requests = [
        request("SELECT count(*) FROM t, t AS u, t AS v", "SELECT 150*150*150"),
        request("SELECT  count(*)  FROM t, t AS u, t AS v ;", "SELECT 150*150*150", id="2"),
        request("SELECT name FROM t WHERE id = 1", "SELECT 'shop 1'", id="3"),
    ]
    verdicts = []
    for number in range(2):
        store = ResultStore(tmp_path / "results.sqlite", 1 << 20)
        with Verifier({"shop": source}, LIMITS, results=ResultCache(1 << 20, store)) as verifier:
            verdicts.append(verifier.verify(requests))
            # Only the quick statement that is no gold is executed again: keeping it would cost as much.
            assert verifier.stats()["executed"] == (4, 1)[number]
            assert verifier.stats()["kept"] == (1, 4)[number]
    assert verdicts[0] == [replace(new, elapsed_ms=old.elapsed_ms) for old, new in zip(*verdicts, strict=True)]
    assert [v.status for v in verdicts[0]] == ["equal"] * 3
    with Verifier({"shop": replace(source, content="0" * 16)}, LIMITS, results=ResultCache(1 << 20, store)) as other:
        assert all("is not what it was" in (v.fault or "") for v in other.verify(requests))


class Counting:
    """Executes nothing and remembers what it was asked for."""

    asked: ClassVar[list[str]] = []
    status: ClassVar[RunStatus] = "ran"

    def __init__(self, config: SandboxConfig) -> None:
        pass

    def execute(self, database: str | Path, statements: Sequence[str], *rest: Any) -> list[Execution]:
        self.asked.extend(statements)
        reason = "longer than 5 s" if self.status == "timeout" else ""
        return [Execution(self.status, reason, ("a",), [], 5.0, "postgresql 15.18") for _ in statements]

    def close(self) -> None:
        pass


def test_results_of_a_server_are_kept_for_one_call() -> None:
    """Its content may change at any time, and nothing would tell."""
    Counting.asked, Counting.status = [], "ran"
    requests = [request(f"SELECT {i} + a FROM t", "SELECT a  FROM t", id=str(i)) for i in range(40)]
    with Verifier({"shop": "postgresql://reader@host/shop"}, LIMITS, sandbox=Counting) as verifier:
        for calls in (1, 2):
            assert [v.status for v in verifier.verify(requests)] == ["equal"] * 40
            assert len(Counting.asked) == calls * 41
            assert Counting.asked.count("SELECT a  FROM t") == calls


class Telling(Counting):
    """Also says what its content is."""

    content: ClassVar[list[str]] = []

    def state(self, database: str | Path) -> str:
        return self.content[0] if len(self.content) == 1 else self.content.pop(0)


def test_golds_of_a_server_that_names_its_content_are_kept_as_long_as_it_stays() -> None:
    Telling.asked, Telling.status, Telling.content = [], "ran", ["1", "1", "2", "2", ""]
    requests = [request(f"SELECT {i} + a FROM t", "SELECT a FROM t", id=str(i)) for i in range(40)]
    counts = []
    with Verifier({"shop": "postgresql://reader@host/shop"}, LIMITS, sandbox=Telling) as verifier:
        for _ in range(6):
            assert [v.status for v in verifier.verify(requests)] == ["equal"] * 40
            counts.append(Telling.asked.count("SELECT a FROM t"))
    assert counts == [1, 1, 2, 2, 3, 4]


def test_a_gold_that_times_out_is_tried_once_a_call() -> None:
    Counting.asked, Counting.status = [], "timeout"
    requests = [request(f"SELECT {i}", "SELECT slow FROM t", id=str(i)) for i in range(40)]
    with Verifier({"shop": "postgresql://reader@host/shop"}, LIMITS, sandbox=Counting) as verifier:
        for calls in (1, 2):
            assert {v.status for v in verifier.verify(requests)} == {"unverifiable"}
            assert Counting.asked.count("SELECT slow FROM t") == calls


def test_faults_are_no_verdicts(databases: dict[str, Path], tmp_path: Path) -> None:
    with Verifier({**databases, "gone": tmp_path / "gone.sqlite"}, LIMITS) as verifier:
        requests = [request(f"SELECT {i}", "SELECT 1", db="gone", id=str(i)) for i in range(20)]
        verdicts = verifier.verify([request("SELECT 1"), *requests, request("SELECT 1", db="unknown")])
        assert [v.status for v in verdicts] == ["ran"] + ["unverifiable"] * 21
        assert verdicts[0].fault is None
        assert all("gone.sqlite" in (v.fault or "") for v in verdicts[1:21])
        assert "unknown" in (verdicts[21].fault or "")


def test_run_gives_rows(verifier: Verifier, tmp_path: Path) -> None:
    run = verifier.run("zoo", "SELECT id, name FROM t ORDER BY id", max_rows=2)
    assert (run.status, run.columns) == ("truncated", ("id", "name"))
    assert run.rows == [(0, "zoo 0"), (1, "zoo 1")]
    with pytest.raises(UserError, match="known: shop, zoo"):
        verifier.run("nothing", "SELECT 1")
    with Verifier({"gone": tmp_path / "gone.sqlite"}, LIMITS) as other, pytest.raises(Fault):
        other.run("gone", "SELECT 1")


def test_batches_are_of_one_database_and_bounded() -> None:
    requests = [request("SELECT 1", f"SELECT {i % 2}", db=f"db{i % 3}", id=str(i)) for i in range(20)]
    batches = batches_by_database(requests, 4)
    assert all(len(batch) <= 4 and len({r.db_id for r in batch}) == 1 for batch in batches)
    assert sorted(r.id for batch in batches for r in batch) == sorted(r.id for r in requests)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=300),
    st.integers(1, 8),
    st.integers(1, 64),
    st.randoms(use_true_random=False),
)
def test_what_waits_is_taken_once_in_batches_that_become_smaller(
    asked: list[tuple[str, int]], workers: int, largest: int, chance: Random
) -> None:
    requests = [request("SELECT 1", f"SELECT {gold}", db=db, id=str(i)) for i, (db, gold) in enumerate(asked)]
    waiting, done = Waiting(requests, largest), list[VerificationRequest]()
    while batch := waiting.take(workers):
        share = -(-(len(waiting) + len(batch)) // (2 * workers))
        assert len({r.db_id for r in batch}) == 1
        assert len(batch) <= min(max(share, SMALLEST), largest)
        assert [r.gold_sql for r in batch] == sorted(r.gold_sql or "" for r in batch)
        kept = chance.randint(1, len(batch))  # a worker does some of them
        done += batch[:kept]
        waiting.put_back(batch[kept:])
    assert len(waiting) == 0
    assert sorted(r.id for r in done) == sorted(r.id for r in requests)


def test_what_is_not_begun_in_time_is_left_for_another_call(verifier: Verifier) -> None:
    requests = [request(f"SELECT {i}", f"SELECT {i}", id=str(i)) for i in range(40)]
    answers, calls = dict[str, Verdict](), 0
    while left := [r for r in requests if r.id not in answers]:
        some = verifier.verify_some(left, None, seconds=0.0)
        answers |= {v.id: v for v in some if v is not None}
        assert [v and v.id for v in some] == [r.id if r.id in answers else None for r in left]
        calls += 1
    assert calls == 3  # of 16 statements, which are executed together in any case
    assert {v.status for v in answers.values()} == {"equal"}
    assert None not in verifier.verify_some(requests, None, seconds=60.0)


def config() -> Config:
    base = validate({"name": "test", "data": {"benchmark": "demo"}, "model": {"path": "unused"}}, where="test")
    workers = VerificationConfig(workers=2, batch_size=16)
    return base.model_copy(update={"sandbox": LIMITS, "verification": workers})


def test_verify_dataset_in_threads(databases: dict[str, Path], tmp_path: Path) -> None:
    requests = [
        request(f"SELECT {i} % 7", f"SELECT {i} % 5", db=("shop", "zoo")[i % 2], id=f"r{i}") for i in range(300)
    ]
    write_records(tmp_path / "requests.parquet", requests, VerificationRequest)
    stop = threading.Event()

    def kill_children() -> None:
        while not stop.wait(0.2):
            for pid in children_of(os.getpid()):
                os.kill(pid, signal.SIGKILL)
                return

    killer = threading.Thread(target=kill_children)
    killer.start()
    verify_dataset(tmp_path / "requests.parquet", tmp_path / "verdicts", databases, config(), lambda *_: None)
    stop.set()
    killer.join()
    verdicts = read_records(tmp_path / "verdicts", Verdict)
    assert [v.id for v in verdicts] == [r.id for r in requests]
    assert [v.status for v in verdicts] == ["equal" if i % 7 == i % 5 else "different" for i in range(300)]


def test_a_replica_that_is_away_for_a_while_costs_no_row(databases: dict[str, Path], tmp_path: Path) -> None:
    requests = [request(f"SELECT {i}", f"SELECT {i}", id=f"r{i}") for i in range(50)]
    write_records(tmp_path / "requests.parquet", requests, VerificationRequest)
    away, path = databases["shop"], tmp_path / "shop.sqlite"
    comes_back = threading.Timer(1.5, lambda: path.write_bytes(away.read_bytes()))
    comes_back.start()
    verify_dataset(
        tmp_path / "requests.parquet", tmp_path / "verdicts", {"shop": path}, config(), lambda done, total: None
    )
    comes_back.join()
    assert [(v.id, v.status, v.fault) for v in read_records(tmp_path / "verdicts", Verdict)] == [
        (r.id, "equal", None) for r in requests
    ]


def test_a_full_disk_is_a_fault_and_the_stage_is_resumed(databases: dict[str, Path], tmp_path: Path) -> None:
    requests = [request("SELECT 1", "SELECT 1", id=f"{i}-{os.urandom(60).hex()}") for i in range(500)]
    with small_disk(tmp_path / "disk", "256k") as disk:
        run = Run(config().model_copy(update={"run_dir": disk}))
        execution = LocalExecution(config(), databases)
        catalogue = open_catalogue([DatabaseConfig(name="shop", url=str(databases["shop"]))])
        stages = Stages(config(), run, execution, catalogue, Reporter(Console(file=io.StringIO())))
        (disk / "ballast").write_bytes(bytes(150_000))  # leaves room for the requests, not for the verdicts
        with pytest.raises(Fault, match="No space left on device"):
            stages.verify("labels", requests)
        assert not list(disk.rglob("*.tmp"))
        (disk / "ballast").unlink()
        verdicts = stages.verify("labels", requests)
        assert {id: v.status for id, v in verdicts.items()} == {r.id: "equal" for r in requests}
        run.close()


def children_of(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        children += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in children if b"spftsql.sandbox.child" in Path(f"/proc/{child}/cmdline").read_bytes()]
