"""Where a database is: one place, or several replicas that all have the same content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from spftsql.databases.files import file_hash
from spftsql.errors import Fault, UserError
from spftsql.sandbox.location import Location, locate
from spftsql.sandbox.runner import state_of

Place = str | Path


@dataclass(frozen=True, slots=True)
class Source:
    """Where a database is: files or URLs of its replicas, and the hash of the content that they all must have.

    `content` None stands for "whatever is there": a single file is then followed when it changes, and of several the
    first one that can be read says what the content is.
    """

    addresses: tuple[str, ...]
    content: str | None = None


Databases = Mapping[str, Place | Sequence[Place] | Source]


def address_of(location: Location) -> str:
    """What `locate` reads as this location, in whatever folder: a path where that is enough, else a URL."""
    if location.file is None or locate(location.address) == location:
        return location.address
    return f"{location.engine}:///{location.address}"


def source_of(name: str, places: Place | Sequence[Place] | Source) -> Source:
    """A `Source` from what may stand for one.

    Raises `UserError` when there is no address, an address that cannot be used, or replicas of different engines.
    """
    if isinstance(places, Source):
        source = places
    else:
        several = [places] if isinstance(places, str | Path) else places
        source = Source(tuple(address_of(locate(place)) for place in several))
    engines = {locate(address).engine for address in source.addresses}
    if len(engines) != 1:
        what = f"its replicas are of different engines ({', '.join(sorted(engines))})" if engines else "no address"
        raise UserError(f"database {name}: {what}")
    return source


def content_of(file: Path) -> str:
    """The hash of a file's bytes, read once as long as the file's state stays. Raises `Fault` when it is unreadable."""
    return _content_at(file, state_of(locate(file)))


@lru_cache(maxsize=10_000)
def _content_at(file: Path, state: tuple[int, ...]) -> str:
    try:
        return file_hash(file)
    except OSError as error:
        raise Fault(f"{file} cannot be read: {error.strerror}") from None


def sources_of(databases: Databases) -> dict[str, Source]:
    """`source_of` for every database."""
    return {name: source_of(name, places) for name, places in databases.items()}


def common_content(name: str, addresses: Sequence[Place]) -> str | None:
    """The hash of the files' bytes; None for servers, whose content is not compared, and where no file is there.

    Raises `UserError` when two files differ. A file that is missing is a replica that is down.
    """
    first: tuple[Path, str] | None = None
    for address in addresses:
        file = locate(address).file
        if file is None:
            continue
        try:
            content = content_of(file)
        except Fault:
            continue
        if first is None:
            first = file, content
        elif first[1] != content:
            raise UserError(
                f"database {name}: its replicas {first[0]} and {file} have different content; make them copies"
            )
    return first[1] if first else None
