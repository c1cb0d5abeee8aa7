"""`spftsql plan RECIPE`: tokens, statements, GPU-hours, disk and money of every stage, before anything is started.

Counts follow from the recipe and the benchmark's questions; times from the roofline and the share of it that is reached
(`spftsql.planning.roofline`). What cannot be known before is assumed, and said: the length of questions and answers, a
prompt's schema at its limit, no early end of trainings.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from spftsql.config import Config, DataConfig, Optimization, fold_config
from spftsql.errors import UserError
from spftsql.evaluation.benchmarks import PARTS
from spftsql.planning.roofline import (
    DECODE_REACHED,
    EXECUTIONS_PER_CORE,
    PREFILL_REACHED,
    TRAINING_REACHED,
    Device,
    decode_rate,
    prefill_rate,
    training_rate,
)
from spftsql.planning.shapes import GIB, KNOWN, Shape, scratch_shape, shape_of_directory
from spftsql.selfplay.candidates import TRIED_PER_NEAR_MISS
from spftsql.synthesis.accepting import WINDOW

LETTERS_PER_TOKEN = 3.2  # of questions and SQL
TASK_TOKENS = 35  # the task, values of the question and the chat template, beside schema and question
UNKNOWN_QUESTION, UNKNOWN_ANSWER = 20, 40  # tokens, where there are no questions to measure
PREFIX_HITS = 0.95  # share of a schema's tokens that the prefix cache has, with rows grouped by database
_RESERVE = 1.3  # statements that are phrased, per pair wanted
_DRAWN = 2.3  # statements tried, per pair wanted
_CHECKS = 1.5  # executions of a statement that is drawn, its checks among them
_ROW_BYTES = 1000  # of a sample with its request and verdict, in Parquet


@dataclass(frozen=True)
class Sizes:
    """Questions of a run, before it is drawn, and tokens of a question and of its SQL, on average."""

    train: int
    gate: int
    test: int
    question: int = UNKNOWN_QUESTION
    answer: int = UNKNOWN_ANSWER
    assumed: bool = False


@dataclass(frozen=True)
class StagePlan:
    """One stage: requests and tokens read and written, tokens trained on, statements executed, bytes kept.

    `models` is how many models share the requests, or are trained; `steps` are those of all trainings together.
    """

    name: str
    requests: int = 0
    samples: int = 0
    models: int = 1
    steps: int = 0
    read: float = 0.0  # tokens of prompts that the prefix cache does not have
    written: float = 0.0
    trained: float = 0.0
    referenced: float = 0.0  # tokens of the frozen reference, one forward pass
    executions: int = 0
    disk: float = 0.0

    @property
    def kind(self) -> str:
        """`generate`, `verify` or `train`."""
        return self.name.split("-")[0]


@dataclass(frozen=True)
class Priced:
    """A stage with its time; `hours` of wall clock, `gpu_hours` over the GPUs that work in it."""

    plan: StagePlan
    hours: float
    gpu_hours: float
    money: float | None


@dataclass(frozen=True)
class CostPlan:
    """All stages in their order. `gpus` are held all the time; `money` is what that costs."""

    recipe: str
    stages: tuple[Priced, ...]
    gpus: int
    device: str | None
    price: float | None
    sizes: Sizes
    parameters: int
    disk: float
    notes: tuple[str, ...]

    @property
    def hours(self) -> float:
        """Wall clock of all stages, one after another."""
        return sum(stage.hours for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours in which GPUs work."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def money(self) -> float | None:
        """What the machine costs while the run takes: all its GPUs, whether they work or wait."""
        return None if self.price is None else self.price * self.gpus * self.hours


def plan_costs(config: Config, gpus: int, device: Device | None, price: float | None) -> CostPlan:
    """The plan of a resolved recipe. Without a device there are counts and no times.

    Raises `UserError` when the model's size is not known.
    """
    shape = shape_of(config)
    sizes = sizes_of(config)
    planned = [*folds_of(config, sizes), *stages_of(config, sizes)]
    stages = tuple(_priced(stage, config, sizes, shape, gpus, device, price) for stage in planned)
    return CostPlan(
        recipe=config.name,
        stages=stages,
        gpus=gpus,
        device=device.name if device else None,
        price=price,
        sizes=sizes,
        parameters=shape.parameters,
        disk=sum(stage.plan.disk for stage in stages),
        notes=tuple(_notes(config, sizes, gpus, device)),
    )


def shape_of(config: Config) -> Shape:
    """The sizes of the recipe's model. Raises `UserError` when they are not known."""
    model = config.model
    if model.scratch is not None:
        return scratch_shape(model.scratch, model.max_length)
    assert model.path is not None  # config: exactly one of the two is set
    if Path(model.path).is_dir():
        return shape_of_directory(Path(model.path))
    if model.path in KNOWN:
        return KNOWN[model.path]
    raise UserError(f"model.path: {model.path} is not on this machine and not a model whose size is known")


# Published numbers of questions, for where the files are not here.
_PUBLISHED = {"spider": (8659, 0, 1034), "bird": (9428, 0, 1534), "geoquery": (549, 49, 279)}


def sizes_of(config: Config) -> Sizes:
    """How many labels, gate and test questions a run has: counted where the files are here, else as published.

    Raises `UserError` when there is nothing to count.
    """
    data = config.data
    if data.benchmark == "demo":
        return _demo_sizes(data.label_share, data.gate_share)
    question, answer, assumed = UNKNOWN_QUESTION, UNKNOWN_ANSWER, False
    if data.root is not None and data.root.is_dir():
        from spftsql.evaluation.sources import read_questions

        rows = [read_questions(data.benchmark, data.root, part, data.split).rows for part in PARTS]
        train, gate, test = map(len, rows)
        question, answer = _lengths([(row.question, row.sql) for part in rows for row in part])
    elif data.benchmark in _PUBLISHED:
        (train, gate, test), assumed = _PUBLISHED[data.benchmark], True
    else:
        raise UserError("data.root is not set: --set data.root=FOLDER of the questions, which are counted")
    train = max(1, round(train * data.label_share)) if train else 0
    if not gate:
        gate = round(train * data.gate_share)
        train -= gate
    return Sizes(train, gate, test, question, answer, assumed)


@cache
def _demo_sizes(label_share: float, gate_share: float) -> Sizes:
    """Those of the embedded benchmark, whose database is made to count its questions."""
    from spftsql.evaluation.benchmarks import load_benchmark

    data = DataConfig(benchmark="demo", label_share=label_share, gate_share=gate_share)
    with tempfile.TemporaryDirectory() as folder:
        found = load_benchmark(data, 0, Path(folder))
    parts = found.train, found.gate, found.test
    question, answer = _lengths([(e.question, e.sql) for part in parts for e in part])
    return Sizes(len(parts[0]), len(parts[1]), len(parts[2]), question, answer)


def _lengths(rows: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """Tokens of a question and of its SQL, on average."""
    count = max(len(rows), 1)
    question, answer = (sum(len(row[place]) for row in rows) / count / LETTERS_PER_TOKEN for place in (0, 1))
    return round(question) or UNKNOWN_QUESTION, round(answer) or UNKNOWN_ANSWER


def folds_of(config: Config, sizes: Sizes) -> Iterator[StagePlan]:
    """The stages of the loops that are run once more for each fold of the labels; none without `gate.folds`."""
    folds = config.gate.folds if config.gate.enabled else None
    for number in range(1, (folds or 0) + 1):
        fold = sizes.train // (folds or 1)
        for stage in stages_of(fold_config(config), replace(sizes, train=sizes.train - fold, gate=fold, test=0)):
            if stage.name != "verify-labels":
                yield replace(stage, name=f"{stage.name}-fold-{number}")


def stages_of(config: Config, sizes: Sizes) -> Iterator[StagePlan]:
    """The stages of a run in their order, under the names that the run gives them (up to a number at the end)."""
    vbi, play = config.vbi, config.selfplay
    schema, question = _prompt_tokens(config, sizes)
    answer = min(sizes.answer, config.generation.max_tokens)
    labels = sizes.train
    model_bytes = model_bytes_of(config)

    def trained(rows: int, optimization: Optimization, pairs: bool = False) -> float:
        """Tokens of a training: with shared prompts a schema is computed once for the rows that meet in a batch."""
        seen = optimization.total_steps(rows) * optimization.batch_size
        together = min(config.training.questions_per_schema, optimization.batch_size)
        per_row = schema / together if config.training.sharing == "tree" else schema * (2 if pairs else 1)
        texts = question + answer * (2 if pairs else 1)
        return seen * (per_row + texts)

    def asked(name: str, requests: int, samples: int, tokens: float, models: int = 1) -> StagePlan:
        read = requests * (schema * (1 - PREFIX_HITS) + question)
        disk = samples * _ROW_BYTES
        return StagePlan(name, requests, samples, models, read=read, written=samples * tokens, disk=disk)

    def examined(title: str, candidates: int) -> Iterator[StagePlan]:
        questions = sizes.gate + sizes.test + vbi.selection_pairs * bool(vbi.rounds)
        sampled = vbi.play_pairs * bool(vbi.rounds)
        statements = candidates * (questions + sampled * play.samples)
        yield asked(f"generate-{title}", candidates * (questions + sampled), statements, answer, candidates)
        yield StagePlan(f"verify-{title}", executions=statements)

    yield StagePlan("verify-labels", executions=labels + sizes.gate)
    if labels:
        tokens = trained(labels, config.sft) + trained(labels, config.question_model)
        steps = config.sft.total_steps(labels) + config.question_model.total_steps(labels)
        yield StagePlan("train-labels", models=2, steps=steps, trained=tokens, disk=2 * model_bytes)
    synthetic = 0
    for round_ in range(1, vbi.rounds + 1):
        wanted = vbi.train_pairs + (vbi.play_pairs + vbi.selection_pairs if round_ == 1 else 0)
        windows = math.ceil(wanted * _DRAWN / WINDOW)
        yield StagePlan(f"verify-sql-{round_}", executions=round(windows * WINDOW * _CHECKS))
        phrased = round(wanted * _RESERVE)
        yield asked(f"generate-questions-{round_}", phrased, phrased * config.synthesis.candidates, sizes.question)
        if config.synthesis.filter != "none":
            votes = phrased * config.synthesis.candidates * config.synthesis.votes
            yield asked(f"generate-votes-{round_}", phrased * config.synthesis.candidates, votes, answer)
            yield StagePlan(f"verify-votes-{round_}", executions=votes)
        synthetic = vbi.train_pairs * (round_ if vbi.pairs == "all" else 1)
        last = round_ == vbi.rounds
        models = 2 if last and vbi.control and labels else 1
        tokens = trained(labels + synthetic, vbi.optimization) * models
        steps = vbi.optimization.total_steps(labels + synthetic) * models
        yield StagePlan(f"train-round-{round_}", models=models, steps=steps, trained=tokens, disk=models * model_bytes)
        yield from examined(f"round-{round_}", models + (round_ == 1))
        if not last:
            rows = labels + vbi.play_pairs // 2
            tokens, steps = trained(rows, config.question_model), config.question_model.total_steps(rows)
            yield StagePlan(f"train-questions-{round_}", steps=steps, trained=tokens, disk=model_bytes)
    if not vbi.rounds:
        yield from examined("labels", 1)
        return  # self-play needs the synthetic questions
    modes = list(dict.fromkeys([*play.baselines, play.mode]))
    if play.near_misses and play.iterations:
        yield StagePlan("verify-near-misses", executions=vbi.play_pairs * play.near_misses * TRIED_PER_NEAR_MISS)
    played = vbi.play_pairs / (play.iterations if play.questions == "parts" else 1)
    for iteration in range(1, play.iterations + 1):
        opponents = min(play.pool, vbi.rounds + iteration) if play.opponent == "pool" else 1
        tokens, referenced, steps = 0.0, 0.0, 0
        for mode in modes:
            answers = play.samples * (1 if mode in ("spin", "dpo") else opponents) + play.near_misses
            rows = round(played * answers * (1 + play.replay))
            steps += play.optimization.total_steps(rows)
            tokens += trained(rows, play.optimization, pairs=True)
            referenced += rows * (schema / config.training.questions_per_schema + question + 2 * answer)
        disk = len(modes) * model_bytes
        yield StagePlan(
            f"train-play-{iteration}",
            models=len(modes),
            steps=steps,
            trained=tokens,
            referenced=referenced,
            disk=disk,
        )
        yield from examined(f"play-{iteration}", len(modes))


def _priced(
    stage: StagePlan,
    config: Config,
    sizes: Sizes,
    shape: Shape,
    gpus: int,
    device: Device | None,
    price: float | None,
) -> Priced:
    if stage.kind == "verify":
        cores = config.verification.workers
        hours = stage.executions / (EXECUTIONS_PER_CORE * cores) / 3600
        return Priced(stage, hours, 0.0, None if price is None else price * gpus * hours)
    if device is None:
        return Priced(stage, 0.0, 0.0, None)
    training, used = config.training, min(gpus, gpus_used(config)[stage.kind])
    if stage.kind == "generate":
        context = min(sum(_prompt_tokens(config, sizes)) + sizes.answer, config.model.max_length)
        reading = stage.read / (prefill_rate(shape, device) * PREFILL_REACHED)
        writing = stage.written / (decode_rate(shape, device, context) * DECODE_REACHED)
        busy = (reading + writing) / 3600
    else:
        rate = training_rate(shape, device, training.lora is not None) * TRAINING_REACHED
        forward = prefill_rate(shape, device) * PREFILL_REACHED
        busy = (stage.trained / rate + stage.referenced / forward) / 3600
    hours = busy / used
    return Priced(stage, hours, busy, None if price is None else price * gpus * hours)


def gpus_used(config: Config) -> dict[str, int]:
    """GPUs that a kind of stage uses; at least one, as if a recipe for CPUs were run on it."""
    generation, training = config.generation, config.training
    return {
        "generate": max(1, round(generation.actors * generation.gpus)),
        "train": max(1, round(training.max_workers * training.gpus)),
    }


def _prompt_tokens(config: Config, sizes: Sizes) -> tuple[int, int]:
    """Tokens of the schema, which questions share, and of the rest of a prompt."""
    if config.prompt.schema_text == "none":
        return 0, sizes.question
    return min(config.prompt.max_schema_tokens, config.model.max_length), sizes.question + TASK_TOKENS


def model_bytes_of(config: Config) -> float:
    """Bytes of the model's weights."""
    value = 4 if config.model.dtype == "float32" else 2
    return shape_of(config).parameters * value


def _notes(config: Config, sizes: Sizes, gpus: int, device: Device | None) -> Iterator[str]:
    if sizes.assumed:
        yield "the benchmark's files are not here: its published numbers of questions are taken"
    schema, question = _prompt_tokens(config, sizes)
    shared = f", schemas at their limit of {schema}, {PREFIX_HITS:.0%} of them from the prefix cache" if schema else ""
    yield f"tokens: {question} of a prompt{shared}, {sizes.answer} of an answer; trainings go on to their end"
    if device is None:
        yield "no --gpus: counts only, no times of models"
        return
    yield (
        f"reached of the roofline of {device.name}: {DECODE_REACHED:.0%} in writing, {PREFILL_REACHED:.0%} in "
        f"reading, {TRAINING_REACHED:.0%} in training; starts of engines and trainers are not in it"
    )
    used = gpus_used(config)
    if min(used.values()) < gpus:
        yield (
            f"of {gpus} GPUs the recipe uses {used['generate']} in generation and {used['train']} in training: choose "
            "another profile, or set generation.actors and training.workers"
        )


def gib(count: float) -> str:
    """Bytes as GiB."""
    return f"{count / GIB:.1f} GiB"
