"""The verification stage on Ray: a Ray Data pipeline whose actor calls the verifier pool and keeps its verdicts."""

from __future__ import annotations

import asyncio
import itertools
import math
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spftsql.causes import cause_of
from spftsql.config import Config
from spftsql.databases.places import Databases, sources_of
from spftsql.errors import Fault
from spftsql.records import Verdict, VerificationRequest, content_hash, from_table, write_records
from spftsql.usage import Use
from spftsql.verification.batches import SMALLEST, Waiting
from spftsql.verification.pool import PoolClient, PoolGone, pool_stats, start_pool
from spftsql.verification.samples import Checks, SampleReader
from spftsql.whereabouts import forget_where, say_where

_CPUS = 0.1  # the pool's workers do the work; on a small machine nothing may wait for a whole CPU
_TRIES = 6  # of a row, when its database fails; with pauses of 1, 2, 4 … s
_LOSSES = 10  # of a batch and its worker; the pauses outlast the replacement of workers and of Serve's controller
_LONGEST_PAUSE_S = 30
_TABLE = 8_192  # rows of a table of the stage; of statements that wait, enough for 64 workers with TABLES of them
_STATS_S = 2.0
TABLES = 4  # at work together


class PoolCaller:
    """Sends rows to the pool in batches of one database, and again what fails for our reasons.

    A batch is cut when a worker has room for it (`Waiting`).
    """

    def __init__(self, databases: Databases, config: Config) -> None:
        self._client = PoolClient(databases, config.sandbox)
        self._databases = set(databases)
        self._largest = config.verification.batch_size
        self._hopeless: set[str] = set()  # databases of which a batch failed to the last attempt

    @property
    def busy_s(self) -> float:
        """The seconds that workers were at work on what this has sent them."""
        return self._client.busy_s

    async def verify(self, requests: Sequence[VerificationRequest]) -> list[Verdict]:
        """One verdict for every request, in no particular order, with `fault` set where it could not be had."""
        known = [request for request in requests if request.db_id in self._databases]
        waiting = Waiting(known, self._largest)
        senders = math.ceil(len(known) / min(SMALLEST, self._largest))
        parts = await asyncio.gather(*(self._send(waiting) for _ in range(senders)))
        verdicts = list(itertools.chain.from_iterable(parts))
        for request in requests:
            if request.db_id not in self._databases:
                verdicts += _faults([request], f"no database is named {request.db_id}")
        return verdicts

    async def _send(self, waiting: Waiting) -> list[Verdict]:
        verdicts: list[Verdict] = []
        while waiting:
            verdicts += await self._verify(waiting)
        return verdicts

    async def _verify(self, waiting: Waiting) -> list[Verdict]:
        """The verdicts of the next batch; what the worker did not come to waits again."""
        verdicts: dict[str, Verdict] = {}
        left: Sequence[VerificationRequest] | None = None
        answers: Sequence[Verdict | None]
        lost = tried = 0
        while True:
            async with self._client.turn() as workers:
                if left is None:
                    left = waiting.take(workers)
                if not left:
                    return []
                try:
                    answers = await self._client.begin(left)
                    tried += 1
                except Fault as fault:
                    answers = _faults(left, str(fault))
                    lost += 1 if not isinstance(fault, PoolGone) else _LOSSES
            name, missed = left[0].db_id, []
            for request, verdict in zip(left, answers, strict=True):
                if verdict is None:
                    verdicts.pop(request.id, None)
                    missed.append(request)
                else:
                    verdicts[request.id] = verdict
            waiting.put_back(missed)
            left = [request for request in left if request.id in verdicts and verdicts[request.id].fault]
            if not left:
                self._hopeless.discard(name)
                break
            if tried == _TRIES:
                self._hopeless.add(name)
            if lost >= _LOSSES or (tried and name in self._hopeless):
                break
            await asyncio.sleep(min(2 ** (lost + tried - 1), _LONGEST_PAUSE_S))
        return list(verdicts.values())


def _faults(batch: Sequence[VerificationRequest], reason: str) -> list[Verdict]:
    return [Verdict(r.id, r.db_id, "unverifiable", "fault", 0.0, 0, False, "", "", fault=reason) for r in batch]


class RowVerifier:
    """The stage's actor: verifies tables of requests, and writes each one's verdicts as a file."""

    def __init__(self, databases: Databases, config: Config, target: Path) -> None:
        self._caller, self._target = PoolCaller(databases, config), target

    async def __call__(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        """Yields how many verdicts were written."""
        verdicts = await self._caller.verify(from_table(table, VerificationRequest))
        name = content_hash([verdict.id for verdict in verdicts])
        write_records(self._target / f"part-{name}.parquet", verdicts, Verdict)
        yield done_row(len(verdicts), self._caller.busy_s)


class PartVerifier:
    """The actor behind the engines: verifies the parts of samples that they have stored, and keeps the verdicts."""

    def __init__(self, checks: Checks, parts: Path, config: Config) -> None:
        self._caller, self._reader = PoolCaller(checks.sources, config), SampleReader(checks)
        self._checks, self._parts = checks, parts

    async def __call__(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        """Takes rows of `generation.stage`, and passes them on with what was verified; other rows as they are."""
        verified = []
        for part in table.column("part").to_pylist():
            requests: list[VerificationRequest] = []
            if part and not self._checks.has(part):
                requests = await asyncio.to_thread(self._reader.statements, self._parts / part)
                self._checks.store(part, requests, await self._caller.verify(requests))
            verified.append(len(requests))
        busy = [self._caller.busy_s] * len(verified)
        yield table.append_column("verified", [verified]).append_column("busy_s", [busy])


def done_row(verified: int, busy_s: float) -> pa.Table:
    """What an actor of verification reports: verdicts that it has written, and seconds of workers so far."""
    return pa.table({"verified": [verified], "busy_s": [busy_s]})


def verify_dataset_ray(
    source: Path, target: Path, databases: Databases, config: Config, progress: Callable[[int, int], None]
) -> Use:
    """Reads `VerificationRequest` rows from `source` and writes one `Verdict` each into the directory `target`.

    Starts the pool where none runs, and leaves it running. The rows come out in no particular order. `target` is
    replaced, and appears only when it is complete. `progress` gets (verdicts, requests). Raises `Fault` when it cannot
    be written, or Ray fails.
    """
    import ray

    sources = sources_of(databases)
    begin = time.monotonic()
    start_pool(config)
    started = time.monotonic() - begin
    unfinished = target.resolve().with_name(f".{target.name}.unfinished")
    for folder in (unfinished, target):
        shutil.rmtree(folder, ignore_errors=True)
    unfinished.mkdir(parents=True)
    say_where_verifiers(unfinished)
    groups, total = _row_groups(source)
    done, busy = 0, 0.0
    small: dict[str, Any] = {"num_cpus": _CPUS}
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        # Not `read_parquet`: its file listing is a task that asks for a whole CPU, whatever one tells it (Ray 2.60).
        dataset = (
            ray.data.from_items(groups)
            .map_batches(_read, batch_size=1, batch_format="pyarrow", **small)
            .map_batches(
                RowVerifier,
                fn_constructor_args=(sources, config, unfinished),
                batch_size=_TABLE,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=TABLES),
                **small,
            )
        )
        progress(0, total)
        for row in dataset.iter_rows():
            done, busy = done + row["verified"], max(busy, row["busy_s"])
            progress(done, total)
    except (ray.exceptions.RayError, OSError) as error:
        raise Fault(f"the verification stage failed: {cause_of(error)}") from None
    finally:
        context.enable_progress_bars = bars
    forget_where(unfinished)
    unfinished.rename(target)
    wall = time.monotonic() - begin
    return Use("verifiers", config.verification.workers, round(busy, 3), round(wall, 3), round(started, 3), rows=total)


def say_where_verifiers(folder: Path) -> None:
    """Notes the machines of the pool's workers in the folder of a stage; of those that do not answer at once, none."""
    from ray.exceptions import RayError

    with suppress(Fault, RayError, TimeoutError):
        for worker in pool_stats(_STATS_S):
            say_where(folder, "verifiers", worker["node"])


def _row_groups(source: Path) -> tuple[list[dict[str, Any]], int]:
    """The parts in which a Parquet file, or a directory of them, is read; and how many rows there are."""
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    groups, rows = [], 0
    for file in files:
        metadata = pq.ParquetFile(file).metadata
        groups += [{"file": str(file.resolve()), "group": group} for group in range(metadata.num_row_groups)]
        rows += metadata.num_rows
    return groups, rows


def _read(parts: pa.Table) -> Iterator[pa.Table]:
    for part in parts.to_pylist():
        yield pq.ParquetFile(part["file"]).read_row_group(part["group"])
