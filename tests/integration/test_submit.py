"""Submitting jobs to a real cluster of the test's own."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from spftsql.errors import UserError
from spftsql.records import Verdict, VerificationRequest, read_records, write_records
from spftsql.submitting.command import job_status, list_jobs, show_logs, stop_job
from spftsql.submitting.following import follow_job
from spftsql.submitting.server import connect
from spftsql.submitting.submission import submit, submit_module
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
def ports() -> dict[str, int]:
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port", "ray-client-server-port")
    return dict(zip(names, free_ports(5), strict=True))


@pytest.fixture(scope="module")
def gcs(ports: dict[str, int]) -> str:
    return f"127.0.0.1:{ports['port']}"


@pytest.fixture(scope="module")
def cluster(ports: dict[str, int]) -> Iterator[str]:
    """A head node in processes of its own; `--block` makes one process of it that takes the others with it."""
    folder = Path(tempfile.mkdtemp(prefix="spft-"))  # short: Ray's socket paths have at most 107 characters
    ray = Path(sys.executable).with_name("ray")
    command = [ray, "start", "--head", "--block", "--num-cpus=2", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            [*command, *(f"--{name}={port}" for name, port in ports.items())],
            env={**os.environ, "RAY_JOB_START_TIMEOUT_SECONDS": "90"},
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


@pytest.mark.long
def test_a_failing_job_gives_its_exit_code(cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"run_dir={tmp_path}", f"data.root={tmp_path / 'missing'}"]
    assert submit("geoquery", overrides, cluster, follow=True) == 2
    assert str(tmp_path / "missing") in capsys.readouterr().out
    (job,) = (job.submission_id for job in connect(cluster).list_jobs() if job.entrypoint.endswith("jobs.run"))
    assert show_logs(str(job), cluster, follow=True) == 2


def printing(lines: int, seconds: float) -> str:
    """The command of a job that prints numbered lines over some seconds."""
    program = (
        f"import time\nfor i in range({lines}): print(f'line {{i:04}}', flush=True); time.sleep({seconds / lines})"
    )
    return shlex.join([sys.executable, "-c", program])


class Cutting:
    """A proxy in front of a dashboard whose connections can be cut."""

    def __init__(self, address: str) -> None:
        self._target = urlsplit(address)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pipes: list[socket.socket] = []
        self.refusing = False
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        while self._pipes:
            pipe = self._pipes.pop()
            with suppress(OSError):
                pipe.shutdown(socket.SHUT_RDWR)
            pipe.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                client.close()
                continue
            server = socket.create_connection((self._target.hostname or "", self._target.port or 0))
            self._pipes += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@pytest.mark.long
def test_output_survives_lost_connections_without_a_line_lost_or_doubled(
    cluster: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spftsql.submitting.following._SILENCE_S", 5.0)
    with closing(Cutting(cluster)) as proxy:
        client = connect(proxy.address)
        job = client.submit_job(entrypoint=printing(400, 6))

        def cut_thrice() -> None:
            for _ in range(3):
                time.sleep(1.5)
                proxy.refusing = True
                proxy.cut()
                time.sleep(1)
                proxy.refusing = False

        thread = threading.Thread(target=cut_thrice)
        thread.start()
        assert follow_job(client, job) == 0
        thread.join()
    shown = capsys.readouterr()
    assert [line for line in shown.out.splitlines() if line.startswith("line")] == [f"line {i:04}" for i in range(400)]
    assert "connection is lost" in shown.err and "connection is back" in shown.err


@pytest.mark.long
def test_a_job_that_waits_says_what_it_lacks_and_can_be_stopped(
    cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(cluster)
    job = submit_module(
        client, "jobs.doctor", name="waits", environment={}, python=sys.executable, driver={"quantum": 1.0}
    )
    outcome: list[int] = []
    thread = threading.Thread(target=lambda: outcome.append(follow_job(client, job)))
    thread.start()
    try:
        deadline, told = time.monotonic() + 60, ""
        while "quantum" not in told and time.monotonic() < deadline:
            time.sleep(0.2)
            told += capsys.readouterr().err
        assert "Job waits is pending: its driver needs 1 quantum, and no node has any." in told
        assert "is to stop" in stop_job(job, cluster)
    finally:
        thread.join(200)  # until Ray gives up waiting
    assert outcome == [1]
    assert "has ended already (failed)" in stop_job(job, cluster)
    with pytest.raises(UserError, match="there is no job nothing"):
        stop_job("nothing", cluster)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(list_jobs(cluster), job_status(job, cluster))
    assert captured.get().count("waits") >= 2 and "failed" in captured.get()


def test_a_recipe_that_the_cluster_can_never_run_is_refused_with_the_missing_resource(cluster: str) -> None:
    before = len(connect(cluster).list_jobs())
    with pytest.raises(UserError, match=r"never run it: training.workers needs 1 quantum, and no node has any"):
        submit("demo", ["training.resources={quantum: 1}"], cluster, follow=False)
    with pytest.raises(UserError, match=r"training.workers needs 3 times 1 CPU, and the nodes have room for 2"):
        submit("demo", ["training.workers=3", "training.cpus=1"], cluster, follow=False)
    with pytest.raises(UserError, match=r"verification.workers needs 4 CPU, and the largest node has 2"):
        submit("demo", ["verification.cpus=4"], cluster, follow=False)
    assert len(connect(cluster).list_jobs()) == before


@pytest.mark.long
def test_a_job_at_work_is_stopped(cluster: str) -> None:
    client = connect(cluster)
    job = client.submit_job(entrypoint=printing(10, 600))
    while client.get_job_status(job).value == "PENDING":
        time.sleep(0.5)
    assert "is stopped" in stop_job(job, cluster)


@pytest.mark.long
def test_verification_alone_runs_as_a_job(cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    statements = ["SELECT COUNT(*) FROM customer", "SELECT nothing FROM customer"]
    requests = [VerificationRequest(str(i), "shop", sql, None, "strict") for i, sql in enumerate(statements)]
    write_records(tmp_path / "requests.parquet", requests, VerificationRequest)
    arguments = ["--input", str(tmp_path / "requests.parquet"), "--output", str(tmp_path / "verdicts")]
    overrides = ["verification.workers=1", "verification.cpus=0.1"]
    assert submit("demo", overrides, cluster, follow=True, stage="verify", arguments=arguments) == 0
    assert "1 ran, 1 error" in capsys.readouterr().out
    assert {v.id: v.status for v in read_records(tmp_path / "verdicts", Verdict)} == {"0": "ran", "1": "error"}
    assert submit("demo", overrides, cluster, follow=True, stage="verify", arguments=arguments) == 2
    assert "is there already" in capsys.readouterr().out


def test_a_session_joins_a_cluster_that_wants_its_token(cluster: str, gcs: str) -> None:
    program = f"""
from spftsql.recipes import resolve
from spftsql.errors import UserError
from spftsql.cluster.session import end_session, ensure_session
try:
    ensure_session(resolve("demo", ["cluster.address={gcs}", "training.resources={{quantum: 1}}"]))
except UserError as error:
    print(error)
end_session()
ensure_session(resolve("demo", ["cluster.address={gcs}"]))
import ray
print(int(ray.cluster_resources()["CPU"]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    refusal, count = done.stdout.splitlines()
    assert "training.workers needs 1 quantum, and no node has any" in refusal
    assert count == "2", done.stderr


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
