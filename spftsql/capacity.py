"""Whether a cluster can ever run a recipe: found out before anything starts, with the missing resource named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.job_server import Resources, beyond


@dataclass(frozen=True)
class Need:
    """So many actors of one stage at the same time, and what each takes."""

    setting: str  # where the recipe says so
    each: Resources
    count: int


def needs(config: Config, stages: Sequence[str] = ("generation", "training", "verification")) -> list[Need]:
    """What the stages of a recipe need. Of engines and verifiers one will do: the others start when there is room."""
    generation, training, verification = config.generation, config.training, config.verification
    found = {
        "generation": Need(
            "generation.actors", {"CPU": generation.cpus, "GPU": generation.gpus, **generation.resources}, 1
        ),
        "training": Need(
            "training.workers",
            {"CPU": training.cpus, "GPU": training.gpus, **training.resources},
            training.min_workers,
        ),
        "verification": Need("verification.workers", {"CPU": verification.cpus, **verification.resources}, 1),
    }
    return [found[stage] for stage in stages]


def shortages(wanted: Sequence[Need], offers: Sequence[Resources]) -> list[str]:
    """One line for each need that nodes of these resources can never meet."""
    lines = []
    for need in wanted:
        lacking = beyond(need.each, need.count, offers)
        if lacking:
            lines.append(f"{need.setting} needs {lacking}")
    return lines


def refuse_impossible(wanted: Sequence[Need], offers: Sequence[Resources], fixed: bool) -> list[str]:
    """Raises `UserError` where a cluster of fixed size can never run it; returns what one that grows must bring."""
    lines = shortages(wanted, offers)
    if lines and fixed:
        raise UserError(f"this cluster can never run it: {'; '.join(lines)}")
    return lines
