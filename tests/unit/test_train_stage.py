"""Training as a stage of the loop: what builds it anew, and that the selection questions decide when it ends."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from spftsql.config import DatabaseConfig, Optimization, PromptConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.execution import LocalExecution
from spftsql.progress import Reporter
from spftsql.records import Example
from spftsql.runs import Run
from spftsql.selfplay.candidates import Candidate, Training
from spftsql.selfplay.stages import Stages
from spftsql.training.artefact import read_manifest
from spftsql.training.job import TrainJob
from tests import trainings

EXAMPLES = [
    Example(state, "geo", f"area of {state} ?", trainings.sql(state), "label", "t") for state in trainings.STATES
]


class Remembering(LocalExecution):
    """Trains for real, and keeps the jobs."""

    jobs: list[TrainJob]

    def train(self, jobs: Any, metrics: Path, progress: Any) -> Any:
        self.jobs = list(jobs)
        return super().train(jobs, metrics, progress)


Open = Callable[..., Stages]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    base = trainings.base_model(tmp_path)
    catalogue = open_catalogue([DatabaseConfig(name="geo", url=str(trainings.database(tmp_path)))])
    runs: list[Run] = []

    def open_(prompt: PromptConfig | None = None, **training: Any) -> Stages:
        for run in runs:
            run.close()
        config = trainings.config_of(**training).model_copy(update={"run_dir": tmp_path / "runs"})
        config = config.model_copy(update={"prompt": prompt or PromptConfig(schema_text="none")})
        runs.append(Run(config))
        execution = Remembering(config, {name: database.source for name, database in catalogue.items()})
        stages = Stages(config, runs[-1], execution, catalogue, Reporter())
        stages.use_prompts(str(base))
        return stages

    yield open_
    runs[-1].close()


def train(stages: Stages, steps: int, **changes: Any) -> Candidate:
    base = Candidate("base", str(stages.run.root.parent.parent / "base"), "base")
    rows = [stages.sql_row(example) for example in EXAMPLES]
    optimization = Optimization(steps=steps, batch_size=8, learning_rate=1e-2)
    (candidate,) = stages.train("test", [Training("model", base, rows, optimization, **changes)])
    return candidate


def outcomes(stages: Stages) -> list[str]:
    lines = trainings.lines(stages.run.root / "events.jsonl")
    return [line["outcome"] for line in lines if line["event"] == "stage"]


def test_a_finished_training_is_kept_whatever_the_number_of_workers(opened: Open) -> None:
    first = train(opened(), 2)
    for settings in (
        {"workers": 2},
        {"workers": (1, 4), "zero_stage": 3, "micro_batch": 2, "micro_tokens": 64, "sharing": "none"},
        {"checkpoint_steps": 1, "gradient_checkpointing": True, "max_failures": 0, "loggers": ("tensorboard",)},
    ):
        stages = opened(**settings)
        assert train(stages, 2) == first
        assert outcomes(stages)[-1] == "kept"
    for settings in ({"prompt_loss": 0.5}, {"questions_per_schema": 1}, {"lora": {"rank": 2, "alpha": 4}}):
        stages = opened(**settings)
        assert train(stages, 2) != first
        assert outcomes(stages)[-2:] == ["started", "built"]


def test_a_training_of_the_loop_ends_on_its_selection_questions(opened: Open) -> None:
    stages = opened(validate_steps=40, patience=1)
    details = {"iteration": 2, "opponent": "sft", "verdicts": {"equal": 3, "different": 5}}
    candidate = train(stages, 400, selection=EXAMPLES, details=details)
    manifest = read_manifest(Path(candidate.path))
    accuracies = [entry["accuracy"] for entry in manifest["validations"]]
    assert max(accuracies) == 1.0 and len(accuracies) < 10  # it learns all of them, and stops
    card = (Path(candidate.path) / "README.md").read_text()
    for words in ("iteration: 2", "opponent: sft", "different 5, equal 3", stages.prompts.hash, "1.000 at best of"):
        assert words in card
    assert train(opened(validate_steps=40, patience=1), 400, selection=EXAMPLES, details=details) == candidate
    again = opened(validate_steps=40, patience=1)
    other = [replace(example, id=f"other/{example.id}") for example in EXAMPLES[:4]]
    assert train(again, 80, selection=other, details=details) != candidate


def test_what_judges_a_model_can_go_to_another_machine(opened: Open, tmp_path: Path) -> None:
    """Values hidden in the prompt are put back there, through an index that is opened there."""
    stages = opened(PromptConfig(schema_text="none", placeholders=True), validate_steps=1)
    candidate = train(stages, 1, selection=EXAMPLES)
    execution = stages.execution
    assert isinstance(execution, Remembering)
    validate = execution.jobs[0].validate
    assert validate is not None and "texas" not in stages.sql_row(EXAMPLES[0]).chosen
    there = pickle.loads(cloudpickle.dumps(validate))
    assert there.sql_of("texas", stages.sql_row(EXAMPLES[0]).chosen) == EXAMPLES[0].sql
    assert there(Path(candidate.path)) == 0.0
