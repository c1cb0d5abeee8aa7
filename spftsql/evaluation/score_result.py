"""What a scoring found, and its JSON form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from spftsql.evaluation.metrics import wilson
from spftsql.records import Policy
from spftsql.sandbox.result import Cell

if TYPE_CHECKING:  # it takes sqlglot's parser along
    from spftsql.evaluation.exact_match import PartialScore

LEVELS = ("easy", "medium", "hard", "extra", "simple", "moderate", "challenging")
PROPORTIONS = ("ex", "ts", "exact-match")  # metrics whose items are right or wrong; the others are means of numbers
NO_DATABASE = "no database file"
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class ScoredItem:
    """The verdict on one prediction; `index` is the question's position in the benchmark, `id` its published name.

    `gold` says why the gold cannot be verified against itself, empty where it can. `values` are the item's metrics.
    """

    index: int
    db_id: str
    verdict: str
    reason: str
    id: str = ""
    hardness: str = "unknown"
    gold: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Against:
    """The same questions answered by another file: `difference` is accuracy here minus accuracy there."""

    predictions: str
    pairing: str
    correct: tuple[bool, ...]
    only_here: int
    only_there: int
    p: float
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class SuiteSummary:
    """The test suites behind TS: instances asked for and made, and mutants of golds killed without and with them."""

    k: int
    instances: int
    golds: int
    alone: int
    mutants: int
    killed_original: int
    killed_suite: int


@dataclass(frozen=True)
class Sample:
    """What a person wants to see of an item: texts, and the first rows of both results where they were cheap to get."""

    question: str
    evidence: str
    gold: str
    prediction: str
    gold_rows: tuple[Row, ...] | None = None
    prediction_rows: tuple[Row, ...] | None = None


@dataclass(frozen=True)
class ScoreResult:
    """What `spftsql score` found.

    `faults` are items that could not be verified for our reasons, as (index, fault): they have no entry in `items`.
    `samples`, where wanted, are in the order of `items`.
    """

    benchmark: str
    split: str
    policy: Policy
    measure: str  # ex, or ts with a suite
    predictions: str
    pairing: str
    versions: Mapping[str, str]
    limits: Mapping[str, float]
    items: tuple[ScoredItem, ...]
    notes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("ex",)
    components: Mapping[str, PartialScore] | None = None
    rounds: tuple[float, ...] = ()  # R-VES of each round; the items have those of the best
    suite: SuiteSummary | None = None
    against: Against | None = None
    samples: tuple[Sample, ...] | None = None
    faults: tuple[tuple[int, str], ...] = ()

    @property
    def correct(self) -> tuple[bool, ...]:
        """Which predictions are right, in the questions' order."""
        return tuple(item.verdict == "equal" for item in self.items)

    @property
    def accuracy(self) -> float:
        """The share of right predictions among all; one that cannot be verified counts as wrong."""
        return sum(self.correct) / len(self.items)

    @property
    def ceiling(self) -> float:
        """The accuracy of the golds themselves: what fails, times out or varies cannot be matched."""
        return sum(not item.gold for item in self.items) / len(self.items)

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels of hardness that are there, from easy to hard."""
        found = {item.hardness for item in self.items}
        return tuple(sorted(found, key=lambda level: (LEVELS.index(level) if level in LEVELS else len(LEVELS), level)))

    def of_level(self, level: str) -> list[ScoredItem]:
        """The items of a level of hardness."""
        return [item for item in self.items if item.hardness == level]

    def of_databases(self) -> dict[str, list[ScoredItem]]:
        """The items of each database, by name."""
        groups: dict[str, list[ScoredItem]] = {}
        for item in sorted(self.items, key=lambda item: item.db_id):
            groups.setdefault(item.db_id, []).append(item)
        return groups

    def to_json(self) -> str:
        """The result as JSON; of an incomplete one, without accuracies."""
        tree: dict[str, Any] = {
            "accuracy": None if self.faults else self.accuracy,
            "policy": self.policy,
            "versions": dict(self.versions),
            "items": [_item_tree(item) for item in self.items],
            "benchmark": self.benchmark,
            "split": self.split,
            "measure": self.measure,
            "predictions": self.predictions,
            "pairing": self.pairing,
            "limits": dict(self.limits),
            "notes": list(self.notes),
        }
        if self.faults:
            tree["complete"] = False
            tree["faults"] = [{"index": index, "fault": fault} for index, fault in self.faults]
            return json.dumps(tree, indent=1, ensure_ascii=False)
        rest = [item for item in self.items if item.verdict != "unverifiable"]
        right = sum(self.correct)
        tree["n"], tree["right"], tree["interval"] = len(self.items), right, wilson(right, len(self.items))
        tree["unverifiable"] = len(self.items) - len(rest)
        tree["accuracy_of_verifiable"] = right / len(rest) if rest else None
        tree["ceiling"] = self.ceiling
        tree["metrics"] = {name: mean_of(self.items, name) for name in self.metrics}
        tree["by_hardness"] = [{"hardness": level, **self._group_tree(self.of_level(level))} for level in self.levels]
        tree["by_database"] = [
            {"db_id": name, **self._group_tree(items)} for name, items in self.of_databases().items()
        ]
        if self.components is not None:
            tree["components"] = {name: asdict(score) for name, score in self.components.items()}
        if self.rounds:
            tree["r_ves_rounds"] = list(self.rounds)
        if self.suite is not None:
            tree["suite"] = asdict(self.suite)
        if self.against is not None:
            tree["against"] = {name: value for name, value in asdict(self.against).items() if name != "correct"}
            tree["against"]["accuracy"] = sum(self.against.correct) / len(self.items)
        return json.dumps(tree, indent=1, ensure_ascii=False)

    def _group_tree(self, items: Sequence[ScoredItem]) -> dict[str, Any]:
        right = sum(item.verdict == "equal" for item in items)
        return {
            "n": len(items),
            "right": right,
            "accuracy": right / len(items),
            "interval": wilson(right, len(items)),
            "metrics": {name: mean_of(items, name) for name in self.metrics},
        }


def mean_of(items: Sequence[ScoredItem], name: str) -> dict[str, Any]:
    """A metric over items: its mean, and for a proportion how many are right and Wilson's interval."""
    total = sum(item.values[name] for item in items)
    tree: dict[str, Any] = {"value": total / len(items), "n": len(items)}
    if name in PROPORTIONS:
        tree |= {"right": round(total), "interval": wilson(round(total), len(items))}
    return tree


def _item_tree(item: ScoredItem) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "index": item.index,
        "db_id": item.db_id,
        "verdict": item.verdict,
        "reason": item.reason,
        "hardness": item.hardness,
    }
    for name, value in (("id", item.id), ("gold", item.gold)):
        if value:
            tree[name] = value
    if set(item.values) - {"ex"}:
        tree["metrics"] = dict(item.values)
    return tree
