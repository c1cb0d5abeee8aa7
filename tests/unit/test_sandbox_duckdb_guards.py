"""Every guard of the DuckDB runner is needed: switched off, it lets something through that it stopped.

Guards overlap, on purpose; `tests.controls` says what is shown of each. Those of the process itself are the same for
every engine (`test_sandbox_guards`); what they do for DuckDB is shown here of the address space.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb as library
import pytest

from spftsql.config import SandboxConfig
from spftsql.sandbox import duckdb
from spftsql.sandbox.execute import Sandbox
from tests.controls import Control, check
from tests.hostile import CANARY, make_duckdb_database
from tests.unguarded import guards_off

SMALL = SandboxConfig(soft_seconds=0.3, hard_seconds=1.5, max_rows=1000, max_bytes=1_000_000, memory_mb=256)
ROOMY = SandboxConfig(soft_seconds=20, hard_seconds=30, max_rows=1000, max_bytes=1_000_000, memory_mb=256)
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
FILES = frozenset({"FSIZE", "Landlock", "file system"})  # what keeps the process from writing files
COUNT = "SELECT count(*) FROM people"
HUNGRY = "SELECT count(*) FROM (SELECT DISTINCT a.id * 2000 + b.id, a.id::DOUBLE FROM people a, people b)"
SPILLING = (
    "SELECT max(n) FROM (SELECT a.name || b.name AS n FROM people a, people b WHERE b.id < 700 ORDER BY n OFFSET 1)"
)

CONTROLS = [
    Control(
        "read-only open",
        ("DELETE FROM people", COUNT),
        r"refused: DELETE, not a query; ran \[\(2000,\)\]$",
        "^fault .* cannot be opened",  # the process may not write to the file, so DuckDB does not open it
        FILES | {"SELECT"},
        r"refused: .*read-only mode!; ran \[\(2000,\)\]$",
        r"ran \[\(2000,\)\]; ran \[\(0,\)\] CHANGED .*wal",
    ),
    Control(
        "writing CTE",
        ("WITH gone AS (DELETE FROM people RETURNING id) SELECT count(*) FROM gone",),
        "refused: DELETE in WITH$",
        "refused: .*read-only mode!$",
        FILES | {"read-only open"},
        "refused: DELETE in WITH$",
        r"ran \[\(2000,\)\] CHANGED .*wal",
    ),
    Control(
        "writing CTE",
        ("WITH out AS (COPY people TO 'FOLDER/evil.csv') SELECT 1",),
        "refused: COPY in WITH$",
        "refused: .*disabled by configuration$",
        FILES | {"outside"},
        "refused: COPY in WITH$",
        r"ran \[\(1,\)\] CHANGED evil\.csv",
    ),
    Control(
        "outside",
        ("SELECT * FROM 'FOLDER/secret.csv'",),
        "refused: .*LocalFileSystem has been disabled by configuration$",
        "refused: .*LocalFileSystem has been disabled by configuration$",
        frozenset({"file system"}),
        "refused: .*file system operations are disabled by configuration$",
        CANARY,
    ),
    Control(
        "file system",
        ("SELECT content FROM read_text('FOLDER/secret.txt')",),
        "refused: function read_text$",
        "refused: function read_text$",
        frozenset({"functions", "outside"}),
        "refused: .*LocalFileSystem has been disabled by configuration$",
        CANARY,
    ),
    Control(
        "outside",
        ("ATTACH 'FOLDER/secret.duckdb' AS other (READ_ONLY)", "SELECT x FROM other.hidden"),
        "refused: ATTACH, not a query; error",
        "refused: ATTACH, not a query; error",
        frozenset({"SELECT", "file system"}),
        "refused: .*disabled by configuration; error",
        CANARY,
    ),
    Control(
        "lock",
        ("SET GLOBAL TimeZone = 'Asia/Tokyo'", "SELECT TIMESTAMPTZ '2024-02-29 00:00:00+00'::VARCHAR"),
        r"refused: \w+, not a query; ran .*00:00:00\+00",
        r"refused: \w+, not a query; ran .*00:00:00\+00",
        frozenset({"SELECT"}),
        r"refused: .*configuration has been locked; ran .*00:00:00\+00",
        r"ran \[.*\]; ran .*09:00:00\+09",
    ),
    Control(
        "memory limit",
        (HUNGRY,),
        "error memory",
        r"ran \[\(4000000,\)\]",
        config=ROOMY.model_copy(update={"memory_mb": 384}),
    ),
    Control(
        "spilling",
        (SPILLING,),
        "error memory$",
        "error",  # it may not make the folder that it wants
        FILES,
        "error memory$",
        r"ran .* WROTE$",
        config=ROOMY,
    ),
    Control("depth", ("SELECT 1" + " + 1" * 300,), "expression depth limit of 250", r"ran \[\(301,\)\]"),
    Control("SQL_LENGTH", (f"SELECT '{'x' * 60_000}'",), "refused: longer than 50,000 bytes", "ran"),
    Control("NUL", ("SELECT 'a\0b'",), "refused: a NUL character", r"ran \[\('a\\x00b',\)\]"),
    Control("stacked", ("SELECT 1; SELECT 2",), "refused: more than one statement", r"ran \[\(2,\)\]"),
    Control("SELECT", ("EXPLAIN SELECT 1",), "refused: EXPLAIN, not a query", r"ran \[\('physical_plan'"),
    Control("SELECT", ("CREATE TEMP TABLE evil AS FROM range(3)",), "refused: CREATE, not a query", r"ran \[\(3,\)\]"),
    Control(
        "functions", ("SELECT current_setting('threads')",), "refused: function current_setting", r"ran \[\(1,\)\]"
    ),
    Control("functions", ("SELECT count(*) FROM glob('*')",), "refused: function glob", "refused: .*by configuration"),
    Control("functions", ("FROM query('SELECT 1')",), "refused: function query", r"ran \[\(1,\)\]"),
    Control("tables", ("SELECT path FROM duckdb_databases",), "refused: table duckdb_databases", r"ran \[.*people"),
    Control("SHOW", ("DESCRIBE people",), "refused: SHOW, DESCRIBE or SUMMARIZE", r"ran \[\('id', 'INTEGER'"),
    Control("watchdog", (ENDLESS,), r"timeout longer than 0\.3 s$", r"timeout longer than 1\.5 s, killed$"),
    Control("rows", ("SELECT id FROM people",), "truncated", "ran"),
    Control("bytes", ("SELECT repeat(name, 1000) FROM people LIMIT 900",), "truncated", "ran"),
    Control("log", (COUNT,), "fault .*write-ahead log", r"ran \[\(2500,\)\]$", setup="log"),
]
ELSEWHERE = {"threads": "test_threads"}


def test_every_guard_has_its_control() -> None:
    assert {control.guard for control in CONTROLS} | ELSEWHERE.keys() == duckdb.GUARDS.keys()
    assert all(callable(globals()[test]) for test in ELSEWHERE.values())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    make_duckdb_database(folder)
    return folder


def prepare(setup: str, database: Path) -> None:
    if setup == "log":  # 500 rows more are committed, and still in the log
        with library.connect(str(database)) as connection:
            connection.execute("PRAGMA disable_checkpoint_on_shutdown")
            connection.execute("INSERT INTO people SELECT i, 'new', 1 FROM range(2000, 2500) t(i)")
        assert database.with_name(f"{database.name}.wal").stat().st_size


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: f"{control.guard}-{control.statements[-1][:30]}")
def test_guard(control: Control, template: Path, tmp_path: Path) -> None:
    check(control, template, tmp_path, SMALL, prepare)


def test_threads(template: Path) -> None:
    def threads(off: set[str]) -> int:
        config = SMALL.model_copy(update={"memory_mb": 2048})  # every thread reserves some
        with guards_off(off), Sandbox(config) as sandbox:
            sandbox.execute(next(template.glob("people*")), [COUNT])
            return len(list(Path(f"/proc/{sandbox.pid}/task").iterdir()))

    assert threads(set()) == 2  # the runner's and its watchdog
    assert threads({"threads"}) > 2


def test_address_space(template: Path, tmp_path: Path) -> None:
    """What functions take is not in DuckDB's own account; only the limit of the process bounds it."""
    sql = "SELECT damerau_levenshtein(repeat('ab', 3200), repeat('bc', 3200))"

    def peak(off: set[str]) -> tuple[str, float]:
        with guards_off(off), Sandbox(ROOMY) as sandbox:
            (run,) = sandbox.execute(next(template.glob("people*")), [sql])
            lines = Path(f"/proc/{sandbox.pid}/status").read_text().splitlines()
            return run.reason, next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))

    reason, bounded = peak(set())
    assert reason == "memory"
    assert bounded < ROOMY.memory_mb
    reason, unbounded = peak({"AS"})
    assert reason == ""
    assert unbounded > ROOMY.memory_mb


def test_copies_of_the_template_are_complete(template: Path, tmp_path: Path) -> None:
    """Without its guards a statement finds the secrets: that the others do not is their doing."""
    shutil.copytree(template, tmp_path / "copy")
    database = next((tmp_path / "copy").glob("people*"))
    with guards_off({"outside", "file system", "functions", "Landlock"}), Sandbox(SMALL) as sandbox:
        for name, reader in (("csv", "read_csv"), ("parquet", "read_parquet"), ("json", "read_json")):
            (run,) = sandbox.execute(database, [f"SELECT x FROM {reader}('{tmp_path}/copy/secret.{name}')"])
            assert run.rows == [(CANARY,)]
