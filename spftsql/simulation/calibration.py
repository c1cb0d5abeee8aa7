"""Rates of a run, for a forecast of another one.

The seconds of engines are fitted as passes, tokens read and tokens written over the run's generation stages
(non-negative least squares). What a plan cannot know, such as the length of answers, is taken from the run as well: by
how much each stage had more or less than its plan. What a stage took beside its work, is taken for its start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pyarrow.parquet as pq

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.planning.cost_plan import StagePlan, all_stages, planned_name
from spftsql.planning.sizes import sizes_of
from spftsql.reporting.run_record import RunRecord, StageRecord
from spftsql.simulation.forecast import Machines, passes, pipelined, units_of
from spftsql.simulation.rates import Rates, StageFacts
from spftsql.usage import Use, Who

_WHO: tuple[Who, ...] = ("engines", "verifiers", "trainers")
_KINDS = ("generate", "verify", "train")


def measured(record: RunRecord) -> Rates:
    """The rates of a finished run. Raises `UserError` when it does not say enough of itself."""
    if record.config is None or not record.finished:
        raise UserError(f"--calibrate {record.root}: give a finished run of this version")
    config = record.config
    plans = {plan.name: plan for plan in all_stages(config, sizes_of(config))}
    of_plan = {name: stages for name in plans if (stages := _matching(record, name))}
    used = {who: [u for uses in record.uses.values() for u in uses if u.who == who and u.rows] for who in _WHO}
    missing = [who for who in _WHO if not used[who]]
    if missing:
        raise UserError(f"--calibrate {record.root}: it does not say how busy its {' and '.join(missing)} were")
    amounts = [(use.steps, use.read, use.written) for use in used["engines"]]
    pass_s, read_s, written_s = fit(amounts, [use.busy_s for use in used["engines"]])
    rates = Rates(
        pass_s,
        read_s,
        written_s,
        statement_s=sum(use.busy_s for use in used["verifiers"]) / sum(use.rows for use in used["verifiers"]),
        trained_s=sum(use.busy_s for use in used["trainers"]) / max(1, sum(use.written for use in used["trainers"])),
        starts={},
        databases=_databases(record),
    )
    before = _gaps(record, {stage.name for stages in of_plan.values() for stage in stages})
    driver_s, gaps = split_gaps(
        {name: sum(before.get(stage.name, 0.0) for stage in stages) for name, stages in of_plan.items()},
        {name: plan.requests or plan.executions for name, plan in plans.items()},
    )
    rates = replace(rates, driver_s=driver_s)
    machines = Machines(
        None, max(u.workers for u in used["engines"]), max(u.workers for u in used["verifiers"]),
        max(u.workers for u in used["trainers"]),
    )  # fmt: skip
    facts = {
        name: _facts(plans[name], stages, record, gaps[name], config, rates, machines)
        for name, stages in of_plan.items()
    }
    rates = replace(rates, stages=facts)
    for name, stages in of_plan.items():
        if plans[name].kind == "generate":
            behind = plans.get(name.replace("generate-", "verify-", 1))
            work = pipelined(config, plans[name], behind, rates, machines).wall_s
            facts[name] = replace(facts[name], start_s=max(0.0, sum(stage.seconds for stage in stages) - work))
    starts = {kind: _mean([facts[n].start_s for n in facts if plans[n].kind == kind]) for kind in _KINDS}
    return replace(rates, stages=facts, starts=starts)


def fit(amounts: Sequence[tuple[float, float, float]], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Prices of a pass, a token read and a token written, none below 0, that explain `seconds` best (least squares)."""
    matrix, wanted = np.array(amounts, dtype=float), np.array(seconds, dtype=float)
    scale = np.maximum(matrix.max(axis=0), 1.0)
    best, smallest = np.zeros(3), float(wanted @ wanted)
    for columns in chain.from_iterable(combinations(range(3), count) for count in (1, 2, 3)):
        chosen = list(columns)
        found, *_ = np.linalg.lstsq(matrix[:, chosen] / scale[chosen], wanted, rcond=None)
        rest = wanted - matrix[:, chosen] / scale[chosen] @ found
        if (found >= 0).all() and float(rest @ rest) < smallest * (1 - 1e-9):
            best, smallest = np.zeros(3), float(rest @ rest)
            best[chosen] = found / scale[chosen]
    return float(best[0]), float(best[1]), float(best[2])


def split_gaps(gaps: Mapping[str, float], rows: Mapping[str, int]) -> tuple[float, dict[str, float]]:
    """Seconds before stages as seconds for each row of any stage, and what each stage has beside them.

    A first use of a library or a model that is built belongs to a stage, however many rows it has.
    """
    amounts = [(1.0, float(rows[name]), 0.0) for name in gaps]
    _, row_s, _ = fit(amounts, list(gaps.values())) if gaps else (0.0, 0.0, 0.0)
    return row_s, {name: max(0.0, gap - row_s * rows[name]) for name, gap in gaps.items()}


def _matching(record: RunRecord, name: str) -> list[StageRecord]:
    """The run's stages that a plan has under this name."""
    return [stage for stage in record.stages if stage.state == "built" and planned_name(stage.name) == name]


def _facts(
    plan: StagePlan,
    stages: Sequence[StageRecord],
    record: RunRecord,
    gap_s: float,
    config: Config,
    rates: Rates,
    machines: Machines,
) -> StageFacts:
    """What a stage had over its plan; the start of a generation stage is not in it yet."""
    uses = [use for stage in stages for use in record.uses.get(stage.name, ())]
    seconds = sum(stage.seconds for stage in stages)
    engine, verifier, trainer = (_total(uses, who) for who in _WHO)
    statement_s = verifier.busy_s / verifier.rows if verifier and verifier.rows else None
    if plan.kind == "generate":
        if engine is None or not engine.rows:
            return StageFacts(gap_s=gap_s)
        units = units_of(plan, config, machines.engines, rates.databases)
        known = rates.pass_s * engine.steps + rates.read_s * engine.read + rates.written_s * engine.written
        return StageFacts(
            read=engine.read / max(plan.read, 1.0),
            written=engine.written / max(plan.written, 1.0),
            passes=engine.steps / sum(passes(unit.samples) for unit in units),
            price=engine.busy_s / known if known else 1.0,
            gap_s=gap_s,
            statement_s=statement_s,
        )
    if plan.kind == "train":
        busy = trainer.busy_s if trainer else 0.0
        workers = trainer.workers if trainer else 1
        return StageFacts(
            start_s=max(0.0, seconds - busy / workers),
            gap_s=gap_s,
            token_s=busy / max(plan.trained, 1.0),
        )
    busy = verifier.busy_s / verifier.workers if verifier else 0.0
    return StageFacts(
        executions=sum(stage.executions for stage in stages) / max(plan.executions, 1),
        start_s=max(0.0, seconds - busy),
        gap_s=gap_s,
        statement_s=statement_s,
    )


def _total(uses: Sequence[Use], who: Who) -> Use | None:
    mine = [use for use in uses if use.who == who]
    if not mine:
        return None
    return Use(
        who,
        mine[0].workers,
        busy_s=sum(use.busy_s for use in mine),
        wall_s=sum(use.wall_s for use in mine),
        rows=sum(use.rows for use in mine),
        steps=sum(use.steps for use in mine),
        read=sum(use.read for use in mine),
        written=sum(use.written for use in mine),
    )


def _gaps(record: RunRecord, planned: Set[str]) -> dict[str, float]:
    """Seconds before each planned stage, since the one before it was built or the run was opened."""
    found: dict[str, float] = {}
    since: float | None = None
    for event in record.events:
        kind, moment = event.get("event"), float(event.get("time", 0.0))
        if kind == "stage" and event["name"] not in planned:
            continue
        if kind == "stage" and event["outcome"] == "started":
            if since is not None:
                found[event["name"]] = max(0.0, moment - since)
        elif kind in ("opened", "stage"):
            since = moment
    return found


def _databases(record: RunRecord) -> int:
    """How many databases the requests of the run's largest generation stage are about."""
    most = 1
    for stage in record.stages:
        file = record.root / "stages" / f"{stage.name}-{stage.key}" / "requests.parquet"
        if stage.kind == "generate" and file.is_file():
            most = max(most, len(set(pq.read_table(file, columns=["db_id"]).column("db_id").to_pylist())))
    return most


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
