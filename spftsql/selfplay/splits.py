"""The sets of synthetic pairs: what is trained on, what opponents answer, and what candidates are chosen on.

The selection set has templates, and where there are several databases also databases, that no other set shows, so
that it asks for what was not learned by heart.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from spftsql.config import GateConfig, SelfPlayConfig, VbiConfig
from spftsql.errors import UserError
from spftsql.records import Example

_SEVERAL = 4  # databases from which some are held out for selection; with fewer all are trained on


@dataclass(frozen=True)
class SyntheticSets:
    """The pairs of the first round. `templates` and `databases` are in `selection` only, in later rounds too."""

    train: tuple[Example, ...]
    play: tuple[Example, ...]
    selection: tuple[Example, ...]
    templates: frozenset[str]
    databases: frozenset[str]

    @property
    def parts(self) -> dict[str, str]:
        """The name of its set for every pair, by id."""
        named = {"train": self.train, "play": self.play, "selection": self.selection}
        return {pair.id: name for name, pairs in named.items() for pair in pairs}


def split_pairs(pairs: Sequence[Example], config: VbiConfig, seed: int) -> SyntheticSets:
    """Divides the pairs of the first round; `train` and `play` by order (pairs come shuffled), in proportion.

    The selection set has the pairs of about the wanted share of the templates and, from four databases on, of the
    databases (half the share each, so that both together come to the share); what is beyond the wanted numbers is in
    no set. Raises `UserError` when there is one template only.
    """
    train_pairs, play_pairs, selection_pairs = config.train_pairs, config.play_pairs, config.selection_pairs
    share = selection_pairs / (train_pairs + play_pairs + selection_pairs)
    several = len({pair.db_id for pair in pairs}) >= _SEVERAL
    part = share / 2 if several else share
    databases = _held_out(Counter(pair.db_id for pair in pairs), part, seed) if several else frozenset[str]()
    rest = [pair for pair in pairs if pair.db_id not in databases]
    templates = _held_out(Counter(pair.template for pair in rest), part, seed)
    if not templates:
        raise UserError(
            f"all synthetic pairs ({len(pairs)}) come from one template, and the selection set needs another: give "
            "more kinds of labelled SQL, or a share of built-in templates (--set synthesis.library=0.5)"
        )
    selection = [pair for pair in pairs if pair.db_id in databases or pair.template in templates]
    others = [pair for pair in rest if pair.template not in templates]
    cut = min(train_pairs, round(len(others) * train_pairs / (train_pairs + play_pairs)))
    return SyntheticSets(
        tuple(others[:cut]),
        tuple(others[cut : cut + play_pairs]),
        tuple(selection[:selection_pairs]),
        templates,
        databases,
    )


def later_set(pairs: Sequence[Example], config: VbiConfig) -> SyntheticSets:
    """The pairs of a later round, all of them for training: the other sets stay those of the first."""
    return SyntheticSets(tuple(pairs[: config.train_pairs]), (), (), frozenset(), frozenset())


def label_folds(labels: Sequence[Example], gate: GateConfig, seed: int) -> list[list[Example]]:
    """The labels in `gate.folds` parts of equal size (but for one), drawn by `seed`; none without folds.

    Raises `UserError` where there are fewer than two labels for each.
    """
    if not gate.enabled or gate.folds is None:
        return []
    if len(labels) < 2 * gate.folds:
        raise UserError(f"gate.folds={gate.folds} needs {2 * gate.folds} labels at least; there are {len(labels)}")
    order = list(range(len(labels)))
    random.Random(f"folds-{seed}").shuffle(order)
    return [[labels[i] for i in sorted(order[part :: gate.folds])] for part in range(gate.folds)]


def question_parts(questions: Sequence[Example], play: SelfPlayConfig, seed: int) -> list[frozenset[str]]:
    """The ids of the questions that each iteration of self-play plays: all of them, or a part, drawn by `seed`.

    Parts have no question in common and are of equal size (but for one). Raises `UserError` where one would be empty.
    """
    names = [question.id for question in questions]
    if play.questions == "all":
        return [frozenset(names)] * play.iterations
    if len(names) < play.iterations:
        raise UserError(
            f"selfplay.questions=parts needs a question for each of {play.iterations} iterations; the play set has "
            f"{len(names)}: make more (vbi.play_pairs)"
        )
    random.Random(f"play-{seed}").shuffle(names)
    return [frozenset(names[part :: play.iterations]) for part in range(play.iterations)]


def _held_out(counts: Counter[str], share: float, seed: int) -> frozenset[str]:
    """Kinds that make up about `share` of all, at least one; one at least is left. Empty where there is only one."""
    order = sorted(counts)
    random.Random(seed).shuffle(order)
    wanted, held = share * counts.total(), 0
    chosen: list[str] = []
    for kind in order:
        if held < wanted and held + counts[kind] <= 2 * wanted and len(chosen) < len(order) - 1:
            chosen.append(kind)
            held += counts[kind]
    if not chosen and len(order) > 1:  # all are large
        chosen.append(min(order, key=lambda kind: counts[kind]))
    return frozenset(chosen)
