"""A Ray cluster of several nodes on this machine: processes with declared resources, for trying and for tests.

Every node is a `ray start --block`, which takes its processes with it when it ends. What was started is written down
in the cache folder, so that another command can show it and end it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from spftsql.cache import cache_folder
from spftsql.errors import Fault, UserError

_HOST = "127.0.0.1"
_READY_S = 240.0
_END_S = 30.0
_POLL_S = 0.5


@dataclass(frozen=True)
class LocalCluster:
    """What runs: one process per node, the head first, and where it is reached."""

    address: str  # of Ray itself, for `spftsql run --address`
    dashboard: str  # for `spftsql submit --address`
    folder: str  # of the temporary folders of all nodes; every node's command line names it
    pids: tuple[int, ...]

    def alive(self) -> list[int]:
        """The processes that still run; a number that another program has by now does not count."""
        return [pid for pid in self.pids if self.folder in _command_line(pid) or _is_starting(pid)]


def start_cluster(nodes: int, cpus: int, resources: Mapping[str, float]) -> LocalCluster:
    """Starts `nodes` nodes of `cpus` logical CPUs and `resources` each; returns when all of them have joined.

    Raises `UserError` when one is up already, `Fault` when it does not come up; then nothing of it is left.
    """
    if nodes < 1:
        raise UserError("a cluster has at least 1 node")
    there = find_cluster()
    if there is not None:
        raise UserError(f"a local cluster is up at {there.dashboard}: `spftsql cluster down` ends it")
    # Short: Ray's socket paths in it have at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="spft-"))
    ports = _free_ports(3 + 2 * nodes)
    gcs, dashboard, client = ports[:3]
    ray = Path(sys.executable).with_name("ray")
    subprocess.run([ray, "get-auth-token", "--generate"], env=_environment(), capture_output=True, check=False)
    cluster = LocalCluster(f"{_HOST}:{gcs}", f"http://{_HOST}:{dashboard}", str(folder), ())
    try:
        for number in range(nodes):
            cluster = _start_node(cluster, cpus, resources, ports[3 + 2 * number : 5 + 2 * number], client)
            _await_nodes(cluster, number + 1 if number in (0, nodes - 1) else 0)
    except BaseException:
        stop_cluster(cluster)
        raise
    return cluster


def add_node(cluster: LocalCluster, cpus: int, resources: Mapping[str, float]) -> LocalCluster:
    """Starts one more node, of `cpus` logical CPUs and `resources`; returns the cluster with it when it has joined.

    Raises `Fault` when it does not join; it may then be there all the same, and goes with the cluster.
    """
    count = len(cluster.alive()) + 1
    cluster = _start_node(cluster, cpus, resources, _free_ports(2))
    _await_nodes(cluster, count, cluster.pids[-1:])
    return cluster


def _start_node(
    cluster: LocalCluster, cpus: int, resources: Mapping[str, float], ports: Sequence[int], client: int | None = None
) -> LocalCluster:
    """Starts the next node of a cluster, the first being its head, whose port for Ray's client is `client`."""
    number = len(cluster.pids)
    own = [f"--dashboard-agent-listen-port={ports[0]}", f"--metrics-export-port={ports[1]}"]
    own += [f"--num-cpus={cpus}", f"--resources={json.dumps(dict(resources))}", f"--node-ip-address={_HOST}"]
    # One for each: a node that fetches a job's code removes what it finds in the place, the job's own folder even.
    own += [f"--temp-dir={Path(cluster.folder) / str(number)}"]
    if number == 0:
        own += ["--head", f"--port={urlsplit('//' + cluster.address).port}", f"--ray-client-server-port={client}"]
        own += [f"--dashboard-port={urlsplit(cluster.dashboard).port}", f"--dashboard-host={_HOST}"]
    else:
        own += [f"--address={cluster.address}"]
    with (Path(cluster.folder) / f"node-{number}.log").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--block", *own],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    cluster = replace(cluster, pids=(*cluster.pids, process.pid))
    _state_file().write_text(json.dumps(asdict(cluster)), encoding="utf-8")
    return cluster


def _environment() -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


def find_cluster() -> LocalCluster | None:
    """The local cluster that runs, if one does."""
    try:
        told = json.loads(_state_file().read_text(encoding="utf-8"))
        cluster = LocalCluster(told["address"], told["dashboard"], told["folder"], tuple(told["pids"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cluster if cluster.alive() else None


def stop_cluster(cluster: LocalCluster) -> None:
    """Ends all nodes, the head last, and removes the cluster's files."""
    for pid in reversed(cluster.alive()):
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + _END_S
    while (left := cluster.alive()) and time.monotonic() < deadline:
        _reap(left)
        time.sleep(0.1)
    for pid in left:
        _signal(pid, signal.SIGKILL)  # with its group: a node's processes are in it
    _reap(left)
    shutil.rmtree(cluster.folder, ignore_errors=True)
    _state_file().unlink(missing_ok=True)


def node_lines(cluster: LocalCluster) -> list[str]:
    """One line for each node that has joined: its address and what it offers."""
    from spftsql.submitting.server import in_words

    shown = [
        {name: amount for name, amount in sorted(node.items()) if name not in ("memory", "object_store_memory")}
        for node in nodes_of(cluster)
    ]
    return [f"node {number}: {in_words(node)}" for number, node in enumerate(shown, 1)]


def nodes_of(cluster: LocalCluster) -> list[Mapping[str, float]]:
    """What each living node offers. Raises `UserError` or `Fault` when the dashboard does not tell."""
    from spftsql.submitting.server import connect, nodes

    return nodes(connect(cluster.dashboard))


def _await_nodes(cluster: LocalCluster, count: int, pids: Sequence[int] | None = None) -> None:
    """Returns when `count` nodes have joined; raises `Fault` with the end of a log when one (of `pids`) ends before."""
    deadline = time.monotonic() + _READY_S
    ended: list[int] = []
    joined = 0
    while joined < count:
        ended += _reap(cluster.pids if pids is None else pids)
        if ended or time.monotonic() > deadline:
            number = cluster.pids.index(ended[0]) if ended else len(cluster.pids) - 1
            log = (Path(cluster.folder) / f"node-{number}.log").read_text()
            raise Fault(f"the local cluster does not come up: {' '.join(log.split())[-400:]}")
        try:
            joined = len(nodes_of(cluster))
        except (UserError, Fault):
            joined = 0
        if joined < count:
            time.sleep(_POLL_S)


def _state_file() -> Path:
    return cache_folder("clusters") / "local.json"


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((_HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _is_starting(pid: int) -> bool:
    """Whether a process is between its start and its command line, which is empty for that moment."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _signal(pid: int, number: int) -> None:
    try:
        if number == signal.SIGKILL:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        pass


def _reap(pids: Sequence[int]) -> list[int]:
    """Takes note of the end of those that are children of this very process, and returns them."""
    ended = []
    for pid in pids:
        try:
            ended += [pid] if os.waitpid(pid, os.WNOHANG)[0] else []
        except ChildProcessError:
            continue
    return ended
