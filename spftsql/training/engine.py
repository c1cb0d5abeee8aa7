"""A model in training under DeepSpeed, on one worker of a process group that is already there."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spftsql.config import Config
from spftsql.training.batches import Micro, accumulation
from spftsql.training.job import Prepared, Progress
from spftsql.training.model import prepare_for_training
from spftsql.training.steps import model_dtype

_POSITION = "position.json"
_WEIGHTS = "weights.bin"


class DeepSpeedEngine:
    """`steps.Engine` over `deepspeed.initialize`, for every ZeRO stage, with or without offload and adapters."""

    def __init__(
        self, prepared: Prepared, config: Config, device: torch.device, total: Callable[[Tensor], Tensor],
        keep: Callable[[DeepSpeedEngine, Progress], None],
    ) -> None:  # fmt: skip
        """Loads the model of `prepared`; `total` adds a tensor up over workers, `keep` stores a checkpoint."""
        import deepspeed
        from torch import distributed

        deepspeed.init_distributed(dist_backend=distributed.get_backend(), verbose=False)
        self.rank, self.workers, self.device = distributed.get_rank(), distributed.get_world_size(), device
        self.total = total
        self._keep = keep
        self._prepared, self._config = prepared, config
        self._dtype = model_dtype(config, device)
        module, self._adapted = self._load()
        trained = [p for p in module.parameters() if p.requires_grad]
        optimization = prepared.job.optimization
        optimizer = torch.optim.AdamW(
            trained, lr=optimization.learning_rate, weight_decay=optimization.weight_decay, fused=True
        )
        self._stage = config.training.zero_stage
        # Without ZeRO DeepSpeed clips float32 gradients itself but does not tell their norm.
        self._clip = optimization.clip if self._stage == 0 and self._dtype == torch.float32 else None
        self._engine, *_ = deepspeed.initialize(
            model=module, model_parameters=trained, optimizer=optimizer, config=self._settings()
        )

    def forward(self, micro: Micro) -> Tensor:
        """See `Engine`."""
        logps: Tensor = self._engine(micro.input_ids, micro.position, micro.target)
        return logps

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `Engine`. DeepSpeed averages gradients over workers; shares of a global loss are to be added."""
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
        """See `Engine`."""
        self._keep(self, progress)

    def write_checkpoint(self, folder: Path, progress: Progress) -> None:
        """Writes this rank's part of a checkpoint; the parts of all ranks together are one."""
        self._engine.save_checkpoint(folder, tag="state", exclude_frozen_parameters=self._adapted is not None)
        if self.rank == 0:
            position = {"job": self._prepared.job.name, **asdict(progress)}
            (folder / _POSITION).write_text(json.dumps(position))

    def restore(self, folder: Path) -> Progress:
        """Loads a checkpoint of this job; a fresh `Progress` when it is another job's."""
        position = json.loads((folder / _POSITION).read_text())
        if position.pop("job") != self._prepared.job.name:
            return Progress()
        self._engine.load_checkpoint(folder, tag="state", load_module_strict=self._adapted is None)
        return Progress(**position)

    def gather(self, folder: Path) -> Path | None:
        """Puts partitioned weights together in a file on rank 0 (every rank has to call this); None otherwise."""
        if self._stage < 3:
            return None
        self._engine.save_16bit_model(folder, _WEIGHTS)
        return folder / _WEIGHTS

    def export(self, folder: Path, weights: Path | None) -> None:
        """Writes weights (adapters merged) and architecture; `weights` is what `gather` gave."""
        module, adapted = self._engine.module, self._adapted
        if weights is not None:
            module, adapted = self._load()
            module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=False)
        causal = adapted.merge_and_unload() if adapted is not None else module.causal
        causal.to(self._dtype).save_pretrained(folder)

    def close(self) -> None:
        """Frees the memory for the next job of this worker."""
        self._engine.destroy()
        del self._engine, self._adapted
        gc.collect()

    def _load(self) -> tuple[Any, Any]:
        training = self._config.training
        return prepare_for_training(
            self._prepared.model,
            self._dtype,
            training.lora,
            self._prepared.dropout,
            training.gradient_checkpointing,
            self._prepared.job.seed,
        )

    def _settings(self) -> dict[str, Any]:
        training, optimization = self._config.training, self._prepared.job.optimization
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
            "train_micro_batch_size_per_gpu": training.micro_batch,
            "gradient_accumulation_steps": accumulation(optimization.batch_size, self.workers, training.micro_batch),
            "gradient_clipping": 0.0 if self._clip is not None else optimization.clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
            "bf16": {"enabled": self._dtype == torch.bfloat16},
            "steps_per_print": None,
        }
