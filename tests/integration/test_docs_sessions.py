"""What README.md and docs/ have a reader do in one sitting: the demo in one process, and a cluster on one machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from spftsql.records import (
    GenerationRequest,
    Sample,
    TrainRow,
    Verdict,
    VerificationRequest,
    read_records,
    write_records,
)
from tests.documented import Command, free_port, left, listed, own_database, run, serving, started, until

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(3600)]


def test_the_session_of_the_quick_start(tmp_path: Path) -> None:
    demo, status, plan, again, serve, ask = listed("demo")
    assert "The gate serves" in run(tmp_path, demo).stdout
    stages = {path.name for path in (tmp_path / "runs" / "demo" / "stages").iterdir()}
    assert "demo: finished" in run(tmp_path, status).stdout
    assert "rates of runs/demo" in run(tmp_path, plan).stdout
    run(tmp_path, again)
    new = {path.name for path in (tmp_path / "runs" / "demo" / "stages").iterdir()} - stages
    assert {re.sub("-[0-9a-f]+$", "", name) for name in new} == {"train-play-2", "generate-play-2", "verify-play-2"}
    port = free_port()
    places = {"port": str(port), "endpoint": f"http://127.0.0.1:{port}"}
    with serving(tmp_path, serve, places):
        assert "FROM customer" in run(tmp_path, ask, places).stdout


def test_the_session_on_a_cluster_of_this_machine(tmp_path: Path, tiny_models: list[str]) -> None:
    up, status, submit, jobs, job_status, logs, stop, generate, verify, train, scale, down = listed("cluster")
    own_database(tmp_path, tiny_models[0])
    shared = tmp_path / "shared"
    (shared / "models").mkdir(parents=True)
    asked = [GenerationRequest(str(i), "sales", "how many", tiny_models[0], 2, 0.5, 8, i) for i in range(3)]
    write_records(shared / "requests.parquet", asked, GenerationRequest)
    checks = [VerificationRequest(str(i), "sales", f"SELECT {i} FROM orders", None, "strict") for i in range(3)]
    write_records(shared / "statements.parquet", checks, VerificationRequest)
    rows = [TrainRow(str(i), "sales", "how many", "SELECT 1", "SELECT 2", i % 2, "synthetic") for i in range(8)]
    write_records(shared / "rows.parquet", rows, TrainRow)
    cache = str(tmp_path / "cache")  # where the cluster is written down

    def said(command: Command, **places: str) -> str:
        done = run(tmp_path, command, {"dashboard": dashboard, "shared": str(shared), **places}, SPFTSQL_CACHE=cache)
        return done.stdout + done.stderr

    dashboard = "http://nowhere"
    try:
        (dashboard,) = re.findall(r"--address (http://\S+)", said(up))
        told = said(status)
        assert told.startswith("2 of 2 nodes run") and told.count("4 CPU + 8 verification") == 2
        followed = said(submit)
        assert "execution accuracy on the test questions" in followed
        (job,) = set(re.findall(r"Job (demo-\w+) is pending", followed))
        assert job in said(jobs) and "succeeded" in said(job_status, job=job)
        assert "execution accuracy on the test questions" in said(logs, job=job)
        _stopped_at_work(tmp_path, submit, job_status, stop, dashboard, cache)
        said(generate)
        assert len(read_records(shared / "samples", Sample)) == 6
        assert "3 ran" in said(verify)
        assert [verdict.status for verdict in read_records(shared / "verdicts", Verdict)] == ["ran"] * 3
        assert "2 steps, loss" in said(train)
        assert json.loads((shared / "models" / "a" / "spftsql.json").read_text())["mode"] == "spft-a"
        assert "3 verifiers run." in said(scale, verifiers="3")
    finally:
        assert "The local cluster is down." in said(down)
    until(lambda: not left(tmp_path), 30)


def _stopped_at_work(folder: Path, submit: Command, status: Command, stop: Command, dashboard: str, cache: str) -> None:
    """`jobs stop` of a job that somebody follows."""
    own = Command(submit.text, [*submit.more, "--submission-id=halted", "--set=name=halted"])
    places = {"dashboard": dashboard, "job": "halted"}
    with started(folder, own, places, SPFTSQL_CACHE=cache) as (process, output):
        until(lambda: "verify" in output.read_text() or process.poll() is not None, 300)
        assert "running" in run(folder, status, places).stdout, output.read_text()
        assert "Job halted is stopped" in run(folder, stop, places).stdout
        assert process.wait(120) == 1, output.read_text()
        assert "stopped" in output.read_text().splitlines()[-1]
