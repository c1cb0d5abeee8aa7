"""What `spftsql serve` serves: a run's promoted model with the run's databases, or a model directory with yours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spftsql.config import Config
from spftsql.databases.files import database_location
from spftsql.errors import UserError
from spftsql.generation.checkpoint import adapter_base
from spftsql.recipes import apply_overrides, resolve, validate
from spftsql.selfplay.table import load_result


@dataclass(frozen=True)
class ServingPlan:
    """A model directory, its public name, the databases by name, and the configuration that it was trained under.

    `adapters` are the run's other adapters of the same base model, by public name.
    """

    model: Path
    name: str
    databases: Mapping[str, str]
    config: Config
    adapters: Mapping[str, Path] = field(default_factory=dict)


def serving_plan(
    target: str, db: Sequence[str], host: str, port: int, engine: str, overrides: Sequence[str] = ()
) -> ServingPlan:
    """Reads a run directory (`config.yaml`, `result.json`) or takes a model directory as it is.

    `overrides` are `a.b=value` over the configuration. Raises `UserError` when the target is neither, when no database
    is given, or one cannot be used.
    """
    folder = Path(target)
    given = dict(_named(item) for item in db)
    changes = [f"serve.host={host}", f"serve.port={port}", f"generation.engine={engine}", *overrides]
    adapters: dict[str, Path] = {}
    if (folder / "config.yaml").is_file():
        result = load_result(folder)
        config = resolve(str(folder / "config.yaml"), changes)
        model, name, databases = Path(result.served_path), config.name, given or result.databases
        adapters = {f"{name}:{other}": path for other, path in _adapters(folder, model).items()}
    elif any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        dtype = "bfloat16" if engine == "vllm" else "float32"  # on a CPU vLLM takes float32 all the same
        tree = {
            "name": folder.resolve().name,
            "data": {"benchmark": "jsonl"},
            "model": {"path": str(folder), "dtype": dtype},
        }
        apply_overrides(tree, changes)
        config = validate(tree, where=target)
        model, name, databases = folder, config.name, given
    else:
        raise UserError(
            f"{target} is neither a finished run (config.yaml, result.json) nor a model directory (config.json)"
        )
    if "@" in name:
        raise UserError(f"a model cannot be served as {name}: what stands after @ names a database")
    if not databases:
        raise UserError("no database to serve: give at least one as --db NAME=URL")
    for url in databases.values():
        database_location(url)
    return ServingPlan(model, name, databases, config, adapters)


def _adapters(run: Path, served: Path) -> dict[str, Path]:
    """The run's adapters over the served model's base, by the name of their folder, the served one left out."""
    base = adapter_base(str(served)) or str(served)
    found: dict[str, Path] = {}
    for file in sorted(run.rglob("adapter_config.json")):
        folder = file.parent
        if folder.resolve() != served.resolve() and adapter_base(str(folder)) == base:
            found.setdefault(folder.name, folder)
    return found


def _named(item: str) -> tuple[str, str]:
    name, equals, url = item.partition("=")
    if not equals or not name or not url:
        raise UserError(f"--db takes NAME=URL, not {item!r}")
    return name, url
