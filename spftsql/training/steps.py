"""The step loop that both ways of execution share: plain torch here, DeepSpeed under Ray Train there.

An `Engine` says how a model runs forward, backward and one optimizer step; everything else (the batches, the losses,
their normalisation over the global batch, the schedule, the metrics) is done here, once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from spftsql.config import Config, Optimization, TrainingConfig
from spftsql.errors import Fault
from spftsql.training.batches import Encoded, Micro, collate, split
from spftsql.training.checkpoints import Progress
from spftsql.training.flops import Meter
from spftsql.training.job import Prepared
from spftsql.training.losses import normalised, pair_losses, pair_sums, sft_loss
from spftsql.training.model import sequence_sums

Log = Callable[[dict[str, Any]], None]
_PAIR_MEANS = (
    "margin", "wrong", "preferred", "chosen_logp", "rejected_logp", "chosen_drift", "rejected_drift",
)  # fmt: skip
_SUMS = ("loss", "tokens", "computed_tokens", "flops", "pairs", *_PAIR_MEANS)


class Engine(Protocol):
    """A model in training on one of `workers` workers."""

    rank: int
    workers: int
    device: torch.device

    def forward(self, micro: Micro) -> Tensor:
        """Log-probabilities of the targets [N]."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradient of `loss`, this pass's share of the *global* loss; `last` marks a step's last pass."""

    def step(self, learning_rate: float) -> float:
        """One clipped optimizer step; returns the norm of the global gradient before clipping."""

    def total(self, sums: Tensor) -> Tensor:
        """The sum over all workers."""

    def save(self, progress: Progress) -> None:
        """Keeps a checkpoint from which the training can go on."""


def learning_rate(step: int, steps: int, optimization: Optimization) -> float:
    """Linear warm-up over the `warmup` share of the steps, then a cosine to 0; `step` counts from 0."""
    warmup = round(optimization.warmup * steps)
    if step < warmup:
        return optimization.learning_rate * (step + 1) / (warmup + 1)
    return optimization.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def run_steps(
    engine: Engine,
    prepared: Prepared,
    reference: Tensor | None,
    progress: Progress,
    config: Config,
    log: Log,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Trains from `progress.step` to the end, or until `enough()` before a step, keeping `progress` up to date.

    `reference` [rows, 2] holds log ρ(y|x) and log ρ(y′|x) of every row (None for `sft`). `log` gets the metrics of
    each step. Dropout is seeded by (job, step, worker), so that a resumed run repeats what an unbroken one does.
    Raises `Fault` for a loss that is not finite before it reaches the weights, and for such a gradient before anything
    is kept.
    """
    job, training = prepared.job, config.training
    meter = Meter(prepared.model, training, engine.device)
    for step in range(progress.step, prepared.steps):
        if enough():
            return
        begin = time.monotonic()
        torch.manual_seed((job.seed * 1_000_003 + step) * 1_009 + engine.rank)
        batch = prepared.batches[step]
        passes = passes_of(prepared, batch, engine.workers, training)[engine.rank]
        share = _Share(prepared, batch, reference, training, meter, engine.device)
        sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=engine.device)
        for number, indices in enumerate(passes):
            # A worker without rows in this pass still takes part in its collectives, with a loss of 0.
            loss, counted = share(engine, indices or batch[:1])
            weight = 1.0 if indices else 0.0
            sums += weight * counted
            engine.backward(weight * loss, last=number == len(passes) - 1)
        totals = dict(zip(_SUMS, engine.total(sums).tolist(), strict=True))
        rows = ", ".join(prepared.rows[i].id for i in batch)
        if not math.isfinite(totals["loss"]):
            raise Fault(
                f"{job.name}: the loss of step {step + 1} is {totals['loss']} (rows {rows}); lower its learning_rate"
            )
        rate = learning_rate(step, prepared.steps, job.optimization)
        norm = engine.step(rate)
        if not math.isfinite(norm):
            raise Fault(f"{job.name}: the gradient of step {step + 1} is {norm} (rows {rows}); lower its learning_rate")
        seconds = time.monotonic() - begin
        progress.step, progress.seconds = step + 1, progress.seconds + seconds
        progress.losses.append(totals["loss"])
        if totals["pairs"] and progress.margin_start is None:
            progress.margin_start = totals["margin"] / totals["pairs"]
        log(
            _metrics(
                prepared,
                progress,
                totals,
                rate,
                norm,
                seconds,
                meter.utilisation(totals["flops"], seconds, engine.workers),
            )
        )
        if progress.step % training.checkpoint_steps == 0 and progress.step < prepared.steps:
            engine.save(progress)


def passes_of(
    prepared: Prepared, batch: Sequence[int], workers: int, training: TrainingConfig
) -> list[list[list[int]]]:
    """A global batch as [worker][forward pass] -> rows, as the settings say (see `batches.split`)."""
    return split(prepared.rows, batch, workers, training.micro_batch, training.micro_tokens, training.sharing)


class _Share:
    """The loss of one forward pass as its share of the loss of the global batch, and the sums for the metrics."""

    def __init__(
        self,
        prepared: Prepared,
        batch: Sequence[int],
        reference: Tensor | None,
        training: TrainingConfig,
        meter: Meter,
        device: torch.device,
    ) -> None:
        self._prepared, self._reference, self._device, self._meter = prepared, reference, device, meter
        self._sharing = training.sharing
        self._prompt_loss = training.prompt_loss if prepared.job.mode == "sft" else 0.0
        rows = [prepared.rows[i] for i in batch]
        self._count = len(rows)
        self._completion_tokens = sum(len(row.chosen) for row in rows)
        self._prompt_tokens = max(sum(len(row.prompt) - 1 for row in rows), 1)

    def __call__(self, engine: Engine, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = [self._prepared.rows[i] for i in indices]
        micro = collate(rows, self._prepared.pad_id, self._prompt_loss > 0, self._sharing)
        sums = {
            "tokens": float(sum(row.tokens for row in rows)),
            "computed_tokens": float(micro.computed),
            "flops": self._meter.flops(micro),
        }
        micro = micro.to(self._device)
        logps = engine.forward(micro)
        if self._prepared.job.mode == "sft":
            loss = sft_loss(logps, micro.in_prompt, self._completion_tokens, self._prompt_tokens, self._prompt_loss)
        else:
            loss, pairs = self._pairs(logps, micro, rows, indices)
            sums |= {name: float(value) for name, value in pairs.items()}
        sums["loss"] = float(loss.detach())
        vector = torch.tensor([sums.get(name, 0.0) for name in _SUMS], dtype=torch.float64, device=self._device)
        return loss, vector

    def _pairs(
        self, logps: Tensor, micro: Micro, rows: Sequence[Encoded], indices: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor | int]]:
        job = self._prepared.job
        summed = sequence_sums(logps, micro)
        chosen, rejected = summed[~micro.is_rejected], summed[micro.is_rejected]
        pair = micro.row[micro.is_rejected]  # the rows of this pass that are pairs; the others are replay
        nll = -chosen / self._tensor([len(row.chosen) for row in rows])
        replay = torch.ones(len(rows), dtype=torch.bool, device=self._device).index_fill(0, pair, False)
        total = nll[replay].sum()
        if not pair.numel():
            return total / self._count, {}
        assert self._reference is not None  # set for every pair mode by the caller
        assert job.mode != "sft"
        pairs = [row for row in rows if row.rejected is not None]
        reference = self._reference[list(indices)].to(self._device)[pair]
        lengths = (
            self._tensor([len(row.chosen) for row in pairs]),
            self._tensor([len(row.rejected or ()) for row in pairs]),
        )
        values = (
            normalised(chosen[pair], lengths[0], job.normalise),
            normalised(rejected, lengths[1], job.normalise),
            normalised(reference[:, 0], lengths[0], job.normalise),
            normalised(reference[:, 1], lengths[1], job.normalise),
            self._tensor([float(row.reward or 0) for row in pairs]),
            job.lambda_,
        )
        losses = pair_losses(job.mode, *values, nll[pair], job.nll_weight, job.form)
        total = total + (self._tensor([row.weight for row in pairs]) * losses).sum()
        return total / self._count, {"pairs": pair.numel(), **pair_sums(*values)}

    def _tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def _metrics(
    prepared: Prepared,
    progress: Progress,
    totals: dict[str, float],
    rate: float,
    norm: float,
    seconds: float,
    utilisation: float | None,
) -> dict[str, Any]:
    metrics = {
        "job": prepared.job.name,
        "mode": prepared.job.mode,
        "step": progress.step,
        "steps": prepared.steps,
        "loss": totals["loss"],
        "lr": rate,
        "grad_norm": norm,
        "tokens": int(totals["tokens"]),  # of all sequences
        "computed_tokens": int(totals["computed_tokens"]),  # what is shared counted once
        "tokens_per_second": round(totals["tokens"] / max(seconds, 1e-9), 1),
    }
    if utilisation is not None:
        metrics["mfu"] = round(utilisation, 4)
    if totals["pairs"]:
        metrics |= {name: totals[name] / totals["pairs"] for name in _PAIR_MEANS}
        metrics["margin_start"] = progress.margin_start
    return metrics


def model_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The configured precision on a GPU; float32 on a CPU, where bfloat16 is emulated and many times slower."""
    return torch.float32 if device.type == "cpu" else getattr(torch, config.model.dtype)
