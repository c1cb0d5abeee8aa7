"""The pairs of error-driven self-play: the gold, what an opponent wrote, and whether execution shows that to be wrong.

SPFT-SQL, section 3.2. The modes differ by who writes y′, by their reference and by their loss; the losses, with their
equations, are in `training/losses.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from spftsql.records import Example, Mode, TrainRow
from spftsql.selfplay.candidates import NEAR_MISS, Answer
from spftsql.selfplay.stages import Stages

_LABELS_OF_REWARD = {"equal": 0, "different": 1, "error": 1}  # any other verdict leaves the row out


def play_rows(
    mode: Mode,
    answers: Sequence[Answer],
    sql_row: Callable[[Example], TrainRow],
    quarantined: Collection[str] = (),
) -> tuple[list[TrainRow], Counter[str]]:
    """The pairs that a mode trains on, with R = 1 where execution shows y′ to be wrong, and what was left out.

    `spin` takes every sample as wrong; `dpo` and `spft-b` keep wrong samples only (the others have no gradient);
    `spft-a` keeps right ones with R = 0. Rows whose verdict says nothing, and those of the `quarantined` questions
    (ids), are left out and counted. The id of a row says whether its y′ is a near miss.
    """
    rows, left_out = [], Counter[str]()
    for number, answer in enumerate(answers):
        if answer.example.id in quarantined:
            left_out["quarantined"] += 1
            continue
        row = sql_row(answer.example)
        writer = f"{NEAR_MISS}-" if answer.candidate == NEAR_MISS else ""
        identity = f"{answer.example.id}/{mode}/{writer}{number}"
        if mode == "sft":
            rows.append(TrainRow(identity, row.db_id, row.prompt, row.chosen, None, None, row.source))
            continue
        if not answer.known:
            left_out["fault"] += 1
            continue
        reward = 1 if mode == "spin" else _LABELS_OF_REWARD.get(answer.verdict.status)
        if reward is None:
            left_out[answer.verdict.status] += 1
        elif reward or mode == "spft-a":
            rows.append(TrainRow(identity, row.db_id, row.prompt, row.chosen, answer.text, reward, row.source))
        else:
            left_out["right"] += 1
    return rows, left_out


def replay_rows(stages: Stages, labels: Sequence[Example], count: int) -> list[TrainRow]:
    """Labelled pairs to train along, so that the model does not forget how people ask; none where there are none."""
    if not labels:
        return []
    rng = random.Random(stages.config.seed)
    chosen = [labels[i % len(labels)] for i in range(count)]
    rng.shuffle(chosen)
    rows = []
    for number, example in enumerate(chosen):
        row = stages.sql_row(example)
        rows.append(
            TrainRow(f"replay/{number}", row.db_id, row.prompt, row.chosen, None, None, row.source, replay=True)
        )
    return rows
