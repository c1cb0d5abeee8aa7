"""`python -m benchmarks.loop`: what distribution costs the loop, where its start-up goes, and two raylets beside one.

`demo` is `spftsql demo` as it stands, timed from the start of its process to its end. `local` is the same recipe in one
process (`execution: local`, the same engine), compared from the start of the process to the end of the loop. `raylets`
runs a small loop on a cluster of one raylet and on one of two with half of the logical CPUs each, in turns; the
clusters are up before the time is taken. `pipelining` (with `demo`) takes the requests of the demo's largest generation
stage once more: verified while they are answered, and after that, in turns. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.measure import in_turns, machine, markdown
from spftsql.cluster.local import start_cluster, stop_cluster
from spftsql.config import DatabaseConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.recipes import resolve
from spftsql.records import Example, GenerationRequest, VerificationRequest, read_records, write_records
from spftsql.reporting.run_record import RunRecord, read_run
from spftsql.reporting.stored import read_exams

_PARTS = ["demo", "pipelining", "local", "raylets"]
_CPUS = 8  # logical ones, as a session of our own declares
# A loop of a minute or two: every stage, few rows and steps.
_SMALL = (
    "model.scratch={hidden_size: 64, layers: 1, heads: 2, intermediate_size: 128, vocabulary: 1200, dropout: 0.0}",
    *("sft.steps=60", "question_model.steps=60", "vbi.optimization.steps=60", "synthesis.candidates=4"),
    *("vbi.train_pairs=40", "vbi.play_pairs=20", "vbi.selection_pairs=10", "generation.max_tokens=24"),
)


@dataclass(frozen=True)
class Timed:
    """A run: seconds of its process, and until the loop's end; and what it wrote down."""

    process_s: float
    loop_s: float
    record: RunRecord


def main() -> None:
    """Runs the parts that are asked for, one after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    parser.add_argument("--parts", nargs="+", default=_PARTS, choices=_PARTS)
    parser.add_argument("--repeats", type=int, default=1, help="of each side of `raylets` and `pipelining`")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=value")
    parser.add_argument("--small", action="store_true", help="the small loop for `demo` and `local` too")
    given = parser.parse_args()
    overrides = [*(_SMALL if given.small else ()), *given.overrides]
    print(machine(), flush=True)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SPFTSQL_CACHE"] = str(folder / "cache")
        demo = local = None
        if "demo" in given.parts:
            demo = timed(["demo"], folder / "demo", overrides)
            figures["demo_seconds"] = demo.process_s
            figures |= _shown("on Ray", demo)
        if demo is not None and "pipelining" in given.parts:
            together, apart = _pipelining(demo.record, folder, overrides, given.repeats)
            figures["pipelining_gain"] = statistics.median(b / a for a, b in zip(together, apart, strict=True))
        if "local" in given.parts:
            local = timed(["run", "demo"], folder / "local", [*overrides, "execution=local", "generation.engine=vllm"])
            figures["local_seconds"] = local.loop_s
            _shown("execution: local", local)
        if demo is not None and local is not None:
            figures["overhead_vs_local"] = demo.loop_s / local.loop_s
            _beside(demo, local)
        if "raylets" in given.parts:
            one, two = in_turns(
                given.repeats,
                lambda: _on_cluster(folder, 1, given.overrides),
                lambda: _on_cluster(folder, 2, given.overrides),
            )
            print(f"small loop: one raylet {one}, two raylets {two} s", flush=True)
            figures["two_raylets_vs_one"] = statistics.median(b / a for a, b in zip(one, two, strict=True))
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


def timed(command: Sequence[str], folder: Path, overrides: Sequence[str]) -> Timed:
    """Runs a command of spftsql whose run lands in `folder`; what the demo prints is shown."""
    arguments = [sys.executable, "-m", "spftsql", *command, *(f"--set={item}" for item in overrides)]
    began, begin = time.time(), time.monotonic()
    shown = None if command[0] == "demo" else subprocess.DEVNULL
    subprocess.run([*arguments, f"--set=run_dir={folder}"], check=True, stdout=shown)
    process_s = time.monotonic() - begin
    record = read_run(folder / "demo")
    (finished,) = record.of("finished")
    return Timed(process_s, float(finished["time"]) - began, record)


def _shown(title: str, run: Timed) -> dict[str, float]:
    """Prints where the time of a run went; returns the share of starts."""
    record = run.record
    rows, starts = [], 0.0
    opened = next(float(event["time"]) for event in record.events if event.get("event") == "opened")
    for what, seconds in _beside_stages(record).items():
        rows.append((what, f"{seconds:.1f}", "", ""))
        starts += seconds
    rows.append(("process until the run is opened", f"{run.loop_s - (_last(record) - opened):.1f}", "", ""))
    for stage in record.stages:
        uses = record.uses.get(stage.name, ())
        longest = max((use.busy_s / use.workers for use in uses), default=stage.seconds)
        beside = max(0.0, stage.seconds - longest)
        starts += beside if uses else 0.0
        busy = ", ".join(f"{use.who} {use.busy_s:.1f}" for use in uses)
        rows.append((stage.name, f"{stage.seconds:.1f}", busy, f"{beside:.1f}"))
    between = (_last(record) - opened) - sum(stage.seconds for stage in record.stages)
    rows.append(("between stages", f"{between:.1f}", "", ""))
    rows.append(("after the loop (endpoint, question, end)", f"{run.process_s - run.loop_s:.1f}", "", ""))
    print(f"\n{title}: {run.process_s:.1f} s, loop {run.loop_s:.1f} s\n", flush=True)
    print(markdown(rows, ("stage", "seconds", "busy", "starts and ends")), flush=True)
    inside = starts - sum(_beside_stages(record).values())  # sessions start within the first stage
    return {"startup_share": inside / run.process_s}


def _beside_stages(record: RunRecord) -> dict[str, float]:
    """Seconds of the session's start, and of Serve with the pool; both within the first stage that needed them."""
    found = {f"start of the {event['what']}": float(event["seconds"]) for event in record.of("start")}
    pool = next((u.loading_s for uses in record.uses.values() for u in uses if u.who == "verifiers"), 0.0)
    return found | ({"start of Serve and the pool": pool} if pool else {})


def _last(record: RunRecord) -> float:
    return float(record.of("finished")[-1]["time"])


def _beside(ray: Timed, local: Timed) -> None:
    """Prints the stages of both runs side by side."""
    other = {stage.name: stage.seconds for stage in local.record.stages}
    rows = [(stage.name, f"{stage.seconds:.1f}", f"{other.get(stage.name, 0.0):.1f}") for stage in ray.record.stages]
    print("\n" + markdown(rows, ("stage", "on Ray", "in one process")), flush=True)


def _pipelining(
    record: RunRecord, folder: Path, overrides: Sequence[str], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of generation with verification in its stream, and of one after the other, in a session of its own."""
    from spftsql.cluster.session import end_session, ensure_session
    from spftsql.generation.stage import generate_dataset_ray
    from spftsql.verification.pool import start_pool
    from spftsql.verification.samples import Checks, SampleReader
    from spftsql.verification.stage import verify_dataset_ray

    stage = max((s for s in record.stages if s.kind == "generate"), key=lambda s: s.requests * ("round" in s.name))
    source = record.root / "stages" / f"{stage.name}-{stage.key}" / "requests.parquet"
    config = resolve("demo", overrides)
    (database,) = open_catalogue([DatabaseConfig(name="shop", url=str(record.root / "shop.sqlite"))]).values()
    known = {(exam, id_): row for exam, rows in read_exams(record.root).items() for id_, row in rows.items()}
    requests = read_records(source, GenerationRequest)
    asked = [replace(known[exam, id_], id=r.id) for r in requests for _, exam, id_ in [r.id.split("/", 2)]]
    write_records(folder / "asked.parquet", asked, Example)
    databases = {database.name: database}
    ensure_session(config)
    start_pool(config)

    def run(early: bool) -> float:
        target = Path(tempfile.mkdtemp(dir=folder))
        checks = Checks(
            target / "early", folder / "asked.parquet", databases, config.prompt, config.verification.policy
        )
        begin = time.monotonic()
        generate_dataset_ray(source, target / "samples", config, lambda *_: None, checks=checks if early else None)
        if not early:
            reader = SampleReader(checks)
            rows = [row for part in sorted((target / "samples").iterdir()) for row in reader.statements(part)]
            write_records(target / "asked.parquet", rows, VerificationRequest)
            verify_dataset_ray(target / "asked.parquet", target / "verdicts", checks.sources, config, lambda *_: None)
        return time.monotonic() - begin

    try:
        together, apart = in_turns(repeats, lambda: run(True), lambda: run(False))
    finally:
        end_session()
    print(f"\n{stage.name}, {len(requests)} requests: verified within {together} s, after {apart} s", flush=True)
    return together, apart


def _on_cluster(folder: Path, nodes: int, overrides: Sequence[str]) -> float:
    """Seconds of the small loop, from the start of its process, on a cluster of so many raylets."""
    cluster = start_cluster(nodes, _CPUS // nodes, {})
    try:
        target = Path(tempfile.mkdtemp(dir=folder))
        return timed(["run", "demo", f"--address={cluster.address}"], target, [*_SMALL, *overrides]).process_s
    finally:
        stop_cluster(cluster)


if __name__ == "__main__":
    main()
