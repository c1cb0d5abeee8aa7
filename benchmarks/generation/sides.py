"""The two sides: the stage under Ray Data, and vLLM alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import peak_mib, seconds
from spftsql.config import Config
from spftsql.generation import vllm_options
from spftsql.generation.engine import Engine
from spftsql.generation.stage import EngineActor, generate_dataset_ray
from spftsql.generation.work import open_work, read_lineage
from spftsql.records import GenerationRequest, write_records


class ReadyActor(EngineActor):
    """An engine actor that has its model loaded before its first unit, so that the units show work alone."""

    def open(self, config: Config) -> Engine:
        """See `EngineActor`; the KV cache has the size that the benchmark says."""
        size = int((self._work.folder.parent / "cache_bytes").read_text())
        vllm_options.cache_bytes = lambda base, max_length: size  # type: ignore[assignment]
        engine = super().open(config)
        engine.generate([GenerationRequest("warm", "", "SELECT", str(config.model.path), 1, 0.0, 1, 0)])
        return engine

    def __call__(self, batch: Any) -> Any:
        """See `EngineActor`; notes the memory that the process has had."""
        answer = super().__call__(batch)
        (self._work.folder.parent / f"peak-{os.getpid()}").write_text(str(peak_mib(os.getpid())))
        return answer


@dataclass(frozen=True)
class Outcome:
    """One run of the stage: seconds of planning and of work (start of actors apart), and what its parts note."""

    seconds: float
    tokens: int
    hit_rate: float  # of schema tokens
    engines: int
    split: int  # databases that more than one engine worked on
    peak_mib: float  # of all engines together


def run_stage(
    rows: Sequence[GenerationRequest],
    folder: Path,
    config: Config,
    cache_bytes: int,
    schema: Mapping[str, int],
) -> Outcome:
    """Runs the stage over `rows`; `schema` is the number of schema tokens by request."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "cache_bytes").write_text(str(cache_bytes))
    source, target = folder / "requests.parquet", folder / "samples"
    write_records(source, rows, GenerationRequest)
    planning = seconds(lambda: open_work(source, folder / "plan", config, config.generation.actors))
    generate_dataset_ray(source, target, config, lambda done, total: None, ReadyActor)
    notes = [read_lineage(file) for file in target.glob("*.parquet")]
    cached = {id_: tokens for note in notes for id_, tokens in note["cached_tokens"].items()}
    hits = sum(min(tokens, schema[id_]) for id_, tokens in cached.items())
    served: dict[str, set[str]] = {}
    database = {row.id: row.db_id for row in rows}
    for note in notes:
        for id_ in note["cached_tokens"]:
            served.setdefault(database[id_], set()).add(note["engine"])
    return Outcome(
        seconds=planning + max(note["ended"] for note in notes) - min(note["began"] for note in notes),
        tokens=sum(note["tokens"] for note in notes),
        hit_rate=hits / sum(schema[row.id] for row in rows),
        engines=len({note["engine"] for note in notes}),
        split=sum(len(engines) > 1 for engines in served.values()),
        peak_mib=sum(float(file.read_text()) for file in folder.glob("peak-*")),
    )


class Bare:
    """vLLM alone in its process; every call generates all prompts once."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Waits until the model is loaded."""
        self._process = process
        self._line("ready")

    def run(self, form: str) -> dict[str, float]:
        """Seconds and tokens of one pass over `text` or `ids`, and the memory so far."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{form}\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._line("{"))
        return found

    def _line(self, start: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line
        raise SystemExit("benchmarks.generation: vLLM alone ended before its time")


@contextmanager
def bare_vllm(rows: Sequence[GenerationRequest], folder: Path, cache_bytes: int, threads: int) -> Iterator[Bare]:
    """Starts vLLM alone over the same prompts, with so many threads."""
    source = folder / "bare.parquet"
    write_records(source, rows, GenerationRequest)
    command = [sys.executable, "-m", "benchmarks.generation.bare", str(source), str(cache_bytes)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        yield Bare(process)
    finally:
        process.kill()
        process.wait()


def with_engines(config: Config, actors: int, cpus: float) -> Config:
    """The configuration with so many actors."""
    return config.model_copy(
        update={"generation": config.generation.model_copy(update={"actors": actors, "cpus": cpus})}
    )
