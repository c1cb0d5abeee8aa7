"""Pairs of a round that are made of labelled ones, with their questions (see `spftsql.synthesis.recombination`)."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from spftsql.records import Example, Verdict, VerificationRequest
from spftsql.selfplay.lineage import Made
from spftsql.selfplay.questions import Phrasing
from spftsql.selfplay.stages import Stages
from spftsql.selfplay.vbi import canonical
from spftsql.synthesis.checks import checks_of, executed, objection
from spftsql.synthesis.recombination import EXECUTED_PER_PAIR, recombine

_SPARE = 1.02  # pairs that are made, per pair wanted: some repeat a held-out question


def recombined(
    stages: Stages,
    round_: int,
    wanted: int,
    labels: Sequence[Example],
    known: Sequence[Example],
    without: Collection[str],
    weights: Mapping[str, float] | None,
) -> list[Made]:
    """Up to `wanted` pairs whose SQL gives a result that says something, and what was executed in vain before them.

    None repeats the SQL of `known`, or has a template of `without`. Labels are drawn by the `weights` of their
    templates (`vbi.reweighted`).
    """
    schemas = {name: database.schema for name, database in stages.catalogue.items()}
    seed = stages.seed_of(f"recombination/{round_}")
    exclude = {canonical(stages, example) for example in known}
    found = (one for one in recombine(labels, schemas, seed, exclude, weights) if one.statement.template not in without)
    drawn = list(islice(found, round(wanted * EXECUTED_PER_PAIR)))
    checks = {o.statement.id: checks_of(o.statement.sql, schemas[o.statement.db_id].dialect) for o in drawn}

    def execute(requests: Sequence[VerificationRequest]) -> Iterable[Verdict]:
        return stages.verify(f"recombined-{round_}", requests).values()

    verdicts = executed([(o.statement, checks[o.statement.id]) for o in drawn], execute, at_once=True)
    made: list[Made] = []
    kept = 0
    for one in drawn:
        if kept == wanted:
            break
        verdict = verdicts[one.statement.id]
        reason = objection(one.statement, checks[one.statement.id], verdicts)
        kept += not reason
        statement = replace(one.statement, bindings=json.dumps({"parents": one.parents, "templates": one.templates}))
        made.append(Made(statement, verdict, reason, (Phrasing(one.question),), worded=True))
    stages.run.event("recombined", round=round_, kept=kept, dropped=dict(Counter(o.reason for o in made if o.reason)))
    return made


def with_recombined(
    stages: Stages,
    round_: int,
    wanted: int,
    labels: Sequence[Example],
    known: Sequence[Example],
    without: Collection[str],
    weights: Mapping[str, float] | None,
    filled: Callable[[int], list[Made]],
) -> list[Made]:
    """`wanted` statements, of which `synthesis.recombination` says the share; `filled` makes the others.

    Where the labels give fewer, the others are more.
    """
    share = stages.config.synthesis.recombination
    if not share:
        return filled(wanted)
    made = recombined(stages, round_, round(share * wanted * _SPARE), labels, known, without, weights)
    rest = wanted - sum(not one.reason for one in made)
    together = [*made, *(filled(rest) if rest > 0 else [])]
    random.Random(f"mixed {stages.config.seed} {round_}").shuffle(together)
    return together


def label_templates(made: Iterable[Made]) -> dict[str, list[str]]:
    """For every pair that was made of labels, by its id, the ids of their templates."""
    return {
        one.pair.id: json.loads(one.statement.bindings)["templates"]
        for one in made
        if one.worded and one.pair is not None
    }
