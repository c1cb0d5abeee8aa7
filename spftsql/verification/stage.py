"""The verification stage on Ray: a Ray Data pipeline whose middle calls the verifier pool."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spftsql.config import Config
from spftsql.records import Verdict, VerificationRequest, from_table, to_table
from spftsql.verification.batches import batches_by_database
from spftsql.verification.pool import APP, start_pool

_CPUS = 0.1  # the pool's workers do the work; on a small machine nothing may wait for a whole CPU
_ATTEMPTS = 6  # calls of one batch; the pauses between them (1, 2, 4 … s) outlast the replacement of a replica
_IN_FLIGHT = 64  # batches handed to the pool at a time by one stage actor


class PoolCaller:
    """The stage's actor: sends its rows to the pool in batches of one database, and again where a worker is lost."""

    def __init__(self, batch_size: int) -> None:
        from ray import serve

        self._handle = serve.get_app_handle(APP)
        self._batch_size = batch_size
        self._slots = asyncio.Semaphore(_IN_FLIGHT)

    async def __call__(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        """Requests in, verdicts out: one for every row, with `fault` set where the pool could not be had."""
        batches = batches_by_database(from_table(table, VerificationRequest), self._batch_size)
        for verdicts in await asyncio.gather(*map(self._verify, batches)):
            yield to_table(verdicts, Verdict)

    async def _verify(self, batch: list[VerificationRequest]) -> list[Verdict]:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        rows = [asdict(request) for request in batch]
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(2 ** (attempt - 1))
            try:
                async with self._slots:
                    answer: list[dict[str, Any]] = await self._handle.verify.remote(rows)
                return [Verdict(**row) for row in answer]
            except (RayError, RayServeException) as error:
                reason = f"the verifier pool failed: {str(error).strip().splitlines()[-1][:300]}"
        return [Verdict(r.id, r.db_id, "unverifiable", "fault", 0.0, 0, False, "", "", fault=reason) for r in batch]


def verify_dataset_ray(source: Path, target: Path, databases: Mapping[str, Path], config: Config) -> None:
    """Reads `VerificationRequest` rows from `source` and writes one `Verdict` each into the directory `target`.

    Starts the pool where none runs, and leaves it running. The rows come out in no particular order. `target` is
    replaced, and appears only when it is complete.
    """
    import ray

    start_pool(databases, config)
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
                fn_constructor_args=(config.verification.batch_size,),
                batch_size=16 * config.verification.batch_size,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=1),
                **small,
            )
            .write_parquet(str(unfinished), ray_remote_args=small)
        )
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
