"""One unit as a run of the loop in this process, and its cells read off what the run stored."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.evidence.cells import Unit, cell, methods_of
from benchmarks.evidence.results import Measured
from benchmarks.evidence.self_play import PlayUnit
from benchmarks.measure import machine
from spftsql.config import Config
from spftsql.evaluation.benchmarks import load_benchmark
from spftsql.evaluation.locations import database_configs
from spftsql.evaluation.sources import read_split
from spftsql.progress import Reporter
from spftsql.recipes import resolve as resolve_recipe
from spftsql.recipes import validate
from spftsql.records import PairRow, Verdict, read_records
from spftsql.selfplay.lineage import pair_files
from spftsql.selfplay.run import run

ROUNDS = 2
USUAL = {"vbi.train_pairs": 600, "vbi.optimization.steps": 700}  # a round's pairs and steps, but where a cell has more
_RECOMBINED = {"synthesis.column_substitution": 0.0, "synthesis.recombination": 1.0}
_NEW_PAIRS: dict[str, dict[str, float]] = {
    "values": {"synthesis.column_substitution": 0.0, "synthesis.recombination": 0.0},
    "columns": {"synthesis.column_substitution": 0.3, "synthesis.recombination": 0.0},
    "library": {"synthesis.column_substitution": 0.3, "synthesis.recombination": 0.0, "synthesis.library": 0.3},
    "recombined": _RECOMBINED,
    "recombined-x4": {**_RECOMBINED, "vbi.train_pairs": 2400},
    "recombined-x4-steps-x3": {**_RECOMBINED, "vbi.train_pairs": 2400, "vbi.optimization.steps": 2100},
    "recombined-steps-x3": {**_RECOMBINED, "vbi.optimization.steps": 2100},
    "composed": {"synthesis.column_substitution": 0.3, "synthesis.recombination": 0.0, "synthesis.composition": 0.3},
}


def obstacle(unit: Unit | PlayUnit, data: Path, model: Path | None) -> str:
    """Why a unit cannot be run here; empty where it can."""
    if isinstance(unit, PlayUnit):
        return "" if (data / "geoquery").is_dir() else "no geoquery in SPFTSQL_DATA"
    if not (data / unit.data).is_dir():
        return f"no {unit.data} in SPFTSQL_DATA"
    if not unit.label_share and model is None:
        return "needs --model, a pre-trained one"
    return ""


def measure(
    unit: Unit, data: Path, runs: Path, model: Path | None, settings: Mapping[str, Any] = MappingProxyType({})
) -> list[Measured]:
    """Runs (or resumes) the loop for a unit and returns its cells; `settings` are laid over its own (tests)."""
    config = _config(unit, data, runs, model, settings)
    folder = runs / unit.folder
    events = folder / "events.jsonl"
    before = events.stat().st_size if events.is_file() else 0
    begin = time.monotonic()
    run(config, Reporter())
    seconds = round(time.monotonic() - begin, 1)
    benchmark = load_benchmark(config.data, config.seed, folder)
    known = {label.template for label in benchmark.train}
    covered = "".join("1" if example.template in known else "0" for example in benchmark.test)
    outcomes = _outcomes(folder, before)
    pairs = read_records(pair_files(folder)[ROUNDS - 1], PairRow)
    names = {"sft": "sft" if unit.label_share else "base"}
    found = []
    for method in methods_of(unit):
        one, by_id = cell(unit, method), outcomes[names.get(method, method)]
        right = "".join("1" if by_id[example.id] else "0" for example in benchmark.test)
        trained = sum(pair.part == "train" for pair in pairs) if method.startswith("vbi") else 0
        found.append(Measured(one.key, one.name, right, covered, trained, seconds, machine()))
    return found


def _outcomes(folder: Path, before: int) -> dict[str, dict[str, bool]]:
    """By candidate and test question whether the answer was right, of the run whose events begin at `before`."""
    with (folder / "events.jsonl").open("rb") as file:
        file.seek(before)
        events: list[dict[str, Any]] = [json.loads(line) for line in file]
    done = {(e["name"], e["key"]) for e in events if e["event"] == "stage" and e["outcome"] in ("kept", "built")}
    found: dict[str, dict[str, bool]] = {}
    for name, key in done:
        if not name.startswith("verify-"):
            continue
        for verdict in read_records(folder / "stages" / f"{name}-{key}" / "verdicts", Verdict):
            candidate, _, rest = verdict.id.partition("/test/")
            if rest:
                found.setdefault(candidate, {})[rest.rpartition("/")[0]] = verdict.status == "equal"
    return found


def _config(unit: Unit, data: Path, runs: Path, model: Path | None, settings: Mapping[str, Any]) -> Config:
    overrides: dict[str, Any] = {
        "name": unit.folder,
        "run_dir": str(runs),
        "seed": unit.seed,
        "execution": "local",
        "training.workers": 1,
        "training.threads": 1,  # a second process uses the other core better
        "vbi.rounds": ROUNDS,
        "vbi.pairs": "all",
        "vbi.control": "control" in methods_of(unit),
        "vbi.play_pairs": 150,  # they say which templates the next round shall weigh
        "vbi.selection_pairs": 50,
        "selfplay.iterations": 0,
        "gate.enabled": False,
        "synthesis.filter": unit.filter,
        "synthesis.votes": 3,
        **_NEW_PAIRS[unit.templates],
    }
    if unit.label_share:
        overrides = {
            **USUAL,
            **overrides,
            "data.root": str(data / unit.data),
            "data.split": unit.split,
            "data.label_share": unit.label_share / 100,
            "prompt.placeholders": unit.linking,
            "generation.engine": "transformers",
            **settings,
        }
        return resolve_recipe("geoquery", [f"{key}={json.dumps(value)}" for key, value in overrides.items()])
    return validate(_without_labels(unit, data, runs, model, {**overrides, **settings}), unit.folder)


def _without_labels(
    unit: Unit, data: Path, runs: Path, model: Path | None, overrides: dict[str, Any]
) -> dict[str, Any]:
    """A recipe about one of the benchmark's databases (`split`), with its dev questions as the test set."""
    root = runs / f"{unit.data}-{unit.split}"
    root.mkdir(parents=True, exist_ok=True)
    rows = [row for row in read_split(unit.data, data / unit.data, "dev").rows if row.db_id == unit.split]
    questions = [{"db_id": row.db_id, "question": row.question, "sql": row.sql} for row in rows]
    (root / "test.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions), encoding="utf-8")
    database = database_configs(unit.data, data / unit.data)[unit.split]
    short = {"steps": 100, "batch_size": 8, "learning_rate": 3e-5}
    tree: dict[str, Any] = {
        "data": {
            "benchmark": "jsonl",
            "root": str(root),
            "label_share": 0,
            "databases": [database.model_dump(mode="json")],
        },
        "model": {"path": str(model), "max_length": 2048},
        "generation": {"max_tokens": 128},
        "training": {"micro_batch": 8},  # they share the schema
        "question_model": short,
        "synthesis": {"leaks": "drop"},
        "vbi": {"train_pairs": 200, "optimization": short},
    }
    for key, value in overrides.items():
        *parents, last = key.split(".")
        section = tree
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return tree
