"""One run of the whole loop, top to bottom: labels, VBI-FT rounds, self-play, gate, table (SPFT-SQL, section 3).

Without labels the base model takes the place of the models that labels would train: it phrases the first questions and
is the first candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from spftsql.config import Config
from spftsql.databases.catalogue import open_catalogue
from spftsql.errors import UserError
from spftsql.evaluation.benchmarks import Benchmark, load_benchmark, parses
from spftsql.execution import open_execution
from spftsql.progress import Reporter
from spftsql.records import Example, VerificationRequest
from spftsql.runs import Run
from spftsql.selfplay import vbi
from spftsql.selfplay.base import base_model
from spftsql.selfplay.candidates import Candidate, Exam, Training
from spftsql.selfplay.lineage import write_pairs
from spftsql.selfplay.lines import self_play
from spftsql.selfplay.players import Players, debut
from spftsql.selfplay.recombined import label_templates, with_recombined
from spftsql.selfplay.settling import Played, gate_answers, settle
from spftsql.selfplay.splits import SyntheticSets, label_folds, later_set, split_pairs
from spftsql.selfplay.stages import Stages
from spftsql.selfplay.table import Result
from spftsql.synthesis.composition import with_composed
from spftsql.synthesis.library import with_file, with_library, write_templates
from spftsql.synthesis.templates import Template, extract_pool


def run(
    config: Config,
    report: Reporter,
    expect: Callable[[Candidate], None] = lambda candidate: None,
    shared: Path | None = None,
) -> Result:
    """Runs or resumes the loop that `config` describes and returns its table.

    `expect` is told the likely winner before the last candidates are examined, so that an endpoint can warm up.
    `shared` is a folder of stages that several runs have in common, instead of one in the run directory.
    Raises `UserError` for what the user can mend and `Fault` where the machine failed; what was finished is kept.
    """
    directory = Run(config, shared)
    try:
        benchmark = load_benchmark(config.data, config.seed, directory.root)
        for note in benchmark.notes:
            report.say(f"  {note}")
        catalogue = open_catalogue(benchmark.databases)
        sources = {name: database.source for name, database in catalogue.items()}
        with open_execution(config, sources) as execution:
            return _loop(Stages(config, directory, execution, catalogue, report), benchmark, expect)
    finally:
        directory.close()


def _loop(stages: Stages, benchmark: Benchmark, expect: Callable[[Candidate], None]) -> Result:
    with_file([], stages.config.synthesis.templates)  # a damaged one is found before anything is done
    labels, gate_questions = usable_labels(stages, {"labels": benchmark.train, "gate": benchmark.gate})
    if benchmark.train and not labels:
        raise UserError(f"none of the {len(benchmark.train)} labelled SQL statements runs on its database")
    announce(stages, labels, gate_questions, benchmark.test)
    base = base_model(stages, labels)
    stages.use_prompts(base.path)
    by_fold = []
    for number, fold in enumerate(label_folds(labels, stages.config.gate, stages.config.seed), 1):
        stages.report.say(f"  fold {number}: the loop without {len(fold)} of {len(labels)} labels, which then ask it")
        left = [label for label in labels if label not in fold]
        by_fold.append(play_through(stages.for_fold(number), base, left, fold, [], lambda candidate: None))
    played = play_through(stages, base, labels, gate_questions, benchmark.test, expect)
    return settle(stages, played, gate_answers(played, by_fold, stages.config.selfplay.mode), bool(labels))


def play_through(
    stages: Stages,
    base: Candidate,
    labels: Sequence[Example],
    gate: Sequence[Example],
    test: Sequence[Example],
    expect: Callable[[Candidate], None],
) -> Played:
    """The loop once: the first models, the rounds of VBI-FT, self-play; everybody answers `gate` and `test`."""
    players = Players({"gate": Exam(gate), "test": Exam(test)}, [], {})
    first, question_model = first_models(stages, base, labels)
    players.candidates.append(first)
    control = vbi_rounds(stages, base, labels, players, question_model)
    rounds = players.candidates[1:]
    lines = self_play(stages, labels, players, expect)
    return Played(players, first, control, rounds, lines)


def announce(stages: Stages, labels: Sequence[Example], gate: Sequence[Example], test: Sequence[Example]) -> None:
    """Says what is missing, and what takes its place. Raises `UserError` where nothing can."""
    config = stages.config
    if labels and gate and test:
        return
    if not labels and config.model.path is None:
        raise UserError(
            "without labels a model from scratch has no words to phrase questions with: set model.path to a "
            "pre-trained model, or give labels (data.benchmark, data.label_share)"
        )
    if not labels and not config.vbi.rounds:
        raise UserError("without labels there is nothing to train on but VBI-FT's pairs: set vbi.rounds to 1 or more")
    if not labels:
        source = config.synthesis.templates or "the library"
        stages.report.say(f"  no labels: templates from {source}, questions by the base model")
    if not gate and config.gate.enabled:
        stages.report.say("  no gate set: the candidate that is best on synthetic questions is served, untested")
    if not test:
        stages.report.say("  no test set: the table is about synthetic questions of the selection set")


def usable_labels(stages: Stages, sets: Mapping[str, Sequence[Example]]) -> list[list[Example]]:
    """Of each set the labelled pairs whose SQL parses and runs; the others are reported by index and counted."""
    if not any(sets.values()):
        return [[] for _ in sets]
    policy = stages.config.verification.policy
    requests = [VerificationRequest(e.id, e.db_id, e.sql, None, policy) for examples in sets.values() for e in examples]
    verdicts = stages.verify("labels", requests)
    usable = []
    for name, examples in sets.items():
        good = []
        for index, example in enumerate(examples):
            verdict = verdicts[example.id]
            if verdict.status == "ran" and parses(example.sql):
                good.append(example)
                continue
            reason = f"{verdict.status}: {verdict.reason}" if verdict.status != "ran" else "does not parse"
            stages.run.event("label-set-aside", set=name, index=index, id=example.id, reason=reason)
            stages.report.say(f"  {name}: pair {index} set aside ({reason})")
        usable.append(good)
    return usable


def first_models(stages: Stages, base: Candidate, labels: Sequence[Example]) -> tuple[Candidate, Candidate]:
    """M0 (Text-to-SQL) and the first SQL-to-text model, both from the labels; the base model is both without."""
    if not labels:
        return base, base
    config = stages.config
    questions = [vbi.question_row(stages, example) for example in labels]
    sql = [stages.sql_row(example) for example in labels]
    trainings = [
        Training("sft", base, sql, config.sft),
        Training("question-0", base, questions, config.question_model),
    ]
    first, question_model = stages.train("labels", trainings)
    return first, question_model


def vbi_rounds(
    stages: Stages, base: Candidate, labels: Sequence[Example], players: Players, question_model: Candidate
) -> Candidate | None:
    """VBI-FT: adds one candidate a round to `players`; returns the control, trained as long on the labels alone."""
    config = stages.config
    pool = template_pool(stages, labels)
    databases = synthesis_databases(stages, labels)
    held_out = [*players.exams["gate"].questions, *players.exams["test"].questions]
    synthetic: list[Example] = []
    held: Collection[str] = ()
    weights: dict[str, float] | None = None
    origins: dict[str, list[str]] = {}
    control = None
    for round_ in range(1, config.vbi.rounds + 1):
        wanted = config.vbi.train_pairs
        if round_ == 1:
            wanted += config.vbi.play_pairs + config.vbi.selection_pairs
        voter = players.candidates[-1]
        known = [*labels, *synthetic]
        filled = partial(vbi.statements, stages, round_, pool=pool, weights=weights, known=known, databases=databases)
        made = with_recombined(stages, round_, wanted, labels, known, held, weights, filled)
        made = vbi.phrased(stages, round_, made, question_model, voter)
        stages.done_with(question_model)
        made = vbi.without_leaks(stages, round_, made, held_out)
        origins |= label_templates(made)
        pairs = [one.pair for one in made if one.pair is not None]
        sets = split_pairs(pairs, config.vbi, config.seed) if round_ == 1 else later_set(pairs, config.vbi)
        if round_ == 1:
            held = sets.templates
            pool = [template for template in pool if template.id not in held]
            databases = [name for name in databases if name not in sets.databases]
            players.exams |= _synthetic_exams(stages, sets)
        write_pairs(stages, round_, made, sets.parts, question_model, voter)
        synthetic += sets.train

        before = players.candidates[-1] if config.vbi.start == "previous" else base
        rows = [stages.sql_row(pair) for pair in [*labels, *(synthetic if config.vbi.pairs == "all" else sets.train)]]
        selection, details = players.exams["selection"].questions, {"round": round_}
        trainings = [
            Training(
                f"vbi-{round_}", before, rows, config.vbi.optimization,
                synthetic_share=config.vbi.share, selection=selection, details=details,
            )
        ]  # fmt: skip
        if round_ == config.vbi.rounds and labels and config.vbi.control:
            trainings.append(replace(control_training(stages, base, labels, len(rows)), selection=selection))
        candidate, *controls = stages.train(f"round-{round_}", trainings)
        control = controls[0] if controls else None
        players.candidates.append(candidate)
        newcomers = [*players.candidates[:1], candidate] if round_ == 1 else [candidate]
        debut(stages, players, f"round-{round_}", [*newcomers, *controls])
        for one in controls:
            stages.done_with(one)

        if round_ < config.vbi.rounds:
            answers = players.answers[candidate.name]["play"]
            weights = vbi.reweighted(pool, answers, origins)
            taught = [*labels, *vbi.confirmed(answers, made, config.synthesis.agreement)]
            if taught:
                question_model = train_question_model(stages, base, round_, taught)
    if not config.vbi.rounds:
        debut(stages, players, "labels", players.candidates)
    return control


def template_pool(stages: Stages, labels: Sequence[Example]) -> list[Template]:
    """The templates of the labels and of `synthesis.templates`, and, as far as wanted, of the library and composed.

    Those of the library alone where there are no others. They are kept in `templates.jsonl`, with what a composed one
    was made of.
    """
    config = stages.config.synthesis
    schemas = {name: database.schema for name, database in stages.catalogue.items()}
    places = {name: database.location for name, database in stages.catalogue.items()}
    pool, problems = extract_pool(labels, schemas)
    stages.run.event("templates", count=len(pool), problems=len(problems))
    pool = with_library(with_file(pool, config.templates), config.library)
    pool = with_composed(pool, config.composition, schemas, places, stages.config.seed)
    stages.run.write("templates.jsonl", write_templates(pool, schemas))
    return pool


def synthesis_databases(stages: Stages, labels: Sequence[Example]) -> list[str]:
    """The databases that SQL is written for."""
    if labels and stages.config.synthesis.databases == "labelled":
        return sorted({example.db_id for example in labels})
    return sorted(stages.catalogue)


def train_question_model(stages: Stages, base: Candidate, round_: int, pairs: Sequence[Example]) -> Candidate:
    """The SQL-to-text model for the next round, from the base on labels and confirmed pairs."""
    rows = [vbi.question_row(stages, pair) for pair in pairs]
    training = Training(f"question-{round_}", base, rows, stages.config.question_model)
    (model,) = stages.train(f"questions-{round_}", [training])
    return model


def _synthetic_exams(stages: Stages, sets: SyntheticSets) -> dict[str, Exam]:
    config = stages.config.selfplay
    return {"selection": Exam(sets.selection), "play": Exam(sets.play, config.samples, config.temperature)}


def control_training(stages: Stages, base: Candidate, labels: Sequence[Example], rows: int) -> Training:
    """The control of VBI-FT: the labels alone, for as many steps as the last round's model took from the base."""
    config = stages.config.vbi
    steps = config.optimization.total_steps(rows)
    if config.start == "previous":
        steps = steps * config.rounds + stages.config.sft.total_steps(len(labels))
    optimization = config.optimization.model_copy(update={"steps": steps})
    return Training("control", base, [stages.sql_row(example) for example in labels], optimization)
