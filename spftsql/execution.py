"""The two ways to execute the stages, behind one interface.

`ray`: engine actors under Ray Data, the verifier pool under Ray Serve, Ray Train with DeepSpeed. `local`: the same
stage functions in this process. The Ray session is started by the first stage that needs it, once per run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

from spftsql.config import Config
from spftsql.databases.places import Databases
from spftsql.progress import Advance

if TYPE_CHECKING:
    from spftsql.generation.onward import Onward
    from spftsql.training.job import TrainJob, TrainResult
    from spftsql.usage import Use
    from spftsql.verification.samples import Checks


class Execution(Protocol):
    """What a run needs of its machine. Paths are Parquet datasets; rows in equal rows out.

    `starts` says how many seconds what runs beside the stages took to start, by its name.
    """

    starts: dict[str, float]

    def generate(
        self,
        source: Path,
        target: Path,
        progress: Advance,
        checks: Checks | None = None,
        onward: Onward | None = None,
        before: Path | None = None,
    ) -> list[Use]:
        """`GenerationRequest` rows to `Sample` rows; with `checks` they are verified while others are written.

        With `onward` a second model may be asked about them meanwhile; what it said is taken from the folder `before`.
        """

    def verify(self, source: Path, target: Path, progress: Advance) -> Use:
        """`VerificationRequest` rows to `Verdict` rows."""

    def train(self, jobs: Sequence[TrainJob], metrics: Path, progress: Advance) -> list[TrainResult]:
        """Trains the jobs one after another; each leaves a complete model directory."""


class LocalExecution:
    """Everything in this process; SQL runs in child processes all the same."""

    def __init__(self, config: Config, databases: Databases) -> None:
        """Takes the places behind the database names that rows carry."""
        self._config, self._databases = config, databases
        self.starts: dict[str, float] = {}

    def generate(
        self,
        source: Path,
        target: Path,
        progress: Advance,
        checks: Checks | None = None,
        onward: Onward | None = None,
        before: Path | None = None,
    ) -> list[Use]:
        """See `Execution`. One engine has one model at a time: nothing is asked of a second one meanwhile."""
        from spftsql.generation.local import generate_dataset

        return generate_dataset(source, target, self._config, progress, checks, before)

    def verify(self, source: Path, target: Path, progress: Advance) -> Use:
        """See `Execution`."""
        from spftsql.verification.local import verify_dataset

        return verify_dataset(source, target, self._databases, self._config, progress)

    def train(self, jobs: Sequence[TrainJob], metrics: Path, progress: Advance) -> list[TrainResult]:
        """See `Execution`."""
        from spftsql.training.local import train_local

        return train_local(jobs, self._config, metrics, _overall(jobs, progress))


class RayExecution:
    """The stages on Ray."""

    def __init__(self, config: Config, databases: Databases) -> None:
        """Takes the places behind the database names that rows carry. Starts nothing yet."""
        self._config, self._databases = config, databases
        self.starts: dict[str, float] = {}

    def generate(
        self,
        source: Path,
        target: Path,
        progress: Advance,
        checks: Checks | None = None,
        onward: Onward | None = None,
        before: Path | None = None,
    ) -> list[Use]:
        """See `Execution`."""
        self._ensure_session()
        from spftsql.generation.stage import generate_dataset_ray

        with self._telling("generation"):
            return generate_dataset_ray(
                source, target, self._config, progress, checks=checks, onward=onward, before=before
            )

    def verify(self, source: Path, target: Path, progress: Advance) -> Use:
        """See `Execution`."""
        self._ensure_session()
        from spftsql.verification.stage import verify_dataset_ray

        with self._telling("verification"):
            return verify_dataset_ray(source, target, self._databases, self._config, progress)

    def train(self, jobs: Sequence[TrainJob], metrics: Path, progress: Advance) -> list[TrainResult]:
        """See `Execution`."""
        self._ensure_session()
        from spftsql.training.distributed import train_ray

        with self._telling("training"):
            return train_ray(jobs, self._config, metrics, _overall(jobs, progress))

    def _ensure_session(self) -> None:
        begin = time.monotonic()
        from spftsql.cluster.session import ensure_session

        ensure_session(self._config)
        self.starts.setdefault("session", round(time.monotonic() - begin, 3))

    def _telling(self, stage: str) -> AbstractContextManager[None]:
        """Says when a stage waits for a node. A session of our own has no other node than this machine."""
        if self._config.cluster.address is None:
            return nullcontext()
        from spftsql.cluster.session import offers
        from spftsql.planning.capacity import told_when_waiting

        return told_when_waiting(self._config, stage, offers)


@contextmanager
def open_execution(config: Config, databases: Databases) -> Iterator[Execution]:
    """The execution that the configuration names; a Ray session of our own is left running for `serve`."""
    # `accelerate` imports DeepSpeed wherever it is installed; here it costs seconds, and only workers need it.
    sys.modules.setdefault("deepspeed", cast(ModuleType, None))
    yield (LocalExecution(config, databases) if config.execution == "local" else RayExecution(config, databases))


def _overall(jobs: Sequence[TrainJob], progress: Advance) -> _PerJob:
    return _PerJob({job.name: index for index, job in enumerate(jobs)}, progress)


class _PerJob:
    """Turns the progress of single jobs into the progress of them all."""

    def __init__(self, order: Mapping[str, int], progress: Advance) -> None:
        self._done = dict.fromkeys(order, (0, 0))
        self._progress = progress

    def __call__(self, job: str, done: int, total: int) -> None:
        self._done[job] = (done, total)
        self._progress(sum(d for d, _ in self._done.values()), sum(t for _, t in self._done.values()))
