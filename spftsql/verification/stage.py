"""The verification stage on Ray: a Ray Data pipeline whose middle calls the verifier pool."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spftsql.config import Config
from spftsql.databases.places import Databases, sources_of
from spftsql.errors import Fault
from spftsql.records import Verdict, VerificationRequest, from_table, to_table
from spftsql.verification.batches import batches_by_database
from spftsql.verification.pool import PoolClient, PoolGone, start_pool

_CPUS = 0.1  # the pool's workers do the work; on a small machine nothing may wait for a whole CPU
_TRIES = 6  # of a row, when its database fails; with pauses of 1, 2, 4 … s
_LOSSES = 10  # of a batch and its worker; the pauses outlast the replacement of workers and of Serve's controller
_LONGEST_PAUSE_S = 30
_TABLE = 64  # batches in a table of the stage; enough for 64 workers with _TABLES of them
_TABLES = 4  # at work together


class PoolCaller:
    """The stage's actor: sends its rows to the pool in batches of one database, and again what fails for our reasons.

    A batch waits in the client until its turn comes, and then in Serve for a worker that is free.
    """

    def __init__(self, databases: Databases, config: Config) -> None:
        self._client = PoolClient(databases, config.sandbox)
        self._databases = set(databases)
        self._batch_size = config.verification.batch_size
        self._hopeless: set[str] = set()  # databases of which a batch failed to the last attempt

    async def __call__(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        """Requests in, verdicts out: one for every row, with `fault` set where it could not be had."""
        batches = batches_by_database(from_table(table, VerificationRequest), self._batch_size)
        for verdicts in await asyncio.gather(*map(self._verify, batches)):
            yield to_table(verdicts, Verdict)

    async def _verify(self, batch: list[VerificationRequest]) -> list[Verdict]:
        name = batch[0].db_id
        if name not in self._databases:
            return _faults(batch, f"no database is named {name}")
        verdicts: dict[str, Verdict] = {}
        left, lost, tried = batch, 0, 0
        while True:
            try:
                answer = await self._client.verify(left)
                tried += 1
            except Fault as fault:
                answer = _faults(left, str(fault))
                lost += 1 if not isinstance(fault, PoolGone) else _LOSSES
            verdicts |= {verdict.id: verdict for verdict in answer}
            left = [request for request in left if verdicts[request.id].fault]
            if not left:
                self._hopeless.discard(name)
                break
            if tried == _TRIES:
                self._hopeless.add(name)
            if lost >= _LOSSES or (tried and name in self._hopeless):
                break
            await asyncio.sleep(min(2 ** (lost + tried - 1), _LONGEST_PAUSE_S))
        return list(verdicts.values())


def _faults(batch: list[VerificationRequest], reason: str) -> list[Verdict]:
    return [Verdict(r.id, r.db_id, "unverifiable", "fault", 0.0, 0, False, "", "", fault=reason) for r in batch]


def verify_dataset_ray(source: Path, target: Path, databases: Databases, config: Config) -> None:
    """Reads `VerificationRequest` rows from `source` and writes one `Verdict` each into the directory `target`.

    Starts the pool where none runs, and leaves it running. The rows come out in no particular order. `target` is
    replaced, and appears only when it is complete. Raises `Fault` when it cannot be written, or Ray fails.
    """
    import ray

    sources = sources_of(databases)
    start_pool(config)
    unfinished = target.with_name(f".{target.name}.unfinished")
    for folder in (unfinished, target):
        shutil.rmtree(folder, ignore_errors=True)
    unfinished.mkdir(parents=True)
    small: dict[str, Any] = {"num_cpus": _CPUS}
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        # Not `read_parquet`: its file listing is a task that asks for a whole CPU, whatever one tells it (Ray 2.60).
        (
            ray.data.from_items(_row_groups(source))
            .map_batches(_read, batch_size=1, batch_format="pyarrow", **small)
            .map_batches(
                PoolCaller,
                fn_constructor_args=(sources, config),
                batch_size=_TABLE * config.verification.batch_size,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=_TABLES),
                **small,
            )
            .write_parquet(str(unfinished), ray_remote_args=small)
        )
    except (ray.exceptions.RayError, OSError) as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise Fault(f"the verification stage failed: {reason.strip()[:500]}") from None
    finally:
        context.enable_progress_bars = bars
    unfinished.rename(target)


def _row_groups(source: Path) -> list[dict[str, Any]]:
    """The parts in which a Parquet file, or a directory of them, is read."""
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    return [
        {"file": str(file.resolve()), "group": group}
        for file in files
        for group in range(pq.ParquetFile(file).num_row_groups)
    ]


def _read(parts: pa.Table) -> Iterator[pa.Table]:
    for part in parts.to_pylist():
        yield pq.ParquetFile(part["file"]).read_row_group(part["group"])
