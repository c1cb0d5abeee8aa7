"""Kills processes of a loop while it works: every so many seconds one, of kinds and in an order that a seed gives."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests import loops

Kind = Literal["child", "actor", "worker", "raylet", "driver"]
Finder = Callable[[int], list[int]]

_ACTORS = (b"ServeReplica:verifier", b"MapWorker", b"EngineActor")
_KEPT = (b"ServeController", b"ProxyActor", b"TrainController")  # their deaths have tests of their own


def title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(root: int) -> list[int]:
    """The processes below `root`, its own children first."""
    found: list[int] = []
    queue = [root]
    while queue:
        pid = queue.pop(0)
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:
            continue
        found += children
        queue += children
    return found


def _children(root: int) -> list[int]:
    return [pid for pid in descendants(root) if b"spftsql.sandbox.child" in title(pid)]


def _actors(root: int) -> list[int]:
    return [pid for pid in descendants(root) if title(pid).startswith(b"ray::") and _has(pid, _ACTORS)]


def _workers(root: int) -> list[int]:
    others = (*_ACTORS, *_KEPT)
    return [pid for pid in descendants(root) if title(pid).startswith(b"ray::") and not _has(pid, others)]


def _raylets(root: int) -> list[int]:
    return [pid for pid in descendants(root) if title(pid).split(b"\0")[0].endswith(b"/raylet")]


def _has(pid: int, names: Sequence[bytes]) -> bool:
    return any(name in title(pid) for name in names)


FINDERS: Mapping[Kind, Finder] = {
    "child": _children,
    "actor": _actors,
    "worker": _workers,
    "raylet": _raylets,
    "driver": lambda root: [root],
}


@dataclass
class Killer:
    """Kills one process every `interval_s` seconds, within `with`: of those of `kinds` that it has killed least.

    `seed` decides between kinds that were killed as often, and which of the processes that are there is taken. A kind
    of which nothing is there is passed over. `killed` counts by kind, and goes on from what it is given.
    """

    root: int
    kinds: Sequence[Kind]
    interval_s: float
    seed: int
    finders: Mapping[Kind, Finder] = field(default_factory=lambda: FINDERS)
    killed: dict[Kind, int] = field(default_factory=dict)

    def __enter__(self) -> Killer:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def kill_one(self, chance: random.Random) -> Kind | None:
        """Kills one process; None when there is nothing to kill."""
        for kind in sorted(self.kinds, key=lambda kind: (self.killed.get(kind, 0), chance.random())):
            there = sorted(self.finders[kind](self.root))
            if there:
                try:
                    os.kill(chance.choice(there), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                self.killed[kind] = self.killed.get(kind, 0) + 1
                return kind
        return None

    def _work(self) -> None:
        chance = random.Random(self.seed)
        while not self._stop.wait(self.interval_s):
            self.kill_one(chance)


def loop_under_fire(
    run_dir: Path,
    settings: Mapping[str, str],
    log: Path,
    *,
    kinds: Sequence[Kind],
    interval_s: float,
    seed: int,
    kills: int,
    timeout_s: float,
) -> tuple[dict[str, Any], dict[Kind, int]]:
    """Runs the small loop, under the killer until it has killed `kills` processes, and starts it again when it ends.

    Returns `result.json` and how many of each kind were killed. Its driver counts as one of them.
    """
    deadline = time.monotonic() + timeout_s
    killed: dict[Kind, int] = {}
    starts = 0
    while sum(killed.values()) < kills and not (run_dir / "demo" / "result.json").exists():
        assert time.monotonic() < deadline, f"not finished after {timeout_s} s: {killed}"
        process = loops.start(run_dir, settings, log)
        starts += 1
        try:
            with Killer(process.pid, kinds, interval_s, seed + starts, killed=killed):
                while process.poll() is None and sum(killed.values()) < kills:
                    time.sleep(0.2)
        finally:
            done = sum(killed.values()) >= kills
            if process.poll() is None and done:
                _await(process, deadline)
            _sweep(process)
    return loops.finish(run_dir, settings, log, max(deadline - time.monotonic(), 60)), killed


def _await(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(max(deadline - time.monotonic(), 1))
    except subprocess.TimeoutExpired:
        return


def _sweep(process: subprocess.Popen[bytes]) -> None:
    """What a killed driver has left of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
