"""Seconds of work: from the roofline of a GPU, or measured (`calibration`).

A forward pass of an engine takes as long for one sequence as for many, up to what the device can do at a time: so an
engine's seconds are passes, tokens read and tokens written, each with its own price.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from spftsql.config import Config
from spftsql.planning.cost_plan import shape_of
from spftsql.planning.roofline import (
    DECODE_REACHED,
    EXECUTIONS_PER_CORE,
    PREFILL_REACHED,
    TRAINING_REACHED,
    Device,
    decode_rate,
    prefill_rate,
    training_rate,
)

# Assumed of starts on GPUs: vLLM's import, weights and CUDA graphs; a group of training workers with their weights.
_ENGINE_START_S, _TRAINER_START_S = 90.0, 30.0
_VERIFY_START_S = 3.0  # of a verification by itself, measured on two cores
DATABASES = {"demo": 1, "geoquery": 1, "spider": 166, "bird": 80}  # of which rows are grouped


@dataclass(frozen=True)
class StageFacts:
    """What a stage of a run had over its plan (ratios), and what its time went to.

    `passes` are an engine's for requests that all have a place at the same time; `price` is what its work took over
    what the run's prices say. `start_s` is what starts and ends took, `gap_s` what went by before the stage beside the
    driver's seconds for its rows. `statement_s` and `token_s` are seconds of one verifier and of one trainer.
    """

    read: float = 1.0
    written: float = 1.0
    executions: float = 1.0
    passes: float = 0.0
    price: float = 1.0
    start_s: float = 0.0
    gap_s: float = 0.0
    statement_s: float | None = None
    token_s: float | None = None


@dataclass(frozen=True)
class Rates:
    """Seconds of one worker for a pass, a token read, a token written, a statement, a token trained on.

    `starts` are by kind of stage; `stages` has by name what is known of a run's stages; `databases` is how many the
    rows are about. `trainers` is how many workers `trained_s` was measured with, and `exchange_s` what a step takes
    more with other workers on other machines. `driver_s` is what the driver does for a row before its stage.
    """

    pass_s: float
    read_s: float
    written_s: float
    statement_s: float
    trained_s: float
    starts: Mapping[str, float]
    databases: int = 1
    driver_s: float = 0.0
    stages: Mapping[str, StageFacts] = field(default_factory=dict)

    def of(self, name: str) -> StageFacts:
        """What is known of a stage."""
        return self.stages.get(name) or StageFacts(start_s=self.starts.get(name.split("-")[0], 0.0))


def assumed(config: Config, device: Device) -> Rates:
    """What the roofline says of one engine and one trainer. Raises `UserError` for a model of unknown size."""
    shape, generation, training = shape_of(config), config.generation, config.training
    gpus = max(1.0, generation.gpus)
    return Rates(
        pass_s=0.0,  # in what a token takes
        read_s=1 / (prefill_rate(shape, device) * PREFILL_REACHED * gpus),
        written_s=1 / (decode_rate(shape, device, config.model.max_length / 2) * DECODE_REACHED * gpus),
        statement_s=1 / EXECUTIONS_PER_CORE,
        trained_s=1 / (training_rate(shape, device, training.lora is not None) * TRAINING_REACHED),
        starts={"generate": _ENGINE_START_S, "train": _TRAINER_START_S, "verify": _VERIFY_START_S},
        databases=len(config.data.databases) or DATABASES.get(config.data.benchmark, 1),
    )
