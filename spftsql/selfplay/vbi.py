"""Verification-based iterative fine-tuning: one round makes pairs from templates, checks them and fine-tunes.

SPFT-SQL, section 3.1: SQL comes from templates filled with the database's columns and values; a SQL-to-text model
phrases the questions; the Text-to-SQL model is fine-tuned on real and synthetic pairs; templates of what it still
gets wrong weigh more in the next round, and pairs that it confirms train the question model.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import count

from spftsql.databases.catalogue import Database
from spftsql.errors import UserError
from spftsql.evaluation.benchmarks import template_id
from spftsql.linking.literals import filter_literals, says
from spftsql.records import Example, TrainRow, Verdict, VerificationRequest
from spftsql.selfplay.candidates import Answer, Candidate
from spftsql.selfplay.leaks import find_leaks
from spftsql.selfplay.lineage import Made, question_request, vote_request
from spftsql.selfplay.questions import Phrasing, Vote, choose
from spftsql.selfplay.round_trip import RoundTrip, pair_of, statements_by_request
from spftsql.selfplay.stages import Stages
from spftsql.synthesis.accepting import Tally, counts_of, judged
from spftsql.synthesis.canonical import canonical_sql
from spftsql.synthesis.filling import Sampler
from spftsql.synthesis.placeholders import hide_in_question, hide_values
from spftsql.synthesis.templates import Template

_QUESTION_RESERVE = 1.3  # statements that are given to the question model, per pair wanted
_SHOWN = 5  # pairs that a complaint names
_REASONS = 3  # that a complaint gives
_CONDITION = re.compile(r"\b(WHERE|HAVING|LIMIT)\b")  # in SQL that is more than columns of tables


def question_row(stages: Stages, example: Example) -> TrainRow:
    """An example as SQL-to-text training text; the question is asked to say the values that it says."""
    database = stages.catalogue[example.db_id]
    dialect = database.schema.dialect
    if stages.config.synthesis.hide_values:
        hidden = hide_values(example.sql, dialect, example.question)
        prompt, question = _question_prompt(stages, database, hidden.sql), hide_in_question(example.question, hidden)
    else:
        values = [value for value in filter_literals(example.sql, dialect) if says(example.question, value)]
        prompt, question = _question_prompt(stages, database, example.sql, values), example.question
    return TrainRow(f"{example.id}/question", example.db_id, prompt, question, None, None, example.source)


def _question_prompt(stages: Stages, database: Database, sql: str, values: Sequence[str] = ()) -> str:
    """The same in training as in generation; it leaves room for an answer."""
    config = stages.config
    return stages.prompts.sql_to_text(database, sql, values, config.model.max_length - config.generation.max_tokens)


def statements(
    stages: Stages,
    round_: int,
    wanted: int,
    pool: Sequence[Template],
    weights: Mapping[str, float] | None,
    known: Sequence[Example],
    databases: Iterable[str],
) -> list[Made]:
    """SQL for `wanted` pairs over `databases`; what was executed and dropped is there too, with the reason."""
    config = stages.config.synthesis
    names = [name for name in databases if any(table.rows for table in stages.catalogue[name].schema.tables)]
    if not names:
        raise UserError("no synthetic SQL can be written: the databases have no rows")
    sampler = Sampler(
        pool,
        {name: stages.catalogue[name].schema for name in names},
        {name: stages.catalogue[name].location for name in names},
        seed=stages.seed_of(f"synthesis/{round_}"),
        column_substitution=config.column_substitution,
        weights=weights,
        exclude={canonical(stages, example) for example in known},
        per_structure=config.per_structure,
    )
    window = count(1)

    def execute(requests: Sequence[VerificationRequest]) -> list[Verdict]:
        return list(stages.verify(f"sql-{round_}-{next(window)}", requests).values())

    tally = Tally()
    found = judged(sampler, [execute], int(wanted * _QUESTION_RESERVE), batch_size=None, tally=tally)
    made = [Made(one.statement, one.verdict, one.reason) for one in found]
    stages.run.event("synthesized", round=round_, **counts_of(tally))
    if not tally.accepted:
        reasons = ", ".join(f"{number} {reason}" for reason, number in tally.dropped.most_common(5)) or "none fits"
        raise UserError(
            f"round {round_}: no synthetic SQL gives a result that tells something ({reasons}): are the databases all "
            "but empty, or the labelled SQL without values?"
        )
    return made


def phrased(stages: Stages, round_: int, made: Sequence[Made], writer: Candidate, voter: Candidate) -> list[Made]:
    """Questions for the statements that give a result: `writer` proposes, `voter` answers them where a filter asks.

    Raises `UserError` when no statement gets a question, and when in the first round those of one template do alone:
    the selection set has other templates than training.
    """
    config = stages.config.synthesis
    asked = [one for one in made if not one.reason]
    trip = _round_trip(stages, round_, asked, voter)
    candidates, failed = _proposed(stages, trip, [one for one in asked if not one.worded], writer, voter)
    candidates |= {one.statement.id: list(one.phrasings) for one in asked if one.worded}
    if config.filter != "none":
        candidates = _voted(stages, trip, asked, candidates, voter)
    done = {}
    for one in asked:
        identity, phrasings = one.statement.id, tuple(candidates[one.statement.id])
        choice = choose(phrasings, config.filter, config.agreement)
        one = replace(one, phrasings=phrasings, chosen=choice.index, reason=failed.get(identity, choice.reason))
        if choice.index is not None:
            one = replace(one, pair=pair_of(round_, one.statement, phrasings[choice.index]))
        done[identity] = one
    dropped = Counter(one.reason for one in done.values() if one.reason)
    pairs = len(done) - dropped.total()
    stages.run.event("phrased", round=round_, statements=len(done), pairs=pairs, dropped=dict(dropped))
    kinds = {one.statement.template for one in done.values() if not one.reason}
    if not pairs or (round_ == 1 and len(kinds) == 1 < len({one.statement.template for one in done.values()})):
        shown = dropped.most_common(_REASONS)
        reasons = ", ".join(f"{number} {reason}" for reason, number in shown)
        if rest := dropped.total() - sum(number for _, number in shown):
            reasons += f", {rest} for other reasons, see events.jsonl"
        few = f"only {pairs}, all of one template, of" if pairs else "none of"
        raise UserError(
            f"round {round_}: {few} {len(done)} synthetic statements got a question ({reasons}): train the question "
            "model longer, ask for more synthesis.candidates, or loosen synthesis.filter"
        )
    return [done.get(one.statement.id, one) for one in made]


def _round_trip(stages: Stages, round_: int, asked: Sequence[Made], voter: Candidate) -> RoundTrip:
    statements = statements_by_request(round_, (one.statement for one in asked))
    databases = {name: stages.catalogue[name] for name in {one.db_id for one in statements.values()}}
    depends_on = [
        {identity: one.sql for identity, one in statements.items()},
        voter.key,
        [stages.config.generation.engine, stages.config.model.dtype, stages.config.model.max_length],
    ]
    folder = stages.early_folder(f"votes-{round_}", depends_on, databases).resolve()
    return RoundTrip(folder, stages.config, stages.prompts, databases, round_, statements, voter.path)


def _proposed(
    stages: Stages, trip: RoundTrip, asked: Sequence[Made], writer: Candidate, voter: Candidate
) -> tuple[dict[str, list[Phrasing]], dict[str, str]]:
    """The candidate questions of every statement, by its id, each text once; and why some could not be asked.

    Where a filter asks for a round trip, `voter` may be asked about those that are there while others are written.
    """
    config, databases, round_ = stages.config.synthesis, stages.catalogue, trip.round_
    requests = []
    for one in asked:
        statement, database = one.statement, databases[one.statement.db_id]
        dialect = database.schema.dialect
        if config.hide_values:
            prompt = _question_prompt(stages, database, hide_values(statement.sql, dialect).sql)
        else:
            values = filter_literals(statement.sql, dialect)
            prompt = _question_prompt(stages, database, statement.sql, values)
        identity = question_request(round_, statement)
        requests.append(
            stages.request(identity, statement.db_id, prompt, writer, config.candidates, config.temperature)
        )
    onward = (f"votes-{round_}", trip, voter) if config.filter != "none" else None
    samples = stages.generate(f"questions-{round_}", requests, [writer], onward=onward)
    errors = {sample.id: f"not asked: {sample.error}" for sample in samples if sample.error}
    phrasings = trip.phrasings(samples)
    found, failed = {}, {}
    for one in asked:
        identity = question_request(round_, one.statement)
        if identity in errors and not phrasings[identity]:
            failed[one.statement.id] = errors[identity]
        found[one.statement.id] = phrasings[identity]
    return found, failed


def _voted(
    stages: Stages,
    trip: RoundTrip,
    asked: Sequence[Made],
    candidates: Mapping[str, Sequence[Phrasing]],
    voter: Candidate,
) -> dict[str, list[Phrasing]]:
    """The round trip: the candidates that are complete, with the votes of the Text-to-SQL model."""
    round_ = trip.round_
    wanted = [
        pair
        for one in asked
        for pair in trip.votes(question_request(round_, one.statement), candidates[one.statement.id])
    ]
    examples = {request.id: example for request, example in wanted}
    requests = [request for request, _ in wanted]
    samples, checks, verdicts = stages.verified(f"votes-{round_}", requests, [voter], examples, trip.folder)
    votes: dict[str, list[Vote]] = defaultdict(list)
    for sample, check in zip(samples, checks, strict=True):
        verdict = verdicts[check.id]
        votes[sample.id].append(Vote(check.sql, verdict.status, verdict.digest, verdict.elapsed_ms))
    return {
        one.statement.id: [
            replace(phrasing, votes=tuple(votes[vote_request(question_request(round_, one.statement), number)]))
            for number, phrasing in enumerate(candidates[one.statement.id])
        ]
        for one in asked
    }


def without_leaks(stages: Stages, round_: int, made: Sequence[Made], held_out: Sequence[Example]) -> list[Made]:
    """The pairs that repeat no question of the gate or test set; the others are dropped, or raise `UserError`.

    This is all that anything but the gate and the table reads of the held-out sets.
    """

    @cache
    def statement(example: Example) -> str:
        return canonical(stages, example)

    @cache
    def structure(example: Example) -> str:
        return template_id(statement(example))

    def telling(example: Example) -> str | None:
        return statement(example) if _CONDITION.search(statement(example)) else None

    config = stages.config.synthesis
    leaks = {
        leak.pair: leak
        for leak in find_leaks(
            [one.pair for one in made if one.pair is not None], held_out, structure, config.leak_overlap, telling
        )
    }
    for leak in leaks.values():
        stages.run.event("leak", round=round_, pair=leak.pair, held_out=leak.held_out, overlap=leak.overlap,
                         same_structure=leak.same_structure, same_sql=leak.same_sql, action=config.leaks)  # fmt: skip
    if leaks and config.leaks == "fail":
        shown = "; ".join(leak.sentence() for leak in list(leaks.values())[:_SHOWN])
        raise UserError(
            f"round {round_}: {len(leaks)} synthetic pairs repeat held-out questions: {shown}. All are in "
            "events.jsonl; --set synthesis.leaks=drop leaves such pairs out"
        )
    if leaks:
        stages.report.say(f"  round {round_}: {len(leaks)} pairs that repeat a held-out question are left out")
    left = [
        one.dropped(f"leak: {leaks[one.pair.id].held_out}") if one.pair is not None and one.pair.id in leaks else one
        for one in made
    ]
    if not any(one.pair is not None for one in left):
        raise UserError(
            f"round {round_}: every synthetic pair repeats a held-out question; make more (vbi.train_pairs)"
        )
    return left


def reweighted(
    pool: Sequence[Template], answers: Sequence[Answer], origins: Mapping[str, Collection[str]]
) -> dict[str, float]:
    """Weights for the next round: the error rate of each template, smoothed by one right and one wrong answer.

    An answer counts for the template of its pair, and for those of the labels that the pair was made of: `origins`
    has them by the pair's id.
    """
    right, wrong = Counter[str](), Counter[str]()
    for answer in filter(lambda answer: answer.known, answers):
        pair = answer.example
        (right if answer.correct else wrong).update({pair.template, *origins.get(pair.id, ())})
    known = {*(template.id for template in pool), *right, *wrong}
    return {name: (wrong[name] + 1) / (right[name] + wrong[name] + 2) for name in sorted(known)}


def confirmed(answers: Sequence[Answer], made: Sequence[Made], agreement: float) -> list[Example]:
    """The synthetic pairs that a model's own SQL confirms (y⁺ of equation 1), each once.

    Those of the play set by the candidate's answers, and, where the round trip was asked, those of this round whose
    votes agree.
    """
    pairs = [answer.example for answer in answers if answer.correct]
    for one in made:
        share = one.phrasings[one.chosen].agreement if one.chosen is not None else None
        if one.pair is not None and share is not None and share >= agreement:
            pairs.append(one.pair)
    return list({pair.id: pair for pair in pairs}.values())


def canonical(stages: Stages, example: Example) -> str:
    """The form in which synthesis would write this SQL; as it stands where there is none."""
    try:
        return canonical_sql(example.sql, stages.catalogue[example.db_id].schema)
    except ValueError:
        return example.sql
