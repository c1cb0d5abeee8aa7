"""Files of a run that are gone or damaged: the rest is shown, and a line says what to do about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from spftsql.errors import UserError
from spftsql.records import R, read_records

T = TypeVar("T")


def stored_rows(root: Path, path: Path, record: type[R], damaged: list[str] | None) -> list[R]:
    """The rows of a Parquet file of the run `root`, or of a folder of them; see `read_or_note`."""
    found: list[R] = []
    for file in parquet_files(path):
        found += read_or_note(root, file, lambda file: read_records(file, record), damaged) or []
    return found


def parquet_files(path: Path) -> Sequence[Path]:
    """The files of a folder, or the file itself."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def read_or_note(root: Path, file: Path, read: Callable[[Path], T], damaged: list[str] | None) -> T | None:
    """What `read` makes of a file of the run `root`; None where it cannot, upon which `damaged` gets a line, once.

    Raises `UserError` with that line where there is no such list.
    """
    import pyarrow as pa

    try:
        return read(file)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        name = file.relative_to(root)
        first = "remove that stage's folder and " if name.parts[0] == "stages" else ""
        line = f"{name} cannot be read: {first}run the recipe again"
    if damaged is None:
        raise UserError(f"{root}: {line}")
    if line not in damaged:
        damaged.append(line)
    return None


def gone(root: Path, folders: Sequence[Path]) -> Iterator[str]:
    """A line for each of these folders of stages that is not there."""
    for folder in folders:
        if not folder.is_dir():
            yield f"{folder.relative_to(root)} is gone, and what it made is left out: run the recipe again"
