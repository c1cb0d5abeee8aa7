"""One run of the whole loop, top to bottom: labels, VBI-FT rounds, self-play, gate, table (SPFT-SQL, section 3).

Without labels the base model takes the place of the models that labels would train: it phrases the first questions and
is the first candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from spftsql.selfplay.lineage import write_pairs
from spftsql.selfplay.play import opponent_of, play_iteration, strongest
from spftsql.selfplay.splits import SyntheticSets, later_set, split_pairs
from spftsql.selfplay.stages import Answer, Candidate, Exam, Stages, Training, accuracy
from spftsql.selfplay.table import Result, TableExam, markdown, method_row
from spftsql.synthesis.composition import with_composed
from spftsql.synthesis.library import with_library, write_templates
from spftsql.synthesis.templates import Template, extract_pool

_METHOD = {
    "sft": "continued SFT",
    "spin": "SPIN",
    "dpo": "DPO",
    "spft-a": "SPFT-SQL",
    "spft-b": "SPFT-SQL (b)",
}


@dataclass
class Players:
    """The questions that candidates answer, and the candidates so far, oldest first, with their answers.

    A candidate answers everything once, right after it was trained: `selection` greedily (its accuracy there chooses
    main model and opponent), `play` by sampling (what it would write as an opponent), `gate` and `test` greedily.
    Only the gate reads the answers to `gate`, only the table those to `test`.
    """

    exams: dict[str, Exam]
    candidates: list[Candidate]
    answers: dict[str, dict[str, list[Answer]]]

    @property
    def scores(self) -> dict[str, float]:
        """Accuracy on the selection set, by candidate name."""
        return {name: accuracy(exams["selection"]) for name, exams in self.answers.items() if "selection" in exams}

    def of(self, exam: str) -> dict[str, list[Answer]]:
        """Everybody's answers to one exam."""
        return {name: exams[exam] for name, exams in self.answers.items() if exam in exams}


def run(config: Config, report: Reporter, expect: Callable[[Candidate], None] = lambda candidate: None) -> Result:
    """Runs or resumes the loop that `config` describes and returns its table.

    `expect` is told the likely winner before the last candidates are examined, so that an endpoint can warm up.
    Raises `UserError` for what the user can mend and `Fault` where the machine failed; what was finished is kept.
    """
    directory = Run(config)
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
    labels, gate_questions = usable_labels(stages, {"labels": benchmark.train, "gate": benchmark.gate})
    if benchmark.train and not labels:
        raise UserError(f"none of the {len(benchmark.train)} labelled SQL statements runs on its database")
    announce(stages, labels, gate_questions, benchmark.test)
    base = base_model(stages, labels)
    stages.use_prompts(base.path)

    players = Players({"gate": Exam(gate_questions), "test": Exam(benchmark.test)}, [], {})
    first, question_model = first_models(stages, base, labels)
    players.candidates.append(first)
    control = vbi_rounds(stages, base, labels, players, question_model)
    rounds = players.candidates[1:]
    lines = self_play(stages, labels, players, expect)

    finals = {"SFT on the labels" if labels else "base model": first}
    if control is not None:
        finals["SFT, as many steps"] = control
    for number, candidate in enumerate(rounds, 1):
        finals["+ VBI-FT" if len(rounds) == 1 else f"+ VBI-FT, round {number}"] = candidate
    mode = stages.config.selfplay.mode
    finals |= {f"+ {_METHOD[m]}": lines[m] for m in lines if m != mode}
    if mode in lines:
        finals[f"+ {_METHOD[mode]}"] = lines[mode]
    challengers = [c for c in (*rounds[-1:], lines.get(mode)) if c is not None and c != first]
    return settle(stages, players, finals, first, challengers, control)


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
        stages.report.say("  no labels: templates from the library, questions by the base model")
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
    weights: dict[str, float] | None = None
    control = None
    for round_ in range(1, config.vbi.rounds + 1):
        wanted = config.vbi.train_pairs
        if round_ == 1:
            wanted += config.vbi.play_pairs + config.vbi.selection_pairs
        voter = players.candidates[-1]
        made = vbi.statements(stages, round_, wanted, pool, weights, [*labels, *synthetic], databases)
        made = vbi.phrased(stages, round_, made, question_model, voter)
        made = vbi.without_leaks(stages, round_, made, held_out)
        pairs = [one.pair for one in made if one.pair is not None]
        sets = split_pairs(pairs, config.vbi, config.seed) if round_ == 1 else later_set(pairs, config.vbi)
        if round_ == 1:
            pool = [template for template in pool if template.id not in sets.templates]
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

        if round_ < config.vbi.rounds:
            answers = players.answers[candidate.name]["play"]
            weights = vbi.reweighted(pool, answers)
            taught = [*labels, *vbi.confirmed(answers, made, config.synthesis.agreement)]
            if taught:
                question_model = train_question_model(stages, base, round_, taught)
    if not config.vbi.rounds:
        debut(stages, players, "labels", players.candidates)
    return control


def template_pool(stages: Stages, labels: Sequence[Example]) -> list[Template]:
    """The templates of the labels and, as far as wanted, of the library (alone without labels) and composed of these.

    They are kept in `templates.jsonl`, with what a composed one was made of.
    """
    config = stages.config.synthesis
    schemas = {name: database.schema for name, database in stages.catalogue.items()}
    places = {name: database.location for name, database in stages.catalogue.items()}
    pool, problems = extract_pool(labels, schemas)
    stages.run.event("templates", count=len(pool), problems=len(problems))
    pool = with_composed(with_library(pool, config.library), config.composition, schemas, places, stages.config.seed)
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


def debut(stages: Stages, players: Players, title: str, candidates: Sequence[Candidate]) -> None:
    """New candidates answer all exams, in one start of their engines."""
    players.answers |= stages.answers(title, candidates, players.exams)
    for candidate in candidates:
        if candidate.name in players.scores:
            stages.run.event("selection", candidate=candidate.name, accuracy=round(players.scores[candidate.name], 4))


def control_training(stages: Stages, base: Candidate, labels: Sequence[Example], rows: int) -> Training:
    """The control of VBI-FT: the labels alone, for as many steps as the last round's model took from the base."""
    config = stages.config.vbi
    steps = config.optimization.total_steps(rows)
    if config.start == "previous":
        steps = steps * config.rounds + stages.config.sft.total_steps(len(labels))
    optimization = config.optimization.model_copy(update={"steps": steps})
    return Training("control", base, [stages.sql_row(example) for example in labels], optimization)


def self_play(
    stages: Stages, labels: Sequence[Example], players: Players, expect: Callable[[Candidate], None]
) -> dict[Mode, Candidate]:
    """Self-play (algorithm 1): the final candidate of the configured mode and of each baseline mode.

    The mode's own candidates join `players`; a baseline starts from the same model and plays its own line.
    """
    config = stages.config.selfplay
    if not config.iterations or "play" not in players.exams or not players.exams["play"].questions:
        return {}
    begin = strongest(players.candidates, players.scores)
    lines: dict[Mode, Candidate] = dict.fromkeys([*config.baselines, config.mode], begin)
    for iteration in range(1, config.iterations + 1):
        main = strongest(players.candidates, players.scores)
        mains = {mode: main if mode == config.mode else line for mode, line in lines.items()}
        opponents = {
            mode: opponent_of(mode, config.opponent, mains[mode], players.candidates, players.scores) for mode in mains
        }
        selection = players.exams["selection"].questions
        lines = play_iteration(stages, iteration, labels, players.of("play"), mains, opponents, selection)
        newcomers = [line for line in lines.values() if line.name not in players.answers]
        if iteration == config.iterations:
            expect(strongest(players.candidates, players.scores))
        if newcomers:
            debut(stages, players, f"play-{iteration}", newcomers)
        if lines[config.mode] not in players.candidates:
            players.candidates.append(lines[config.mode])
    return lines


def settle(
    stages: Stages,
    players: Players,
    finals: Mapping[str, Candidate],
    incumbent: Candidate,
    challengers: Sequence[Candidate],
    control: Candidate | None,
) -> Result:
    """The gate, on its own questions, then the table, on the test questions (on the selection set where none are)."""
    config, gate = stages.config, players.of("gate")
    exam: TableExam = "test" if players.exams["test"].questions else "selection"
    test = players.of(exam)
    decisions: list[Decision] = []
    if config.gate.enabled and players.exams["gate"].questions:
        for challenger in challengers:
            decision = decide(gate[challenger.name], gate[incumbent.name], config.gate.alpha)
            decisions.append(decision)
            stages.run.event("gate", **asdict(decision))
            if decision.outcome == "better":
                incumbent = challenger
    elif challengers:
        incumbent = strongest(players.candidates, players.scores)
        stages.run.event("gate", outcome="no gate set; the best on the selection set is served", served=incumbent.name)
    control_answers = test[control.name] if control else None
    rows = tuple(
        method_row(
            method,
            candidate.name,
            test[candidate.name],
            None if candidate == control else control_answers,
        )
        for method, candidate in finals.items()
    )
    files = {
        name: database.location.address if database.location.engine == "sqlite" else database.location.url
        for name, database in stages.catalogue.items()
    }
    result = Result(rows, tuple(decisions), incumbent.name, incumbent.path, files, exam)
    stages.run.write("result.json", result.to_json())
    stages.run.write("table.md", markdown(result, f"{config.name} (seed {config.seed})"))
    stages.run.event("finished", served=incumbent.name)
    return result


def load_result(run_directory: Path) -> Result:
    """The result of a finished run. Raises `UserError` where there is none."""
    path = run_directory / "result.json"
    if not path.is_file():
        raise UserError(f"{run_directory} holds no finished run (no result.json)")
    try:
        return Result.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged or of another version: remove it and run the recipe again") from None
