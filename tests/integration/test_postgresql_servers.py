"""PostgreSQL servers that change, go away, stand in for each other, encrypt, or stand by."""

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from spftsql.config import DatabaseConfig, SandboxConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.errors import Fault
from spftsql.records import VerificationRequest
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.postgresql.runner import PostgresRunner
from spftsql.verification.worker import Verifier
from tests.postgres import ESCAPED, PASSWORD, Server, start_server, start_standby
from tests.towns import CONFIG, LIMITS, TOWNS

pytestmark = pytest.mark.integration


def test_content_names_the_rows_and_not_where_they_are(postgres: Server) -> None:
    postgres.run("CREATE DATABASE one")
    postgres.run("CREATE TABLE t (x int, y float8); INSERT INTO t VALUES (1, 0.5), (2, NULL), (2, NULL)", "one")
    postgres.run("GRANT SELECT ON t TO reader", "one")
    postgres.run("CREATE DATABASE two TEMPLATE one")

    def contents() -> list[str]:
        configs = [DatabaseConfig(name=name, url=postgres.url(name)) for name in ("one", "two")]
        return [database.content for database in open_catalogue(configs).values()]

    first, copy = contents()
    assert first == copy
    postgres.run("UPDATE t SET y = 0.25 WHERE x = 1", "two")
    same, changed = contents()
    assert (same, changed != copy) == (first, True)
    postgres.run("UPDATE t SET y = 0.5 WHERE x = 1", "two")
    postgres.run("VACUUM FULL t", "two")
    assert contents() == [first, first]


def test_state_changes_with_the_content(postgres: Server, towns: str) -> None:
    with closing(PostgresRunner(towns, LIMITS)) as runner:
        before = runner.state()
        assert before and runner.state() == before
        runner.execute("SELECT count(*) FROM shop", 10)
        assert runner.state() == before
        postgres.run("UPDATE shop SET mayor = 'x' WHERE id = 1", "towns")
        assert runner.state() != before
    with Sandbox(CONFIG) as sandbox:
        now = sandbox.state(towns)
        sandbox.execute(towns, ["SELECT count(*) FROM shop"])
        assert now != before and sandbox.state(towns) == now


def test_replicas_answer_for_each_other(postgres: Server, towns: str) -> None:
    postgres.run("CREATE DATABASE towns_copy TEMPLATE towns")
    places = {"towns": (towns, postgres.url("towns_copy"))}
    gold = "SELECT label FROM shop WHERE id = 3"
    requests = [
        VerificationRequest(str(i), "towns", f"SELECT label FROM shop WHERE id = {i}", gold, "strict")
        for i in range(1, 6)
    ]
    with Verifier(places, CONFIG) as verifier:
        statuses = [verdict.status for verdict in verifier.verify(requests)]
        assert statuses == ["different", "different", "equal", "different", "different"]
        postgres.run("ALTER DATABASE towns ALLOW_CONNECTIONS false")
        postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'towns'")
        try:
            more = [replace(request, sql=f"{request.sql} LIMIT 9") for request in requests]
            verdicts = verifier.verify(more)
            assert [(verdict.status, verdict.fault) for verdict in verdicts] == [(s, None) for s in statuses]
            postgres.run("ALTER DATABASE towns_copy ALLOW_CONNECTIONS false")
            postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'towns_copy'")
            lost = verifier.verify([replace(request, sql=f"{request.sql} OFFSET 0") for request in requests])
            assert {verdict.status for verdict in lost} == {"unverifiable"}
            assert all("not currently accepting connections" in str(verdict.fault) for verdict in lost)
            assert not any(PASSWORD in str(verdict) or ESCAPED in str(verdict) for verdict in lost)
        finally:
            for name in ("towns", "towns_copy"):
                postgres.run(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.mark.long
def test_encrypted_connections(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is missing, which makes a certificate for the server")
    with start_server() as server:
        certificate, key = server.data / "server.crt", server.data / "server.key"
        make = [
            "openssl",
            "req",
            "-new",
            "-x509",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-out",
            certificate,
            "-keyout",
            key,
        ]
        subprocess.run(make, check=True, capture_output=True)
        for file in (certificate, key):
            os.chown(file, server.data.stat().st_uid, server.data.stat().st_gid)
            file.chmod(0o600)
        server.run("ALTER SYSTEM SET ssl = on")
        server.run("SELECT pg_reload_conf()")
        shutil.copy(certificate, tmp_path / "root.crt")
        url = server.url("postgres").replace("127.0.0.1", "localhost")
        url += f"?sslmode=verify-full&sslrootcert={tmp_path / 'root.crt'}"
        with Sandbox(CONFIG.model_copy(update={"memory_mb": 64})) as sandbox:
            runs = sandbox.execute(url, ["SELECT generate_series(1, 100000000)", "SELECT 1"])
            assert [run.status for run in runs] == ["truncated", "ran"]
            used = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'reader'"
            assert server.run(used) == [(True,)]


@pytest.mark.long
def test_failover_to_a_streaming_standby() -> None:
    """The primary dies in the middle of a run; the standby answers; then it is promoted."""
    with start_server(max_wal_senders="4", wal_level="replica") as primary:
        primary.run("CREATE DATABASE towns")
        primary.run(TOWNS, "towns")
        with start_standby(primary, hot_standby="on", max_standby_streaming_delay="0") as standby:
            both = (primary.url("towns"), standby.url("towns"))
            deadline = time.monotonic() + 30
            while _rows(standby) != 500 and time.monotonic() < deadline:
                time.sleep(0.1)
            requests = [
                VerificationRequest(str(i), "towns", f"SELECT {i} % 7", "SELECT 3", "strict") for i in range(200)
            ]
            with Verifier({"towns": both}, CONFIG) as verifier:
                first = verifier.verify(requests[:100])
                primary.stop(signal.SIGQUIT)
                second = verifier.verify(requests[100:])
                verdicts = first + second
                assert [v.id for v in verdicts] == [r.id for r in requests]
                assert [v.status for v in verdicts] == ["equal" if i % 7 == 3 else "different" for i in range(200)]
                assert not any(v.fault for v in verdicts)
            with closing(PostgresRunner(standby.url("towns"), LIMITS)) as runner:
                following = runner.state()
                assert following and runner.state() == following
                standby.run("SELECT pg_promote()")
                standby.run("UPDATE shop SET mayor = 'new' WHERE id = 1", "towns")
                assert runner.execute("SELECT mayor FROM shop WHERE id = 1", 10).rows == [("new",)]
                assert runner.state() != following
            # One URL may name both as well, and libpq looks for the one that is there.
            either = f"postgresql://reader:{ESCAPED}@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/towns"
            with Sandbox(CONFIG) as sandbox:
                assert sandbox.execute(either, ["SELECT count(*) FROM shop"])[0].rows == [(500,)]


@pytest.mark.long
def test_a_conflict_with_replication_is_a_fault() -> None:
    with start_server() as primary:
        primary.run("CREATE DATABASE towns")
        primary.run(TOWNS, "towns")
        with (
            start_standby(primary, max_standby_streaming_delay="100ms") as standby,
            Sandbox(SandboxConfig(soft_seconds=20, hard_seconds=30)) as sandbox,
        ):
            thread = threading.Thread(target=_change_under, args=(primary, standby))
            thread.start()
            with pytest.raises(Fault, match="conflict with recovery"):
                sandbox.execute(standby.url("towns"), ["SELECT count(*) FROM shop a, shop b, shop c, shop d"])
            thread.join()
            assert sandbox.execute(standby.url("towns"), ["SELECT 1"])[0].rows == [(1,)]


def _rows(server: Server) -> int:
    try:
        return int(str(server.run("SELECT count(*) FROM shop", "towns")[0][0]))
    except psycopg.Error:
        return -1


def _change_under(primary: Server, standby: Server) -> None:
    """Changes a table for which a statement on the standby holds a lock."""
    running = "SELECT pid FROM pg_stat_activity WHERE usename = 'reader' AND state = 'active'"
    deadline = time.monotonic() + 20
    while not standby.run(running) and time.monotonic() < deadline:
        time.sleep(0.02)
    primary.run("ALTER TABLE shop ADD COLUMN extra int", "towns")
