"""What a run cost: seconds, tokens, executed statements, GPU-hours, by stage and in all."""

from __future__ import annotations

from dataclasses import dataclass

from spftsql.config import Config
from spftsql.reporting.run_record import RunRecord, StageRecord


@dataclass(frozen=True)
class Cost:
    """Costs of a stage or a run. `lost` are seconds of builds that were cut off; they are in `gpu_hours` too."""

    seconds: float = 0.0
    lost: float = 0.0
    tokens: int = 0  # written by models
    trained: int = 0  # tokens in training steps
    executions: int = 0
    gpu_hours: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.lost + other.lost,
            self.tokens + other.tokens,
            self.trained + other.trained,
            self.executions + other.executions,
            self.gpu_hours + other.gpu_hours,
        )


def gpus_of(kind: str, config: Config | None) -> float:
    """GPUs that a kind of stage holds while it runs, as the configuration has it."""
    if config is None:
        return 0.0
    held = {
        "generate": config.generation.actors * config.generation.gpus,
        "train": config.training.max_workers * config.training.gpus,
    }
    return held.get(kind, 0.0)


def stage_cost(stage: StageRecord, config: Config | None) -> Cost:
    """The cost of one stage so far."""
    gpu_hours = gpus_of(stage.kind, config) * (stage.seconds + stage.lost) / 3600
    return Cost(stage.seconds, stage.lost, stage.tokens, stage.trained, stage.executions, gpu_hours)


def run_cost(record: RunRecord) -> Cost:
    """The cost of a run so far."""
    return sum((stage_cost(stage, record.config) for stage in record.stages), Cost())
