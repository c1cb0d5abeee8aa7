"""A generation stage whose answers are SQL on a real database, for the tests of verification while it runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from spftsql.config import Config, DatabaseConfig, PromptConfig
from spftsql.databases.catalogue import open_catalogue
from spftsql.generation.checkpoint import Checkpoint, Completion, Prompt
from spftsql.generation.engine import Completed, Engine
from spftsql.generation.onward import examples_of
from spftsql.generation.stage import EngineActor
from spftsql.generation.transformers_engine import TransformersEngine
from spftsql.recipes import validate
from spftsql.records import Example, GenerationRequest, Sample, VerificationRequest, write_records
from spftsql.verification.samples import Checks

GOLD = "SELECT name FROM town WHERE size > {}"


def settings(**generation: object) -> Config:
    """A recipe for parts of eight requests."""
    tree = {
        "name": "test",
        "data": {"benchmark": "demo"},
        "model": {"path": "unused", "max_length": 128},
        "generation": {"engine": "transformers", "batch_size": 8, **generation},
        "verification": {"batch_size": 4},
    }
    return validate(tree, "test")


def towns(folder: Path) -> Path:
    """A database of 50 towns."""
    path = folder / "towns.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE town (name TEXT, size INTEGER)")
        connection.executemany("INSERT INTO town VALUES (?, ?)", [(f"Town {i}", i) for i in range(50)])
        connection.commit()
    return path


def asked(model: str, rows: int) -> list[GenerationRequest]:
    """Requests about the towns; the prompt says which SQL `Speaker` shall answer with."""
    prompts = [GOLD.format(i % 50) if i % 3 else f"SELECT nothing FROM town -- {i}" for i in range(rows)]
    return [GenerationRequest(f"q{i}", "towns", text, model, 1, 0.0, 60, i) for i, text in enumerate(prompts)]


def checks(folder: Path, requests: list[GenerationRequest], database: Path) -> Checks:
    """What the samples are compared with: the gold of every question."""
    examples = [Example(r.id, "towns", f"question {r.id}", GOLD.format(r.seed % 50), "label", "t") for r in requests]
    write_records(folder / "early" / "examples.parquet", examples, Example)
    catalogue = open_catalogue([DatabaseConfig(name="towns", url=str(database))])
    return Checks(folder / "early", folder / "early" / "examples.parquet", catalogue, PromptConfig(), "strict")


def statements(samples: list[Sample]) -> list[VerificationRequest]:
    """What the samples of `asked` are to be verified as."""
    return [
        VerificationRequest(f"{s.id}/{s.index}", "towns", s.text, GOLD.format(int(s.id[1:]) % 50), "strict")
        for s in samples
    ]


class Speaker(TransformersEngine):
    """An engine that repeats its prompt: a model that writes SQL would have to be trained first."""

    def _complete(self, checkpoint: Checkpoint, prompts: Iterator[tuple[int, Prompt]]) -> Iterator[Completed]:
        for at, prompt in prompts:
            yield Completed(at, prompt, [Completion(prompt.tokens, True)])


class SpeakerActor(EngineActor):
    """The same on Ray."""

    def open(self, config: Config) -> Engine:
        """See `EngineActor`."""
        return Speaker(config)


@dataclass(frozen=True)
class Back:
    """An `Onward`: two requests about every sample, to answer with a statement."""

    folder: Path
    checks: Checks
    model: str
    share: float = 0.5

    def asked(self, samples: Sequence[Sample]) -> list[tuple[GenerationRequest, Example]]:
        """See `Onward`."""
        return [
            (
                GenerationRequest(f"{s.id}/{k}", "towns", GOLD.format(k), self.model, 1, 0.0, 60, k),
                Example(s.id, "towns", s.text, GOLD.format(0), "synthetic", "t"),
            )
            for s in samples
            for k in range(2)
        ]


def there_and_back(folder: Path, model: str) -> Back:
    """An `Onward` about the towns, which are made."""
    catalogue = open_catalogue([DatabaseConfig(name="towns", url=str(towns(folder)))])
    kept = folder / "onward"
    return Back(kept, Checks(kept / "checks", examples_of(kept), catalogue, PromptConfig(), "strict"), model)
