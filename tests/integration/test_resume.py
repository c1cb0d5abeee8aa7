"""A run killed in any stage and started again finishes, keeps what was done, and comes to the very same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from spftsql.records import Sample, Verdict, read_records
from tests import loops

LOCAL = {"execution": "local", "generation.engine": "transformers"}
LONG = ("train-labels", "train-round-1", "generate-round-1")  # stages that take seconds


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.timeout(900)
def test_a_loop_killed_in_every_stage_comes_to_what_an_unbroken_one_does(tmp_path: Path) -> None:
    """Every sample, every verdict and the table are equal. Batches are small, so that stages are cut in the middle.

    The base is taken from the unbroken run: a tokenizer that is trained again has another vocabulary.
    """
    log, settings = tmp_path / "log", {**LOCAL, "generation.batch_size": "16", "selfplay.iterations": "2"}
    whole = loops.finish(tmp_path / "whole", settings, log, timeout=300)
    stages, again = (tmp_path / name / "demo" / "stages" for name in ("whole", "killed"))
    base = next(stages.glob("base-*"))
    again.mkdir(parents=True)
    shutil.copytree(base, again / base.name)

    wanted = [stage for stage in [*loops.STAGES, "train-play-2", "generate-play-2", "verify-play-2"] if stage != "base"]
    killed = {
        stage
        for stage in wanted
        if loops.kill_in_stage(tmp_path / "killed", settings, stage, log, delay=0.4 if stage in LONG else 0.0)
    }
    # A verification may be over too soon.
    assert {stage for stage in wanted if not stage.startswith("verify")} <= killed
    assert any(stage.startswith("verify") for stage in killed)
    resumed = loops.finish(tmp_path / "killed", settings, log, timeout=300)

    built = [event["name"] for event in loops.events(tmp_path / "killed") if event.get("outcome") == "built"]
    assert len(built) == len(set(built)), "a finished stage was built again"
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in stages.iterdir())
    for stage in sorted(stages.iterdir()):
        other = again / stage.name
        if (stage / "samples").is_dir():
            assert samples(other) == samples(stage), stage.name
        if (stage / "verdicts").exists():
            assert verdicts(other) == verdicts(stage), stage.name
    assert resumed["rows"] == whole["rows"]
    assert [resumed[name] for name in ("decisions", "synthetic", "served", "notes")] == [
        whole[name] for name in ("decisions", "synthetic", "served", "notes")
    ]
    assert loops.finish(tmp_path / "killed", settings, log, timeout=60) == resumed


def samples(stage: Path) -> list[Sample]:
    rows = [replace(row, model="") for row in read_records(stage / "samples", Sample)]
    return sorted(rows, key=lambda row: (row.id, row.index))


def verdicts(stage: Path) -> list[Verdict]:
    rows = [replace(row, elapsed_ms=0.0) for row in read_records(stage / "verdicts", Verdict)]
    return sorted(rows, key=lambda row: row.id)
