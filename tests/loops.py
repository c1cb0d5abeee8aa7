"""A small loop in a process of its own, for the tests that run it, kill it and resume it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spftsql.records import Verdict, VerificationRequest, read_records

# Small enough for seconds on one core, long enough for the question model to learn to say values.
SMALL = {
    "model.scratch": "{hidden_size: 64, layers: 1, heads: 2, intermediate_size: 128, vocabulary: 1200, dropout: 0.0}",
    "training.workers": "1",
    "training.micro_batch": "16",
    "training.checkpoint_steps": "20",
    "sft.steps": "60",
    "question_model.steps": "60",
    "synthesis.candidates": "4",
    "vbi.optimization.steps": "60",
    "vbi.train_pairs": "40",
    "vbi.play_pairs": "20",
    "vbi.selection_pairs": "10",
    "generation.max_tokens": "24",
    "cluster.dashboard": "false",
}

# What the small loop does, in this order.
STAGES = [
    "verify-labels",
    "base",
    "train-labels",
    "verify-sql-1-1",
    "generate-questions-1",
    "train-round-1",
    "generate-round-1",
    "verify-round-1",
    "train-play-1",
    "generate-play-1",
    "verify-play-1",
]


# `spftsql`, and the command fails when it has imported what `execution: local` does without.
LIGHT = """
import sys
from spftsql.cli import main
try:
    main()
finally:
    heavy = [name for name in ("ray", "vllm", "deepspeed") if sys.modules.get(name)]
    assert not heavy, heavy
"""


def command(run_dir: Path, settings: Mapping[str, str]) -> list[str]:
    """`spftsql run demo` with the small settings, then `settings`."""
    overrides = {**SMALL, "run_dir": str(run_dir), **settings}
    program = ["-c", LIGHT] if overrides.get("execution") == "local" else ["-m", "spftsql"]
    return [sys.executable, *program, "run", "demo", *(f"--set={k}={v}" for k, v in overrides.items())]


def start(run_dir: Path, settings: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts the loop as the leader of its own process group."""
    with log.open("ab") as file:
        return subprocess.Popen(command(run_dir, settings), stdout=file, stderr=file, start_new_session=True)


def events(run_dir: Path) -> list[dict[str, Any]]:
    """What the run wrote down so far; a line that is being written does not count yet."""
    path = run_dir / "demo" / "events.jsonl"
    written = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in written.splitlines()]


def kill_in_stage(run_dir: Path, settings: Mapping[str, str], stage: str, log: Path, delay: float = 0.0) -> bool:
    """Runs the loop until `stage` has been at work for `delay` seconds, then kills its process group.

    False, and nothing is run, when an earlier run has got past the stage before its own end came.
    """
    if any(e.get("name") == stage and e["outcome"] == "built" for e in events(run_dir)):
        return False
    seen = len(events(run_dir))
    process = start(run_dir, settings, log)
    try:
        while process.poll() is None:
            if any(e.get("name") == stage and e["outcome"] == "started" for e in events(run_dir)[seen:]):
                time.sleep(delay)
                break
            time.sleep(0.01)
    finally:
        running = process.poll() is None
        if running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert running, f"the loop ended ({process.returncode}) before {stage} began:\n{log.read_text()[-3000:]}"
    return True


def finish(run_dir: Path, settings: Mapping[str, str], log: Path, timeout: float) -> dict[str, Any]:
    """Runs the loop to its end and returns `result.json`."""
    process = start(run_dir, settings, log)
    try:
        process.wait(timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, log.read_text()[-5000:]
    result: dict[str, Any] = json.loads((run_dir / "demo" / "result.json").read_text())
    return result


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
    built = [event["name"] for event in events(run_dir) if event.get("outcome") == "built"]
    assert len(built) == len(set(built))
    assert set(STAGES) <= set(built)
