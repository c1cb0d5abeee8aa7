"""The process fence by itself: executions per second and core, two children, runaway statements, memory."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.measure import Ratio, in_turns, peak_mib, ratio, seconds
from spftsql.config import SandboxConfig
from spftsql.sandbox.execute import Sandbox
from tests.hostile import read_corpus

_ROWS = 2_000
_BATCH = 64
# A count, a join with groups, a point lookup and a subquery, on 2,000 rows.
SMALL = (
    "SELECT count(*) FROM orders",
    "SELECT c.city, count(*) FROM orders o JOIN customers c ON c.id = o.customer WHERE o.id < 200 GROUP BY c.city",
    "SELECT name FROM customers WHERE id = 17",
    "SELECT name FROM customers WHERE id IN (SELECT customer FROM orders WHERE total > 990)",
)
_BUSY = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 150000) SELECT count(*) FROM n"
_ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@contextmanager
def shop() -> Iterator[Path]:
    """A database of 2,000 orders of 200 customers, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="spftsql-benchmark-") as folder:
        path = Path(folder) / "shop.sqlite"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city TEXT)")
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, total INTEGER)")
        customers = [(i, f"name {i}", f"city {i % 20}") for i in range(_ROWS // 10)]
        orders = [(i, i % (_ROWS // 10), i * 7919 % 1000) for i in range(_ROWS)]
        connection.executemany("INSERT INTO customers VALUES (?, ?, ?)", customers)
        connection.executemany("INSERT INTO orders VALUES (?, ?, ?)", orders)
        connection.commit()
        connection.close()
        yield path


def executions_per_second_per_core(repeats: int) -> dict[str, float | Ratio]:
    """Small statements through the fence, parent and child on one core; beside them a bare loop on the same core."""
    allowed = os.sched_getaffinity(0)
    try:
        with shop() as path, Sandbox(SandboxConfig()) as sandbox:
            sandbox.execute(path, SMALL)
            # Only now, and only these two: the thread that starts children would keep all later ones on this core.
            for process in (0, sandbox.pid or 0):
                os.sched_setaffinity(process, {min(allowed)})
            statements = list(SMALL) * (_BATCH // len(SMALL))
            bare = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)

            def fenced() -> float:
                return _rate(lambda: sandbox.execute(path, statements))

            def unfenced() -> float:
                return _rate(lambda: [bare.execute(sql).fetchall() for sql in statements])

            rates, bare_rates = in_turns(repeats, fenced, unfenced)
            return {"per_second_per_core": max(rates), "fence_vs_none": ratio(rates, bare_rates)}
    finally:
        os.sched_setaffinity(0, allowed)


def _rate(batch: object, at_least: float = 1.0) -> float:
    assert callable(batch)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < at_least:
        batch()
        done += _BATCH
    return done / (time.perf_counter() - started)


def scaling_of_children(repeats: int) -> dict[str, Ratio]:
    """CPU-bound statements with two children over one: at most 2."""
    with shop() as path, Sandbox(SandboxConfig()) as one, Sandbox(SandboxConfig()) as other:
        for sandbox in (one, other):
            sandbox.execute(path, [_BUSY])
        statements = [_BUSY] * 60

        def alone() -> float:
            return seconds(lambda: one.execute(path, statements))

        def together() -> float:
            halves = [
                threading.Thread(target=sandbox.execute, args=(path, statements[: len(statements) // 2]))
                for sandbox in (one, other)
            ]

            def both() -> None:
                for half in halves:
                    half.start()
                for half in halves:
                    half.join()

            return seconds(both)

        return {"scaling_2": ratio(*in_turns(repeats, alone, together))}


def cost_of_runaways() -> dict[str, float]:
    """500 small statements of which 2 % never end: the time that each costs, in soft limits."""
    limits = SandboxConfig(soft_seconds=0.5, hard_seconds=1.0)
    with shop() as path, Sandbox(limits) as sandbox:
        sandbox.execute(path, SMALL)
        small = [SMALL[i % len(SMALL)] for i in range(490)]
        plain = seconds(lambda: sandbox.execute(path, small))
        mixed = [sql for i, sql in enumerate(small) for sql in ([sql, _ENDLESS] if i % 49 == 0 else [sql])]
        with_runaways = seconds(lambda: sandbox.execute(path, mixed))
        return {"runaway_in_limits": (with_runaways - plain) / (len(mixed) - len(small)) / limits.soft_seconds}


def peak_with_hostile_statements() -> dict[str, float]:
    """The largest resident memory of a child under the hostile statements, beside the cap that it was given."""
    limits = SandboxConfig(soft_seconds=0.2, hard_seconds=1.0, max_rows=1000, max_bytes=1_000_000, memory_mb=128)
    peak = 0.0
    with shop() as path, Sandbox(limits) as sandbox:
        sandbox.execute(path, ["SELECT 1"])
        for hostile in read_corpus("sqlite", path.parent):
            watched = _Peak(sandbox)
            sandbox.execute(path, [hostile.sql])
            peak = max(peak, watched.stop())
    return {"peak_worker_mib": peak, "cap_mib": float(limits.memory_mb)}


class _Peak(threading.Thread):
    """Reads the child's peak memory every few milliseconds: a child that is killed takes its own figure with it."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(daemon=True)
        self._sandbox, self._over, self._peak = sandbox, threading.Event(), 0.0
        self.start()

    def run(self) -> None:
        while True:
            pid = self._sandbox.pid
            if pid is not None:
                with suppress(OSError, ValueError):
                    self._peak = max(self._peak, peak_mib(pid))
            if self._over.wait(0.005):
                return

    def stop(self) -> float:
        """The peak seen."""
        self._over.set()
        self.join()
        return self._peak
