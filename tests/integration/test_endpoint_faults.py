"""The endpoint under load while replicas of the model and of the verifier are killed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from spftsql.recipes import resolve
from spftsql.serving.endpoint import start_endpoint
from spftsql.serving.keys import create_key
from tests.serving import learnt_model

pytestmark = pytest.mark.integration
LESSONS = {"who is there": "SELECT name FROM person ORDER BY id", "how many are there": "SELECT count(*) FROM person"}
NAMES = {"north": ["Nora", "Nils", "Nell"], "south": ["Saul", "Sara"]}
CONCURRENCY = 64


@pytest.fixture(scope="module")
def endpoint(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    from ray import serve

    folder = tmp_path_factory.mktemp("faults")
    settings = {
        "generation.engine": "transformers",
        "serve.port": 0,
        "serve.replicas": 2,
        "serve.request_seconds": 60,
        "serve.keys": folder / "keys.json",
        "verification.workers": 2,
        "cluster.cpus": 8,
    }
    config = resolve("demo", [f"{name}={value}" for name, value in settings.items()])
    databases = {}
    for name, people in NAMES.items():
        databases[name] = str(folder / f"{name}.sqlite")
        with sqlite3.connect(databases[name]) as connection:
            connection.execute("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT)")
            connection.executemany("INSERT INTO person (name) VALUES (?)", [(person,) for person in people])
    keys = {name: create_key(folder / "keys.json", name, databases=[name])[0] for name in NAMES}
    model = learnt_model(folder / "model", LESSONS, config.prompt)
    try:
        yield start_endpoint(model, "tiny", databases, config), keys
    finally:
        serve.shutdown()


def kill_now_and_then(stop: threading.Event, killed: Counter[str], pause_s: float, most: int) -> None:
    """Kills a replica of the model and one of the verifier in turn, at times that nobody knows before."""
    from ray import serve

    from spftsql.verification.pool import pool_stats

    chance = random.Random(7)
    model = serve.get_deployment_handle("model", "endpoint")
    while killed.total() < most and not stop.wait(pause_s * chance.uniform(0.5, 1.5)):
        part = "verifier" if killed["model"] > killed["verifier"] else "model"
        try:
            if part == "model":
                pid = int(model.ongoing.remote().result(timeout_s=5)["pid"])
            else:
                pid = int(chance.choice(pool_stats(5.0))["pid"])
            os.kill(pid, signal.SIGKILL)
            killed[part] += 1
        except Exception:
            continue  # the replica that was asked is itself on its way out


def load(
    endpoint: tuple[str, dict[str, str]], count: int, pause_s: float, kills: int
) -> tuple[Counter[int], Counter[str]]:
    url, keys = endpoint
    clients = [httpx.Client(timeout=180) for _ in range(CONCURRENCY)]

    def one(number: int) -> int:
        name, other = ("north", "south") if number % 2 else ("south", "north")
        question = list(LESSONS)[number % 3 % 2]
        wrong, unknown = number % 10 == 9, number % 10 == 4  # with the other database's key, with none that there is
        key = keys[other if wrong else name][: -1 if unknown else None]
        response = clients[number % CONCURRENCY].post(
            f"{url}/v1/sql",
            json={"database": name, "question": question, "n": 1 + number % 2},
            headers={"Authorization": f"Bearer {key}"},
        )
        text = response.text
        assert not any(person in text for person in NAMES[other]), text
        if unknown:
            assert response.status_code == 401 and not any(person in text for person in NAMES[name]), text
        elif wrong:
            assert response.status_code == 404 and not any(person in text for person in NAMES[name]), text
        elif response.status_code == 200:
            answer = response.json()
            assert answer["verdict"]["status"] == "ran", text
            expected = [[len(NAMES[name])]] if "count" in answer["sql"] else [[person] for person in NAMES[name]]
            assert answer["rows"] == expected
        else:
            assert response.status_code in (500, 503, 504) and int(response.headers["retry-after"]) > 0, text
            assert response.json()["error"]["type"] == "server_error"
        return response.status_code

    stop, killed = threading.Event(), Counter[str]()
    killer = threading.Thread(target=kill_now_and_then, args=(stop, killed, pause_s, kills))
    killer.start()
    try:
        with ThreadPoolExecutor(CONCURRENCY) as threads:
            statuses = Counter(threads.map(one, range(count)))
    finally:
        stop.set()
        killer.join()
    return statuses, killed


def check(endpoint: tuple[str, dict[str, str]], count: int, pause_s: float, kills: int, least: int) -> None:
    statuses, killed = load(endpoint, count, pause_s, kills)
    assert sum(statuses.values()) == count and statuses[404] == statuses[401] == count // 10
    assert killed["model"] >= least and killed["verifier"] >= least, killed
    print(f"{dict(statuses)}, killed {dict(killed)}")
    assert statuses[200] > count / 2, statuses
    deadline = time.monotonic() + 120
    url, keys = endpoint
    while True:  # and it is well again
        body = {"database": "north", "question": "how many are there"}
        response = httpx.post(
            f"{url}/v1/sql", json=body, headers={"Authorization": f"Bearer {keys['north']}"}, timeout=120
        )
        if response.status_code == 200:
            break
        assert time.monotonic() < deadline, response.text
    assert response.json()["rows"] == [[3]]


def test_requests_are_answered_while_replicas_die(endpoint: tuple[str, dict[str, str]]) -> None:
    check(endpoint, 500, 1.0, kills=2, least=1)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_requests_are_answered_while_replicas_die(endpoint: tuple[str, dict[str, str]]) -> None:
    check(endpoint, 10_000, 8.0, kills=100, least=3)
