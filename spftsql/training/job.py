"""One training as data: what is wanted, what it needs to begin, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spftsql.config import Config, GenerationConfig, Optimization
from spftsql.errors import UserError
from spftsql.records import Mode, TrainRow, content_hash, read_records
from spftsql.training.artefact import (
    MANIFEST,
    check_tokenizer,
    copy_tokenizer,
    load_tokenizer,
    quiet_transformers,
    read_manifest,
    resolve_model,
    tokenizer_hash,
    weights_key,
    write_manifest,
)
from spftsql.training.batches import Encoded, Weigh, encode_rows, plan
from spftsql.training.card import write_card
from spftsql.training.checkpoints import Progress, latest_checkpoint, read_progress, sync_folder, writing
from spftsql.training.losses import LossForm, Normalise
from spftsql.training.validation import Validate, Watch

_JOB = "job.json"


@dataclass(frozen=True)
class TrainJob:
    """One training: `model` is trained on `data` (Parquet of `TrainRow`) in `mode` and written to `output`.

    `reference` is the frozen model of the pair losses (default: `model` itself). `synthetic_share` is the share of
    synthetic rows in every batch (default: as they come). `details` are for the model card (`round`, `prompt_hash`,
    `verdicts`, …) and change nothing else. With `validate` and `training.validate_steps` the training stops early, and
    its output is the model that `validate` finds best. In a cluster all paths are on storage that all nodes share.
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
    form: LossForm = "logistic"
    normalise: Normalise = "sum"
    weigh: Weigh = "pair"
    synthetic_share: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    validate: Validate | None = None

    @property
    def work(self) -> Path:
        """The folder of what a training needs until its output is there: checkpoints, reference log-probabilities."""
        return self.output.parent / f".{self.output.name}.work"


@dataclass(frozen=True)
class TrainResult:
    """What a training did; `loss` is the mean over the last tenth of its steps, `seconds` the time in its steps."""

    name: str
    output: Path
    steps: int
    loss: float
    seconds: float
    dropped_rows: int


@dataclass(frozen=True)
class Prepared:
    """A job, read and tokenized. `dropout` is None where the mode trains without; `work` holds its scratch files.

    `node` says whether weights are read from copies on this machine.
    """

    job: TrainJob
    model: Path
    reference: Path
    node: GenerationConfig
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
    quiet_transformers()
    model, reference = resolve_model(job.model), resolve_model(job.reference or job.model)
    for folder in (model, reference):
        check_tokenizer(folder)
    if tokenizer_hash(model) != tokenizer_hash(reference):
        raise UserError(f"{job.name}: {model} and its reference {reference} have different tokenizers")
    tokenizer = load_tokenizer(model)
    rows, dropped = encode_rows(_read_rows(job), tokenizer, config.model.max_length, job.mode, job.weigh)
    optimization = job.optimization
    steps, together = optimization.total_steps(len(rows)), config.training.questions_per_schema
    return Prepared(
        job=job,
        model=model,
        reference=reference,
        node=config.generation,
        rows=rows,
        dropped=dropped,
        batches=plan(rows, steps, optimization.batch_size, job.seed, job.synthetic_share, together),
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        dropout=float(read_manifest(model).get("dropout", 0.0)) if job.mode == "sft" else None,
        work=job.work,
    )


def job_settings(job: TrainJob, config: Config) -> dict[str, Any]:
    """What decides a job's result, as flat names and values; a resume needs the same."""
    rows = _read_rows(job)
    model = resolve_model(job.model)
    settings: dict[str, Any] = {
        "mode": job.mode,
        "seed": job.seed,
        "weights of the model": weights_key(model),
        "weights of the reference": weights_key(resolve_model(job.reference)) if job.reference else None,
        "training rows": len(rows),
        "content of the training rows": content_hash([asdict(row) for row in rows]),
        "synthetic_share": job.synthetic_share,
        "lambda": job.lambda_,
        "nll_weight": job.nll_weight,
        "loss": job.form,
        "normalise": job.normalise,
        "weigh": job.weigh,
        "model.dtype": config.model.dtype,
        "model.max_length": config.model.max_length,
    }
    training = config.training
    if job.validate is None:
        training = training.model_copy(update={"validate_steps": None})
    settings |= {f"training.{name}": value for name, value in training.result_settings().items()}
    return settings | {f"optimization.{name}": value for name, value in job.optimization.model_dump().items()}


def claim_work(job: TrainJob, config: Config) -> None:
    """Writes what a job is into its work folder, or finds it there.

    Raises `UserError`, with what differs, when another training stopped half-way there: a resume of it would mix two.
    """
    settings = json.loads(json.dumps(job_settings(job, config), default=str))
    file = job.work / _JOB
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = None
    if kept == settings:
        return
    if kept is not None:
        if checkpoint := latest_checkpoint(job.work):
            names = [name for name in {**kept, **settings} if kept.get(name) != settings.get(name)]
            changes = "; ".join(f"{name}: {kept.get(name)} then, {settings.get(name)} now" for name in names)
            raise UserError(
                f"{job.name}: a training stopped here after step {read_progress(checkpoint).step}, and this one is "
                f"another ({changes}); train with what it was begun with, or remove {job.work} to begin anew"
            )
        shutil.rmtree(job.work)
    with writing(job.work):
        job.work.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        temporary.replace(file)


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


def watch_of(prepared: Prepared, config: Config) -> Watch | None:
    """The validations of a job; None where its models are not validated."""
    training = config.training
    if prepared.job.validate is None or training.validate_steps is None:
        return None
    return Watch(prepared.work, training.validate_steps, training.patience, prepared.steps)


def publish(prepared: Prepared, progress: Progress, config: Config, save: Callable[[Path], Any]) -> None:
    """Writes the output directory atomically; `save(folder)` writes weights and architecture into it."""
    job = prepared.job
    partial = job.output.with_name(f".{job.output.name}.{os.getpid()}.partial")
    for left in job.output.parent.glob(f".{job.output.name}.*.partial"):  # by a process that was killed here
        shutil.rmtree(left, ignore_errors=True)
    try:
        with writing(job.output.parent):
            write_model(prepared, progress, config, save, partial)
            partial.rename(job.output)
    except BaseException:  # a full disk above all, which it would keep full
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(prepared.work, ignore_errors=True)


def write_model(
    prepared: Prepared, progress: Progress, config: Config, save: Callable[[Path], Any], folder: Path
) -> None:
    """Writes a complete model directory: what `save(folder)` writes, tokenizer, manifest and card."""
    job = prepared.job
    folder.mkdir(parents=True)
    save(folder)
    copy_tokenizer(prepared.model, folder, config.model.chat_template)
    write_manifest(
        folder,
        name=job.name,
        base=job.model,
        mode=job.mode,
        dropout=read_manifest(prepared.model).get("dropout", 0.0),
        steps=progress.step,
        loss=final_loss(progress.losses),
        loss_start=first_loss(progress.losses),
        margin_start=progress.margin_start,
        seconds=round(progress.seconds, 3),
        dropped_rows=prepared.dropped,
        training=job_settings(job, config),
        details=dict(job.details),
        rows=_counted(prepared.rows),
    )
    write_card(folder)
    sync_folder(folder)


def _counted(rows: Sequence[Encoded]) -> dict[str, int]:
    """How many rows there are of each source, and of each reward."""
    count = Counter(row.source for row in rows)
    count.update(f"R = {row.reward}" for row in rows if row.reward is not None)
    return dict(sorted(count.items()))


def first_loss(losses: Sequence[float]) -> float:
    """The mean over the first tenth of the steps (at least one)."""
    head = losses[: max(len(losses) // 10, 1)]
    return sum(head) / len(head)


def final_loss(losses: Sequence[float]) -> float:
    """The mean over the last tenth of the steps (at least one)."""
    tail = losses[-max(len(losses) // 10, 1) :]
    return sum(tail) / len(tail)
