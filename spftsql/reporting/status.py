"""`spftsql status RUN`: rounds, candidates, accuracy, cost, and what is running where."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spftsql.evaluation.metrics import wilson
from spftsql.evaluation.score_report import printable
from spftsql.reporting.cost import run_cost
from spftsql.reporting.disk import disk_use
from spftsql.reporting.idle import idle_line, idle_text
from spftsql.reporting.run_record import RunRecord, read_run, right_and_known
from spftsql.selfplay.quarantine import FILE as QUARANTINE
from spftsql.selfplay.quarantine import read_contradictions

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

EXAMS = ("selection", "gate", "test")
_EVERY_S = 2.0


def run_status(root: Path, console: Console, as_json: bool = False, watch: bool = False) -> None:
    """Prints where a run stands; with `watch` again and again, until no process works on it any more.

    Only reads, also of a run that goes on. Raises `UserError` where there is no run.
    """
    record = read_run(root)
    if as_json and not watch:
        print(json.dumps(status_tree(record), indent=1, ensure_ascii=False))
    elif as_json:
        _print_lines(root, record)
    elif not watch:
        console.print(render(record))
    elif console.is_terminal:
        from rich.live import Live

        with Live(render(record), console=console, auto_refresh=False) as live:
            while record.holder.state == "running":
                time.sleep(_EVERY_S)
                record = read_run(root)
                live.update(render(record), refresh=True)
    else:
        said = ""
        while True:
            if (line := where(record)) != said:
                console.print(printable(line), markup=False, soft_wrap=True)
                said = line
            if record.holder.state != "running":
                return
            time.sleep(_EVERY_S)
            record = read_run(root)


def _print_lines(root: Path, record: RunRecord) -> None:
    """One JSON object a line, whenever there are new events."""
    seen = -1
    while True:
        if len(record.events) != seen:
            print(json.dumps(status_tree(record), ensure_ascii=False), flush=True)
            seen = len(record.events)
        if record.holder.state != "running":
            return
        time.sleep(_EVERY_S)
        record = read_run(root)


def status_tree(record: RunRecord) -> dict[str, Any]:
    """The status as a plain tree."""
    current = record.current
    return {
        "run": str(record.root),
        "state": state_of(record),
        "where": where(record),
        "holder": asdict(record.holder),
        "stage": None if current is None else asdict(current),
        "step": None if record.step is None else asdict(record.step),
        "workers": dict(record.workers),
        "attempts": record.attempts,
        "stages": [asdict(stage) for stage in record.stages],
        "uses": [
            {"stage": stage, "idle": use.idle, **asdict(use)} for stage, uses in record.uses.items() for use in uses
        ],
        "candidates": [
            {"name": name, "selection": record.selection.get(name)}
            | {exam: _accuracy_tree(mixes[exam]) for exam in EXAMS if exam in mixes}
            for name, mixes in record.mixes.items()
        ],
        "decisions": _events(record, "gate"),
        "synthetic_decisions": _events(record, "gate-synthetic"),
        "stopped": _events(record, "stopped"),
        "contradicted": [asdict(one) for one in read_contradictions(record.root)],
        "disk": asdict(disk_use(record.root)),
        "damaged": list(record.damaged),
        "served": None if record.result is None else record.result.served,
        "cost": asdict(run_cost(record)),
    }


def state_of(record: RunRecord) -> str:
    """`finished`, `running`, `elsewhere` (on another host, which cannot be seen from here), or `stopped`."""
    if record.holder.state != "none":
        return record.holder.state
    return "finished" if record.finished else "stopped"


def where(record: RunRecord) -> str:
    """What is running and where, in a sentence."""
    state, holder, stage = state_of(record), record.holder, record.current
    at = f"at stage {stage.name}" if stage else "between stages"
    if state == "finished":
        return f"finished; {record.result.served if record.result else 'nobody'} is served"
    if state == "stopped":
        by = f"; the last one was {holder.pid} on {holder.host}" if holder.pid else ""
        return f"no process holds it{by}. It was cut off {at}: run the recipe again to go on"
    by = f"process {holder.pid} on {holder.host}"
    if state == "elsewhere":
        ago = record.now - float(record.events[-1].get("time", record.now)) if record.events else 0.0
        return f"{by} had it, which cannot be seen from this machine; last heard of {seconds(ago)} ago, {at}"
    if stage is None:
        return f"{by}, {at}"
    step = f", {record.step.job} step {record.step.step} of {record.step.steps}" if record.step else ""
    again = f", try {stage.tries}" if stage.tries > 1 else ""
    workers = "".join(f"; {who} on {', '.join(hosts)}" for who, hosts in record.workers.items())
    return f"{by}, {at} for {seconds(stage.seconds)}{step}{again}{workers}"


def render(record: RunRecord) -> RenderableType:
    """The status for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(printable(f"{record.root.name}: {where(record)}"))]
    if record.config is None:
        parts.append(Text("config.yaml is missing or of another version: GPU-hours are not known", style="dim"))
    parts += [Text(printable(line), style="bold") for line in record.damaged]
    stages = Table(box=None, pad_edge=False, title=Text("stages", style="bold"), title_justify="left")
    for name in ("stage", "state", "seconds", "lost", "tokens", "executions", "idle"):
        stages.add_column(name, justify="left" if name in ("stage", "state", "idle") else "right")
    for stage in record.stages:
        lost = f"{stage.lost:.1f}" if stage.lost else ""
        tokens = stage.tokens or stage.trained
        stages.add_row(
            Text(printable(stage.name)),
            stage.state,
            f"{stage.seconds:.1f}",
            lost,
            count(tokens),
            count(stage.executions),
            idle_text(record.uses.get(stage.name, ())),
        )
    if record.stages:
        parts += [Text(""), stages]
    if record.mixes:
        table = Table(box=None, pad_edge=False, title=Text("candidates", style="bold"), title_justify="left")
        table.add_column("candidate")
        sizes = sizes_of(record)
        for exam in EXAMS:
            table.add_column(f"{exam} (n {sizes[exam]})" if exam in sizes else exam)
        served = record.result.served if record.result else None
        for name, mixes in record.mixes.items():
            mark = " (served)" if name == served else ""
            cells = (accuracy_text(mixes.get(exam), sizes.get(exam)) for exam in EXAMS)
            table.add_row(Text(printable(name + mark)), *cells)
        parts += [Text(""), table]
    said = record.result.sentences if record.result else [decision.sentence() for decision in record.decisions]
    if said:
        parts += [Text(""), *(Text(printable(sentence)) for sentence in said)]
    golds = Counter(one.exam for one in read_contradictions(record.root))
    if golds:
        named = ", ".join(f"{number} {exam}" for exam, number in golds.items())
        parts.append(Text(f"golds that most candidates contradict ({QUARANTINE}): {named}"))
    if line := idle_line(record):
        parts += [Text(""), Text(line)]
    return Group(*parts, Text(""), Text(cost_line(record)), Text(disk_use(record.root).sentence()))


def cost_line(record: RunRecord) -> str:
    """The cost so far, in a line."""
    cost = run_cost(record)
    lost = f" and {seconds(cost.lost)} in what was cut off" if cost.lost else ""
    return (
        f"so far {seconds(cost.seconds)} in stages{lost}, {count(cost.tokens) or 0} tokens written, "
        f"{count(cost.trained) or 0} tokens trained on, {count(cost.executions) or 0} statements executed, "
        f"{cost.gpu_hours:.2f} GPU-hours"
    )


def sizes_of(record: RunRecord) -> dict[str, int]:
    """How many answers are known of each exam, of the candidate that has most; of the gate, how many have decided."""
    found: dict[str, int] = {}
    for mixes in record.mixes.values():
        for exam, mix in mixes.items():
            found[exam] = max(found.get(exam, 0), right_and_known(mix)[1])
    return found | ({"gate": max(decision.n for decision in record.decisions)} if record.decisions else {})


def accuracy_text(mix: Mapping[str, int] | None, usual: int | None = None) -> str:
    """Accuracy with its 95 % interval from counts of verdicts, and n where it is not the `usual`; empty without any."""
    right, n = right_and_known(mix or {})
    if not n:
        return ""
    low, high = wilson(right, n)
    other = f", n {n}" if usual is not None and n != usual else ""
    return f"{right / n:.3f} ({low:.3f}–{high:.3f}{other})"


def seconds(value: float) -> str:
    """A time for a person."""
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 100 else f"{minutes} min {rest:02d} s"


def count(value: int) -> str:
    """A number with its thousands apart; empty for 0."""
    return f"{value:,}".replace(",", " ") if value else ""


def _events(record: RunRecord, kind: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k != "event"} for event in record.of(kind)]


def _accuracy_tree(mix: Mapping[str, int]) -> dict[str, Any]:
    right, n = right_and_known(mix)
    return {"n": n, "right": right, "accuracy": right / n if n else None, "interval": wilson(right, n), "verdicts": mix}
