"""The pool of workers: what Ray Serve costs over bare Ray actors, and how far waiting queries scale."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import Ratio, in_turns, ratio
from benchmarks.verification.fence import SMALL, shop
from spftsql.config import Config, SandboxConfig, resolve
from spftsql.records import VerificationRequest
from spftsql.sandbox.result import Execution

_WORKERS = 2
_BATCH = 64
_BATCHES = 60
_IN_FLIGHT = 8  # batches on their way per worker
CURVE = (1, 2, 4, 8, 16, 32, 64)
_WAIT_SECONDS = 0.25  # one query of the slow database
_WAITS_PER_CALL = 4
_CALLS_PER_WORKER = 8


@contextmanager
def session() -> Iterator[Config]:
    """A Ray session of this machine with a configuration for it."""
    from spftsql.session import end_session, ensure_session

    config = resolve("demo", ["serve.port=0", f"verification.workers={_WORKERS}", "verification.cpus=0.01"])
    ensure_session(config)
    try:
        yield config
    finally:
        end_session()


def pool_over_actors(config: Config, repeats: int) -> dict[str, Ratio | float]:
    """Rows per second through the pool, over the same worker class as bare actors: the same batches, in turns."""
    import ray

    from spftsql.verification.pool import PoolWorker, start_pool, stop_pool

    with shop() as path:
        handle = start_pool({"shop": path}, config)
        files, limits = {"shop": str(path)}, config.sandbox.model_dump()
        actors = [ray.remote(num_cpus=0.01)(PoolWorker).remote(files, limits) for _ in range(_WORKERS)]

        async def through_pool(batch: list[dict[str, Any]], _: int) -> Any:
            return await handle.verify.remote(batch)

        async def through_actors(batch: list[dict[str, Any]], index: int) -> Any:
            return await actors[index % _WORKERS].verify.remote(batch)

        asyncio.run(_drive(through_pool, _batches(0)))  # starts the children
        asyncio.run(_drive(through_actors, _batches(1)))
        rounds = itertools.count(2)
        pool, bare = in_turns(
            repeats,
            lambda: asyncio.run(_drive(through_pool, _batches(next(rounds)))),
            lambda: asyncio.run(_drive(through_actors, _batches(next(rounds)))),
        )
        for actor in actors:
            ray.kill(actor)
        stop_pool()
    rows = _BATCH * _BATCHES
    return {"pool_vs_actors": ratio(bare, pool), "pool_rows_per_second": rows / min(pool)}


def _batches(round_: int) -> list[list[dict[str, Any]]]:
    """Rows whose statements stand nowhere else, so that no result that is kept answers for them."""
    rows = []
    for i in range(_BATCH * _BATCHES):
        unique = 1_000_000 * (round_ + 1) + i
        sql, gold = (f"{SMALL[i % len(SMALL)]} LIMIT {number}" for number in (unique, 1_000_000_000 + unique // 8))
        rows.append(asdict(VerificationRequest(str(unique), "shop", sql, gold, "bird")))
    return [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]


async def _drive(call: Any, batches: Sequence[list[dict[str, Any]]]) -> float:
    """Seconds until all batches are answered, with a bounded number on their way."""
    slots = asyncio.Semaphore(_IN_FLIGHT * _WORKERS)

    async def one(index: int, batch: list[dict[str, Any]]) -> None:
        async with slots:
            answer = await call(batch, index)
        assert len(answer) == len(batch)

    started = time.perf_counter()
    await asyncio.gather(*(one(index, batch) for index, batch in enumerate(batches)))
    return time.perf_counter() - started
