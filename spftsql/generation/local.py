"""Generation in this process, without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from spftsql.config import Config
from spftsql.errors import disk_faults
from spftsql.generation.engine import open_engine
from spftsql.generation.unit_run import UnitRun
from spftsql.generation.work import open_work, read_lineage
from spftsql.usage import Use, engine_use
from spftsql.verification.local import PartVerifying
from spftsql.verification.samples import Checks


def generate_dataset(
    source: Path,
    target: Path,
    config: Config,
    progress: Callable[[int, int], None],
    checks: Checks | None = None,
    before: Path | None = None,
) -> list[Use]:
    """`GenerationRequest` rows of `source` to `Sample` rows in the directory `target`, which appears when complete.

    With `checks` the samples are verified as they are stored, by threads beside the engine; see
    `verification.samples`. Takes what `before` has (`generation.onward`), and goes on from what an interrupted call
    with the same requests has left. `progress` gets (requests done, requests). Returns how busy engine and verifiers
    were. Raises `UserError` for a model that cannot be used, `Fault` when the engine fails or the disk is full.
    """
    begin = time.monotonic()
    with disk_faults(target):
        opened = open_work(source, target, config, engines=1, before=before)
        earlier = opened.work.part_names()
        done, total = opened.stored, len(opened.wanted)
        progress(done, total)
        with PartVerifying(checks, opened.work.parts, config) as verifying:
            for name in earlier:
                verifying.hand_over(name)
            engine = open_engine(config)
            try:
                for unit in opened.units:
                    attempt = UnitRun(opened.work, unit, engine, config.generation.batch_size, {"engine": "local"})
                    for stored in attempt.run(on_death=lambda _: engine.close()):
                        verifying.hand_over(stored.part)
                        done += stored.requests
                        progress(done, total)
            finally:
                engine.close()
        opened.work.finish(opened.wanted, target)
    wall = time.monotonic() - begin
    notes = [read_lineage(file) for file in target.glob("*.parquet") if file.name not in earlier]
    uses = [engine_use(notes, 1, wall)]
    if checks is not None:
        uses.append(verifying.use(wall))
    return uses
