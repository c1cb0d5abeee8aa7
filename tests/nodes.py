"""Several Ray nodes on this machine that tests lose, add and slow down while a loop works on them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeVar

from spftsql.cluster.local import LocalCluster, add_node, start_cluster, stop_cluster
from tests import loops
from tests.killing import descendants, title

Found = TypeVar("Found")
Kind = Literal["verification", "training", "generation"]
# A stage of each kind, in the order in which the loop comes to them, and the processes that do its work.
STAGES: Mapping[Kind, str] = {
    "verification": "verify-labels",
    "training": "train-labels",
    "generation": "generate-questions-1",
}
WORKERS: Mapping[Kind, bytes] = {
    "verification": b"ray::ServeReplica:verifier",
    "training": b"RayTrainWorker",
    "generation": b"EngineActor",
}
CPUS = 6  # of a node beside the head, logical
ROOM = {"generation": 2, "training": 2, "verification": 4}
RESOURCES = {f"{kind}.resources": f"{{{kind}: 1}}" for kind in ROOM}


class Nodes:
    """A head without room for any stage, and nodes with room for all of them, each a group of processes."""

    def __init__(self, others: int) -> None:
        self.cluster: LocalCluster = start_cluster(1, 2, {})
        for _ in range(others):
            self.add()

    @property
    def settings(self) -> dict[str, str]:
        """What sends a loop here, its stages to the nodes beside the head."""
        return {**RESOURCES, "cluster.address": self.cluster.address}

    def add(self, room: Mapping[str, float] = ROOM) -> None:
        self.cluster = add_node(self.cluster, CPUS, room)

    def holding(self, kind: Kind) -> list[int]:
        """The nodes beside the head on which a stage of that kind has processes now."""
        return [
            node
            for node in self.cluster.alive()
            if node != self.cluster.pids[0] and any(WORKERS[kind] in title(pid) for pid in descendants(node))
        ]

    def lose(self, node: int) -> None:
        """Everything of a node is gone at once."""
        below = descendants(node)
        for pid in (node, *below):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(node, 0)

    def slow(self, node: int, seconds: float) -> None:
        """A node stands still for a while, and goes on."""
        group = [node, *descendants(node)]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in group:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            if number == signal.SIGSTOP:
                time.sleep(seconds)

    def end(self) -> None:
        stop_cluster(self.cluster)


@contextmanager
def nodes(others: int) -> Iterator[Nodes]:
    there = Nodes(others)
    try:
        yield there
    finally:
        there.end()


def at_work(
    process: subprocess.Popen[bytes], there: Nodes, run_dir: Path, kind: Kind, log: Path, timeout: float = 900
) -> int:
    """Waits until the loop's stage of that kind is at work on a node; returns the node."""
    stage, deadline = STAGES[kind], time.monotonic() + timeout

    def holder() -> int | None:
        started = [e for e in loops.events(run_dir) if e.get("name") == stage and e["outcome"] == "started"]
        assert not [e for e in loops.events(run_dir) if e.get("name") == stage and e["outcome"] == "built"]
        return next(iter(there.holding(kind)), None) if started else None

    return until(holder, process, deadline, f"no {stage} on a node", log)


def until(
    look: Callable[[], Found | None], process: subprocess.Popen[bytes], deadline: float, what: str, log: Path
) -> Found:
    """What `look` finds, while the loop is at work."""
    while True:
        found = look()
        if found is not None:
            return found
        assert process.poll() is None and time.monotonic() < deadline, f"{what}:\n{log.read_text()[-4000:]}"
        time.sleep(0.05)
