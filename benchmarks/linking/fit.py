"""Fits the weights of `spftsql.linking.scoring` on Spider's training questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.linking.cases import Case, cases, groups, merged, moved, rows_of, spider_sources
from spftsql.linking.schema_words import SchemaWords
from spftsql.linking.scoring import signs
from spftsql.linking.selection import Costs, select
from spftsql.linking.value_matching import matching_values

_GROUPS = 7  # merged schemas of about 20 databases and 500 columns each
_QUESTIONS = 250  # of each group, in Spider's and in Spider-Syn's words
_PENALTY = 1e-4  # on the squared weights
_NEGATIVES = 30  # columns outside the gold that weigh as much as the gold's together


@dataclass(frozen=True)
class _Row:
    group: int
    wording: str
    words: SchemaWords
    signs: torch.Tensor  # (columns, signs)
    gold: torch.Tensor  # (columns,)
    case: Case


def fit(data: Path, folder: Path) -> dict[str, float]:
    """The weights by sign, fitted on all groups; prints what groups held out in turn would have got."""
    rows, names = _rows(data, folder)
    held_out: dict[tuple[str, float], list[float]] = {}
    for group in range(_GROUPS):
        weights = _fit([row for row in rows if row.group != group])
        for row in rows:
            if row.group == group:
                for share in (0.05, 0.1, 0.15):
                    held_out.setdefault((row.wording, share), []).append(_recall(row, weights, share))
    for (wording, share), recalls in held_out.items():
        print(f"held out, {wording} at {share:.0%} of the columns: recall {np.mean(recalls):.4f}")
    return dict(zip(names, _fit(rows).tolist(), strict=True))


def _rows(data: Path, folder: Path) -> tuple[list[_Row], list[str]]:
    file = data / "spider-syn" / "train_spider.json"
    published = rows_of(file, "SpiderQuestion"), rows_of(file, "SpiderSynQuestion")
    sources = spider_sources(data / "spider", (row[0] for row in published[0]))
    wordings = {name: cases(rows, sources)[0] for name, rows in zip(("spider", "syn"), published, strict=True)}
    rows, names = [], []
    for group, databases in enumerate(groups(sources, _GROUPS)):
        source, renamed = merged(sources, databases, folder)
        words, index = SchemaWords(source.schema), source.index()
        assert index is not None  # all of Spider's databases are files
        for wording, found in wordings.items():
            here = [moved(case, renamed) for case in found if case.db_id in databases]
            random.Random(group).shuffle(here)
            for case in here[:_QUESTIONS]:
                table = signs(words, case.question, matching_values(case.question, index))
                names = list(table)
                gold = torch.zeros(len(words.columns))
                gold[[words.number_of[column] for column in sorted(case.gold.columns)]] = 1
                stacked = torch.tensor(np.stack(list(table.values()), axis=1), dtype=torch.float32)
                rows.append(_Row(group, wording, words, stacked, gold, case))
    return rows, names


def _fit(rows: Sequence[_Row]) -> torch.Tensor:
    inputs, gold = torch.cat([row.signs for row in rows]), torch.cat([row.gold for row in rows])
    share = torch.cat([row.gold / row.gold.sum().clamp(min=1) for row in rows])
    importance = share + (1 - gold) / _NEGATIVES
    weights = torch.zeros(inputs.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        wrong = torch.nn.functional.softplus((1 - 2 * gold) * (inputs @ weights))
        value = (wrong * importance).sum() / len(rows) + _PENALTY * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def _recall(row: _Row, weights: torch.Tensor, share: float) -> float:
    words = row.words
    count = len(words.columns)
    costs = Costs([0] * len(words.schema.tables), [1] * count, [0] * len(words.links))
    kept = select(words, (row.signs @ weights).double().numpy(), costs, int(share * count))
    gold = row.gold.bool()
    return float(gold[kept].sum() / gold.sum()) if gold.any() else 1.0
