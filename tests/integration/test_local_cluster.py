"""Several Ray nodes on this machine: declared resources, work on all of them, nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from spftsql.cluster import command as cluster_command
from spftsql.cluster.local import find_cluster, start_cluster
from spftsql.errors import Fault, UserError
from spftsql.submitting.following import follow_job
from spftsql.submitting.server import connect

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

# A task on each node.
PROGRAM = """
import sys
from spftsql.recipes import resolve
from spftsql.cluster.session import ensure_session
ensure_session(resolve("demo", [f"cluster.address={sys.argv[1]}"]))
import ray
where = ray.remote(num_cpus=0, resources={"verification": 2})(lambda: ray.get_runtime_context().get_node_id())
nodes = [node for node in ray.nodes() if node["Alive"]]
places = ray.get([where.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote() for node in nodes])
assert sorted(places) == sorted(node["NodeID"] for node in nodes)
print(len(places), ray.cluster_resources()["CPU"], ray.cluster_resources()["verification"])
"""

# A job that has the other node fetch the job's code as well, and then looks for its own folder.
JOB = """
import os
import ray
ray.init(address="auto", log_to_driver=False)
where = ray.remote(num_cpus=0)(lambda: ray.get_runtime_context().get_node_id())
nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
places = ray.get([where.options(label_selector={"ray.io/node-id": node}).remote() for node in nodes])
assert len(places) == 2 and sorted(places) == sorted(nodes)
print("found", os.listdir(os.getcwd()))
"""


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPFTSQL_CACHE", str(tmp_path))


def processes_of(folder: str) -> list[str]:
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
    return [line.decode(errors="replace") for line in lines if folder.encode() in line]


@pytest.mark.long
def test_two_nodes_are_up_do_work_and_go(own_cache: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=200)
    with console.capture() as said:
        cluster_command.cluster_up(True, 2, 3, {"verification": 4}, console)
    cluster = find_cluster()
    assert cluster is not None
    try:
        assert said.get().count("verification") == 2 and cluster.dashboard in said.get()
        with pytest.raises(UserError, match="is up at"):
            start_cluster(1, 1, {})
        command = [sys.executable, "-c", PROGRAM, cluster.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.stdout.split() == ["2", "6.0", "8.0"], done.stderr
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "job.py").write_text(JOB)
        client = connect(cluster.dashboard)
        job = client.submit_job(
            entrypoint=f"{sys.executable} job.py", runtime_env={"working_dir": str(tmp_path / "code")}
        )
        assert follow_job(client, job) == 0
        assert "found ['job.py']" in capsys.readouterr().out
        with console.capture() as said:
            cluster_command.cluster_status(console)
        assert re.search(r"2 of 2 nodes run", said.get())
    finally:
        with console.capture() as said:
            cluster_command.cluster_down(console)
    assert "is down" in said.get()
    assert find_cluster() is None and processes_of(cluster.folder) == [] and not Path(cluster.folder).exists()
    with pytest.raises(UserError, match="no local cluster"):
        cluster_command.cluster_status(console)


@pytest.mark.long
def test_a_cluster_that_cannot_start_leaves_nothing(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spftsql.cluster.local._free_ports", lambda count: [1] * count)  # a port of the system's own
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(Path(os.environ["SPFTSQL_CACHE"]) / "spft"))
    (Path(os.environ["SPFTSQL_CACHE"]) / "spft").mkdir()
    with pytest.raises(Fault, match="does not come up"):
        start_cluster(1, 1, {"bad resource": -1})
    assert find_cluster() is None and not (Path(os.environ["SPFTSQL_CACHE"]) / "spft").exists()


def test_what_is_not_local_is_not_started_here(own_cache: None) -> None:
    with pytest.raises(UserError, match="ray up"):
        cluster_command.cluster_up(False, 2, 1, {}, Console())
    with Console().capture():
        cluster_command.cluster_down(Console(quiet=True))
    stopped = find_cluster()
    assert stopped is None
