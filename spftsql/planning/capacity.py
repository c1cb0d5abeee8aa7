"""Whether a cluster can run a recipe: found out before anything starts, and again while a stage waits for a node."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.submitting.server import Resources, beyond

_LOOK_S = 10.0


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


@contextmanager
def told_when_waiting(
    config: Config, stage: str, offers: Callable[[], Sequence[Resources]], look_s: float = _LOOK_S
) -> Iterator[None]:
    """Says on standard error, while the body runs, that no node is there for a stage, and that one is there again.

    Ray waits for nodes in silence, when one was lost or is yet to come. `offers` tells what the living nodes offer.
    """
    over = threading.Event()

    def watch() -> None:
        told = ""
        while not over.wait(look_s):
            try:
                lacking = "; ".join(shortages(needs(config, [stage]), offers()))
            except Exception:  # the head is gone: the stage itself ends then, and says why
                continue
            if lacking and lacking != told:
                _say(f"{stage} waits: {lacking}; it goes on when such a node comes")
            elif told and not lacking:
                _say(f"{stage} goes on: a node for it is there again")
            told = lacking

    thread = threading.Thread(target=watch, name="capacity", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _say(line: str) -> None:
    print(f"spftsql: {line}", file=sys.stderr, flush=True)
