"""A plan for a person, and a plan beside what a run took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.evaluation.score_report import Section, show_sections
from spftsql.planning.cost_plan import CostPlan, Priced, StagePlan, gib, plan_costs
from spftsql.planning.roofline import parse_gpus
from spftsql.planning.shapes import GIB
from spftsql.recipes import resolve
from spftsql.reporting.cost import Cost, stage_cost
from spftsql.reporting.run_record import RunRecord, read_run


@dataclass(frozen=True)
class Compared:
    """A stage as planned and as it was; `actual` is None where it has not been built."""

    name: str
    planned: StagePlan | None
    actual: Cost | None


def run_plan(
    recipe: str | None,
    overrides: Sequence[str],
    gpus: str | None,
    price: float | None,
    actual: Path | None,
    as_json: bool,
    console: Console,
    simulate: bool = False,
    calibrate: Path | None = None,
) -> None:
    """Prints the plan of a recipe, or of a run's own settings, beside the costs of the run where one is named.

    With `simulate` what it would take with other numbers of GPUs; rates are those of the run `calibrate`, else those of
    the roofline. Raises `UserError` for settings that are wrong, and when there is neither recipe nor run.
    """
    record = read_run(actual) if actual is not None else None
    config = _config(recipe, overrides, record)
    number, device = parse_gpus(gpus) if gpus else (0, None)
    if simulate or calibrate is not None:
        from spftsql.simulation.report import run_simulation

        run_simulation(config, device, read_run(calibrate) if calibrate is not None else None, as_json, console)
        return
    if price is not None and (device is None or price <= 0):
        raise UserError("--price is what one GPU costs an hour: it goes with --gpus, and is above 0")
    plan = plan_costs(config, number, device, price)
    if as_json:
        tree = asdict(plan) | {"hours": plan.hours, "gpu_hours": plan.gpu_hours, "money": plan.money}
        if record is not None:
            tree["actual"] = [asdict(row) for row in compared(plan.stages, record)]
        print(json.dumps(tree, indent=1))
        return
    sections = plan_sections(plan)
    if record is not None:
        sections.append(comparison_section(compared(plan.stages, record)))
    show_sections(sections, console)


def plan_sections(plan: CostPlan) -> list[Section]:
    """The plan as it is shown."""
    device = f"{plan.gpus} {plan.device}" if plan.device else "no GPUs"
    money = "" if plan.money is None else f", {plan.money:,.2f} for {plan.gpus} GPUs held at {plan.price:g} an hour"
    total = f"{plan.hours:.2f} hours, {plan.gpu_hours:.2f} GPU-hours{money}; " if plan.device else ""
    lines = (
        f"{plan.recipe}: {number(plan.parameters)} parameters, {device}; {plan.sizes.train} labels, "
        f"{plan.sizes.gate} gate and {plan.sizes.test} test questions",
        f"{total}{gib(plan.disk)} of models and rows",
        *plan.notes,
    )
    with_money = plan.money is not None
    rows = [
        (
            stage.plan.name,
            number(stage.plan.read),
            number(stage.plan.written),
            number(stage.plan.trained),
            number(stage.plan.executions),
            *((f"{stage.hours:.3f}", f"{stage.gpu_hours:.3f}") if plan.device else ()),
            f"{stage.plan.disk / GIB:.1f}" if stage.plan.disk > GIB / 20 else "",
            *((f"{stage.money or 0:.2f}",) if with_money else ()),
        )
        for stage in plan.stages
    ]
    times = ("hours", "GPU-h") if plan.device else ()
    header = ("stage", "read", "written", "trained", "executed", *times, "GiB", *(("money",) if with_money else ()))
    return [Section("", lines), Section("stages", (), header, tuple(rows))]


def compared(stages: Sequence[Priced], record: RunRecord) -> list[Compared]:
    """Each planned stage beside what the run's stages of that name took; then what was not planned."""
    left = {stage.name: stage for stage in record.stages if stage.state == "built"}
    rows = []
    for priced in sorted(stages, key=lambda stage: -len(stage.plan.name)):  # the longer name is the closer one
        name = priced.plan.name
        mine = [left.pop(there) for there in list(left) if there == name or there.startswith(f"{name}-")]
        cost = sum((stage_cost(stage, record.config) for stage in mine), Cost()) if mine else None
        rows.append(Compared(name, priced.plan, cost))
    order = {priced.plan.name: place for place, priced in enumerate(stages)}
    rows.sort(key=lambda row: order[row.name])
    return rows + [Compared(name, None, stage_cost(stage, record.config)) for name, stage in left.items()]


def comparison_section(rows: Sequence[Compared]) -> Section:
    """Planned against actual, stage by stage: `planned → actual`."""
    cells = []
    for row in rows:
        planned, actual = row.planned or StagePlan(row.name), row.actual
        there = (actual.tokens, actual.trained, actual.executions) if actual else (None, None, None)
        pairs = zip((planned.written, planned.trained, planned.executions), there, strict=True)
        took = "not built" if actual is None else f"{actual.seconds + actual.lost:.1f}"
        hours = f"{actual.gpu_hours:.3f}" if actual and actual.gpu_hours else ""
        cells.append((row.name, *(_arrow(p, a, row.planned is not None) for p, a in pairs), took, hours))
    header = ("stage", "written", "trained", "executions", "seconds", "GPU-hours")
    return Section("planned → actual", (), header, tuple(cells))


def number(value: float) -> str:
    """A count in at most four letters or so; empty for 0."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}" if value else ""


def _arrow(planned: float, actual: int | None, was_planned: bool) -> str:
    if not planned and not actual:
        return ""
    left = number(planned) or "0" if was_planned else "–"
    return f"{left} → {'' if actual is None else number(actual) or '0'}"


def _config(recipe: str | None, overrides: Sequence[str], record: RunRecord | None) -> Config:
    if recipe is not None:
        return resolve(recipe, list(overrides))
    if record is None:
        raise UserError("name a recipe, or a run with --actual: `spftsql plan spider-qwen2.5-coder-7b --gpus 8xH100`")
    if record.config is None:
        raise UserError(f"{record.root / 'config.yaml'} cannot be read by this version: name the run's recipe as well")
    return record.config
