"""What a GPU could do at most, and what it does: rates of generation and training, from a model's sizes.

The roofline (Williams, Waterman and Patterson, CACM 52(4), 2009): a step takes the longer of two times, that of its
arithmetic at the peak of the device, and that of the bytes that it must read at the memory's bandwidth. Pure
arithmetic; figures of devices are those of their makers' data sheets, dense bfloat16 with float32 accumulation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spftsql.errors import UserError
from spftsql.planning.shapes import Shape

# What is reached of the roofline. Generation: 12,500 tokens/s of an 8B model on one H100 with vLLM as others report it,
# of 22,000 to 51,000 possible ones. Training: of the 10 to 29 % (LoRA, RL) and 40 % (full, well-packed) that others
# report on H100.
DECODE_REACHED = 0.5
PREFILL_REACHED = 0.5
TRAINING_REACHED = 0.3
SEQUENCES = 256  # decoded at a time
EXECUTIONS_PER_CORE = 2000.0  # statements per second through the process fence, small databases: benchmarks/RESULTS.md


@dataclass(frozen=True)
class Device:
    """One GPU: floating-point operations and bytes per second, and bytes of memory."""

    name: str
    flops: float
    bandwidth: float
    memory: float


DEVICES = {
    device.name: device
    for device in (
        Device("A100", 312e12, 2.039e12, 80e9),
        Device("H100", 989e12, 3.35e12, 80e9),
        Device("H200", 989e12, 4.8e12, 141e9),
        Device("B200", 2250e12, 8.0e12, 180e9),
        Device("L40S", 362e12, 0.864e12, 48e9),
        Device("L4", 121e12, 0.3e12, 24e9),
    )
}


def parse_gpus(text: str) -> tuple[int, Device]:
    """`8xH100` as a number and a device; `H100` is one. Raises `UserError` for another text or an unknown device."""
    match = re.fullmatch(r"(?:(\d{1,6})\s*[x×*]\s*)?([A-Za-z]\w*)", text.strip())
    device = DEVICES.get(match[2].upper()) if match else None
    if match is None or device is None or int(match[1] or 1) == 0:
        raise UserError(f"--gpus {text}: give a number and a kind, as 8xH100; known kinds: {', '.join(DEVICES)}")
    return int(match[1] or 1), device


def prefill_rate(shape: Shape, device: Device) -> float:
    """Prompt tokens per second at the peak: 2 operations per weight and token (Kaplan et al., 2020, section 2.1)."""
    return device.flops / (2 * shape.parameters)


def decode_rate(
    shape: Shape, device: Device, context: float, sequences: int = SEQUENCES, shared: float = 0.0, value_bytes: int = 2
) -> float:
    """Written tokens per second at the roofline, `sequences` at a time, each over `context` tokens of KV cache.

    A step reads the weights once and every sequence's cache; `shared` tokens of it are common and read once. It cannot
    be faster than the arithmetic of its tokens.
    """
    cache = shape.kv_bytes(value_bytes)
    read = shape.parameters * value_bytes + shared * cache + sequences * (context - shared) * cache
    return min(sequences * device.bandwidth / read, prefill_rate(shape, device))


def training_rate(shape: Shape, device: Device, adapters: bool) -> float:
    """Trained tokens per second at the peak: 6 operations per weight and token, 4 where the weights are frozen.

    Kaplan et al., 2020, section 2.1: 2 forward, 2 for the gradient of activations, 2 for that of the weights.
    """
    return device.flops / ((4 if adapters else 6) * shape.parameters)
