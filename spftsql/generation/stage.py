"""Generation as a Ray Data stage: a pool of engine actors over batches of one model, each sorted by database."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayError

from spftsql.config import Config
from spftsql.errors import Fault, UserError
from spftsql.generation.checkpoint import check_checkpoint
from spftsql.generation.engine import EngineDied, open_engine
from spftsql.generation.local import batches
from spftsql.generation.vllm_engine import environment
from spftsql.records import GenerationRequest, Sample, from_table, read_records, to_table


class EngineActor:
    """A callable that holds an engine. When the engine is dead so is the actor, and Ray starts another.

    Ray restarts it without end; a row that kills every engine ends the stage through Ray Data's own timeout, when
    there has been no progress for half an hour.
    """

    def __init__(self, config: Config) -> None:
        """Opens the engine."""
        self._engine = open_engine(config)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Request rows to sample rows."""
        try:
            return to_table(self._engine.generate(from_table(batch, GenerationRequest)), Sample)
        except EngineDied as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)


def generate_dataset_ray(source: Path, target: Path, config: Config, progress: Callable[[int, int], None]) -> None:
    """`GenerationRequest` rows of `source` to `Sample` rows in the directory `target`, which appears when complete.

    Ray must be initialised. Rows whose actor dies are generated again. `progress` gets (requests done, requests).
    Raises `UserError` for a model that cannot be used, `Fault` when the actors fail or rows are missing at the end.
    """
    requests = sorted(read_records(source, GenerationRequest), key=lambda r: (r.model, r.db_id))
    for model in sorted({request.model for request in requests}):
        check_checkpoint(model)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    found: Counter[str] = Counter()
    failed: set[str] = set()
    part = 0
    try:
        if requests:
            tables: Iterable[Any] = _samples(requests, config).iter_batches(batch_size=None, batch_format="pyarrow")
            for table in tables:
                if not table.num_rows:
                    continue
                pq.write_table(table, temporary / f"part-{part:06d}.parquet")
                part += 1
                for row in from_table(table, Sample):
                    found[row.id] += 1
                    if row.error is not None:
                        failed.add(row.id)
                progress(len(found), len(requests))
        else:
            pq.write_table(to_table([], Sample), temporary / "part-000000.parquet")
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _explained(error) from error
    _check_complete(requests, found, failed)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def _samples(requests: list[GenerationRequest], config: Config) -> Dataset:
    """The stage, not yet executed. One block per batch, so that no batch mixes models."""
    settings = config.generation
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    blocks = [to_table(batch, GenerationRequest) for batch in batches(requests, settings.batch_size)]
    dataset = ray.data.from_arrow(blocks)
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.execution_options.preserve_order = True
    return dataset.map_batches(
        EngineActor,
        fn_constructor_args=(config,),
        compute=ActorPoolStrategy(size=min(settings.actors, len(blocks)), max_tasks_in_flight_per_actor=2),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=settings.cpus,
        num_gpus=settings.gpus,
        runtime_env={"env_vars": environment(cpu=settings.gpus == 0)},
    )


def _check_complete(requests: Sequence[GenerationRequest], found: Counter[str], failed: set[str]) -> None:
    expected = {request.id: 1 if request.id in failed else request.n for request in requests}
    if len(expected) != len(requests):
        raise Fault("the requests of a generation stage do not have unique ids")
    wrong = [identity for identity in expected if found[identity] != expected[identity]]
    if wrong or len(found) != len(expected):
        raise Fault(
            f"generation is incomplete: {len(wrong)} of {len(requests)} requests, the first {wrong[:1]}; run again"
        )


def _explained(error: BaseException) -> Exception:
    """The error of ours below the wrappers that Ray puts around it; a `Fault` for everything else of Ray's."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError | Fault):
            return type(seen)(str(seen)) if type(seen) in (UserError, Fault) else seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    if isinstance(error, RayError):
        return Fault(f"the generation stage failed: {str(error).strip().splitlines()[-1]}")
    return Fault(f"the generation stage failed: {type(error).__name__}: {error}")
