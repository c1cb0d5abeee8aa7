"""Verification-based iterative fine-tuning: one round makes pairs from templates, checks them and fine-tunes.

SPFT-SQL, section 3.1: SQL comes from templates filled with the database's columns and values; a SQL-to-text model
phrases the questions; the Text-to-SQL model is fine-tuned on real and synthetic pairs; templates of what it still
gets wrong weigh more in the next round, and pairs that it confirms train the question model.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spftsql.errors import UserError
from spftsql.records import Example, Statement, TrainRow, VerificationRequest, content_hash
from spftsql.selfplay.stages import Answer, Candidate, Stages
from spftsql.synthesis.canonical import canonical_sql
from spftsql.synthesis.filling import synthesize
from spftsql.synthesis.placeholders import hide_in_question, hide_values, show_values
from spftsql.synthesis.templates import Template

_QUESTION_RESERVE = 1.3  # statements that are given to the question model, per pair wanted


@dataclass(frozen=True)
class SyntheticSets:
    """The synthetic pairs of the first round. `selection` holds templates that `train` and `play` never show."""

    train: tuple[Example, ...]
    play: tuple[Example, ...]
    selection: tuple[Example, ...]
    selection_templates: frozenset[str]


def question_row(stages: Stages, example: Example) -> TrainRow:
    """An example as SQL-to-text training text, its shared values hidden behind placeholders."""
    database = stages.catalogue[example.db_id]
    hidden = hide_values(example.sql, database.schema.dialect, example.question)
    prompt = stages.prompts.sql_to_text(database, hidden.sql)
    question = hide_in_question(example.question, hidden)
    return TrainRow(f"{example.id}/question", example.db_id, prompt, question, None, None, example.source)


def synthetic_statements(
    stages: Stages,
    round_: int,
    wanted: int,
    pool: Sequence[Template],
    weights: Mapping[str, float] | None,
    known: Sequence[Example],
) -> list[Statement]:
    """SQL for `wanted` pairs that runs and gives a result; what was dropped, and why, is counted in the events."""
    config = stages.config
    statements = list(
        synthesize(
            pool,
            {name: database.schema for name, database in stages.catalogue.items()},
            {name: database.location for name, database in stages.catalogue.items()},
            count=int(wanted * config.synthesis.oversample),
            seed=int(content_hash(config.seed, "synthesis", round_), 16) % 2**31,
            column_substitution=config.synthesis.column_substitution,
            weights=weights,
            exclude={_canonical(stages, example) for example in known},
        )
    )
    requests = [VerificationRequest(s.id, s.db_id, s.sql, None, config.verification.policy) for s in statements]
    verdicts = stages.verify(f"sql-{round_}", requests)
    kept, dropped = [], Counter[str]()
    for statement in statements:
        verdict = verdicts[statement.id]
        if verdict.status != "ran":
            dropped[verdict.status] += 1
        elif verdict.row_count == 0 or verdict.constant_null:
            dropped["empty"] += 1
        else:
            kept.append(statement)
    stages.run.event("synthesized", round=round_, tried=len(statements), kept=len(kept), dropped=dict(dropped))
    if not kept:
        raise UserError("no synthetic SQL gives a result: are the databases empty, or the labelled SQL without values?")
    return kept[: int(wanted * _QUESTION_RESERVE)]


def phrased(stages: Stages, round_: int, statements: Sequence[Statement], question_model: Candidate) -> list[Example]:
    """Question and SQL pairs: of each statement's candidate questions the first that says every value."""
    config = stages.config
    databases = stages.catalogue
    hidden = {s.id: hide_values(s.sql, databases[s.db_id].schema.dialect) for s in statements}
    requests = [
        stages.request(
            f"round{round_}/{s.id}",
            s.db_id,
            stages.prompts.sql_to_text(databases[s.db_id], hidden[s.id].sql),
            question_model,
            config.synthesis.candidates,
            config.synthesis.temperature,
        )
        for s in statements
    ]
    by_request: dict[str, list[str]] = defaultdict(list)
    for sample in stages.generate(f"questions-{round_}", requests, [question_model]):
        by_request[sample.id].append(sample.text)
    pairs = []
    for statement in statements:
        shown = (
            show_values(text.strip(), hidden[statement.id]) for text in by_request[f"round{round_}/{statement.id}"]
        )
        question = next((text for text in shown if text), None)
        if question:
            identity = f"synthetic/{round_}/{statement.id}"
            pairs.append(Example(identity, statement.db_id, question, statement.sql, "synthetic", statement.template))
    stages.run.event("phrased", round=round_, statements=len(statements), pairs=len(pairs))
    if not pairs:
        raise UserError("the question model wrote no question that says its SQL's values: train it longer")
    return pairs


def split_pairs(stages: Stages, pairs: Sequence[Example]) -> SyntheticSets:
    """The sets of the first round: selection by template, train and play by order (pairs come shuffled).

    The selection and play sets stay as they are; later rounds make training pairs only, without `selection_templates`.
    """
    config = stages.config.vbi
    templates = _selection_templates(stages, pairs)
    selection = [pair for pair in pairs if pair.template in templates]
    others = [pair for pair in pairs if pair.template not in templates]
    train_share = config.train_pairs / (config.train_pairs + config.play_pairs)
    cut = min(config.train_pairs, round(len(others) * train_share))
    return SyntheticSets(
        tuple(others[:cut]),
        tuple(others[cut : cut + config.play_pairs]),
        tuple(selection[: config.selection_pairs]),
        templates,
    )


def _selection_templates(stages: Stages, pairs: Sequence[Example]) -> frozenset[str]:
    """Templates whose pairs make up about the share of the selection set; at least one is left to train on."""
    config = stages.config.vbi
    wanted = config.selection_pairs / (config.train_pairs + config.play_pairs + config.selection_pairs)
    counts = Counter(pair.template for pair in pairs)
    order = sorted(counts)
    random.Random(stages.config.seed).shuffle(order)
    chosen: list[str] = []
    for template in order[:-1]:
        if sum(counts[t] for t in chosen) >= wanted * len(pairs):
            break
        chosen.append(template)
    if not chosen:
        raise UserError("all synthetic SQL comes from one template: give more kinds of labelled SQL")
    return frozenset(chosen)


def reweighted(pool: Sequence[Template], answers: Sequence[Answer]) -> dict[str, float]:
    """Weights for the next round: the error rate of each template, smoothed by one right and one wrong answer."""
    right, wrong = Counter[str](), Counter[str]()
    for answer in answers:
        (right if answer.correct else wrong)[answer.example.template] += 1
    return {t.id: (wrong[t.id] + 1) / (right[t.id] + wrong[t.id] + 2) for t in pool}


def confirmed(answers: Sequence[Answer]) -> list[Example]:
    """The synthetic pairs that the model's own SQL confirms (y⁺ of equation 1), each once."""
    return list({answer.example.id: answer.example for answer in answers if answer.correct}.values())


def _canonical(stages: Stages, example: Example) -> str:
    """The form in which synthesis would write this SQL; as it stands where there is none."""
    try:
        return canonical_sql(example.sql, stages.catalogue[example.db_id].schema)
    except ValueError:
        return example.sql
