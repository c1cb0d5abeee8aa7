"""The loop while its processes are killed at random: the same questions answered, no verdict lost or doubled."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import loops
from tests.killing import loop_under_fire
from tests.loops import check_every_verdict_is_there_once, check_no_stage_is_built_twice

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

LOCAL = {"execution": "local", "generation.engine": "transformers"}
LOCAL |= {"sft.steps": "300", "question_model.steps": "300", "vbi.optimization.steps": "600"}  # or it ends too soon
RAY = {"execution": "ray", "generation.engine": "vllm", "training.workers": "2", "training.micro_batch": "8"}


# `time.time()` is up to a day ahead or behind, another one at each look; nothing else can set the clock of one process.
JUMPING = """
import random, time
real, chance = time.time, random.Random(0)
time.time = lambda: real() + chance.uniform(-86400, 86400)
"""


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The loop in one process, undisturbed."""
    run_dir = tmp_path_factory.mktemp("quiet")
    loops.finish(run_dir, LOCAL, run_dir / "log", timeout=900)
    return run_dir


def check_as_undisturbed(run_dir: Path, quiet: Path) -> None:
    check_no_stage_is_built_twice(run_dir)
    assert check_every_verdict_is_there_once(run_dir) == check_every_verdict_is_there_once(quiet)
    # One process and one thread are deterministic, and a training goes on from its checkpoint as if nothing had been.
    ours, theirs = (json.loads((folder / "demo" / "result.json").read_text()) for folder in (run_dir, quiet))
    assert ours["rows"] == theirs["rows"] and ours["decisions"] == theirs["decisions"]


def test_the_loop_under_a_clock_that_jumps_decides_as_without(tmp_path: Path, quiet: Path) -> None:
    python, option, program, *rest = loops.command(tmp_path, LOCAL)
    command = [python, option, JUMPING + program, *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    check_as_undisturbed(tmp_path, quiet)
    told = subprocess.run(
        [python, "-m", "spftsql", "status", str(tmp_path / "demo")], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0 and "vbi-1" in told.stdout


def test_the_loop_in_one_process_under_fire_decides_as_without(tmp_path: Path, quiet: Path) -> None:
    _, killed = loop_under_fire(
        tmp_path, LOCAL, tmp_path / "log", kinds=["child", "driver"], interval_s=4, seed=7, kills=8, timeout_s=2400
    )
    print(f"killed: {killed}")
    check_as_undisturbed(tmp_path, quiet)
    assert sum(killed.values()) >= 4


def test_the_loop_on_ray_under_fire_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    kinds = ["child", "actor", "worker", "driver"]
    result, killed = loop_under_fire(tmp_path, RAY, log, kinds=kinds, interval_s=12, seed=3, kills=14, timeout_s=3000)
    print(f"killed: {killed}")
    check_no_stage_is_built_twice(tmp_path)
    assert check_every_verdict_is_there_once(tmp_path) > 0
    assert len(result["rows"]) == 5 and len(killed) >= 3


def test_a_loop_whose_raylet_dies_ends_with_a_line_and_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    result, killed = loop_under_fire(
        tmp_path, RAY, log, kinds=["raylet"], interval_s=40, seed=5, kills=2, timeout_s=3000
    )
    check_no_stage_is_built_twice(tmp_path)
    assert len(result["rows"]) == 5 and killed["raylet"] >= 1
    assert log.read_text().count("is gone; what is finished is kept") >= 1
