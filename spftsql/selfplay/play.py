"""Error-driven self-play: pairs from an opponent's samples, and the choice of main model and opponent.

SPFT-SQL, section 3.2 and algorithm 1. The modes differ by who writes y′, by their reference and by their loss; the
losses, with their equations, are in `training/losses.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from spftsql.records import Example, Mode, TrainRow
from spftsql.selfplay.stages import Answer, Candidate, Stages, Training, accuracy

_LABELS_OF_REWARD = {"equal": 0, "different": 1, "error": 1}  # any other verdict leaves the row out


def strongest(candidates: Sequence[Candidate], scores: Mapping[str, float]) -> Candidate:
    """The candidate with the highest selection accuracy; among equals the newest."""
    return max(reversed(candidates), key=lambda candidate: scores[candidate.name])


def opponent_of(
    mode: Mode, choice: str, main: Candidate, candidates: Sequence[Candidate], scores: Mapping[str, float]
) -> Candidate:
    """Who writes y′: main itself for `spin`, `dpo` and `sft` (not used there), else as `selfplay.opponent` says."""
    if mode in ("spin", "dpo", "sft") or choice == "previous":
        return main
    if choice == "base":
        return candidates[0]
    return min(candidates, key=lambda candidate: scores[candidate.name])


def play_rows(
    mode: Mode, answers: Sequence[Answer], sql_row: Callable[[Example], TrainRow]
) -> tuple[list[TrainRow], Counter[str]]:
    """The pairs that a mode trains on, with R = 1 where execution shows y′ to be wrong, and what was left out.

    `spin` takes every sample as wrong; `dpo` and `spft-b` keep wrong samples only (the others have no gradient);
    `spft-a` keeps right ones with R = 0. Rows whose verdict says nothing are left out and counted.
    """
    rows, left_out = [], Counter[str]()
    for number, answer in enumerate(answers):
        row = sql_row(answer.example)
        identity = f"{answer.example.id}/{mode}/{number}"
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


def _played(opponent: Candidate, answers: Sequence[Answer]) -> dict[str, object]:
    """For the model card: who played, and what execution said of its answers."""
    return {"opponent": opponent.name, "verdicts": dict(Counter(answer.verdict.status for answer in answers))}


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


def play_iteration(
    stages: Stages,
    iteration: int,
    labels: Sequence[Example],
    answers: Mapping[str, Sequence[Answer]],
    mains: Mapping[Mode, Candidate],
    opponents: Mapping[Mode, Candidate],
    selection: Sequence[Example] = (),
) -> dict[Mode, Candidate]:
    """One iteration of every mode: its main model is trained on what its opponent answered (by candidate name).

    With `training.validate_steps` its accuracy on `selection` says when the training stops.
    A mode that finds nothing to train on (its opponent never errs) keeps its main model, and an event says so.
    """
    config = stages.config.selfplay
    trainings: dict[Mode, Training] = {}
    for mode, main in mains.items():
        opponent = opponents[mode]
        rows, left_out = play_rows(mode, answers[opponent.name], stages.sql_row)
        stages.run.event(
            "play", mode=mode, iteration=iteration, main=main.name, opponent=opponent.name,
            opponent_accuracy=round(accuracy(answers[opponent.name]), 4), rows=len(rows), left_out=dict(left_out),
        )  # fmt: skip
        if not rows:
            why = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common()) or "no questions"
            stages.report.say(f"  {mode}: {opponent.name} made no usable mistakes ({why}); {main.name} stays as it is")
            continue
        if mode.startswith("spft") and all(row.reward for row in rows):
            stages.report.say(f"  {mode}: {opponent.name} got nothing right: every answer counts as wrong, as in SPIN")
        rows += replay_rows(stages, labels, round(len(rows) * config.replay))
        trainings[mode] = Training(
            name=f"{mode}-{iteration}",
            start=main,
            rows=rows,
            optimization=config.optimization,
            mode=mode,
            reference=None if mode == "sft" else opponent,
            selection=selection,
            details={"iteration": iteration, **_played(opponent, answers[opponent.name])},
        )
    trained = stages.train(f"play-{iteration}", list(trainings.values())) if trainings else []
    return {**mains, **dict(zip(trainings, trained, strict=True))}
