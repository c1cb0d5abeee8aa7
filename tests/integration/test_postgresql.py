"""PostgreSQL in the sandbox: what runs, what becomes of values, limits and errors, and plans."""

import csv
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spftsql.config import SandboxConfig
from spftsql.errors import Fault
from spftsql.sandbox.execute import Sandbox
from spftsql.sandbox.postgresql.connection import Connection, Lost
from spftsql.sandbox.result import Execution
from tests.postgres import Server
from tests.towns import CONFIG

pytestmark = pytest.mark.integration


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
            "SELECT pid FROM pg_stat_activity WHERE usename = 'reader' AND state = 'active' "
            "AND query LIKE '%generate_series%'"  # no query of the runner's own, which come before it
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


def test_the_server_s_own_words_are_kept_when_it_ends_the_session(towns: str) -> None:
    connection = Connection(towns)
    connection.start_clock(10, 20)
    with pytest.raises(Lost, match="terminating connection due to administrator command"):
        connection.ask("SELECT pg_terminate_backend(pg_backend_pid())")
    connection.close()


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
