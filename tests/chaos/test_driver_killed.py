"""The loop on Ray, its driver killed in every stage."""

from pathlib import Path

import pytest

from tests import loops

RAY = {"execution": "ray", "generation.engine": "vllm", "training.workers": "2", "training.micro_batch": "8"}


@pytest.mark.chaos
@pytest.mark.timeout(2400)
def test_a_driver_killed_in_every_stage_costs_no_finished_stage(tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = {stage for stage in loops.STAGES if loops.kill_in_stage(tmp_path, RAY, stage, log, delay=2)}
    assert {stage for stage in loops.STAGES if stage.startswith(("train", "generate"))} <= killed
    result = loops.finish(tmp_path, RAY, log, timeout=900)
    built = [event["name"] for event in loops.events(tmp_path) if event.get("outcome") == "built"]
    assert len(built) == len(set(built)), "a finished stage was built again"
    assert len(result["rows"]) == 5
