"""`spftsql cluster`: a cluster on this machine, up, shown and down."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from spftsql.cluster.local import find_cluster, node_lines, start_cluster, stop_cluster
from spftsql.errors import UserError


def cluster_up(local: bool, nodes: int, cpus: int, resources: Mapping[str, float], console: Console) -> None:
    """Starts a local cluster and says how it is used. Raises `UserError` without `local`."""
    if not local:
        raise UserError("only --local clusters are started here; for others: `ray up cluster/vm/ssh.yaml`, or KubeRay")
    cluster = start_cluster(nodes, cpus, resources)
    lines = [
        f"{nodes} nodes run. `spftsql submit RECIPE --address {cluster.dashboard} --follow` sends them a run,",
        f"`spftsql run RECIPE --address {cluster.address}` runs from here, `spftsql cluster down` ends them.",
    ]
    for line in [*node_lines(cluster), *lines]:
        console.print(line, markup=False, soft_wrap=True)


def cluster_status(console: Console) -> None:
    """Shows the local cluster. Raises `UserError` when none is up."""
    cluster = find_cluster()
    if cluster is None:
        raise UserError("no local cluster is up: `spftsql cluster up --local --nodes 2` starts one")
    alive = len(cluster.alive())
    head = f"{alive} of {len(cluster.pids)} nodes run, dashboard {cluster.dashboard}, Ray {cluster.address}"
    for line in [head, *node_lines(cluster)]:
        console.print(line, markup=False, soft_wrap=True)


def cluster_down(console: Console) -> None:
    """Ends the local cluster, if one is up."""
    cluster = find_cluster()
    if cluster is None:
        console.print("No local cluster is up.")
        return
    stop_cluster(cluster)
    console.print("The local cluster is down.")
