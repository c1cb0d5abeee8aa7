"""A training with as many workers as there are: a node comes while it works, and is lost again."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from spftsql.config import ClusterConfig, Optimization
from spftsql.training.local import train_local
from tests import trainings
from tests.nodes import nodes

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(900)]

STEPS = 24
ROOM = {"training": 1}  # for one worker


def losses(metrics: Path) -> dict[int, float]:
    """The loss of every step; of a step that was repeated, the last one."""
    if not metrics.is_file():
        return {}
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def test_a_node_that_comes_is_used_and_one_that_is_lost_is_not_waited_for(tmp_path: Path) -> None:
    slow = Optimization(steps=STEPS, batch_size=1600, learning_rate=1e-2)
    job = trainings.job_of(trainings.base_model(tmp_path), tmp_path, STEPS, optimization=slow)
    config = trainings.config_of(
        workers=(1, 2), resources=ROOM, cpus=0.5, zero_stage=2, checkpoint_steps=1, collective_timeout_s=30
    )
    local = replace(job, output=tmp_path / "local")
    train_local([local], config, tmp_path / "local.jsonl", lambda *_: None)

    metrics, log = tmp_path / "metrics.jsonl", tmp_path / "log"
    with nodes(0) as there:
        there.add(ROOM)
        config = config.model_copy(update={"cluster": ClusterConfig(address=there.cluster.address)})
        (tmp_path / "jobs").write_bytes(pickle.dumps(([job], config, metrics)))
        command = [sys.executable, "-m", "tests.training_driver", str(tmp_path / "jobs"), "0"]
        with log.open("w") as file:
            driver = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=os.environ)

        def await_(what: Callable[[], bool], name: str) -> None:
            deadline = time.monotonic() + 240
            while not what():
                assert driver.poll() is None and time.monotonic() < deadline, f"{name}:\n{log.read_text()[-4000:]}"
                time.sleep(0.05)

        try:
            await_(lambda: len(losses(metrics)) >= 2, "no steps with one worker")
            assert len(there.holding("training")) == 1
            there.add(ROOM)
            await_(lambda: len(there.holding("training")) == 2, "the second node is not used")
            begun = len(losses(metrics))
            await_(lambda: len(losses(metrics)) > begun, "no steps with two workers")
            there.lose(there.holding("training")[-1])
            driver.wait(240)
        finally:
            driver.kill()
    assert driver.returncode == 0, log.read_text()[-4000:]
    assert losses(metrics) == pytest.approx(losses(tmp_path / "local.jsonl"), abs=1e-4)
