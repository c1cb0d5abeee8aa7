"""One unit of self-play as a run of the loop in this process; its models are then evaluated, greedy and voted."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.evidence.results import Measured
from benchmarks.evidence.runs import USUAL
from benchmarks.evidence.self_play import PlayUnit, play_cells
from benchmarks.measure import machine
from spftsql.config import Config
from spftsql.errors import Fault
from spftsql.evaluation.benchmarks import load_benchmark
from spftsql.evaluation.evaluating import EvaluateOptions, Evaluation, evaluate
from spftsql.evaluation.local_model import LocalChoice, LocalModel
from spftsql.evaluation.scoring import ScoreOptions
from spftsql.progress import Reporter
from spftsql.recipes import resolve
from spftsql.selfplay.run import run
from spftsql.selfplay.table import read_outcomes


@dataclass(frozen=True)
class _Stored:
    """What a run has left: the models of its own stages, by name, and how many pairs each mode and iteration had."""

    models: Mapping[str, Path]
    pairs: Mapping[tuple[str, int], int]


def measure_play(
    unit: PlayUnit, data: Path, runs: Path, settings: Mapping[str, Any] = MappingProxyType({})
) -> list[Measured]:
    """Runs (or resumes) self-play for a unit and returns its cells; `settings` are laid over its own (tests)."""
    config = _config(unit, data, runs, settings)
    folder = runs / unit.folder
    events = folder / "events.jsonl"
    before = events.stat().st_size if events.is_file() else 0
    begin = time.monotonic()
    run(config, Reporter())
    stored = _stored(folder, before)
    start = read_outcomes(folder).start
    benchmark = load_benchmark(config.data, config.seed, folder)
    known = {label.template for label in benchmark.train}
    covered = "".join("1" if example.template in known else "0" for example in benchmark.test)
    evaluations: dict[str, Evaluation] = {}
    found: list[Measured] = []
    starts: dict[bool, str] = {}
    for one in play_cells(unit):
        name = _model_of(one.player, one.iteration, start, stored.models)
        if name not in evaluations:
            evaluations[name] = _evaluated(stored.models[name], config, folder)
        result = evaluations[name].voted if one.voted else evaluations[name].greedy
        if result is None or result.faults:
            raise Fault(f"{unit}: answers of {name} could not be verified; the answers are kept, run again")
        right = "".join("1" if mark else "0" for mark in result.correct)
        pairs = stored.pairs.get((one.player, one.iteration), 0)
        own = starts.setdefault(one.voted, right)  # the start comes first
        found.append(
            Measured(one.key, one.name, right, covered, pairs, 0.0, machine(), None if one.player == "start" else own)
        )
    seconds = round(time.monotonic() - begin, 1)
    return [replace(one, seconds=seconds) for one in found]


def _model_of(player: str, iteration: int, start: str, models: Mapping[str, Path]) -> str:
    """The last model that a mode has trained; that of the start where there was nothing to train on."""
    names = [f"{player}-{number}" for number in range(iteration, 0, -1)]
    return next((name for name in names if name in models), start)


def _evaluated(model: Path, config: Config, folder: Path) -> Evaluation:
    """Greedy answers and the vote of several, as `spftsql evaluate` has them; what was answered before is kept."""
    assert config.data.root is not None
    answers = folder / "evaluations" / f"{model.parent.name}-{model.name}"
    score = ScoreOptions("geoquery", config.data.root, answers, policy=config.verification.policy, workers=1)
    options = EvaluateOptions("geoquery", answers, score, max_tokens=config.generation.max_tokens, seed=config.seed)
    answerer = LocalModel(LocalChoice(model.name, model, config))
    try:
        return evaluate(options, answerer, Reporter().task)
    finally:
        answerer.close()


def _stored(folder: Path, before: int) -> _Stored:
    """What the run whose events begin at `before` has built, or found there."""
    with (folder / "events.jsonl").open("rb") as file:
        file.seek(before)
        events: list[dict[str, Any]] = [json.loads(line) for line in file]
    stages = [
        folder / "stages" / f"{event['name']}-{event['key']}"
        for event in events
        if event["event"] == "stage" and event["outcome"] in ("kept", "built") and event["name"].startswith("train-")
    ]
    models = {model.parent.name: model.parent for stage in stages for model in stage.glob("*/spftsql.json")}
    pairs = {(event["mode"], event["iteration"]): event["rows"] for event in events if event["event"] == "play"}
    return _Stored(models, pairs)


def _config(unit: PlayUnit, data: Path, runs: Path, settings: Mapping[str, Any]) -> Config:
    *baselines, mode = unit.modes
    overrides: dict[str, Any] = {
        "name": unit.folder,
        "run_dir": str(runs),
        "seed": unit.seed,
        "data.root": str(data / "geoquery"),
        "data.split": "question",
        "data.label_share": 0.3,
        "prompt.placeholders": True,
        "execution": "local",
        "generation.engine": "transformers",
        "training.workers": 1,
        "training.threads": 1,  # a second process uses the other core better
        "synthesis.column_substitution": 0.0,
        "synthesis.recombination": 1.0,
        "vbi.rounds": 1,
        **USUAL,
        "vbi.control": False,
        "selfplay.mode": mode,
        "selfplay.baselines": baselines,
        "selfplay.iterations": 1,
        "selfplay.stop_on_collapse": False,  # what a collapse is like is what a cell shows
        "gate.enabled": False,
        **unit.overrides,
        **settings,
    }
    return resolve("geoquery", [f"{key}={json.dumps(value)}" for key, value in overrides.items()])
