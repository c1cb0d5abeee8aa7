"""Training in this process: a plain torch loop on one GPU, or on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from spftsql.config import Config
from spftsql.training.batches import Micro
from spftsql.training.checkpoints import (
    MOMENTS,
    Progress,
    latest_checkpoint,
    open_tensors,
    read_progress,
    write_checkpoint,
    writing,
)
from spftsql.training.job import (
    Prepared,
    TrainJob,
    TrainResult,
    claim_work,
    prepare,
    publish,
    read_result,
    watch_of,
    write_model,
)
from spftsql.training.loggers import open_loggers, tell
from spftsql.training.metrics import Values, append_metrics, forget_metrics, validation_line
from spftsql.training.model import prepare_for_training
from spftsql.training.reference import reference_logps
from spftsql.training.steps import model_dtype, run_steps
from spftsql.training.validation import judge
from spftsql.training.weights import save_weights


def train_local(
    jobs: Sequence[TrainJob], config: Config, metrics: Path, progress: Callable[[str, int, int], None]
) -> list[TrainResult]:
    """Trains the jobs one after another and returns their results in order.

    A job whose output is complete is not trained again; an interrupted one goes on from its last checkpoint.
    `metrics` gets one JSON line per step, and `progress(job, step, steps)` is called after each. Raises `UserError` for
    jobs that cannot be trained as they are, `Fault` for a loss that is not finite or a disk that is full.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(config.training.threads)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open_loggers(config, metrics.parent) as loggers:

            def log(values: Values) -> None:
                append_metrics(metrics, values)
                tell(loggers, values)
                progress(values["job"], values["step"], values["steps"])

            return [read_result(job) or _train(job, config, metrics, log) for job in jobs]
    finally:
        torch.set_num_threads(threads)


def _train(job: TrainJob, config: Config, metrics: Path, log: Callable[[Values], None]) -> TrainResult:
    claim_work(job, config)
    prepared = prepare(job, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reference = None
    if job.mode != "sft":
        dtype = model_dtype(config, device)
        reference = reference_logps(prepared, config.training, dtype, device, 0, 1, lambda sums: sums)
    checkpoint = latest_checkpoint(prepared.work)
    state = read_progress(checkpoint) if checkpoint else Progress()
    engine = LocalEngine(prepared, config, device, checkpoint)

    forget_metrics(metrics, job.name, state.step)
    watch = watch_of(prepared, config)

    def enough() -> bool:
        """Validates the model where that is due; whether the training has come to its end."""
        if watch is None or job.validate is None:
            return False
        if watch.due(state.step):
            folder = watch.model(state.step)
            if watch.result(state.step) is None:
                with writing(prepared.work):
                    watch.write(state.step, lambda target: write_model(prepared, state, config, engine.export, target))
                judge(folder, job.validate)
                watch.forget_worse()
            for step, accuracy in watch.news().items():
                log(validation_line(job.name, step, prepared.steps, accuracy))
        return watch.ended()

    run_steps(engine, prepared, reference, state, config, log, enough)
    if watch is None:
        publish(prepared, state, config, engine.export)
    else:
        enough()
        watch.finish(job.output)
    result = read_result(job)
    assert result is not None  # published just now
    return result


class LocalEngine:
    """One model, AdamW, and checkpoints in the job's work folder.

    In bfloat16 the forward pass runs under autocast over float32 weights, so that small updates are not lost.
    """

    rank, workers = 0, 1

    def __init__(self, prepared: Prepared, config: Config, device: torch.device, checkpoint: Path | None) -> None:
        """Loads the model of `prepared`, as it was at `checkpoint` where there is one."""
        training, optimization = config.training, prepared.job.optimization
        self.device = device
        self._prepared, self._config = prepared, config
        self._final_dtype = model_dtype(config, device)
        self._module, self._adapted = prepare_for_training(
            prepared.model,
            self._final_dtype if training.lora else torch.float32,
            training.lora,
            prepared.dropout,
            training.gradient_checkpointing,
            training.sharing,
            prepared.job.seed,
            config.generation,
        )
        self._module.to(device)
        self._trained = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._trained.values(),
            lr=optimization.learning_rate,
            weight_decay=optimization.weight_decay,
            fused=True,
        )
        self._clip = optimization.clip
        if checkpoint is not None:
            self._restore(checkpoint)

    def forward(self, micro: Micro) -> Tensor:
        """See `Engine`."""
        mixed = self._final_dtype != torch.float32
        with torch.autocast(self.device.type, torch.bfloat16) if mixed else contextlib.nullcontext():
            logps: Tensor = self._module(micro)
        return logps

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `Engine`."""
        torch.autograd.backward(loss)

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self._clip)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def total(self, sums: Tensor) -> Tensor:
        """See `Engine`."""
        return sums

    def save(self, progress: Progress) -> None:
        """See `Engine`."""
        tensors = {}
        for name, parameter in self._trained.items():
            tensors[name] = parameter.detach()
            tensors |= {f"{name}/{key}": self._optimizer.state[parameter][key] for key in MOMENTS}
        write_checkpoint(self._prepared.work, progress, tensors, 0, 1, self.total)

    def _restore(self, checkpoint: Path) -> None:
        step = torch.tensor(float(read_progress(checkpoint).step))
        with open_tensors(checkpoint) as tensors, torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(tensors[name])
                moments = {key: tensors[f"{name}/{key}"].to(parameter) for key in MOMENTS}
                self._optimizer.state[parameter] = {"step": step.to(self.device, copy=True), **moments}

    def export(self, folder: Path) -> None:
        """Writes the weights, or the adapter, and the architecture; training may go on."""
        save_weights(self._module.causal, self._adapted, self._final_dtype, self._prepared, self._config, folder)
