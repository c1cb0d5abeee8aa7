"""The stages of a run as calls: ask models, execute SQL, train. Each is stored, and skipped when it is there.

Everything that touches the run directory or the machine on behalf of the loop is here, so that the loop itself
(`vbi.py`, `play.py`, `run.py`) reads as the method does.
"""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spftsql.config import Config, Optimization, fold_config
from spftsql.databases.catalogue import Catalogue
from spftsql.errors import Fault, disk_faults
from spftsql.execution import Execution
from spftsql.progress import Reporter
from spftsql.prompts import PromptBuilder
from spftsql.records import (
    Example,
    GenerationRequest,
    Mode,
    Sample,
    TrainRow,
    Verdict,
    VerificationRequest,
    content_hash,
    read_records,
    write_records,
)
from spftsql.runs import Run, Stage
from spftsql.selfplay.retention import forget_model, forget_weights, has_weights

if TYPE_CHECKING:
    from spftsql.training.validation import Validate


@dataclass(frozen=True)
class Candidate:
    """A trained model: where it lies and what it was made from."""

    name: str
    path: str
    key: str


@dataclass(frozen=True)
class Answer:
    """One sample of one candidate for one question, as SQL and with its verdict."""

    example: Example
    candidate: str
    text: str
    sql: str
    verdict: Verdict

    @property
    def correct(self) -> bool:
        """Whether the SQL gives the gold's result."""
        return self.verdict.status == "equal"

    @property
    def known(self) -> bool:
        """Whether there is an answer at all; a fault of ours says nothing about the candidate."""
        return self.verdict.fault is None


@dataclass(frozen=True)
class Exam:
    """Questions that candidates answer, `samples` times each; temperature 0 is greedy."""

    questions: Sequence[Example]
    samples: int = 1
    temperature: float = 0.0


@dataclass(frozen=True)
class Training:
    """One training wanted from `Stages.train`; the fields are those of `TrainJob`."""

    name: str
    start: Candidate
    rows: Sequence[TrainRow]
    optimization: Optimization
    mode: Mode = "sft"
    reference: Candidate | None = None
    synthetic_share: float | None = None
    selection: Sequence[Example] = ()  # questions that decide when it stops, with `training.validate_steps`
    details: Mapping[str, object] = field(default_factory=dict)  # for the model card


class Stages:
    """The run directory, the machine and the prompts, tied together for the loop."""

    def __init__(self, config: Config, run: Run, execution: Execution, catalogue: Catalogue, report: Reporter) -> None:
        """`use_prompts` must be called before the first prompt is needed: the tokenizer is made by the run itself."""
        self.config, self.run, self.execution, self.catalogue, self.report = (
            config,
            run,
            execution,
            catalogue,
            report,
        )
        self.prompts: PromptBuilder
        self._part = ""
        self._trained: dict[str, tuple[Stage, Training]] = {}  # by the path of the model

    def for_fold(self, number: int) -> Stages:
        """The same for a loop that a fold of the labels asks: without what is there for the table alone.

        The number is at the end of the names of stages.
        """
        other = copy.copy(self)
        other._part = f"-fold-{number}"
        other.config = fold_config(self.config)
        return other

    def use_prompts(self, model: str) -> None:
        """Fixes the prompt builder of the whole run to the base model's tokenizer."""
        self.prompts = PromptBuilder(self.config.prompt, model, self.config.model.chat_template)

    def answers(
        self, title: str, candidates: Sequence[Candidate], exams: Mapping[str, Exam]
    ) -> dict[str, dict[str, list[Answer]]]:
        """Every candidate's verified answers to every exam, by candidate and exam: one engine start for each model."""
        asked: dict[str, tuple[Candidate, str, Example]] = {}
        requests = []
        for candidate in candidates:
            for name, exam in exams.items():
                for example in exam.questions:
                    identity = f"{candidate.name}/{name}/{example.id}"
                    database = self.catalogue[example.db_id]
                    prompt = self.prompts.text_to_sql(database, example.question, example.evidence)
                    asked[identity] = candidate, name, example
                    requests.append(
                        self.request(identity, example.db_id, prompt, candidate, exam.samples, exam.temperature)
                    )
        with disk_faults(self.run.root):
            for name, exam in exams.items():  # for who looks at the answers later
                write_records(self.run.root / "exams" / f"{name}.parquet", exam.questions, Example)
        drawn = self.generate(title, requests, candidates)
        checks = [
            VerificationRequest(
                id=f"{sample.id}/{sample.index}",
                db_id=sample.db_id,
                sql=self.parsed(sample.text, asked[sample.id][2]),
                gold_sql=asked[sample.id][2].sql,
                policy=self.config.verification.policy,
            )
            for sample in drawn
        ]
        faults = {check.id: sample.fault for sample, check in zip(drawn, checks, strict=True) if sample.fault}
        verdicts = self.verify(title, [check for check in checks if check.id not in faults])
        for check in checks:
            if fault := faults.get(check.id):
                verdicts[check.id] = Verdict(check.id, check.db_id, "unverifiable", "fault", 0, 0, False, "", "", fault)
        found: dict[str, dict[str, list[Answer]]] = {c.name: {name: [] for name in exams} for c in candidates}
        for sample, check in zip(drawn, checks, strict=True):
            candidate, name, example = asked[sample.id]
            answer = Answer(example, candidate.name, sample.text, check.sql, verdicts[check.id])
            found[candidate.name][name].append(answer)
        for candidate_name, by_exam in found.items():
            for name, answers in by_exam.items():
                mix = Counter(answer.verdict.status for answer in answers)
                self.run.event("verdicts", candidate=candidate_name, exam=name, **mix)
        return found

    def request(
        self, identity: str, db_id: str, prompt: str, candidate: Candidate, samples: int, temperature: float
    ) -> GenerationRequest:
        """A prompt for a candidate, with the row's own seed."""
        return GenerationRequest(
            id=identity,
            db_id=db_id,
            prompt=prompt,
            model=candidate.path,
            n=samples,
            temperature=temperature,
            max_tokens=self.config.generation.max_tokens,
            seed=self.seed_of(identity),
        )

    def seed_of(self, identity: str) -> int:
        """The seed of a request, by its id."""
        return int(content_hash(self.config.seed, identity), 16) % 2**31

    def generate(
        self, title: str, requests: Sequence[GenerationRequest], candidates: Sequence[Candidate]
    ) -> list[Sample]:
        """Samples of all requests, sorted by id and index."""
        paths = {candidate.path: candidate.key for candidate in candidates}
        inputs = [
            _digest({**asdict(request), "model": paths[request.model]} for request in requests),
            # How many engines there are is not among it: every request has its own seed.
            [self.config.generation.engine, self.config.model.dtype, self.config.model.max_length],
        ]

        def build(folder: Path) -> None:
            self._ensure_weights(candidates)
            write_records(folder / "requests.parquet", requests, GenerationRequest)
            with self.report.task(f"{title}: generate") as progress:
                self.execution.generate(folder / "requests.parquet", folder / "samples", progress)

        stage = self.run.stage(f"generate-{title}{self._part}", inputs, build, keep_partial=True)
        samples = sorted(read_records(stage.path / "samples", Sample), key=lambda s: (s.id, s.index))
        unanswered = [sample for sample in samples if sample.error is not None]
        if unanswered:
            reasons = Counter(sample.error for sample in unanswered).most_common(3)
            self.run.event(
                "unanswered", stage=f"generate-{title}{self._part}", requests=len(unanswered), reasons=dict(reasons)
            )
        return samples

    def verify(self, title: str, requests: Sequence[VerificationRequest]) -> dict[str, Verdict]:
        """The verdict of every request, by id. Raises `Fault` when some statements could not be executed by us."""
        databases = {r.db_id: self.catalogue[r.db_id].content for r in requests}
        inputs = [_digest(asdict(r) for r in requests), databases, self.config.key("sandbox")]

        def build(folder: Path) -> None:
            write_records(folder / "requests.parquet", requests, VerificationRequest)
            with self.report.task(f"{title}: verify"):
                self.execution.verify(folder / "requests.parquet", folder / "verdicts")
            verdicts = read_records(folder / "verdicts", Verdict)
            faults = Counter(v.fault for v in verdicts if v.fault)
            if faults:
                kinds = "; ".join(f"{count}x {fault}" for fault, count in faults.most_common(3))
                raise Fault(f"{title}: {sum(faults.values())} statements could not be verified ({kinds}); run again")
            missing = {r.id for r in requests} - {v.id for v in verdicts}
            if missing or len(verdicts) != len(requests):
                raise Fault(f"{title}: {len(requests)} statements sent, {len(verdicts)} verdicts came back; run again")

        stage = self.run.stage(f"verify-{title}{self._part}", inputs, build)
        return {verdict.id: verdict for verdict in read_records(stage.path / "verdicts", Verdict)}

    def train(self, title: str, trainings: Sequence[Training]) -> list[Candidate]:
        """Trains all of them in one worker group and returns the candidates in the same order."""
        config, play = self.config, self.config.selfplay
        validates = config.training.validate_steps is not None
        inputs = [
            {
                "name": t.name,
                "start": t.start.key,
                "rows": _digest(asdict(row) for row in t.rows),
                "optimization": t.optimization.model_dump(),
                "mode": t.mode,
                "reference": t.reference.key if t.reference else None,
                "share": t.synthetic_share,
            }
            | ({"selection": _digest(asdict(example) for example in t.selection)} if validates else {})
            for t in trainings
        ] + [
            self.prompts.hash,
            [config.training.result_settings(), config.model.dtype, config.model.max_length, config.seed],
            [play.lambda_, play.nll_weight, play.loss, play.normalise, play.weigh],
        ]

        def build(folder: Path) -> None:
            self._ensure_weights([model for t in trainings for model in (t.start, t.reference) if model])
            for t in trainings:
                write_records(folder / f"{t.name}.parquet", t.rows, TrainRow)
            self._run_trainings(title, folder, trainings)

        stage = self.run.stage(f"train-{title}{self._part}", inputs, build, keep_partial=True)
        candidates = [candidate_of(stage, t.name) for t in trainings]
        self._trained |= {one.path: (stage, t) for one, t in zip(candidates, trainings, strict=True)}
        return candidates

    def _run_trainings(self, title: str, folder: Path, trainings: Sequence[Training]) -> None:
        """Trains on the rows that are in `folder`, and leaves the models there."""
        from spftsql.training.job import TrainJob

        play, validates = self.config.selfplay, self.config.training.validate_steps is not None
        jobs = [
            TrainJob(
                name=t.name,
                model=Path(t.start.path),
                data=folder / f"{t.name}.parquet",
                output=folder / t.name,
                mode=t.mode,
                optimization=t.optimization,
                seed=self.config.seed,
                reference=Path(t.reference.path) if t.reference else None,
                lambda_=play.lambda_,
                nll_weight=play.nll_weight,
                form=play.loss,
                normalise=play.normalise,
                weigh=play.weigh,
                synthetic_share=t.synthetic_share,
                details={"prompt_hash": self.prompts.hash, **t.details},
                validate=self._accuracy_on(t.selection) if validates and t.selection else None,
            )
            for t in trainings
        ]
        with self.report.task(f"{title}: train {', '.join(t.name for t in trainings)}") as progress:
            results = self.execution.train(jobs, self.run.metrics, progress)
        for result in results:
            self.run.event(
                "trained",
                name=result.name,
                steps=result.steps,
                loss=result.loss,
                dropped=result.dropped_rows,
            )

    def done_with(self, candidate: Candidate) -> None:
        """Gives up the weights of a model of this run that is not asked any more, where `retention` says so."""
        if self.config.retention == "needed" and candidate.path in self._trained:
            self.run.event("weights-removed", models=candidate.name, bytes=forget_model(Path(candidate.path)))

    def keep_weights_of(self, candidates: Sequence[Candidate]) -> None:
        """At the end of a run: gives up the weights of all other models, where `retention` says so."""
        if self.config.retention == "needed":
            freed = forget_weights(self.run.stages, [Path(candidate.path) for candidate in candidates])
            names = ", ".join(candidate.name for candidate in candidates)
            self.run.event("weights-removed", models=f"all but {names}", bytes=freed)

    def _ensure_weights(self, candidates: Sequence[Candidate]) -> None:
        """Trains again what is asked for once more after its weights were given up."""
        for candidate in candidates:
            if candidate.path not in self._trained or has_weights(Path(candidate.path)):
                continue
            stage, training = self._trained[candidate.path]
            self._ensure_weights([model for model in (training.start, training.reference) if model])
            shutil.rmtree(candidate.path, ignore_errors=True)
            self._run_trainings(f"{candidate.name} again", stage.path, [training])

    def _accuracy_on(self, questions: Sequence[Example]) -> Validate:
        """What a training that stops early is told of its models: their accuracy on `questions`."""
        from spftsql.training.validation import ExecutionAccuracy

        candidate = Candidate("", "", "")  # filled in when there is a model
        requests = []
        for question in questions:
            prompt = self.prompts.text_to_sql(self.catalogue[question.db_id], question.question, question.evidence)
            requests.append(self.request(question.id, question.db_id, prompt, candidate, samples=1, temperature=0.0))
        databases = {question.db_id: self.catalogue[question.db_id] for question in questions}
        return ExecutionAccuracy(
            requests,
            {question.id: question.sql for question in questions},
            {name: database.source for name, database in databases.items()},
            self.config,
            partial(_answered_sql, self.prompts, databases, {question.id: question for question in questions}),
        )

    def sql_row(self, example: Example) -> TrainRow:
        """An example as Text-to-SQL training text."""
        prompt = self.prompts.text_to_sql(self.catalogue[example.db_id], example.question, example.evidence)
        answer = self.prompts.answer(example.sql, self.catalogue[example.db_id], example.question)
        return TrainRow(example.id, example.db_id, prompt, answer, None, None, example.source)

    def parsed(self, text: str, example: Example) -> str:
        """The SQL in a model's answer to an example's question."""
        return self.prompts.parse_sql(text, self.catalogue[example.db_id], example.question)


def candidate_of(stage: Stage, name: str) -> Candidate:
    """The candidate `name` of a training stage."""
    return Candidate(name, str(stage.path / name), content_hash(stage.key, name))


def accuracy(answers: Sequence[Answer]) -> float:
    """Execution accuracy over the answers that are known; 0 for none."""
    return sum(answer.correct for answer in answers) / max(sum(answer.known for answer in answers), 1)


def _answered_sql(
    prompts: PromptBuilder, catalogue: Catalogue, questions: Mapping[str, Example], identity: str, text: str
) -> str:
    question = questions[identity]
    return prompts.parse_sql(text, catalogue[question.db_id], question.question)


def _digest(rows: Iterable[Mapping[str, object]]) -> str:
    return content_hash([list(row.values()) for row in rows])
