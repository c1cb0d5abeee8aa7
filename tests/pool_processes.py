"""The processes of the verifier pool as the kernel sees them, and rows that keep them busy."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from pathlib import Path

import pytest

from spftsql.records import VerificationRequest

# About 20 ms each, so that a stage still works when something happens to it.
COUNT = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 60000) SELECT count(*) + {} FROM n, t"


def counts(rows: int) -> list[VerificationRequest]:
    """Slow statements, every third of which is not what its gold says; new ones each time, so that none is kept."""
    new = f"{uuid.uuid4().int % 10**9} * 0"
    return [
        VerificationRequest(
            str(i), ("shop", "zoo")[i % 2], COUNT.format(f"{i} + {new}"), f"SELECT {60_000 + i + i % 3 // 2}", "strict"
        )
        for i in range(rows)
    ]


def wanted(rows: int) -> list[str]:
    return ["different" if i % 3 == 2 else "equal" for i in range(rows)]


def await_work() -> None:
    """Returns when a worker's child, old or new, is in the midst of rows."""
    before = work_so_far()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if any(seconds > before.get(child, 0.0) + 0.3 for child, seconds in work_so_far().items()):
            return
        time.sleep(0.05)
    pytest.fail("no worker has begun")


def work_so_far() -> dict[int, float]:
    """The CPU seconds of every sandbox child."""
    seconds = {}
    for worker in worker_processes():
        for child in sandbox_children(worker):
            with contextlib.suppress(OSError):
                seconds[child] = cpu_seconds(child)
    return seconds


def worker_processes() -> set[int]:
    """The processes of the replicas in this process's own Ray session."""
    return session_processes(b"ServeReplica:verifier")


def session_processes(name: bytes) -> set[int]:
    """The actors of this process's own Ray session (driver -> raylet -> actor) whose title has `name` in it."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if name in (entry / "cmdline").read_bytes():
                raylet = parent_of(int(entry.name))
                if parent_of(raylet) == os.getpid():
                    found.add(int(entry.name))
        except OSError:
            continue
    return found


def parent_of(pid: int) -> int:
    return int(stat(pid)[1])


def cpu_seconds(pid: int) -> float:
    return (int(stat(pid)[11]) + int(stat(pid)[12])) / os.sysconf("SC_CLK_TCK")


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: the state first."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def sandbox_children(worker: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):  # one that is just gone
        for task in Path(f"/proc/{worker}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found
