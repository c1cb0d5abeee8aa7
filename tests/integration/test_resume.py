"""A run killed in any stage and started again finishes, keeps what was done, and answers as many questions."""

from pathlib import Path

import pytest

from tests import loops

LOCAL = {"execution": "local", "generation.engine": "transformers"}


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.timeout(900)
def test_a_loop_killed_in_every_stage_finishes_and_keeps_what_was_done(tmp_path: Path) -> None:
    log = tmp_path / "log"
    whole = loops.finish(tmp_path / "whole", LOCAL, log, timeout=300)
    killed = {stage for stage in loops.STAGES if loops.kill_in_stage(tmp_path / "killed", LOCAL, stage, log)}
    assert {s for s in loops.STAGES if not s.startswith("verify")} <= killed  # a verification may be over too soon
    assert any(stage.startswith("verify") for stage in killed)
    resumed = loops.finish(tmp_path / "killed", LOCAL, log, timeout=300)

    built = [e["name"] for e in loops.events(tmp_path / "killed") if e.get("outcome") == "built"]
    assert len(built) == len(set(built)), "a finished stage was built again"
    assert set(loops.STAGES) <= set(built)
    assert [row["n"] for row in resumed["rows"]] == [row["n"] for row in whole["rows"]]
    again = loops.finish(tmp_path / "killed", LOCAL, log, timeout=60)
    assert again == resumed
