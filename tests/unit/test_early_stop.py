"""A training that ends on execution accuracy: which model is its output, and that a stop in between changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spftsql.errors import Fault
from spftsql.training.artefact import read_manifest
from spftsql.training.local import LocalEngine, train_local
from spftsql.training.validation import Watch, judge
from tests import trainings


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.base_model(tmp_path_factory.mktemp("early"))


class Scripted:
    """Says what was written down for each step, and counts how often it was asked."""

    def __init__(self, accuracies: dict[int, float]) -> None:
        self.accuracies, self.asked = accuracies, list[int]()

    def __call__(self, model: Path) -> float:
        assert (model / "config.json").is_file() and (model / "spftsql.json").is_file()  # a complete model
        step = int(model.name.removeprefix("step-"))
        self.asked.append(step)
        return self.accuracies[step]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    found, expected = weights(one), weights(other)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_ends_when_it_gets_no_better_and_keeps_the_best(base: Path, tmp_path: Path) -> None:
    config = trainings.config_of(validate_steps=2, patience=2)
    validate = Scripted({2: 0.1, 4: 0.5, 6: 0.4, 8: 0.5, 10: 1.0})
    job = trainings.job_of(base, tmp_path, 12, validate=validate)
    (result,) = train_local([job], config, tmp_path / "metrics.jsonl", lambda *_: None)
    assert validate.asked == [2, 4, 6, 8]  # the equal of step 8 is no better than step 4
    assert result.steps == 4
    lines = trainings.lines(tmp_path / "metrics.jsonl")
    watched = {line["step"]: line["accuracy"] for line in lines if "event" in line}
    assert watched == {2: 0.1, 4: 0.5, 6: 0.4, 8: 0.5}
    assert [line["step"] for line in lines if "event" not in line] == list(range(1, 9))
    validations = read_manifest(job.output)["validations"]
    assert validations == [{"step": step, "accuracy": value} for step, value in watched.items()]

    def keep(model: Path) -> float:
        shutil.copytree(model, tmp_path / model.name)
        return int(model.name[-2:]) / 100

    other = trainings.job_of(base, tmp_path / "other", 12, validate=keep)
    train_local([other], config, tmp_path / "other.jsonl", lambda *_: None)
    assert same(job.output, tmp_path / "step-00000004") and not same(job.output, tmp_path / "step-00000008")
    assert same(other.output, tmp_path / "step-00000012")
    assert not same(job.output, base)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_last_model_is_validated_too(base: Path, tmp_path: Path) -> None:
    validate = Scripted({4: 0.2, 5: 0.3})
    job = trainings.job_of(base, tmp_path, 5, validate=validate)
    (result,) = train_local([job], trainings.config_of(validate_steps=4), tmp_path / "m.jsonl", lambda *_: None)
    assert validate.asked == [4, 5] and result.steps == 5


def test_without_the_switch_nothing_is_validated(base: Path, tmp_path: Path) -> None:
    validate = Scripted({})
    job = trainings.job_of(base, tmp_path, 3, validate=validate)
    train_local([job], trainings.config_of(), tmp_path / "m.jsonl", lambda *_: None)
    assert validate.asked == [] and "validations" not in read_manifest(job.output)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_stop_in_between_changes_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    config = trainings.config_of(validate_steps=2, patience=2, checkpoint_steps=2)
    accuracies = {2: 0.4, 4: 0.5, 6: 0.4, 8: 0.3, 10: 1.0}
    whole = trainings.job_of(base, tmp_path / "whole", 10, validate=Scripted(accuracies))
    train_local([whole], config, tmp_path / "whole.jsonl", lambda *_: None)
    validate = Scripted(accuracies)
    broken = trainings.job_of(base, tmp_path / "broken", 10, validate=validate)
    original: Callable[[LocalEngine, float], float] = LocalEngine.step
    left = [stop]

    def step(self: LocalEngine, rate: float) -> float:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(self, rate)

    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train_local([broken], config, tmp_path / "broken.jsonl", lambda *_: None)
    train_local([broken], config, tmp_path / "broken.jsonl", lambda *_: None)
    assert validate.asked == [2, 4, 6, 8]  # each once
    assert same(broken.output, whole.output)
    assert [line["step"] for line in trainings.lines(tmp_path / "broken.jsonl") if "event" not in line] == [
        *range(1, 9)
    ]


def test_a_validation_that_fails_is_no_accuracy(base: Path, tmp_path: Path) -> None:
    def validate(model: Path) -> float:
        raise Fault("no answer")

    job = trainings.job_of(base, tmp_path, 4, validate=validate)
    config = trainings.config_of(validate_steps=2, checkpoint_steps=1)
    with pytest.raises(Fault, match="no answer"):
        train_local([job], config, tmp_path / "m.jsonl", lambda *_: None)
    job = trainings.replace_validate(job, Scripted({2: 0.5, 4: 0.6}))
    train_local([job], config, tmp_path / "m.jsonl", lambda *_: None)
    assert read_manifest(job.output)["validations"] == [{"step": 2, "accuracy": 0.5}, {"step": 4, "accuracy": 0.6}]


def test_a_watch_without_any_result_has_no_best(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 2, 2, 8)
    assert not watch.ended()
    with pytest.raises(Fault, match="could be validated"):
        watch.best()
    watch.write(2, lambda folder: folder.mkdir())
    assert judge(watch.model(2), lambda model: 0.5) == 0.5
    assert judge(watch.model(2), lambda model: 0.7) == 0.5  # asked once
    assert watch.best() == 2


def test_execution_accuracy_of_a_model_that_learns(base: Path, tmp_path: Path) -> None:
    """A real model, its answers executed: it is wrong about everything at first, and right about all in the end."""
    config = trainings.config_of(validate_steps=40, patience=10)
    validate = trainings.selection(trainings.database(tmp_path), config)
    assert validate(base) == 0.0
    job = trainings.job_of(base, tmp_path, 160, validate=validate)
    train_local([job], config, tmp_path / "metrics.jsonl", lambda *_: None)
    validations = read_manifest(job.output)["validations"]
    assert [entry["step"] for entry in validations] == [40, 80, 120, 160]
    assert max(entry["accuracy"] for entry in validations) == 1.0
    assert validate(job.output) == 1.0
