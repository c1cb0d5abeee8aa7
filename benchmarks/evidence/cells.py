"""The grid: what is to be measured, cell by cell, and which cells one run of the loop gives together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

from spftsql.records import Filter, content_hash

Method = Literal["sft", "control", "vbi-1", "vbi-2"]
Templates = Literal[
    "values",
    "recombined",
    "recombined-x4",
    "recombined-x4-steps-x3",
    "recombined-steps-x3",
    "columns",
    "library",
    "composed",
]

FILTERS: tuple[Filter, ...] = ("none", "ranked", "confident_disagreement", "round_trip")
TEMPLATES: tuple[Templates, ...] = get_args(Templates)
LABELLED: tuple[Method, ...] = ("sft", "control")  # methods that use no synthetic pair
ROUNDS: tuple[Method, ...] = ("vbi-1", "vbi-2")
CHOSEN: Templates = "recombined-x4-steps-x3"  # what the recipe `geoquery` has
UNSEEN = (3, 4)  # seeds of it that nobody had looked at when it was chosen
LONGER: tuple[Templates, ...] = (CHOSEN, "recombined-steps-x3")  # three times the steps, also for the control


@dataclass(frozen=True, order=True)
class Unit:
    """One run of the loop. `label_share` is in per cent; `templates` says where new SQL comes from.

    `values`: new values in the labels' own statements; `columns`: other columns too; `library`, `composed`: with 30 %
    of the statements from built-in templates, or from templates derived from those of the labels; `recombined`: pairs
    made of labels, with their questions, as many as there are; `recombined-x4`: four times as many of them a round;
    `recombined-x4-steps-x3`: and three times as many steps on them, also for the control; `recombined-steps-x3`: the
    steps without the pairs.
    """

    data: str
    split: str
    label_share: int
    linking: bool
    templates: Templates
    filter: Filter
    seed: int

    @property
    def folder(self) -> str:
        """The run directory's name: units that share stages share it."""
        linked = "linked" if self.linking else "plain"
        return f"{self.data}-{self.split}-{self.label_share}-{linked}-{self.seed}"


@dataclass(frozen=True, order=True)
class Cell:
    """One figure: a method in the setting of a unit."""

    unit: Unit
    method: Method

    @property
    def key(self) -> str:
        """Names the cell by what it is about; it stays the same when the code changes."""
        return content_hash(self.method, asdict(self.unit))

    @property
    def name(self) -> str:
        """For people, and for `--only`."""
        unit = self.unit
        parts = [unit.data, unit.split, f"{unit.label_share}%", "linked" if unit.linking else "plain", self.method]
        if self.method in ROUNDS or unit.templates in LONGER:
            parts += [unit.templates, unit.filter]
        return "/".join([*parts, f"s{unit.seed}"])


def cell(unit: Unit, method: Method) -> Cell:
    """The cell of a method; what synthetic SQL is like makes no difference to one that uses none."""
    if method not in LABELLED:
        return Cell(unit, method)
    longer = method == "control" and unit.templates in LONGER
    return Cell(replace(unit, templates=CHOSEN if longer else "values", filter="none"), method)


def methods_of(unit: Unit) -> tuple[Method, ...]:
    """The methods that a run of this unit measures."""
    if not unit.label_share:
        return ("sft", *ROUNDS)
    if unit.templates == CHOSEN:
        return ("control", *ROUNDS)
    plain = unit.templates == "values" and unit.filter == "none"
    return (*LABELLED, *ROUNDS) if plain else ROUNDS


def grid(seeds: Sequence[int] = (0, 1, 2)) -> list[Unit]:
    """Everything that is wanted, in the order in which it is run: smallest first."""
    return list(_units(seeds))


def _units(seeds: Sequence[int]) -> Iterator[Unit]:
    def geoquery(
        share: int, linking: bool, templates: Templates, filter_: Filter, seeds: Sequence[int] = seeds
    ) -> Iterator[Unit]:
        return (Unit("geoquery", "question", share, linking, templates, filter_, seed) for seed in seeds)

    for linking in (True, False):
        yield from geoquery(30, linking, "values", "none")
    for templates in TEMPLATES[1:]:
        more = (*seeds, *UNSEEN) if templates == CHOSEN else seeds
        yield from geoquery(30, True, templates, "none", list(dict.fromkeys(more)))
    for filter_ in FILTERS[1:]:
        yield from geoquery(30, True, "columns", filter_)
    yield from geoquery(30, False, "values", "ranked")
    for share in (10, 100):
        yield from geoquery(share, True, "values", "none")
        yield from geoquery(share, True, CHOSEN, "none")
    for seed in seeds:  # the base model's own questions: --model names one that can phrase them
        yield Unit("spider", "concert_singer", 0, True, "library", "none", seed)


def cells(units: Sequence[Unit]) -> list[Cell]:
    """The cells of the units, each once."""
    return list(dict.fromkeys(cell(unit, method) for unit in units for method in methods_of(unit)))
