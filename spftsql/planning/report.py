"""A plan for a person, and a plan beside what a run took."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.evaluation.score_report import Section, show_sections
from spftsql.planning.cost_plan import CostPlan, Priced, plan_costs, planned_name
from spftsql.planning.roofline import parse_gpus
from spftsql.planning.shapes import GIB, gib
from spftsql.recipes import resolve
from spftsql.reporting.cost import Cost, stage_cost
from spftsql.reporting.disk import disk_use
from spftsql.reporting.run_record import RunRecord, StageRecord, read_run


@dataclass(frozen=True)
class Figures:
    """What a stage was planned to take, or took: tokens, statements, seconds, bytes on disk; None where nobody knows.

    Seconds and GPU-hours of builds that were cut off are in it. Bytes are those that are there now: weights that were
    given up (`retention`) are not. Money is that of all GPUs while the stage takes.
    """

    written: float | None = None
    trained: float | None = None
    executions: float | None = None
    seconds: float | None = None
    gpu_hours: float | None = None
    disk: float | None = None
    money: float | None = None


@dataclass(frozen=True)
class Compared:
    """A stage as planned and as it was; `planned` is None where it was not, `actual` where it has not been built."""

    name: str
    planned: Figures | None
    actual: Figures | None


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
    if price is not None and (device is None or not 0 < price < math.inf):
        raise UserError("--price is what one GPU costs an hour: it goes with --gpus, and is above 0")
    if simulate or calibrate is not None:
        from spftsql.simulation.report import run_simulation

        run_simulation(config, device, read_run(calibrate) if calibrate is not None else None, as_json, console)
        return
    plan = plan_costs(config, number, device, price)
    if as_json:
        tree = asdict(plan) | {"hours": plan.hours, "gpu_hours": plan.gpu_hours, "money": plan.money}
        if record is not None:
            rows = compared(plan.stages, record, plan.hourly)
            tree |= {"actual": [asdict(row) for row in rows], "actual_total": asdict(total(rows))}
        print(json.dumps(tree, indent=1))
        return
    sections = plan_sections(plan)
    if record is not None:
        sections.append(comparison_section(compared(plan.stages, record, plan.hourly)))
    show_sections(sections, console)


def plan_sections(plan: CostPlan) -> list[Section]:
    """The plan as it is shown."""
    device = f"{plan.gpus} {plan.device}" if plan.device else "no GPUs"
    money = "" if plan.money is None else f", {plan.money:,.2f} for {plan.gpus} GPUs held at {plan.price:g} an hour"
    times = f"{plan.hours:.2f} hours, {plan.gpu_hours:.2f} GPU-hours{money}; " if plan.device else ""
    lines = (
        f"{plan.recipe}: {number(plan.parameters)} parameters, {device}; {plan.sizes.train} labels, "
        f"{plan.sizes.gate} gate and {plan.sizes.test} test questions",
        f"{times}{gib(plan.disk)} of models and rows",
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
            *((f"{stage.hours or 0:.3f}", f"{stage.gpu_hours or 0:.3f}") if plan.device else ()),
            f"{stage.plan.disk / GIB:.1f}" if stage.plan.disk > GIB / 20 else "",
            *((f"{stage.money or 0:.2f}",) if with_money else ()),
        )
        for stage in plan.stages
    ]
    columns = ("hours", "GPU-h") if plan.device else ()
    header = ("stage", "read", "written", "trained", "executed", *columns, "GiB", *(("money",) if with_money else ()))
    return [Section("", lines), Section("stages", (), header, tuple(rows))]


def compared(stages: Sequence[Priced], record: RunRecord, hourly: float | None = None) -> list[Compared]:
    """Each planned stage beside what the run's stages of that name took; then what was not planned.

    `hourly` is what the machine costs an hour.
    """
    built: dict[str, list[StageRecord]] = {}
    for stage in record.stages:
        if stage.state == "built":
            built.setdefault(planned_name(stage.name), []).append(stage)
    planned = {priced.plan.name: _planned(priced) for priced in stages}
    actual = {name: _took(mine, record, hourly) for name, mine in built.items()}
    return [Compared(name, planned.get(name), actual.get(name)) for name in dict.fromkeys([*planned, *actual])]


def total(rows: Sequence[Compared]) -> Compared:
    """All that is built, beside what was planned for it; a figure that one of the stages lacks is not known."""
    built = [row for row in rows if row.actual is not None]
    return Compared(
        "all that is built",
        _sum([row.planned for row in built if row.planned is not None]),
        _sum([row.actual for row in built if row.actual is not None]),
    )


def _planned(priced: Priced) -> Figures:
    plan, hours = priced.plan, priced.hours
    return Figures(
        written=plan.written,
        trained=plan.trained,
        executions=plan.executions,
        seconds=None if hours is None else hours * 3600,
        gpu_hours=priced.gpu_hours,
        disk=plan.disk,
        money=priced.money,
    )


def _took(stages: Sequence[StageRecord], record: RunRecord, hourly: float | None) -> Figures:
    cost = sum((stage_cost(stage, record.config) for stage in stages), Cost())
    folders = [stage.folder(record.root) for stage in stages]
    seen = all(stage.seconds + stage.lost for stage in stages)  # or another run has built it
    seconds = cost.seconds + cost.lost if seen else None
    return Figures(
        written=cost.tokens,
        trained=cost.trained,
        executions=cost.executions,
        seconds=seconds,
        gpu_hours=cost.gpu_hours if seen and record.config is not None else None,
        disk=sum(map(_bytes, folders)) if all(folder.is_dir() for folder in folders) else None,
        money=None if hourly is None or seconds is None else hourly * seconds / 3600,
    )


def _bytes(folder: Path) -> int:
    use = disk_use(folder)
    return use.weights + use.rest


def _sum(figures: Sequence[Figures]) -> Figures:
    def added(name: str) -> float | None:
        values = [getattr(one, name) for one in figures]
        return None if None in values else sum(values)

    return Figures(**{field.name: added(field.name) for field in fields(Figures)})


def comparison_section(rows: Sequence[Compared]) -> Section:
    """Planned against actual, stage by stage and together: `planned → actual`, in columns where something is known."""
    shown = [*rows, *([total(rows)] if any(row.actual for row in rows) else [])]
    columns = [(title, [_arrow(row, field, show) for row in shown]) for field, title, show in _COLUMNS]
    columns = [(title, cells) for title, cells in columns if any(cells)]
    header = ("stage", *(title for title, _ in columns))
    body = tuple(zip((row.name for row in shown), *(cells for _, cells in columns), strict=True))
    return Section("planned → actual", (), header, body)


def number(value: float) -> str:
    """A count in at most four letters or so; empty for 0."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}" if value else ""


_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("written", "written", number),
    ("trained", "trained", number),
    ("executions", "executions", number),
    ("seconds", "seconds", "{:.1f}".format),
    ("gpu_hours", "GPU-hours", "{:.3f}".format),
    ("disk", "bytes", number),
    ("money", "money", "{:.2f}".format),
)


def _arrow(row: Compared, field: str, show: Callable[[float], str]) -> str:
    planned, actual = (getattr(side, field) if side is not None else None for side in (row.planned, row.actual))
    missing = row.actual is None and field == "seconds"
    if not planned and not actual and not missing:
        return ""
    left = "–" if planned is None else show(planned) or "0"
    right = "not built" if missing else "" if actual is None else show(actual) or "0"
    return f"{left} → {right}"


def _config(recipe: str | None, overrides: Sequence[str], record: RunRecord | None) -> Config:
    if recipe is not None:
        return resolve(recipe, list(overrides))
    if record is None:
        raise UserError("name a recipe, or a run with --actual: `spftsql plan spider-qwen2.5-coder-7b --gpus 8xH100`")
    if record.config is None:
        raise UserError(f"{record.root / 'config.yaml'} cannot be read by this version: name the run's recipe as well")
    return record.config
