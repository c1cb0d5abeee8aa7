"""The stages of a run in this process, over a small database and a tiny model: for tests of what stages leave."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spftsql.databases.catalogue import open_catalogue
from spftsql.execution import LocalExecution
from spftsql.progress import Reporter
from spftsql.recipes import validate
from spftsql.runs import Run
from spftsql.selfplay.candidates import Candidate
from spftsql.selfplay.stages import Stages

TOWNS = """
CREATE TABLE town (name TEXT, size INT);
INSERT INTO town VALUES ('Ulm', 9), ('Bonn', 11), ('Köln', 12), ('Ulm', 13);
"""


@contextmanager
def local_stages(folder: Path, model: str) -> Iterator[Stages]:
    """Stages of a run below `folder`, over the file `towns.sqlite` in it."""
    path = folder / "towns.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(TOWNS)
    connection.close()
    config = validate(
        {
            "name": "t",
            "run_dir": str(folder / "runs"),
            "execution": "local",
            "data": {"databases": [{"name": "towns", "url": str(path)}]},
            "model": {"path": model, "dtype": "float32", "max_length": 400},
            "generation": {"engine": "transformers", "max_tokens": 4},
            "prompt": {"max_schema_tokens": 64},
        },
        "test",
    )
    catalogue = open_catalogue(config.data.databases)
    sources = {name: database.source for name, database in catalogue.items()}
    run = Run(config)
    try:
        stages = Stages(config, run, LocalExecution(config, sources), catalogue, Reporter())
        stages.use_prompts(model)
        yield stages
    finally:
        run.close()


def model_of(stages: Stages) -> Candidate:
    """The model that the stages were made for."""
    return Candidate("m", str(stages.config.model.path), "m-key")
