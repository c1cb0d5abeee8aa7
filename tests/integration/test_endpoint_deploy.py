"""The endpoint on a cluster by Ray's own `serve deploy`, and another model over it."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from spftsql.cluster.local import LocalCluster, start_cluster, stop_cluster
from spftsql.recipes import resolve
from spftsql.serving.endpoint import wait_ready
from spftsql.serving.keys import create_key
from tests.serving import learnt_model

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(1200)]
CONFIG = Path(__file__).parents[2] / "serve" / "config.yaml"
LESSONS = {"who is there": "SELECT name FROM person ORDER BY id"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    monkeypatch.setenv("SPFTSQL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(CONFIG.parents[1]))
    started = start_cluster(1, 8, {})
    yield started
    stop_cluster(started)


def deploy(cluster: LocalCluster, arguments: dict[str, Any], port: int, folder: Path) -> None:
    """What `serve/config.yaml` says, with other arguments, and where this machine can listen."""
    tree = yaml.safe_load(CONFIG.read_text())
    tree["http_options"] = {"host": "127.0.0.1", "port": port}
    for application in tree["applications"]:
        assert application["args"].keys() == arguments.keys()
        application["args"] = arguments
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    command = [str(Path(sys.executable).with_name("serve")), "deploy", str(file), "--address", cluster.dashboard]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ.copy(), check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_serve_deploy_starts_the_endpoint_and_replaces_its_model(cluster: LocalCluster, tmp_path: Path) -> None:
    database = tmp_path / "people.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE person (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("INSERT INTO person (name) VALUES ('Ada'), ('Bob')")
    key, _ = create_key(tmp_path / "keys.json", "tests")
    prompt = resolve("demo").prompt
    models = [learnt_model(tmp_path / name, LESSONS, prompt) for name in ("first", "second")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]

    def arguments(model: Path) -> dict[str, Any]:
        settings = {
            **{"serve.keys": str(tmp_path / "keys.json"), "model.max_length": 256, "prompt.schema_text": "none"},
            **{"serve.replicas": 2, "prompt.sql_style": prompt.sql_style, "prompt.placeholders": prompt.placeholders},
        }
        return {
            "model": str(model),
            "databases": {"people": f"sqlite:///{database}"},
            "engine": "transformers",
            "gpus": 0,
            "verifiers": 1,
            "settings": settings,
        }

    url = f"http://127.0.0.1:{port}"
    deploy(cluster, arguments(models[0]), port, tmp_path)
    wait_ready(url, 600)
    body = {"database": "people", "question": "who is there"}
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{url}/v1/sql", json=body, headers=headers, timeout=120).json()
    assert (answer["model"], answer["rows"]) == ("first", [["Ada"], ["Bob"]])
    assert httpx.post(f"{url}/v1/sql", json=body, timeout=120).status_code == 401

    stop, statuses = threading.Event(), list[int]()

    def ask() -> None:
        while not stop.is_set():
            statuses.append(httpx.post(f"{url}/v1/sql", json=body, headers=headers, timeout=300).status_code)

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    deploy(cluster, arguments(models[1]), port, tmp_path)
    deadline = time.monotonic() + 600
    while httpx.get(f"{url}/healthz", timeout=60).json()["model"] != "second":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    stop.set()
    for thread in asking:
        thread.join()
    assert len(statuses) >= 4 and set(statuses) == {200}
    answer = httpx.post(f"{url}/v1/sql", json=body, headers=headers, timeout=120).json()
    assert (answer["model"], answer["rows"]) == ("second", [["Ada"], ["Bob"]])
