"""Databases as users name them, and the content hashes of their files. Light: imports no library."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from spftsql.errors import UserError
from spftsql.sandbox.location import Location, locate

_DRIVERS = {"sqlite": "apsw", "duckdb": "duckdb", "postgresql": "psycopg"}
_EXTRAS = {"duckdb": "duckdb", "postgresql": "postgres"}
# What the files begin with: an offset, the bytes there, and what the kind is called.
_MAGIC = {"sqlite": (0, b"SQLite format 3\x00", "SQLite"), "duckdb": (8, b"DUCK", "DuckDB")}


def database_location(url: str) -> Location:
    """Where a path or URL points to.

    Raises `UserError` for an address of no known kind, for no such file, and where the engine's package is missing.

    Nothing is opened but a file's first bytes: whether a server is there is seen when it is asked.
    """
    location = locate(url)
    if find_spec(_DRIVERS[location.engine]) is None:
        extra = _EXTRAS.get(location.engine, "")
        raise UserError(f"{location.engine} needs a package that is missing: pip install 'spftsql[{extra}]'")
    path = location.file
    if path is None:
        return location
    written = url.removeprefix(f"{location.engine}:///")
    if not path.is_file():
        raise UserError(f"database file {written} does not exist")
    offset, magic, kind = _MAGIC[location.engine]
    try:
        with path.open("rb") as file:
            start = file.read(offset + len(magic))
    except OSError as error:
        raise UserError(f"database file {written} cannot be read: {error.strerror}") from None
    if start and start[offset:] != magic:  # an empty file is an empty database
        raise UserError(f"{written} is not a {kind} database")
    return location


def database_file(url: str) -> Path:
    """The file behind a path or a `sqlite:///` URL. Raises `UserError` when there is none, or no SQLite file."""
    location = database_location(url)
    if location.engine != "sqlite" or location.file is None:
        raise UserError(f"database {location}: only SQLite files can be used here (a path or sqlite:///path)")
    return location.file


def file_hash(path: Path) -> str:
    """A short hash of a file's bytes: the identity of a database snapshot."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
