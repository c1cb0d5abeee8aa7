"""Generation as a Ray Data stage: a pool of engine actors, and units of whole databases that go to them in turn.

Behind the engines, in the same stream, the samples are verified as they are stored (`verification.stage`).

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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayError

from spftsql.causes import cause_of
from spftsql.config import Config
from spftsql.errors import Fault, UserError, disk_faults
from spftsql.generation.engine import Engine, EngineDied, open_engine
from spftsql.generation.onward import Onward, answer, answers_of, divided, is_answered
from spftsql.generation.unit_run import UnitRun
from spftsql.generation.vllm_options import environment
from spftsql.generation.work import Opened, Unit, Work, open_work, read_lineage
from spftsql.usage import Use, engine_use
from spftsql.verification.pool import start_pool
from spftsql.verification.samples import Checks
from spftsql.verification.stage import TABLES, PartVerifier, say_where_verifiers
from spftsql.whereabouts import forget_where, say_where

_LOOK_S = 0.5


class EngineActor:
    """A callable that holds an engine. When the engine is dead so is the actor, and Ray starts another."""

    def __init__(self, config: Config, work: Work) -> None:
        """Opens the engine."""
        self._config, self._work = config, work
        self._engine = self.open(config)
        context = ray.get_runtime_context()
        say_where(work.folder, "engines")
        self._lineage = {"engine": context.get_actor_id(), "node": context.get_node_id(), "pid": os.getpid()}

    def open(self, config: Config) -> Engine:
        """The engine of this actor."""
        return open_engine(config)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Answers the unit in the one row of `batch`. Yields each part as it is stored, and what went wrong if it did.

        An error is a row and no exception, which would leave Ray Data wrapped up in text. When this is called again for
        a unit whose first actor died, Ray takes what it yields for the same rows in the same order, and passes over
        those that it had: so parts that are there come first.
        """
        unit = Unit(**json.loads(batch.column("unit")[0].as_py()))
        for part in self._work.parts_of(unit.id):
            yield _row(part)
        try:
            with disk_faults(self._work.folder):
                rows, lineage = self._config.generation.batch_size, {**self._lineage, "unit": unit.id}
                attempt = UnitRun(self._work, unit, self._engine, rows, lineage)
                for stored in attempt.run(on_death=_end_process):
                    yield _row(stored.part)
        except (UserError, Fault) as error:
            yield _row("", _kind_of(error), " ".join(str(error).split()))


class OnwardActor(EngineActor):
    """A callable that holds an engine for the second model of a round trip; see `generation.onward`."""

    def __init__(self, config: Config, work: Work, onward: Onward) -> None:
        """Opens the engine. `work` is that of the first model."""
        super().__init__(config, work)
        self._onward = onward

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Answers what is asked about the parts in `batch`, and yields its own parts; see `EngineActor`."""
        for row in batch.to_pylist():
            if row["kind"]:
                yield _row(**row)
                continue
            part = self._work.parts / row["part"]
            try:
                with disk_faults(self._onward.folder):
                    found = answer(part, self._onward, self._config, self._engine, self._lineage, _end_process)
                for file in found:
                    yield _row(str(file.relative_to(self._onward.folder / "samples")))
            except (UserError, Fault) as error:
                yield _row("", _kind_of(error), " ".join(str(error).split()))


def _kind_of(error: UserError | Fault) -> str:
    return (UserError if isinstance(error, UserError) else Fault).__name__


def _row(part: str, kind: str = "", reason: str = "") -> pa.Table:
    return pa.table({"part": [part], "kind": [kind], "reason": [reason]})


def _end_process(error: EngineDied) -> None:
    print(error, file=sys.stderr, flush=True)
    os._exit(1)


def generate_dataset_ray(
    source: Path,
    target: Path,
    config: Config,
    progress: Callable[[int, int], None],
    actor: type[EngineActor] = EngineActor,
    checks: Checks | None = None,
    onward: Onward | None = None,
    before: Path | None = None,
) -> list[Use]:
    """`GenerationRequest` rows of `source` to `Sample` rows in the directory `target`, which appears when complete.

    With `checks` the samples are verified as they are stored, while engines write others; see `verification.samples`.
    With `onward`, and engines enough, some engines have a second model, which is asked about the samples as they are
    stored; its samples are verified and kept for a later call with `before`, their folder. The use of its engines, and
    of the verifiers, comes after that of the first model's.

    Ray must be initialised. Rows whose actor dies are generated again, and what an interrupted call with the same
    requests has left is used. `progress` gets (requests done, requests). Returns how busy engines and verifiers were.
    Raises `UserError` for a model that cannot be used, `Fault` when the actors fail or rows are missing at the end.
    """
    begin, verified, busy = time.monotonic(), 0, 0.0
    with disk_faults(target):
        first, second = divided(config.generation.actors, onward.share) if onward else (config.generation.actors, 0)
        opened = open_work(source.resolve(), target.resolve(), config, first, before)
        forget_where(opened.work.folder)
        if not second or not opened.units:
            onward = None
        earlier, answered = opened.work.part_names(), answers_of(onward.folder) if onward else []
        try:
            with _watched(opened, lambda: _done(opened, earlier, onward), progress):
                if opened.units or (checks is not None and _unverified(opened, checks)):
                    verified, busy = _run(_stage(opened, config, actor, checks, first, onward, second))
        except RayError as error:
            raise Fault(f"the generation stage failed: {cause_of(error)}") from error
        opened.work.finish(opened.wanted, target)
    wall = time.monotonic() - begin
    notes = [read_lineage(file) for file in target.glob("*.parquet") if file.name not in earlier]
    uses = [engine_use(notes, min(first, max(len(opened.units), 1)), wall)]
    if onward is not None:
        notes = [read_lineage(file) for file in answers_of(onward.folder) if file not in answered]
        uses.append(engine_use(notes, second, wall))
    if checks is not None or onward is not None:
        uses.append(Use("verifiers", config.verification.workers, round(busy, 3), round(wall, 3), rows=verified))
    return uses


def _unverified(opened: Opened, checks: Checks) -> list[str]:
    """The parts that an interrupted call has left without verdicts."""
    return [name for name in opened.work.part_names() if not checks.has(name)]


def _done(opened: Opened, earlier: Sequence[str], onward: Onward | None) -> int:
    """How many requests have their samples, and with `onward` all that is asked about these."""
    names = opened.work.part_names()
    if onward is not None:
        names = [name for name in names if name in earlier or is_answered(onward.folder, name)]
    return opened.work.stored(names)


def _run(dataset: Dataset) -> tuple[int, float]:
    """Runs the stage to its end; returns statements verified and seconds of verifiers. Raises what an actor reports."""
    verified, busy = 0, 0.0
    table: Any
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in table.to_pylist():
            if row["kind"]:
                raise (UserError if row["kind"] == UserError.__name__ else Fault)(row["reason"])
            verified, busy = verified + row.get("verified", 0), max(busy, row.get("busy_s", 0.0))
    return verified, busy


def _stage(
    opened: Opened,
    config: Config,
    actor: type[EngineActor],
    checks: Checks | None,
    first: int,
    onward: Onward | None,
    second: int,
) -> Dataset:
    """The stage, not yet executed: one block per unit, which go to actors in this order; parts go on to be verified.

    With `onward` they go on to `second` engines of another model instead, and the parts of those are verified.

    What flows is the names of parts, one a block. Their rows are on disk, so an engine waits for no verifier, however
    far behind that is, and what is in memory is bounded: `TABLES` parts at a time, and the pool's few calls.
    """
    units = opened.units
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    streams = []
    if units:
        dataset = ray.data.from_arrow([pa.table({"unit": [json.dumps(asdict(unit))]}) for unit in units])
        _quiet(dataset)
        # A second unit waits at the actor, so that it has no pause; but not where it could go to one that has none.
        waiting = 2 if len(units) > 4 * first else 1
        streams.append(_engines(dataset, actor, (config, opened.work), min(first, len(units)), waiting))
    if onward is not None:
        answered = _engines(streams[0], OnwardActor, (config, opened.work, onward), second, waiting=2)
        start_pool(config)
        say_where_verifiers(opened.work.folder)
        return _verifying(answered, onward.checks, onward.folder / "samples", config)
    if checks is None:
        return streams[0]
    start_pool(config)
    say_where_verifiers(opened.work.folder)
    if left := _unverified(opened, checks):
        dataset = ray.data.from_arrow([_row(part) for part in left])
        _quiet(dataset)
        streams.append(dataset)
    parts = streams[0].union(streams[1]) if len(streams) > 1 else streams[0]
    return _verifying(parts, checks, opened.work.parts, config)


def _engines(
    dataset: Dataset, actor: type[EngineActor], arguments: tuple[Any, ...], size: int, waiting: int
) -> Dataset:
    settings = arguments[0].generation
    return dataset.map_batches(
        actor,
        fn_constructor_args=arguments,
        compute=ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=waiting),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=settings.cpus,
        num_gpus=settings.gpus,
        resources=settings.resources or None,
        runtime_env={"env_vars": environment(cpu=settings.gpus == 0)},
    )


def _verifying(parts: Dataset, checks: Checks, folder: Path, config: Config) -> Dataset:
    return parts.map_batches(
        PartVerifier,
        fn_constructor_args=(checks, folder, config),
        compute=ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=TABLES),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0,  # beside engines and pool there need not be any left
    )


def _quiet(dataset: Dataset) -> None:
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.execution_options.preserve_order = False
    dataset.context.target_max_block_size = 1  # every part goes on as soon as it is there


@contextmanager
def _watched(opened: Opened, stored: Callable[[], int], progress: Callable[[int, int], None]) -> Iterator[None]:
    """Tells `progress` how many requests are `stored`, while the body runs and at its end."""
    over = threading.Event()
    total = len(opened.wanted)

    def watch() -> None:
        last = -1
        while True:
            last_look = over.is_set()
            now = min(total, stored())
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
