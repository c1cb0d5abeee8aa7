"""How much of a GPU's arithmetic a training uses: model FLOPs utilisation (MFU)."""

from __future__ import annotations

from pathlib import Path

import torch

from spftsql.config import TrainingConfig
from spftsql.planning.shapes import Shape, shape_of_directory
from spftsql.training.artefact import named_base, resolve_model
from spftsql.training.batches import Micro

# Dense bfloat16 FLOP/s by a part of the device's name, as NVIDIA's data sheets give them.
_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
}


class Meter:
    """Counts the floating-point operations that a training needs, on a GPU whose peak is known; else it is silent.

    As in PaLM (arXiv 2204.02311, appendix B): 6 operations per weight and token (4 where the weights are frozen and
    only adapters learn), and attention beside them; operations that are repeated to save memory do not count. What
    sharing saves is not counted as done.
    """

    def __init__(self, model: Path, training: TrainingConfig, device: torch.device) -> None:
        """Reads the model's sizes. Raises `UserError` when its configuration does not give them."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = next((peak for part, peak in _PEAKS.items() if part in name), None)
        if self._peak is not None:
            base = named_base(model)
            self._shape = shape_of_directory(resolve_model(base) if base is not None else model)
            self._passes = 2 if training.lora else 3

    def flops(self, micro: Micro) -> float:
        """Operations of one forward and backward pass; 0 where nothing is measured."""
        return self._passes * forward_flops(self._shape, micro) if self._peak is not None else 0.0

    def utilisation(self, flops: float, seconds: float, workers: int) -> float | None:
        """The share of the peak of `workers` GPUs that was used; None where nothing is measured."""
        return flops / (seconds * workers * self._peak) if self._peak is not None else None


def forward_flops(shape: Shape, micro: Micro) -> float:
    """Operations of one forward pass: two per weight and token, and four per layer, channel and token that is seen."""
    head = shape.vocabulary * shape.hidden
    layers = shape.parameters - head * (1 if shape.tied else 2)
    if micro.depth is not None:
        seen = float((micro.depth + 1).sum())
    else:
        sequences, length = micro.input_ids.shape
        seen = sequences * length * (length + 1) / 2
    width = shape.heads * (shape.head_size or shape.hidden // shape.heads)
    return 2 * layers * micro.computed + 2 * head * len(micro.target) + 4 * shape.layers * width * seen
