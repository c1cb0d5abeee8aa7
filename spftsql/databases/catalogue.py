"""The databases of a run: their files, content hashes and schemas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spftsql.config import DatabaseConfig
from spftsql.databases.files import database_file, file_hash
from spftsql.databases.places import Source, common_content, source_of
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.errors import UserError


@dataclass(frozen=True)
class Database:
    """A database of the run: `path` is its file, `content` the hash of its bytes, `source` where SQL is executed."""

    name: str
    path: Path
    content: str
    schema: Schema
    source: Source


Catalogue = Mapping[str, Database]


def open_catalogue(configs: Iterable[DatabaseConfig]) -> dict[str, Database]:
    """Reflects every configured database, from the first of its replicas that is there.

    Raises `UserError` for a missing file, replicas of different content, and a name used twice.
    """
    catalogue: dict[str, Database] = {}
    for config in configs:
        if config.name in catalogue:
            raise UserError(f"two databases are named {config.name}")
        source = source_of(config.name, (config.url, *config.replicas))
        path = _first_file((config.url, *config.replicas))
        content = common_content(config.name, source.addresses) or file_hash(path)
        schema = reflect(config.name, path, config.foreign_keys)
        source = replace(source, content=content)
        catalogue[config.name] = Database(config.name, path, content, schema, source)
    if not catalogue:
        raise UserError("no databases: set data.databases, or a benchmark that brings its own")
    return catalogue


def _first_file(urls: Sequence[str]) -> Path:
    """The first file that is there; where none is, the complaint is about the first."""
    complaints = []
    for url in urls:
        try:
            return database_file(url)
        except UserError as error:
            complaints.append(error)
    raise complaints[0]
