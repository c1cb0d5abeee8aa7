"""PostgreSQL in the sandbox, in verdicts, in the schema and on the command line, on a server that the tests start."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from spftsql.cli import main
from spftsql.config import DatabaseConfig, SandboxConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import ForeignKey
from spftsql.databases.schema_text import schema_text
from spftsql.errors import Fault, UserError
from spftsql.records import VerificationRequest
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.postgresql.runner import PostgresRunner
from spftsql.sandbox.result import Execution, Limits
from spftsql.verification.worker import Verifier
from tests.postgres import ESCAPED, PASSWORD, Server, start_server, start_standby

pytestmark = pytest.mark.integration

CONFIG = SandboxConfig(soft_seconds=2, hard_seconds=6, max_rows=1000, max_bytes=1_000_000, memory_mb=128)
LIMITS = Limits(**CONFIG.model_dump())

TOWNS = """
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE TABLE town (
        id serial PRIMARY KEY, name text, founded date, size int, "order" text, info json, facts jsonb, tags text[],
        place point, mood mood, walled boolean, tax numeric(10, 2), seen timestamptz, away interval, secret text
    );
    COMMENT ON TABLE town IS 'where people live';
    COMMENT ON COLUMN town.name IS 'what people call it';
    INSERT INTO town (name, founded, size, walled, mood, info, tags, place, tax, seen, away) VALUES
        ('Ulm', '0854-07-22', 126000, true, 'happy', '{"a": 1}', '{x,y}', '(1,2)', 1.5, '2020-01-01 10:00+05', '1 mon'),
        ('Köln', '0050-01-01', NULL, false, 'sad', NULL, NULL, NULL, NULL, NULL, NULL);
    CREATE TABLE shop (id int PRIMARY KEY, town_id int REFERENCES town (id), label text, mayor text);
    INSERT INTO shop SELECT i, 1 + i % 2, 'shop ' || i, NULL FROM generate_series(1, 500) AS i;
    CREATE TABLE sale (day date, amount int) PARTITION BY RANGE (day);
    CREATE TABLE sale_2020 PARTITION OF sale FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    INSERT INTO sale VALUES ('2020-02-03', 5);
    CREATE VIEW large AS SELECT name FROM town WHERE size > 1000;
    CREATE TABLE hidden (x int);
    CREATE SCHEMA other;
    CREATE TABLE other.elsewhere (x int);
    CREATE EXTENSION pg_trgm;
    CREATE EXTENSION pg_stat_statements;
    GRANT SELECT ON shop, sale, large TO reader;
    GRANT SELECT (id, name, founded, size, "order", info, facts, tags, place, mood, walled, tax, seen, away) ON town
        TO reader;
"""


@pytest.fixture(scope="module")
def towns(postgres: Server) -> str:
    postgres.run("CREATE DATABASE towns")
    postgres.run(TOWNS, "towns")
    return postgres.url("towns")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(CONFIG) as opened:
        yield opened


def test_ordinary_queries_run(sandbox: Sandbox, towns: str) -> None:
    queries = {
        "SELECT name, size FROM town ORDER BY id": [("Ulm", 126000), ("Köln", None)],
        "WITH big AS (SELECT * FROM shop WHERE id > 490) SELECT count(*) FROM big": [(10,)],
        "SELECT name FROM large;": [("Ulm",)],
        "(SELECT 1 UNION ALL SELECT 2) ORDER BY 1 DESC": [(2,), (1,)],
        "VALUES (1, 'a'), (2, 'b')": [(1, "a"), (2, "b")],
        "TABLE large": [("Ulm",)],
        "SELECT town_id, count(*) FILTER (WHERE id > 498) FROM shop GROUP BY ROLLUP (1) ORDER BY 1": [
            (1, 1),
            (2, 1),
            (None, 2),
        ],
        "SELECT row_number() OVER w, lag(label) OVER w FROM shop WINDOW w AS (ORDER BY id) LIMIT 2": [
            (1, None),
            (2, "shop 1"),
        ],
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY id), string_agg(label, ',' ORDER BY id) FROM shop "
        "WHERE id < 4": [(2.0, "shop 1,shop 2,shop 3")],
        "SELECT date_trunc('month', founded)::date, extract(YEAR FROM founded), to_char(founded, 'YYYY') FROM town "
        "WHERE name LIKE ('U' || '%')": [("0854-07-01", 854, "0854")],
        "SELECT t.name, x.n FROM town AS t CROSS JOIN LATERAL (SELECT count(*) FROM shop WHERE town_id = t.id) AS x(n) "
        "ORDER BY 1": [("Köln", 250), ("Ulm", 250)],
        "SELECT u.tag FROM town, unnest(tags) WITH ORDINALITY AS u(tag, n) WHERE n = 2": [("y",)],
        "SELECT '100%' AS \"%s\", 'it''s', E'a\\tb', $$x$$, N'ü' -- done": [("100%", "it's", "a\tb", "x", "ü")],
        "SELECT substring('abc' FROM 2 FOR 1), trim(BOTH 'x' FROM 'xax'), position('b' IN 'abc'), "
        "overlay('abc' PLACING 'z' FROM 1), nullif(1, 1)": [("b", "a", 2, "zbc", None)],
        "SELECT amount FROM sale WHERE day BETWEEN DATE '2020-01-01' AND DATE '2020-01-01' + INTERVAL '2 months'": [
            (5,)
        ],
        'SELECT "order" FROM town WHERE id = 1': [(None,)],
        "SELECT word_similarity('ulm', name) > 0.5 FROM town WHERE id = 1": [(1,)],
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'shop' AND ordinal_position = 3": [
            ("label",)
        ],
        "SELECT id FROM shop WHERE false": [],
    }
    runs = sandbox.execute(towns, list(queries))
    assert [run.rows if run.status == "ran" else run.reason for run in runs] == list(queries.values())
    assert runs[0].columns == ("name", "size")
    assert runs[-1].columns == ("id",)
    assert re.fullmatch(r"postgresql 1\d\.\d+", runs[0].engine)


# What the server writes, as a cell: one form for each value, nothing lost.
CELLS = {
    "1::smallint": 1,
    "9223372036854775807": 9223372036854775807,
    "9223372036854775808": "9223372036854775808",
    "1.50": 1.5,
    "2.00": 2,
    "1e20::numeric": "100000000000000000000",
    "'NaN'::numeric": "NaN",
    "'infinity'::float8": float("inf"),
    "'NaN'::float8": "NaN",
    "0.1::float4": 0.1,
    "0.1::float8 + 0.2::float8": 0.30000000000000004,
    "true": 1,
    "NULL::int": None,
    "'ab'::char(4)": "ab  ",
    "'\\xff00'::bytea": b"\xff\x00",
    "date '2024-02-29'": "2024-02-29",
    "date 'infinity'": "infinity",
    "date '0044-03-15 BC'": "0044-03-15 BC",
    "timestamp '2024-02-29 13:05:00.2500'": "2024-02-29 13:05:00.25",
    "timestamptz '2024-02-29 13:05+05:30'": "2024-02-29 07:35:00+00:00",
    "timestamptz '-infinity'": "-infinity",
    "time '13:05'": "13:05:00",
    "timetz '13:05:00.5+05:30'": "13:05:00.5+05:30",
    "interval '1 mon 2 days'": "P32D",
    "interval '24:00:00'": "P1D",
    "interval '-1 day -2:00:00.5'": "-P1DT2H0.5S",
    "interval '1 day' - interval '1 second'": "PT23H59M59S",
    "interval '178000000 years'": "178000000 years",
    "ARRAY[1.50, NULL, 2]": "[1.5,null,2]",
    "ARRAY['a,b', 'c\"d']": '["a,b","c\\"d"]',
    "ARRAY[date '2024-01-01', 'infinity']": '["2024-01-01","infinity"]',
    "'{{1,2},{3,4}}'::int[]": "[[1,2],[3,4]]",
    '\'{"b": 1.0, "a": [true, null]}\'::json': '{"a":[true,null],"b":1}',
    "'{\"b\": 12345678901234567890}'::jsonb": '{"b":12345678901234567890}',
    "'5'::jsonb": 5,
    "'\"x\"'::jsonb": "x",
    "'6f2c1b1e-7e39-4a57-9d9e-0d9a0a0a0a0a'::uuid": "6f2c1b1e-7e39-4a57-9d9e-0d9a0a0a0a0a",
    "'192.168.0.1/24'::inet": "192.168.0.1/24",
    "int4range(1, 5)": "[1,5)",
    "point(1, 2)": "(1,2)",
    "row(1, 'a')": "(1,a)",
    "'happy'::mood": "happy",
    "B'101'": "101",
    "'a fat cat'::tsvector": "'a' 'cat' 'fat'",
}


def test_every_type_becomes_a_cell(sandbox: Sandbox, towns: str) -> None:
    runs = sandbox.execute(towns, [f"SELECT {expression}" for expression in CELLS])
    found = {
        expression: run.rows[0][0] if run.rows else run.reason for expression, run in zip(CELLS, runs, strict=True)
    }
    assert found == CELLS
    assert {expression: type(cell) for expression, cell in found.items()} == {e: type(c) for e, c in CELLS.items()}


def test_values_that_nest_deeply_stay_text(sandbox: Sandbox, towns: str) -> None:
    depths = [10, 300, 700, 1500, 4000]
    runs = sandbox.execute(towns, [f"SELECT '{'[' * depth}{']' * depth}'::json, 1.5" for depth in depths])
    assert [run.rows for run in runs] == [[("[" * depth + "]" * depth, 1.5)] for depth in depths]


def test_row_and_byte_caps(sandbox: Sandbox, towns: str) -> None:
    def execute(sql: str, max_rows: int | None = None) -> Execution:
        return sandbox.execute(towns, [sql], max_rows)[0]

    fewer, exact = execute("SELECT id FROM shop", 7), execute("SELECT id FROM shop WHERE id < 8", 7)
    assert (fewer.status, len(fewer.rows)) == ("truncated", 7)
    assert (exact.status, len(exact.rows)) == ("ran", 7)
    long = execute("SELECT lpad(label, 10000) FROM shop")
    assert long.status == "truncated" and 0 < sum(len(str(row[0])) for row in long.rows) <= 1_000_000
    endless = execute("SELECT generate_series(1, 1000000000)")
    assert (endless.status, len(endless.rows)) == ("truncated", 1000)
    assert execute("SELECT 1").rows == [(1,)]


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT nope FROM town", 'column "nope" does not exist'),
        ("SELECT * FROM nope", 'relation "nope" does not exist'),
        ("SELECT strftime('%Y', founded) FROM town", "function strftime(unknown, date) does not exist"),
        ("SELECT 1 +", "syntax error at end of input"),
        ("SELECT 1 / 0", "division by zero"),
        ("SELECT 'x'::int", 'invalid input syntax for type integer: "x"'),
        ("SELECT id FROM shop GROUP BY label", 'column "shop.id" must appear in the GROUP BY clause'),
        ("SELECT (SELECT id FROM shop)", "more than one row returned by a subquery used as an expression"),
        ('SELECT name FROM town WHERE name = "Ulm"', 'column "Ulm" does not exist'),
        ("SELECT secret FROM town", "refused: permission denied for table town"),
        ("SELECT * FROM hidden", "refused: permission denied for table hidden"),
    ],
)
def test_errors_are_one_line_of_the_server(sandbox: Sandbox, towns: str, sql: str, reason: str) -> None:
    (run,) = sandbox.execute(towns, [sql])
    assert run.status == "error" and run.reason.startswith(reason)
    assert (run.columns, run.rows) == ((), [])


def test_a_slow_statement_times_out_and_the_next_one_runs(towns: str) -> None:
    with Sandbox(SandboxConfig(soft_seconds=0.3, hard_seconds=5)) as sandbox:
        slow, after = sandbox.execute(towns, ["SELECT count(*) FROM generate_series(1, 100000000000)", "SELECT 1"])
        assert (slow.status, slow.reason) == ("timeout", "longer than 0.3 s")
        assert 290 < slow.elapsed_ms < 3000
        assert after.rows == [(1,)]


def test_text_that_is_not_utf8(postgres: Server, sandbox: Sandbox) -> None:
    postgres.run("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    postgres.run("CREATE TABLE t (x text); INSERT INTO t VALUES (E'\\xff41'), ('good')", "bytes")
    postgres.run("GRANT SELECT ON t TO reader", "bytes")
    runs = sandbox.execute(postgres.url("bytes"), ["SELECT x FROM t", "SELECT x FROM t WHERE x = 'good'"])
    assert (runs[0].status, runs[0].reason) == ("error", "encoding")
    assert runs[1].rows == [("good",)]


def test_results_do_not_depend_on_the_settings_of_a_replica(postgres: Server, sandbox: Sandbox) -> None:
    postgres.run("CREATE DATABASE odd")
    odd = {
        "DateStyle": "'SQL, DMY'",
        "TimeZone": "'Asia/Tokyo'",
        "IntervalStyle": "sql_standard",
        "bytea_output": "escape",
        "extra_float_digits": "-5",
        "standard_conforming_strings": "off",
        "default_transaction_isolation": "serializable",
    }
    for name, value in odd.items():
        postgres.run(f"ALTER DATABASE odd SET {name} = {value}")
    sql = (
        "SELECT date '2024-02-29', timestamptz '2024-02-29 00:00+00', timestamptz '2024-02-29 00:00+00'::date, "
        "interval '1 day 02:00', '\\x01'::bytea, 0.1::float8 + 0.2::float8, 'a\\tb'"
    )
    (here,), (there,) = (sandbox.execute(postgres.url(name), [sql]) for name in ("odd", "postgres"))
    assert here.rows == there.rows and here.status == "ran"
    (zone,) = sandbox.execute(f"{postgres.url('odd')}?options=-c%20TimeZone%3DAsia/Tokyo", [sql])
    assert zone.rows[0][2] == "2024-02-29" and zone.rows[0][1] == here.rows[0][1]


def while_it_runs(server: Server, then: str) -> threading.Thread:
    """Runs `then` once a statement of the role has been running for a moment."""

    def work() -> None:
        running = (
            "SELECT pid FROM pg_stat_activity WHERE usename = 'reader' AND state = 'active' AND query LIKE '%count%'"
        )
        deadline = time.monotonic() + 20
        while not server.run(running) and time.monotonic() < deadline:
            time.sleep(0.02)
        server.run(then)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("action", "message"),
    [("pg_terminate_backend", "terminating connection"), ("pg_cancel_backend", "due to user request")],
)
def test_what_others_do_to_a_statement_is_a_fault(postgres: Server, towns: str, action: str, message: str) -> None:
    with Sandbox(SandboxConfig(soft_seconds=20, hard_seconds=30)) as sandbox:
        thread = while_it_runs(postgres, f"SELECT {action}(pid) FROM pg_stat_activity WHERE usename = 'reader'")
        with pytest.raises(Fault, match=message):
            sandbox.execute(towns, ["SELECT count(*) FROM generate_series(1, 100000000000)"])
        thread.join()
        assert sandbox.execute(towns, ["SELECT 1"])[0].rows == [(1,)]


def test_too_many_connections_are_a_fault(postgres: Server, towns: str, sandbox: Sandbox) -> None:
    postgres.run("CREATE ROLE busy LOGIN PASSWORD 'x' CONNECTION LIMIT 0")
    with pytest.raises(Fault, match="too many connections"):
        sandbox.execute(f"postgresql://busy:x@127.0.0.1:{postgres.port}/towns", ["SELECT 1"])


def test_what_the_child_cannot_hold_is_an_error_about_memory(towns: str) -> None:
    config = CONFIG.model_copy(update={"soft_seconds": 20, "hard_seconds": 40, "memory_mb": 80})
    sql = "SELECT string_agg(lpad('x', 10000), '') FROM generate_series(1, 9000)"  # 90 MB in one value
    with Sandbox(config) as sandbox:
        runs = sandbox.execute(towns, [sql, "SELECT 1"])
        assert [(run.status, run.reason) for run in runs] == [("error", "memory"), ("ran", "")]


def test_schema_of_a_server(towns: str) -> None:
    schema = reflect("towns", towns, ["shop.mayor = town.name"])
    assert [table.name for table in schema.tables] == ["town", "shop", "sale", "large"]
    assert schema.dialect == "postgres"
    town = schema.table("town")
    assert town is not None and (town.rows, town.primary_key, town.comment) == (2, ("id",), "where people live")
    kinds = {column.name: (column.kind, column.sql_type) for column in town.columns}
    assert kinds == {
        "id": ("number", "integer"),
        "name": ("text", "text"),
        "founded": ("date", "date"),
        "size": ("number", "integer"),
        "order": ("text", "text"),
        "info": ("other", "json"),
        "facts": ("other", "jsonb"),
        "tags": ("other", "text[]"),
        "place": ("other", "point"),
        "mood": ("text", "mood"),
        "walled": ("boolean", "boolean"),
        "tax": ("number", "numeric(10,2)"),
        "seen": ("date", "timestamp with time zone"),
        "away": ("other", "interval"),
    }
    name, size = town.column("name"), town.column("size")
    assert name is not None and (name.comment, name.distinct, name.samples) == (
        "what people call it",
        2,
        ("Köln", "Ulm"),
    )
    assert size is not None and (size.nulls, size.samples) == (1, (126000,))
    assert schema.foreign_keys == (
        ForeignKey("shop", "town_id", "town", "id"),
        ForeignKey("shop", "mayor", "town", "name"),
    )
    assert "name (text; what people call it; e.g. Köln | Ulm)" in schema_text(schema)


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


def spftsql(
    *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error; no password in any of them."""
    monkeypatch.setattr(sys, "argv", ["spftsql", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not any(secret in out + err for secret in (PASSWORD, ESCAPED, "pw-4Xf"))
    return int(ended.value.code or 0), out, err


def test_verify_and_schema_commands(
    towns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        return spftsql(*arguments, monkeypatch=monkeypatch, capsys=capsys)

    code, out, err = run("verify", "--db", towns, "--sql", "SELECT 1.0", "--gold", "SELECT 1", "--json")
    verdict = json.loads(out)
    assert (code, verdict["status"], verdict["fault"], err) == (0, "equal", None, "")
    assert verdict["engine"].startswith("postgresql ")
    code, out, _ = run("verify", "--db", towns, "--sql", "SELECT pg_sleep(9)")
    assert code == 3 and out.startswith("error (refused: function pg_sleep)")
    assert run("verify", "--db", towns, "--sql", "SELECT nope")[0] == 1
    code, out, _ = run("schema", towns)
    assert code == 0 and "shop.town_id = town.id" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda url: url.replace("/towns", "/nowhere"), 'database "nowhere" does not exist'),
        (lambda url: url.replace(ESCAPED, "pw-4Xf-wrong"), "password authentication failed"),
        (lambda url: url.replace("reader", "nobody"), 'password authentication failed for user "nobody"'),
        (lambda url: re.sub(r":\d+/", ":1/", url), "Connection refused"),
        (lambda url: url.replace("127.0.0.1", "no-such-host.invalid"), "no-such-host.invalid"),
        (lambda url: url.replace(ESCAPED, "pw-4Xf/9&?"), "write postgresql://USER@HOST:PORT/DATABASE"),
        (lambda url: url.replace("postgresql:", "mysql:"), "not an address that can be used"),
        (lambda url: f"{url}?sslmode=sometimes", "sslmode"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "schema"])
def test_a_wrong_address_is_one_line(
    command: str, change: object, message: str, towns: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert callable(change)
    url = change(towns)
    arguments = ["verify", "--db", url, "--sql", "SELECT 1"] if command == "verify" else ["schema", url]
    code, out, err = spftsql(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and out == ""
    assert message in err and len(err.strip().splitlines()) == 1


def test_a_superuser_is_refused(
    towns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = towns.replace("reader", "postgres")
    code, _, err = spftsql("verify", "--db", url, "--sql", "SELECT 1", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "the role postgres is a superuser" in err and "CREATE ROLE reader" in err


def test_a_role_that_may_write_is_warned_about(
    postgres: Server, towns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    postgres.run("CREATE ROLE clerk LOGIN PASSWORD 'x'")
    postgres.run("GRANT SELECT, INSERT ON shop, sale TO clerk", "towns")
    url = f"postgresql://clerk:x@127.0.0.1:{postgres.port}/towns"
    code, out, err = spftsql(
        "verify", "--db", url, "--sql", "SELECT count(*) FROM shop", monkeypatch=monkeypatch, capsys=capsys
    )
    assert code == 0 and out.startswith("ran")
    assert "the role clerk may write to 2 tables (shop, sale)" in err
    with Sandbox(CONFIG) as sandbox:
        (run,) = sandbox.execute(url, ["INSERT INTO shop VALUES (9999, 1, 'x', 'y')"])
        assert run.reason == "refused: not a query: INSERT"


def test_the_password_may_be_outside_the_url(
    postgres: Server, towns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = towns.replace(f":{ESCAPED}", "")
    with Sandbox(CONFIG) as sandbox, pytest.raises(Fault, match="no password supplied"):
        sandbox.execute(url, ["SELECT 1"])
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with Sandbox(CONFIG) as sandbox:
        assert sandbox.execute(url, ["SELECT 1"])[0].rows == [(1,)]
    monkeypatch.delenv("PGPASSWORD")
    (tmp_path / "passwords").write_text(f"127.0.0.1:{postgres.port}:*:reader:{PASSWORD}\n")
    (tmp_path / "passwords").chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "passwords"))
    with Sandbox(CONFIG) as sandbox:
        assert sandbox.execute(url, ["SELECT 1"])[0].rows == [(1,)]
    assert reflect("towns", url).tables


def test_a_database_without_tables_to_read(postgres: Server) -> None:
    with pytest.raises(UserError, match="has no tables that its role may read"):
        reflect("empty", postgres.url("postgres"))


def defog(root: Path) -> Iterator[tuple[str, str]]:
    """Database and gold: of alternatives each, and of columns in braces the first."""
    with (root / "defog" / "questions_gen_postgres.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            columns = [list(filter(None, found.split(","))) for found in re.findall(r"\{([^}]*)\}", row["query"])]
            for sql in filter(str.strip, row["query"].split(";")):
                first = columns[0][0] if columns and columns[0] else ""
                yield row["db_name"], re.sub(r"\{[^}]*\}", first, sql)


def test_golds_of_a_benchmark_run(postgres: Server, data_root: Path) -> None:
    folder = data_root / "defog" / "defog_data"
    golds: dict[str, list[str]] = {path.name: [] for path in folder.iterdir()}
    for database, sql in defog(data_root):
        if database in golds:
            golds[database].append(sql)
    counts = {}
    postgres.run("CREATE ROLE analyst LOGIN PASSWORD 'x'; GRANT pg_read_all_data TO analyst")
    with Sandbox(CONFIG) as sandbox:
        for name, statements in golds.items():
            postgres.run(f"CREATE DATABASE {name}")
            postgres.run((folder / name / f"{name}.sql").read_text(), name)
            runs = sandbox.execute(f"postgresql://analyst:x@127.0.0.1:{postgres.port}/{name}", statements)
            assert [(run.reason, sql) for run, sql in zip(runs, statements, strict=True) if run.status != "ran"] == []
            counts[name] = len(runs)
    print(counts)
    assert sum(counts.values()) > 30


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


def test_a_plan_is_a_tree_of_steps_and_held_to_the_same_policy(towns: str) -> None:
    from spftsql.sandbox.query_plan import plan_steps

    with Sandbox(CONFIG) as sandbox:  # of its own: other tests end the connections of the shared one
        plan = sandbox.plan(towns, "SELECT label, name FROM shop JOIN town ON town.id = town_id ORDER BY label")
        (top,) = plan_steps(plan.engine, plan.rows)
        assert top.name == "Sort" and top.detail.startswith("Sort Key: ") and top.rows
        (join,) = top.children
        assert "Join" in join.name and len(join.children) == 2
        steps = [step.name for child in join.children for step in (child, *child.children)]
        assert "Seq Scan on shop" in steps
        one = sandbox.plan(towns, "SELECT label FROM shop WHERE id = 7")
        (scan,) = plan_steps(one.engine, one.rows)
        assert scan.name == "Index Scan on shop" and scan.detail.startswith(
            "Index Name: shop_pkey; Index Cond: (id = 7)"
        )
        assert "pkey" not in plan_steps(one.engine, one.rows, index_names=False)[0].detail
        refused = (
            "DELETE FROM shop",
            "SELECT pg_sleep(9)",
            "SELECT 1; SELECT 2",
            "EXPLAIN SELECT 1",
            "SELECT nope FROM shop",
        )
        for sql in refused:
            executed, explained = sandbox.execute(towns, [sql])[0], sandbox.plan(towns, sql)
            assert (explained.status, explained.reason, explained.rows) == ("error", executed.reason, []), sql
        assert sandbox.plan(towns, "SELECT generate_series(1, 1000000000)").status == "ran"  # nothing is executed
