"""Database files as users name them, and their content hashes. Light: imports no library."""

from __future__ import annotations

import hashlib
from pathlib import Path

from spftsql.errors import UserError


def database_file(url: str) -> Path:
    """The file behind a path or a `sqlite:///` URL. Raises `UserError` when there is none, or no SQLite file."""
    path = Path(url.removeprefix("sqlite:///"))
    if "://" in url and not url.startswith("sqlite:///"):
        raise UserError(f"database {url}: only SQLite files can be used by this version (a path or sqlite:///path)")
    if not path.is_file():
        raise UserError(f"database file {path} does not exist")
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"database file {path} cannot be read: {error.strerror}") from None
    with file:
        if file.read(16) not in (b"SQLite format 3\x00", b""):
            raise UserError(f"{path} is not a SQLite database")
    return path


def file_hash(path: Path) -> str:
    """A short hash of a file's bytes: the identity of a database snapshot."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
