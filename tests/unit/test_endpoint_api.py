"""The endpoint's routes in one process: a real sandbox, real keys, a model that knows its answers by heart."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve.service import Service
from spftsql.serving.feedback import labelled_examples, read_feedback
from spftsql.serving.keys import create_key, revoke_key
from tests.serving import SECRET, ScriptedBackend, api_of, people, service_of, tokenizer_folder

ANSWERS: dict[str, Sequence[str]] = {
    "everybody": ["SELECT name FROM person ORDER BY id"],
    "fenced": ["```sql\nSELECT name\nFROM person;\n```"],
    "split": ["SELECT 1", "SELECT 2", "SELECT 3", "SELECT 1 "],
    "mended": ["SELECT nickname FROM person"],
    "hopeless": ["SELECT nowhere FROM person"],
    "secrets": ["SELECT ssn FROM person"],
    "salaries": ["SELECT * FROM salary"],
    "endless": ["WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"],
    "drop": ["DROP TABLE person"],
    "many": ["SELECT a.id FROM person a, person b, person c, person d"],
}


def answers(prompt: str) -> Sequence[str]:
    if "nickname" in prompt:
        return ["SELECT name FROM person"]
    return next((texts for question, texts in ANSWERS.items() if f"{question}?" in prompt), ["SELECT 0"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def served(model: Path, folder: Path) -> Iterator[tuple[Service, ScriptedBackend]]:
    database = people(folder / "people.sqlite")
    settings = {"serve.feedback": folder / "feedback", "serve.max_body_kb": 200, "sandbox.soft_seconds": 0.3}
    service, backend = service_of(model, {"people": str(database), "other": str(database)}, answers, settings)
    yield service, backend
    backend.verifier.close()


@pytest.fixture(scope="module")
def client(served: tuple[Service, ScriptedBackend]) -> Iterator[TestClient]:
    with TestClient(api_of(served[0]), base_url="http://localhost") as client:
        yield client


def ask(client: TestClient, question: str, **more: Any) -> dict[str, Any]:
    headers = more.pop("headers", {})
    response = client.post("/v1/sql", json={"database": "people", "question": f"{question}?", **more}, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def events(client: TestClient, path: str, body: Any) -> list[tuple[str, Any]]:
    with client.stream("POST", path, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        name, found = "", []
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                found.append((name, line[6:] if line[6:] == "[DONE]" else json.loads(line[6:])))
    return found


def test_one_answer_comes_with_its_verdict_and_rows(client: TestClient) -> None:
    answer = ask(client, "everybody")
    assert (answer["sql"], answer["rows"]) == ("SELECT name FROM person ORDER BY id", [["Ada"], ["Bob"]])
    assert answer["verdict"]["status"] == "ran" and answer["usage"]["prompt_tokens"] == 7
    assert ask(client, "fenced")["sql"] == "SELECT name\nFROM person"
    cut = ask(client, "many", max_rows=3)
    assert (len(cut["rows"]), cut["truncated"], cut["verdict"]["status"]) == (3, True, "ran")
    assert ask(client, "endless")["verdict"]["status"] == "timeout"


def test_candidates_vote_with_their_results(client: TestClient) -> None:
    answer = ask(client, "split", n=4)
    assert answer["rows"] == [[1]]
    assert [c["votes"] for c in answer["candidates"]] == [2, 1, 1]
    unsure = ask(client, "split", n=4, abstain_below=0.6)
    assert (unsure["verdict"]["status"], unsure["rows"], unsure["columns"]) == ("unsure", [], [])
    assert unsure["candidates"] == answer["candidates"]
    assert ask(client, "split", n=4, abstain_below=0.5)["verdict"]["status"] == "ran"


def test_a_statement_that_fails_is_mended_once(client: TestClient, served: tuple[Service, ScriptedBackend]) -> None:
    backend = served[1]
    answer = ask(client, "mended")
    assert (answer["sql"], answer["verdict"]["status"]) == ("SELECT name FROM person", "ran")
    assert answer["verdict"]["reason"] == "repaired: no such column: nickname"
    assert "no such column: nickname" in backend.prompts[-1] and "SELECT nickname" in backend.prompts[-1]
    assert [c["status"] for c in answer["candidates"]] == ["ran", "error"]
    assert answer["usage"]["prompt_tokens"] == 14
    asked = len(backend.prompts)
    failed = ask(client, "hopeless")
    assert failed["verdict"]["reason"] == "no such column: nowhere"
    assert len(backend.prompts) == asked + 2


def test_a_stream_adds_up_to_the_answer(client: TestClient) -> None:
    whole = ask(client, "mended")
    found = events(client, "/v1/sql", {"database": "people", "question": "mended?", "stream": True})
    names = [name for name, _ in found]
    assert names[-3:] == ["verdict", "rows", "done"] and names.count("repair") == 1
    repaired = names.index("repair")
    first = "".join(data["text"] for name, data in found[:repaired] if name == "token")
    second = "".join(data["text"] for name, data in found[repaired:] if name == "token")
    assert (first, second) == ("SELECT nickname FROM person", "SELECT name FROM person")
    together = {**found[-3][1], **found[-2][1], **found[-1][1]}
    assert {k: v for k, v in together.items() if k not in ("timings", "verdict")} == {
        k: v for k, v in whole.items() if k not in ("timings", "verdict")
    }
    bad = client.post("/v1/sql", json={"database": "nowhere", "question": "q", "stream": True})
    assert bad.status_code == 404


def test_a_statement_of_ones_own_runs_in_the_sandbox(client: TestClient) -> None:
    def query(sql: str) -> dict[str, Any]:
        answer: dict[str, Any] = client.post("/v1/query", json={"database": "people", "sql": sql}).json()
        return answer

    assert query("SELECT count(*) AS n FROM person")["rows"] == [[2]]
    assert query("DELETE FROM person")["verdict"]["reason"].startswith("refused")
    assert query("SELECT nope")["verdict"]["status"] == "error"


# What a restricted key must not get at, by whatever way.
PRYING = [
    "SELECT ssn FROM person",
    "SELECT * FROM salary",
    "SELECT * FROM rich",
    "SELECT amount FROM salary WHERE note LIKE 'conf%'",
    "SELECT p.* FROM person p",
    "SELECT group_concat(name || ssn) FROM person",
    "SELECT name FROM person NATURAL JOIN (SELECT '123-45-6789' AS ssn)",
    "SELECT name FROM person JOIN (SELECT '123-45-6789' AS ssn) USING (ssn)",
    "SELECT name FROM person WHERE ssn LIKE '123%'",
    "SELECT 4242 IN salary",
    "SELECT sql FROM sqlite_master",
    "SELECT * FROM pragma_table_info('salary')",
    "WITH salary AS (SELECT * FROM salary) SELECT * FROM salary",
    "SELECT (WITH salary AS (SELECT 1 AS amount) SELECT amount FROM salary), (SELECT max(amount) FROM salary)",
    "SELECT name FROM person UNION ALL SELECT note FROM main.salary",
    "SELECT name FROM person ORDER BY (SELECT note FROM salary)",
    "SELECT name FROM person WHERE EXISTS (SELECT 1 FROM salary WHERE amount = 4242 AND person_id = person.id)",
    'SELECT "ssn" FROM person',
    "SELECT [ssn] FROM [person]",
    "SELECT `note` FROM `salary`",
    "SELECT name FROM person; SELECT * FROM salary",
    "SELECT /* */ * FROM/**/salary",
    "SELECT json_group_array(ssn) FROM person",
    "SELECT * FROM (SELECT * FROM (SELECT * FROM person) JOIN salary)",
    "SELECT name FROM person GROUP BY name HAVING max(ssn) = '123-45-6789'",
    "SELECT max(ssn) OVER () FROM person",
    "VALUES ((SELECT note FROM salary))",
    "SELECT * FROM temp.salary",
    "EXPLAIN SELECT * FROM salary",
    "SELECT count(*) FROM orders JOIN salary USING (person_id)",
    "SELECT count(*) FROM person NATURAL JOIN (SELECT 'Paris' AS city)",
    "SELECT count(*) FROM sqlite_master JOIN (SELECT 'salary' AS name) USING (name)",
    "EXPLAIN SELECT count(*) FROM orders JOIN salary USING (person_id)",
    "SELECT 1; SELECT count(*) FROM orders JOIN salary USING (person_id)",
]
HIDDEN = (SECRET, "987-65-4321", "4242", "confidential-note", "other-note", "CREATE TABLE")


@pytest.fixture(scope="module")
def restricted(served: tuple[Service, ScriptedBackend], folder: Path) -> Iterator[tuple[TestClient, dict[str, str]]]:
    key, _ = create_key(
        folder / "keys.json", "analyst", databases=["people.person.id", "people.person.name", "people.orders"]
    )
    with TestClient(api_of(served[0], folder / "keys.json"), base_url="http://localhost") as client:
        yield client, {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("sql", PRYING)
def test_a_key_does_not_read_what_it_is_not_granted(restricted: tuple[TestClient, dict[str, str]], sql: str) -> None:
    client, headers = restricted
    response = client.post("/v1/query", json={"database": "people", "sql": sql}, headers=headers)
    shown = json.dumps([response.json().get("rows"), response.json().get("columns")])
    assert not any(secret in shown for secret in HIDDEN), shown
    # Nor does it learn by whether there are rows.
    probe = response.json()
    assert probe["verdict"]["status"] == "error" or "Ada" not in shown or "p.*" in sql or "4242" not in sql, shown


@pytest.mark.parametrize("sql", PRYING)
def test_the_engine_refuses_it_too_where_the_rewriting_fails(
    restricted: tuple[TestClient, dict[str, str]], sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, headers = restricted
    body = {"database": "people", "sql": sql}
    monkeypatch.setattr("serve.service.granted_sql", lambda sql, *_: sql)
    answer = client.post("/v1/query", json=body, headers=headers).json()
    assert answer["verdict"]["status"] == "error" and answer["rows"] == [], answer


def test_what_another_caller_may_read_is_not_kept_for_this_one(
    client: TestClient, restricted: tuple[TestClient, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.service.granted_sql", lambda sql, *_: sql)
    narrow, headers = restricted
    body = {"database": "people", "sql": "SELECT ssn FROM person WHERE id = 1"}
    for _ in range(2):
        assert client.post("/v1/query", json=body).json()["rows"] == [[SECRET]]
        refused = narrow.post("/v1/query", json=body, headers=headers).json()
        assert refused["verdict"]["reason"] == "refused: READ person ssn" and refused["rows"] == []
    for sql, rows in (
        ("SELECT name, count(*), max(total) FROM person p JOIN orders o ON person_id = p.id GROUP BY 1", 2),
        ("WITH a AS (SELECT id, name FROM person) SELECT x.name FROM a x JOIN a y USING (id), json_each('[1]')", 2),
        ("SELECT rowid, * FROM orders", 3),
    ):
        answer = narrow.post("/v1/query", json={"database": "people", "sql": sql}, headers=headers).json()
        assert len(answer["rows"]) == rows, answer


def test_what_is_not_granted_is_not_mentioned(
    restricted: tuple[TestClient, dict[str, str]], served: tuple[Service, ScriptedBackend]
) -> None:
    client, headers = restricted
    listed = client.get("/v1/databases", headers=headers).json()["data"]
    assert [entry["id"] for entry in listed] == ["people"]
    assert {table["name"]: table["columns"] for table in listed[0]["tables"]} == {
        "person": ["id", "name"],
        "orders": ["id", "person_id", "total"],
    }
    assert [m["id"] for m in client.get("/v1/models", headers=headers).json()["data"]] == ["tiny@people"]
    for question in ("secrets", "salaries"):
        answer = ask(client, question, headers=headers)
        assert answer["verdict"]["status"] == "error" and answer["rows"] == []
    ask(client, "who lives in Paris with 123-45-6789 and confidential-note", headers=headers)
    for prompt in served[1].prompts[-4:]:
        assert not any(word in prompt.split("Question")[0] for word in ("ssn", "salary", "Paris", "note", "rich"))
    joined = "SELECT name, total FROM person p JOIN orders o ON o.person_id = p.id WHERE p.id = 1 ORDER BY 2"
    body = {"database": "people", "sql": joined}
    assert client.post("/v1/query", json=body, headers=headers).json()["rows"] == [["Ada", 9.5], ["Ada", 20.0]]
    other = client.post("/v1/query", json={"database": "other", "sql": "SELECT 1"}, headers=headers)
    assert other.status_code == 404 and "other;" not in other.text.replace("no database other;", "")


def test_a_key_has_scopes_a_rate_and_an_end(served: tuple[Service, ScriptedBackend], tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    slow, _ = create_key(file, "slow", scopes=["query"], requests_per_minute=2)
    assert slow not in file.read_text() and file.stat().st_mode & 0o077 == 0
    with TestClient(api_of(served[0], file), base_url="http://localhost") as client:
        client.headers["Authorization"] = f"Bearer {slow}"
        body: dict[str, Any] = {"database": "people", "question": "everybody?"}
        denied = client.post("/v1/sql", json=body)
        assert (denied.status_code, denied.json()["error"]["code"]) == (403, "missing_scope")
        assert client.get("/v1/databases").status_code == 200
        limited = client.get("/v1/databases")
        assert limited.status_code == 429 and int(limited.headers["retry-after"]) >= 1
        for model in ("tiny", "tiny@people"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("serve.gate._Bucket.take", lambda _: 0.0)
                chat = {"model": model, "messages": [{"role": "user", "content": "q"}]}
                assert client.post("/v1/chat/completions", json=chat).status_code == 403
                assert client.get("/metrics").status_code == 403
        revoke_key(file, "slow")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("spftsql.serving.keys._LOOK_S", -1.0)
            assert client.get("/v1/databases").status_code == 401
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {slow}"}, {"Authorization": slow}):
            client.headers.pop("Authorization", None)
            assert client.get("/v1/models", headers=headers).status_code == 401
        assert client.get("/healthz").status_code == 200


def test_without_keys_other_names_and_sites_are_refused(client: TestClient) -> None:
    assert client.get("/v1/databases", headers={"Host": "evil.example"}).status_code == 421
    tool = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accepted = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    evil = client.post("/mcp", json=tool, headers={**accepted, "Origin": "http://evil.example"})
    assert evil.status_code == 403
    assert (
        "access-control-allow-origin" not in client.get("/healthz", headers={"Origin": "http://evil.example"}).headers
    )


def test_named_sites_may_call_from_a_browser_and_time_is_limited(model: Path, folder: Path) -> None:
    settings = {"serve.origins": '["https://app.example"]', "serve.request_seconds": 3}
    service, backend = service_of(model, {"people": str(folder / "people.sqlite")}, answers, settings)
    site, other = {"Origin": "https://app.example"}, {"Origin": "https://evil.example"}
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    tool = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accepted = {"Accept": "application/json, text/event-stream"}
    with TestClient(api_of(service, owner="key"), base_url="http://localhost") as client:
        allowed = client.options("/v1/sql", headers={**site, **wanted})  # a browser asks this without the key
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, site["Origin"])
        assert "access-control-allow-origin" not in client.options("/v1/sql", headers={**other, **wanted}).headers
        client.headers["Authorization"] = "Bearer key"
        body = {"database": "people", "question": "everybody?"}
        answered = client.post("/v1/sql", json=body, headers=site)
        assert answered.json()["rows"] == [["Ada"], ["Bob"]]
        assert "X-Request-Id" in answered.headers["access-control-expose-headers"]
        assert client.post("/mcp", json=tool, headers={**accepted, **site}).status_code == 200
        assert client.post("/mcp", json=tool, headers={**accepted, **other}).status_code == 403
        backend.pause = 60.0
        late = client.post("/v1/sql", json=body)
        assert (late.status_code, late.json()["error"]["code"], late.headers["retry-after"]) == (504, "timeout", "5")
    backend.verifier.close()


def test_the_body_has_a_limit_also_when_it_does_not_say_its_length(client: TestClient) -> None:
    large = b'{"database": "people", "question": "' + b"x" * 300_000 + b'"}'
    headers = {"Content-Type": "application/json"}
    assert client.post("/v1/sql", content=large, headers=headers).status_code == 413
    chunks = (large[i : i + 1000] for i in range(0, len(large), 1000))
    assert client.post("/v1/sql", content=chunks, headers=headers).status_code == 413
    long = client.post("/v1/sql", json={"database": "people", "question": "x" * 90_000})
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_feedback_becomes_labels(client: TestClient, folder: Path) -> None:
    base = {"database": "people", "question": "everybody?", "sql": "SELECT 1"}

    def give(**more: Any) -> Any:
        return client.post("/v1/feedback", json={**base, **more})

    assert give(rating="up").json()["labelled"] is True
    assert give(rating="down", corrected="SELECT name FROM person").json()["labelled"] is True
    assert give(rating="down", question="other?").json()["labelled"] is False
    wrong = give(rating="down", corrected="SELECT nope FROM person")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "corrected")
    entries = read_feedback(folder / "feedback")
    assert [entry.rating for entry in entries] == ["up", "down", "down"]
    assert entries[0].model == "tiny" and entries[0].key == "owner" and entries[0].prompt_hash
    (label,) = labelled_examples(folder / "feedback", ["people"])
    assert (label.question, label.sql, label.source) == ("everybody?", "SELECT name FROM person", "label")
    assert labelled_examples(folder / "feedback", ["elsewhere"]) == []


def test_metrics_and_logs_tell_of_requests_but_not_of_rows(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="spftsql.requests"):
        response = client.post(
            "/v1/sql", json={"database": "people", "question": "everybody?"}, headers={"X-Request-Id": "abc-1"}
        )
    assert response.headers["x-request-id"] == "abc-1"
    line = json.loads(caplog.records[-1].message)
    assert (line["request"], line["key"], line["route"], line["status"]) == ("abc-1", "owner", "/v1/sql", 200)
    assert line["database"] == "people" and "Ada" not in caplog.text and "everybody" not in caplog.text
    assert "SELECT" not in caplog.text
    page = client.get("/metrics").text
    for series in (
        'spftsql_requests_total{method="POST",replica="test",route="/v1/sql",status="200"}',
        'spftsql_verdicts_total{database="people",replica="test",status="ran"}',
        'spftsql_tokens_total{kind="cached",replica="test"}',
        "spftsql_first_token_seconds_bucket",
        "spftsql_generations_ongoing",
    ):
        assert series in page, series


def test_openai_streams(client: TestClient) -> None:
    body = {"model": "tiny@people", "messages": [{"role": "user", "content": "fenced?"}], "stream": True}
    found = [
        data for _, data in events(client, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    ]
    assert found[-1] == "[DONE]" and found[-2]["usage"]["prompt_tokens"] == 7 and found[-2]["choices"] == []
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in found[:-2]) == "SELECT name\nFROM person"
    assert found[-3]["choices"][0]["finish_reason"] == "stop"
    raw = {"model": "tiny", "prompt": "fenced?", "stream": True}
    text = [data for _, data in events(client, "/v1/completions", raw)]
    assert "".join(c["choices"][0]["text"] for c in text[:-1]) == ANSWERS["fenced"][0]


def test_a_database_that_is_down_is_named(
    client: TestClient, served: tuple[Service, ScriptedBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    from spftsql.errors import Fault

    async def down(*_: Any) -> Any:
        raise Fault("could not connect to secret-host")

    monkeypatch.setattr(served[1], "contest", down)
    response = client.post("/v1/sql", json={"database": "people", "question": "everybody?"})
    assert response.status_code == 503 and response.headers["retry-after"]
    error = response.json()["error"]
    assert error["code"] == "database_unavailable" and "database people" in error["message"]
    assert "secret-host" not in response.text


def test_the_dashboard_asks_for_series_that_there_are(client: TestClient) -> None:
    import re

    import serve

    ask(client, "everybody")
    board = json.loads((Path(serve.__file__).parent / "grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    page = client.get("/metrics").text
    known = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE spftsql_")}
    for name in {found for text in expressions for found in re.findall(r"spftsql_\w+", text)}:
        assert name in known or name.removesuffix("_bucket") in known, name


def test_the_schema_is_told_as_far_as_it_is_granted(
    client: TestClient, restricted: tuple[TestClient, dict[str, str]]
) -> None:
    whole = client.get("/v1/databases/people").json()
    person = next(table for table in whole["tables"] if table["name"] == "person")
    assert (whole["dialect"], person["rows"]) == ("sqlite", 2)
    assert [(c["name"], c["type"], c["primary_key"]) for c in person["columns"]][:2] == [
        ("id", "INTEGER", True),
        ("name", "TEXT", False),
    ]
    assert sorted(person["columns"][1]["samples"]) == ["Ada", "Bob"]
    assert {"table": "orders", "column": "person_id", "target": "person", "target_column": "id"} in whole[
        "foreign_keys"
    ]
    part = restricted[0].get("/v1/databases/people", headers=restricted[1])
    assert sorted(table["name"] for table in part.json()["tables"]) == ["orders", "person"]
    assert not any(word in part.text for word in ("ssn", "city", "salary", "Paris", "rich"))
    assert restricted[0].get("/v1/databases/other", headers=restricted[1]).status_code == 404


def test_a_plan_tells_how_a_statement_would_be_executed(
    client: TestClient, restricted: tuple[TestClient, dict[str, str]]
) -> None:
    def plan(client: TestClient, sql: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = client.post(
            "/v1/plan", json={"database": "people", "sql": sql}, headers=headers
        ).json()
        return answer

    told = plan(client, "SELECT name FROM person JOIN orders ON person_id = person.id")
    assert told["verdict"]["status"] == "ran"
    assert [step["name"].split()[0] for step in told["plan"]] == ["SCAN", "SEARCH"]
    refused = plan(client, "DROP TABLE person")
    assert refused["plan"] == [] and refused["verdict"]["reason"].startswith("refused")
    for sql in PRYING:
        shown = plan(*restricted[:1], sql, restricted[1])
        assert shown["verdict"]["status"] == "error" or "ssn" not in json.dumps(shown["plan"]), sql
    assert plan(restricted[0], "SELECT name FROM person", restricted[1])["plan"]


def test_a_caller_is_told_what_it_may_do(client: TestClient, restricted: tuple[TestClient, dict[str, str]]) -> None:
    owner = client.get("/v1/me").json()
    assert "raw" in owner["scopes"] and owner["keeps_feedback"] is True and owner["model"] == "tiny"
    assert restricted[0].get("/v1/me", headers=restricted[1]).json()["scopes"] == ["ask", "feedback", "query"]
    assert restricted[0].get("/v1/me").status_code == 401


def test_the_page_is_served_without_a_key_and_loads_nothing_else(
    restricted: tuple[TestClient, dict[str, str]],
) -> None:
    import re

    import serve

    client = restricted[0]
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert not re.search(r"\son\w+=|style=|javascript:|https?://(?!www\.w3\.org)", page.text)
    names = {path.name for path in (Path(serve.__file__).parent / "page").iterdir()}
    loaded = set(re.findall(r'(?:src|href)="page/([\w.-]+)"', page.text))
    for name in names - {"index.html"}:
        file = client.get(f"/page/{name}")
        assert file.status_code == 200 and file.headers["x-content-type-options"] == "nosniff"
        assert client.get(f"/page/{name}", headers={"If-None-Match": file.headers["etag"]}).status_code == 304
        loaded |= set(re.findall(r'from "\./([\w.-]+)"', file.text)) if name.endswith(".js") else set()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", file.text), name
    assert loaded == names - {"index.html"}
    for path in ("/page/nothing.js", "/page/../api.py", "/page/%2e%2e/api.py", "/page/"):
        assert client.get(path).status_code in (401, 404), path
