"""What `spftsql serve` serves: a run's promoted model with the run's databases, or a model directory with yours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from spftsql.config import Config, validate
from spftsql.databases.files import database_file
from spftsql.errors import UserError
from spftsql.selfplay.run import load_result


@dataclass(frozen=True)
class ServingPlan:
    """A model directory, its public name, the databases by name, and the configuration that it was trained under."""

    model: Path
    name: str
    databases: Mapping[str, str]
    config: Config


def serving_plan(target: str, db: Sequence[str], host: str, port: int, engine: str) -> ServingPlan:
    """Reads a run directory (`config.yaml`, `result.json`) or takes a model directory as it is.

    Raises `UserError` when the target is neither, or when no database is given.
    """
    folder = Path(target)
    given = dict(_named(item) for item in db)
    serve = {"host": host, "port": port}
    if (folder / "config.yaml").is_file():
        result = load_result(folder)
        tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        tree["serve"] = {**tree.get("serve", {}), **serve}
        tree["generation"]["engine"] = engine
        config = validate(tree, where=str(folder / "config.yaml"))
        model, name, databases = Path(result.served_path), config.name, given or result.databases
    elif (folder / "config.json").is_file():
        tree = {
            "name": folder.name,
            "data": {"benchmark": "jsonl"},
            "model": {"path": str(folder), "dtype": "float32"},
            "serve": serve,
            "generation": {"engine": engine},
        }
        config = validate(tree, where=target)
        model, name, databases = folder, folder.name, given
    else:
        raise UserError(
            f"{target} is neither a finished run (config.yaml, result.json) nor a model directory (config.json)"
        )
    if not databases:
        raise UserError("no database to serve: give at least one as --db NAME=FILE")
    for url in databases.values():
        database_file(url)
    return ServingPlan(model, name, databases, config)


def _named(item: str) -> tuple[str, str]:
    name, equals, url = item.partition("=")
    if not equals or not name or not url:
        raise UserError(f"--db takes NAME=FILE, not {item!r}")
    return name, url
