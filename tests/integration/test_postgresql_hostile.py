"""Hostile statements on PostgreSQL: what they may not do, and what each guard alone is there for."""

import logging
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.postgresql.policy import FUNCTIONS
from spftsql.sandbox.postgresql.runner import GUARDS, PostgresRunner
from spftsql.sandbox.result import Execution, Limits
from tests.hostile import CANARY, Hostile, masked, read_corpus
from tests.postgres import Server, make_shop

pytestmark = pytest.mark.integration

HARD_SECONDS = 1.5
SMALL = SandboxConfig(soft_seconds=0.2, hard_seconds=HARD_SECONDS, max_rows=1000, max_bytes=1_000_000, memory_mb=128)
LIMITS = Limits(**SMALL.model_dump())
ENDLESS = "SELECT count(*) FROM generate_series(1, 1000000000000)"


@pytest.fixture(scope="module")
def shop(postgres: Server) -> str:
    return make_shop(postgres, CANARY)


def everything(server: Server) -> dict[str, object]:
    """All that a statement could change: every row, role, setting and large object, and the names of all files."""
    noise = ("pg_wal/", "pg_stat", "pg_xact/", "pg_subtrans/", "pg_multixact/", "pg_notify/", "pg_logical/")
    files = (str(path.relative_to(server.data)) for path in server.data.rglob("*") if path.is_file())
    return {
        "shop": server.dump("shop"),
        "secret": server.dump("secret"),
        "roles": server.dump(),
        "settings": server.run("SELECT name, setting FROM pg_settings ORDER BY name"),
        "files": sorted(file for file in files if not file.startswith(noise) and "pg_internal.init" not in file),
        "locks": server.run(
            "SELECT * FROM pg_locks WHERE locktype IN ('advisory', 'relation') AND mode <> 'AccessShareLock'"
        ),
    }


def busy(server: Server) -> int:
    """Statements of the role that still run."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'reader' AND state = 'active'"
    return int(str(server.run(query)[0][0]))


def endless(server: Server) -> bool:
    """Whether the endless statement runs, and not what the runner asks when it opens a database."""
    query = f"SELECT 1 FROM pg_stat_activity WHERE usename = 'reader' AND state = 'active' AND query = '{ENDLESS}'"
    return bool(server.run(query))


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def peak_mib(pid: int | None) -> float:
    """The most memory that a process has taken so far; 0 when it was killed."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return max(int(line.split()[1]) / 1024 for line in status.splitlines() if "VmHWM" in line)
    return 0.0


@dataclass(frozen=True)
class Outcome:
    case: Hostile
    run: Execution | None  # None: a fault
    seconds: float

    @property
    def kind(self) -> str:
        if self.run is None:
            return "fault"
        return "refused" if self.run.reason.startswith("refused") else self.run.status

    def __str__(self) -> str:
        reason = self.run.reason if self.run else ""
        return f"{self.case.family}: {self.kind} ({reason[:80]}) after {self.seconds:.2f} s: {self.case.sql[:80]!a}"


@dataclass(frozen=True)
class Corpus:
    """What came of the corpus. Memory in MiB."""

    outcomes: list[Outcome]
    peak_mib: float
    before: dict[str, object]
    after: dict[str, object]


@pytest.fixture(scope="module")
def corpus(postgres: Server, shop: str) -> Corpus:
    """Every statement of the corpus, executed one after another by one sandbox."""
    outcomes = []
    before = everything(postgres)
    peak = 0.0
    with Sandbox(SMALL) as sandbox:
        for case in read_corpus("postgresql", postgres.folder):
            started = time.monotonic()
            try:
                (run,) = sandbox.execute(shop, [case.sql])
            except Fault:
                run = None
            outcomes.append(Outcome(case, run, time.monotonic() - started))
            peak = max(peak, peak_mib(sandbox.pid))
    assert wait_until(lambda: busy(postgres) == 0, 60), "statements run on"
    return Corpus(outcomes, peak, before, everything(postgres))


def test_corpus_is_large_and_varied() -> None:
    logging.disable(logging.WARNING)  # sqlglot says what it thinks of the statements
    families = defaultdict(set)
    for case in read_corpus("postgresql"):
        families[case.family].add(masked(case.sql[:300]))  # some are 40,000 characters of parentheses
    logging.disable(logging.NOTSET)
    counts = {family: len(structures) for family, structures in families.items()}
    print(f"{len(set().union(*families.values()))} statements in {len(counts)} families: {counts}")
    assert len(set().union(*families.values())) >= 150
    assert sum(count >= 5 for count in counts.values()) >= 15


def test_hostile_statements_get_the_right_answer_and_end_in_time(corpus: Corpus) -> None:
    late = [str(outcome) for outcome in corpus.outcomes if outcome.seconds > 2 * HARD_SECONDS]
    wrong = [str(outcome) for outcome in corpus.outcomes if outcome.kind not in outcome.case.allowed]
    assert not wrong, "\n".join(wrong)
    assert not late, "\n".join(late)


def test_hostile_statements_change_nothing(corpus: Corpus) -> None:
    assert [name for name in corpus.before if corpus.before[name] != corpus.after[name]] == []


def test_hostile_statements_read_nothing_outside_their_database(corpus: Corpus) -> None:
    shown = [f"{outcome.run.columns}{outcome.run.rows}" for outcome in corpus.outcomes if outcome.run]
    assert [text for text in shown if CANARY in text or "root:x:0" in text] == []


def test_the_process_stays_within_its_memory(corpus: Corpus) -> None:
    print(f"{corpus.peak_mib:.0f} MiB")
    assert 0 < corpus.peak_mib < SMALL.memory_mb


def test_every_function_of_the_list_is_known_to_some_server(postgres: Server) -> None:
    (known,) = zip(*postgres.run("SELECT DISTINCT proname FROM pg_proc"), strict=True)
    grammar = {"coalesce", "greatest", "grouping", "least", "nullif"}
    of_types = {"bytea", "inet"}
    newer = {"any_value", "date_add", "date_subtract", "erf", "erfc", "gamma", "json_array", "to_bin", "to_oct"}
    newer |= {"uuid_extract_timestamp", "uuid_extract_version", "uuidv4", "uuidv7"}
    assert FUNCTIONS - set(known) - grammar - of_types - newer == set()


def test_volatile_functions_of_the_list_are_harmless(postgres: Server) -> None:
    volatile = postgres.run(
        "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND provolatile = 'v'"
    )
    assert {name for (name,) in volatile} & FUNCTIONS == {"clock_timestamp", "gen_random_uuid", "random", "timeofday"}


# One guard at a time is left out. Where another stands before it, both are: then `behind` names the other, and with
# that one alone left out the statement must still be stopped.
@dataclass(frozen=True)
class Control:
    guard: str
    sql: str
    got_through: Callable[[Execution, Server], bool]
    behind: frozenset[str] = frozenset()


def ran(run: Execution, server: Server) -> bool:
    return run.status == "ran"


def slower_than(seconds: float) -> Callable[[Execution, Server], bool]:
    return lambda run, server: run.elapsed_ms > seconds * 1000


def rows_of_log(run: Execution, server: Server) -> bool:
    return server.run("SELECT count(*) FROM log", "shop") != [(0,)]


def large_objects(run: Execution, server: Server) -> bool:
    return server.run("SELECT count(*) FROM pg_largeobject_metadata", "shop") != [(0,)]


def advisory_locks(run: Execution, server: Server) -> bool:
    return server.run("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") != [(0,)]


CONTROLS = [
    Control("policy", "SELECT datname FROM pg_database", ran),
    Control("policy", "SELECT pg_sleep(0.01)::text", ran),
    Control("read-only transaction", "SELECT * FROM bumped", rows_of_log, frozenset({"rollback"})),
    Control("rollback", "SELECT * FROM blob", large_objects),
    Control("reset", "SELECT * FROM held", advisory_locks),
    Control("statement_timeout", "SELECT * FROM slow", slower_than(0.2 + 0.2 * (HARD_SECONDS - 0.2))),
    Control("cancel", ENDLESS, slower_than(0.2 + 0.7 * (HARD_SECONDS - 0.2)), frozenset({"statement_timeout"})),
    Control("work_mem", "SELECT current_setting('work_mem')", lambda r, s: r.rows == [("4MB",)], frozenset({"policy"})),
    Control("rows", "SELECT id FROM people", lambda run, server: len(run.rows) == 2000),
    Control("bytes", "SELECT lpad(name, 9000) FROM people WHERE id < 150", ran),
]


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: f"{control.guard}: {control.sql[:30]}")
def test_without_this_guard_a_statement_gets_through(control: Control, postgres: Server, shop: str) -> None:
    def gets_through(without: frozenset[str]) -> bool:
        with closing(PostgresRunner(shop, LIMITS, without)) as runner:
            return control.got_through(runner.execute(control.sql, LIMITS.max_rows), postgres)

    try:
        assert not gets_through(frozenset())
        assert not control.behind or not gets_through(control.behind)
        assert gets_through(control.behind | {control.guard})
    finally:
        postgres.run("DELETE FROM log; SELECT lo_unlink(oid) FROM pg_largeobject_metadata", "shop")
    wait_until(lambda: busy(postgres) == 0, 30)


def test_without_the_role_guard_a_superuser_reads_everything(postgres: Server, shop: str) -> None:
    address = postgres.url("shop", "postgres")
    with pytest.raises(Fault, match=r"the role postgres is a superuser.*CREATE ROLE"):
        PostgresRunner(address, LIMITS)
    with closing(PostgresRunner(address, LIMITS, frozenset({"role"}))) as runner:
        assert runner.execute("SELECT note FROM private", 10).rows == [(CANARY,)]
    postgres.run("CREATE ROLE files LOGIN PASSWORD 'x'; GRANT pg_read_server_files TO files")
    with pytest.raises(Fault, match="may read files"):
        PostgresRunner(f"postgresql://files:x@127.0.0.1:{postgres.port}/shop", LIMITS)


def test_without_the_extended_protocol_a_read_only_transaction_is_left(postgres: Server, shop: str) -> None:
    stacked = "COMMIT; BEGIN READ WRITE; CREATE TEMP TABLE evil (x int); COMMIT"
    with closing(PostgresRunner(shop, LIMITS, frozenset({"policy"}))) as runner:
        assert "multiple commands" in runner.execute(stacked, 10).reason
    with psycopg.connect(shop, autocommit=True, options="-c default_transaction_read_only=on") as simple:
        simple.execute("BEGIN READ ONLY")
        simple.execute(stacked.encode())
        assert simple.execute("SELECT count(*) FROM evil").fetchone() == (0,)


def test_without_the_lock_guard_waiting_is_taken_for_slowness(postgres: Server, shop: str) -> None:
    with postgres.connect("shop") as other, other.transaction():
        other.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
        with closing(PostgresRunner(shop, LIMITS, frozenset({"lock_timeout"}))) as runner:
            assert runner.execute("SELECT id FROM people", 10).status == "timeout"
        with closing(PostgresRunner(shop, LIMITS)) as runner, pytest.raises(Fault, match="lock"):
            runner.execute("SELECT id FROM people", 10)


@contextmanager
def process_that_runs(url: str, sql: str, without: frozenset[str]) -> Iterator[subprocess.Popen[bytes]]:
    program = (
        "import sys\n"
        "from spftsql.sandbox.postgresql.runner import PostgresRunner\n"
        "from spftsql.sandbox.result import Limits\n"
        "limits = Limits(60, 90, 10, 1000, 128, False)\n"
        "PostgresRunner(sys.argv[1], limits, frozenset(sys.argv[3:])).execute(sys.argv[2], 1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, url, sql, *without]) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_process_leaves_nothing_running_on_the_server(postgres: Server, shop: str) -> None:
    with process_that_runs(shop, ENDLESS, frozenset()) as process:
        assert wait_until(lambda: endless(postgres), 30)
        process.kill()
        assert wait_until(lambda: busy(postgres) == 0, 5)


def test_without_the_connection_check_its_statement_runs_on(postgres: Server, shop: str) -> None:
    with process_that_runs(shop, ENDLESS, frozenset({"connection check"})) as process:
        assert wait_until(lambda: endless(postgres), 30)
        process.kill()
        assert not wait_until(lambda: busy(postgres) == 0, 1.5)
    postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'")
    assert wait_until(lambda: busy(postgres) == 0, 10)


def test_statements_that_nothing_ends_do_not_pile_up(postgres: Server, shop: str) -> None:
    """Sleepers under such a name stand in for them: what counts is that they run beyond the limit that it tells."""

    def sleep(connection: psycopg.Connection[tuple[object, ...]]) -> None:
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT pg_sleep(60)")

    sleepers = [psycopg.connect(shop, application_name=f"spftsql {limit} s") for limit in ("0.100", 60, 0.2, 0.2, 0.3)]
    threads = [threading.Thread(target=sleep, args=(sleeper,)) for sleeper in sleepers]
    for thread in threads:
        thread.start()
    try:
        assert wait_until(lambda: busy(postgres) == 5, 10)
        time.sleep(0.4)
        with pytest.raises(Fault, match="4 statements that could not be cancelled"):
            PostgresRunner(shop, LIMITS)
        PostgresRunner(shop, LIMITS, frozenset({"leftovers"})).close()
        postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'spftsql 0.3 s'")
        assert wait_until(lambda: busy(postgres) == 4, 10)
        PostgresRunner(shop, LIMITS).close()  # three of them, and one that may take its time
    finally:
        postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'")
        for thread in threads:
            thread.join()


def test_a_statement_that_no_cancel_ends_is_given_up(postgres: Server, shop: str) -> None:
    sql = next(case.sql for case in read_corpus("postgresql") if case.family == "not interrupted")
    with closing(PostgresRunner(shop, LIMITS)) as runner:
        run = runner.execute(sql.replace("14000", "60000"), 10)
        assert (run.status, run.reason.endswith("no cancel ended it")) == ("timeout", True)
        assert run.elapsed_ms < HARD_SECONDS * 1000
        assert runner.execute("SELECT 1", 10).rows == [(1,)]
    assert wait_until(lambda: busy(postgres) == 0, 60)


def test_every_guard_has_a_control() -> None:
    own = {"role", "lock_timeout", "connection check", "leftovers", "give up"}
    assert {control.guard for control in CONTROLS} | own == set(GUARDS)


PIECES = [
    *("'", "''", "\\", "\\'", '"', '""', "$$", "$a$", "$", "/*", "*/", "--", "\n", " ", " ", ",", ";", "1", "x", "e"),
    *("E'", "e'", "U&'", 'U&"', "B'", "x'", "N'", "||", "(", ")", "boom()", ", boom()", ", boom(), ", "\t", "\r", "\f"),
    *("é", "\u00a0", "''''", "\\\\", "AS a", "$1", "a$b$", "/", "*", "-", ".", "::text", "\v", "0x1", "1e5", "FROM"),
]


def lexical_attacks(count: int, seed: int) -> Iterator[str]:
    """Texts that open and close strings, names and comments in all kinds of ways around a call."""
    rng = random.Random(seed)
    for _ in range(count):
        pieces = rng.choices(PIECES, k=rng.randint(2, 9))
        pieces.insert(rng.randint(0, len(pieces)), rng.choice(["boom()", ", boom()", ", boom(), "]))
        yield "SELECT " + rng.choice(["", "'a'", "1 ", "E'a'", "$$a$$"]) + "".join(pieces)


@pytest.mark.parametrize("count", [4_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_no_spelling_hides_a_call(postgres: Server, shop: str, count: int) -> None:
    """The policy's own tokens against the server's: a function that is not listed is never reached."""
    postgres.run(
        """
        DROP FUNCTION IF EXISTS boom;
        CREATE FUNCTION boom() RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $x$reached$x$; END'
        """,
        "shop",
    )
    with (
        closing(PostgresRunner(shop, LIMITS)) as guarded,
        closing(PostgresRunner(shop, LIMITS, frozenset({"policy"}))) as open_to_all,
    ):
        reached = ran = 0
        for sql in lexical_attacks(count, seed=count):
            run = guarded.execute(sql, 10)
            assert run.reason != "reached", ascii(sql)
            ran += run.status == "ran"
            reached += open_to_all.execute(sql, 10).reason == "reached"
    print(f"of {count} texts {ran} ran, and {reached} would reach the function")
    assert ran > count / 100 and reached > count / 100
