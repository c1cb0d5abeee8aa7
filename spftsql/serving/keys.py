"""The endpoint's keys: a file with one entry per key, which holds no key but its hash, and what the key may do.

A key has 256 random bits, so a plain SHA-256 of it cannot be turned back by trying. The file is read anew when it
changes: a key that is created or revoked counts within a second, without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.table import Table as ConsoleTable

from spftsql.databases.schema import Schema
from spftsql.errors import UserError
from spftsql.serving.grants import Grant

Scope = Literal["ask", "query", "raw", "feedback", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_SCOPES: tuple[Scope, ...] = ("ask", "query", "feedback")
_PREFIX = "spft-"
_BYTES = 32
_LOOK_S = 1.0
_WIDTH = 12  # hexadecimal digits of an id


class KeyEntry(BaseModel):
    """A key as the file has it. `databases` None: all; a database with None: all its tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created: str
    revoked: str | None = None
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    databases: dict[str, tuple[str, ...] | None] | None = None
    requests_per_minute: int | None = Field(None, gt=0)


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[KeyEntry, ...] = ()


@dataclass(frozen=True)
class Principal:
    """Who asks. `grants` None: every database whole; else the databases by name, with None for a whole one."""

    id: str
    name: str
    scopes: frozenset[str]
    grants: Mapping[str, Grant | None] | None = None
    requests_per_minute: int | None = None

    def sees(self, database: str) -> bool:
        """Whether the database is there for this caller at all."""
        return self.grants is None or database in self.grants

    def grant(self, database: str) -> Grant | None:
        """What is granted of a database that it sees; None for all of it."""
        return None if self.grants is None else self.grants[database]


# Without keys there is one caller, who owns the machine; the environment variable's key may do the same.
OWNER = Principal("owner", "owner", frozenset(SCOPES))


def key_hash(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def create_key(
    path: Path,
    name: str,
    scopes: Iterable[str] = DEFAULT_SCOPES,
    databases: Iterable[str] = (),
    requests_per_minute: int | None = None,
) -> tuple[str, KeyEntry]:
    """Adds a key to the file and returns it; it is shown this once.

    `databases` are `DATABASE`, `DATABASE.TABLE` or `DATABASE.TABLE.COLUMN`; none: all. Raises `UserError` for an
    unknown scope, for a name that a valid key has, and for a file that cannot be used.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown:
        raise UserError(f"unknown scope {', '.join(unknown)}; known: {', '.join(SCOPES)}")
    if requests_per_minute is not None and requests_per_minute < 1:
        raise UserError("the rate must be at least one request a minute")
    key = _PREFIX + secrets.token_urlsafe(_BYTES)
    digest = key_hash(key)
    entry = KeyEntry(
        id=digest[:_WIDTH],
        name=name,
        sha256=digest,
        created=_now(),
        scopes=tuple(scope for scope in SCOPES if scope in set(scopes)),
        databases=_databases(databases),
        requests_per_minute=requests_per_minute,
    )
    with _locked(path):
        entries = read_keys(path) if path.exists() else ()
        if any(other.name == name and other.revoked is None for other in entries):
            raise UserError(f"a key is named {name} already; revoke it, or take another name")
        _write(path, (*entries, entry))
    return key, entry


def revoke_key(path: Path, which: str) -> KeyEntry:
    """Revokes the valid key of that name or id. Raises `UserError` when there is none."""
    with _locked(path):
        entries = read_keys(path)
        found = next((e for e in entries if which in (e.id, e.name) and e.revoked is None), None)
        if found is None:
            raise UserError(f"no valid key is named {which}; see `spftsql keys list`")
        revoked = found.model_copy(update={"revoked": _now()})
        _write(path, tuple(revoked if e is found else e for e in entries))
    return revoked


def read_keys(path: Path) -> tuple[KeyEntry, ...]:
    """The entries of the file. Raises `UserError` when it is not there or damaged."""
    try:
        return _KeyFile.model_validate(json.loads(path.read_text(encoding="utf-8"))).keys
    except FileNotFoundError:
        raise UserError(f"there is no file of keys {path}; make one with `spftsql keys create`") from None
    except (OSError, ValueError, ValidationError) as error:
        what = str(error).splitlines()[0]
        raise UserError(f"the file of keys {path} cannot be used: {what}") from None


@dataclass
class KeyRing:
    """Finds who a key belongs to. `path` is followed as it changes; `owner_key` may do everything."""

    path: Path | None = None
    owner_key: str | None = None  # as a hash
    _entries: tuple[KeyEntry, ...] = ()
    _principals: dict[str, Principal] = field(default_factory=dict)
    _state: tuple[int, int, int] | None = None
    _looked: float = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether there are no keys at all, so that everybody who reaches the endpoint owns it."""
        return self.path is None and self.owner_key is None

    def principal(self, key: str) -> Principal | None:
        """Who the key belongs to; None for a key that is unknown or revoked.

        Every hash is compared, each in a time that does not depend on the key. Raises `UserError` for a damaged file.
        """
        digest = key_hash(key)
        found: Principal | None = None
        if self.owner_key is not None and hmac.compare_digest(digest, self.owner_key):
            found = OWNER
        for entry in self._read():
            if hmac.compare_digest(digest, entry.sha256) and entry.revoked is None:
                found = self._principals[entry.id]
        return found

    def _read(self) -> tuple[KeyEntry, ...]:
        if self.path is None or time.monotonic() - self._looked < _LOOK_S:
            return self._entries
        self._looked = time.monotonic()
        try:
            stat = self.path.stat()
        except OSError:
            self._entries, self._state = (), None  # without its file no key is valid
            return ()
        state = stat.st_ino, stat.st_size, stat.st_mtime_ns
        if state != self._state:
            self._entries = ()
            self._entries = read_keys(self.path)
            self._principals = {entry.id: principal_of(entry) for entry in self._entries}
            self._state = state
        return self._entries


def principal_of(entry: KeyEntry) -> Principal:
    """Who holds the key of an entry."""
    grants = None
    if entry.databases is not None:
        grants = {name: None if tables is None else Grant.parse(tables) for name, tables in entry.databases.items()}
    return Principal(entry.id, entry.name, frozenset(entry.scopes), grants, entry.requests_per_minute)


def unknown_grants(entries: Iterable[KeyEntry], schemas: Mapping[str, Schema]) -> list[str]:
    """One line for each valid key that names what the served databases do not have: most likely a slip."""
    lines = []
    for entry in entries:
        for name, grant in (principal_of(entry).grants or {}).items():
            if entry.revoked is None and name in schemas and grant is not None:
                missing = grant.unknown(schemas[name])
                if missing:
                    lines.append(f"key {entry.name}: database {name} has no {', '.join(missing)}")
    return lines


def keys_table(entries: Iterable[KeyEntry]) -> ConsoleTable:
    """The entries for a terminal."""
    table = ConsoleTable(header_style="bold")
    for title in ("id", "name", "scopes", "databases", "per minute", "created", "state"):
        table.add_column(title)
    for entry in entries:
        databases = "all"
        if entry.databases is not None:
            databases = ", ".join(
                name if tables is None else " ".join(f"{name}.{t}" for t in tables)
                for name, tables in entry.databases.items()
            )
        rate = str(entry.requests_per_minute or "–")
        state = f"revoked {entry.revoked}" if entry.revoked else "valid"
        table.add_row(entry.id, entry.name, " ".join(entry.scopes), databases, rate, entry.created, state)
    return table


def _databases(entries: Iterable[str]) -> dict[str, tuple[str, ...] | None] | None:
    found: dict[str, list[str] | None] = {}
    for entry in entries:
        name, dot, rest = entry.partition(".")
        if not name or (dot and not rest):
            raise UserError(f"--db takes DATABASE, DATABASE.TABLE or DATABASE.TABLE.COLUMN, not {entry!r}")
        tables = found.setdefault(name, [])
        if not dot:
            found[name] = None
        elif tables is not None:
            Grant.parse([rest])
            tables.append(rest)
    return {name: None if tables is None else tuple(tables) for name, tables in found.items()} or None


def _locked(path: Path) -> FileLock:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} cannot be made: {error.strerror}") from None
    return FileLock(f"{path}.lock")


def _write(path: Path, entries: tuple[KeyEntry, ...]) -> None:
    tree: dict[str, Any] = {"keys": [entry.model_dump(mode="json") for entry in entries]}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(tree, file, indent=1)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"the file of keys {path} cannot be written: {error.strerror}") from None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
