"""Training under Ray Train with DeepSpeed: one worker group runs all the jobs of a stage, one after another.

Ray Train starts the workers again when one dies, or when there may be more or fewer of them, and this module's loop
finds its place: outputs that are complete are skipped, and the job that was going on continues from its last
checkpoint. The same happens when Ray Train's controller dies, or the driver, and the same jobs are asked for again.
The workers write the checkpoints themselves, below the outputs, and have them on disk before the next step: what is
handed to Ray Train's own storage is only surely there some seconds later.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spftsql.causes import cause_of
from spftsql.config import Config
from spftsql.errors import Fault, UserError
from spftsql.telemetry import count
from spftsql.training.checkpoints import Progress, latest_checkpoint, read_progress, writing
from spftsql.training.job import TrainJob, TrainResult, claim_work, read_result, watch_of
from spftsql.training.loggers import open_loggers, tell
from spftsql.training.metrics import Values, append_metrics, follow_metrics, forget_metrics, validation_line
from spftsql.training.validation import Validate, Watch, judge
from spftsql.whereabouts import say_where

if TYPE_CHECKING:
    import torch

_STORAGE = ".ray_train"
_FAILURE = "failure.json"
_MONITOR_S = 10.0  # between two looks whether there may be more workers


def train_ray(
    jobs: Sequence[TrainJob], config: Config, metrics: Path, progress: Callable[[str, int, int], None]
) -> list[TrainResult]:
    """Trains the jobs under Ray Train and returns their results in order; as `train_local` otherwise.

    Needs an initialised Ray session, and all paths on storage that every node sees. Raises `UserError` when the
    session is too small, `Fault` when workers die more often than `training.max_failures`.
    """
    jobs = [_absolute(job) for job in jobs]
    open_jobs = [job for job in jobs if read_result(job) is None]
    if open_jobs:
        _check_resources(open_jobs, config)
        for job in open_jobs:
            claim_work(job, config)
        metrics.parent.mkdir(parents=True, exist_ok=True)
        with open_loggers(config, metrics.parent) as loggers:

            def log(values: Values) -> None:
                tell(loggers, values)
                count("spftsql_loop_trained_tokens", values.get("tokens", 0), run=config.name)
                count("spftsql_loop_training_steps", 1 if "tokens" in values else 0, run=config.name)
                progress(values["job"], values["step"], values["steps"])

            with follow_metrics(metrics.resolve(), log):
                _fit(open_jobs, config, metrics.resolve())
    results = [read_result(job) for job in jobs]
    missing = [job.name for job, result in zip(jobs, results, strict=True) if result is None]
    if missing:
        raise Fault(f"training ended without the model of {', '.join(missing)}; run again")
    return [result for result in results if result is not None]


def _absolute(job: TrainJob) -> TrainJob:
    """Workers run in another folder; a Hub name stays what it is."""

    def locate(path: Path) -> Path:
        return path.resolve() if path.exists() else path

    return replace(
        job,
        model=locate(job.model),
        data=locate(job.data),
        output=job.output.resolve(),
        reference=locate(job.reference) if job.reference else None,
    )


def _validates(jobs: Sequence[TrainJob], config: Config) -> bool:
    return config.training.validate_steps is not None and any(job.validate is not None for job in jobs)


def _check_resources(jobs: Sequence[TrainJob], config: Config) -> None:
    """Refuses what a session of our own can never run; elsewhere nodes may still join."""
    import ray

    if config.cluster.address is not None:
        return
    total, training, generation = ray.cluster_resources(), config.training, config.generation
    # A validation runs beside the workers, of which there may be as many as the session has room for.
    validates = _validates(jobs, config)
    workers = training.max_workers if validates else training.min_workers
    for name, each, beside in (
        ("CPU", training.cpus, generation.cpus if validates else 0.0),
        ("GPU", training.gpus, generation.gpus if validates else 0.0),
    ):
        if (needed := each * workers + beside) > (have := total.get(name, 0.0)):
            raise UserError(
                f"training.workers={workers} with training.{name.lower()}s={each:g} each"
                + (f" and a validation with {beside:g}" if beside else "")
                + f" need {needed:g} {name}s, but the Ray session has {have:g}; lower them"
                + (" or raise cluster.cpus" if name == "CPU" else "")
            )


def _validation_resources(config: Config) -> dict[str, Any]:
    """What a validation task takes: an engine, and child processes that execute SQL meanwhile idle."""
    generation = config.generation
    return {"num_cpus": generation.cpus, "num_gpus": generation.gpus, "resources": dict(generation.resources)}


def _fit(jobs: Sequence[TrainJob], config: Config, metrics: Path) -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # default 2 s: start, end and commits wait for it
    if config.cluster.address is None:
        os.environ.setdefault(
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"
        )  # a process less; nobody reclaims this machine
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, RunConfig, ScalingConfig, ValidationConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    training = config.training
    gpu = training.gpus > 0
    storage = jobs[0].output.parent / _STORAGE  # of Ray Train's own notes, which nothing is read from later
    shutil.rmtree(storage, ignore_errors=True)
    resources = {"CPU": training.cpus, **training.resources} | ({"GPU": training.gpus} if gpu else {})
    failure = storage / _FAILURE
    validation: dict[str, Any] = {}
    if _validates(jobs, config):
        judges = {job.name: job.validate for job in jobs if job.validate is not None}
        validation["validation_config"] = ValidationConfig(
            partial(_validate_reported, judges=judges), ray_remote_kwargs=_validation_resources(config)
        )
    scaling: dict[str, Any] = {
        "num_workers": training.workers,
        "use_gpu": gpu,
        "resources_per_worker": resources,
        "elastic_resize_monitor_interval_s": _MONITOR_S,
    }

    def fit() -> None:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"jobs": list(jobs), "config": config, "metrics": metrics, "failure": failure},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=training.collective_timeout_s),
            scaling_config=ScalingConfig(**scaling),
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=training.max_failures),
            ),
            **validation,
        )
        trainer.fit()

    controllers_lost = 0
    while True:
        others = _reserved()
        try:
            fit()
            break
        except TrainingFailedError as error:
            raise Fault(
                f"training failed more than {training.max_failures} times; the last time: {cause_of(error)}"
            ) from error
        except RayActorError as error:
            _release(_reserved() - others, resources)
            controllers_lost += 1
            if controllers_lost > training.max_failures:
                raise Fault(f"Ray Train's controller died {controllers_lost} times: {error}") from error
    if failure.is_file():
        kind, message = json.loads(failure.read_text())
        raise UserError(message) if kind == "UserError" else Fault(message)
    shutil.rmtree(storage, ignore_errors=True)


def _reserved() -> set[str]:
    """The ids of this driver's placement groups, which hold what they reserve."""
    import ray
    from ray.util.placement_group import placement_group_table

    job = ray.get_runtime_context().get_job_id()  # the end of the ids of its groups
    table: dict[str, dict[str, Any]] = placement_group_table()
    return {id_ for id_, group in table.items() if id_.endswith(job) and group["state"] != "REMOVED"}


def _release(groups: Collection[str], resources: Mapping[str, float]) -> None:
    """Gives back what a controller that died had reserved for its workers, each with `resources`.

    Ray Train's own cleaner asks the dashboard whether a controller lives. Where there is none, or it does not answer,
    the workers' CPUs and GPUs would stay taken, and the next controller could wait for them for ever.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    table: dict[str, dict[str, Any]] = placement_group_table()
    wanted = {name: amount for name, amount in resources.items() if amount}
    for id_ in groups:
        if all(bundle == wanted for bundle in table[id_]["bundles"].values()):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id_))))


def _worker(settings: dict[str, Any]) -> None:
    """What every worker runs. What a restart cannot mend is left in a file for the driver instead of being raised."""
    config: Config = settings["config"]
    if not config.training.gpus:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import ray.train.torch
    import torch
    from torch import distributed

    torch.set_num_threads(config.training.threads)
    say_where(settings["failure"].parent, "trainers")
    rank = distributed.get_rank()
    # Every rank has to skip the same jobs, and an output may appear while the others start.
    open_jobs = [[read_result(job) is None for job in settings["jobs"]]]
    distributed.broadcast_object_list(open_jobs, src=0)
    try:
        for job, is_open in zip(settings["jobs"], open_jobs[0], strict=True):
            if is_open:
                train_job(job, config, settings["metrics"], ray.train.torch.get_device())
    except (UserError, Fault) as error:
        if rank == 0:
            try:
                settings["failure"].parent.mkdir(parents=True, exist_ok=True)
                settings["failure"].write_text(json.dumps([type(error).__name__, str(error)]))
            except OSError:  # the disk is full: Ray Train has to carry the message, after it has tried again
                raise error from None


def train_job(job: TrainJob, config: Config, metrics: Path, device: torch.device) -> None:
    """One worker's part of a training, in a process group that is there; every worker of the group calls this."""
    from torch import distributed

    from spftsql.training.engine import DeepSpeedEngine
    from spftsql.training.job import prepare, publish, write_model
    from spftsql.training.reference import reference_logps
    from spftsql.training.steps import model_dtype, run_steps

    rank, workers = distributed.get_rank(), distributed.get_world_size()
    prepared = prepare(job, config)
    checkpoint = _first_says(lambda: latest_checkpoint(prepared.work))
    state = read_progress(checkpoint) if checkpoint else Progress()

    def total(sums: Any) -> Any:
        distributed.all_reduce(sums)
        return sums

    reference = None
    if job.mode != "sft":
        dtype = model_dtype(config, device)
        reference = reference_logps(prepared, config.training, dtype, device, rank, workers, total)
    engine = DeepSpeedEngine(prepared, config, device, total, checkpoint)

    def log(values: dict[str, Any]) -> None:
        if rank == 0:
            append_metrics(metrics, values)

    if rank == 0:
        forget_metrics(metrics, job.name, state.step)
    watch = watch_of(prepared, config)

    def hear(watch: Watch) -> None:
        """Waits for the validations that are under way."""
        import ray.train

        ray.train.get_all_reported_checkpoints()
        if rank == 0:
            for step, accuracy in watch.news().items():
                append_metrics(metrics, validation_line(job.name, step, prepared.steps, accuracy))

    def enough() -> bool:
        """Hands the model in for validation where that is due; whether the training has come to its end.

        What the validation says is heard when the next one is due: the steps in between wait for nothing.
        """
        if watch is None or not watch.due(state.step):
            return False
        hear(watch)
        if _first_says(lambda: watch.ended()):
            return True
        if _first_says(lambda: watch.result(state.step)) is None:
            weights = engine.gather()

            def save(target: Path) -> None:
                write_model(prepared, state, config, lambda folder: engine.export(folder, weights), target)

            def write() -> Path:
                watch.forget_worse()
                with writing(prepared.work):
                    return watch.write(state.step, save)

            _report(job, state.step, _first_says(write))
        return False

    run_steps(engine, prepared, reference, state, config, log, enough)
    if watch is None:
        weights = engine.gather()
        _first_says(lambda: publish(prepared, state, config, lambda target: engine.export(target, weights)))
    else:
        if state.step == prepared.steps:
            enough()
        hear(watch)
        _first_says(lambda: _finish(watch, job))
    engine.close()


def _report(job: TrainJob, step: int, model: Path) -> None:
    """Hands a model to Ray Train's validation; every rank calls this. The checkpoint only says where the model lies."""
    import ray.train

    values = {"job": job.name, "step": step}
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(values)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.json").write_text(json.dumps(str(model)), encoding="utf-8")
        ray.train.report(
            values,
            checkpoint=ray.train.Checkpoint(folder),
            validation=ray.train.ValidationTaskConfig(fn_kwargs={"job": job.name, "model": str(model)}),
        )


def _validate_reported(checkpoint: Any, judges: Mapping[str, Validate], job: str, model: str) -> dict[str, float]:
    """What Ray Train calls, in a task of its own; Ray Train keeps the reason of a failure to itself."""
    error = Path(f"{model}.error")
    try:
        return {"accuracy": judge(Path(model), judges[job])}
    except Exception as reason:
        error.write_text(f"{type(reason).__name__}: {reason}", encoding="utf-8")
        raise


def _finish(watch: Watch, job: TrainJob) -> None:
    for error in sorted((job.work / "validation").glob("*.error")):
        reason = error.read_text(encoding="utf-8")
        error.unlink()
        raise Fault(f"{job.name}: a model could not be validated ({reason}); run again")
    watch.finish(job.output)


def _first_says(work: Callable[[], Any]) -> Any:
    """What `work` gives on rank 0, to every rank; and what it raises there is raised by all of them."""
    from torch import distributed

    said: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            said[0] = work()
        except (UserError, Fault) as error:
            said[1] = error
    distributed.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise said[1]
    return said[0]
