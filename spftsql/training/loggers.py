"""Training metrics in TensorBoard, Weights & Biases or MLflow, beside `metrics.jsonl`, as `training.loggers` says.

They run in the process that started the training, whatever the number of workers, and each is imported only where it
is configured. Where they write: into folders beside `metrics.jsonl`, unless their own environment variables
(WANDB_MODE, MLFLOW_TRACKING_URI, …) say otherwise; without one nothing leaves the machine.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.records import content_hash
from spftsql.training.metrics import Values

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
_LABELS = ("job", "mode", "step", "steps", "event")


class Logger(Protocol):
    """Something that is told the metrics of every step."""

    def log(self, job: str, step: int, numbers: dict[str, float]) -> None:
        """The numbers of one step of one training."""

    def close(self) -> None:
        """Writes what is not written yet."""


def check_loggers(names: Sequence[str]) -> None:
    """Raises `UserError` for a logger whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise UserError(f"training.loggers has {name}, which is not installed: pip install {_PACKAGES[name]}")


@contextmanager
def open_loggers(config: Config, folder: Path) -> Iterator[list[Logger]]:
    """The configured loggers, writing below `folder`. Raises `UserError` where a package is missing."""
    names = config.training.loggers
    check_loggers(names)
    kinds: dict[str, Callable[[str, Path], Logger]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
        "mlflow": MLflow,
    }
    loggers: list[Logger] = [kinds[name](config.name, folder) for name in names]
    try:
        yield loggers
    finally:
        for logger in loggers:
            logger.close()


def tell(loggers: Sequence[Logger], values: Values) -> None:
    """Gives the numbers of one line of `metrics.jsonl` to the loggers."""
    numbers = {name: float(value) for name, value in values.items() if name not in _LABELS and _is_number(value)}
    for logger in loggers:
        logger.log(str(values["job"]), int(values["step"]), numbers)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class TensorBoard:
    """Event files in `tensorboard/JOB`."""

    def __init__(self, project: str, folder: Path) -> None:
        """`project` is not needed: the folder is the run's."""
        self._folder = folder / "tensorboard"
        self._writers: dict[str, Any] = {}

    def log(self, job: str, step: int, numbers: dict[str, float]) -> None:
        """See `Logger`."""
        from tensorboardX import SummaryWriter

        if job not in self._writers:  # what a run before this one wrote of later steps is hidden
            self._writers[job] = SummaryWriter(str(self._folder / job), purge_step=step)
        for name, value in numbers.items():
            self._writers[job].add_scalar(name, value, step)

    def close(self) -> None:
        """See `Logger`."""
        for writer in self._writers.values():
            writer.close()


class WeightsAndBiases:
    """One run per training, in `wandb`; offline unless WANDB_MODE says otherwise."""

    def __init__(self, project: str, folder: Path) -> None:
        """Begins nothing yet."""
        self._project, self._folder = project, folder
        self._runs: dict[str, Any] = {}

    def log(self, job: str, step: int, numbers: dict[str, float]) -> None:
        """See `Logger`."""
        import wandb

        if job not in self._runs:
            self._runs[job] = wandb.init(
                project=self._project,
                name=job,
                id=content_hash(str(self._folder.resolve()), job),
                dir=str(self._folder),
                mode=os.environ.get("WANDB_MODE", "offline"),
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True),
            )
        self._runs[job].log(numbers, step=step)

    def close(self) -> None:
        """See `Logger`."""
        for run in self._runs.values():
            run.finish()


class MLflow:
    """One run per training, in `mlflow.db` unless MLFLOW_TRACKING_URI names a server; MLflow has no files any more."""

    def __init__(self, project: str, folder: Path) -> None:
        """Begins nothing yet."""
        self._project, self._folder = project, folder
        self._client: Any = None
        self._runs: dict[str, str] = {}

    def log(self, job: str, step: int, numbers: dict[str, float]) -> None:
        """See `Logger`."""
        from mlflow.entities import Metric

        client = self._connected()
        if job not in self._runs:
            self._runs[job] = self._run(job)
        now = int(time.time() * 1000)
        client.log_batch(self._runs[job], [Metric(name, value, now, step) for name, value in numbers.items()])

    def close(self) -> None:
        """See `Logger`."""
        for run in self._runs.values():
            self._client.set_terminated(run)

    def _connected(self) -> Any:
        if self._client is None:
            from mlflow import MlflowClient

            local = f"sqlite:///{(self._folder / 'mlflow.db').resolve()}"
            self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", local))
        return self._client

    def _experiment(self) -> str:
        if "MLFLOW_TRACKING_URI" in os.environ:
            identity: str = self._client.create_experiment(self._project)
            return identity
        artifacts = (self._folder / "mlruns").resolve().as_uri()  # its own default is the working directory
        identity = self._client.create_experiment(self._project, artifact_location=artifacts)
        return identity

    def _run(self, job: str) -> str:
        """The run of a job: the one that it had before, where this is a resume."""
        known = self._folder / "mlflow-runs.json"
        runs: dict[str, str] = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
        if job not in runs:
            experiment = self._client.get_experiment_by_name(self._project)
            identity = experiment.experiment_id if experiment else self._experiment()
            runs[job] = self._client.create_run(identity, run_name=job).info.run_id
            known.write_text(json.dumps(runs), encoding="utf-8")
        return runs[job]
