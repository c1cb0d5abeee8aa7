"""A model in training under DeepSpeed, on one worker of a process group that is already there."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spftsql.config import Config
from spftsql.training.batches import Micro
from spftsql.training.checkpoints import MOMENTS, Progress, open_tensors, read_progress, write_checkpoint
from spftsql.training.job import Prepared
from spftsql.training.model import prepare_for_training
from spftsql.training.steps import model_dtype
from spftsql.training.weights import save_weights


class DeepSpeedEngine:
    """`steps.Engine` over `deepspeed.initialize`, for every ZeRO stage, with or without offload and adapters."""

    def __init__(
        self,
        prepared: Prepared,
        config: Config,
        device: torch.device,
        total: Callable[[Tensor], Tensor],
        checkpoint: Path | None,
    ) -> None:
        """Loads the model of `prepared`, as it was at `checkpoint` where there is one; `total` adds up over workers."""
        import deepspeed
        from torch import distributed

        deepspeed.init_distributed(dist_backend=distributed.get_backend(), verbose=False)
        self.rank, self.workers, self.device = distributed.get_rank(), distributed.get_world_size(), device
        self.total = total
        self._prepared, self._config = prepared, config
        self._dtype = model_dtype(config, device)
        module, self._adapted = self._load()
        if checkpoint is not None:  # before DeepSpeed makes its own copies and parts of them
            _load_weights(module, checkpoint)
        trained = [p for p in module.parameters() if p.requires_grad]
        optimization = prepared.job.optimization
        self._optimizer = torch.optim.AdamW(
            trained, lr=optimization.learning_rate, weight_decay=optimization.weight_decay, fused=True
        )
        self._stage = config.training.zero_stage
        # Without ZeRO DeepSpeed clips float32 gradients itself but does not tell their norm.
        self._clip = optimization.clip if self._stage == 0 and self._dtype == torch.float32 else None
        self._engine, *_ = deepspeed.initialize(
            model=module, model_parameters=trained, optimizer=self._optimizer, config=self._settings()
        )
        self._trained = {name: p for name, p in self._engine.module.named_parameters() if p.requires_grad}
        if checkpoint is not None:
            self._restore(checkpoint)

    def forward(self, micro: Micro) -> Tensor:
        """See `Engine`."""
        logps: Tensor = self._engine(micro)
        return logps

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `Engine`. DeepSpeed averages gradients over workers; shares of a global loss are to be added."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.workers, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # counts the pass; the optimizer waits for the last one

    def step(self, learning_rate: float) -> float:
        """See `Engine`."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm: Any = None
        if self._clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(self._engine.module.parameters(), self._clip)
        self._engine.step()
        return float(norm if norm is not None else self._engine.get_global_grad_norm())

    def save(self, progress: Progress) -> None:
        """See `Engine`. Every worker writes the whole tensors of its share of the parameters."""
        tensors = {}
        for number, (name, parameter) in enumerate(self._trained.items()):
            for key in (None, *MOMENTS):
                whole = self._whole(parameter, key)  # every worker takes part
                if number % self.workers == self.rank:
                    tensors[f"{name}/{key}" if key else name] = whole.cpu()

        def total(sums: Tensor) -> Tensor:
            return self.total(sums.to(self.device)).cpu()

        write_checkpoint(self._prepared.work, progress, tensors, self.rank, self.workers, total)

    def gather(self) -> dict[str, Tensor] | None:
        """Puts partitioned weights together on rank 0 (every rank has to call this); None where there are no parts."""
        if self._stage < 3:
            return None
        weights = {}
        for name, parameter in self._trained.items():
            whole = self._whole(parameter, None)
            if self.rank == 0:
                weights[name] = whole.cpu()
        return weights

    def export(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Writes the weights, or the adapter, and the architecture; `weights` is what `gather` gave."""
        module, adapted = self._engine.module, self._adapted
        if weights is not None:
            module, adapted = self._load()
            module.load_state_dict(weights, strict=False)
        save_weights(module.causal, adapted, self._dtype, self._prepared, self._config, folder)

    def _whole(self, parameter: Tensor, key: str | None) -> Tensor:
        """A weight (float32), or its moment `key`, put together from what the workers have of it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self._optimizer is self._engine.optimizer:  # without ZeRO there are no parts
            return (self._optimizer.state[parameter][key] if key else parameter).detach()
        whole: Tensor | None = (
            safe_get_full_optimizer_state(parameter, key) if key else safe_get_full_fp32_param(parameter)
        )
        assert whole is not None  # of a parameter that is trained
        return whole

    def _restore(self, checkpoint: Path) -> None:
        """Sets weights, moments and the optimizer's count of steps; the optimizer has not made a step yet."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        zero = self._engine.optimizer
        step = float(read_progress(checkpoint).step)
        plain = self._optimizer is zero
        flat = list(self._trained.values()) if plain else _flat_parts(zero, self._stage)
        for part in flat:
            moments = {key: torch.zeros_like(part, requires_grad=False) for key in MOMENTS}
            self._optimizer.state[part] = {"step": torch.tensor(step, device=part.device), **moments}
        if not plain and self._stage < 3:
            zero._lazy_init_hp_params_optimizer_state()  # links the moments just made to the parameters they are of
        with open_tensors(checkpoint) as tensors, torch.no_grad():
            for name, parameter in self._trained.items():
                if not plain:
                    safe_set_full_fp32_param(parameter, tensors[name].to(self.device))
                for key in MOMENTS:
                    moment = tensors[f"{name}/{key}"].to(self.device)
                    if plain:
                        self._optimizer.state[parameter][key].copy_(moment)
                    else:
                        safe_set_full_optimizer_state(parameter, moment, key)

    def close(self) -> None:
        """Frees the memory for the next job of this worker."""
        self._engine.destroy()
        del self._engine, self._adapted, self._optimizer, self._trained
        gc.collect()

    def _load(self) -> tuple[Any, Any]:
        training = self._config.training
        return prepare_for_training(
            self._prepared.model,
            self._dtype,
            training.lora,
            self._prepared.dropout,
            training.gradient_checkpointing,
            training.sharing,
            self._prepared.job.seed,
            self._config.generation,
        )

    def _settings(self) -> dict[str, Any]:
        training, clip = self._config.training, self._prepared.job.optimization.clip
        zero: dict[str, Any] = {
            "stage": self._stage,
            "overlap_comm": False,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        if training.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
            if self._stage == 3:
                zero["offload_param"] = {"device": "cpu"}
        return {
            # `backward` says itself which pass is the last; from 2 on DeepSpeed keeps what adds up over passes.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 0.0 if self._clip is not None else clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
            "bf16": {"enabled": self._dtype == torch.bfloat16},
            "steps_per_print": None,
        }


def _load_weights(module: torch.nn.Module, checkpoint: Path) -> None:
    parameters = dict(module.named_parameters())
    with open_tensors(checkpoint) as tensors, torch.no_grad():
        for name in tensors:
            if name in parameters:
                parameters[name].copy_(tensors[name])


def _flat_parts(zero: Any, stage: int) -> list[Tensor]:
    """This worker's float32 parts, to which DeepSpeed's inner optimizer keeps its state."""
    if stage == 3:
        return list(zero.fp32_partitioned_groups_flat)
    if hasattr(zero, "single_partition_of_fp32_groups"):
        return list(zero.single_partition_of_fp32_groups)
    return list(zero.fp32_groups_flat_partition)  # bfloat16 without ZeRO
