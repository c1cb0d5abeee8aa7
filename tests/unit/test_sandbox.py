"""The sandbox, with real children: what statements may do, what they may not, and how it survives them."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox.execute import Sandbox

HARD_SECONDS = 1.0
SMALL = SandboxConfig(soft_seconds=0.2, hard_seconds=HARD_SECONDS, max_rows=1000, max_bytes=1_000_000, memory_mb=128)
SLOW = SandboxConfig(soft_seconds=20, hard_seconds=30)  # leaves time to kill a child while it works
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
CORPUS = Path(__file__).parents[1] / "fixtures" / "hostile" / "sqlite.sql"


@dataclass(frozen=True)
class Hostile:
    family: str
    allowed: frozenset[str]
    sql: str


def read_corpus() -> list[Hostile]:
    blocks = CORPUS.read_text(encoding="utf-8").split("\n--# ")[1:]
    cases = []
    for block in blocks:
        header, _, sql = block.partition("\n")
        family, _, allowed = header.partition(" | ")
        cases.append(Hostile(family, frozenset(allowed.split()), sql))
    return cases


HOSTILE = read_corpus()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "people & co?.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, age INTEGER)")
    connection.executemany("INSERT INTO people VALUES (?, ?, ?)", [(i, f"name {i}", i % 90) for i in range(2000)])
    connection.execute("CREATE TABLE broken (x TEXT)")
    connection.execute("INSERT INTO broken VALUES (CAST(x'ff41' AS TEXT))")
    connection.execute("CREATE VIEW adults AS SELECT * FROM people WHERE age >= 18")
    connection.commit()
    connection.close()
    return path


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SMALL) as opened:
        yield opened


def kind(status: str, reason: str) -> str:
    return "refused" if reason.startswith("refused") else status


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_corpus_covers_families() -> None:
    assert len(HOSTILE) >= 60
    assert len({case.family for case in HOSTILE}) >= 15


def test_hostile_statements_change_nothing_and_end_in_time(sandbox: Sandbox, database: Path) -> None:
    before, here = contents(database.parent), set(os.listdir())
    wrong = []
    for case in HOSTILE:
        started = time.monotonic()
        (run,) = sandbox.execute(database, [case.sql])
        seconds = time.monotonic() - started
        if kind(run.status, run.reason) not in case.allowed or seconds > 2 * HARD_SECONDS:
            wrong.append(f"{run.status} ({run.reason}) after {seconds:.2f} s: {case.sql[:80]}")
    assert not wrong, "\n".join(wrong)
    assert contents(database.parent) == before
    assert set(os.listdir()) == here


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1\0; DROP TABLE people", "refused"),
        ("SELECT '\ud800'", "refused"),
        ("", "refused"),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "error"),
        ("SELECT " + " + ".join(["1"] * 5000), "error"),
        (" UNION ALL ".join(["SELECT 1"] * 200), "error"),
        ("SELECT '" + "x" * 60_000 + "'", "error"),
        ("SELECT * FROM " + "(SELECT * FROM " * 300 + "people" + ")" * 300, "truncated"),
        ("SELECT max(" + ", ".join(["1"] * 500) + ")", "error"),
    ],
)
def test_generated_hostile_statements(sandbox: Sandbox, database: Path, sql: str, expected: str) -> None:
    (run,) = sandbox.execute(database, [sql])
    assert kind(run.status, run.reason) == expected


def test_ordinary_queries_run(sandbox: Sandbox, database: Path) -> None:
    runs = sandbox.execute(
        database,
        [
            "SELECT id, name, age * 1.5, NULL, x'01' FROM people WHERE id = 3",
            "WITH old AS (SELECT * FROM people WHERE age > 80) SELECT count(*) FROM old",
            "SELECT count(*) FROM adults;",
            "SELECT name, row_number() OVER (ORDER BY id DESC) FROM people LIMIT 1",
            "SELECT strftime('%Y', '2020-03-04'), round(2.567, 1), upper('x'), json_extract('{\"a\": 1}', '$.a')",
            "SELECT name AS \"the name\" FROM people WHERE name LIKE 'name 1_' ORDER BY id LIMIT 2",
            "VALUES (1, 2), (3, 4)",
            "SELECT name FROM sqlite_master WHERE type = 'view'",
            "SELECT id FROM people WHERE 0",
        ],
    )
    assert [(run.status, run.reason) for run in runs] == [("ran", "")] * 9
    assert runs[0].rows == [(3, "name 3", 4.5, None, b"\x01")]
    assert [run.rows for run in runs[2:]] == [
        [(1586,)],
        [("name 1999", 1)],
        [("2020", 2.6, "X", 1)],
        [("name 10",), ("name 11",)],
        [(1, 2), (3, 4)],
        [("adults",)],
        [],
    ]
    assert runs[5].columns == ("the name",)
    assert runs[8].columns == ("id",)
    assert runs[0].engine.startswith("sqlite 3.")


def test_row_and_byte_caps(sandbox: Sandbox, database: Path) -> None:
    rows, fewer, text = (
        sandbox.execute(database, ["SELECT id FROM people"])[0],
        sandbox.execute(database, ["SELECT id FROM people"], max_rows=7)[0],
        sandbox.execute(database, ["SELECT (SELECT group_concat(name) FROM people) FROM people"])[0],
    )
    assert (rows.status, len(rows.rows)) == ("truncated", 1000)
    assert (fewer.status, fewer.rows[-1]) == ("truncated", (6,))
    assert text.status == "truncated"
    assert 0 < sum(len(str(row[0])) for row in text.rows) <= 1_000_000
    (exact,) = sandbox.execute(database, ["SELECT id FROM people WHERE id < 7"], max_rows=7)
    assert (exact.status, len(exact.rows)) == ("ran", 7)


def test_double_quoted_strings_are_a_switch(database: Path) -> None:
    sql = 'SELECT count(*) FROM people WHERE name = "name 5"'
    with Sandbox(SMALL) as strict, Sandbox(SMALL.model_copy(update={"double_quoted_strings": True})) as lenient:
        assert strict.execute(database, [sql])[0].reason.startswith("no such column")
        assert lenient.execute(database, [sql])[0].rows == [(1,)]


def test_memory_is_bounded(database: Path) -> None:
    hungry = "SELECT a.name FROM people a, people b, people c ORDER BY a.name || b.name || c.name"
    limits = SandboxConfig(soft_seconds=20, hard_seconds=30, memory_mb=64)
    with Sandbox(limits) as sandbox:
        runs = sandbox.execute(database, [hungry, "SELECT 1"])
        assert (runs[0].status, runs[0].reason) == ("error", "memory")
        assert runs[1].rows == [(1,)]


def test_hard_deadline_kills_and_replaces_the_child(sandbox: Sandbox, database: Path) -> None:
    (long_opcode, *_) = (case.sql for case in HOSTILE if case.family == "long opcode")
    sandbox.execute(database, ["SELECT 1"])
    first = sandbox.pid
    runs = sandbox.execute(database, ["SELECT 1", long_opcode, "SELECT 2"])
    assert [run.status for run in runs] == ["ran", "timeout", "ran"]
    assert runs[1].reason.endswith("killed")
    assert runs[2].rows == [(2,)]
    assert first is not None and sandbox.pid != first
    assert not Path(f"/proc/{first}").exists()


def cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Killer:
    """Sends a signal to the child of a sandbox when its CPU time says that it is in a long statement, `times` times."""

    def __init__(self, sandbox: Sandbox, number: signal.Signals, times: int) -> None:
        self.victims: list[int] = []
        self._thread = threading.Thread(target=self._hunt, args=(sandbox, number, times))
        self._thread.start()

    def _hunt(self, sandbox: Sandbox, number: signal.Signals, times: int) -> None:
        deadline = time.monotonic() + 20
        while len(self.victims) < times and time.monotonic() < deadline:
            pid = sandbox.pid
            if pid is not None and pid not in self.victims and cpu_seconds(pid) > 0.5:
                os.kill(pid, number)
                self.victims.append(pid)
            time.sleep(0.01)

    def join(self) -> None:
        self._thread.join()


def test_child_killed_from_outside_is_retried(database: Path) -> None:
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000000) SELECT count(*) FROM n"
    with Sandbox(SLOW) as sandbox:
        killer = Killer(sandbox, signal.SIGKILL, times=1)
        runs = sandbox.execute(database, ["SELECT 1", slow, "SELECT 2"])
        killer.join()
        assert [run.rows for run in runs] == [[(1,)], [(20_000_000,)], [(2,)]]
        assert len(killer.victims) == 1


def test_child_killed_from_outside_again_and_again_is_a_fault(database: Path) -> None:
    with Sandbox(SLOW) as sandbox:
        killer = Killer(sandbox, signal.SIGKILL, times=3)
        with pytest.raises(Fault, match="killed from outside"):
            sandbox.execute(database, [ENDLESS])
        killer.join()
        assert sandbox.execute(database, ["SELECT 1"])[0].rows == [(1,)]


def test_statement_that_twice_crashes_its_child_is_an_error(database: Path) -> None:
    with Sandbox(SLOW) as sandbox:
        killer = Killer(sandbox, signal.SIGSEGV, times=2)
        runs = sandbox.execute(database, ["SELECT 1", ENDLESS, "SELECT 2"])
        killer.join()
        assert [(run.status, run.reason) for run in runs] == [("ran", ""), ("error", "killed"), ("ran", "")]


def test_child_dies_with_its_parent(database: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from spftsql.config import SandboxConfig\n"
        "from spftsql.sandbox.execute import Sandbox\n"
        "sandbox = Sandbox(SandboxConfig())\n"
        "sandbox.execute(Path(sys.argv[1]), ['SELECT 1'])\n"
        "print(sandbox.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(database)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 5
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_unreadable_databases_are_faults(sandbox: Sandbox, tmp_path: Path) -> None:
    text, missing, logged = tmp_path / "text.sqlite", tmp_path / "missing.sqlite", tmp_path / "logged.sqlite"
    text.write_text("this is not a database, but it is long enough to be looked at by the engine " * 20)
    for path in (text, missing):
        with pytest.raises(Fault, match="cannot be"):
            sandbox.execute(path, ["SELECT 1 FROM x"])
    logged.write_bytes(b"")
    Path(f"{logged}-wal").write_bytes(b"not empty")
    with pytest.raises(Fault, match="write-ahead log"):
        sandbox.execute(logged, ["SELECT 1"])
    assert not missing.exists()


def test_changed_file_is_opened_again(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "changing.sqlite"
    for number in (1, 2):
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path)
        connection.executescript(f"CREATE TABLE t (x); INSERT INTO t VALUES ({number})")
        connection.close()
        assert sandbox.execute(path, ["SELECT x FROM t"])[0].rows == [(number,)]


def test_child_has_no_secrets_and_no_files(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPFTSQL_API_KEY", "secret")
    with Sandbox(SMALL) as sandbox:
        sandbox.execute(database, ["SELECT 1"])
        process = Path(f"/proc/{sandbox.pid}")
        assert b"secret" not in (process / "environ").read_bytes()
        assert os.readlink(process / "cwd").endswith("(deleted)")
        limits = dict(
            (line[:26].strip(), line[26:].split()[0]) for line in (process / "limits").read_text().splitlines()
        )
        assert limits["Max file size"] == "0"
        assert limits["Max address space"] == str(128 * 2**20)
        assert limits["Max core file size"] == "0"
        assert int(limits["Max open files"]) <= 64
