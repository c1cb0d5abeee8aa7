"""The stages of a run as calls: ask models, execute SQL, train. Each is stored, and skipped when it is there.

Everything that touches the run directory or the machine on behalf of the loop is here, so that the loop itself
(`vbi.py`, `play.py`, `run.py`) reads as the method does.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spftsql.config import Config, fold_config
from spftsql.databases.catalogue import Catalogue
from spftsql.errors import Fault, disk_faults
from spftsql.execution import Execution
from spftsql.generation.work import asked_again
from spftsql.progress import Advance, Reporter
from spftsql.prompts import PromptBuilder
from spftsql.records import (
    Example,
    GenerationRequest,
    Sample,
    TrainRow,
    Verdict,
    VerificationRequest,
    content_hash,
    read_records,
    write_records,
)
from spftsql.runs import Run, Stage
from spftsql.selfplay.candidates import Answer, Candidate, Exam, Training
from spftsql.selfplay.retention import forget_model, forget_weights, has_weights
from spftsql.telemetry import count, gauge
from spftsql.usage import Use, trainer_use
from spftsql.verification.samples import Checks, early_verdicts, statement

if TYPE_CHECKING:
    from spftsql.databases.catalogue import Database
    from spftsql.generation.onward import Onward
    from spftsql.training.validation import Validate


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
        self._started: set[str] = set()
        self._trained: dict[str, tuple[Stage, Training]] = {}  # by the path of the model
        self._generated: dict[str, Path] = {}  # the folders of stages, by their names

    def for_fold(self, number: int) -> Stages:
        """The same for a loop that a fold of the labels asks: without what is there for the table alone.

        The number is at the end of the names of stages and trainings, and in every event (`fold`).
        """
        other = copy.copy(self)
        other._part = f"-fold-{number}"
        other.run = self.run.about(fold=number)
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
            for name, exam in exams.items() if not self._part else ():  # for who looks at the run's answers later
                write_records(self.run.root / "exams" / f"{name}.parquet", exam.questions, Example)
        examples = {identity: example for identity, (_, _, example) in asked.items()}
        drawn, checks, verdicts = self.verified(title, requests, candidates, examples)
        found: dict[str, dict[str, list[Answer]]] = {c.name: {name: [] for name in exams} for c in candidates}
        for sample, check in zip(drawn, checks, strict=True):
            candidate, name, example = asked[sample.id]
            answer = Answer(example, candidate.name, sample.text, check.sql, verdicts[check.id])
            found[candidate.name][name].append(answer)
        for candidate_name, by_exam in found.items():
            for name, answers in by_exam.items():
                mix = Counter(answer.outcome for answer in answers)
                self.run.event("verdicts", candidate=candidate_name, exam=name, **mix)
        return found

    def verified(
        self,
        title: str,
        requests: Sequence[GenerationRequest],
        candidates: Sequence[Candidate],
        examples: Mapping[str, Example],
        before: Path | None = None,
    ) -> tuple[list[Sample], list[VerificationRequest], dict[str, Verdict]]:
        """Samples of all requests, their statements in the same order, and the verdict of each by its id.

        `examples` say what each request asks. Statements are executed while other samples are written, or were so in
        the stage that left the folder `before`, which is removed. A sample that engines failed with has a verdict with
        that fault.
        """
        if before is not None and before.is_dir():
            drawn, early = self.generate(title, requests, candidates, before=before), before / "checks"
        else:
            checks = self._early(title, requests, examples)
            drawn, early = self.generate(title, requests, candidates, checks), checks.folder
        policy = self.config.verification.policy
        statements = [statement(s, examples[s.id], self.prompts, self.catalogue[s.db_id], policy) for s in drawn]
        faults = {check.id: sample.fault for sample, check in zip(drawn, statements, strict=True) if sample.fault}
        asked = [check for check in statements if check.id not in faults]
        verdicts = self.verify(title, asked, early)
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)
        for check in statements:
            if fault := faults.get(check.id):
                verdicts[check.id] = Verdict(check.id, check.db_id, "unverifiable", "fault", 0, 0, False, "", "", fault)
        return drawn, statements, verdicts

    def early_folder(self, title: str, asked: object, databases: Mapping[str, Database]) -> Path:
        """What a later stage finds of its work: named by what is `asked`, and by all else that verdicts depend on."""
        key = content_hash(
            asked,
            {name: database.content for name, database in databases.items()},
            self.config.key("sandbox", "prompt"),
            self.config.verification.policy,
        )
        return self.run.root / "early" / f"{title}{self._part}-{key}"

    def _early(self, title: str, requests: Sequence[GenerationRequest], examples: Mapping[str, Example]) -> Checks:
        """How the samples of a stage are verified while it runs; the folder is named by all that verdicts depend on."""
        databases = {request.db_id: self.catalogue[request.db_id] for request in requests}
        asked = [replace(examples[request.id], id=request.id) for request in requests]
        folder = self.early_folder(title, _digest(asdict(example) for example in asked), databases)
        with disk_faults(self.run.root):
            write_records(folder / "examples.parquet", asked, Example)
        policy = self.config.verification.policy
        return Checks(folder, folder / "examples.parquet", databases, self.config.prompt, policy)

    def request(
        self, identity: str, db_id: str, prompt: str, candidate: Candidate, samples: int, temperature: float
    ) -> GenerationRequest:
        """A prompt for a candidate, with the row's own seed."""
        return generation_request(self.config, identity, db_id, prompt, candidate.path, samples, temperature)

    def seed_of(self, identity: str) -> int:
        """The seed of a request, by its id."""
        return seed_of(self.config, identity)

    def generate(
        self,
        title: str,
        requests: Sequence[GenerationRequest],
        candidates: Sequence[Candidate],
        checks: Checks | None = None,
        onward: tuple[str, Onward, Candidate] | None = None,
        before: Path | None = None,
    ) -> list[Sample]:
        """Samples of all requests, sorted by id and index; with `checks` they are verified while others are written.

        `onward` is what may be asked of another candidate meanwhile, and the title of the stage that finds it in the
        folder `before`.
        """
        paths = {candidate.path: candidate.key for candidate in candidates}
        inputs = [
            _digest({**asdict(request), "model": paths[request.model]} for request in requests),
            # How many engines there are is not among it: every request has its own seed.
            [self.config.generation.engine, self.config.model.dtype, self.config.model.max_length],
        ]

        def build(folder: Path) -> None:
            self._ensure_weights([*candidates, onward[2]] if onward else candidates)
            write_records(folder / "requests.parquet", requests, GenerationRequest)
            what = "generate" if checks is None else "generate and verify"
            source, target = folder / "requests.parquet", folder / "samples"
            with self._task(f"generate-{title}{self._part}", f"{title}: {what}", "requests") as progress:
                uses = self.execution.generate(source, target, progress, checks, onward[1] if onward else None, before)
            own = 1 if onward else len(uses)
            self._used(f"generate-{title}{self._part}", uses[:own])
            if onward and uses[own:]:
                self._used(f"generate-{onward[0]}{self._part}", uses[own:])
            if again := asked_again(target):
                name = f"generate-{title}{self._part}"
                self.run.event("asked-again", stage=name, requests=again, of=len(requests))
                self.report.say(
                    f"  {again} of {len(requests)} requests were with an engine when it stopped: asked again"
                )

        stage = self.run.stage(f"generate-{title}{self._part}", inputs, build, keep_partial=True)
        self._generated[stage.name] = stage.path
        samples = sorted(read_records(stage.path / "samples", Sample), key=lambda s: (s.id, s.index))
        unanswered = [sample for sample in samples if sample.error is not None]
        if unanswered:
            reasons = Counter(sample.error for sample in unanswered).most_common(3)
            self.run.event(
                "unanswered", stage=f"generate-{title}{self._part}", requests=len(unanswered), reasons=dict(reasons)
            )
        return samples

    def generated(self, title: str) -> Path | None:
        """The folder with the requests and samples of a call of `generate`; None where there was none."""
        return self._generated.get(f"generate-{title}{self._part}")

    def verify(
        self, title: str, requests: Sequence[VerificationRequest], early: Path | None = None
    ) -> dict[str, Verdict]:
        """The verdict of every request, by id; those in the folder `early` are taken from there, which is removed.

        Raises `Fault` when some statements could not be executed by us.
        """
        databases = {r.db_id: self.catalogue[r.db_id].content for r in requests}
        inputs = [_digest(asdict(r) for r in requests), databases, self.config.key("sandbox")]

        def build(folder: Path) -> None:
            write_records(folder / "requests.parquet", requests, VerificationRequest)
            known = early_verdicts(early) if early else {}
            left = [request for request in requests if request not in known]
            if left or not requests:
                source = folder / ("left.parquet" if known else "requests.parquet")
                write_records(source, left, VerificationRequest)
                with self._task(f"verify-{title}{self._part}", f"{title}: verify", "statements") as progress:
                    self._used(
                        f"verify-{title}{self._part}", [self.execution.verify(source, folder / "verdicts", progress)]
                    )
            if had := [known[request] for request in requests if request in known]:
                write_records(folder / "verdicts" / "early.parquet", had, Verdict)
            verdicts = read_records(folder / "verdicts", Verdict)
            faults = Counter(v.fault for v in verdicts if v.fault)
            if faults:
                kinds = "; ".join(f"{count}x {fault}" for fault, count in faults.most_common(3))
                raise Fault(f"{title}: {sum(faults.values())} statements could not be verified ({kinds}); run again")
            missing = {r.id for r in requests} - {v.id for v in verdicts}
            if missing or len(verdicts) != len(requests):
                raise Fault(f"{title}: {len(requests)} statements sent, {len(verdicts)} verdicts came back; run again")

        stage = self.run.stage(f"verify-{title}{self._part}", inputs, build)
        if early:
            shutil.rmtree(early, ignore_errors=True)
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
                name=f"{t.name}{self._part}",
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
        begin, names = time.monotonic(), ", ".join(t.name for t in trainings)
        with self._task(f"train-{title}{self._part}", f"{title}: train {names}", "steps") as progress:
            results = self.execution.train(jobs, self.run.metrics, progress)
        workers = self.config.training.max_workers if self.config.execution == "ray" else 1
        use = trainer_use(self.run.metrics, {job.name for job in jobs}, workers, time.monotonic() - begin)
        self._used(f"train-{title}{self._part}", [use])
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

    @contextmanager
    def _task(self, stage: str, title: str, unit: str) -> Iterator[Advance]:
        """Tells a person and Prometheus how far a stage is."""
        labels = {"run": self.config.name, "stage": stage}
        with self.report.task(title, unit) as advance:

            def tell(done: int, total: int) -> None:
                advance(done, total)
                gauge("spftsql_loop_stage_done", done, **labels)
                gauge("spftsql_loop_stage_rows", total, **labels)

            yield tell
        count("spftsql_loop_stages", run=self.config.name, kind=stage.split("-")[0])

    def _used(self, stage: str, uses: Iterable[Use]) -> None:
        for what, seconds in self.execution.starts.items():
            if what not in self._started:
                self._started.add(what)
                self.run.event("start", what=what, seconds=seconds)
        for use in uses:
            gauge("spftsql_loop_idle_share", use.idle, run=self.config.name, stage=stage, who=use.who)
            self.run.event("use", stage=stage, idle=round(use.idle, 4), **asdict(use))

    def sql_row(self, example: Example) -> TrainRow:
        """An example as Text-to-SQL training text."""
        prompt = self.prompts.text_to_sql(self.catalogue[example.db_id], example.question, example.evidence)
        answer = self.prompts.answer(example.sql, self.catalogue[example.db_id], example.question)
        return TrainRow(example.id, example.db_id, prompt, answer, None, None, example.source)


def candidate_of(stage: Stage, name: str) -> Candidate:
    """The candidate `name` of a training stage."""
    return Candidate(name, str(stage.path / name), content_hash(stage.key, name))


def _answered_sql(
    prompts: PromptBuilder, catalogue: Catalogue, questions: Mapping[str, Example], identity: str, text: str
) -> str:
    question = questions[identity]
    return prompts.parse_sql(text, catalogue[question.db_id], question.question)


def generation_request(
    config: Config, identity: str, db_id: str, prompt: str, model: str, samples: int, temperature: float
) -> GenerationRequest:
    """A prompt for the model in a directory, with the row's own seed."""
    return GenerationRequest(
        id=identity,
        db_id=db_id,
        prompt=prompt,
        model=model,
        n=samples,
        temperature=temperature,
        max_tokens=config.generation.max_tokens,
        seed=seed_of(config, identity),
    )


def seed_of(config: Config, identity: str) -> int:
    """The seed of a request, by its id."""
    return int(content_hash(config.seed, identity), 16) % 2**31


def _digest(rows: Iterable[Mapping[str, object]]) -> str:
    return content_hash([list(row.values()) for row in rows])
