"""The endpoint over SQLite, DuckDB and PostgreSQL at once: answers, grants, and a server that is down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import pytest
from starlette.testclient import TestClient

from spftsql.serving.keys import create_key
from tests.postgres import Server, start_server
from tests.serving import SECRET, api_of, people, service_of, tokenizer_folder

pytestmark = pytest.mark.integration
TABLES = f"""
    CREATE TABLE person (id INTEGER PRIMARY KEY, name VARCHAR, city VARCHAR, ssn VARCHAR);
    CREATE TABLE orders (id INTEGER PRIMARY KEY, person_id INTEGER, total DOUBLE PRECISION);
    CREATE TABLE salary (person_id INTEGER, amount INTEGER, note VARCHAR);
    INSERT INTO person VALUES (1, 'Ada', 'Paris', '{SECRET}'), (2, 'Bob', 'Rome', '987-65-4321');
    INSERT INTO orders VALUES (1, 1, 9.5), (2, 1, 20), (3, 2, 3);
    INSERT INTO salary VALUES (1, 4242, 'confidential-note'), (2, 1717, 'other-note');
    CREATE VIEW rich AS SELECT name, ssn, amount FROM person JOIN salary ON person.id = salary.person_id;
"""
OF_THE_SERVER = """
    CREATE TABLE visit (day DATE, who TEXT, secret TEXT) PARTITION BY RANGE (day);
    CREATE TABLE visit_old PARTITION OF visit FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    CREATE TABLE visit_new PARTITION OF visit FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
    INSERT INTO visit VALUES ('2020-05-05', 'Ada', '4242'), ('2021-05-05', 'Bob', '1717');
    CREATE FUNCTION leak() RETURNS TEXT LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN RETURN (SELECT max(note) FROM salary); END $$;
"""
ENGINES = ("lite", "duck", "server")
PRYING = [
    "SELECT ssn FROM person",
    "SELECT * FROM person",
    "SELECT p FROM person p",
    "SELECT p.ssn FROM person AS p",
    "SELECT * FROM salary",
    "SELECT * FROM rich",
    "SELECT * FROM public.salary",
    "SELECT * FROM main.salary",
    "SELECT name FROM person WHERE ssn LIKE '123%'",
    "SELECT name FROM person NATURAL JOIN (SELECT '123-45-6789' AS ssn) AS probe",
    "SELECT name FROM person JOIN (SELECT '123-45-6789' AS ssn) AS probe USING (ssn)",
    "WITH salary AS (SELECT * FROM salary) SELECT * FROM salary",
    "SELECT (WITH salary AS (SELECT 1 AS amount) SELECT amount FROM salary), (SELECT max(amount) FROM salary)",
    "WITH RECURSIVE a AS (SELECT 1 AS x UNION ALL SELECT amount FROM salary) SELECT * FROM a",
    "SELECT name FROM person ORDER BY (SELECT max(note) FROM salary)",
    "SELECT row_to_json(person) FROM person",
    "SELECT to_json(person) FROM person",
    "SELECT COLUMNS('ssn') FROM person",
    "SELECT * FROM query('SELECT * FROM salary')",
    "SELECT * FROM query_table('salary')",
    "SELECT top_salary()",
    "SELECT * FROM salaries()",
    "FROM salary",
    "TABLE salary",
    "SELECT query_to_xml('SELECT * FROM salary', true, false, '')",
    "SELECT table_to_xml('salary', true, false, '')",
    "SELECT * FROM information_schema.columns",
    "SELECT * FROM pg_catalog.pg_stats",
    "SELECT * FROM pg_stats",
    "SELECT * FROM duckdb_columns()",
    "SELECT pg_get_viewdef('rich'::regclass)",
    "SELECT 'salary'::regclass",
    "SELECT * FROM (VALUES (1)) AS v (x), LATERAL (SELECT note FROM salary) AS s",
    "SELECT name FROM ONLY person WHERE ssn IS NOT NULL",
    "SELECT * FROM person TABLESAMPLE SYSTEM (100)",
    "PIVOT salary ON note USING sum(amount)",
    "SELECT * FROM salary PIVOT (sum(amount) FOR note IN ('other-note'))",
    "SUMMARIZE salary",
    "DESCRIBE salary",
    "SELECT * FROM person, salary",
    "SELECT * FROM person SEMI JOIN salary ON true",
    "SELECT * FROM person WHERE (SELECT amount FROM salary LIMIT 1) = 4242",
    "SELECT * EXCLUDE (name) FROM person",
    "SELECT unnest(p) FROM person p",
    'SELECT count(*) FROM U&"sal\\0061ry"',
    'SELECT * FROM "salary"',
    "SELECT * FROM person; SELECT * FROM salary",
    "SELECT $$x$$, note FROM salary",
    "SELECT 1 INTO TEMP t FROM salary",
    "WITH x AS (DELETE FROM salary RETURNING note) SELECT * FROM x",
]
# What the engines let the narrow key read as it is written.
READABLE = {
    "SELECT name FROM person ORDER BY id": [["Ada"], ["Bob"]],
    "SELECT p.name, count(*), max(total) FROM person p JOIN orders o ON person_id = p.id GROUP BY p.name ORDER BY 1": [
        ["Ada", 2, 20.0],
        ["Bob", 1, 3.0],
    ],
    "SELECT name FROM person WHERE id IN (SELECT person_id FROM orders WHERE total > 5) UNION SELECT 'x'": [
        ["Ada"],
        ["x"],
    ],
    "WITH a AS (SELECT id, name FROM person) SELECT x.name FROM a x JOIN a y ON x.id = y.id + 1": [["Bob"]],
    "SELECT name, sum(total) OVER (ORDER BY orders.id) FROM person, orders WHERE person.id = person_id ORDER BY 2": [
        ["Ada", 9.5],
        ["Ada", 29.5],
        ["Bob", 32.5],
    ],
    "SELECT (SELECT max(name) FROM person WHERE id = person_id) FROM orders WHERE id = 3": [["Bob"]],
    "SELECT * FROM orders WHERE id = 1": [[1, 1, 9.5]],
}
HIDDEN = (SECRET, "987-65-4321", "4242", "1717", "confidential", "other-note", "ssn", "amount")


def answers(prompt: str) -> Sequence[str]:
    return ["SELECT name, sum(total) FROM person JOIN orders ON person.id = person_id GROUP BY name ORDER BY name"]


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """One that may be stopped."""
    with start_server() as server:
        server.run("CREATE DATABASE shop")
        server.run(TABLES + OF_THE_SERVER + "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;", "shop")
        yield server


@pytest.fixture(scope="module")
def client(own_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("engines")
    with duckdb.connect(str(folder / "shop.duckdb")) as connection:
        connection.execute(TABLES)
        connection.execute("CREATE MACRO top_salary() AS (SELECT max(amount) FROM salary)")
        connection.execute("CREATE MACRO salaries() AS TABLE SELECT * FROM salary")
    databases = {
        "lite": f"sqlite:///{people(folder / 'shop.sqlite')}",
        "duck": f"duckdb:///{folder / 'shop.duckdb'}",
        "server": own_server.url("shop"),
    }
    service, backend = service_of(tokenizer_folder(folder / "model"), databases, answers)
    grants = [f"{name}.{part}" for name in ENGINES for part in ("person.id", "person.name", "orders")]
    grants += ["server.visit.day", "server.visit.who"]
    narrow, _ = create_key(folder / "keys.json", "narrow", databases=grants)
    wide, _ = create_key(folder / "keys.json", "wide")
    with TestClient(api_of(service, folder / "keys.json")) as client:
        client.narrow, client.wide = narrow, wide  # type: ignore[attr-defined]
        yield client
    backend.verifier.close()


def post(client: TestClient, path: str, key: str, body: Any) -> Any:
    return client.post(path, json=body, headers={"Authorization": f"Bearer {getattr(client, key)}"})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("key", ["narrow", "wide"])
def test_every_engine_answers_with_either_key(client: TestClient, engine: str, key: str) -> None:
    answer = post(client, "/v1/sql", key, {"database": engine, "question": "who spent what?", "n": 2}).json()
    assert answer["verdict"]["status"] == "ran", answer
    assert answer["rows"] == [["Ada", 29.5], ["Bob", 3.0]]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_narrow_key_gets_at_nothing_else(client: TestClient, engine: str) -> None:
    whole = post(client, "/v1/query", "wide", {"database": engine, "sql": PRYING[0]}).json()
    assert whole["rows"][0] == [SECRET]
    for sql in PRYING:
        response = post(client, "/v1/query", "narrow", {"database": engine, "sql": sql})
        answer = response.json()
        assert response.status_code == 200, (sql, answer)
        shown = json.dumps([answer["rows"], answer["columns"]])
        assert not any(secret in shown for secret in HIDDEN), (sql, shown)
        if "123" in sql or "4242" in sql:  # nor is it told by whether there are rows
            assert answer["verdict"]["status"] == "error" or "probe" in sql, (sql, answer)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engine_holds_a_narrow_key_where_the_rewriting_fails(
    client: TestClient, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.service.granted_sql", lambda sql, *_: sql)
    for sql in PRYING:
        answer = post(client, "/v1/query", "narrow", {"database": engine, "sql": sql}).json()
        shown = json.dumps([answer["rows"], answer["columns"]])
        assert not any(secret in shown for secret in HIDDEN), (sql, shown)
        if "ssn" in sql or "salary" in sql:
            assert answer["verdict"]["status"] == "error", (sql, answer)
    refused = post(client, "/v1/query", "narrow", {"database": engine, "sql": PRYING[0]}).json()["verdict"]["reason"]
    assert refused.startswith("refused") and "ssn" in refused
    for sql, rows in READABLE.items():
        answer = post(client, "/v1/query", "narrow", {"database": engine, "sql": sql}).json()
        assert answer["rows"] == rows, (sql, answer)


def test_a_server_tells_of_partitions_and_of_functions_that_read(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def query(sql: str, key: str = "narrow") -> dict[str, Any]:
        answer: dict[str, Any] = post(client, "/v1/query", key, {"database": "server", "sql": sql}).json()
        return answer

    for sql in ("SELECT who FROM visit ORDER BY day", "SELECT who FROM visit WHERE day > '2020-12-31' OR who = 'Ada'"):
        assert query(sql)["rows"] == [["Ada"], ["Bob"]]
    assert query("SELECT leak()", "wide")["rows"] == [["other-note"]]
    assert query("SELECT leak()")["verdict"]["reason"] == "refused: function leak"
    monkeypatch.setattr("serve.service.granted_sql", lambda sql, *_: sql)
    assert query("SELECT who FROM visit ORDER BY day")["rows"] == [["Ada"], ["Bob"]]
    for sql in (
        "SELECT secret FROM visit",
        "SELECT secret FROM visit_old",
        "SELECT who FROM visit_new WHERE secret > '1'",
        "SELECT count(*) FROM (SELECT v.* FROM visit v OFFSET 0) AS x WHERE x.secret LIKE '4%'",
        "SELECT name FROM person UNION ALL SELECT ssn FROM person",
        "SELECT id, name, city, 'x' FROM person UNION ALL SELECT * FROM person",
        "SELECT max(ssn) FROM person GROUP BY ssn HAVING count(*) > 0",
        "SELECT p.ctid FROM person p",
        "SELECT name FROM person p, LATERAL (SELECT p.ssn AS s) AS x WHERE s > '2'",
        "SELECT o.id FROM orders o LEFT JOIN person p ON o.person_id = p.id AND p.city = 'Paris' WHERE p.id IS NULL",
        "SELECT sum(length(p::text)) FROM person p",
        "SELECT count(*) FROM orders JOIN salary USING (person_id)",
    ):
        verdict = query(sql)["verdict"]
        assert verdict["status"] == "error" and verdict["reason"].startswith("refused: "), (sql, verdict)


def test_a_server_that_is_down_is_named_and_the_others_answer(client: TestClient, own_server: Server) -> None:
    own_server.stop()
    response = post(client, "/v1/sql", "wide", {"database": "server", "question": "who spent what?"})
    assert response.status_code == 503 and response.headers["retry-after"]
    assert "database server" in response.json()["error"]["message"]
    assert "127.0.0.1" not in response.text
    assert post(client, "/v1/sql", "wide", {"database": "lite", "question": "q"}).json()["rows"]
