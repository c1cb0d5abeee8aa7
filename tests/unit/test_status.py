"""`spftsql status`: what it says of a run that goes on, that was killed, that is done; and that it only reads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spftsql.recipes import resolve
from spftsql.records import Sample, write_records
from spftsql.reporting.run_record import read_run
from spftsql.reporting.status import state_of, status_tree, where
from spftsql.runs import Run
from spftsql.selfplay.gate import Decision
from spftsql.selfplay.quarantine import FILE as QUARANTINE
from spftsql.selfplay.quarantine import Contradiction, quarantine_lines
from spftsql.selfplay.table import Result, Row
from tests.commands import command

# A run that has built one stage and is at work in the next, with a step of a training said.
WORKING = """
import sys, time, json
from pathlib import Path
from spftsql.recipes import resolve
from spftsql.runs import Run
run = Run(resolve("demo", [f"run_dir={sys.argv[1]}"]))
run.stage("base", 1, lambda folder: None)
def build(folder):
    time.sleep(0.05)
    with run.metrics.open("a") as file:
        file.write(json.dumps({"job": "sft", "step": 7, "steps": 60, "tokens": 100}) + "\\n")
    print("ready", flush=True)
    time.sleep(600)
run.stage("train-labels", 2, build, keep_partial=True)
"""


@pytest.fixture
def working(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", WORKING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


def everything_below(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*"))}


def test_a_run_that_goes_on_and_is_killed_and_goes_on(tmp_path: Path, working: subprocess.Popen[str]) -> None:
    root = tmp_path / "demo"
    before = everything_below(tmp_path)
    record = read_run(root)
    assert everything_below(tmp_path) == before
    assert state_of(record) == "running"
    assert (record.holder.pid, record.holder.host) == (working.pid, socket.gethostname())
    assert f"process {working.pid} on {socket.gethostname()}, at stage train-labels" in where(record)
    assert "sft step 7 of 60" in where(record)
    assert [(stage.name, stage.state) for stage in record.stages] == [("base", "built"), ("train-labels", "running")]

    working.send_signal(signal.SIGKILL)
    working.wait()
    record = read_run(root)
    assert state_of(record) == "stopped"
    assert where(record).startswith("no process holds it")
    assert "cut off at stage train-labels: run the recipe again" in where(record)
    assert record.stages[1].state == "interrupted"

    run = Run(resolve("demo", [f"run_dir={tmp_path}"]))
    run.stage("base", 1, lambda folder: None)
    run.stage("train-labels", 2, lambda folder: time.sleep(0.05), keep_partial=True)
    record = read_run(root)
    assert [stage.state for stage in record.stages] == ["built", "built"]
    assert record.stages[1].tries == 2
    assert record.stages[1].seconds >= 0.05
    assert (record.holder.pid, record.current) == (os.getpid(), None)
    run.close()


def test_what_a_finished_run_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(resolve("demo", [f"run_dir={tmp_path}", "generation.gpus=1", "generation.actors=2"]))
    rows = [Sample("a", "shop", "m", 0, "SELECT", 5, "stop"), Sample("b", "shop", "m", 0, "SELECT", 7, "stop")]
    stage = run.stage("generate-round-1", 1, lambda folder: write_records(folder / "samples", rows, Sample) and None)
    run.event("verdicts", candidate="sft", exam="test", equal=30, different=60, error=10)
    run.event("verdicts", candidate="vbi-1", exam="test", equal=50, error=50)
    run.event("selection", candidate="vbi-1", accuracy=0.5)
    decision = Decision("vbi-1", "sft", "better", 20, 0, 100, 0.001, None)
    table = (Row("VBI", "vbi-1", 100, 50, 0.5, 0.4, 0.6, None, {"equal": 50, "error": 50}),)
    run.write("result.json", Result(table, (decision,), "vbi-1", str(stage.path), {"shop": "shop.sqlite"}).to_json())
    wrong = Contradiction("gate", "g7", "shop", "which ?", "SELECT 1", "SELECT 2", ("sft", "vbi-1"), 3)
    run.write(QUARANTINE, quarantine_lines([wrong]))
    (stage.path / "m").mkdir()
    (stage.path / "m" / "model.safetensors").write_bytes(b"x" * 2048)
    run.event("finished", served="vbi-1")
    run.close()
    tree = status_tree(read_run(run.root))
    assert tree["contradicted"][0]["instead"] == "SELECT 2"
    assert (tree["disk"]["weights"], tree["disk"]["models"]) == (2048, 1) and tree["disk"]["rest"] > 500
    assert (tree["state"], tree["served"]) == ("finished", "vbi-1")
    assert tree["cost"]["tokens"] == 12
    assert tree["cost"]["gpu_hours"] == pytest.approx(2 * tree["stages"][0]["seconds"] / 3600)
    first = tree["candidates"][0]
    assert (first["name"], first["test"]["accuracy"], first["test"]["n"]) == ("sft", 0.3, 100)
    assert first["test"]["interval"] == pytest.approx((0.219, 0.396), abs=1e-3)

    code, out = command(["status", str(run.root)], capsys)
    assert code == 0 and "golds that most candidates contradict (quarantine.jsonl): 1 gate" in out
    assert "on disk 2 KiB in the weights of 1 models" in out
    code, out = command(["status", str(run.root), "--watch"], capsys)  # nothing to wait for
    assert (code, "vbi-1 is served" in out) == (0, True)
    code, out = command(["status", str(run.root), "--json"], capsys)
    assert json.loads(out)["served"] == "vbi-1"


def test_a_run_on_another_machine_cannot_be_seen(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    root.mkdir()
    begun = {"time": time.time() - 50, "event": "stage", "name": "base", "key": "k", "outcome": "started"}
    opened = {"time": time.time() - 60, "event": "opened", "host": "far-away", "pid": 7}
    broken = '{"time": 5, "event": "sta'
    (root / "events.jsonl").write_text(f"{json.dumps(opened)}\n{json.dumps(begun)}\n{broken}")
    record = read_run(root)
    assert state_of(record) == "elsewhere"
    assert "process 7 on far-away had it" in where(record) and "at stage base" in where(record)
    assert record.config is None


def test_a_change_of_settings_leaves_no_candidate_of_before(tmp_path: Path) -> None:
    for name in ("old", "new"):
        run = Run(resolve("demo", [f"run_dir={tmp_path}"]))
        run.stage("generate-play-1", name, lambda folder: None)
        run.event("verdicts", candidate=name, exam="test", equal=1)
        run.event("finished", served=name)
        run.close()
    record = read_run(tmp_path / "demo")
    assert list(record.mixes) == ["new"]
    assert len(record.stages) == 1


def test_no_run_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = command(["status", str(tmp_path)], capsys)
    assert code == 2
