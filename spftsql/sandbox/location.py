"""Where a database is, read off what a user writes: a file, or `sqlite:///`, `duckdb:///` or `postgresql://` URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from spftsql.errors import UserError

Engine = Literal["sqlite", "duckdb", "postgresql"]

_FILE_SCHEMES: dict[str, Engine] = {"sqlite": "sqlite", "duckdb": "duckdb"}
_SERVER_SCHEMES: dict[str, Engine] = {"postgresql": "postgresql", "postgres": "postgresql"}
_DUCKDB_SUFFIXES = (".duckdb", ".ddb")
_SECRETS = re.compile(r"([?&](?:password|sslpassword|passfile)=)[^&]*")


@dataclass(frozen=True, slots=True)
class Location:
    """An engine, and the absolute path of a file or the URL of a server."""

    engine: Engine
    address: str

    @property
    def file(self) -> Path | None:
        """The file, for an engine that has one."""
        return None if self.engine == "postgresql" else Path(self.address)

    @property
    def url(self) -> str:
        """What `locate` reads as this location again, whatever a file's name ends in."""
        return self.address if self.engine == "postgresql" else f"{self.engine}:///{self.address}"

    def __str__(self) -> str:
        """For messages: a file's path, or the URL without its password."""
        return without_password(self.address) if self.engine == "postgresql" else self.address


@lru_cache(maxsize=10_000)
def locate(database: str | Path) -> Location:
    """The location of a file or URL; a plain path is SQLite, or DuckDB where its suffix says so.

    Nothing is opened. Raises `UserError` for an engine that is not known.
    """
    text = str(database)
    if isinstance(database, Path) or "://" not in text:
        path = Path(text).absolute()
        return Location("duckdb" if path.suffix in _DUCKDB_SUFFIXES else "sqlite", str(path))
    scheme, _, rest = text.partition("://")
    if scheme in _SERVER_SCHEMES:
        return Location(_SERVER_SCHEMES[scheme], f"postgresql://{rest}")
    if scheme in _FILE_SCHEMES and rest.startswith("/") and len(rest) > 1:
        return Location(_FILE_SCHEMES[scheme], str(Path(rest[1:]).absolute()))
    known = "FILE, sqlite:///FILE, duckdb:///FILE or postgresql://USER@HOST/DATABASE"
    raise UserError(f"database {without_password(text)}: not an address that can be used; write {known}")


def without_password(url: str) -> str:
    """A URL for people to read; what stands before the last @ is taken for a password even where it makes no URL."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    shown = f"{scheme}://{user}{':***' if colon else ''}{at}{place}"
    return _SECRETS.sub(r"\1***", shown)
