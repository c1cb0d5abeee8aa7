"""The databases of a run: where they are, what names their content, and their schemas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spftsql.config import DatabaseConfig
from spftsql.databases.descriptions import described
from spftsql.databases.files import database_location, file_hash
from spftsql.databases.places import Source, common_content, source_of
from spftsql.databases.reflection import reflect
from spftsql.databases.schema import Schema
from spftsql.errors import UserError
from spftsql.sandbox.location import Location


@dataclass(frozen=True)
class Database:
    """A database of the run: `location` is where it was read, `source` where SQL is executed.

    `content` is the hash of a file's bytes, or for a server of the schema and all rows when the run began.
    """

    name: str
    location: Location
    content: str
    schema: Schema
    source: Source

    @property
    def path(self) -> Path:
        """The SQLite file. Raises `UserError` for a database of another engine."""
        if self.location.engine != "sqlite" or self.location.file is None:
            raise UserError(f"database {self.name} ({self.location}): this needs a SQLite file")
        return self.location.file


Catalogue = Mapping[str, Database]


def open_catalogue(configs: Iterable[DatabaseConfig]) -> dict[str, Database]:
    """Reflects every configured database, from the first of its replicas that is there.

    Raises `UserError` for a missing file, a server that cannot be reached, replicas of different content, and a name
    used twice.
    """
    catalogue: dict[str, Database] = {}
    for config in configs:
        if config.name in catalogue:
            raise UserError(f"two databases are named {config.name}")
        source = source_of(config.name, (config.url, *config.replicas))
        location = _first_location(source.addresses)
        schema = reflect(config.name, location, config.foreign_keys)
        if config.descriptions is not None:
            schema = described(schema, config.descriptions)
        if location.file:
            content = common_content(config.name, source.addresses) or file_hash(location.file)
            source = replace(source, content=content)
        else:
            from spftsql.databases.server import server_content

            content = server_content(location, schema)  # may change under the run, so nothing is kept by it
        catalogue[config.name] = Database(config.name, location, content, schema, source)
    if not catalogue:
        raise UserError("no databases: set data.databases, or a benchmark that brings its own")
    return catalogue


def _first_location(addresses: Sequence[str]) -> Location:
    """The first place that is there; where none is, the complaint is about the first."""
    complaints = []
    for address in addresses:
        try:
            location = database_location(address)
            if location.engine == "postgresql":
                from spftsql.databases.server import check_server

                check_server(location)
            return location
        except UserError as error:
            complaints.append(error)
    raise complaints[0]
