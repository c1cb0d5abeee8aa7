"""Training under Ray Train with DeepSpeed: one worker group runs all the jobs of a stage, one after another.

Ray Train starts the workers again when one dies, and this module's loop finds its place: outputs that are complete are
skipped, and the job that was going on continues from the last checkpoint that Ray Train has kept. The same happens
when the driver dies and the same jobs are asked for again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spftsql.config import Config
from spftsql.errors import Fault, UserError
from spftsql.records import content_hash
from spftsql.training.job import Progress, TrainJob, TrainResult, job_key, read_result

if TYPE_CHECKING:
    from spftsql.training.engine import DeepSpeedEngine

_POLL_S = 0.5
_FAILURE = "failure.json"


def train_ray(
    jobs: Sequence[TrainJob], config: Config, metrics: Path, progress: Callable[[str, int, int], None]
) -> list[TrainResult]:
    """Trains the jobs under Ray Train and returns their results in order; as `train_local` otherwise.

    Needs an initialised Ray session, and all paths on storage that every node sees. Raises `UserError` when the
    session is too small, `Fault` when workers die more often than `training.max_failures`.
    """
    jobs = [_absolute(job) for job in jobs]
    if any(read_result(job) is None for job in jobs):
        _check_resources(config)
        metrics.parent.mkdir(parents=True, exist_ok=True)
        with _follow(metrics.resolve(), progress):
            _fit(jobs, config, metrics.resolve())
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


def _check_resources(config: Config) -> None:
    """Refuses what a session of our own can never run; elsewhere nodes may still join."""
    import ray

    if config.cluster.address is not None:
        return
    total, training = ray.cluster_resources(), config.training
    for name, per_worker in (("CPU", training.cpus), ("GPU", training.gpus)):
        if (needed := per_worker * training.workers) > (have := total.get(name, 0.0)):
            raise UserError(
                f"training.workers={training.workers} with training.{name.lower()}s={per_worker:g} each need "
                f"{needed:g} {name}s, but the Ray session has {have:g}; lower them"
                + (" or raise cluster.cpus" if name == "CPU" else "")
            )


def _fit(jobs: Sequence[TrainJob], config: Config, metrics: Path) -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # default 2 s: start, end and commits wait for it
    if config.cluster.address is None:
        os.environ.setdefault(
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"
        )  # a process less; nobody reclaims this machine
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    training = config.training
    gpu = training.gpus > 0
    name = content_hash([job_key(job, config) for job in jobs])
    storage = jobs[0].output.parent / ".ray_train"
    resources = {"CPU": training.cpus} | ({"GPU": training.gpus} if gpu else {})
    failure = storage / name / _FAILURE
    failure.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"jobs": list(jobs), "config": config, "metrics": metrics, "failure": failure},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=training.collective_timeout_s),
        scaling_config=ScalingConfig(num_workers=training.workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise Fault(f"training failed more than {training.max_failures} times; the last time: {lines[-1]}") from error
    if failure.is_file():
        kind, message = json.loads(failure.read_text())
        raise UserError(message) if kind == "UserError" else Fault(message)
    shutil.rmtree(storage, ignore_errors=True)


@contextmanager
def _follow(metrics: Path, progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Passes on what the workers append to the metrics file from now on."""
    ended = threading.Event()
    start = metrics.stat().st_size if metrics.exists() else 0

    def follow() -> None:
        offset, last = start, False
        while not last:
            last = ended.wait(_POLL_S)
            if not metrics.exists():
                continue
            with metrics.open("rb") as file:
                file.seek(offset)
                lines = file.read().splitlines(keepends=True)
            for line in lines:
                if line.endswith(b"\n"):
                    offset += len(line)
                    values = json.loads(line)
                    if "step" in values:
                        progress(values["job"], values["step"], values["steps"])

    thread = threading.Thread(target=follow, daemon=True, name="training-progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _worker(settings: dict[str, Any]) -> None:
    """What every worker runs. What a restart cannot mend is left in a file for the driver instead of being raised."""
    config: Config = settings["config"]
    if not config.training.gpus:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    import torch
    from torch import distributed

    torch.set_num_threads(config.training.threads)
    rank = distributed.get_rank()
    # Every rank has to skip the same jobs, and an output may appear while the others start.
    open_jobs = [[read_result(job) is None for job in settings["jobs"]]]
    distributed.broadcast_object_list(open_jobs, src=0)
    try:
        for job, is_open in zip(settings["jobs"], open_jobs[0], strict=True):
            if is_open:
                _train(job, config, settings["metrics"])
    except (UserError, Fault) as error:
        if rank == 0:
            settings["failure"].parent.mkdir(parents=True, exist_ok=True)
            settings["failure"].write_text(json.dumps([type(error).__name__, str(error)]))


def _train(job: TrainJob, config: Config, metrics: Path) -> None:
    import ray.train
    import ray.train.torch
    from torch import distributed

    from spftsql.training.engine import DeepSpeedEngine
    from spftsql.training.job import prepare, publish
    from spftsql.training.steps import append_metrics, model_dtype, reference_logps, run_steps

    rank, workers = distributed.get_rank(), distributed.get_world_size()
    device = ray.train.torch.get_device()
    prepared = prepare(job, config)

    def total(sums: Any) -> Any:
        distributed.all_reduce(sums)
        return sums

    reference = None
    if job.mode != "sft":
        dtype, micro_batch = model_dtype(config, device), config.training.micro_batch
        reference = reference_logps(prepared, micro_batch, dtype, device, rank, workers, total)
    engine = DeepSpeedEngine(prepared, config, device, total, _keep)
    state = Progress()
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = engine.restore(Path(folder))
            distributed.barrier()  # the folder may be a download that the first to leave removes

    def log(values: dict[str, Any]) -> None:
        if rank == 0:
            append_metrics(metrics, values)

    run_steps(engine, prepared, reference, state, config, log)
    with tempfile.TemporaryDirectory() as folder:
        weights = engine.gather(Path(folder))
        if rank == 0:
            publish(prepared, state, config, lambda target: engine.export(target, weights))
    distributed.barrier()
    engine.close()


def _keep(engine: DeepSpeedEngine, progress: Progress) -> None:
    """Hands a checkpoint to Ray Train, which merges the ranks' parts and keeps it some seconds later."""
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        engine.write_checkpoint(Path(folder), progress)
        ray.train.report({"step": progress.step}, checkpoint=ray.train.Checkpoint(folder))
