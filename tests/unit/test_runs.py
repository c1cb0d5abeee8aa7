"""The run directory keeps what is done, and never takes a half-built stage for a whole one."""

import json
import os
from pathlib import Path

import pytest

from spftsql.config import Config
from spftsql.errors import UserError
from spftsql.recipes import resolve
from spftsql.runs import Run


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return resolve("demo", [f"run_dir={tmp_path}"])


def write(folder: Path) -> None:
    (folder / "data").write_text("x")


def test_a_finished_stage_is_not_built_again(config: Config) -> None:
    run = Run(config)
    first = run.stage("a", {"seed": 1}, write)
    again = run.stage("a", {"seed": 1}, lambda folder: pytest.fail("built twice"))
    assert again == first


def test_other_inputs_make_another_stage(config: Config) -> None:
    run = Run(config)
    assert run.stage("a", {"seed": 1}, write).path != run.stage("a", {"seed": 2}, write).path


@pytest.mark.parametrize("keep", [False, True])
def test_an_interrupted_stage_is_built_again(config: Config, keep: bool) -> None:
    run = Run(config)

    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.stage("a", 1, interrupted, keep_partial=keep)
    seen: list[bool] = []
    stage = run.stage("a", 1, lambda folder: seen.append((folder / "half").exists()), keep_partial=keep)
    assert seen == [keep]  # a training finds its own checkpoints again; the others start clean
    assert stage.path.is_dir()


def test_two_processes_cannot_share_a_run(config: Config) -> None:
    run = Run(config)
    with pytest.raises(UserError, match="in use"):
        Run(config)
    run.close()
    Run(config).close()


def test_runs_that_share_stages_build_each_once(config: Config, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    one, other = Run(config, shared), Run(config.model_copy(update={"name": "other"}), shared)
    first = one.stage("a", 1, write)
    assert other.stage("a", 1, lambda folder: pytest.fail("built twice")) == first
    assert (other.root / "stages" / first.path.name / "data").read_text() == "x"  # for who reads runs
    other.close()
    assert Run(config.model_copy(update={"name": "other"}), shared).stage("a", 1, write) == first


def test_events_say_what_was_kept_and_built(config: Config) -> None:
    run = Run(config)
    run.stage("a", 1, write)
    run.stage("a", 1, write)
    opened, *stages = [json.loads(line) for line in (run.root / "events.jsonl").read_text().splitlines()]
    assert (opened["event"], opened["pid"]) == ("opened", os.getpid())
    assert [stage["outcome"] for stage in stages] == ["started", "built", "kept"]
