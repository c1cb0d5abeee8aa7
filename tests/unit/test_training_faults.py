"""A training and its disk: full, half-written, and handed to another training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spftsql.config import Config
from spftsql.errors import Fault, UserError
from spftsql.records import TrainRow, write_records
from spftsql.training.checkpoints import latest_checkpoint
from spftsql.training.job import TrainJob
from spftsql.training.local import LocalEngine, train_local
from spftsql.training.metrics import append_metrics, follow_metrics, forget_metrics
from tests import trainings
from tests.small_disk import small_disk

STEPS = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.base_model(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a training that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return weights(train(trainings.job_of(base, folder, STEPS), folder))


def train(job: TrainJob, folder: Path, config: Config | None = None) -> Path:
    train_local([job], config or trainings.config_of(checkpoint_steps=1), folder / "metrics.jsonl", lambda *_: None)
    return job.output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def stop_after(job: TrainJob, folder: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, left = LocalEngine.step, [steps]

    def step(self: LocalEngine, rate: float) -> float:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(self, rate)

    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(job, folder)


@pytest.mark.parametrize("damage", ["cut", "no state", "half state", "part gone"])
def test_a_half_written_checkpoint_is_skipped_for_the_one_before(
    base: Path,
    tmp_path: Path,
    whole: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    job = trainings.job_of(base, tmp_path, STEPS)
    stop_after(job, tmp_path, 4, monkeypatch)
    newest = latest_checkpoint(job.work)
    assert newest is not None and newest.name == "step-00000004"
    (part,) = newest.glob("part-*")
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-100])
    elif damage == "no state":
        (newest / "state.json").unlink()
    elif damage == "half state":
        (newest / "state.json").write_text((newest / "state.json").read_text()[:40])
    else:
        part.unlink()
    before = latest_checkpoint(job.work)
    assert before is not None and before.name == "step-00000003"
    assert same(weights(train(job, tmp_path)), whole)
    assert [line["step"] for line in trainings.lines(tmp_path / "metrics.jsonl")] == list(range(1, STEPS + 1))


def test_a_full_disk_loses_nothing(base: Path, tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    """At first there is room for two checkpoints and not for a third, then for all."""
    size = sum(p.stat().st_size for p in base.glob("*.safetensors"))
    with small_disk(tmp_path / "disk", f"{14 * size}") as disk:
        job = trainings.job_of(base, disk, STEPS)
        filler = disk / "filler"
        filler.write_bytes(bytes(13 * size // 2))
        with pytest.raises(Fault, match="make room, then run again"):
            train(job, tmp_path)
        kept = latest_checkpoint(job.work)
        assert kept is not None and not job.output.exists()
        assert not list(job.work.glob("*.partial"))  # what did not fit does not keep the disk full
        filler.unlink()
        assert same(weights(train(job, tmp_path)), whole)


def test_another_training_is_refused_with_the_difference(
    base: Path, tmp_path: Path, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = trainings.job_of(base, tmp_path, STEPS)
    stop_after(job, tmp_path, 3, monkeypatch)
    with pytest.raises(UserError, match=r"stopped here after step 3.*training\.prompt_loss: 0\.0 then, 0\.5 now"):
        train(job, tmp_path, trainings.config_of(prompt_loss=0.5))
    faster = replace(job, optimization=job.optimization.model_copy(update={"learning_rate": 0.5}))
    with pytest.raises(UserError, match=r"optimization\.learning_rate: 0\.01 then, 0\.5 now"):
        train(faster, tmp_path)
    rows = trainings.rows()
    write_records(job.data, rows[1:], TrainRow)
    with pytest.raises(UserError, match=r"training rows: 8 then, 7 now; content of the training rows: \w+ then,"):
        train(job, tmp_path)
    write_records(job.data, [*rows[1:], replace(rows[0], chosen="select 1")], TrainRow)
    with pytest.raises(UserError, match=r"another \(content of the training rows: \w+ then, \w+ now\)"):
        train(job, tmp_path)
    other = tmp_path / "model"
    trainings.build_scratch_model(
        trainings.SCRATCH, 64, [text for row in rows for text in (row.prompt, row.chosen)], other, seed=1
    )
    write_records(job.data, rows, TrainRow)
    with pytest.raises(UserError, match=r"another \(weights of the model: \w+ then, \w+ now\)"):
        train(replace(job, model=other), tmp_path)
    # What changes no result may change: the same rows in smaller passes, checkpoints less often.
    assert same(weights(train(job, tmp_path, trainings.config_of(checkpoint_steps=4))), whole)


def test_what_was_never_kept_is_no_obstacle(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = trainings.job_of(base, tmp_path, STEPS)
    stop_after(job, tmp_path, 0, monkeypatch)
    train(job, tmp_path, trainings.config_of(prompt_loss=0.5))


def test_metrics_are_told_once_also_when_lines_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"job": "a", "step": 1})
    told: list[tuple[str, int]] = []
    with follow_metrics(path, lambda values: told.append((values["job"], values["step"]))):
        for step in (2, 3):
            append_metrics(path, {"job": "a", "step": step})
        append_metrics(path, {"job": "b", "step": 9})
        with path.open("a") as file:
            file.write('{"job": "a", "st')  # a process is killed
        forget_metrics(path, "a", 2)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(line["job"], line["step"]) for line in lines] == [("a", 1), ("a", 2), ("b", 9)]
        append_metrics(path, {"job": "a", "step": 3})
        append_metrics(path, {"job": "a", "step": 4})
    assert len(told) == len(set(told)) and set(told) == {("a", 2), ("b", 9), ("a", 3), ("a", 4)}
