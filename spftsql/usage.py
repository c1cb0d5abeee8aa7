"""How long the workers of a stage were at work, of the time that they were held: what idles, and what bounds a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Who = Literal["engines", "verifiers", "trainers"]


@dataclass(frozen=True)
class Use:
    """What `workers` of one kind did in a stage.

    `busy_s` are their seconds of work, all together; `loading_s` those in which they loaded models, which is no work.
    `wall_s` is how long the stage held them, starts and ends included. `rows` are requests, statements or steps;
    `read` tokens of prompts that no cache had, `written` tokens that were sampled or trained on; `steps` are forward
    passes of engines, each a token for all sequences at work.
    """

    who: Who
    workers: int
    busy_s: float
    wall_s: float
    loading_s: float = 0.0
    rows: int = 0
    steps: int = 0
    read: int = 0
    written: int = 0

    @property
    def idle(self) -> float:
        """The share of the workers' time in which they did nothing: 0 to 1."""
        held = self.workers * self.wall_s
        return min(1.0, max(0.0, 1.0 - self.busy_s / held)) if held > 0 else 0.0


def engine_use(lineages: Iterable[Mapping[str, Any]], workers: int, wall_s: float) -> Use:
    """The use of engines by what their parts note (`UnitRun`)."""
    notes = [note for note in lineages if "began" in note]
    loading = sum(note.get("loading_s", 0.0) for note in notes)
    return Use(
        who="engines",
        workers=workers,
        busy_s=round(sum(note["ended"] - note["began"] for note in notes) - loading, 3),
        wall_s=round(wall_s, 3),
        loading_s=round(loading, 3),
        rows=sum(len(note["cached_tokens"]) for note in notes),
        steps=sum(note.get("steps", 0) for note in notes),
        read=sum(note["prompt_tokens"] - sum(note["cached_tokens"].values()) for note in notes),
        written=sum(note["tokens"] for note in notes),
    )


def trainer_use(metrics: Path, jobs: Set[str], workers: int, wall_s: float) -> Use:
    """The use of the workers that trained `jobs`, by the lines of their steps in `metrics.jsonl`.

    All workers take part in every step, so each is busy as long as the steps take.
    """
    steps, tokens, seconds = 0, 0, 0.0
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else ():
        values = json.loads(line)
        if values.get("job") in jobs and values.get("tokens_per_second"):
            steps, tokens = steps + 1, tokens + values["tokens"]
            seconds += values["tokens"] / values["tokens_per_second"]
    return Use("trainers", workers, round(workers * seconds, 3), round(wall_s, 3), rows=steps, written=tokens)
