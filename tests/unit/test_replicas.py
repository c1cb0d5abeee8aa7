"""Replicas of a database: turns, failover, rest, recovery, and that all have the same content."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from spftsql.config import DatabaseConfig, SandboxConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.databases.places import Source, common_content, source_of
from spftsql.errors import Fault, UserError
from spftsql.records import VerificationRequest
from spftsql.sandbox.location import locate
from spftsql.sandbox.result import Execution
from spftsql.verification.replicas import Replicas
from spftsql.verification.worker import Verifier

LIMITS = SandboxConfig(soft_seconds=2, hard_seconds=4, max_rows=1000)


def database(path: Path, rows: int = 3) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (i)")
    connection.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(rows)])
    connection.commit()
    connection.close()
    return path


@pytest.fixture
def copies(tmp_path: Path) -> list[Path]:
    """Three copies of a database, as on three mounts."""
    first = database(tmp_path / "one" / "db.sqlite")
    paths = [first, *(tmp_path / name / "db.sqlite" for name in ("two", "three"))]
    for path in paths[1:]:
        path.parent.mkdir()
        path.write_bytes(first.read_bytes())
    return paths


class Recorder:
    """Executes nothing; fails on the databases that are `down` and remembers which were asked."""

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.asked: list[str] = []

    def execute(self, database: str | Path, statements: Sequence[str], *rest: Any) -> list[Execution]:
        self.asked.append(str(database))
        if str(database) in self.down:
            raise Fault(f"{database} is down")
        return [Execution("ran", "", ("a",), [(1,)], 1.0, "sqlite") for _ in statements]

    def close(self) -> None:
        pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


SERVERS = tuple(f"postgresql://reader@host{i}/db" for i in range(3))


def test_workers_share_the_replicas_among_them() -> None:
    for index in range(6):
        recorder = Recorder()
        replicas = Replicas(Source(SERVERS), index)
        replicas.execute(recorder, ["SELECT 1"])
        replicas.execute(recorder, ["SELECT 1"])
        assert recorder.asked == [SERVERS[index % 3]] * 2


def test_a_replica_that_fails_rests_longer_each_time_and_is_tried_again() -> None:
    recorder, clock = Recorder(), Clock()
    replicas = Replicas(Source(SERVERS), 0, clock=clock)
    recorder.down = {SERVERS[0]}
    assert len(replicas.execute(recorder, ["SELECT 1", "SELECT 2"])) == 2
    assert recorder.asked == [SERVERS[0], SERVERS[1]]
    pauses = []
    for _ in range(8):  # until it is asked again, and again
        started = clock.now
        while replicas.states()[SERVERS[0]]["up"] is False:
            recorder.asked.clear()
            replicas.execute(recorder, ["SELECT 1"])
            assert recorder.asked == [SERVERS[1]]
            clock.now += 0.5
        pauses.append(clock.now - started)
        replicas.execute(recorder, ["SELECT 1"])
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert replicas.states()[SERVERS[0]] == {"up": False, "faults": 9}
    assert replicas.states()[SERVERS[1]] == {"up": True, "faults": 0}
    recorder.down.clear()
    clock.now += 30
    recorder.asked.clear()
    for _ in range(2):
        replicas.execute(recorder, ["SELECT 1"])
    assert recorder.asked == [SERVERS[0]] * 2
    assert replicas.states()[SERVERS[0]]["up"]


def test_a_replica_that_is_silent_costs_a_tenth_of_the_time_at_most() -> None:
    clock = Clock()

    class Silent(Recorder):
        def execute(self, database: str | Path, statements: Sequence[str], *rest: Any):  # type: ignore[no-untyped-def]
            clock.now += 30 if str(database) in self.down else 0.1
            return super().execute(database, statements, *rest)

    recorder = Silent()
    recorder.down = {SERVERS[0]}
    replicas = Replicas(Source(SERVERS), 0, clock=clock)
    while clock.now < 5_000:
        replicas.execute(recorder, ["SELECT 1"])
    assert 30 * recorder.asked.count(SERVERS[0]) < 0.11 * clock.now


def test_a_fault_needs_all_replicas_down_and_one_that_comes_back_is_found_at_once() -> None:
    recorder, clock = Recorder(), Clock()
    replicas = Replicas(Source(SERVERS), 1, clock=clock)
    recorder.down = set(SERVERS)
    for _ in range(3):
        with pytest.raises(Fault, match=r"all 3 replicas failed: .*host1/db is down; .*host2/db is down; .*host0"):
            replicas.execute(recorder, ["SELECT 1"])
    recorder.down.remove(SERVERS[2])
    assert replicas.execute(recorder, ["SELECT 1"])
    assert {name: state["up"] for name, state in replicas.states().items()} == {
        SERVERS[0]: False,
        SERVERS[1]: False,
        SERVERS[2]: True,
    }


def test_passwords_stay_out_of_what_is_shown() -> None:
    replicas = Replicas(Source(("postgresql://reader:secret@host/db",)))
    assert "secret" not in str(replicas.states())


def test_replicas_of_different_content_are_refused(copies: list[Path]) -> None:
    assert common_content("shop", copies) is not None
    database(copies[2], rows=4)
    config = DatabaseConfig(name="shop", url=str(copies[0]), replicas=(str(copies[1]), f"sqlite:///{copies[2]}"))
    with pytest.raises(UserError, match=r"shop: its replicas .*one/db.sqlite and .*three/db.sqlite have different"):
        open_catalogue([config])


def test_replicas_are_of_one_engine(copies: list[Path]) -> None:
    with pytest.raises(UserError, match="shop: its replicas are of different engines"):
        source_of("shop", [copies[0], SERVERS[0]])
    with pytest.raises(UserError, match="shop: no address"):
        source_of("shop", [])
    assert source_of("shop", f"duckdb:///{copies[0]}").addresses == (f"duckdb:///{copies[0]}",)
    assert locate(source_of("shop", Path("some.sqlite")).addresses[0]).address == str(Path("some.sqlite").absolute())


def test_a_catalogue_starts_from_whichever_replica_is_there(copies: list[Path]) -> None:
    copies[0].unlink()
    config = DatabaseConfig(name="shop", url=str(copies[0]), replicas=tuple(map(str, copies[1:])))
    shop = open_catalogue([config])["shop"]
    assert shop.path == copies[1]
    assert shop.source == Source(tuple(map(str, copies)), shop.content)
    with pytest.raises(UserError, match=r"one/db\.sqlite does not exist"):
        open_catalogue([config.model_copy(update={"replicas": ()})])


def requests(count: int) -> list[VerificationRequest]:
    return [VerificationRequest(str(i), "shop", f"SELECT {i} % 2", "SELECT 1", "strict") for i in range(count)]


def test_every_row_gets_a_verdict_while_one_replica_is_there(copies: list[Path]) -> None:
    wanted = ["equal" if i % 2 else "different" for i in range(40)]
    with Verifier({"shop": copies}, LIMITS) as verifier:
        assert [v.status for v in verifier.verify(requests(40))] == wanted
        copies[0].rename(copies[0].with_suffix(".away"))
        verdicts = verifier.verify(
            [*requests(40), VerificationRequest("last", "shop", "SELECT i FROM t", None, "bird")]
        )
        assert [v.status for v in verdicts] == [*wanted, "ran"]
        assert [v.fault for v in verdicts] == [None] * 41
        assert verifier.run("shop", "SELECT count(*) FROM t").rows == [(3,)]
        stats = verifier.stats()
        assert stats["replicas"][str(copies[0])]["faults"] >= 1
        assert stats["replicas"][str(copies[1])] == {"up": True, "faults": 0}
        assert stats["faults"] == 0


def test_cold_start_with_all_replicas_down_and_one_that_comes_back(copies: list[Path]) -> None:
    for path in copies:
        path.rename(path.with_suffix(".away"))
    with Verifier({"shop": copies}, LIMITS) as verifier:
        verdicts = verifier.verify(requests(20))
        assert {(v.status, v.reason) for v in verdicts} == {("unverifiable", "fault")}
        assert all(v.fault and v.fault.startswith("all 3 replicas failed") for v in verdicts)
        assert verifier.stats()["faults"] > 0
        copies[2].with_suffix(".away").rename(copies[2])
        assert {v.status for v in verifier.verify(requests(20))} == {"equal", "different"}


@pytest.mark.parametrize("fixed", [True, False])
def test_a_replica_that_changes_under_a_run_is_not_asked_any_more(copies: list[Path], fixed: bool) -> None:
    content = common_content("shop", copies) if fixed else None
    count = VerificationRequest("1", "shop", "SELECT count(*) FROM t", "SELECT 3", "strict")
    with Verifier({"shop": Source(tuple(map(str, copies)), content)}, LIMITS) as verifier:
        assert verifier.verify([count])[0].status == "equal"
        database(copies[0], rows=4)
        (verdict,) = verifier.verify([VerificationRequest("1", "shop", "SELECT sum(1) FROM t", "SELECT 3", "strict")])
        assert (verdict.status, verdict.fault) == ("equal", None)
        assert verifier.stats()["replicas"][str(copies[0])]["faults"] == 1


def test_a_database_that_changes_under_a_run_gives_faults_and_no_verdict_from_other_data(tmp_path: Path) -> None:
    path = database(tmp_path / "db.sqlite")
    source = Source((str(path),), common_content("shop", [path]))
    with Verifier({"shop": source}, LIMITS) as verifier:
        assert verifier.verify([request("SELECT count(*) FROM t")])[0].status == "ran"
        kept = path.read_bytes()
        database(path, rows=5)
        (verdict,) = verifier.verify([request("SELECT max(i) FROM t")])
        assert verdict.status == "unverifiable"
        assert "its content changed" in (verdict.fault or "")
        path.write_bytes(kept)  # what was there is there again
        assert verifier.verify([request("SELECT max(i) FROM t")])[0].row_count == 1


def request(sql: str, gold: str | None = None) -> VerificationRequest:
    return VerificationRequest("1", "shop", sql, gold, "strict")


class Meddler:
    """Changes the database after a statement was executed on it, as another process might at any moment."""

    def __init__(self, config: SandboxConfig) -> None:
        from spftsql.sandbox.execute import Sandbox

        self._sandbox, self.changes = Sandbox(config), 1

    def execute(self, database_: str | Path, statements: Sequence[str], *rest: Any) -> list[Execution]:
        results = self._sandbox.execute(database_, statements, *rest)
        if self.changes:
            self.changes -= 1
            database(Path(str(database_)), rows=9)
        return results

    def close(self) -> None:
        self._sandbox.close()


def test_a_change_while_statements_are_executed_is_noticed(tmp_path: Path) -> None:
    path = database(tmp_path / "db.sqlite")
    with Verifier({"shop": path}, LIMITS, sandbox=Meddler) as verifier:
        verdicts = verifier.verify([request("SELECT count(*) FROM t", "SELECT 3"), request("SELECT 9", "SELECT 3")])
        assert all("changed" in (verdict.fault or "") for verdict in verdicts)
        assert verifier.verify([request("SELECT count(*) FROM t", "SELECT 9")])[0].status == "equal"
