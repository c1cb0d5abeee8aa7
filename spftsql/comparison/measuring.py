"""Runs the methods of a comparison: each as a run of its own, over stages that all runs of a seed share.

A method is a mode of self-play, or `vbi`: VBI-FT alone, which is where the modes start. So only the part in which
methods differ is done for each, a method's result is the one that `spftsql run` gives for it, and `spftsql status` and
`report` work on it. Every stage is named by its content: what is there is not done again.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.progress import Reporter
from spftsql.records import Mode
from spftsql.selfplay.gate import Decision
from spftsql.selfplay.run import run
from spftsql.selfplay.table import Result, read_outcomes

Method = Literal["sft", "vbi", "spin", "dpo", "spft-a", "spft-b"]
METHODS: tuple[Method, ...] = typing.get_args(Method)
VBI: Method = "vbi"
CONTROL: Method = "sft"  # as many steps on the same questions, without an opponent


@dataclass(frozen=True)
class Measured:
    """A method under one seed. `right` says which questions its last candidate answers right, whatever the gate says.

    `start` is the same for the candidate that self-play began with, `served` for the one that the gate lets through;
    `decision` is what the gate found of that candidate, None where it was not asked about it (no gate set, or self-play
    has kept what it began with); `notes` say why a method ended early.
    """

    method: Method
    seed: int
    candidate: str
    right: Mapping[str, bool]
    start: Mapping[str, bool]
    served_candidate: str
    served_path: Path
    served: Mapping[str, bool]
    decision: Decision | None
    notes: tuple[str, ...] = ()


def chosen_methods(text: str) -> list[Method]:
    """The methods of a list with commas, each once. Raises `UserError` for none, and for one that is unknown."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        said = f"unknown method {unknown[0]}" if unknown else "--methods is empty"
        raise UserError(f"{said}; use some of {','.join(METHODS)}")
    return [method for name in names for method in METHODS if method == name]


def measure(config: Config, methods: Sequence[Method], seeds: Sequence[int], report: Reporter) -> Iterator[Measured]:
    """Runs, or resumes, every method under every seed, below `folder_of(config)`.

    Raises `UserError` where there is nothing to compare or another process compares here, and what `run` raises.
    """
    play = config.selfplay
    if not config.vbi.rounds or not config.vbi.play_pairs or not play.iterations:
        raise UserError(
            "compare needs VBI-FT, questions for self-play, and iterations: set vbi.rounds, vbi.play_pairs and "
            "selfplay.iterations to 1 or more"
        )
    for seed in seeds:
        folder = folder_of(config) / f"seed-{seed}"
        with _held(folder):
            for number, method in enumerate(methods, 1):
                report.say(f"seed {seed}, {method} ({number} of {len(methods)})")
                one = config_of(config, method, seed)
                result = run(one, report, shared=folder / "stages")
                yield _measured(method, seed, folder / method, result)


def folder_of(config: Config) -> Path:
    """Where a comparison keeps its runs and its table."""
    return config.run_dir / f"{config.name}-compare"


def config_of(config: Config, method: Method, seed: int) -> Config:
    """The configuration of a method's run: nothing but mode, seed and place differ."""
    play = {"iterations": 0} if method == VBI else {"mode": typing.cast(Mode, method)}
    place = f"{config.name}-compare/seed-{seed}"
    storage = config.storage
    if storage is not None:
        url, question, options = storage.partition("?")
        storage = f"{url.rstrip('/')}/{place}{question}{options}"
    update = {
        "name": method,
        "run_dir": config.run_dir / place,
        "storage": storage,
        "seed": seed,
        "retention": "all",  # of what the runs share; the comparison itself gives up what nobody needs
        "selfplay": config.selfplay.model_copy(update={**play, "baselines": ()}),
    }
    return config.model_copy(update=update)


def _measured(method: Method, seed: int, folder: Path, result: Result) -> Measured:
    outcomes = read_outcomes(folder)
    last = result.rows[-1].candidate
    return Measured(
        method=method,
        seed=seed,
        candidate=last,
        right=outcomes.right[last],
        start=outcomes.right[outcomes.start],
        served_candidate=result.served,
        served_path=Path(result.served_path),
        served=outcomes.right[result.served],
        decision=next((one for one in result.decisions if one.challenger == last), None),
        notes=result.notes,
    )


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keeps other processes from the stages that the runs share."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from None
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder} is in use by another process; wait for it or set run_dir") from None
    try:
        yield
    finally:
        lock.release()
