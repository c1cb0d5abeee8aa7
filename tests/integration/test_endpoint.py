"""The endpoint on a real Ray Serve application, a real (untrained) model and a real database, over HTTP."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.recipes import resolve
from spftsql.serving.client import ask, render_answer
from spftsql.serving.endpoint import start_endpoint
from tests.browser import chromium, look
from tests.serving import learnt_model
from tests.web_page import Reader

pytestmark = pytest.mark.integration
KEY = "a key for the tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}
LESSONS = {
    "who has the highest score": "SELECT name FROM person ORDER BY score DESC LIMIT 1",
    "tell me everything": "SELECT * FROM person",
    "tell me nothing": "SELECT name FROM person WHERE id = 9",
    "throw it away": "DROP TABLE person",
    "what is its height": "SELECT height FROM person",
    "count for ever": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
}
ROWS = [(1, "Ada", 3.5, b"\x00\xff", None), (2, "Bob", float("inf"), b"", "x")]


def configuration(engine: str = "transformers") -> Config:
    return resolve("demo", [f"generation.engine={engine}", "serve.port=0"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learnt_model(tmp_path_factory.mktemp("model"), LESSONS, configuration().prompt)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "people.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT, score REAL, photo BLOB, note TEXT)")
        connection.executemany("INSERT INTO person VALUES (?, ?, ?, ?, ?)", ROWS)
    return path


@pytest.fixture(scope="module")
def url(ray_session: None, model: Path, database: Path) -> Iterator[str]:
    from ray import serve

    os.environ["SPFTSQL_API_KEY"] = KEY
    try:
        yield start_endpoint(model, "tiny", {"people": str(database), "same": f"sqlite:///{database}"}, configuration())
    finally:
        del os.environ["SPFTSQL_API_KEY"]
        serve.shutdown()


def post(url: str, path: str, body: Any, headers: dict[str, str] = HEADERS) -> httpx.Response:
    return httpx.post(url + path, json=body, headers=headers, timeout=120)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_question_gets_sql_with_its_verdict_and_rows(url: str) -> None:
    answer = post(url, "/v1/sql", {"database": "people", "question": "tell me everything"}).json()
    assert answer["sql"] == LESSONS["tell me everything"]
    assert (answer["verdict"]["status"], answer["verdict"]["reason"]) == ("ran", "")
    assert answer["verdict"]["elapsed_ms"] > 0
    assert answer["columns"] == ["id", "name", "score", "photo", "note"]
    assert answer["rows"] == [[1, "Ada", 3.5, "00ff", None], [2, "Bob", "inf", "", "x"]]
    assert answer["truncated"] is False
    assert answer["candidates"] == [{"sql": answer["sql"], "votes": 1, "status": "ran"}]
    assert answer["model"] == "tiny"
    assert answer["usage"]["prompt_tokens"] > 3 and answer["usage"]["completion_tokens"] > 3
    timings = answer["timings"]
    assert timings["total_ms"] >= timings["generate_ms"] + timings["execute_ms"] > 0
    assert set(answer) == {
        *("sql", "verdict", "columns", "rows", "truncated", "candidates", "model", "usage", "timings")
    }


def test_fewer_rows_can_be_asked_for(url: str) -> None:
    answer = post(url, "/v1/sql", {"database": "people", "question": "tell me everything", "max_rows": 1}).json()
    assert (len(answer["rows"]), answer["truncated"], answer["verdict"]["status"]) == (1, True, "ran")


@pytest.mark.parametrize(
    ("question", "status", "reason"),
    [
        ("throw it away", "error", "refused"),
        ("what is its height", "error", "height"),
        ("count for ever", "timeout", ""),
    ],
)
def test_sql_that_fails_is_answered_with_its_verdict(
    url: str, database: Path, question: str, status: str, reason: str
) -> None:
    before = database.read_bytes()
    answer = post(url, "/v1/sql", {"database": "same", "question": question}).json()
    assert answer["sql"] == LESSONS[question]
    assert answer["verdict"]["status"] == status and reason in answer["verdict"]["reason"]
    assert (answer["columns"], answer["rows"], answer["truncated"]) == ([], [], False)
    assert database.read_bytes() == before


def test_several_candidates_vote_and_the_same_question_gets_the_same_answer(url: str) -> None:
    body = {"database": "people", "question": "who has the highest score", "n": 8}
    first, second = (post(url, "/v1/sql", body).json() for _ in range(2))
    assert sum(candidate["votes"] for candidate in first["candidates"]) == 8
    assert first["candidates"][0]["sql"] == first["sql"]
    assert (first["sql"], first["rows"]) == (second["sql"], [["Bob"]])


def test_concurrent_questions_are_all_answered(url: str) -> None:
    def one(number: int) -> str:
        body = {"database": "people", "question": f"tell me everything {number}"}
        return str(post(url, "/v1/sql", body).json()["verdict"]["status"])

    with ThreadPoolExecutor(32) as threads:
        statuses = list(threads.map(one, range(64)))
    assert len(statuses) == 64 and set(statuses) <= {"ran", "error", "timeout", "truncated"}


@pytest.mark.long
def test_the_page_works_on_the_application(url: str) -> None:
    with chromium() as browser:
        look(browser)
        reader = Reader(browser, url)
        reader.until(lambda: reader.one("#key-dialog").is_displayed(), "the dialog")
        reader.one("#key").send_keys(KEY, reader.enter)
        reader.sees("score", "#schema")
        reader.log()  # the browser's own line about the first 401
        reader.ask("tell me everything")
        assert reader.text("pre.sql") == LESSONS["tell me everything"]
        assert [row[1:3] for row in reader.rows()] == [["Ada", "3.5"], ["Bob", "inf"]]
        reader.press("Query plan", "[role=tab]")
        reader.sees("SCAN person", ".plan")
        reader.ask("throw it away")
        assert "Refused" in reader.text(".verdict")
        reader.ask("who has the highest score", n=8)
        assert reader.rows() == [["Bob"]]
        assert reader.log() == []


def test_the_openai_client_works_unchanged(url: str) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny", "tiny@people", "tiny@same"]
    assert client.models.retrieve("tiny@people").owned_by == "spftsql"
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "tell me everything"}]
    sql = client.chat.completions.create(model="tiny@people", messages=messages)
    raw = client.chat.completions.create(model="tiny", messages=messages, n=2, max_tokens=5, temperature=1, seed=3)
    assert sql.choices[0].message.role == "assistant" and sql.model == "tiny@people"
    answer = ask(url, "people", "tell me everything", key=KEY)
    assert sql.choices[0].message.content == answer["sql"]
    assert len(raw.choices) == 2 and raw.usage is not None and raw.usage.completion_tokens <= 10
    assert raw.choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.NotFoundError, match="no model other"):
        client.chat.completions.create(model="other", messages=messages)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}],
)
def test_without_the_key_nothing_is_told(url: str, headers: dict[str, str]) -> None:
    for response in (
        post(url, "/v1/sql", {"database": "people", "question": "q"}, headers),
        post(url, "/v1/sql", "not even valid", headers),
        httpx.get(f"{url}/v1/models", headers=headers),
        httpx.get(f"{url}/v1/databases", headers=headers),
        httpx.get(f"{url}/openapi.json", headers=headers),
    ):
        assert error_of(response, 401)["code"] == "invalid_api_key"
        assert "people" not in response.text
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok", "model": "tiny"}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"database": "other", "question": "q"}, 404, "database"),
        ({"database": "people"}, 400, "question"),
        ({"database": "people", "question": "  "}, 400, "question"),
        ({"database": "people", "question": "q", "n": 17}, 400, "n"),
        ({"database": "people", "question": "q", "max_rows": 0}, 400, "max_rows"),
        ({"database": "people", "question": "q", "abstain_below": 1.5}, 400, "abstain_below"),
        ({"database": "people", "question": "q", "schema": "x"}, 400, "schema"),
        ({"database": "people", "question": "tell me everything " * 200}, 400, None),
        ([], 400, None),
    ],
)
def test_a_bad_request_is_refused_in_openais_shape(url: str, body: Any, status: int, param: str | None) -> None:
    error = error_of(post(url, "/v1/sql", body), status)
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_what_is_no_request_is_refused_in_openais_shape(url: str) -> None:
    bad_json = httpx.post(f"{url}/v1/sql", content=b"{", headers={**HEADERS, "Content-Type": "application/json"})
    assert error_of(bad_json, 400)["code"] == "invalid_json"
    error_of(httpx.get(f"{url}/v1/nowhere", headers=HEADERS), 404)
    error_of(httpx.get(f"{url}/v1/sql", headers=HEADERS), 405)


def test_databases_are_listed_with_their_tables(url: str) -> None:
    listed = httpx.get(f"{url}/v1/databases", headers=HEADERS).json()["data"]
    assert [entry["id"] for entry in listed] == ["people", "same"]
    assert listed[0]["tables"] == [{"name": "person", "columns": ["id", "name", "score", "photo", "note"]}]


def test_ask_says_what_is_wrong_in_one_line(url: str) -> None:
    with pytest.raises(UserError, match="key is needed"):
        ask(url, "people", "q", key="wrong")
    with pytest.raises(UserError, match="name one of the endpoint's databases"):
        ask(url, None, "q", key=KEY)
    with pytest.raises(UserError, match="no endpoint answers at"):
        ask(f"http://127.0.0.1:{free_port()}", "people", "q")
    with Console(file=open(os.devnull, "w")) as console:
        console.print(render_answer(ask(url, "people", "tell me everything", key=KEY)))


def test_a_model_that_this_machine_has_no_room_for_is_refused_and_the_one_that_is_served_stays(
    url: str, model: Path, database: Path
) -> None:
    config = resolve("demo", ["generation.engine=transformers", "serve.port=0", "generation.resources={quantum: 1}"])
    with pytest.raises(UserError, match=r"this machine cannot serve it: .* 1 quantum, and no node has any"):
        start_endpoint(model, "large", {"people": str(database)}, config)
    assert post(url, "/v1/sql", {"database": "people", "question": "tell me everything"}).json()["model"] == "tiny"


def test_agents_use_the_tools_with_the_sdks_own_client(url: str) -> None:
    import asyncio

    import httpx2
    from mcp.client import Client
    from mcp.client.streamable_http import streamable_http_client

    async def session() -> None:
        async with (
            httpx2.AsyncClient(headers=HEADERS, timeout=60) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
        ):
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == {"list_databases", "describe_database", "query", "ask"}
            assert set(tools["ask"].input_schema["required"]) == {"database", "question"}
            listed = (await client.call_tool("list_databases", {})).structured_content
            assert listed["result"][0] == {"database": "people", "dialect": "sqlite", "tables": ["person"]}
            described = await client.call_tool("describe_database", {"database": "people"})
            assert described.content[0].text.startswith("table person: id (number; primary key)")
            asked = await client.call_tool("ask", {"database": "people", "question": "who has the highest score"})
            assert asked.structured_content["rows"] == [["Bob"]]
            queried = await client.call_tool("query", {"database": "people", "sql": "SELECT count(*) FROM person"})
            assert queried.structured_content["rows"] == [[2]]
            refused = await client.call_tool("query", {"database": "people", "sql": "DROP TABLE person"})
            assert refused.structured_content["verdict"]["reason"].startswith("refused")
            unknown = await client.call_tool("ask", {"database": "nowhere", "question": "q"})
            assert unknown.is_error and "no database nowhere" in unknown.content[0].text

    asyncio.run(session())
    tool = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accepted = {"Accept": "application/json, text/event-stream"}
    assert post(url, "/mcp", tool, accepted).status_code == 401
    assert post(url, "/mcp", tool, {**HEADERS, **accepted, "Origin": "http://evil.example"}).status_code == 403
    assert post(url, "/mcp", tool, {**HEADERS, **accepted, "Host": "evil.example"}).status_code == 421


def test_another_model_takes_over_without_a_request_lost(url: str, model: Path, database: Path) -> None:
    stop = threading.Event()

    def one_after_another() -> list[int]:
        statuses = []
        while not stop.is_set():
            body = {"database": "people", "question": "who has the highest score"}
            statuses.append(post(url, "/v1/sql", body).status_code)
        return statuses

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(one_after_another) for _ in range(2)]
        again = start_endpoint(model, "next", {"people": str(database)}, configuration())
        stop.set()
        statuses = [status for each in asking for status in each.result()]
    assert again == url and len(statuses) > 2 and set(statuses) == {200}
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok", "model": "next"}


def test_another_engine_takes_over_under_the_same_address(url: str, model: Path, database: Path) -> None:
    assert start_endpoint(model, "tiny", {"people": str(database)}, configuration("vllm")) == url
    for question in ("who has the highest score", "tell me everything"):
        answer = ask(url, "people", question, key=KEY)
        assert (answer["sql"], answer["verdict"]["status"]) == (LESSONS[question], "ran")
    assert [entry["id"] for entry in httpx.get(f"{url}/v1/databases", headers=HEADERS).json()["data"]] == ["people"]
    voted = ask(url, "people", "who has the highest score", key=KEY, n=8)
    assert voted["rows"] == [["Bob"]] and sum(c["votes"] for c in voted["candidates"]) == 8


def test_the_openai_client_streams(url: str) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    messages: Any = [{"role": "user", "content": "who has the highest score"}]
    whole = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len(chunks) > 5 and chunks[-1].usage == whole.usage
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    sql = client.chat.completions.create(model="tiny@people", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in sql) == LESSONS["who has the highest score"]
    written = client.completions.create(model="tiny@people", prompt="tell me nothing")
    assert written.choices[0].text == LESSONS["tell me nothing"]
    stopped = client.completions.create(model="tiny@people", prompt="tell me everything", stop=["FROM"])
    assert stopped.choices[0].text == "SELECT *" and stopped.choices[0].finish_reason == "stop"
    several = client.completions.create(
        model="tiny", prompt="SELECT", n=3, max_tokens=4, temperature=1.0, top_p=0.9, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert several.usage is not None and several.usage.completion_tokens == 12


def test_clients_that_go_away_end_their_generations(url: str) -> None:
    from ray import serve

    handle = serve.get_deployment_handle("model", "endpoint")

    def ongoing() -> dict[str, int]:
        numbers: dict[str, int] = handle.ongoing.remote().result(timeout_s=60)
        return numbers

    # Together so much that none can be finished when the last of them has begun.
    body = {"model": "tiny", "prompt": "SELECT", "max_tokens": 240, "n": 16, "ignore_eos": True, "stream": True}
    body["temperature"] = 1.0
    with contextlib.ExitStack() as streams:
        for _ in range(12):
            stream = httpx.stream("POST", f"{url}/v1/completions", json=body, headers=HEADERS, timeout=60)
            next(streams.enter_context(stream).iter_lines())
    deadline = time.monotonic() + 60
    while ongoing()["sequences"]:
        assert time.monotonic() < deadline
    assert ongoing()["given_up"] >= 1
    page = httpx.get(f"{url}/metrics", headers=HEADERS).text
    series = next(line for line in page.splitlines() if line.startswith("spftsql_generations_ongoing{"))
    assert float(series.split()[-1]) == 0


def test_a_client_that_does_not_wait_for_its_answer_ends_its_generation(url: str) -> None:
    from ray import serve

    handle = serve.get_deployment_handle("model", "endpoint")

    def ongoing() -> dict[str, int]:
        numbers: dict[str, int] = handle.ongoing.remote().result(timeout_s=60)
        return numbers

    before = ongoing()["given_up"]
    # Together so much that none can be finished when the clients have had enough.
    body = {"model": "tiny", "prompt": "SELECT", "max_tokens": 240, "n": 16, "ignore_eos": True, "temperature": 1.0}

    def impatient(_: int) -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=body, headers=HEADERS, timeout=httpx.Timeout(60, read=0.3))

    with ThreadPoolExecutor(12) as clients:
        list(clients.map(impatient, range(12)))
    deadline = time.monotonic() + 60
    while ongoing()["sequences"]:
        assert time.monotonic() < deadline
    assert ongoing()["given_up"] > before


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_serve_refuses_before_it_starts_anything(model: Path, database: Path, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from spftsql.recipes import resolve
from spftsql.serving.endpoint import serve_forever
from spftsql.errors import UserError
from spftsql.serving.plan import ServingPlan
from spftsql.prompts import PromptBuilder
model, database, host, port = sys.argv[1:]
config = resolve("demo", ["generation.engine=transformers", f"serve.port={port}", f"serve.host={host}"])
try:
    serve_forever(ServingPlan(Path(model), "tiny", {"people": database}, config))
except UserError as error:
    import ray
    print(error, ray.is_initialized())
"""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = [
            ((model, database, "127.0.0.1", port), f"cannot listen on 127.0.0.1:{port}"),
            ((model, database, "0.0.0.0", 0), "without keys (serve.keys, or one in SPFTSQL_API_KEY)"),
            ((model, tmp_path / "none.sqlite", "127.0.0.1", 0), "none.sqlite does not exist"),
            ((tmp_path, database, "127.0.0.1", 0), "is not a model directory"),
        ]
        environment = {name: value for name, value in os.environ.items() if name != "SPFTSQL_API_KEY"}
        for arguments, message in cases:
            command = [sys.executable, "-c", code, *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
            assert message in done.stdout and done.stdout.endswith(" False\n"), (done.stdout, done.stderr[-2000:])
