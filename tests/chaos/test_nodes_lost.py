"""The loop on several nodes of which one is lost, stands still, or is the head: it ends as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import loops
from tests.loops import check_every_verdict_is_there_once, check_no_stage_is_built_twice
from tests.nodes import STAGES, Kind, Nodes, at_work, nodes, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

# Deterministic: the same statements, pairs, weights and answers, however often something is done again.
SETTINGS = {"execution": "ray", "generation.engine": "transformers", "training.micro_batch": "8"}
Deed = Callable[[Kind, int], None]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The loop on one node, undisturbed."""
    run_dir = tmp_path_factory.mktemp("quiet")
    loops.finish(run_dir, SETTINGS, run_dir / "log", timeout=1800)
    return run_dir


def loop_with_deeds(there: Nodes, run_dir: Path, log: Path, deed: Deed) -> None:
    """Runs the loop to its end; `deed` gets each kind of stage and the node that holds it, when it is at work."""
    process = loops.start(run_dir, {**SETTINGS, **there.settings}, log)
    try:
        for kind in STAGES:
            deed(kind, at_work(process, there, run_dir, kind, log))
        process.wait(1800)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, log.read_text()[-5000:]


def result_of(run_dir: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run_dir / "demo" / "result.json").read_text())
    return result


def check_as_undisturbed(run_dir: Path, quiet: Path) -> None:
    check_no_stage_is_built_twice(run_dir)
    assert check_every_verdict_is_there_once(run_dir) == check_every_verdict_is_there_once(quiet)
    ours, theirs = result_of(run_dir), result_of(quiet)
    assert ours["rows"] == theirs["rows"] and ours["decisions"] == theirs["decisions"]


def test_a_node_lost_in_every_kind_of_stage_is_replaced_by_a_spare_one(tmp_path: Path, quiet: Path) -> None:
    with nodes(2) as there:

        def lose(kind: Kind, node: int) -> None:
            there.lose(node)
            if kind != "generation":
                there.add()

        loop_with_deeds(there, tmp_path, tmp_path / "log", lose)
    check_as_undisturbed(tmp_path, quiet)


def test_without_a_spare_node_the_loop_says_what_it_waits_for_and_goes_on_when_one_comes(
    tmp_path: Path, quiet: Path
) -> None:
    log = tmp_path / "log"
    with nodes(1) as there:

        def lose(kind: Kind, node: int) -> None:
            there.lose(node)
            deadline = time.monotonic() + 180
            while f"{kind} waits" not in log.read_text():
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
            there.add()

        loop_with_deeds(there, tmp_path, log, lose)
    said = log.read_text().splitlines()
    for kind in STAGES:
        (line,) = [line for line in said if f"{kind} waits" in line]
        assert f"1 {kind}, and no node has any; it goes on when such a node comes" in line
    check_as_undisturbed(tmp_path, quiet)


def test_a_node_that_stands_still_for_a_while_costs_time_only(tmp_path: Path, quiet: Path) -> None:
    with nodes(2) as there:
        loop_with_deeds(there, tmp_path, tmp_path / "log", lambda kind, node: there.slow(node, 10))
        assert len(there.cluster.alive()) == 3
    check_as_undisturbed(tmp_path, quiet)


def test_a_node_that_stands_still_for_so_long_that_it_is_taken_for_dead_is_replaced(
    tmp_path: Path, quiet: Path
) -> None:
    """It finds out when it goes on, and ends itself; what its workers do in that moment counts once at most."""
    with nodes(4) as there, ThreadPoolExecutor(len(STAGES)) as threads:
        frozen: list[Future[None]] = []

        def freeze(kind: Kind, node: int) -> None:
            frozen.append(threads.submit(there.slow, node, 90))  # meanwhile the loop goes on elsewhere

        loop_with_deeds(there, tmp_path, tmp_path / "log", freeze)
        for one in frozen:
            one.result()
    check_as_undisturbed(tmp_path, quiet)


def test_a_run_whose_head_dies_ends_with_a_line_and_goes_on_with_a_new_head(tmp_path: Path, quiet: Path) -> None:
    log = tmp_path / "log"
    with nodes(1) as there:
        process = loops.start(tmp_path, {**SETTINGS, **there.settings}, log)
        try:
            at_work(process, there, tmp_path, "training", log)
            stages, weights = tmp_path / "demo" / "stages", "train-labels-*/.*.work/step-*"
            until(lambda: next(stages.glob(weights), None), process, time.monotonic() + 600, "no checkpoint", log)
            there.lose(there.cluster.pids[0])
            process.wait(300)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said = log.read_text()
        assert process.returncode == 4, said[-4000:]
        assert "is gone; what is finished is kept: run again when it is back" in said
        assert "Traceback" not in said
    with nodes(1) as there:
        loops.finish(tmp_path, {**SETTINGS, **there.settings}, log, timeout=1800)
    check_as_undisturbed(tmp_path, quiet)
