"""The sandbox, with real children: what statements may do, what they may not, and how it survives them."""

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import psutil
import pytest

from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox.execute import Sandbox
from tests.hostile import CANARY, make_sqlite_database, read_corpus, structures
from tests.outcomes import Outcome, run_corpus

HARD_SECONDS = 1.0
SMALL = SandboxConfig(soft_seconds=0.2, hard_seconds=HARD_SECONDS, max_rows=1000, max_bytes=1_000_000, memory_mb=128)
SLOW = SandboxConfig(soft_seconds=20, hard_seconds=30)  # leaves time to kill a child while it works
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
COUNT = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT count(*) FROM n"
LONG_OPCODE = next(case.sql for case in read_corpus("sqlite") if case.family == "long opcode")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sqlite_database(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SMALL) as opened:
        yield opened


@pytest.fixture(scope="module")
def outcomes(database: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Every statement of the corpus, executed one after another by one sandbox."""
    return run_corpus("sqlite", database, SMALL, tmp_path_factory.mktemp("here"))


def test_corpus_is_large_and_varied(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)  # sqlglot says what it thinks of the statements
    families = structures("sqlite")
    counts = {family: len(different) for family, different in families.items()}
    total = len(set().union(*families.values()))
    print(f"{total} statements in {len(counts)} families: {counts}")
    assert total >= 150
    assert sum(count >= 5 for count in counts.values()) >= 15


def test_hostile_statements_get_the_right_answer_and_end_in_time(outcomes: list[Outcome]) -> None:
    late = [str(outcome) for outcome in outcomes if outcome.seconds > 2 * HARD_SECONDS]
    wrong = [str(outcome) for outcome in outcomes if outcome.kind not in outcome.case.allowed]
    assert not wrong, "\n".join(wrong)
    assert not late, "\n".join(late)


def test_hostile_statements_change_nothing(outcomes: list[Outcome]) -> None:
    assert [str(outcome) for outcome in outcomes if outcome.changed] == []


def test_hostile_statements_read_nothing_outside_their_database(outcomes: list[Outcome]) -> None:
    found = ((outcome, repr(outcome.run)) for outcome in outcomes)
    assert [str(outcome) for outcome, text in found if CANARY in text or "root:x:0" in text] == []


def test_hostile_statements_stay_within_their_memory(outcomes: list[Outcome]) -> None:
    top = sorted(outcomes, key=lambda outcome: outcome.peak_mib, reverse=True)[:5]
    print(*map(str, top), sep="\n")
    assert all(0 < outcome.peak_mib < SMALL.memory_mb for outcome in outcomes), "\n".join(map(str, top))


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
            "SELECT name FROM sqlite_master WHERE type = 'view' AND name < 'b'",
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
    sandbox.execute(database, ["SELECT 1"])
    first = sandbox.pid
    runs = sandbox.execute(database, ["SELECT 1", LONG_OPCODE, "SELECT 2"])
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
    with Sandbox(SLOW) as sandbox:
        killer = Killer(sandbox, signal.SIGKILL, times=1)
        runs = sandbox.execute(database, ["SELECT 1", COUNT.format(20_000_000), "SELECT 2"])
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


def test_statement_that_twice_crashes_a_fresh_child_is_an_error(database: Path) -> None:
    with Sandbox(SLOW) as sandbox:
        killer = Killer(sandbox, signal.SIGSEGV, times=2)
        runs = sandbox.execute(database, [ENDLESS, "SELECT 2"])
        killer.join()
        assert [(run.status, run.reason) for run in runs] == [("error", "killed"), ("ran", "")]


def test_the_end_of_a_child_that_has_executed_others_does_not_count(database: Path) -> None:
    with Sandbox(SLOW) as sandbox:
        killer = Killer(sandbox, signal.SIGSEGV, times=2)
        runs = sandbox.execute(database, ["SELECT 1", COUNT.format(10_000_000), "SELECT 2"])
        killer.join()
        assert [(run.status, run.rows) for run in runs] == [("ran", [(n,)]) for n in (1, 10_000_000, 2)]


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


def test_virtual_tables_of_the_database_can_be_queried(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "virtual.sqlite"
    connection = apsw.Connection(str(path))
    connection.execute(
        """
        CREATE VIRTUAL TABLE notes USING fts5(title, body);
        INSERT INTO notes VALUES ('hello world', 'the quick brown fox'), ('bye', 'lazy dog');
        CREATE VIRTUAL TABLE old USING fts4(title);
        INSERT INTO old VALUES ('hello world');
        CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1);
        INSERT INTO boxes VALUES (1, 0, 1), (2, 5, 6);
        CREATE VIRTUAL TABLE shapes USING geopoly(name);
        INSERT INTO shapes (_shape, name) VALUES ('[[0,0],[1,0],[1,1],[0,0]]', 'triangle');
        CREATE VIRTUAL TABLE words USING fts5vocab(notes, row);
        CREATE VIEW titles AS SELECT title FROM notes WHERE title LIKE 'h%';
        """
    )
    connection.close()
    queries = {
        "SELECT title FROM notes ORDER BY title": [("bye",), ("hello world",)],
        "SELECT highlight(notes, 1, '<', '>') FROM notes WHERE notes MATCH 'fox' ORDER BY rank": [
            ("the quick brown <fox>",)
        ],
        "SELECT title, bm25(notes) < 0 FROM notes('lazy')": [("bye", 1)],
        "SELECT snippet(old) FROM old WHERE old MATCH 'world'": [("hello <b>world</b>",)],
        "SELECT id FROM boxes WHERE x0 < 2": [(1,)],
        "SELECT count(*) FROM boxes, boxes AS other": [(4,)],
        "SELECT name FROM shapes": [("triangle",)],
        "SELECT count(*) FROM words": [(9,)],
        "SELECT * FROM titles": [("hello world",)],
    }
    for _ in range(2):
        assert [run.rows or run.reason for run in sandbox.execute(path, list(queries))] == list(queries.values())
        # Running out of memory must not make the engine forget them.
        bomb = "WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n) SELECT hex(group_concat(i, hex(i))) FROM n"
        assert sandbox.execute(path, [bomb])[0].status in ("timeout", "error")


def test_what_a_real_database_may_hold(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "real.sqlite"
    connection = apsw.Connection(str(path))
    connection.create_collation("german", lambda one, two: (one > two) - (one < two))
    connection.execute(
        """
        CREATE TABLE ÄPFEL (Größe INTEGER, doppelt AS (Größe * 2), text TEXT AS (upper(hex(Größe))) STORED);
        INSERT INTO ÄPFEL VALUES (21);
        CREATE INDEX nach_größe ON ÄPFEL (abs(Größe));
        CREATE TABLE sorted (name TEXT COLLATE german);
        INSERT INTO sorted VALUES ('b'), ('a');
        CREATE TABLE "select" ("from" TEXT);
        INSERT INTO "select" VALUES ('x');
        CREATE VIEW formatted AS SELECT printf('%d', Größe) FROM ÄPFEL;
        CREATE VIEW places AS SELECT file FROM pragma_database_list;
        ANALYZE;
        """
    )
    connection.close()
    ran = sandbox.execute(
        path,
        [
            "SELECT Größe, doppelt, text FROM ÄPFEL WHERE abs(Größe) = 21",
            "SELECT count(*) FROM sorted",
            'SELECT "from" FROM "select"',
            "SELECT tbl FROM sqlite_stat1 WHERE idx = 'nach_größe'",
        ],
    )
    assert [run.rows or run.reason for run in ran] == [[(21, 42, "3231")], [(2,)], [("x",)], [("ÄPFEL",)]]
    failed = sandbox.execute(
        path, ["SELECT name FROM sorted ORDER BY name", "SELECT * FROM formatted", "SELECT * FROM places"]
    )
    assert [run.reason for run in failed] == [
        "no such collation sequence: german",
        "refused: FUNCTION printf",
        'refused: unsafe use of virtual table "pragma_database_list"',
    ]


def test_a_name_that_is_not_utf8_hides_nothing_else(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "names.sqlite"
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE t (x); INSERT INTO t VALUES (7); CREATE TABLE aaaaaaaa (x)")
    connection.close()
    path.write_bytes(path.read_bytes().replace(b"aaaaaaaa", b"aaaa\xff\xfeaa"))
    assert sandbox.execute(path, ["SELECT x FROM t"])[0].rows == [(7,)]


def test_unfinished_databases_are_faults(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "written.sqlite"
    writer = apsw.Connection(str(path))
    writer.execute("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    writer.execute("BEGIN; UPDATE t SET x = 2")
    writer.cache_flush()  # the file now holds what is not committed, and a journal to take it back
    for folder in ("copy", "linked"):
        (tmp_path / folder).mkdir()
    copy, link = tmp_path / "copy" / path.name, tmp_path / "linked" / "name.sqlite"
    for suffix in ("", "-journal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    link.symlink_to(copy)
    writer.execute("ROLLBACK")
    writer.close()
    for place in (copy, link):
        with pytest.raises(Fault, match="unfinished"):
            sandbox.execute(place, ["SELECT x FROM t"])
    assert sandbox.execute(path, ["SELECT x FROM t"])[0].rows == [(1,)]


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


def test_a_child_started_ahead_is_the_one_that_answers(database: Path) -> None:
    with Sandbox(SLOW, [database]) as sandbox:
        sandbox.start("sqlite")
        (first,) = sandbox.execute(database, ["SELECT 1"])
        pid = sandbox.pid
        sandbox.start("sqlite")  # there is one already
        (second,) = sandbox.execute(database, ["SELECT 2"])
        assert (first.status, second.status, sandbox.pid) == ("ran", "ran", pid)


def test_a_child_started_ahead_ends_with_its_sandbox(database: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    sandbox = Sandbox(SLOW, [database])
    sandbox.start("sqlite")
    sandbox.close()
    assert {child.pid for child in psutil.Process().children()} <= before
