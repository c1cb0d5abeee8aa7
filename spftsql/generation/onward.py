"""What a second model is asked about the samples of a first, while the first writes others: the round trip.

Some engines have the one model and some the other; what the first ones have stored is asked of the second ones. The
stage that asks the second model is still there, under its own key: it takes the samples that exist for exactly its
requests and has the others written. So nothing depends on this but time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from spftsql.config import Config
from spftsql.generation.engine import Engine, EngineDied
from spftsql.generation.unit_run import UnitRun
from spftsql.generation.work import open_work
from spftsql.records import Example, GenerationRequest, Sample, read_records, write_records
from spftsql.verification.samples import Checks

_FEWEST = 4  # engines; fewer are better all at one model and then all at the other


class Onward(Protocol):
    """The second model's requests; it travels to actors.

    `folder` receives them with their samples, `checks` says how these are verified: its examples lie in
    `examples_of(folder)`. `share` is how much of the work of both models is the second one's, between 0 and 1.
    """

    @property
    def folder(self) -> Path:
        """Where samples are kept for the later stage."""

    @property
    def checks(self) -> Checks:
        """How they are verified."""

    @property
    def share(self) -> float:
        """The second model's share of the work."""

    def asked(self, samples: Sequence[Sample]) -> list[tuple[GenerationRequest, Example]]:
        """What is asked about the samples of whole requests, and what each of these requests is about."""


def examples_of(folder: Path) -> Path:
    """The folder of what the second model's requests are about, one file for each part of the first's samples."""
    return folder / "examples"


def divided(engines: int, share: float) -> tuple[int, int]:
    """How many engines have the first model and how many the second; none has the second where there are few."""
    if engines < _FEWEST:
        return engines, 0
    second = min(max(round(engines * share), 1), engines - 1)
    return engines - second, second


def answer(
    part: Path,
    onward: Onward,
    config: Config,
    engine: Engine,
    lineage: Mapping[str, object],
    on_death: Callable[[EngineDied], None],
) -> list[Path]:
    """Has `engine` answer what is asked about the samples in `part`; returns the parts of its own samples.

    What an earlier attempt has left is used. Raises as `UnitRun.run`, and `Fault` when rows are missing at the end.
    """
    source, target = onward.folder / "requests" / part.name, onward.folder / "samples" / part.stem
    if not is_answered(onward.folder, part.name):
        asked = onward.asked(read_records(part, Sample))
        examples = [replace(example, id=request.id) for request, example in asked]
        write_records(examples_of(onward.folder) / part.name, examples, Example)
        write_records(source, [request for request, _ in asked], GenerationRequest)
        opened = open_work(source, target, config, engines=1)
        for unit in opened.units:
            attempt = UnitRun(opened.work, unit, engine, config.generation.batch_size, {**lineage, "unit": unit.id})
            for _ in attempt.run(on_death):
                pass
        opened.work.finish(opened.wanted, target)
    return sorted(target.glob("*.parquet"))


def answers_of(folder: Path) -> list[Path]:
    """The parts of the second model's samples that are there."""
    return sorted((folder / "samples").glob("*/*.parquet"))


def is_answered(folder: Path, part: str) -> bool:
    """Whether all that is asked about the first model's part of this name has its samples."""
    return (folder / "samples" / Path(part).stem).is_dir()
