"""Generation in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from spftsql.config import Config
from spftsql.generation.engine import open_engine
from spftsql.records import GenerationRequest, Sample, read_records, write_records


def generate_dataset(source: Path, target: Path, config: Config, progress: Callable[[int, int], None]) -> None:
    """`GenerationRequest` rows of `source` to `Sample` rows in the Parquet file `target`, written atomically.

    `progress` gets (requests done, requests). Samples come grouped by model and database, and so do the calls of the
    engine. Raises `UserError` for a model that cannot be used, `Fault` when the engine fails.
    """
    requests = sorted(read_records(source, GenerationRequest), key=lambda r: (r.model, r.db_id))
    engine = open_engine(config)

    def samples() -> Iterator[Sample]:
        done = 0
        for batch in batches(requests, config.generation.batch_size):
            yield from engine.generate(batch)
            done += len(batch)
            progress(done, len(requests))

    try:
        write_records(target, samples(), Sample)
    finally:
        engine.close()


def batches(requests: list[GenerationRequest], size: int) -> Iterator[list[GenerationRequest]]:
    """Cuts sorted requests into batches of one model and at most `size` rows."""
    for _, group in groupby(requests, key=lambda request: request.model):
        rows = list(group)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))
