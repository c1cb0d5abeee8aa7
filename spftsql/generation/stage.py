"""Generation as a Ray Data stage: a pool of engine actors, and units of whole databases that go to them in turn.

What travels through Ray is where a unit's requests lie and whether they are done. An actor reads the requests itself,
as its engine has room for them, and writes the samples as they are finished: so neither is held in memory, however
many there are, and nothing that is finished is lost with an actor or with the driver. All machines must see the folder.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayError

from spftsql.config import Config
from spftsql.errors import Fault, UserError, disk_faults
from spftsql.generation.engine import Engine, EngineDied, open_engine
from spftsql.generation.unit_run import UnitRun
from spftsql.generation.vllm_options import environment
from spftsql.generation.work import Opened, Unit, Work, open_work

_LOOK_S = 0.5


class EngineActor:
    """A callable that holds an engine. When the engine is dead so is the actor, and Ray starts another."""

    def __init__(self, config: Config, work: Work) -> None:
        """Opens the engine."""
        self._config, self._work = config, work
        self._engine = self.open(config)
        context = ray.get_runtime_context()
        self._lineage = {"engine": context.get_actor_id(), "node": context.get_node_id(), "pid": os.getpid()}

    def open(self, config: Config) -> Engine:
        """The engine of this actor."""
        return open_engine(config)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answers the unit in the one row of `batch`; the row that comes back says what went wrong, if anything did.

        An error is a row and no exception, which would leave Ray Data wrapped up in text.
        """
        unit = Unit(**json.loads(batch.column("unit")[0].as_py()))
        kind = reason = ""
        try:
            with disk_faults(self._work.folder):
                rows, lineage = self._config.generation.batch_size, {**self._lineage, "unit": unit.id}
                attempt = UnitRun(self._work, unit, self._engine, rows, lineage)
                for _ in attempt.run(on_death=_end_process):
                    pass
        except (UserError, Fault) as error:
            kind = (UserError if isinstance(error, UserError) else Fault).__name__
            reason = " ".join(str(error).split())
        return pa.table({"unit": [unit.id], "kind": [kind], "reason": [reason]})


def _end_process(error: EngineDied) -> None:
    print(error, file=sys.stderr, flush=True)
    os._exit(1)


def generate_dataset_ray(
    source: Path,
    target: Path,
    config: Config,
    progress: Callable[[int, int], None],
    actor: type[EngineActor] = EngineActor,
) -> None:
    """`GenerationRequest` rows of `source` to `Sample` rows in the directory `target`, which appears when complete.

    Ray must be initialised. Rows whose actor dies are generated again, and what an interrupted call with the same
    requests has left is used. `progress` gets (requests done, requests). Raises `UserError` for a model that cannot be
    used, `Fault` when the actors fail or rows are missing at the end.
    """
    with disk_faults(target):
        opened = open_work(source.resolve(), target.resolve(), config, config.generation.actors)
        try:
            with _watched(opened, progress):
                if opened.units:
                    _run(opened, config, actor)
        except RayError as error:
            raise Fault(f"the generation stage failed: {str(error).strip().splitlines()[-1]}") from error
        opened.work.finish(opened.wanted, target)


def _run(opened: Opened, config: Config, actor: type[EngineActor]) -> None:
    """Runs the stage to its end. Raises what an actor reports."""
    table: Any
    for table in _stage(opened, config, actor).iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in table.to_pylist():
            if row["kind"]:
                raise (UserError if row["kind"] == UserError.__name__ else Fault)(row["reason"])


def _stage(opened: Opened, config: Config, actor: type[EngineActor]) -> Dataset:
    """The stage, not yet executed: one block per unit, which go to actors in this order."""
    settings, units = config.generation, opened.units
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.from_arrow([pa.table({"unit": [json.dumps(asdict(unit))]}) for unit in units])
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.execution_options.preserve_order = False
    # A second unit waits at the actor, so that it has no pause; but not where it could go to an actor that has none.
    waiting = 2 if len(units) > 4 * settings.actors else 1
    return dataset.map_batches(
        actor,
        fn_constructor_args=(config, opened.work),
        compute=ActorPoolStrategy(size=min(settings.actors, len(units)), max_tasks_in_flight_per_actor=waiting),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=settings.cpus,
        num_gpus=settings.gpus,
        resources=settings.resources or None,
        runtime_env={"env_vars": environment(cpu=settings.gpus == 0)},
    )


@contextmanager
def _watched(opened: Opened, progress: Callable[[int, int], None]) -> Iterator[None]:
    """Tells `progress` what is stored, while the body runs and at its end."""
    over = threading.Event()
    total = len(opened.wanted)

    def watch() -> None:
        last = -1
        while True:
            last_look = over.is_set()
            now = min(total, opened.work.stored())
            if now != last:
                progress(now, total)
            last = now
            if last_look:
                return
            over.wait(_LOOK_S)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
