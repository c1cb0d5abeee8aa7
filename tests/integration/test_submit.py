"""Submitting jobs to a real cluster of the test's own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spftsql.errors import UserError
from spftsql.submission import connect, follow_job, submit, submit_module
from tests import loops

pytestmark = pytest.mark.integration


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A head node in processes of its own; `--block` makes one process of it that takes the others with it."""
    folder = Path(tempfile.mkdtemp(prefix="spft-"))  # short: Ray's socket paths have at most 107 characters
    ports = dict(
        zip(
            ("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port", "ray-client-server-port"),
            free_ports(5),
            strict=True,
        )
    )
    ray = Path(sys.executable).with_name("ray")
    command = [ray, "start", "--head", "--block", "--num-cpus=2", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            [*command, *(f"--{name}={port}" for name, port in ports.items())],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                connect(address)
                break
            except UserError as error:
                if "token" in str(error) or time.monotonic() > deadline or head.poll() is not None:
                    pytest.fail(f"the cluster did not start ({error}):\n{(folder / 'head.log').read_text()[-3000:]}")
                time.sleep(1)
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_job_runs_on_the_cluster_and_its_output_and_exit_code_come_back(
    cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(cluster)
    job = submit_module(client, "jobs.doctor", name="doctor", environment={}, python=sys.executable)
    taken_up = submit_module(client, "jobs.doctor", name="doctor", environment={}, python=sys.executable)
    assert job == taken_up == "doctor"
    assert follow_job(client, job) == 0
    output = capsys.readouterr().out
    assert "1 nodes, Ray" in output and "torch" in output
    assert submit_module(client, "jobs.doctor", name="doctor", environment={}, python=sys.executable) == "doctor-2"
    with pytest.raises(UserError, match="choose another id"):
        submit_module(client, "jobs.doctor", name="doctor", environment={}, python=sys.executable, again=False)


def test_a_failing_job_gives_its_exit_code(cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"run_dir={tmp_path}", f"data.root={tmp_path / 'missing'}"]
    assert submit("geoquery", overrides, cluster, follow=True) == 2
    assert str(tmp_path / "missing") in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_whole_loop_runs_as_a_job_on_two_cpus_and_a_second_job_resumes_it(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"{key}={value}" for key, value in {**loops.SMALL, "run_dir": str(tmp_path)}.items()]
    assert submit("demo", [*overrides, "training.workers=2"], cluster, follow=True) == 0
    assert "SPFT-SQL" in capsys.readouterr().out
    built = [event["name"] for event in loops.events(tmp_path) if event.get("outcome") == "built"]
    assert submit("demo", [*overrides, "training.workers=2"], cluster, follow=True) == 0
    assert [event["name"] for event in loops.events(tmp_path) if event.get("outcome") == "built"] == built


def test_an_address_where_no_ray_answers_is_one_clear_line() -> None:
    (port,) = free_ports(1)
    begin = time.monotonic()
    with pytest.raises(UserError, match=f"cannot be reached at http://127.0.0.1:{port}"):
        submit("demo", [], f"127.0.0.1:{port}", follow=False)
    with pytest.raises(UserError, match="http://HOST:8265"):
        submit("demo", [], "ray://somewhere:10001", follow=False)
    assert time.monotonic() - begin < 10
