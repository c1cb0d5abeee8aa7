"""`spftsql plan RECIPE`: tokens, statements, GPU-hours, disk and money of every stage, before anything is started.

Counts follow from the recipe and the benchmark's questions; times from the roofline and the share of it that is reached
(`spftsql.planning.roofline`). What cannot be known before is assumed, and said: the length of questions and answers, a
prompt's schema at its limit, no early end of trainings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from spftsql.config import Config, Optimization, fold_config
from spftsql.errors import UserError
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
from spftsql.planning.shapes import KNOWN, Shape, kept_bytes, scratch_shape, shape_of_directory, value_bytes
from spftsql.planning.sizes import Sizes, sizes_of
from spftsql.selfplay.candidates import TRIED_PER_NEAR_MISS
from spftsql.synthesis.accepting import WINDOW
from spftsql.synthesis.recombination import EXECUTED_PER_PAIR

TASK_TOKENS = 35  # the task, values of the question and the chat template, beside schema and question
PREFIX_HITS = 0.95  # share of a schema's tokens that the prefix cache has, with rows grouped by database
_RESERVE = 1.3  # statements that are phrased, per pair wanted
_DRAWN = 2.3  # statements tried, per pair wanted
_CHECKS = 1.5  # executions of a statement that is drawn, its checks among them
_NESTED_CHECKS = 5.2  # the same of recombined statements: most are nested, with a condition to check at each level
_ROW_BYTES = 1000  # of a sample with its request and verdict, in Parquet
_WINDOW_STAGE = re.compile(r"(verify-sql-\d+)-\d+((?:-fold-\d+)?)")


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
    """A stage with its time; `hours` of wall clock, `gpu_hours` over the GPUs that work in it.

    Both are None where no GPUs are given and models work.
    """

    plan: StagePlan
    hours: float | None
    gpu_hours: float | None
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
        return sum(stage.hours or 0.0 for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours in which GPUs work."""
        return sum(stage.gpu_hours or 0.0 for stage in self.stages)

    @property
    def hourly(self) -> float | None:
        """What the machine costs an hour: all its GPUs, whether they work or wait."""
        return None if self.price is None else self.price * self.gpus

    @property
    def money(self) -> float | None:
        """What the machine costs while the run takes."""
        return None if self.hourly is None else self.hourly * self.hours


def plan_costs(config: Config, gpus: int, device: Device | None, price: float | None) -> CostPlan:
    """The plan of a resolved recipe. Without a device there are counts and no times.

    Raises `UserError` when the model's size is not known.
    """
    shape = shape_of(config)
    sizes = sizes_of(config)
    planned = all_stages(config, sizes)
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


def planned_name(stage: str) -> str:
    """The name under which a plan has a stage of a run: the windows of a round's statements are one stage there."""
    window = _WINDOW_STAGE.fullmatch(stage)
    return window[1] + window[2] if window else stage


def all_stages(config: Config, sizes: Sizes) -> list[StagePlan]:
    """The stages of a run with those of its folds."""
    return [*folds_of(config, sizes), *stages_of(config, sizes)]


def folds_of(config: Config, sizes: Sizes) -> Iterator[StagePlan]:
    """The stages of the loops that are run once more for each fold of the labels; none without `gate.folds`."""
    folds = config.gate.folds if config.gate.enabled and sizes.train else None
    for number in range(1, (folds or 0) + 1):
        fold = sizes.train // (folds or 1)
        for stage in stages_of(fold_config(config), replace(sizes, train=sizes.train - fold, gate=fold, test=0)):
            if stage.name != "verify-labels":
                yield replace(stage, name=f"{stage.name}-fold-{number}")


def stages_of(config: Config, sizes: Sizes) -> Iterator[StagePlan]:
    """The stages of a run in their order, under the names that the run gives them (see `planned_name`)."""
    return _Loop(config, sizes).stages()


class _Loop:
    """One way through the loop: what its stages are asked, in the order of `selfplay.run`."""

    def __init__(self, config: Config, sizes: Sizes) -> None:
        self.config, self.sizes, self.labels = config, sizes, sizes.train
        self.schema, self.question = _prompt_tokens(config, sizes)
        self.answer = min(sizes.answer, config.generation.max_tokens)
        self.model_bytes = kept_bytes(config, shape_of(config))

    def stages(self) -> Iterator[StagePlan]:
        vbi = self.config.vbi
        if executed := self.labels + self.sizes.gate:
            yield StagePlan("verify-labels", executions=executed)
        if self.labels:
            yield self._of_labels()
        for round_ in range(1, vbi.rounds + 1):
            yield from self._round(round_)
        if not vbi.rounds:
            yield from self._examined("labels", 1)
        elif vbi.play_pairs:  # self-play needs the synthetic questions
            yield from self._self_play()

    def _of_labels(self) -> StagePlan:
        trainings = (self.config.sft, self.config.question_model)
        return StagePlan(
            "train-labels",
            models=2,
            steps=sum(one.total_steps(self.labels) for one in trainings),
            trained=sum(self._trained(self.labels, one) for one in trainings),
            disk=2 * self.model_bytes,
        )

    def _round(self, round_: int) -> Iterator[StagePlan]:
        vbi, question_model = self.config.vbi, self.config.question_model
        yield from self._made(round_, vbi.train_pairs + (vbi.play_pairs + vbi.selection_pairs if round_ == 1 else 0))
        rows = self.labels + vbi.train_pairs * (round_ if vbi.pairs == "all" else 1)
        last = round_ == vbi.rounds
        models = 2 if last and vbi.control and self.labels else 1
        yield StagePlan(
            f"train-round-{round_}",
            models=models,
            steps=vbi.optimization.total_steps(rows) * models,
            trained=self._trained(rows, vbi.optimization) * models,
            disk=models * self.model_bytes,
        )
        yield from self._examined(f"round-{round_}", models + (round_ == 1))
        if not last:
            rows = self.labels + vbi.play_pairs // 2
            tokens, steps = self._trained(rows, question_model), question_model.total_steps(rows)
            yield StagePlan(f"train-questions-{round_}", steps=steps, trained=tokens, disk=self.model_bytes)

    def _made(self, round_: int, wanted: int) -> Iterator[StagePlan]:
        """The pairs of a round: those made of labels, which no model phrases, and those from templates."""
        synthesis = self.config.synthesis
        recombined = round(synthesis.recombination * wanted) if self.labels else 0
        filled = wanted - recombined
        if recombined:
            yield StagePlan(
                f"verify-recombined-{round_}", executions=round(recombined * EXECUTED_PER_PAIR * _NESTED_CHECKS)
            )
        if filled:
            windows = math.ceil(filled * _DRAWN / WINDOW) + 1  # one is executed while the last is judged
            yield StagePlan(f"verify-sql-{round_}", executions=round(windows * WINDOW * _CHECKS))
        phrased = round(filled * _RESERVE)
        questions = phrased * synthesis.candidates
        yield self._asked(f"generate-questions-{round_}", phrased, questions, self.sizes.question)
        if synthesis.filter != "none":
            votes = (questions + recombined) * synthesis.votes
            yield self._asked(f"generate-votes-{round_}", questions + recombined, votes, self.answer)
            yield StagePlan(f"verify-votes-{round_}", executions=votes)

    def _self_play(self) -> Iterator[StagePlan]:
        vbi, play, training = self.config.vbi, self.config.selfplay, self.config.training
        modes = list(dict.fromkeys([*play.baselines, play.mode]))
        if play.near_misses and play.iterations:
            yield StagePlan("verify-near-misses", executions=vbi.play_pairs * play.near_misses * TRIED_PER_NEAR_MISS)
        played = vbi.play_pairs / (play.iterations if play.questions == "parts" else 1)
        replay = play.replay if self.labels else 0.0
        for iteration in range(1, play.iterations + 1):
            opponents = min(play.pool, vbi.rounds + iteration) if play.opponent == "pool" else 1
            tokens, referenced, steps = 0.0, 0.0, 0
            for mode in modes:
                answers = play.samples * (1 if mode in ("spin", "dpo") else opponents) + play.near_misses
                rows = round(played * answers * (1 + replay))
                steps += play.optimization.total_steps(rows)
                tokens += self._trained(rows, play.optimization, pairs=True)
                referenced += rows * (self.schema / training.questions_per_schema + self.question + 2 * self.answer)
            yield StagePlan(
                f"train-play-{iteration}",
                models=len(modes),
                steps=steps,
                trained=tokens,
                referenced=referenced,
                disk=len(modes) * self.model_bytes,
            )
            yield from self._examined(f"play-{iteration}", len(modes))

    def _trained(self, rows: int, optimization: Optimization, pairs: bool = False) -> float:
        """Tokens of a training: with shared prompts a schema is computed once for the rows that meet in a batch."""
        training = self.config.training
        seen = optimization.total_steps(rows) * optimization.batch_size
        together = min(training.questions_per_schema, optimization.batch_size)
        per_row = self.schema / together if training.sharing == "tree" else self.schema * (2 if pairs else 1)
        texts = self.question + self.answer * (2 if pairs else 1)
        return seen * (per_row + texts)

    def _asked(self, name: str, requests: int, samples: int, tokens: float, models: int = 1) -> StagePlan:
        read = requests * (self.schema * (1 - PREFIX_HITS) + self.question)
        disk = samples * _ROW_BYTES
        return StagePlan(name, requests, samples, models, read=read, written=samples * tokens, disk=disk)

    def _examined(self, title: str, candidates: int) -> Iterator[StagePlan]:
        vbi = self.config.vbi
        questions = self.sizes.gate + self.sizes.test + vbi.selection_pairs * bool(vbi.rounds)
        sampled = vbi.play_pairs * bool(vbi.rounds)
        statements = candidates * (questions + sampled * self.config.selfplay.samples)
        yield self._asked(f"generate-{title}", candidates * (questions + sampled), statements, self.answer, candidates)
        yield StagePlan(f"verify-{title}", executions=statements)


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
        return Priced(stage, None, None, None)
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
    return shape_of(config).parameters * value_bytes(config)


def _notes(config: Config, sizes: Sizes, gpus: int, device: Device | None) -> Iterator[str]:
    if sizes.assumed:
        yield "the benchmark's files are not here: its published numbers of questions are taken"
    schema, question = _prompt_tokens(config, sizes)
    shared = f", schemas at their limit of {schema}, {PREFIX_HITS:.0%} of them from the prefix cache" if schema else ""
    yield f"tokens: {question} of a prompt{shared}, {sizes.answer} of an answer; trainings go on to their end"
    if config.data.feedback is not None and not config.data.feedback.is_dir():
        yield f"labels from feedback are not counted: there is no folder {config.data.feedback} here"
    if config.synthesis.recombination and sizes.train:
        yield "recombined pairs: as many as are wanted, where the labels give fewer the question model phrases more"
    if config.retention == "needed":
        yield "retention: all models are counted; at the end those that are served or undecided are left"
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
