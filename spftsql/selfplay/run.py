"""One run of the whole loop, top to bottom: labels, VBI-FT rounds, self-play, gate, table (method.md 1.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spftsql.config import Config
from spftsql.databases.catalogue import open_catalogue
from spftsql.errors import UserError
from spftsql.evaluation.benchmarks import Benchmark, load_benchmark, parses
from spftsql.execution import open_execution
from spftsql.progress import Reporter
from spftsql.records import Example, Mode, VerificationRequest
from spftsql.runs import Run
from spftsql.selfplay import vbi
from spftsql.selfplay.base import base_model
from spftsql.selfplay.gate import Decision, decide
from spftsql.selfplay.play import opponent_of, play_iteration, strongest
from spftsql.selfplay.stages import Answer, Candidate, Stages, Training, accuracy
from spftsql.selfplay.table import Result, markdown, method_row
from spftsql.synthesis.templates import extract_pool

_METHOD = {
    "sft": "continued SFT",
    "spin": "SPIN",
    "dpo": "DPO",
    "spft-a": "SPFT-SQL",
    "spft-b": "SPFT-SQL (b)",
}


@dataclass
class Players:
    """The candidates so far, in order of age, with their accuracy on the selection set."""

    candidates: list[Candidate]
    scores: dict[str, float]
    play: tuple[Example, ...] = ()
    selection: tuple[Example, ...] = ()


def run(config: Config, report: Reporter) -> Result:
    """Runs or resumes the loop that `config` describes and returns its table.

    Raises `UserError` for what the user can mend and `Fault` where the machine failed; what was finished is kept.
    """
    directory = Run(config)
    try:
        benchmark = load_benchmark(config.data, config.seed, directory.root)
        for note in benchmark.notes:
            report.say(f"  {note}")
        catalogue = open_catalogue(benchmark.databases)
        files = {name: database.path for name, database in catalogue.items()}
        with open_execution(config, files) as execution:
            return _loop(Stages(config, directory, execution, catalogue, report), benchmark)
    finally:
        directory.close()


def _loop(stages: Stages, benchmark: Benchmark) -> Result:
    labels = usable_labels(stages, "labels", benchmark.train)
    gate_questions = usable_labels(stages, "gate", benchmark.gate) if benchmark.gate else []
    base = base_model(stages, labels)
    stages.use_prompts(base.path)

    first, question_model = first_models(stages, base, labels)
    players = Players([first], {})
    control = vbi_rounds(stages, base, labels, players, question_model)
    start = players.candidates[-1]
    chains = self_play(stages, labels, players)

    finals = {"SFT on the labels": first}
    if control is not None:
        finals["SFT, same steps as VBI-FT"] = control
        finals["+ VBI-FT"] = start
    mode = stages.config.selfplay.mode
    finals |= {f"+ {_METHOD[m]}": chains[m] for m in chains if m != mode}
    if mode in chains:
        finals[f"+ {_METHOD[mode]}"] = chains[mode]
    challengers = [c for c in (start, chains.get(mode)) if c is not None and c != first]
    return settle(stages, finals, first, challengers, gate_questions, benchmark.test, control)


def usable_labels(stages: Stages, title: str, examples: Sequence[Example]) -> list[Example]:
    """The labelled pairs whose SQL parses and runs. The others are reported by index, set aside and counted."""
    requests = [VerificationRequest(e.id, e.db_id, e.sql, None, "strict") for e in examples]
    verdicts = stages.verify(title, requests)
    good = []
    for index, example in enumerate(examples):
        verdict = verdicts[example.id]
        if verdict.status == "ran" and parses(example.sql):
            good.append(example)
            continue
        reason = f"{verdict.status}: {verdict.reason}" if verdict.status != "ran" else "does not parse"
        stages.run.event("label-set-aside", set=title, index=index, id=example.id, reason=reason)
        stages.report.say(f"  {title}: pair {index} set aside ({reason})")
    if not good:
        raise UserError(f"{title}: none of the {len(examples)} labelled SQL statements runs on its database")
    return good


def first_models(stages: Stages, base: Candidate, labels: Sequence[Example]) -> tuple[Candidate, Candidate]:
    """M0 (Text-to-SQL) and the first SQL-to-text model, both from the labels."""
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
    schemas = {name: database.schema for name, database in stages.catalogue.items()}
    pool, problems = extract_pool(labels, schemas)
    stages.run.event("templates", count=len(pool), problems=len(problems))
    synthetic: list[Example] = []
    weights: dict[str, float] | None = None
    held_out: frozenset[str] = frozenset()
    control = None
    for round_ in range(1, config.vbi.rounds + 1):
        open_pool = [template for template in pool if template.id not in held_out]
        statements = vbi.synthetic_statements(stages, round_, open_pool, weights, [*labels, *synthetic])
        pairs = vbi.phrased(stages, round_, statements, question_model)
        if round_ == 1:
            held_out = vbi.choose_selection_templates(stages, pairs)
        sets = vbi.split_pairs(stages, pairs, held_out)
        players.selection = players.selection or sets.selection
        players.play = sets.play
        synthetic += sets.train

        before = players.candidates[-1] if config.vbi.start == "previous" else base
        rows = [stages.sql_row(example) for example in [*labels, *synthetic]]
        optimization = config.vbi.optimization
        trainings = [
            Training(f"vbi-{round_}", before, rows, optimization, synthetic_share=config.vbi.share),
        ]
        if round_ == config.vbi.rounds:
            trainings.append(control_training(stages, base, labels, len(rows)))
        trained = stages.train(f"round-{round_}", trainings)
        players.candidates.append(trained[0])
        control = trained[1] if len(trained) > 1 else None

        if round_ < config.vbi.rounds:
            answers = stages.answers(f"probe-{round_}", sets.play, [trained[0]])[trained[0].name]
            weights = vbi.reweighted(pool, answers)
            rows = [vbi.question_row(stages, example) for example in [*labels, *vbi.confirmed(answers)]]
            (question_model,) = stages.train(
                f"questions-{round_}", [Training(f"question-{round_}", base, rows, config.question_model)]
            )
    return control


def control_training(stages: Stages, base: Candidate, labels: Sequence[Example], rows: int) -> Training:
    """The control of VBI-FT: the labels alone, for as many steps as the whole of VBI-FT takes."""
    config = stages.config.vbi
    steps = config.optimization.total_steps(rows)
    if config.start == "previous":
        steps = steps * config.rounds + stages.config.sft.total_steps(len(labels))
    optimization = config.optimization.model_copy(update={"steps": steps})
    return Training("control", base, [stages.sql_row(example) for example in labels], optimization)


def self_play(stages: Stages, labels: Sequence[Example], players: Players) -> dict[Mode, Candidate]:
    """Self-play (algorithm 1): the final candidate of the configured mode and of each baseline mode.

    The mode's own candidates join `players`; a baseline starts from the same model and plays its own line.
    """
    config = stages.config.selfplay
    if not config.iterations or not players.play:
        return {}
    measure(stages, players)
    begin = strongest(players.candidates, players.scores)
    lines: dict[Mode, Candidate] = dict.fromkeys([*config.baselines, config.mode], begin)
    for iteration in range(1, config.iterations + 1):
        main = strongest(players.candidates, players.scores)
        mains = {mode: main if mode == config.mode else line for mode, line in lines.items()}
        opponents = {
            mode: opponent_of(mode, config.opponent, mains[mode], players.candidates, players.scores) for mode in mains
        }
        lines = play_iteration(stages, iteration, labels, players.play, mains, opponents)
        if lines[config.mode] not in players.candidates:
            players.candidates.append(lines[config.mode])
            if iteration < config.iterations:
                measure(stages, players)
    return lines


def measure(stages: Stages, players: Players) -> None:
    """Accuracy on the selection set of every candidate that has none yet."""
    new = [candidate for candidate in players.candidates if candidate.name not in players.scores]
    answers = stages.answers("selection-" + "-".join(c.name for c in new), players.selection, new)
    for candidate in new:
        players.scores[candidate.name] = accuracy(answers[candidate.name])
        stages.run.event("selection", candidate=candidate.name, accuracy=round(players.scores[candidate.name], 4))


def settle(
    stages: Stages,
    finals: Mapping[str, Candidate],
    incumbent: Candidate,
    challengers: Sequence[Candidate],
    gate_questions: Sequence[Example],
    test_questions: Sequence[Example],
    control: Candidate | None,
) -> Result:
    """The gate, on its own questions, then the table, on the test questions."""
    config = stages.config
    distinct = list({candidate.name: candidate for candidate in finals.values()}.values())
    answers = stages.answers("final", [*gate_questions, *test_questions], distinct)
    gate_ids = {example.id for example in gate_questions}
    decisions: list[Decision] = []
    if config.gate.enabled and gate_ids:
        for challenger in challengers:
            decision = decide(
                _within(answers[challenger.name], gate_ids),
                _within(answers[incumbent.name], gate_ids),
                config.gate.alpha,
            )
            decisions.append(decision)
            stages.run.event("gate", **asdict(decision))
            if decision.outcome == "better":
                incumbent = challenger
    elif challengers:
        incumbent = challengers[-1]
    test_ids = {example.id for example in test_questions}
    control_answers = _within(answers[control.name], test_ids) if control else None
    rows = tuple(
        method_row(
            method, candidate.name, _within(answers[candidate.name], test_ids),
            None if control is None or candidate == control else control_answers,
        )
        for method, candidate in finals.items()
    )  # fmt: skip
    files = {name: str(database.path) for name, database in stages.catalogue.items()}
    result = Result(rows, tuple(decisions), incumbent.name, incumbent.path, files)
    stages.run.write("result.json", result.to_json())
    stages.run.write("table.md", markdown(result, f"{config.name} (seed {config.seed})"))
    stages.run.event("finished", served=incumbent.name)
    return result


def _within(answers: Sequence[Answer], ids: set[str]) -> list[Answer]:
    return [answer for answer in answers if answer.example.id in ids]


def load_result(run_directory: Path) -> Result:
    """The result of a finished run. Raises `UserError` where there is none."""
    path = run_directory / "result.json"
    if not path.is_file():
        raise UserError(f"{run_directory} holds no finished run (no result.json)")
    return Result.from_json(path.read_text(encoding="utf-8"))
