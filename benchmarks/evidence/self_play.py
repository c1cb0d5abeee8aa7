"""The self-play part of the queue: GeoQuery, 30 % of the labels, from the model of one round of VBI-FT.

A setting is the recipe with something changed; every row of the table is a mode in a setting. `sft` is the control of
a setting: as many steps on the same questions, without an opponent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from benchmarks.evidence.cells import Cell, Unit, cell, grid, methods_of
from spftsql.records import Mode, content_hash

Player = Mode | Literal["start"]
MODES: tuple[Mode, ...] = get_args(Mode)

# In the order in which they are run. The recipe has 450 play questions, a learning rate of 1e-4 and one epoch; starts
# have 600 pairs and 700 steps unless the name says more.
SETTINGS: dict[str, Mapping[str, Any]] = {
    "recipe": {},
    "previous": {"selfplay.opponent": "previous"},
    "base": {"selfplay.opponent": "base"},
    "pool-4-samples": {"selfplay.opponent": "pool", "selfplay.samples": 4},
    "questions-x4": {"vbi.play_pairs": 1800},
    "questions-x4-pool-4-samples": {"vbi.play_pairs": 1800, "selfplay.opponent": "pool", "selfplay.samples": 4},
    "near-misses-2": {"selfplay.near_misses": 2},
    "nll-1": {"selfplay.nll_weight": 1.0},
    "rate-x10": {"selfplay.optimization.learning_rate": 1e-3},
    "rate-x100": {"selfplay.optimization.learning_rate": 1e-2},
    "lambda-0.03": {"selfplay.lambda": 0.03},
    "lambda-0.3": {"selfplay.lambda": 0.3},
    "reference-main": {"selfplay.reference": "main"},
    "epochs-3": {"selfplay.optimization.epochs": 3},
    "iterations-3": {"selfplay.iterations": 3},
    "no-replay": {"selfplay.replay": 0.0},
    "start-x4-steps-x3": {"vbi.train_pairs": 2400, "vbi.optimization.steps": 2100},
}
_MODES_OF: dict[str, tuple[Mode, ...]] = {
    "recipe": MODES,
    "iterations-3": ("sft", "spin", "spft-a"),
    "start-x4-steps-x3": ("sft", "spin", "spft-a"),
}
_USUAL: tuple[Mode, ...] = ("sft", "spft-a")
# One opponent has as many answers as another, and what the losses of pairs are like is nothing to `sft`.
_NOTHING_TO_SFT = ("selfplay.lambda", "selfplay.nll_weight", "selfplay.reference", "selfplay.opponent")


@dataclass(frozen=True, order=True)
class PlayUnit:
    """One run of the loop: the modes of a setting, under one seed."""

    setting: str
    seed: int

    @property
    def folder(self) -> str:
        """The run directory's name: one for each seed, so that what settings have in common is built once."""
        return f"geoquery-question-30-linked-self-play-{self.seed}"

    @property
    def overrides(self) -> Mapping[str, Any]:
        """What differs from the recipe."""
        return SETTINGS[self.setting]

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that are played: without the control where another setting has it."""
        wanted = _MODES_OF.get(self.setting, _USUAL)
        return tuple(mode for mode in wanted if play_cell(self, mode, 1, voted=False).unit == self)


@dataclass(frozen=True, order=True)
class PlayCell:
    """One figure: what a mode has come to after an iteration (0 for the start), greedy or by the vote of samples."""

    unit: PlayUnit
    player: Player
    iteration: int
    voted: bool

    @property
    def key(self) -> str:
        """Names the cell by what it is about; it stays the same when the code, or the name of a setting, changes."""
        return content_hash(
            "self-play", dict(self.unit.overrides), self.unit.seed, self.player, self.iteration, self.voted
        )

    @property
    def name(self) -> str:
        """For people, and for `--only`."""
        parts = ["geoquery/question/30%/linked/self-play", self.unit.setting, self.player]
        parts += [str(self.iteration)] if self.player != "start" else []
        return "/".join([*parts, "voted" if self.voted else "greedy", f"s{self.unit.seed}"])


def play_cell(unit: PlayUnit, player: Player, iteration: int, voted: bool) -> PlayCell:
    """The cell of a player; what is nothing to the start, or to the control, makes no difference to it."""
    overrides = dict(unit.overrides)
    if player == "start":
        overrides = {name: value for name, value in overrides.items() if not name.startswith("selfplay.")}
    elif player == "sft":
        several = overrides.get("selfplay.opponent") == "pool"
        kept = {"selfplay.opponent"} if several else set()
        overrides = {n: value for n, value in overrides.items() if n in kept or n not in _NOTHING_TO_SFT}
    setting = next(name for name, own in SETTINGS.items() if own == overrides)
    return PlayCell(replace(unit, setting=setting), player, iteration, voted)


def play_cells(unit: PlayUnit) -> list[PlayCell]:
    """What a run of this unit measures: the start, and every mode after every iteration."""
    iterations = unit.overrides.get("selfplay.iterations", 1)
    played: list[tuple[Player, int]] = [(mode, number) for mode in unit.modes for number in range(1, iterations + 1)]
    return [play_cell(unit, *one, voted) for one in [("start", 0), *played] for voted in (False, True)]


def cells_of(unit: Unit | PlayUnit) -> Sequence[Cell | PlayCell]:
    """The cells that a run of the unit measures."""
    if isinstance(unit, PlayUnit):
        return play_cells(unit)
    return [cell(unit, method) for method in methods_of(unit)]


def whole_queue(seeds: Sequence[int] = range(3), play_seeds: Sequence[int] = range(5)) -> list[Unit | PlayUnit]:
    """Everything that is wanted, in the order in which it is run: self-play after the first cells of VBI-FT."""
    units = grid(seeds)
    plays = [PlayUnit(setting, seed) for setting in SETTINGS for seed in play_seeds]
    return [*units[: len(seeds)], *plays, *units[len(seeds) :]]
