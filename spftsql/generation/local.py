"""Generation in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spftsql.config import Config
from spftsql.errors import disk_faults
from spftsql.generation.engine import open_engine
from spftsql.generation.unit_run import UnitRun
from spftsql.generation.work import open_work


def generate_dataset(source: Path, target: Path, config: Config, progress: Callable[[int, int], None]) -> None:
    """`GenerationRequest` rows of `source` to `Sample` rows in the directory `target`, which appears when complete.

    Goes on from what an interrupted call with the same requests has left. `progress` gets (requests done, requests).
    Raises `UserError` for a model that cannot be used, `Fault` when the engine fails or the disk is full.
    """
    with disk_faults(target):
        opened = open_work(source, target, config, engines=1)
        engine = open_engine(config)
        done, total = opened.stored, len(opened.wanted)
        progress(done, total)
        try:
            for unit in opened.units:
                attempt = UnitRun(opened.work, unit, engine, config.generation.batch_size, {"engine": "local"})
                for stored in attempt.run(on_death=lambda _: engine.close()):
                    done += stored
                    progress(done, total)
        finally:
            engine.close()
        opened.work.finish(opened.wanted, target)
