"""The pool of workers: what Ray Serve costs over bare Ray actors, and how far waiting queries scale."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from benchmarks.measure import Ratio, in_turns, ratio
from benchmarks.verification.fence import SMALL, shop
from spftsql.config import Config, SandboxConfig
from spftsql.databases.places import Place
from spftsql.recipes import resolve
from spftsql.records import Verdict, VerificationRequest
from spftsql.sandbox.result import Execution, Granted

CURVE = (1, 2, 4, 8, 16, 32, 64)
_WORKERS = 2
_ROWS = 30_720  # for each turn; statements of 0.06 ms
_SMALL_BATCH = 64
_IN_FLIGHT = 4  # batches on their way per worker, as many as the pool's clients send
_WAIT_SECONDS = 0.25  # one query of the slow database
_WAITS_PER_BATCH = 4
_BATCHES_PER_WORKER = 16
_STEADY = (0.1, 0.8)  # of the answers: before, the router does not know all workers; after, some have nothing to do

Call = Callable[[list[VerificationRequest], int], Awaitable[Sequence[object]]]


@contextmanager
def session() -> Iterator[Config]:
    """A Ray session of this machine with a configuration for it; results of statements are not kept."""
    from spftsql.cluster.session import end_session, ensure_session

    settings = ["serve.port=0", "cluster.dashboard=true", f"verification.workers={_WORKERS}", "verification.cpus=0.01"]
    config = resolve("demo", settings)
    ensure_session(config)
    try:
        yield config
    finally:
        end_session()


def pool_over_actors(config: Config, repeats: int) -> dict[str, Ratio | float]:
    """Rows per second through the pool, over the same worker class as bare actors: the same batches, in turns.

    Batches are as large as the stage sends them while there is much to do; beside them, small ones.
    """
    import ray

    from spftsql.databases.places import sources_of
    from spftsql.verification.pool import PoolClient, PoolWorker, _request_row, start_pool, stop_pool

    with shop() as path:
        start_pool(config)
        settings = config.verification.model_dump(mode="json", exclude={"workers", "batch_size", "policy"})
        remote = ray.remote(num_cpus=0.01)(PoolWorker)
        actors = [remote.remote(settings, index) for index in range(_WORKERS)]
        limits = config.sandbox.model_dump_json()
        sources = {name: (s.addresses, s.content) for name, s in sources_of({"shop": path}).items()}

        def through_pool(size: int, round_: int) -> float:
            async def drive() -> float:
                client = PoolClient({"shop": path}, config.sandbox)
                return (await _drive(lambda batch, _: client.verify(batch), _batches(size, round_)))[-1]

            return asyncio.run(drive())

        def through_actors(size: int, round_: int) -> float:
            async def verify(batch: list[VerificationRequest], index: int) -> Sequence[object]:
                rows = [_request_row(request) for request in batch]
                answer, _ = await actors[index % _WORKERS].verify.remote(limits, sources, rows)
                return [Verdict(*row) for row in answer]

            return asyncio.run(_drive(verify, _batches(size, round_)))[-1]

        rounds = itertools.count()
        figures: dict[str, Ratio | float] = {}
        for name, size in (("pool_vs_actors", config.verification.batch_size), ("pool_vs_actors_64", _SMALL_BATCH)):
            sides = [partial(side, size) for side in (through_pool, through_actors)]
            for side in sides:  # starts the children
                side(next(rounds))
            pool, bare = in_turns(repeats, *(lambda side=side: side(next(rounds)) for side in sides))
            figures |= {name: ratio(bare, pool)}
            figures.setdefault("pool_rows_per_second", _ROWS / min(pool))
        for actor in actors:
            ray.kill(actor)
        stop_pool()
    return figures


def _batches(size: int, round_: int) -> list[list[VerificationRequest]]:
    """Rows whose statements stand nowhere else, so that no result that is kept answers for them."""
    rows = []
    for i in range(_ROWS):
        unique = 1_000_000 * (round_ + 1) + i
        sql, gold = (f"{SMALL[i % len(SMALL)]} LIMIT {number}" for number in (unique, 1_000_000_000 + unique // 8))
        rows.append(VerificationRequest(str(unique), "shop", sql, gold, "bird"))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


async def _drive(call: Call, batches: Sequence[list[VerificationRequest]], workers: int = _WORKERS) -> list[float]:
    """The second of each answer but the first, in order, with a bounded number of batches on their way.

    The first, before the clock starts, is for what a caller does once.
    """
    slots = asyncio.Semaphore(_IN_FLIGHT * workers)
    answered: list[float] = []

    async def one(index: int, batch: list[VerificationRequest]) -> None:
        async with slots:
            answer = await call(batch, index)
        assert len(answer) == len(batch) and None not in answer
        answered.append(time.perf_counter() - started)

    await call(batches[0], 0)
    started = time.perf_counter()
    await asyncio.gather(*(one(index, batch) for index, batch in enumerate(batches[1:])))
    return answered


class SlowDatabase:
    """Executes nothing: waits, as for a database far away. A stand-in for `Sandbox`, for the curve of workers."""

    def __init__(self, config: SandboxConfig) -> None:
        """Takes what a `Sandbox` takes; like it, does one batch at a time."""
        self._lock = threading.Lock()

    def execute(
        self, database: Place, statements: Sequence[str], max_rows: int | None = None, granted: Granted | None = None
    ) -> list[Execution]:
        """One row for every statement, after a quarter of a second each."""
        with self._lock:
            time.sleep(_WAIT_SECONDS * len(statements))
        return [Execution("ran", "", ("n",), [(1,)], _WAIT_SECONDS * 1000, "slow") for _ in statements]

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class Point:
    """One size of the pool: seconds until it had that size, its throughput over what waiting allows, its memory."""

    HEADER: ClassVar = ("workers", "seconds to grow", "queries/s", "efficiency", "memory of a worker, MiB")

    workers: int
    grown_seconds: float
    per_second: float
    efficiency: float
    worker_mib: float

    def row(self) -> tuple[str, ...]:
        """The point as a line of the table."""
        figures = (f"{self.grown_seconds:.1f}", f"{self.per_second:.1f}", f"{self.efficiency:.3f}")
        return str(self.workers), *figures, f"{self.worker_mib:.0f}"


def curve_of_waiting_workers(config: Config, sizes: Sequence[int]) -> list[Point]:
    """The pool grown step by step through its external scaler, and measured at every size once its workers run."""
    import ray

    from spftsql.cluster.scaling import scale_verifiers
    from spftsql.verification.pool import PoolClient, pool_stats, start_pool, stop_pool

    address = f"http://{ray._private.worker.global_worker.node.webui_url}"  # type: ignore[attr-defined]
    with shop() as path:
        config = config.model_copy(
            update={"verification": config.verification.model_copy(update={"workers": sizes[0]})}
        )
        began = time.perf_counter()
        start_pool(config, SlowDatabase)
        points = []
        for size in sizes:
            if points:
                began = time.perf_counter()
                scale_verifiers(size, address, timeout_s=600)
            grown = time.perf_counter() - began
            count = _BATCHES_PER_WORKER * size
            numbers = itertools.count(1_000_000 * size)
            batches = [
                [VerificationRequest(str(n), "shop", f"SELECT {n}", None, "strict") for n in _next(numbers)]
                for _ in range(count)
            ]

            async def drive(batches: list[list[VerificationRequest]] = batches, size: int = size) -> list[float]:
                client = PoolClient({"shop": path}, config.sandbox)
                return await _drive(lambda batch, _: client.verify(batch), batches, size)

            answered = asyncio.run(drive())
            first, last = (round(share * len(answered)) for share in _STEADY)
            seconds = answered[last] - answered[first]
            done = (last - first) * _WAITS_PER_BATCH
            ideal = size / _WAIT_SECONDS
            pids = [int(stats["pid"]) for stats in pool_stats()]
            memory = sum(map(_unique_mib, pids)) / max(1, len(pids))
            points.append(Point(size, grown, done / seconds, done / seconds / ideal, memory))
        stop_pool()
    return points


def _next(numbers: Iterator[int]) -> list[int]:
    return list(itertools.islice(numbers, _WAITS_PER_BATCH))


def cost_of_a_replica(curve: Sequence[Point]) -> dict[str, float]:
    """Seconds and memory for one more worker, over the steps of the curve."""
    added = curve[-1].workers - curve[0].workers
    seconds = sum(point.grown_seconds for point in curve[1:])
    return {"seconds_per_replica": seconds / max(1, added), "mib_per_replica": curve[-1].worker_mib}


def _unique_mib(pid: int) -> float:
    """The memory that would come back if the process ended (not shared with others), in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
