"""The DuckDB runner, with real children: what statements may do, what they may not, and what is a fault."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from spftsql.cli import app
from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox import duckdb_policy
from spftsql.sandbox.duckdb import GUARDS
from spftsql.sandbox.duckdb_policy import Refused, checked_statements, refused_names
from spftsql.sandbox.execute import Sandbox
from tests.hostile import CANARY, contents, make_duckdb_database, read_corpus, structures
from tests.outcomes import Outcome, run_corpus

HARD_SECONDS = 1.5
SMALL = SandboxConfig(soft_seconds=0.5, hard_seconds=HARD_SECONDS, max_rows=1000, max_bytes=1_000_000, memory_mb=256)
SHORT = SMALL.model_copy(update={"soft_seconds": 0.1})  # a fifth of the corpus lasts as long as it may
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
# DuckDB does not look whether it was interrupted while it computes this.
DEAF = next(case.sql for case in read_corpus("duckdb") if case.family == "long function")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_duckdb_database(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SMALL) as opened:
        yield opened


@pytest.fixture(scope="module")
def outcomes(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Outcome]]:
    os.environ["SPFTSQL_CANARY"] = CANARY
    yield run_corpus("duckdb", database, SHORT, tmp_path_factory.mktemp("here"))
    del os.environ["SPFTSQL_CANARY"]


def test_corpus_is_large_and_varied(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)  # sqlglot says what it thinks of the statements
    families = structures("duckdb")
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
    leaks = [str(outcome) for outcome in outcomes if CANARY in str(outcome.run) or "root:x:0" in str(outcome.run)]
    assert leaks == []


def test_hostile_statements_stay_within_their_memory(outcomes: list[Outcome]) -> None:
    top = sorted(outcomes, key=lambda outcome: outcome.peak_mib, reverse=True)[:5]
    print(*map(str, top), sep="\n")
    assert all(0 < outcome.peak_mib < SMALL.memory_mb for outcome in outcomes), "\n".join(map(str, top))


def test_ordinary_queries_run(sandbox: Sandbox, database: Path) -> None:
    runs = sandbox.execute(
        database,
        [
            "SELECT id, name, age * 1.5, NULL, '\\x01'::BLOB, age > 2 FROM people WHERE id = 3",
            "WITH old AS (SELECT * FROM people WHERE age > 80) SELECT count(*) FROM old",
            "SELECT count(*) FROM adults;",
            "SELECT name FROM people QUALIFY row_number() OVER (ORDER BY id DESC) = 1",
            "SELECT strftime(DATE '2020-03-04', '%Y'), round(2.567, 1), upper('x'), '{\"a\": 1}'::JSON ->> 'a'",
            "SELECT name AS \"the name\" FROM people WHERE name LIKE 'name 1_' ORDER BY id DESC LIMIT 2",
            "VALUES (1, 2), (3, 4)",
            "SELECT name FROM sqlite_master WHERE type = 'view'",
            "SELECT id FROM people WHERE false",
            "FROM people SELECT twice(id) WHERE id = 4",
            "PIVOT (SELECT age, id > 1000 AS late FROM people) ON age IN (1, 2) USING count(*) ORDER BY late",
            "SELECT list_transform([1, 2], lambda x: x + 1), {'a': 1}, [y FOR y IN range(3) IF y > 0]",
            "SELECT table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE'",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT sum(i) FROM n",
            'SELECT query, "glob", "update" FROM (SELECT 1 AS query, 2 AS "glob", \'DELETE\' AS "update")',
            "WITH summary AS (SELECT 7 AS stats) SELECT stats FROM summary ORDER BY stats DESC NULLS LAST",
            "SELECT name -- DESC people, DESCRIBE adults\nFROM people WHERE name = 'read_csv' OR id = 8",
        ],
    )
    assert [(run.status, run.reason) for run in runs] == [("ran", "")] * len(runs)
    assert [run.rows for run in runs] == [
        [(3, "name 3", 4.5, None, b"\x01", 1)],
        [(198,)],
        [(1586,)],
        [("name 1999",)],
        [("2020", 2.6, "X", "1")],
        [("name 19",), ("name 18",)],
        [(1, 2), (3, 4)],
        [("adults",)],
        [],
        [(8,)],
        [(0, 12, 12), (1, 11, 11)],
        [("[2,3]", '{"a":1}', "[1,2]")],
        [("people",)],
        [(15,)],
        [(1, 2, "DELETE")],
        [(7,)],
        [("name 8",)],
    ]
    assert runs[5].columns == ("the name",)
    assert runs[8].columns == ("id",)
    assert runs[0].engine == f"duckdb {duckdb.__version__}"


def test_values_of_every_type_become_cells(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "types.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE zoo AS FROM test_all_types()")
    (run,) = sandbox.execute(path, ["SELECT * FROM zoo"])
    assert (run.status, run.reason, len(run.rows)) == ("ran", "", 3)
    rows = [dict(zip(run.columns, row, strict=True)) for row in run.rows]
    assert rows[1]["hugeint"] == "170141183460469231731687303715884105727"
    assert rows[1]["uuid"] == "ffffffff-ffff-ffff-ffff-ffffffffffff"
    assert rows[1]["dec_4_1"] == 999.9
    assert rows[0]["timestamptz_array"] == "[]"
    assert set(rows[2].values()) == {None}
    queries = [
        "SELECT TIMESTAMPTZ '2024-02-29 12:00:00.5+05:30', INTERVAL 3 DAY, 'nan'::DOUBLE",
        "SELECT now()::VARCHAR",
    ]
    zoned, now = sandbox.execute(path, queries)
    assert zoned.rows == [("2024-02-29 06:30:00.5+00:00", "P3D", "NaN")]
    assert str(now.rows[0][0]).endswith("+00")  # UTC, wherever the machine is


def test_row_and_byte_caps(sandbox: Sandbox, database: Path) -> None:
    rows, fewer, text = (
        sandbox.execute(database, ["SELECT id FROM people"])[0],
        sandbox.execute(database, ["SELECT id FROM people"], max_rows=7)[0],
        sandbox.execute(database, ["SELECT repeat(name, 1000) FROM people"])[0],
    )
    assert (rows.status, rows.rows) == ("truncated", [(i,) for i in range(1000)])
    assert (fewer.status, fewer.rows[-1]) == ("truncated", (6,))
    assert text.status == "truncated"
    assert 900_000 < sum(len(str(row[0])) for row in text.rows) <= 1_000_000
    for limit in (256, 257, 1000):  # around the number of rows that are fetched at once
        exact, cut = sandbox.execute(
            database, [f"SELECT id FROM people WHERE id < {n}" for n in (limit, limit + 1)], max_rows=limit
        )
        assert (exact.status, len(exact.rows), cut.status, len(cut.rows)) == ("ran", limit, "truncated", limit)


def test_statements_leave_nothing_for_those_that_follow(sandbox: Sandbox, database: Path) -> None:
    hungry = "SELECT count(*) FROM (SELECT DISTINCT a.id * 2000 + b.id FROM people a, people b)"
    statements = ["SELECT * FROM people", ENDLESS, "SELECT nope", "SELECT count(*), max(name) FROM people"]
    for _ in range(2):
        runs = sandbox.execute(database, statements)
        assert [run.status for run in runs] == ["truncated", "timeout", "error", "ran"]
        assert runs[3].rows == [(2000, "name 999")]
    with Sandbox(SMALL.model_copy(update={"soft_seconds": 20, "hard_seconds": 30})) as patient:
        runs = patient.execute(database, [hungry, statements[-1]] * 2)
        assert [(run.reason, run.rows) for run in runs] == [("memory", []), ("", [(2000, "name 999")])] * 2


def test_memory_is_given_back(database: Path) -> None:
    """Neither memory nor address space: what the next statement can have does not depend on those before it."""

    def taken() -> tuple[float, float]:
        lines = (line.split() for line in Path(f"/proc/{sandbox.pid}/status").read_text().splitlines())
        sizes = {line[0]: int(line[1]) / 1024 for line in lines if line[0] in ("VmRSS:", "VmSize:")}
        return sizes["VmRSS:"], sizes["VmSize:"]

    hungry = ["SELECT len(list(range)) FROM range(5000000)", "SELECT count(DISTINCT range) FROM range(1000000)"]
    with Sandbox(SMALL.model_copy(update={"soft_seconds": 10, "hard_seconds": 20, "memory_mb": 512})) as sandbox:
        sandbox.execute(database, ["SELECT count(*) FROM people"])
        before = taken()
        for sql in hungry * 2:
            sandbox.execute(database, [sql])
        peak = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{sandbox.pid}/status").read_text()).group(1)) / 1024  # type: ignore[union-attr]
        after = taken()
    assert peak > before[0] + 40
    assert after[0] < before[0] + 16
    assert after[1] < before[1] + 16


def test_other_open_databases_take_no_memory(database: Path, tmp_path: Path) -> None:
    """What is kept open for the next batch is given up for a statement that needs its memory."""
    paths = [tmp_path / f"{number}.duckdb" for number in range(3)]
    with duckdb.connect(str(paths[0])) as connection:  # 20 MB, which DuckDB would keep in memory of each
        connection.execute("CREATE TABLE t AS SELECT md5(i::VARCHAR) AS s FROM range(1200000) r(i)")
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    with Sandbox(SMALL.model_copy(update={"soft_seconds": 20, "hard_seconds": 30})) as sandbox:
        sandbox.execute(paths[0], ["SELECT 1"])
        sandbox.execute(database, ["SELECT 1"])  # in another folder: from here on it is the same child
        child = sandbox.pid
        for path in paths:
            assert sandbox.execute(path, ["SELECT count(*) FROM t WHERE s LIKE '%zz%'"])[0].rows == [(0,)]
        (run,) = sandbox.execute(database, ["SELECT length(repeat('x', 80000000))"])
        assert (run.status, run.rows) == ("ran", [(80_000_000,)])
        assert [sandbox.execute(path, ["SELECT count(*) FROM t"])[0].rows for path in paths] == [[(1_200_000,)]] * 3
        assert sandbox.pid == child


def test_hard_deadline_kills_what_does_not_listen(sandbox: Sandbox, database: Path) -> None:
    sandbox.execute(database, ["SELECT 1"])
    first = sandbox.pid
    runs = sandbox.execute(database, ["SELECT 1", DEAF, "SELECT 2"])
    assert [run.status for run in runs] == ["ran", "timeout", "ran"]
    assert runs[1].reason == f"longer than {HARD_SECONDS:g} s, killed"
    assert runs[2].rows == [(2,)]
    assert sandbox.pid != first


def test_too_little_memory_for_the_engine_itself_is_said(database: Path) -> None:
    with Sandbox(SandboxConfig(memory_mb=128)) as sandbox, pytest.raises(Fault, match="memory_mb of at least 192"):
        sandbox.execute(database, ["SELECT 1"])
    with Sandbox(SandboxConfig(memory_mb=192)) as sandbox:
        assert sandbox.execute(database, ["SELECT count(*) FROM people"])[0].rows == [(2000,)]


def damaged(path: Path, change: str) -> None:
    """A database of 3 MB, of which some is `change`d."""
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT i, md5(i::VARCHAR) AS s FROM range(100000) r(i)")
    content = bytearray(path.read_bytes())
    if change == "flipped":
        for place in range(300_000, len(content), 50_000):
            content[place] ^= 0xFF
    if change == "cut":
        del content[400_000:]
    if change == "other":
        content = bytearray(b"this is not a database, but long enough to be looked at " * 300)
    if change == "empty":
        content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize("change", ["flipped", "cut", "other", "empty"])
def test_unreadable_databases_are_faults(sandbox: Sandbox, tmp_path: Path, change: str) -> None:
    path = tmp_path / "t.duckdb"
    damaged(path, change)
    for _ in range(2):
        with pytest.raises(Fault, match=r"cannot be (opened|read): .*") as caught:
            sandbox.execute(path, ["SELECT count(*), max(s) FROM t"])
        assert "\n" not in str(caught.value)


def test_missing_databases_are_faults_and_not_made(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="cannot be opened: No such file"):
        sandbox.execute(tmp_path / "missing.duckdb", ["SELECT 1"])
    assert list(tmp_path.iterdir()) == []


WRITER = """
import duckdb, os, sys
connection = duckdb.connect(sys.argv[1])
connection.execute("CREATE TABLE t (x INTEGER)")
connection.execute("CHECKPOINT")
connection.execute("INSERT INTO t VALUES (7)")
print("up", flush=True)
if len(sys.argv) > 2:
    sys.stdin.read()
os._exit(0)  # without a checkpoint
"""


def test_a_database_with_a_log_is_a_fault_and_stays_as_it_is(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "t.duckdb"
    subprocess.run([sys.executable, "-c", WRITER, str(path)], check=True, capture_output=True)
    before = contents(tmp_path)
    assert set(before) == {"t.duckdb", "t.duckdb.wal"}
    with pytest.raises(Fault, match="write-ahead log"):
        sandbox.execute(path, ["SELECT * FROM t"])
    assert contents(tmp_path) == before
    duckdb.connect(str(path)).close()  # as the message says
    assert sandbox.execute(path, ["SELECT * FROM t"])[0].rows == [(7,)]


def test_a_database_that_is_being_written_is_a_fault(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "t.duckdb"
    command = [sys.executable, "-c", WRITER, str(path), "stay"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        writer.stdout.readline()
        Path(f"{path}.wal").rename(tmp_path / "elsewhere")
        with pytest.raises(Fault, match=r"cannot be opened: .*lock on file"):
            sandbox.execute(path, ["SELECT * FROM t"])
        writer.stdin.close()


def test_readers_share_a_database(database: Path) -> None:
    with Sandbox(SMALL) as one, Sandbox(SMALL) as other:
        for sandbox in (one, other, one):
            assert sandbox.execute(database, ["SELECT count(*) FROM people"])[0].rows == [(2000,)]


def test_changed_file_is_opened_again(sandbox: Sandbox, database: Path, tmp_path: Path) -> None:
    path = tmp_path / "changing.duckdb"
    for number in (1, 2):
        path.unlink(missing_ok=True)
        with duckdb.connect(str(path)) as connection:
            connection.execute(f"CREATE TABLE t AS SELECT {number} AS x")
        assert sandbox.execute(path, ["SELECT x FROM t"])[0].rows == [(number,)]
        assert sandbox.execute(database, ["SELECT count(*) FROM people"])[0].rows == [(2000,)]  # another one meanwhile


def test_folder_and_file_that_cannot_be_written_can_be_read(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    path = make_duckdb_database(folder)
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        assert sandbox.execute(path, ["SELECT count(*) FROM people"])[0].rows == [(2000,)]
    finally:
        folder.chmod(0o755)


def test_every_function_with_side_effects_is_known() -> None:
    """A new version of DuckDB may bring more: whoever changes the pin decides about each of them."""
    with duckdb.connect() as connection:
        query = (
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE has_side_effects AND function_type <> 'table'"
        )
        functions = {name for (name,) in connection.execute(query).fetchall()}
        refused = refused_names(connection).functions
    assert functions - refused == {"random", "uuid", "uuidv4", "uuidv7", "gen_random_uuid", "error"}


def test_macros_of_a_database_cannot_stand_for_the_engines_own_functions(tmp_path: Path) -> None:
    path = tmp_path / "shadows.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE MACRO json_serialize_sql(x) AS '{}'")
        connection.execute("CREATE MACRO lower(x) AS 'x'")
        for name in ("duckdb_functions", "duckdb_views"):
            connection.execute(
                f"CREATE MACRO {name}() AS TABLE SELECT 'x' AS function_name, 'scalar' AS function_type, "
                "'x' AS view_name, 'main' AS schema_name, false AS has_side_effects, true AS internal"
            )
    with Sandbox(SMALL) as sandbox:
        statements = ["SELECT lower('A')", "SELECT sleep_ms(1)", "FROM duckdb_settings()", "FROM pg_settings"]
        first, *others = sandbox.execute(path, statements)
    assert first.rows == [("x",)]  # the database's own business
    assert [run.reason[:7] for run in others] == ["refused"] * 3


def test_reading_of_the_text_misses_nothing_that_the_tree_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the text has a suspect word is DuckDB asked for the tree: it must refuse nothing elsewhere."""
    refused = 0
    missed = []
    with duckdb.connect() as connection:
        names = refused_names(connection)
        suspect = {case.sql: duckdb_policy.is_suspect(case.sql, names) for case in read_corpus("duckdb")}
        monkeypatch.setattr(duckdb_policy, "is_suspect", lambda sql, names: True)
        for sql, expected in suspect.items():
            if len(sql) > 1000:
                continue  # takes long to parse
            try:
                checked_statements(connection, sql, names, GUARDS.keys())
            except Refused as refusal:
                of_tree = bool(re.match("function|table|SHOW|.* in WITH", str(refusal)))
                refused += of_tree
                if of_tree and not expected:
                    missed.append(sql)
            except (duckdb.Error, UnicodeEncodeError):
                continue
    assert missed == []
    assert refused > 100


def test_commands_take_duckdb_files(database: Path) -> None:
    def invoke(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(arguments))
        return result.exit_code, result.output

    url = f"duckdb:///{database}"
    assert invoke("verify", "--db", url, "--sql", "SELECT count(*) FROM people")[0] == 0
    assert invoke("verify", "--db", str(database), "--sql", "SELECT 1", "--gold", "SELECT 2")[0] == 1
    assert invoke("verify", "--db", url, "--sql", "SELECT now()", "--gold", "SELECT now()")[0] == 1
    code, output = invoke("verify", "--db", url, "--sql", "COPY people TO 'x.csv'")
    assert code == 3
    assert "refused" in output
    code, output = invoke("schema", url)
    assert code == 0
    assert "people" in output and "name" in output
