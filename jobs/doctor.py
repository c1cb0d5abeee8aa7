"""Diagnoses the cluster from within: what is installed where jobs run, the nodes and what they offer.

`ray job submit --working-dir . -- python -m jobs.doctor`. Exit code 1 when something that spftsql needs is missing.
"""

from __future__ import annotations

import sys

import ray
from rich.console import Console
from rich.table import Table

from spftsql.doctor import Check, diagnose, failed, render


def main() -> int:
    """Prints one table per node and one of the cluster; returns the exit code."""
    ray.init(address="auto", log_to_driver=False)
    console = Console(width=120)
    look = ray.remote(num_cpus=0)(diagnose)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    findings: list[list[Check]] = ray.get(
        [look.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote() for node in nodes]
    )
    cluster = Table(title=f"{len(nodes)} nodes, Ray {ray.__version__}")
    for column in ("node", "CPU", "GPU", "memory"):
        cluster.add_column(column)
    for node in nodes:
        offers = node["Resources"]
        memory = f"{offers.get('memory', 0) / 2**30:.0f} GiB"
        cluster.add_row(node["NodeManagerAddress"], str(offers.get("CPU", 0)), str(offers.get("GPU", 0)), memory)
    console.print(cluster)
    for node, checks in zip(nodes, findings, strict=True):
        console.print(node["NodeManagerAddress"], render(checks))
    return int(any(failed(checks) for checks in findings))


if __name__ == "__main__":
    sys.exit(main())
