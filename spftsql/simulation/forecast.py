"""What a recipe would take with so many workers: its stages one after another, each as `pipeline` has it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from spftsql.config import Config, Optimization
from spftsql.generation.units import Group, Span, plan
from spftsql.planning.cost_plan import StagePlan
from spftsql.planning.roofline import SEQUENCES
from spftsql.simulation.pipeline import Outcome, Part, simulate
from spftsql.simulation.rates import Rates

SIZES = (1, 8, 64, 512)
_STORE_S = 5.0  # a part is stored at least so often
_NODE = 8  # GPUs of a machine
_LINK = 50e9  # bytes a second between machines, assumed (400 Gbit/s); within one a step waits for nothing
_MOST_PARTS = 20_000  # in a simulation; beyond, parts are taken together


@dataclass(frozen=True)
class Machines:
    """Workers of each kind. `gpus` is None where the recipe is taken as it stands."""

    gpus: int | None
    engines: int
    verifiers: int
    trainers: int


@dataclass(frozen=True)
class StageForecast:
    """Seconds of a stage: before it, for starts, until the last sample or step, and for verdicts after that."""

    name: str
    gap_s: float = 0.0
    start_s: float = 0.0
    engines_s: float = 0.0
    trainers_s: float = 0.0
    verifiers_s: float = 0.0
    engines_busy_s: float = 0.0
    verifiers_busy_s: float = 0.0
    trainers_busy_s: float = 0.0

    @property
    def wall_s(self) -> float:
        """From the end of the stage before to its own."""
        return self.gap_s + self.start_s + self.engines_s + self.trainers_s + self.verifiers_s


@dataclass(frozen=True)
class Forecast:
    """A run: its stages on these machines."""

    machines: Machines
    stages: tuple[StageForecast, ...]

    @property
    def wall_s(self) -> float:
        """Seconds of the whole run."""
        return sum(stage.wall_s for stage in self.stages)

    @property
    def shares(self) -> dict[str, float]:
        """Of the wall clock, what it waits for: engines, verifiers, trainers, starts, and the driver in between."""
        parts = {
            "engines": sum(stage.engines_s for stage in self.stages),
            "verifiers": sum(stage.verifiers_s for stage in self.stages),
            "trainers": sum(stage.trainers_s for stage in self.stages),
            "starts": sum(stage.start_s for stage in self.stages),
            "driver": sum(stage.gap_s for stage in self.stages),
        }
        return {name: part / max(self.wall_s, 1e-9) for name, part in parts.items()}

    @property
    def bottleneck(self) -> str:
        """What most of the time goes to."""
        return max(self.shares, key=lambda name: self.shares[name])

    @property
    def idle(self) -> dict[str, float]:
        """The share of its time in which each kind of worker does nothing, over the whole run."""
        machines, wall = self.machines, max(self.wall_s, 1e-9)
        busy = {
            "engines": sum(stage.engines_busy_s for stage in self.stages) / machines.engines,
            "verifiers": sum(stage.verifiers_busy_s for stage in self.stages) / machines.verifiers,
            "trainers": sum(stage.trainers_busy_s for stage in self.stages) / machines.trainers,
        }
        return {name: max(0.0, 1 - seconds / wall) for name, seconds in busy.items()}

    @property
    def gpus_idle(self) -> float:
        """The share of the time in which GPUs neither generate nor train; workers stand for them where there are none.

        Engines and trainers have the same GPUs, one after the other.
        """
        machines, wall = self.machines, max(self.wall_s, 1e-9)
        held = max(machines.engines, machines.trainers)
        busy = sum(stage.engines_busy_s + stage.trainers_busy_s for stage in self.stages)
        return max(0.0, 1 - busy / (held * wall))


def machines_of(config: Config, gpus: int | None = None) -> Machines:
    """The workers of a recipe, or of that many GPUs used as it uses its own; verifiers stay as many as it says.

    More trainers than a batch has rows would get nothing to do.
    """
    generation, training = config.generation, config.training
    if gpus is None:
        return Machines(None, generation.actors, config.verification.workers, training.max_workers)
    engines = max(1, int(gpus / max(generation.gpus, 1.0)))
    trainers = max(1, min(int(gpus / max(training.gpus, 1.0)), config.vbi.optimization.batch_size))
    return Machines(gpus, engines, config.verification.workers, trainers)


def forecast(
    config: Config, plans: Sequence[StagePlan], rates: Rates, machines: Machines, model_bytes: float
) -> Forecast:
    """The run of `plans`, in their order; statements that a generation stage writes are verified within it."""
    stages = []
    by_name = {plan_.name: plan_ for plan_ in plans}
    for plan_ in plans:
        behind = by_name.get(plan_.name.replace("generate-", "verify-", 1)) if plan_.kind == "generate" else None
        ahead = by_name.get(plan_.name.replace("verify-", "generate-", 1)) if plan_.kind == "verify" else None
        if plan_.kind == "generate":
            stages.append(_generated(config, plan_, behind, rates, machines))
        elif plan_.kind == "verify":
            stages.append(_verified(plan_, rates, machines, done=ahead is not None))
        else:
            stages.append(_trained(config, plan_, rates, machines, model_bytes))
    return Forecast(machines, tuple(stages))


def units_of(plan_: StagePlan, config: Config, engines: int, databases: int) -> list[Span]:
    """The units of a generation stage, with rows of every database alike; see `generation.units`."""
    groups = []
    for model in range(plan_.models):
        rows = _share(plan_.requests, model, plan_.models)
        samples = _share(plan_.samples, model, plan_.models)
        few = max(1, min(databases, rows))
        groups += [Group(str(model), str(at), _share(rows, at, few), _share(samples, at, few)) for at in range(few)]
    return plan([group for group in groups if group.rows], engines, config.generation.batch_size)


def passes(samples: float) -> float:
    """How often a unit of so many samples takes the passes of those that have a place at the same time."""
    return max(1.0, samples / SEQUENCES)


def pipelined(config: Config, plan_: StagePlan, behind: StagePlan | None, rates: Rates, machines: Machines) -> Outcome:
    """A generation stage from its first request on."""
    facts = rates.of(plan_.name)
    units = units_of(plan_, config, machines.engines, rates.databases)
    requests = max(plan_.requests, 1)
    statements = behind.executions * rates.of(behind.name).executions / requests if behind else 0.0
    statement_s = facts.statement_s if facts.statement_s is not None else rates.statement_s
    tokens_s = (rates.read_s * plan_.read * facts.read + rates.written_s * plan_.written * facts.written) / requests
    loads = []
    for unit in units:
        rows = unit.stop - unit.start
        seconds = facts.price * (rates.pass_s * facts.passes * passes(unit.samples) + rows * tokens_s)
        parts = max(1, math.ceil(max(rows / config.generation.batch_size, seconds / _STORE_S)))
        parts = min(parts, max(1, _MOST_PARTS // len(units)))
        executed = rows * statements / parts
        batches = math.ceil(executed / config.verification.batch_size)
        part = Part(seconds / parts, batches, executed * statement_s / batches if batches else 0.0)
        loads.append([part] * parts)
    return simulate(loads, machines.engines, machines.verifiers)


def _generated(
    config: Config, plan_: StagePlan, behind: StagePlan | None, rates: Rates, machines: Machines
) -> StageForecast:
    facts, outcome = rates.of(plan_.name), pipelined(config, plan_, behind, rates, machines)
    return StageForecast(
        plan_.name,
        gap_s=facts.gap_s + rates.driver_s * plan_.requests,
        start_s=facts.start_s if plan_.requests else 0.0,
        engines_s=outcome.generated_s,
        verifiers_s=outcome.wall_s - outcome.generated_s,
        engines_busy_s=outcome.engines_busy_s,
        verifiers_busy_s=outcome.verifiers_busy_s,
    )


def _verified(plan_: StagePlan, rates: Rates, machines: Machines, done: bool) -> StageForecast:
    facts = rates.of(plan_.name)
    statement_s = facts.statement_s if facts.statement_s is not None else rates.statement_s
    busy = 0.0 if done else plan_.executions * facts.executions * statement_s
    start = 0.0 if done and not rates.stages else facts.start_s
    return StageForecast(
        plan_.name,
        gap_s=facts.gap_s + rates.driver_s * plan_.executions,
        start_s=start,
        verifiers_s=busy / machines.verifiers,
        verifiers_busy_s=busy,
    )


def _trained(config: Config, plan_: StagePlan, rates: Rates, machines: Machines, model_bytes: float) -> StageForecast:
    """A step takes as long as the worker with most rows, and then gradients go round between machines."""
    facts, workers = rates.of(plan_.name), machines.trainers
    token_s = facts.token_s if facts.token_s is not None else rates.trained_s
    batch = _optimization(config, plan_.name).batch_size
    busy = plan_.trained * token_s
    waits = busy * math.ceil(batch / workers) / batch
    exchanged = plan_.steps * 2 * model_bytes / _LINK if machines.gpus and workers > _NODE else 0.0
    return StageForecast(
        plan_.name,
        gap_s=facts.gap_s,
        start_s=facts.start_s,
        trainers_s=waits + exchanged,
        trainers_busy_s=busy,
    )


def _optimization(config: Config, name: str) -> Optimization:
    if name.startswith("train-labels"):
        return config.sft
    if name.startswith("train-questions"):
        return config.question_model
    return config.vbi.optimization if name.startswith("train-round") else config.selfplay.optimization


def _share(total: int, place: int, parts: int) -> int:
    return total * (place + 1) // parts - total * place // parts


def at_sizes(
    config: Config, plans: Sequence[StagePlan], rates: Rates, model_bytes: float, sizes: Iterable[int] = SIZES
) -> list[Forecast]:
    """The recipe as it stands, and with each number of GPUs, of which as many train as make the run shortest."""
    found = [forecast(config, plans, rates, machines_of(config), model_bytes)]
    for gpus in sizes:
        most = machines_of(config, gpus)
        counts = {most.trainers, *(2**power for power in range(most.trainers.bit_length()))}
        tried = [replace(most, trainers=count) for count in sorted(counts)]
        trainings = [plan_ for plan_ in plans if plan_.kind == "train"]
        best = min(tried, key=lambda machines: forecast(config, trainings, rates, machines, model_bytes).wall_s)
        found.append(forecast(config, plans, rates, best, model_bytes))
    return found
