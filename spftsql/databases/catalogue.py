"""The databases of a run: their files, content hashes and schemas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from spftsql.config import DatabaseConfig
from spftsql.databases.files import database_file, file_hash
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.errors import UserError


@dataclass(frozen=True)
class Database:
    """A database of the run: `path` is its read-only file, `content` the hash of its bytes."""

    name: str
    path: Path
    content: str
    schema: Schema


Catalogue = Mapping[str, Database]


def open_catalogue(configs: Iterable[DatabaseConfig]) -> dict[str, Database]:
    """Reflects every configured database. Raises `UserError` for a missing file or a name used twice."""
    catalogue: dict[str, Database] = {}
    for config in configs:
        if config.name in catalogue:
            raise UserError(f"two databases are named {config.name}")
        path = database_file(config.url)
        schema = reflect(config.name, path, config.foreign_keys)
        catalogue[config.name] = Database(config.name, path, file_hash(path), schema)
    if not catalogue:
        raise UserError("no databases: set data.databases, or a benchmark that brings its own")
    return catalogue
