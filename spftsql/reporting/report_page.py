"""`spftsql report RUN`: one self-contained HTML page about a run, finished or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from spftsql import __version__
from spftsql.errors import UserError
from spftsql.evaluation.command import check_outputs, write_text
from spftsql.evaluation.metrics import wilson
from spftsql.evaluation.score_report import Section
from spftsql.evaluation.score_result import LEVELS
from spftsql.pages import render
from spftsql.records import PairRow
from spftsql.reporting.changes import SAMPLE_ROWS, changes, shown_changes, with_rows
from spftsql.reporting.charts import Estimate, estimates_chart, lines_chart, shares_chart
from spftsql.reporting.cost import run_cost, stage_cost
from spftsql.reporting.idle import HEADER as IDLE_HEADER
from spftsql.reporting.idle import idle_line, idle_rows
from spftsql.reporting.lineage_report import lineage_rows, made_from, model_card
from spftsql.reporting.run_record import RunRecord, read_run, right_and_known
from spftsql.reporting.status import EXAMS, accuracy_text, cost_line, count, sizes_of, where
from spftsql.reporting.stored import (
    Answers,
    PlayPair,
    read_answers,
    read_curves,
    read_exams,
    read_pairs,
    read_play,
    spread,
)
from spftsql.selfplay.candidates import FAULT
from spftsql.selfplay.quarantine import FILE as QUARANTINE
from spftsql.selfplay.quarantine import read_contradictions

MOST_CHANGES = 80
MOST_PAIRS = 400
_MOST_CELLS = 12
_VERDICTS = ("equal", "different", "error", "timeout", "truncated", "unverifiable", FAULT)
# Of the event `synthesized`: all else in it is a reason, with its count.
_NO_REASONS = ("time", "event", "fold", "round", "drawn", "accepted")
_CURVES = (
    ("loss", "Loss", "of every training, by step"),
    ("margin", "Margin", "of chosen over rejected answers, in nats, against the reference"),
    ("preferred", "Preferred", "share of pairs whose chosen answer the model prefers"),
)


def run_report(root: Path, out: Path | None) -> Path:
    """Writes the page, into the run directory without `out`, and returns where it is.

    Raises `UserError` where there is no run, or the page cannot be written.
    """
    target = out or root / "report.html"
    check_outputs((("--out", target),))
    write_text(target, report_page(read_run(root)))
    return target


def report_page(record: RunRecord) -> str:
    """The page. What a run has not got to yet is said to be missing."""
    damaged = list(record.damaged)
    exams = read_exams(record.root, damaged)
    answers = read_answers(record, exams, damaged)
    pairs, play = _pairs(read_pairs(record, damaged)), _play(read_play(record, exams, damaged))
    lineage = lineage_rows(record, damaged)
    exam = "test" if any(sum(mixes.get("test", {}).values()) for mixes in record.mixes.values()) else "selection"
    return render(
        "run.html",
        title=f"{record.root.name}: report of the run",
        where=where(record),
        missing=[*_missing(record, answers), *damaged],
        table=_table(record),
        accuracy=_accuracy(record),
        hardness=_hardness(record, answers, exam),
        exam=exam,
        mix=_mix(record, exam),
        curves=[
            (title, about, lines_chart(f"{title} by step", curves, "step"))
            for key, title, about in _CURVES
            if (curves := read_curves(record.root, key))
        ],
        changes=_changes(record, answers, exam),
        pairs=pairs,
        play=play,
        cost=_cost(record),
        planned=_planned(record),
        decisions=_decisions(record),
        synthetic=[decision.finding() for decision in record.synthetic],
        contradicted=read_contradictions(record.root),
        events=list(_told(record)),
        folds=[(fold, list(_told(record, fold))) for fold in record.folds],
        lineage=lineage,
        made_from=made_from(record),
        card=model_card(record),
        most_rows=SAMPLE_ROWS,
        most_cells=_MOST_CELLS,
        version=__version__,
    )


def _missing(record: RunRecord, answers: Answers) -> Iterable[str]:
    if not record.finished:
        yield "the run has not come to its end: there is no table of methods and nothing is decided for good"
    if record.config is None:
        yield "config.yaml cannot be read by this version: GPU-hours and settings are not known"
    if not answers:
        yield "no candidate has answered questions yet" if not record.mixes else "the answers' questions were not kept"
    if not read_curves(record.root, "loss"):
        yield "nothing was trained yet"


def _table(record: RunRecord) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    header = ("method", "candidate", "accuracy", "95 % interval", "right of", "p against the control")
    rows: list[tuple[str, ...]] = [
        (
            row.method,
            row.candidate + (" (served)" if record.result and row.candidate == record.result.served else ""),
            f"{row.accuracy:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.correct} of {row.n}",
            "" if row.p_control is None else f"{row.p_control:.3g}",
        )
        for row in (record.result.rows if record.result else ())
    ]
    return header, rows


def _estimate(mix: Mapping[str, int]) -> Estimate | None:
    right, n = right_and_known(mix)
    return Estimate(right / n, *wilson(right, n)) if n else None


def _accuracy(record: RunRecord) -> tuple[Markup, tuple[str, ...], list[tuple[str, ...]]]:
    series: dict[str, dict[str, Estimate]] = {}
    for exam in EXAMS:
        for name, mixes in record.mixes.items():
            if (found := _estimate(mixes.get(exam, {}))) is not None:
                series.setdefault(exam, {})[name] = found
    names = list(record.mixes)
    chart = (
        estimates_chart("accuracy of every candidate with its 95 % interval", names, series) if series else Markup("")
    )
    sizes = sizes_of(record)
    rows = [(n, *(accuracy_text(record.mixes[n].get(exam), sizes.get(exam)) for exam in EXAMS)) for n in names]
    return chart, ("candidate", *(f"{exam} (n {sizes.get(exam, 0)})" for exam in EXAMS)), rows


def _hardness(record: RunRecord, answers: Answers, exam: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    levels = {answer.example.hardness for (_, name), group in answers.items() if name == exam for answer in group}
    ordered = sorted(levels, key=lambda level: (LEVELS.index(level) if level in LEVELS else len(LEVELS), level))
    rows = []
    for candidate in record.mixes:
        group = answers.get((candidate, exam), ())
        cells = []
        for level in ordered:
            mix = Counter(answer.status for answer in group if answer.example.hardness == level)
            cells.append(accuracy_text(mix, usual=0))
        if group:
            rows.append((candidate, *cells))
    return ("candidate", *ordered), rows


def _mix(record: RunRecord, exam: str) -> tuple[Markup, tuple[str, ...], list[tuple[str, ...]]]:
    mixes = [(name, found[exam]) for name, found in record.mixes.items() if exam in found]
    names = [verdict for verdict in _VERDICTS if any(verdict in mix for _, mix in mixes)]
    known = [verdict for verdict in names if verdict != FAULT]  # a bar has the shares of what accuracy is of
    ordered = [(name, {verdict: mix[verdict] for verdict in known if verdict in mix}) for name, mix in mixes]
    chart = shares_chart(f"verdicts on the {exam} questions by candidate", ordered) if mixes else Markup("")
    return chart, ("candidate", *names), [(name, *(str(mix.get(v, 0)) for v in names)) for name, mix in mixes]


def _changes(record: RunRecord, answers: Answers, exam: str) -> dict[str, Any] | None:
    there = [name for name in record.mixes if (name, exam) in answers]
    if len(there) < 2:
        return None
    last = record.result.rows[-1].candidate if record.result else there[-1]
    first, final = there[0], last if last in there else there[-1]
    found = changes(answers[first, exam], answers[final, exam])
    shown = shown_changes(found, MOST_CHANGES)
    databases = record.result.databases if record.result else _databases(record)
    rows, note = with_rows(shown, record, databases)
    kinds = {kind: sum(change.kind == kind for change in found) for kind in ("fixed", "broken")}
    return {"first": first, "final": final, "counts": kinds, "rows": rows, "all": len(found), "note": note}


def _databases(record: RunRecord) -> dict[str, str]:
    """Where an unfinished run has its databases."""
    if record.config is None:
        return {}
    data = record.config.data
    if data.benchmark == "demo":
        return {path.stem: str(path) for path in record.root.glob("*.sqlite")}
    from spftsql.evaluation.locations import database_configs

    try:
        found = database_configs(data.benchmark, data.root) if data.root else {}
    except UserError:
        found = {}
    return {name: config.url for name, config in found.items()} | {d.name: d.url for d in data.databases}


def _pairs(rows: Sequence[PairRow]) -> dict[str, Any] | None:
    if not rows:
        return None
    kept, dropped = [row for row in rows if row.kept], [row for row in rows if not row.kept]
    shown = spread(kept, max(MOST_PAIRS * 3 // 4, MOST_PAIRS - len(dropped)))
    shown += spread(dropped, MOST_PAIRS - len(shown))
    reasons: dict[str, int] = {}
    for row in dropped:
        kind = row.reason.partition(":")[0]  # what follows names one pair or statement
        reasons[kind] = reasons.get(kind, 0) + 1
    return {
        "rows": shown,
        "kept": len(kept),
        "all": len(rows),
        "reasons": sorted(reasons.items(), key=lambda pair: -pair[1]),
        "choices": [
            ("fate", ["kept", "dropped"]),
            ("round", sorted({str(row.round) for row in shown})),
            ("verdict", sorted({row.sql_status for row in shown})),
            ("reason", sorted({row.reason.partition(":")[0] for row in shown if row.reason})),
            ("template", sorted({row.template for row in shown})),
        ],
    }


def _play(rows: Sequence[PlayPair]) -> dict[str, Any] | None:
    if not rows:
        return None
    shown = spread(rows, MOST_PAIRS)
    choices = [("training", sorted({row.training for row in shown})), ("penalty", ["1", "0"])]
    return {"rows": shown, "all": len(rows), "choices": choices}


def _cost(record: RunRecord) -> dict[str, Any]:
    header = ("stage", "state", "seconds", "lost", "tokens written", "tokens trained", "executions", "GPU-hours")
    rows = []
    for stage in record.stages:
        cost = stage_cost(stage, record.config)
        rows.append((stage.name, stage.state, *_cost_cells(cost)))
    total = run_cost(record)
    rows.append(("all", "", *_cost_cells(total)))
    idle = {"line": idle_line(record), "header": IDLE_HEADER, "rows": idle_rows(record)}
    return {"line": cost_line(record), "header": header, "rows": rows, "idle": idle}


def _planned(record: RunRecord) -> Section | None:
    """What `spftsql plan` says of the run's settings, beside what the stages took."""
    from spftsql.planning.cost_plan import plan_costs
    from spftsql.planning.report import compared, comparison_section

    if record.config is None:
        return None
    try:
        plan = plan_costs(record.config, 0, None, None)
    except UserError:  # the benchmark's files are not where the report is written
        return None
    return comparison_section(compared(plan.stages, record))


def _cost_cells(cost: Any) -> tuple[str, ...]:
    return (
        f"{cost.seconds:.1f}",
        f"{cost.lost:.1f}" if cost.lost else "",
        count(cost.tokens),
        count(cost.trained),
        count(cost.executions),
        f"{cost.gpu_hours:.3f}" if cost.gpu_hours else "",
    )


def _decisions(record: RunRecord) -> list[tuple[str, str]]:
    """What the gate has decided: (outcome, sentence); without a gate, who is served instead."""
    decided: list[tuple[str, str]] = [(decision.outcome, decision.sentence()) for decision in record.decisions]
    return decided or [("", str(event.get("outcome", ""))) for event in record.of("gate")]


def _told(record: RunRecord, fold: int | None = None) -> Iterable[tuple[str, str]]:
    """What the run, or a fold's loop, says of its decisions beside the gate, in its order: (what, why)."""
    of = partial(record.of, fold=fold)
    for event in of("label-set-aside"):
        yield f"label {event.get('index')} of {event.get('set')} set aside", str(event.get("reason", ""))
    for event in of("recombined"):
        yield f"round {event.get('round')}: {event.get('kept')} recombined statements kept", _dropped(event)
    for event in of("synthesized"):
        drawn = f"{event.get('accepted')} of {event.get('drawn')} drawn statements accepted"
        reasons = {name: number for name, number in event.items() if name not in _NO_REASONS}
        yield f"round {event.get('round')}: {drawn}", _dropped({"dropped": reasons})
    for event in of("phrased"):
        yield (
            f"round {event.get('round')}: {event.get('pairs')} pairs of {event.get('statements')} statements",
            _dropped(event),
        )
    for event in of("leak"):
        yield f"round {event.get('round')}: pair {event.get('pair')} left out", f"too close to {event.get('held_out')}"
    for event in of("play"):
        yield (
            f"{event.get('mode')}, iteration {event.get('iteration')}: {event.get('main')} against "
            f"{event.get('opponent')}",
            f"opponent right on {event.get('opponent_accuracy')}; {event.get('rows')} pairs"
            + (f", {event['near_misses']} of them near misses" if event.get("near_misses") else "")
            + "; left out "
            + (_named(event.get("left_out")) or "none"),
        )
    for kind in ("saturated", "collapse", "skipped", "stopped"):
        for event in of(kind):
            yield f"{event.get('mode')}, iteration {event.get('iteration')}: {kind}", str(event.get("why", ""))
    for event in of("unguarded"):
        yield "self-play cannot be guarded", str(event.get("why", ""))
    for event in of("contradicted"):
        what = f"{event.get('count')} of {event.get('of')} {event.get('exam')} golds are contradicted"
        yield what, f"most candidates agree on another result: {QUARANTINE}"
    for event in of("asked-again"):
        what = f"{event.get('stage')}: {event.get('requests')} of {event.get('of')} requests asked again"
        yield what, "they were with an engine when it stopped"
    for event in of("unanswered"):
        yield f"{event.get('stage')}: {event.get('requests')} requests not answered", _named(event.get("reasons"))


def _dropped(event: Mapping[str, Any]) -> str:
    named = _named(event.get("dropped"))
    return f"dropped: {named}" if named else ""


def _named(counts: object) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items()) if isinstance(counts, dict) else ""
