"""One training as data: what is wanted, what it needs to begin, and what it leaves behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spftsql.config import Config, Optimization
from spftsql.errors import UserError
from spftsql.records import Mode, TrainRow, content_hash, read_records
from spftsql.training.artefact import (
    MANIFEST,
    check_tokenizer,
    copy_tokenizer,
    quiet_transformers,
    read_manifest,
    resolve_model,
    tokenizer_hash,
    write_manifest,
)
from spftsql.training.batches import Encoded, encode_rows, plan


@dataclass(frozen=True)
class TrainJob:
    """One training: `model` is trained on `data` (Parquet of `TrainRow`) in `mode` and written to `output`.

    `reference` is the frozen model of the pair losses (default: `model` itself). `synthetic_share` is the share of
    synthetic rows in every batch (default: as they come). In a cluster all paths are on storage that all nodes share.
    """

    name: str
    model: Path
    data: Path
    output: Path
    mode: Mode
    optimization: Optimization
    seed: int
    reference: Path | None = None
    lambda_: float = 0.1
    nll_weight: float = 0.0
    synthetic_share: float | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a training did; `loss` is the mean over the last tenth of its steps, `seconds` the time in its steps."""

    name: str
    output: Path
    steps: int
    loss: float
    seconds: float
    dropped_rows: int


@dataclass
class Progress:
    """How far a training is; saved with every checkpoint."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """A job, read and tokenized. `dropout` is None where the mode trains without; `work` holds its scratch files."""

    job: TrainJob
    model: Path
    reference: Path
    rows: list[Encoded]
    dropped: int
    batches: list[list[int]]
    pad_id: int
    dropout: float | None
    work: Path

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.batches)


def prepare(job: TrainJob, config: Config) -> Prepared:
    """Reads and tokenizes the rows of a job and draws its batches.

    Raises `UserError` when the data cannot be trained on, when the tokenizer is not that of the weights, or when model
    and reference do not share one.
    """
    from transformers import AutoTokenizer

    quiet_transformers()
    model, reference = resolve_model(job.model), resolve_model(job.reference or job.model)
    for folder in (model, reference):
        check_tokenizer(folder)
    if tokenizer_hash(model) != tokenizer_hash(reference):
        raise UserError(f"{job.name}: {model} and its reference {reference} have different tokenizers")
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows, dropped = encode_rows(_read_rows(job), tokenizer, config.model.max_length, job.mode)
    optimization = job.optimization
    steps = optimization.total_steps(len(rows))
    return Prepared(
        job=job,
        model=model,
        reference=reference,
        rows=rows,
        dropped=dropped,
        batches=plan(rows, steps, optimization.batch_size, job.seed, job.synthetic_share),
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        dropout=float(read_manifest(model).get("dropout", 0.0)) if job.mode == "sft" else None,
        work=job.output.parent / f".{job.output.name}-{job_key(job, config)}",
    )


def job_key(job: TrainJob, config: Config) -> str:
    """A hash of what decides a job's result and of how its checkpoints are cut; a resume needs the same one."""
    settings = {**asdict(job), "optimization": job.optimization.model_dump()}
    data = content_hash([asdict(row) for row in _read_rows(job)])
    without_effect = {"max_failures", "collective_timeout_s", "checkpoint_steps", "threads", "cpus"}
    return content_hash(settings, data, config.training.model_dump(exclude=without_effect))


def _read_rows(job: TrainJob) -> list[TrainRow]:
    if not job.data.exists():
        raise UserError(f"{job.name}: training data {job.data} does not exist")
    return read_records(job.data, TrainRow)


def read_result(job: TrainJob) -> TrainResult | None:
    """The result of a job whose output is complete, else None."""
    if not (job.output / MANIFEST).is_file():
        return None
    manifest = read_manifest(job.output)
    return TrainResult(
        job.name, job.output, manifest["steps"], manifest["loss"], manifest["seconds"], manifest["dropped_rows"]
    )


def publish(prepared: Prepared, progress: Progress, config: Config, save: Callable[[Path], Any]) -> None:
    """Writes the output directory atomically; `save(folder)` writes weights and architecture into it."""
    job = prepared.job
    partial = job.output.with_name(f".{job.output.name}.{os.getpid()}.partial")
    for left in job.output.parent.glob(f".{job.output.name}.*.partial"):  # by a process that was killed here
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    save(partial)
    copy_tokenizer(prepared.model, partial, config.model.chat_template)
    write_manifest(
        partial,
        name=job.name,
        base=job.model,
        mode=job.mode,
        dropout=read_manifest(prepared.model).get("dropout", 0.0),
        steps=prepared.steps,
        loss=final_loss(progress.losses),
        seconds=round(progress.seconds, 3),
        dropped_rows=prepared.dropped,
    )
    partial.rename(job.output)
    shutil.rmtree(prepared.work, ignore_errors=True)


def final_loss(losses: Sequence[float]) -> float:
    """The mean over the last tenth of the steps (at least one)."""
    tail = losses[-max(len(losses) // 10, 1) :]
    return sum(tail) / len(tail)
