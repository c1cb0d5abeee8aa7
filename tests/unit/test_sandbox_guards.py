"""Every guard of the SQLite sandbox is needed: switched off, it lets something through that it stopped.

Guards overlap, on purpose; `tests.controls` says what is shown of each.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import apsw
import pytest

from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox import fence, sqlite
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.folders import Folders
from spftsql.sandbox.process import ChildProcess
from spftsql.sandbox.result import Limits
from tests.controls import Control, check
from tests.hostile import CANARY, make_sqlite_database, read_corpus
from tests.unguarded import guards_off

SMALL = SandboxConfig(soft_seconds=0.3, hard_seconds=1.0, max_rows=1000, max_bytes=1_000_000, memory_mb=128)
ROOMY = SandboxConfig(soft_seconds=20, hard_seconds=30, max_rows=1000, max_bytes=1_000_000, memory_mb=512)
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
LONG_OPCODE = next(case.sql for case in read_corpus("sqlite") if case.family == "long opcode" and "LIKE" in case.sql)
HUNGRY = "SELECT a.name FROM people a, people b, people c ORDER BY a.name || b.name || c.name"
SPILLING = (
    "SELECT count(*) FROM (SELECT a.name FROM people a, people b WHERE b.id < 300 ORDER BY a.name LIMIT -1 OFFSET 1)"
)
MANY_OPERATIONS = (
    f"WITH a AS NOT MATERIALIZED (SELECT id AS x FROM people WHERE id IN (1{', 1' * 15_000})) "
    f"SELECT {'(SELECT max(x) FROM a), ' * 29}(SELECT max(x) FROM a)"
)
STATEMENT = {"authorizer", "query"}  # what refuses anything but SELECT
FILES = {"FSIZE", "Landlock"}  # what keeps the process from writing files
WRITES = {*STATEMENT, *FILES, "query_only", "read-only open", "immutable"}
DELETE = ("DELETE FROM people", "SELECT count(*) FROM people")


CONTROLS = [
    Control("authorizer", ("PRAGMA user_version",), "refused: PRAGMA", r"ran \[\(0,\)\]"),
    Control("functions", ("SELECT printf('%d', 1)",), "refused: FUNCTION printf", r"ran \[\('1',\)\]"),
    Control("tables", ("SELECT count(*) > 9 FROM dbstat",), "refused: READ dbstat", r"ran \[\(1,\)\]"),
    Control("NUL", ("SELECT 1\0; DROP TABLE people",), "refused: a NUL character", "fault .* in the sandbox"),
    Control("stacked", ("SELECT 1; SELECT 2",), "refused: more than one", r"ran \[\(1,\), \(2,\)\]"),
    Control("EXPLAIN", ("EXPLAIN SELECT 1",), "refused: EXPLAIN", r"ran \[\(0, 'Init'"),
    Control("query", ("-- nothing",), "refused: no statement", r"ran \[\]"),
    Control("rows", ("SELECT id FROM people",), "truncated", "ran"),
    Control("bytes", ("SELECT (SELECT group_concat(name) FROM people) FROM people LIMIT 900",), "truncated", "ran"),
    Control("progress handler", (ENDLESS,), r"timeout longer than 0\.3 s$", "timeout longer than 1 s, killed"),
    Control("double-quoted strings", ('SELECT "nope" FROM people LIMIT 1',), "no such column", r"ran \[\('nope',\)\]"),
    Control(
        "LENGTH",
        ("SELECT length(group_concat(a.name)) > 1000000 FROM people a, people b WHERE b.id < 100",),
        "too big",
        r"ran \[\(1,\)\]",
        config=ROOMY,
    ),
    Control(
        "LENGTH",
        ("SELECT length(hex(zeroblob(30000000)))",),
        "refused: FUNCTION zeroblob",
        "refused: FUNCTION zeroblob",
        frozenset({"functions"}),
        "too big",
        r"ran \[\(60000000,\)\]",
        config=ROOMY,
    ),
    Control("SQL_LENGTH", (f"SELECT '{'x' * 60_000}'",), "too big", "ran"),
    Control("EXPR_DEPTH", ("SELECT 1" + " + 1" * 300,), "Expression tree is too large", r"ran \[\(301,\)\]"),
    Control("COMPOUND_SELECT", ("SELECT 1" + " UNION SELECT 1" * 60,), "too many terms", r"ran \[\(1,\)\]"),
    Control("FUNCTION_ARG", (f"SELECT max(1{', 1' * 200})",), "too many arguments", r"ran \[\(1,\)\]"),
    Control("VDBE_OP", (MANY_OPERATIONS,), "error memory", r"ran \[\(1, 1", config=ROOMY),
    Control(
        "ATTACHED",
        ("ATTACH ':memory:' AS evil", "SELECT count(*) FROM evil.sqlite_master"),
        "refused: ATTACH.* no such table",
        "refused: ATTACH.* no such table",
        frozenset(STATEMENT),
        "too many attached databases - max 0",
        r"ran \[\(0,\)\]",
    ),
    Control(
        "read-only open",
        DELETE,
        "refused: DELETE",
        "refused: DELETE",
        frozenset(WRITES - {"read-only open"}),
        r"readonly database.*ran \[\(2000,\)\]$",
        r"ran \[\(0,\)\] CHANGED",
    ),
    Control(
        "query_only",
        DELETE,
        "refused: DELETE",
        "refused: DELETE",
        frozenset(WRITES - {"query_only"}),
        r"readonly database.*ran \[\(2000,\)\]$",
        r"ran \[\(0,\)\] CHANGED",
    ),
    Control(
        "immutable",
        ("SELECT count(*) FROM people",),
        r"ran \[\(2000,\)\]$",
        "fault .*(readonly database|disk I/O error)",  # it may not make the files that it wants
        frozenset(FILES),
        r"ran \[\(2000,\)\]$",
        r"ran \[\(2000,\)\] CHANGED .*-shm.*-wal",
        setup="PRAGMA journal_mode = wal",
    ),
    Control(
        "temp_store",
        (SPILLING,),
        r"ran \[\(599999,\)\]$",
        "fault .*(unable to open database file|disk I/O error)",
        frozenset(FILES),
        r"ran \[\(599999,\)\]$",
        r"ran \[\(599999,\)\] WROTE$",
        config=ROOMY,
    ),
    Control(
        "cell_size_check", ("SELECT count(*) FROM people",), "fault .* malformed", r"ran \[\(2000,\)\]", setup="damage"
    ),
    Control("journal", ("SELECT count(*) FROM people",), "fault .* unfinished", r"ran \[\(2000,\)\]", setup="log"),
    Control(
        "trusted_schema",
        ("SELECT * FROM places",),
        "refused: unsafe use of virtual table",
        "refused: READ pragma_database_list file",
        frozenset({"authorizer"}),
        "refused: unsafe use of virtual table",
        r"ran \[\('.*people.*\.sqlite',\)\]",
    ),
    Control(
        "DEFENSIVE",
        ("DELETE FROM areas_node", "SELECT count(*) FROM areas_node"),
        "refused: table areas_node may not be modified",
        "refused: DELETE areas_node",
        frozenset(WRITES),
        r"may not be modified.*ran \[\(1,\)\]$",
        r"ran \[\(0,\)\] CHANGED",
    ),
    Control(
        "DEFENSIVE",
        ("PRAGMA writable_schema = 1", "UPDATE sqlite_master SET sql = 'x' WHERE name = 'broken'"),
        "refused: table sqlite_master may not be modified",
        "refused: PRAGMA writable_schema",
        frozenset(WRITES),
        "sqlite_master may not be modified$",
        "CHANGED",
    ),
    Control(
        "triggers",
        ("DELETE FROM broken", "SELECT count(*) FROM people"),
        r"refused: DELETE broken.*ran \[\(2000,\)\]$",
        r"refused: DELETE broken.*ran \[\(2000,\)\]$",
        frozenset(WRITES),
        r"ran \[\(2000,\)\] CHANGED",
        r"ran \[\(0,\)\] CHANGED",
    ),
    Control(
        "FSIZE",
        DELETE,
        "refused: DELETE",
        "refused: DELETE",
        frozenset(WRITES - {"FSIZE"}),
        r"fault .*disk I/O error",
        r"ran \[\(0,\)\] CHANGED",
    ),
    Control(
        "NOFILE",
        tuple(f"ATTACH 'FOLDER/secret.sqlite' AS a{i}" for i in range(70)),
        "^(error refused: ATTACH[^;]*(; |$)){70}",
        "^(error refused: ATTACH[^;]*(; |$)){70}",
        frozenset({*STATEMENT, "ATTACHED", "immutable"}),
        r"^(ran \[\]; ){50,60}fault .*unable to open database",
        r"^(ran \[\](; |$)){70}",
    ),
    Control(
        "Landlock",
        ("ATTACH 'ELSEWHERE/secret.sqlite' AS other", "SELECT x FROM other.hidden"),
        "refused: ATTACH.* no such table",
        "refused: ATTACH.* no such table",
        frozenset({*STATEMENT, "ATTACHED", "immutable"}),
        "fault .*unable to open database",
        CANARY,
    ),
    Control(
        "Landlock",
        ("VACUUM INTO 'FOLDER/evil'",),
        "refused: not a query",
        "refused: not a query",
        frozenset({*STATEMENT, "ATTACHED", "query_only", "FSIZE"}),
        r"fault .*unable to open database",
        r"ran \[\] CHANGED .*evil",
    ),
]
ELSEWHERE = {
    "heap limit": "test_heap_limit",
    "AS": "test_address_space",
    "CPU": "test_deadline_and_cpu_time",
    "PDEATHSIG": "test_death_with_the_parent",
    "working folder": "test_working_folder",
    "CORE": "test_core_dumps",
    "network": "test_network",
}


def test_every_guard_has_its_control() -> None:
    assert {control.guard for control in CONTROLS} | ELSEWHERE.keys() == sqlite.GUARDS.keys() | fence.GUARDS.keys()
    assert all(callable(globals()[test]) for test in ELSEWHERE.values())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    make_sqlite_database(folder)
    return folder


@pytest.fixture(scope="module")
def missing_layers() -> dict[str, str]:
    """Why layers are not there, for those that this kernel refuses."""
    child = ChildProcess("sqlite", Limits(**SMALL.model_dump()))
    child.kill()
    return {layer: reason for layer, reason in child.layers.items() if reason}


def prepare(setup: str, database: Path) -> None:
    if setup.startswith("PRAGMA"):
        apsw.Connection(str(database)).execute(setup).fetchall()
    if setup == "damage":  # the last cell of a leaf of `people` reaches beyond its page
        content, page = bytearray(database.read_bytes()), 4096
        leaf = next(
            n for n in range(page, len(content), page) if content[n] == 13 and b"name 7" in content[n : n + page]
        )
        cells = int.from_bytes(content[leaf + 3 : leaf + 5], "big")
        at = leaf + 8 + 2 * (cells - 1)
        content[at : at + 2] = (page - 3).to_bytes(2, "big")
        database.write_bytes(content)
    if setup == "log":  # 500 rows more are committed, and still in the log
        source = database.with_name("source.sqlite")
        shutil.copy(database, source)
        writer = apsw.Connection(str(source))
        for sql in ("PRAGMA journal_mode = wal", "INSERT INTO people (name) SELECT name FROM people LIMIT 500"):
            writer.execute(sql).fetchall()
        shutil.copy(source, database)
        shutil.copy(f"{source}-wal", f"{database}-wal")
        writer.close()
        source.unlink()


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: f"{control.guard}-{control.statements[-1][:30]}")
def test_guard(control: Control, template: Path, missing_layers: dict[str, str], tmp_path: Path) -> None:
    if control.guard in missing_layers:
        pytest.skip(f"{control.guard}: {missing_layers[control.guard]}")
    check(control, template, tmp_path, SMALL, prepare)


def test_engine_itself_stops_what_the_list_of_functions_would(template: Path) -> None:
    database = next(template.glob("people*"))
    with guards_off({"functions"}), Sandbox(SMALL) as sandbox:
        library, tokenizer = sandbox.execute(
            database, ["SELECT load_extension('x')", "SELECT fts3_tokenizer('simple', x'4141414141414141')"]
        )
    assert library.reason == "not authorized"
    assert tokenizer.reason == "fts3tokenize disabled"


def peak_mib(pid: int | None) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def hungry(off: set[str], config: SandboxConfig, template: Path) -> tuple[str, float]:
    with guards_off(off), Sandbox(config) as sandbox:
        (run,) = sandbox.execute(next(template.glob("people*")), [HUNGRY])
        return run.reason, peak_mib(sandbox.pid)


def test_heap_limit(template: Path) -> None:
    config = ROOMY.model_copy(update={"memory_mb": 256})
    reason, bounded = hungry(set(), config, template)
    assert reason == "memory"
    reason, unbounded = hungry({"heap limit"}, config, template)
    assert reason == "memory"  # now said by the limit of the process, later
    assert 1.1 * bounded < unbounded < config.memory_mb


def test_address_space(template: Path) -> None:
    config = SMALL.model_copy(update={"soft_seconds": 4.0, "hard_seconds": 20.0})
    assert hungry({"AS"}, config, template)[0] == "memory"  # said by the heap limit
    reason, peak = hungry({"heap limit"}, config, template)
    assert reason == "memory"
    assert peak < config.memory_mb
    _, peak = hungry({"heap limit", "AS"}, config, template)
    assert peak > config.memory_mb


def test_deadline_and_cpu_time(template: Path) -> None:
    database = next(template.glob("people*"))
    limits = Limits(**SMALL.model_dump() | {"hard_seconds": 0.5})
    folders = Folders()
    folders.expect([database])

    def seconds_of(off: set[str], patience: float) -> tuple[float, str]:
        """How long the statement lasts when no one watches the clock, and how its process ends."""
        with guards_off(off):
            child = ChildProcess("sqlite", limits, folders.known)
        try:
            child.send(str(database), [LONG_OPCODE], 1, time.monotonic() + 10)
            child.receive(time.monotonic() + 10)
            started = time.monotonic()
            try:
                child.receive(started + patience)
            except EOFError:
                return time.monotonic() - started, child.ending()
            except TimeoutError:
                return time.monotonic() - started, "goes on"
        finally:
            child.kill()
        raise AssertionError("it ended")

    with Sandbox(SMALL) as sandbox:
        (run,) = sandbox.execute(database, [LONG_OPCODE])
        assert run.reason == "longer than 1 s, killed"
    seconds, ending = seconds_of(set(), patience=60)
    assert ending == "cpu"
    assert seconds > limits.hard_seconds
    assert seconds_of({"CPU"}, patience=2.5)[1] == "goes on"


@pytest.mark.parametrize("off", [set(), {"PDEATHSIG"}], ids=["on", "off"])
def test_death_with_the_parent(off: set[str], template: Path) -> None:
    program = (
        "import sys, threading, time\n"
        "from pathlib import Path\n"
        "from spftsql.config import SandboxConfig\n"
        "from spftsql.sandbox.execute import Sandbox\n"
        "from tests.unguarded import guards_off\n"
        "with guards_off(set(sys.argv[3:])):\n"
        "    sandbox = Sandbox(SandboxConfig(hard_seconds=20))\n"
        "    sandbox.execute(Path(sys.argv[1]), ['SELECT 1'])\n"
        "threading.Thread(target=sandbox.execute, args=(Path(sys.argv[1]), [sys.argv[2]])).start()\n"
        "time.sleep(0.3)\n"
        "print(sandbox.pid, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(next(template.glob("people*"))), LONG_OPCODE, *off]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    time.sleep(0.3)
    try:
        state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        state = "gone"
    if off:
        os.kill(child, signal.SIGKILL)
        assert state == "R"
    else:
        assert state in ("gone", "Z", "X")


def test_working_folder(template: Path) -> None:
    database = next(template.glob("people*"))
    behind = {*STATEMENT, *FILES, "ATTACHED", "query_only"}
    vacuum = "VACUUM INTO 'evil.sqlite'"
    with Sandbox(SMALL) as sandbox:
        assert sandbox.execute(database, [vacuum])[0].reason.startswith("refused")
        assert os.readlink(f"/proc/{sandbox.pid}/cwd").endswith("(deleted)")
    with guards_off(behind), Sandbox(SMALL) as sandbox, pytest.raises(Fault, match="unable to open"):
        sandbox.execute(database, [vacuum])
    for off, refused, made in (({"working folder"}, True, []), (behind | {"working folder"}, False, ["evil.sqlite"])):
        with guards_off(off), Sandbox(SMALL) as sandbox:
            (run,) = sandbox.execute(database, [vacuum])
            here = Path(os.readlink(f"/proc/{sandbox.pid}/cwd"))
            assert run.reason.startswith("refused") is refused
            assert os.listdir(here) == made
            shutil.rmtree(here)


def test_core_dumps() -> None:
    ours, _ = resource.getrlimit(resource.RLIMIT_CORE)
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    if most == 0:
        pytest.skip("RLIMIT_CORE is 0 already")

    def limit(off: set[str]) -> str:
        with guards_off(off):
            child = ChildProcess("sqlite", Limits(**SMALL.model_dump()))
        text = Path(f"/proc/{child.pid}/limits").read_text()
        child.kill()
        return next(line[26:].split()[0] for line in text.splitlines() if line.startswith("Max core file size"))

    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    try:
        assert (limit(set()), limit({"CORE"})) == ("0", "unlimited" if most == resource.RLIM_INFINITY else str(most))
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (ours, most))


def test_network(missing_layers: dict[str, str]) -> None:
    if "network" in missing_layers:
        pytest.skip(f"network: {missing_layers['network']}")
    program = (
        "import os, socket, sys\n"
        "from spftsql.sandbox.fence import raise_fence\n"
        "from spftsql.sandbox.result import Limits\n"
        "limits = Limits(1, 1, 1, 1, 1 << 20, False)\n"
        "raise_fence(os.getppid(), limits, [], frozenset(sys.argv[2:]) | {'working folder'})\n"
        "said = []\n"
        "for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
        "    try:\n"
        "        socket.socket(type=kind).connect(('127.0.0.1', int(sys.argv[1])))\n"
        "        said.append('connected')\n"
        "    except OSError as error:\n"
        "        said.append(error.strerror)\n"
        "print(*said, sep=', ')\n"
    )

    def connect(*off: str) -> str:
        command = [sys.executable, "-c", program, str(server.getsockname()[1]), *off]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert connect("Landlock") == "Network is unreachable, Network is unreachable"
        assert connect("network", "Landlock") == "connected, connected"
        if "Landlock" not in missing_layers:  # it knows TCP since its version 4, and nothing else
            assert connect("network") in ("Permission denied, connected", "connected, connected")
