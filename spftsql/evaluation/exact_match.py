"""Exact match by parsed structure, component by component, as Spider reports it (Yu et al. 2018, "Evaluation Metrics").

Each component of a prediction is right or wrong as a whole; a prediction matches when all are right and it reads the
same tables. Values and DISTINCT do not count. It says nothing about results: a correct query in another form does not
match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from spftsql.evaluation.components import Conditions, Query

COMPONENTS = (
    "select",
    "select(no AGG)",
    "where",
    "where(no OP)",
    "group(no Having)",
    "group",
    "order",
    "and/or",
    "IUEN",
    "keywords",
)


@dataclass(frozen=True)
class Part:
    """One component of a pair: how many parts gold and prediction have, and how many of them agree."""

    gold: int
    predicted: int
    agree: int

    @property
    def right(self) -> bool:
        """Whether the two are the same as a whole; also where neither has the component."""
        return self.gold == self.predicted == self.agree


@dataclass(frozen=True)
class Match:
    """The comparison of one prediction with its gold: its components, and whether both read the same tables."""

    parts: Mapping[str, Part]
    tables: bool

    @property
    def exact(self) -> bool:
        """Whether all is right."""
        return self.tables and all(part.right for part in self.parts.values())


@dataclass(frozen=True)
class PartialScore:
    """How often a component is right: of the predictions that have it, of the golds that have it, and their F1."""

    accuracy: float
    recall: float
    f1: float


def match(prediction: Query | None, gold: Query) -> Match:
    """Compares two queries; a prediction that is no query (None) has none of the gold's components."""
    if prediction is None:
        prediction = Query()
    parts = {
        "select": _bags(gold.select, prediction.select),
        "select(no AGG)": _bags([v for _, v in gold.select], [v for _, v in prediction.select]),
        "where": _bags(gold.where.atoms, prediction.where.atoms),
        "where(no OP)": _bags([c.value for c in gold.where.atoms], [c.value for c in prediction.where.atoms]),
        "group(no Having)": _bags([_bare(v) for v in gold.group], [_bare(v) for v in prediction.group]),
        "group": _whole(gold, prediction, lambda q: bool(q.group), lambda q: (q.group, q.having)),
        "order": _whole(gold, prediction, lambda q: bool(q.order), lambda q: (q.order, q.direction, q.limit)),
        "and/or": _connectors(gold.where, prediction.where),
        "IUEN": _set_operation(gold, prediction),
        "keywords": _sets(_keywords(gold), _keywords(prediction)),
    }
    return Match(parts, Counter(prediction.tables) == Counter(gold.tables))


def partial_scores(matches: Iterable[Match]) -> dict[str, PartialScore]:
    """For each component, as Spider's evaluator prints it; 0 where no prediction (no gold) has it."""
    seen = list(matches)
    scores = {}
    for name in COMPONENTS:
        parts = [found.parts[name] for found in seen]
        predicted = [part.right for part in parts if part.predicted]
        gold = [part.right for part in parts if part.gold]
        accuracy, recall = (sum(group) / len(group) if group else 0.0 for group in (predicted, gold))
        f1 = 2 * accuracy * recall / (accuracy + recall) if accuracy + recall else 1.0
        scores[name] = PartialScore(accuracy, recall, f1)
    return scores


def _bags(gold: Collection[object], predicted: Collection[object]) -> Part:
    return Part(len(gold), len(predicted), (Counter(gold) & Counter(predicted)).total())


def _sets(gold: set[str], predicted: set[str]) -> Part:
    return Part(len(gold), len(predicted), len(gold & predicted))


def _whole(gold: Query, predicted: Query, has: Callable[[Query], bool], content: Callable[[Query], object]) -> Part:
    both = has(gold) and has(predicted)
    return Part(int(has(gold)), int(has(predicted)), int(both and content(gold) == content(predicted)))


def _connectors(gold: Conditions, predicted: Conditions) -> Part:
    ours, theirs = set(gold.connectors), set(predicted.connectors)
    # The original counts these two the other way round, which shows in its partial scores.
    return Part(1, 1, 1) if ours == theirs else Part(gold=len(theirs), predicted=len(ours), agree=0)


def _set_operation(gold: Query, predicted: Query) -> Part:
    same = False
    if gold.rest and predicted.rest and gold.rest[0] == predicted.rest[0]:
        same = match(predicted.rest[1], gold.rest[1]).exact
    return Part(int(gold.rest is not None), int(predicted.rest is not None), int(same))


def _bare(column: object) -> object:
    """A grouped column without its table."""
    return column.rpartition(".")[2] if isinstance(column, str) else column


def _keywords(query: Query) -> set[str]:
    conditions = (query.where, query.having)
    atoms = [atom for part in conditions for atom in part.atoms]
    present = {
        "where": query.where.atoms,
        "group": query.group,
        "having": query.having.atoms,
        "order": query.order,
        query.direction: query.order,
        "limit": query.limit,
        "or": any("or" in part.connectors for part in conditions),
        "not": any(atom.negated for atom in atoms),
        "in": any(atom.operator == "in" for atom in atoms),
        "like": any(atom.operator == "like" for atom in atoms),
        query.rest[0] if query.rest else "": query.rest,
    }
    return {word for word, there in present.items() if there}
