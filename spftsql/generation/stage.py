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
        except (UserError, Fault) as error:
            return to_table([_failure_row(error)], Sample)


def generate_dataset_ray(source: Path, target: Path, config: Config, progress: Callable[[int, int], None]) -> None:
    """`GenerationRequest` rows of `source` to `Sample` rows in the directory `target`, which appears when complete.

    Ray must be initialised. Rows whose actor dies are generated again. `progress` gets (requests done, requests).
    Raises `UserError` for a model that cannot be used, `Fault` when the actors fail or rows are missing at the end.
    """
    requests = sorted(read_records(source, GenerationRequest), key=lambda r: (r.model, r.db_id))
    if len({request.id for request in requests}) < len(requests):
        raise Fault("the requests of a generation stage do not have unique ids")
    for model in sorted({request.model for request in requests}):
        check_checkpoint(model)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _check_complete(requests, _write_samples(requests, temporary, config, progress))
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except RayError as error:
        raise Fault(f"the generation stage failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_samples(
    requests: list[GenerationRequest], folder: Path, config: Config, progress: Callable[[int, int], None]
) -> Counter[tuple[str, bool]]:
    """Runs the stage into `folder`; returns the number of rows by (request id, whether it is an error row)."""
    found: Counter[tuple[str, bool]] = Counter()
    done: set[str] = set()
    tables: Iterable[Any] = [to_table([], Sample)]
    if requests:
        tables = _samples(requests, config).iter_batches(batch_size=None, batch_format="pyarrow")
    for part, table in enumerate(tables):
        rows = from_table(table, Sample)
        for row in rows:
            _raise_failure(row)
        found.update((row.id, row.error is not None) for row in rows)
        done.update(row.id for row in rows)
        pq.write_table(table, folder / f"part-{part:06d}.parquet")
        progress(len(done), len(requests))
    return found


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
        resources=settings.resources or None,
        runtime_env={"env_vars": environment(cpu=settings.gpus == 0)},
    )


def _check_complete(requests: Sequence[GenerationRequest], found: Counter[tuple[str, bool]]) -> None:
    """Every request has its samples and nothing else, or one error row and nothing else."""
    wrong = [r.id for r in requests if (found[r.id, False], found[r.id, True]) not in ((r.n, 0), (0, 1))]
    if wrong or len(found) != len(requests):
        raise Fault(f"generation is incomplete for {len(wrong)} of {len(requests)} requests {wrong[:3]}; run again")


def _failure_row(error: Exception) -> Sample:
    """An error of ours as a row without an id: as an exception it would leave Ray Data wrapped up in text."""
    kind = UserError if isinstance(error, UserError) else Fault
    return Sample("", "", "", 0, "", 0, kind.__name__, str(error))


def _raise_failure(row: Sample) -> None:
    if not row.id:
        kind = UserError if row.finish_reason == UserError.__name__ else Fault
        raise kind(" ".join((row.error or "").split()))
