"""The loop while its processes are killed at random: the same questions answered, no verdict lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from spftsql.records import Verdict, VerificationRequest, read_records
from tests import loops
from tests.killing import loop_under_fire

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

LOCAL = {"execution": "local", "generation.engine": "transformers"}
RAY = {"execution": "ray", "generation.engine": "vllm", "training.workers": "2", "training.micro_batch": "8"}


def check_every_verdict_is_there_once(run_dir: Path) -> int:
    """Of every verification: as many verdicts as requests, each once, none of them a fault; returns how many."""
    count = 0
    for stage in (run_dir / "demo" / "stages").glob("verify-*"):
        assert not stage.name.endswith(".partial")
        requests = read_records(stage / "requests.parquet", VerificationRequest)
        verdicts = read_records(stage / "verdicts", Verdict)
        assert sorted(v.id for v in verdicts) == sorted(r.id for r in requests)
        assert not [v.fault for v in verdicts if v.fault]
        count += len(verdicts)
    return count


def check_no_stage_is_built_twice(run_dir: Path) -> None:
    built = [event["name"] for event in loops.events(run_dir) if event.get("outcome") == "built"]
    assert len(built) == len(set(built))
    assert set(loops.STAGES) <= set(built)


def test_the_loop_in_one_process_under_fire_decides_as_without(tmp_path: Path) -> None:
    log = tmp_path / "log"
    quiet = loops.finish(tmp_path / "quiet", LOCAL, log, timeout=900)
    result, killed = loop_under_fire(
        tmp_path / "fire", LOCAL, log, kinds=["child", "driver"], interval_s=10, seed=7, kills=8, timeout_s=2400
    )
    print(f"killed: {killed}")
    check_no_stage_is_built_twice(tmp_path / "fire")
    assert check_every_verdict_is_there_once(tmp_path / "fire") == check_every_verdict_is_there_once(tmp_path / "quiet")
    assert [(row["method"], row["n"]) for row in result["rows"]] == [(row["method"], row["n"]) for row in quiet["rows"]]
    # One process and one thread are deterministic, and a training goes on from its checkpoint as if nothing had been.
    assert result["rows"] == quiet["rows"] and result["decisions"] == quiet["decisions"]
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
